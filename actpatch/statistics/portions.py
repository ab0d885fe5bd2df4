"""Statistics of more sites than memory holds: those of `statistics.sites`, a portion of the sites at a time.

Sites go through twice: once for how skewed they are, which each site's p-value depends on, and once for all else. What
is kept of a site meanwhile is a few numbers, and its effects on the halves of 200 splits of the pairs, which go to a
file of the system's temporary folder where there are many sites. Nothing here knows where portions come from.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Unpack

import numpy as np
from jaxtyping import Bool, Float

from actpatch.statistics.evidence import Evidence, MapSkewness, evidence_of
from actpatch.statistics.groups import GroupComparison
from actpatch.statistics.resampling import effects_of_halves, halves_of_pairs, rank_correlations
from actpatch.statistics.site_tests import (
    StatisticsOptions,
    check_baselines,
    check_numbers_of_sites,
    check_there_are_some,
    tests_of,
)
from actpatch.statistics.sites import SiteStatistics, checked_options, put_together, scaled

N_SPLITS = 200
HELD = 2**26
"""Bytes of effects on halves from which on they go to a file."""

Portion = tuple[Float[np.ndarray, "site pair"], Bool[np.ndarray, "site pair"]]
"""The metric of patched runs of some sites, and in which pairs each was patched."""


def statistics_by_portion(
    portions: Callable[[], Iterator[Portion]],
    base: Float[np.ndarray, " pair"],
    source: Float[np.ndarray, " pair"],
    sites: Sequence[str],
    groups: Sequence[str] = (),
    **options: Unpack[StatisticsOptions],
) -> SiteStatistics:
    """The statistics of all sites, from portions of them.

    Args:
        portions: gives them, in order, each time from the beginning.
        base: metric of the runs that were patched.
        source: metric of the runs whose activations were copied.
        sites: labels of all of them.
        groups: the group of each pair.
        options: as of `statistics.sites.site_statistics`.

    Raises:
        ValueError: for no sites or pairs, values that are not finite, and settings out of range.
        OSError: where the temporary folder is full.
    """
    asked = checked_options(options)
    check_there_are_some(sites, base)
    check_baselines(base, source)
    tests, skewness, gaps = tests_of(len(sites), asked), MapSkewness(), scaled(base[None], base, source)[1]
    n_seen, broken = 0, list[int]()
    for patched, written in portions():
        finite = np.isfinite(patched).all(axis=1)
        broken += (n_seen + np.flatnonzero(~finite)).tolist()
        n_seen += len(patched)
        if not broken:
            skewness.add(scaled(patched, base, source)[0], written)
    check_numbers_of_sites(sites, broken)
    comparison = GroupComparison(gaps, groups, alpha=asked["alpha"], seed=tests.for_deals)
    each, is_whole, changes_anything = list[Evidence](), list[np.ndarray](), False
    with SplitHalves(gaps, tests.for_splits) as halves:
        for patched, written in portions():
            changes = scaled(patched, base, source)[0]
            each.append(evidence_of(changes, gaps, written, tests, skewness))
            changes_anything |= bool(changes.any())
            is_whole.append(np.asarray(written.all(axis=1)))
            in_all = changes if is_whole[-1].all() else changes[is_whole[-1]]
            halves.add(in_all)
            comparison.add(in_all)
        split_half = halves.agreement()
    whole = np.flatnonzero(np.concatenate(is_whole)).tolist()
    differences = comparison.found([sites[i] for i in whole])
    return put_together(
        sites,
        Evidence(**{of.name: np.concatenate([getattr(one, of.name) for one in each]) for of in fields(Evidence)}),
        asked,
        size=skewness.size(tests),
        split_half=split_half,
        differences=differences and differences.among(sites, whole),
        groups=groups,
        n_pairs=len(gaps),
        n_whole=len(whole),
        changes_anything=changes_anything,
    )


class SplitHalves:
    """`resampling.split_half_agreement` of sites of which some are added at a time.

    Args:
        gaps: of the pairs.
        seed: of the splits.
    """

    def __init__(self, gaps: Float[np.ndarray, " pair"], seed: int) -> None:
        self.gaps, self._halves = gaps, halves_of_pairs(gaps, N_SPLITS, seed)
        self._sizes: list[int] = []

    def __enter__(self) -> SplitHalves:
        self._file = tempfile.SpooledTemporaryFile(max_size=HELD)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, changes: Float[np.ndarray, "site pair"]) -> None:
        """Take in these sites."""
        if self._halves is None:
            return
        for members in self._halves:
            self._file.write(np.ascontiguousarray(effects_of_halves(changes, self.gaps, members).T).tobytes())
        self._sizes.append(len(changes))

    def agreement(self) -> float:
        """Mean Spearman correlation across all sites; NaN as there."""
        if self._halves is None or sum(self._sizes) < 2:
            return math.nan
        found = [rank_correlations(self._effects(0, split), self._effects(1, split)) for split in range(N_SPLITS)]
        return math.nan if np.isnan(found).any() else float(np.mean(found))

    def _effects(self, half: int, split: int) -> Float[np.ndarray, "site 1"]:
        """Of all sites on one half of one split: a stretch of what stands there of each portion."""
        effects, begin = [], 0
        for size in self._sizes:
            self._file.seek(8 * (begin + (half * N_SPLITS + split) * size))
            effects.append(np.frombuffer(self._file.read(8 * size)))
            begin += 2 * N_SPLITS * size
        return np.concatenate(effects)[:, None]
