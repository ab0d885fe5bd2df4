"""The order in which a circuit grows from the logits, given which edges are best. Knows no effects.

Hanna et al. 2024, "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms".
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from actpatch.core.graph import Graph


def grown(graph: Graph, ranked: Int[np.ndarray, " known"]) -> Iterator[int]:
    """Numbers of edges in the order in which a circuit grows from the logits, the best of those that lead there first.

    Args:
        graph: of the model.
        ranked: numbers of the edges that may be taken, the best first; edges that lead nowhere never come.
    """
    ranks = np.full(len(graph), len(ranked))
    ranks[ranked] = np.arange(len(ranked))
    readers_of: dict[int, list[int]] = {}
    for reader, moved in enumerate(graph.moved):
        for writer in moved:
            readers_of.setdefault(writer, []).append(reader)
    heap: list[int] = []
    opened: set[int] = set()

    def open_reader(reader: int) -> None:
        if reader not in opened:
            opened.add(reader)
            first = int(graph.first_edge[reader])
            for rank in ranks[first : first + int(graph.n_writers_before[reader])].tolist():
                if rank < len(ranked):
                    heapq.heappush(heap, rank)

    open_reader(len(graph.readers) - 1)
    while heap:
        number = int(ranked[heapq.heappop(heap)])
        yield number
        reader = int(np.searchsorted(graph.first_edge, number, side="right")) - 1
        for behind in readers_of.get(number - int(graph.first_edge[reader]), []):
            open_reader(behind)
