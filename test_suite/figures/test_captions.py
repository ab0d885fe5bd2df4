"""Captions are few lines in the picture, and whole beside it."""

from __future__ import annotations

import html
import re

import plotly.graph_objects as go
import pytest

from actpatch.figures.captions import without_caption
from test_suite.figures.test_browser import every_kind
from test_suite.helpers.results import clear, made_up_heads
from visualize import create_head_heatmap, figure_caption, on_dark

FIGURES = every_kind(4, 4, 12)


@pytest.mark.parametrize("kind", FIGURES)
def test_subtitles_have_three_lines_at_most_and_use_the_width(kind):
    figure = FIGURES[kind]
    lines = figure.layout.title.subtitle.text.split("<br>")
    assert 1 <= len(lines) <= 3
    assert max(map(len, lines)) * 5 < figure.layout.width
    longest = max(len(html.unescape(line)) for line in lines)
    assert len(lines) < 3 or longest * 6.1 > 0.6 * figure.layout.width


@pytest.mark.parametrize("kind", FIGURES)
def test_a_caption_has_all_that_the_picture_has_and_no_markup(kind):
    figure = FIGURES[kind]
    caption = figure_caption(figure)
    assert caption.count("\n") == 1 and not re.search(r"<\w|&\w+;", caption)
    assert caption.startswith(html.unescape(figure.layout.title.text))
    words = html.unescape(figure.layout.title.subtitle.text.replace("<br>", " ")).replace("\xa0", " ").split()
    told = caption.replace("\xa0", " ").split()
    assert [word for word in words if word != "·" and word not in told] == []
    assert figure_caption(on_dark(figure)) == caption


def test_what_fits_no_line_stands_in_the_caption():
    figure = create_head_heatmap(clear(made_up_heads, task="a task with quite a long name " * 12, model="m < n"))
    assert "a task with quite" not in figure.layout.title.subtitle.text
    assert "a task with quite a long name" in figure_caption(figure)
    assert "significant: p" in figure.layout.title.subtitle.text
    assert "m < n" in figure_caption(figure)


def test_a_caption_follows_changes_of_the_title_and_own_figures_have_one_too():
    figure = create_head_heatmap(clear(made_up_heads))
    figure.update_layout(title_text="Mine, <b>bold</b>")
    assert figure_caption(figure).startswith("Mine, bold\nmade-up · ")
    figure.update_layout(title_subtitle_text="my own<br>&lt;words&gt;")
    assert figure_caption(figure) == "Mine, bold\nmy own <words>"
    assert figure_caption(go.Figure().update_layout(title="A &amp; <i>B</i>")) == "A & B"
    assert figure_caption(go.Figure()) == ""


@pytest.mark.parametrize("kind", FIGURES)
def test_without_its_caption_the_plot_stays_as_large_and_no_room_is_left_above(kind):
    figure = FIGURES[kind]
    before = figure.to_json()
    bare = without_caption(figure)
    assert bare.layout.title.text is None and figure.to_json() == before
    assert bare.layout.height - bare.layout.margin.t == figure.layout.height - figure.layout.margin.t
    headings = 0 if kind not in ("comparison", "positions_compared", "attention") else 90
    assert bare.layout.margin.t <= 12 + headings
    assert without_caption(bare) == bare


def test_an_own_figure_loses_the_room_of_its_title_alone():
    figure = go.Figure(go.Bar(y=[1])).update_layout(title="Mine", margin_t=90)
    assert without_caption(figure).layout.margin.t == 30
    assert without_caption(go.Figure().update_layout(margin_t=90)).layout.margin.t == 90
