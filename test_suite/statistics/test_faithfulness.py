"""Faithfulness is what its formula says pair by pair and over pairs, unclamped; what it is divided by is judged."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from actpatch.statistics.faithfulness import faithfulness, faithfulness_differences

FULL, EMPTY = np.array([4.0, 2.0, 3.0, 5.0, 4.0]), np.array([0.0, 1.0, -1.0, 1.0, 2.0])
"""Gaps of 4, 1, 4, 4 and 2: 15 together."""


def made_up(seed: int, n_pairs: int = 20, true: float = 0.8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    empty = random.normal(size=n_pairs)
    full = empty + random.uniform(2, 6, n_pairs)
    return (empty + true * (full - empty) + random.normal(size=n_pairs))[None], full, empty


def test_ratio_of_means_and_pair_values_by_hand():
    circuits = np.array([[2.0, 2.0, 1.0, 5.0, 2.0], [8.0, 3.0, 7.0, 9.0, 6.0], [-4.0, 1.0, -1.0, 1.0, 2.0]])
    found = faithfulness(circuits, FULL, EMPTY)
    np.testing.assert_allclose(found.value, [9 / 15, 2.0, -4 / 15], rtol=1e-14)
    np.testing.assert_array_equal(found.pair_values[0], [0.5, 1.0, 0.5, 1.0, 0.0])
    assert found.pair_values[1, 0] == 2 and found.pair_values[2, 0] == -1  # nothing is clamped
    assert found.pair_values.mean(axis=1)[0] == pytest.approx(0.6) and found.pair_values[1].mean() == 2
    unequal = faithfulness(np.array([[4.0, 1.0, -1.0, 1.0, 4.0]]), FULL, EMPTY)
    assert unequal.value[0] == pytest.approx(6 / 15) and unequal.pair_values.mean() == pytest.approx(2 / 5)
    other = faithfulness(np.array([[0.0, 2.0, -1.0, 1.0, 4.0]]), FULL, EMPTY)
    assert other.value[0] == pytest.approx(3 / 15) and other.pair_values.mean() == pytest.approx(2 / 5)


def test_model_and_empty_circuit_have_faithfulness_one_and_zero_and_neither_units_nor_sign_matter():
    circuit, full, empty = made_up(0)
    found = faithfulness(np.stack([full, empty, circuit[0]]), full, empty)
    np.testing.assert_array_equal(found.value[:2], [1, 0])
    np.testing.assert_array_equal(found.pair_values[0], np.ones(20))
    assert found.low[2] < found.value[2] < found.high[2] and np.isnan(found.low[:2]).all()
    turned = faithfulness(3 - 7e-6 * circuit, 3 - 7e-6 * full, 3 - 7e-6 * empty, more_is_better=False)
    np.testing.assert_allclose(
        [turned.value[0], turned.low[0], turned.high[0]], [found.value[2], found.low[2], found.high[2]], rtol=1e-6
    )
    assert turned.denominator.is_sound and found.denominator.is_sound and found.denominator.flags == ()


def test_intervals_hold_the_faithfulness_of_all_pairs_as_often_as_they_promise():
    held = 0
    for seed in range(300):
        found = faithfulness(*made_up(seed), n_resamples=499, level=0.9)
        held += found.low[0] <= 0.8 <= found.high[0]
    assert abs(held / 300 - 0.9) <= 2.6 * math.sqrt(0.09 / 300)


def test_few_pairs_have_no_interval():
    circuit, full, empty = made_up(0, 4)
    found = faithfulness(circuit, full, empty)
    assert np.isfinite(found.value).all() and np.isnan([found.low, found.high]).all()
    assert math.isnan(found.denominator.low) and not found.denominator.unsure


def test_a_denominator_that_cancels_gives_no_faithfulness():
    full, empty = np.array([1.0, -1.0, 2.0, -2.0, 0.0, 0.1]), np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.1])
    found = faithfulness(full[None] / 2, full, empty)
    assert np.isnan([found.value, found.low, found.high]).all()
    assert found.denominator.cancels and not found.denominator.is_sound
    np.testing.assert_array_equal(np.isnan(found.pair_values[0]), [False] * 4 + [True] * 2)
    np.testing.assert_array_equal(found.pair_values[0, :4], 0.5)
    assert found.denominator.flags == (
        "m(M) and m(∅) have the same mean: faithfulness is not defined",
        "2 of 6 pairs have no gap, and no faithfulness of their own",
        "on 2 of 6 pairs the model does worse than with every edge off",
    )


def test_an_inverted_denominator_is_flagged_by_what_is_better_and_its_values_stand():
    circuit, full, empty = made_up(0)
    found = faithfulness(circuit, full, empty, more_is_better=False)
    assert found.denominator.inverted and found.denominator.is_inverted.all() and not found.denominator.unsure
    np.testing.assert_array_equal(found.value, faithfulness(circuit, full, empty).value)
    assert "does worse than with every edge off (mean gap +" in found.denominator.flags[0]
    one = faithfulness(np.array([[0.5, 0.5, 0.5, 0.5, -0.5]]), np.array([1.0, 1.1, 0.9, 1.0, -1.0]), np.zeros(5))
    assert one.denominator.is_inverted.tolist() == [False] * 4 + [True] and not one.denominator.inverted


def test_a_mean_gap_that_could_be_zero_is_flagged():
    random = np.random.default_rng(0)
    full, empty = random.normal(0.05, 1, 20), np.zeros(20)
    found = faithfulness(random.normal(size=(1, 20)), full, empty)
    low, high = stats.t.interval(0.95, 19, full.mean(), stats.sem(full))
    assert low < 0 < high and found.denominator.unsure and not found.denominator.is_sound
    assert found.denominator.low == pytest.approx(low, abs=0.1) and found.denominator.high == pytest.approx(
        high, abs=0.1
    )
    assert np.isinf([found.low, found.high]).any()  # an unsure denominator bounds no ratio
    assert any("could be 0" in flag for flag in found.denominator.flags)


def test_drops_are_differences_of_faithfulness_with_tests():
    circuit, full, empty = made_up(0)
    random = np.random.default_rng(1)
    without = np.stack([circuit[0] - 2 - random.normal(size=20), circuit[0] + 0.5 * random.normal(size=20), circuit[0]])
    drops = faithfulness_differences(np.repeat(circuit, 3, axis=0), without, full, empty)
    values = faithfulness(np.concatenate([circuit, without]), full, empty)
    np.testing.assert_allclose(drops.value, values.value[0] - values.value[1:], atol=1e-14)
    np.testing.assert_allclose(drops.pair_values, values.pair_values[0] - values.pair_values[1:], atol=1e-13)
    assert drops.p[0] < 0.01 < drops.p[1] < drops.p[2] == 1 and drops.low[0] > 0 > drops.low[1]
    assert drops.value[2] == 0 and math.isnan(drops.low[2])
    np.testing.assert_allclose(drops.p_corrected, stats.false_discovery_control(drops.p))
    none = faithfulness_differences(circuit[:0], circuit[:0], full, empty)
    assert len(none.value) == len(none.p_corrected) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((2, 3)), np.ones(3), np.ones(2)), r"\(2, 3\), \(3,\) and \(2,\), expected \(circuits, pairs\)"),
        ((np.ones((2, 0)), np.ones(0), np.ones(0)), "at least one pair"),
        ((np.array([[np.nan, 1.0]]), np.ones(2), np.zeros(2)), "1 metrics of circuits are not finite: leave their"),
        ((np.ones((1, 2)), np.array([np.inf, 1.0]), np.zeros(2)), "1 metrics of full are not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        faithfulness(*arguments)


def test_levels_and_shapes_that_make_no_sense_are_refused():
    circuit, full, empty = made_up(0)
    with pytest.raises(ValueError, match="level is 95, expected a share between 0 and 1"):
        faithfulness(circuit, full, empty, level=95)
    with pytest.raises(ValueError, match=r"first has shape \(1, 20\), second \(2, 20\)"):
        faithfulness_differences(circuit, np.repeat(circuit, 2, axis=0), full, empty)


def test_a_gap_that_all_of_few_pairs_have_is_sure() -> None:
    """Student's interval by hand: mean 20, standard deviation 2, five pairs, t = 2.776."""
    gaps = np.array([18.0, 18, 20, 22, 22])
    found = faithfulness(np.zeros((1, 5)), gaps, np.zeros(5)).denominator
    assert (found.low, found.high) == pytest.approx((20 - 2.776445 * 2 / 5**0.5, 20 + 2.776445 * 2 / 5**0.5), abs=1e-5)
    assert not found.flags
    unsure = faithfulness(np.zeros((1, 5)), gaps - 19, np.zeros(5)).denominator
    assert unsure.unsure and "could be 0" in unsure.flags[0]
