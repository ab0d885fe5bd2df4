"""Figures of circuits as a person sees them: light and dark, on phone and screen.

Needs what `browser` needs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import plotly.graph_objects as go
import pytest

from actpatch import Circuit, find_circuit
from actpatch.figures.page import figure_html, html_page
from test_suite.figures.test_circuits import AT_POSITIONS, FIGURES
from test_suite.figures.test_edges import GPT2
from test_suite.figures.test_edges_browser import GRAPHS, check_contrast, figures_that_scroll
from test_suite.helpers.circuits import judged
from test_suite.helpers.pages import WIDTHS
from test_suite.helpers.results import clear, made_up_edges
from visualize import create_circuit_graph, create_faithfulness_curve


@cache
def every_kind() -> dict[str, go.Figure]:
    grouped = clear(made_up_edges, every=37, graph=GRAPHS["grouped"])
    figures = {name.replace(" ", "_"): draw() for name, draw in FIGURES.items()}
    return {
        **figures,
        "graph_of_many": create_circuit_graph(find_circuit(grouped, n_edges=300, method="greedy"), grouped),
        "graph_at_positions_again": create_circuit_graph(Circuit.of(GPT2, AT_POSITIONS[-3:]), prune=False),
        "curve_linear": create_faithfulness_curve(judged().curve, scale="linear", sizes="real"),
    }


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    """A page with every kind of figure of circuits."""
    path = tmp_path_factory.mktemp("gallery") / "circuits.html"
    body = "<main>" + "".join(figure_html(name, figure) for name, figure in every_kind().items()) + "</main>"
    path.write_text(html_page("Circuits", body), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_or_is_cut_off(browser, gallery, width):
    allowed = {390: {"card", *(name for name in every_kind() if name.startswith("graph"))}}
    assert {*figures_that_scroll(browser, gallery, width)} <= allowed.get(width, set())


@pytest.mark.slow
def test_text_has_contrast(browser, gallery):
    check_contrast(browser, gallery, len(every_kind()))
