"""Two experiments are drawn side by side, with their difference."""

from __future__ import annotations

import numpy as np
import pytest

from actpatch.results.differences import difference_statistics
from test_suite.helpers.figures import subtitle
from test_suite.helpers.results import N_PAIRS, both_ways, clear, made_up_heads, made_up_layers, made_up_positions
from visualize import (
    create_comparison,
    create_direction_quadrant,
    create_effect_distribution,
    create_metric_scatter,
    create_top_heads_bar,
    figure_caption,
)


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
    headings = [note.text.replace("<br>", " ") for note in figure.layout.annotations]
    assert "<b>before</b>" in headings[0] and "denoising: clean into corrupted" in headings[0]
    assert "<b>after</b>" in headings[1] and "noising: corrupted into clean" in headings[1]
    assert headings[2] == "<b>after − before</b> tested pair by pair, 12 pairs"
    assert "made-up" in subtitle(figure) and "denoising" not in figure_caption(figure).partition("\n")[2]
    r = np.corrcoef(table[0].ravel(), table[1].ravel())[0, 1]
    assert f"correlation of the effects {r:.2f}".replace("-", "−") in figure_caption(figure)
    assert f"difference {maps[2].z[0, 0]:+.3f}".replace("-", "−") in maps[2].hovertext[0][0]


def test_a_star_marks_the_differences_that_are_significant_and_none_where_they_were_not_tested():
    first, second = clear(made_up_heads), clear(made_up_heads, every=6)
    figure = create_comparison(first, second)
    matched = [(i, i) for i in range(len(first))]
    sure = difference_statistics(first.sweep, second.sweep, matched, like=first.statistics())
    assert sure.significant[[3, 9]].all() and not sure.significant.all()
    stars = [trace for trace in figure.data if trace.name == "significant"]
    starred = {(round(y), round(x)) for x, y in zip(stars[2].x, stars[2].y)}
    assert starred == {divmod(i, 3) for i in np.flatnonzero(sure.significant)}
    assert f"corrected {sure.p_corrected[3]:.2g}" in figure.data[-3].hovertext[1][0].split("A: ")[0]
    others = clear(made_up_heads, clean_tokens=(("<s>", "Other"),) * N_PAIRS)
    untested = create_comparison(first, others)
    assert untested.layout.annotations[2].text == "<b>B − A</b><br>not tested"
    assert "B − A: not tested: the experiments have other pairs" in figure_caption(untested)
    assert len([trace for trace in untested.data if trace.name == "significant"]) == 2


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
        assert f"points: {n} of 250 pairs" in figure_caption(figure)
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


def test_parts_are_compared_without_a_test_that_would_count_too_few():
    first, second = clear(made_up_heads), clear(made_up_heads, every=2)
    figure = create_comparison(first[:4], second[:4])
    text = figure.to_json()
    assert "compare the whole results" in text and "tested pair by pair" not in text
    assert "tested pair by pair" in create_comparison(first, second).to_json()
