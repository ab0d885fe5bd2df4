"""Many edges as one value: arrays that are read as a sequence of patches. Nothing here runs a model.

Of a million edges no object is made but those that are looked at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from jaxtyping import Bool, Int

from actpatch.core.graph import Graph
from actpatch.core.node_names import Names
from actpatch.core.sites import Patch, Site
from actpatch.core.text import shortened

ALL_POSITIONS: tuple[tuple[Site, ...], ...] = ((Site(""),),)
"""The columns of edges that are patched at all positions together."""


class GraphPatches(Sequence[Patch], ABC):
    """Patches that say what goes from writers to readers of a graph, where others say what is written."""

    graph: Graph
    places: tuple[tuple[Site, ...], ...]
    """Places in the prompts, as sites whose hook point is still to be filled in: the positions of each are patched
    together."""

    @property
    @abstractmethod
    def used_writers(self) -> Int[np.ndarray, " used"]:
        """Numbers of the writers that any of them names, ascending."""

    @property
    @abstractmethod
    def used_readers(self) -> Int[np.ndarray, " used"]:
        """Numbers of the readers that any of them names, ascending."""

    @property
    def layers(self) -> set[int]:
        """Layers whose components are run, or whose outputs are written."""
        writers = [self.graph.writers[number] for number in self.used_writers]
        readers = [self.graph.readers[number] for number in self.used_readers]
        return {node.layer for node in (*writers, *readers) if node.layer >= 0}

    @property
    def layers_run(self) -> set[int]:
        """Layers of which a part is run before a row enters: those of the readers, but for the logits."""
        readers = (self.graph.readers[number] for number in self.used_readers)
        return {reader.layer for reader in readers if reader.kind != "logits"}

    @property
    def layers_written(self) -> set[int]:
        """Layers of which what a head or an MLP gives is taken to be added to the residual stream as it is."""
        return {self.graph.writers[number].layer for number in self.used_writers} - {-1}

    def at(self, column: int) -> str:
        """The position of a place, to go behind a label: ` @S2`; empty for all positions."""
        names = [
            str(site.position) if site.position_name is None else site.position_name
            for site in self.places[column]
            if site.position is not None
        ]
        return f" @{' + '.join(names)}" if names else ""


@dataclass(frozen=True, eq=False, repr=False)
class EdgePatches(GraphPatches):
    """Edges of a graph, each patched alone at one place: a sequence of patches."""

    graph: Graph
    writers: Int[np.ndarray, " edge"]
    """Number of each edge's sender among the graph's writers."""
    readers: Int[np.ndarray, " edge"]
    """Number of each edge's receiver among the graph's readers."""
    columns: Int[np.ndarray, " edge"]
    """Which of the places each edge is patched at."""
    places: tuple[tuple[Site, ...], ...] = ALL_POSITIONS
    """Places in the prompts, as sites whose hook point is still to be filled in: the positions of each are patched
    together."""

    def __len__(self) -> int:
        return len(self.writers)

    @overload
    def __getitem__(self, index: int) -> Patch: ...

    @overload
    def __getitem__(self, index: slice) -> EdgePatches: ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.taken(np.arange(len(self))[index])
        reader = self.graph.readers[self.readers[index]]
        sender, site = self.graph.writers[self.writers[index]].id, reader.site
        place = self.places[self.columns[index]]
        sites = (replace(at, hook_point=site.hook_point, head=site.head, sender=sender) for at in place)
        return Patch(tuple(sites), name=self.label(index))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EdgePatches):
            return NotImplemented
        arrays = ("writers", "readers", "columns")
        same = all(np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays)
        return same and (self.graph, self.places) == (other.graph, other.places)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"EdgePatches({len(self):,} of {self.graph!r})"

    @property
    def used_writers(self) -> Int[np.ndarray, " used"]:
        return np.unique(self.writers)

    @property
    def used_readers(self) -> Int[np.ndarray, " used"]:
        return np.unique(self.readers)

    def taken(self, numbers: Sequence[int] | Int[np.ndarray, " chosen"] | Bool[np.ndarray, " edge"]) -> EdgePatches:
        """The edges with these numbers, in this order; or those where a mask of all of them is true."""
        chosen = np.asarray(numbers)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        arrays = {name: getattr(self, name)[chosen] for name in ("writers", "readers", "columns")}
        return replace(self, **arrays)

    def id(self, index: int) -> str:
        """`a5.h3->a9.h9<q>`, with what comes of positions left out."""
        writer, reader = self.graph.writers[self.writers[index]], self.graph.readers[self.readers[index]]
        return f"{writer.id}->{reader.id}"

    def label(self, index: int) -> str:
        """`L5H3 → L9H9 q`, with ` @S2` where it is patched at a position."""
        writer, reader = self.graph.writers[self.writers[index]], self.graph.readers[self.readers[index]]
        return f"{writer.label} → {reader.label}{self.at(int(self.columns[index]))}"

    @property
    def labels(self) -> list[str]:
        writers = [writer.label for writer in self.graph.writers]
        readers = [reader.label for reader in self.graph.readers]
        at = [self.at(column) for column in range(len(self.places))]
        each = zip(self.writers.tolist(), self.readers.tolist(), self.columns.tolist())
        return [f"{writers[writer]} → {readers[reader]}{at[column]}" for writer, reader, column in each]

    @property
    def ids(self) -> list[str]:
        writers, readers = [writer.id for writer in self.graph.writers], [reader.id for reader in self.graph.readers]
        return [f"{writers[w]}->{readers[r]}" for w, r in zip(self.writers.tolist(), self.readers.tolist())]

    @property
    def numbers(self) -> Int[np.ndarray, " edge"]:
        """The number of each among all edges of the graph, which are counted by reader, then writer."""
        return self.graph.first_edge[self.readers] + self.writers

    @property
    def column_names(self) -> list[str]:
        """What each place is called; empty for all positions."""
        return [self.at(column).removeprefix(" @") for column in range(len(self.places))]


def edge_patches(
    graph: Graph,
    senders: Names | None = None,
    receivers: Names | None = None,
    places: Sequence[Sequence[Site]] = ALL_POSITIONS,
) -> EdgePatches:
    """Every edge from one of these writers to one of these readers, at each place in turn.

    They are ordered by receiver, then sender, then place. What writes behind a receiver has no edge to it.

    Raises:
        ValueError: for a name that the graph has not, and for one that stands for nothing with an edge among these; of
            those of many (`heads`, `L5`) a part may have none.
    """
    writers, readers = graph.writers_named(senders), graph.readers_named(receivers)
    before = graph.n_writers_before[readers]
    of_reader = np.searchsorted(writers, before)  # the writers of a reader are the first so many
    check_reached(graph, writers, readers, sender_names=senders, receiver_names=receivers)
    each = np.repeat(readers, of_reader)
    within = np.arange(len(each)) - np.repeat(np.cumsum(of_reader) - of_reader, of_reader)
    n_places = len(places)
    return EdgePatches(
        graph,
        np.repeat(writers[within], n_places),
        np.repeat(each, n_places),
        np.tile(np.arange(n_places), len(each)),
        tuple(tuple(place) for place in places),
    )


def edges_of_numbers(graph: Graph, numbers: Int[np.ndarray, " edge"]) -> EdgePatches:
    """The edges of a graph with these numbers, each at all positions; the inverse of `EdgePatches.numbers`."""
    readers = np.searchsorted(graph.first_edge, numbers, side="right") - 1
    return EdgePatches(graph, numbers - graph.first_edge[readers], readers, np.zeros_like(numbers))


def ends_of(graph: Graph, name: str, example: str = "L5H3 → L9H9 q") -> tuple[int, int]:
    """Numbers of the writer and of the reader of an edge, by its id or its label.

    Args:
        graph: of the model.
        name: `a5.h3->a9.h9<q>` or `L5H3 → L9H9 q`.
        example: a label, for messages.

    Raises:
        ValueError: for a text that is no edge, a node that the graph has not, and a sender that writes too late.
    """
    sender, arrow, receiver = (part.strip() for part in name.replace("→", "->").partition("->"))
    if not arrow:
        raise ValueError(f"{shortened(name)} is no edge: expected an id or a label, for instance {example!r}")
    try:
        writer, reader = graph.writer(sender), graph.reader(receiver)
    except ValueError as error:
        raise ValueError(f"{shortened(name)} is no edge of these: {error}") from None
    if writer >= graph.n_writers_before[reader]:
        raise ValueError(f"{shortened(name)} is no edge: the sender writes after the receiver reads")
    return writer, reader


def check_reached(
    graph: Graph,
    senders: Int[np.ndarray, " sender"],
    receivers: Int[np.ndarray, " receiver"],
    *,
    sender_names: Names | None = None,
    receiver_names: Names | None = None,
) -> None:
    """Check that of all that a name stands for something sends, or is sent to.

    Args:
        graph: of the model.
        senders: numbers of the writers, ascending.
        receivers: numbers of the readers, ascending.
        sender_names: as what the writers were asked for; None where they were not.
        receiver_names: the same of the readers.

    Raises:
        ValueError: for a name of which nothing does.
    """
    before = graph.n_writers_before
    first, last = int(senders[0]), int(receivers[before[receivers].argmax()])
    for name, numbers in {} if sender_names is None else graph.writers_by_name(sender_names).items():
        if min(numbers) >= before[last]:
            nearest = graph.readers[int((before > min(numbers)).argmax())]
            behind = nearest.label + " or later" * (nearest.kind != "logits")
            raise ValueError(
                f"the sender {name!r} has no edge to any receiver: the last of these, {graph.readers[last].label}, "
                f"reads before it writes; leave it out, or give a receiver behind it, {behind}"
            )
    for name, numbers in {} if receiver_names is None else graph.readers_by_name(receiver_names).items():
        n_before = int(before[numbers].max())
        if n_before <= first:
            nearest_writer = graph.writers[n_before - 1]
            ahead = nearest_writer.label + " or earlier" * (nearest_writer.kind != "input")
            remedy = "" if sender_names is None else f", or give a sender before it, {ahead}"
            raise ValueError(
                f"the receiver {name!r} has no edge from any sender: the first of these, {graph.writers[first].label}, "
                f"writes behind it; leave it out{remedy}"
            )
