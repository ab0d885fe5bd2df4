"""Places of an experiment: from hook points, positions and windows as they are asked for to patches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

from actpatch.core.hook_points import expand_hook_points, names_asked_for
from actpatch.core.indices import is_integer
from actpatch.core.sites import Patch, Site
from actpatch.core.text import share_of_pairs
from actpatch.interventions.positions import Place, as_list, positions_in_pairs
from actpatch.tasks.encoding import EncodedPairs

HookPoints: TypeAlias = str | Sequence[str | Sequence[str]]
"""Names of hook points; a sequence of names within the sequence is a set that is patched together."""
Position: TypeAlias = int | str | Sequence[int | str | Sequence[int | str]] | None
"""A position, a name of one or of a span of tokens, several that are patched together, or None for all."""
Columns: TypeAlias = Sequence[int | str | Sequence[int | str]]
"""Positions or names of them, one at a time; a sequence of them within the sequence is patched together."""


def hook_point_patches(
    hook_points: HookPoints, available: Collection[str], places: Sequence[Site], window: int, n_layers: int
) -> list[Patch]:
    """A patch per hook point, or window of layers around it, and one per set of hook points.

    Args:
        hook_points: names as the user wrote them; short names expand over all layers.
        available: the model's hook points.
        places: the positions that are patched together (`places_at`).
        window: number of adjacent layers patched together.
        n_layers: number of the model's layers.

    Raises:
        ValueError: for an unknown hook point, and for a window that is none or has no middle.
    """
    check_window(window)
    patches: dict[str, Patch] = {}
    for one in names_asked_for(hook_points):
        together = names_asked_for(one)
        names = expand_hook_points(together, available, n_layers)
        if not isinstance(one, str):
            label = " + ".join(together)
            if window > 1:
                raise ValueError(f"the set {label} has no layer in its middle: leave out window, or the set")
            sites = tuple(replace(place, hook_point=name) for name in names for place in places)
            patches[label] = Patch(sites, name=label)
            continue
        for name in names:
            patches[name] = layer_window([replace(place, hook_point=name) for place in places], window, n_layers)
    return list(patches.values())


def places_at(position: Position, pairs: EncodedPairs) -> list[Site]:
    """The positions that are patched together, as sites whose hook point is still to be filled in.

    Raises:
        ValueError: for a position out of range, no position at all, or a name that a pair lacks.
    """
    if position is None:
        return [Site("")]
    asked = as_list(position)
    if not asked:
        raise ValueError("position is empty: give a position, several, a name, or None for all positions")
    return [_at(place, pairs) for place in dict.fromkeys(asked)]


def named_columns(positions: Columns, pairs: EncodedPairs) -> list[list[Site]]:
    """The columns of a map over positions, each under its name, as sites whose hook point is still to be filled in.

    A column has one site, or several that are patched together.

    Raises:
        ValueError: for a position out of range, no position at all, one that is named twice, or a name that a pair
            lacks.
    """
    is_one = isinstance(positions, str) or is_integer(positions) or not isinstance(positions, Iterable)
    columns = [as_list(column) for column in ([positions] if is_one else positions)]
    if not columns or not all(columns):
        raise ValueError("positions is empty: give at least one position or name, or None for every position")
    named = [[_name(place) for place in column] for column in columns]
    _check_once([" + ".join(names) for names in named], "a map has one column for each")
    for names in named:
        _check_once(names, f"{' + '.join(names)} are patched together")
    return [
        [Site("", position=positions_in_pairs(place, pairs), position_name=name) for place, name in zip(column, names)]
        for column, names in zip(columns, named)
    ]


def every_position(pairs: EncodedPairs) -> list[list[Site]]:
    """The columns of a map over all positions, as sites whose hook point is still to be filled in."""
    lengths = pairs.lengths.numpy()
    if len(each := sorted(set(lengths.tolist()))) > 1:
        named = [name for name in pairs.named[0] if all(name in has for has in pairs.named)]
        by_name = f"positions={named!r}, which every pair has" if named else "names, once the dataset has get_positions"
        counts = "; ".join(f"{length} tokens: {share_of_pairs(lengths == length, pairs.indices)}" for length in each)
        raise ValueError(
            f"the pairs have {' and '.join(map(str, each))} tokens, a map over all positions needs one length: align "
            f"them by name ({by_name}), or choose pairs of one length with pair_indices ({counts})"
        )
    return [[Site("", position=at)] for at in range(each[0])]


def check_window(window: int) -> None:
    """Raises ValueError where the window is no odd number of layers."""
    if not is_integer(window) or window < 1 or window % 2 == 0:
        raise ValueError(
            f"window is {window!r}, expected an odd number of layers (1 for single layers, 3 for a layer and both its "
            "neighbours): results belong to the layer in the middle"
        )


def layer_window(sites: Sequence[Site], window: int, n_layers: int) -> Patch:
    """Sites of one hook point together with those of the adjacent layers: `window` layers, their own in the middle.

    At the first and last layers the window is cut off, so that each layer of the model is the middle of one.

    Raises:
        ValueError: where the hook point lies in no layer.
    """
    if window == 1:
        return Patch(tuple(sites))
    name, middle = sites[0].hook_point, sites[0].layer
    if middle is None:
        raise ValueError(f"{name} lies in no layer, so it has no window of layers: leave out window")
    around = range(max(0, middle - window // 2), min(n_layers, middle + window // 2 + 1))
    tail = name.removeprefix(f"blocks.{middle}.")
    names = [f"blocks.{layer}.{tail}" for layer in around if layer != middle]
    return Patch((*sites, *(replace(site, hook_point=other) for other in names for site in sites)), window=window)


def _check_once(names: Sequence[str], why: str) -> None:
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"positions names {twice[0]!r} twice: {why}")


def _at(place: Place, pairs: EncodedPairs) -> Site:
    if not isinstance(place, int):
        return Site("", position=positions_in_pairs(place, pairs), position_name=_name(place))
    positions_in_pairs(place, pairs)
    return Site("", position=place)


def _name(place: Place) -> str:
    """What a position is called in labels and above its column: several together `S2 + END`."""
    return " + ".join(map(str, place)) if isinstance(place, tuple) else str(place)
