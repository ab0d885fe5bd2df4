"""Answers as they are given, as tokens: each distinct set once, with the reason where it cannot be read.

Knows neither pairs nor rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from actpatch.core.text import shortened
from actpatch.metrics.base import Whole
from actpatch.tasks.answers import n_answers, same_tokens, same_wholes
from actpatch.tasks.batches import tokens_of_all
from actpatch.tasks.columns import Answer
from actpatch.tasks.files import ANSWER_SEPARATOR
from actpatch.tasks.tokens import has_tokenizer, token_strings, unknown_token, unknown_words
from actpatch.tasks.unfit import Fault

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
    chat: bool = False
    first_token: bool = False
    single_token: bool = False
    ids_unasked: bool = False
    """Whether numbers are token ids where nothing is said: so they are in a `PromptPair`, and not in a table."""

    def __post_init__(self) -> None:
        for name in ("chat", "first_token", "single_token"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected True or False")
        if self.first_token and self.single_token:
            raise ValueError(
                "first_token takes of longer answers the first token, and single_token none of them: say one"
            )
        for name in ("answers", "prompts"):
            if getattr(self, name) not in (None, "text", "ids"):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected 'text' or 'ids'")


class Acceptable:
    """The token ids of every distinct set of answers, the whole of each, or what is wrong with it."""

    def __init__(self, model: Any, meanings: Meanings, sides: Iterable[tuple[Answer, ...]]) -> None:
        self.model, self.meanings = model, meanings
        self.size, self.unknown = n_answers(model), unknown_token(model)
        distinct = list(dict.fromkeys(sides))
        meant = {side: [self._meant(answer) for answer in side] for side in distinct}
        texts = dict.fromkeys(answer for side in meant.values() for answer in side if isinstance(answer, str))
        self.tokens: dict[str, Whole | Fault] = {}
        """Text -> its tokens, or why they cannot be used."""
        if texts and meanings.answers != "ids":
            self.tokens = self._tokens(list(texts))
        self.ids = {side: self._resolved(answers) for side, answers in meant.items()}
        """Answers as they are given -> their ids, or none and why they cannot be used."""
        self._shared: dict[tuple[int, int], Fault | None] = {}

    def shared(self, correct: tuple[Whole, ...], incorrect: tuple[Whole, ...]) -> Fault | None:
        """That some of the answers are on both sides; None where none is. Sides are those that `ids` has."""
        if not correct or not incorrect:
            return None
        sides = id(correct), id(incorrect)
        if sides not in self._shared:
            first = 1 if self.meanings.first_token else None
            both = {answer[:first] for answer in correct} & {answer[:first] for answer in incorrect}
            told = functools.partial(self._same, correct, incorrect)
            self._shared[sides] = Fault("sides", told) if both else None
        return self._shared[sides]

    def _same(self, correct: tuple[Whole, ...], incorrect: tuple[Whole, ...]) -> str:
        """A sentence on the answers that are on both sides."""
        if not self.meanings.first_token:
            return same_wholes(self.model, correct, incorrect)
        are_cut = any(len(answer) > 1 for answer in (*correct, *incorrect))
        first = ([answer[0] for answer in side] for side in (correct, incorrect))
        return same_tokens(self.model, *first, are_cut=are_cut)

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

    def _resolved(self, answers: Sequence[Answer]) -> tuple[tuple[Whole, ...], Fault | None]:
        found = [self._resolved_one(answer) for answer in answers]
        faults = [tokens for tokens in found if isinstance(tokens, Fault)]
        if not faults:
            return tuple(dict.fromkeys(tokens for tokens in found if not isinstance(tokens, Fault))), None
        if len(faults) == 1:
            return (), faults[0]
        return (), Fault(faults[-1].kind, functools.partial(_told, faults, len(answers)))

    def _resolved_one(self, answer: Answer) -> Whole | Fault:
        said = self.meanings.answers
        if isinstance(answer, str):
            if said == "ids":
                return Fault("cells", f"holds {shortened(answer)}, expected a token id, a whole number from 0 on")
            return self.tokens[answer]
        if said != "ids" and not self.meanings.ids_unasked:
            return Fault("cells", functools.partial(self._number, answer))
        if not 0 <= answer < self.size:
            return Fault("answers", f"the token id {answer} is outside the vocabulary of {self.size}")
        if answer == self.unknown:
            return Fault("answers", f"the token id {answer} is the tokenizer's unknown token: use a word it knows")
        return (int(answer),)

    def _tokens(self, texts: list[str]) -> dict[str, Whole | Fault]:
        found: dict[str, Whole | Fault] = {}
        single, unknown, size, refused = self.meanings.single_token, self.unknown, self.size, self._refused
        for text, ids in tokens_of_all(self.model, texts, prepend_bos=False).items():
            kind = ""
            if not ids or unknown in ids or max(ids) >= size:
                kind = "answers"
            elif len(ids) > 1 and (single or ANSWER_SEPARATOR in text or _ends_in_a_space(text)):
                kind = "tokens" if single else "answers"
            found[text] = Fault(kind, refused, (text, ids)) if kind else ids
        return found

    def _refused(self, text: str, ids: Whole) -> str:
        """Why these tokens of an answer cannot be used, and what may have been meant."""
        if not ids:
            why = f"{text!r} has no tokens"
        elif self.unknown in ids:
            why = unknown_words(self.model, text)
        elif outside := [token for token in ids if token >= self.size]:
            why = f"{text!r} has the token {outside[0]}, outside the vocabulary of {self.size}"
        else:
            parts = " + ".join(map(repr, token_strings(self.model, ids)))
            why = f"{text!r} is {len(ids)} tokens for this model ({parts})"
        return f"{why}{self._hint(text)}"

    def with_space(self, texts: Iterable[str]) -> set[str]:
        """Those texts that are one token with a space before them, which they do not have."""
        spaced = [f" {text}" for text in texts if not text[:1].isspace()]
        if not spaced:
            return set()
        tokens = tokens_of_all(self.model, spaced, prepend_bos=False).items()
        return {text[1:] for text, ids in tokens if len(ids) == 1 and ids[0] != self.unknown}

    @functools.cached_property
    def _better_spaced(self) -> set[str]:
        """Those of the texts that cannot be used that are one token with a space before them."""
        return self.with_space(text for text, tokens in self.tokens.items() if isinstance(tokens, Fault))

    def _hint(self, text: str) -> str:
        """What may have been meant by a text that is not one token."""
        if text in self._better_spaced:
            return f", or write it with the space: {' ' + text!r} is one token"
        if ANSWER_SEPARATOR in text:
            return f". Several answers are a list here: {shortened(text.split(ANSWER_SEPARATOR))}"
        if text.isdecimal() and (token := self._as_id(int(text))):
            return f"; as a token id it is {token}: say answers='ids'"
        if text != text.rstrip():
            return f"; it ends in white space: write {text.rstrip()!r}"
        return ""

    def _number(self, answer: int) -> str:
        """What to say of a number where nothing was said of what numbers are."""
        as_id = f" for {self._as_id(answer)}" if self._as_id(answer) else ""
        return f"holds {answer}, expected text: say answers='text' for {str(answer)!r}, or 'ids'{as_id}"

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


def _told(faults: Sequence[Fault], n_answers: int) -> str:
    """The first few of a row's answers that cannot be used, and how many more there are."""
    told, more = ", ".join(map(str, faults[:_MOST_ANSWERS])), len(faults) - _MOST_ANSWERS
    return f"{told}, and {more} more of its {n_answers} answers" if more > 0 else told


def _ends_in_a_space(text: str) -> bool:
    """Whether a space stands behind a word: with ` cat | fox` it would be a token of the first answer."""
    return text.endswith(" ") and bool(text.strip())
