"""What circuits come to when they are run, each once, beside the whole model and the run with every edge off.

Knows which circuits it ran, and not how they were chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from actpatch.circuits.patcher import patcher_of
from actpatch.core.circuits import Circuit
from actpatch.core.text import number
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.chosen import MetricChoice
from actpatch.metrics.names import metric_key
from actpatch.metrics.registry import METRICS
from actpatch.patchers.experiment import ExactRuns
from actpatch.results.sweep import Sweep
from actpatch.statistics.resampling import gaps_cancel
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.encoding import encode_pairs


class CircuitMetrics:
    """The metric of circuits on the same pairs. All edges in are the clean run.

    Args:
        model: that they are circuits of.
        dataset: prompt pairs and metric.
        pair_indices: which pairs; None for all.
        source: what stands in the place of senders that are left out.
        metric: what is measured; None for the dataset's own.
        batch_size: as `CircuitPatcher` takes it.
        show_progress: likewise.
    """

    def __init__(
        self,
        model: Any,
        dataset: PatchingDataset,
        *,
        pair_indices: Sequence[int] | None = None,
        source: Source = OTHER_RUN,
        metric: MetricChoice = None,
        batch_size: int | None = None,
        show_progress: bool = True,
    ) -> None:
        self.patcher = patcher_of(model, batch_size, show_progress)
        self.dataset, self.pair_indices, self.source, self.metric = dataset, pair_indices, source, metric
        self.sweep: Sweep | None = None
        """The last runs, for the settings and the pairs; None before the first."""
        self.empty: Float[np.ndarray, " pair"] = np.empty(0)
        """The metric with every edge off, once anything was run."""
        self._known: dict[Circuit, Float[np.ndarray, " pair"]] = {}

    def of(self, circuits: Sequence[Circuit]) -> Float[np.ndarray, "circuit pair"]:
        """The metric of each circuit on each pair. Those that were not run yet are run together.

        Raises:
            ValueError: as `CircuitPatcher.run_circuits_experiment`.
            RuntimeError: likewise.
        """
        none = replace(circuits[0], edges=np.zeros_like(circuits[0].edges))
        asked = dict.fromkeys([none, *circuits])
        if new := [one for one in asked if one not in self._known and not self._is_whole(one)]:
            # What baselines are to be warned of was told with the first runs.
            with warnings.catch_warnings() if self.sweep is not None else nullcontext():
                if self.sweep is not None:
                    warnings.simplefilter("ignore")
                self.sweep = self.patcher.run_circuits_experiment(
                    self.dataset, new, pair_indices=self.pair_indices, source=self.source, metrics=self.metric
                ).sweep
            self._known.update(zip(new, self.sweep.patched))
        self.empty = self._known[none]
        return np.stack([self.full if self._is_whole(one) else self._known[one] for one in circuits])

    @property
    def full(self) -> Float[np.ndarray, " pair"]:
        """The metric of the whole model, once anything was run."""
        assert self.sweep is not None
        return self.sweep.clean

    def faithfulness(self, circuits: Sequence[Circuit]) -> Float[np.ndarray, " circuit"]:
        """Ratio of means (`statistics.faithfulness`) of each circuit.

        Raises:
            ValueError: where the whole model does as with every edge off, so that no circuit has one; and as `of`.
        """
        values = self.of(circuits)
        gaps = self.full - self.empty
        if gaps_cancel(gaps) or not np.isfinite(gaps).all():
            raise ValueError(
                f"the whole model has a mean {self.sweep.metric if self.sweep else ''} of {number(self.full.mean())} "
                f"and {number(self.empty.mean())} with every edge off: there is no effect to keep a share of; use a "
                "corruption (or a metric) that breaks the behaviour"
            )
        return (values - self.empty).mean(axis=1) / gaps.mean()

    @staticmethod
    def _is_whole(circuit: Circuit) -> bool:
        """Whether nothing is left out; at positions that are told apart all others always are."""
        return not circuit.positions and bool(circuit.edges.all())


def metrics_of(sweep: Sweep, model: Any, dataset: PatchingDataset | None, what: str) -> CircuitMetrics:
    """What measures circuits on the pairs of a sweep, as they were run there.

    Args:
        sweep: of any experiment.
        model: to run instead of the one that the sweep knows; None for that.
        dataset: the dataset that the sweep's pairs are of, beside a model.
        what: what needs runs, for messages.

    Raises:
        ValueError: where the sweep does not know its model and none is given, where only one of model and dataset is,
            where these are not its pairs, and for effects under noise, or of an ablation that is not at hand.
    """
    if (model is None) != (dataset is None):
        raise ValueError(f"{'dataset' if model is None else 'model'} is given alone, expected model and dataset")
    if sweep.noise:
        raise ValueError(
            f"{what} runs circuits, which have no noise, and these results were run under {sweep.noise}: give results "
            "of pairs of two prompts"
        )
    runs = sweep.run_exactly
    if dataset is not None:
        _check_is_of(sweep, model, dataset, what)
        return CircuitMetrics(model, dataset, pair_indices=sweep.pair_indices, metric=_known_name(sweep))
    if not isinstance(runs, ExactRuns) or runs.pairs.origin is None:
        raise ValueError(
            f"{what} runs circuits, and these results do not know their model (they were read from a file, copied, or "
            "are of some pairs alone): give model= and dataset=, or another goal (n_edges=, threshold=)"
        )
    asked = runs.settings.metrics
    several = isinstance(asked, Sequence) and not isinstance(asked, str)
    return CircuitMetrics(
        runs.pairs.origin.model,
        runs.pairs.origin.dataset,
        pair_indices=sweep.pair_indices,
        source=runs.settings.source,
        metric=asked[sweep.selected] if several else asked,  # type: ignore[index]
        batch_size=runs.engine.batch_size,
        show_progress=runs.engine.show_progress,
    )


def _known_name(sweep: Sweep) -> MetricChoice:
    """The name by which a metric is asked for; None for one that is the dataset's own."""
    name = metric_key(sweep.metric)
    return name if name in METRICS else None


def _check_is_of(sweep: Sweep, model: Any, dataset: PatchingDataset, what: str) -> None:
    """Raise a ValueError where the pairs of the sweep are not those of the dataset, or it needs what is not at hand."""
    if sweep.source_kind == "ablation":
        raise ValueError(
            f"{what} runs circuits, and what {sweep.source_of_values} wrote is not known of results that were read "
            "from a file: run the experiment again, or give n_edges= or threshold="
        )
    pairs = encode_pairs(model, dataset, sweep.pair_indices)
    if (pairs.clean_tokens, pairs.corrupted_tokens) != (sweep.clean_tokens, sweep.corrupted_tokens):
        raise ValueError(
            f"the pairs {sweep.pair_indices[0]}, ... of the dataset {pairs.task!r} are not those of the results "
            f"({sweep.task!r}): give the dataset that they were run on"
        )
