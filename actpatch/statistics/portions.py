"""Statistics of more sites than memory holds: those of `statistics.sites`, a portion of the sites at a time.

Sites go through twice: once for how skewed they are, which each site's p-value depends on, and once for all else. What
compares sites with each other (split-half agreement, groups of pairs) needs all at once, and is left out. Nothing here
knows where portions come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Unpack

import numpy as np
from jaxtyping import Float

from actpatch.core.heavy import stats
from actpatch.statistics.evidence import WEIGHTS, evidence_of_alike
from actpatch.statistics.resampling import detectable_size, smallest_p_value
from actpatch.statistics.sites import SiteStatistics, StatisticsOptions, checked_options, reach_of_pairs, tests_of
from actpatch.statistics.skewness import Skewness

LEFT_OUT = "read by part: split-half agreement and differences between groups need all sites at once and are left out"

Portions = Callable[[], Iterator[np.ndarray]]
"""Gives the metric of patched runs, some sites at a time, [site pair], each time from the beginning."""


def statistics_by_portion(
    portions: Portions,
    base: Float[np.ndarray, " pair"],
    source: Float[np.ndarray, " pair"],
    sites: Sequence[str],
    **options: Unpack[StatisticsOptions],
) -> SiteStatistics:
    """The statistics of all sites, from portions of them.

    Args:
        portions: gives them, in order.
        base: metric of the runs that were patched.
        source: metric of the runs whose activations were copied.
        sites: labels of all of them.
        options: as of `statistics.sites.site_statistics`.

    Raises:
        ValueError: for no pairs, values that are not finite, and settings out of range.
    """
    asked = checked_options(options)
    gaps = source - base
    if not len(gaps) or not np.isfinite(gaps).all():
        raise ValueError(f"{len(gaps)} pairs, not all with finite metrics: statistics need some, and of all a number")
    exponent = np.frexp(np.abs(gaps).max())[1]
    n_pairs, scaled = len(gaps), np.ldexp(gaps, -exponent)
    tests = tests_of(len(sites), asked)

    def changes() -> Iterator[Float[np.ndarray, "site pair"]]:
        for portion in portions():
            if not np.isfinite(portion).all():
                raise ValueError("a patched run has a metric that is not finite: statistics need a number of each")
            yield np.ldexp(np.ascontiguousarray(portion - base), -exponent)

    skewness = Skewness(n_pairs)
    for portion in changes():
        skewness.add(portion)
    weight, scatter = skewness.weight, skewness.scatter
    size = detectable_size(
        n_pairs, tests.lone, power=tests.power, n_flips=tests.n_flips, weight=round(weight * WEIGHTS) / WEIGHTS
    )
    each = [evidence_of_alike(portion, scaled, weight, size, tests, scatter) for portion in changes()]
    found = {name: np.concatenate([of[name] for of in each]) for name in each[0]}
    corrected, by_flips = (
        stats.false_discovery_control(found[name], method=asked["correction"]) for name in ("p", "flips")
    )
    too_few = reach_of_pairs(n_pairs, len(sites), alpha=asked["alpha"], correction=asked["correction"])[1]
    return SiteStatistics(
        sites=tuple(sites),
        effect=found["effect"],
        low=found["low"],
        high=found["high"],
        p=found["p"],
        p_corrected=corrected,
        too_skewed=(by_flips <= asked["alpha"]) & (corrected > asked["alpha"]),
        detectable=found["reach"],
        split_half=math.nan,
        n_pairs=n_pairs,
        smallest_p=smallest_p_value(n_pairs, tests.n_flips),
        too_few="" if (corrected <= asked["alpha"]).any() else too_few,
        differences=None,
        notes=(*filter(None, [too_few]), LEFT_OUT),
        n_corrected=len(sites),
        pairs_at=np.full(len(sites), n_pairs),
        **asked,
    )
