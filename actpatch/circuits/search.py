"""Circuits from the effects of edges or of components, exact or estimated.

`top` ranks them by themselves; `greedy` grows a circuit from the logits downwards (Hanna et al. 2024, "Have Faith in
Faithfulness"), so that each of its edges leads to the logits. Neither runs a model, unless a share of the effect is the
goal: what a circuit keeps is seen when it is run. `acdc` (Conmy et al. 2023) runs circuits all along.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from actpatch.circuits.measured import CircuitMetrics, metrics_of
from actpatch.circuits.rankings import NodeRanking, Ranking, Scores, edge_ranking, is_of_nodes, scores_of
from actpatch.core.circuits import Circuit
from actpatch.core.graph import Graph
from actpatch.core.heavy import pd
from actpatch.core.indices import is_integer
from actpatch.core.text import count, number, plural
from actpatch.core.warn import warn_user
from actpatch.models.graph import graph_of
from actpatch.patchers.experiment import ExactRuns
from actpatch.results.both import BothDirections
from actpatch.results.edges import EdgeResults
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import Sweep
from actpatch.results.verification import check_is_the_same_model
from actpatch.tasks.dataset import PatchingDataset

Method = Literal["top", "greedy", "acdc"]
AT_ONCE = 8
"""Sizes that are run together while a share is narrowed down."""
ENOUGH = 1e-6
"""So much a circuit may lack of a share, which is rounding."""


def find_circuit(
    results: SweepResults | BothDirections[Any] | pd.DataFrame,
    *,
    n_edges: int | None = None,
    n_nodes: int | None = None,
    threshold: float | None = None,
    share: float | None = None,
    method: Method = "top",
    signed: bool | None = None,
    model: Any = None,
    dataset: PatchingDataset | None = None,
) -> Circuit:
    """The circuit of the edges, or of the components, with the largest effects.

    They are taken in the order of |effect|, or of the effect, ties by their number; one whose effect is NaN never is.
    The circuit is not pruned (`Circuit.pruned`). It says in `found_by` how it was found, and in `seen` by which pairs,
    so that it is judged on others.

    Exactly one goal is given: `n_edges` (of components `n_nodes`), `threshold`, or `share`. ACDC takes a threshold.

    Args:
        results: effects of edges at all positions, or at some that are told apart; or of heads' outputs, attn_out and
            mlp_out, of which the circuit has all edges between those that are taken, the input and the logits, with all
            components of a kind that was not ranked. Exact or estimated; of both directions, where the larger effect of
            each counts, so that what stands above a threshold in either is in; or of several methods,
            what `ensemble` returned of them.
        n_edges: number of edges.
        n_nodes: number of components, or of layers of attention.
        threshold: take what has at least this |effect|, or effect; of ACDC what an edge has to cost to stay, in the
            unit of the metric.
        share: take the fewest that keep this share of the effect when the circuit is run: its faithfulness on the pairs
            of the results, with what they wrote in the place of senders that are left out. Sizes are run on a geometric
            grid, and then between the last that fails and the first that does not until these are neighbours. Smaller
            ones may keep as much where faithfulness goes up and down.
        method: `"top"`: the largest of all. `"greedy"`, of edges: the largest of those into the logits and into what
            already leads there by an edge that was taken; a threshold ends it at the first edge below. At positions
            that are told apart keys and values lead there from all of them. `"acdc"`, of edges:
            `CircuitPatcher.acdc` over all edges on the pairs of the results, whose effects play no part.
        signed: whether effects below 0 come last, instead of counting by their size; of ACDC whether an edge whose
            removal makes the metric better always goes. None for sizes, and for signs of ACDC, as each is defined.
        model: of results that were read from a file the model that they are of, where circuits are run or components
            are ranked.
        dataset: likewise the dataset, where circuits are run.

    Raises:
        ValueError: before any run, for results of anything else, settings out of range or not of this method, more
            edges than there are, where no effect is known or large enough, and where runs are needed and the results do
            not know their model; after some, where no circuit keeps the share, or the model has changed.
        RuntimeError: where circuits of the model cannot be run.

    Warns:
        UserWarning: where no edge of the circuit lies on a way from the input to the logits.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}, expected one of {', '.join(map(repr, get_args(Method)))}")
    if signed is not None and not isinstance(signed, bool):
        raise ValueError(f"signed is {signed!r}, expected True, False, or None for the method's own")
    goals = {"n_edges": n_edges, "n_nodes": n_nodes, "threshold": threshold, "share": share}
    goal, value = _checked_goal({name: given for name, given in goals.items() if given is not None}, method)
    signed = method == "acdc" if signed is None else signed
    scores = scores_of(results)
    of_nodes = is_of_nodes(scores.results)
    _check_fits(scores, of_nodes, goal, method, signed)
    if method == "acdc":
        return _by_acdc(scores, value, signed, model, dataset)
    ranking = _ranking(scores, of_nodes, method, signed, model)
    if not ranking.n_known:
        raise ValueError("every effect is NaN, no pair was usable: use a corruption that breaks the behaviour")
    if goal == "share":
        runs = metrics_of(scores.sweep, model, dataset, "share=")
        n, found = _fewest_that_keep(value, ranking, runs.faithfulness)
        check_is_the_same_model(scores.sweep, runs.sweep)
        told = _told_of_share(value, found, scores.sweep, runs)
    else:
        n = _n_taken(goal, value, ranking)
        told = f"threshold {value:g}" if goal == "threshold" else ""
    circuit = ranking.circuit(n)
    _warn_of_dangling(circuit, method)
    of_all = f"{method} {n:,} of {ranking.n_known:,} {plural(ranking.noun)} by {scores.by(signed)}"
    how = ", ".join(filter(None, [of_all, scores.how, scores.sweep.path, ranking.kept, told]))
    return replace(circuit, found_by=how, seen=scores.seen)


