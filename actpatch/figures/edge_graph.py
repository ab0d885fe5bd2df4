"""The largest edges as a layered graph, the input at the bottom and the logits on top.

Knows results; it runs and computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from actpatch.core.estimate_words import named_with_method, titled
from actpatch.core.graph import Reader
from actpatch.core.heavy import go
from actpatch.core.text import count
from actpatch.figures.certainty import certainty
from actpatch.figures.checks import check_effects, check_top_k, checked_sweep, known_heads
from actpatch.figures.colours import BLUE, RED
from actpatch.figures.edge_nodes import node_places
from actpatch.figures.frame import finish
from actpatch.figures.graph_parts import (
    ABOVE,
    BESIDE,
    COLUMN,
    HALF_HIGH,
    MOST_EDGES,
    NARROWEST,
    Curve,
    boxes_of,
    curves_between,
    ends_of_edges,
    least_width,
    line_of,
    of_kinds,
    row_height,
    row_name,
    show_legend,
    show_rows,
    stars_on,
    widths_of,
)
from actpatch.figures.ranking import largest
from actpatch.figures.words import hovers, told
from actpatch.results.edges import EdgeResults
from actpatch.results.sweep import Sweep
from actpatch.statistics.sites import SiteStatistics


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
    ends, readers = ends_of_edges(part.edges.writers.tolist(), part.edges.readers.tolist(), part.graph)
    nodes = list(dict.fromkeys(node for pair in ends for node in pair))
    places, n_columns, layers = node_places(nodes, part.graph)
    row = row_height(len(layers))
    half_high = HALF_HIGH / row
    curves = curves_between(ends, readers, places, {"": (-0.5, n_columns + 0.5)}, half_high)
    figure = go.Figure([*_lines(part, readers, curves, texts), *boxes_of(ends, places, half_high, part.graph)])
    if starred := [at for at, i in enumerate(chosen) if evidence.significant[i]]:
        figure.add_trace(stars_on([curves[at] for at in starred], places))
    show_legend(figure, [*of_kinds(readers), *signs_of(part.sweep)])
    high = show_rows(figure, places, layers, lambda layer: row_name(layer, part.graph))
    figure.update_xaxes(visible=False, range=[-0.6, n_columns + 0.6])
    wide = n_columns + 1.2
    figure.update_layout(width=max(round(BESIDE + COLUMN * wide), NARROWEST), showlegend=True)
    figure.update_layout(height=round(ABOVE + row * high))
    share = f"of |effect| ≥ {threshold:g}" if threshold is not None else "of largest |effect|"
    note = f"{count(len(chosen), 'edge')} {share}, of {len(results):,}; the wider, the larger"
    title = title or titled(sweep.estimate, "Largest effects, edges as a graph")
    parts = [note, *told(part.sweep, evidence.note, scale=True)]
    least = least_width(nodes, wide)
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


def _lines(part: EdgeResults, readers: Sequence[Reader], curves: Sequence[Curve], texts: Sequence[str]) -> list[Any]:
    """A line per edge, the smallest first, so that larger ones lie on them."""
    effects = part.sweep.effects
    lines = [
        line_of(points, BLUE if effect > 0 else RED, wide, reader.kind, text)
        for reader, points, effect, wide, text in zip(
            readers, curves, effects.tolist(), widths_of(effects).tolist(), texts
        )
    ]
    return lines[::-1]


def signs_of(sweep: Sweep) -> list[tuple[str, str, str]]:
    """For the legend: name, colour and dash of effects above and below 0, of those that are there."""
    effects, effect = sweep.effects, named_with_method(sweep.estimate)
    entries = [(f"{effect} above 0", BLUE, "solid")] if (effects > 0).any() else []
    return [*entries, (f"{effect} below 0", RED, "solid")] if (effects < 0).any() else entries
