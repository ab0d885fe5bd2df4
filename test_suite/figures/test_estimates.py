"""No figure shows an estimate that could be taken for an exact effect: axes, colours, captions and texts say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

import visualize
from actpatch import EdgeResults, find_circuit
from actpatch.core.estimates import METHODS, Estimate
from actpatch.figures.captions import figure_caption, without_caption
from actpatch.results.both import BothDirections
from test_suite.helpers.estimates import ATP, IG, results_of, says_estimated, speaks_of_effects, texts_of
from test_suite.helpers.figures import subtitle
from test_suite.helpers.results import N_PAIRS, both_ways, of_no_experiment, patterns

GROUPS = {"groups": ("a", "b") * (N_PAIRS // 2)}


def estimated_patterns(estimate: Estimate | None) -> Any:
    known = {"effects": (0.2, 0.1), "mean_effects": (0.3, 0.2), "estimate": estimate}
    return dataclasses.replace(patterns(), **known)


def circuit_graph_of(results: EdgeResults) -> Any:
    return visualize.create_circuit_graph(find_circuit(results, n_edges=30), results, prune=False)


FIGURES: dict[str, Callable[[Estimate | None], Any]] = {
    "create_attention_patterns": lambda e: visualize.create_attention_patterns(estimated_patterns(e)),
    "create_circuit_graph": lambda e: circuit_graph_of(results_of("EdgeResults", e)),
    "create_comparison": lambda e: visualize.create_comparison(
        results_of("HeadResults", e), results_of("HeadResults", e)
    ),
    "create_component_comparison": lambda e: visualize.create_component_comparison(results_of("LayerResults", e)),
    "create_direction_quadrant": lambda e: visualize.create_direction_quadrant(both_ways(estimate=e)),
    "create_edge_graph": lambda e: visualize.create_edge_graph(results_of("EdgeResults", e)),
    "create_edge_heatmap": lambda e: visualize.create_edge_heatmap(results_of("EdgeResults", e)),
    "create_effect_distribution": lambda e: visualize.create_effect_distribution(results_of("NeuronResults", e)),
    "create_group_comparison": lambda e: visualize.create_group_comparison(results_of("HeadResults", e, **GROUPS)),
    "create_head_heatmap": lambda e: visualize.create_head_heatmap(results_of("HeadResults", e)),
    "create_head_position_heatmap": lambda e: visualize.create_head_position_heatmap(
        results_of("HeadPositionResults", e)
    ),
    "create_layer_heatmap": lambda e: visualize.create_layer_heatmap(results_of("LayerResults", e)),
    "create_metric_scatter": lambda e: visualize.create_metric_scatter(results_of("HeadResults", e)),
    "create_position_heatmap": lambda e: visualize.create_position_heatmap(results_of("PositionResults", e)),
    "create_top_edges_bar": lambda e: visualize.create_top_edges_bar(results_of("EdgeResults", e)),
    "create_top_heads_bar": lambda e: visualize.create_top_heads_bar(results_of("HeadResults", e)),
}
"""What each figure of the door draws of results that are estimated so."""
OTHERWISE = {
    *("create_head_cards", "create_circuit_evaluation", "create_faithfulness_curve", "create_sensitivity_card"),
    *("create_full_report", "create_estimate_comparison", "create_agreement_map"),
}
"""Cards and what circuits do are always exact; the report is tested in `report`, and the last two draw nothing but
estimates."""
MORE: dict[str, Callable[[Estimate | None], Any]] = {
    "heads of no experiment, as a map": lambda e: visualize.create_head_heatmap(
        of_no_experiment(results_of("HeadResults", e)), 4, 3
    ),
    "heads of no experiment, as bars": lambda e: visualize.create_top_heads_bar(
        of_no_experiment(results_of("HeadResults", e))
    ),
    "edges by layer": lambda e: visualize.create_edge_heatmap(results_of("EdgeResults", e), by="layers"),
    "layers over pairs": lambda e: visualize.create_effect_distribution(results_of("LayerResults", e)),
}


def test_every_figure_of_the_door_is_tried() -> None:
    door = {name for name in vars(visualize) if name.startswith("create_")}
    assert door == FIGURES.keys() | OTHERWISE


@pytest.mark.quick(7)
@pytest.mark.parametrize("name", [*FIGURES, *MORE])
@pytest.mark.parametrize("estimate", [ATP, IG, Estimate("atp_star")], ids=lambda estimate: estimate.method)
def test_all_that_a_figure_says_of_effects_says_that_they_are_estimated(name: str, estimate: Estimate) -> None:
    figure = (FIGURES | MORE)[name](estimate)
    said = list(texts_of(figure.to_plotly_json()))
    about = [text for text in said if speaks_of_effects(text)]
    assert about and not [text for text in about if not says_estimated(text)]
    assert f"estimated by {estimate.method}" in subtitle(figure)
    for bare in (without_caption(figure), without_caption(figure).update_layout(title=None)):
        drawn = [text for text in texts_of(bare.to_plotly_json()) if says_estimated(text)]
        assert drawn, "nothing but the caption says it"
    assert f"estimated by {estimate.method}" in figure_caption(figure)
    if "p\xa0≤\xa0" in figure_caption(figure):
        about = f"about the estimate by {estimate.method}", "about the difference of the estimated effects"
        assert any(words in figure_caption(figure) for words in about)
    if name not in MORE:
        assert estimate.what.gradient in figure_caption(figure)


@pytest.mark.quick(10)
@pytest.mark.parametrize("name", [*FIGURES, *MORE])
def test_of_exact_effects_no_figure_speaks_of_estimates(name: str) -> None:
    figure = (FIGURES | MORE)[name](None)
    said = [*texts_of(figure.to_plotly_json()), figure_caption(figure)]
    assert any(map(speaks_of_effects, said)) and not any(map(says_estimated, said))


@pytest.mark.parametrize("name", FIGURES)
def test_axes_or_colours_or_the_legend_name_the_method(name: str) -> None:
    bare = without_caption(FIGURES[name](ATP))
    titles = [axis.title.text or "" for axis in (*bare.select_xaxes(), *bare.select_yaxes())]
    titles += [trace.colorbar.title.text or "" for trace in bare.select_traces("heatmap")]
    titles += [trace.name or "" for trace in bare.data if trace.showlegend is not False]
    titles += [annotation.text for annotation in bare.layout.annotations]
    found = [title for title in titles if says_estimated(title)]
    assert found
    if name != "create_attention_patterns":  # whose panels' headings have numbers alone
        assert any("atp" in title for title in found)


def test_beside_each_other_exact_and_estimated_effects_are_named() -> None:
    exact, estimated = (results_of("HeadResults", estimate) for estimate in (None, ATP))
    figure = visualize.create_comparison(exact, estimated, names=("run", "screen"))
    first, second, change = (annotation.text.replace("<br>", " ") for annotation in figure.layout.annotations)
    assert "exact" in first and not says_estimated(first)
    assert "estimated by atp" in second
    assert f"screen: {METHODS['atp'].gradient}" in figure_caption(figure)
    assert figure_caption(figure).count("effect 0 = corrupted, 1 = clean") == 1
    assert "difference of exact and estimated effects" in change
    assert "estimated by" not in subtitle(figure)
    assert figure.data[0].colorbar.title.text == "effect, exact<br>or estimated"
    hovers = [next(text for row in trace.hovertext for text in row) for trace in figure.select_traces("heatmap")]
    assert "<br>effect " in hovers[0] and "<br>estimated effect " in hovers[1]
    assert "<br>effect " in hovers[2] and "<br>estimated effect " in hovers[2]
    assert "correlation of exact and estimated effects 1.00" in figure_caption(figure)
    assert "about the difference of exact and estimated effects" in figure_caption(figure)
    both = visualize.create_comparison(estimated, results_of("HeadResults", IG))
    assert "difference of the two estimates" in both.layout.annotations[2].text.replace("<br>", " ")


def test_both_directions_are_of_one_kind() -> None:
    exact, estimated = both_ways(), both_ways(estimate=ATP)
    with pytest.raises(
        ValueError, match=r"denoising is exact, noising estimated by atp, expected both of one kind: run"
    ):
        BothDirections(exact.denoising, estimated.noising)


def test_a_list_of_exact_and_estimated_heads_is_refused() -> None:
    exact, estimated = (of_no_experiment(results_of("HeadResults", estimate)) for estimate in (None, ATP))
    for draw in (visualize.create_head_heatmap, visualize.create_top_heads_bar):
        with pytest.raises(ValueError, match=r"mixes effects that are exact and estimated by atp: draw one kind"):
            draw([*exact[:3], *estimated[3:]])


def test_statistics_of_exact_effects_are_not_drawn_on_estimates() -> None:
    exact, estimated = (results_of("HeadResults", estimate) for estimate in (None, ATP))
    with pytest.raises(ValueError, match="are not those of these results"):
        visualize.create_head_heatmap(estimated, statistics=exact.statistics())


def test_sizes_without_sign_are_never_marked_as_significant() -> None:
    results = results_of("HeadResults", Estimate("atp_star"))
    assert results_of("HeadResults", ATP).statistics().significant.any()
    figure = visualize.create_top_heads_bar(results)
    assert not any("*" in label for label in figure.layout.yaxis.ticktext)
    assert "not tested: atp_star estimates sizes without sign" in figure_caption(figure)
    assert not any("p, corrected" in text or "<br>p " in text for text in texts_of(figure.to_plotly_json()))
