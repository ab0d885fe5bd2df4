"""Judges a circuit: runs it, what is left without it, random ones of its size, and it without each of its parts.

Asked are faithfulness, completeness and minimality (Wang et al. 2022, "Interpretability in the Wild"; Marks et al.
2024, "Sparse Feature Circuits"; Shi et al. 2024, "Hypothesis Testing the Circuit Hypothesis in LLMs"), on pairs that
the circuit's search did not see. All circuits are run in one sweep, those of the greedy chain of knock-outs in one
each step. What the numbers mean stands with the result (`results.circuit_evaluation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from jaxtyping import Float

from actpatch.circuits.acdc import places_of
from actpatch.circuits.held_out import HeldOut, Split, held_out_indices
from actpatch.circuits.knock_outs import Nodes, greedy_sets, nodes_of, random_sets, without_nodes
from actpatch.circuits.measured import CircuitMetrics
from actpatch.circuits.patcher import check_graphs, patcher_of
from actpatch.circuits.random_circuits import RandomPaths, random_circuits
from actpatch.core.circuits import Circuit
from actpatch.core.direction import Direction, check_direction
from actpatch.core.indices import is_integer
from actpatch.core.text import count
from actpatch.interventions.settings import Settings
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.chosen import MetricChoice
from actpatch.metrics.names import metric_key
from actpatch.patchers.experiment import encoded
from actpatch.results.circuit_evaluation import CircuitEvaluation, CircuitMeasurements, KindOfParts
from actpatch.statistics.unverified import check_confidence
from actpatch.tasks.dataset import PatchingDataset

MOST_EDGES = 100
"""Of circuits with more edges, parts are heads and MLPs unless edges are asked for."""


def evaluate_circuit(
    model: Any,
    dataset: PatchingDataset,
    circuit: Circuit,
    *,
    split: Split = "held-out",
    direction: Direction = "noising",
    source: Source = OTHER_RUN,
    metrics: MetricChoice = None,
    pair_indices: Sequence[int] | None = None,
    parts: KindOfParts | None = None,
    n_random: int = 99,
    n_knock_outs: int = 20,
    n_greedy: int = 5,
    n_inflated: int = 50,
    seed: int = 0,
    level: float = 0.95,
    batch_size: int | None = None,
    show_progress: bool = True,
) -> CircuitEvaluation:
    """Judge a circuit: `.summary()` says in sentences what `.to_dataframe()` has as a table.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge`, or a `CircuitPatcher`, which has its own
            `batch_size` and `show_progress`.
        dataset: prompt pairs and metric.
        circuit: of this model.
        split: `held-out` leaves out the pairs that the circuit's search saw (`Circuit.seen`); `all` does not.
        direction: `noising`: how much of the behaviour the circuit keeps while all other edges are of the corrupted run
            (or an ablation); `denoising`: how much of it comes back in the corrupted run when the circuit's edges are
            of the clean one. An edge that is restored makes good whatever went wrong before it, so that of a chain any
            edge will do: minimality and random circuits say little there.
        source: what stands in the place of edges that are left out.
        metrics: as in `ActivationPatcher.run_patching_experiment`; None for the dataset's own, and the KL divergence
            from the clean run beside it.
        pair_indices: which pairs of the dataset; None for all.
        parts: what is left out of the circuit one by one: its heads and MLPs (`node`), or its edges (`edge`); None for
            edges of circuits that have no more than 100, and nodes of larger ones.
        n_random: random circuits of as many edges.
        n_knock_outs: random sets of its heads and MLPs that are left out of the model and of the circuit.
        n_greedy: most steps of the greedy chain of such sets.
        n_inflated: random paths that are put into the circuit, for the tests of minimality.
        seed: of whatever is random.
        level: share of intervals meant to hold.
        batch_size: most prompts run at once; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.

    Raises:
        ValueError: before any run of the model, for a circuit of another graph and for one whose edges lie on no way
            from the input to the logits, where the search saw every pair, for denoising with an ablation or with a
            circuit that tells positions apart, and for whatever of the other arguments or the dataset is wrong.
        RuntimeError: where circuits of this model cannot be run, with the reason.
    """
    patcher = patcher_of(model, batch_size, show_progress)
    check_graphs(patcher.graph, {"circuit": circuit})
    counts = {"n_random": n_random, "n_knock_outs": n_knock_outs, "n_greedy": n_greedy, "n_inflated": n_inflated}
    _check_numbers(**counts, seed=seed)
    check_confidence(level, "level")
    check_direction(direction)
    settings = Settings(pair_indices=pair_indices, direction=direction, source=source, metrics=metrics)
    if direction == "denoising" and source.is_ablation:
        raise ValueError(
            f"denoising restores what the clean run has, and {type(source).__name__}() writes something else: choose "
            "direction='noising', or leave source out"
        )
    if direction == "denoising" and circuit.positions:
        raise ValueError(
            "denoising would restore all other positions too where a circuit tells positions apart: choose "
            "direction='noising', or judge circuit.everywhere"
        )
    pairs = encoded(patcher.model, dataset, settings)
    judged_on = held_out_indices(pairs, circuit.seen, split)
    places_of(circuit.positions, pairs.in_direction(direction))  # before anything is run
    if metrics is None and metric_key(pairs.metrics()[0].name) != "kl_divergence":
        settings = replace(settings, metrics=("dataset", "kl_divergence"))
    plan = _planned(circuit, parts, n_random, n_knock_outs, n_inflated, seed)
    runs = CircuitMetrics(patcher, dataset, replace(settings, pair_indices=judged_on.pair_indices))
    runs.of(plan.circuits)
    n_steps = 0 if plan.is_every_set else n_greedy
    greedy = greedy_sets(plan.nodes, n_steps, lambda sets: _gaps(runs, circuit, sets), seed=seed)
    return _evaluation(plan, runs, greedy, judged_on, level)


@dataclass(frozen=True)
class _Plan:
    """What is run of a circuit, but for the greedy chain."""

    circuit: Circuit
    kind: KindOfParts
    nodes: Nodes
    """Its heads and MLPs, which are knocked out."""
    sets: list[Nodes]
    """Random sets of them."""
    parts: dict[str, Circuit]
    """Label of each part -> the circuit without it."""
    random: list[Circuit]
    inflated: list[tuple[Circuit, Circuit]]
    """The circuit with a random path, and the same without an edge of that path."""
    n_inflated: int
    """How many of them were asked for."""
    seed: int

    @property
    def circuits(self) -> list[Circuit]:
        """All of them."""
        knocked = [one for each in _knocked(self.circuit, self.sets) for one in each]
        inflated = [one for both in self.inflated for one in both]
        return [self.circuit, ~self.circuit, *self.random, *self.parts.values(), *knocked, *inflated]

    @property
    def is_every_set(self) -> bool:
        """Whether there are no other sets of its heads and MLPs."""
        return len(self.sets) == 2 ** len(self.nodes) - 1

    @property
    def notes(self) -> list[str]:
        """What a reader should know of it, sentences without full stops."""
        circuit, notes = self.circuit, []
        if n_idle := len(circuit) - len(circuit.pruned()):
            notes.append(
                f"{n_idle:,} of the circuit's edges on no way from the input to the logits: run with the others, but "
                "counted neither as parts nor in its size"
            )
        if circuit.positions:
            notes.append("the rest of the model without the circuit has edges at the circuit's positions alone")
        if not self.nodes:
            notes.append("the circuit has no head and no MLP, so none was knocked out")
        elif self.is_every_set:
            notes.append("every set of its heads and MLPs was knocked out")
        if (n := len(self.inflated)) < self.n_inflated:
            notes.append(f"only {n} of {self.n_inflated} random paths brought the circuit an edge that it has not")
        return notes


def _check_numbers(**given: Any) -> None:
    for name, value in given.items():
        if not is_integer(value) or value < 0:
            raise ValueError(f"{name} is {value!r}, expected a whole number from 0 on")


def _planned(
    circuit: Circuit, asked: KindOfParts | None, n_random: int, n_knock_outs: int, n_inflated: int, seed: int
) -> _Plan:
    """What is to be run of a circuit.

    Raises:
        ValueError: for parts that are unknown or that it has none of, and a circuit that does nothing.
    """
    if asked not in (None, *get_args(KindOfParts)):
        raise ValueError(f"parts is {asked!r}, expected 'node', 'edge', or None to choose by the circuit's size")
    pruned = circuit.pruned()
    if not len(pruned):
        raise ValueError(
            f"none of the circuit's {count(len(circuit), 'edge')} lies on a way from the input to the logits, so it "
            "does nothing: add edges that lead there (find_circuit has method='greedy')"
        )
    nodes = nodes_of(pruned)
    if asked == "node" and not nodes:
        raise ValueError("the circuit has no head and no MLP to leave out: choose parts='edge'")
    kind: KindOfParts = asked or ("edge" if len(pruned) <= MOST_EDGES or not nodes else "node")
    paths, rng = RandomPaths(pruned), np.random.default_rng([seed, 4])
    added = [paths.with_path(circuit, rng) for _ in range(n_inflated)]
    return _Plan(
        circuit=circuit,
        kind=kind,
        nodes=nodes,
        sets=random_sets(nodes, n_knock_outs, seed=seed),
        parts=_without_each(circuit, pruned, nodes, kind),
        random=random_circuits(pruned, n_random, seed=seed),
        inflated=[both for both in added if both is not None],
        n_inflated=n_inflated,
        seed=seed,
    )


def _without_each(circuit: Circuit, pruned: Circuit, nodes: Nodes, kind: KindOfParts) -> dict[str, Circuit]:
    """Label of each part -> the circuit without it."""
    if kind == "node":
        return {circuit.graph.writers[node].label: without_nodes(circuit, (node,)) for node in nodes}
    n_edges = len(circuit.graph)
    table = pruned.edges.reshape(-1, n_edges)
    found = {}
    for label, (edge, at) in zip(pruned.labels, np.argwhere(table.T).tolist()):
        edges = circuit.edges.copy()
        edges.flat[at * n_edges + edge] = False
        found[label] = replace(circuit, edges=edges, found_by="")
    return found


def _knocked(circuit: Circuit, sets: Sequence[Nodes]) -> tuple[list[Circuit], list[Circuit]]:
    """The model and the circuit without each of these sets."""
    full = Circuit.full(circuit.graph)
    return [without_nodes(full, nodes) for nodes in sets], [without_nodes(circuit, nodes) for nodes in sets]


def _gaps(runs: CircuitMetrics, circuit: Circuit, sets: Sequence[Nodes]) -> Float[np.ndarray, " set"]:
    """How far the first metric's means of model and circuit are apart, both without each of these sets."""
    models, circuits = _knocked(circuit, sets)
    found = runs.of([*models, *circuits])[0].mean(axis=1)
    return np.abs(found[: len(sets)] - found[len(sets) :])


def _evaluation(
    plan: _Plan, runs: CircuitMetrics, greedy: list[Nodes], judged_on: HeldOut, level: float
) -> CircuitEvaluation:
    circuit, sets = plan.circuit, [*plan.sets, *greedy]
    alone, complement = np.moveaxis(runs.of([circuit, ~circuit]), 1, 0)
    models, knocked = map(runs.of, _knocked(circuit, sets))
    random, without = runs.of(plan.random), runs.of(list(plan.parts.values()))
    inflated, cut = (runs.of([both[which] for both in plan.inflated]) for which in (0, 1))
    sweep = runs.sweep
    each = zip(
        sweep.measured, runs.full, runs.empty, alone, complement, random, without, knocked, models, inflated, cut
    )
    writers = circuit.graph.writers
    return CircuitEvaluation(
        circuit=circuit,
        task=sweep.task,
        direction=sweep.direction,
        source_of_values=sweep.source_of_values,
        varies=sweep.varies,
        pair_indices=sweep.pair_indices,
        templates=sweep.templates,
        held_out=judged_on.held_out,
        n_left_out=judged_on.n_left_out,
        measured=tuple(
            CircuitMeasurements(values.name, values.unit, values.more_is_better, *of_metric)
            for values, *of_metric in each
        ),
        kind_of_parts=plan.kind,
        parts=tuple(plan.parts),
        knock_outs=tuple(tuple(writers[node].label for node in nodes) for nodes in sets),
        n_greedy=len(greedy),
        random_sizes=np.array([len(one) for one in plan.random], dtype=np.int64),
        seed=plan.seed,
        level=level,
        notes=(*sweep.notes, *plan.notes),
    )
