"""How many sites that were not verified may exceed an effect, from a random sample of them: exact bounds.

Of `n_rest` sites, `n_sample` are drawn without replacement and run exactly; `n_found` of these exceed a size that was
chosen before. That number is hypergeometric, so the sites of the rest that exceed it are at most the largest M with
P(X <= n_found | M) >= 1 - confidence (Clopper & Pearson 1934, "The use of confidence or fiducial limits", for draws
without replacement). No distribution of effects is assumed, and none helps: a sample in which nothing exceeds a size
says that few sites do, never that none does. Only where all are verified is the bound 0.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from numbers import Real
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from actpatch.core.heavy import stats
from actpatch.core.indices import is_integer


def most_above(n_rest: int, n_sample: int, n_found: int, confidence: float = 0.95) -> int:
    """At most so many of the sites that were not drawn exceed what `n_found` of the drawn ones do.

    Args:
        n_rest: sites that the sample was drawn from.
        n_sample: how many were drawn, each set of so many being equally likely.
        n_found: how many of these exceed it.
        confidence: the share of samples in which the bound is meant to hold, at least.

    Raises:
        ValueError: where these are no whole numbers with 0 <= n_found <= n_sample <= n_rest, or the confidence is not
            between 0 and 1.
    """
    _check_counts(n_rest, n_sample, n_found)
    check_confidence(confidence)
    return counts_above(int(n_rest), int(n_sample), int(n_found), float(confidence))[1] - int(n_found)


@lru_cache(maxsize=4096)
def counts_above(n_rest: int, n_sample: int, n_found: int, confidence: float) -> tuple[int, int]:
    """The fewest and the most of the whole rest, its sample included, that may exceed it.

    Each is a bound by itself, with this confidence.
    """

    def is_too_many(m: int) -> bool:
        return bool(stats.hypergeom.cdf(n_found, n_rest, m, n_sample) < 1 - confidence)

    def is_enough(m: int) -> bool:
        return bool(stats.hypergeom.sf(n_found - 1, n_rest, m, n_sample) >= 1 - confidence)

    between = range(n_found, n_rest - n_sample + n_found + 1)  # fewer, or more, no sample allows
    fewest = bisect_left(between, True, hi=len(between) - 1, key=is_enough)
    most = bisect_left(between, True, lo=1, key=is_too_many) - 1
    return between[fewest], between[most]


class BoundCurve(NamedTuple):
    """Effect -> how many unverified sites exceed it at most, at every size at which that changes."""

    effects: Float[np.ndarray, " step"]
    """Sizes, descending: the distinct ones of the sample, and 0."""
    most: Int[np.ndarray, " step"]
    """At most so many unverified sites have a larger |effect|. Each of these statements holds with the confidence that
    was asked for, as how many of the sample lie above its size was fixed before; all of them together with less."""

    @property
    def largest(self) -> float:
        """The size that no unverified site exceeds: the smallest with a bound of 0. Infinite where there is none, as
        ever unless nearly all sites were drawn, 95 of 100 for a confidence of 95 %; 0 where all were."""
        reached = self.effects[self.most == 0]
        return float(reached[-1]) if len(reached) else float("inf")


def bound_curve(effects: Float[np.ndarray, " sample"], n_rest: int, confidence: float = 0.95) -> BoundCurve:
    """The bounds at the |effect| of each site of the sample.

    A size larger than all of the sample's has the first step's bound: so many may have any size whatever.

    Raises:
        ValueError: where the sample holds NaN or more than `n_rest` effects, or the confidence is no share.
    """
    sizes = np.abs(np.asarray(effects, dtype=float))
    if np.isnan(sizes).any():
        raise ValueError("effects of the sample hold NaN: give those of the sites that were run")
    steps = np.unique([*sizes, 0.0])[::-1]
    found = len(sizes) - np.searchsorted(np.sort(sizes), steps, side="right")
    most = [most_above(n_rest, len(sizes), int(n), confidence) for n in found]
    return BoundCurve(steps, np.array(most, dtype=np.int64))


def _check_counts(n_rest: int, n_sample: int, n_found: int) -> None:
    given = (n_found, n_sample, n_rest)
    if not all(is_integer(n) for n in given) or not 0 <= n_found <= n_sample <= n_rest:
        raise ValueError(
            f"n_found, n_sample and n_rest are {given}, expected whole numbers with 0 <= n_found <= n_sample <= n_rest"
        )


def check_confidence(confidence: float, name: str = "confidence") -> None:
    if isinstance(confidence, bool) or not isinstance(confidence, Real) or not 0 < confidence < 1:
        raise ValueError(f"{name} is {confidence!r}, expected a share between 0 and 1, for instance 0.95")
