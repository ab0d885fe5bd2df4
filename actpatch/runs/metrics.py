"""Metrics as data, and metrics of some of an experiment's pairs.

The library's own are written down by name, with the answers that they read. What is a function or a class of one's own
cannot be: it is known by its name and its code, and whoever goes on with the run has to bring it. Nothing here knows a
file or a model.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from actpatch.metrics.base import AnswerMetric, Answers, AnswerSequences, Metric
from actpatch.metrics.chosen import AnyMetric
from actpatch.metrics.own import DatasetMetric
from actpatch.metrics.registry import NAMED_METRICS
from actpatch.metrics.sequence import SequenceMetric
from actpatch.runs.patches import tuples


@dataclass(frozen=True)
class MetricOfPairs:
    """A metric of one's own on some of the pairs that it was made for."""

    metric: Metric
    numbers: tuple[int, ...]
    """Which of its pairs these are."""

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def unit(self) -> str:
        return self.metric.unit

    @property
    def more_is_better(self) -> bool:
        return self.metric.more_is_better

    @property
    def reads_all_positions(self) -> bool:
        return self.metric.reads_all_positions

    @property
    def reads_clean(self) -> bool:
        return self.metric.reads_clean

    @property
    def tokens(self) -> Int[Tensor, " token"] | None:
        return self.metric.tokens

    def measure(
        self,
        logits: Float[Tensor, "row pos token"],
        pairs: Int[Tensor, " row"],
        clean: Float[Tensor, "row pos token"] | None = None,
    ) -> Float[Tensor, " row"]:
        return self.metric.measure(logits, pairs.new_tensor(self.numbers)[pairs], clean)


def metric_of_pairs(metric: AnyMetric, numbers: Sequence[int]) -> AnyMetric:
    """The metric on these of its pairs, which are counted as before by nothing but their index in the dataset."""
    if isinstance(metric, (AnswerMetric, SequenceMetric)):
        answers: Any = metric.answers
        each = {f.name: getattr(answers, f.name) for f in fields(answers)}
        some = {name: tuple(of_pairs[i] for i in numbers) for name, of_pairs in each.items() if of_pairs}
        changed: Any = replace(answers, **some)
        return replace(metric, answers=changed)
    if isinstance(metric, DatasetMetric):
        return replace(metric, pair_indices=tuple(metric.pair_indices[i] for i in numbers))
    if is_ours(metric):
        return metric
    return MetricOfPairs(metric, tuple(numbers))


def is_ours(metric: AnyMetric) -> bool:
    """Whether a metric can be written down: it is the library's own."""
    return any(type(metric) is known for known in NAMED_METRICS.values())


def metric_as_data(metric: AnyMetric) -> dict[str, Any]:
    """What there is to write of a metric, from which `metric_from_data` makes it again where it is the library's."""
    said = {"name": metric.name, "unit": metric.unit, "more_is_better": metric.more_is_better}
    if isinstance(metric, DatasetMetric):
        return {**said, "own": _code_of(metric.compute_metric)}
    if not is_ours(metric):
        kind = type(metric)
        return {**said, "own": {"name": f"{kind.__module__}.{kind.__qualname__}", "code": _digest(kind)}}
    assert is_dataclass(metric)
    data = {**said, "metric": metric.key}  # type: ignore[union-attr]
    if isinstance(metric, (AnswerMetric, SequenceMetric)):
        # Pairs may share thousands of answers: each list is written once.
        sides = metric.answers.correct, metric.answers.incorrect
        distinct = {answers: place for place, answers in enumerate(dict.fromkeys((*sides[0], *sides[1])))}
        data["answers"] = list(distinct)
        data["correct"], data["incorrect"] = ([distinct[answers] for answers in side] for side in sides)
    return data


def metric_from_data(data: dict[str, Any], pair_indices: tuple[int, ...]) -> AnyMetric:
    """The metric that was written down.

    Raises:
        ValueError: for one of somebody's own.
    """
    if "own" in data:
        raise ValueError(
            f"the metric {data['name']!r} is a function or a class of one's own ({data['own']['name']}), which a "
            "folder cannot hold: go on with the same call in Python, with store= this folder, or measure one of the "
            "library's metrics"
        )
    kind: Any = NAMED_METRICS[data["metric"]]
    if "answers" not in data:
        return kind(name=data["name"]) if "name" in {f.name for f in fields(kind)} else kind()
    every = tuples(data["answers"])
    correct, incorrect = (tuple(every[place] for place in data[side]) for side in ("correct", "incorrect"))
    of = AnswerSequences if issubclass(kind, SequenceMetric) else Answers
    return kind(of(correct, incorrect, pair_indices), name=data["name"])


def _code_of(function: Callable[..., Any]) -> dict[str, str]:
    """A function's name, and a hash of what it is written as; empty where that cannot be had."""
    inner = getattr(function, "func", function)
    inner = getattr(inner, "__func__", inner)
    name = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    return {"name": name, "code": _digest(inner)}


def _digest(thing: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""
