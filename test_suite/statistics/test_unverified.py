"""Bounds on what was not verified are those of enumeration, and hold as often as they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from actpatch.statistics.subsets import subset_bounds
from actpatch.statistics.unverified import bound_curve, counts_above, most_above

CONFIDENCE = 0.9


def chance_of_at_most(n_found: int, n_rest: int, m: int, n_sample: int) -> float:
    """Of all samples of so many, the share with at most `n_found` of the first m sites: one after the other."""
    samples = list(itertools.combinations(range(n_rest), n_sample))
    return sum(sum(site < m for site in sample) <= n_found for sample in samples) / len(samples)


def test_bounds_are_the_largest_and_smallest_numbers_that_no_enumeration_of_samples_contradicts():
    n_rest = 8
    for n_sample in range(n_rest + 1):
        table = {
            (m, x): chance_of_at_most(x, n_rest, m, n_sample)
            for m in range(n_rest + 1)
            for x in range(-1, n_sample + 1)
        }
        for x in range(n_sample + 1):
            possible = [m for m in range(n_rest + 1) if x <= m <= n_rest - n_sample + x]
            upper = max(m for m in possible if table[m, x] >= 1 - CONFIDENCE - 1e-12)
            lower = min(m for m in possible if 1 - table[m, x - 1] >= 1 - CONFIDENCE - 1e-12)
            assert counts_above(n_rest, n_sample, x, CONFIDENCE) == (lower, upper)
            assert most_above(n_rest, n_sample, x, CONFIDENCE) == upper - x


@pytest.mark.parametrize(("n_rest", "n_sample"), [(40, 12), (400, 60), (32_441, 200)])
def test_bounds_are_wrong_no_more_often_than_promised_whatever_the_truth(n_rest, n_sample):
    for m in np.unique(np.linspace(0, min(n_rest, 2000), 9).astype(int)).tolist():
        found = np.arange(n_sample + 1)
        chances = stats.hypergeom.pmf(found, n_rest, m, n_sample)
        seen = [x for x in found.tolist() if chances[x] > 1e-12]
        too_low = sum(chances[x] for x in seen if most_above(n_rest, n_sample, x) < m - x)
        too_high = sum(chances[x] for x in seen if counts_above(n_rest, n_sample, x, 0.95)[0] > m)
        assert too_low <= 0.05 and too_high <= 0.05


def test_a_sample_without_a_find_leaves_about_three_of_its_share_and_all_sites_leave_none():
    assert most_above(32_441, 200, 0) == 480
    assert most_above(100, 100, 7) == 0 and most_above(100, 0, 0) == 100
    assert most_above(100, 95, 0) == 0 and most_above(100, 94, 0) == 1


def test_the_curve_counts_the_sample_above_each_size():
    sample = np.array([0.1, -0.5, 0.2, 0.2, 0.0])
    curve = bound_curve(sample, 50, CONFIDENCE)
    assert curve.effects.tolist() == [0.5, 0.2, 0.1, 0.0]
    assert curve.most.tolist() == [most_above(50, 5, found, CONFIDENCE) for found in (0, 1, 3, 4)]
    assert curve.largest == math.inf
    assert bound_curve(sample, 5).largest == 0.0 and bound_curve(np.array([]), 5).most.tolist() == [5]
    assert bound_curve(np.linspace(0.01, 0.96, 96), 100).largest == 0.96


def test_each_step_of_the_curve_holds_although_its_size_is_the_samples_own():
    random = np.random.default_rng(0)
    effects = random.standard_t(2, 300)
    wrong = np.zeros(4)
    for _ in range(500):
        sample = random.choice(effects, 60, replace=False)
        curve = bound_curve(sample, 300)
        for i, step in enumerate((0, 3, 10, 30)):
            size = curve.effects[step]
            unverified = (np.abs(effects) > size).sum() - (np.abs(sample) > size).sum()
            wrong[i] += unverified > curve.most[step]
    assert (wrong / 500 <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 500)).all() and wrong.sum() > 0


@pytest.mark.parametrize("given", [(10, 11, 0), (10, 5, 6), (10, 5, -1), (10.0, 5, 1), (10, True, 0)])
def test_counts_that_cannot_be_are_refused(given):
    with pytest.raises(ValueError, match="expected whole numbers with 0 <= n_found <= n_sample <= n_rest"):
        most_above(*given)


@pytest.mark.parametrize("confidence", [0, 1, 95, True, "high", float("nan")])
def test_a_confidence_that_is_no_share_is_refused(confidence):
    with pytest.raises(ValueError, match=r"confidence is .*, expected a share between 0 and 1"):
        most_above(10, 5, 0, confidence)


def test_a_sample_with_unmeasured_effects_is_refused():
    with pytest.raises(ValueError, match="hold NaN"):
        bound_curve(np.array([0.1, np.nan]), 10)


# --- random sets of sites ---


def test_the_bound_of_a_site_is_welchs():
    random = np.random.default_rng(0)
    included, effects = random.random((40, 6)) < 0.4, random.normal(size=40)
    found = subset_bounds(included, effects, CONFIDENCE)
    assert (found.n_sets, found.confidence) == (40, CONFIDENCE)
    largest = 0.0
    for site in range(6):
        test = stats.ttest_ind(effects[included[:, site]], effects[~included[:, site]], equal_var=False)
        np.testing.assert_allclose(
            found.difference[site], effects[included[:, site]].mean() - effects[~included[:, site]].mean()
        )
        high = test.confidence_interval(2 * CONFIDENCE - 1)  # one side has the confidence
        np.testing.assert_allclose(found.bound[site], max(abs(high.low), abs(high.high)))
        joint = test.confidence_interval(1 - 2 * (1 - CONFIDENCE) / 6)
        largest = max(largest, abs(joint.low), abs(joint.high))
    np.testing.assert_allclose(found.largest, largest)


def test_effects_that_add_up_without_noise_are_found():
    included = np.array(list(itertools.product([False, True], repeat=3)))
    found = subset_bounds(included, included @ np.array([0.5, -2.0, 0.0]))
    np.testing.assert_allclose(found.difference, [0.5, -2.0, 0.0], atol=1e-12)
    alone = subset_bounds(included[:, :1], 0.5 * included[:, 0])
    np.testing.assert_allclose([alone.bound[0], alone.largest], [0.5, 0.5])


@pytest.mark.parametrize("effect", [0.0, 0.3, -1.0])
def test_bounds_hold_as_often_as_they_promise_where_effects_add_up_on_average(effect):
    random = np.random.default_rng(1)
    others = 0.1 * random.standard_t(3, 60)
    effects = np.array([effect, *others])
    wrong = wrong_of_any = 0
    for _ in range(400):
        included = random.random((50, 61)) < 0.3
        found = subset_bounds(included, included @ effects + 0.05 * random.normal(size=50))
        wrong += abs(effect) > found.bound[0]
        wrong_of_any += np.abs(effects).max() > found.largest
    assert max(wrong, wrong_of_any) / 400 <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / 400)
    assert wrong > 0 or abs(effect) < 0.5


def test_a_site_in_every_set_or_in_none_has_no_bound():
    included = np.array([[True, False, True], [True, False, False], [True, True, True], [True, False, False]])
    found = subset_bounds(included, np.arange(4.0))
    assert found.bound[:2].tolist() == [math.inf, math.inf] and found.largest == math.inf
    assert math.isnan(found.difference[0]) and found.difference[1] == pytest.approx(2 - 4 / 3)
    assert math.isfinite(found.bound[2])


@pytest.mark.parametrize(
    ("included", "effects", "told"),
    [
        (np.ones((3, 2), bool), np.ones(2), "an effect per subset"),
        (np.ones((3, 2)), np.ones(3), "expected truth values"),
        (np.ones((3, 0), bool), np.ones(3), "at least one site"),
        (np.ones((3, 2), bool), np.array([0, np.nan, np.inf]), "2 effects of subsets are not finite"),
    ],
)
def test_sets_that_do_not_fit_are_refused(included, effects, told):
    with pytest.raises(ValueError, match=told):
        subset_bounds(included, effects)
