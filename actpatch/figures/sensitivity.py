"""How faithfulness, and the circuit itself, move with each setting: a row per setting. Knows cards; it runs nothing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from actpatch.core.heavy import go
from actpatch.core.text import count, escaped, signed
from actpatch.figures.colours import BLUE, GRID, INK, LINE, VIOLET
from actpatch.figures.frame import finish, room_for
from actpatch.results.sensitivity import SensitivityCard, Variation, check_card

ROW = 34
"""Pixels of a row, of one line or two."""
LETTERS = 26
"""Of a line of a setting's name."""
MOST_LINES = 2
WIDTH = 820
NARROWEST_PANEL = 200
"""Pixels of the wider of its two panels."""
SHARES = (0.68, 0.26)
"""Of the width, what each panel takes."""


def create_sensitivity_card(card: SensitivityCard, *, title: str | None = None) -> go.Figure:
    """A row per setting, grouped by what is varied: faithfulness with its interval, and the overlap of the edges.

    The line through all rows is the base case, whose own rows have a filled diamond; at 1, drawn thin, a circuit does
    what the model does, at 0 what the run with every edge off does. The column beside has Jaccard's index, the share of
    edges in both circuits among those in either; 1 where the circuit is the same and only its judgement is varied.

    Raises:
        ValueError: where `card` is none, or no setting has a faithfulness that is defined.
    """
    check_card(card, "create_sensitivity_card")
    rows = _rows(card)
    known = [one.faithfulness for one in card.variations if not math.isnan(one.faithfulness)]
    if not known:
        raise ValueError("no setting of this card has a faithfulness that is defined: its notes say why")
    has_jaccard = any(not math.isnan(one.jaccard) for one in card.variations)
    figure = _panels(has_jaccard)
    n_rows = len(rows)
    for at in (0.0, 1.0):
        _add_line(figure, at, {"color": LINE, "width": 1.2})
    if not math.isnan(card.base.faithfulness):
        _add_line(figure, card.base.faithfulness, {"color": INK, "width": 1.2, "dash": "dash"})
    for is_base in (False, True):
        chosen = [(row, one) for row, one in enumerate(rows) if isinstance(one, Variation) and one.is_base == is_base]
        figure.add_trace(_dots(chosen, is_base), row=1, col=1)
    if has_jaccard:
        figure.add_trace(_overlaps(rows), row=1, col=2)
        figure.update_xaxes(
            title="edges shared", range=[-0.06, 1.06], tickvals=[0, 0.5, 1], zeroline=False, row=1, col=2
        )
    figure.update_xaxes(title="faithfulness", range=_range(card), zeroline=False, row=1, col=1)
    labels = [f"<b>{one}</b>" if isinstance(one, str) else _label(one) for one in rows]
    ticks = {"tickvals": list(range(n_rows)), "ticktext": labels, "range": [n_rows - 0.5, -0.5]}
    figure.update_yaxes(**ticks, showgrid=False, zeroline=False)
    for row, one in enumerate(rows):
        if isinstance(one, str) and row:
            figure.add_hline(row - 0.5, line={"color": GRID, "width": 1})
    figure.update_layout(width=WIDTH, height=110 + n_rows * ROW, showlegend=True)
    room = room_for([line for label in labels for line in label.split("<br>")])
    least = round(room + 40 + NARROWEST_PANEL / (SHARES[0] if has_jaccard else 1))
    return finish(
        figure,
        title or "How faithfulness moves with each setting",
        _told(card, has_jaccard),
        narrowest=least,
        least_width=least,
        around=(room + 40, 110),
    )


def _add_line(figure: go.Figure, at: float, look: dict[str, Any]) -> None:
    figure.add_vline(at, line=look, layer="below", row=1, col=1, exclude_empty_subplots=False)


def _rows(card: SensitivityCard) -> list[str | Variation]:
    """The name of each axis, and below it its settings."""
    return [row for axis in card.axes for row in (axis, *card.of(axis))]


