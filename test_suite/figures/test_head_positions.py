"""The map of heads at positions shows every number where it belongs, and says what it leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from activation_patching import BothDirections
from actpatch.figures.cells import STARS
from test_suite.helpers.figures import subtitle
from test_suite.helpers.results import clear, made_up_head_positions, made_up_heads, same_metrics
from visualize import (
    create_direction_quadrant,
    create_effect_distribution,
    create_head_heatmap,
    create_head_position_heatmap,
    create_metric_scatter,
    create_top_heads_bar,
    save_figure,
)


def test_heads_are_rows_and_positions_columns():
    results = made_up_head_positions()
    figure = create_head_position_heatmap(results)
    cells = figure.data[0]
    table = results.matrix()
    np.testing.assert_array_equal(cells.z, table.to_numpy())
    assert figure.layout.xaxis.ticktext == ("S2", "END")
    assert figure.layout.yaxis.ticktext == tuple(f"L{layer}H{head}" for layer, head in table.index)
    assert cells.zmax == -cells.zmin == np.abs(results.sweep.effects).max()
    for number, item in enumerate(results):
        text = cells.hovertext[number // 2][number % 2]
        assert item.label in text and f"effect {item.effect:+.3f}" in text
    assert "of each head at each position: output" in figure.layout.title.text
    assert [line.y0 for line in figure.layout.shapes] == [2.5, 5.5, 8.5], "a line between two layers"


def test_key_value_heads_are_called_so():
    results = made_up_head_positions(2, 6, component="k", n_key_value_heads=2)
    figure = create_head_position_heatmap(results)
    assert figure.layout.yaxis.title.text == "key-value head"
    assert figure.layout.yaxis.ticktext == ("L0KV0", "L0KV1", "L1KV0", "L1KV1")


def test_of_many_heads_those_with_the_largest_effects_are_drawn():
    results = made_up_head_positions(30, 9)
    figure = create_head_position_heatmap(results, top_k=7)
    largest = np.abs(results.matrix().to_numpy()).max(axis=1)
    rows = sorted(np.argsort(-largest)[:7].tolist())
    np.testing.assert_array_equal(figure.data[0].z, results.matrix().to_numpy()[rows])
    assert figure.layout.yaxis.ticktext == tuple(f"L{row // 9}H{row % 9}" for row in rows)
    assert "263 more heads with smaller effects not drawn" in subtitle(figure)
    assert len(create_head_position_heatmap(results).data[0].z) == 40
    assert "not drawn" not in subtitle(create_head_position_heatmap(results, top_k=270))


def test_what_is_not_significant_is_marked_as_in_other_maps():
    results = clear(made_up_head_positions)
    figure = create_head_position_heatmap(results)
    stars = next(trace for trace in figure.data if trace.name == STARS)
    starred = {(int(y + 0.5), int(x + 0.5)) for x, y in zip(stars.x, stars.y)}
    assert starred == {divmod(int(i), 2) for i in np.flatnonzero(results.statistics().significant)}
    assert "Benjamini-Hochberg over 24 sites" in subtitle(figure)
    strict = create_head_position_heatmap(results, statistics=results.statistics(alpha=0.01))
    assert "p ≤ 0.01" in subtitle(strict)


@pytest.mark.parametrize(
    "pick", [lambda r: r[4:9], lambda r: r.top(5), lambda r: sorted(r, key=lambda i: i.effect)[:5]]
)
def test_parts_and_lists_are_drawn_with_the_whole_maps_statistics(pick):
    results = clear(made_up_head_positions)
    part = pick(results)
    figure = create_head_position_heatmap(part)
    drawn = np.array(figure.data[0].z, dtype=float)
    assert sorted(drawn[~np.isnan(drawn)]) == sorted(item.effect for item in part)
    assert "over 24 sites" in subtitle(figure)


@pytest.mark.parametrize(
    "pick",
    [
        lambda r: r[2:9],
        lambda r: r.top(5),
        lambda r: r.sorted_by(lambda head: head.effect)[:6],
        lambda r: sorted(r, key=lambda head: head.effect)[:6],
        lambda r: [head for head in r if head.layer > 1],
    ],
)
def test_parts_and_lists_of_heads_need_no_sizes(pick):
    results = clear(made_up_heads)
    part, significant = pick(results), results.statistics().significant
    figure = create_head_heatmap(part)
    drawn = np.array(figure.data[0].z, dtype=float)
    assert drawn.shape == (4, 3) and (~np.isnan(drawn)).sum() == len(part)
    assert all(drawn[head.layer, head.head] == head.effect for head in part)
    assert "over 12 heads" in subtitle(figure)
    bars = create_top_heads_bar(part)
    for label in bars.layout.yaxis.ticktext:
        assert label.endswith(" *") == significant[results.labels.index(label.removesuffix(" *"))]


def test_the_heads_at_one_position_are_a_head_map():
    results = clear(made_up_head_positions)
    figure = create_head_heatmap(results.at("END"))
    np.testing.assert_array_equal(figure.data[0].z, results.matrix("END"))
    assert "position END" in subtitle(figure) and "over 24 heads" in subtitle(figure)


def test_figures_of_any_results_draw_heads_at_positions():
    results = clear(made_up_head_positions)
    both = BothDirections(results, clear(made_up_head_positions, every=2, direction="noising"))
    for figure in (create_effect_distribution(results, top_k=24), create_metric_scatter(results, top_k=24)):
        assert set(figure.layout.yaxis.ticktext) == set(results.labels)
    assert "L0H0 @S2" in create_direction_quadrant(both).to_json()


def test_a_list_that_was_sorted_in_place_is_drawn_as_it_stands():
    results = made_up_head_positions()
    expected = results.matrix().to_numpy()
    results.sort(key=lambda item: item.effect)
    np.testing.assert_array_equal(create_head_position_heatmap(results).data[0].z, expected)


def test_the_figure_is_saved_and_escapes_names(tmp_path):
    figure = create_head_position_heatmap(made_up_head_positions(positions=("<b>S2</b>", "END")))
    assert figure.layout.xaxis.ticktext[0] == "&lt;b&gt;S2&lt;/b&gt;"
    save_figure(figure, tmp_path / "map.html")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: create_head_position_heatmap(made_up_heads()),
            "HeadResults, expected HeadPositionResults: create_head_h",
        ),
        (lambda: create_head_heatmap(made_up_head_positions()), "create_head_position_heatmap draws these"),
        (lambda: create_head_position_heatmap([]), "given list, expected HeadPositionResults"),
        (lambda: create_head_position_heatmap(made_up_head_positions(n_pairs=0)), "empty .* 0 pairs"),
        (lambda: create_head_position_heatmap(made_up_head_positions(**same_metrics())), "no pair was usable"),
        (lambda: create_head_position_heatmap(made_up_head_positions(), top_k=0), "top_k is 0, expected at least 1"),
        (lambda: create_head_position_heatmap(made_up_head_positions(), colour_range=-1), "colour_range is -1"),
    ],
)
def test_what_cannot_be_drawn_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
