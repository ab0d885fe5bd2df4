"""Effects are compared between groups of pairs: by SciPy, by loops over all deals; as seldom wrong as promised."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from scipy import stats

from actpatch.statistics.groups import FEWEST_OF_A_GROUP, N_DEALS, WORTH_SAYING, group_differences
from actpatch.statistics.sites import site_statistics
from test_suite.helpers.thinned import thinned


def compared(changes: np.ndarray, groups: Sequence[str], gaps: np.ndarray | None = None, **options):
    labels = [f"s{i}" for i in range(len(changes))]
    gaps = np.ones(changes.shape[1]) if gaps is None else gaps
    return group_differences(changes, gaps, groups, sites=labels, **options)


def deals(pairs: Sequence[int], sizes: Sequence[int]) -> Iterator[list[list[int]]]:
    if not sizes:
        yield []
        return
    for chosen in itertools.combinations(pairs, sizes[0]):
        for rest in deals([pair for pair in pairs if pair not in chosen], sizes[1:]):
            yield [list(chosen), *rest]


def by_hand(changes: np.ndarray, gaps: np.ndarray, members: list[list[int]]) -> float:
    effects, weights = [], []
    for pairs in members:
        gap, n = gaps[pairs].mean(), len(pairs)
        effect = changes[pairs].mean() / gap
        effects.append(effect)
        weights.append((n - 1) * n * gap**2 / ((changes[pairs] - effect * gaps[pairs]) ** 2).sum())
    centre = np.average(effects, weights=weights)
    return sum(weight * (effect - centre) ** 2 for effect, weight in zip(effects, weights))


def test_effects_are_those_of_the_groups_and_two_with_one_gap_are_ranked_as_by_welchs_t():
    random = np.random.default_rng(0)
    changes, groups = random.normal(size=(6, 11)), [*"ab" * 4, *"aaa"]
    found = compared(changes, groups)
    first, second = (changes[:, [g == name for g in groups]] for name in "ab")
    np.testing.assert_allclose(found.effects, np.stack([first.mean(axis=1), second.mean(axis=1)], axis=1), atol=1e-12)
    assert (found.groups, found.n_pairs, found.left_out) == (("a", "b"), (7, 4), ())
    welch = np.abs(stats.ttest_ind(first, second, axis=1, equal_var=False).statistic)
    dealt = np.array(
        [
            np.abs(stats.ttest_ind(changes[:, one], changes[:, other], axis=1, equal_var=False).statistic)
            for one, other in deals(range(11), (7, 4))
        ]
    )
    np.testing.assert_allclose(found.p, (dealt >= welch * (1 - 1e-9)).mean(axis=0))
    reached = dealt.max(axis=1)[:, None] >= welch * (1 - 1e-9)
    np.testing.assert_allclose(found.p_corrected, reached.mean(axis=0))
    assert found.smallest_p == 1 / 330


@pytest.mark.parametrize("sizes", [(4, 4), (5, 4)])
def test_p_values_are_shares_of_all_deals_whatever_the_gaps(sizes):
    random = np.random.default_rng(1)
    n = sum(sizes)
    gaps, groups = random.uniform(0.5, 3, n), np.repeat(["one", "other"], sizes)
    changes = 0.4 * gaps + random.exponential(size=(5, n)) - 1
    changes[1] = 0.4 * gaps + 1e-3 * changes[1] + (groups == "one")
    order = random.permutation(n)
    found = compared(changes[:, order], list(groups[order]), gaps[order])
    all_deals = list(deals(range(n), sizes))
    observed = np.array([by_hand(row, gaps, all_deals[0]) for row in changes])
    dealt = np.array([[by_hand(row, gaps, deal) for row in changes] for deal in all_deals])
    np.testing.assert_allclose(found.p, (dealt >= observed * (1 - 1e-9)).mean(axis=0))
    corrected = (dealt.max(axis=1)[:, None] >= observed * (1 - 1e-9)).mean(axis=0)
    np.testing.assert_allclose(found.p_corrected, corrected)
    assert found.significant.tolist() == [False, True, False, False, False]


@pytest.mark.slow
def test_many_deals_are_drawn_and_agree_with_all_of_them():
    random = np.random.default_rng(2)
    changes, groups = random.normal(size=(3, 14)), ["a"] * 5 + ["b"] * 5 + ["c"] * 4
    changes[0, :5] += 1
    found = compared(changes, groups)
    all_deals = [np.concatenate(deal) for deal in itertools.islice(deals(range(14), (5, 5, 4)), 0, None, 31)]
    members = [list(range(5)), list(range(5, 10)), list(range(10, 14))]
    for row, p in zip(changes, found.p):
        observed = by_hand(row, np.ones(14), members)
        share = np.mean([by_hand(row[deal], np.ones(14), members) >= observed for deal in all_deals])
        assert abs(share - p) < 4 * np.sqrt(share * (1 - share) * (1 / N_DEALS + 1 / len(all_deals)))
    assert compared(changes, groups, seed=1).p[0] != found.p[0] and compared(changes, groups).p[0] == found.p[0]
    assert found.smallest_p == 1 / (N_DEALS + 1)


def test_neither_units_nor_rounding_nor_idle_sites_count():
    random = np.random.default_rng(3)
    changes, groups = random.normal(size=(4, 12)), ["a", "b"] * 6
    changes[2], changes[3] = 0, 7
    gaps = random.uniform(-3, -1, 12)
    changes[3] = 0.3 * gaps
    found = compared(changes, groups, gaps)
    assert found.p[2] == found.p_corrected[2] == 1 and not found.significant[2:].any()
    for unit in (1e-150, 1e150):
        np.testing.assert_array_equal(compared(unit * changes, groups, unit * gaps).p, found.p)


def test_groups_without_enough_pairs_or_with_gaps_that_cancel_are_left_out():
    changes = np.random.default_rng(4).normal(size=(2, 14))
    groups = ["a"] * 5 + ["b"] * 5 + [""] * 1 + ["few"] * 3
    found = compared(changes, groups)
    assert (found.groups, found.left_out) == (("a", "b"), ("few",)) and FEWEST_OF_A_GROUP == 4
    assert compared(changes, ["a"] * 11 + ["few"] * 3) is None
    assert compared(changes, [""] * 14) is None and compared(changes, ["a"] * 14) is None
    cancel = np.ones(14)
    cancel[5:10] = 1, -1, 2, -1, -1
    assert compared(changes, groups, cancel) is None


def test_the_sentence_names_the_site_that_differs_most_and_is_silent_about_what_is_small():
    random = np.random.default_rng(5)
    groups = ["IO first", "subject first"] * 8
    changes = 0.5 + 0.01 * random.normal(size=(5, 16))
    changes[1, 1::2] += 0.3
    changes[3, ::2] -= 1.25
    found = compared(changes, groups)
    assert found.sentence.startswith(
        "effects differ between groups of pairs: s3 is -0.74 in 8 pairs (IO first) and +0.50 in 8 pairs (subject "
        "first), corrected p 0.0005, 1 more site differs too"
    )
    np.testing.assert_allclose(found.spread, np.ptp(found.effects, axis=1))
    small = 0.5 + 0.001 * random.normal(size=(3, 16))
    small[0, ::2] += 0.9 * WORTH_SAYING
    quiet = compared(small, groups)
    assert quiet.significant[0] and quiet.sentence == ""
    table = found.to_dataframe()
    assert list(table) == ["site", "IO first", "subject first", "p", "p_corrected", "significant"]
    assert table["significant"].tolist() == found.significant.tolist() == [False, True, False, True, False]


def test_statistics_of_a_map_compare_its_groups():
    random = np.random.default_rng(6)
    patched, groups = random.normal(size=(3, 12)), ["a", "b"] * 6
    patched[1, ::2] += 9
    found = site_statistics(patched, np.zeros(12), np.full(12, 4.0), groups=groups, sites=["x", "y", "z"])
    assert found.notes[0] == found.differences.sentence != "" and "y is" in found.notes[0]
    alone = site_statistics(patched, np.zeros(12), np.full(12, 4.0), sites=["x", "y", "z"])
    assert alone.differences is None and alone.notes == found.notes[1:]
    np.testing.assert_array_equal(alone.low, found.low)
    few = site_statistics(patched[:, :7], np.zeros(7), np.full(7, 4.0), groups=groups[:7])
    assert few.differences is None and few.notes[0].startswith("effects are not compared between the 2 groups")
    with pytest.raises(ValueError, match="groups has 3 entries, expected one per pair"):
        site_statistics(patched, np.zeros(12), np.full(12, 4.0), groups=["a", "b", "c"])


@pytest.mark.quick(1)
@pytest.mark.parametrize(("scatter", "sizes"), thinned(["normal", "exponential"], [(5, 5), (24, 6)]))
def test_where_no_effect_differs_a_map_seldom_has_a_site_that_seems_to(scatter, sizes):
    """At gaps of other size in each group; in 100 maps, within three standard errors of 0.05."""
    random, found = np.random.default_rng(7), 0
    gaps = np.repeat([1.0, 1.5], sizes)
    for _ in range(100):
        shape = (20, sum(sizes))
        noise = random.normal(size=shape) if scatter == "normal" else random.exponential(size=shape) - 1
        differences = compared(0.5 * gaps + noise, np.repeat(["a", "b"], sizes).tolist(), gaps)
        found += differences.significant.any()
    assert found / 100 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
