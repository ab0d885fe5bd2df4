"""Agreement over all sites: SciPy's where all are verified, unbiased and covered where a sample is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from actpatch.statistics.screening import VerifiedSites, pearson, rank_correlation, recall, spearman
from actpatch.statistics.unverified import counts_above

N_SITES, N_TOP = 600, 30


def population(seed: int = 0, n_sites: int = N_SITES, n_missed: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and exact effects, heavy in their tails; some of the largest have an estimate of almost 0."""
    random = np.random.default_rng(seed)
    exact = 0.05 * random.standard_t(3, n_sites)
    estimates = exact + 0.02 * random.normal(size=n_sites)
    estimates[np.argsort(-np.abs(exact))[3 : 3 + n_missed]] *= 0.01
    return estimates, exact


def complete(estimates: np.ndarray, exact: np.ndarray) -> VerifiedSites:
    return VerifiedSites(estimates, exact, np.zeros(len(exact), dtype=bool))


def sampled(
    estimates: np.ndarray, exact: np.ndarray, random: np.random.Generator, n_sample: int = 100, n_top: int = N_TOP
) -> VerifiedSites:
    is_top = np.zeros(len(exact), dtype=bool)
    is_top[np.argsort(-np.abs(estimates), kind="stable")[:n_top]] = True
    drawn = random.choice(np.flatnonzero(~is_top), n_sample, replace=False)
    known = is_top.copy()
    known[drawn] = True
    return VerifiedSites(estimates, np.where(known, exact, np.nan), is_top)


def overlap(estimates: np.ndarray, exact: np.ndarray, k: int) -> float:
    return len(set(np.argsort(-np.abs(estimates))[:k]) & set(np.argsort(-np.abs(exact))[:k])) / k


def test_where_all_sites_are_verified_the_numbers_are_scipys_and_recall_a_count():
    estimates, exact = population()
    for is_top in (np.zeros(N_SITES, dtype=bool), np.arange(N_SITES) < 50, np.ones(N_SITES, dtype=bool)):
        sites = VerifiedSites(estimates, exact, is_top)
        assert pearson(sites, n_resamples=9).value == pytest.approx(stats.pearsonr(estimates, exact).statistic)
        assert spearman(sites, n_resamples=9).value == pytest.approx(stats.spearmanr(estimates, exact).statistic)
        for k in (1, 7, 20, 200, N_SITES):
            assert recall(sites, k) == (overlap(estimates, exact, k),) * 3
    assert recall(complete(estimates, exact), N_SITES).value == 1 > recall(complete(estimates, exact), 20).value > 0


def test_ties_share_ranks():
    random = np.random.default_rng(0)
    estimates, exact = random.integers(0, 4, 50).astype(float), random.integers(0, 5, 50).astype(float)
    assert spearman(complete(estimates, exact), n_resamples=9).value == pytest.approx(
        stats.spearmanr(estimates, exact).statistic
    )


def test_a_site_of_the_sample_counts_as_so_many_sites():
    random = np.random.default_rng(0)
    sites = sampled(*population(), random, n_sample=57)  # of 570: ten each
    copies = np.repeat(np.arange(N_SITES), sites.weights.round().astype(int))
    assert len(copies) == N_SITES
    repeated = sites.estimates[copies], sites.exact[copies]
    assert pearson(sites, n_resamples=9).value == pytest.approx(stats.pearsonr(*repeated).statistic)
    assert spearman(sites, n_resamples=9).value == pytest.approx(stats.spearmanr(*repeated).statistic)
    chosen = sites.verified
    assert rank_correlation(sites.estimates[chosen], sites.exact[chosen], sites.weights[chosen]) == pytest.approx(
        stats.spearmanr(*repeated).statistic
    )
    unweighted = stats.spearmanr(sites.estimates[chosen], sites.exact[chosen]).statistic
    assert abs(unweighted - stats.spearmanr(*repeated).statistic) > 0.01


