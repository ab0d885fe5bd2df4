"""Prompts of one's own as a dataset: pairs from a CSV or JSONL file or a DataFrame, without a class.

One row is one pair: clean prompt, corrupted prompt, correct and incorrect answers, and if wanted a template key and
named positions. Everything that is wrong with a file is found when it is read, and named by row.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actpatch.core.heavy import pd
from actpatch.core.warn import warn_user
from actpatch.metrics.base import Whole
from actpatch.tasks.alignment import checked_span
from actpatch.tasks.answers import checked_sequences
from actpatch.tasks.chat import is_chat, need_chat_template, one_message
from actpatch.tasks.dataset import Align, PatchingDataset, TargetTokens, as_targets
from actpatch.tasks.files import ANSWER_SEPARATOR, Columns, PromptPair, read_csv, read_jsonl, refuse
from actpatch.tasks.labels import TokenLabels, check_labels
from actpatch.tasks.tokens import (
    Prompt,
    as_list,
    compare_lengths,
    encode_prompt,
    known_tokens,
    need_tokenizer,
    space_hint,
)


class PromptPairs(PatchingDataset):
    """Prompt pairs of one's own: from a file or a DataFrame, or as a list of `PromptPair`.

    Columns are `clean`, `corrupted`, `correct` and `incorrect`, and if wanted `template`, `group` (pairs that may work
    alike, by default those of a template) and one `position:NAME` for each named position (a whole number, or empty
    where the pair has none); others are ignored. Both prompts of a row
    have the same number of tokens. Answers are taken as they are written: after "... gave a drink to" comes " Mary",
    with its space. In a CSV file several acceptable answers are separated by `|`; in JSONL and DataFrames they are a
    list. An answer may have several tokens: it serves metrics of whole answers (`sequence_log_probability` and others),
    or others by its first token, where that is asked for. Pairs may repeat; `repeated_pairs` tells which do.

    In the place of a text a prompt may be the messages of a chat. Of a `PromptPair` prompts and answers may be token
    ids too, for models without a tokenizer.

    Args:
        model: the model whose tokenizer the prompts and answers are for.
        pairs: the pairs.
        name: what the task is called in tables and figures.
        varies: which signal of the clean prompt the corruption changes.
        chat: whether each prompt that is a text is what a user says in a chat, written by the tokenizer's own chat
            template.
        token_labels: what tokens are shown as (`PatchingDataset.token_labels`); None for what the tokenizer says.
        first_token: True takes of answers of several tokens the first alone, whatever is measured.
        align: which positions of a pair's prompts stand for each other, where they may have other lengths
            (`PatchingDataset.align`).

    Raises:
        ValueError: for texts and a model without a tokenizer, a chat and a tokenizer without a chat template, no pairs,
            answers that the tokenizer does not know, or on both sides (or that begin with the same token, where the
            first alone is taken), prompts of different token lengths without `align`, with unknown words or longer than
            the context, and positions outside their prompt: up to five rows, and their number.
    """

    def __init__(
        self,
        model: Any,
        pairs: Iterable[PromptPair],
        *,
        name: str = "own prompts",
        varies: str = "",
        chat: bool = False,
        token_labels: TokenLabels | None = None,
        first_token: bool = False,
        align: Align = None,
    ) -> None:
        if not isinstance(pairs, Iterable):
            raise ValueError(f"pairs is a {type(pairs).__name__}, expected a list of PromptPair(clean, corrupted, ...)")
        self.model, self.made_with, self.align = model, getattr(model, "tokenizer", None), align
        self.pairs = tuple(pairs)
        self.chat, self.token_labels = chat, token_labels
        if not self.pairs:
            raise ValueError(f"{name} has no pairs: give at least one row")
        if wrong := [pair for pair in self.pairs if not isinstance(pair, PromptPair)]:
            raise ValueError(f"pairs holds a {type(wrong[0]).__name__}, expected PromptPair(clean, corrupted, ...)")
        self._name, self._varies, self.first_token = name, varies, first_token
        self._rows = [pair.row or f"pair {i}" for i, pair in enumerate(self.pairs)]
        check_labels(token_labels)
        self._check_tokenizer()
        self._targets = self._whole_answers()
        self._check_targets()
        self._check_prompts()
        self._warn_about_missing_spaces()

    @classmethod
    def from_csv(
        cls,
        model: Any,
        path: str | Path,
        *,
        clean: str = "clean",
        corrupted: str = "corrupted",
        correct: str = "correct",
        incorrect: str | None = "incorrect",
        template: str = "template",
        group: str = "group",
        name: str | None = None,
        varies: str = "",
        chat: bool = False,
        token_labels: TokenLabels | None = None,
        first_token: bool = False,
    ) -> PromptPairs:
        """Pairs from a CSV file in UTF-8, with a header. Commas stand between cells, or semicolons or tabs, as
        the header has them. Cells with such a one stand in quotes.
        Rows are named in errors by their line in the file; the header is line 1.

        Args:
            model: the model whose tokenizer the prompts and answers are for.
            path: the file.
            clean: name of the column of clean prompts.
            corrupted: name of the column of corrupted prompts.
            correct: name of the column of correct answers.
            incorrect: name of the column of incorrect answers; None for a dataset without them, which serves metrics
                that read the right answer alone.
            template: name of the column of template keys; there need be none called `template`.
            group: name of the column that tells which pairs may work alike; there need be none called `group`.
            name: what the task is called; None for the file's name.
            varies: which signal of the clean prompt the corruption changes.
            chat: whether each prompt is what a user says in a chat.
            token_labels: what tokens are shown as; None for what the tokenizer says.
            first_token: True takes of answers of several tokens the first alone, whatever is measured.

        Raises:
            ValueError: for missing columns, rows with more cells than the header, empty cells, and what the class
                refuses.
        """
        frame, rows = read_csv(Path(path))
        columns = Columns(clean, corrupted, correct, incorrect, template, group, separator=ANSWER_SEPARATOR)
        pairs = columns.read(frame, rows, Path(path).name)
        return cls(
            model,
            pairs,
            name=name or Path(path).stem,
            varies=varies,
            chat=chat,
            token_labels=token_labels,
            first_token=first_token,
        )

    @classmethod
    def from_jsonl(
        cls,
        model: Any,
        path: str | Path,
        *,
        clean: str = "clean",
        corrupted: str = "corrupted",
        correct: str = "correct",
        incorrect: str | None = "incorrect",
        template: str = "template",
        group: str = "group",
        name: str | None = None,
        varies: str = "",
        chat: bool = False,
        token_labels: TokenLabels | None = None,
        first_token: bool = False,
    ) -> PromptPairs:
        """Pairs from a file with one JSON object per line. Arguments and errors are those of `from_csv`.

        Rows are named in errors by their line in the file; the first is line 1.
        """
        frame, rows = read_jsonl(Path(path))
        columns = Columns(clean, corrupted, correct, incorrect, template, group)
        pairs = columns.read(frame, rows, Path(path).name)
        return cls(
            model,
            pairs,
            name=name or Path(path).stem,
            varies=varies,
            chat=chat,
            token_labels=token_labels,
            first_token=first_token,
        )

    @classmethod
    def from_dataframe(
        cls,
        model: Any,
        frame: pd.DataFrame,
        *,
        clean: str = "clean",
        corrupted: str = "corrupted",
        correct: str = "correct",
        incorrect: str | None = "incorrect",
        template: str = "template",
        group: str = "group",
        name: str = "own prompts",
        varies: str = "",
        chat: bool = False,
        token_labels: TokenLabels | None = None,
        first_token: bool = False,
    ) -> PromptPairs:
        """Pairs from the rows of a DataFrame. Arguments and errors are those of `from_csv`.

        Rows are named in errors by their index label.
        """
        if not isinstance(frame, pd.DataFrame):
            raise ValueError(f"frame is a {type(frame).__name__}, expected a pandas DataFrame: pd.DataFrame(rows)")
        columns = Columns(clean, corrupted, correct, incorrect, template, group)
        pairs = columns.read(frame, [f"row {label}" for label in frame.index], "the DataFrame")
        return cls(
            model,
            pairs,
            name=name,
            varies=varies,
            chat=chat,
            token_labels=token_labels,
            first_token=first_token,
        )

    @property
    def name(self) -> str:
        return self._name

    @property
    def varies(self) -> str:
        return self._varies

    @property
    def repeated_pairs(self) -> tuple[int, ...]:
        """Indices of the pairs whose prompts and answers are those of an earlier one."""
        first: dict[Any, int] = {}
        prompts = [[as_list(prompt) or prompt for prompt in (pair.clean, pair.corrupted)] for pair in self.pairs]
        said = [repr((both, pair.correct, pair.incorrect)) for both, pair in zip(prompts, self.pairs)]
        return tuple(i for i, pair in enumerate(said) if first.setdefault(pair, i) < i)

    def get_clean_corrupt_pairs(self) -> list[tuple[Prompt, Prompt]]:
        return [(self._as_asked(pair.clean), self._as_asked(pair.corrupted)) for pair in self.pairs]

    def get_target_tokens(self, pair_idx: int) -> tuple[TargetTokens, TargetTokens]:
        """Token ids (correct, incorrect): one id where there is one acceptable answer, else a tuple of ids; of whole
        answers a tuple of tuples, where one of them has several tokens."""
        correct, incorrect = self._targets[pair_idx]
        return as_targets(correct), as_targets(incorrect)

    def get_positions(self, pair_idx: int) -> Mapping[str, int | Sequence[int]]:
        return self.pairs[pair_idx].positions

    def get_corrupted_positions(self, pair_idx: int) -> Mapping[str, int | Sequence[int]] | None:
        return self.pairs[pair_idx].corrupted_positions

    def get_template(self, pair_idx: int) -> str:
        return self.pairs[pair_idx].template

    def get_group(self, pair_idx: int) -> str:
        return self.pairs[pair_idx].group or self.pairs[pair_idx].template

    def _as_asked(self, prompt: Prompt) -> Prompt:
        return one_message(prompt) if self.chat and isinstance(prompt, str) else prompt

    def _check_tokenizer(self) -> None:
        """Ids need no tokenizer; texts and chats do, and chats its template besides."""
        if not isinstance(self.chat, bool):
            raise ValueError(f"chat is {self.chat!r}, expected True or False")
        prompts = [prompt for pair in self.pairs for prompt in (pair.clean, pair.corrupted)]
        are_chats = [self.chat or is_chat(prompt) for prompt in prompts]
        if any(are_chats) or any(
            isinstance(text, str)
            for text in (*prompts, *(answer for pair in self.pairs for answer in (*pair.correct, *pair.incorrect)))
        ):
            need_tokenizer(self.model, "PromptPairs of texts need")
        are_ids = [not isinstance(prompt, str) and not is_chat(prompt) for prompt in prompts]
        if self.chat and any(are_ids):
            row = self._rows[are_ids.index(True) // 2]
            raise ValueError(
                f"chat is True and {row} has token ids, which are used as they are: give texts or messages"
            )
        if any(are_chats):
            need_chat_template(self.model.tokenizer)

    def _whole_answers(self) -> list[tuple[list[Whole], list[Whole]]]:
        known: dict[str | int, Whole] = {}
        faults = []
        for row, pair in zip(self._rows, self.pairs):
            for answer in (*pair.correct, *pair.incorrect):
                if answer in known:
                    continue
                if not isinstance(answer, str):
                    known[answer] = (operator.index(answer),)
                    continue
                try:
                    ids = known[answer] = tuple(known_tokens(self.model, answer).tolist())
                except ValueError as error:
                    faults.append((row, f"{error}{space_hint(self.model, answer)}{_list_hint(answer)}"))
                    continue
                if len(ids) > 1 and ANSWER_SEPARATOR in answer:
                    faults.append((row, f"{answer!r} is {len(ids)} tokens for this model{_list_hint(answer)}"))
        self._refuse(faults, "answers that cannot be read")
        return [
            ([known[text] for text in pair.correct], [known[text] for text in pair.incorrect]) for pair in self.pairs
        ]

    def _check_targets(self) -> None:
        faults = []
        for i, row in enumerate(self._rows):
            try:
                checked_sequences(self.model, self, i)
            except ValueError as error:
                faults.append((row, str(error).removeprefix(f"pair {i}: ")))
        self._refuse(faults, "answers that do not go together")

    def _check_prompts(self) -> None:
        unreadable, unequal, outside = [], [], []
        for row, pair, prompts in zip(self._rows, self.pairs, self.get_clean_corrupt_pairs()):
            try:
                clean, corrupted = (encode_prompt(self.model, prompt) for prompt in prompts)
            except ValueError as error:
                unreadable.append((row, str(error)))
                continue
            if len(clean) != len(corrupted) and self.align is None:
                unequal.append((row, compare_lengths(self.model, clean, corrupted)))
            for name, position in pair.positions.items():
                try:
                    checked_span(position, len(clean), f"position {name!r} (in a prompt of {len(clean)} tokens)")
                except ValueError as error:
                    outside.append((row, str(error)))
        self._refuse(unreadable, "prompts that the model cannot read")
        self._refuse(
            unequal, "prompts of different token lengths", "replace words by words of as many tokens, or give align="
        )
        self._refuse(outside, "positions outside their prompt", "positions count tokens, from 0, and BOS is one")

    def _refuse(self, faults: Sequence[tuple[str, str]], what: str, remedy: str = "") -> None:
        refuse(faults, len(self.pairs), self.name, what, remedy)

    def _warn_about_missing_spaces(self) -> None:
        """After "... gave a drink to", "Mary" makes "toMary", which may be a token: only the user knows."""
        joined = [
            (row, answer)
            for row, pair in zip(self._rows, self.pairs)
            for answer in (*pair.correct, *pair.incorrect)
            if isinstance(pair.clean, str) and not self.chat and isinstance(answer, str)
            if pair.clean[-1:].isalpha() and answer[:1].isalpha() and space_hint(self.model, answer)
        ]
        if joined:
            row, answer = joined[0]
            warn_user(
                f"{self.name}: {len({row for row, _ in joined})} of {len(self.pairs)} rows have answers that go on in "
                f"the prompt's last word, the first is {row}, {answer!r}. They are measured as they are written; if a "
                f"new word was meant, write {' ' + answer!r}"
            )


def _list_hint(answer: str) -> str:
    """In a DataFrame, which may have come from a CSV file, and in JSONL the separator is part of the answer."""
    if ANSWER_SEPARATOR not in answer:
        return ""
    return f". Several answers are a list here: {answer.split(ANSWER_SEPARATOR)}"
