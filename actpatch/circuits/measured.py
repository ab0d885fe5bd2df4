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

from actpatch.circuits.patcher import CircuitPatcher
from actpatch.core.circuits import Circuit
from actpatch.core.text import number
from actpatch.interventions.settings import Settings
from actpatch.metrics.chosen import MetricChoice
from actpatch.metrics.names import metric_key
from actpatch.metrics.registry import METRICS
from actpatch.patchers.experiment import ExactRuns
from actpatch.results.sweep import Sweep
from actpatch.statistics.resampling import gaps_cancel
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.encoding import encode_pairs


class CircuitMetrics:
    """What every metric of circuits comes to on the same pairs. Each circuit is run once, however often it is asked.

    With all edges a circuit is the clean run. In denoising runs, which begin from the corrupted prompt, a circuit's
    edges are those that are written: the others are what the run keeps of its own, and with all edges it is the clean
    run but for positions that have no partner there.

    Args:
        patcher: runs circuits.
        dataset: prompt pairs and metric.
        settings: which pairs, in one direction, what stands in the place of senders that are left out, and what is
            measured.
    """

    def __init__(self, patcher: CircuitPatcher, dataset: PatchingDataset, settings: Settings) -> None:
        self.patcher, self.dataset, self.settings = patcher, dataset, settings
        (self.direction,) = settings.directions
        self._sweep: Sweep | None = None
        self._ends: tuple[Circuit, Circuit] | None = None
        """With no edge, and with all of them."""
        self._known: dict[Circuit, Float[np.ndarray, "metric pair"]] = {}

    def of(self, circuits: Sequence[Circuit]) -> Float[np.ndarray, "metric circuit pair"]:
        """Every metric of each circuit on each pair. Those that were not run yet are run together.

        Raises:
            ValueError: as `CircuitPatcher.run_circuits_experiment`.
            RuntimeError: likewise.
        """
        asked = [*circuits]
        if self._ends is None:
            none = np.zeros_like(circuits[0].edges)
            self._ends = replace(circuits[0], edges=none), replace(circuits[0], edges=~none)
            asked += self._ends if self.direction == "denoising" else self._ends[:1]
        if new := [one for one in dict.fromkeys(asked) if one not in self._known and not self._is_clean(one)]:
            self._run(new)
        found = [self.full if self._is_clean(one) else self._known[one] for one in circuits]
        return np.stack(found, axis=1) if found else np.zeros((*self.full.shape[:1], 0, *self.full.shape[1:]))

    def _is_clean(self, circuit: Circuit) -> bool:
        """Whether nothing is left out of the clean run; at positions that are told apart all others always are."""
        return self.direction == "noising" and not circuit.positions and bool(circuit.edges.all())

    def _run(self, circuits: list[Circuit]) -> None:
        with warnings.catch_warnings() if self._sweep is not None else nullcontext():
            if self._sweep is not None:  # what baselines are to be warned of was told with the first runs
                warnings.simplefilter("ignore")
            self._sweep = self.patcher.run_circuits_experiment(
                self.dataset,
                [~circuit for circuit in circuits] if self.direction == "denoising" else circuits,
                pair_indices=self.settings.pair_indices,
                direction=self.direction,
                source=self.settings.source,
                metrics=self.settings.metrics,
            ).sweep
        found = np.stack([values.patched for values in self._sweep.measured], axis=1)
        self._known.update(zip(circuits, found))

    @property
    def sweep(self) -> Sweep:
        """The last runs, for the settings and the pairs, once anything was run."""
        assert self._sweep is not None
        return self._sweep

    @property
    def full(self) -> Float[np.ndarray, "metric pair"]:
        """Every metric of the whole model, once anything was run."""
        if self.direction == "noising":
            return np.stack([values.clean for values in self.sweep.measured])
        assert self._ends is not None
        return self._known[self._ends[1]]

    @property
    def empty(self) -> Float[np.ndarray, "metric pair"]:
        """Every metric with every edge off, likewise."""
        assert self._ends is not None
        return self._known[self._ends[0]]

    def faithfulness(self, circuits: Sequence[Circuit]) -> Float[np.ndarray, " circuit"]:
        """Ratio of means (`statistics.faithfulness`) of each circuit, by the first metric.

        Raises:
            ValueError: where the whole model does as with every edge off, so that no circuit has one; and as `of`.
        """
        values, full, empty = self.of(circuits)[0], self.full[0], self.empty[0]
        gaps = full - empty
        if gaps_cancel(gaps) or not np.isfinite(gaps).all():
            raise ValueError(
                f"the whole model has a mean {self.sweep.metric} of {number(full.mean())} and {number(empty.mean())} "
                "with every edge off: there is no effect to keep a share of; use a corruption (or a metric) that "
                "breaks the behaviour"
            )
        return (values - empty).mean(axis=1) / gaps.mean()


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
    if dataset is not None:
        _check_is_of(sweep, model, dataset, what)
        named = Settings(pair_indices=sweep.pair_indices, direction="noising", metrics=_known_name(sweep))
        return CircuitMetrics(CircuitPatcher(model), dataset, named)
    runs = sweep.run_exactly
    if not isinstance(runs, ExactRuns) or runs.pairs.origin is None:
        raise ValueError(
            f"{what} runs circuits, and these results do not know their model (they were read from a file, copied, or "
            "are of some pairs alone): give model= and dataset=, or another goal (n_edges=, threshold=)"
        )
    asked = runs.settings.metrics
    if isinstance(asked, Sequence) and not isinstance(asked, str):
        asked = asked[sweep.selected]
    settings = replace(runs.settings, pair_indices=sweep.pair_indices, direction="noising", metrics=asked)
    patcher = CircuitPatcher(
        runs.pairs.origin.model, batch_size=runs.engine.batch_size, show_progress=runs.engine.show_progress
    )
    return CircuitMetrics(patcher, runs.pairs.origin.dataset, settings)


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
