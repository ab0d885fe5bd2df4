"""Figures have the size that was asked for, and can be read at it."""

from __future__ import annotations

import re
import struct

import numpy as np
import plotly.graph_objects as go
import pytest

from actpatch.figures.captions import without_caption
from actpatch.figures.paper import Length, length, sized
from test_suite.figures.test_browser import every_kind
from test_suite.helpers.pages import OVERLAPS, open_report
from test_suite.helpers.results import clear, made_up_heads, made_up_positions
from visualize import create_head_heatmap, create_position_heatmap, figure_caption, save_figure

MM = 96 / 25.4
NEED_MORE = {"comparison", "positions_compared", "attention"}
"""Three panels side by side."""


def fonts(part, path=()) -> list[float]:
    """Every size of a font that a figure sets."""
    if not isinstance(part, dict):
        return [size for each in part for size in fonts(each, path)] if isinstance(part, (list, tuple)) else []
    own = [part["size"]] if path and path[-1].endswith("font") and "size" in part else []
    return own + [size for key, value in part.items() for size in fonts(value, (*path, key))]


@pytest.mark.parametrize(
    ("given", "pixels", "is_paper"),
    [
        ("85mm", 85 * MM, True),
        (" 8.5 cm ", 85 * MM, True),
        ("2in", 192, True),
        ("300px", 300, False),
        (300, 300, False),
        (np.float32(12.5), 12.5, False),
    ],
)
def test_lengths_are_read_in_every_unit(given, pixels, is_paper):
    found = length("width", given)
    assert found.pixels == pytest.approx(pixels) and found.is_paper == is_paper


@pytest.mark.parametrize(
    "given", ["85pt", "85 mmm", "wide", "", "-3mm", "0cm", 0, -5, float("nan"), True, [3], "9e9mm"]
)
@pytest.mark.parametrize("side", ["width", "height"])
def test_what_is_no_length_is_refused_before_anything_is_written(tmp_path, given, side):
    with pytest.raises(ValueError, match=rf"^{side} is .*, expected a length with a unit of mm, cm, in or px"):
        save_figure(create_head_heatmap(made_up_heads()), tmp_path / "f.html", caption=False, **{side: given})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.quick(5)
@pytest.mark.parametrize("captioned", [True, False])
@pytest.mark.parametrize("kind", ["heads", "positions", "bars", "components", "distribution", "scatter", "quadrant"])
def test_in_a_column_of_a_journal_text_has_the_size_of_print(kind, captioned):
    figure = every_kind(12, 12, 20)[kind]
    figure = figure if captioned else without_caption(figure)
    before = figure.to_json()
    small = sized(figure, width=length("width", "85mm"))
    assert figure.to_json() == before
    assert small.layout.width == pytest.approx(85 * MM)
    assert small.layout.font.size == pytest.approx(7.5 * 96 / 72)
    assert min(fonts(small.to_plotly_json())) >= 7 * 96 / 72 - 1e-9
    assert max(fonts(small.to_plotly_json())) <= 10 * 96 / 72 + 1e-9
    assert bool(small.layout.title.text) == captioned
    assert figure_caption(small) == figure_caption(figure)


def test_the_plot_keeps_its_ratio():
    figure = create_head_heatmap(clear(made_up_heads, n_layers=12, n_heads=12))
    ratios = []
    for each, scale in (
        (without_caption(figure), 1),
        (sized(without_caption(figure), width=Length(800, True)), 10 / 12),
    ):
        ratios.append((each.layout.height - 90 * scale) / (each.layout.width - 150 * scale))
    assert ratios[0] == pytest.approx(ratios[1])


def test_height_gives_the_width_and_both_can_be_given():
    figure = create_head_heatmap(clear(made_up_heads, n_layers=12, n_heads=12))
    by_width = sized(figure, width=length("width", "120mm"))
    by_height = sized(figure, height=Length(by_width.layout.height, True))
    assert by_height.layout.width == pytest.approx(120 * MM, rel=1e-6)
    both = sized(figure, width=length("width", 700), height=length("height", 650))
    assert (both.layout.width, both.layout.height) == (700, 650)
    assert both.layout.font == figure.layout.font  # pixels are those of a screen


@pytest.mark.parametrize("kind", every_kind(4, 4, 12))
def test_a_width_that_is_too_small_is_refused_with_one_that_is_not(kind, tmp_path):
    figure = every_kind(4, 4, 12)[kind]
    with pytest.raises(ValueError, match=r"^width is 30 mm, .* give at least \d+ mm$") as refusal:
        save_figure(figure, tmp_path / "f.html", width="30mm", caption=False)
    assert list(tmp_path.iterdir()) == []
    least = re.search(r"(\d+ mm)$", str(refusal.value))[1]
    assert int(least.removesuffix(" mm")) <= 180
    assert sized(figure, width=length("width", least)).layout.width >= 50 * MM
    with pytest.raises(ValueError, match=r"^height is 20 px, .* give at least \d+ px$") as refusal:
        sized(figure, width=length("width", 1200), height=length("height", 20))
    least = re.search(r"(\d+ px)$", str(refusal.value))[1]
    sized(figure, width=length("width", 1200), height=length("height", least))


