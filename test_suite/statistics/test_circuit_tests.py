"""Tests of circuits: p-values by hand and by plain loops, levels that hold and power by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actpatch.statistics.circuit_tests import (
    compare_with_random,
    equivalence_test,
    independence_test,
    minimality_tests,
)

# --- random circuits ---


def test_p_value_counts_random_circuits_that_are_at_least_as_faithful():
    random = np.array([0.1, 0.5, 0.8, 0.9, 1.3, -2.0, 0.8 + 1e-15, 1.15, 0.2])
    found = compare_with_random(0.8, random)
    assert found.p == (1 + 5) / 10  # .8 twice, .9, 1.15, 1.3
    assert found.p_distance == (1 + 4) / 10  # .8 twice, .9, 1.15
    assert found.smallest_p == 0.1 == compare_with_random(2.0, random).p
    assert compare_with_random(1.0, random).p_distance == 0.1 and compare_with_random(-3.0, random).p == 1


def test_a_circuit_that_is_a_random_one_has_small_p_values_no_more_often_than_they_say():
    values = np.random.default_rng(0).normal(0.3, 0.4, size=(20_000, 20))
    found = [compare_with_random(one[0], one[1:]) for one in values]
    for p_values in (np.array([one.p for one in found]), np.array([one.p_distance for one in found])):
        for level in (0.05, 0.2, 0.5):
            assert (p_values <= level + 1e-9).mean() == pytest.approx(level, abs=3 * math.sqrt(level / 20_000))


def test_comparisons_without_numbers_are_refused():
    with pytest.raises(ValueError, match="random is empty"):
        compare_with_random(0.5, np.zeros(0))
    for value, random in ((math.nan, np.ones(3)), (0.5, np.array([0.1, np.inf]))):
        with pytest.raises(ValueError, match="not finite: its denominator carries no comparison"):
            compare_with_random(value, random)


# --- equivalence ---


def scores(n_above: int, n_below: int, n_equal: int = 0) -> tuple[np.ndarray, np.ndarray]:
    full = np.linspace(1, 2, n_above + n_below + n_equal)
    return full + np.array([0.3] * n_above + [-0.1] * n_below + [0.0] * n_equal), full


def binomial(n: int, k: int, chance: float) -> float:
    return math.comb(n, k) * chance**k * (1 - chance) ** (n - k)


@pytest.mark.parametrize(("above", "below"), [(3, 17), (17, 3), (10, 10), (12, 9), (0, 5), (60, 40)])
def test_sign_tests_are_sums_of_binomial_chances(above, below):
    found = equivalence_test(*scores(above, below), epsilon=0.1)
    n = above + below
    far = max(above, below)
    different = sum(binomial(n, k, 0.6) for k in range(n + 1) if abs(k - n / 2) >= abs(above - n / 2))
    equivalent = sum(binomial(n, k, 0.6) for k in range(far + 1))
    assert found.p_different == pytest.approx(different) and found.p_equivalent == pytest.approx(equivalent)
    assert (found.n_above, found.n_below, found.n_equal, found.share_above) == (above, below, 0, above / n)


def test_equal_metrics_count_half():
    circuit, full = scores(0, 0, 100)
    found = equivalence_test(circuit * (1 + 1e-15), full)
    assert found.share_above == 0.5 and found.n_equal == 100
    assert found.p_different == pytest.approx(1, abs=0.06) and found.p_equivalent < 0.03
    half = equivalence_test(*scores(6, 3, 1))
    assert half.share_above == 0.65
    between = [equivalence_test(*scores(above, 10 - above)) for above in (6, 7)]
    assert between[0].p_different > half.p_different == between[1].p_different
    assert between[0].p_equivalent < half.p_equivalent == between[1].p_equivalent


def test_sign_tests_hold_their_levels_where_the_null_hypothesis_ends():
    random, n, level = np.random.default_rng(0), 60, 0.05
    found = [equivalence_test(*scores(k, n - k)) for k in random.binomial(n, 0.6, 1000).tolist()]
    for name in ("p_different", "p_equivalent"):
        wrong = np.mean([getattr(one, name) <= level for one in found])
        assert wrong <= level + 2.6 * math.sqrt(level / 1000)
    assert equivalence_test(*scores(300, 300)).p_equivalent < 1e-5
    assert equivalence_test(*scores(480, 120)).p_different < 1e-5


def test_few_pairs_show_neither_difference_nor_equivalence():
    found = equivalence_test(*scores(3, 3))
    assert found.p_different > 0.3 and found.p_equivalent > 0.3


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match=r"circuit has shape \(2,\), full \(3,\)"):
        equivalence_test(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="1 metrics of full are not finite"):
        equivalence_test(np.ones(2), np.array([1.0, np.nan]))
    for epsilon in (0, 0.5, -1):
        with pytest.raises(ValueError, match=r"expected a number between 0 and 0\.5"):
            equivalence_test(np.ones(2), np.ones(2), epsilon=epsilon)
    with pytest.raises(ValueError, match="n_permutations is 0"):
        independence_test(np.arange(9.0), np.arange(9.0), n_permutations=0)


# --- minimality ---


def test_minimality_is_a_binomial_chance_of_as_few_random_edges_below():
    random = np.array([0.0, 0.0, 0.1, 0.2, 0.5, 0.5, 0.5, 0.9])
    found = minimality_tests(np.array([0.0, 0.1, 0.5, 0.5 + 1e-15, 1.0]), random, quantile=0.8)
    n_above = [0, 2, 4, 4, 8]  # equal ones are not above, also where rounding alone differs
    assert found.share_above.tolist() == [n / 8 for n in n_above] and found.n_random == 8
    expected = [sum(binomial(8, k, 0.8) for k in range(n + 1)) for n in n_above]
    assert found.p == pytest.approx(expected) and expected[-1] == pytest.approx(1)
    assert found.p_corrected == pytest.approx(np.minimum(1, 5 * np.array(expected)))


def test_minimality_holds_its_level_for_a_part_that_is_just_needed():
    """A part that lies at the quantile itself is not needed no more often than the level says."""
    generator, level = np.random.default_rng(0), 0.05
    found = [minimality_tests(np.array([0.9]), generator.random(60)).p[0] for _ in range(2000)]
    assert np.mean(np.array(found) <= level) <= level + 2.6 * math.sqrt(level / 2000)
    idle = [minimality_tests(np.array([0.5]), generator.random(60)).p[0] for _ in range(100)]
    assert max(idle) < level


def test_minimality_without_random_edges_is_not_known_and_wrong_changes_are_refused():
    found = minimality_tests(np.array([0.1, 0.2]), np.zeros(0))
    assert np.isnan(found.p).all() and np.isnan(found.share_above).all() and found.n_random == 0
    assert not len(minimality_tests(np.zeros(0), np.ones(3)).p)
    for changes, random in ((np.array([-0.1]), np.ones(2)), (np.ones(2), np.array([np.nan]))):
        with pytest.raises(ValueError, match="below 0 or not finite: expected means of absolute differences"):
            minimality_tests(changes, random)
    with pytest.raises(ValueError, match="quantile is 90, expected a number between 0 and 1"):
        minimality_tests(np.ones(2), np.ones(2), quantile=90)


# --- independence ---


def hsic(first: np.ndarray, second: np.ndarray) -> float:
    """The criterion with its three sums over pairs, quadruples and triples of indices written out."""
    n = len(first)

    def kernel(values: np.ndarray) -> np.ndarray:
        width = np.median([abs(values[i] - values[j]) for i in range(n) for j in range(i)])
        return np.array([[math.exp(-((a - b) ** 2) / (2 * width**2)) for b in values] for a in values])

    one, other = kernel(first), kernel(second)
    together = sum(one[i, j] * other[i, j] for i in range(n) for j in range(n)) / n**2
    apart = one.sum() * other.sum() / n**4
    crossed = sum(one[i].sum() * other[i].sum() for i in range(n)) / n**3
    return (together + apart - 2 * crossed) * n**2 / (n - 1) ** 2


def test_the_statistic_is_its_sum_over_indices_and_p_that_of_a_plain_loop():
    random = np.random.default_rng(0)
    first = random.normal(size=12)
    second = first**2 + random.normal(size=12)
    found = independence_test(first, second, n_permutations=99, seed=5)
    assert found.statistic == pytest.approx(hsic(first, second), rel=1e-12)
    generator = np.random.default_rng(5)
    others = [hsic(first, second[generator.permutation(12)]) for _ in range(99)]
    assert found.p == (1 + sum(other >= found.statistic * (1 - 1e-12) for other in others)) / 100
    scaled = independence_test(1e-9 * first + 1, 1e6 * second, n_permutations=99, seed=5)
    assert scaled.statistic == pytest.approx(found.statistic, rel=1e-5) and scaled.p == found.p


def test_independence_is_rejected_as_often_as_the_level_and_dependence_without_correlation_is_seen():
    random, n = np.random.default_rng(0), 25
    wrong = [
        independence_test(random.normal(size=n), random.exponential(size=n), n_permutations=99).p for _ in range(300)
    ]
    assert np.mean(np.array(wrong) <= 0.1) == pytest.approx(0.1, abs=2.6 * math.sqrt(0.09 / 300))
    x = np.linspace(-1, 1, 40)
    assert abs(np.corrcoef(x, x**2)[0, 1]) < 1e-12 and independence_test(x, x**2).p < 0.01


def test_metrics_that_do_not_vary_and_few_pairs_have_no_test():
    x = np.arange(10.0)
    for found in (independence_test(np.full(10, 0.3), x), independence_test(x[:4], x[:4])):
        assert math.isnan(found.p) and math.isnan(found.statistic)
    mostly_equal = np.where(x < 8, 1.0, x)
    assert 0 < independence_test(mostly_equal, x).p < 1
