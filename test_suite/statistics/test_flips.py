"""Sign flips are counted as in double precision, experiments are summed as they would be pair by pair, in portions."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from actpatch.statistics import flips, groups, resampling, simulated
from actpatch.statistics.flips import all_signs, counts_reaching, random_signs
from actpatch.statistics.groups import group_differences
from actpatch.statistics.resampling import ratio_intervals, sign_flip_p_values
from actpatch.statistics.sites import site_statistics

CHANGES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "whole": lambda rng, shape: rng.integers(-2, 3, shape).astype(float),
    "tenths, which tie": lambda rng, shape: 0.1 * rng.integers(-2, 3, shape),
    "lognormal": lambda rng, shape: np.exp(3 * rng.standard_normal(shape)) - 4,
    "few pairs": lambda rng, shape: np.where(rng.random(shape) < 0.05, rng.standard_normal(shape), 0.0),
    "one large among tiny": lambda rng, shape: (
        np.where(np.arange(shape[1]) < 1, 1.0, 1e-9) * rng.choice([-1, 1], shape)
    ),
    "huge": lambda rng, shape: 1e150 * rng.standard_normal(shape),
    "none": lambda rng, shape: np.zeros(shape),
}


def plain_signs(n_pairs: int, n_flips: int, seed: int) -> np.ndarray:
    """All at once, from one draw."""
    return 1.0 - 2.0 * np.random.default_rng(seed).integers(0, 2, size=(n_flips, n_pairs), dtype=np.int8)


@pytest.mark.parametrize("n_pairs", [1, 7, 30, 201, 1001])
@pytest.mark.parametrize("kind", CHANGES)
def test_counts_are_those_of_plain_sums_in_double_precision(kind, n_pairs, monkeypatch):
    monkeypatch.setattr(flips, "SITES_AT_ONCE", 13)
    changes = CHANGES[kind](np.random.default_rng(n_pairs), (40, n_pairs))
    signs = plain_signs(n_pairs, 1003, seed=5)
    sums, sizes = np.abs(signs @ changes.T), np.abs(changes).sum(axis=1)
    expected = (sums >= np.abs(changes.sum(axis=1)) - 1e-12 * sizes).sum(axis=0)
    np.testing.assert_array_equal(counts_reaching(changes, random_signs(n_pairs, 1003, 5)), expected)
    if 2 ** (n_pairs - 1) > 1004:  # else every pattern is looked at
        found = sign_flip_p_values(changes, n_flips=1003, seed=5)
        np.testing.assert_array_equal(found, (expected + 1) / 1004)


@pytest.mark.parametrize("n_pairs", [1, 3, 8, 11])
def test_every_pattern_with_a_last_plus_comes_once(n_pairs):
    signs = np.concatenate(list(all_signs(n_pairs)))
    assert len({tuple(row) for row in signs.tolist()}) == len(signs) == 2 ** (n_pairs - 1)
    assert (signs[:, -1] == 1).all() and set(np.unique(signs)) <= {-1, 1}


@pytest.mark.parametrize("n_pairs", [2, 5, 60])
def test_sums_of_powers_are_those_of_the_changes_with_what_is_added(n_pairs, monkeypatch):
    monkeypatch.setattr(simulated, "MOST_CELLS", 7 * n_pairs)
    found = simulated.simulated.__wrapped__(n_pairs)
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((simulated.N_SIMULATED, n_pairs))
    spread = np.sqrt(rng.chisquare(n_pairs - 1, simulated.N_SIMULATED) / (n_pairs - 1))
    np.testing.assert_array_equal(found.estimates, spread)
    np.testing.assert_array_equal(found.means, draws.mean(axis=1))
    for added in (0.0, 0.3, 100.0):
        sums = found.sums_of_powers(np.full(len(draws), added))
        for power, of_power in enumerate(sums, start=1):
            expected = ((draws + added) ** power).sum(axis=1)
            scale = (np.abs(draws + added) ** power).sum(axis=1)
            assert (np.abs(of_power - expected) <= 1e-12 * scale).all()


def test_portions_of_resamples_and_of_deals_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    changes, gaps = rng.standard_normal((30, 24)), 5 + rng.standard_normal(24)
    names, sites = ["one", "other"] * 12, [str(i) for i in range(30)]
    intervals = ratio_intervals(changes, gaps, n_resamples=199)
    differences = group_differences(changes, gaps, names, sites=sites)
    monkeypatch.setattr(resampling, "MOST_CELLS", 500)
    np.testing.assert_allclose(ratio_intervals(changes, gaps, n_resamples=199), intervals, rtol=1e-9)
    again = group_differences(changes, gaps, names, sites=sites)
    for name in ("effects", "p", "p_corrected"):
        np.testing.assert_allclose(getattr(again, name), getattr(differences, name), rtol=1e-12)


def test_corrected_p_values_of_groups_are_those_of_the_largest_statistic_of_each_deal():
    rng = np.random.default_rng(1)
    changes, gaps = rng.standard_normal((9, 12)), 5 + rng.standard_normal(12)
    found = group_differences(changes, gaps, ["one", "other"] * 6, sites=[str(i) for i in range(9)])
    order = [*range(0, 12, 2), *range(1, 12, 2)]
    scale = np.abs(gaps).max()
    members = np.repeat(np.eye(2), 6, axis=0)
    deals = groups._deals([6, 6], 0)
    _, each = groups._statistic(changes[:, order] / scale, gaps[order] / scale, members[deals])
    least = each[:, :1] * (1 - 1e-9)
    np.testing.assert_array_equal(found.p, (each >= least).mean(axis=1))
    np.testing.assert_array_equal(found.p_corrected, (each.max(axis=0) >= least).mean(axis=1))


def test_many_pairs_take_little_memory():
    """Numbers of one array, and the arrays at one time, are bounded whatever the pairs."""
    rng = np.random.default_rng(2)
    patched, base, source = rng.standard_normal((4, 3000)), np.zeros(3000), 5 + rng.standard_normal(3000)
    simulated.simulated.cache_clear()
    resampling.detectable_size.cache_clear()
    tracemalloc.start()
    site_statistics(patched, base, source, groups=["one", "other"] * 1500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20
