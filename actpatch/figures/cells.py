"""Maps as coloured cells on a scale about 0, a star in those that are significant. Knows arrays, but no results.

Every measured cell has a colour of the colour bar; what was not measured is hatched, which no colour is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.heavy import go
from actpatch.core.text import with_minus
from actpatch.figures.colours import DIVERGING, FLIP, GRID, HATCH, INK_ON_PALE, INK_ON_STRONG, LINE, PAPER
from actpatch.figures.frame import colour_ticks, height, step, width
from actpatch.figures.places import Cell

SMALLEST_COLOUR_RANGE = 0.05
"""Colours span at least ± this effect, so that a map on which nothing matters looks pale."""
MOST_COLUMNS_WITH_NUMBERS = 16
NUMBERS = "effects"
"""Name of the trace of numbers."""
STARS = "significant"
"""Name of the trace of stars."""
MARGINS = 150
"""Pixels beside the cells of a map: layers on the left, the colour scale on the right."""
_FRAME = {"showgrid": False, "zeroline": False, "showline": True, "linecolor": LINE, "mirror": True}
NARROWEST_COLUMN, NARROWEST_LABEL, NARROWEST_NUMBER = 7, 13, 28
"""Pixels that a cell, a label standing upright and a cell's number take at least."""


def colour_limit(effects: Float[np.ndarray, "row column"], colour_range: float | None) -> float:
    """The effect at the end of the colour scale: the one asked for, or the largest there is."""
    if colour_range is None:
        return max(float(np.nanmax(np.abs(effects))), SMALLEST_COLOUR_RANGE)
    if not 0 < colour_range < np.inf:
        raise ValueError(
            f"colour_range is {colour_range!r}, expected an effect above 0: colours span it on both sides of 0. Leave "
            "it out to span the largest effect"
        )
    return float(colour_range)


def cells_figure(
    effects: Float[np.ndarray, "row column"], hover: Mapping[Cell, str], starred: set[Cell], limit: float, scale: str
) -> go.Figure:
    """A figure of one map; layers are its rows, 0 at the top. `scale` is the title of its colours."""
    n_rows, n_columns = effects.shape
    figure = go.Figure(cells(effects, hover, starred, limit, with_numbers=n_columns <= MOST_COLUMNS_WITH_NUMBERS))
    show_scale(figure, limit, scale)
    figure.update_xaxes(**column_axis(n_columns))
    figure.update_yaxes(title="layer", **row_axis(n_rows))
    figure.update_layout(width=width(n_columns, 44), height=height(n_rows, 24 if n_rows <= 24 else 18))
    figure.update_layout(plot_bgcolor=GRID)
    return figure


def show_scale(figure: go.Figure, limit: float, title: str) -> None:
    """Show the colour bar with this title (`figures.words.scale_title`), at the first of a figure's maps."""
    most = 1 if "<br>" in title else 2  # the bar is the shorter, the more lines stand above it
    figure.data[0].update(showscale=True, colorbar={"title": {"text": title}, "tickvals": colour_ticks(limit, most)})


def cells(
    effects: Float[np.ndarray, "row column"],
    hover: Mapping[Cell, str],
    starred: set[Cell],
    limit: float,
    *,
    with_numbers: bool,
    exists: Bool[np.ndarray, "row column"] | None = None,
) -> list[Any]:
    """The traces of a map: every measured cell in its colour, others hatched, stars, and numbers.

    A star stands in its cell's corner where there is a number, else in its middle. Where `exists` is false there is
    nothing to measure: these cells are as blank as paper.
    """
    n_rows, n_columns = effects.shape
    shown = go.Heatmap(
        z=effects,
        zmin=-limit,
        zmax=limit,
        colorscale=DIVERGING,
        showscale=False,
        hovertext=[[hover.get((row, column), "") for column in range(n_columns)] for row in range(n_rows)],
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )
    traces = [shown]
    if exists is not None and not exists.all():
        traces.append(_blank(~exists))
    lacking = np.isnan(effects) if exists is None else np.isnan(effects) & exists
    if lacking.any():
        traces.append(_hatching(lacking))
    if marked := sorted(cell for cell in starred if not np.isnan(effects[cell])):
        traces.append(_stars(effects, marked, limit, in_corner=with_numbers))
    return [*traces, _numbers(effects, limit)] if with_numbers else traces


