"""Captions of figures: title and subtitle, what of it stands in the picture, and all of it as text.

A figure's subtitle has few lines, as wide as the figure; what they have no room for stands in the caption alone. This
module knows figures as Plotly has them; it knows no results.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from actpatch.core.heavy import go
from actpatch.core.text import escaped

MOST_LINES = 3
"""Lines of a subtitle."""
LETTER = 6.1
"""Pixels of a letter of the subtitle, on average."""
TITLE_HEIGHT, LINE_HEIGHT = 36, 17
"""Pixels of a title with what is above it, and of a line of the subtitle."""
SUBTITLE_SIZE = 12
"""Pixels of the subtitle's font on a screen."""
BARE_TOP = 30
"""Pixels above the plot of a figure of the user's own that has lost its title."""


def in_lines(parts: Sequence[str], letters: int, *, filled: bool = False) -> str:
    """The parts, which ` · ` divides further, escaped, in lines that break between parts where they can.

    Filled lines break anywhere between words.
    """
    pieces = " · ".join(part for part in parts if part).split(" · ")
    unbroken = [part.replace(" ", "\xa0") if len(part) <= letters - 4 and not filled else part for part in pieces]
    lines = textwrap.wrap(" · ".join(unbroken), letters, break_on_hyphens=False)
    return "<br>".join(escaped(line.replace("\xa0", " ").strip(" ·")) for line in lines)


def subtitle_of(parts: Sequence[str], width: float, size: float = SUBTITLE_SIZE) -> str:
    """As many of the parts as fit few lines of a figure; others that are shorter may follow one that does not fit.

    Args:
        parts: the most important first.
        width: pixels of the figure.
        size: pixels of the subtitle's font.
    """
    letters = max(int((width - 24) / (LETTER * size / SUBTITLE_SIZE)), 20)
    shown: list[str] = []
    for part in parts:
        if in_lines([*shown, part], letters, filled=True).count("<br>") < MOST_LINES:
            shown.append(part)
    whole = in_lines(shown, letters)
    return whole if whole.count("<br>") < MOST_LINES else in_lines(shown, letters, filled=True)


def caption_height(subtitle: str) -> int:
    """Pixels that a title and this subtitle take."""
    return TITLE_HEIGHT + (LINE_HEIGHT * (subtitle.count("<br>") + 1) if subtitle else 0)


def figure_caption(figure: go.Figure) -> str:
    """The caption of a figure as plain text: its title, and on a second line all that the numbers rest on.

    It holds what the subtitle in the picture has no room for, and no markup. Any Plotly figure has one, which is empty
    where it has no title.
    """
    return "\n".join(filter(None, [title_text(figure), " · ".join(told_of(figure))]))


def title_text(figure: go.Figure) -> str:
    """The title without markup."""
    return _plain(figure.layout.title.text or "")


def told_of(figure: go.Figure) -> list[str]:
    """What the numbers rest on, part by part, as text; the subtitle alone where that is not ours any more."""
    subtitle = figure.layout.title.subtitle.text or ""
    if has_own_subtitle(figure):
        return [_plain(subtitle)] if subtitle else []
    return [_plain(part) for part in meta_of(figure)["told"]]


def has_own_subtitle(figure: go.Figure) -> bool:
    """Whether the subtitle is not the one that the figure was made with."""
    meta = meta_of(figure)
    return "told" not in meta or (figure.layout.title.subtitle.text or "") != meta["subtitle"]


def without_caption(figure: go.Figure) -> go.Figure:
    """A copy without title and subtitle, and without the room that they had."""
    bare = type(figure)(figure)
    had_title = bool(bare.layout.title.text)
    taken = meta_of(figure).get("caption")
    bare.layout.title = None
    if taken is not None:
        bare.update_layout(height=bare.layout.height - taken, margin_t=bare.layout.margin.t - taken)
        bare.layout.meta = {**meta_of(figure), "caption": 0}
    elif had_title:
        bare.layout.margin.t = min(bare.layout.margin.t or BARE_TOP, BARE_TOP)
    return bare


def meta_of(figure: go.Figure) -> dict[str, Any]:
    """What `figures.frame.finish` put into the figure; nothing in a figure of the user's own."""
    return figure.layout.meta if isinstance(figure.layout.meta, dict) else {}


def _plain(text: str) -> str:
    """Plotly's text without tags and entities, on one line."""
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<br\s*/?>", " ", text))).strip()
