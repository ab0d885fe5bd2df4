"""How far a circuit's faithfulness hangs on choices that are seldom told: a table of one number under each of them.

The same circuit, judged on the same pairs, may seem to do all of the task or half of it, by what is written in the
place of the rest, in which direction, and whether edges or whole components are taken away, at all positions or at some
(Miller et al. 2024, "Transformer Circuit Faithfulness Metrics are not Robust"). And other prompts, or another order of
the search, give another circuit. Each row changes one choice and keeps the others.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actpatch.circuits.acdc import places_of
from actpatch.circuits.held_out import Split, held_out_indices
from actpatch.circuits.measured import CircuitMetrics
from actpatch.circuits.patcher import CircuitPatcher, check_graphs, patcher_of
from actpatch.circuits.search import find_circuit
from actpatch.core.circuit_names import CircuitPosition
from actpatch.core.circuits import Circuit
from actpatch.core.direction import Direction
from actpatch.core.indices import is_integer
from actpatch.core.text import count, described
from actpatch.interventions.settings import Settings
from actpatch.interventions.sources import OTHER_RUN, Mean, Resample, Source, Zero
from actpatch.patchers.experiment import encoded
from actpatch.results.edges import EdgeResults
from actpatch.results.sensitivity import Axis, SensitivityCard, Variation
from actpatch.statistics.faithfulness import Faithfulness, faithfulness
from actpatch.statistics.unverified import check_confidence
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.encoding import EncodedPairs

ABLATIONS: tuple[Source, ...] = (Mean(), Resample(), Zero())
"""What is written in the place of the rest, besides the other run."""
FEWEST_PER_TEMPLATE = 2
"""Of a template with fewer pairs there is no row."""
MOST_LETTERS = 44
"""Of a template's name."""
SAME_PAIRS = "searched on pairs that it is judged on, for want of others in the dataset"


