"""Figures show the numbers of the results, and errors say what to do."""

from __future__ import annotations

import numpy as np
import pytest

from actpatch.core.sites import Site, block_hook
from actpatch.results.shapes import HeadResults, LayerResults
from test_suite.helpers.results import (
    CLEAN_TOKENS,
    made_up_heads,
    made_up_layers,
    made_up_positions,
    made_up_sweep,
    of_no_experiment,
    same_metrics,
)
from visualize import (
    create_component_comparison,
    create_head_heatmap,
    create_layer_heatmap,
    create_metric_scatter,
    create_position_heatmap,
    create_top_heads_bar,
    figure_caption,
)

# --- the numbers ---


@pytest.mark.parametrize(("n_layers", "n_heads"), [(12, 12), (1, 4), (48, 25)])
def test_head_heatmap_shows_the_effects_on_a_scale_symmetric_about_zero(n_layers, n_heads):
    results = made_up_heads(n_layers, n_heads)
    cells = create_head_heatmap(results, n_layers=n_layers, n_heads=n_heads).data[0]
    np.testing.assert_array_equal(cells.z, results.matrix())
    assert cells.zmax == -cells.zmin == np.abs(results.matrix()).max()
    assert [colour for _, colour in (cells.colorscale[0], cells.colorscale[-1])] == ["rgb(103,0,31)", "rgb(5,48,97)"]
    head = results[-1]
    text = cells.hovertext[head.layer][head.head]
    for expected in (
        head.label,
        f"effect {head.effect:+.3f}",
        f"patched {head.patched_metric:+.3f} logits",
        f"clean {head.clean_metric:+.3f} logits",
        f"corrupted {head.corrupted_metric:+.3f} logits",
        "5 pairs",
    ):
        assert expected.replace("-", "−") in text


def test_layer_zero_is_at_the_top_of_every_map():
    for figure in (
        create_head_heatmap(made_up_heads()),
        create_layer_heatmap(made_up_layers()),
        create_position_heatmap(made_up_positions()),
    ):
        bottom, top = figure.layout.yaxis.range
        assert bottom > top


def test_a_map_of_tiny_effects_looks_pale():
    results = made_up_heads()
    sweep = results.sweep
    still = HeadResults(made_up_heads(patched=np.tile(sweep.corrupted + 1e-9, (len(sweep.patches), 1))).sweep)
    cells = create_head_heatmap(still).data[0]
    assert cells.zmax == 0.05


def test_heads_missing_from_a_plain_list_are_nan_and_the_others_keep_their_effects():
    results = made_up_heads()
    cells = create_head_heatmap([r for r in results if r.layer > 1], 4, 3).data[0]
    assert np.isnan(cells.z[:2]).all()
    np.testing.assert_array_equal(cells.z[2:], results.matrix()[2:])
    assert not cells.hoverongaps


def test_key_value_heads_are_counted_and_named():
    results = made_up_heads(30, 9, "k", n_key_value_heads=3)
    figure = create_head_heatmap(results, n_layers=30, n_heads=3)
    np.testing.assert_array_equal(figure.data[0].z, results.matrix())
    assert figure.layout.xaxis.title.text == "key-value head"
    assert "L29KV2" in figure.data[0].hovertext[29][2]


def test_layer_heatmap_shows_the_matrix_and_names_what_it_leaves_out():
    components = ("resid_pre", "attn_out", "mlp_out", "resid_mid", "resid_post")
    sites = [Site(block_hook(layer, c)) for c in components for layer in range(4)] + [Site("hook_embed")]
    results = LayerResults(made_up_sweep(sites, 4, 3))
    figure = create_layer_heatmap(results, n_layers=4)
    np.testing.assert_array_equal(figure.data[0].z, results.matrix().to_numpy())
    assert figure.layout.xaxis.ticktext == components
    assert "in no one layer, not drawn: hook_embed" in figure_caption(figure)


def test_position_heatmap_shows_the_component_and_where_the_prompts_differ():
    results = made_up_positions()
    for component in ("resid_pre", "mlp_out"):
        cells = create_position_heatmap(results, component).data[0]
        np.testing.assert_array_equal(cells.z, results.matrix(component))
    figure = create_position_heatmap(results)
    np.testing.assert_array_equal(figure.data[0].z, results.matrix("resid_pre"))
    assert figure.layout.xaxis.ticktext == (
        "0: &lt;s&gt;",
        "1: When",
        "<b>2: Mary→John</b>",
        "3: and",
        "<b>4: John→Mary</b>",
    )
    assert "position 2: ' Mary'→' John'" in figure.data[0].hovertext[0][2]
    assert figure.layout.xaxis.title.text == "position: token<br>clean→corrupted in bold"


