"""Every metric that can be asked for by name. To add one is a class, and a row here."""

from __future__ import annotations

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
from actpatch.metrics.names import metric_key
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


def right_above(name: str) -> float | None:
    """Above what a run is right by the metric that results call so; None where it does not tell."""
    metric = NAMED_METRICS.get(metric_key(name))
    return metric.right_above if metric is not None and metric.name == name else None
