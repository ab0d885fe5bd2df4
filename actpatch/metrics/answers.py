"""Metrics of a pair's answers, at the last position.

A pair may have several right and several wrong answers. Of a set of answers the probability is the sum of theirs, and
its logit the logarithm of the sum of their exponentials, so that a difference of logits stays a logarithm of odds; for
one answer that is its own logit, to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.metrics.base import AnswerMetric, PaddedAnswers


@dataclass(frozen=True, repr=False)
class LogitDifference(AnswerMetric):
    """logit(correct) - logit(incorrect) at the last position, in logits (Wang et al. 2022, section 2)."""

    name: str = "logit difference"
    key: ClassVar[str] = "logit_difference"
    right_above: ClassVar[float | None] = 0.0
    unit: ClassVar[str] = "logits"
    needs_incorrect: ClassVar[bool] = True

    @property
    def tokens(self) -> Int[Tensor, " token"]:
        return self.answers.tokens

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        correct, incorrect = self._columns
        return _sum_of_logits(last, correct, pairs) - _sum_of_logits(last, incorrect, pairs)

    @cached_property
    def _columns(self) -> tuple[PaddedAnswers, PaddedAnswers]:
        """Where among `tokens` the answers stand."""
        tokens, sides = self.tokens, (self.answers.padded_correct, self.answers.padded_incorrect)
        correct, incorrect = (
            PaddedAnswers(torch.searchsorted(tokens, table).masked_fill(table < 0, -1), which) for table, which in sides
        )
        return correct, incorrect


@dataclass(frozen=True, repr=False)
class Probability(AnswerMetric):
    """Probability of a right answer as the next token."""

    name: str = "probability"
    key: ClassVar[str] = "probability"

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        return _sum_of_probabilities(last.softmax(-1), self.answers.padded_correct, pairs)


@dataclass(frozen=True, repr=False)
class LogProbability(AnswerMetric):
    """Natural logarithm of the probability of a right answer as the next token, in nats."""

    name: str = "log-probability"
    key: ClassVar[str] = "log_probability"
    unit: ClassVar[str] = "nats"

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        return _sum_of_logits(last.log_softmax(-1), self.answers.padded_correct, pairs)


@dataclass(frozen=True, repr=False)
class ProbabilityDifference(AnswerMetric):
    """Probability of a right answer minus that of a wrong one, from -1 to 1."""

    name: str = "probability difference"
    key: ClassVar[str] = "probability_difference"
    right_above: ClassVar[float | None] = 0.0
    needs_incorrect: ClassVar[bool] = True

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        probabilities = last.softmax(-1)
        correct = _sum_of_probabilities(probabilities, self.answers.padded_correct, pairs)
        return correct - _sum_of_probabilities(probabilities, self.answers.padded_incorrect, pairs)


@dataclass(frozen=True, repr=False)
class Rank(AnswerMetric):
    """Place of the best right answer among all tokens by logit: 1 is the best, and of a tie the better place counts."""

    name: str = "rank"
    key: ClassVar[str] = "rank"
    more_is_better: ClassVar[bool] = False

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        best = _of_answers(last, self.answers.padded_correct, pairs, -math.inf).amax(-1)
        rank = 1.0 + (last > best[:, None]).sum(-1)
        return rank.masked_fill(last.isnan().any(-1), math.nan)


@dataclass(frozen=True, repr=False)
class Accuracy(Rank):
    """1 where a right answer has the highest logit, else 0; its mean over pairs is the share of right predictions."""

    name: str = "accuracy"
    key: ClassVar[str] = "accuracy"
    right_above: ClassVar[float | None] = 0.5
    more_is_better: ClassVar[bool] = True

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        rank = super()._of(last, pairs)
        return torch.where(rank.isnan(), rank, (rank == 1).to(rank.dtype))


def _of_answers(
    values: Float[Tensor, "row token"], answers: PaddedAnswers, pairs: Int[Tensor, " row"], missing: float
) -> Float[Tensor, "row answer"]:
    """The values of each row's answers, and `missing` where its pair has fewer than others."""
    ids = answers.of(pairs).to(values.device)
    return values.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, missing)


def _sum_of_logits(
    logits: Float[Tensor, "row token"], answers: PaddedAnswers, pairs: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Logarithm of the sum of the answers' exponentials; for one answer its own logit, exactly."""
    return _of_answers(logits, answers, pairs, -math.inf).logsumexp(-1)


def _sum_of_probabilities(
    probabilities: Float[Tensor, "row token"], answers: PaddedAnswers, pairs: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    return _of_answers(probabilities, answers, pairs, 0.0).sum(-1)
