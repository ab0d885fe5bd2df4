"""Which answers an experiment measures, as ids and as texts, for its results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from actpatch.metrics.base import AnswerMetric, Answers
from actpatch.results.answers import AnswerSet
from actpatch.tasks.encoding import EncodedPairs
from actpatch.tasks.tokens import token_strings

Sides = tuple[tuple[AnswerSet, ...], tuple[AnswerSet, ...]]
"""Of each pair the right answers, and of each the wrong ones."""


def measured_answers(pairs: EncodedPairs, metrics: Iterable[object]) -> Sides:
    """The answers that the first metric of answers reads, else those of the dataset; none where it gives none."""
    if pairs.origin is None:
        return (), ()
    read = next((metric.answers for metric in metrics if isinstance(metric, AnswerMetric)), None)
    if read is None:
        try:
            read = pairs.answers
        except (ValueError, NotImplementedError):  # what measures something of its own needs no answers
            return (), ()
    return answer_sets(pairs.origin.model, read)


def answer_sets(model: Any, answers: Answers) -> Sides:
    """Answers with their texts; those that are the same are one object."""
    known: dict[tuple[int, ...], AnswerSet] = {}

    def named(sides: Sequence[tuple[int, ...]]) -> tuple[AnswerSet, ...]:
        for ids in sides:
            if ids not in known:
                known[ids] = AnswerSet(tuple(ids), token_strings(model, ids))
        return tuple(known[ids] for ids in sides)

    return named(answers.correct), named(answers.incorrect)