def test_position_heatmap_says_whose_tokens_it_shows_where_pairs_differ():
    others = ("<s>", "When", " Tom", " and", " Ann")
    results = made_up_positions(n_pairs=2, clean_tokens=(CLEAN_TOKENS, others))
    assert "token in pair 10" in create_position_heatmap(results).layout.xaxis.title.text


def test_labels_of_long_prompts_thin_out_but_keep_the_changed_tokens():
    clean = tuple(f" t{i}" for i in range(100))
    corrupted = (*clean[:50], " other", *clean[51:])
    results = made_up_positions(tokens=clean, clean_tokens=(clean,) * 5, corrupted_tokens=(corrupted,) * 5)
    labels = create_position_heatmap(results).layout.xaxis.ticktext
    assert len(labels) < 50
    assert "<b>50: t50→other</b>" in labels


def test_bars_are_the_top_heads_with_every_pair_beside_them():
    results = made_up_heads()
    figure = create_top_heads_bar(results, top_k=5)
    bars, dots = figure.data
    top = results.top(5)
    assert list(bars.x) == [head.effect for head in top]
    assert list(bars.y) == list(range(5))
    assert np.abs(np.asarray(dots.y) - np.repeat(bars.y, 5)).max() < bars.width / 2
    assert figure.layout.yaxis.ticktext == tuple(head.label for head in top)
    np.testing.assert_array_equal(dots.x, [effect for head in top for effect in head.pair_effects])
    assert "pair 14" in dots.hovertext[4]


def test_pairs_that_are_not_usable_are_counted_and_have_no_point():
    clean = np.array([3.0, 3.0, 3.0])
    results = made_up_heads(n_pairs=3, clean=clean, corrupted=np.array([-3.0, 2.99, -3.0]))
    figure = create_top_heads_bar(results, top_k=2)
    assert len(figure.data[1].x) == 2 * 2
    assert "2 usable of 3 pairs" in figure.layout.title.subtitle.text


def test_component_comparison_shows_both_columns():
    results = made_up_layers(("resid_pre", "attn_out", "mlp_out"))
    attention, mlp = create_component_comparison(results, n_layers=4).data
    np.testing.assert_array_equal(attention.y, results.matrix()["attn_out"])
    np.testing.assert_array_equal(mlp.y, results.matrix()["mlp_out"])


@pytest.mark.parametrize("results", [made_up_heads(), made_up_layers()])
def test_metric_scatter_shows_the_raw_metrics_of_the_largest_effects(results):
    sweep = results.sweep
    _, corrupted, clean, patched = create_metric_scatter(results, top_k=3).data
    top = np.argsort(-np.abs(sweep.effects))[:3]
    np.testing.assert_array_equal(patched.x, sweep.patched[top].ravel())
    np.testing.assert_array_equal(clean.x, np.tile(sweep.clean, 3))
    np.testing.assert_array_equal(corrupted.x, np.tile(sweep.corrupted, 3))


def test_metric_scatter_shows_why_no_pair_was_usable():
    figure = create_metric_scatter(made_up_heads(**same_metrics()))
    assert "0 usable of 5 pairs" in figure.layout.title.subtitle.text


@pytest.mark.parametrize(
    ("direction", "words", "scale"),
    [
        ("denoising", "clean into corrupted", "0 = corrupted, 1 = clean"),
        ("noising", "corrupted into clean", "0 = clean, 1 = corrupted"),
    ],
)
def test_every_figure_says_model_task_direction_metric_and_pairs(direction, words, scale):
    heads, layers = made_up_heads(direction=direction), made_up_layers(direction=direction)
    figures = [
        create_head_heatmap(heads, title="mine"),
        create_top_heads_bar(heads, title="mine"),
        create_metric_scatter(heads, title="mine"),
        create_layer_heatmap(layers, title="mine"),
        create_component_comparison(layers, title="mine"),
        create_position_heatmap(made_up_positions(direction=direction), title="mine"),
    ]
    for figure in figures:
        assert figure.layout.title.text == "mine"
        subtitle = figure.layout.title.subtitle.text.replace("<br>", " ")
        for expected in ("made-up", "IOI", f"{direction}: {words}", "logit difference (logits)", "5 pairs"):
            assert expected in subtitle
        assert scale in subtitle or scale in figure.layout.xaxis.title.text or figure is figures[2]
        assert figure.layout.title.subtitle.text.count("<br>") < 3
        assert figure.layout.xaxis.title.text and figure.layout.yaxis.title.text