def _panels(has_jaccard: bool) -> go.Figure:
    from plotly.subplots import make_subplots

    n = 2 if has_jaccard else 1
    gap = 1 - sum(SHARES) if has_jaccard else 0
    figure: go.Figure = make_subplots(
        rows=1, cols=n, shared_yaxes=True, column_widths=list(SHARES[:n]), horizontal_spacing=gap
    )
    return figure


def _dots(chosen: Sequence[tuple[int, Variation]], is_base: bool) -> go.Scatter:
    values = np.array([one.faithfulness for _, one in chosen])
    below, above = (np.array([getattr(one, end) for _, one in chosen]) - values for end in ("low", "high"))
    has_intervals = bool(np.isfinite(above).any())
    return go.Scatter(
        name="base case" if is_base else "other settings",
        x=values,
        y=[row for row, _ in chosen],
        mode="markers",
        marker={"symbol": "diamond" if is_base else "circle", "color": INK if is_base else BLUE, "size": 10},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": np.where(np.isfinite(above), above, np.nan),
            "arrayminus": np.where(np.isfinite(below), -below, np.nan),
            "color": INK if is_base else BLUE,
            "thickness": 1.4,
            "width": 4,
            "visible": has_intervals,
        },
        hovertext=[_text(one) for _, one in chosen],
    )


def _overlaps(rows: Sequence[str | Variation]) -> go.Scatter:
    found = [(row, one) for row, one in enumerate(rows) if isinstance(one, Variation) and not math.isnan(one.jaccard)]
    return go.Scatter(
        name="edges shared (Jaccard)",
        x=[one.jaccard for _, one in found],
        y=[row for row, _ in found],
        mode="markers",
        marker={"symbol": "square", "color": VIOLET, "size": 8},
        hovertext=[_text(one) for _, one in found],
    )


def _range(card: SensitivityCard) -> list[float]:
    """Of the axis: 0, 1 and all values are on it; intervals as far as they are of that size."""
    values = [one.faithfulness for one in card.variations if math.isfinite(one.faithfulness)]
    low, high = min(0.0, *values), max(1.0, *values)
    reach = high - low
    ends = [end for one in card.variations for end in (one.low, one.high) if math.isfinite(end)]
    low, high = (
        min([low, *(end for end in ends if end >= low - reach)]),
        max([high, *(e for e in ends if e <= high + reach)]),
    )
    room = 0.05 * (high - low)
    return [low - room, high + room]


def _label(one: Variation) -> str:
    lines = textwrap.wrap(one.value, LETTERS, max_lines=MOST_LINES, placeholder=" …")
    return "<br>".join(map(escaped, lines)) + (" (not defined)" if math.isnan(one.faithfulness) else "")


def _text(one: Variation) -> str:
    lines = [f"<b>{escaped(one.name)}</b>", f"faithfulness {signed(one.faithfulness)}"]
    if not math.isnan(one.low):
        lines.append(f"from {signed(one.low)} to {signed(one.high)}")
    if not math.isnan(one.jaccard):
        lines.append(f"edges shared with the base case {signed(one.jaccard, 2).removeprefix('+')}")
    counts = [(one.n_edges, "edge"), (one.n_pairs, "pair")]
    if told := ", ".join(count(n, what) for n, what in counts if n is not None):
        lines.append(told)
    if one.is_base:
        lines.append("the base case")
    return "<br>".join([*lines, *map(escaped, textwrap.wrap(one.note, 60))])


def _told(card: SensitivityCard, has_jaccard: bool) -> list[str]:
    held: dict[Any, str] = {
        True: "pairs that the search did not see",
        False: "some pairs that the search saw",
        None: "pairs of which it is not known whether the search saw them",
    }
    return [
        "dashed: the base case, others differ from it in one thing",
        card.circuit.graph.model,
        card.task,
        f"circuit of {count(len(card.circuit), 'edge')}",
        f"{card.metric} ({card.unit})" if card.unit else card.metric,
        held[card.held_out],
        "bars: intervals over pairs, or as a note says",
        "edges shared: in both circuits, of those in either" if has_jaccard else "",
        *(f"{one.name}: {one.note}" for one in card.variations if one.note),
        *card.notes,
    ]
