"""A circuit of a program with all that can be said of it, from runs of the program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from actpatch import (
    Circuit,
    CircuitEvaluation,
    EdgeResults,
    FaithfulnessCurve,
    PathPatcher,
    SensitivityCard,
    evaluate_circuit,
    faithfulness_curve,
    find_circuit,
    sensitivity_card,
)
from actpatch.models.programs import program_model
from actpatch.tasks.programs import ProgramDataset


@dataclass(frozen=True)
class Judged:
    """Effects of all edges on half of the pairs, and what circuits do on the other half."""

    effects: EdgeResults
    circuit: Circuit
    """The true edges, one more that is idle, and one that leads nowhere."""
    evaluation: CircuitEvaluation
    curve: FaithfulnessCurve
    greedy: FaithfulnessCurve
    card: SensitivityCard


@cache
def judged() -> Judged:
    """Of the program that continues a repeated sequence (`tasks.programs`)."""
    model, dataset = program_model("induction"), ProgramDataset("induction", 16)
    effects = PathPatcher(model, show_progress=False).run_all_edges_experiment(
        dataset, direction="noising", pair_indices=range(8)
    )
    found = find_circuit(effects, n_edges=3)
    idle = Circuit.of(effects.graph, ["input->a1.h2<q>", "input->a2.h0<q>"])
    circuit = Circuit(effects.graph, (found | idle).edges, found.found_by, (), found.seen)
    quiet = {"show_progress": False}
    counts = {"n_random": 9, "n_knock_outs": 6, "n_greedy": 2, "n_inflated": 5}
    sizes = {"sizes": (0.001, 0.02, 0.05, 0.2, 1.0), "n_random": 6}
    return Judged(
        effects,
        circuit,
        evaluate_circuit(model, dataset, circuit, **counts, **quiet),
        faithfulness_curve(model, dataset, effects, **sizes, **quiet),
        faithfulness_curve(model, dataset, effects, method="greedy", rankings=("absolute",), **sizes, **quiet),
        sensitivity_card(model, dataset, effects, n_edges=3, n_resamples=3, **quiet),
    )
