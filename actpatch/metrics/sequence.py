"""Metrics of whole answers, of one token or of several: how probable is the answer after the prompt?

An answer's tokens but its last are appended to the prompt (teacher forcing), and the logarithms of the probabilities
of its tokens, each given those before it, are added up: log p(a | prompt) = Σ_j log p(a_j | prompt, a_1 … a_{j-1}).
Answers of which one begins with the other's tokens are read from one run. Of several answers of one side the
probability is the sum of theirs, and the mean per token that of the answer for which it is highest.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.text import count
from actpatch.metrics.base import LARGEST_SLICE, AnswerSequences, NamedMetric, PairAnswers, Whole, check_each_has_one


class LogProbabilities(NamedTuple):
    """What is read of the answers of each pair, in nats; -inf where there is none."""

    correct: Float[np.ndarray, "... pair"]
    """Logarithm of the sum of the right answers' probabilities."""
    incorrect: Float[np.ndarray, "... pair"]
    """Logarithm of the sum of the wrong answers' probabilities."""
    correct_per_token: Float[np.ndarray, "... pair"]
    """The highest mean over the tokens of a right answer."""
    greedy: Float[np.ndarray, "... pair"]
    """1 where each token of a right answer has the highest logit, given those before it, else 0."""


@dataclass(frozen=True, repr=False)
class SequenceMetric(NamedMetric):
    """What the metrics of whole answers share. They are measured on runs of the prompts with answers appended."""

    answers: AnswerSequences
    name: str
    unit: ClassVar[str] = "nats"
    more_is_better: ClassVar[bool] = True
    needs_answers: ClassVar[bool] = True
    needs_incorrect: ClassVar[bool] = False

    @classmethod
    def made(cls, pairs: PairAnswers) -> SequenceMetric:
        return cls(pairs.sequences)  # type: ignore[call-arg] # each that can be asked for has a default name

    def __post_init__(self) -> None:
        answers = self.answers
        sides = answers.correct, answers.incorrect if self.needs_incorrect else ()
        check_each_has_one(self.name, *sides, answers.pair_indices, SequenceLogProbability.key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {count(len(self.answers), 'pair')})"

    @abstractmethod
    def of(self, read: LogProbabilities) -> Float[np.ndarray, "... pair"]:
        """The metric of each pair, from what was read of its answers."""


@dataclass(frozen=True, repr=False)
class SequenceLogProbability(SequenceMetric):
    """Natural logarithm of the probability that the prompt goes on with a right answer, the whole of it, in nats."""

    name: str = "sequence log-probability"
    key: ClassVar[str] = "sequence_log_probability"

    def of(self, read: LogProbabilities) -> Float[np.ndarray, "... pair"]:
        return read.correct


@dataclass(frozen=True, repr=False)
class SequenceLogProbabilityPerToken(SequenceMetric):
    """The mean over a right answer's tokens of their log-probabilities, in nats; of several answers the highest."""

    name: str = "sequence log-probability per token"
    key: ClassVar[str] = "sequence_log_probability_per_token"

    def of(self, read: LogProbabilities) -> Float[np.ndarray, "... pair"]:
        return read.correct_per_token


@dataclass(frozen=True, repr=False)
class SequenceLogProbabilityDifference(SequenceMetric):
    """log p(right answer) - log p(wrong answer), each the whole of it, in nats; they need not be of equal length."""

    name: str = "sequence log-probability difference"
    key: ClassVar[str] = "sequence_log_probability_difference"
    right_above: ClassVar[float | None] = 0.0
    needs_incorrect: ClassVar[bool] = True

    def of(self, read: LogProbabilities) -> Float[np.ndarray, "... pair"]:
        with np.errstate(invalid="ignore"):  # neither is possible: not a number
            return read.correct - read.incorrect


@dataclass(frozen=True, repr=False)
class SequenceAccuracy(SequenceMetric):
    """1 where each token of a right answer has the highest logit, given those before it, else 0: greedy decoding says
    it."""

    name: str = "sequence accuracy"
    key: ClassVar[str] = "sequence_accuracy"
    unit: ClassVar[str] = ""
    right_above: ClassVar[float | None] = 0.5

    def of(self, read: LogProbabilities) -> Float[np.ndarray, "... pair"]:
        return read.greedy


