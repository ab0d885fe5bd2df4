"""Which methods find which known circuits: `python -m actpatch.circuits.selftest` prints the table.

Every program whose weights are set by hand (`models.programs`) is searched by every method, and what each finds is laid
beside what is true, under the ablation that the truth is stated for. Exact effects of single edges have to show exactly
the edges that have one; the command fails where they do not. What estimates, ACDC and growing circuits miss is told,
and no failure: gradients are fooled by saturation and cancelling, and searches by what stands in for what.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
from jaxtyping import Bool, Float
from tqdm.auto import tqdm

from actpatch.circuits.patcher import CircuitPatcher
from actpatch.circuits.search import find_circuit
from actpatch.circuits.theorems import theorems_of
from actpatch.core.edge_patches import edge_patches
from actpatch.core.estimates import METHODS, MethodName
from actpatch.core.graph import Graph
from actpatch.core.text import shortened
from actpatch.core.truth import Truth
from actpatch.interventions.sources import OTHER_RUN, Source, Zero
from actpatch.models.facts import model_name
from actpatch.models.programs import ProgramName, program_graph, program_model
from actpatch.patchers.attribution import AttributionPatcher
from actpatch.patchers.paths import PathPatcher
from actpatch.results.both import BothDirections
from actpatch.results.edges import EdgeResults
from actpatch.results.self_test import Finding, SelfTest
from actpatch.statistics.recovery import recovery
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.programs import ProgramDataset, program_truths

SOURCES: dict[str, Source] = {source.label: source for source in (OTHER_RUN, Zero())}
"""What a truth says is written -> the source that writes it."""
ESTIMATES: tuple[MethodName, ...] = tuple(name for name, method in METHODS.items() if "edges" in method.kinds)
NO_EFFECT = 1e-6
"""An |effect| up to this is none: programs compute in double precision, and what matters in them is a quarter or so."""
ACDC_THRESHOLD = 0.01
"""In logits, of which the answers of programs are some 4 apart."""

SEARCHES = ("top", "greedy", "acdc")
"""How circuits are searched: by exact effects (`find_circuit`), and by runs with edges left out."""

Effects = dict[str, Float[np.ndarray, " edge"]]
"""Direction -> effects of all edges."""


def selftest(
    model: Any = None,
    *,
    dataset: PatchingDataset | None = None,
    truths: Sequence[Truth] | None = None,
    methods: Sequence[str] | None = None,
    show_progress: bool = False,
) -> SelfTest:
    """Search the programs whose circuits are known by every method, and check theorems on a model.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge` on which the theorems of circuits and
            estimates are checked (`circuits.theorems`); None for none.
        dataset: prompt pairs for it; None for random tokens of its vocabulary.
        truths: what is true of programs, each of the name of one; None for all that is known (`program_truths`).
        methods: what is tried besides exact effects: methods that estimate edges, `top`, `greedy` and `acdc`; None for
            all of these.
        show_progress: whether a progress bar is drawn on stderr.

    Returns:
        The findings; `.passed` says whether exact search found exactly what has an effect, and every theorem holds.

    Raises:
        ValueError: before any run, for a truth of no program or of an ablation that programs are not searched under,
            for an unknown method, and for a dataset without a model.
        TypeError: for a model of another class.
    """
    if truths is None:
        truths = [truth for name in get_args(ProgramName) for truth in program_truths(name)]
    for truth in truths:
        _check(truth)
    tried = (*ESTIMATES, *SEARCHES) if methods is None else tuple(methods)
    if unknown := [method for method in tried if method not in (*ESTIMATES, *SEARCHES)]:
        known = ", ".join((*ESTIMATES, *SEARCHES))
        raise ValueError(f"method {shortened(unknown[0])} is unknown: expected some of {known}")
    if dataset is not None and model is None:
        raise ValueError("dataset is given and no model: the prompts are for the model that theorems are checked on")
    if model is not None:
        CircuitPatcher(model)  # says what is no model, before programs are run
    groups: dict[tuple[str, str], list[Truth]] = {}
    for truth in truths:
        groups.setdefault((truth.name, truth.ablation), []).append(truth)
    bar = tqdm(groups.values(), desc="programs", disable=not show_progress, leave=False)
    refused: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of programs there is nothing that a user could do otherwise
        findings = tuple(finding for of_program in bar for finding in _findings(of_program, tried, refused))
    notes = tuple(f"{method}: {reason}" for method, reason in refused.items())
    if model is None:
        return SelfTest(findings, notes=notes)
    return SelfTest(findings, model_name(model), theorems_of(model, dataset), notes)


def main(truths: Sequence[Truth] | None = None, methods: Sequence[str] | None = None) -> int:
    """Print the table; the exit status is 1 where the test fails."""
    found = selftest(truths=truths, methods=methods, show_progress=sys.stderr.isatty())
    print(found)
    return 0 if found.passed else 1


def _check(truth: Any) -> None:
    if not isinstance(truth, Truth) or truth.name not in get_args(ProgramName):
        given = truth.name if isinstance(truth, Truth) else truth
        raise ValueError(f"{shortened(given)} is no truth of a program: expected some of program_truths(name)")
    truth.check_graph(program_graph(truth.name))  # type: ignore[arg-type]
    if truth.ablation not in SOURCES:
        raise ValueError(
            f"the truth {truth.name!r} is stated for {truth.ablation} being written, expected {' or '.join(SOURCES)}"
        )


def _findings(truths: list[Truth], methods: Sequence[str], refused: dict[str, str]) -> Iterator[Finding]:
    """What every method finds of one program under one ablation; `refused` gets the reasons of those that cannot."""
    first = truths[0]
    name, source = first.name, SOURCES[first.ablation]
    model, dataset = program_model(name), ProgramDataset(name)  # type: ignore[arg-type]
    # An ablation is written into the run that is patched, in whatever direction, and programs are stated for one.
    both = not source.is_ablation
    exact = _run(PathPatcher(model, show_progress=False), dataset, source, both)
    effects = {"exact": _effects(exact)}
    for estimate in ESTIMATES:
        if estimate in methods and (METHODS[estimate].any_source or both):
            estimating = AttributionPatcher(model, show_progress=False)
            try:
                effects[estimate] = _effects(_run(estimating, dataset, source, both, method=estimate))
            except RuntimeError as reason:  # models of one class show what a method needs, and those of another do not
                refused[estimate] = str(reason)
    for truth in truths:
        hidden = truth.mask() & ~truth.mask(hidden=False)
        for direction in [truth.direction] if truth.direction else list(exact):
            for method, of_method in effects.items():
                yield _by_effects(truth, direction, method, of_method[direction], hidden)
            for method in methods:
                if method == "acdc" and direction == "noising":
                    patcher = CircuitPatcher(model, show_progress=False)
                    circuit = patcher.acdc(dataset, ACDC_THRESHOLD, source=source)
                    yield _finding(truth, direction, method, circuit.edges, hidden)
                elif method in ("top", "greedy"):
                    circuit = find_circuit(exact[direction], n_edges=len(truth), method=method)  # type: ignore[arg-type]
                    yield _finding(truth, direction, method, circuit.edges, hidden)
    if both and (len(truths) > 1 or first.direction is None):
        hidden = np.all([truth.mask() & ~truth.mask(hidden=False) for truth in truths], axis=0)
        for method, of_method in effects.items():
            yield _by_effects(first, "both", method, of_method["both"], hidden)


def _run(
    patcher: PathPatcher | AttributionPatcher, dataset: PatchingDataset, source: Source, both: bool, **how: Any
) -> dict[str, EdgeResults]:
    """Direction -> results."""
    run: Any = patcher.run_all_edges_experiment
    results = run(dataset, direction="both" if both else "noising", source=source, **how)
    if isinstance(results, BothDirections):
        return {"denoising": results.denoising, "noising": results.noising}
    return {"noising": results}


def _effects(results: dict[str, EdgeResults]) -> Effects:
    found = {direction: one.effects_of_all for direction, one in results.items()}
    return found | ({"both": np.fmax(*map(np.abs, found.values()))} if len(found) > 1 else {})


def _by_effects(
    truth: Truth,
    direction: str,
    method: str,
    effects: Float[np.ndarray, " edge"],
    hidden: Bool[np.ndarray, " edge"],
) -> Finding:
    """A ranking: exact effects that are not 0, or the largest estimates."""
    sizes, is_exact = np.where(np.abs(effects) > NO_EFFECT, np.abs(effects), 0.0), method == "exact"
    found = sizes > 0
    if not is_exact:
        found &= np.argsort(np.argsort(-sizes, kind="stable"), kind="stable") < len(truth)
    auroc = recovery(sizes, truth.mask()).auroc
    return _finding(truth, direction, method, found, hidden, auroc, needed=is_exact)


def _finding(
    truth: Truth,
    direction: str,
    method: str,
    found: Bool[np.ndarray, " edge"],
    hidden: Bool[np.ndarray, " edge"],
    auroc: float = np.nan,
    needed: bool = False,
) -> Finding:
    edges, unseen, labels = (_labels(truth.graph, which) for which in (truth.mask(), hidden, found))
    return Finding(truth.name, truth.ablation, direction, method, edges, unseen, labels, auroc, needed)


def _labels(graph: Graph, which: Bool[np.ndarray, " edge"]) -> tuple[str, ...]:
    return tuple(edge_patches(graph).taken(np.flatnonzero(which)).labels)


if __name__ == "__main__":
    sys.exit(main())