def held_and_found(seed: int, n_missed: int, n_draws: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often intervals hold the numbers of all sites, the mean of the values, and those numbers: of Pearson's and of
    Spearman's correlation, and of recall at 20."""
    estimates, exact = population(seed, n_missed=n_missed)
    truth = np.array(
        [
            stats.pearsonr(estimates, exact).statistic,
            stats.spearmanr(estimates, exact).statistic,
            overlap(estimates, exact, 20),
        ]
    )
    random = np.random.default_rng(seed)
    held, values = np.zeros(3), []
    for draw in range(n_draws):
        sites = sampled(estimates, exact, random)
        found = [of(sites, n_resamples=299, seed=draw) for of in (pearson, spearman)] + [recall(sites, 20)]
        held += [one.low <= true <= one.high for one, true in zip(found, truth)]
        values.append([one.value for one in found])
        assert found[2].low <= found[2].value <= found[2].high
    return held / n_draws, np.mean(values, axis=0), truth


@pytest.mark.quick(1)
@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_hold_the_number_of_all_sites_as_often_as_they_promise(seed):
    held, found, truth = held_and_found(seed, n_missed=0)
    assert (held >= 0.95 - 2.6 * math.sqrt(0.05 * 0.95 / 200)).all()
    assert (np.abs(found - truth) <= [0.01, 0.01, 0.05]).all()  # recall goes in steps of a site of the sample


def test_rare_large_misses_are_in_the_intervals_of_recall_and_ranks_but_not_of_pearsons_correlation():
    held, found, truth = held_and_found(0, n_missed=6)
    assert (held[1:] >= 0.95 - 2.6 * math.sqrt(0.05 * 0.95 / 200)).all()
    assert 0.6 < held[0] < 0.8  # a sample of 100 among 570 has none of six in three of ten
    assert (np.abs(found - truth) <= [0.05, 0.02, 0.08]).all()


def test_other_sites_alike_would_give_correlations_within_the_intervals():
    random = np.random.default_rng(0)
    correlation, held = 0.7, np.zeros(2)
    truth = correlation, 6 / math.pi * math.asin(correlation / 2)
    for draw in range(200):
        first, second = random.normal(size=(2, 60))
        sites = complete(first, correlation * first + math.sqrt(1 - correlation**2) * second)
        found = [of(sites, n_resamples=299, seed=draw) for of in (pearson, spearman)]
        held += [one.low <= true <= one.high for one, true in zip(found, truth)]
    assert (held / 200 >= 0.9).all()  # of a percentile bootstrap with 60 sites


def test_limits_of_recall_are_what_the_bounds_on_others_allow():
    exact = np.array([10.0, 9.0, 8.0, 7.0, 6.0, *np.linspace(1, 0.1, 45)])
    estimates = exact.copy()
    random = np.random.default_rng(0)
    sites = sampled(estimates, exact, random, n_sample=35, n_top=5)
    _, most = counts_above(45, 35, 0, 0.975)
    assert recall(sites, 5) == (1.0, (5 - most) / 5, 1.0) and 0 < most < 5
    sites.exact[np.flatnonzero(sites.is_sample)[0]] = -9.5  # stands for 45/35 sites, of which one is sure
    fewest, most = counts_above(45, 35, 1, 0.975)
    assert recall(sites, 5) == (0.6, max(0, 5 - most) / 5, (5 - fewest) / 5) and fewest == 1
    unsampled = VerifiedSites(estimates, np.where(sites.is_top, exact, np.nan), sites.is_top)
    found = recall(unsampled, 5)
    assert math.isnan(found.value) and (found.low, found.high) == (0.0, 1.0)


def test_without_a_sample_or_anything_that_varies_there_is_no_number():
    estimates, exact = population()
    is_top = np.arange(N_SITES) < 50
    none = VerifiedSites(estimates, np.where(is_top, exact, np.nan), is_top)
    flat = complete(np.full(20, 0.3), population(0, 20)[1])
    for of in (pearson, spearman):
        assert all(math.isnan(number) for number in (*of(none), *of(flat)))
    few = complete(*population(0, 4, 0))
    assert not math.isnan(pearson(few).value) and math.isnan(pearson(few).low)


def test_numbers_hang_on_neither_scale_nor_units_and_repeat_by_seed():
    estimates, exact = population()
    sites = sampled(estimates, exact, np.random.default_rng(0))
    tiny = VerifiedSites(1e-9 * estimates, 1e-12 * sites.exact, sites.is_top)
    for of in (pearson, spearman):
        np.testing.assert_allclose(of(sites), of(tiny), rtol=1e-9)
        assert of(sites) == of(sites) != of(sites, seed=1)
    assert recall(sites, 20) == recall(tiny, 20)


def test_recall_beyond_the_top_and_what_is_no_k_are_refused():
    sites = sampled(*population(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="recall at 31 needs the 31 largest estimates verified, 30 of them are"):
        recall(sites, 31)
    for k in (0, N_SITES + 1, 2.0, True):
        with pytest.raises(ValueError, match="expected a whole number from 1 to the number of sites, 600"):
            recall(sites, k)


def test_arrays_that_do_not_fit_are_refused():
    estimates, exact = population()
    with pytest.raises(ValueError, match="expected one entry a site"):
        VerifiedSites(estimates, exact[1:], exact > 0)
    with pytest.raises(ValueError, match="1 estimates are not finite"):
        VerifiedSites(np.where(np.arange(N_SITES) == 3, np.nan, estimates), exact, exact > 0)
    with pytest.raises(ValueError, match="1 sites of the top have no exact effect"):
        VerifiedSites(estimates, np.where(np.arange(N_SITES) == 3, np.nan, exact), np.arange(N_SITES) < 5)
