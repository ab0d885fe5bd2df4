"""What a metric is, and what those of answers share.

A metric turns the logits of a run into one number per run. It also says what it reads, so that the engine computes
nothing else: which positions (only the last one, or all), which vocabulary entries (only the answers, or all), and
whether it compares with the clean run of the same pair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.text import count


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

    def __repr__(self) -> str:
        return f"Answers({count(len(self), 'pair')})"

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
    def made(cls, answers: Callable[[], Answers]) -> Metric:
        """The metric of an experiment; `answers` reads the dataset's, and is called only where they are needed."""


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
    def made(cls, answers: Callable[[], Answers]) -> AnswerMetric:
        return cls(answers())  # type: ignore[call-arg] # each that can be asked for has a default name

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


def _padded(answers: Sequence[Sequence[int]]) -> Int[Tensor, "pair answer"]:
    longest = max((len(ids) for ids in answers), default=0)
    return torch.tensor([[*ids, *[-1] * (longest - len(ids))] for ids in answers], dtype=torch.long)
