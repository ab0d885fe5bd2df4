"""How the sites of a map are tested: settings, the level that one site has to reach, and what so many pairs can show.

Whatever is refused of settings and of numbers is refused here. Nothing here computes a statistic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Literal, TypedDict

import numpy as np
from jaxtyping import Float

from actpatch.core.text import count
from actpatch.statistics.evidence import Tests
from actpatch.statistics.resampling import FEWEST_PAIRS, N_FLIPS, gaps_cancel, smallest_p_value

Correction = Literal["bh", "by"]

CORRECTIONS: dict[Correction, str] = {"bh": "Benjamini-Hochberg", "by": "Benjamini-Yekutieli"}

FLIPS_AT_LEVEL = 20
"""How many random sign flips may reach a site's change while it alone is significant: with few, chance decides."""
MOST_FLIPS = 99_999
"""Most sign flips, for maps of many sites."""


class StatisticsOptions(TypedDict, total=False):
    """How statistics are computed: what `site_statistics` takes besides numbers and labels, with its defaults."""

    seed: int
    level: float
    alpha: float
    correction: Correction
    power: float
    n_resamples: int


def tests_of(n_sites: int, options: StatisticsOptions) -> Tests:
    """How so many sites are tested, with all options given."""
    lone = _level_of_a_lone_site(options["alpha"], n_sites, options["correction"])
    # Each state begins with the shorter ones, so that all four are those of one call.
    seeds = [int(seed) for seed in np.random.SeedSequence(options["seed"]).generate_state(4)]
    return Tests(
        options["level"],
        options["n_resamples"],
        lone,
        _number_of_flips(lone),
        options["power"],
        *seeds,
    )


def reach_of_pairs(
    n_pairs: int, n_sites: int, *, alpha: float = 0.05, correction: Correction = "bh"
) -> tuple[float, str]:
    """What so many pairs can show of so many sites, before anything is measured.

    Returns:
        The smallest p-value, before correction; and why no site alone can be significant, empty where one can be.
    """
    lone = _level_of_a_lone_site(alpha, n_sites, correction)
    step = smallest_p_value(n_pairs, _number_of_flips(lone))
    return step, _too_few(n_pairs, n_sites, lone, step)


def _number_of_flips(lone: float) -> int:
    return min(max(N_FLIPS, math.ceil(FLIPS_AT_LEVEL / lone)), MOST_FLIPS)


def _level_of_a_lone_site(alpha: float, n_sites: int, correction: Correction) -> float:
    """The p-value that is corrected to `alpha` where all other sites have p = 1."""
    return alpha / n_sites / (sum(1 / i for i in range(1, n_sites + 1)) if correction == "by" else 1)


def _too_few(n_pairs: int, n_sites: int, lone: float, step: float) -> str:
    if n_pairs == 1:
        return (
            "one pair does not show how much pairs differ, so there are no intervals and no significance: use at "
            f"least {FEWEST_PAIRS} pairs"
        )
    if lone >= step:
        return ""
    few = n_pairs < 1 + math.log2(MOST_FLIPS)
    remedy = f"use at least {math.ceil(1 - math.log2(lone))} pairs" if few else "choose fewer sites"
    return (
        f"no p can be below {step:.2g} with {n_pairs} pairs, so one site alone among {n_sites} cannot be "
        f"significant: {remedy}"
    )


def check_settings(seed: int, level: float, alpha: float, correction: str, power: float, n_resamples: int) -> None:
    if isinstance(seed, bool) or not hasattr(seed, "__index__") or seed < 0:
        raise ValueError(f"seed is {seed!r}, expected an integer of at least 0")
    for name, value in (("level", level), ("alpha", alpha), ("power", power)):
        if not isinstance(value, Real) or not 0 < value < 1:
            raise ValueError(f"{name} is {value!r}, expected a number between 0 and 1, for instance 0.95, 0.05 or 0.8")
    if power <= alpha:
        raise ValueError(f"power is {power}, expected more than alpha ({alpha})")
    if correction not in CORRECTIONS:
        raise ValueError(f"correction {correction!r} is unknown: expected one of {', '.join(CORRECTIONS)}")
    fewest = math.ceil(2 / (1 - level) - 1e-9) - 1
    if not hasattr(n_resamples, "__index__") or n_resamples < fewest:
        raise ValueError(
            f"n_resamples is {n_resamples!r}, expected an integer of at least {fewest} for a level of {level}"
        )


def check_there_are_some(labels: Sequence[str], base: Float[np.ndarray, " pair"]) -> None:
    """Raises ValueError where there are no sites or no pairs."""
    if not len(labels):
        raise ValueError("there are no sites, so there is nothing to compute statistics of")
    if not len(base):
        raise ValueError("no pair is usable: use a corruption that breaks the behaviour")


def check_numbers_of_sites(labels: Sequence[str], broken: Sequence[int] | np.ndarray) -> None:
    """Raises ValueError where sites, of which these are the numbers, have values that are not finite."""
    if len(broken):
        raise ValueError(
            f"{count(len(broken), 'site')} of {len(labels)} hold NaN or inf, first {labels[broken[0]]}: leave those "
            "sites, or the pairs they lack, out"
        )


def check_baselines(base: Float[np.ndarray, " pair"], source: Float[np.ndarray, " pair"]) -> None:
    """Raises ValueError where the unpatched runs have values that are not finite, or gaps that cancel."""
    for name, values in (("base", base), ("source", source)):
        if not np.isfinite(values).all():
            at = np.flatnonzero(~np.isfinite(values)).tolist()
            raise ValueError(f"{name} is NaN or inf at {count(len(at), 'pair')}, first {at[0]}: leave those pairs out")
    if gaps_cancel(source - base):
        raise ValueError("the gaps between base and source cancel: their mean is 0, and no effect can be divided by it")
