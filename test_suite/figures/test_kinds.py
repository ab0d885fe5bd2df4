"""Figures say how sure they are, both directions and two experiments can be drawn, and so can attention patterns."""

from __future__ import annotations

import dataclasses
import html
import math
import re

import numpy as np
import pytest

from activation_patching import BothDirections, IOIDataset, PromptPair, PromptPairs, load_results
from actpatch.core.sites import Site, block_hook
from actpatch.figures import files as figure_files
from actpatch.figures.frame import label_points
from actpatch.results.attention import AttentionPatterns
from actpatch.results.differences import difference_statistics
from actpatch.results.shapes import HeadResults, LayerResults, NeuronResults, PositionResults, SweepResults
from head_patching import HeadPatcher
from test_suite.figures.test_figures import (
    made_up_heads,
    made_up_layers,
    made_up_positions,
    made_up_sweep,
    same_metrics,
)
from test_suite.helpers.models import model_parameters, small_model
from visualize import (
    create_attention_patterns,
    create_comparison,
    create_component_comparison,
    create_direction_quadrant,
    create_effect_distribution,
    create_head_heatmap,
    create_layer_heatmap,
    create_metric_scatter,
    create_position_heatmap,
    create_top_heads_bar,
    save_figure,
)

N_PAIRS = 12
EVIL = "<script>alert(1)</script> $x$"


def clear(make, every: int = 3, **changes):
    """Results of 12 pairs in which every third patch has an effect of about a third, and others none to speak of."""
    made = make(n_pairs=N_PAIRS, **changes)
    sweep = made.sweep
    random = np.random.default_rng(1)
    effects = random.normal(0, 0.01, sweep.patched.shape)
    effects[::every] += random.normal(0.3, 0.05, (len(effects[::every]), 1))
    return make(n_pairs=N_PAIRS, **changes, patched=sweep.base + effects * (sweep.source - sweep.base))


def both_ways(**changes) -> BothDirections[HeadResults]:
    return BothDirections(
        clear(made_up_heads, **changes), clear(made_up_heads, every=2, direction="noising", **changes)
    )


def patterns(tokens: tuple[str, ...] = ("<s>", " Mary", " and"), n_heads: int = 2) -> AttentionPatterns:
    random = np.random.default_rng(0)
    values = np.tril(random.random((2, n_heads, len(tokens), len(tokens))))
    values /= values.sum(axis=-1, keepdims=True)
    return AttentionPatterns(
        heads=tuple((1, head) for head in range(n_heads)),
        clean=values[0],
        corrupted=values[1],
        clean_tokens=tokens,
        corrupted_tokens=(tokens[0], " John", *tokens[2:]),
        model="made-up",
        task="IOI",
        pair_index=3,
    )


def subtitle(figure) -> str:
    return html.unescape(figure.layout.title.subtitle.text.replace("<br>", " "))


# --- how sure ---


@pytest.mark.parametrize(
    ("make", "draw", "table"),
    [
        (made_up_heads, create_head_heatmap, HeadResults.matrix),
        (made_up_layers, create_layer_heatmap, lambda results: results.matrix().to_numpy()),
        (made_up_positions, create_position_heatmap, PositionResults.matrix),
    ],
)
def test_cells_faded_on_maps_are_those_that_are_not_significant(make, draw, table):
    results = clear(make)
    sure = results.statistics()
    figure = draw(results)
    shown, veil, dots, numbers = figure.data
    is_faded = ~np.isnan(veil.z)
    np.testing.assert_array_equal(shown.z, table(results))
    found = {round(shown.z[cell], 12) for cell in zip(*np.nonzero(is_faded))}
    first = [p.sites[0].component == results.sweep.patches[0].sites[0].component for p in results.sweep.patches]
    drawn = np.array(first) if make is made_up_positions else np.ones(len(sure.effect), dtype=bool)
    assert 0 < is_faded.sum() < is_faded.size
    assert found == {round(e, 12) for e in sure.effect[drawn & ~sure.significant]}
    assert len(dots.x) == is_faded.sum()
    assert [float(text) for text in numbers.text] == [round(shown.z[y, x], 2) for x, y in zip(numbers.x, numbers.y)]
    assert len(numbers.x) == shown.z.size
    assert "faded, with a dot: not significant" in subtitle(figure)
    assert f"p > 0.05, Benjamini-Hochberg over {len(sure.effect)} " in subtitle(figure)


def test_hover_tells_interval_and_corrected_p():
    results = clear(made_up_heads)
    sure = results.statistics()
    text = create_head_heatmap(results).data[0].hovertext[0][0]
    assert f"95% interval {sure.low[0]:+.3f} to {sure.high[0]:+.3f}" in text
    assert f"p {sure.p[0]:.2g}, corrected {sure.p_corrected[0]:.2g}" in text
    assert "not significant" in create_head_heatmap(results).data[0].hovertext[0][1]


