"""Every colour of the figures, on light paper and on dark. Knows nothing of what is coloured.

Figures are drawn on light paper. `on_dark` gives the same figure for a dark notebook or slide; HTML pages carry both
and follow the reader's setting. Blue and red stay apart under every common colour blindness, and so do the colours of
kinds, which differ in brightness or shape besides.

Text has a contrast of at least 4.5 to what is behind it (WCAG 2.2, level AA), also in the cells of maps: these change
from black to white ink at the share `FLIP` of the scale, where both diverging scales have a luminance of 0.18, on which
black and white are equally easy to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actpatch.core.heavy import go

PAPER, INK, SOFT = "white", "#222222", "#555555"
BLUE, RED, ORANGE, VIOLET, GREY = "#2166ac", "#b2182b", "#d17606", "#6a3d9a", "#767676"
BLUE_AREA = "rgba(33,102,172,0.15)"
ZERO_LINE, LINE, GRID = "#444444", "#bbbbbb", "#e6e6e6"
HATCH = "#8c8c8c"
"""Of the lines across what was not measured."""
INK_ON_PALE, INK_ON_STRONG = "#000000", "#ffffff"

FLIP = 0.69
"""Cells whose effect is beyond this share of the colour scale are strong: their numbers have the other ink."""
_STOPS = (-1.0, -0.8, -FLIP, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, FLIP, 0.8, 1.0)
_ON_LIGHT = (  # ColorBrewer's RdBu (Brewer & Harrower, colorbrewer2.org), with stops at the change of ink
    *("rgb(103,0,31)", "rgb(178,24,43)", "rgb(203,75,68)", "rgb(214,96,77)", "rgb(244,165,130)", "rgb(253,219,199)"),
    "rgb(247,247,247)",
    *("rgb(209,229,240)", "rgb(146,197,222)", "rgb(67,147,195)", "rgb(47,122,182)", "rgb(33,102,172)", "rgb(5,48,97)"),
)
_ON_DARK = (
    *("rgb(255,190,172)", "rgb(240,120,96)", "rgb(203,74,67)", "rgb(172,60,50)", "rgb(122,52,45)", "rgb(78,46,43)"),
    "rgb(46,46,46)",
    *("rgb(38,58,78)", "rgb(36,78,118)", "rgb(40,106,164)", "rgb(46,122,183)", "rgb(92,168,232)", "rgb(184,221,255)"),
)
DIVERGING: list[list[Any]] = [[(stop + 1) / 2, colour] for stop, colour in zip(_STOPS, _ON_LIGHT)]
"""For effects: red below 0, blue above."""
SEQUENTIAL: list[list[Any]] = [
    [0, "rgb(247,251,255)"],
    [0.25, "rgb(198,219,239)"],
    [0.5, "rgb(107,174,214)"],
    [0.75, "rgb(33,113,181)"],
    [1, "rgb(8,48,107)"],
]
"""For shares from 0 to 1."""
_SEQUENTIAL_ON_DARK = ("rgb(44,46,49)", "rgb(38,72,104)", "rgb(44,112,172)", "rgb(98,172,234)", "rgb(214,235,255)")

DARK_PAPER = "#262626"
DARK: dict[str, str] = {
    PAPER: DARK_PAPER,
    INK: "#e4e4e4",
    SOFT: "#b4b4b4",
    BLUE: "#74b3ee",
    RED: "#ff8f7d",
    ORANGE: "#f0a24d",
    VIOLET: "#b79be0",
    GREY: "#a0a0a0",
    BLUE_AREA: "rgba(116,179,238,0.2)",
    ZERO_LINE: "#c0c0c0",
    LINE: "#6e6e6e",
    GRID: "#3e3e3e",
    HATCH: "#8f8f8f",
    INK_ON_PALE: "#fefefe",
    INK_ON_STRONG: "#010101",
    **dict(zip(_ON_LIGHT, _ON_DARK)),
    **dict(zip((colour for _, colour in SEQUENTIAL), _SEQUENTIAL_ON_DARK)),
}
"""Colour on light paper -> colour on dark paper. No colour of the second kind is one of the first."""


def on_dark(figure: go.Figure) -> go.Figure:
    """The figure for a dark page, notebook or slide; the figure given is left alone."""
    dark = type(figure)(figure)
    for (*parts, last), _, colour in changes_on_dark(figure):
        part: Any = dark
        for key in parts:
            part = part[key]
        part[last] = colour
    return dark


def changes_on_dark(figure: go.Figure) -> list[tuple[list[str | int], Any, Any]]:
    """What differs on dark: the path to each colour or list of colours in the figure, and its value on light and dark.

    A figure that is dark already has none.
    """
    return list(_changes(figure.to_plotly_json(), []))


def _changes(part: Any, path: list[str | int]) -> Iterator[tuple[list[str | int], Any, Any]]:
    for key, value in part.items() if isinstance(part, dict) else enumerate(part):
        if isinstance(key, str) and "color" in key and isinstance(value, (str, list, tuple)):
            if (dark := _dark(value)) != value:
                yield [*path, key], value, dark
        elif isinstance(value, (dict, list, tuple)):
            yield from _changes(value, [*path, key])


def _dark(colours: Any) -> Any:
    if isinstance(colours, str):
        return DARK.get(colours, colours)
    return type(colours)(map(_dark, colours)) if isinstance(colours, (list, tuple)) else colours
