"""How much of what a model does its circuits do alone, from arrays.

With m(M) the metric of the whole model, m(∅) that of the run in which every edge is off, and m(C) that of a circuit,

    f(C) = (m(C) − m(∅)) / (m(M) − m(∅)),

means over pairs taken before dividing (Marks et al. 2024, arXiv 2403.19647; Mueller et al. 2025, arXiv 2504.13151). A
mean of per-pair ratios is another number, and can be far from it (Miller et al. 2024, arXiv 2407.08734), so the values
of single pairs stand beside the ratio. No value is clamped: a circuit can do more than the model (f > 1), or the
opposite (f < 0). Where the denominator carries no ratio, or has the wrong sign, `Denominator.flags` says so.

- *Completeness*: f of the complement, all edges but the circuit's, which is near 0 where the circuit is complete.
- *Completeness under knock-outs* (Wang et al. 2022, arXiv 2211.00593): f(M∖K) − f(C∖K), near 0 for every set K of the
  circuit's parts.
- *Minimality*: f(C) − f(C∖{e}), the drop without an edge or a head; near 0 for what the circuit does not need.

The last two are differences between two runs: `faithfulness_differences`. Intervals are those of
`statistics.resampling`: a studentised bootstrap over pairs; that of the denominator, a mean, is Student's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.heavy import stats
from actpatch.core.text import count, plain
from actpatch.statistics.resampling import FEWEST_PAIRS, ROUNDING, gaps_cancel, ratio_intervals, sign_flip_p_values
from actpatch.statistics.unverified import check_confidence


@dataclass(frozen=True, eq=False)
class Denominator:
    """What faithfulness is divided by: the mean over pairs of the gap m(M) − m(∅)."""

    mean: float
    low: float
    """Lower end of its interval (Student's); NaN with fewer than five pairs, and where all gaps are one number."""
    high: float
    n_pairs: int
    is_zero: Bool[np.ndarray, " pair"]
    """Pairs whose gap is 0 but for rounding: they have no faithfulness of their own."""
    is_inverted: Bool[np.ndarray, " pair"]
    """Pairs on which the model does worse than with every edge off."""
    cancels: bool
    """Whether the mean gap is 0 but for rounding: no circuit has a faithfulness."""
    inverted: bool
    """Whether the model does worse on average than with every edge off: faithfulness then rewards what hurts."""

    @property
    def unsure(self) -> bool:
        """Whether the interval of the mean gap holds 0: other pairs could turn every faithfulness around."""
        return self.low <= 0 <= self.high

    @property
    def is_sound(self) -> bool:
        """Whether faithfulness can be read as a share of what the model does."""
        return not (self.cancels or self.inverted or self.unsure)

    @property
    def flags(self) -> tuple[str, ...]:
        """What is wrong with it or with single pairs, a sentence each, without full stops; empty where nothing is."""
        found = []
        if self.cancels:
            found.append("m(M) and m(∅) have the same mean: faithfulness is not defined")
        elif self.inverted:
            found.append(
                f"the model does worse than with every edge off (mean gap {plain(self.mean)}): faithfulness is no "
                "share of what the model does"
            )
        if self.unsure and not self.cancels:
            found.append(
                f"the mean gap {plain(self.mean)} could be 0 (interval {plain(self.low)} to {plain(self.high)}): "
                "faithfulness could have either sign"
            )
        if n_zero := int(self.is_zero.sum()):
            found.append(f"{n_zero} of {count(self.n_pairs, 'pair')} have no gap, and no faithfulness of their own")
        if n_inverted := int(self.is_inverted.sum()):
            found.append(
                f"on {n_inverted} of {count(self.n_pairs, 'pair')} the model does worse than with every edge off"
            )
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Faithfulness of circuits. Arrays have one entry per circuit."""

    value: Float[np.ndarray, " circuit"]
    """Ratio of means; NaN where the denominator cancels."""
    low: Float[np.ndarray, " circuit"]
    """Lower end of the interval (`ratio_intervals`); NaN with fewer than five pairs, and where pairs do not differ."""
    high: Float[np.ndarray, " circuit"]
    pair_values: Float[np.ndarray, "circuit pair"]
    """Each pair's own ratio; NaN where it has no gap."""
    denominator: Denominator
    level: float
    """Share of intervals meant to hold the faithfulness over all pairs alike."""
    n_resamples: int
    seed: int


@dataclass(frozen=True, eq=False)
class FaithfulnessDifferences:
    """Differences between the faithfulness of two runs each. Arrays have one entry per difference."""

    value: Float[np.ndarray, " difference"]
    low: Float[np.ndarray, " difference"]
    high: Float[np.ndarray, " difference"]
    p: Float[np.ndarray, " difference"]
    """p-value of a mean difference between the metrics other than 0, by sign flips (`sign_flip_p_values`)."""
    p_corrected: Float[np.ndarray, " difference"]
    """Corrected over all differences (Benjamini & Hochberg 1995)."""
    pair_values: Float[np.ndarray, "difference pair"]
    level: float
    seed: int


def faithfulness(
    circuits: Float[np.ndarray, "..."],
    full: Float[np.ndarray, "..."],
    empty: Float[np.ndarray, "..."],
    *,
    more_is_better: bool = True,
    level: float = 0.95,
    n_resamples: int = 1999,
    seed: int = 0,
) -> Faithfulness:
    """Faithfulness of each circuit, with its interval over pairs and the values of single pairs (module docstring).

    Args:
        circuits: (circuit, pair), metric of each circuit on each pair, m(C).
        full: (pair), that of the whole model, m(M).
        empty: (pair), that of the run with every edge off, m(∅).
        more_is_better: whether a larger metric is a better one; it decides alone what counts as inverted.
        level: share of intervals meant to hold.
        n_resamples: draws of the bootstrap.
        seed: of these draws.

    Raises:
        ValueError: where there is no pair, a metric is not finite, or `level` is no share.
    """
    check_metrics(circuits, full, empty)
    check_confidence(level, "level")
    gaps = full - empty
    denominator = _denominator(full, empty, more_is_better, level)
    values, low, high = _ratios(circuits - empty, gaps, level, n_resamples, seed)
    pair_values = _pair_ratios(circuits - empty, gaps, denominator.is_zero)
    return Faithfulness(values, low, high, pair_values, denominator, level, n_resamples, seed)


def faithfulness_differences(
    first: Float[np.ndarray, "..."],
    second: Float[np.ndarray, "..."],
    full: Float[np.ndarray, "..."],
    empty: Float[np.ndarray, "..."],
    *,
    level: float = 0.95,
    n_resamples: int = 1999,
    seed: int = 0,
) -> FaithfulnessDifferences:
    """f(first) − f(second), row by row, with intervals and p-values over pairs (module docstring).

    All are metrics: (difference, pair) of the two runs, (pair) of the whole model and of the run with every edge off.

    For minimality the first is the circuit, in every row, and the second what is left of it without each part; for
    completeness under knock-outs they are the model and the circuit, both without each set. p-values are exact for
    differences that are symmetric about 0.

    Raises:
        ValueError: where there is no pair, the shapes differ, or a metric is not finite.
    """
    check_metrics(first, full, empty)
    check_metrics(second, full, empty)
    check_confidence(level, "level")
    if first.shape != second.shape:
        raise ValueError(f"first has shape {first.shape}, second {second.shape}: expected the same")
    gaps, changes = full - empty, first - second
    values, low, high = _ratios(changes, gaps, level, n_resamples, seed)
    p = sign_flip_p_values(changes, seed=seed)
    corrected = stats.false_discovery_control(p) if len(p) else p
    pair_values = _pair_ratios(changes, gaps, _no_gap(full, empty))
    return FaithfulnessDifferences(values, low, high, p, corrected, pair_values, level, seed)


def check_metrics(
    circuits: Float[np.ndarray, "..."], full: Float[np.ndarray, "..."], empty: Float[np.ndarray, "..."]
) -> None:
    """Raises ValueError for metrics of no pair, of other pairs, and such as are not finite."""
    if circuits.ndim != 2 or full.shape != empty.shape or circuits.shape[1:] != full.shape or not full.size:
        raise ValueError(
            f"circuits, full and empty have the shapes {circuits.shape}, {full.shape} and {empty.shape}, expected "
            "(circuits, pairs), (pairs,) and (pairs,) of at least one pair"
        )
    for name, values in (("circuits", circuits), ("full", full), ("empty", empty)):
        if n_bad := int((~np.isfinite(values)).sum()):
            raise ValueError(f"{n_bad} metrics of {name} are not finite: leave their pairs out")


def _denominator(full: np.ndarray, empty: np.ndarray, more_is_better: bool, level: float) -> Denominator:
    gaps = full - empty
    is_zero = _no_gap(full, empty)
    low, high = _of_mean(gaps, level)
    better = gaps if more_is_better else -gaps
    cancels = bool(is_zero.all()) or gaps_cancel(gaps)
    return Denominator(
        mean=float(gaps.mean()),
        low=low,
        high=high,
        n_pairs=len(gaps),
        is_zero=is_zero,
        is_inverted=(better < 0) & ~is_zero,
        cancels=cancels,
        inverted=bool(better.mean() < 0) and not cancels,
    )


def _of_mean(gaps: Float[np.ndarray, " pair"], level: float) -> tuple[float, float]:
    """Student's interval of the mean gap: with few pairs a bootstrap's is far too wide for one that is far from 0."""
    spread = float(gaps.std(ddof=1)) if len(gaps) >= FEWEST_PAIRS else 0.0
    if spread <= ROUNDING * float(np.abs(gaps).max()):
        return math.nan, math.nan
    half = float(stats.t.ppf((1 + level) / 2, len(gaps) - 1)) * spread / math.sqrt(len(gaps))
    return float(gaps.mean()) - half, float(gaps.mean()) + half


def _no_gap(full: Float[np.ndarray, " pair"], empty: Float[np.ndarray, " pair"]) -> Bool[np.ndarray, " pair"]:
    return np.abs(full - empty) <= ROUNDING * np.maximum(np.abs(full), np.abs(empty))


def _ratios(
    changes: Float[np.ndarray, "row pair"], gaps: Float[np.ndarray, " pair"], level: float, n_resamples: int, seed: int
) -> tuple[Float[np.ndarray, " row"], Float[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """Ratios of means and the ends of their intervals."""
    low, high = ratio_intervals(changes, gaps, level=level, n_resamples=n_resamples, seed=seed)
    values = np.full(len(changes), np.nan) if gaps_cancel(gaps) else changes.mean(axis=1) / gaps.mean()
    return values, low, high


def _pair_ratios(
    changes: Float[np.ndarray, "row pair"], gaps: Float[np.ndarray, " pair"], is_zero: Bool[np.ndarray, " pair"]
) -> Float[np.ndarray, "row pair"]:
    return changes / np.where(is_zero, np.nan, gaps)
