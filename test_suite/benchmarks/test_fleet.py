"""Simulated fleets against what is known of them without simulating."""

from __future__ import annotations

import math

import pytest

from benchmarks.fleet import Fleet, Outcome, simulate

DEATHS = {"deaths": 0.02, "deaths_of_node": 0.01, "restart": 3.0, "load": 2.0}
SLOW = {"slow_workers": 0.3, "slow_units": 0.2}


def dealt(n_units: int, n_workers: int) -> list[list[int]]:
    return [[*range(first, n_units, n_workers)] for first in range(n_workers)]


@pytest.mark.parametrize("has_shares", [False, True])
@pytest.mark.parametrize("n_workers", [1, 4, 24])
def test_equal_workers_that_do_not_die_take_the_units_divided_among_them(has_shares, n_workers):
    shares = dealt(240, n_workers) if has_shares else None
    found = simulate([1.5] * 240, Fleet(n_workers, load=7.0), seed=0, shares=shares)
    assert found == Outcome(7.0 + 1.5 * 240 / n_workers, 1.5 * 240, 0.0, 0)


def test_one_unit_more_than_can_be_divided_takes_a_unit_longer():
    fleet = Fleet(4, load=7.0)
    assert simulate([1.5] * 241, fleet, seed=0).seconds == simulate([1.5] * 240, fleet, seed=0).seconds + 1.5


@pytest.mark.parametrize("kind", ["deaths", "deaths_of_node"])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_a_worker_that_dies_takes_as_long_as_the_formula_says(kind, rate):
    """Expected time of a unit of length t that begins anew after each death, at rate r, and a restart of R each time:
    (exp(r t) − 1) / r + (exp(r t) − 1) R. Deaths of a node come during restarts too, which then begin anew."""
    n_units, length, restart = 20_000, 1.2, 0.5
    found = simulate([length] * n_units, Fleet(1, restart=restart, **{kind: rate}), seed=1)
    n_deaths = math.exp(rate * length) - 1
    of_restart = restart if kind == "deaths" else (math.exp(rate * restart) - 1) / rate
    assert found.seconds / n_units == pytest.approx(n_deaths / rate + n_deaths * of_restart, rel=0.04)
    assert found.finished == pytest.approx(n_units * length)
    if kind == "deaths":
        assert found.deaths / n_units == pytest.approx(n_deaths, rel=0.04)
        assert found.seconds == pytest.approx(found.finished + found.lost + restart * found.deaths)


def test_of_shares_the_slowest_worker_is_waited_for():
    """Without noise of units, a share of k units takes k times its worker's slowness, of a known distribution."""
    n_workers, each = 500, 3
    found = simulate([1.0] * (n_workers * each), Fleet(n_workers, slow_workers=0.3), seed=2, shares=dealt(1500, 500))
    assert found.finished == pytest.approx(1500 * math.exp(0.3**2 / 2), rel=0.05)
    assert found.seconds > each * math.exp(0.3 * 2.3)  # of 500 five are beyond 2.3 standard deviations
    assert simulate([1.0] * 1500, Fleet(n_workers, slow_workers=0.3), seed=2).seconds < found.seconds


@pytest.mark.parametrize("has_shares", [False, True])
def test_a_node_takes_all_its_workers_and_every_unit_is_finished_once(has_shares):
    fleet = Fleet(20, **{**DEATHS, "deaths": 0.0})
    found = simulate([1.0] * 4000, fleet, seed=3, shares=dealt(4000, 20) if has_shares else None)
    assert found.finished == pytest.approx(4000) and found.lost > 0
    assert found.deaths % 4 == 0  # nodes of 8, 8 and 4


def test_a_unit_that_is_lost_goes_to_a_worker_that_waits():
    """Two workers and one long unit: where its worker dies the other one takes it at once, which a share forbids."""
    fleet = Fleet(2, deaths=0.005, restart=1e6)
    units = [100.0, 1.0]
    died = [seed for seed in range(40) if simulate(units, fleet, seed=seed, shares=[[0], [1]]).seconds > 1e6]
    taken = [seed for seed in died if simulate(units, fleet, seed=seed).seconds < 300]
    assert len(died) > 10 and len(taken) > 5


def test_a_seed_is_all_that_is_drawn():
    fleet, units = Fleet(16, **DEATHS, **SLOW), [1.0] * 500
    runs = [simulate(units, fleet, seed=seed) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]
