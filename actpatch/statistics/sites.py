"""Intervals, p-values, agreement and reach of the effects of one sweep, from arrays alone.

Two numbers per pair carry everything: the *change* that a patch makes, patched - base, and the *gap* that could be
closed, source - base. The effect over pairs is mean change / mean gap, and pairs are what varies: each statistic asks
what other pairs of the same task would have given. None of them says anything about other tasks, corruptions or models.

- *Intervals* are a studentised bootstrap over pairs, with the same resamples for all sites.
- *p-values* are those of a sign-flip test, or larger where a site's changes are skewed against its mean and the map
  shows that skewness is more than noise: a site's p-value therefore depends on the other sites. They are *corrected*
  over the whole map: at most the share alpha of the sites called significant is expected to be so by chance (Benjamini
  & Hochberg 1995). `by` makes no assumption about how sites depend on each other (Benjamini & Yekutieli 2001).
- *Split-half agreement* says whether other pairs would rank the sites alike.
- The *detectable effect* of a site is what it would have needed to be found, with the stated power and after
  correction, in as many new pairs, if it alone had an effect: `size × standard deviation(change) / (√n × |mean gap|)`,
  `size` being the reach of the test at the level alpha / sites. It is that of normal changes; that the standard
  deviation is an estimate is reckoned with.

Interval and p-value are two methods, and now and then disagree about 0: notes name the sites.

The methods, with sources, stand in `statistics.resampling` and `statistics.skewness`; `docs/significance.md` says how
often they were right in simulations.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from actpatch.core.estimate_words import estimated_by, method_of, of_estimates, untested
from actpatch.core.estimates import Estimate
from actpatch.core.heavy import pd, stats
from actpatch.core.text import count
from actpatch.core.warn import warn_user
from actpatch.statistics.evidence import Evidence, MapSkewness, evidence_of
from actpatch.statistics.groups import GroupDifferences, group_differences, placed
from actpatch.statistics.resampling import split_half_agreement
from actpatch.statistics.site_notes import (
    disagreement,
    notes_on_disagreement,
    notes_on_groups,
    notes_on_pairs,
    notes_on_skewness,
)
from actpatch.statistics.site_tests import (
    CORRECTIONS,
    Correction,
    StatisticsOptions,
    check_baselines,
    check_numbers_of_sites,
    check_settings,
    check_there_are_some,
    reach_of_pairs,
    tests_of,
)

_PER_SITE = ("effect", "low", "high", "p", "p_corrected", "too_skewed", "detectable", "pairs_at")


@dataclass(frozen=True, eq=False, repr=False)
class SiteStatistics:
    """How sure the effects of one sweep are. Arrays have one entry per site, in the order of the sweep's patches."""

    sites: tuple[str, ...]
    """Label of each site."""
    effect: Float[np.ndarray, " site"]
    """Ratio of means over the pairs."""
    low: Float[np.ndarray, " site"]
    """Lower end of the interval; -inf where the pairs set it no bound, NaN where there are too few pairs or all have
    exactly one effect."""
    high: Float[np.ndarray, " site"]
    p: Float[np.ndarray, " site"]
    """Two-sided p-value, by sign flips and held back where changes are skewed; 1 for a site that changes nothing on any
    pair."""
    p_corrected: Float[np.ndarray, " site"]
    """p-value corrected for the number of sites."""
    too_skewed: Bool[np.ndarray, " site"]
    """Sites that sign flips alone would call significant, but whose changes are too skewed for that."""
    detectable: Float[np.ndarray, " site"]
    """Smallest |effect| that as many new pairs would find with `power`; NaN for a site that changes nothing, and where
    no effect of any size would be found with it."""
    split_half: float
    """Mean Spearman correlation between the effects on two halves of the pairs."""
    n_pairs: int
    """Pairs that the statistics rest on: the usable ones."""
    level: float
    """Share of intervals meant to hold the true effect."""
    alpha: float
    """A site is significant where `p_corrected` is at most this."""
    correction: Correction
    power: float
    """Chance with which an effect of size `detectable` is found."""
    smallest_p: float
    """No p-value can be below this, before correction."""
    seed: int
    n_resamples: int
    """Resamples of the pairs that the intervals rest on."""
    too_few: str
    """Why no site is significant, nor could be alone with so many pairs, and what to do; empty where one could."""
    differences: GroupDifferences | None
    """Whether effects differ between groups of pairs; None where there are not two groups to compare."""
    notes: tuple[str, ...]
    """What could not be computed or is weak, and why; first, whether effects differ between groups of pairs."""
    n_corrected: int
    """Number of sites that the correction counts: all of the map, also where these are some of them."""
    pairs_at: Int[np.ndarray, " site"]
    """Pairs that the entries of each site rest on: those in which it was patched."""
    estimate: Estimate | None = None
    """How the effects are estimated, which all of this is then about; None where patches were run."""

    @property
    def options(self) -> StatisticsOptions:
        """The options that these were computed with, to compute others alike."""
        return {
            "seed": self.seed,
            "level": self.level,
            "alpha": self.alpha,
            "correction": self.correction,
            "power": self.power,
            "n_resamples": self.n_resamples,
        }

    def of_sites(self, numbers: Sequence[int]) -> SiteStatistics:
        """The entries of these sites. Whatever is of the map stays the whole map's: correction, agreement, notes."""
        chosen = list(numbers)
        entries = {name: getattr(self, name)[chosen] for name in _PER_SITE}
        differences = self.differences.of_sites(chosen) if self.differences else None
        return replace(self, sites=tuple(self.sites[i] for i in chosen), differences=differences, **entries)

    def among(self, sites: Sequence[str], numbers: Sequence[int]) -> SiteStatistics:
        """These entries as those with these numbers among more sites, of which nothing was measured: theirs are NaN."""
        entries: dict[str, Any] = {name: placed(getattr(self, name), len(sites), numbers) for name in _PER_SITE}
        differences = self.differences.among(sites, numbers) if self.differences else None
        return replace(self, sites=tuple(sites), differences=differences, **entries)

    def of_estimates(self, estimate: Estimate | None) -> SiteStatistics:
        """These statistics, which say that they are about estimates. Of sizes without sign none is significant."""
        notes = (*self.notes, *filter(None, [of_estimates(estimate)]))
        return replace(self, estimate=estimate, notes=notes, too_few=untested(estimate) or self.too_few)

    @property
    def significant(self) -> Bool[np.ndarray, " site"]:
        return (self.p_corrected <= self.alpha) & self.tells_significance

    @property
    def tells_significance(self) -> bool:
        """Whether sites are told apart: some of the map are significant, or one alone could be with so many pairs."""
        return not self.too_few

    @property
    def in_doubt(self) -> Bool[np.ndarray, " site"]:
        """Where the interval leaves out 0 though `p` is above 1 - `level`, or holds 0 though `p` is not above it."""
        interval_alone, test_alone = disagreement(self.low, self.high, self.p, self.level)
        return interval_alone | test_alone

    def significant_or_warned(self) -> Bool[np.ndarray, " site"]:
        """`significant`, with a warning where no site is, and a single one could not be whatever its effect; and of
        estimates, what this is about."""
        untold = math.isnan(self.detectable_effect) or not self.tells_significance
        if not self.significant.any() and untold:
            warn_user(f"nothing is significant at {self.alpha:g}: {self.too_few or '; '.join(self.notes)}")
        elif self.estimate is not None:
            warn_user(of_estimates(self.estimate))
        return self.significant

    @property
    def detectable_effect(self) -> float:
        """`detectable` of the median site, among those that change anything."""
        known = self.detectable[~np.isnan(self.detectable)]
        return float(np.median(known)) if len(known) else math.nan

    @property
    def reliability(self) -> float:
        """Agreement to expect between the effects on all these pairs and on as many new ones.

        The split-half agreement, stepped up from half the pairs to all of them by Spearman and Brown's formula
        2r / (1 + |r|) (1910; the bars, for halves that disagree, are Krus & Helmstadter's, 1993); derived for Pearson's
        correlation, for ranks it is an approximation.
        """
        return 2 * self.split_half / (1 + abs(self.split_half))

    def to_dataframe(self) -> pd.DataFrame:
        """A row per site; where effects are estimated, `estimate` names the method."""
        columns = ("effect", "low", "high", "p", "p_corrected", "significant", "too_skewed", "in_doubt", "detectable")
        table = pd.DataFrame({"site": self.sites, **{name: getattr(self, name) for name in columns}})
        how = {} if self.estimate is None else {"estimate": method_of(self.estimate)}
        return table.assign(n_pairs=self.pairs_at, **how)

    def __repr__(self) -> str:
        return (
            f"SiteStatistics({count(len(self.sites), 'site')} × {count(self.n_pairs, 'pair')}, "
            f"{int(self.significant.sum())} significant at {self.alpha:g} ({CORRECTIONS[self.correction]}), "
            f"split-half {self.split_half:.2f}, detectable effect {self.detectable_effect:.3f}"
            f"{', ' if self.estimate else ''}{estimated_by(self.estimate)})"
        )


