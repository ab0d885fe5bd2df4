"""The judgement of one circuit: what its runs came to, and what follows from that. Nothing here runs a model.

Raw metrics of every run are kept, pair by pair; faithfulness, completeness, minimality and the tests are derived from
them (`statistics.faithfulness`, `statistics.circuit_tests`), so that another metric is another view of the same runs.
Differences are written K for a set of components and ∖ for "without".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from actpatch.core.circuits import Circuit
from actpatch.core.direction import Direction
from actpatch.core.heavy import pd
from actpatch.core.text import count, plain, shortened
from actpatch.metrics.names import metric_key
from actpatch.statistics.circuit_tests import (
    EquivalenceTest,
    IndependenceTest,
    MinimalityTests,
    RandomComparison,
    compare_with_random,
    equivalence_test,
    independence_test,
    minimality_tests,
)
from actpatch.statistics.faithfulness import (
    Faithfulness,
    FaithfulnessDifferences,
    faithfulness,
    faithfulness_differences,
)
from actpatch.statistics.resampling import FEWEST_PAIRS

if TYPE_CHECKING:
    import pandas

KindOfParts = Literal["node", "edge"]
SMALL_DROP = 0.01
"""A part whose absence changes faithfulness by less does nothing that shows; Wang et al. 2022 ask for as much."""


FROM_THE_CLEAN_RUN = ("kl_divergence",)
"""Metrics of how far a run is from the model's own, in which no circuit can be below it: to ask whether it is as often
below as above says nothing, nor whether anything varies with the model, which does not vary."""


@dataclass(frozen=True, eq=False, repr=False)
class CircuitMeasurements:
    """What one metric came to in every run of an evaluation, in `unit`."""

    name: str
    unit: str
    more_is_better: bool
    """Whether it is the higher, the better the model does what the clean prompt asks for."""
    full: Float[np.ndarray, " pair"]
    """Of the whole model, m(M)."""
    empty: Float[np.ndarray, " pair"]
    """With every edge off, m(∅)."""
    circuit: Float[np.ndarray, " pair"]
    complement: Float[np.ndarray, " pair"]
    """Of all edges but the circuit's."""
    random: Float[np.ndarray, "draw pair"]
    """Of random circuits of its size."""
    without: Float[np.ndarray, "part pair"]
    """Of the circuit without each part."""
    circuit_knocked: Float[np.ndarray, "set pair"]
    """Of the circuit without each set K."""
    model_knocked: Float[np.ndarray, "set pair"]
    """Of the model without each set K."""
    inflated: Float[np.ndarray, "added pair"]
    """Of the circuit with a random path."""
    inflated_without: Float[np.ndarray, "added pair"]
    """Of the same without one edge of that path."""

    def __repr__(self) -> str:
        runs = ", ".join(f"{name} {plain(float(getattr(self, name).mean()), 2)}" for name in ("full", "empty"))
        return f"CircuitMeasurements({self.name}, {count(len(self.full), 'pair')}, {runs})"


