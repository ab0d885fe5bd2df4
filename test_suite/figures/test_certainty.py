"""Figures say how sure they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from actpatch.results.positions import PositionResults
from actpatch.results.shapes import HeadResults
from test_suite.helpers.figures import subtitle
from test_suite.helpers.results import clear, made_up_heads, made_up_layers, made_up_positions, of_no_experiment
from visualize import (
    create_component_comparison,
    create_effect_distribution,
    create_head_heatmap,
    create_layer_heatmap,
    create_position_heatmap,
    create_top_heads_bar,
    figure_caption,
)


@pytest.mark.parametrize(
    ("make", "draw", "table"),
    [
        (made_up_heads, create_head_heatmap, HeadResults.matrix),
        (made_up_layers, create_layer_heatmap, lambda results: results.matrix().to_numpy()),
        (made_up_positions, create_position_heatmap, PositionResults.matrix),
    ],
)
def test_cells_with_a_star_on_maps_are_those_that_are_significant(make, draw, table):
    results = clear(make)
    sure = results.statistics()
    figure = draw(results)
    shown, stars, numbers = figure.data
    np.testing.assert_array_equal(shown.z, table(results))
    starred = {(round(y), round(x)) for x, y in zip(stars.x, stars.y)}
    found = {round(shown.z[cell], 12) for cell in starred}
    first = [p.sites[0].component == results.sweep.patches[0].sites[0].component for p in results.sweep.patches]
    drawn = np.array(first) if make is made_up_positions else np.ones(len(sure.effect), dtype=bool)
    assert 0 < len(starred) < shown.z.size
    assert found == {round(e, 12) for e in sure.effect[drawn & sure.significant]}
    assert len(stars.x) == len(starred) == (drawn & sure.significant).sum()
    assert [float(text.replace("−", "-")) for text in numbers.text] == [
        round(shown.z[y, x], 2) for x, y in zip(numbers.x, numbers.y)
    ]
    assert len(numbers.x) == shown.z.size
    assert f"* significant: p ≤ 0.05, Benjamini-Hochberg over {len(sure.effect)} " in subtitle(figure)


def test_hover_tells_interval_and_corrected_p():
    results = clear(made_up_heads)
    sure = results.statistics()
    text = create_head_heatmap(results).data[0].hovertext[0][0]
    assert f"95% interval {sure.low[0]:+.3f} to {sure.high[0]:+.3f}".replace("-", "−") in text
    assert f"p {sure.p[0]:.2g}, corrected {sure.p_corrected[0]:.2g}" in text
    assert "not significant" in create_head_heatmap(results).data[0].hovertext[0][1]


@pytest.mark.parametrize(
    ("n_pairs", "said"),
    [(1, "1 pair: too few to test, or for intervals"), (5, "5 pairs: too few to test")],
)
def test_of_too_few_pairs_nothing_looks_significant_and_the_figure_says_so(n_pairs, said):
    heads, layers = made_up_heads(n_pairs=n_pairs), made_up_layers(n_pairs=n_pairs)
    assert [trace.name for trace in create_head_heatmap(heads).data] == [None, "effects"]
    bars = create_top_heads_bar(heads)
    for figure in (create_head_heatmap(heads), bars, create_component_comparison(layers)):
        assert said in subtitle(figure)
    assert not any("*" in label for label in bars.layout.yaxis.ticktext)
    assert [trace.name for trace in create_component_comparison(layers).data] == [
        "attention (attn_out)",
        "MLP (mlp_out)",
    ]
    assert set(create_effect_distribution(heads).data[2].marker.symbol) == {"diamond-open"}
    assert "not significant" not in create_head_heatmap(heads).data[0].hovertext[0][0]
    assert bars.data[0].error_x.visible == (n_pairs == 5)


def test_other_statistics_can_be_given_and_only_those_of_the_same_results():
    results = clear(made_up_heads)
    strict = results.statistics(alpha=1e-6)
    assert "too few to test" in subtitle(create_head_heatmap(results, statistics=strict))
    lenient = results.statistics(correction="by", alpha=0.2)
    assert "p ≤ 0.2, Benjamini-Yekutieli over 12 heads" in subtitle(create_head_heatmap(results, statistics=lenient))
    with pytest.raises(ValueError, match=r"statistics of 8 sites are not those of these results \(12 sites"):
        create_head_heatmap(results, statistics=clear(made_up_layers).statistics())
    assert "p ≤ 0.2" in subtitle(create_head_heatmap(list(results), statistics=lenient))
    with pytest.raises(ValueError, match=r"statistics of 12 sites are not those of these results \(3 sites"):
        create_head_heatmap(results[:3], statistics=lenient)
    for draw in (
        lambda heads: create_head_heatmap(heads, 4, 3, statistics=lenient),
        lambda heads: create_top_heads_bar(heads, statistics=lenient),
    ):
        with pytest.raises(ValueError, match="these heads are of no one: pass the results"):
            draw(of_no_experiment(results))


def test_error_bars_are_the_intervals_and_a_star_is_where_a_bar_is_significant():
    heads, layers = clear(made_up_heads), clear(made_up_layers)
    sure = heads.statistics()
    figure = create_top_heads_bar(heads, top_k=8)
    bars = figure.data[0]
    order = [heads.labels.index(label.removesuffix(" *")) for label in figure.layout.yaxis.ticktext]
    np.testing.assert_allclose(bars.x + bars.error_x.array, sure.high[order])
    np.testing.assert_allclose(bars.x - bars.error_x.arrayminus, sure.low[order])
    assert [label.endswith(" *") for label in figure.layout.yaxis.ticktext] == sure.significant[order].tolist()
    sure = layers.statistics()
    attention, mlp, stars = create_component_comparison(layers).data
    np.testing.assert_allclose([*attention.y + attention.error_y.array, *mlp.y + mlp.error_y.array], sure.high)
    starred = {(round(x), x > round(x)) for x in stars.x}
    assert starred == {(i % 4, i >= 4) for i in np.flatnonzero(sure.significant)}
    ends = np.where(sure.effect > 0, sure.high, sure.low)[sure.significant]
    np.testing.assert_allclose(np.abs(sorted(stars.y)), np.abs(sorted(ends)) + 0.04 * np.ptp([0, *ends]))
    assert "bars: 95% intervals" in subtitle(create_component_comparison(layers))


def test_an_interval_without_an_end_has_no_bar_there_and_is_counted():
    results = clear(made_up_heads)
    sure = results.statistics()
    high = np.where(np.arange(len(sure.high)) == 0, np.inf, sure.high)
    figure = create_top_heads_bar(results, top_k=12, statistics=dataclasses.replace(sure, high=high))
    bars = figure.data[0]
    labels = [label.removesuffix(" *") for label in figure.layout.yaxis.ticktext]
    assert np.isnan(bars.error_x.array[labels.index(results.labels[0])])
    assert "95% intervals, 1 without an end" in figure_caption(figure)


def test_colour_range_makes_maps_comparable():
    cells = create_head_heatmap(clear(made_up_heads), colour_range=0.9).data[0]
    assert (cells.zmin, cells.zmax) == (-0.9, 0.9)
    with pytest.raises(ValueError, match="colour_range is 0, expected an effect above 0"):
        create_head_heatmap(made_up_heads(), colour_range=0)