def _checked_goal(given: dict[str, Any], method: Method) -> tuple[str, Any]:
    """The one goal that is given, and its value."""
    if len(given) != 1:
        said = " and ".join(given) or "none"
        raise ValueError(f"{said} of n_edges, n_nodes, threshold and share is given, expected exactly one")
    ((goal, value),) = given.items()
    if method == "acdc" and goal != "threshold":
        raise ValueError(f"{goal} is given, and acdc takes a threshold alone, in the unit of the metric")
    if goal in ("n_edges", "n_nodes") and (not is_integer(value) or value < 1):
        raise ValueError(f"{goal} is {value!r}, expected a whole number of at least 1")
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if goal == "threshold" and not (is_number and 0 < value < math.inf):
        raise ValueError(f"threshold is {value!r}, expected a number above 0")
    if goal == "share" and not (is_number and 0 < value <= 1):
        raise ValueError(f"share is {value!r}, expected a number above 0 and at most 1")
    return goal, value


def _check_fits(scores: Scores, of_nodes: bool, goal: str, method: Method, signed: bool) -> None:
    """Raises a ValueError where goal or method are not for what was ranked."""
    if goal == ("n_edges" if of_nodes else "n_nodes"):
        what, other = ("components", "n_nodes") if of_nodes else ("edges", "n_edges")
        raise ValueError(f"{goal} is given, and these results are of {what}: give {other}")
    if of_nodes and method != "top":
        raise ValueError(f"{method} goes from edge to edge, and these results are of components: choose 'top'")
    if not scores.has_unit and goal == "threshold" and method != "acdc":
        raise ValueError("ranks have no unit for a threshold: give a number or a share, or ensemble(by='scores')")
    if not scores.has_unit and signed:
        raise ValueError("ranks are by size, without a sign: leave out signed, or give ensemble(by='scores')")


def _ranking(scores: Scores, of_nodes: bool, method: Method, signed: bool, model: Any) -> Ranking:
    results, keys = scores.results, scores.keys(signed)
    if isinstance(results, EdgeResults):
        return edge_ranking(results, keys, "greedy" if method == "greedy" else "top")
    return NodeRanking(_graph_of(results.sweep, model), results, keys)


