"""What is measured on the logits?

A metric turns the logits of a run into one number per run. It also says what it reads, so that the engine computes
nothing else: which positions (only the last one, or all), which vocabulary entries (only the answers, or all), and
whether it compares with the clean run of the same pair.

A pair may have several right and several wrong answers. Of a set of answers the probability is the sum of theirs, and
its logit the logarithm of the sum of their exponentials, so that a difference of logits stays a logarithm of odds; for
one answer that is its own logit, to the last bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Metric(Protocol):
    """What the engine asks of a metric."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str:
        """Empty where it has none, or none is known."""

    @property
    def more_is_better(self) -> bool:
        """Whether the metric is the higher, the better the model does what the clean prompt asks for."""

    @property
    def reads_all_positions(self) -> bool:
        """False where the metric reads the last position alone."""

    @property
    def reads_clean(self) -> bool:
        """Whether the metric compares each run with the clean run of its pair."""

    @property
    def tokens(self) -> Int[Tensor, " token"] | None:
        """Vocabulary entries the metric reads, in the order in which `measure` gets them; None for all."""

    def measure(
        self,
        logits: Float[Tensor, "row pos token"],
        pairs: Int[Tensor, " row"],
        clean: Float[Tensor, "row pos token"] | None = None,
    ) -> Float[Tensor, " row"]:
        """The metric of each run. `pos` is 1 for a metric that reads the last position alone.

        Args:
            logits: the runs' logits at what the metric reads.
            pairs: for each run the pair it belongs to, counted from 0 within the experiment.
            clean: the logits of the clean run of each run's pair, read in the same way; None unless `reads_clean`.
        """


@dataclass(frozen=True)
class Answers:
    """Token ids of the answers of each pair of an experiment."""

    correct: tuple[tuple[int, ...], ...]
    """The right answers of each pair."""
    incorrect: tuple[tuple[int, ...], ...]
    """The wrong answers of each pair, which differences are taken to; empty where a pair has none."""
    pair_indices: tuple[int, ...] = ()
    """Index of each pair in its dataset, for messages; where not given, pairs are counted from 0."""

    def __post_init__(self) -> None:
        if len(self.correct) != len(self.incorrect):
            raise ValueError(
                f"there are right answers for {len(self.correct)} pairs and wrong ones for {len(self.incorrect)}: "
                "give both for every pair, an empty tuple where a pair has none"
            )
        for pair, (correct, incorrect) in enumerate(zip(self.correct, self.incorrect)):
            ids = (*correct, *incorrect)
            if any(token < 0 for token in ids) or len(set(ids)) < len(ids):
                raise ValueError(
                    f"pair {self._index(pair)} has the right answers {correct} and the wrong ones {incorrect}: "
                    "expected token ids of at least 0, each given once"
                )

    def __len__(self) -> int:
        return len(self.correct)

    @cached_property
    def tokens(self) -> Int[Tensor, " token"]:
        """Every answer of any pair, once, ascending."""
        return torch.tensor(sorted({token for ids in self.correct + self.incorrect for token in ids}))

    @cached_property
    def padded_correct(self) -> Int[Tensor, "pair answer"]:
        """The right answers, with -1 where a pair has fewer than others."""
        return _padded(self.correct)

    @cached_property
    def padded_incorrect(self) -> Int[Tensor, "pair answer"]:
        """The wrong answers, with -1 where a pair has fewer than others."""
        return _padded(self.incorrect)

    def check_for(self, metric: str, *, needs_incorrect: bool) -> None:
        """Raise a ValueError naming the pairs that lack an answer which the metric needs."""
        for kind, given in (("right", self.correct), ("wrong", self.incorrect if needs_incorrect else ())):
            if lacking := [self._index(pair) for pair, ids in enumerate(given) if not ids]:
                named = ", ".join(map(str, lacking[:10])) + (" …" if len(lacking) > 10 else "")
                others = "kl_divergence" if kind == "right" else "probability, log_probability, rank or accuracy"
                raise ValueError(
                    f"the metric {metric!r} needs a {kind} answer for every pair, {len(lacking)} of {len(self)} pairs "
                    f"have none (pair {named}): give them one in get_target_tokens, leave them out with pair_indices, "
                    f"or measure {others}, which need none"
                )

    def _index(self, pair: int) -> int:
        return self.pair_indices[pair] if self.pair_indices else pair


