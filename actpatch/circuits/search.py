"""Circuits from the effects of edges, exact or estimated. Nothing here runs a model.

`top` ranks edges by themselves; `greedy` grows a circuit from the logits downwards (Hanna et al. 2024, "Have Faith in
Faithfulness"), so that each of its edges leads to the logits.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from actpatch.core.circuits import Circuit
from actpatch.core.estimate_words import exact_or_estimated
from actpatch.core.growth import grown
from actpatch.core.indices import is_integer
from actpatch.results.both import BothDirections
from actpatch.results.edges import EdgeResults

Method = Literal["top", "greedy"]


def find_circuit(
    results: EdgeResults | BothDirections[EdgeResults],
    *,
    n_edges: int | None = None,
    threshold: float | None = None,
    share: float | None = None,
    method: Method = "top",
    signed: bool = False,
) -> Circuit:
    """The circuit of the edges with the largest effects; exactly one of `n_edges`, `threshold` and `share` is given.

    Edges are taken in the order of |effect|, or of the effect, ties by their number; one whose effect is NaN never is.
    The circuit is not pruned (`Circuit.pruned`), and says in `found_by` how it was found.

    Args:
        results: effects of edges at all positions; of both directions, the union of the circuits of each.
        n_edges: number of edges.
        threshold: take edges of at least this |effect|, or effect.
        share: take edges until the positive effects among them add up to this share of all positive effects.
        method: `"top"`: the largest of all. `"greedy"`: the largest of those into the logits and into what already
            leads there by an edge that was taken; a threshold ends it at the first edge below.
        signed: whether effects below 0 come last, instead of counting by their size.

    Raises:
        ValueError: for results that are no edges at all positions, settings out of range, more edges than there are,
            and where no edge has such an effect.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}, expected one of {', '.join(map(repr, get_args(Method)))}")
    _check_goal(n_edges, threshold, share)
    if isinstance(results, BothDirections):
        found = [
            find_circuit(one, n_edges=n_edges, threshold=threshold, share=share, method=method, signed=signed)
            for one in (results.denoising, results.noising)
        ]
        union = found[0] | found[1]
        return Circuit(union.graph, union.edges, f"union of {found[0].found_by}; and {found[1].found_by}")
    if not isinstance(results, EdgeResults):
        raise ValueError(f"results is a {type(results).__name__}, expected what PathPatcher returns of edges")
    if results.positions:
        raise ValueError("these edges were patched at positions, which circuits do not know: patch all positions")
    graph, sweep = results.graph, results.sweep
    effects = np.full(len(graph), np.nan)
    effects[results.edges.numbers] = sweep.effects
    keys = effects if signed else np.abs(effects)
    known = np.flatnonzero(~np.isnan(effects))
    if not len(known):
        raise ValueError("every effect is NaN, no pair was usable: use a corruption that breaks the behaviour")
    ranked = known[np.argsort(-keys[known], kind="stable")]
    order = ranked if method == "top" else np.fromiter(grown(graph, ranked), dtype=np.int64)
    n = _n_taken(order, effects, keys, n_edges, threshold, share)
    edges = np.zeros(len(graph), dtype=bool)
    edges[order[:n]] = True
    goal = f"threshold {threshold:g}" if threshold is not None else f"share {share:g}" if share is not None else ""
    by = "signed effect" if signed else "|effect|"
    how = [f"{method} {n:,} of {len(known):,} edges by {by}", goal, exact_or_estimated(sweep.estimate), sweep.direction]
    return Circuit(graph, edges, ", ".join(filter(None, how)))


def _check_goal(n_edges: Any, threshold: Any, share: Any) -> None:
    given = {k: v for k, v in (("n_edges", n_edges), ("threshold", threshold), ("share", share)) if v is not None}
    if len(given) != 1:
        said = " and ".join(given) or "none"
        raise ValueError(f"{said} of n_edges, threshold and share is given, expected exactly one")
    if n_edges is not None and (not is_integer(n_edges) or n_edges < 1):
        raise ValueError(f"n_edges is {n_edges!r}, expected a whole number of at least 1")
    if threshold is not None and (not isinstance(threshold, (int, float)) or not 0 < threshold < math.inf):
        raise ValueError(f"threshold is {threshold!r}, expected a number above 0")
    if share is not None and (not isinstance(share, (int, float)) or not 0 < share <= 1):
        raise ValueError(f"share is {share!r}, expected a number above 0 and at most 1")


def _n_taken(
    order: Int[np.ndarray, " taken"],
    effects: Float[np.ndarray, " edge"],
    keys: Float[np.ndarray, " edge"],
    n_edges: int | None,
    threshold: float | None,
    share: float | None,
) -> int:
    """How many edges of the order reach the goal."""
    if n_edges is not None:
        if n_edges > len(order):
            raise ValueError(f"n_edges is {n_edges:,}, only {len(order):,} edges can be taken: give at most that many")
        return n_edges
    if threshold is not None:
        below = np.flatnonzero(keys[order] < threshold)
        n = int(below[0]) if len(below) else len(order)
        if n == 0:
            raise ValueError(
                f"no edge that can be taken has an effect of {threshold:g} or more: give a smaller threshold"
            )
        return n
    assert share is not None
    gains = np.where(effects[order] > 0, effects[order], 0.0)
    n_positive = int((effects > 0).sum())
    if not n_positive:
        raise ValueError("no edge has an effect above 0, so there is no share to reach: give n_edges")
    reached = np.flatnonzero(np.cumsum(gains) >= share * math.fsum(effects[effects > 0]))
    last = np.flatnonzero(gains > 0)
    if len(last) == n_positive:  # all are taken, whatever rounding makes of their sum
        reached = np.append(reached, last[-1])
    if not len(reached):
        raise ValueError(f"share is {share:g}, edges that lead to the logits do not reach it: give a smaller one")
    return int(reached.min()) + 1
