"""Figures over pairs and of both directions; files, errors and markup of every figure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from activation_patching import BothDirections
from actpatch.core.sites import Site, block_hook
from actpatch.figures import files as figure_files
from actpatch.figures.frame import label_points
from actpatch.results.shapes import NeuronResults
from test_suite.helpers.figures import subtitle
from test_suite.helpers.results import (
    N_PAIRS,
    both_ways,
    clear,
    made_up_heads,
    made_up_layers,
    made_up_positions,
    made_up_sweep,
    patterns,
    same_metrics,
)
from visualize import (
    create_attention_patterns,
    create_comparison,
    create_direction_quadrant,
    create_effect_distribution,
    create_head_heatmap,
    create_metric_scatter,
    save_figure,
)

EVIL = "<script>alert(1)</script> $x$"


# --- over pairs ---


def test_distribution_shows_every_usable_pair_and_the_effect_over_all():
    corrupted = np.where(np.arange(N_PAIRS) == 2, 2.99, -3.0)
    results = clear(made_up_heads, clean=np.full(N_PAIRS, 3.0), corrupted=corrupted)
    figure = create_effect_distribution(results, top_k=4)
    box, points, over_all = figure.data
    top = results.top(4)
    assert list(over_all.x) == [head.effect for head in top]
    pairs = [effect for head in top for effect in head.pair_effects if not math.isnan(effect)]
    np.testing.assert_array_equal(box.x, pairs)
    np.testing.assert_array_equal(points.x, pairs)
    np.testing.assert_array_equal(np.round(points.y), box.y)
    assert len(pairs) == 4 * (N_PAIRS - 1)
    assert figure.layout.yaxis.ticktext == tuple(head.label for head in top)
    assert "11 usable of 12 pairs" in subtitle(figure)


def test_distribution_and_metric_scatter_draw_neurons_and_positions():
    neurons = NeuronResults(made_up_sweep([Site(block_hook(1, "mlp_post"), neuron=n) for n in range(6)], 4, 3))
    for draw in (create_effect_distribution, create_metric_scatter):
        assert set(draw(neurons, top_k=9).layout.yaxis.ticktext) == {f"L1N{n}" for n in range(6)}
        assert "L0 resid_pre @2" in draw(made_up_positions(), top_k=50).layout.yaxis.ticktext


# --- both directions ---


def test_quadrant_puts_each_component_where_both_directions_say():
    both = both_ways()
    figure = create_direction_quadrant(both, threshold=0.1)
    table = both.reading(0.1)
    shown = {trace.name.rpartition(" (")[0]: trace for trace in figure.data if trace.name}
    called = {
        "both": "sufficient and necessary",
        "sufficient": "sufficient alone",
        "necessary": "necessary alone",
        "neither": "neither",
    }
    for reading, name in called.items():
        expected = table[table["reading"] == reading]
        np.testing.assert_array_equal(shown[name].x, expected["denoising"])
        np.testing.assert_array_equal(shown[name].y, expected["noising"])
    labelled = {(x, y) for x, y in zip(figure.data[-1].x, figure.data[-1].y)}
    assert labelled and all(max(abs(x), abs(y)) >= 0.1 for x, y in labelled)
    assert {line.x0 for line in figure.layout.shapes} >= {0.1}
    assert "threshold 0.1" in subtitle(figure) and "denoising:" not in subtitle(figure)
    hovers = [text for trace in shown.values() for text in trace.hovertext]
    assert all("denoising " in text and "noising " in text for text in hovers)


def test_labels_lie_on_no_other_label_and_on_no_point():
    random = np.random.default_rng(0)
    points = [tuple(point) for point in random.random((60, 2))]
    labels = [f"L{i}H{i}" for i in range(25)]
    places = label_points(points, labels, (0.0, 1.0), (0.0, 1.0), size=(300, 300))
    assert any(places) and not all(places)
    boxes = []
    for (x, y), label, place in zip(points, labels, places):
        wide, px, py = 7 * len(label), x * 300, y * 300
        if place:
            left = {"middle right": px + 5, "middle left": px - 5 - wide}.get(place, px - wide / 2)
            low = {"top center": py + 4, "bottom center": py - 20}.get(place, py - 8)
            boxes.append((left, low, left + wide, low + 16))
    for i, (left, low, right, high) in enumerate(boxes):
        assert left >= 0 and low >= 0 and right <= 300 and high <= 300
        assert not any(left < x * 300 < right and low < y * 300 < high for x, y in points)
        assert not any(left < r and right > x and low < h and high > y for x, y, r, h in boxes[:i])


# --- errors, markup, files ---


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: create_direction_quadrant(made_up_heads()), "given HeadResults, expected BothDirections.*'both'"),
        (
            lambda: create_direction_quadrant(BothDirections(made_up_heads(), made_up_heads())),
            "noising holds results of denoising: exchange",
        ),
        (
            lambda: create_direction_quadrant(
                BothDirections(made_up_heads(), made_up_heads(2, direction="noising", model="other"))
            ),
            "12 patches on made-up, noising 6 patches on other, expected the same",
        ),
        (lambda: create_direction_quadrant(both_ways(), threshold=0), "threshold is 0"),
        (lambda: create_direction_quadrant(both_ways(), top_k=0), "top_k is 0"),
        (lambda: create_effect_distribution(made_up_heads(**same_metrics())), "no pair was usable"),
        (lambda: create_effect_distribution([]), "given list, expected SweepResults"),
        (lambda: create_comparison(made_up_heads(), made_up_layers()), "first is HeadResults, the second LayerResults"),
        (
            lambda: create_comparison(made_up_heads(), made_up_heads(3, 5)),
            "first is 4 layers with 3 heads per layer, the second 3 layers with 5 heads per layer: draw each by itself",
        ),
        (
            lambda: create_comparison(made_up_layers(), made_up_layers(("attn_out",))),
            "first is columns attn_out, mlp_out, the second columns attn_out",
        ),
        (lambda: create_comparison(made_up_heads(), made_up_heads(n_pairs=0)), "empty"),
        (lambda: create_comparison(made_up_heads(), made_up_heads(), component="z"), "only position results take it"),
        (lambda: create_comparison(made_up_heads(), made_up_heads(), names=("A", "A")), "two different names"),
        (lambda: create_attention_patterns(made_up_heads()), "HeadResults, expected AttentionPatterns"),
        (lambda: patterns().__class__(**{**vars(patterns()), "heads": ((0, 0),)}), r"expected .* = \(1, 3, 3\)"),
    ],
)
def test_errors_of_the_other_figures_say_what_is_missing(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def texts_of(value) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts_of(part)]
    if isinstance(value, (list, tuple, np.ndarray)):
        return [text for part in value for text in texts_of(part)]
    return [value] if isinstance(value, str) else []


def test_markup_in_names_and_tokens_stays_text_in_every_figure():
    told = {"model": EVIL, "task": EVIL, "name": EVIL, "unit": EVIL, "clean_tokens": ((EVIL,) * 5,) * N_PAIRS}
    heads = clear(made_up_heads, **told)
    figures = [
        create_effect_distribution(heads),
        create_direction_quadrant(both_ways(**told)),
        create_comparison(clear(made_up_positions, **told), clear(made_up_positions, **told), names=(EVIL, "B")),
        create_attention_patterns(patterns((EVIL, " Mary", EVIL))),
    ]
    for figure in figures:
        shown = [*texts_of(figure.to_dict()["data"]), *texts_of(figure.to_dict()["layout"])]
        assert not any("<script" in text or "$" in text for text in shown)
    assert "<script" not in heads._repr_html_() and "$" not in heads._repr_html_()


def test_saved_html_is_one_page_that_fits_a_phone(tmp_path):
    written = save_figure(
        create_head_heatmap(made_up_heads(task="a < b"), title="Heads &amp; more"), tmp_path / "f.html"
    )
    page = written.read_text(encoding="utf-8")
    assert len(page) > 1_000_000 and "<script src" not in page
    assert '<meta name="viewport"' in page and "<title>Heads &amp; more</title>" in page
    assert "a &lt; b" in page or "a \\u0026lt; b" in page


def test_files_that_cannot_be_written_say_what_to_do(tmp_path, monkeypatch):
    figure = create_head_heatmap(made_up_heads())
    with pytest.raises(
        ValueError, match=r"suffix '.gif', expected .html or, with the extra `images`, .png, .svg, .pdf"
    ):
        save_figure(figure, tmp_path / "f.gif")
    with pytest.raises(ValueError, match="no suffix"):
        save_figure(figure, tmp_path / "f")
    with pytest.raises(OSError, match="give a file name in a folder that exists"):
        save_figure(figure, tmp_path / "missing" / "f.html")
    monkeypatch.setattr(figure_files, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"writing PNG needs the package kaleido.*kaleido>=1.*Chrome"):
        save_figure(figure, tmp_path / "f.png")
    assert list(tmp_path.iterdir()) == []
