"""What figures show of how sure effects are: intervals, p-values and what is marked. Knows statistics only.

What is significant is marked, and never what is not: an effect that was not tested, or that too few pairs can tell
anything of, must not look like one that was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.estimate_words import of_estimates, untested
from actpatch.core.text import count, signed, with_minus
from actpatch.results.sweep import Sweep
from actpatch.statistics.resampling import FEWEST_PAIRS
from actpatch.statistics.site_tests import CORRECTIONS
from actpatch.statistics.sites import SiteStatistics

STAR = "*"
"""What significant effects are marked with where nothing else is said."""


@dataclass(frozen=True)
class Certainty:
    """What a figure says of how sure the effects of one sweep are, an entry per patch."""

    statistics: SiteStatistics | None
    """None where there are none; `note` then says why."""
    significant: Bool[np.ndarray, " patch"]
    """Patches that are significant after correction; none where there are too few pairs to tell."""
    note: str
    """For the subtitle: how the figure marks these, or why none is."""
    could_be: bool = False
    """Whether there are enough pairs for any patch to be significant."""

    def lines(self, patch: int) -> list[str]:
        """Lines for the hover text of a patch: its interval and p-values, as far as there are any."""
        statistics = self.statistics
        if statistics is None or statistics.n_pairs < 2:
            return []
        lines = []
        if statistics.n_pairs >= FEWEST_PAIRS:
            low, high = statistics.low[patch], statistics.high[patch]
            interval = "none" if np.isnan(low) else f"{signed(low)} to {signed(high)}"
            lines.append(f"{statistics.level * 100:g}% interval {interval}")
        if untested(statistics.estimate):
            return lines
        p, corrected = (with_minus(f"{p[patch]:.2g}") for p in (statistics.p, statistics.p_corrected))
        lines.append(f"p {p}, corrected {corrected}")
        if self.could_be and not self.significant[patch]:
            lines.append("too skewed to judge" if statistics.too_skewed[patch] else "not significant")
        return [*lines, "interval and p disagree about 0"] if statistics.in_doubt[patch] else lines

    @property
    def has_intervals(self) -> bool:
        return self.statistics is not None and self.statistics.n_pairs >= FEWEST_PAIRS

    def whiskers(self, patches: Sequence[int]) -> tuple[Float[np.ndarray, " patch"], Float[np.ndarray, " patch"]]:
        """How far the intervals reach below and above the effects; NaN where there is none or it has no end there."""
        if self.statistics is None or not self.has_intervals:
            none = np.full(len(patches), np.nan)
            return none, none
        statistics, chosen = self.statistics, list(patches)
        below, above = (statistics.effect - statistics.low)[chosen], (statistics.high - statistics.effect)[chosen]
        return np.where(np.isfinite(below), below, np.nan), np.where(np.isfinite(above), above, np.nan)

    def bar_note(self, patches: Sequence[int]) -> str:
        """For the subtitle of a figure with error bars: what these are."""
        if self.statistics is None or not self.has_intervals:
            return self.note
        statistics, chosen = self.statistics, list(patches)
        endless = int((np.isinf(statistics.low[chosen]) | np.isinf(statistics.high[chosen])).sum())
        lacking = f", {endless} without an end" if endless else ""
        return f"{self.note} · bars: {statistics.level * 100:g}% intervals{lacking}"


def certainty(sweep: Sweep, kind: str, statistics: SiteStatistics | None = None, *, mark: str = STAR) -> Certainty:
    """What can be said of a sweep's effects.

    Args:
        sweep: the sweep.
        kind: what each patch is, in a word.
        statistics: those of the sweep; None computes them as `sweep.statistics()` does.
        mark: how the figure shows what is significant, in a word.

    Raises:
        ValueError: where the statistics given are those of another sweep or metric.
    """
    if statistics is None:
        try:
            statistics = sweep.statistics()
        except ValueError as error:
            return unknown(len(sweep.patches), f"no intervals and no significance: {error}")
    else:
        _check_belongs(statistics, sweep)
    return certainty_of(statistics, kind, mark=mark)


def certainties(
    sweeps: tuple[Sweep, Sweep],
    kind: str,
    statistics: tuple[SiteStatistics, SiteStatistics] | None,
    *,
    mark: str = STAR,
) -> list[Certainty]:
    """What can be said of two sweeps in one figure, where marks have to mean the same.

    Raises:
        ValueError: where the statistics are not two, differ in level, alpha or correction, or are of other sweeps.
    """
    if statistics is None:
        return [certainty(sweep, kind, mark=mark) for sweep in sweeps]
    if isinstance(statistics, SiteStatistics) or len(statistics) != 2:
        raise ValueError("statistics are not two, expected those of both results: (a.statistics(), b.statistics())")
    settings = [f"level={one.level:g}, alpha={one.alpha:g}, correction={one.correction!r}" for one in statistics]
    if settings[0] != settings[1]:
        raise ValueError(f"the statistics have {settings[0]} and {settings[1]}, expected the same for both results")
    return [certainty(sweep, kind, one, mark=mark) for sweep, one in zip(sweeps, statistics)]


def unknown(n_patches: int, why: str) -> Certainty:
    """What is said of effects without statistics."""
    return Certainty(None, np.zeros(n_patches, dtype=bool), why)


def certainty_of(statistics: SiteStatistics, kind: str, *, mark: str = STAR) -> Certainty:
    """What these statistics say; `certainty` explains the arguments."""
    n_pairs, n_sites = statistics.n_pairs, statistics.n_corrected
    if why := untested(statistics.estimate):
        return Certainty(statistics, np.zeros(len(statistics.sites), dtype=bool), f"not tested: {why}")
    if not statistics.tells_significance:
        few = "" if n_pairs >= FEWEST_PAIRS else ", or for intervals"
        return Certainty(
            statistics, np.zeros(len(statistics.sites), dtype=bool), f"{count(n_pairs, 'pair')}: too few to test{few}"
        )
    significant = statistics.significant
    alpha = with_minus(f"{statistics.alpha:g}")
    test = f"p\xa0≤\xa0{alpha}, {CORRECTIONS[statistics.correction]} over {count(n_sites, kind)}"
    found = f"{mark}\xa0significant" if significant.any() else "none significant"
    if statistics.estimate is not None:
        test += f", of estimates · {of_estimates(statistics.estimate)}"
    return Certainty(statistics, significant, f"{found}: {test}", could_be=True)


def _check_belongs(statistics: SiteStatistics, sweep: Sweep) -> None:
    labels = tuple(sweep.labels)
    is_other = statistics.sites != labels or statistics.estimate != sweep.estimate
    if is_other or not np.allclose(statistics.effect, sweep.effects, equal_nan=True):
        raise ValueError(
            f"these statistics of {len(statistics.sites)} sites are not those of these results ({len(labels)} sites, "
            f"{sweep.metric}): pass results.statistics(...) of the same results"
        )
