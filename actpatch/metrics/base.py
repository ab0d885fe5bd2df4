"""What a metric is, and what those of answers share.

A metric turns the logits of a run into one number per run. It also says what it reads, so that the engine computes
nothing else: which positions (only the last one, or all), which vocabulary entries (only the answers, or all), and
whether it compares with the clean run of the same pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.text import count

Whole: TypeAlias = tuple[int, ...]
"""Token ids of one answer, the whole of it."""

LARGEST_SLICE = 2**24
"""Most logits that are measured at once: a softmax over the vocabulary makes several copies of them."""


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
            logits: the runs' logits at what the metric reads: a copy, where the metric is not one of the library's,
                so that it may work in place.
            pairs: for each run the pair it belongs to, counted from 0 within the experiment.
            clean: the logits of the clean run of each run's pair, read in the same way; None unless `reads_clean`.
        """


class PaddedAnswers(NamedTuple):
    """Answers of pairs in a table, those that pairs share once: all of them for each pair would fill the memory."""

    table: Int[Tensor, "set answer"]
    which: Int[Tensor, " pair"]
    """The row of each pair."""

    def of(self, pairs: Int[Tensor, " row"]) -> Int[Tensor, "row answer"]:
        """Those of these pairs, which are counted from 0."""
        return self.table[self.which[pairs.to(self.which.device)]]


@dataclass(frozen=True, repr=False)
class Answers:
    """Token ids of the answers of each pair of an experiment."""

    correct: tuple[tuple[int, ...], ...]
    """The right answers of each pair."""
    incorrect: tuple[tuple[int, ...], ...]
    """The wrong answers of each pair, which differences are taken to; empty where a pair has none."""
    pair_indices: tuple[int, ...] = ()
    """Index of each pair in its dataset, for messages; where not given, pairs are counted from 0."""

    def __post_init__(self) -> None:
        _check_both_sides(self.correct, self.incorrect)
        seen: set[tuple[int, int]] = set()
        for pair, (correct, incorrect) in enumerate(zip(self.correct, self.incorrect)):
            if (id(correct), id(incorrect)) in seen:  # pairs may share thousands of answers
                continue
            seen.add((id(correct), id(incorrect)))
            ids = (*correct, *incorrect)
            if any(token < 0 for token in ids) or len(set(ids)) < len(ids):
                raise ValueError(
                    f"pair {self._index(pair)} has the right answers {correct} and the wrong ones {incorrect}: "
                    "expected token ids of at least 0, each given once"
                )

    def __len__(self) -> int:
        return len(self.correct)

    def __repr__(self) -> str:
        return f"Answers({count(len(self), 'pair')})"

    @cached_property
    def tokens(self) -> Int[Tensor, " token"]:
        """Every answer of any pair, once, ascending."""
        distinct = {*map(tuple, (*self.correct, *self.incorrect))}
        return torch.tensor(sorted({token for ids in distinct for token in ids}))

    @cached_property
    def padded_correct(self) -> PaddedAnswers:
        """The right answers, with -1 where a pair has fewer than others."""
        return _padded(self.correct)

    @cached_property
    def padded_incorrect(self) -> PaddedAnswers:
        """The wrong answers, with -1 where a pair has fewer than others."""
        return _padded(self.incorrect)

    def check_for(self, metric: str, *, needs_incorrect: bool) -> None:
        """Raise a ValueError naming the pairs that lack an answer which the metric needs."""
        sides = self.correct, self.incorrect if needs_incorrect else ()
        check_each_has_one(metric, *sides, self.pair_indices, "probability, log_probability, rank or accuracy")

    def _index(self, pair: int) -> int:
        return self.pair_indices[pair] if self.pair_indices else pair


@dataclass(frozen=True, repr=False)
class AnswerSequences:
    """Token ids of the whole answers of each pair of an experiment."""

    correct: tuple[tuple[Whole, ...], ...]
    """The right answers of each pair, each of one token or more."""
    incorrect: tuple[tuple[Whole, ...], ...]
    """The wrong answers of each pair; empty where a pair has none."""
    pair_indices: tuple[int, ...] = ()
    """Index of each pair in its dataset, for messages; where not given, pairs are counted from 0."""

    def __post_init__(self) -> None:
        _check_both_sides(self.correct, self.incorrect)
        for pair, (correct, incorrect) in enumerate(zip(self.correct, self.incorrect)):
            every = (*correct, *incorrect)
            if len(set(every)) < len(every) or not all(ids and min(ids) >= 0 for ids in every):
                named = self.pair_indices[pair] if self.pair_indices else pair
                raise ValueError(
                    f"pair {named} has the right answers {correct} and the wrong ones {incorrect}: expected each as "
                    "its token ids, of at least 0, and given once"
                )

    def __len__(self) -> int:
        return len(self.correct)

    def __repr__(self) -> str:
        return f"AnswerSequences({count(len(self), 'pair')})"

    @property
    def tokens(self) -> Int[Tensor, " token"]:
        """Every token of an answer of any pair, once, ascending."""
        every = {token for side in (self.correct, self.incorrect) for ids in side for one in ids for token in one}
        return torch.tensor(sorted(every))

    @property
    def longest(self) -> Int[Tensor, " pair"]:
        """Number of tokens of each pair's longest answer; 0 where it has none."""
        sides = zip(self.correct, self.incorrect)
        return torch.tensor([max(map(len, (*correct, *incorrect)), default=0) for correct, incorrect in sides])