# --- the errors ---


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: create_head_heatmap(made_up_heads(), n_heads=9), r"3 heads per layer, n_heads=9 .* pass n_heads=3"),
        (lambda: create_head_heatmap(made_up_heads(), 5), r"4 layers, n_layers=5 .* pass n_layers=4"),
        (
            lambda: create_head_heatmap(made_up_heads(2, 9, "v", n_key_value_heads=3), n_heads=9),
            "3 key-value heads per layer, n_heads=9 was given: pass n_heads=3 or leave it out",
        ),
        (lambda: create_layer_heatmap(made_up_layers(), 12), "4 layers, n_layers=12"),
        (lambda: create_component_comparison(made_up_layers(), 12), "4 layers, n_layers=12"),
        (
            lambda: create_head_heatmap(made_up_layers()),
            "LayerResults, expected HeadResults: create_layer_heatmap",
        ),
        (
            lambda: create_layer_heatmap(made_up_heads()),
            "HeadResults, expected LayerResults: create_head_heatmap",
        ),
        (lambda: create_layer_heatmap(made_up_positions()), "create_position_heatmap draws these"),
        (lambda: create_position_heatmap({}), "given dict, expected PositionResults"),
        (lambda: create_metric_scatter(list(made_up_heads())), "given list, expected SweepResults"),
        (lambda: create_top_heads_bar([1, 2]), "given list, expected HeadResults"),
        (lambda: create_top_heads_bar(made_up_heads(), top_k=0), "top_k is 0, expected at least 1"),
        (lambda: create_metric_scatter(made_up_heads(), top_k=0), "top_k is 0, expected at least 1"),
        (lambda: create_head_heatmap([], 4, 3), "empty"),
        (lambda: create_layer_heatmap(made_up_layers(())), "empty .*0 patches"),
        (lambda: create_head_heatmap(made_up_heads(n_pairs=0)), "empty .* 0 pairs"),
        (
            lambda: create_head_heatmap(of_no_experiment(made_up_heads())),
            "of no one experiment.*or n_layers and n_head",
        ),
        (
            lambda: create_head_heatmap(made_up_heads().sweep),
            "given a Sweep, expected HeadResults: give it a shape, for",
        ),
        (
            lambda: create_head_heatmap(of_no_experiment(made_up_heads()), 4, 2),
            "L0H2 lies outside n_layers=4, n_heads=2",
        ),
        (lambda: create_head_heatmap(list(made_up_heads()) * 2, 4, 3), "more than once"),
        (lambda: create_head_heatmap([*made_up_heads(), *made_up_heads(component="q")], 4, 3), "patch types output, q"),
        (lambda: create_head_heatmap(made_up_heads(**same_metrics())), "no pair was usable"),
        (lambda: create_layer_heatmap(made_up_layers(**same_metrics())), "no pair was usable"),
        (lambda: create_position_heatmap(made_up_positions(**same_metrics())), "no pair was usable"),
        (lambda: create_position_heatmap(made_up_positions(), "z"), "'z' was not patched: expected one of resid_pre"),
        (lambda: create_component_comparison(made_up_layers(("attn_out",))), "^mlp_out not patched: .* have attn_out"),
        (lambda: create_component_comparison(made_up_layers(("resid_pre",))), "^attn_out and mlp_out not patched"),
    ],
)
def test_errors_say_what_was_got_and_what_to_do(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_tokens_and_names_are_shown_as_text_never_as_markup():
    evil = "<script>alert(1)</script>"
    names = {"model": evil, "task": evil, "name": evil, "unit": evil}
    clean = (evil, " ", "\n", "&amp;", "$x$")
    figure = create_position_heatmap(made_up_positions(**names, clean_tokens=(clean,) * 5))
    labels = figure.layout.xaxis.ticktext
    shown = ("1: ' '→When", r"2: '\n'→John", "3: &amp;amp;→and", "4: &#36;x&#36;→Mary")
    assert labels[1:] == tuple(f"<b>{label}</b>" for label in shown)
    texts = [*labels, figure.layout.title.subtitle.text.replace("<br>", ""), figure.data[0].hovertext[0][0]]
    assert not any("<script" in text or "$" in text for text in texts)