def site_statistics(
    patched: Float[np.ndarray, "site pair"],
    base: Float[np.ndarray, " pair"],
    source: Float[np.ndarray, " pair"],
    *,
    sites: Sequence[str] | None = None,
    groups: Sequence[str] = (),
    written: Bool[np.ndarray, "site pair"] | None = None,
    seed: int = 0,
    level: float = 0.95,
    alpha: float = 0.05,
    correction: Correction = "bh",
    power: float = 0.8,
    n_resamples: int = 1999,
) -> SiteStatistics:
    """All statistics of a map of sites.

    Args:
        patched: metric of each patched run.
        base: metric of the runs that were patched.
        source: metric of the runs whose activations were copied.
        sites: labels; None numbers the sites.
        groups: the group of each pair, whose effects are compared (`statistics.groups`); none compares nothing.
        written: in which pairs each site was patched: a site's numbers are those of its pairs alone, and what compares
            sites, or groups of pairs, rests on the sites that were patched in all. None for all pairs.
        seed: seed of everything that is drawn. The same seed gives the same numbers, bit for bit.
        level: share of intervals meant to hold the true effect.
        alpha: sites are significant where their corrected p-value is at most this.
        correction: `bh` or `by`, over all the sites given (module docstring).
        power: chance of being found that defines the detectable effect.
        n_resamples: resamples of the pairs for the intervals.

    Raises:
        ValueError: for no pairs, a site patched in none, values that are not finite, and settings out of range.
    """
    labels = tuple(map(str, range(len(patched)))) if sites is None else tuple(sites)
    options: StatisticsOptions = {
        "seed": seed,
        "level": level,
        "alpha": alpha,
        "correction": correction,
        "power": power,
        "n_resamples": n_resamples,
    }
    check_settings(**options)
    if patched.shape != (len(labels), len(base)) or len(source) != len(base):
        raise ValueError(
            f"patched has shape {patched.shape}, expected (sites, pairs) = {(len(labels), len(base))}, and source has "
            f"{len(source)} entries, expected one per pair"
        )
    check_there_are_some(labels, base)
    check_numbers_of_sites(labels, np.flatnonzero(~np.isfinite(patched).all(axis=1)))
    check_baselines(base, source)
    if groups and len(groups) != len(base):
        raise ValueError(f"groups has {len(groups)} entries, expected one per pair ({len(base)})")
    written = np.ones(patched.shape, dtype=bool) if written is None else written
    if not written.any(axis=1).all():
        raise ValueError(f"{labels[int(written.any(axis=1).argmin())]} was patched in no pair: leave that site out")
    changes, gaps = scaled(patched, base, source)
    tests, skewness = tests_of(len(labels), options), MapSkewness()
    skewness.add(changes, written)
    found = evidence_of(changes, gaps, written, tests, skewness)
    whole = np.flatnonzero(written.all(axis=1))
    differences = group_differences(
        changes, gaps, groups, sites=labels, written=written, alpha=alpha, seed=tests.for_deals
    )
    in_all = changes if len(whole) == len(changes) else changes[whole]
    return put_together(
        labels,
        found,
        options,
        size=skewness.size(tests),
        split_half=split_half_agreement(in_all, gaps, seed=tests.for_splits),
        differences=differences,
        groups=groups,
        n_pairs=len(gaps),
        n_whole=len(whole),
        changes_anything=bool(changes.any()),
    )


