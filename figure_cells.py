"""How is a map of effects drawn?  Coloured cells on a scale about 0; those that are not significant are faded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from figure_frame import GREY, height, step, width
from figure_places import Cell

SMALLEST_COLOUR_RANGE = 0.05
"""Colours span at least ± this effect, so that a map on which nothing matters looks pale."""
MOST_COLUMNS_WITH_NUMBERS = 16
NOT_MEASURED = "#c8c8c8"
MUTED_ARE = "faded, with a dot: not significant"
VEIL = "rgba(255,255,255,0.7)"


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
    figure.data[0].colorbar = {"title": {"text": "effect", "side": "right"}, "thickness": 12}
    figure.data[0].showscale = True
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
    """The traces of a map: every cell in its colour, then a veil and a dot over those that are muted.

    The dot tells a faded cell from one whose effect is small. It leaves room for numbers where there are any.
    """
    n_rows, n_columns = effects.shape
    is_muted = np.array([[(row, column) in muted for column in range(n_columns)] for row in range(n_rows)])
    is_muted &= ~np.isnan(effects)
    shown = go.Heatmap(
        z=effects,
        zmin=-limit,
        zmax=limit,
        colorscale="RdBu",
        showscale=False,
        hovertext=[[hover.get((row, column), "") for column in range(n_columns)] for row in range(n_rows)],
        hoverongaps=False,
        text=_numbers(effects, ~is_muted) if with_numbers else None,
        texttemplate="%{text}" if with_numbers else None,
        textfont={"size": 10},
        xgap=1,
        ygap=1,
    )
    if not is_muted.any():
        return [shown]
    veil = go.Heatmap(
        name="not significant",
        z=np.where(is_muted, 0.0, np.nan),
        colorscale=[[0, VEIL], [1, VEIL]],
        showscale=False,
        hoverinfo="skip",
        text=_numbers(effects, is_muted) if with_numbers else None,
        texttemplate="%{text}" if with_numbers else None,
        textfont={"size": 10, "color": "#555555"},
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
    return [shown, veil, dots]


def column_axis(n_columns: int) -> dict[str, Any]:
    return {"showgrid": False, "zeroline": False, "range": [-0.5, n_columns - 0.5], "dtick": step(n_columns, 16)}


def row_axis(n_rows: int) -> dict[str, Any]:
    return {"showgrid": False, "zeroline": False, "range": [n_rows - 0.5, -0.5], "dtick": step(n_rows, 100)}


def _numbers(effects: Float[np.ndarray, "row column"], chosen: Bool[np.ndarray, "row column"]) -> list[list[str]]:
    measured = chosen & ~np.isnan(effects)
    rounded = np.round(effects, 2) + 0.0  # no -0.00
    return [[f"{e:.2f}" if m else "" for e, m in zip(*row)] for row in zip(rounded.tolist(), measured.tolist())]