def sensitivity_card(
    model: Any,
    dataset: PatchingDataset,
    results: EdgeResults,
    *,
    n_edges: int | None = None,
    threshold: float | None = None,
    method: Any = "top",
    signed: bool = False,
    sources: Sequence[Source] = ABLATIONS,
    positions: Sequence[CircuitPosition] | None = None,
    n_resamples: int = 10,
    acdc_threshold: float | None = None,
    n_orders: int = 3,
    split: Split = "held-out",
    pair_indices: Sequence[int] | None = None,
    metric: Any = None,
    level: float = 0.95,
    seed: int = 0,
    batch_size: int | None = None,
    show_progress: bool = True,
) -> SensitivityCard:
    """The faithfulness of the circuit that these results give, with one choice after the other made otherwise.

    The rows:

    - *ablation*: what is written in the place of the edges that are left out;
    - *direction*: denoising, the circuit's edges of the clean run written into the corrupted one, where the base row
      writes all others of the corrupted run into the clean one;
    - *granularity*: all edges between the circuit's components, which is to replace what all others write;
    - *positions*: the same edges at named positions alone;
    - *template*: the base circuit on the pairs of each template, or group;
    - *bootstrap*: circuits found on resamples of the search's pairs: mean, and the range of the middle `level`;
    - *order of search*: ACDC with senders in another order, if `acdc_threshold` is given.

    Args:
        model: that was searched, or a `CircuitPatcher` of it, which has its own `batch_size` and `show_progress`.
        dataset: pairs to judge on.
        results: effects of edges at all positions, in one direction, that circuits are found by.
        n_edges: as `find_circuit` takes it, of which exactly one goal is given.
        threshold: likewise.
        method: `top` or `greedy`, likewise.
        signed: likewise.
        sources: ablations, a row each.
        positions: names of positions, all of which are one row; None for those that every pair has a name for.
        n_resamples: resamples of the search's pairs; 0 for none.
        acdc_threshold: the threshold of ACDC, in the metric's unit; None for no search by ACDC.
        n_orders: random orders of ACDC.
        split: whether pairs that the search saw are left out (`held-out`), or not (`all`).
        pair_indices: which pairs of the dataset; None for all.
        metric: what is measured; None for the dataset's own.
        level: share of intervals meant to hold the faithfulness over all pairs alike.
        seed: of resamples and random orders.
        batch_size: most prompts run at once; None adapts it to the free memory.
        show_progress: whether progress bars are drawn on stderr.

    Raises:
        ValueError: before any run, as `find_circuit` and `held_out_indices`, and for counts that are none.
    """
    for name, given in (("n_resamples", n_resamples), ("n_orders", n_orders), ("seed", seed)):
        if not is_integer(given) or given < 0:
            raise ValueError(f"{name} is {given!r}, expected a whole number from 0 on")
    check_confidence(level, "level")
    _check_sources(sources)
    if isinstance(positions, (str, int)):
        raise ValueError(f"positions is {positions!r}, expected a list of them: [{positions!r}]")
    if isinstance(metric, (list, tuple)) and len(metric) != 1:
        raise ValueError(f"metric is a list of {len(metric)}, expected one: make a card for each")
    if not isinstance(results, EdgeResults):
        raise ValueError(f"results is a {type(results).__name__}, expected effects of edges in one direction")
    goal = {"n_edges": n_edges, "threshold": threshold, "method": method, "signed": signed}
    circuit = find_circuit(results, **goal)
    if not len(circuit.pruned()):
        raise ValueError(
            f"no edge of {circuit!r} lies on a way from the input to the logits: take more edges, or greedy"
        )
    patcher = patcher_of(model, batch_size, show_progress)
    check_graphs(patcher.graph, {"the circuit of these results": circuit})
    every = encoded(patcher.model, dataset, Settings(pair_indices=pair_indices))
    held_out = held_out_indices(every, circuit.seen, split)
    search_pairs = [index for index in every.indices if index not in held_out.pair_indices] or every.indices
    pairs = encoded(patcher.model, dataset, Settings(pair_indices=held_out.pair_indices))

    asked = [_Asked("ablation", OTHER_RUN.label, (circuit,))]
    asked += [_Asked("ablation", source.label, (circuit,), source) for source in sources]
    asked.append(_Asked("direction", "denoising", (circuit,), direction="denoising"))
    asked += _by_granularity(circuit)
    if names := _common_names(pairs) if positions is None else tuple(positions):
        places_of(names, pairs.in_direction("noising"))  # before anything is run
        there = Circuit(circuit.graph, np.repeat(circuit.edges[None], len(names), axis=0), "", names)
        asked.append(_Asked("positions", f"at {', '.join(map(str, names))} alone", (there,)))
    asked += _by_template(circuit, pairs)
    if n_resamples:
        asked.append(_Asked("bootstrap", count(n_resamples, "resample"), _resampled(results, n_resamples, seed, goal)))
    if acdc_threshold is not None:
        options = {"metric": metric, "pair_indices": search_pairs}
        note = SAME_PAIRS if {*search_pairs} & {*pairs.indices} else ""
        asked += _by_order(patcher, dataset, acdc_threshold, n_orders, seed, options, note)
    judged = _Judged(patcher, dataset, pairs, metric, asked)
    rows = [judged.row(one, circuit, level, seed) for one in asked]
    return SensitivityCard(
        circuit=circuit,
        metric=judged.sweep.metric,
        unit=judged.sweep.unit,
        task=pairs.task,
        held_out=held_out.held_out,
        variations=(replace(rows[0], is_base=True), *rows[1:]),
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """A row: circuits, and how they are run. Of several the row is their mean and range."""

    axis: Axis
    value: str
    circuits: tuple[Circuit, ...]
    source: Source = OTHER_RUN
    direction: Direction = "noising"
    places: tuple[int, ...] | None = None
    """Which of the pairs, by their place among them; None for all."""
    compared_with: Circuit | None = None
    """What Jaccard's index is taken with; None for the base circuit."""
    note: str = ""
    """What a reader should know of it."""


class _Judged:
    """Metrics of all circuits that are asked about: one sweep for each way of running them.

    Args:
        patcher: runs them.
        dataset: prompts.
        pairs: the pairs to judge on.
        metric: as `sensitivity_card` takes it.
        asked: the rows.
    """

    def __init__(
        self, patcher: CircuitPatcher, dataset: PatchingDataset, pairs: EncodedPairs, metric: Any, asked: list[_Asked]
    ) -> None:
        self.refused: dict[str, str] = {}
        """What is written -> why it cannot be, for these pairs."""
        self.ways: dict[tuple[Source, Direction], CircuitMetrics] = {}
        for source, direction in dict.fromkeys((one.source, one.direction) for one in asked):
            try:
                source.references(pairs)
            except ValueError as error:
                self.refused[source.label] = str(error)
                continue
            settings = Settings(pair_indices=pairs.indices, direction=direction, source=source, metrics=metric)
            way = self.ways[source, direction] = CircuitMetrics(patcher, dataset, settings)
            here = [one.circuits for one in asked if (one.source, one.direction) == (source, direction)]
            way.of([*itertools.chain(*here)])
        self.sweep = next(iter(self.ways.values())).sweep

    def row(self, asked: _Asked, base: Circuit, level: float, seed: int) -> Variation:
        """The row of what was asked."""
        if not asked.circuits:
            return Variation(asked.axis, asked.value, math.nan, note="none of them gave a circuit")
        other = base if asked.compared_with is None else asked.compared_with
        with_base = [_jaccard(circuit, other) for circuit in asked.circuits]
        n_edges = round(float(np.mean([len(circuit.pruned()) for circuit in asked.circuits])))
        row = Variation(asked.axis, asked.value, math.nan, jaccard=float(np.mean(with_base)), n_edges=n_edges)
        if asked.source.label in self.refused:
            return replace(row, note=self.refused[asked.source.label])
        f = self._faithfulness(asked, level, seed)
        flags = filter(None, [asked.note, *f.denominator.flags])
        row = replace(row, n_pairs=f.pair_values.shape[1], note="; ".join(flags))
        if len(asked.circuits) == 1:
            return replace(row, faithfulness=f.value[0], low=f.low[0], high=f.high[0])
        low, high = np.quantile(f.value, [(1 - level) / 2, (1 + level) / 2])
        spread = f"mean and middle {level:.0%} of {len(f.value)} circuits"
        return replace(
            row, faithfulness=f.value.mean(), low=low, high=high, note="; ".join(filter(None, [spread, row.note]))
        )

    def _faithfulness(self, asked: _Asked, level: float, seed: int) -> Faithfulness:
        way, places = self.ways[asked.source, asked.direction], slice(None) if asked.places is None else [*asked.places]
        of_circuits, full, empty = way.of(asked.circuits)[0], way.full[0], way.empty[0]
        options: dict[str, Any] = {"more_is_better": self.sweep.more_is_better, "level": level, "seed": seed}
        return faithfulness(of_circuits[:, places], full[places], empty[places], **options)


def _by_granularity(circuit: Circuit) -> list[_Asked]:
    """The circuit's components with all edges between them."""
    between = Circuit.of_nodes(circuit.graph, circuit.pruned().nodes)
    return [_Asked("granularity", "components, all edges between them", (between,))]


def _by_template(circuit: Circuit, pairs: EncodedPairs) -> list[_Asked]:
    """The base circuit on the pairs of each template, else of each group."""
    found: list[_Asked] = []
    for of_pairs in (pairs.templates, pairs.groups):
        places: dict[str, list[int]] = {}
        for place, name in enumerate(of_pairs):
            places.setdefault(name, []).append(place)
        if len(places) < 2:
            continue
        for name, which in places.items():
            if len(which) >= FEWEST_PER_TEMPLATE:
                taken = [one.value for one in found]
                found.append(_Asked("template", _unlike(_short(name), taken), (circuit,), places=tuple(which)))
    return found


def _resampled(results: EdgeResults, n: int, seed: int, goal: Mapping[str, Any]) -> tuple[Circuit, ...]:
    """What is found on draws of the search's pairs, with replacement; a draw that gives no circuit is left out."""
    rng, n_pairs = np.random.default_rng(seed), len(results.sweep.pair_indices)
    found = []
    for _ in range(n):
        drawn = EdgeResults(results.sweep.of_pairs(rng.integers(n_pairs, size=n_pairs).tolist()))
        with contextlib.suppress(ValueError):
            found.append(find_circuit(drawn, **goal))
    return tuple(found)


def _by_order(
    patcher: CircuitPatcher,
    dataset: PatchingDataset,
    threshold: float,
    n: int,
    seed: int,
    options: Mapping[str, Any],
    note: str,
) -> list[_Asked]:
    """What ACDC finds with each receiver's senders in another order, compared with the usual one."""
    orders: list[tuple[str, dict[str, Any]]] = [("latest sender first", {}), ("earliest first", {"order": "forward"})]
    orders += [(f"random {number}", {"order": "random", "seed": seed + number}) for number in range(n)]
    found = [(said, patcher.acdc(dataset, threshold, **how, **options)) for said, how in orders]
    usual = found[0][1]
    return [
        _Asked("order of search", f"ACDC {threshold:g}, {said}", (circuit,), compared_with=usual, note=note)
        for said, circuit in found
    ]


def _jaccard(first: Circuit, second: Circuit) -> float:
    """Edges in both as a share of those in either, once pruned, at whatever positions; 1 of two empty ones."""
    one, other = first.pruned().everywhere, second.pruned().everywhere
    either = len(one | other)
    return len(one & other) / either if either else 1.0


def _short(name: str) -> str:
    """A template's name as a row can show it."""
    return textwrap.shorten(name, MOST_LETTERS, placeholder=" ...") if name else "no name"


def _unlike(name: str, taken: Sequence[str]) -> str:
    """The name, with a number where it is taken: names of templates that begin alike are cut to the same letters."""
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _check_sources(sources: Sequence[Source]) -> None:
    """Raises a ValueError for what is no source, and for two that write what is called the same."""
    if isinstance(sources, (str, Source)):
        raise ValueError(f"sources is {described(sources)}, expected a list of sources, for instance [Zero(), Mean()]")
    labels = [OTHER_RUN.label]
    for source in sources:
        Settings(source=source, direction="noising")  # refuses what is no source
        if source.label in labels:
            raise ValueError(
                f"sources write {source.label} twice, the base row counted, which writes {OTHER_RUN.label}: give each "
                "once"
            )
        labels.append(source.label)


def _common_names(pairs: EncodedPairs) -> tuple[str, ...]:
    """Names of positions that every pair has, in the order of the first one's."""
    named = [set(of_pair) for of_pair in pairs.positions]
    return tuple(name for name in (pairs.positions[0] if named else ()) if all(name in one for one in named))
