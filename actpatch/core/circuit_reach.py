"""What leads where in circuits: which readers are read together, which writers lead on, and which a change reaches.

Nothing here runs a model.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from actpatch.core.graph import Graph, Kind


@dataclass(frozen=True)
class ReaderGroup:
    """The readers of one kind in one layer, which follow each other and read the same writers."""

    layer: int
    kind: Kind
    readers: slice
    """Among the graph's readers."""
    n_writers: int
    """They read the first so many writers of the graph."""
    edges: slice
    """Among the graph's edges: by reader, then writer."""
    moved: slice
    """The writers whose outputs they move, as many of each reader: heads, one MLP, or, of the logits, none."""

    def of(self, table: Bool[np.ndarray, "*rows edge"]) -> Bool[np.ndarray, "*rows reader writer"]:
        """The part of a table over all edges that goes into these readers."""
        return table[..., self.edges].reshape(*table.shape[:-1], -1, self.n_writers)

    def readers_of(self, writers: Bool[np.ndarray, " writer"]) -> Bool[np.ndarray, " reader"]:
        """Which of these readers move one of some writers."""
        n_readers = self.readers.stop - self.readers.start
        return np.any(writers[self.moved].reshape(n_readers, -1), axis=1)

    def writers_of(self, readers: Bool[np.ndarray, " reader"]) -> Bool[np.ndarray, " moved"]:
        """Which of the writers that they move some of these readers do."""
        return np.repeat(readers, (self.moved.stop - self.moved.start) // len(readers))


@functools.lru_cache(maxsize=8)
def reader_groups(graph: Graph) -> tuple[ReaderGroup, ...]:
    """The groups of a graph, in the order of the forward pass; the logits last."""
    found = []
    numbered = enumerate(graph.readers)
    for (layer, kind), each in itertools.groupby(numbered, key=lambda item: (item[1].layer, item[1].kind)):
        numbers = [number for number, _ in each]
        first, last = numbers[0], numbers[-1]
        n_writers = int(graph.n_writers_before[first])
        begin = int(graph.first_edge[first])
        moved = [writer for number in numbers for writer in graph.moved[number]]
        of_writers = slice(moved[0], moved[-1] + 1) if moved else slice(0, 0)
        edges = slice(begin, begin + len(numbers) * n_writers)
        found.append(ReaderGroup(layer, kind, slice(first, last + 1), n_writers, edges, of_writers))
    return tuple(found)


def leading_writers(graph: Graph, kept: Bool[np.ndarray, " edge"]) -> Bool[np.ndarray, " writer"]:
    """The writers from which edges of a circuit lead to the logits."""
    leads = np.zeros(len(graph.writers), dtype=bool)
    for group in reversed(reader_groups(graph)):
        into = group.of(kept)
        if group.kind != "logits":
            into = into[group.readers_of(leads)]
        leads[: group.n_writers] |= into.any(axis=0)
    return leads


def changing_writers(
    graph: Graph, kept: Bool[np.ndarray, " edge"], changed: Bool[np.ndarray, " edge"]
) -> Bool[np.ndarray, " writer"]:
    """The writers that give something else where some edges are others, and lead to the logits.

    Args:
        kept: the edges of a circuit; of several those of any.
        changed: edges that are in one circuit and not in the other; of several any.
    """
    leads, changing = leading_writers(graph, kept), np.zeros(len(graph.writers), dtype=bool)
    for group in reader_groups(graph)[:-1]:
        reads_else = group.of(changed) | (group.of(kept) & changing[: group.n_writers])
        changing[group.moved] |= group.writers_of(np.any(reads_else, axis=1))
        changing[group.moved] &= leads[group.moved]
    return changing
