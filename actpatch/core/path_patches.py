"""Paths through a graph as values: from a writer by way of other components to a reader. Nothing here runs a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Int

from actpatch.core.edge_patches import ALL_POSITIONS, GraphPatches, check_reached
from actpatch.core.graph import Graph
from actpatch.core.node_names import Names
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.core.text import shortened

Through = Literal["nothing", "mlps"]

FROZEN: dict[Through, str] = {
    "nothing": "all other heads and MLPs frozen",
    "mlps": "all other heads frozen, MLPs recomputed",
}
"""What a change may go through on its way to the receivers -> what is frozen and what recomputed. The normalization
before each receiver is always computed anew."""


@dataclass(frozen=True)
class Hop:
    """One step of a path: what reads, and which of what it moves goes on from there."""

    reader: int
    """Number among the graph's readers."""
    writer: int | None
    """Number among the graph's writers; None for the last hop, from which everything goes on as usual."""


@dataclass(frozen=True)
class Path:
    """From a writer by at least one hop."""

    sender: int
    """Number among the graph's writers."""
    hops: tuple[Hop, ...]
    label: str


@dataclass(frozen=True, eq=False, repr=False)
class PathPatches(GraphPatches):
    """Paths of a graph, each patched alone, at all positions: of every component on it only what the component before
    it on the path changes is changed."""

    graph: Graph
    paths: tuple[Path, ...]
    places: tuple[tuple[Site, ...], ...] = ALL_POSITIONS

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return replace(self, paths=self.paths[index])
        path = self.paths[index]
        site = self.graph.readers[path.hops[-1].reader].site
        return Patch((replace(site, sender=self.graph.writers[path.sender].id),), name=path.label)

    @property
    def used_writers(self) -> Int[np.ndarray, " used"]:
        hops = [hop.writer for path in self.paths for hop in path.hops if hop.writer is not None]
        return np.unique([path.sender for path in self.paths] + hops)

    @property
    def used_readers(self) -> Int[np.ndarray, " used"]:
        return np.unique([hop.reader for path in self.paths for hop in path.hops])


@dataclass(frozen=True, eq=False, repr=False)
class HeadPaths(GraphPatches):
    """Each of some heads as the sender to the same receivers, which read it together (Wang et al. 2022)."""

    graph: Graph
    senders: tuple[int, ...]
    """Numbers among the graph's writers; heads alone."""
    receivers: tuple[int, ...]
    """Numbers among the graph's readers."""
    through: Through
    places: tuple[tuple[Site, ...], ...] = ALL_POSITIONS

    def __len__(self) -> int:
        return len(self.senders)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return replace(self, senders=self.senders[index])
        writer = self.graph.writers[self.senders[index]]
        (place,) = self.places
        return Patch(tuple(replace(at, hook_point=block_hook(writer.layer, "z"), head=writer.head) for at in place))

    @property
    def used_writers(self) -> Int[np.ndarray, " used"]:
        return np.array(sorted(self.senders))

    @property
    def used_readers(self) -> Int[np.ndarray, " used"]:
        return np.array(sorted(self.receivers))

    @property
    def layers(self) -> set[int]:
        named = super().layers
        return {*range(min(named), max(named) + 1)} if self.through == "mlps" else named

    @property
    def layers_run(self) -> set[int]:
        if self.through == "nothing":
            return super().layers_run
        first = min(self.graph.writers[number].layer for number in self.senders)
        return {*range(first, max(self.graph.readers[number].layer for number in self.receivers) + 1)}

    @property
    def layers_written(self) -> set[int]:
        if self.through == "nothing":
            return super().layers_written
        readers = [self.graph.readers[number] for number in self.receivers]
        end = max(reader.layer + (reader.kind == "logits") for reader in readers)
        return super().layers_written | {*range(self.graph.writers[min(self.senders)].layer, end)}

    @property
    def described(self) -> str:
        """`to L9H9 q and L9H6 q, all other heads frozen, MLPs recomputed`."""
        labels = [self.graph.readers[number].label for number in self.receivers]
        joined = " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
        return f"to {joined}, {FROZEN[self.through]}"


def head_paths(
    graph: Graph,
    receivers: Names,
    through: object,
    places: Sequence[Sequence[Site]] = ALL_POSITIONS,
    layers: Sequence[int] | None = None,
) -> HeadPaths:
    """Every head, or every one of some layers, as the sender to these receivers.

    Raises:
        ValueError: for a name that the graph has not, for layers without heads, for a receiver that none of the heads
            writes before, for the logits beside others, and for a word that `through` does not take.
    """
    if through not in get_args(Through):
        raise ValueError(f"through is {through!r}, expected one of {', '.join(map(repr, get_args(Through)))}")
    readers = graph.readers_named(receivers)
    kinds = [graph.readers[number].kind for number in readers]
    if "logits" in kinds and len(kinds) > 1:
        raise ValueError(
            "receivers holds the logits beside others: what the logits read is then all that counts; give the logits "
            "alone, or leave them out"
        )
    heads = [
        number
        for number, writer in enumerate(graph.writers)
        if writer.kind == "head" and (layers is None or writer.layer in layers)
    ]
    if not heads:
        raise ValueError(f"no head is in layers {', '.join(map(str, layers or ()))}: give one that has attention")
    check_reached(graph, np.array(heads), readers, receiver_names=receivers)
    return HeadPaths(graph, tuple(heads), tuple(readers.tolist()), through, tuple(map(tuple, places)))  # type: ignore[arg-type]


