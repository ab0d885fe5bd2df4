"""Whether the effect of a site differs between groups of pairs, from arrays alone.

A mean over pairs says little where pairs of one group work otherwise than those of another. Of each group the effect is
the ratio of its means, e = mean(change) / mean(gap), with the variance that the delta method gives it over n pairs,
v = Σ(change - e·gap)² / ((n - 1)·n·mean(gap)²). A site's statistic is that of Welch (1951), Σ(e - ē)² / v over the
groups with ē weighted by 1 / v, which lets scatter and gaps be others in each group. Its p-value comes from dealing the
pairs anew among the groups, all ways or `N_DEALS` of them, and is corrected over the map by the largest statistic of
any site in each deal (Westfall & Young 1993): four pairs in each of two groups are enough to find a
single site, and sites that go together cost nothing.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from actpatch.core.heavy import pd
from actpatch.core.text import count, plain
from actpatch.statistics.resampling import ROUNDING, gaps_cancel, portions

FEWEST_OF_A_GROUP = 4
"""A group of fewer pairs is not compared: its scatter is not known, and with two groups of three no p is below 0.1."""
N_DEALS = 1999
"""Most ways of dealing pairs to groups that are tried."""
WORTH_SAYING = 0.05
"""A smaller difference between two groups' effects is not told, however sure it is."""
PORTION = 4
"""Sites are worked through in portions of a fourth of the numbers that one array may have: there are several."""
_NO_SCATTER = 1e-20
"""Variance taken for that of a group whose pairs all say the same, as a share of all pairs' mean square."""


@dataclass(frozen=True, eq=False)
class GroupDifferences:
    """Effects of each site by group, and how sure it is that they differ. Arrays are in the order of the sites."""

    sites: tuple[str, ...]
    groups: tuple[str, ...]
    """Those that are compared, the one of the first pair first."""
    n_pairs: tuple[int, ...]
    """Usable pairs of each."""
    effects: Float[np.ndarray, "site group"]
    """Ratio of means over the pairs of the group."""
    p: Float[np.ndarray, " site"]
    """Of equal effects in all groups."""
    p_corrected: Float[np.ndarray, " site"]
    """Corrected over the sites: the chance that any would differ so much where none does."""
    smallest_p: float
    """No p-value can be below this."""
    alpha: float
    left_out: tuple[str, ...] = ()
    """Groups with too few usable pairs, or gaps that cancel."""

    def of_sites(self, numbers: Sequence[int]) -> GroupDifferences:
        """The entries of these sites; p-values stay corrected over the whole map."""
        chosen = list(numbers)
        entries = {name: getattr(self, name)[chosen] for name in ("effects", "p", "p_corrected")}
        return replace(self, sites=tuple(self.sites[i] for i in chosen), **entries)

    def among(self, sites: Sequence[str], numbers: Sequence[int]) -> GroupDifferences:
        """These entries as those with these numbers among more sites, of which nothing was measured: theirs are NaN."""
        entries: dict[str, Any] = {
            name: placed(getattr(self, name), len(sites), numbers) for name in ("effects", "p", "p_corrected")
        }
        return replace(self, sites=tuple(sites), **entries)

    @property
    def significant(self) -> Bool[np.ndarray, " site"]:
        return self.p_corrected <= self.alpha

    @property
    def spread(self) -> Float[np.ndarray, " site"]:
        """The largest effect of any group minus the smallest."""
        return np.ptp(self.effects, axis=1)

    @property
    def sentence(self) -> str:
        """The significant site whose effects lie furthest apart, with both means; empty where there is none."""
        told = self.significant & (self.spread >= WORTH_SAYING)
        if not told.any():
            return ""
        site = int(np.argmax(np.where(told, self.spread, -1)))
        ends = sorted((int(self.effects[site].argmin()), int(self.effects[site].argmax())))
        one, other = (self._described(site, group) for group in ends)
        others = int(told.sum()) - 1
        more = f", {count(others, 'more site')} differ{'' if others > 1 else 's'} too" if others else ""
        return (
            f"effects differ between groups of pairs: {self.sites[site]} is {one} and {other}, corrected p "
            f"{self.p_corrected[site]:.2g}{more}; results.by_group() has each"
        )

    def _described(self, site: int, group: int) -> str:
        effect, name = plain(self.effects[site, group], 2), textwrap.shorten(self.groups[group], 40)
        return f"{effect} in {self.n_pairs[group]} pairs ({name})"

    def to_dataframe(self) -> pd.DataFrame:
        """A row per site: the effect in each group, p-values, and whether they differ significantly."""
        by_group = {group: self.effects[:, g] for g, group in enumerate(self.groups)}
        tests = {name: getattr(self, name) for name in ("p", "p_corrected", "significant")}
        return pd.DataFrame({"site": self.sites, **by_group, **tests})


