"""The order in which a circuit grows from the logits, given which edges are best. Knows no effects.

Hanna et al. 2024, "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms".
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from actpatch.core.graph import Graph


def grown(graph: Graph, ranked: Int[np.ndarray, " known"], n_places: int = 1) -> Iterator[int]:
    """Numbers of edges in the order in which a circuit grows from the logits, the best of those that lead there first.

    Where positions are told apart, edges lead to the logits at any of them. What reads a sender there leads on from
    that position alone, as queries and MLPs do; what keys and values read leads on from all of them.

    Args:
        graph: of the model.
        ranked: numbers of the edges that may be taken, the best first; edges that lead nowhere never come. At
            positions an edge's number is `edge * n_places + place`.
        n_places: number of positions that are told apart; 1 for all together.
    """
    each = np.full(len(graph) * n_places, len(ranked))
    each[ranked] = np.arange(len(ranked))
    ranks = each.reshape(-1, n_places)
    readers_of: dict[int, list[int]] = {}
    for reader, moved in enumerate(graph.moved):
        for writer in moved:
            readers_of.setdefault(writer, []).append(reader)
    heap: list[int] = []
    opened: set[tuple[int, int]] = set()

    def open_reader(reader: int, place: int) -> None:
        if (reader, place) not in opened:
            opened.add((reader, place))
            first = int(graph.first_edge[reader])
            for rank in ranks[first : first + int(graph.n_writers_before[reader]), place].tolist():
                if rank < len(ranked):
                    heapq.heappush(heap, rank)

    for place in range(n_places):
        open_reader(len(graph.readers) - 1, place)
    while heap:
        number = int(ranked[heapq.heappop(heap)])
        yield number
        edge, place = divmod(number, n_places)
        reader = int(np.searchsorted(graph.first_edge, edge, side="right")) - 1
        for behind in readers_of.get(edge - int(graph.first_edge[reader]), []):
            for at in range(n_places) if graph.readers[behind].kind in ("k", "v") else (place,):
                open_reader(behind, at)
