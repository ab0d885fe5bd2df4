"""What a sweep measured, and how metrics that need runs of their own come together. Nothing here runs a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actpatch.metrics.base import Metric
from actpatch.metrics.chosen import AnyMetric, MetricSet
from actpatch.metrics.sequence import SequenceMetric, SequenceSet


@dataclass(frozen=True)
class Measured:
    """What a sweep measured in one direction, by metric."""

    patched: Float[np.ndarray, "metric patch pair"]
    """Empty where nothing was patched."""
    clean: Float[np.ndarray, "metric pair"]
    corrupted: Float[np.ndarray, "metric pair"]
    shortcuts: tuple[str, ...] = ()
    """Names of the shortcuts that were used, each of which was exact in this sweep (`Exactness`)."""
    notes: tuple[str, ...] = ()
    """Sentences on how the numbers were run, for whoever reads them."""


def sets_of(metrics: Sequence[AnyMetric], samples: int) -> list[MetricSet | SequenceSet]:
    """The metrics by the runs that they are measured on: of the prompts, and with answers appended to them.

    Metrics of whole answers share runs where they are of the same answers.
    """
    single: list[Metric] = []
    whole: list[list[SequenceMetric]] = []
    for metric in metrics:
        if not isinstance(metric, SequenceMetric):
            single.append(metric)
        elif same := [group for group in whole if group[0].answers == metric.answers]:
            same[0].append(metric)
        else:
            whole.append([metric])
    sets: list[MetricSet | SequenceSet] = [SequenceSet(tuple(group), samples) for group in whole]
    return [MetricSet(tuple(single), samples), *sets] if single or not sets else sets


def in_order(
    metrics: Sequence[AnyMetric], sets: Sequence[MetricSet | SequenceSet], parts: Sequence[Measured]
) -> Measured:
    """What was measured by each set, as one, in the order of the metrics."""
    if len(parts) == 1:
        return parts[0]
    found = [id(metric) for of in sets for metric in of.metrics]
    order = [found.index(id(metric)) for metric in metrics]
    return Measured(
        np.concatenate([part.patched for part in parts])[order],
        np.concatenate([part.clean for part in parts])[order],
        np.concatenate([part.corrupted for part in parts])[order],
        tuple(name for name in parts[0].shortcuts if all(name in part.shortcuts for part in parts)),
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def mean_of_samples(values: Float[np.ndarray, "... run"], samples: int) -> Float[np.ndarray, "... pair"]:
    return values.reshape(*values.shape[:-1], values.shape[-1] // samples, samples).mean(axis=-1)
