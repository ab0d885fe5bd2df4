"""Metrics that compare a run's whole next-token distribution with that of the clean run; no answers are needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.metrics.base import NamedMetric, PairAnswers


@dataclass(frozen=True)
class KLDivergence(NamedMetric):
    """KL(clean run || this run) of the next-token distributions, in nats: 0 where they are the same."""

    name: str = "KL divergence"
    key: ClassVar[str] = "kl_divergence"
    needs_answers: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    more_is_better: ClassVar[bool] = False
    reads_all_positions: ClassVar[bool] = False
    reads_clean: ClassVar[bool] = True
    tokens: ClassVar[None] = None

    @classmethod
    def made(cls, pairs: PairAnswers) -> KLDivergence:
        return cls()

    def measure(
        self,
        logits: Float[Tensor, "row pos token"],
        pairs: Int[Tensor, " row"],
        clean: Float[Tensor, "row pos token"] | None = None,
    ) -> Float[Tensor, " row"]:
        if clean is None:
            raise ValueError("a KL divergence needs the logits of the clean run: pass them as clean")
        expected, found = clean[:, -1].log_softmax(-1), logits[:, -1].log_softmax(-1)
        probability = expected.exp()
        terms = torch.where(probability > 0, probability * (expected - found), probability)
        return terms.sum(-1).clamp(min=0)
