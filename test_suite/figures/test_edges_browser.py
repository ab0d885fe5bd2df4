"""Figures of edges as a person sees them: light and dark, on phone and screen, of small models and large ones.

Needs what `browser` needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from actpatch.core.graph import Graph
from actpatch.figures.colours import DARK_PAPER
from actpatch.figures.page import figure_html, html_page
from test_suite.figures.test_browser import FIGURE_CONTRASTS
from test_suite.figures.test_edges import PLACES
from test_suite.helpers.pages import OVERLAPS, WIDTHS, open_report
from test_suite.helpers.results import clear, made_up_edges
from visualize import create_edge_graph, create_edge_heatmap, create_top_edges_bar

GRAPHS = {
    "bundled": Graph("bundled", (4,) * 4, (4,) * 4, (True,) * 4),
    "grouped": Graph("grouped", (9,) * 12, (3,) * 12, (True,) * 12),
}
"""The bundled model's, and one as deep as GPT-2 small whose heads share keys and values."""
PAPERS = {"light": "white", "dark": DARK_PAPER}


@cache
def every_kind(name: str) -> dict[str, go.Figure]:
    graph = GRAPHS[name]
    results = clear(made_up_edges, every=37, graph=graph)
    last = graph.n_layers - 1
    placed = clear(
        made_up_edges, every=5, graph=graph, places=PLACES, senders="heads", receivers=[f"L{last}", "logits"]
    )
    return {
        "map": create_edge_heatmap(results),
        "map_of_some": create_edge_heatmap(results, "L1", f"L{last}", by="nodes"),
        "map_of_one": create_edge_heatmap(results, "L0H1", "logits"),
        "map_at": create_edge_heatmap(placed, position="END"),
        "bars": create_top_edges_bar(results),
        "bars_at": create_top_edges_bar(placed, top_k=8),
        "graph": create_edge_graph(results),
        "graph_of_many": create_edge_graph(results, top_k=120),
        "graph_of_few": create_edge_graph(results, top_k=2),
        "graph_at": create_edge_graph(placed.at("S2")),
    }


@pytest.fixture(scope="module", params=GRAPHS)
def gallery(request, tmp_path_factory) -> Path:
    """A page with every kind of figure of edges."""
    path = tmp_path_factory.mktemp("gallery") / f"{request.param}.html"
    figures = every_kind(request.param)
    body = "<main>" + "".join(figure_html(name, figure) for name, figure in figures.items()) + "</main>"
    path.write_text(html_page("Edges", body), encoding="utf-8")
    return path


LABELS_OUTSIDE = """
() => {
  const found = [];
  for (const figure of document.querySelectorAll(".js-plotly-plot")) {
    const { xaxis, yaxis } = figure._fullLayout;
    const number = figure._fullData.findIndex((trace) => trace.name === "components");
    if (number < 0) continue;
    const boxes = figure._fullData[number - 1], half = [];
    for (let i = 0; i < boxes.x.length; i += 6) half.push((xaxis.d2p(boxes.x[i + 1]) - xaxis.d2p(boxes.x[i])) / 2);
    const labels = figure._fullData[number].text;
    const drawn = [...figure.querySelectorAll(".textpoint text")].filter((text) => labels.includes(text.textContent));
    drawn.forEach((text, i) => {
      const wide = text.getBoundingClientRect().width;
      if (wide > 2 * half[i] - 1) found.push(`${figure.id}: ${text.textContent} takes ${wide} of ${2 * half[i]}`);
    });
    if (drawn.length !== labels.length) found.push(`${figure.id}: ${drawn.length} of ${labels.length} labels`);
  }
  return found;
}
"""
"""Labels of the graph's nodes that are wider than the boxes that they stand in."""


def in_each_scheme(page: Any) -> Iterator[str]:
    """The page in light and in dark, once its figures are drawn anew."""
    for scheme, paper in PAPERS.items():
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(
            """(paper) => [...document.querySelectorAll(".js-plotly-plot")]
                .every((figure) => figure._fullLayout.paper_bgcolor === paper)""",
            arg=paper,
        )
        yield scheme


