"""The map of edges: senders in rows, receivers in columns. Knows results; it runs and computes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from actpatch.core.estimate_words import titled
from actpatch.core.graph import Names
from actpatch.core.heavy import go
from actpatch.core.text import count
from actpatch.figures.cells import (
    MARGINS,
    MOST_COLUMNS_WITH_NUMBERS,
    cells,
    colour_limit,
    column_axis,
    narrowest,
    room_for_numbers,
    row_axis,
    show_scale,
)
from actpatch.figures.certainty import Certainty, certainty
from actpatch.figures.checks import check_effects, checked_sweep, known_heads
from actpatch.figures.colours import GRID, LINE
from actpatch.figures.edge_cells import Detail, EdgeCells, Side, edge_cells
from actpatch.figures.frame import finish, height, room_for, thin_out, width
from actpatch.figures.places import Cell
from actpatch.figures.words import hovers, scale_title, told
from actpatch.results.edges import EdgeResults
from actpatch.statistics.sites import SiteStatistics

MOST_LABELS = 64
"""Most rows, and columns, that each have a label; of more one is labelled in each layer."""
ROW, LOW_ROW, COLUMN = 18, 9, 15
"""Pixels of a row with a label of its own, of one without, and of a column."""


def create_edge_heatmap(
    results: EdgeResults,
    senders: Names | None = None,
    receivers: Names | None = None,
    *,
    position: int | str | None = None,
    by: Detail | None = None,
    title: str | None = None,
    colour_range: float | None = None,
    statistics: SiteStatistics | None = None,
) -> go.Figure:
    """Sender × receiver map of the effects of edges, both in the order of the forward pass.

    Where there are thousands, the senders of a layer and kind share a row, and such receivers a column. A cell then has
    the effect of the edge of largest |effect| among its own, which its hover text names, and a star where any of them
    is significant; `senders="L5", receivers="L9"` shows some one by one. Where there is no edge, cells are blank; edges
    that were not measured are hatched.

    Args:
        results: what patching edges returned, or some of it.
        senders: whose edges are drawn, as `EdgeResults.of` takes them; None for all.
        receivers: likewise.
        position: of edges at several positions, at which one.
        by: `"nodes"` for a row per sender and a column per receiver, `"layers"` for those of a layer together.
        title: in place of the figure's own.
        colour_range: colours span ± this effect, for maps that are to be compared; None spans the largest.
        statistics: `results.statistics(...)`, for another level or correction than its defaults. Those of a part are
            the whole experiment's, so that one computation serves several maps.

    Raises:
        ValueError: where `results` are no edges, are empty or hold no usable pair; where no edge goes from these
            senders to these receivers; where there are edges at several positions and none is given; where there are
            too many for `by="nodes"`; where `statistics` are those of other results.
    """
    results = known_heads(results)
    sweep = checked_sweep(results, EdgeResults, "create_edge_heatmap")
    check_effects(sweep.effects, sweep)
    evidence = certainty(sweep, results.kind, statistics)
    drawn, chosen = _part(results, senders, receivers, position)
    effects = drawn.sweep.effects
    found = edge_cells(drawn.edges, effects, by)
    significant = found.counted(evidence.significant[chosen])
    with_numbers = len(found.columns) <= MOST_COLUMNS_WITH_NUMBERS and len(found.rows) <= MOST_LABELS
    starred = {(row, column) for row, column in zip(*(places.tolist() for places in np.nonzero(significant)))}
    shown = found.of_shown(effects)
    limit = colour_limit(shown, colour_range)
    hover = _hover(drawn, found, evidence, chosen, significant)
    figure = go.Figure(cells(shown, hover, starred, limit, with_numbers=with_numbers, exists=found.exists))
    show_scale(figure, limit, scale_title(sweep.estimate))
    room = _axes(figure, found)
    n_rows, n_columns = shown.shape
    figure.update_layout(plot_bgcolor=GRID, width=width(n_columns, 44 if with_numbers else COLUMN))
    figure.update_layout(height=height(n_rows, ROW if n_rows <= MOST_LABELS else LOW_ROW) + room)
    what = "Effects of edges, by layer" if found.is_by_layer else "Effect of each edge"
    title = title or titled(sweep.estimate, what)
    labels = room_for(found.rows.labels)
    sizes = {"narrowest": labels + narrowest(n_columns, min(n_columns, MOST_LABELS)), "room_for_numbers": 0}
    if with_numbers:
        sizes["room_for_numbers"] = labels + room_for_numbers(n_columns)
    parts = [_note(found, evidence, len(chosen)), *told(drawn.sweep, evidence.note, scale=True)]
    return finish(figure, title, parts, **sizes, around=(MARGINS + labels, 90 + room))


def _part(
    results: EdgeResults, senders: Names | None, receivers: Names | None, position: int | str | None
) -> tuple[EdgeResults, np.ndarray]:
    """The edges that are drawn, all at one position, and their numbers among these."""
    part = results if senders is None and receivers is None else results.of(senders, receivers)
    part = part if position is None else part.at(position)
    if len(patched := np.unique(part.edges.columns)) > 1:
        names = ", ".join(part.edges.column_names[column] for column in patched)
        raise ValueError(
            f"these edges were patched at {len(patched)} positions ({names}): choose one, for instance "
            f"position={part.positions[0]!r}"
        )
    place = {number: i for i, number in enumerate(results.sweep.numbers or range(len(results)))}
    return part, np.array([place[number] for number in part.sweep.numbers or range(len(part))])


def _hover(
    drawn: EdgeResults, found: EdgeCells, evidence: Certainty, chosen: np.ndarray, significant: np.ndarray
) -> dict[Cell, str]:
    """Of each cell the text of its edge, and in a cell of several how many there are."""
    rows, columns = np.nonzero(found.shown >= 0)
    numbers = found.shown[rows, columns]
    part = EdgeResults(drawn.sweep.of_patches(numbers.tolist()))
    texts = hovers(part.labels, part.sweep, lambda i: evidence.lines(int(chosen[numbers[i]])))
    hover = {}
    for row, column, text in zip(rows.tolist(), columns.tolist(), texts):
        if found.is_by_layer:
            n, marked = int(found.n_edges[row, column]), int(significant[row, column])
            text += f"<br>largest of {count(n, 'edge')}, {found.rows.labels[row]} → {found.columns.labels[column]}"
            text += f"<br>{marked:,} of them significant" if evidence.could_be else ""
        hover[row, column] = text
    return hover


def _axes(figure: go.Figure, found: EdgeCells) -> int:
    """Both axes, and lines between layers; the pixels that the receivers' labels take."""
    n_rows, n_columns = found.shown.shape
    rows, columns = _ticks(found.rows), _ticks(found.columns)
    figure.update_yaxes(**row_axis(n_rows), title="sender", **rows)
    figure.update_xaxes(**column_axis(n_columns), title="receiver", **columns, tickangle=-90)
    ends = {"y0": n_rows - 0.5, "y1": -0.5}, {"x0": -0.5, "x1": n_columns - 0.5}
    line = {"type": "line", "line": {"color": LINE, "width": 1}}
    for at in _between_layers(found.columns):
        figure.add_shape(**line, x0=at, x1=at, **ends[0])
    for at in _between_layers(found.rows):
        figure.add_shape(**line, y0=at, y1=at, **ends[1])
    return room_for(columns["ticktext"])


def _between_layers(side: Side) -> list[float]:
    return [i - 0.5 for i in range(1, len(side)) if side.layers[i] != side.layers[i - 1]]


def _ticks(side: Side) -> dict[str, Any]:
    """A label for each, or where they are many for each layer, at its middle."""
    if len(side) <= MOST_LABELS:
        return {"tickvals": list(range(len(side))), "ticktext": list(side.labels)}
    places: dict[int | str, list[int]] = {}
    for i, layer in enumerate(side.layers):
        places.setdefault(side.labels[i] if layer is None else layer, []).append(i)
    names = [f"L{name}" if isinstance(name, int) else name for name in places]
    middles = [sum(each) / len(each) for each in places.values()]
    kept = thin_out(len(names), first=[])
    return {"tickvals": [middles[i] for i in kept], "ticktext": [names[i] for i in kept]}


def _note(found: EdgeCells, evidence: Certainty, n_edges: int) -> str:
    """For the subtitle: what a cell is, where it is not one edge."""
    if not found.is_by_layer:
        return ""
    star = ", a star where any is significant" if evidence.significant.any() else ""
    return f"each cell: the largest of its edges, {n_edges:,} in all{star}"