class PairAnswers(Protocol):
    """The answers of an experiment's pairs, made from the dataset where they are asked for."""

    @property
    def answers(self) -> Answers:
        """Those of one token. Raises ValueError where there are others."""

    @property
    def sequences(self) -> AnswerSequences:
        """The whole answers, of however many tokens."""


class NamedMetric(ABC):
    """A metric that can be asked for by its name. To add one is to subclass this, and to add it to `metrics.registry`.

    It has a default name, of which `key` is the form that is looked up.
    """

    name: str
    key: ClassVar[str]
    """What it is asked for by, for instance `logit_difference`."""
    right_above: ClassVar[float | None] = None
    """Above what a run is right; None where the metric does not tell."""
    needs_answers: ClassVar[bool]
    """Whether it is made from the answers of the dataset."""

    @classmethod
    @abstractmethod
    def made(cls, pairs: PairAnswers) -> Any:
        """The metric of an experiment; of the pairs it asks for the answers that it needs."""


@dataclass(frozen=True, repr=False)
class AnswerMetric(NamedMetric):
    """What the metrics of answers share: each reads the last position, and the whole vocabulary unless it says not."""

    answers: Answers
    name: str
    unit: ClassVar[str] = ""
    more_is_better: ClassVar[bool] = True
    reads_all_positions: ClassVar[bool] = False
    reads_clean: ClassVar[bool] = False
    needs_answers: ClassVar[bool] = True
    needs_incorrect: ClassVar[bool] = False

    @classmethod
    def made(cls, pairs: PairAnswers) -> AnswerMetric:
        return cls(pairs.answers)  # type: ignore[call-arg] # each that can be asked for has a default name

    def __post_init__(self) -> None:
        self.answers.check_for(self.name, needs_incorrect=self.needs_incorrect)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {count(len(self.answers), 'pair')})"

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


def check_each_has_one(
    metric: str, correct: Sequence[Sized], incorrect: Sequence[Sized], pair_indices: Sequence[int], others: str
) -> None:
    """Raise a ValueError naming the pairs that lack an answer which the metric needs.

    Args:
        metric: its name.
        correct: the right answers of each pair.
        incorrect: the wrong ones; empty where the metric needs none.
        pair_indices: index of each pair in its dataset; empty where they are counted from 0.
        others: metrics that need no wrong answer.
    """
    for kind, given in (("right", correct), ("wrong", incorrect)):
        if lacking := [pair_indices[pair] if pair_indices else pair for pair, ids in enumerate(given) if not len(ids)]:
            named = ", ".join(map(str, lacking[:10])) + (" …" if len(lacking) > 10 else "")
            raise ValueError(
                f"the metric {metric!r} needs a {kind} answer for every pair, {len(lacking)} of {len(given)} pairs "
                f"have none (pair {named}): give them one in get_target_tokens, leave them out with pair_indices, "
                f"or measure {'kl_divergence' if kind == 'right' else others}, which need none"
            )


def _check_both_sides(correct: Sequence[Sized], incorrect: Sequence[Sized]) -> None:
    if len(correct) != len(incorrect):
        raise ValueError(
            f"there are right answers for {len(correct)} pairs and wrong ones for {len(incorrect)}: "
            "give both for every pair, an empty tuple where a pair has none"
        )


def _padded(answers: Sequence[Sequence[int]]) -> PaddedAnswers:
    every = [tuple(ids) for ids in answers]
    distinct = {ids: row for row, ids in enumerate(dict.fromkeys(every))}
    longest = max(map(len, distinct), default=0)
    table = torch.tensor([[*ids, *[-1] * (longest - len(ids))] for ids in distinct], dtype=torch.long)
    return PaddedAnswers(table, torch.tensor([distinct[ids] for ids in every], dtype=torch.long))