@dataclass(frozen=True)
class SequenceSet:
    """Several metrics of the same whole answers, measured from the same runs.

    Each pair has as many runs as it has `continuations`, one after the other, for each sample.
    """

    metrics: tuple[SequenceMetric, ...]
    samples: int = 1
    """How many runs of each continuation of a pair there are."""
    reads_all_positions: ClassVar[bool] = False
    tokens: ClassVar[None] = None

    @property
    def names(self) -> tuple[str, ...]:
        """What is read of each run, as `measure` returns it, the means left out."""
        return "log-probability of the right answers", "log-probability of the wrong answers"

    @cached_property
    def continuations(self) -> tuple[tuple[Whole, ...], ...]:
        """What is appended to the prompts of each pair, a run each: the beginnings of the answers that are read."""
        return tuple(_longest_beginnings((*correct, *incorrect)) for correct, incorrect in self._read_answers)

    def n_runs(self, n_pairs: int) -> int:
        return self.samples * sum(map(len, self.continuations))

    def __len__(self) -> int:
        """Number of values that are read of each run."""
        return len(LogProbabilities._fields)

    def measure(
        self,
        logits: Float[Tensor, "row read token"],
        clean: Float[Tensor, "pair read token"],
        *,
        rows: Int[Tensor, " row"],
        pairs: Int[Tensor, " pair"],
        lengths: Int[Tensor, " pair"],
        clean_lengths: Int[Tensor, " pair"] | None = None,
    ) -> Float[Tensor, "part row"]:
        """What is read of the answers of each run, as `LogProbabilities` orders it.

        Args:
            logits: the runs' logits at the prompt's last position and those of the continuation.
            clean: those of the clean runs, which are not looked at.
            rows: for each run its place among `pairs`.
            pairs: the runs of the experiment, counted from 0.
            lengths: number of tokens of each run, which nothing is to be found by.
            clean_lengths: those of the clean runs, likewise.
        """
        table = self._table[pairs[rows]]
        size = max(1, LARGEST_SLICE // logits[0].numel())
        parts = [self._of(part, of) for part, of in zip(logits.split(size), table.split(size))]
        return torch.cat(parts, dim=1).cpu().to(torch.float64)

    def of_pairs(self, values: Float[np.ndarray, "part ... run"]) -> Float[np.ndarray, "metric ... sample_of_pair"]:
        """Every metric of each sample of each pair, from what was read of its runs."""
        per_sample = [len(of_pair) for of_pair in self.continuations for _ in range(self.samples)]
        first = np.cumsum([0, *per_sample[:-1]])
        correct, incorrect, per_token, greedy = values
        read = LogProbabilities(
            np.logaddexp.reduceat(correct, first, axis=-1),
            np.logaddexp.reduceat(incorrect, first, axis=-1),
            np.maximum.reduceat(per_token, first, axis=-1),
            np.maximum.reduceat(greedy, first, axis=-1),
        )
        return np.stack([metric.of(read) for metric in self.metrics])

    def _of(self, logits: Float[Tensor, "row read token"], of: Int[Tensor, " row"]) -> Float[Tensor, "part row"]:
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        right, wrong = (tokens[of].to(logs.device) for tokens in (self._correct, self._incorrect))
        correct, incorrect = _sums(logs, right), _sums(logs, wrong)
        per_token = correct / (right >= 0).sum(dim=1).clamp(min=1)
        likeliest = (logs.gather(2, right.clamp(min=0)) == logs.amax(-1, keepdim=True)) | (right < 0)
        said = (likeliest.all(dim=1) & (right[:, 0] >= 0)).any(-1).to(logs.dtype)
        greedy = torch.where(correct.isnan().any(-1), math.nan, said)
        return torch.stack([correct.logsumexp(-1), incorrect.logsumexp(-1), per_token.amax(-1), greedy])

    @property
    def _read_answers(self) -> list[tuple[tuple[Whole, ...], tuple[Whole, ...]]]:
        """The right and the wrong answers of each pair that a metric reads."""
        answers = self.metrics[0].answers
        if any(metric.needs_incorrect for metric in self.metrics):
            return list(zip(answers.correct, answers.incorrect))
        return [(correct, ()) for correct in answers.correct]

    @cached_property
    def _table(self) -> Int[Tensor, " run"]:
        """For each run of the experiment its row among those of one sample."""
        begin, rows = 0, []
        for of_pair in self.continuations:
            rows += [*range(begin, begin + len(of_pair))] * self.samples
            begin += len(of_pair)
        return torch.tensor(rows, dtype=torch.long)

    @cached_property
    def _correct(self) -> Int[Tensor, "run read answer"]:
        return self._tokens_of(0)

    @cached_property
    def _incorrect(self) -> Int[Tensor, "run read answer"]:
        return self._tokens_of(1)

    def _tokens_of(self, side: int) -> Int[Tensor, "run read answer"]:
        """Tokens of the answers that are read from each run, -1 where an answer is shorter or there is none."""
        of_runs: list[list[Whole]] = []
        for beginnings, answers in zip(self.continuations, self._read_answers):
            serving = {run[:size]: i for i, run in enumerate(beginnings) for size in range(len(run) + 1)}
            of_pair: list[list[Whole]] = [[] for _ in beginnings]
            for answer in answers[side]:
                of_pair[serving[answer[:-1]]].append(answer)
            of_runs += of_pair
        reads = 1 + max(len(run) for of_pair in self.continuations for run in of_pair)
        none = (-1,) * reads
        padded = [[(*answer, *none[len(answer) :]) for answer in answers_of_run] for answers_of_run in of_runs]
        most = max(1, *map(len, padded))
        every = torch.tensor([[*rows, *[none] * (most - len(rows))] for rows in padded], dtype=torch.long)
        return every.transpose(1, 2).contiguous()


def _longest_beginnings(answers: Iterable[Whole]) -> tuple[Whole, ...]:
    """All tokens but the last of each answer, once, without those that begin another."""
    beginnings = dict.fromkeys(answer[:-1] for answer in answers)
    within = {tokens[:size] for tokens in beginnings for size in range(len(tokens))}
    return tuple(tokens for tokens in beginnings if tokens not in within)


def _sums(logs: Float[Tensor, "row read token"], tokens: Int[Tensor, "row read answer"]) -> Float[Tensor, "row answer"]:
    """The sum of each answer's log-probabilities; -inf where there is none."""
    found = logs.gather(2, tokens.clamp(min=0)).masked_fill(tokens < 0, 0.0).sum(dim=1)
    return found.masked_fill(tokens[:, 0] < 0, -math.inf)