def placed(values: np.ndarray, n_sites: int, numbers: Sequence[int]) -> np.ndarray:
    """The values as those with these numbers among so many; NaN, False or 0 in all other places."""
    whole = np.full((n_sites, *values.shape[1:]), np.nan if values.dtype.kind == "f" else 0, dtype=values.dtype)
    whole[list(numbers)] = values
    return whole


def group_differences(
    changes: Float[np.ndarray, "site pair"],
    gaps: Float[np.ndarray, " pair"],
    groups: Sequence[str],
    *,
    sites: Sequence[str],
    written: Bool[np.ndarray, "site pair"] | None = None,
    alpha: float = 0.05,
    seed: int = 0,
) -> GroupDifferences | None:
    """Whether effects differ between groups of pairs; None where there are not two groups to compare, or no site.

    Args:
        changes: metric of each patched run minus that of the run that was patched.
        gaps: metric of the run that was copied from minus that of the run that was patched.
        groups: the group of each pair; an empty text for pairs of none.
        sites: labels.
        written: in which pairs each site was patched. Those that were not in all, which have other pairs, are not
            compared: their entries are NaN. None for all pairs.
        alpha: effects of a site differ significantly where its corrected p-value is at most this.
        seed: seed of the deals, where not all are tried.
    """
    if written is not None and not written.all():
        whole = np.flatnonzero(written.all(axis=1)).tolist()
        if not whole:
            return None
        names = [sites[i] for i in whole]
        compared = group_differences(changes[whole], gaps, groups, sites=names, alpha=alpha, seed=seed)
        return compared and compared.among(sites, whole)
    comparison = GroupComparison(gaps, groups, alpha=alpha, seed=seed)
    comparison.add(changes)
    return comparison.found(sites)


class GroupComparison:
    """Compares a map's sites between groups of pairs; some sites may be added at a time.

    Args:
        gaps, groups, alpha, seed: as of `group_differences`.
    """

    def __init__(
        self, gaps: Float[np.ndarray, " pair"], groups: Sequence[str], *, alpha: float = 0.05, seed: int = 0
    ) -> None:
        of_pair, self._sizes = np.array(groups, dtype=object), Counter(filter(None, groups))
        self.alpha = alpha
        self.kept = [
            name
            for name, size in self._sizes.items()
            if size >= FEWEST_OF_A_GROUP and not gaps_cancel(gaps[of_pair == name])
        ]
        """Groups that are compared; nothing is where there are fewer than two."""
        if len(self.kept) < 2:
            return
        self._pairs = np.concatenate([np.flatnonzero(of_pair == name) for name in self.kept])
        self._counts = [self._sizes[name] for name in self.kept]
        self._unit = np.abs(gaps[self._pairs]).max()
        self._gaps = gaps[self._pairs] / self._unit
        self._members = np.repeat(np.eye(len(self.kept)), self._counts, axis=0)
        self._deals = _deals(self._counts, seed)
        self._largest = np.full(len(self._deals), -np.inf)
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, changes: Float[np.ndarray, "site pair"]) -> None:
        """Take in these sites: the effect of each group, in how many deals a site's statistic comes to the observed
        one, and the largest statistic of any site in each deal."""
        if len(self.kept) < 2:
            return
        changes, gaps, members, deals = changes[:, self._pairs] / self._unit, self._gaps, self._members, self._deals
        n_sites, (n_pairs, n_groups) = len(changes), members.shape
        effects, least, reached = np.empty((n_sites, n_groups)), np.empty(n_sites), np.zeros(n_sites)
        for rows in portions(n_sites, PORTION * n_pairs):
            given, observed = _statistic(changes[rows], gaps, members[None])
            effects[rows], least[rows] = given[:, 0], observed[:, 0] * (1 - 1e-9)
            for some in portions(len(deals), n_groups * max(rows.stop - rows.start, n_pairs)):
                _, found = _statistic(changes[rows], gaps, members[deals[some]])
                reached[rows] += (found >= least[rows, None]).sum(axis=1)
                self._largest[some] = np.maximum(self._largest[some], found.max(axis=0))
        self._found.append((effects, least, reached))

    def found(self, sites: Sequence[str]) -> GroupDifferences | None:
        """What was found of all sites that were added, of which these are the labels; None where none were, or there
        are no groups to compare."""
        if len(self.kept) < 2 or not len(sites):
            return None
        effects, least, reached = (np.concatenate(each) for each in zip(*self._found))
        known = np.sort(self._largest[~np.isnan(self._largest)])
        reached_by_any = (len(known) - np.searchsorted(known, least)).astype(float)
        n_deals, counts = len(self._deals), self._counts
        return GroupDifferences(
            sites=tuple(sites),
            groups=tuple(self.kept),
            n_pairs=tuple(counts),
            effects=effects,
            p=reached / n_deals,
            p_corrected=reached_by_any / n_deals,
            smallest_p=_alike(counts) / n_deals if _n_deals(counts) <= N_DEALS else 1 / n_deals,
            alpha=self.alpha,
            left_out=tuple(name for name in self._sizes if name not in self.kept),
        )


