"""The largest edges as a layered graph, the input at the bottom and the logits on top.

Knows results; it runs and computes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from actpatch.core.estimate_words import named_with_method, titled
from actpatch.core.graph import Graph, Reader
from actpatch.core.heavy import go
from actpatch.core.text import count
from actpatch.figures.certainty import certainty
from actpatch.figures.checks import check_effects, check_top_k, checked_sweep, known_heads
from actpatch.figures.colours import BLUE, GRID, INK, PAPER, RED, SOFT
from actpatch.figures.edge_nodes import Node, node_of, node_places, shared_by
from actpatch.figures.frame import finish
from actpatch.figures.layered import curve
from actpatch.figures.ranking import largest
from actpatch.figures.words import hovers, told
from actpatch.results.edges import EdgeResults
from actpatch.results.sweep import Sweep
from actpatch.statistics.sites import SiteStatistics

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


def create_edge_graph(
    results: EdgeResults,
    *,
    top_k: int = 40,
    threshold: float | None = None,
    title: str | None = None,
    statistics: SiteStatistics | None = None,
) -> go.Figure:
    """The edges of largest |effect| as a graph: a row per layer, the input at the bottom, the logits on top.

    Heads stand from left to right by their number, the MLP of a layer on the right, a little higher, as it reads what
    its heads write. Edges are blue above 0 and red below, and the wider the larger |effect| is. Those into queries are
    solid and end on the left of the head, those into keys are dashed and end in its middle, those into values are
    dotted and end on its right. Under grouped-query attention keys and values are nodes of their own (`L5KV0`). Only
    components with an edge that is drawn are. A star marks edges that are significant after correction.

    Args:
        results: what patching edges returned, some of it (`results.at("S2")`), or a list of its entries.
        top_k: number of edges.
        threshold: draw all edges of at least this |effect| in the place of a number of them.
        title: in place of the figure's own.
        statistics: `results.statistics(...)`, for another level or correction than its defaults.

    Raises:
        ValueError: where `results` are no edges, are empty or hold no usable pair; where `top_k` is below 1 or
            `threshold` not above 0; where the edges would be none or more than 200; where `statistics` are those of
            other results.
    """
    results = known_heads(results)
    sweep = checked_sweep(results, EdgeResults, "create_edge_graph")
    check_effects(sweep.effects, sweep)
    chosen = _chosen(sweep.effects, top_k, threshold)
    evidence = certainty(sweep, results.kind, statistics)
    part = EdgeResults(sweep.of_patches(chosen))
    texts = hovers(part.labels, part.sweep, lambda i: evidence.lines(chosen[i]))
    ends, readers = _ends(part)
    nodes = list(dict.fromkeys(node for pair in ends for node in pair))
    places, n_columns, layers = node_places(nodes, part.graph)
    row = min(max(HIGH / len(layers), ROW), HIGH_ROW)
    half_high = HALF_HIGH / row
    curves = _curves(ends, readers, places, n_columns, half_high)
    figure = go.Figure([*_lines(part, readers, curves, texts), *_boxes(ends, places, half_high, part.graph)])
    if starred := [at for at, i in enumerate(chosen) if evidence.significant[i]]:
        figure.add_trace(_stars([curves[at] for at in starred], places))
    _legend(figure, readers, part.sweep)
    ticks = [_row_name(layer, part.graph) for layer in layers]
    figure.update_yaxes(title="layer", tickvals=list(range(len(layers))), ticktext=ticks, gridcolor=GRID)
    low, high = (of(y for _, y in places.values()) for of in (min, max))
    figure.update_yaxes(range=[low - 0.4, high + 0.4], zeroline=False)
    figure.update_xaxes(visible=False, range=[-0.6, n_columns + 0.6])
    wide = n_columns + 1.2
    figure.update_layout(width=max(round(BESIDE + COLUMN * wide), NARROWEST), showlegend=True)
    figure.update_layout(height=round(ABOVE + row * (high - low + 0.8)))
    share = f"of |effect| ≥ {threshold:g}" if threshold is not None else "of largest |effect|"
    note = f"{count(len(chosen), 'edge')} {share}, of {len(results):,}; the wider, the larger"
    title = title or titled(sweep.estimate, "Largest effects, edges as a graph")
    parts = [note, *told(part.sweep, evidence.note, scale=True)]
    least = math.ceil(BESIDE + wide * max((LETTER * len(node.label) + 2) / (2 * node.half_wide) for node in nodes))
    return finish(figure, title, parts, narrowest=least, least_width=least, around=(BESIDE, ABOVE))


def _chosen(effects: Float[np.ndarray, " edge"], top_k: int, threshold: float | None) -> list[int]:
    """Numbers of the edges that are drawn, the largest first."""
    check_top_k(top_k)
    if threshold is not None and not 0 < threshold < math.inf:
        raise ValueError(f"threshold is {threshold!r}, expected an |effect| above 0")
    sizes = np.nan_to_num(np.abs(effects))
    n = min(top_k, int((~np.isnan(effects)).sum())) if threshold is None else int((sizes >= threshold).sum())
    if n > MOST_EDGES:
        given = f"top_k={top_k}" if threshold is None else f"threshold={threshold:g}"
        raise ValueError(f"{given} leaves {n:,} edges, at most {MOST_EDGES} can be followed: draw fewer")
    if n == 0:
        raise ValueError(
            f"no edge has an |effect| of {threshold:g} or more, the largest has {sizes.max():.3g}: give a "
            "smaller threshold"
        )
    return largest(effects, n)


def _ends(part: EdgeResults) -> tuple[list[tuple[Node, Node]], list[Reader]]:
    """Of each edge the two nodes, and what reads."""
    graph, edges = part.graph, part.edges
    writers = [graph.writers[number] for number in edges.writers.tolist()]
    readers = [graph.readers[number] for number in edges.readers.tolist()]
    return [(node_of(writer, graph), node_of(reader, graph)) for writer, reader in zip(writers, readers)], readers


def _curves(
    ends: Sequence[tuple[Node, Node]],
    readers: Sequence[Reader],
    places: dict[Node, tuple[float, float]],
    n_columns: float,
    half_high: float,
) -> list[Float[np.ndarray, "point 2"]]:
    """The curve of each edge."""
    drawn: Counter[tuple[Node, Node, str]] = Counter()
    curves = []
    for (sender, receiver), reader in zip(ends, readers):
        others = np.array(
            [[*at, node.half_wide, half_high] for node, at in places.items() if node not in (sender, receiver)]
        )
        (x, y), (end, top) = places[sender], places[receiver]
        between = sender, receiver, reader.kind
        start, stop = (x, y + half_high), (end + PORTS.get(reader.kind, 0.0), top - half_high)
        curves.append(curve(start, stop, others.reshape(-1, 4), (-0.5, n_columns + 0.5), drawn[between]))
        drawn[between] += 1
    return curves


def _lines(
    part: EdgeResults, readers: Sequence[Reader], curves: Sequence[Float[np.ndarray, "point 2"]], texts: Sequence[str]
) -> list[Any]:
    """A line per edge, the smallest first, so that larger ones lie on them."""
    effects = part.sweep.effects
    widths = THIN + (THICK - THIN) * np.abs(effects) / np.abs(effects).max()
    lines = [
        go.Scatter(
            x=points[:, 0].round(3),
            y=points[:, 1].round(3),
            mode="lines",
            line={
                "color": BLUE if effect > 0 else RED,
                "width": round(wide, 2),
                "dash": DASHES[reader.kind],
                "shape": "spline",
            },
            hovertext=text,
            showlegend=False,
        )
        for reader, points, effect, wide, text in zip(readers, curves, effects.tolist(), widths.tolist(), texts)
    ]
    return lines[::-1]


def _boxes(
    ends: Sequence[tuple[Node, Node]], places: dict[Node, tuple[float, float]], half_high: float, graph: Graph
) -> tuple[Any, Any]:
    """The nodes as opaque boxes, and their labels."""
    x: list[float | None] = []
    y: list[float | None] = []
    for node, (at, row) in places.items():
        left, right, low, high = at - node.half_wide, at + node.half_wide, row - half_high, row + half_high
        x += [left, right, right, left, left, None]
        y += [low, low, high, high, low, None]
    out, into = Counter(sender for sender, _ in ends), Counter(receiver for _, receiver in ends)
    texts = [
        "<br>".join(filter(None, [f"<b>{node.label}</b>", shared_by(node, graph), _drawn(into[node], out[node])]))
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


def _drawn(into: int, out: int) -> str:
    return f"drawn: {count(into, 'edge')} in, {out} out"


def _stars(curves: Sequence[Float[np.ndarray, "point 2"]], places: dict[Node, tuple[float, float]]) -> Any:
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


def _legend(figure: go.Figure, readers: Sequence[Reader], sweep: Sweep) -> None:
    """What dashes and colours mean, of those that are there."""
    kinds = {reader.kind for reader in readers}
    entries = [
        (f"into {name}", SOFT, dash)
        for dash in ("solid", "dash", "dot")
        if (name := ", ".join(INTO.get(kind, kind) for kind, own in DASHES.items() if own == dash and kind in kinds))
    ]
    effects, effect = sweep.effects, named_with_method(sweep.estimate)
    entries += [(f"{effect} above 0", BLUE, "solid")] if (effects > 0).any() else []
    entries += [(f"{effect} below 0", RED, "solid")] if (effects < 0).any() else []
    for name, colour, dash in entries:
        figure.add_scatter(
            name=name, x=[None], y=[None], mode="lines", line={"color": colour, "width": 2, "dash": dash}
        )


def _row_name(layer: int, graph: Graph) -> str:
    return str(layer) if 0 <= layer < graph.n_layers else ""
