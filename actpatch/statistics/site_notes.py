"""What is said of a map's statistics: what could not be computed or is weak, and why. Numbers in, sentences out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from actpatch.core.text import count
from actpatch.statistics.groups import FEWEST_OF_A_GROUP
from actpatch.statistics.resampling import FEWEST_PAIRS

ROUGH_BELOW = 10
"""With fewer pairs intervals are wide, and of skewed changes they hold the true effect less often than they claim."""
MOST_NAMED = 5
"""Most sites that a note names."""


def notes_on_groups(groups: Sequence[str], any_whole: bool) -> str:
    sizes = Counter(filter(None, groups))
    if len(sizes) < 2:
        return ""
    why = (
        f"two or more need at least {FEWEST_OF_A_GROUP} usable pairs each, the largest has {max(sizes.values())}"
        if any_whole
        else "no site was patched in all pairs"
    )
    return f"effects are not compared between the {len(sizes)} groups of pairs: {why}"


def notes_on_pairs(
    low: Float[np.ndarray, " site"],
    high: Float[np.ndarray, " site"],
    split_half: float,
    pairs_at: Int[np.ndarray, " site"],
    n_pairs: int,
    n_whole: int,
    any_change: bool,
) -> Iterator[str]:
    if n_pairs == 1:
        return
    if n_pairs < FEWEST_PAIRS:
        yield f"{n_pairs} pairs are too few for intervals: use at least {FEWEST_PAIRS}"
    elif n_pairs < ROUGH_BELOW:
        yield f"below {ROUGH_BELOW} pairs intervals are rough, and too short where a few pairs change the most"
    if n_pairs >= FEWEST_PAIRS and (few := int((pairs_at < FEWEST_PAIRS).sum())):
        yield f"no interval for {count(few, 'site')} patched in fewer than {FEWEST_PAIRS} of {n_pairs} pairs"
    if agreeing := int((np.isnan(low) & (pairs_at >= FEWEST_PAIRS)).sum()):
        yield f"no interval for {count(agreeing, 'site')} with exactly one effect on all pairs"
    if unbounded := int((np.isinf(low) | np.isinf(high)).sum()):
        yield f"{count(unbounded, 'interval')} without an end: too few pairs change, or gaps are near 0"
    if not any_change:
        yield "no site changes anything on any pair, so it is not known which effects could have been found"
    if math.isnan(split_half) and n_whole < min(2, len(pairs_at)):
        yield f"no split-half agreement: {count(n_whole, 'site')} of {len(pairs_at)} patched in all pairs"
    elif math.isnan(split_half):
        yield (
            "no split-half agreement: there is one site alone, or in some half of the pairs all sites have one effect, "
            "or the gaps cancel"
        )


def notes_on_skewness(
    labels: Sequence[str],
    n_pairs: int,
    too_skewed: Bool[np.ndarray, " site"],
    size: float,
    attainable: bool,
    power: float,
) -> Iterator[str]:
    if too_skewed.any():
        yield (
            f"too skewed to judge with {n_pairs} pairs: {_named(labels, too_skewed)}. What looks like an effect "
            "there may be the lack of a few pairs that change much the other way: use more pairs"
        )
    if attainable and math.isnan(size) and n_pairs > 1:
        yield (
            f"changes of this map are so skewed that {n_pairs} pairs find no effect of one site alone, whatever its "
            f"size, with power {power:g}: use more pairs"
        )


def notes_on_disagreement(
    labels: Sequence[str],
    low: Float[np.ndarray, " site"],
    high: Float[np.ndarray, " site"],
    p: Float[np.ndarray, " site"],
    level: float,
) -> Iterator[str]:
    said = ("leaves out 0 though p, before correction, is above", "holds 0 though p, before correction, is at most")
    for which, found in zip(disagreement(low, high, p, level), said, strict=True):
        if which.any():
            yield f"in doubt, as the {level * 100:g}% interval {found} {1 - level:.2g}: {_named(labels, which)}"


def disagreement(
    low: Float[np.ndarray, " site"], high: Float[np.ndarray, " site"], p: Float[np.ndarray, " site"], level: float
) -> tuple[Bool[np.ndarray, " site"], Bool[np.ndarray, " site"]]:
    """Where the interval alone leaves out 0, and where the p-value alone does; nowhere without an interval.

    Two methods are not two views of one: where they disagree, neither is to be taken for the answer.
    """
    interval, test = (low > 0) | (high < 0), p <= 1 - level
    return interval & ~test, ~interval & test & ~np.isnan(low)


def _named(labels: Sequence[str], which: Bool[np.ndarray, " site"]) -> str:
    """The first few of these sites, and how many more there are."""
    chosen = [label for label, named in zip(labels, which, strict=True) if named]
    more = len(chosen) - MOST_NAMED
    return ", ".join(chosen[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