def _statistic(
    changes: Float[np.ndarray, "site pair"], gaps: Float[np.ndarray, " pair"], members: Float[np.ndarray, "deal pair g"]
) -> tuple[Float[np.ndarray, "site deal g"], Float[np.ndarray, "site deal"]]:
    """Effect of each group in each deal, and Welch's statistic; 0 where no pair differs from any other."""
    n_deals, n_pairs, n_groups = members.shape
    whole = changes.sum(axis=1) / gaps.sum() if not gaps_cancel(gaps) else np.zeros(len(changes))
    rest = changes - whole[:, None] * gaps  # sums of squares of what is left lose no digits
    rest[np.abs(rest).max(axis=1) <= ROUNDING * np.abs(changes).max(axis=1)] = 0
    columns = members.transpose(1, 0, 2).reshape(n_pairs, -1)
    size, gap, gap_square = columns.sum(axis=0), gaps @ columns, gaps**2 @ columns
    total, cross, square = rest @ columns, (rest * gaps) @ columns, rest**2 @ columns
    with np.errstate(divide="ignore", invalid="ignore"):
        extra = total / gap
        scatter = np.maximum(square - 2 * extra * cross + extra**2 * gap_square, 0)
        floor = _NO_SCATTER * (rest**2).mean(axis=1, keepdims=True)
        variance = np.maximum(scatter / (size - 1), floor) * size / gap**2
        weight = np.where(variance > 0, 1 / variance, 0).reshape(-1, n_deals, n_groups)
        extra = np.where(np.isfinite(extra), extra, 0).reshape(-1, n_deals, n_groups)
        centre = np.nan_to_num((weight * extra).sum(axis=2) / weight.sum(axis=2))
    return whole[:, None, None] + extra, (weight * (extra - centre[:, :, None]) ** 2).sum(axis=2)


def _deals(counts: Sequence[int], seed: int) -> Int[np.ndarray, "deal pair"]:
    """Ways of dealing the pairs to groups of these sizes, the given one first: for each pair whose place it takes."""
    n_pairs = sum(counts)
    if _n_deals(counts) <= N_DEALS:
        return np.array([_places(deal, n_pairs) for deal in _all_deals(tuple(range(n_pairs)), counts)])
    generator = np.random.default_rng(seed)
    return np.array([np.arange(n_pairs), *(generator.permutation(n_pairs) for _ in range(N_DEALS))])


def _n_deals(counts: Sequence[int]) -> int:
    return math.factorial(sum(counts)) // math.prod(map(math.factorial, counts))


def _all_deals(left: tuple[int, ...], counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The pairs in order of the groups that they are dealt to."""
    if not counts:
        yield ()
        return
    for chosen in itertools.combinations(left, counts[0]):
        rest = tuple(pair for pair in left if pair not in chosen)
        for others in _all_deals(rest, counts[1:]):
            yield (*chosen, *others)


def _places(deal: Sequence[int], n_pairs: int) -> Int[np.ndarray, " pair"]:
    places = np.empty(n_pairs, dtype=np.int64)
    places[list(deal)] = np.arange(n_pairs)
    return places


def _alike(counts: Sequence[int]) -> int:
    """Deals that are one but for the groups' names: groups of one size may be exchanged."""
    return math.prod(math.factorial(times) for times in Counter(counts).values())
