"""What all figures share: look, sizes, titles, and where labels go so that none lies on another. Knows no results.

Ink on opaque paper, so that a figure can be read wherever it is put; `figures.colours` has its look on a dark page.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TypeAlias

from actpatch.core.heavy import go
from actpatch.core.text import escaped
from actpatch.figures.captions import SUBTITLE_SIZE, caption_height, subtitle_of
from actpatch.figures.colours import GRID, INK, LINE, PAPER, SOFT, ZERO_LINE

FONT = "Arial, Helvetica, 'Liberation Sans', sans-serif"
"""What journals set figures in, and what is narrow: Plotly's own choice is a third wider where it falls back."""
LEAST_WIDTH = 270
"""Pixels below which no figure can be read, at the sizes of fonts on a screen."""
TOP = 12
"""Pixels above a plot that has no title."""
NARROW = 300
"""Pixels that a plot's area has on a phone: labels that keep apart there keep apart everywhere."""
MODEBAR_WITHOUT = ["sendChartToCloud", "zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale"]
"""Buttons left out: they hide what is below them on small screens. `figures.style` sees to it that none uploads."""
MOST_POINTS = 100
"""Pairs that have a point of their own in a row: more lie on each other, and make the page slow."""
Box: TypeAlias = tuple[float, float, float, float]
"""Left, low, right and high end in pixels, from the plot's lower left."""
_AXIS = {
    "automargin": True,
    "gridcolor": GRID,
    "linecolor": LINE,
    "ticks": "",
    "ticklabelstandoff": 4,
    "title": {"standoff": 15, "font": {"size": 12}},
    "zerolinecolor": ZERO_LINE,
}
_COLOUR_BAR = {
    "outlinewidth": 0,
    "ticks": "",
    "title": {"side": "top", "font": {"size": 12}},  # beside a short bar it would lie on the labels
    "thickness": 12,
}
LOOK = {
    "layout": {
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"color": INK, "size": 12, "family": FONT},
        "hoverlabel": {"align": "left"},
        "hovermode": "closest",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "coloraxis": {"colorbar": _COLOUR_BAR},
    },
    "data": {"heatmap": [{"colorbar": _COLOUR_BAR}]},
}
"""Plotly's template of all figures."""


def finish(
    figure: go.Figure,
    title: str,
    told: Sequence[str],
    *,
    narrowest: int = 0,
    room_for_numbers: int = 0,
    least_width: int = LEAST_WIDTH,
    around: tuple[int, int] = (90, 90),
) -> go.Figure:
    """The figure with its title and look, offering no upload.

    Args:
        figure: with its width set, and the height that it has without a title.
        title: of the figure, escaped.
        told: what its numbers rest on, part by part, the most important first (`figures.words.told`). The subtitle
            has what fits few lines, the caption all.
        narrowest: pixels that the figure needs: on a narrower page it has to be scrolled. 0 where it shrinks at will.
        room_for_numbers: pixels below which the numbers in a map's cells do not fit.
        least_width: pixels below which the figure cannot be read even where labels are left out.
        around: pixels of width and height that are not the plot's: labels, legends, colour bars.
    """
    from actpatch.figures.offline import Figure

    told = [piece for part in told if part for piece in part.split(" · ")]
    subtitle = subtitle_of(told, figure.layout.width)
    taken = caption_height(subtitle)
    figure.update_layout(
        template=go.layout.Template(LOOK),
        meta={
            "narrowest": narrowest,
            "room_for_numbers": room_for_numbers,
            "least_width": least_width,
            "around": around,
            "told": [escaped(part) for part in told],
            "subtitle": subtitle,
            "caption": taken,
        },
        title={"text": title, "font_size": 16, "x": 0, "y": 1, "yanchor": "top", "pad": {"l": 12, "t": 12}},
        title_subtitle={"text": subtitle, "font": {"size": SUBTITLE_SIZE, "color": SOFT}},
        height=figure.layout.height + taken,
        margin={"l": 60, "r": 20, "t": TOP + (figure.layout.margin.t or 0) + taken, "b": 60},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        modebar={"orientation": "h", "remove": MODEBAR_WITHOUT},
    )
    figure.for_each_trace(lambda trace: trace.update(hoverinfo=trace.hoverinfo or "text"))
    return Figure(figure)