@pytest.mark.parametrize(
    ("n_pairs", "said"),
    [(1, "1 pair: too few to test, or for intervals"), (5, "5 pairs: too few to test")],
)
def test_too_few_pairs_fade_nothing_and_are_told(n_pairs, said):
    heads, layers = made_up_heads(n_pairs=n_pairs), made_up_layers(n_pairs=n_pairs)
    assert [trace.name for trace in create_head_heatmap(heads).data] == [None, "effects"]
    bars = create_top_heads_bar(heads)
    for figure in (create_head_heatmap(heads), bars, create_component_comparison(layers)):
        assert said in subtitle(figure)
    assert set(bars.data[0].marker.opacity) == {1.0}
    assert bars.data[0].error_x.visible == (n_pairs == 5)


def test_other_statistics_can_be_given_and_only_those_of_the_same_results():
    results = clear(made_up_heads)
    strict = results.statistics(alpha=1e-6)
    assert "too few to test" in subtitle(create_head_heatmap(results, statistics=strict))
    lenient = results.statistics(correction="by", alpha=0.2)
    assert "p > 0.2, Benjamini-Yekutieli over 12 heads" in subtitle(create_head_heatmap(results, statistics=lenient))
    with pytest.raises(ValueError, match=r"statistics of 8 sites are not those of these results \(12 sites"):
        create_head_heatmap(results, statistics=clear(made_up_layers).statistics())
    with pytest.raises(ValueError, match="a plain list of heads is a part"):
        create_head_heatmap(list(results), 4, 3, statistics=lenient)
    with pytest.raises(ValueError, match="a plain list of heads is a part"):
        create_top_heads_bar(list(results), statistics=lenient)


def test_error_bars_are_the_intervals_and_bars_fade_where_not_significant():
    heads, layers = clear(made_up_heads), clear(made_up_layers)
    sure = heads.statistics()
    figure = create_top_heads_bar(heads, top_k=8)
    bars = figure.data[0]
    order = [heads.labels.index(label) for label in figure.layout.yaxis.ticktext]
    np.testing.assert_allclose(bars.x + bars.error_x.array, sure.high[order])
    np.testing.assert_allclose(bars.x - bars.error_x.arrayminus, sure.low[order])
    assert [opacity < 1 for opacity in bars.marker.opacity] == (~sure.significant[order]).tolist()
    sure = layers.statistics()
    attention, mlp = create_component_comparison(layers).data
    np.testing.assert_allclose([*attention.y + attention.error_y.array, *mlp.y + mlp.error_y.array], sure.high)
    opacities = [*attention.marker.opacity, *mlp.marker.opacity]
    assert [opacity < 1 for opacity in opacities] == (~sure.significant).tolist()
    assert "bars: 95% intervals" in subtitle(create_component_comparison(layers))


def test_an_interval_without_an_end_has_no_bar_there_and_is_counted():
    results = clear(made_up_heads)
    sure = results.statistics()
    high = np.where(np.arange(len(sure.high)) == 0, np.inf, sure.high)
    figure = create_top_heads_bar(results, top_k=12, statistics=dataclasses.replace(sure, high=high))
    bars = figure.data[0]
    assert np.isnan(bars.error_x.array[figure.layout.yaxis.ticktext.index(results.labels[0])])
    assert "95% intervals, 1 without an end" in subtitle(figure)


def test_colour_range_makes_maps_comparable():
    cells = create_head_heatmap(clear(made_up_heads), colour_range=0.9).data[0]
    assert (cells.zmin, cells.zmax) == (-0.9, 0.9)
    with pytest.raises(ValueError, match="colour_range is 0, expected an effect above 0"):
        create_head_heatmap(made_up_heads(), colour_range=0)


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


# --- two experiments ---


