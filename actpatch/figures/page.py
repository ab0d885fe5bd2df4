"""Pages that show figures, without a network and in the reader's light or dark setting.

A figure lies in the page as JSON beside its place, and the page's script draws it, in the colours for the setting. This
module knows figures as Plotly has them; it knows no results and nothing of how a figure came to be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actpatch.core.heavy import go
from actpatch.figures.captions import meta_of, title_text, told_of, without_caption
from actpatch.figures.colours import DARK_PAPER, changes_on_dark
from actpatch.figures.rendering import FIGURES
from actpatch.figures.style import CONFIG, FIGURE_PADDING, PAPER_WIDTH

if TYPE_CHECKING:
    from markupsafe import Markup

WIDEST = 1150
"""Pixels of a figure that does not say how wide it is."""
ROOM_FOR_BUTTONS = 18
"""Pixels above a plot, besides its margin, where its title is text of the page."""
PAGE_PADDING = 32
"""Pixels beside what a page shows, on both sides together."""


def html_page(title: str, body: str, plotly: str | None = None, *, widest: int = WIDEST) -> Markup:
    """A page of a title, in the window's frame, and a body that is HTML already; the others are `page_values`'."""
    from markupsafe import Markup

    return FIGURES.render("page.html", title=title, body=Markup(body), page=page_values(plotly, widest=widest))


def page_values(plotly: str | None = None, *, widest: int = WIDEST) -> dict[str, Any]:
    """What the template of all pages needs besides what a page shows.

    Args:
        plotly: the file beside the page that holds plotly.js; None puts it into the page.
        widest: pixels of its widest figure, which the page has room for if the window has.
    """
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    return {
        "config": CONFIG,
        "dark_paper": DARK_PAPER,
        "paper_width": PAPER_WIDTH,
        "plotly_file": plotly,
        "plotly_script": Markup(get_plotlyjs()) if plotly is None else "",
        "width": widest + 2 * FIGURE_PADDING + PAGE_PADDING,
    }


def figure_html(name: str, figure: go.Figure, *, level: int = 3, captioned: bool = True) -> Markup:
    """The figure as a part of a page, as wide as designed or as the page, whichever is less.

    One that needs more than the page has is scrolled, and numbers in cells are left out where they do not fit. Title
    and caption are text of the page, which breaks its lines itself; the picture that the figure's button saves has
    them in it.

    Args:
        name: its id in the page.
        figure: with what it needs in `layout.meta`, as `figures.frame.finish` puts it there.
        level: of its heading.
        captioned: whether title and caption are shown; where they are not, they are heard by those to whom the page is
            read. A figure that does not know what room they take keeps them in the picture.
    """
    title, told = plain_title(figure), told_of(figure)
    if not captioned:
        figure = without_caption(figure)
    needs = meta_of(figure)
    taken = needs.get("caption", 0)
    return FIGURES.render(
        "figure.html",
        name=name,
        level=level,
        title=title,
        told=told,
        is_shown=taken > 0,
        width=round(figure.layout.width or WIDEST) + 2 * FIGURE_PADDING,
        height=round(figure.layout.height or 450) - taken + (ROOM_FOR_BUTTONS if taken else 0),
        narrowest=needs.get("narrowest", 0),
        room_for_numbers=needs.get("room_for_numbers", 0),
        taken=taken - ROOM_FOR_BUTTONS if taken else 0,
        drawing=_drawing(figure),
    )


def figure_page(
    name: str, figure: go.Figure, plotly: str | None = None, *, report: str | None = None, captioned: bool = True
) -> Markup:
    """A page for one figure: its name, `page_values`' plotly, and the file of the report that it is a part of."""
    return FIGURES.render(
        "figure_page.html",
        title=plain_title(figure),
        figure=figure_html(name, figure, level=1, captioned=captioned),
        report_file=report,
        page=page_values(plotly, widest=round(figure.layout.width or WIDEST)),
    )


def figures_html(figures: Mapping[str, go.Figure]) -> Markup:
    """Figures by their ids, side by side where the page has room for it."""
    return FIGURES.render("figures.html", figures=[figure_html(name, figure) for name, figure in figures.items()])


def plain_title(figure: go.Figure) -> str:
    """The figure's title as text."""
    return title_text(figure) or "Activation patching"


def _drawing(figure: go.Figure) -> Markup:
    """What the script draws, without any letter that would end it."""
    from markupsafe import Markup

    drawing = f'{{"figure": {figure.to_json()}, "colours": {json.dumps(changes_on_dark(figure))}}}'
    return Markup(drawing.replace("<", "\\u003c"))
