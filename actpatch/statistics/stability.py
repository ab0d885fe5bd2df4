"""Whether other pairs would have given the scores of many sites the same sign and the same order: a bootstrap of pairs.

Pairs are drawn anew with replacement, the same draws for all sites, and every score is computed from each draw. A score
over pairs is mean(change) / mean(gap), as an effect is. Sites are ranked by the size of that score, or by the mean size
over pairs: changes of opposite sign on different pairs cancel in the first and add up in the second (Kramár et al. 2024
take the second, Hanna et al. 2024 the first). Sets of the k largest are compared by Jaccard's index, |A ∩ B| / |A ∪ B|.

The ends of the middle of the resamples are no confidence interval: with few pairs they are too close together
(`statistics.resampling` has such intervals, and says how often they hold).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from actpatch.core.heavy import pd
from actpatch.core.indices import is_integer
from actpatch.core.text import count, number
from actpatch.statistics.resampling import gaps_cancel, portions
from actpatch.statistics.unverified import check_confidence

Absolute = Literal["outside", "inside"]
"""Where the absolute value of a score stands that sites are ranked by: outside the mean over pairs, or inside it."""
FEWEST_PAIRS = 2


@dataclass(frozen=True, eq=False, repr=False)
class Stability:
    """What resamples of the pairs do to scores. Arrays have one entry per site, in the order that was given."""

    sites: tuple[str, ...]
    """Label of each site."""
    score: Float[np.ndarray, " site"]
    """Over all pairs."""
    size: Float[np.ndarray, " site"]
    """What sites are ranked by, over all pairs."""
    low: Float[np.ndarray, " site"]
    """Lower end of the middle `level` of the scores in the resamples."""
    high: Float[np.ndarray, " site"]
    same_sign: Float[np.ndarray, " site"]
    """Share of the resamples in which the score has the sign that it has over all pairs; NaN for a score of 0."""
    in_top: Float[np.ndarray, " site"]
    """Share of the resamples in which the site is among the `top_k` largest."""
    top_k: int
    jaccard: float
    """Mean Jaccard index of the `top_k` largest of two resamples, over all pairs of resamples."""
    jaccard_with_all: float
    """That of a resample and of all pairs, on average over the resamples."""
    absolute: Absolute
    level: float
    n_pairs: int
    n_resamples: int
    seed: int

    def to_dataframe(self) -> pd.DataFrame:
        """A row per site, in order."""
        columns = ("score", "size", "low", "high", "same_sign", "in_top")
        table = pd.DataFrame({"site": self.sites, **{name: getattr(self, name) for name in columns}})
        return table.assign(n_pairs=self.n_pairs)

    def __repr__(self) -> str:
        sure = int((self.same_sign >= self.level).sum())
        return (
            f"Stability({count(len(self.sites), 'site')} × {count(self.n_pairs, 'pair')}, {sure:,} of one sign in at "
            f"least {self.level:.0%} of {self.n_resamples:,} resamples, Jaccard index of the top {self.top_k} "
            f"{number(self.jaccard)} between resamples, {number(self.jaccard_with_all)} with all pairs)"
        )


def stability(
    changes: np.ndarray,
    gaps: np.ndarray | None = None,
    *,
    top_k: int = 20,
    sites: Sequence[str] | None = None,
    absolute: Absolute = "outside",
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Stability:
    """The bootstrap over pairs of every score (module docstring).

    Args:
        changes: (site, pair), a score, or what a patch changes.
        gaps: (pair), what changes are divided by, mean by mean; None for scores that are so already.
        top_k: how many of the largest are compared between resamples; no more than there are sites.
        sites: labels; None numbers them.
        absolute: `outside` ranks sites by |mean over pairs|, `inside` by the mean of |change| (over |mean gap|).
        level: which share of the resamples `low` and `high` enclose.
        n_resamples: how often pairs are drawn.
        seed: of the draws.

    Raises:
        ValueError: where there are fewer than 2 pairs, or NaN; where the gaps cancel; for arguments of no such kind.
    """
    changes = np.asarray(changes, dtype=float)
    gaps = np.ones(changes.shape[-1]) if gaps is None else np.asarray(gaps, dtype=float)
    _check(changes, gaps, top_k, absolute, n_resamples)
    check_confidence(level, "level")
    n_sites, n_pairs = changes.shape
    top_k = min(top_k, n_sites)
    draws = np.random.default_rng(seed).multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), n_resamples).T
    shares = draws / n_pairs
    with np.errstate(divide="ignore", invalid="ignore"):  # the mean gap of a resample may be 0
        weights = shares / (gaps @ shares)
    score = changes.mean(axis=1) / gaps.mean()
    sizes = np.abs(changes) if absolute == "inside" else changes
    low, high, same_sign = (np.full(n_sites, np.nan) for _ in range(3))
    for rows in portions(n_sites, n_resamples):
        found = changes[rows] @ weights
        same_sign[rows] = (np.sign(found) == np.sign(score[rows])[:, None]).mean(axis=1)
        low[rows], high[rows] = _middle(found, level)
    same_sign[score == 0] = np.nan
    size = np.abs(sizes.mean(axis=1) / gaps.mean())
    is_in_top = _tops(sizes, shares, top_k)
    in_top = is_in_top.mean(axis=1)
    largest = np.zeros(n_sites, dtype=bool)
    largest[np.argsort(-size, kind="stable")[:top_k]] = True
    return Stability(
        sites=tuple(sites) if sites is not None else tuple(map(str, range(n_sites))),
        score=score,
        size=size,
        low=low,
        high=high,
        same_sign=same_sign,
        in_top=in_top,
        top_k=top_k,
        jaccard=_mean_jaccard(is_in_top, np.flatnonzero(in_top), top_k),
        jaccard_with_all=float(_jaccard(is_in_top[largest].sum(axis=0), top_k).mean()),
        absolute=absolute,
        level=level,
        n_pairs=n_pairs,
        n_resamples=n_resamples,
        seed=seed,
    )


def _tops(
    sizes: Float[np.ndarray, "site pair"], shares: Float[np.ndarray, "pair resample"], top_k: int
) -> Bool[np.ndarray, "site resample"]:
    """Which sites are among the largest in each resample, whose mean gap, one for all of them, changes no order."""
    found = np.zeros((len(sizes), shares.shape[1]), dtype=bool)
    for columns in portions(shares.shape[1], len(sizes)):
        size = np.abs(sizes @ shares[:, columns])
        chosen = np.argpartition(-size, top_k - 1, axis=0)[:top_k]
        np.put_along_axis(found[:, columns], chosen, True, axis=0)
    return found


def _middle(
    found: Float[np.ndarray, "site resample"], level: float
) -> tuple[Float[np.ndarray, " site"], Float[np.ndarray, " site"]]:
    """Both ends of the middle of each row: as many resamples are left out below as above."""
    left_out = math.floor(found.shape[1] * (1 - level) / 2 + 1e-9)
    at = (left_out, found.shape[1] - 1 - left_out)
    ordered = np.partition(found, sorted(set(at)), axis=1)
    return ordered[:, at[0]], ordered[:, at[1]]


def _mean_jaccard(is_in_top: Bool[np.ndarray, "site resample"], sites: Int[np.ndarray, " some"], top_k: int) -> float:
    """Of all pairs of resamples, from the sites that are in any; NaN for a single one."""
    n = is_in_top.shape[1]
    shared = np.zeros((n, n), dtype=np.float32)
    for some in portions(len(sites), n):
        members = is_in_top[sites[some]].astype(np.float32)
        shared += members.T @ members
    found = _jaccard(shared, top_k)
    return float((found.sum(dtype=float) - n) / (n * (n - 1))) if n > 1 else math.nan  # each has 1 with itself


def _jaccard(shared: Float[np.ndarray, "..."] | Int[np.ndarray, "..."], top_k: int) -> Float[np.ndarray, "..."]:
    """Of sets of `top_k` each, that share so many."""
    return shared / (2.0 * top_k - shared)


def _check(changes: np.ndarray, gaps: np.ndarray, top_k: int, absolute: str, n_resamples: int) -> None:
    if changes.ndim != 2 or not len(changes) or gaps.shape != changes.shape[1:]:
        raise ValueError(
            f"changes has shape {changes.shape} and gaps {gaps.shape}, expected (sites, pairs) with at least one site, "
            "and a gap per pair"
        )
    if changes.shape[1] < FEWEST_PAIRS:
        raise ValueError(
            f"stability needs at least {FEWEST_PAIRS} pairs, got {changes.shape[1]}: there is nothing to draw"
        )
    if not np.isfinite(changes).all() or not np.isfinite(gaps).all():
        raise ValueError("changes or gaps are not finite: leave out the sites and pairs that were not measured")
    if gaps_cancel(gaps):
        raise ValueError("the mean gap is 0, so no score can be divided by it: choose pairs whose gaps do not cancel")
    for name, given in (("top_k", top_k), ("n_resamples", n_resamples)):
        if not is_integer(given) or given < 1:
            raise ValueError(f"{name} is {given!r}, expected a whole number from 1 on")
    if absolute not in get_args(Absolute):
        raise ValueError(f"absolute is {absolute!r}, expected 'outside' or 'inside' (the mean over pairs)")