def thinned_pairs(n_pairs: int, most: int = MOST_POINTS) -> list[int]:
    """The pairs that are drawn one by one: all or, of very many, the most there may be, at equal distances."""
    shown = min(n_pairs, most)
    return [number * n_pairs // shown for number in range(shown)]


def thinned_note(n_pairs: int, most: int = MOST_POINTS) -> str:
    """For the subtitle: how many pairs are drawn, where not all are."""
    return f"points: {most} of {n_pairs:,} pairs" if n_pairs > most else ""


def height(rows: int, per_row: int) -> int:
    """Pixels of a figure with so many rows, without its title."""
    return 90 + max(rows * per_row, 120)


def width(columns: int, per_column: int) -> int:
    return min(max(480, 190 + columns * per_column), 1150)


def colour_ticks(limit: float, most: int = 2) -> list[float]:
    """Round values for a colour bar of ± this effect, at most so many on either side, none where its title stands."""
    reach = 0.9 * limit
    sizes = (digit * 10.0**power for power in range(math.floor(math.log10(reach)) - 1, 20) for digit in (1, 2, 5))
    size = next(size for size in sizes if reach / size < most + 1)
    count = int(reach / size)
    return [round(number * size, 12) for number in range(-count, count + 1)]


def step(n: int, room: int) -> int:
    """Distance between labels, so that at most `room` of `n` are written."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, n) if n <= step * room)


def thin_out(n: int, first: Sequence[int], room: int = 45) -> list[int]:
    """About `room` of n positions, well apart; those in `first` go before others."""
    apart = math.ceil(n / room)
    shown: list[int] = []
    for position in [*first, *range(n)]:
        if all(abs(position - other) >= apart for other in shown):
            shown.append(position)
    return sorted(shown)


def room_for(labels: Sequence[str]) -> int:
    """Pixels that the longest of these tick labels takes."""
    return 6 * max((len(html.unescape(label).replace("<b>", "").replace("</b>", "")) for label in labels), default=0)


def label_points(
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    size: tuple[int, int] = (NARROW, NARROW),
    taken: Sequence[Box] = (),
) -> list[str | None]:
    """Where each label stands beside its point (Plotly's `textposition`), None where it would lie on something else.

    Args:
        points: all points, those with a label first, the most important before others.
        labels: of the first points, in that order.
        x_range, y_range: of the axes.
        size: of the plot's area in pixels.
        taken: what else no label may lie on.
    """
    at = [
        ((x - x_range[0]) / (x_range[1] - x_range[0]) * size[0], (y - y_range[0]) / (y_range[1] - y_range[0]) * size[1])
        for x, y in points
    ]
    boxes_taken = list(taken)
    placed: list[str | None] = []
    for (x, y), label in zip(at, labels):
        wide = 7 * len(html.unescape(label))
        boxes = {
            "middle right": (x + 5, y - 8, x + 5 + wide, y + 8),
            "middle left": (x - 5 - wide, y - 8, x - 5, y + 8),
            "top center": (x - wide / 2, y + 4, x + wide / 2, y + 20),
            "bottom center": (x - wide / 2, y - 20, x + wide / 2, y - 4),
        }
        free = (name for name, box in boxes.items() if _is_free(box, size, boxes_taken, at))
        placed.append(next(free, None))
        if placed[-1] is not None:
            boxes_taken.append(boxes[placed[-1]])
    return placed


def _is_free(
    box: Box,
    size: tuple[int, int],
    taken: Sequence[Box],
    points: Sequence[tuple[float, float]],
) -> bool:
    left, low, right, high = box
    if left < 0 or right > size[0] or low < 0 or high > size[1]:
        return False
    if any(left < r and right > x and low < t and high > b for x, b, r, t in taken):
        return False
    return not any(left - 3 < x < right + 3 and low - 3 < y < high + 3 for x, y in points)