def scaled(
    patched: Float[np.ndarray, "site pair"], base: Float[np.ndarray, " pair"], source: Float[np.ndarray, " pair"]
) -> tuple[Float[np.ndarray, "site pair"], Float[np.ndarray, " pair"]]:
    """Changes and gaps, in a unit of about the largest gap: whatever the metric's, a power of two changes no digit."""
    # Sums over pairs round by where the numbers lie in memory: selected pairs and loaded files lie differently.
    changes, gaps = np.ascontiguousarray(patched - base), source - base
    exponent = np.frexp(np.abs(gaps).max())[1]
    return np.ldexp(changes, -exponent, out=changes), np.ldexp(gaps, -exponent)


def put_together(
    labels: Sequence[str],
    found: Evidence,
    options: StatisticsOptions,
    *,
    size: float,
    split_half: float,
    differences: GroupDifferences | None,
    groups: Sequence[str],
    n_pairs: int,
    n_whole: int,
    changes_anything: bool,
) -> SiteStatistics:
    """The statistics of a map, of what was found of each site and of all together.

    Args:
        labels: of all sites.
        found: what the pairs say of each.
        options: all of them.
        size: `MapSkewness.size`.
        split_half: their agreement.
        differences: between groups of pairs.
        groups: the group of each pair.
        n_pairs: how many there are.
        n_whole: sites that were patched in all of them.
        changes_anything: whether any site changes anything.
    """
    alpha, tests = options["alpha"], tests_of(len(labels), options)
    p_corrected, flips_corrected = (
        stats.false_discovery_control(of, method=options["correction"]) for of in (found.p, found.flips)
    )
    too_skewed = (flips_corrected <= alpha) & (p_corrected > alpha)
    step, too_few = reach_of_pairs(n_pairs, len(labels), alpha=alpha, correction=options["correction"])
    told = differences.sentence if differences else notes_on_groups(groups, n_whole > 0)
    return SiteStatistics(
        sites=tuple(labels),
        effect=found.effect,
        low=found.low,
        high=found.high,
        p=found.p,
        p_corrected=p_corrected,
        too_skewed=too_skewed,
        detectable=found.reach,
        split_half=split_half,
        n_pairs=n_pairs,
        smallest_p=step,
        too_few="" if (p_corrected <= alpha).any() else too_few,
        differences=differences,
        notes=(
            *filter(None, [told, too_few]),
            *notes_on_pairs(found.low, found.high, split_half, found.n_pairs, n_pairs, n_whole, changes_anything),
            *notes_on_skewness(labels, n_pairs, too_skewed, size, tests.lone >= step, tests.power),
            *(() if too_few else notes_on_disagreement(labels, found.low, found.high, found.p, options["level"])),
        ),
        n_corrected=len(labels),
        pairs_at=found.n_pairs,
        **options,
    )


def checked_options(given: StatisticsOptions) -> StatisticsOptions:
    """All options, with the defaults of `site_statistics` for those that are not given.

    Raises:
        ValueError: for settings out of range.
    """
    defaults = inspect.signature(site_statistics).parameters
    options: Any = {name: given.get(name, defaults[name].default) for name in StatisticsOptions.__annotations__}
    check_settings(**options)
    return options  # type: ignore[no-any-return]
