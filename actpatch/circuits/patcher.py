"""Runs circuits and searches them by what their runs give.

In a run of a circuit every receiver reads of its senders in the circuit what these give in this very run, and of all
others what the other run of the pair (or an ablation) has in their place; normalizations are computed anew. With all
edges it is the clean run, with none the corrupted one. A circuit that tells positions apart has no edge at those that
it does not name.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np

from actpatch.circuits.acdc import Order, Search, acdc, places_of
from actpatch.core.circuit_names import CircuitPosition
from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.circuits import Circuit
from actpatch.core.direction import Direction
from actpatch.core.graph import Graph
from actpatch.core.stores import Store
from actpatch.core.text import count, described
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.settings import Settings
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.chosen import MetricChoice
from actpatch.models.graph import graph_of
from actpatch.patchers.experiment import encoded, run_experiment, run_sweeps
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import Sweep
from actpatch.runs.plan import Plan
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.encoding import EncodedPairs


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
        settings = Settings(
            pair_indices=pair_indices, direction=direction, source=source, metrics=metrics, store=store, plan=plan
        )
        pairs = encoded(self.model, dataset, settings)
        alike: dict[tuple[CircuitPosition, ...], list[int]] = {}
        for number, circuit in enumerate(named.values()):
            alike.setdefault(circuit.positions, []).append(number)
        for positions in alike:
            places_of(positions, pairs.in_direction(direction))  # all are checked before any is run
        patches = [functools.partial(self._patches, named, numbers) for numbers in alike.values()]
        if len(alike) == 1:
            return run_experiment(self.engine, SweepResults, pairs, patches[0], settings)  # type: ignore[no-any-return]
        if plan or settings.stored_in is not None:
            raise ValueError(
                f"the circuits tell positions apart in {count(len(alike), 'way')}, and a stored or planned run has "
                "one: give those of each a call and a folder of their own"
            )
        sweeps = [run_sweeps(self.engine, pairs, of_alike, settings)[0] for of_alike in patches]
        return SweepResults(_joined(sweeps, [*itertools.chain(*alike.values())]))

    def _patches(self, named: Mapping[str, Circuit], numbers: Sequence[int], pairs: EncodedPairs) -> CircuitPatches:
        """Some of the circuits, all of the same positions."""
        names = [list(named)[number] for number in numbers]
        circuits = [named[name] for name in names]
        kept = np.stack([one.edges.reshape(-1, len(self.graph)) for one in circuits])
        return CircuitPatches(self.graph, kept, tuple(names), places_of(circuits[0].positions, pairs))

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

        Readers are gone through from the logits backwards (`circuits.acdc`). What comes out is exactly what running one
        candidate after the other would give. An edge into a component that leads to the logits by no edge any more
        costs nothing.

        Args:
            dataset: prompt pairs and metric.
            threshold: how much worse the metric, as a mean over the pairs, may become by one edge, in its unit.
            start: the circuit to begin with, of whose positions the found one is; None for the whole model.
            order: in which order the senders of a receiver are tried: `reverse`, the latest first, as ACDC's code has
                it, `forward`, `random`, or all senders of the graph in a list. The circuit depends on it, and says it.
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
        begin = Circuit.full(self.graph) if start is None else start
        check_graphs(self.graph, {"start": begin})
        search = Search.of(self.graph, threshold, order, seed, signed)
        settings = Settings(pair_indices=pair_indices, direction="noising", source=source, metrics=metric)
        pairs = encoded(self.model, dataset, settings)
        metrics = pairs.metrics(settings.metrics)
        if len(metrics) != 1:
            raise ValueError(f"metric names {len(metrics)}, expected one: a search goes by one number")
        return acdc(self.engine, pairs, metrics[0], begin, search, source.references(pairs))


def _joined(sweeps: Sequence[Sweep], numbers: Sequence[int]) -> Sweep:
    """Sweeps of the same pairs as one, whose patches stand in the order of these numbers."""
    if len(sweeps) == 1:
        return sweeps[0]
    order = np.argsort(numbers)
    patches = [*itertools.chain(*(sweep.patches for sweep in sweeps))]
    each = zip(*(sweep.measured for sweep in sweeps))
    measured = [replace(of[0], patched=np.concatenate([one.patched for one in of])[order]) for of in each]
    notes = dict.fromkeys(itertools.chain(*(sweep.notes for sweep in sweeps)))
    return replace(
        sweeps[0],
        patches=tuple(patches[number] for number in order),
        measured=tuple(measured),
        notes=tuple(notes),
    )


def _named(circuits: Circuit | Sequence[Circuit] | Mapping[str, Circuit]) -> dict[str, Circuit]:
    if isinstance(circuits, Circuit):
        return {"circuit": circuits}
    if isinstance(circuits, Mapping):
        return dict(circuits)
    if not isinstance(circuits, Iterable):
        raise ValueError(
            f"circuits is {described(circuits)}, expected a Circuit, several, or a mapping of names to them"
        )
    return {f"circuit {number}": circuit for number, circuit in enumerate(circuits)}


def patcher_of(model: Any, batch_size: int | None, show_progress: bool) -> CircuitPatcher:
    """What runs circuits of a model; what is one already keeps its own settings.

    Raises:
        TypeError: for a model of another class.
    """
    if isinstance(model, CircuitPatcher):
        return model
    return CircuitPatcher(model, batch_size=batch_size, show_progress=show_progress)


def check_graphs(graph: Graph, circuits: Mapping[str, Circuit]) -> None:
    """Raise a ValueError for no circuit, what is none, and one of another graph."""
    if not circuits:
        raise ValueError("circuits is empty: give at least one")
    for name, circuit in circuits.items():
        if not isinstance(circuit, Circuit):
            raise ValueError(f"{name} is a {type(circuit).__name__}, expected a Circuit: find_circuit, or Circuit.of")
        if circuit.graph != graph:
            raise ValueError(f"{name} is a circuit of {circuit.graph!r}, this model has {graph!r}")
