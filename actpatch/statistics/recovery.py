"""How well a ranking of edges finds those of a known circuit.

- *AUROC*: the chance that a true edge ranks above a false one, ties counting half; the area under the whole curve from
  (0, 0) to (1, 1) (Hanley & McNeil 1982). With few true edges among many it says little of the top of the ranking.
- *AUPRC*: average precision, the sum of precision × gain in recall over the thresholds; edges of one score come in
  together. Its value for a ranking by chance is about the share of true edges.
- *Precision at k*: the share of true ones among the k highest; of edges tied at the k-th place, the mean over all ways
  of breaking the tie.
- *The benchmark's AUROC* (Mueller et al. 2025, arXiv 2504.13151): true- and false-positive rates of circuits of ten
  sizes, trapezoids over the false-positive rates, which are divided by the last one; the curve starts at the smallest
  circuit, not at (0, 0), so that what that one has found counts for nothing. An edge of the truth that was not ranked
  at all counts as found where it is true, and as a false positive where it is not. The benchmark takes circuits that
  grow greedily from the logits by |score|: give their members to `mib_auroc`. Where `recovery` computes it, from the
  ranking alone, the circuits are the highest edges, ties in their order.

An edge whose score is NaN was not ranked: in the first three it stands below all others, tied with such as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.heavy import pd, stats
from actpatch.core.indices import is_integer
from actpatch.core.text import count, number
from actpatch.statistics.areas import MIB_SIZES


@dataclass(frozen=True, eq=False, repr=False)
class Recovery:
    """How well a ranking finds the true edges."""

    auroc: float
    """NaN where no edge is true, or every one."""
    auprc: float
    """NaN where no edge is true."""
    precision_at: dict[int, float]
    """k -> share of true edges among the k highest."""
    mib_auroc: float
    """The benchmark's, of circuits of its ten sizes; NaN where the largest has no false edge."""
    n_edges: int
    n_true: int
    n_unranked: int
    """Edges whose score is NaN."""
    absolute: bool
    """Whether edges rank by |score|."""

    @property
    def chance(self) -> float:
        """Share of true edges: what precision, and nearly AUPRC, are for a ranking by chance."""
        return self.n_true / self.n_edges

    def to_dataframe(self) -> pd.DataFrame:
        """A row per measure: `measure`, `value`, and its `chance`, NaN where it is not known."""
        rows = [
            ("AUROC", self.auroc, 0.5),
            ("AUPRC", self.auprc, self.chance),
            *((f"precision at {k}", value, self.chance) for k, value in self.precision_at.items()),
            ("AUROC (MIB)", self.mib_auroc, math.nan),
        ]
        return pd.DataFrame(rows, columns=["measure", "value", "chance"])

    def __repr__(self) -> str:
        precision = "".join(f", precision at {k} {number(value)}" for k, value in self.precision_at.items())
        unranked = f", {self.n_unranked} not ranked" if self.n_unranked else ""
        return (
            f"Recovery({self.n_true} true of {count(self.n_edges, 'edge')}{unranked}, AUROC {number(self.auroc)}, "
            f"AUPRC {number(self.auprc)}{precision}, AUROC (MIB) {number(self.mib_auroc)})"
        )


