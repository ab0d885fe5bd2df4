"""What is measured on the logits?

A metric turns the logits of a run into one number per run. It also says what it reads, so that the engine computes
nothing else: which positions (only the last one, or all) and which vocabulary entries (only the targets, or all).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Metric(Protocol):
    """What the engine asks of a metric."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def reads_all_positions(self) -> bool:
        """False where the metric reads the last position alone."""

    @property
    def tokens(self) -> Int[Tensor, " token"] | None:
        """Vocabulary entries the metric reads, in the order in which `measure` gets them; None for all."""

    def measure(self, logits: Float[Tensor, "row pos token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The metric of each run. `pos` is 1 for a metric that reads the last position alone.

        Args:
            logits: the runs' logits at what the metric reads.
            pairs: for each run the pair it belongs to, counted from 0 within the experiment.
        """


@dataclass(frozen=True)
class LogitDifference:
    """logit(correct) - logit(incorrect) at the last position, in logits (Wang et al. 2022, section 2)."""

    correct: Int[Tensor, " pair"]
    """Token id of each pair's right answer."""
    incorrect: Int[Tensor, " pair"]
    """Token id of each pair's wrong answer."""
    name: str = "logit difference"
    unit: str = "logits"
    reads_all_positions: bool = False

    @property
    def tokens(self) -> Int[Tensor, " token"]:
        return torch.unique(torch.cat([self.correct, self.incorrect]))

    def measure(self, logits: Float[Tensor, "row pos token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        last = logits[:, -1]
        tokens = self.tokens
        rows = torch.arange(len(last), device=last.device)
        correct = torch.searchsorted(tokens, self.correct[pairs]).to(last.device)
        incorrect = torch.searchsorted(tokens, self.incorrect[pairs]).to(last.device)
        return last[rows, correct] - last[rows, incorrect]


@dataclass(frozen=True)
class DatasetMetric:
    """A dataset's own `compute_metric`, which is given all positions and the whole vocabulary."""

    compute_metric: Callable[[Float[Tensor, "1 pos d_vocab"], int], float]
    pair_indices: tuple[int, ...]
    """Index of each pair in its dataset, which is what `compute_metric` is called with."""
    name: str = "compute_metric"
    unit: str = ""
    reads_all_positions: bool = True
    tokens: None = None

    def measure(self, logits: Float[Tensor, "row pos token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
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
