"""Runs circuits and searches them by what their runs give.

In a run of a circuit every receiver reads of its senders in the circuit what these give in this very run, and of all
others what the other run of the pair (or an ablation) has in their place; normalizations are computed anew. With all
edges it is the clean run, with none the corrupted one. ACDC (Conmy et al. 2023, "Towards Automated Circuit Discovery
for Mechanistic Interpretability") goes through the readers from the logits backwards, and leaves out each edge whose
removal, with all that was left out before, costs less than a threshold.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
from jaxtyping import Int

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.circuits import Circuit
from actpatch.core.direction import Direction
from actpatch.core.graph import Graph
from actpatch.core.indices import is_integer
from actpatch.core.stores import Store
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.settings import Settings
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.chosen import MetricChoice
from actpatch.models.graph import graph_of
from actpatch.patchers.experiment import encoded, run_experiment
from actpatch.results.shapes import SweepResults
from actpatch.runs.plan import Plan
from actpatch.tasks.dataset import PatchingDataset

Order = Literal["reverse", "forward", "random"]
MOST_AT_ONCE = 64
"""Most candidates of which all are taken to be left out until one is seen not to be."""


class _OfRuns(TypedDict, total=False):
    pair_indices: Sequence[int] | None
    metrics: MetricChoice
    store: Store | str | Path | None


class CircuitPatcher:
    """Runs circuits of one model.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge`.
        batch_size: most prompts run at once; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.

    Raises:
        TypeError: for a model of another class.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None, show_progress: bool = True) -> None:
        self.model = model
        self.engine = PatchingEngine(model, batch_size=batch_size, show_progress=show_progress)

    def __repr__(self) -> str:
        return f"CircuitPatcher({self.engine!r})"

    @functools.cached_property
    def graph(self) -> Graph:
        """The model's writers, readers and edges (`graph_of`)."""
        return graph_of(self.model)

    @overload
    def run_circuits_experiment(
        self,
        dataset: PatchingDataset,
        circuits: Circuit | Sequence[Circuit] | Mapping[str, Circuit],
        *,
        plan: Literal[True],
        direction: Direction = "noising",
        source: Source = OTHER_RUN,
        **options: Unpack[_OfRuns],
    ) -> Plan: ...

    @overload
    def run_circuits_experiment(
        self,
        dataset: PatchingDataset,
        circuits: Circuit | Sequence[Circuit] | Mapping[str, Circuit],
        *,
        direction: Direction = "noising",
        source: Source = OTHER_RUN,
        **options: Unpack[_OfRuns],
    ) -> SweepResults: ...

    def run_circuits_experiment(
        self,
        dataset: PatchingDataset,
        circuits: Circuit | Sequence[Circuit] | Mapping[str, Circuit],
        *,
        pair_indices: Sequence[int] | None = None,
        direction: Direction = "noising",
        source: Source = OTHER_RUN,
        metrics: MetricChoice = None,
        store: Store | str | Path | None = None,
        plan: bool = False,
    ) -> SweepResults | Plan:
        """Run each circuit on each pair, with all edges that it has not patched together.

        The effect of noising is by how much the circuit falls short: 0 where it does what the model does, 1 where it
        does as little as the corrupted run, so that faithfulness to the corrupted run is 1 less the effect.

        Args:
            dataset: prompt pairs and metric.
            circuits: one, several, or by name.
            pair_indices: which pairs of the dataset; None for all.
            direction: `noising`: edges in the circuit are of the clean run; `denoising`: of the corrupted one.
            source: what stands in the place of senders that are left out.
            metrics: as in `ActivationPatcher.run_patching_experiment`.
            store: likewise.
            plan: likewise.

        Raises:
            ValueError: before any run of the model, for circuits of another graph, and for whatever of the arguments or
                the dataset is wrong.
            RuntimeError: where circuits of this model cannot be run, with the reason.
        """
        named = _named(circuits)
        check_graphs(self.graph, named)
        patches = CircuitPatches(self.graph, np.stack([one.edges for one in named.values()]), tuple(named))
        settings = Settings(
            pair_indices=pair_indices, direction=direction, source=source, metrics=metrics, store=store, plan=plan
        )
        pairs = encoded(self.model, dataset, settings)
        return run_experiment(self.engine, SweepResults, pairs, lambda pairs: patches, settings)  # type: ignore[no-any-return]

    def acdc(
        self,
        dataset: PatchingDataset,
        threshold: float,
        *,
        start: Circuit | None = None,
        order: Order = "reverse",
        seed: int = 0,
        signed: bool = True,
        pair_indices: Sequence[int] | None = None,
        source: Source = OTHER_RUN,
        metric: Any = None,
    ) -> Circuit:
        """A circuit by ACDC: edges are left out one after the other, unless one costs `threshold` or more.

        Candidates are run many at a time, each with all before it left out; from the first that has to stay on, the
        others are run again, so that the circuit is that of one candidate after the other.

        Args:
            dataset: prompt pairs and metric.
            threshold: how much worse the metric, as a mean over the pairs, may become by one edge, in its unit.
            start: the circuit to begin with; None for the whole model.
            order: in which order the senders of a receiver are tried: `reverse`, the latest first, as ACDC's code has
                it, `forward`, or `random`. The circuit depends on it.
            seed: of a random order.
            signed: whether a removal that makes the metric better is always taken; False asks that it changes less than
                the threshold either way.
            pair_indices: which pairs of the dataset; None for all.
            source: what stands in the place of senders that are left out.
            metric: one metric, as in `ActivationPatcher.run_patching_experiment`; None for the dataset's own.

        Raises:
            ValueError: before any run of the model, for a threshold that is no number from 0 on, an unknown order, and
                as `run_circuits_experiment`.
        """
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not threshold >= 0:
            raise ValueError(f"threshold is {threshold!r}, expected a number from 0 on, in the metric's unit")
        if order not in ("reverse", "forward", "random"):
            raise ValueError(f"order {order!r} is unknown: expected 'reverse', 'forward' or 'random'")
        begin = Circuit.full(self.graph) if start is None else start
        check_graphs(self.graph, {"start": begin})
        if not is_integer(seed):
            raise ValueError(f"seed is {seed!r}, expected a whole number")
        settings = Settings(pair_indices=pair_indices, direction="noising", source=source, metrics=metric)
        pairs = encoded(self.model, dataset, settings)
        (chosen,) = pairs.metrics(settings.metrics)
        references = settings.source.references(pairs)
        kept = begin.edges.copy()
        candidates = _in_order(self.graph, kept, order, seed)
        sign = 1.0 if chosen.more_is_better else -1.0
        with self.engine.measuring_circuits(pairs, self.graph, chosen, references=references) as measure:
            now = sign * float(measure(kept[None])[0].mean())
            while len(candidates):
                some = candidates[:MOST_AT_ONCE]
                tried = np.repeat(kept[None], len(some), axis=0)
                for number in range(len(some)):
                    tried[number:, some[number]] = False
                found = sign * measure(tried).mean(axis=1)
                lost = np.concatenate([[now], found[:-1]]) - found
                stays = (lost >= threshold) if signed else (np.abs(lost) >= threshold)
                n_out = int(stays.argmax()) if stays.any() else len(some)
                kept[some[:n_out]] = False
                now = found[n_out - 1] if n_out else now
                candidates = candidates[n_out + 1 :] if n_out < len(some) else candidates[n_out:]
        by = f"ACDC, threshold {threshold:g} of the {chosen.name}, senders in {order} order"
        return Circuit(self.graph, kept, by + (f" (seed {seed})" if order == "random" else ""))


def _in_order(graph: Graph, kept: np.ndarray, order: Order, seed: int) -> Int[np.ndarray, " edge"]:
    """The edges of a circuit as ACDC tries them: readers from the logits backwards, of each its senders."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(graph.n_writers_before)
    found = []
    for end, n_senders in zip(ends[::-1].tolist(), graph.n_writers_before[::-1].tolist()):
        of_reader = np.arange(end - n_senders, end)
        if order == "reverse":
            of_reader = of_reader[::-1]
        elif order == "random":
            of_reader = rng.permutation(of_reader)
        found.append(of_reader)
    every = np.concatenate(found)
    return every[kept[every]]


def _named(circuits: Circuit | Sequence[Circuit] | Mapping[str, Circuit]) -> dict[str, Circuit]:
    if isinstance(circuits, Circuit):
        return {"circuit": circuits}
    if isinstance(circuits, Mapping):
        return dict(circuits)
    return {f"circuit {number}": circuit for number, circuit in enumerate(circuits)}


def check_graphs(graph: Graph, circuits: Mapping[str, Circuit]) -> None:
    """Raise a ValueError for no circuit, what is none, and one of another graph."""
    if not circuits:
        raise ValueError("circuits is empty: give at least one")
    for name, circuit in circuits.items():
        if not isinstance(circuit, Circuit):
            raise ValueError(f"{name} is a {type(circuit).__name__}, expected a Circuit: find_circuit, or Circuit.of")
        if circuit.graph != graph:
            raise ValueError(f"{name} is a circuit of {circuit.graph!r}, this model has {graph!r}")
