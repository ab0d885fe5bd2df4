"""What figures say in words."""

from __future__ import annotations

import html
import re


def as_read(text: str) -> str:
    """What was written with hyphens for minus signs, as people are shown it."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def subtitle(figure) -> str:
    return html.unescape(figure.layout.title.subtitle.text.replace("<br>", " "))
