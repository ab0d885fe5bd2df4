"""Full names of hook points for what a user wrote. Nothing here asks a model: its hook points are given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from actpatch.core.components import SHORT_NAMES
from actpatch.core.sites import block_hook


def expand_hook_points(hook_points: str | Sequence[str], available: Iterable[str], n_layers: int) -> list[str]:
    """Full names for what the user wrote: full names stay, short names expand over all layers.

    Raises:
        ValueError: where no name was given or the model has no such hook point, with the nearest names.
    """
    asked = names_asked_for(hook_points)
    if wrong := [name for name in asked if not isinstance(name, str)]:
        raise ValueError(f"hook_points holds {wrong[0]!r}, expected the name of a hook point, for instance 'attn_out'")
    known = set(available)
    expanded: list[str] = []
    for name in asked:
        names = [block_hook(layer, name) for layer in range(n_layers)] if name in SHORT_NAMES else [name]
        if missing := [full for full in names if full not in known]:
            raise ValueError(_unknown_hook_point(name, missing[0], known))
        expanded += [full for full in names if full not in expanded]
    return expanded


def names_asked_for(hook_points: Any) -> list[Any]:
    """One name, or several of them or of their sets, as a list.

    Raises:
        ValueError: for what is no list of names, and for an empty one.
    """
    if not isinstance(hook_points, Iterable):
        raise ValueError(f"hook_points is {hook_points!r}, expected names, for instance 'attn_out' or ['z', 'mlp_out']")
    asked = [hook_points] if isinstance(hook_points, str) else list(hook_points)
    if not asked:
        raise ValueError("hook_points is empty: give at least one hook point, for instance 'attn_out'")
    return asked


def _unknown_hook_point(asked: str, missing: str, known: set[str]) -> str:
    without_layer = {tail: short for short, long in SHORT_NAMES.items() for tail in (short, long, long.split(".")[-1])}
    meant = {**{name: name for name in known}, **without_layer}
    nearest = list(dict.fromkeys(meant[name] for name in difflib.get_close_matches(missing, meant, n=3, cutoff=0.6)))
    hint = f"The nearest names are {', '.join(nearest)}" if nearest else "No name of this model comes near"
    via = "" if asked == missing else f" (from {asked!r})"
    shorts = ", ".join(SHORT_NAMES)
    return (
        f"this model has no hook point {missing!r}{via}. {hint}. "
        f"Short names that expand over all layers: {shorts}; list_hook_points() shows every name"
    )
