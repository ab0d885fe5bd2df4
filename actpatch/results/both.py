"""Reads both directions of one experiment together: a component is sufficient, necessary, both, or neither.

Denoising (clean into corrupted) that restores the behaviour shows that a component *suffices*; noising (corrupted into
clean) that destroys it shows that it is *necessary* (Heimersheim & Nanda 2024, "How to use and interpret activation
patching", section 3). Serial parts of a mechanism are both; of parts that stand in for each other each is sufficient
and none necessary; of parts that are all needed at once each is necessary and none sufficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from actpatch.core.estimate_words import exact_or_estimated, method_of
from actpatch.core.heavy import pd
from actpatch.core.truth import Truth
from actpatch.results.edges import EdgeResults
from actpatch.results.files import write_csv, write_parquet, write_sweeps
from actpatch.results.patches import table_columns
from actpatch.results.shapes import SweepResults
from actpatch.results.truth_comparison import TruthComparison, check_truth, compared_edges

Results = TypeVar("Results", bound=SweepResults)

READINGS = {
    (True, True): "both",
    (True, False): "sufficient",
    (False, True): "necessary",
    (False, False): "neither",
}
"""(whether the effect of denoising counts, that of noising) -> what the component is for the behaviour."""


@dataclass(frozen=True)
class BothDirections(Generic[Results]):
    """One experiment in both directions, with the same patches on the same pairs."""

    denoising: Results
    """Clean into corrupted."""
    noising: Results
    """Corrupted into clean."""

    def __post_init__(self) -> None:
        first, second = self.denoising.sweep.estimate, self.noising.sweep.estimate
        if first != second:
            raise ValueError(
                f"denoising is {exact_or_estimated(first)}, noising {exact_or_estimated(second)}, expected both of one "
                "kind: run the experiment with direction='both'"
            )

    def by_metric(self, name: str) -> BothDirections[Results]:
        """The same results with another metric selected, in both directions."""
        return BothDirections(self.denoising.by_metric(name), self.noising.by_metric(name))

    def by_group(self) -> dict[str, BothDirections[Results]]:
        """Group of pairs -> both directions of these pairs alone (`SweepResults.by_group`)."""
        both = (self.denoising.by_group(), self.noising.by_group())
        return {group: BothDirections(results, both[1][group]) for group, results in both[0].items()}

    def compare_with(self, truth: Truth, *, ks: Sequence[int] | None = None) -> TruthComparison:
        """How well edges find a known circuit if each ranks by the larger |effect| of its two.

        Of parts that stand in for each other noising sees none, and of parts that are all needed at once denoising; so
        all edges of the truth are asked for, whatever it says of a direction.

        Args:
            truth: the known circuit.
            ks: precision is told at each of these; None for the number of true edges.

        Raises:
            ValueError: for results of other than edges, and as `EdgeResults.compare_with`.
        """
        check_truth(truth)
        first, second = self.denoising, self.noising
        if not isinstance(first, EdgeResults) or not isinstance(second, EdgeResults):
            raise ValueError(f"these are {type(first).__name__}, expected edges: compare each direction by itself")
        truth.check_stated_for(first.sweep.source_of_values)
        truth.check_graph(first.graph)
        effects = np.fmax(np.abs(first.effects_of_all), np.abs(second.effects_of_all))
        by, metric = f"{exact_or_estimated(first.sweep.estimate)}, both directions", first.sweep.metric
        return compared_edges(first.graph, effects, truth, ranked_by=by, metric=metric, ks=ks, hidden=False)

    def to_dataframe(self) -> pd.DataFrame:
        """Both long tables, one after the other; the column `direction` tells them apart."""
        return pd.concat([self.denoising.to_dataframe(), self.noising.to_dataframe()], ignore_index=True)

    def to_csv(self, path: str | Path) -> Path:
        """Write both long tables as one CSV file (`results.files.write_csv`)."""
        return write_csv(self.to_dataframe(), path)

    def to_parquet(self, path: str | Path) -> Path:
        """Write both long tables as one Parquet file, which needs pyarrow (`results.files.write_parquet`)."""
        return write_parquet(self.to_dataframe(), path)

    def save(self, path: str | Path) -> Path:
        """Write both directions as one JSON file; `load_results` reads them back, equal to these."""
        kind = type(self.denoising).__name__
        return write_sweeps([self.denoising.sweep, self.noising.sweep], kind, path)

    def reading(self, threshold: float | None = 0.1, *, alpha: float | None = None) -> pd.DataFrame:
        """What each patch is for the behaviour: a row per patch, in order.

        Args:
            threshold: the least effect that counts; None for any above 0. Negative effects count as none: a component
                that works against the behaviour neither restores nor carries it.
            alpha: an effect counts only where its p-value, corrected over all patches of its direction, is at most
                this besides (`results.statistics(alpha=alpha)`); None does not ask how sure it is. `neither` then says
                that nothing was shown, not that there is nothing.

        Returns:
            `site` (label), `layer`, `head`, `neuron` and `position` (or its name) of each patch, where it has one;
            `denoising` and `noising`, the effects over the usable pairs; with `alpha` their corrected p-values as
            `denoising_p` and `noising_p`; and `reading`: `both`, `sufficient`, `necessary` or `neither`, and None where
            no pair is usable. Where effects are estimated, `estimate` names the method.

        Raises:
            ValueError: for a threshold that is not above 0, where neither is given, and for an `alpha` that is no level
                or has no statistics to go by.
        """
        if threshold is None and alpha is None:
            raise ValueError("threshold and alpha are both None, so every patch counts: give at least one")
        if threshold is not None and (not isinstance(threshold, Real) or not threshold > 0):
            raise ValueError(f"threshold is {threshold!r}, expected a number above 0: at 0 every patch counts")
        of_patch = table_columns(self.denoising.sweep.patches)
        columns = {"site": "site", "layer": "layer", "head": "head", "neuron": "neuron", "position": "place"}
        table = pd.DataFrame({name: of_patch[column].each() for name, column in columns.items()})
        counts, p_values = [], {}
        for direction, results in (("denoising", self.denoising), ("noising", self.noising)):
            effects = results.sweep.effects
            table[direction] = effects
            counting = effects >= threshold if threshold is not None else effects > 0
            if alpha is not None and not np.isnan(effects).all():
                statistics = results.statistics(alpha=alpha)
                counting, p_values[f"{direction}_p"] = (
                    counting & statistics.significant_or_warned(),
                    statistics.p_corrected,
                )
            counts.append(counting)
        known = table["denoising"].notna() & table["noising"].notna()
        readings = [
            READINGS[bool(suffices), bool(needed)] if is_known else None
            for suffices, needed, is_known in zip(*counts, known)
        ]
        estimate = self.denoising.sweep.estimate
        how = {} if estimate is None else {"estimate": method_of(estimate)}
        return table.assign(**p_values, reading=pd.Series(readings, dtype=object), **how)


def check_kind(results: object, kind: type, made_by: str, otherwise: str = "") -> None:
    """Raises ValueError for results of another kind, and for both directions, of which one has to be chosen.

    Args:
        results: what was given.
        kind: what is needed.
        made_by: what returns it.
        otherwise: what to do with results of other kinds.
    """
    if isinstance(results, kind):
        return
    if isinstance(results, BothDirections):
        raise ValueError("results holds both directions: give results.denoising or results.noising")
    raise ValueError(f"results is a {type(results).__name__}, expected what {made_by} returns{otherwise}")
