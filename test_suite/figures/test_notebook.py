"""Figures that are returned take the settings without an upload wherever they are shown."""

from __future__ import annotations

import copy

import plotly.graph_objects as go
import plotly.io
import pytest

from actpatch.figures.style import NO_UPLOAD
from test_suite.figures.test_browser import every_kind
from test_suite.helpers.results import made_up_heads
from visualize import create_head_heatmap, on_dark

FIGURES = every_kind(4, 4, 12)


@pytest.mark.parametrize("kind", FIGURES)
def test_every_figure_brings_its_settings_into_a_notebook(kind):
    for figure in (FIGURES[kind], on_dark(FIGURES[kind]), copy.deepcopy(FIGURES[kind])):
        assert isinstance(figure, go.Figure)
        settings = mime_settings(figure)
        assert {name: settings[name] for name in NO_UPLOAD} == NO_UPLOAD


def mime_settings(figure: go.Figure) -> dict:
    before = plotly.io.renderers.default
    plotly.io.renderers.default = "plotly_mimetype"
    try:
        return figure._repr_mimebundle_()["application/vnd.plotly.v1+json"]["config"]
    finally:
        plotly.io.renderers.default = before


@pytest.mark.parametrize("renderer", ["colab", "plotly_mimetype"])
def test_html_in_a_notebook_has_the_settings(renderer):
    figure = create_head_heatmap(made_up_heads())
    before = plotly.io.renderers.default
    plotly.io.renderers.default = renderer
    try:
        shown = figure._repr_html_()
    finally:
        plotly.io.renderers.default = before
    assert '"showSendToCloud": false' in shown and "https://plot.ly" not in shown.partition("Plotly.newPlot")[2]


def test_show_passes_the_settings_and_keeps_the_caller_s(tmp_path):
    shown = []

    class Catching(plotly.io._base_renderers.ExternalRenderer):
        config = None

        def render(self, fig_dict):
            shown.append(self.config)

    plotly.io.renderers["catching"] = Catching()
    figure = create_head_heatmap(made_up_heads())
    figure.show("catching")
    figure.show(renderer="catching", config={"scrollZoom": True, "showSendToCloud": True})
    quiet = {"displaylogo": False, **NO_UPLOAD}
    assert shown == [quiet, {"scrollZoom": True, **quiet}]
    assert plotly.io.renderers["catching"].config is None
