"""Two groups of pairs side by side: each map is that of its pairs alone, and stars say where they differ."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from activation_patching import BothDirections
from actpatch.core.sites import Site, block_hook
from actpatch.figures.cells import STARS
from actpatch.results.shapes import HeadResults
from test_suite.helpers.figures import subtitle
from test_suite.helpers.results import made_up_heads, made_up_layers, made_up_positions, made_up_sweep
from visualize import create_group_comparison, figure_caption

GROUPS = ("IO first", "subject first") * 6


def grouped(groups: tuple[str, ...] = GROUPS, apart: tuple[int, ...] = (4, 7)) -> HeadResults:
    """Heads with an effect of 0.3, of which two have one of the other sign in the second group."""
    random = np.random.default_rng(0)
    sites = [Site(block_hook(layer, "z"), head) for layer in range(4) for head in range(3)]
    effects = 0.3 + random.normal(0, 0.02, (12, len(groups)))
    second = np.array(groups) == "subject first"
    for patch in apart:
        effects[patch, second] *= -1
    sweep = made_up_sweep(sites, 4, 3, len(groups))
    patched = sweep.base + effects * (sweep.source - sweep.base)
    return HeadResults(made_up_sweep(sites, 4, 3, len(groups), patched=patched, groups=groups))


def test_each_map_is_of_its_group_and_stars_in_the_difference_are_where_they_differ():
    results = grouped()
    figure = create_group_comparison(results)
    first, second, change = (trace for trace in figure.data if trace.type == "heatmap")
    for shown, group in ((first, "IO first"), (second, "subject first")):
        np.testing.assert_allclose(np.array(shown.z, dtype=float), results.by_group()[group].matrix())
    np.testing.assert_allclose(np.array(change.z, float), np.array(second.z, float) - np.array(first.z, float))
    stars = [trace for trace in figure.data if trace.name == STARS and trace.xaxis == change.xaxis]
    starred = {(int(y + 0.5), int(x + 0.5)) for trace in stars for x, y in zip(trace.x, trace.y)}
    assert starred == {(1, 1), (2, 1)}
    np.testing.assert_array_equal(np.flatnonzero(results.statistics().differences.significant), [4, 7])
    caption = figure_caption(figure)
    assert caption.startswith("IO first against subject first") and "dealing 12 pairs anew to the groups" in caption


def test_two_of_several_groups_are_chosen_or_those_that_differ_most():
    groups = ("other", "IO first", "subject first") * 4
    results = grouped(groups)
    maps = [trace for trace in create_group_comparison(results).data if trace.type == "heatmap"]
    by_group = results.by_group()
    effects = {name: by_group[name].matrix()[1, 1] for name in by_group}
    lowest, highest = min(effects, key=effects.get), max(effects, key=effects.get)
    assert {maps[0].z[1][1], maps[1].z[1][1]} == {effects[lowest], effects[highest]}
    chosen = create_group_comparison(results, ("other", "subject first"), title="mine")
    np.testing.assert_allclose(np.array(chosen.data[0].z, dtype=float), by_group["other"].matrix())
    assert "mine" in str(chosen.layout.title)


def test_too_few_pairs_of_a_group_are_compared_without_a_test():
    figure = create_group_comparison(grouped(("IO first", "subject first") * 3))
    assert "not tested: 4 usable pairs of each group are needed" in subtitle(figure)
    assert not [trace for trace in figure.data if trace.name == STARS and trace.xaxis == "x3"]


def test_layers_and_positions_are_compared_too():
    groups = ("one", "other") * 4
    assert create_group_comparison(made_up_layers(n_pairs=8, groups=groups))
    assert create_group_comparison(made_up_positions(n_pairs=8, groups=groups), component="mlp_out")


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: create_group_comparison(made_up_heads()),
            "are of 0 groups, expected two: let the dataset's get_group",
        ),
        (lambda: create_group_comparison(grouped(), ("IO first", "no")), "expected two of 'IO first', 'subject first'"),
        (lambda: create_group_comparison(grouped(), "IO first"), "groups is 'IO first', expected two of"),
        (lambda: create_group_comparison(BothDirections(grouped(), grouped())), "give results.denoising or"),
        (lambda: create_group_comparison([1]), "given list, expected HeadResults"),
    ],
)
def test_what_cannot_be_compared_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_sites_patched_in_some_pairs_alone_are_drawn_and_not_tested():
    sites = [Site(block_hook(layer, "z"), head, position=head) for layer in range(2) for head in range(3)]
    pairs = ([(2, 2)], [(2, 2)], [(1, 1), (2, 2)], [(1, 1), (2, 2)]) * 3
    for n_tested, kept in ((2, sites), (0, [site for site in sites if site.position != 2])):
        made = made_up_sweep(kept, 2, 3, 12, groups=GROUPS)
        results = HeadResults(replace(made, matches=tuple(map(tuple, pairs))))
        figure = create_group_comparison(results)
        untested = "not tested: no site was patched in all of these pairs"
        assert (untested in figure_caption(figure)) == (n_tested == 0)
        statistics = results.statistics()
        tested = statistics.differences and int((~np.isnan(statistics.differences.p)).sum())
        assert (tested or 0) == n_tested
        said = " ".join(statistics.notes)
        assert ("groups of pairs: no site was patched in all pairs" in said) == (n_tested == 0)
        assert ("no split-half agreement: 0 sites of" in said) == (n_tested == 0)
