"""Figures at the size that they have on a page of paper, with text as large as in print.

A figure is not made smaller as a whole, which would make its text too small to read: it is laid out anew in the room
that there is, with fewer labels where they would lie on each other. Knows figures as Plotly has them; no results.
"""

from __future__ import annotations

import html
import math
import re
import textwrap
from dataclasses import dataclass
from numbers import Real

import numpy as np

from actpatch.core.heavy import go
from actpatch.core.text import escaped
from actpatch.figures.captions import (
    SUBTITLE_SIZE,
    caption_height,
    has_own_subtitle,
    meta_of,
    subtitle_of,
    told_of,
    without_caption,
)
from actpatch.figures.cells import NUMBERS, STARS
from actpatch.figures.fitting import (
    AROUND,
    ROW,
    SMALLEST_TEXT,
    fit_stars,
    label_size,
    scale_text,
    space_panels,
    thin_labels,
)

PIXELS = {"mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0, "px": 1.0}
"""A unit -> pixels, of which CSS has 96 to the inch."""
PRINTED = 10 / 12
"""Sizes on paper in those on a screen: text of 12 pixels has 7.5 points."""
LARGEST = 20_000
"""Pixels of a side at most: 5 metres."""
LEAST_OF_OTHERS, LEAST_PLOT = 60, 100
"""Pixels that a figure needs: the width of one that does not say its own, and the height of its plot."""
TITLE_LETTER = 0.55
"""Of a title's letter, on average: its width in sizes of its font."""
LEGEND_LINE = 19
"""Pixels of a line of the legend."""


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
    meta = meta_of(figure)
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
    scale_text(small, scale)
    title, subtitle, taken = _caption(figure, wide, scale)
    if meta.get("caption"):
        small.layout.margin.t += taken - meta["caption"] * scale
        small.layout.meta = {**meta, "caption": taken, "subtitle": subtitle}
    small.update_layout(title_text=title, title_subtitle_text=subtitle)
    least_height = taken + max(_height_of_rows(small, scale), (LEAST_PLOT + meta.get("around", AROUND)[1]) * scale)
    if height and height.pixels < least_height:
        raise ValueError(_too_small("height", height, least_height))
    small.layout.height = height.pixels if height else max(_height_for(figure, wide, scale), least_height)
    space_panels(small, figure, scale)
    thin_labels(small)
    if wide < meta.get("room_for_numbers", 0) * scale:
        small.data = [trace for trace in small.data if trace.name != NUMBERS]
        for stars in small.select_traces({"name": STARS, "mode": "markers"}):
            stars.update(x=np.round(stars.x), y=np.round(stars.y))
    fit_stars(small)
    return small


def _height_for(figure: go.Figure, wide: float, scale: float) -> float:
    """The height of a figure of this width, title and subtitle included."""
    plain = without_caption(figure)
    own = plain.layout.width or 700, plain.layout.height or 450
    beside, above = meta_of(figure).get("around", (0, 0))
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


def _height_of_rows(figure: go.Figure, scale: float) -> float:
    """Pixels, besides the caption's, in which names of rows, one below the other, do not lie on each other."""
    axes = list(figure.select_yaxes())
    if len(axes) != 1 or axes[0].ticktext is None:
        return 0.0
    _, above = meta_of(figure).get("around", (0, 0))
    legend = _legend_lines(figure, figure.layout.width, scale) * LEGEND_LINE
    return len(axes[0].ticktext) * ROW * label_size(figure, axes[0]) + (above + legend) * scale
