"""Effect, interval, p-values and reach of each site of a map, each from the pairs in which it was patched.

Most maps are patched in all pairs. Where a site was patched in some of them alone, the others say nothing of it, and
what stands here of it is what stands of a map of its pairs; sites of the same pairs are looked at together. Nothing
here corrects over sites.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from actpatch.statistics.resampling import detectable_size, gaps_cancel, ratio_intervals, sign_flip_p_values
from actpatch.statistics.skewness import careful_p_values, deviations, skewness_weight

WEIGHTS = 20
"""In how many steps the skewness' weight counts for the detectable effect."""


@dataclass(frozen=True)
class Evidence:
    """What the pairs say of each site."""

    effect: Float[np.ndarray, " site"]
    """Ratio of means; NaN where the gaps of its pairs cancel."""
    low: Float[np.ndarray, " site"]
    high: Float[np.ndarray, " site"]
    flips: Float[np.ndarray, " site"]
    """p-value by sign flips alone."""
    p: Float[np.ndarray, " site"]
    """p-value, held back where changes are skewed."""
    reach: Float[np.ndarray, " site"]
    """Smallest |effect| that as many new pairs would find; NaN where none would be, and for sites that change nothing.
    """
    size: float
    """Smallest mean change, in estimated standard errors, that as many new pairs would find at the site of the most."""
    n_pairs: Int[np.ndarray, " site"]
    """Pairs in which each site was patched."""


@dataclass(frozen=True)
class Tests:
    """How sites are tested."""

    level: float
    """Share of intervals meant to hold the true effect."""
    n_resamples: int
    lone: float
    """p-value at which one site alone is significant, after correction."""
    n_flips: int
    power: float
    for_intervals: int
    """Seed of the resamples."""
    for_flips: int
    """Seed of the sign flips."""


def evidence_of(
    changes: Float[np.ndarray, "site pair"],
    gaps: Float[np.ndarray, " pair"],
    written: Bool[np.ndarray, "site pair"],
    tests: Tests,
) -> Evidence:
    """What the pairs in which each site was patched say of it.

    Args:
        changes: metric of each patched run minus that of the run that was patched.
        gaps: metric of the run that was copied from minus that of the run that was patched.
        written: in which pairs each site was patched, in one at least.
        tests: how.
    """
    n_sites = len(changes)
    found = {name: np.full(n_sites, np.nan) for name in ("effect", "low", "high", "flips", "p", "reach")}
    most, size_of_most = 0, np.nan
    for sites, pairs in _alike(written):
        of_sites = (
            changes if len(sites) == n_sites and pairs.all() else np.ascontiguousarray(changes[np.ix_(sites, pairs)])
        )
        n_pairs = int(pairs.sum())
        weight = skewness_weight(of_sites)
        # The size is found once for each weight: one that differs by less hardly shows in it.
        rounded = round(weight * WEIGHTS) / WEIGHTS
        size = detectable_size(n_pairs, tests.lone, power=tests.power, n_flips=tests.n_flips, weight=rounded)
        for name, values in evidence_of_alike(of_sites, gaps[pairs], weight, size, tests).items():
            found[name][sites] = values
        if n_pairs > most:
            most, size_of_most = n_pairs, size
    return Evidence(size=size_of_most, n_pairs=written.sum(axis=1), **found)


def evidence_of_alike(
    changes: Float[np.ndarray, "site pair"],
    gaps: Float[np.ndarray, " pair"],
    weight: float,
    size: float,
    tests: Tests,
    scatter_of_map: float | None = None,
) -> dict[str, Float[np.ndarray, " site"]]:
    """The same of sites that were all patched in these pairs, by the names of `Evidence`.

    Args:
        changes: of the sites, which may be some of a map's.
        gaps: as of `evidence_of`.
        weight: `skewness_weight` of the whole map.
        size: smallest mean change, in estimated standard errors, that is found.
        tests: how.
        scatter_of_map: `Skewness.scatter` of the whole map; None where these are all of its sites.
    """
    n_sites, n_pairs = changes.shape
    gap = np.nan if gaps_cancel(gaps) else gaps.mean()
    low, high = ratio_intervals(
        changes, gaps, level=tests.level, n_resamples=tests.n_resamples, seed=tests.for_intervals
    )
    flips = sign_flip_p_values(changes, n_flips=tests.n_flips, seed=tests.for_flips)
    spread = deviations(changes) if n_pairs > 1 else np.full(n_sites, np.nan)
    return {
        "effect": changes.mean(axis=1) / gap,
        "low": low,
        "high": high,
        "flips": flips,
        "p": np.maximum(flips, careful_p_values(changes, weight, scatter_of_map)),
        "reach": np.where(changes.any(axis=1), size * spread / np.sqrt(n_pairs) / abs(gap), np.nan),
    }


def _alike(
    written: Bool[np.ndarray, "site pair"],
) -> Iterator[tuple[Int[np.ndarray, " some"], Bool[np.ndarray, " pair"]]]:
    """Sites that were patched in the same pairs, and these pairs."""
    if written.all():
        yield np.arange(len(written)), written[0]
        return
    kinds, of_site = np.unique(written, axis=0, return_inverse=True)
    for i, pairs in enumerate(kinds):
        yield np.flatnonzero(of_site.reshape(-1) == i), pairs
