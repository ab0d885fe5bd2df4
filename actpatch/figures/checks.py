"""Checks of the results that figures are given; every error says what is missing. Knows nothing of drawing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from actpatch.core.estimate_words import exact_or_estimated
from actpatch.core.text import plain
from actpatch.results.edges import EdgeResults
from actpatch.results.head_positions import HeadPositionResults
from actpatch.results.items import EdgePatchingResult, HeadPatchingResult, HeadPositionPatchingResult
from actpatch.results.shapes import HeadResults, LayerResults, RowResults, SweepResults, sweep_of_items
from actpatch.results.sweep import Sweep

Heads: TypeAlias = HeadResults | Sequence[HeadPatchingResult]
"""What head figures draw: head results, or a plain list picked from them, which knows no model and no direction."""

DRAWN_BY = {
    "LayerResults": "create_layer_heatmap",
    "HeadResults": "create_head_heatmap",
    "PositionResults": "create_position_heatmap",
    "HeadPositionResults": "create_head_position_heatmap",
    "EdgeResults": "create_edge_heatmap",
    "NeuronResults": "create_effect_distribution",
    "BothDirections": "create_direction_quadrant",
    "AttentionPatterns": "create_attention_patterns",
}


def checked_sweep(results: Any, kinds: type | tuple[type, ...], caller: str) -> Sweep:
    """The sweep of results that are of one of these kinds and not empty."""
    if not isinstance(results, SweepResults) or not isinstance(results, kinds):
        raise ValueError(wrong_type(results, kinds, caller))
    sweep = results.sweep
    if not sweep.patches or not sweep.pair_indices:
        size = f"{len(sweep.patches)} patches × {len(sweep.pair_indices)} pairs"
        raise ValueError(f"these results are empty ({size}): patch at least one component on one pair")
    return sweep


def checked_layers(results: LayerResults, n_layers: int | None, caller: str) -> Sweep:
    sweep = checked_sweep(results, LayerResults, caller)
    check_size("n_layers", n_layers, sweep.n_layers, "layers")
    check_effects(sweep.effects, sweep)
    return sweep


def known_heads(results: Any) -> Any:
    """What was given, but a plain list of heads, of heads at positions or of edges as results, where all are of one
    experiment.

    So `sorted(results)` and `[r for r in results if r.layer > 3]` are drawn as slices of results are.
    """
    if isinstance(results, RowResults) and len(results):
        return results[:]  # as they stand: it is a list, which may have been sorted
    if isinstance(results, SweepResults) or not isinstance(results, Sequence):
        return results
    for kind, shape in _SHAPES:
        if all(isinstance(item, kind) for item in results) and (sweep := sweep_of_items(results)) is not None:
            return shape(sweep)
    return results


_SHAPES: tuple[tuple[type, Callable[[Sweep], SweepResults]], ...] = (
    (HeadPatchingResult, HeadResults),
    (HeadPositionPatchingResult, HeadPositionResults),
    (EdgePatchingResult, EdgeResults),
)
"""An item -> the results that lists of it are read as."""


def checked_heads(results: Heads, caller: str) -> tuple[list[HeadPatchingResult], Sweep | None]:
    """The heads, of one patch type and each once, and their sweep where they know it."""
    sweep = checked_sweep(results, HeadResults, caller) if isinstance(results, SweepResults) else None
    if not isinstance(results, Sequence) or not all(isinstance(head, HeadPatchingResult) for head in results):
        raise ValueError(wrong_type(results, HeadResults, caller))
    heads = list(results)
    if not heads:
        raise ValueError("the list of head results is empty: give at least one head")
    if len(types := sorted({head.patch_type for head in heads})) > 1:
        raise ValueError(f"the list mixes the patch types {', '.join(types)}: draw one type at a time")
    if len(kinds := dict.fromkeys(exact_or_estimated(head.estimate) for head in heads)) > 1:
        raise ValueError(f"the list mixes effects that are {' and '.join(kinds)}: draw one kind at a time")
    if len(heads) > len({head.label for head in heads}):
        raise ValueError("the list holds a head more than once: give each head once")
    check_effects(np.array([head.effect for head in heads]), sweep)
    return heads, sweep


def wrong_type(results: Any, kinds: type | tuple[type, ...], caller: str) -> str:
    expected = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    got = type(results).__name__
    if isinstance(results, Sweep):
        return f"{caller} was given a Sweep, expected {expected}: give it a shape, for instance SweepResults(sweep)"
    advice = f"{DRAWN_BY[got]} draws these" if DRAWN_BY.get(got, caller) != caller else "pass what the patcher returned"
    return f"{caller} was given {got}, expected {expected}: {advice}"


def check_size(name: str, given: int | None, actual: int, what: str) -> None:
    if given not in (None, actual):
        raise ValueError(
            f"this result has {actual} {what}, {name}={given!r} was given: pass {name}={actual} or leave it out"
        )


def check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1")


def check_effects(effects: np.ndarray, sweep: Sweep | None) -> None:
    if sweep is not None and sweep.unmatched.all():
        raise ValueError("no position that was patched has a partner in the other run: match or name others")
    if np.isnan(effects).all():
        means = f" (on average {plain(sweep.clean.mean())} and {plain(sweep.corrupted.mean())})" if sweep else ""
        raise ValueError(
            f"every effect is NaN, no pair was usable: the clean and the corrupted metric{means} barely differ. "
            "Use a corruption that breaks the behaviour"
        )
