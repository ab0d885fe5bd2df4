"""What results say of their patches, whatever was patched: labels, places in tables, some of them, fewer pairs.

Patches are a tuple, or edges as arrays (`core.edge_patches`), of which no object is made.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from actpatch.core.alignment import Matches, Span, span_of
from actpatch.core.edge_patches import EdgePatches
from actpatch.core.sites import Patch, Site

Value = TypeVar("Value", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Column:
    """What a table says of each patch: a few values, and which of them each patch has."""

    values: Sequence[Any]
    which: Int[np.ndarray, " patch"]
    """Number of each patch's value."""

    def each(self) -> list[Any]:
        """The value of each patch."""
        return [self.values[number] for number in self.which.tolist()]


def common(patch: Patch, of: Callable[[Site], Value]) -> Value | None:
    """What is the same for all of the patch's sites; None where it is not. A window is where its middle is."""
    values = {of(site) for site in patch.centre}
    return values.pop() if len(values) == 1 else None


def column_of(patch: Patch) -> str | None:
    """Which column of a map over positions a patch belongs to: its position's name, or its number.

    Several positions that are patched together are joined by ` + `. None for all positions, and for those that differ
    between pairs without having a name.
    """
    names = dict.fromkeys(
        str(site.position) if site.position_name is None and isinstance(site.position, int) else site.position_name
        for site in patch.centre
    )
    return None if None in names else " + ".join(map(str, names))


def labels_of(patches: Sequence[Patch]) -> list[str]:
    """How each patch is printed."""
    return patches.labels if isinstance(patches, EdgePatches) else [patch.label for patch in patches]


def places_of(patches: Sequence[Patch]) -> tuple[Sequence[tuple[Site, ...]], Int[np.ndarray, " patch"]]:
    """Where patches lie, and which of these places each is at: of many edges few places, of others one each."""
    if isinstance(patches, EdgePatches):
        return patches.places, patches.columns
    return [patch.sites for patch in patches], np.arange(len(patches))


def window_of(patches: Sequence[Patch]) -> int:
    """Number of adjacent layers that were patched together around each site; 1 where layers were patched singly."""
    return 1 if isinstance(patches, EdgePatches) else max((patch.window for patch in patches), default=1)


def written_in(
    patches: Sequence[Patch], matches: Sequence[Matches], side: int, lengths: Sequence[int]
) -> Bool[np.ndarray, "patch pair"]:
    """In which pairs each patch writes anything: not where none of its positions has a partner in the other prompt.

    Args:
        patches: where they lie.
        matches: which positions of each pair's prompts stand for each other; empty where all do.
        side: 0 where the clean run is patched, 1 where the corrupted one is.
        lengths: tokens of each prompt that is patched.
    """
    places, of_patches = places_of(patches)
    if not matches or not places:
        return np.ones((len(patches), len(lengths)), dtype=bool)
    matched = [{match[side] for match in of_pair} for of_pair in matches]
    known: dict[Any, Bool[np.ndarray, " pair"]] = {}
    for at in {site.position for place in places for site in place}:
        known[at] = np.array([_is_matched(at, i, *of_pair) for i, of_pair in enumerate(zip(matched, lengths))])
    of_places = [np.any([known[site.position] for site in place], axis=0) for place in places]
    return np.array(of_places)[of_patches]


def _is_matched(at: Any, pair: int, matched: set[int], length: int) -> bool:
    """Whether any of a site's positions in a pair is among those that have a partner."""
    if at is None:
        return bool(matched)
    return any(one % length in matched for one in span_of(at[pair] if isinstance(at, tuple) else at))


def taken(patches: Sequence[Patch], numbers: Sequence[int]) -> Sequence[Patch]:
    """The patches with these numbers, in this order."""
    return patches.taken(numbers) if isinstance(patches, EdgePatches) else tuple(patches[i] for i in numbers)


def of_pairs(patches: Sequence[Patch], pairs: Sequence[int]) -> Sequence[Patch]:
    """The patches with the positions of these pairs, where they have one of its own in each."""
    if isinstance(patches, EdgePatches):
        return replace(patches, places=tuple(sites_of_pairs(place, pairs) for place in patches.places))
    return tuple(replace(patch, sites=sites_of_pairs(patch.sites, pairs)) for patch in patches)


def table_columns(patches: Sequence[Patch]) -> dict[str, Column]:
    """What tables say of patches: `site` (the label), `hook_point`, `layer`, `head`, `neuron`, `sender`, `position`,
    `position_name`, `window`, and as `place` the position's name or else the position.

    Each is None where the patch has none, or several.
    """
    n = len(patches)
    each, all_alike = np.arange(n), np.zeros(n, dtype=np.int64)
    if isinstance(patches, EdgePatches):
        receivers = [reader.site for reader in patches.graph.readers]
        places = [Patch(place) for place in patches.places]
        found = {name: Column([of(site) for site in receivers], patches.readers) for name, of in _WHERE.items()}
        found |= {name: Column([common(at, of) for at in places], patches.columns) for name, of in _AT.items()}
        found["sender"] = Column([writer.id for writer in patches.graph.writers], patches.writers)
        found["window"] = Column([1], all_alike)
    else:
        found = {
            name: Column([common(patch, of) for patch in patches], each)
            for name, of in {**_WHERE, **_AT, "sender": lambda site: site.sender}.items()
        }
        found["window"] = Column([patch.window for patch in patches], each)
    return {"site": Column(labels_of(patches), each), **found}


_WHERE: dict[str, Callable[[Site], Any]] = {
    "hook_point": lambda site: site.hook_point,
    "layer": lambda site: site.layer,
    "head": lambda site: site.head,
    "neuron": lambda site: site.neuron,
}
"""What belongs to the activation that is patched."""
_AT: dict[str, Callable[[Site], Any]] = {
    "position": lambda site: site.position,
    "position_name": lambda site: site.position_name,
    "place": lambda site: site.position_name or site.position,
}
"""What belongs to the place in the prompts."""


def sites_of_pairs(
    sites: tuple[Site, ...], pairs: Sequence[int], known: dict[int, tuple[object, tuple[Span, ...]]] | None = None
) -> tuple[Site, ...]:
    """The sites with the positions of these pairs, where they have one of its own in each.

    Args:
        known: what was taken out of the positions of other sites, by the object that these are; more is put into it.
    """
    found = {} if known is None else known
    each = []
    for site in sites:
        at = site.position
        if isinstance(at, tuple):
            if id(at) not in found:
                found[id(at)] = at, tuple(at[i] for i in pairs)  # kept, so that no other gets its id
            each.append(replace(site, position=found[id(at)][1]))
        else:
            each.append(site)
    return tuple(each)