def path_patches(graph: Graph, paths: str | Sequence[str | Sequence[str]]) -> PathPatches:
    """Paths as they are written: `L3H0 → L5H5 k → L8H6 v → L9H9 q → logits`, with `->` for the arrow, or as lists.

    Raises:
        ValueError: for no path, a name that the graph has not, a path of fewer than two nodes, and one on which a
            component reads before the one in front of it writes.
    """
    listed = [paths] if isinstance(paths, str) else paths
    if not isinstance(listed, Sequence) or not all(map(_is_written, listed)):
        raise ValueError(f"paths is {shortened(paths)}, expected texts such as 'L5H3 → L9H9 q → logits'")
    if not listed:
        raise ValueError("paths is empty: give at least one, for instance 'L5H3 → L9H9 q → logits'")
    return PathPatches(graph, tuple(_path(graph, one) for one in listed))


def _is_written(path: object) -> bool:
    """Whether a path is a text, or a list of names."""
    return isinstance(path, str) or (isinstance(path, list | tuple) and all(isinstance(name, str) for name in path))


def _path(graph: Graph, given: str | Sequence[str]) -> Path:
    names = [name.strip() for name in re.split(r"→|->", given)] if isinstance(given, str) else list(given)
    written = " → ".join(names)
    if len(names) > 1 and not all(names):
        raise ValueError(f"the path {written!r} lacks a name beside an arrow: expected 'L5H3 → L9H9 q → logits'")
    if len(names) < 2:
        raise ValueError(f"the path {written!r} has no arrow: a path goes from a sender to a receiver, 'L5H3 → L9H9 q'")
    sender = graph.writer(names[0])
    labels, writer = [graph.writers[sender].label], sender
    hops: list[Hop] = []
    for name in names[1:]:
        if hops and hops[-1].writer is None:
            raise ValueError(
                f"the path {written!r} goes on behind {labels[-1]}, {_no_one_head(graph, hops[-1].reader)}"
            )
        reader, own = _hop(graph, name)
        if writer >= graph.n_writers_before[reader]:
            raise ValueError(
                f"the path {written!r} goes backwards: {graph.writers[writer].label} does not write before "
                f"{graph.readers[reader].label} reads"
            )
        hops.append(Hop(reader, own))
        labels.append(graph.readers[reader].label if own is None else _label(graph, reader, own))
        writer = writer if own is None else own
    last = hops[-1].reader
    return Path(sender, (*hops[:-1], Hop(last, None)), " → ".join([*labels[:-1], graph.readers[last].label]))


def _no_one_head(graph: Graph, reader: int) -> str:
    kind = graph.readers[reader].kind
    if kind == "logits":
        return "where every path ends"
    heads = [f"L{graph.readers[reader].layer}H{head} {kind}" for head in graph.heads_of(graph.readers[reader])]
    return f"which several heads read: name the one that goes on, {' or '.join(heads)}"


def _hop(graph: Graph, name: str) -> tuple[int, int | None]:
    """The reader that a name on a path stands for, and the one writer that goes on from there; None where it is none.

    Of heads that share keys and values, `L5H5 k` reads those of its group and goes on from this head alone.
    """
    of_head = re.fullmatch(r"\s*[la](\d+)\.?h(\d+)\s*<?([kv])>?\s*", name, re.IGNORECASE)
    if of_head and graph.is_grouped and (own := f"L{of_head[1]}H{of_head[2]}") in {w.label for w in graph.writers}:
        shared = graph.key_value_head(int(of_head[1]), int(of_head[2]))
        return graph.reader(f"L{of_head[1]}KV{shared} {of_head[3].lower()}"), graph.writer(own)
    number = graph.reader(name)
    reader = graph.readers[number]
    if reader.kind == "logits" or reader.is_key_value_head:
        return number, None
    return number, graph.writer(f"m{reader.layer}" if reader.kind == "mlp" else f"a{reader.layer}.h{reader.head}")


def _label(graph: Graph, reader: int, own: int) -> str:
    kind = graph.readers[reader].kind
    return graph.writers[own].label if kind == "mlp" else f"{graph.writers[own].label} {kind}"
