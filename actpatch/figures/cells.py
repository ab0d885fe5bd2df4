"""Maps as coloured cells on a scale about 0, those that are not significant faded. Knows arrays, but no results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.heavy import go
from actpatch.figures.colours import (
    DIVERGING,
    FLIP,
    GREY,
    INK_ON_PALE,
    INK_ON_STRONG,
    INK_ON_VEIL,
    NOT_MEASURED,
    VEIL,
)
from actpatch.figures.frame import height, step, width
from actpatch.figures.places import Cell

SMALLEST_COLOUR_RANGE = 0.05
"""Colours span at least ± this effect, so that a map on which nothing matters looks pale."""
MOST_COLUMNS_WITH_NUMBERS = 16
MUTED_ARE = "faded, with a dot: not significant"
MARGINS = 150
"""Pixels beside the cells of a map: layers on the left, the colour scale on the right."""
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
    effects: Float[np.ndarray, "row column"], hover: Mapping[Cell, str], muted: set[Cell], limit: float
) -> go.Figure:
    """A figure of one map; layers are its rows, 0 at the top."""
    n_rows, n_columns = effects.shape
    figure = go.Figure(cells(effects, hover, muted, limit, with_numbers=n_columns <= MOST_COLUMNS_WITH_NUMBERS))
    figure.data[0].update(showscale=True, colorbar={"title": {"text": "effect"}})
    figure.update_xaxes(**column_axis(n_columns))
    figure.update_yaxes(title="layer", **row_axis(n_rows))
    figure.update_layout(width=width(n_columns, 44), height=height(n_rows, 24 if n_rows <= 24 else 18))
    figure.update_layout(plot_bgcolor=NOT_MEASURED)
    return figure


def cells(
    effects: Float[np.ndarray, "row column"],
    hover: Mapping[Cell, str],
    muted: set[Cell],
    limit: float,
    *,
    with_numbers: bool,
) -> list[Any]:
    """The traces of a map: every cell in its colour, a veil and a dot over those that are muted, and numbers.

    The dot tells a faded cell from one whose effect is small. It leaves room for numbers where there are any.
    """
    n_rows, n_columns = effects.shape
    is_muted = np.array([[(row, column) in muted for column in range(n_columns)] for row in range(n_rows)])
    is_muted &= ~np.isnan(effects)
    numbers = [_numbers(effects, is_muted, limit)] if with_numbers else []
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
    if not is_muted.any():
        return [shown, *numbers]
    veil = go.Heatmap(
        name="not significant",
        z=np.where(is_muted, 0.0, np.nan),
        colorscale=[[0, VEIL], [1, VEIL]],
        showscale=False,
        hoverinfo="skip",
        xgap=1,
        ygap=1,
    )
    rows, columns = np.nonzero(is_muted)
    dots = go.Scatter(
        name="not significant",
        x=columns + (0.38 if with_numbers else 0),
        y=rows - (0.34 if with_numbers else 0),
        mode="markers",
        marker={"size": 3 if with_numbers else 2, "color": GREY},
        hoverinfo="skip",
        showlegend=False,
    )
    return [shown, veil, dots, *numbers]


def column_axis(n_columns: int) -> dict[str, Any]:
    return {"showgrid": False, "zeroline": False, "range": [-0.5, n_columns - 0.5], "dtick": step(n_columns, 16)}


def row_axis(n_rows: int) -> dict[str, Any]:
    return {"showgrid": False, "zeroline": False, "range": [n_rows - 0.5, -0.5], "dtick": step(n_rows, 100)}


def narrowest(n_columns: int, n_labels: int = 0) -> int:
    """Pixels that a map needs, with so many labels standing upright below it."""
    return MARGINS + max(NARROWEST_COLUMN * n_columns, NARROWEST_LABEL * n_labels)


def room_for_numbers(n_columns: int) -> int:
    """Pixels below which the numbers in the cells of one map do not fit."""
    return MARGINS + NARROWEST_NUMBER * n_columns


def _numbers(effects: Float[np.ndarray, "row column"], is_muted: Bool[np.ndarray, "row column"], limit: float) -> Any:
    """The effect in each measured cell, in ink that is legible on the cell's colour."""
    rows, columns = np.nonzero(~np.isnan(effects))
    values = effects[rows, columns]
    inks = np.where(np.abs(values) > FLIP * limit, INK_ON_STRONG, INK_ON_PALE)
    return go.Scatter(
        name="effects",
        x=columns,
        y=rows,
        mode="text",
        text=[f"{effect:.2f}" for effect in np.round(values, 2) + 0.0],  # no -0.00
        textfont={"size": 10, "color": np.where(is_muted[rows, columns], INK_ON_VEIL, inks).tolist()},
        hoverinfo="skip",
        showlegend=False,
    )
