"""Whether statistics hold what they promise: by simulation, against scipy, against enumeration, and on a real sweep."""

from __future__ import annotations

import functools
import itertools
import re
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from activation_patching import ActivationPatcher, IOIDataset, summarize_results
from actpatch.results.shapes import HeadResults
from actpatch.statistics import resampling as patching_resampling
from actpatch.statistics.resampling import detectable_size, ratio_intervals, sign_flip_p_values, split_half_agreement
from actpatch.statistics.sites import Correction, SiteStatistics, site_statistics
from head_patching import HeadPatcher, print_head_results
from test_suite.helpers.models import bundled

PER_SITE = ("effect", "low", "high", "p", "p_corrected", "significant", "detectable")
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


def random_map(seed: int, n_sites: int = 16, n_pairs: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patched, base and source of a map whose effects go from 0 to 1."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(n_pairs)
    source = base + 5 + rng.standard_normal(n_pairs)
    share = np.linspace(0, 1, n_sites)[:, None] + 0.3 * rng.standard_normal((n_sites, n_pairs))
    return base + share * (source - base), base, source


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
@pytest.mark.model_free
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
    """With few patterns of signs, with many, and where signs are drawn."""
    experiments = 1500
    size = detectable_size(n_pairs, alpha)
    changes = np.random.default_rng(1).standard_normal((experiments, n_pairs)) + size / np.sqrt(n_pairs)
    power = np.mean(sign_flip_p_values(changes) <= alpha)
    assert abs(power - 0.8) < 0.01 + 3 * np.sqrt(0.8 * 0.2 / experiments)


def test_detectable_effect_is_found_in_a_whole_map_with_the_stated_power():
    rng, found = np.random.default_rng(10), 0
    size = detectable_size(20, 0.05 / 16) / np.sqrt(20)
    detectable, effect = [], size * 2 / 5
    for _ in range(100):
        changes = 2 * rng.standard_normal((16, 20))
        changes[5] += 5 * effect
        told = site_statistics(changes, np.zeros(20), np.full(20, 5.0), n_resamples=39)
        found += told.significant[5]
        detectable.append(told.detectable[5])
    assert abs(found / 100 - 0.8) < 3 * np.sqrt(0.8 * 0.2 / 100)
    assert np.mean(detectable) == pytest.approx(effect, rel=0.05)


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


# --- values, seeds and order ------------------------------------------------------------------------------------------


def assert_same(found: SiteStatistics, expected: SiteStatistics, **tolerance: float) -> None:
    for name in PER_SITE:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), **{"rtol": 0, **tolerance})
    np.testing.assert_allclose(found.split_half, expected.split_half, **{"rtol": 0, **tolerance})


@pytest.mark.parametrize("n_pairs", [7, 30])
def test_a_seed_gives_the_same_numbers_and_another_seed_others(n_pairs):
    patched, base, source = random_map(2, n_pairs=n_pairs)
    first, again, other = (site_statistics(patched, base, source, seed=seed) for seed in (3, 3, 4))
    assert_same(first, again)
    assert np.mean(first.low != other.low) > 0.8 and first.split_half != other.split_half
    assert (first.p == other.p).all() == (n_pairs == 7)
    np.testing.assert_allclose(first.high - first.low, other.high - other.low, rtol=0.5)


@pytest.mark.parametrize("n_pairs", [7, 30])
def test_numbers_do_not_depend_on_the_order_of_sites(n_pairs):
    # As few sites as need no more sign flips than four of them do.
    patched, base, source = random_map(3, n_sites=24, n_pairs=n_pairs)
    order = np.random.default_rng(0).permutation(24)
    plain, shuffled = site_statistics(patched, base, source), site_statistics(patched[order], base, source)
    for name in PER_SITE:
        np.testing.assert_allclose(getattr(shuffled, name), getattr(plain, name)[order], rtol=1e-9)
    assert shuffled.split_half == pytest.approx(plain.split_half, abs=1e-12)
    laid_out = site_statistics(np.asfortranarray(patched), base, source)
    assert_same(laid_out, plain)
    few = site_statistics(patched[5:9], base, source)
    for name in ("effect", "low", "high", "p"):
        np.testing.assert_allclose(getattr(few, name), getattr(plain, name)[5:9], rtol=1e-9)


def test_portions_of_sites_change_nothing(monkeypatch):
    patched, base, source = random_map(4, n_sites=50, n_pairs=30)
    whole = site_statistics(patched, base, source)
    monkeypatch.setattr(patching_resampling, "MOST_CELLS", 9000)
    changes, gaps = patched - base, source - base
    low, high = ratio_intervals(changes, gaps, seed=1)
    monkeypatch.undo()
    np.testing.assert_allclose([low, high], ratio_intervals(changes, gaps, seed=1), rtol=1e-9)
    assert_same(whole, site_statistics(patched, base, source))