@dataclass(frozen=True)
class AnswerMetric(ABC):
    """What the metrics of answers share: each reads the last position, and the whole vocabulary unless it says not."""

    answers: Answers
    name: str
    unit: ClassVar[str] = ""
    more_is_better: ClassVar[bool] = True
    reads_all_positions: ClassVar[bool] = False
    reads_clean: ClassVar[bool] = False
    needs_incorrect: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.answers.check_for(self.name, needs_incorrect=self.needs_incorrect)

    @property
    def tokens(self) -> Int[Tensor, " token"] | None:
        return None

    def measure(
        self,
        logits: Float[Tensor, "row pos token"],
        pairs: Int[Tensor, " row"],
        clean: Float[Tensor, "row pos token"] | None = None,
    ) -> Float[Tensor, " row"]:
        return self._of(logits[:, -1], pairs)

    @abstractmethod
    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The metric of each run, from its logits at the last position."""


@dataclass(frozen=True)
class LogitDifference(AnswerMetric):
    """logit(correct) - logit(incorrect) at the last position, in logits (Wang et al. 2022, section 2)."""

    name: str = "logit difference"
    unit: ClassVar[str] = "logits"
    needs_incorrect: ClassVar[bool] = True

    @property
    def tokens(self) -> Int[Tensor, " token"]:
        return self.answers.tokens

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        correct, incorrect = self._columns
        return _sum_of_logits(last, correct, pairs) - _sum_of_logits(last, incorrect, pairs)

    @cached_property
    def _columns(self) -> tuple[Int[Tensor, "pair correct"], Int[Tensor, "pair incorrect"]]:
        """Where among `tokens` the answers stand."""
        correct, incorrect = (
            torch.searchsorted(self.tokens, ids).masked_fill(ids < 0, -1)
            for ids in (self.answers.padded_correct, self.answers.padded_incorrect)
        )
        return correct, incorrect


@dataclass(frozen=True)
class Probability(AnswerMetric):
    """Probability of a right answer as the next token."""

    name: str = "probability"

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        return _sum_of_probabilities(last.softmax(-1), self.answers.padded_correct, pairs)


@dataclass(frozen=True)
class LogProbability(AnswerMetric):
    """Natural logarithm of the probability of a right answer as the next token, in nats."""

    name: str = "log-probability"
    unit: ClassVar[str] = "nats"

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        return _sum_of_logits(last.log_softmax(-1), self.answers.padded_correct, pairs)


@dataclass(frozen=True)
class ProbabilityDifference(AnswerMetric):
    """Probability of a right answer minus that of a wrong one, from -1 to 1."""

    name: str = "probability difference"
    needs_incorrect: ClassVar[bool] = True

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        probabilities = last.softmax(-1)
        correct = _sum_of_probabilities(probabilities, self.answers.padded_correct, pairs)
        return correct - _sum_of_probabilities(probabilities, self.answers.padded_incorrect, pairs)


@dataclass(frozen=True)
class Rank(AnswerMetric):
    """Place of the best right answer among all tokens by logit: 1 is the best, and of a tie the better place counts."""

    name: str = "rank"
    more_is_better: ClassVar[bool] = False

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        best = _of_answers(last, self.answers.padded_correct, pairs, -math.inf).amax(-1)
        rank = 1.0 + (last > best[:, None]).sum(-1)
        return rank.masked_fill(last.isnan().any(-1), math.nan)


@dataclass(frozen=True)
class Accuracy(Rank):
    """1 where a right answer has the highest logit, else 0; its mean over pairs is the share of right predictions."""

    name: str = "accuracy"
    more_is_better: ClassVar[bool] = True

    def _of(self, last: Float[Tensor, "row token"], pairs: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        rank = super()._of(last, pairs)
        return torch.where(rank.isnan(), rank, (rank == 1).to(rank.dtype))


@dataclass(frozen=True)
class KLDivergence:
    """KL(clean run || this run) of the next-token distributions, in nats: 0 where they are the same."""

    name: str = "KL divergence"
    unit: ClassVar[str] = "nats"
    more_is_better: ClassVar[bool] = False
    reads_all_positions: ClassVar[bool] = False
    reads_clean: ClassVar[bool] = True
    tokens: ClassVar[None] = None

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


@dataclass(frozen=True)
class DatasetMetric:
    """A function of one's own, or a dataset's `compute_metric`: it is given all positions and the whole vocabulary.

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


def _padded(answers: Sequence[Sequence[int]]) -> Int[Tensor, "pair answer"]:
    longest = max((len(ids) for ids in answers), default=0)
    return torch.tensor([[*ids, *[-1] * (longest - len(ids))] for ids in answers], dtype=torch.long)


def _of_answers(
    values: Float[Tensor, "row token"], answers: Int[Tensor, "pair answer"], pairs: Int[Tensor, " row"], missing: float
) -> Float[Tensor, "row answer"]:
    """The values of each row's answers, and `missing` where its pair has fewer than others."""
    ids = answers[pairs.to(answers.device)].to(values.device)
    return values.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, missing)


def _sum_of_logits(
    logits: Float[Tensor, "row token"], answers: Int[Tensor, "pair answer"], pairs: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    """Logarithm of the sum of the answers' exponentials; for one answer its own logit, exactly."""
    return _of_answers(logits, answers, pairs, -math.inf).logsumexp(-1)


def _sum_of_probabilities(
    probabilities: Float[Tensor, "row token"], answers: Int[Tensor, "pair answer"], pairs: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    return _of_answers(probabilities, answers, pairs, 0.0).sum(-1)
