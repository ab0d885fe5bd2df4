"""Answers as a dataset gives them, as token ids: the whole of each, or of one token each. Knows no dataset."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from actpatch.core.indices import is_integer
from actpatch.core.text import shortened
from actpatch.metrics.base import Whole
from actpatch.tasks.tokens import (
    WrongTokenizer,
    as_list,
    has_tokenizer,
    known_tokens,
    space_hint,
    token_ids,
    token_strings,
)

WHOLE_OR_FIRST = (
    "measure whole answers with metrics='sequence_log_probability' or 'sequence_log_probability_difference', or their "
    "first tokens alone by first_token=True of the dataset"
)
"""What to do where an answer has several tokens."""


def sides_of(targets: Any) -> tuple[Any, Any]:
    """What a dataset gives as answers: the correct and the incorrect ones.

    Raises:
        TypeError: where these are not two sides.
    """
    if isinstance(targets, (str, bytes)) or not isinstance(targets, Iterable):
        raise TypeError(f"{targets!r} is no pair of answers")
    sides = tuple(targets)
    if len(sides) != 2:
        raise TypeError(f"{targets!r} is no pair of answers")
    return sides


def answer_ids(model: Any, side: Any, *, first_token: bool = False) -> tuple[int, ...]:
    """The answers of one side as ids, of one token each, and each once.

    Args:
        model: whose tokenizer makes tokens of texts.
        side: what `whole_answers` takes.
        first_token: whether of answers of several tokens the first is taken; else they are refused.

    Raises:
        ValueError: for an answer of several tokens, and what `whole_answers` refuses.
        TypeError: as `whole_answers` does.
    """
    side = list(side) if isinstance(side, Iterator) else side
    try:
        return token_ids(side)  # ids of one token each, of which there may be thousands
    except TypeError:
        whole = whole_answers(model, side)
    if not first_token and (longer := [answer for answer in whole if len(answer) > 1]):
        raise ValueError(_too_long(model, longer[0]))
    return tuple(dict.fromkeys(answer[0] for answer in whole))


def whole_answers(model: Any, side: Any) -> tuple[Whole, ...]:
    """The answers of one side as token ids, the whole of each, and each once.

    Args:
        model: whose tokenizer makes tokens of texts, which are taken as they are written.
        side: an id or a text, which is one answer; a list of ids, of texts, or of lists of ids, each of which is an
            answer; None for none.

    Raises:
        ValueError: for a text that the tokenizer does not know, an answer without tokens, ids beside lists of ids, and
            a text where the model has no tokenizer (`WrongTokenizer`).
        TypeError: for what is no such thing.
    """
    if side is None:
        return ()
    several = as_list(list(side) if isinstance(side, Iterator | set | frozenset | range) else side)
    answers = [side] if several is None else several
    is_list = [as_list(one) is not None for one in answers]
    if any(is_list) and any(is_integer(one) for one, nested in zip(answers, is_list) if not nested):
        raise ValueError(
            f"the answers {shortened(side)} are token ids beside lists of them: give each answer as a list of its ids, "
            "[[12, 7], [9]], or ids alone for answers of one token each"
        )
    return tuple(dict.fromkeys(_whole(model, one) for one in answers))


def named(model: Any, answer: Sequence[int]) -> str:
    """An answer as a text, for messages; its ids where the model has no tokenizer."""
    return repr("".join(token_strings(model, answer))) if has_tokenizer(model) else str(list(answer))


def _whole(model: Any, answer: Any) -> Whole:
    if isinstance(answer, str):
        ids: tuple[int, ...] = _ids_of(model, answer)
    else:
        given = as_list(answer)
        if any(isinstance(token, bool) for token in given or [answer]):
            raise TypeError(f"{answer!r} is a truth value, expected token ids")
        ids = tuple(map(operator.index, given if given is not None else [answer]))
    if not ids:
        raise ValueError(f"the answer {answer!r} has no tokens: give at least one, or None for no answer")
    return ids


def _ids_of(model: Any, text: str) -> tuple[int, ...]:
    if not has_tokenizer(model):
        raise WrongTokenizer(
            f"the answer {text!r} is a text, and this model has no tokenizer: return token ids, or set model.tokenizer"
        )
    try:
        return tuple(known_tokens(model, text).tolist())
    except ValueError as error:
        raise ValueError(f"get_target_tokens returned the text {text!r}: {error}{space_hint(model, text)}") from error


def _too_long(model: Any, answer: Whole) -> str:
    text = named(model, answer)
    hint = space_hint(model, "".join(token_strings(model, answer))) if has_tokenizer(model) else ""
    parts = " + ".join(repr(part) for part in token_strings(model, answer))
    return (
        f"the answer {text} is {len(answer)} tokens for this model ({parts}), and what is measured reads one: "
        f"{WHOLE_OR_FIRST}{hint}"
    )