def test_settings_change_what_they_are_about_and_nothing_else():
    patched, base, source = random_map(5)
    usual = site_statistics(patched, base, source)
    narrower, stricter, surer = (
        site_statistics(patched, base, source, **setting)
        for setting in ({"level": 0.5}, {"alpha": 0.01}, {"power": 0.95})
    )
    assert (narrower.high - narrower.low < 0.6 * (usual.high - usual.low)).all()
    assert 0 < stricter.significant.sum() < usual.significant.sum()
    sizes = [detectable_size(12, 0.05 / 16, power=power) for power in (0.8, 0.95)]
    np.testing.assert_allclose(surer.detectable / usual.detectable, sizes[1] / sizes[0])
    for found, changed in ((narrower, "low high"), (stricter, "significant detectable"), (surer, "detectable")):
        for name in set(PER_SITE) - set(changed.split()):
            np.testing.assert_array_equal(getattr(found, name), getattr(usual, name))


@pytest.mark.parametrize(("factor", "shift"), [(1, 100.0), (4.0, 0), (-2.0, 3.0)])
def test_units_and_origin_of_the_metric_do_not_matter(factor, shift):
    patched, base, source = random_map(5)
    moved = site_statistics(*(factor * values + shift for values in (patched, base, source)))
    assert_same(moved, site_statistics(patched, base, source), rtol=1e-6)


def test_table_of_statistics_has_a_row_per_site():
    patched, base, source = random_map(6)
    found = site_statistics(patched, base, source, sites=[f"site {i}" for i in range(16)])
    table = found.to_dataframe()
    assert list(table["site"]) == list(found.sites) and (table["n_pairs"] == 12).all()
    for name in PER_SITE:
        np.testing.assert_array_equal(table[name], getattr(found, name))
    np.testing.assert_allclose(table["effect"], (patched.mean(1) - base.mean()) / (source.mean() - base.mean()))
    assert len(repr(found)) < 200 and f"{found.significant.sum()} significant" in repr(found)


def test_few_pairs_have_no_made_up_numbers():
    patched, base, source = random_map(7)
    for n_pairs, said in (
        (1, "one pair does not show how much pairs differ"),
        (4, "4 pairs are too few for intervals"),
    ):
        found = site_statistics(patched[:, :n_pairs], base[:n_pairs], source[:n_pairs])
        assert np.isnan(found.low).all() and np.isnan(found.high).all() and np.isnan(found.detectable_effect)
        assert not found.significant.any() and found.notes[0].startswith(said)
    for n_pairs, rough in ((9, True), (10, False)):
        found = site_statistics(patched[:, :n_pairs], base[:n_pairs], source[:n_pairs])
        assert np.isfinite(found.low).all() and any("below 10 pairs" in note for note in found.notes) == rough
    idle = site_statistics(np.tile(base, (3, 1)), base, source)
    assert np.isnan(idle.detectable_effect) and any("no site changes anything" in note for note in idle.notes)
    alone = site_statistics(patched[:1], base, source)
    assert np.isnan(alone.split_half) and any("no split-half agreement" in note for note in alone.notes)


