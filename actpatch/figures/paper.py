"""Figures at the size that they have on a page of paper, with text as large as in print.

A figure is not made smaller as a whole, which would make its text too small to read: it is laid out anew in the room
that there is, with fewer labels where they would lie on each other. Knows figures as Plotly has them; no results.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float

from actpatch.core.heavy import go
from actpatch.core.text import escaped
from actpatch.figures.captions import (
    SUBTITLE_SIZE,
    caption_height,
    has_own_subtitle,
    subtitle_of,
    told_of,
    without_caption,
)
from actpatch.figures.cells import NUMBERS, STARS
from actpatch.figures.frame import step

PIXELS = {"mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0, "px": 1.0}
"""A unit -> pixels, of which CSS has 96 to the inch."""
PRINTED = 10 / 12
"""Sizes on paper in those on a screen: text of 12 pixels has 7.5 points."""
SMALLEST_TEXT = 28 / 3
"""Pixels of 7 points, the least of any text on paper."""
LARGEST = 20_000
"""Pixels of a side at most: 5 metres."""
AROUND = (160, 180)
"""Pixels of width and height that are not the plot's, in a figure that does not say so: Plotly's own margins."""
LEAST_OF_OTHERS, LEAST_PLOT = 60, 100
"""Pixels that a figure needs: the width of one that does not say its own, and the height of its plot."""
TITLE_LETTER = 0.55
"""Of a title's letter, on average: its width in sizes of its font."""
LEGEND_LINE = 19
"""Pixels of a line of the legend."""
ROW, UPRIGHT, LEVEL = 1.15, 1.3, 2.2
"""What labels take along their axis, in sizes of their font: one below the other, standing upright, and numbers."""
STAR_SHARE = 0.5
"""Of a cell, what its star takes at most."""
FEW_TICKS = 9
"""Height, in sizes of the font, below which a colour bar has three ticks."""


@dataclass(frozen=True)
class Length:
    """A length that was asked for."""

    pixels: float
    is_paper: bool
    """Whether it was given in a unit of paper."""


