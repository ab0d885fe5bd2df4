"""Metrics that are functions of one's own, or a dataset's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

LAMBDA_NAME = "metric"
"""What a function without a name is called."""


@dataclass(frozen=True, repr=False)
class DatasetMetric:
    """A function of one's own, or a dataset's `compute_metric`: it is given all positions and the whole vocabulary.

    The logits are a copy that it may change.
    A dataset says by its `metric_name`, `metric_unit` and `more_is_better` what its own measures.
    """

    compute_metric: Callable[[Float[Tensor, "1 pos d_vocab"], int], float]
    pair_indices: tuple[int, ...] = ()
    """Index of each pair in its dataset, which is what `compute_metric` is called with; those of the experiment where
    none are given."""
    name: str = "compute_metric"
    unit: str = ""
    more_is_better: bool = True
    reads_all_positions: ClassVar[bool] = True
    reads_clean: ClassVar[bool] = False
    tokens: ClassVar[None] = None

    def __repr__(self) -> str:
        unit = f" in {self.unit}" if self.unit else ""
        return f"DatasetMetric({self.name!r}{unit}, {'more' if self.more_is_better else 'less'} is better)"

    def measure(
        self,
        logits: Float[Tensor, "row pos token"],
        pairs: Int[Tensor, " row"],
        clean: Float[Tensor, "row pos token"] | None = None,
    ) -> Float[Tensor, " row"]:
        each = [self._value(logits[i : i + 1], self.pair_indices[pair]) for i, pair in enumerate(pairs.tolist())]
        return torch.stack(each)

    def _value(self, logits: Float[Tensor, "1 pos d_vocab"], pair_index: int) -> Float[Tensor, ""]:
        """The metric of a run; where gradients are asked for, the tensor that was returned."""
        returned = self.compute_metric(logits, pair_index)
        who = name_of(self.compute_metric)
        try:
            value = float(returned.detach() if isinstance(returned, Tensor) else returned)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{who} returned {type(returned).__name__} for pair {pair_index}, expected one number: return a float, "
                "for instance with .item()"
            ) from error
        if not math.isfinite(value):
            raise ValueError(
                f"{who} returned {value} for pair {pair_index}, expected a finite number: check the token ids and "
                "positions it reads"
            )
        if not logits.requires_grad:
            return torch.tensor(value, dtype=torch.float64)
        if not isinstance(returned, Tensor) or not returned.requires_grad:
            raise ValueError(no_gradient(f"{who}, for pair {pair_index},"))
        return returned.reshape(()).to("cpu", torch.float64)


def no_gradient(what: str) -> str:
    """What is said of a metric that cannot be differentiated."""
    return (
        f"{what} has no gradient: expected a tensor that torch computes from the logits, without .item() and float(); "
        "or run the patches themselves"
    )


def function_metric(function: Callable[..., Any]) -> DatasetMetric:
    """A plain function `function(logits, pair_idx) -> float` as a metric of its name, of which more is better.

    Raises:
        ValueError: where it cannot be called with logits and the index of a pair.
    """
    name = name_of(function)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of what is not written in Python nothing is known
        return DatasetMetric(function, name=name)
    try:
        signature.bind(None, 0)
    except TypeError:
        raise ValueError(
            f"the metric {name!r} takes {signature}, expected a function of (logits, pair_idx) that returns one number"
        ) from None
    return DatasetMetric(function, name=name)


def name_of(function: Callable[..., Any]) -> str:
    """What a function is called, or what it is a `functools.partial` of, or else its class."""
    inner = getattr(function, "func", function)
    name = getattr(inner, "__name__", type(inner).__name__)
    return LAMBDA_NAME if name == "<lambda>" else name
