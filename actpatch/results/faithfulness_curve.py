"""How much of the behaviour circuits keep, by their size: values of each circuit, and what is derived from them.

Knows no model and no search. Faithfulness is a ratio of means over pairs (`statistics.faithfulness`), the areas under
it are those of the MIB benchmark (`statistics.areas`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from actpatch.core.direction import Direction
from actpatch.core.heavy import pd
from actpatch.core.text import count, number
from actpatch.statistics.areas import Areas, areas
from actpatch.statistics.faithfulness import Faithfulness, faithfulness
from actpatch.statistics.resampling import gaps_cancel
from actpatch.statistics.unverified import check_confidence

Sizes = Literal["nominal", "real"]


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCurve:
    """Circuits of growing size, each run on the same pairs, beside circuits of random rankings."""

    model: str
    """Name of the model."""
    task: str
    """Name of the dataset, with its corruption."""
    metric: str
    unit: str
    more_is_better: bool
    direction: Direction
    """`noising`: edges in the circuit are of the clean run."""
    source_of_values: str
    """What stands in the place of senders that are left out, in words."""
    ranked_by: str
    """How edges were ranked: `exact, noising`."""
    method: Literal["top", "greedy"]
    rankings: tuple[str, ...]
    """`signed`: effects below 0 come last; `absolute`: they count by their size."""
    n_edges: int
    """All edges of the graph, each as often as there are positions that are told apart."""
    sizes: Float[np.ndarray, " size"]
    """Shares of all edges, ascending."""
    nominal: Int[np.ndarray, "ranking size"]
    """Edges asked for."""
    real: Int[np.ndarray, "ranking size"]
    """Edges left once those are pruned that lie on no way from the input to the logits."""
    values: Float[np.ndarray, "ranking size pair"]
    """The metric of each pruned circuit on each pair."""
    full: Float[np.ndarray, " pair"]
    """That of the whole model."""
    empty: Float[np.ndarray, " pair"]
    """That of the run with every edge off."""
    random_values: Float[np.ndarray, "draw size pair"]
    """The metric of circuits of random rankings, chosen by the same method."""
    random_real: Int[np.ndarray, "draw size"]
    pair_indices: tuple[int, ...]
    """Index of each pair in its dataset."""
    held_out: bool | None
    """Whether the ranking saw none of these pairs; None where it is not known which it saw."""
    seed: int
    """Of the random rankings."""
    notes: tuple[str, ...] = ()
    """What a reader should know of it."""

    def __post_init__(self) -> None:
        n_rankings, n_sizes, n_pairs = len(self.rankings), len(self.sizes), len(self.pair_indices)
        expected = {
            "nominal": (n_rankings, n_sizes),
            "real": (n_rankings, n_sizes),
            "values": (n_rankings, n_sizes, n_pairs),
            "full": (n_pairs,),
            "empty": (n_pairs,),
            "random_values": (len(self.random_values), n_sizes, n_pairs),
            "random_real": (len(self.random_values), n_sizes),
        }
        for name, shape in expected.items():
            if (found := getattr(self, name).shape) != shape:
                raise ValueError(f"{name} has shape {found}, expected {shape}")

    def __repr__(self) -> str:
        each = []
        for ranking in self.rankings:
            found = self.areas(ranking)
            each.append(f"{ranking} CPR {number(found.cpr)}, CMD {number(found.cmd)}")
        held = {True: ", held out", False: ", seen by the ranking", None: ""}[self.held_out]
        size = f"{count(len(self.sizes), 'size')} of {self.n_edges:,} edges × {count(len(self.full), 'pair')}{held}"
        return f"FaithfulnessCurve({self.method}, {self.ranked_by}; {'; '.join(each)}; {size}, {self.task})"

    def faithfulness(self, ranking: str = "absolute") -> Faithfulness:
        """Faithfulness of the circuit of each size, with intervals and the values of single pairs.

        Raises:
            ValueError: for a ranking that these circuits were not chosen by, and where a metric is not finite.
        """
        return self._faithfulness[self._row(ranking)]

    @cached_property
    def _faithfulness(self) -> list[Faithfulness]:
        return [faithfulness(of, self.full, self.empty, more_is_better=self.more_is_better) for of in self.values]

    @property
    def random_faithfulness(self) -> Float[np.ndarray, "draw size"]:
        """Faithfulness of the circuits of random rankings; NaN where the denominator cancels."""
        return self._ratios(self.random_values)

    def random_band(self, level: float = 0.95) -> tuple[Float[np.ndarray, " size"], Float[np.ndarray, " size"]]:
        """The lower and the upper end of the middle share of the random circuits of each size; NaN without any.

        Raises:
            ValueError: for a level that is no share.
        """
        check_confidence(level, "level")
        found = self.random_faithfulness
        if not len(found):
            return np.full(len(self.sizes), np.nan), np.full(len(self.sizes), np.nan)
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high

    def areas(self, ranking: str = "absolute", sizes: Sizes = "nominal") -> Areas:
        """CPR and CMD, over the shares that were asked for, as the benchmark has them, or over what pruning leaves.

        The benchmark's CPR is of the signed ranking, its CMD of the absolute one.

        Raises:
            ValueError: for a ranking that these circuits were not chosen by, and for other sizes.
        """
        if sizes not in get_args(Sizes):
            raise ValueError(f"sizes is {sizes!r}, expected one of {', '.join(map(repr, get_args(Sizes)))}")
        row = self._row(ranking)
        at = self.sizes if sizes == "nominal" else self.real[row] / self.n_edges
        return areas(at, self._ratios(self.values[row]))

    @property
    def flags(self) -> tuple[str, ...]:
        """What stands against reading the numbers as they are, a sentence each; empty where nothing does."""
        found = list(self._faithfulness[0].denominator.flags)
        if self.held_out is False:
            found.append("the ranking saw some of these pairs: on others its circuits may keep less")
        return tuple(found)

    def to_dataframe(self) -> pd.DataFrame:
        """A row per ranking and size.

        Columns: `ranking`, `size` (share of all edges), `nominal` and `real` (numbers of edges), `faithfulness` with
        its interval `low` to `high`, `metric` (mean over pairs), and of random circuits of the size the `random_mean`
        of faithfulness and the ends `random_low` and `random_high` of 95 % of them.
        """
        low, high = self.random_band()
        random = self.random_faithfulness
        tables = []
        for row, ranking in enumerate(self.rankings):
            found = self.faithfulness(ranking)
            columns = {
                "ranking": ranking,
                "size": self.sizes,
                "nominal": self.nominal[row],
                "real": self.real[row],
                "faithfulness": found.value,
                "low": found.low,
                "high": found.high,
                "metric": self.values[row].mean(axis=1),
                "random_mean": random.mean(axis=0) if len(random) else np.nan,
                "random_low": low,
                "random_high": high,
            }
            tables.append(pd.DataFrame(columns))
        return pd.concat(tables, ignore_index=True)

    def _row(self, ranking: str) -> int:
        if ranking not in self.rankings:
            raise ValueError(f"ranking is {ranking!r}, expected one of {', '.join(map(repr, self.rankings))}")
        return self.rankings.index(ranking)

    def _ratios(self, values: Float[np.ndarray, "*circuit pair"]) -> Float[np.ndarray, "*circuit"]:
        gaps = self.full - self.empty
        if gaps_cancel(gaps):
            return np.full(values.shape[:-1], np.nan)
        return (values - self.empty).mean(axis=-1) / gaps.mean()