def length(name: str, given: object) -> Length:
    """A text with a unit, or a number of pixels.

    Args:
        name: of the argument, for errors.
        given: `85mm`, `8.5cm`, `3.3in`, `480px`, or a number.

    Raises:
        ValueError: for anything else, and for what is not above 0 or is metres long.
    """
    value, unit = given, "px"
    if isinstance(given, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(mm|cm|in|px)\s*", given)
        value, unit = (float(found[1]), found[2]) if found else (math.nan, "px")
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 < float(value) * PIXELS[unit] <= LARGEST:
        raise ValueError(
            f"{name} is {given!r}, expected a length with a unit of mm, cm, in or px, for instance '85mm', or a number "
            "of pixels"
        )
    return Length(float(value) * PIXELS[unit], unit != "px")


def sized(figure: go.Figure, *, width: Length | None = None, height: Length | None = None) -> go.Figure:
    """A copy of the figure of this size; a side that is None follows from the other.

    The plot keeps the ratio of its width and height, unless rows of names need more height.

    Raises:
        ValueError: where the figure cannot be read in that width or height, saying what it needs.
    """
    meta = _meta(figure)
    is_paper = any(side is not None and side.is_paper for side in (width, height))
    scale = PRINTED if is_paper else 1.0
    wide = width.pixels if width else _width_for(figure, height.pixels if height else 0, scale)
    least = meta.get("least_width", LEAST_OF_OTHERS) * scale
    if wide < least:
        which, given, needed = "width", width, least
        if given is None:
            which, given = "height", height
            needed = _height_for(figure, least, scale)
        raise ValueError(_too_small(which, given, needed))
    small = type(figure)(figure)
    small.layout.width = wide
    _scale(small, scale)
    title, subtitle, taken = _caption(figure, wide, scale)
    if meta.get("caption"):
        small.layout.margin.t += taken - meta["caption"] * scale
        small.layout.meta = {**meta, "caption": taken, "subtitle": subtitle}
    small.update_layout(title_text=title, title_subtitle_text=subtitle)
    least_height = taken + max(
        _height_of_rows(small, scale), (LEAST_PLOT + _meta(figure).get("around", AROUND)[1]) * scale
    )
    if height and height.pixels < least_height:
        raise ValueError(_too_small("height", height, least_height))
    small.layout.height = height.pixels if height else max(_height_for(figure, wide, scale), least_height)
    _space_panels(small, figure, scale)
    _thin_labels(small)
    if wide < meta.get("room_for_numbers", 0) * scale:
        small.data = [trace for trace in small.data if trace.name != NUMBERS]
        for stars in small.select_traces({"name": STARS, "mode": "markers"}):
            stars.update(x=np.round(stars.x), y=np.round(stars.y))
    _fit_stars(small)
    return small


def _meta(figure: go.Figure) -> dict[str, Any]:
    return figure.layout.meta if isinstance(figure.layout.meta, dict) else {}


def _height_for(figure: go.Figure, wide: float, scale: float) -> float:
    """The height of a figure of this width, title and subtitle included."""
    plain = without_caption(figure)
    own = plain.layout.width or 700, plain.layout.height or 450
    beside, above = _meta(figure).get("around", (0, 0))
    lines = _legend_lines(figure, wide, scale) - _legend_lines(figure, own[0], 1)
    around = (above + lines * LEGEND_LINE) * scale
    return (wide - beside * scale) * (own[1] - above) / (own[0] - beside) + around + _caption(figure, wide, scale)[2]


def _legend_lines(figure: go.Figure, wide: float, scale: float) -> int:
    """Lines of a level legend, all of whose entries take as much room as the longest."""
    names = [trace.name or "" for trace in figure.data if trace.showlegend is not False]
    if not figure.layout.showlegend or not names:
        return 0
    longest = (7 * max(map(len, names)) + 50) * scale
    return math.ceil(len(names) / max(int((wide - 80 * scale) / longest), 1))


def _width_for(figure: go.Figure, high: float, scale: float) -> float:
    """The width in which the figure has this height, found by halving: the lines of the caption depend on it."""
    low, wide = 1.0, float(LARGEST)
    for _ in range(40):
        middle = (low + wide) / 2
        low, wide = (middle, wide) if _height_for(figure, middle, scale) < high else (low, middle)
    return low


def _too_small(name: str, given: Length | None, needed: float) -> str:
    unit = "mm" if given and given.is_paper else "px"
    got, least = ((given.pixels if given else 0) / PIXELS[unit], math.ceil(needed / PIXELS[unit]))
    return f"{name} is {got:g} {unit}, which is too small for this figure to be read: give at least {least} {unit}"


def _caption(figure: go.Figure, wide: float, scale: float) -> tuple[str | None, str | None, float]:
    """Title and subtitle in lines of this width, and the pixels they take; a user's own lines are left alone."""
    title, subtitle = figure.layout.title.text, figure.layout.title.subtitle.text
    size = figure.layout.title.font.size or 17
    if title and "<" not in title:
        letters = max(int((wide - 24) / (TITLE_LETTER * size * scale)), 10)
        title = "<br>".join(textwrap.wrap(html.unescape(title), letters)) if len(title) > letters else title
        title = "<br>".join(escaped(html.unescape(line)) for line in title.split("<br>"))
    if not title:
        return None, None, 0.0
    if not has_own_subtitle(figure):
        subtitle = subtitle_of(told_of(figure), wide, max(SUBTITLE_SIZE * scale, SMALLEST_TEXT))
    more = title.count("<br>") * size * 1.3
    return title, subtitle, (caption_height(subtitle or "") + more) * scale


def _scale(figure: go.Figure, scale: float) -> None:
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
    figure.layout.template.layout.font.size = (figure.layout.template.layout.font.size or 12) * scale


def _sizes(part: Any, path: list[str | int]) -> Iterator[list[str | int]]:
    """Paths to sizes of fonts and marks, and to margins and distances of titles."""
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(value, (dict, list, tuple)) and not (key == "size" and path):
            yield from _sizes(value, [*path, key])
        elif path and (path, key) != (["layout", "font"], "size"):
            holder = str(path[-1])
            is_size = key == "size" and (holder.endswith("font") or holder == "marker")
            if is_size or key == "standoff" or holder == "margin" or (holder == "pad" and len(str(key)) == 1):
                yield [*path, key]


def _height_of_rows(figure: go.Figure, scale: float) -> float:
    """Pixels, besides the caption's, in which names of rows, one below the other, do not lie on each other."""
    axes = list(figure.select_yaxes())
    if len(axes) != 1 or axes[0].ticktext is None:
        return 0.0
    _, above = _meta(figure).get("around", (0, 0))
    legend = _legend_lines(figure, figure.layout.width, scale) * LEGEND_LINE
    return len(axes[0].ticktext) * ROW * _label_size(figure, axes[0]) + (above + legend) * scale


def _space_panels(small: go.Figure, figure: go.Figure, scale: float) -> None:
    """Keep panels so far apart that their labels have room: these shrink less than panels do."""
    around = _meta(figure).get("around")
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
    beside, above = _meta(figure).get("around") or AROUND
    wide, high = figure.layout.width - beside * scale, figure.layout.height - above * scale
    return wide, high - _meta(figure).get("caption", 0)


def _fit_stars(figure: go.Figure) -> None:
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


def _thin_labels(figure: go.Figure) -> None:
    """Leave out labels that would lie on others, first those of positions where prompts do not differ."""
    wide, high = _plot_size(figure)
    n_across, n_down = (len({axis.domain for axis in axes}) for axes in (figure.select_xaxes(), figure.select_yaxes()))
    wide, high, alone = wide / n_across, high / n_down, n_across == n_down == 1
    for bar, end in _colour_bars(figure):
        if high * n_down < FEW_TICKS * (figure.layout.font.size or 12):
            bar.tickvals = [-end, 0, end]
    for axis, pixels, takes in (
        *((axis, wide, UPRIGHT if axis.tickangle == -90 else LEVEL) for axis in figure.select_xaxes()),
        *((axis, high, ROW) for axis in figure.select_yaxes()),
    ):
        if not axis.range:
            continue
        n = round(abs(axis.range[1] - axis.range[0]))
        room = max(int(pixels / (takes * _label_size(figure, axis))), 1)
        if axis.ticktext is None and axis.dtick is not None:
            axis.dtick = max(step(n, room), axis.dtick)
        elif axis.ticktext is not None and (axis.tickangle == -90 or (takes == ROW and not alone)):
            _keep(axis, math.ceil(n / room))


def _colour_bars(figure: go.Figure) -> Iterator[tuple[Any, float]]:
    """Colour bars of effects, and the roundest effect near the end of each."""
    for trace in figure.select_traces({"type": "heatmap", "showscale": True}):
        if trace.zmax:
            place = 10.0 ** math.floor(math.log10(trace.zmax))
            yield trace.colorbar, math.floor(trace.zmax / place) * place


def _keep(axis: Any, apart: int) -> None:
    """Keep labels so many positions apart, bold ones before others."""
    labels = dict(zip(axis.tickvals, axis.ticktext))
    kept: list[int] = []
    for at in sorted(labels, key=lambda at: not labels[at].startswith("<b>")):
        if all(abs(at - other) >= apart for other in kept):
            kept.append(at)
    axis.update(tickvals=sorted(kept), ticktext=[labels[at] for at in sorted(kept)])


def _label_size(figure: go.Figure, axis: Any) -> float:
    return axis.tickfont.size or figure.layout.font.size or 12
