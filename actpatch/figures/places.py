"""The cell of a map that each patch belongs to: effects as rows of layers, with what stands below the columns.

`effect_map` is the door for all results that lie in a map. Knows results; it knows nothing of colours or of Plotly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.text import count
from actpatch.figures.checks import check_effects, check_size
from actpatch.figures.frame import room_for, thin_out
from actpatch.figures.words import NO_PARTNER, escaped, head_kind, token_at, token_labels
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import HeadResults, LayerResults
from actpatch.results.sweep import Sweep

Cell = tuple[int, int]
"""Row and column."""
Size: TypeAlias = tuple[int | None, int | None]
"""Numbers of layers and of columns; None where not said."""


@dataclass(frozen=True)
class EffectMap:
    """The effects of one experiment by layer and column."""

    effects: Float[np.ndarray, "row column"]
    """NaN where not measured."""
    places: tuple[Cell | None, ...]
    """The cell of each patch of the sweep; None where it has none."""
    patched: str
    """What was patched at each cell; empty where the columns say it."""
    axis: dict[str, Any]
    """Title and ticks of the columns, for Plotly."""
    columns: str
    """How many columns there are, or which, in words."""
    lines: tuple[str, ...] = ()
    """What hover texts say of the place of each patch; empty where its label says it."""
    room: int = 0
    """Pixels that tick labels take which stand upright."""

    def cells_of(self, patches: Bool[np.ndarray, " patch"]) -> set[Cell]:
        """The cells of these patches."""
        return {place for place, chosen in zip(self.places, patches) if chosen and place is not None}

    def texts(self, of_patches: list[str]) -> dict[Cell, str]:
        """Each cell's hover text."""
        texts = [f"{text}<br>{line}" for text, line in zip(of_patches, self.lines)] if self.lines else of_patches
        return {place: text for place, text in zip(self.places, texts) if place is not None}


@singledispatch
def effect_map(results: Any, component: str | None = None, size: Size = (None, None)) -> EffectMap:
    """The map of any results that lie in layers and columns; for another kind of them, register a function.

    Args:
        results: checked before (`figures.checks`).
        component: which one, of results that have a map for each; None is the first.
        size: numbers of layers and of columns, as the user gave them.

    Raises:
        ValueError: where the size contradicts the results, or is missing for a plain list of heads; where the component
            was not patched.
    """
    raise TypeError(f"no map of {type(results).__name__} is known: register one with effect_map.register")


@effect_map.register
def _(results: HeadResults, component: str | None = None, size: Size = (None, None)) -> EffectMap:
    check_size("n_layers", size[0], results.sweep.n_layers, "layers")
    check_size("n_heads", size[1], results.heads_per_layer, f"{head_kind(results)}s per layer")
    sites = [patch.sites[0] for patch in results.sweep.patches]
    places = tuple(None if s.layer is None or s.head is None else (s.layer, s.head) for s in sites)
    effects = results.matrix()
    columns = f"{count(effects.shape[1], results.kind)} per layer"
    return EffectMap(effects, places, results.patch_type, {"title": results.kind}, columns)


@effect_map.register
def _(results: Sequence, component: str | None = None, size: Size = (None, None)) -> EffectMap:
    n_layers, n_heads = size
    if n_layers is None or n_heads is None:
        raise ValueError(
            "these heads are of no one experiment, so the model's size is not known: pass results, a slice of them or "
            "a list of their entries, or n_layers and n_heads with the list"
        )
    if outside := [h.label for h in results if not (0 <= h.layer < n_layers and 0 <= h.head < n_heads)]:
        raise ValueError(
            f"{outside[0]} lies outside n_layers={n_layers}, n_heads={n_heads}: pass the model's own sizes"
        )
    effects = np.full((n_layers, n_heads), np.nan)
    for head in results:
        effects[head.layer, head.head] = head.effect
    places, kind = tuple((head.layer, head.head) for head in results), head_kind(results)
    return EffectMap(effects, places, results[0].patch_type, {"title": kind}, f"{count(n_heads, kind)} per layer")


@effect_map.register
def _(results: LayerResults, component: str | None = None, size: Size = (None, None)) -> EffectMap:
    table = results.matrix()
    components = list(table.columns)
    firsts = [None if patch.name else patch.sites[0] for patch in results.sweep.patches]
    places = tuple(
        None if site is None or site.layer is None else (site.layer, components.index(site.component))
        for site in firsts
    )
    labels = [escaped(name) for name in components]
    axis = {"title": "component", "tickvals": list(range(len(components))), "ticktext": labels}
    return EffectMap(table.to_numpy(), places, "", axis, _named(labels))


@effect_map.register
def _(results: PositionResults, component: str | None = None, size: Size = (None, None)) -> EffectMap:
    component = results.components[0] if component is None else component
    effects = results.matrix(component)
    check_effects(effects, results.sweep)
    names, sweep = results.names, results.sweep
    sites = [patch.sites[0] for patch in sweep.patches]
    places = tuple(
        (site.layer, column) if site.component == component and site.layer is not None else None
        for site, column in zip(sites, results.columns)
    )
    if names:
        labels = [escaped(name) for name in names]
        axis = {"title": "position, by name", "tickvals": list(range(len(names))), "ticktext": labels}
        lines = tuple("" if place is None else f"position {labels[place[1]]}" for place in places)
        return EffectMap(effects, places, component, axis, _named(labels), lines)
    axis, room = _token_axis(sweep)
    clean, corrupted = _tokens_of(sweep, 0)
    lines = tuple("" if c is None else f"position {c[1]}: {token_at(c[1], clean, corrupted, repr)}" for c in places)
    return EffectMap(effects, places, component, axis, count(effects.shape[1], "position"), lines, room)


def _named(labels: Sequence[str]) -> str:
    return f"columns {', '.join(labels)}"


def _token_axis(sweep: Sweep) -> tuple[dict[str, Any], int]:
    """Columns labelled with the tokens of the first pair's prompts, and the pixels that these labels take."""
    clean, corrupted = _tokens_of(sweep, 0)
    differing = [at for at in range(len(clean)) if _differs(sweep, at)]
    shown = thin_out(len(clean), first=differing)
    labels = token_labels(clean, corrupted, shown, differing)
    same = len(set(sweep.clean_tokens)) == len(set(sweep.corrupted_tokens)) == 1
    whose = "" if same else f" in pair {sweep.pair_indices[0]} (other pairs differ)"
    title = f"position: token{whose}{'<br>clean→corrupted in bold' if differing else ''}"
    return {"title": title, "tickvals": shown, "ticktext": labels, "tickangle": -90}, room_for(labels)


def _differs(sweep: Sweep, position: int) -> bool:
    """Whether the prompts of any pair differ there."""
    return any(
        clean[position : position + 1] != corrupted[position : position + 1] for clean, corrupted in sweep.tokens_at
    )


def _tokens_of(sweep: Sweep, pair: int) -> tuple[list[str], list[str]]:
    """The tokens of a pair's prompts by the positions of the one that is patched."""
    clean, corrupted = ([NO_PARTNER if token is None else token for token in side] for side in sweep.tokens_at[pair])
    return clean, corrupted
