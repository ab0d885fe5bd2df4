"""Every metric that can be asked for by name. To add one is a class, and a row here."""

from __future__ import annotations

import re

from actpatch.metrics.answers import (
    Accuracy,
    LogitDifference,
    LogProbability,
    Probability,
    ProbabilityDifference,
    Rank,
)
from actpatch.metrics.base import NamedMetric
from actpatch.metrics.distribution import KLDivergence
from actpatch.metrics.sequence import (
    SequenceAccuracy,
    SequenceLogProbability,
    SequenceLogProbabilityDifference,
    SequenceLogProbabilityPerToken,
)

NAMED_METRICS: dict[str, type[NamedMetric]] = {
    metric.key: metric
    for metric in (
        LogitDifference,
        Probability,
        LogProbability,
        ProbabilityDifference,
        Rank,
        Accuracy,
        KLDivergence,
        SequenceLogProbability,
        SequenceLogProbabilityPerToken,
        SequenceLogProbabilityDifference,
        SequenceAccuracy,
    )
}

METRICS = (*NAMED_METRICS, "dataset")
"""Names by which metrics are chosen; `dataset` is the dataset's own."""


def metric_key(name: str) -> str:
    """A metric's name as it is looked up: `KL divergence` and `kl_divergence` are the same."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def right_above(name: str) -> float | None:
    """Above what a run is right by the metric that results call so; None where it does not tell."""
    metric = NAMED_METRICS.get(metric_key(name))
    return metric.right_above if metric is not None and metric.name == name else None
