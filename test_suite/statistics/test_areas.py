"""CPR and CMD against golden values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actpatch.statistics.areas import MIB_SIZES, area, area_weights, areas, edge_counts

SIZES = np.array(MIB_SIZES)
WEIGHTS = [0.0005, 0.002, 0.004, 0.0075, 0.02, 0.04, 0.075, 0.2, 0.4, 0.25]
"""Half of the distances to both neighbours: (.002 − .001) / 2, (.005 − .001) / 2, …, (1 − .2) / 2, (1 − .5) / 2."""


def test_weights_of_the_benchmarks_sizes():
    np.testing.assert_allclose(area_weights(SIZES), WEIGHTS, rtol=1e-12)
    assert sum(WEIGHTS) == pytest.approx(0.999) and sum(WEIGHTS[:4]) == pytest.approx(0.014)
    assert WEIGHTS[7] + WEIGHTS[8] == pytest.approx(0.6)


def test_circuits_that_do_nothing_have_cpr_a_quarter_and_cmd_three_quarters():
    found = areas(SIZES, np.array([0.0] * 9 + [1.0]))
    assert found.cpr == pytest.approx(0.25) and found.cmd == pytest.approx(0.749)
    # On ln k the step from .5 to 1 is ln 2 of ln 1000: half of it under f, and the rest under |1 − f|.
    assert found.cpr_log == pytest.approx(math.log(2) / 2 / math.log(1000))
    assert found.cmd_log == pytest.approx(1 - math.log(2) / 2 / math.log(1000))


def test_circuits_that_do_all_have_the_whole_range():
    found = areas(SIZES, np.ones(10))
    assert found.cpr == pytest.approx(0.999) and found.cpr_log == pytest.approx(1)
    assert found.cmd == found.cmd_log == 0


def test_a_curve_by_hand():
    values = np.array([0, 0, 0, 0.2, 0.4, 0.6, 1.2, 1.5, 1.1, 1])
    # .0075 × .2 + .02 × .4 + .04 × .6 + .075 × 1.2 + .2 × 1.5 + .4 × 1.1 + .25
    assert areas(SIZES, values).cpr == pytest.approx(1.1135)
    # .0065 + .0075 × .8 + .02 × .6 + .04 × .4 + .075 × .2 + .2 × .5 + .4 × .1
    assert areas(SIZES, values).cmd == pytest.approx(0.1955)
    # Steps of ln 2, ln 2.5 and ln 2 repeat: trapezoids .2 / 2, .3, .5, .9, 1.35, 1.3, 1.05 from .005 on.
    by_hand = (0.1 + 0.3 + 0.9 + 1.35 + 1.05) * math.log(2) + (0.5 + 1.3) * math.log(2.5)
    assert areas(SIZES, values).cpr_log == pytest.approx(by_hand / math.log(1000))


def test_sizes_come_in_any_order_and_equal_ones_add_nothing():
    random = np.random.default_rng(0)
    values, order = random.normal(size=10), random.permutation(10)
    for scale in ("linear", "log"):
        assert area(SIZES[order], values[order], scale=scale) == pytest.approx(area(SIZES, values, scale=scale))
    assert area(np.array([0.0, 0.5, 0.5, 1.0]), np.array([0.0, 1.0, 3.0, 2.0])) == pytest.approx(0.25 + 1.25)


def test_real_sizes_are_taken_as_they_are():
    real = np.array([0, 0, 0.001, 0.008, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0])
    values = np.array([0.0] * 9 + [1.0])
    found = areas(real, values)
    assert found.cpr == pytest.approx(0.25) and found.cmd == pytest.approx(0.75)
    assert found.cpr_log == pytest.approx(math.log(2) / 2 / math.log(1000))  # the two of no edges are left out
    assert area(np.array([0.0, 0.1, 1.0]), np.array([np.nan, 1.0, 1.0]), scale="log") == pytest.approx(1)
    assert math.isnan(area(np.array([0.0, 0.1, 1.0]), np.array([np.nan, 1.0, 1.0])))


def test_without_two_sizes_there_is_no_area():
    for sizes in (np.array([0.5]), np.array([0.5, 0.5]), np.zeros(0)):
        assert math.isnan(area(sizes, np.ones(len(sizes))))
    assert math.isnan(area(np.array([0.0, 0.5]), np.ones(2), scale="log"))


def test_edge_counts_are_rounded_down():
    assert edge_counts(32_491).tolist() == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]
    assert edge_counts(1108).tolist() == [1, 2, 5, 11, 22, 55, 110, 221, 554, 1108]
    assert edge_counts(10, (0.5, 1.0)).tolist() == [5, 10]


def test_what_is_no_size_or_scale_is_refused():
    with pytest.raises(ValueError, match="size 2 is no share of all edges"):
        areas(np.array([0.5, 2.0]), np.ones(2))
    with pytest.raises(ValueError, match="size nan is no share"):
        edge_counts(10, (np.nan,))
    with pytest.raises(ValueError, match=r"sizes has shape \(2,\), values \(3,\)"):
        area(np.array([0.5, 1.0]), np.ones(3))
    with pytest.raises(ValueError, match="scale 'ln' is unknown: expected one of linear, log"):
        area(SIZES, SIZES, scale="ln")
