"""Answers as they are given, as tokens: each distinct set once, with the reason where it is not one token each.

Knows neither pairs nor rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from actpatch.core.text import shortened
from actpatch.tasks.answers import n_answers, named_tokens
from actpatch.tasks.batches import tokens_of_all
from actpatch.tasks.columns import Answer
from actpatch.tasks.files import ANSWER_SEPARATOR
from actpatch.tasks.tokens import has_tokenizer, only_token, token_strings, unknown_token

Meaning = Literal["text", "ids"] | None
"""What cells hold: texts, token ids, or what nothing was said of, which is taken as text."""
_MOST_ANSWERS = 3
"""So many answers of a row are told of."""


@dataclass(frozen=True)
class Meanings:
    """What is said of the cells when they are read; see `PromptPairs`."""

    answers: Meaning = None
    prompts: Meaning = None
    leading_space: bool = False
    positions_count_bos: bool = True
    any_length: bool = False
    """Whether the prompts of a pair may have other numbers of tokens."""

    def __post_init__(self) -> None:
        for name in ("answers", "prompts"):
            if getattr(self, name) not in (None, "text", "ids"):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected 'text' or 'ids'")


class Acceptable:
    """The token ids of every distinct set of answers, or what is wrong with it."""

    def __init__(self, model: Any, meanings: Meanings, sides: Iterable[tuple[Answer, ...]]) -> None:
        self.model, self.meanings = model, meanings
        self.size, self.unknown = n_answers(model), unknown_token(model)
        distinct = list(dict.fromkeys(sides))
        meant = {side: [self._meant(answer) for answer in side] for side in distinct}
        texts = dict.fromkeys(answer for side in meant.values() for answer in side if isinstance(answer, str))
        self.tokens: dict[str, int | str] = {}
        """Text -> its token, or why it is not one."""
        if texts and meanings.answers != "ids":
            self.tokens = self._single_tokens(list(texts))
        self.ids = {side: self._resolved(answers) for side, answers in meant.items()}
        """Answers as they are given -> their ids, and the kind of fault and the reason where there is one."""
        self._shared: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}

    def shared(self, correct: tuple[int, ...], incorrect: tuple[int, ...]) -> str:
        """The tokens that are on both sides, named; empty where none is."""
        if not correct or not incorrect:
            return ""
        if (correct, incorrect) not in self._shared:
            both = set(correct) & set(incorrect)
            self._shared[correct, incorrect] = named_tokens(self.model, both) if both else ""
        return self._shared[correct, incorrect]

    def _meant(self, answer: Answer) -> Answer:
        """An answer as it is said to be meant: a text, or the id of a token."""
        if self.meanings.answers == "ids":
            # pandas makes 7.0 of 7 in a column with empty cells
            written = answer.strip().removesuffix(".0") if isinstance(answer, str) else ""
            return int(written) if written.isdecimal() else answer
        if self.meanings.answers == "text" and not isinstance(answer, str):
            answer = str(answer)
        if self.meanings.leading_space and isinstance(answer, str) and not answer[:1].isspace():
            return f" {answer}"
        return answer

    def _resolved(self, answers: Sequence[Answer]) -> tuple[tuple[int, ...], str, str]:
        ids, faults, kind = [], [], "answers"
        for answer in answers:
            found = self._resolved_one(answer)
            if isinstance(found, int):
                ids.append(found)
            else:
                kind, reason = found
                faults.append(reason)
        if not faults:
            return tuple(dict.fromkeys(ids)), "", ""
        told, more = ", ".join(faults[:_MOST_ANSWERS]), len(faults) - _MOST_ANSWERS
        return (), kind, f"{told}, and {more} more of its {len(answers)} answers" if more > 0 else told

    def _resolved_one(self, answer: Answer) -> int | tuple[str, str]:
        """Its id, or the kind of fault and the reason."""
        if self.meanings.answers == "ids":
            if isinstance(answer, str):
                return "cells", f"holds {shortened(answer)}, expected a token id, a whole number"
            if not 0 <= answer < self.size:
                return "answers", f"the token id {answer} is outside the vocabulary of {self.size}"
            if answer == self.unknown:
                return "answers", f"the token id {answer} is the tokenizer's unknown token: use a word the model knows"
            return answer
        if not isinstance(answer, str):
            as_id = f" for {self._as_id(answer)}" if self._as_id(answer) else ""
            return "cells", f"holds {answer}, expected text: say answers='text' for {str(answer)!r}, or 'ids'{as_id}"
        token = self.tokens[answer]
        return token if isinstance(token, int) else ("answers", token)

    def _single_tokens(self, texts: list[str]) -> dict[str, int | str]:
        found: dict[str, int | str] = {}
        for text, ids in tokens_of_all(self.model, texts, prepend_bos=False).items():
            try:
                found[text] = only_token(self.model, text, ids)
            except ValueError as error:
                found[text] = str(error)
        faulty = [text for text, token in found.items() if isinstance(token, str)]
        spaced = self.with_space(faulty)
        for text in faulty:
            found[text] = f"{found[text]}{self._hint(text, spaced)}"
        return found

    def with_space(self, texts: Iterable[str]) -> set[str]:
        """Those texts that are one token with a space before them, which they do not have."""
        spaced = [f" {text}" for text in texts if not text[:1].isspace()]
        if not spaced:
            return set()
        tokens = tokens_of_all(self.model, spaced, prepend_bos=False).items()
        return {text[1:] for text, ids in tokens if len(ids) == 1 and ids[0] != self.unknown}

    def _hint(self, text: str, spaced: set[str]) -> str:
        """What may have been meant by a text that is not one token."""
        if text in spaced:
            return f", or write it with the space: {' ' + text!r} is one token"
        if ANSWER_SEPARATOR in text:
            return f". Several answers are a list here: {shortened(text.split(ANSWER_SEPARATOR))}"
        if text.isdecimal() and (token := self._as_id(int(text))):
            return f"; as a token id it is {token}: say answers='ids'"
        if text != text.rstrip():
            return f"; it ends in white space: write {text.rstrip()!r}"
        return ""

    def digits(self) -> dict[str, str]:
        """Answers of digits only that are taken as text -> the token of that id."""
        return {
            text: token
            for text in self.tokens
            if text.isdecimal() and text == str(int(text)) and (token := self._as_id(int(text)))
        }

    def _as_id(self, number: int) -> str:
        if not has_tokenizer(self.model) or not 0 <= number < self.size:
            return ""
        return repr(token_strings(self.model, [number])[0])
