"""Edges as the cells of a map: a row per sender and a column per receiver, or one for all those of a layer.

Knows edges and their effects; it knows nothing of colours or of Plotly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from actpatch.core.edge_patches import EdgePatches
from actpatch.core.graph import Reader, Writer
from actpatch.core.text import count

Detail = Literal["layers", "nodes"]
MOST_CELLS = 3000
"""Most cells of a map in which each edge has its own unless that is asked for."""
MOST_ROWS, MOST_COLUMNS = 160, 120
"""Most senders and receivers that can have a row and a column each: more are too narrow to be seen."""
_KINDS = {"head": "heads", "mlp": "MLP"}


@dataclass(frozen=True)
class Side:
    """The rows or the columns of a map, in the order of the forward pass."""

    labels: tuple[str, ...]
    layers: tuple[int | None, ...]
    """Of each; None for the input and the logits."""
    of_node: Int[np.ndarray, " node"]
    """Which of them each writer or reader of the graph belongs to; -1 where it has none."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class EdgeCells:
    """A map of edges."""

    rows: Side
    columns: Side
    is_by_layer: bool
    """Whether the nodes of a layer and kind share a row or a column."""
    shown: Int[np.ndarray, "row column"]
    """Number of the edge of largest |effect| of each cell; -1 where none was patched."""
    exists: Bool[np.ndarray, "row column"]
    """Whether the graph has any edge there."""
    n_edges: Int[np.ndarray, "row column"]
    """How many edges were patched there."""
    cell_of: Int[np.ndarray, "edge 2"]
    """Row and column of each edge."""

    def of_shown(self, values: Float[np.ndarray, " edge"]) -> Float[np.ndarray, "row column"]:
        """The value of each cell's edge; NaN where it has none."""
        return np.where(self.shown >= 0, values[self.shown], np.nan)

    def counted(self, chosen: Bool[np.ndarray, " edge"]) -> Int[np.ndarray, "row column"]:
        """How many of these edges lie in each cell."""
        return _counted(self.cell_of[chosen], self.shown.shape)


def edge_cells(edges: EdgePatches, effects: Float[np.ndarray, " edge"], by: Detail | None) -> EdgeCells:
    """The map of these edges.

    Args:
        edges: at one place.
        effects: of each.
        by: whether a row and a column are one node's, or those of a layer and kind together; None lets the number of
            cells decide.

    Raises:
        ValueError: where `by` is no such word, or more nodes would have a row or a column each than can be seen.
    """
    if by not in (None, *get_args(Detail)):
        raise ValueError(f"by is {by!r}, expected 'layers', 'nodes', or None to let the number of edges decide")
    graph, writers, readers = edges.graph, edges.used_writers, edges.used_readers
    fits = len(writers) <= MOST_ROWS and len(readers) <= MOST_COLUMNS
    if by == "nodes" and not fits:
        raise ValueError(
            f"{count(len(writers), 'sender')} and {count(len(readers), 'receiver')} are too many for a row or a column "
            f"each, at most {MOST_ROWS} and {MOST_COLUMNS} can be seen: choose some (senders='L5', receivers='L9'), or "
            "leave out by='nodes'"
        )
    by = by or ("nodes" if fits and len(writers) * len(readers) <= MOST_CELLS else "layers")
    rows, columns = _side(graph.writers, writers, by), _side(graph.readers, readers, by)
    cell_of = np.stack([rows.of_node[edges.writers], columns.of_node[edges.readers]], axis=1)
    shown = np.full((len(rows), len(columns)), -1)
    order = np.argsort(np.nan_to_num(np.abs(effects), nan=-1.0)[::-1], kind="stable")
    smallest_first = len(effects) - 1 - order
    shown[tuple(cell_of[smallest_first].T)] = smallest_first  # of several values the last one stays
    first = np.array([np.flatnonzero(rows.of_node == row)[0] for row in range(len(rows))])
    before = [graph.n_writers_before[columns.of_node == column].max() for column in range(len(columns))]
    exists = first[:, None] < np.array(before)[None]
    return EdgeCells(rows, columns, by == "layers", shown, exists, _counted(cell_of, shown.shape), cell_of)


def _counted(cells: Int[np.ndarray, "edge 2"], shape: tuple[int, ...]) -> Int[np.ndarray, "row column"]:
    found = np.zeros(shape, dtype=np.int64)
    np.add.at(found, tuple(cells.T), 1)
    return found


def _side(nodes: Sequence[Writer | Reader], used: Int[np.ndarray, " used"], by: Detail) -> Side:
    names = [_of_layer(node) if by == "layers" else node.label for node in nodes]
    labels = tuple(dict.fromkeys(names[number] for number in used.tolist()))
    place = {label: i for i, label in enumerate(labels)}
    of_node = np.array([place.get(name, -1) for name in names])
    layers = {
        names[number]: None if nodes[number].kind in ("input", "logits") else nodes[number].layer
        for number in used.tolist()
    }
    return Side(labels, tuple(layers[label] for label in labels), of_node)


def _of_layer(node: Writer | Reader) -> str:
    """What the nodes of its layer and kind are called together."""
    return node.label if node.kind in ("input", "logits") else f"L{node.layer} {_KINDS.get(node.kind, node.kind)}"
