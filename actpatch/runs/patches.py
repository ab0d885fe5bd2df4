"""Patches as data, and parts of them: what a folder keeps of patches, and what a unit takes out of it.

Single patches are kept as columns, so that of a million only those are made that are looked at; edges, paths and
circuits as the arrays that they are, with their graph. Nothing here knows a file or a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from jaxtyping import Int

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.edge_patches import EdgePatches, GraphPatches
from actpatch.core.graph import Graph
from actpatch.core.path_patches import HeadPaths, Hop, Path, PathPatches
from actpatch.core.sites import Patch, Site
from actpatch.results.patches import sites_of_pairs

_OF_SITE = ("hook_point", "head", "position", "neuron", "position_name", "sender")
_OF_PATCH = ("name", "window")
_OF_EDGES = ("writers", "readers", "columns")


@dataclass(frozen=True)
class Column:
    """Values of many things: the distinct ones, and which of them each has; no `which` where all have the first."""

    values: tuple[Any, ...]
    which: Int[np.ndarray, " thing"] | None

    def at(self, number: int) -> Any:
        return self.values[0 if self.which is None else int(self.which[number])]


@dataclass(frozen=True, eq=False, repr=False)
class StoredPatches(Sequence[Patch]):
    """Single patches as columns: each is made when it is looked at."""

    ends: Int[np.ndarray, " patch"]
    """Behind which site each patch's sites end."""
    of_site: dict[str, Column]
    of_patch: dict[str, Column]
    chosen: range
    """Which of them these are."""

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Patch: ...

    @overload
    def __getitem__(self, index: slice) -> StoredPatches: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return replace(self, chosen=self.chosen[index])
        number = self.chosen[index]
        first = int(self.ends[number - 1]) if number else 0
        sites = (
            Site(**{name: column.at(site) for name, column in self.of_site.items()})
            for site in range(first, int(self.ends[number]))
        )
        return Patch(tuple(sites), **{name: column.at(number) for name, column in self.of_patch.items()})


def part_of_patches(patches: Sequence[Patch], chosen: slice, pairs: Sequence[int]) -> Sequence[Patch]:
    """Some of the patches, with the positions of some of the pairs where they have one of its own in each."""
    some = patches[chosen]
    if isinstance(some, GraphPatches):
        places = tuple(sites_of_pairs(place, pairs) for place in some.places)
        return replace(some, places=places)  # type: ignore[type-var]
    known: dict[int, Any] = {}  # patches share the positions of a name, which are taken out once
    return tuple(replace(patch, sites=sites_of_pairs(patch.sites, pairs, known)) for patch in some)


def patches_as_data(patches: Sequence[Patch]) -> dict[str, Any]:
    """The patches as plain values, from which `patches_from_data` makes them again."""
    if not isinstance(patches, GraphPatches):
        return _singles(patches)
    data: dict[str, Any] = {
        "graph": dataclasses.asdict(patches.graph),
        "places": [[dataclasses.asdict(site) for site in place] for place in patches.places],
    }
    if isinstance(patches, EdgePatches):
        return {"of": "edges", **data, **{name: getattr(patches, name).tolist() for name in _OF_EDGES}}
    if isinstance(patches, HeadPaths):
        of = {"senders": list(patches.senders), "receivers": list(patches.receivers), "through": patches.through}
        return {"of": "heads", **data, **of}
    if isinstance(patches, PathPatches):
        return {"of": "paths", **data, "paths": [dataclasses.asdict(path) for path in patches.paths]}
    if isinstance(patches, CircuitPatches):
        kept = [np.flatnonzero(edges).tolist() for edges in patches.kept.reshape(len(patches), -1)]
        return {"of": "circuits", **data, "kept": kept, "names": list(patches.names)}
    raise ValueError(f"patches are {type(patches).__name__}, which cannot be written down: leave out store")


def patches_from_data(data: dict[str, Any]) -> Sequence[Patch]:
    """What `patches_as_data` was given; single patches as `StoredPatches`."""
    if data["of"] == "single patches":
        sizes = data["sizes"]
        ends = np.cumsum(np.full(data["n"], sizes) if isinstance(sizes, int) else np.array(sizes, dtype=np.int64))
        of_site, of_patch = ({name: _column(data[name]) for name in names} for names in (_OF_SITE, _OF_PATCH))
        return StoredPatches(ends, of_site, of_patch, chosen=range(data["n"]))
    graph = Graph(**{name: tuples(value) for name, value in data["graph"].items()})
    places = tuple(tuple(_site(site) for site in place) for place in data["places"])
    if data["of"] == "edges":
        arrays = {name: np.array(data[name], dtype=np.int64) for name in _OF_EDGES}
        return EdgePatches(graph, **arrays, places=places)
    if data["of"] == "heads":
        return HeadPaths(graph, tuple(data["senders"]), tuple(data["receivers"]), data["through"], places)
    if data["of"] == "paths":
        return PathPatches(graph, tuple(map(_path, data["paths"])), places)
    if data["of"] != "circuits":
        raise ValueError(f"patches are {data['of']!r}, expected single patches, edges, heads, paths or circuits")
    kept = np.zeros((len(data["names"]), len(places) * len(graph)), dtype=bool)
    for row, edges in zip(kept, data["kept"]):
        row[edges] = True
    return CircuitPatches(graph, kept.reshape(-1, len(places), len(graph)), tuple(data["names"]), places)


def tuples(value: Any) -> Any:
    """Lists, however deep, as tuples."""
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def _singles(patches: Sequence[Patch]) -> dict[str, Any]:
    sites = [site for patch in patches for site in patch.sites]
    sizes = [len(patch.sites) for patch in patches]
    return {
        "of": "single patches",
        "n": len(patches),
        "sizes": sizes[0] if len({*sizes}) == 1 else sizes,
        **{name: _column_data(getattr(site, name) for site in sites) for name in _OF_SITE},
        **{name: _column_data(getattr(patch, name) for patch in patches) for name in _OF_PATCH},
    }


def _column_data(each: Iterable[Any]) -> dict[str, Any]:
    """Distinct values in the order in which they come; those that are one object are looked at once."""
    by_object: dict[int, tuple[Any, int]] = {}
    by_value: dict[tuple[type, Any], int] = {}
    which = []
    for value in each:
        if id(value) not in by_object:
            by_object[id(value)] = value, by_value.setdefault((type(value), value), len(by_value))
        which.append(by_object[id(value)][1])
    return {"values": [value for _, value in by_value], **({"which": which} if len(by_value) > 1 else {})}


def _column(data: dict[str, Any]) -> Column:
    which = np.array(data["which"], dtype=np.int64) if "which" in data else None
    return Column(tuples(data["values"]), which)


def _path(stored: dict[str, Any]) -> Path:
    return Path(stored["sender"], tuple(Hop(**hop) for hop in stored["hops"]), stored["label"])


def _site(stored: dict[str, Any]) -> Site:
    return Site(**{name: tuples(value) for name, value in stored.items()})