def figures_that_scroll(browser, gallery, width: int) -> dict[str, str]:
    """Those of a page that are wider than it, and what each says above; that nothing in it overlaps or is cut off."""
    opened = open_report(browser, gallery, viewport={"width": width, "height": 900})
    page = opened.page
    for scheme in in_each_scheme(page):
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate(OVERLAPS) == [], scheme
        assert page.evaluate(LABELS_OUTSIDE) == [], scheme
    scrolling = page.evaluate(
        """[...document.querySelectorAll("figure")].filter((f) => f.scrollWidth > f.clientWidth + 1)
            .map((f) => [f.querySelector(".drawn").id, getComputedStyle(f, "::before").content])"""
    )
    page.context.close()
    assert opened.complaints == []
    return dict(scrolling)


def check_contrast(browser, gallery, n_figures: int) -> None:
    """That all text of so many figures can be read, in light and in dark."""
    page = open_report(browser, gallery, viewport={"width": 1600, "height": 900}).page
    for scheme in in_each_scheme(page):
        contrasts = page.evaluate(FIGURE_CONTRASTS)
        assert len({figure for _, figure, *_ in contrasts}) == n_figures
        assert min(contrasts)[0] >= 4.5, (scheme, min(contrasts))
    page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_or_is_cut_off(browser, gallery, width):
    scrolling = figures_that_scroll(browser, gallery, width)
    assert all("scroll sideways" in said for said in scrolling.values())
    graphs = {name for name in every_kind("grouped") if name.startswith("graph")}
    allowed = {390: {"map", "map_of_some", "map_at", *graphs}}
    assert {*scrolling} <= allowed.get(width, set())


@pytest.mark.slow
def test_text_has_contrast(browser, gallery):
    check_contrast(browser, gallery, 10)


AT = """
([name, number, point]) => {
  const figure = document.getElementById(name), layout = figure._fullLayout, trace = figure._fullData[number];
  const [x, y] = trace.type === "heatmap" ? point.slice().reverse() : [trace.x[point], trace.y[point]];
  const at = [layout.xaxis._offset + layout.xaxis.d2p(x), layout.yaxis._offset + layout.yaxis.d2p(y)];
  const around = figure.closest("figure");
  around.scrollLeft = at[0] - around.clientWidth / 2;
  scrollBy(0, figure.getBoundingClientRect().top + at[1] - innerHeight / 2);
  const box = figure.getBoundingClientRect();
  return [box.left + at[0], box.top + at[1]];
}
"""
"""Where in the window a point is, scrolled to."""
TOLD = """
(name) => {
  const drawn = [...document.querySelectorAll(`#${name} .hovertext`)];
  const whole = document.querySelector(`#${name} .main-svg`).getBoundingClientRect();
  const fits = (box) => box.left >= whole.left - 1 && box.right <= whole.right + 1
    && box.top >= whole.top - 1 && box.bottom <= whole.bottom + 1;
  return [drawn.map((box) => box.textContent).join(" "), drawn.every((box) => fits(box.getBoundingClientRect()))];
}
"""
"""What is told of it, and whether that lies in the figure, which is scrolled where it is wider than the page."""


def texts_of(figure: go.Figure, name: str) -> tuple[int, object, str]:
    """A trace with hover texts, one of its points, and the text: of a map its largest cell."""
    for number, trace in enumerate(figure.data):
        if name.startswith("map"):
            rows = [[text or "" for text in row] for row in trace.hovertext]
            cells = [(row, column) for row, texts in enumerate(rows) for column, text in enumerate(texts) if text]
            row, column = max(cells, key=lambda cell: abs(trace.z[cell[0]][cell[1]]))
            return number, [row, column], rows[row][column]
        if name.startswith("bars") and trace.hovertext is not None:
            return number, 0, trace.hovertext if isinstance(trace.hovertext, str) else trace.hovertext[0]
        if name.startswith("graph") and trace.name == "components":
            return number, 0, trace.hovertext[0]
    raise AssertionError(f"{name} has no hover texts")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1600])
def test_what_the_mouse_is_on_is_told(browser, gallery, width):
    page = open_report(browser, gallery, viewport={"width": width, "height": 900}).page
    for _ in in_each_scheme(page):
        for name in ("map", "map_of_some", "bars", "graph", "graph_of_few"):
            number, point, text = texts_of(every_kind(gallery.stem)[name], name)
            x, y = page.evaluate(AT, [name, number, point])
            page.mouse.move(x - 3, y - 3)
            page.mouse.move(x, y)
            page.wait_for_selector(f"#{name} .hoverlayer .hovertext text")
            told, is_whole = page.evaluate(TOLD, name)
            first = re.search(r"<b>(.+?)</b>", text)
            assert first and first[1] in told, name
            assert is_whole, name
    page.context.close()
