"""A bound on the effect of any one unverified site, from random sets of them that are patched together.

Kramár et al. 2024 ("AtP*: An efficient and scalable method for localizing LLM behaviour to components", the section on
diagnostics). Each set holds each site with the same chance, all independently, and is run exactly. For one site the
sets with it and those without it differ, on average, by what the site does beside a random set of the others; Welch's
t (1947) bounds that difference. Where effects add up on average, it is the effect of the site patched alone; sites that
stand in for each other, or need each other, are not seen by this test any more than by single patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.heavy import stats
from actpatch.statistics.unverified import check_confidence

FEWEST_SETS = 2
"""With fewer sets with or without a site its scatter is not known, and no bound is stated."""


@dataclass(frozen=True, eq=False)
class SubsetBounds:
    """What random sets say of each site's effect, in the unit of the sets' effects."""

    difference: Float[np.ndarray, " site"]
    """Mean effect of the sets with the site minus that of those without it; NaN where either are lacking."""
    bound: Float[np.ndarray, " site"]
    """The site's |effect| is at most this, with `confidence` for each site by itself; infinite where there are too few
    sets with it, or without."""
    largest: float
    """No site's |effect| is larger, with `confidence` for all of them together: the largest of the sites' bounds, each
    at the confidence that Bonferroni's correction asks for."""
    n_sets: int
    confidence: float


def subset_bounds(included: np.ndarray, effects: Float[np.ndarray, "..."], confidence: float = 0.95) -> SubsetBounds:
    """Upper bounds on |effect| of each site from the effects of random sets of sites.

    With d the difference of means and s its standard error, the bound is |d| + t·s, t being the quantile of Student's
    distribution, with Welch and Satterthwaite's degrees of freedom, at `confidence`: for an effect of either sign one
    of the two sides alone can be exceeded. What the other sites of a set do is taken to scatter about normally, as
    sums of many do.

    Args:
        included: (subset, site), which sites each set holds, each drawn with the same chance, independently of others.
        effects: of each set, patched together.
        confidence: with which each bound is meant to hold.

    Raises:
        ValueError: where the shapes do not fit or no site is given, effects are not finite, or the confidence is no
            share.
    """
    check_confidence(confidence)
    held, measured = np.asarray(included), np.asarray(effects, dtype=float)
    if held.ndim != 2 or held.dtype != bool or measured.shape != held.shape[:1] or not held.shape[1]:
        raise ValueError(
            f"included has shape {held.shape} ({held.dtype}) and effects {measured.shape}, expected truth values "
            "(subsets, sites), at least one site, and an effect per subset"
        )
    if not np.isfinite(measured).all():
        raise ValueError(f"{int((~np.isfinite(measured)).sum())} effects of subsets are not finite: leave these out")
    centred = measured - measured.mean() if len(measured) else measured
    means, errors, sizes = zip(*(_moments(side, centred) for side in (held, ~held)))
    enough = (sizes[0] >= FEWEST_SETS) & (sizes[1] >= FEWEST_SETS)
    difference = means[0] - means[1]
    squared = errors[0] + errors[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = squared**2 / (errors[0] ** 2 / (sizes[0] - 1) + errors[1] ** 2 / (sizes[1] - 1))
    freedom = np.where(enough & (squared > 0), freedom, 1.0)

    def bounds(at: float) -> Float[np.ndarray, " site"]:
        return np.where(enough, np.abs(difference) + stats.t.isf(at, freedom) * np.sqrt(squared), np.inf)

    each = bounds(1 - confidence)
    together = bounds((1 - confidence) / held.shape[1])
    return SubsetBounds(difference, each, float(together.max()), len(measured), confidence)


def _moments(
    held: Bool[np.ndarray, "subset site"], effects: Float[np.ndarray, " subset"]
) -> tuple[Float[np.ndarray, " site"], Float[np.ndarray, " site"], Float[np.ndarray, " site"]]:
    """Of the sets that hold a site: mean effect, squared standard error of it, and number; NaN where they are none."""
    weights = held.astype(float)
    sizes = weights.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = effects @ weights / sizes
        squares = np.maximum(effects**2 @ weights - sizes * means**2, 0.0)
        return means, squares / (sizes - 1) / sizes, sizes
