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
from actpatch.statistics.skewness import Skewness, careful_p_values, deviations

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
    for_splits: int
    """Seed of the halves that the pairs are split into."""
    for_deals: int
    """Seed of the deals of the pairs to groups."""


class MapSkewness:
    """How skewed a map's sites are, which each site's p-value depends on; some may be added at a time.

    Sites that were patched in other pairs are maps of their own.
    """

    def __init__(self) -> None:
        self._of: dict[bytes, Skewness] = {}

    def add(self, changes: Float[np.ndarray, "site pair"], written: Bool[np.ndarray, "site pair"]) -> None:
        """Take in these sites; arguments as of `evidence_of`."""
        for sites, pairs in _alike(written):
            of_pairs = self._of.setdefault(pairs.tobytes(), Skewness(int(pairs.sum())))
            of_pairs.add(_taken(changes, sites, pairs))

    def of(self, pairs: Bool[np.ndarray, " pair"]) -> Skewness:
        """That of the sites that were patched in these pairs."""
        return self._of[pairs.tobytes()]

    def size(self, tests: Tests) -> float:
        """Smallest mean change, in estimated standard errors, that as many new pairs would find at the sites of the
        most pairs."""
        most = max((self._of[pairs] for pairs in sorted(self._of)), key=lambda found: found.n_pairs)
        return _size(most, tests)


def evidence_of(
    changes: Float[np.ndarray, "site pair"],
    gaps: Float[np.ndarray, " pair"],
    written: Bool[np.ndarray, "site pair"],
    tests: Tests,
    skewness: MapSkewness,
) -> Evidence:
    """What the pairs in which each site was patched say of it.

    Args:
        changes: metric of each patched run minus that of the run that was patched.
        gaps: metric of the run that was copied from minus that of the run that was patched.
        written: in which pairs each site was patched, in one at least.
        tests: how.
        skewness: of the whole map, of which these may be some of the sites.
    """
    found = {name: np.full(len(changes), np.nan) for name in ("effect", "low", "high", "flips", "p", "reach")}
    for sites, pairs in _alike(written):
        of_sites = _taken(changes, sites, pairs)
        for name, values in _of_alike(of_sites, gaps[pairs], skewness.of(pairs), tests).items():
            found[name][sites] = values
    return Evidence(n_pairs=written.sum(axis=1), **found)


def _taken(changes: np.ndarray, sites: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    if len(sites) == len(changes) and pairs.all():
        return changes
    return np.ascontiguousarray(changes[np.ix_(sites, pairs)])


def _size(skewness: Skewness, tests: Tests) -> float:
    """The size is found once for each weight: one that differs by less hardly shows in it."""
    weight = round(skewness.weight * WEIGHTS) / WEIGHTS
    return detectable_size(skewness.n_pairs, tests.lone, power=tests.power, n_flips=tests.n_flips, weight=weight)


def _of_alike(
    changes: Float[np.ndarray, "site pair"], gaps: Float[np.ndarray, " pair"], skewness: Skewness, tests: Tests
) -> dict[str, Float[np.ndarray, " site"]]:
    """The same of sites that were all patched in these pairs, by the names of `Evidence`."""
    n_sites, n_pairs = changes.shape
    gap = np.nan if gaps_cancel(gaps) else gaps.mean()
    low, high = ratio_intervals(
        changes, gaps, level=tests.level, n_resamples=tests.n_resamples, seed=tests.for_intervals
    )
    flips = sign_flip_p_values(changes, n_flips=tests.n_flips, seed=tests.for_flips)
    spread = deviations(changes) if n_pairs > 1 else np.full(n_sites, np.nan)
    size = _size(skewness, tests)
    return {
        "effect": changes.mean(axis=1) / gap,
        "low": low,
        "high": high,
        "flips": flips,
        "p": np.maximum(flips, careful_p_values(changes, skewness.weight, skewness.scatter)),
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
