"""Random circuits: unions of random paths from the input to the logits. Nothing here runs a model.

What a circuit's faithfulness is worth shows beside circuits of as many edges that were not chosen by anything. Edges
drawn one by one would mostly lie on no way from the input to the logits and do nothing, which every circuit beats; so
paths are drawn (Shi et al. 2024, "Hypothesis Testing the Circuit Hypothesis in LLMs"), and every edge of a random
circuit survives `Circuit.pruned`. A path is drawn backwards, from the logits to any writer before them, to any reader
of that writer, and so on until the input is drawn.

Where a circuit tells positions apart, random ones have its positions, and edges into the logits at those where it has
such edges. Queries and MLPs read where what they feed is read; keys and values at any of the positions, as their head
may look anywhere: which position comes first is not known here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from actpatch.core.circuits import Circuit
from actpatch.core.edge_patches import edges_of_numbers

Step = tuple[int, int]
"""An edge at a position: their numbers."""

MOST_MISSES = 300
"""So many paths in a row that bring nothing new, or too much, end the drawing of paths."""
MOST_PATHS = 2000
"""And so many in all: by then they go through most components, and large circuits would take thousands more."""


def random_circuits(like: Circuit, n: int, *, seed: int = 0) -> list[Circuit]:
    """Random circuits of as many edges as a circuit has once it is pruned, or as near to that as one can come.

    Once no more path fits, and in circuits of several thousand edges from then on, single edges are added from what
    the input feeds to what leads to the logits, so that these lie on such paths too.

    Args:
        like: whose size, graph and positions they have.
        n: how many.
        seed: of the draws; the same circuits for the same seed.

    Raises:
        ValueError: where none of the circuit's edges lies on a way from the input to the logits.
    """
    pruned = like.pruned()
    paths = RandomPaths(pruned)
    rng = np.random.default_rng([seed, 1])
    return [paths.circuit(len(pruned), rng) for _ in range(n)]


class RandomPaths:
    """Draws paths in the graph of a circuit, at its positions.

    Args:
        like: the circuit, pruned.

    Raises:
        ValueError: where it has no edge.
    """

    def __init__(self, like: Circuit) -> None:
        if not len(like):
            raise ValueError("the circuit has no edge on a way from the input to the logits: random ones have no size")
        self.like, self.graph = like, like.graph
        self.n_positions = max(1, len(like.positions))
        table = like.edges.reshape(self.n_positions, -1)
        of_logits = int(self.graph.first_edge[-1])
        self.ends = np.flatnonzero(table[:, of_logits:].any(axis=1)).tolist()
        self.n_before = self.graph.n_writers_before.tolist()
        self.first_edge = self.graph.first_edge.tolist()
        self.readers_of: list[list[int]] = [[] for _ in self.graph.writers]
        for reader, moved in enumerate(self.graph.moved):
            for writer in moved:
                self.readers_of[writer].append(reader)

    def path(self, rng: np.random.Generator) -> list[Step]:
        """The edges of a random path, the last one first."""
        reader, at = len(self.n_before) - 1, self.ends[int(rng.integers(len(self.ends)))]
        found = []
        while True:
            writer = int(rng.integers(self.n_before[reader]))
            found.append((self.first_edge[reader] + writer, at))
            if writer == 0:
                return found
            readers = self.readers_of[writer]
            reader = readers[int(rng.integers(len(readers)))]
            if self.n_positions > 1 and self.graph.readers[reader].kind in ("k", "v"):
                at = int(rng.integers(self.n_positions))

    def circuit(self, size: int, rng: np.random.Generator) -> Circuit:
        """A random circuit of so many edges, or as near to that as one can come."""
        table = np.zeros((self.n_positions, len(self.graph)), dtype=bool)
        n_paths = n_misses = n_held = 0
        while n_held < size and n_misses < MOST_MISSES and n_paths < MOST_PATHS:
            n_paths += 1
            new = {(edge, at) for edge, at in self.path(rng) if not table[at, edge]}
            if not new or len(new) > size - n_held:
                n_misses += 1
                continue
            for edge, at in new:
                table[at, edge] = True
            n_held, n_misses = n_held + len(new), 0
        while n_held < size and len(open_edges := self._open(table)):
            chosen = rng.choice(open_edges, min(size - n_held, len(open_edges)), replace=False)
            table.flat[chosen] = True
            n_held += len(chosen)
        return self._made(table, "random paths")

    def with_path(self, circuit: Circuit, rng: np.random.Generator) -> tuple[Circuit, Circuit] | None:
        """The circuit with a random path, and the same without one of the edges that this brings; None where random
        paths bring none, as the circuit has all that they are made of."""
        table = circuit.edges.reshape(self.n_positions, -1)
        for _ in range(MOST_MISSES):
            if new := [(edge, at) for edge, at in self.path(rng) if not table[at, edge]]:
                with_it = table.copy()
                for edge, at in new:
                    with_it[at, edge] = True
                without = with_it.copy()
                edge, at = new[int(rng.integers(len(new)))]
                without[at, edge] = False
                return self._made(with_it, "random path added"), self._made(without, "random path added, cut")
        return None

    def _open(self, table: Bool[np.ndarray, "position edge"]) -> np.ndarray:
        """Edges that could be added one by one, from what is fed to what leads to the logits, by their flat number."""
        every = edges_of_numbers(self.graph, np.arange(len(self.graph)))
        feeds = np.zeros((self.n_positions, len(self.graph.writers)), dtype=bool)
        leads = np.zeros((self.n_positions, len(self.n_before)), dtype=bool)
        feeds[:, 0] = True
        leads[self.ends, -1] = True
        # Every edge of a union of paths is fed and leads on: a writer that any of them leaves, and what it reads.
        for at in range(self.n_positions):
            feeds[at, every.writers[table[at]]] = True
        for reader, moved in enumerate(self.graph.moved):
            at_any = feeds[:, list(moved)].any(axis=1) if moved else leads[:, reader]
            leads[:, reader] = at_any.any() if self.graph.readers[reader].kind in ("k", "v") else at_any
        return np.flatnonzero(~table & feeds[:, every.writers] & leads[:, every.readers])

    def _made(self, table: Bool[np.ndarray, "position edge"], found_by: str) -> Circuit:
        edges = table.reshape(self.like.edges.shape)
        return replace(self.like, edges=edges, found_by=found_by, seen=frozenset())
