"""What figures say in words."""

from __future__ import annotations

import html


def subtitle(figure) -> str:
    return html.unescape(figure.layout.title.subtitle.text.replace("<br>", " "))
