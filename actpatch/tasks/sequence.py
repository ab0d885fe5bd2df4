"""Tasks that continue what the prompt itself lays down: induction, greater-than, docstring arguments.

The words are those of `tasks.words`. Where the model's tokenizer splits a word, the word is left out, and a task
that has too few words left says so. All of the tasks name END, the last token, and the positions listed with each.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from actpatch.core.indices import is_integer
from actpatch.tasks import words as task_templates
from actpatch.tasks.generated import GeneratedTask, TaskPair, bare_and_spaced, spaced, usable
from actpatch.tasks.tokens import need_tokenizer, single_token, text_tokens, token_strings

TWO_DIGITS = tuple(f"{year:02d}" for year in range(100))
CORRUPTED_START = "01"
"""The year with which corrupted greater-than prompts begin: almost any other is later."""


class InductionDataset(GeneratedTask):
    """Random words, then the same words again: what followed a word before follows it again (Olsson et al. 2022).

    "apple river stone cloud apple river" is continued with " stone". The corruption puts another word in the place of
    that answer in the first list.

    Named positions: PREVIOUS (the first occurrence of the last word) and PREVIOUS+1 (the word that followed it).

    Args:
        model: the model whose tokenizer decides which words are single tokens.
        n_pairs: number of pairs.
        n_words: words of the list, all different.
        n_repeated: how many of them come again before the answer is asked for.
        seed: seed of the choice of words.
        words: words to choose from, at least one more than `n_words`. By default those of
            `tasks.words.INDUCTION_WORDS` that are one token with and without a space before them.

    Raises:
        ValueError: for lengths that leave nothing to repeat or to answer, a word of several tokens, too few words, or
            more pairs than can be made.
    """

    roles = ("PREVIOUS", "PREVIOUS+1")

    def __init__(
        self,
        model: Any,
        n_pairs: int = 10,
        *,
        n_words: int = 16,
        n_repeated: int = 12,
        seed: int = 0,
        words: Sequence[str] | None = None,
    ) -> None:
        if not is_integer(n_words) or not is_integer(n_repeated) or not 1 <= n_repeated < n_words:
            raise ValueError(
                f"n_repeated is {n_repeated!r} of {n_words!r} words, expected at least 1 and fewer than n_words: "
                "the answer is the word after the repeated ones"
            )
        self._words = usable(
            model,
            task_templates.INDUCTION_WORDS,
            words,
            texts=bare_and_spaced,
            at_least=n_words + 1,
            what=f"lists of {n_words} words need at least {n_words + 1} words",
            remedy="give others with words=[...], or shorter lists with n_words=",
        )
        before = [f"{{W{i}}}" for i in range(1, n_repeated)] + ["{PREVIOUS}"]
        after = ["{ANSWER}"] + [f"{{W{i}}}" for i in range(n_repeated + 2, n_words + 1)]
        self._template = " ".join([*before, *after, *before])
        self.n_words, self.n_repeated = n_words, n_repeated
        super().__init__(model, n_pairs, seed=seed)

    @property
    def name(self) -> str:
        return "induction"

    @property
    def varies(self) -> str:
        return "which word followed the last word at its previous occurrence"

    @property
    def material(self) -> str:
        return f"{len(self._words)} words"

    def draw(self, chooser: random.Random, turn: int) -> TaskPair:
        *words, other = chooser.sample(self._words, self.n_words + 1)
        clean_words = dict(zip(task_templates.slots(self._template), words))
        answer = clean_words["ANSWER"]
        return TaskPair(self._template, clean_words, {"ANSWER": other}, (f" {answer}",), (f" {other}",))


class GreaterThanDataset(GeneratedTask):
    """A year later than the first (Hanna et al. 2023, "How does GPT-2 compute greater-than?").

    "The war lasted from the year 1732 to the year 17" is continued with "33" to "99" and not with "00" to "32": all of
    these are answers, 33 to 99 correct ones. The corruption lets the war begin in 1701, after which almost any year
    will do.

    Named positions: EVENT and START, the two digits of the first year.

    Args:
        model: the model, whose tokenizer has to write years as a century and two digits, as GPT-2's does. Years that
            it writes otherwise are left out.
        n_pairs: number of pairs.
        seed: seed of the choice of events and years.
        events: events to choose from. By default those of `tasks.words.GREATER_THAN_EVENTS` that are one token.

    Raises:
        ValueError: where the tokenizer splits years in another way, an event is several tokens, or more pairs are
            asked for than can be made.
    """

    roles = ("EVENT", "START")

    def __init__(self, model: Any, n_pairs: int = 10, *, seed: int = 0, events: Sequence[str] | None = None) -> None:
        need_tokenizer(model, f"{type(self).__name__} needs")
        self._starts = _usable_starts(model)
        self._events = usable(
            model,
            task_templates.GREATER_THAN_EVENTS,
            events,
            texts=spaced,
            at_least=1,
            what="greater-than needs at least one event",
            remedy="give others with events=[...]",
        )
        super().__init__(model, n_pairs, seed=seed)

    @property
    def name(self) -> str:
        return "greater-than"

    @property
    def varies(self) -> str:
        return "the first year's last two digits, and with them which years are later"

    @property
    def material(self) -> str:
        return f"{len(self._events)} events and {len(self._starts)} years"

    def draw(self, chooser: random.Random, turn: int) -> TaskPair:
        event, start = chooser.choice(self._events), chooser.choice(self._starts)
        return TaskPair(
            template=task_templates.GREATER_THAN_TEMPLATE,
            clean_words={"EVENT": event, "START": start},
            corrupted_words={"START": CORRUPTED_START},
            correct=tuple(year for year in TWO_DIGITS if year > start),
            incorrect=tuple(year for year in TWO_DIGITS if year <= start),
        )


class DocstringDataset(GeneratedTask):
    """The next documented argument is the next one of the signature (Heimersheim & Janiak 2023).

    A Python function with three arguments, whose docstring has come to the third ":param". It is continued with that
    argument, which occurs in the signature alone; the corruption writes another one there.

    Named positions: A_def, B_def, C_def (the arguments in the signature), A_doc, B_doc (in the docstring).

    Args:
        model: the model whose tokenizer decides which words are single tokens.
        n_pairs: number of pairs.
        seed: seed of the choice of words.
        arguments: argument names to choose from, at least four. By default those of
            `tasks.words.ARGUMENT_NAMES` that are one token.

    Raises:
        ValueError: for an argument of several tokens, too few words, or more pairs than can be made.
    """

    roles = ("A_def", "B_def", "C_def", "A_doc", "B_doc")

    def __init__(self, model: Any, n_pairs: int = 10, *, seed: int = 0, arguments: Sequence[str] | None = None) -> None:
        self._arguments = usable(
            model,
            task_templates.ARGUMENT_NAMES,
            arguments,
            texts=spaced,
            at_least=4,
            what="docstrings need at least four argument names",
            remedy="give others with arguments=[...]",
        )
        self._functions, self._descriptions = (
            usable(
                model,
                known,
                None,
                texts=spaced,
                at_least=at_least,
                what=f"docstrings need at least {at_least} {what}",
                remedy="choose another task for this model",
            )
            for known, at_least, what in (
                (task_templates.FUNCTION_NAMES, 1, "function names"),
                (task_templates.DESCRIPTION_WORDS, 6, "words to describe arguments"),
            )
        )
        super().__init__(model, n_pairs, seed=seed)

    @property
    def name(self) -> str:
        return "docstring arguments"

    @property
    def varies(self) -> str:
        return "the name of the third argument in the signature"

    @property
    def material(self) -> str:
        return f"{len(self._arguments)} argument names"

    def draw(self, chooser: random.Random, turn: int) -> TaskPair:
        a, b, c, other = chooser.sample(self._arguments, 4)
        about = {f"D{i}": word for i, word in enumerate(chooser.sample(self._descriptions, 6), start=1)}
        arguments = {"A_def": a, "B_def": b, "C_def": c, "A_doc": a, "B_doc": b}
        return TaskPair(
            template=_DOCSTRING_TEMPLATE,
            clean_words={"FUNCTION": chooser.choice(self._functions), **arguments, **about},
            corrupted_words={"C_def": other},
            correct=(f" {c}",),
            incorrect=(f" {other}",),
        )


_DOCSTRING_TEMPLATE = (
    task_templates.DOCSTRING_TEMPLATE.replace("{A}", "{A_def}", 1)
    .replace("{B}", "{B_def}", 1)
    .replace("{C}", "{C_def}")
    .replace("{A}", "{A_doc}")
    .replace("{B}", "{B_doc}")
)


def _usable_starts(model: Any) -> list[str]:
    """The first years that the tokenizer writes as the century and two digits, as every answer must be written."""
    century = f" {task_templates.CENTURY}"
    written = {year: token_strings(model, _ids(model, century + year)) for year in ("32", CORRUPTED_START)}
    for year, parts in written.items():
        if parts != (century, year):
            raise ValueError(
                f"this model's tokenizer writes {century + year!r} as {' + '.join(map(repr, parts))}; greater-than "
                f"needs years of two tokens, {century!r} + {year!r}: use a model with GPT-2's tokenizer"
            )
    century_id, *_ = _ids(model, century)
    ids = {year: single_token(model, year) for year in TWO_DIGITS}
    return [
        year for year in task_templates.GREATER_THAN_STARTS if _ids(model, century + year) == [century_id, ids[year]]
    ]


def _ids(model: Any, text: str) -> list[int]:
    return text_tokens(model, text, prepend_bos=False).tolist()