def test_where_labels_have_no_room_those_of_changed_tokens_stay():
    tokens = tuple(f" t{i}" for i in range(60))
    others = tuple(" other" if i == 31 else token for i, token in enumerate(tokens))
    positions = made_up_positions(tokens=tokens, clean_tokens=(tokens,) * 5, corrupted_tokens=(others,) * 5)
    small = sized(create_position_heatmap(positions), width=length("width", "85mm"))
    labels = small.layout.xaxis.ticktext
    assert 5 < len(labels) < 20 and "<b>31: t31→other</b>" in labels
    assert min(np.diff(small.layout.xaxis.tickvals)) * 200 / 60 > 9
    assert [trace.name for trace in small.data] == [None]


@pytest.mark.slow
def test_numbers_without_room_are_left_out_and_stars_do_not_hide_their_cells():
    wide = create_head_heatmap(clear(made_up_heads, n_heads=12))
    small = sized(wide, width=length("width", "85mm"))
    assert [trace.name for trace in wide.data] == [None, "significant", "effects"]
    assert [trace.name for trace in small.data] == [None, "significant"]
    assert set(np.asarray(small.data[1].x) % 1) == {0.0}
    dense = sized(create_head_heatmap(clear(made_up_heads, n_layers=48, n_heads=100)), width=length("width", "85mm"))
    assert dense.data[1].marker.size <= 0.5 * 230 / 100


@pytest.mark.slow
@pytest.mark.parametrize("width", ["85mm", "180mm"])
@pytest.mark.parametrize("size", [(4, 4, 12), (12, 12, 20), (30, 9, 100)])
def test_on_paper_nothing_overlaps_or_is_cut_off_and_all_text_can_be_read(browser, tmp_path, size, width):
    drawn = {}
    for kind, figure in every_kind(*size).items():
        if width == "180mm" and kind == "attention" and size[2] > 12:
            continue  # labels of these tokens need more
        if width == "180mm" or kind not in NEED_MORE:
            drawn[kind] = sized(figure, width=length("width", width))
            drawn[f"{kind}_bare"] = sized(without_caption(figure), width=length("width", width))
    first, *others = drawn
    body = "".join(
        f'<div class="drawn">{each.to_html(full_html=False, include_plotlyjs=name == first, div_id=name)}</div>'
        for name, each in drawn.items()
    )
    (tmp_path / "paper.html").write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{body}", encoding="utf-8")
    page = open_report(browser, tmp_path / "paper.html", viewport={"width": 1200, "height": 900}).page
    found = page.evaluate(OVERLAPS)
    smallest = page.evaluate(
        """Math.min(...[...document.querySelectorAll(".main-svg text")].filter((text) => text.textContent.trim())
            .map((text) => parseFloat(getComputedStyle(text).fontSize)))"""
    )
    page.context.close()
    assert found == [] and len(others) > 10
    assert smallest >= 9.3


def test_the_caption_is_written_beside_a_picture_without_it(tmp_path):
    figure = create_head_heatmap(clear(made_up_heads, task="a < b"))
    written = save_figure(figure, tmp_path / "heads.html", caption=False, width="85mm")
    assert written == tmp_path / "heads.html"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads.html", "heads.txt"]
    assert (tmp_path / "heads.txt").read_text(encoding="utf-8") == figure_caption(figure) + "\n"
    save_figure(figure, tmp_path / "with.html")
    save_figure(go.Figure(go.Bar(y=[1])), tmp_path / "own.html", caption=False)
    assert not (tmp_path / "with.txt").exists() and not (tmp_path / "own.txt").exists()


@pytest.mark.slow
def test_images_have_the_size_on_paper_and_pixels_for_print(tmp_path):
    pytest.importorskip("kaleido")
    figure = create_head_heatmap(clear(made_up_heads))
    high = sized(without_caption(figure), width=length("width", "85mm")).layout.height
    pdf = save_figure(figure, tmp_path / "f.pdf", width="85mm", caption=False).read_bytes()
    box = [float(end) for end in re.search(rb"/MediaBox ?\[([^\]]*)\]", pdf)[1].split()]
    assert box[2] == pytest.approx(85 / 25.4 * 72, abs=1) and box[3] == pytest.approx(high * 0.75, abs=1)
    png = save_figure(figure, tmp_path / "f.png", width="85mm", caption=False).read_bytes()
    assert struct.unpack(">II", png[16:24])[0] == pytest.approx(85 / 25.4 * 600, abs=7)
    png = save_figure(figure, tmp_path / "g.png", width=600).read_bytes()
    assert struct.unpack(">II", png[16:24])[0] == 1200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.pdf", "f.png", "f.txt", "g.png"]