@pytest.mark.parametrize("make", [made_up_heads, made_up_layers, made_up_positions])
def test_comparison_shows_both_maps_and_their_difference_on_one_scale(make):
    first, second = clear(make), clear(make, every=2, direction="noising")
    figure = create_comparison(first, second, names=("before", "after"))
    maps = [trace for trace in figure.data if trace.type == "heatmap" and trace.name is None]
    table = [np.asarray(results.matrix()) for results in (first, second)]
    for cells, expected in zip(maps, [*table, table[1] - table[0]]):
        np.testing.assert_array_equal(cells.z, expected)
    assert len({(cells.zmin, cells.zmax) for cells in maps}) == 1
    assert maps[0].zmax == -maps[0].zmin >= max(np.abs(cells.z).max() for cells in maps)
    headings = [note.text for note in figure.layout.annotations]
    assert "<b>before</b>" in headings[0] and "denoising: clean into corrupted" in headings[0]
    assert "<b>after</b>" in headings[1] and "noising: corrupted into clean" in headings[1]
    assert headings[2] == "<b>after − before</b><br>tested pair by pair, 12 pairs"
    assert "made-up" in subtitle(figure) and "denoising" not in subtitle(figure)
    r = np.corrcoef(table[0].ravel(), table[1].ravel())[0, 1]
    assert f"correlation of the effects {r:.2f}" in subtitle(figure)
    assert f"difference {maps[2].z[0, 0]:+.3f}" in maps[2].hovertext[0][0]


def test_comparison_fades_the_differences_that_are_not_significant():
    first, second = clear(made_up_heads), clear(made_up_heads, every=6)
    figure = create_comparison(first, second)
    matched = [(i, i) for i in range(len(first))]
    sure = difference_statistics(first.sweep, second.sweep, matched, like=first.statistics())
    assert sure.significant[[3, 9]].all() and not sure.significant.all()
    *_, veil = (trace for trace in figure.data if trace.name == "not significant" and trace.type == "heatmap")
    assert np.isnan(veil.z).ravel().tolist() == sure.significant.tolist()
    assert f"corrected {sure.p_corrected[3]:.2g}" in figure.data[-4].hovertext[1][0].split("A: ")[0]
    others = clear(made_up_heads, clean_tokens=(("<s>", "Other"),) * N_PAIRS)
    untested = create_comparison(first, others)
    assert untested.layout.annotations[2].text == "<b>B − A</b><br>not tested"
    assert "B − A: not tested: the experiments have other pairs" in subtitle(untested)


def test_figures_of_two_results_take_the_statistics_of_both():
    both = both_ways()
    strict = [results.statistics(alpha=1e-9) for results in (both.denoising, both.noising)]
    for figure in (
        create_direction_quadrant(both, statistics=tuple(strict)),
        create_comparison(both.denoising, both.noising, statistics=tuple(strict)),
    ):
        assert "12 pairs: too few to test" in subtitle(figure)
    for given, message in (
        (strict[0], "not two, expected those of both results"),
        ((strict[0], both.noising.statistics()), "alpha=1e-09.* and .*alpha=0.05.*, expected the same"),
        (strict[::-1], "not those of these results"),
    ):
        with pytest.raises(ValueError, match=message):
            create_direction_quadrant(both, statistics=given)
        with pytest.raises(ValueError, match=message):
            create_comparison(both.denoising, both.noising, statistics=given)


def test_of_very_many_pairs_some_have_points_and_the_figure_says_how_many():
    heads = made_up_heads(2, 2, n_pairs=250)
    bars, distribution, scatter = (
        draw(heads, top_k=3) for draw in (create_top_heads_bar, create_effect_distribution, create_metric_scatter)
    )
    for figure, n in ((bars, 100), (distribution, 100), (scatter, 40)):
        assert f"points: {n} of 250 pairs" in subtitle(figure)
    top = heads.top(3)
    expected = [head.pair_effects[j] for head in top for j in range(250) if j % 5 in (0, 2)]
    np.testing.assert_array_equal(bars.data[1].x, expected)
    np.testing.assert_array_equal(distribution.data[1].x, expected)
    assert len(distribution.data[0].x) == 3 * 250  # the boxes are of all
    assert [len(trace.x) for trace in scatter.data] == [3 * 3 * 40, *[3 * 40] * 3]
    assert "points:" not in subtitle(create_top_heads_bar(made_up_heads(n_pairs=100)))


def test_comparison_of_two_models_of_one_shape_has_to_be_asked_for():
    first, second = made_up_heads(), made_up_heads(model="tuned")
    with pytest.raises(ValueError, match=r"first is of made-up, the second of tuned: .*same_model=False"):
        create_comparison(first, second)
    assert "tuned" in create_comparison(first, second, same_model=False).layout.annotations[1].text


# --- attention ---


def test_attention_figure_shows_patterns_and_difference():
    shown = patterns()
    figure = create_attention_patterns(shown)
    expected = [values[head] for head in range(2) for values in (shown.clean, shown.corrupted, shown.difference)]
    seen = np.tril(np.ones((3, 3), dtype=bool))
    for trace, values in zip(figure.data, expected, strict=True):
        np.testing.assert_array_equal(trace.z, np.where(seen, values, np.nan))
    scale = figure.layout.coloraxis2
    assert scale.cmax == -scale.cmin == np.abs(shown.difference).max()
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    assert figure.layout.xaxis2.ticktext == ("0: &lt;s&gt;", "<b>1: John</b>", "2: and")
    assert figure.layout.xaxis3.ticktext[1] == "<b>1: Mary→John</b>"
    assert "L1H1" in figure.data[-1].hovertext[2][1] and "from 2: ' and'" in figure.data[-1].hovertext[2][1]
    assert "pair 3" in subtitle(figure)


