"""Which answers an experiment measures, as ids and as texts, for its results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from actpatch.metrics.base import AnswerMetric, Answers, AnswerSequences, Whole
from actpatch.metrics.sequence import SequenceMetric
from actpatch.results.answers import AnswerSet
from actpatch.tasks.encoding import EncodedPairs
from actpatch.tasks.tokens import text_of, token_strings

Sides = tuple[tuple[AnswerSet, ...], tuple[AnswerSet, ...]]
"""Of each pair the right answers, and of each the wrong ones."""


def measured_answers(pairs: EncodedPairs, metrics: Iterable[object]) -> Sides:
    """The answers that the first metric of answers reads, else those of the dataset; none where it gives none."""
    if pairs.origin is None:
        return (), ()
    of_answers = (metric for metric in metrics if isinstance(metric, (AnswerMetric, SequenceMetric)))
    read: Answers | AnswerSequences | None = next((metric.answers for metric in of_answers), None)
    if read is None:
        try:
            read = short_or_whole(pairs)
        except (ValueError, NotImplementedError):  # what measures something of its own needs no answers
            return (), ()
    return answer_sets(pairs.origin.model, read)


def short_or_whole(pairs: EncodedPairs) -> Answers | AnswerSequences:
    """The answers of the pairs' dataset, as single tokens where all are, else the whole of them.

    Raises:
        ValueError: where they are neither, as `EncodedPairs.sequences` says.
    """
    try:
        return pairs.answers
    except ValueError:
        return pairs.sequences


def answer_sets(model: Any, answers: Answers | AnswerSequences) -> Sides:
    """Answers with their texts; those that are the same are one object."""
    known: dict[tuple[Any, ...], AnswerSet] = {}

    def named(sides: Sequence[tuple[Any, ...]]) -> tuple[AnswerSet, ...]:
        for ids in sides:
            if ids not in known:
                known[ids] = AnswerSet(tuple(map(_alone, ids)), tuple(_text(model, answer) for answer in ids))
        return tuple(known[ids] for ids in sides)

    return named(answers.correct), named(answers.incorrect)


def _alone(answer: int | Whole) -> int | Whole:
    """The id itself of an answer of one token."""
    return answer[0] if isinstance(answer, tuple) and len(answer) == 1 else answer


def _text(model: Any, answer: int | Whole) -> str:
    ids = answer if isinstance(answer, tuple) else (answer,)
    return token_strings(model, ids)[0] if len(ids) == 1 else text_of(model, ids)
