"""Intervals, p-values and their reach hold what they promise: by simulation, against scipy, and by enumeration."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from actpatch.statistics import resampling as patching_resampling
from actpatch.statistics.resampling import detectable_size, ratio_intervals, sign_flip_p_values, split_half_agreement
from actpatch.statistics.site_tests import Correction
from actpatch.statistics.sites import site_statistics
from actpatch.statistics.skewness import skewed_p_values
from test_suite.helpers.statistics import random_map

EFFECT = 0.3
Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]
SCATTER: dict[str, Draw] = {
    "normal": lambda rng, gaps: EFFECT * gaps + rng.standard_normal(gaps.shape),
    "exponential": lambda rng, gaps: EFFECT * gaps + rng.exponential(1, gaps.shape) - 1,
    "lognormal": lambda rng, gaps: EFFECT * gaps + rng.lognormal(0, 1, gaps.shape) - np.exp(0.5),
    "one of three": lambda rng, gaps: (rng.random(gaps.shape) < 1 / 3) * rng.exponential(3 * EFFECT, gaps.shape) * gaps,
}
"""How the changes of simulated sites come about from the gaps; the true effect is `EFFECT` for each."""


def documented_coverage() -> list[tuple[str, int, float]]:
    """(scatter, pairs, share of intervals that held the effect), as the module says."""
    assert patching_resampling.__doc__
    rows = re.findall(r"^ +(\d+)((?: +0\.\d{3}){4})   \|", patching_resampling.__doc__, re.MULTILINE)
    return [(name, int(n), float(share)) for n, row in rows for name, share in zip(SCATTER, row.split(), strict=True)]


def coverage(scatter: Draw, n_pairs: int, *, n_gaps: int, n_sites: int, n_resamples: int) -> tuple[float, float]:
    """Share of intervals that hold the effect, and its standard error: sites that share their gaps are one draw."""
    rng = np.random.default_rng(n_pairs)
    held = []
    for seed in range(n_gaps):
        gaps = 5 + rng.standard_normal(n_pairs)
        changes = scatter(rng, np.tile(gaps, (n_sites, 1)))
        low, high = ratio_intervals(changes, gaps, n_resamples=n_resamples, seed=seed)
        given = ~np.isnan(low)
        held.append(((low <= EFFECT) & (high >= EFFECT))[given].mean() if given.any() else np.nan)
    shares = np.array(held)[~np.isnan(held)]
    return float(shares.mean()), float(shares.std(ddof=1) / np.sqrt(len(shares)))


@functools.cache
def quick_coverage(name: str, n_pairs: int) -> tuple[float, float]:
    return coverage(SCATTER[name], n_pairs, n_gaps=80, n_sites=12, n_resamples=399)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_documented_coverage_is_that_of_each_scatter_and_number_of_pairs():
    found = documented_coverage()
    assert {(name, n) for name, n, _ in found} == set(itertools.product(SCATTER, (5, 10, 20, 50)))
    assert all(abs(share - 0.95) < 0.01 for name, _, share in found if name == "normal")


@pytest.mark.parametrize(("name", "n_pairs", "documented"), documented_coverage())
def test_intervals_cover_as_often_as_documented(name, n_pairs, documented):
    found, error = quick_coverage(name, n_pairs)
    assert abs(found - documented) < 3 * error + 0.0005


def test_intervals_cover_as_often_as_documented_on_the_whole():
    """All settings together show what is too little for each: intervals a twentieth too short."""
    found = [(*quick_coverage(name, n_pairs), documented) for name, n_pairs, documented in documented_coverage()]
    difference = np.mean([share - documented for share, _, documented in found])
    assert abs(difference) < 3 * np.sqrt(sum(error**2 for _, error, _ in found)) / len(found) + 0.0005


@pytest.mark.slow
@pytest.mark.one_version
@pytest.mark.parametrize(("name", "n_pairs", "documented"), documented_coverage())
def test_intervals_cover_as_often_as_documented_in_many_experiments(name, n_pairs, documented):
    found, error = coverage(SCATTER[name], n_pairs, n_gaps=4000, n_sites=1, n_resamples=1999)
    assert abs(found - documented) < 3 * np.sqrt(2) * error + 0.0005  # both are measured


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_intervals_cover_as_often_as_any_level_says(level):
    rng, held = np.random.default_rng(1), []
    for seed in range(100):
        gaps = 5 + rng.standard_normal(15)
        low, high = ratio_intervals(SCATTER["normal"](rng, np.tile(gaps, (12, 1))), gaps, level=level, seed=seed)
        held.append(((low <= EFFECT) & (high >= EFFECT)).mean())
    assert abs(np.mean(held) - level) < 3 * np.std(held, ddof=1) / np.sqrt(len(held))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("n_pairs", [8, 12, 40])
def test_intervals_are_those_of_scipys_bootstrap_of_the_pivot(n_pairs, sign):
    rng = np.random.default_rng(n_pairs)
    gaps = 5 + rng.standard_normal(n_pairs)
    changes = SCATTER["exponential"](rng, gaps)
    effect = changes.mean() / gaps.mean()

    def pivot(values: np.ndarray, axis: int = -1) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return values.mean(axis) / (values.std(axis, ddof=1) / np.sqrt(values.shape[axis]))

    resampled = stats.bootstrap(
        (changes - effect * gaps,), pivot, n_resamples=19_999, vectorized=True, method="percentile", rng=0
    )
    quantiles = np.quantile(resampled.bootstrap_distribution, [0.975, 0.025])
    expected = [
        optimize.brentq(lambda at, q=q: float(pivot(changes - at * gaps)) - q, effect - 5, effect + 5)
        for q in quantiles
    ]
    found = [end[0] for end in ratio_intervals(sign * changes[None], sign * gaps, n_resamples=19_999)]
    np.testing.assert_allclose(found, expected, atol=0.05 * (expected[1] - expected[0]))
    assert found[0] < effect < found[1]


def test_interval_ends_have_the_pivots_of_the_resamples_quantiles():
    rng = np.random.default_rng(3)
    gaps = 4 + rng.standard_normal(9)
    changes = SCATTER["normal"](rng, np.tile(gaps, (5, 1)))
    counts = np.random.default_rng(8).multinomial(9, np.full(9, 1 / 9), 199)
    for row, low, high in zip(changes, *ratio_intervals(changes, gaps, n_resamples=199, seed=8, level=0.9)):
        residuals = row - row.mean() / gaps.mean() * gaps
        drawn = [np.repeat(residuals, count) for count in counts]
        pivots = np.sort([values.mean() / (values.std(ddof=1) / 3) for values in drawn])
        for end, expected in ((low, pivots[-10]), (high, pivots[9])):
            values = row - end * gaps
            assert values.mean() / (values.std(ddof=1) / 3) == pytest.approx(expected, abs=1e-6)


def test_interval_has_no_end_where_resamples_leave_out_all_that_changed():
    gaps = np.array([5.0, 4.0, 6.0, 5.5, 4.5, 5.2])
    once = np.array([[0, 0, 0, 0, 0, 4.0]])
    low, high = ratio_intervals(once, gaps)
    assert np.isfinite(low).all() != np.isfinite(high).all() or np.isinf([low, high]).all()
    found = site_statistics(once, np.zeros(6), gaps)
    assert any("1 interval without an end" in note for note in found.notes)


DEGENERATE_GAPS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "constant": lambda rng, n: np.full(n, 5.0),
    "both ways": lambda rng, n: rng.choice([-1.0, 1.0], n),
    "about 0": lambda rng, n: rng.standard_normal(n),
    "huge": lambda rng, n: 1e200 * (1 + rng.random(n)),
    "one large": lambda rng, n: np.where(np.arange(n) == 0, 1e3, 1e-3),
}
DEGENERATE_CHANGES: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "none": lambda rng, gaps: np.zeros((4, len(gaps))),
    "in proportion": lambda rng, gaps: rng.random((4, 1)) * gaps,
    "one pair": lambda rng, gaps: np.where(np.arange(len(gaps)) == 1, gaps, 0) * np.ones((4, 1)),
    "few": lambda rng, gaps: np.abs(gaps).max() * rng.choice([-1.0, 0, 0, 0, 1.0], (4, len(gaps))),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("gaps_are", "changes_are"), list(itertools.product(DEGENERATE_GAPS, DEGENERATE_CHANGES)))
def test_degenerate_values_leak_no_warning_and_no_made_up_number(gaps_are, changes_are):
    rng = np.random.default_rng(0)
    for n_pairs in (1, 2, 5, 6, 9, 16):
        gaps = DEGENERATE_GAPS[gaps_are](rng, n_pairs)
        changes = DEGENERATE_CHANGES[changes_are](rng, gaps)
        if gaps.sum() == 0:
            with pytest.raises(ValueError, match="gaps between base and source cancel"):
                site_statistics(changes, np.zeros(n_pairs), gaps, n_resamples=99)
            low, high = ratio_intervals(changes, gaps, n_resamples=99)
            assert np.isnan([low, high]).all()
            continue
        found = site_statistics(changes, np.zeros(n_pairs), gaps, n_resamples=99)
        known = ~np.isnan(found.low)
        assert (known <= (n_pairs >= 5)).all() and (found.low <= found.effect)[known].all()
        assert (found.effect <= found.high)[known].all() and not np.isnan([found.p, found.p_corrected]).any()
        assert np.isnan(found.split_half) or -1 <= found.split_half <= 1
        assert np.isnan(found.reliability) or -1 <= found.reliability <= 1
        if np.isnan(found.split_half) and n_pairs > 1:
            assert any("no split-half agreement" in note for note in found.notes)


def test_interval_over_equal_gaps_is_that_of_the_mean_change():
    """Fieller's pivot is then Student's: both ends are the mean change less a quantile of standard errors."""
    gaps, counts = np.full(9, 4.0), np.random.default_rng(8).multinomial(9, np.full(9, 1 / 9), 199)
    changes = np.random.default_rng(3).standard_normal((3, 9)) + 1
    for row, low, high in zip(changes, *ratio_intervals(changes, gaps, n_resamples=199, seed=8, level=0.9)):
        drawn = [np.repeat(row - row.mean(), count) for count in counts]
        pivots = np.sort([values.mean() / (values.std(ddof=1) / 3) for values in drawn])
        for end, pivot in ((low, pivots[-10]), (high, pivots[9])):
            assert end == pytest.approx((row.mean() - pivot * row.std(ddof=1) / 3) / 4)


def test_halves_whose_gaps_cancel_have_no_agreement():
    changes, gaps = np.random.default_rng(0).standard_normal((5, 8)), np.tile([1.0, -0.1, 0.1], 3)[:8]
    assert -1 < split_half_agreement(changes, np.abs(gaps)) < 1
    assert np.isnan(split_half_agreement(changes, np.array([1, -1, 1, 1, 1, -1, 1, -1.0])))


@pytest.mark.parametrize("constant", [0.0, 0.25, 1.0])
def test_no_interval_where_all_pairs_have_exactly_one_effect(constant):
    gaps = np.arange(4.0, 12.0)
    found = site_statistics(np.stack([constant * gaps, gaps**1.5]), np.zeros(8), gaps)
    assert np.isnan(found.low[0]) and np.isnan(found.high[0]) and np.isfinite([found.low[1], found.high[1]]).all()
    assert any("no interval for 1 site with exactly one effect on all pairs" in note for note in found.notes)


# --- significance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_pairs", [1, 2, 5, 9])
@pytest.mark.parametrize("whole", [False, True])
def test_sign_flips_equal_enumeration_and_scipy(n_pairs, whole):
    changes = np.random.default_rng(n_pairs).normal(0.5, 1, (6, n_pairs))
    changes = np.round(changes) if whole else changes  # whole numbers tie
    signs = np.array(list(itertools.product([1, -1], repeat=n_pairs)))
    for row, p in zip(changes, sign_flip_p_values(changes)):
        sums = np.abs((signs * row).sum(axis=1))
        assert p == np.mean(sums >= abs(row.sum()) - 1e-9)
        if n_pairs > 1:
            expected = stats.permutation_test(
                (row,), lambda values, axis: np.abs(values.sum(axis)), permutation_type="samples", alternative="greater"
            )
            assert p == pytest.approx(expected.pvalue)


def test_random_flips_come_near_every_pattern():
    changes = np.random.default_rng(5).normal(0.3, 1, (40, 12))
    exact, drawn = sign_flip_p_values(changes), sign_flip_p_values(changes, n_flips=2000)
    error = np.sqrt(exact * (1 - exact) / 2000)
    assert (np.abs(drawn - exact) < 4 * error + 1 / 2001).all() and (drawn != exact).any()
    alike = np.ones((1, 40))
    assert sign_flip_p_values(alike) == 1 / 10_000


@pytest.mark.parametrize("n_pairs", [8, 30])
@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy"])
def test_p_values_are_as_small_under_no_effect_as_they_say(n_pairs, draw):
    changes = getattr(np.random.default_rng(7), draw)((2000, n_pairs))
    p = sign_flip_p_values(changes, n_flips=999)
    for share in (0.0625, 0.25, 0.5):
        assert abs(np.mean(p <= share) - share) < 3 * np.sqrt(share * (1 - share) / 2000) + 1 / 1000


@pytest.mark.quick(1)
@pytest.mark.parametrize("correction", ["bh", "by"])
@pytest.mark.parametrize("correlated", [False, True])
def test_under_no_effect_a_map_has_a_significant_site_at_most_as_often_as_alpha(correlated, correction):
    rng, maps = np.random.default_rng(2), 150
    wrong = 0
    for _ in range(maps):
        changes = rng.standard_normal((20, 10)) + (2 * rng.standard_normal(10) if correlated else 0)
        gaps = 5 + rng.standard_normal(10)
        found = site_statistics(changes, np.zeros(10), gaps, alpha=0.1, correction=correction, n_resamples=39)
        wrong += found.significant.any()
    assert wrong / maps < 0.1 + 3 * np.sqrt(0.1 * 0.9 / maps)
    if correction == "bh" and not correlated:
        assert wrong > 0


def test_share_of_wrong_sites_among_the_significant_is_at_most_alpha():
    rng, shares, hits = np.random.default_rng(4), [], 0
    for _ in range(150):
        changes = rng.standard_normal((40, 11)) + 0.7 * rng.standard_normal(11)
        changes[:10] += 1.5
        significant = site_statistics(changes, np.zeros(11), np.full(11, 5.0), alpha=0.1, n_resamples=39).significant
        shares.append(significant[10:].sum() / max(1, significant.sum()))
        hits += significant[:10].sum()
    assert np.mean(shares) < 0.1 + 3 * np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert hits > 750


@pytest.mark.parametrize("correction", ["bh", "by"])
def test_corrected_p_values_equal_a_step_up_by_hand(correction):
    for seed in range(20):
        found = site_statistics(*random_map(seed), correction=correction, n_resamples=39)
        m = len(found.p)
        harmonic = sum(1 / i for i in range(1, m + 1)) if correction == "by" else 1
        for i in range(m):
            expected = min(1, *(p * m * harmonic / np.sum(found.p <= p) for p in found.p if p >= found.p[i]))
            assert found.p_corrected[i] == pytest.approx(expected)
        np.testing.assert_array_equal(found.significant, found.p_corrected <= 0.05)


def test_sites_that_change_nothing_are_never_significant():
    patched, base, source = random_map(0)
    patched[3] = base
    found = site_statistics(patched, base, source)
    assert (found.effect[3], found.p[3], found.p_corrected[3]) == (0, 1, 1) and np.isnan(found.detectable[3])
    assert found.significant.any() and not found.significant[3]


# --- agreement and reach ----------------------------------------------------------------------------------------------


def test_split_halves_of_noise_do_not_agree_and_those_of_a_signal_do():
    rng = np.random.default_rng(6)
    gaps = 5 + rng.standard_normal(20)
    noise = [split_half_agreement(rng.standard_normal((50, 20)), gaps, seed=i) for i in range(60)]
    assert abs(np.mean(noise)) < 3 * np.std(noise, ddof=1) / np.sqrt(60) and np.std(noise) < 0.3
    signal = np.linspace(-1, 1, 50)[:, None] * gaps
    assert split_half_agreement(signal + 1e-3 * rng.standard_normal((50, 20)), gaps) > 0.999


def test_split_half_agreement_is_the_mean_over_all_halves():
    patched, base, source = random_map(1, n_pairs=6)
    changes, gaps = patched - base, source - base
    halves = [list(half) for half in itertools.combinations(range(6), 3)]
    effects = {tuple(half): changes[:, half].mean(axis=1) / gaps[half].mean() for half in halves}
    others = {half: tuple(sorted(set(range(6)) - set(half))) for half in effects}
    expected = [stats.spearmanr(effects[half], effects[others[half]]).statistic for half in effects]
    found = split_half_agreement(changes, gaps, n_splits=4000)
    assert found == pytest.approx(np.mean(expected), abs=3 * np.std(expected) / np.sqrt(4000))


def test_reliability_is_the_agreement_with_as_many_new_pairs():
    rng = np.random.default_rng(9)
    told, seen = [], []
    for seed in range(60):
        effects = 0.2 * rng.standard_normal((60, 1))
        gaps = 5 + rng.standard_normal(10)
        first, second = (effects * gaps + 3 * rng.standard_normal((60, 10)) for _ in range(2))
        told.append(site_statistics(first, np.zeros(10), gaps, seed=seed, n_resamples=39).reliability)
        seen.append(stats.spearmanr(first.mean(axis=1), second.mean(axis=1)).statistic)
    assert np.mean(told) == pytest.approx(np.mean(seen), abs=0.03)


@pytest.mark.parametrize(
    ("n_pairs", "alpha"),
    [
        (7, 0.05),
        (10, 0.05),
        (40, 0.05),
        (11, 0.05 / 16),
        (13, 0.05 / 16),
        (20, 0.05 / 16),
        (14, 0.05 / 144),
        (24, 0.001),
    ],
)
def test_an_effect_of_the_detectable_size_is_found_with_the_stated_power(n_pairs, alpha):
    """With few patterns of signs, with many, and where signs are drawn; the deviation is that of pairs seen before."""
    experiments = 1500
    size = detectable_size(n_pairs, alpha)
    before, changes = np.random.default_rng(1).standard_normal((2, experiments, n_pairs))
    changes += size * before.std(axis=1, ddof=1, keepdims=True) / np.sqrt(n_pairs)
    power = np.mean(sign_flip_p_values(changes) <= alpha)
    assert abs(power - 0.8) < 0.01 + 3 * np.sqrt(0.8 * 0.2 / experiments)


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_an_effect_of_the_detectable_size_is_found_with_the_stated_power_where_skewness_counts(weight):
    size = detectable_size(24, 0.002, weight=weight)
    assert size > detectable_size(24, 0.002) + 0.1
    before, changes = np.random.default_rng(1).standard_normal((2, 1500, 24))
    changes += size * before.std(axis=1, ddof=1, keepdims=True) / np.sqrt(24)
    means, scatter, skewness = (
        changes.mean(axis=1),
        changes.std(axis=1, ddof=1),
        stats.skew(changes, axis=1, bias=False),
    )
    p = np.maximum(sign_flip_p_values(changes), skewed_p_values(means, scatter, skewness, 24, weight))
    assert abs(np.mean(p <= 0.002) - 0.8) < 0.01 + 3 * np.sqrt(0.8 * 0.2 / 1500)


def test_no_size_is_detectable_where_skewness_leaves_too_few_claims():
    assert np.isnan(detectable_size(10, 0.002, weight=1.0)) and np.isfinite(detectable_size(10, 0.002))
    changes = np.eye(50, 11) + 0.01 * np.random.default_rng(0).standard_normal((50, 11))
    changes[11:] = changes[0]
    found = site_statistics(changes, np.zeros(11), np.full(11, 5.0), n_resamples=39)
    assert found.smallest_p < 0.05 / 50
    assert np.isnan(found.detectable_effect) and any("find no effect of one site alone" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.one_version
def test_detectable_effect_is_found_in_a_whole_map_with_the_stated_power():
    """A map says how large an effect would have been found; new pairs, with an effect of that size, find it."""
    rng, found, experiments = np.random.default_rng(10), 0, 200
    for _ in range(experiments):
        before, new = 2 * rng.standard_normal((2, 16, 20))
        told = site_statistics(before, np.zeros(20), np.full(20, 5.0), n_resamples=39)
        new[5] += 5 * told.detectable[5]
        found += site_statistics(new, np.zeros(20), np.full(20, 5.0), n_resamples=39).significant[5]
    assert abs(found / experiments - 0.8) < 3 * np.sqrt(0.8 * 0.2 / experiments)


def test_smallest_p_says_whether_one_site_alone_could_be_found():
    limits: list[tuple[Correction, int, int]] = [("bh", 16, 10), ("bh", 144, 13), ("by", 16, 12)]
    for (correction, n_sites, fewest), possible in itertools.product(limits, (False, True)):
        n_pairs = fewest if possible else fewest - 1
        changes = np.random.default_rng(0).standard_normal((n_sites, n_pairs))
        changes[0] = np.arange(1, n_pairs + 1)
        changes[1:, 0] = -changes[1:, 1:].sum(axis=1)  # p = 1
        found = site_statistics(changes, np.zeros(n_pairs), np.full(n_pairs, 5.0), correction=correction)
        assert found.p[0] == found.smallest_p == 2.0 ** (1 - n_pairs)
        assert found.significant[0] == possible and found.significant[1:].sum() == 0
        assert np.isnan(found.detectable_effect) != possible
        told = [note for note in found.notes if "no p can be below" in note]
        assert not told if possible else re.search(rf"use at least {n_pairs + 1} pairs", told[0])


def test_enough_signs_are_drawn_for_one_site_of_a_large_map():
    changes = np.random.default_rng(0).standard_normal((1000, 40))
    changes[7] = np.abs(changes[7]) + 1
    found = site_statistics(changes, np.zeros(40), np.full(40, 5.0), n_resamples=39)
    assert found.significant[7] and found.significant.sum() <= 2
