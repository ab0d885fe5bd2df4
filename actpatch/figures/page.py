"""How does a page show figures?  HTML that needs no network and follows the reader's light or dark setting.

A figure lies in the page as JSON beside its place, and the page's script draws it, in the colours for the setting.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from actpatch.figures.colours import changes_on_dark
from actpatch.figures.style import FIGURE_PADDING, SCRIPT, STYLE

WIDEST = 1150
"""Pixels of a figure that does not say how wide it is."""


def html_page(title: str, body: str, plotly: str | None = None, *, widest: int = WIDEST) -> str:
    """A page; title and body are HTML already.

    Args:
        title: in the window's frame.
        body: with the figures in it.
        plotly: the file beside the page that holds plotly.js; None puts it into the page.
        widest: pixels of its widest figure, which the page has room for if the window has.
    """
    script = f"<script>{get_plotlyjs()}</script>" if plotly is None else f'<script src="{plotly}"></script>'
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body style="max-width: {widest + 2 * FIGURE_PADDING + 32}px">
{body}
{script}
<script>{SCRIPT}</script>
</body>
</html>
"""


def figure_html(name: str, figure: go.Figure, *, level: int = 3) -> str:
    """The figure as a part of a page, as wide as designed or as the page, whichever is less.

    One that needs more than the page has is scrolled, and numbers in cells are left out where they do not fit.

    Args:
        name: its id in the page.
        figure: with what it needs in `layout.meta`, as `figures.frame.finish` puts it there.
        level: of its heading, which only those hear whom the page is read to.
    """
    needs = figure.layout.meta or {}
    title, subtitle = html.escape(plain_title(figure)), figure.layout.title.subtitle.text or ""
    told = f"{title}. {html.escape(html.unescape(subtitle.replace('<br>', ' ')))}"
    width = (figure.layout.width or WIDEST) + 2 * FIGURE_PADDING
    height = figure.layout.height or 450
    return (
        f'<div class="figure"><h{level} class="unseen">{title}</h{level}>'
        f'<figure class="card" style="width: {width}px" tabindex="0" aria-label="{told}">'
        f'<div class="drawn" id="{name}" data-numbers="{needs.get("room_for_numbers", 0)}" '
        f'style="min-width: {needs.get("narrowest", 0)}px; height: {height}px"></div></figure>'
        f'<script type="application/json" data-draws="{name}">{_drawing(figure)}</script></div>'
    )


def figure_page(name: str, figure: go.Figure, plotly: str | None = None, *, above: str = "") -> str:
    """A page for one figure: its name, `html_page`'s plotly, and HTML to stand above it."""
    body = f"<main>{above}{figure_html(name, figure, level=1)}</main>"
    return html_page(html.escape(plain_title(figure)), body, plotly, widest=figure.layout.width or WIDEST)


def figures_html(figures: Mapping[str, go.Figure]) -> str:
    """Figures by their ids, side by side where the page has room for it."""
    return f'<div class="figures">{"".join(figure_html(name, figure) for name, figure in figures.items())}</div>'


def plain_title(figure: go.Figure) -> str:
    """The figure's title as text."""
    return html.unescape(figure.layout.title.text or "Activation patching")


def _drawing(figure: go.Figure) -> str:
    """What the script draws, without any letter that would end it."""
    fluid = go.Figure(figure).update_layout(width=None)
    drawing = f'{{"figure": {fluid.to_json()}, "colours": {json.dumps(changes_on_dark(figure))}}}'
    return drawing.replace("<", "\\u003c")