def _hatching(lacking: Bool[np.ndarray, "row column"]) -> Any:
    """One outline of all cells that were not measured, hatched."""
    x: list[float | None] = []
    y: list[float | None] = []
    for row, column in zip(*(found.tolist() for found in np.nonzero(lacking))):
        x += [column - 0.5, column + 0.5, column + 0.5, column - 0.5, column - 0.5, None]
        y += [row - 0.5, row - 0.5, row + 0.5, row + 0.5, row - 0.5, None]
    return go.Scatter(
        name="not measured",
        x=x,
        y=y,
        mode="lines",
        line={"width": 0},
        fill="toself",
        fillpattern={"shape": "/", "fgcolor": HATCH, "bgcolor": PAPER, "size": 7, "solidity": 0.2},
        hoverinfo="skip",
        showlegend=False,
    )


def _blank(nothing: Bool[np.ndarray, "row column"]) -> Any:
    """Paper over all cells that do not exist, a strip for each run of them in a row."""
    x: list[float | None] = []
    y: list[float | None] = []
    for row, cells_of_row in enumerate(nothing):
        ends = np.flatnonzero(np.diff(np.concatenate([[False], cells_of_row, [False]]))).tolist()
        for left, right in zip(ends[::2], ends[1::2]):
            x += [left - 0.5, right - 0.5, right - 0.5, left - 0.5, left - 0.5, None]
            y += [row - 0.5, row - 0.5, row + 0.5, row + 0.5, row - 0.5, None]
    return go.Scatter(
        name="none there",
        x=x,
        y=y,
        mode="lines",
        line={"width": 1, "color": PAPER},
        fill="toself",
        fillcolor=PAPER,
        hoverinfo="skip",
        showlegend=False,
    )


def _stars(effects: Float[np.ndarray, "row column"], marked: Sequence[Cell], limit: float, *, in_corner: bool) -> Any:
    return go.Scatter(
        name=STARS,
        x=[column + (0.37 if in_corner else 0) for _, column in marked],
        y=[row - (0.27 if in_corner else 0) for row, _ in marked],
        mode="markers",
        marker={
            "symbol": "asterisk-open",
            "size": 5,
            "color": _inks(np.array([effects[cell] for cell in marked]), limit),
            "line": {"width": 1},
        },
        hoverinfo="skip",
        showlegend=False,
    )


def column_axis(n_columns: int) -> dict[str, Any]:
    return {**_FRAME, "range": [-0.5, n_columns - 0.5], "dtick": step(n_columns, 16)}


def row_axis(n_rows: int) -> dict[str, Any]:
    return {**_FRAME, "range": [n_rows - 0.5, -0.5], "dtick": step(n_rows, 100)}


def narrowest(n_columns: int, n_labels: int = 0) -> int:
    """Pixels that a map needs, with so many labels standing upright below it."""
    return MARGINS + max(NARROWEST_COLUMN * n_columns, NARROWEST_LABEL * n_labels)


def room_for_numbers(n_columns: int) -> int:
    """Pixels below which the numbers in the cells of one map do not fit."""
    return MARGINS + NARROWEST_NUMBER * n_columns


def _numbers(effects: Float[np.ndarray, "row column"], limit: float) -> Any:
    """The effect in each measured cell, in ink that is legible on the cell's colour."""
    rows, columns = np.nonzero(~np.isnan(effects))
    values = effects[rows, columns]
    return go.Scatter(
        name=NUMBERS,
        x=columns,
        y=rows,
        mode="text",
        text=[with_minus(f"{effect:.2f}") for effect in np.round(values, 2) + 0.0],  # no -0.00
        textfont={"size": 10, "color": _inks(values, limit)},
        hoverinfo="skip",
        showlegend=False,
    )


def _inks(values: Float[np.ndarray, " cell"], limit: float) -> list[str]:
    """The ink that is legible on the colour of each effect."""
    return np.where(np.abs(values) > FLIP * limit, INK_ON_STRONG, INK_ON_PALE).tolist()
