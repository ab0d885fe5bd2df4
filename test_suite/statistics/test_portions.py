"""Statistics of sites that come in portions are those of all at once, whatever the portions."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from actpatch.statistics import portions
from actpatch.statistics.portions import statistics_by_portion
from actpatch.statistics.sites import SiteStatistics, site_statistics
from test_suite.helpers.refusals import refused

WITHIN = 1e-12


def map_of(n_sites: int, n_pairs: int, *, skewed: bool = False):
    """A map of which a few sites do something, one changes nothing, and one the same on all pairs."""
    rng = np.random.default_rng(n_sites + n_pairs)
    changes = rng.standard_normal((n_sites, n_pairs)) + 3 * (rng.random((n_sites, 1)) < 0.1)
    if skewed:
        changes = np.exp(changes) - np.exp(0.5)
    changes[2], changes[3] = 0.0, 1.0
    base = rng.standard_normal(n_pairs)
    return base + changes, base, base + 4 + rng.standard_normal(n_pairs)


def by_portion(patched, base, source, size: int, written=None, **options) -> SiteStatistics:
    written = np.ones(patched.shape, dtype=bool) if written is None else written

    def given():
        for start in range(0, len(patched), size):
            yield patched[start : start + size], written[start : start + size]

    return statistics_by_portion(given, base, source, [str(i) for i in range(len(patched))], **options)


def assert_same(found: SiteStatistics, expected: SiteStatistics) -> None:
    for field in dataclasses.fields(SiteStatistics):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "differences" and other is not None:
            for name in ("sites", "groups", "n_pairs", "smallest_p", "alpha", "left_out", "sentence"):
                assert getattr(one, name) == getattr(other, name), name
            for name in ("effects", "p", "p_corrected"):
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=WITHIN, atol=WITHIN)
        elif isinstance(other, (np.ndarray, float)):
            np.testing.assert_allclose(one, other, rtol=WITHIN, atol=WITHIN, err_msg=field.name)
        else:
            assert one == other, field.name


@pytest.mark.parametrize("size", [7, 40])
@pytest.mark.parametrize(("n_pairs", "skewed"), [(1, False), (4, False), (9, True), (24, False), (25, True)])
def test_whatever_the_portions(size, n_pairs, skewed):
    given = map_of(40, n_pairs, skewed=skewed)
    assert_same(by_portion(*given, size, seed=3, n_resamples=199), site_statistics(*given, seed=3, n_resamples=199))


@pytest.mark.parametrize("of", [["a", "b"] * 12, ["a", "b", ""] * 8, ["a"] * 20 + ["b", "c"] * 2, ["a", "a", "b"] * 8])
def test_groups_of_pairs_are_compared(of):
    patched, base, source = map_of(30, 24)
    patched[5] += 4 * (np.array(of) == "a")
    options = {"groups": of, "seed": 1, "correction": "by", "alpha": 0.1}
    found, expected = by_portion(patched, base, source, 7, **options), site_statistics(patched, base, source, **options)
    assert_same(found, expected)
    if expected.differences is not None:
        assert expected.differences.significant[5]


def test_sites_that_were_patched_in_some_pairs_alone():
    patched, base, source = map_of(30, 24, skewed=True)
    written = np.ones(patched.shape, dtype=bool)
    written[::3, ::2], written[1::6, :20], written[4, 1:] = False, False, False
    options = {"written": written, "groups": ["a", "b"] * 12, "n_resamples": 199}
    expected = site_statistics(patched, base, source, **options)
    for size in (4, 30):
        assert_same(by_portion(patched, base, source, size, **options), expected)
    options["written"] = written & (np.arange(24) != np.arange(30)[:, None] % 24)  # no site in all pairs
    assert_same(by_portion(patched, base, source, 4, **options), site_statistics(patched, base, source, **options))


def test_halves_of_many_sites_go_to_a_file(monkeypatch):
    monkeypatch.setattr(portions, "HELD", 1000)
    given = map_of(40, 24)
    found = by_portion(*given, 7)
    assert found.split_half == pytest.approx(site_statistics(*given).split_half, rel=WITHIN)


def test_what_is_refused_is_refused_in_the_same_words():
    patched, base, source = map_of(30, 9)
    broken = patched.copy()
    broken[[11, 20], 3] = np.nan, np.inf
    cases = [(broken, base, source), (patched, np.where(np.arange(9) == 2, np.nan, base), source)]
    cases += [(patched, base, base + (-1.0) ** np.arange(9) * (np.arange(9) > 0)), (patched[:, :0], base[:0], base[:0])]
    for given in cases:
        with pytest.raises(ValueError) as told:
            site_statistics(*given)
        with refused(str(told.value)[:60].replace("(", ".").replace(")", ".")):
            by_portion(*given, 4)