def _graph_of(sweep: Sweep, model: Any) -> Graph:
    """The graph of the model that components are of."""
    if model is None:
        runs = sweep.run_exactly
        if not isinstance(runs, ExactRuns) or runs.pairs.origin is None:
            raise ValueError(
                "these results of components do not know their model (they were read from a file, copied, or are of "
                "some pairs alone), whose edges the circuit is of: give model="
            )
        model = runs.pairs.origin.model
    graph = graph_of(model)
    if (graph.model, graph.n_layers) != (sweep.model, sweep.n_layers):
        raise ValueError(
            f"model is {graph.model} of {count(graph.n_layers, 'layer')}, and the results are of {sweep.model} of "
            f"{sweep.n_layers}: give the model that they were run on"
        )
    return graph


def _by_acdc(scores: Scores, threshold: float, signed: bool, model: Any, dataset: PatchingDataset | None) -> Circuit:
    """ACDC on the pairs of the results; ValueError where these are of some edges alone."""
    results, sweep = scores.results, scores.sweep
    assert isinstance(results, EdgeResults)
    every = edge_ranking(results, np.zeros(len(results)), "top")
    start = every.circuit(len(every))
    if len(start) < start.edges.size:
        raise ValueError(
            f"acdc goes through all {start.edges.size:,} edges, and these results are of {len(start):,}: give results "
            "of all edges, or CircuitPatcher.acdc(start=) a circuit to begin with"
        )
    runs = metrics_of(sweep, model, dataset, "acdc")
    found = runs.patcher.acdc(
        runs.dataset,
        threshold,
        start=start,
        signed=signed,
        pair_indices=runs.settings.pair_indices,
        source=runs.settings.source,
        metric=runs.settings.metrics,
    )
    by = "signed" if signed else "absolute"
    how = f"{found.found_by}, {by} changes, exact, noising, all edges tried on {count(len(sweep.pair_indices), 'pair')}"
    return replace(found, found_by=how)


def _n_taken(goal: str, value: Any, ranking: Ranking) -> int:
    """How many of a ranking reach a goal that needs no runs."""
    if goal != "threshold":
        if value > len(ranking):
            raise ValueError(
                f"{goal} is {value:,}, only {len(ranking):,} {plural(ranking.noun)} can be taken: give at most as many"
            )
        return int(value)
    below = np.flatnonzero(ranking.keys < value)
    n = int(below[0]) if len(below) else len(ranking)
    if n == 0:
        raise ValueError(
            f"no {ranking.noun} that can be taken has an effect of {value:g} or more: give a smaller threshold"
        )
    return n


def _fewest_that_keep(
    share: float, ranking: Ranking, faithfulness: Callable[[list[Circuit]], Float[np.ndarray, " circuit"]]
) -> tuple[int, float]:
    """The fewest of a ranking that keep a share, as far as sizes were run (`find_circuit`), and what they keep."""
    last_that_fails, first = 0, len(ranking) + 1
    sizes = sorted({*(2**power for power in range(len(ranking).bit_length())), len(ranking)})
    kept = math.nan
    while sizes:
        found = faithfulness([ranking.circuit(n) for n in sizes])
        enough = np.flatnonzero(found >= share - ENOUGH)
        if len(enough):
            first, kept = sizes[enough[0]], float(found[enough[0]])
        elif first > len(ranking):
            raise ValueError(
                f"none of {len(sizes)} circuits of 1 to {len(ranking):,} {plural(ranking.noun)} keeps a share of "
                f"{share:g}, the best {number(float(found.max()), 3)}: give a smaller share, or results of more"
            )
        last_that_fails = max([n for n in sizes if n < first], default=last_that_fails)
        between = np.linspace(last_that_fails, first, AT_ONCE + 2).round().astype(int).tolist()
        sizes = sorted({n for n in between if last_that_fails < n < first})
    return first, kept


def _told_of_share(share: float, found: float, sweep: Sweep, runs: CircuitMetrics) -> str:
    return (
        f"the fewest along the ranking found to keep {share:g}: faithfulness {number(found, 3)} when run on "
        f"{count(len(sweep.pair_indices), 'pair')} (noising, {runs.settings.source.label})"
    )


def _warn_of_dangling(circuit: Circuit, method: Method) -> None:
    if not len(circuit.pruned()):
        instead = "" if method == "greedy" else ", or choose method='greedy'"
        warn_user(
            f"none of the {len(circuit):,} edges of this circuit lies on a way from the input to the logits, so that "
            f"it does nothing: take more{instead}"
        )
