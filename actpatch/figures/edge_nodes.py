"""The components that edges go between as the nodes of a graph in rows of layers. Knows edges, and no results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actpatch.core.graph import Graph, Reader, Writer
from actpatch.figures.layered import pushed_apart

MOST_COLUMNS = 12
"""Columns of heads, unless a layer has more of them with an edge."""
BETWEEN = 0.5
"""Columns between two positions."""
HALF_WIDE = {"head": 0.39, "mlp": 0.44}
"""Half the width of a node, in columns."""


@dataclass(frozen=True)
class Node:
    """A component with an edge that is drawn: what writes, and what it reads."""

    label: str
    layer: int
    """-1 for the input, and one more than the last for the logits."""
    kind: str
    """`input`, `head`, `kv`, `mlp` or `logits`."""
    place: float
    """From 0 on the left to 1 on the right."""
    at: str = ""
    """Its position; empty for all together."""

    @property
    def half_wide(self) -> float:
        return HALF_WIDE["head" if self.kind in ("head", "kv") else "mlp"]


def node_of(end: Writer | Reader, graph: Graph, at: str = "") -> Node:
    if end.kind in ("input", "logits"):
        return Node(end.kind, -1 if end.kind == "input" else graph.n_layers, end.kind, 0.5, at)
    if end.head is None:
        return Node(end.label, end.layer, "mlp", 1.0, at)
    label, n_heads = end.label.split(" ")[0], graph.heads[end.layer]
    if isinstance(end, Reader) and end.is_key_value_head:
        group = graph.heads_of(end)
        return Node(label, end.layer, "kv", _share(sum(group) / len(group), n_heads), at)
    return Node(label, end.layer, "head", _share(end.head, n_heads), at)


def _share(head: float, n_heads: int) -> float:
    return head / (n_heads - 1) if n_heads > 1 else 0.5


def node_places(nodes: Sequence[Node], graph: Graph) -> tuple[dict[Node, tuple[float, float]], float, list[int]]:
    """Column and row of each node, the last column, and the layers that have a row."""
    layers = sorted({node.layer for node in nodes})
    rows = {layer: [n for n in nodes if n.layer == layer and n.kind in ("head", "kv")] for layer in layers}
    has_heads = any(rows.values())
    last = max([min(max(graph.heads), MOST_COLUMNS), *map(len, rows.values())]) - 1 if has_heads else 1
    with_mlps = last + 1 if any(node.kind == "mlp" for node in nodes) else last
    places: dict[Node, tuple[float, float]] = {}
    for row, layer in enumerate(layers):
        columns = pushed_apart([node.place * last for node in rows[layer]], last)
        places |= {node: (float(x), float(row)) for node, x in zip(rows[layer], columns)}
    for node in nodes:
        row = layers.index(node.layer)
        if node.kind == "mlp":
            places[node] = float(with_mlps), row + (0.5 if rows[node.layer] or len(layers) > 1 else 0.0)
        elif node.kind in ("input", "logits"):
            places[node] = last / 2, float(row)
    return places, float(with_mlps), layers


def node_places_by_position(
    nodes: Sequence[Node], graph: Graph, positions: Sequence[str]
) -> tuple[dict[Node, tuple[float, float]], dict[str, tuple[float, float]], list[int]]:
    """Column and row of each node, where each position begins and ends, and the layers that have a row.

    Positions stand beside each other, each as wide as its nodes need: heads in the order of their numbers, MLPs on the
    right of them.
    """
    layers = sorted({node.layer for node in nodes})
    places: dict[Node, tuple[float, float]] = {}
    ends: dict[str, tuple[float, float]] = {}
    left = 0.0
    for at in positions:
        own = [node for node in nodes if node.at == at]
        rows = [[n for n in own if n.layer == layer and n.kind in ("head", "kv")] for layer in layers]
        n_heads, has_mlps = max(map(len, rows)), any(node.kind == "mlp" for node in own)
        last = max(n_heads + has_mlps, 1) - 1.0
        for row, layer in enumerate(layers):
            columns = pushed_apart([node.place * (n_heads - 1) for node in rows[row]], n_heads - 1)
            for node in own:
                if node.layer == layer and node.kind == "mlp":
                    places[node] = left + last, row + 0.5
                elif node.layer == layer and node.kind in ("input", "logits"):
                    places[node] = left + last / 2, float(row)
            places |= {node: (left + float(x), float(row)) for node, x in zip(rows[row], columns)}
        ends[at] = left - 0.5, left + last + 0.5
        left += last + 1 + BETWEEN
    return places, ends, layers


def shared_by(node: Node, graph: Graph) -> str:
    """Whose keys and values a node holds, of those that several heads share; else empty."""
    if node.kind != "kv":
        return ""
    size = graph.heads[node.layer] // graph.key_value_heads[node.layer]
    first = int(node.label.split("KV")[1]) * size
    return f"keys and values of L{node.layer}H{first} to L{node.layer}H{first + size - 1}"