def recovery(
    scores: Float[np.ndarray, "..."],
    truth: Bool[np.ndarray, "..."],
    *,
    absolute: bool = True,
    ks: Sequence[int] | None = None,
    circuits: Bool[np.ndarray, "..."] | None = None,
) -> Recovery:
    """How well these scores find the true edges (module docstring).

    Args:
        scores: one of each edge, NaN for such as were not ranked.
        truth: which edges are true.
        absolute: rank by |score|; otherwise the largest score is the highest.
        ks: the k of the precisions; None for the number of true edges.
        circuits: (circuit, edge), of the benchmark's AUROC, as `mib_auroc` takes them; None for the highest edges.

    Raises:
        ValueError: where the shapes differ, there is no edge, a score is infinite, or a k is no number of edges.
    """
    if scores.shape != truth.shape or scores.ndim != 1 or not scores.size:
        raise ValueError(f"scores has shape {scores.shape}, truth {truth.shape}: expected one entry an edge of both")
    if n_bad := int(np.isinf(scores).sum()):
        raise ValueError(f"{n_bad} scores are infinite: expected numbers, or NaN where an edge was not ranked")
    n_edges, n_true = len(truth), int(truth.sum())
    chosen = [n_true] if ks is None else list(ks)
    for k in chosen:
        if ks is not None and (not is_integer(k) or not 1 <= k <= n_edges):
            raise ValueError(f"k is {k!r}, expected a whole number from 1 to the number of edges, {n_edges}")
    unranked = np.isnan(scores)
    ranked = np.where(unranked, -np.inf, np.abs(scores) if absolute else scores)
    return Recovery(
        auroc=_auroc(ranked, truth),
        auprc=_average_precision(ranked, truth),
        precision_at={int(k): _precision_at(ranked, truth, int(k)) for k in chosen if k},
        mib_auroc=mib_auroc(_highest(ranked) if circuits is None else circuits, truth, ranked=~unranked),
        n_edges=n_edges,
        n_true=n_true,
        n_unranked=int(unranked.sum()),
        absolute=absolute,
    )


def mib_auroc(
    members: Bool[np.ndarray, "..."],
    truth: Bool[np.ndarray, "..."],
    *,
    ranked: Bool[np.ndarray, "..."] | None = None,
) -> float:
    """The benchmark's area under the curve of circuits of growing size (module docstring).

    Args:
        members: (circuit, edge), which edges each circuit holds, the smallest circuit first; the benchmark's are of the
            sizes `mib_counts`.
        truth: which edges are true.
        ranked: which edges the ranking knows; None for all.

    Raises:
        ValueError: where the shapes do not fit.
    """
    if members.ndim != 2 or truth.ndim != 1 or members.shape[1] != len(truth) or not len(members):
        raise ValueError(f"members has shape {members.shape}, expected (circuits, {len(truth)}) as there are edges")
    held = members if ranked is None else members | ~ranked
    n_true, n_false = int(truth.sum()), int((~truth).sum())
    if not n_true or not n_false:
        return math.nan
    hits, alarms = held[:, truth].sum(axis=1) / n_true, held[:, ~truth].sum(axis=1) / n_false
    if not alarms[-1]:
        return math.nan
    return float((np.diff(alarms / alarms[-1]) * (hits[1:] + hits[:-1]) / 2).sum())


def mib_counts(n_edges: int) -> list[int]:
    """How many edges the benchmark's AUROC gives each of its circuits: rounded up, unlike those of CPR and CMD."""
    return [math.ceil(share * n_edges) for share in MIB_SIZES]


def _highest(ranked: Float[np.ndarray, " edge"]) -> Bool[np.ndarray, "size edge"]:
    """Which edges are the highest, at each of the benchmark's sizes."""
    place = np.empty(len(ranked), dtype=np.int64)
    place[np.argsort(-ranked, kind="stable")] = np.arange(len(ranked))
    return place[None] < np.array(mib_counts(len(ranked)))[:, None]


def _auroc(ranked: Float[np.ndarray, " edge"], truth: Bool[np.ndarray, " edge"]) -> float:
    n_true, n_false = int(truth.sum()), int((~truth).sum())
    if not n_true or not n_false:
        return math.nan
    ranks = stats.rankdata(ranked)
    return float((ranks[truth].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def _average_precision(ranked: Float[np.ndarray, " edge"], truth: Bool[np.ndarray, " edge"]) -> float:
    if not truth.any():
        return math.nan
    _, group = np.unique(-ranked, return_inverse=True)
    true, size = np.bincount(group, weights=truth), np.bincount(group)
    return float((np.cumsum(true) / np.cumsum(size) * true).sum() / truth.sum())


def _precision_at(ranked: Float[np.ndarray, " edge"], truth: Bool[np.ndarray, " edge"], k: int) -> float:
    border = np.sort(ranked)[-k]
    above, tied = ranked > border, ranked == border
    places = k - int(above.sum())
    return float((truth[above].sum() + places * truth[tied].mean()) / k)
