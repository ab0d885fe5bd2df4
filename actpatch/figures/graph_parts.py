"""What graphs of edges are drawn of: components as boxes, edges as curves between them, what a legend says.

Knows nodes, curves and their looks; it knows no results and no circuit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from actpatch.core.graph import Graph, Reader, Writer
from actpatch.core.heavy import go
from actpatch.core.text import count, escaped
from actpatch.figures.colours import GRID, INK, PAPER, SOFT
from actpatch.figures.edge_nodes import Node, node_of, shared_by
from actpatch.figures.layered import curve

MOST_EDGES = 200
"""Most edges that are drawn: of more none can be followed."""
COLUMN = 72
"""Pixels of a column as designed."""
ROW, HIGH_ROW, HIGH = 54, 100, 700
"""Pixels of a row: of many, of few, and of all together where that lies between."""
NARROWEST = 560
"""Pixels of a graph of few columns."""
BESIDE, ABOVE = 100, 100
"""Pixels around the graph: layers on the left, the legend below."""
HALF_HIGH = 11
"""Half the height of a node, in pixels."""
DASHES = {"q": "solid", "k": "dash", "v": "dot", "mlp": "solid", "logits": "solid"}
PORTS = {"q": -0.22, "k": 0.0, "v": 0.22}
"""Where an edge meets the head that it goes into, from its middle, in columns."""
INTO = {"mlp": "MLPs"}
THIN, THICK = 1.0, 6.0
"""Pixels of the line of the smallest and of the largest effect."""
LABEL_SIZE = 11
LETTER = 6.6
"""Pixels of a letter of a label, most of which are capitals and digits."""

Places: TypeAlias = Mapping[Node, tuple[float, float]]
"""Column and row of the middle of each node."""
Ends: TypeAlias = Sequence[tuple[Node, Node]]
"""Of each edge its sender and its receiver."""
Curve: TypeAlias = Float[np.ndarray, "point 2"]


def ends_of_edges(
    writers: Sequence[int], readers: Sequence[int], graph: Graph, at: Sequence[str] | None = None
) -> tuple[list[tuple[Node, Node]], list[Reader]]:
    """Of each edge the two nodes, at a position where `at` names one, and what reads."""
    at = [""] * len(writers) if at is None else at
    known: dict[tuple[Writer | Reader, str], Node] = {}

    def node(end: Writer | Reader, where: str) -> Node:
        return known.setdefault((end, where), node_of(end, graph, where))

    reading = [graph.readers[number] for number in readers]
    ends = [(node(graph.writers[w], where), node(r, where)) for w, r, where in zip(writers, reading, at)]
    return ends, reading


def row_height(n_rows: int) -> float:
    """Pixels of a row."""
    return min(max(HIGH / n_rows, ROW), HIGH_ROW)


def curves_between(
    ends: Ends,
    readers: Sequence[Reader],
    places: Places,
    bounds: Mapping[str, tuple[float, float]],
    half_high: float,
) -> list[Curve]:
    """The curve of each edge, which keeps clear of other nodes at its position and within its bounds."""
    drawn: Counter[tuple[Node, Node, str]] = Counter()
    curves = []
    for (sender, receiver), reader in zip(ends, readers):
        others = np.array(
            [
                [*at, node.half_wide, half_high]
                for node, at in places.items()
                if node not in (sender, receiver) and node.at == sender.at
            ]
        )
        (x, y), (end, top) = places[sender], places[receiver]
        between = sender, receiver, reader.kind
        start, stop = (x, y + half_high), (end + PORTS.get(reader.kind, 0.0), top - half_high)
        curves.append(curve(start, stop, others.reshape(-1, 4), bounds[sender.at], drawn[between]))
        drawn[between] += 1
    return curves


def widths_of(effects: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    """Pixels of each line: the larger |effect|, the wider."""
    sizes = np.nan_to_num(np.abs(effects))
    return THIN + (THICK - THIN) * sizes / (sizes.max() or 1.0)


def line_of(points: Curve, colour: str, wide: float, kind: str, text: str, opacity: float | None = None) -> go.Scatter:
    """An edge into what reads so."""
    look = {"color": colour, "width": round(wide, 2), "dash": DASHES[kind], "shape": "spline"}
    line = go.Scatter(
        x=points[:, 0].round(3), y=points[:, 1].round(3), mode="lines", line=look, hovertext=text, showlegend=False
    )
    return line if opacity is None else line.update(opacity=opacity)


def boxes_of(ends: Ends, places: Places, half_high: float, graph: Graph) -> tuple[Any, Any]:
    """The nodes as opaque boxes, and their labels."""
    x: list[float | None] = []
    y: list[float | None] = []
    for node, (at, row) in places.items():
        left, right, low, high = at - node.half_wide, at + node.half_wide, row - half_high, row + half_high
        x += [left, right, right, left, left, None]
        y += [low, low, high, high, low, None]
    out, into = Counter(sender for sender, _ in ends), Counter(receiver for _, receiver in ends)
    texts = [
        "<br>".join(filter(None, [_name(node), shared_by(node, graph), _drawn(into[node], out[node])]))
        for node in places
    ]
    boxes = go.Scatter(x=x, y=y, mode="lines", line={"color": SOFT, "width": 1}, fill="toself", fillcolor=PAPER)
    boxes.update(hoverinfo="skip", showlegend=False)
    labels = go.Scatter(
        name="components",
        x=[x for x, _ in places.values()],
        y=[y for _, y in places.values()],
        mode="text",
        text=[node.label for node in places],
        textfont={"size": LABEL_SIZE, "color": INK},
        hovertext=texts,
        showlegend=False,
    )
    return boxes, labels


def _name(node: Node) -> str:
    return f"<b>{node.label}</b>{f' at {escaped(node.at)}' if node.at else ''}"


def _drawn(into: int, out: int) -> str:
    return f"drawn: {count(into, 'edge')} in, {out} out"


def stars_on(curves: Sequence[Curve], places: Places) -> Any:
    """A star on each of these curves, where it is farthest from other stars and from nodes."""
    stars: list[Any] = []
    taken = np.array(list(places.values()))
    for points in curves:
        inner = points[len(points) // 4 : -(len(points) // 4)]
        distances = np.abs(inner[:, None] - taken[None]).max(axis=-1).min(axis=1)
        stars.append(inner[int(np.argmax(np.minimum(distances, 0.5)))])
        taken = np.concatenate([taken, stars[-1][None]])
    return go.Scatter(
        name="significant",
        x=[round(float(x), 3) for x, _ in stars],
        y=[round(float(y), 3) for _, y in stars],
        mode="markers",
        marker={"symbol": "asterisk-open", "size": 6, "color": INK, "line": {"width": 1.2}},
        hoverinfo="skip",
        showlegend=False,
    )


def of_kinds(readers: Sequence[Reader]) -> list[tuple[str, str, str]]:
    """For the legend: name, colour and dash of what edges go into, of those that are there."""
    kinds = {reader.kind for reader in readers}
    return [
        (f"into {name}", SOFT, dash)
        for dash in ("solid", "dash", "dot")
        if (name := ", ".join(INTO.get(kind, kind) for kind, own in DASHES.items() if own == dash and kind in kinds))
    ]


def show_legend(figure: go.Figure, entries: Sequence[tuple[str, str, str]], opacity: float | None = None) -> None:
    """Name, colour and dash of each entry."""
    for name, colour, dash in entries:
        entry = go.Scatter(
            name=name, x=[None], y=[None], mode="lines", line={"color": colour, "width": 2, "dash": dash}
        )
        figure.add_trace(entry if opacity is None else entry.update(opacity=opacity))


def show_rows(figure: go.Figure, places: Places, layers: Sequence[int], name_of: Callable[[int], str]) -> float:
    """The axis of layers; rows from the lowest to the highest with some room."""
    ticks = {"tickvals": list(range(len(layers))), "ticktext": [name_of(layer) for layer in layers]}
    figure.update_yaxes(title="layer", **ticks, gridcolor=GRID)
    low, high = (of(y for _, y in places.values()) for of in (min, max))
    figure.update_yaxes(range=[low - 0.4, high + 0.4], zeroline=False)
    return high - low + 0.8


def row_name(layer: int, graph: Graph) -> str:
    """The number of a layer; nothing of the input and the logits."""
    return str(layer) if 0 <= layer < graph.n_layers else ""


def least_width(nodes: Sequence[Node], wide: float) -> int:
    """Pixels in which the labels of nodes stand in their boxes, of a graph of so many columns."""
    return math.ceil(BESIDE + wide * max((LETTER * len(node.label) + 2) / (2 * node.half_wide) for node in nodes))