@pytest.mark.slow
@pytest.mark.model_free
def test_a_large_map_takes_two_seconds_and_little_memory():
    patched, base, source = random_map(8, n_sites=1000, n_pairs=100)
    tracemalloc.start()
    begin = time.process_time()
    site_statistics(patched, base, source)
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 2 and peak < 200 * 2**20


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": 0}, r"level is 0, expected a number between 0 and 1"),
        ({"level": 95}, r"level is 95, expected a number between 0 and 1, for instance 0\.95"),
        ({"level": float("nan")}, r"level is nan, expected a number between 0 and 1"),
        ({"alpha": 1.0}, r"alpha is 1\.0, expected a number between 0 and 1"),
        ({"power": -0.8}, r"power is -0\.8, expected a number between 0 and 1"),
        ({"power": 0.04}, r"power is 0\.04, expected more than alpha \(0\.05\)"),
        ({"seed": -1}, "seed is -1, expected an integer of at least 0"),
        ({"seed": None}, "seed is None, expected an integer of at least 0"),
        ({"seed": 0.5}, r"seed is 0\.5, expected an integer of at least 0"),
        ({"correction": "holm"}, "correction 'holm' is unknown: expected one of bh, by"),
        ({"n_resamples": 30}, r"n_resamples is 30, expected an integer of at least 39 for a level of 0\.95"),
        ({"n_resamples": 1e3}, r"n_resamples is 1000\.0, expected an integer of at least 39"),
        ({"sites": ["one"]}, r"patched has shape \(16, 12\), expected \(sites, pairs\) = \(1, 12\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        site_statistics(*random_map(0), **settings)


def test_fewest_resamples_of_a_level_are_enough():
    for level, fewest in ((0.95, 39), (0.9, 19), (0.99, 199)):
        found = site_statistics(*random_map(0), level=level, n_resamples=fewest)
        assert np.isfinite(found.low).all() and (found.low < found.high).all()


def test_values_without_statistics_are_refused():
    patched, base, source = random_map(0)
    with pytest.raises(ValueError, match="no pair is usable: use a corruption that breaks the behaviour"):
        site_statistics(patched[:, :0], base[:0], source[:0])
    with pytest.raises(ValueError, match="there are no sites"):
        site_statistics(patched[:0], base, source)
    with pytest.raises(ValueError, match="their mean is 0"):
        site_statistics(patched, base, base)
    for broken in (np.nan, np.inf):
        with pytest.raises(ValueError, match="source is NaN or inf at 1 pair, first 2: leave those pairs out"):
            site_statistics(patched, base, np.where(np.arange(12) == 2, broken, source))
        holed = patched.copy()
        holed[4, 1] = holed[6, 0] = broken
        with pytest.raises(ValueError, match="2 sites of 16 hold NaN or inf, first L1H0: leave those sites, or the"):
            site_statistics(holed, base, source, sites=[f"L{i // 4}H{i % 4}" for i in range(16)])


# --- on a real sweep --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_ioi_heads() -> tuple[HeadPatcher, HeadResults]:
    model = bundled()
    patcher = HeadPatcher(model, show_progress=False)
    metrics = ["logit_difference", "probability", "accuracy"]
    return patcher, patcher.run_all_heads_experiment(IOIDataset(model, 20), metrics=metrics)


def test_largest_head_of_the_bundled_model_is_significant(tiny_ioi_heads):
    _, results = tiny_ioi_heads
    found = results.statistics()
    sweep = results.sweep
    largest = int(np.abs(sweep.effects).argmax())
    assert found.significant[largest] and found.low[largest] > 0 and found.sites[largest] == results.top(1)[0].label
    np.testing.assert_allclose(found.effect, sweep.effects)
    assert ((found.low <= found.effect) & (found.effect <= found.high)).all() and 0.5 < found.split_half <= 1
    changes = sweep.patched - sweep.base
    expected = stats.false_discovery_control(stats.ttest_1samp(changes, 0, axis=1).pvalue)
    clear = np.abs(np.log10(expected / 0.05)) > 0.5
    assert clear.any() and (found.significant == (expected <= 0.05))[clear].all()


def test_statistics_are_of_the_selected_metric_and_the_usable_pairs(tiny_ioi_heads):
    _, results = tiny_ioi_heads
    chosen = results.by_metric("probability")
    values = chosen.sweep
    settings: dict[str, Any] = {"level": 0.8, "alpha": 0.2, "correction": "by", "power": 0.6, "n_resamples": 99}
    told, expected = (
        chosen.statistics(seed=5, **settings),
        site_statistics(values.patched, values.base, values.source, seed=5, **settings),
    )
    assert_same(told, expected)
    assert {name: getattr(told, name) for name in settings} == settings and told.sites == tuple(
        r.label for r in results
    )
    assert (chosen.statistics().low != results.statistics().low).all()
    idle = values.measured[values.selected]
    idle = replace(idle, corrupted=np.where(np.arange(20) < 3, idle.clean, idle.corrupted))
    with_idle = HeadResults(replace(values, measured=(idle,), selected=0))
    found = with_idle.statistics(seed=5)
    assert found.n_pairs == 17
    kept = slice(3, None)
    assert_same(found, site_statistics(values.patched[:, kept], values.base[kept], values.source[kept], seed=5))


def test_important_heads_can_be_those_that_are_significant(tiny_ioi_heads):
    patcher, results = tiny_ioi_heads
    significant = {label for label, sure in zip(results.statistics().sites, results.statistics().significant) if sure}
    large = {r.label for r in results if abs(r.effect) >= 0.1}
    assert significant - large and large - significant
    for threshold, alpha, expected in ((0.1, None, large), (None, 0.05, significant), (0.1, 0.05, large & significant)):
        found = patcher.find_important_heads(results, threshold, alpha=alpha)
        assert {r.label for r in found} == expected
        assert [abs(r.effect) for r in found] == sorted((abs(r.effect) for r in found), reverse=True)
    assert patcher.find_important_heads(results) == patcher.find_important_heads(list(results), threshold=0.1)
    first = results.sweep.measured[0]
    opposite = HeadResults(
        replace(results.sweep, measured=(replace(first, patched=2 * results.sweep.base - first.patched),))
    )
    for found in (opposite.top(4), patcher.find_important_heads(opposite)[:4]):
        assert [(r.label, r.effect) for r in found] == [(r.label, pytest.approx(-r.effect)) for r in results.top(4)]
    turned = HeadResults(results.sweep)
    turned.reverse()
    assert patcher.find_important_heads(turned, alpha=0.05) == patcher.find_important_heads(results, alpha=0.05)


def test_heads_that_cannot_be_selected_are_refused(tiny_ioi_heads):
    patcher, results = tiny_ioi_heads
    with pytest.raises(ValueError, match="results is a list, expected what run_all_heads_experiment returns: alpha"):
        patcher.find_important_heads(list(results), alpha=0.05)
    with pytest.raises(ValueError, match="threshold and alpha are both None, so nothing is selected"):
        patcher.find_important_heads(results, None)
    with pytest.raises(ValueError, match=r"alpha is 5, expected a number between 0 and 1"):
        patcher.find_important_heads(results, alpha=5)


def told_effect(found: SiteStatistics, i: int) -> str:
    """What a table says of a site, as a pattern; for a site that has an interval."""
    effect, low, high = (re.escape(f"{values[i]:+.3f}") for values in (found.effect, found.low, found.high))
    return rf"{effect} +\[ *{low}, +{high}\]"


def printed_heads(results: HeadResults, capsys: Any, **options: Any) -> str:
    capsys.readouterr()
    print_head_results(results, **options)
    return capsys.readouterr().out


def test_printed_heads_have_their_interval_and_a_mark_where_not_significant(tiny_ioi_heads, capsys):
    _, results = tiny_ioi_heads
    alone = HeadResults(replace(results.sweep, measured=results.sweep.measured[:1]))
    text = printed_heads(alone, capsys, top_k=16)
    found = alone.statistics()
    for i, label in enumerate(found.sites):
        (row,) = (line for line in text.splitlines() if line.startswith(f"{label} "))
        assert re.search(told_effect(found, i), row)
        assert ("n.s." in row) == (not found.significant[i])
    told = " ".join(text.split())
    assert "95% intervals. n.s.: p > 0.05 after Benjamini-Hochberg correction over 16 heads." in told
    assert f"Smallest effect that 20 pairs find with power 0.8: {found.detectable_effect:.3f} at the median" in told


def test_printed_intervals_of_several_metrics_are_those_of_each(tiny_ioi_heads, capsys):
    _, results = tiny_ioi_heads
    text = printed_heads(results, capsys, top_k=2)
    for metric in results.metrics:
        chosen = results.by_metric(metric)
        found = chosen.statistics()
        for label in (r.label for r in results.top(2)):
            i = found.sites.index(label)
            assert re.search(rf"^{label} .*{told_effect(found, i)}", text, re.MULTILINE)
        reach = f"{metric}: Smallest effect that 20 pairs find with power 0.8: {found.detectable_effect:.3f} at"
        assert reach in " ".join(text.split())
    assert "each metric apart" in text


@pytest.mark.parametrize("n_pairs", [1, 3, 6, 12])
def test_printed_tables_say_what_they_lack_in_80_columns(n_pairs, capsys):
    model = bundled()
    patcher = ActivationPatcher(model, show_progress=False)
    dataset = IOIDataset(model, n_pairs)
    names = ["attn_out", "resid_mid", "blocks.1.attn.hook_attn_scores", "hook_embed"]
    for metrics in (None, ["logit_difference", "rank", "log_probability", "accuracy"]):
        results = patcher.run_patching_experiment(dataset, names, metrics=metrics)
        capsys.readouterr()
        summarize_results(results, top_k=20)
        text = capsys.readouterr().out
        told = " ".join(text.split())
        assert max(map(len, text.splitlines())) <= 80
        assert ("95% interval" in text) == (n_pairs >= 5) and ("n.s." in text) == (n_pairs > 1)
        assert ("so there are no intervals and no significance: use at least 5 pairs." in told) == (n_pairs == 1)
        assert ("3 pairs are too few for intervals: use at least 5." in told) == (n_pairs == 3)
        assert ("below 10 pairs intervals are rough" in told) == (n_pairs == 6)


def test_tables_are_printed_where_there_are_no_statistics(tiny_ioi_heads, capsys):
    _, results = tiny_ioi_heads
    first = results.sweep.measured[0]
    idle = replace(first, corrupted=first.clean)
    nothing = printed_heads(HeadResults(replace(results.sweep, measured=(idle,))), capsys, top_k=2)
    assert "Note: no intervals and no significance: no pair is usable: use a corruption that" in nothing
    holed = replace(first, patched=np.where(np.eye(16, 20) > 0, np.nan, first.patched))
    text = printed_heads(HeadResults(replace(results.sweep, measured=(holed, *results.sweep.measured[1:]))), capsys)
    assert "Note on logit difference: no intervals and no significance: 16 sites of 16" in " ".join(text.split())
    assert "probability: Smallest effect that 20 pairs find" in " ".join(text.split())