@dataclass(frozen=True, eq=False, repr=False)
class CircuitEvaluation:
    """How much of what a model does a circuit does alone, what it lacks, and which of its parts it needs.

    Everything derived is of one metric, the first that was asked for, unless another is selected (`by_metric`). In
    noising runs faithfulness is the share of the behaviour that the circuit keeps while all other edges are ablated; in
    denoising ones the share that comes back in the corrupted run when the circuit's edges are of the clean one.
    """

    circuit: Circuit
    task: str
    """Name of the dataset, with its corruption."""
    direction: Direction
    """`noising`: edges outside a circuit are ablated in the clean run; `denoising`: those of a circuit are restored in
    the corrupted one."""
    source_of_values: str
    """What stands in the place of edges that are left out, in words."""
    varies: str
    """Which signal the corruption changes; empty where the dataset does not say."""
    pair_indices: tuple[int, ...]
    """Index of each pair in its dataset."""
    templates: tuple[str, ...]
    """Template of each pair; an empty text where it has none."""
    held_out: bool | None
    """Whether the circuit's search saw none of the pairs; None where it is not known which it saw."""
    n_left_out: int
    """How many pairs of the dataset were left out because it saw them."""
    measured: tuple[CircuitMeasurements, ...]
    kind_of_parts: KindOfParts
    parts: tuple[str, ...]
    """Label of each part that was left out alone: edges, or heads and MLPs, of the pruned circuit."""
    knock_outs: tuple[tuple[str, ...], ...]
    """The sets K, by the labels of their components: random ones first, then the greedy chain."""
    n_greedy: int
    """How many of them are of the greedy chain, each of which has one component more than the last."""
    random_sizes: Int[np.ndarray, " draw"]
    """Number of edges of each random circuit."""
    seed: int
    """Of random circuits, sets and paths, resamples and permutations."""
    level: float
    """Share of intervals meant to hold."""
    notes: tuple[str, ...] = ()
    """What a reader should know of how it was run."""
    selected: int = 0
    """Which of `measured` is shown."""

    def __post_init__(self) -> None:
        n_pairs, n_sets = len(self.pair_indices), len(self.knock_outs)
        single = dict.fromkeys(("full", "empty", "circuit", "complement"), (n_pairs,))
        several = {"random": len(self.random_sizes), "without": len(self.parts)}
        several |= {"circuit_knocked": n_sets, "model_knocked": n_sets}
        for values in self.measured:
            expected = single | {name: (n, n_pairs) for name, n in several.items()}
            expected |= dict.fromkeys(("inflated", "inflated_without"), (len(values.inflated), n_pairs))
            for name, shape in expected.items():
                if (found := getattr(values, name).shape) != shape:
                    raise ValueError(f"{name} of the {values.name} has shape {found}, expected {shape}")
        if not 0 <= self.selected < len(self.measured):
            raise ValueError(f"metric number {self.selected} of {len(self.measured)} cannot be selected")

    def __repr__(self) -> str:
        from actpatch.results.circuit_evaluation_text import evaluation_line

        return evaluation_line(self)

    def summary(self) -> str:
        """A few sentences, which claim no more than the numbers carry."""
        from actpatch.results.circuit_evaluation_text import evaluation_text

        return evaluation_text(self)

    @property
    def values(self) -> CircuitMeasurements:
        """The selected metric of every run."""
        return self.measured[self.selected]

    @property
    def metric(self) -> str:
        """Name of the selected metric."""
        return self.values.name

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics, in the order in which they were asked for."""
        return tuple(values.name for values in self.measured)

    def by_metric(self, name: str) -> CircuitEvaluation:
        """The same evaluation with another metric selected: by its name, or as it was asked for (`kl_divergence`).

        Raises:
            ValueError: for a metric that was not measured.
        """
        keys = [metric_key(metric) for metric in self.metrics]
        if metric_key(name) not in keys:
            nearest = difflib.get_close_matches(metric_key(name), keys, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ValueError(
                f"the metric {shortened(name)} was not measured: {hint}This evaluation has {', '.join(keys)}; ask for "
                "more with metrics=[...] in evaluate_circuit"
            )
        return replace(self, selected=keys.index(metric_key(name)))

    @cached_property
    def faithfulness(self) -> Faithfulness:
        """f(C), as arrays of one circuit: ratio of means, its interval, and each pair's own ratio."""
        return self._faithfulness_of(self.values.circuit[None])

    @cached_property
    def completeness(self) -> Faithfulness:
        """f of the complement, all edges but the circuit's: near 0 where the circuit is complete."""
        return self._faithfulness_of(self.values.complement[None])

    @cached_property
    def random_faithfulness(self) -> Faithfulness:
        """f of each random circuit."""
        return self._faithfulness_of(self.values.random)

    @cached_property
    def knocked_out(self) -> FaithfulnessDifferences:
        """f(M∖K) − f(C∖K) of each of `knock_outs`: near 0 for all of them where the circuit is complete."""
        return self._differences(self.values.model_knocked, self.values.circuit_knocked)

    @cached_property
    def minimality(self) -> FaithfulnessDifferences:
        """f(C) − f(C∖{e}) of each of `parts`: near 0 for what the circuit does not need."""
        without = self.values.without
        return self._differences(np.broadcast_to(self.values.circuit, without.shape), without)

    @cached_property
    def minimality_tests(self) -> MinimalityTests:
        """Whether each of `parts` changes the circuit more than edges that were put into it at random."""
        values = self.values
        changes = np.abs(values.circuit - values.without).mean(axis=1)
        return minimality_tests(changes, np.abs(values.inflated - values.inflated_without).mean(axis=1))

    @cached_property
    def random(self) -> RandomComparison | None:
        """f(C) among that of the random circuits; None where there are none, or no faithfulness is defined."""
        value = float(self.faithfulness.value[0])
        if not len(self.values.random) or not np.isfinite(value):
            return None
        return compare_with_random(value, self.random_faithfulness.value)

    @cached_property
    def equivalence(self) -> EquivalenceTest:
        """Whether the circuit's metric is above the model's as often as below it."""
        return equivalence_test(self.values.circuit, self.values.full)

    @cached_property
    def independence(self) -> IndependenceTest:
        """Whether the complement's metric varies with the model's."""
        return independence_test(self.values.complement, self.values.full, seed=self.seed)

    @property
    def not_needed(self) -> tuple[str, ...]:
        """The parts whose absence changes faithfulness by less than `SMALL_DROP`, each alone."""
        return tuple(part for part, drop in zip(self.parts, self.minimality.value) if abs(drop) < SMALL_DROP)

    @property
    def largest_gap(self) -> int | None:
        """Which of `knock_outs` has the largest |f(M∖K) − f(C∖K)|; None where there is none."""
        gaps = np.abs(self.knocked_out.value)
        return int(np.nanargmax(gaps)) if np.isfinite(gaps).any() else None

    @property
    def flags(self) -> tuple[str, ...]:
        """What speaks against reading the numbers as they stand, a sentence each, without full stops."""
        return tuple(self._flags())

    def to_dataframe(self) -> pandas.DataFrame:
        """A row per measure and metric, the selected metric first.

        Columns: `measure`; `metric`; `value`; `low` and `high`, the ends of its interval, or of the range of so many of
        the random circuits; `p`; `n`, of how many pairs, random circuits, sets or parts it is. p-values: of `random
        circuits`, of a faithfulness at least as large, and of `distance to 1`, of one at least as near; of `largest
        knock-out gap` and `smallest drop of a part`, of a difference, corrected over all sets or parts; of `difference
        from the model`, small where the circuit is above or below it too often, and of `equivalence to the model`,
        small where it is not; of `independence of the rest`, small where the complement varies with the model. The last
        three are not there of the KL divergence from the clean run (`FROM_THE_CLEAN_RUN`).
        """
        order = [self.selected, *(n for n in range(len(self.measured)) if n != self.selected)]
        rows = [(*row[:1], one.metric, *row[1:]) for n in order for one in [self._with(n)] for row in one._rows()]
        return pd.DataFrame(rows, columns=["measure", "metric", "value", "low", "high", "p", "n"])

    def parts_dataframe(self) -> pandas.DataFrame:
        """A row per part, the largest drop first.

        Columns: `part`; `drop`, f(C) − f(C∖{e}), with `low` and `high`, the ends of its interval, `p` and
        `p_corrected`; `share_above`, of edges put in at random the share that change less, and `p_not_needed` and
        `p_not_needed_corrected`, small where that is too few (`minimality_tests`).
        """
        drops, tests = self.minimality, self.minimality_tests
        table = pd.DataFrame(
            {
                "part": self.parts,
                "drop": drops.value,
                "low": drops.low,
                "high": drops.high,
                "p": drops.p,
                "p_corrected": drops.p_corrected,
                "share_above": tests.share_above,
                "p_not_needed": tests.p,
                "p_not_needed_corrected": tests.p_corrected,
            }
        )
        return table.sort_values("drop", ascending=False, kind="stable", ignore_index=True)

    def knock_outs_dataframe(self) -> pandas.DataFrame:
        """A row per set K, in their order.

        Columns: `knocked_out`, its components; `n`, their number; `chosen`, `random` or `greedy`; `gap`, f(M∖K) −
        f(C∖K), with `low`, `high`, `p` and `p_corrected`.
        """
        gaps, n_random = self.knocked_out, len(self.knock_outs) - self.n_greedy
        return pd.DataFrame(
            {
                "knocked_out": [", ".join(names) for names in self.knock_outs],
                "n": [len(names) for names in self.knock_outs],
                "chosen": ["random"] * n_random + ["greedy"] * self.n_greedy,
                "gap": gaps.value,
                "low": gaps.low,
                "high": gaps.high,
                "p": gaps.p,
                "p_corrected": gaps.p_corrected,
            }
        )

    def _with(self, selected: int) -> CircuitEvaluation:
        return self if selected == self.selected else replace(self, selected=selected)

    def _faithfulness_of(self, circuits: Float[np.ndarray, "circuit pair"]) -> Faithfulness:
        values = self.values
        better = values.more_is_better
        return faithfulness(
            circuits, values.full, values.empty, more_is_better=better, level=self.level, seed=self.seed
        )

    def _differences(
        self, first: Float[np.ndarray, "difference pair"], second: Float[np.ndarray, "difference pair"]
    ) -> FaithfulnessDifferences:
        full, empty = self.values.full, self.values.empty
        return faithfulness_differences(first, second, full, empty, level=self.level, seed=self.seed)

    def _flags(self) -> Iterator[str]:
        yield from self.faithfulness.denominator.flags
        if self.held_out is None:
            yield "it is not known which pairs the circuit was chosen by: these may be among them"
        elif not self.held_out:
            yield "the circuit was chosen by some of these pairs, on which it does better than on others"
        if (n := len(self.pair_indices)) < FEWEST_PAIRS:
            yield f"{count(n, 'pair')} give no interval: {FEWEST_PAIRS} or more do"
        size, sizes = len(self.circuit.pruned()), self.random_sizes
        if len(sizes) and (sizes != size).any():
            yield f"random circuits have {sizes.min():,} to {sizes.max():,} edges, the circuit {size:,}"

    def _rows(self) -> Iterator[tuple[str, float, float, float, float, int]]:
        n_pairs, nan = len(self.pair_indices), float("nan")
        for measure, found in (("faithfulness", self.faithfulness), ("faithfulness of the rest", self.completeness)):
            yield measure, float(found.value[0]), float(found.low[0]), float(found.high[0]), nan, n_pairs
        if self.random is not None:
            random, n = self.random.random, len(self.random.random)
            low, middle, high = np.quantile(random, [(1 - self.level) / 2, 0.5, (1 + self.level) / 2]).tolist()
            yield "random circuits", middle, low, high, self.random.p, n
            yield "distance to 1", abs(1 - float(self.faithfulness.value[0])), nan, nan, self.random.p_distance, n
        smallest = int(np.argmin(np.abs(self.minimality.value))) if len(self.parts) else None
        for measure, of, row in (
            ("largest knock-out gap", self.knocked_out, self.largest_gap),
            ("smallest drop of a part", self.minimality, smallest),
        ):
            if row is not None:
                ends = (float(each[row]) for each in (of.value, of.low, of.high, of.p_corrected))
                yield (measure, *ends, len(of.value))  # type: ignore[misc]
        if metric_key(self.metric) in FROM_THE_CLEAN_RUN:
            return
        same, apart = self.equivalence, self.independence
        yield "difference from the model", same.share_above, nan, nan, same.p_different, n_pairs
        yield "equivalence to the model", same.share_above, nan, nan, same.p_equivalent, n_pairs
        yield "independence of the rest", apart.statistic, nan, nan, apart.p, n_pairs
