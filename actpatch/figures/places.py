"""Which cell of a map does each patch belong to?  Effects as rows of layers, with what stands below the columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from actpatch.figures.checks import check_effects
from actpatch.figures.frame import room_for, thin_out
from actpatch.figures.words import escaped, token_at, token_labels
from actpatch.results.shapes import HeadResults, LayerResults, PositionResults
from actpatch.results.sweep import Sweep

Cell = tuple[int, int]
"""Row and column."""


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
    told: tuple[str, ...] = ()
    """What hover texts say of the place of each patch; empty where its label says it."""
    room: int = 0
    """Pixels that tick labels take which stand upright."""

    def muted(self, patches: Bool[np.ndarray, " patch"]) -> set[Cell]:
        """The cells of these patches."""
        return {place for place, chosen in zip(self.places, patches) if chosen and place is not None}

    def texts(self, of_patches: list[str]) -> dict[Cell, str]:
        """Each cell's hover text."""
        lines = [f"{text}<br>{told}" for text, told in zip(of_patches, self.told)] if self.told else of_patches
        return {place: text for place, text in zip(self.places, lines) if place is not None}


def head_map(results: HeadResults) -> EffectMap:
    sites = [patch.sites[0] for patch in results.sweep.patches]
    places = tuple(None if s.layer is None or s.head is None else (s.layer, s.head) for s in sites)
    return EffectMap(results.matrix(), places, results.patch_type, {"title": results.kind})


def layer_map(results: LayerResults) -> EffectMap:
    table = results.matrix()
    components = list(table.columns)
    firsts = [None if patch.name else patch.sites[0] for patch in results.sweep.patches]
    places = tuple(
        None if site is None or site.layer is None else (site.layer, components.index(site.component))
        for site in firsts
    )
    ticks = {"tickvals": list(range(len(components))), "ticktext": [escaped(name) for name in components]}
    return EffectMap(table.to_numpy(), places, "", {"title": "component", **ticks})


def position_map(results: PositionResults, component: str | None) -> EffectMap:
    """The map of one component, the first if not named, labelled with names or with the tokens of both prompts."""
    component = results.components[0] if component is None else component
    effects = results.matrix(component)
    check_effects(effects, results.sweep)
    names, sweep = results.names, results.sweep
    sites = [patch.sites[0] for patch in sweep.patches]
    columns = [names.index(str(site.position_name)) if names else site.position for site in sites]
    places = tuple(
        (site.layer, column)
        if site.component == component and site.layer is not None and isinstance(column, int)
        else None
        for site, column in zip(sites, columns)
    )
    if names:
        shown = [escaped(name) for name in names]
        axis = {"title": "position, by name", "tickvals": list(range(len(names))), "ticktext": shown}
        told = tuple("" if place is None else f"position {shown[place[1]]}" for place in places)
        return EffectMap(effects, places, component, axis, told)
    axis, room = _token_axis(sweep)
    clean, corrupted = sweep.clean_tokens[0], sweep.corrupted_tokens[0]
    told = tuple("" if c is None else f"position {c[1]}: {token_at(c[1], clean, corrupted, repr)}" for c in places)
    return EffectMap(effects, places, component, axis, told, room)


def _token_axis(sweep: Sweep) -> tuple[dict[str, Any], int]:
    """Columns labelled with the tokens of the first pair's prompts, and the pixels that these labels take."""
    clean, corrupted = sweep.clean_tokens[0], sweep.corrupted_tokens[0]
    differing = [at for at in range(len(clean)) if _differs(sweep, at)]
    shown = thin_out(len(clean), first=differing)
    labels = token_labels(clean, corrupted, shown, differing)
    same = len(set(sweep.clean_tokens)) == len(set(sweep.corrupted_tokens)) == 1
    whose = "" if same else f" in pair {sweep.pair_indices[0]} (other pairs differ)"
    title = f"position: token{whose}{'<br>clean→corrupted in bold' if differing else ''}"
    return {"title": title, "tickvals": shown, "ticktext": labels, "tickangle": -90}, room_for(labels)


def _differs(sweep: Sweep, position: int) -> bool:
    """Whether the prompts of any pair differ there."""
    pairs = zip(sweep.clean_tokens, sweep.corrupted_tokens)
    return any(clean[position : position + 1] != corrupted[position : position + 1] for clean, corrupted in pairs)