def test_attention_patterns_are_those_of_the_model_s_own_runs(tiny):
    patcher, dataset = HeadPatcher(tiny, show_progress=False), IOIDataset(tiny, 2)
    found = patcher.attention_patterns(dataset, [(1, 0), (-1, 2)], pair_index=1)
    last = tiny.cfg.n_layers - 1
    assert found.heads == ((1, 0), (last, 2)) and found.pair_index == 1
    for prompt, values in zip(dataset.get_clean_corrupt_pairs()[1], (found.clean, found.corrupted)):
        _, run = patcher.patcher.run_with_cache(prompt, "pattern")
        for i, (layer, head) in enumerate(found.heads):
            expected = run[f"blocks.{layer}.attn.hook_pattern"][0, head].numpy()
            np.testing.assert_allclose(values[i], expected, atol=1e-6)
    np.testing.assert_allclose(found.clean.sum(axis=-1), 1, atol=1e-5)
    assert found.clean_tokens != found.corrupted_tokens
    assert repr(found).startswith(f"AttentionPatterns(L1H0, L{last}H2, ")


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge:llama"))
def test_under_grouped_query_attention_patterns_go_by_query_head(name):
    model = small_model(name)
    assert model.cfg.n_key_value_heads < model.cfg.n_heads
    patcher = HeadPatcher(model, show_progress=False)
    last = model.cfg.n_heads - 1
    found = patcher.attention_patterns(
        PromptPairs(model, [PromptPair("w3 w4 w5", "w6 w4 w5", ("w7",), ("w8",))]), [(0, last)]
    )
    _, run = patcher.patcher.run_with_cache("w6 w4 w5", "blocks.0.attn.hook_pattern")
    np.testing.assert_allclose(found.corrupted[0], run["blocks.0.attn.hook_pattern"][0, last].numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([], "heads is empty: give at least one"),
        ([(0, 99)], "head 99 is out of range"),
        ([(99, 0)], "layer 99 is out of range"),
        ([(0, 1), (0, 1)], "names a head twice"),
        ([3], r"head 3 is no head: expected \(layer, head\)"),
        (made_up_heads(30, 9, "k", n_key_value_heads=3)[:1], "L0KV0 is a key-value head, and patterns go by query"),
    ],
)
def test_heads_without_a_pattern_are_told_before_any_run(tiny, heads, message):
    with pytest.raises(ValueError, match=message):
        HeadPatcher(tiny).attention_patterns(IOIDataset(tiny, 1), heads)


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


# --- in a notebook ---


def test_notebook_table_shows_the_largest_effects_and_how_sure_they_are(tmp_path):
    results = clear(made_up_heads)
    sure = results.statistics()
    shown = results._repr_html_()
    rows = re.findall(r"<tr>(.*?)</tr>", shown)[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert [row[0] for row in cells] == [head.label for head in results.top(10)]
    for label, effect, interval, mark, patched in cells:
        i = results.labels.index(label)
        assert effect == f"{sure.effect[i]:+.3f}" and interval == f"[{sure.low[i]:+.3f}, {sure.high[i]:+.3f}]"
        assert mark == ("" if sure.significant[i] else "n.s.")
        assert patched == f"{results[i].patched_metric:+.3f}"
    for told in ("IOI on made-up", "denoising: clean into corrupted", "12 pairs", "2 more with smaller effects"):
        assert told in shown
    assert f"clean {results.sweep.clean.mean():+.3f}, corrupted" in shown
    assert load_results(results.save(tmp_path / "r.json"))._repr_html_() == shown


def test_every_kind_of_results_shows_in_a_notebook_whatever_it_lacks():
    for results in (
        made_up_layers(),
        made_up_positions(n_pairs=1),
        SweepResults(made_up_heads().sweep),
        made_up_heads(**same_metrics()),
        made_up_heads(n_pairs=0),
    ):
        assert "<table>" in results._repr_html_()
    assert "0 hook points" in LayerResults(made_up_sweep([], 4, 3))._repr_html_()
    assert "use at least 5 pairs" in made_up_heads(n_pairs=1)._repr_html_()
    assert "No intervals" in made_up_heads(**same_metrics())._repr_html_()
