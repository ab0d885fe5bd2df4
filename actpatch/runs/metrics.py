"""Metrics as data, and metrics of some of an experiment's pairs.

The library's own are written down by name, with the answers that they read. What is a function or a class of one's own
cannot be: it is known by its name, its code and the numbers, texts and arrays that it is set to, and whoever goes on
with the run has to bring it. Nothing here knows a file or a model.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
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
        own = {"name": f"{kind.__module__}.{kind.__qualname__}", "code": _digest(kind)}
        return {**said, "own": {**own, "settings": _settings(getattr(metric, "__dict__", {}))}}
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


def _code_of(function: Callable[..., Any]) -> dict[str, Any]:
    """A function's name, a hash of what it is written as (empty where that cannot be had), and what it is set to."""
    given = {**dict(enumerate(getattr(function, "args", ()))), **getattr(function, "keywords", {})}  # functools.partial
    inner = getattr(function, "func", function)
    inner = getattr(inner, "__func__", inner)
    name = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    if inspect.isfunction(inner):
        closed_over = inspect.getclosurevars(inner).nonlocals
        defaults = {key: of.default for key, of in inspect.signature(inner).parameters.items()}
        given = {**defaults, **closed_over, **given}
    elif not hasattr(inner, "__qualname__"):  # an object that is called
        given = {**getattr(inner, "__dict__", {}), **given}
        inner = type(inner)
    return {"name": name, "code": _digest(inner), "settings": _settings(given)}


def _settings(values: Mapping[Any, Any]) -> dict[str, str]:
    """What values are that cannot change by being used, and arrays: in lists and objects a metric may keep things."""
    return {str(name): told for name, value in values.items() if (told := _told(value))}


def _told(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else value
        return f"{array.shape} {array.dtype} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_told, value))})"
    plain = value is None or isinstance(value, (bool, int, float, str, bytes, np.generic))
    return repr(value) if plain else ""


def _digest(thing: Any) -> str:
    try:
        return hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""
