"""Fits a figure into less room: sizes of text, distances of panels, and labels that would lie on each other.

Knows figures as Plotly has them; it knows nothing of paper and no results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from actpatch.core.heavy import go
from actpatch.figures.captions import meta_of, without_caption
from actpatch.figures.cells import STARS
from actpatch.figures.frame import step

SMALLEST_TEXT = 28 / 3
"""Pixels of 7 points, the least of any text on paper."""
AROUND = (160, 180)
"""Pixels of width and height that are not the plot's, in a figure that does not say so: Plotly's own margins."""
ROW, UPRIGHT, LEVEL = 1.15, 1.3, 2.2
"""What labels take along their axis, in sizes of their font: one below the other, standing upright, and numbers."""
STAR_SHARE = 0.5
"""Of a cell, what its star takes at most."""
FEW_TICKS = 9
"""Height, in sizes of the font, below which a colour bar has three ticks."""


def scale_text(figure: go.Figure, scale: float) -> None:
    """Text, marks and margins as large as in print."""
    if scale == 1:
        return
    figure.layout.font.size = (figure.layout.font.size or 12) * scale
    for *path, last in list(_sizes(figure.to_plotly_json(), [])):
        part: Any = figure
        for key in path:
            part = part[key]
        smaller = scale * np.asarray(part[last], dtype=float)
        smaller = np.maximum(smaller, SMALLEST_TEXT) if path[-1] != "marker" and last == "size" else smaller
        part[last] = smaller.tolist()


def _sizes(part: Any, path: list[str | int]) -> Iterator[list[str | int]]:
    """Paths to sizes of fonts and marks, and to margins and distances of titles."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(value, (dict, list, tuple)) and not (key == "size" and path):
            yield from _sizes(value, [*path, key])
        elif path and not isinstance(value, bool) and (path, key) != (["layout", "font"], "size"):
            holder = str(path[-1])
            is_size = key == "size" and (holder.endswith("font") or holder == "marker")
            if is_size or key == "standoff" or holder == "margin" or (holder == "pad" and len(str(key)) == 1):
                yield [*path, key]


def space_panels(small: go.Figure, figure: go.Figure, scale: float) -> None:
    """Keep panels so far apart that their labels have room: these shrink less than panels do."""
    around = meta_of(figure).get("around")
    if around is None or len(list(figure.select_xaxes())) == 1:
        return
    plain = without_caption(figure)
    old = plain.layout.width - around[0], plain.layout.height - around[1]
    new = _plot_size(small)
    shift = {}
    for side, axes in enumerate((list(figure.select_xaxes()), list(figure.select_yaxes()))):
        edges = sorted({round(end, 9) for axis in axes for end in axis.domain})
        shift[side] = (edges, _respaced(np.array(edges), old[side], new[side], scale))
    for side, axes in enumerate((small.select_xaxes(), small.select_yaxes())):
        for axis in axes:
            axis.domain = np.clip(np.interp(axis.domain, *shift[side]), 0, 1).tolist()
    for note in small.layout.annotations:
        note.update(x=float(np.interp(note.x, *shift[0])), y=float(np.interp(note.y, *shift[1])))


def _respaced(edges: Float[np.ndarray, " edge"], old: float, new: float, scale: float) -> Float[np.ndarray, " edge"]:
    """Edges of panels, as shares of the room they take together, where panels had and have so many pixels in all."""
    shares = np.diff(edges)
    pixels = shares * old / shares[::2].sum() * scale
    pixels[::2] *= new / old / scale
    return np.concatenate([[0.0], np.cumsum(pixels) / pixels.sum()])


def _plot_size(figure: go.Figure) -> tuple[float, float]:
    """Pixels that are left for what is plotted."""
    scale = (figure.layout.font.size or 12) / 12
    beside, above = meta_of(figure).get("around") or AROUND
    wide, high = figure.layout.width - beside * scale, figure.layout.height - above * scale
    return wide, high - meta_of(figure).get("caption", 0)


def fit_stars(figure: go.Figure) -> None:
    """Make the stars of maps so small that the colour of their cells can be seen."""
    cells = figure.data[0]
    if cells.type != "heatmap" or figure.layout.coloraxis.cmin is not None:
        return
    size, (rows, columns) = _plot_size(figure), np.shape(cells.z)
    down, across = (len({axis.domain for axis in axes}) for axes in (figure.select_yaxes(), figure.select_xaxes()))
    cell = min(size[0] / across / columns, size[1] / down / rows)
    for stars in figure.select_traces({"name": STARS, "mode": "markers"}):
        stars.marker.size = min(stars.marker.size, max(STAR_SHARE * cell, 1))
        stars.marker.line.width = min(1.0, stars.marker.size / 4)


def thin_labels(figure: go.Figure) -> None:
    """Leave out labels that would lie on others, first those of positions where prompts do not differ."""
    wide, high = _plot_size(figure)
    n_across, n_down = (len({axis.domain for axis in axes}) for axes in (figure.select_xaxes(), figure.select_yaxes()))
    wide, high, alone = wide / n_across, high / n_down, n_across == n_down == 1
    for cells in figure.select_traces({"type": "heatmap", "showscale": True}):
        ticks = cells.colorbar.tickvals
        if ticks and high < FEW_TICKS * (figure.layout.font.size or 12):
            cells.colorbar.tickvals = [ticks[0], 0, ticks[-1]]
    for axis, pixels, takes in (
        *((axis, wide, UPRIGHT if axis.tickangle == -90 else LEVEL) for axis in figure.select_xaxes()),
        *((axis, high, ROW) for axis in figure.select_yaxes()),
    ):
        if not axis.range:
            continue
        n = round(abs(axis.range[1] - axis.range[0]))
        room = max(int(pixels / (takes * label_size(figure, axis))), 1)
        if axis.ticktext is None and axis.dtick is not None:
            axis.dtick = max(step(n, room), axis.dtick)
        elif axis.ticktext is not None and (axis.tickangle == -90 or (takes == ROW and not alone)):
            _keep(axis, math.ceil(n / room))


def _keep(axis: Any, apart: int) -> None:
    """Keep labels so many positions apart, bold ones before others."""
    labels = dict(zip(axis.tickvals, axis.ticktext))
    kept: list[int] = []
    for at in sorted(labels, key=lambda at: not labels[at].startswith("<b>")):
        if all(abs(at - other) >= apart for other in kept):
            kept.append(at)
    axis.update(tickvals=sorted(kept), ticktext=[labels[at] for at in sorted(kept)])


def label_size(figure: go.Figure, axis: Any) -> float:
    return axis.tickfont.size or figure.layout.font.size or 12
