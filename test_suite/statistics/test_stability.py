"""The bootstrap over pairs of many scores is that of a plain loop; ensembles are what their formulas say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from actpatch.statistics import resampling as module
from actpatch.statistics.ensembles import mean_rank, normalised_mean
from actpatch.statistics.stability import stability

N_RESAMPLES = 60


def data(n_sites: int = 23, n_pairs: int = 7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(n_sites, n_pairs)) + random.normal(size=(n_sites, 1)), random.uniform(2, 8, n_pairs)


def jaccard(first: set[int], second: set[int]) -> float:
    return len(first & second) / len(first | second)


@pytest.mark.parametrize("absolute", ["outside", "inside"])
@pytest.mark.parametrize("cells", [module.MOST_CELLS, 100])
def test_a_loop_over_resamples_gives_the_same(absolute, cells, monkeypatch):
    monkeypatch.setattr(module, "MOST_CELLS", cells)
    changes, gaps = data()
    found = stability(changes, gaps, top_k=5, absolute=absolute, level=0.8, n_resamples=N_RESAMPLES, seed=3)

    def scores(pairs: list[int]) -> tuple[np.ndarray, np.ndarray]:
        over = np.abs(changes) if absolute == "inside" else changes
        return tuple(values[:, pairs].mean(axis=1) / gaps[pairs].mean() for values in (changes, over))

    def top(sizes: np.ndarray) -> set[int]:
        return set(np.argsort(-np.abs(sizes))[:5].tolist())

    full, sizes = scores(list(range(7)))
    np.testing.assert_allclose(found.score, full, atol=1e-13)
    np.testing.assert_allclose(found.size, np.abs(sizes), atol=1e-13)
    drawn = np.random.default_rng(3).multinomial(7, np.full(7, 1 / 7), N_RESAMPLES)
    each = [scores(np.repeat(np.arange(7), counts).tolist()) for counts in drawn]
    resampled = np.array([score for score, _ in each])
    np.testing.assert_allclose(found.same_sign, (np.sign(resampled) == np.sign(full)).mean(axis=0))
    ordered = np.sort(resampled, axis=0)
    np.testing.assert_allclose(found.low, ordered[6], atol=1e-13)
    np.testing.assert_allclose(found.high, ordered[-7], atol=1e-13)
    tops = [top(size) for _, size in each]
    np.testing.assert_allclose(found.in_top, [np.mean([site in one for one in tops]) for site in range(23)])
    pairs = [jaccard(*both) for both in itertools.combinations(tops, 2)]
    np.testing.assert_allclose(found.jaccard, np.mean(pairs), rtol=1e-6)
    np.testing.assert_allclose(found.jaccard_with_all, np.mean([jaccard(one, top(sizes)) for one in tops]))
    assert (found.n_pairs, found.n_resamples, found.seed, found.absolute) == (7, N_RESAMPLES, 3, absolute)


def test_changes_that_cancel_count_inside_the_mean_alone():
    changes = np.stack([np.tile([1.0, -1.0], 20), np.full(40, 0.5)])
    outside, inside = (stability(changes, top_k=1, absolute=absolute) for absolute in ("outside", "inside"))
    assert outside.in_top[1] > 0.9 and inside.in_top.tolist() == [1.0, 0.0]
    assert outside.size.tolist() == [0.0, 0.5] and inside.size.tolist() == [1.0, 0.5]
    assert np.isnan(outside.same_sign[0]) and outside.same_sign[1] == 1.0


def test_scores_that_all_pairs_agree_on_are_stable_and_a_gap_below_0_turns_their_sign():
    changes = np.arange(1.0, 31.0)[:, None] * np.ones(6)
    found = stability(changes, np.full(6, -2.0), top_k=4)
    assert (found.jaccard, found.jaccard_with_all) == (1.0, 1.0) and (found.same_sign == 1).all()
    np.testing.assert_allclose(found.score, -changes[:, 0] / 2)
    np.testing.assert_allclose([found.low, found.high], [found.score] * 2)
    assert found.in_top.tolist() == [0.0] * 26 + [1.0] * 4


def test_random_scores_have_the_jaccard_index_of_random_sets():
    changes = np.random.default_rng(0).normal(size=(4000, 200))
    found = stability(changes, top_k=20, n_resamples=200)
    assert 0.3 < found.same_sign.min() < 0.6 and found.jaccard < 0.1 < found.jaccard_with_all < 0.2
    assert found.top_k == 20 and stability(changes[:3], top_k=20, n_resamples=5).jaccard == 1.0


def test_the_table_and_the_line_say_what_was_found():
    changes, gaps = data()
    found = stability(changes, gaps, top_k=5, sites=[f"L0H{i}" for i in range(23)], n_resamples=50)
    table = found.to_dataframe()
    assert list(table["site"][:2]) == ["L0H0", "L0H1"] and len(table) == 23 and set(table["n_pairs"]) == {7}
    for column in ("score", "size", "low", "high", "same_sign", "in_top"):
        np.testing.assert_array_equal(table[column], getattr(found, column))
    sure = int((found.same_sign >= 0.95).sum())
    assert repr(found).startswith(f"Stability(23 sites × 7 pairs, {sure} of one sign in at least 95% of 50 resamples")
    assert f"{found.jaccard:.2f} between resamples" in repr(found)


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        (np.ones((3, 1)), {}, "at least 2 pairs, got 1"),
        (np.ones((0, 4)), {}, "at least one site"),
        (np.ones(4), {}, "expected \\(sites, pairs\\)"),
        (np.ones((3, 4)), {"gaps": np.ones(3)}, "a gap per pair"),
        (np.ones((3, 4)), {"gaps": np.array([1.0, -1, 1, -1])}, "mean gap is 0"),
        (np.full((3, 4), np.nan), {}, "not finite"),
        (np.ones((3, 4)), {"top_k": 0}, "top_k is 0"),
        (np.ones((3, 4)), {"n_resamples": 1.5}, "n_resamples is 1.5"),
        (np.ones((3, 4)), {"absolute": "both"}, "absolute is 'both', expected 'outside' or 'inside'"),
        (np.ones((3, 4)), {"level": 1}, "level is 1, expected a share"),
    ],
)
def test_what_cannot_be_resampled_is_refused(changes, options, told):
    with pytest.raises(ValueError, match=told):
        stability(changes, **options)


# --- ensembles ---


def test_scores_are_averaged_as_shares_of_each_methods_largest():
    first, second = np.array([1.0, -4.0, 2.0]), np.array([30.0, 10.0, -15.0])
    np.testing.assert_allclose(normalised_mean([first, second]), [0.625, -1 / 3, 0.0], atol=1e-15)
    np.testing.assert_allclose(normalised_mean([10 * first, second]), normalised_mean([first, second]))
    lacking = normalised_mean([first, np.array([np.nan, 2.0, 1.0])])
    np.testing.assert_allclose(lacking, [np.nan, 0.0, 0.5])


def test_ranks_are_averaged_over_methods_and_tied_ones_share():
    first, second = np.array([1.0, -4.0, 2.0, -2.0]), np.array([30.0, 10.0, -15.0, 0.0])
    np.testing.assert_array_equal(mean_rank([first, second]), [(4 + 1) / 2, (1 + 3) / 2, (2.5 + 2) / 2, (2.5 + 4) / 2])
    random = np.random.default_rng(0).normal(size=(3, 50))
    expected = np.mean([stats.rankdata(-np.abs(row)) for row in random], axis=0)
    np.testing.assert_allclose(mean_rank(list(random)), expected)
    np.testing.assert_array_equal(mean_rank([first, np.array([np.nan, 1.0, 2.0, 3.0])]), [np.nan, 2.0, 2.25, 1.75])


@pytest.mark.parametrize("of", [normalised_mean, mean_rank])
@pytest.mark.parametrize("scores", [[], [np.ones(3), np.ones(2)], [np.ones((2, 2))], [np.ones(0)]])
def test_scores_of_other_sites_are_refused(of, scores):
    with pytest.raises(ValueError, match="expected a score per site, of the same sites by each method"):
        of(scores)


def test_a_method_that_scores_nothing_has_no_largest():
    with pytest.raises(ValueError, match="all scores of method number 1 are 0 or NaN"):
        normalised_mean([np.ones(2), np.array([0.0, np.nan])])
