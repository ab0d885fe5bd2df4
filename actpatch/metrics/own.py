"""Metrics that are functions of one's own, or a dataset's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
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

    def measure(
        self,
        logits: Float[Tensor, "row pos token"],
        pairs: Int[Tensor, " row"],
        clean: Float[Tensor, "row pos token"] | None = None,
    ) -> Float[Tensor, " row"]:
        values = [self._value(logits[i : i + 1], self.pair_indices[pair]) for i, pair in enumerate(pairs.tolist())]
        return torch.tensor(values, dtype=torch.float64)

    def _value(self, logits: Float[Tensor, "1 pos d_vocab"], pair_index: int) -> float:
        returned = self.compute_metric(logits, pair_index)
        try:
            value = float(returned)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"compute_metric returned {type(returned).__name__} for pair {pair_index}, expected one number: "
                "return a float, for instance with .item()"
            ) from error
        if not math.isfinite(value):
            raise ValueError(
                f"compute_metric returned {value} for pair {pair_index}, expected a finite number: "
                "check the token ids and positions it reads"
            )
        return value
