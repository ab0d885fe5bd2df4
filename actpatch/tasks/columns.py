"""Which column of a table holds what, and how a row becomes a pair of prompts. Knows no model and no tokens."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from actpatch.core.heavy import pd
from actpatch.core.indices import is_integer
from actpatch.core.text import shortened
from actpatch.tasks.chat import is_chat
from actpatch.tasks.documents import cell
from actpatch.tasks.files import Table, name_key
from actpatch.tasks.tokens import Prompt, as_list, is_one_prompt
from actpatch.tasks.unfit import Fault

POSITION_PREFIX = "position:"
"""What the names of columns with named positions begin with."""
CORRUPTED_POSITION_PREFIX = "corrupted_position:"
"""Likewise of positions in the corrupted prompt, where it is aligned."""
SUBJECT = "SUBJECT"
"""Name of the positions of a pair's subject."""
Answer: TypeAlias = str | int
"""A text, or a token id."""
Places: TypeAlias = int | Sequence[int]
"""A position, or several that belong together."""


_ANSWERS = frozenset((str, int))


@dataclass(frozen=True)
class PromptPair:
    """One pair of one's own."""

    clean: Prompt
    """A text, messages of a chat, or token ids."""
    corrupted: Prompt | None
    """None where the corrupted run is the clean prompt with noise on it (`GaussianNoise`)."""
    correct: tuple[Answer, ...] = ()
    """Acceptable answers to the clean prompt, each as it stands after it, with the space if it begins with one; or
    token ids. Empty for metrics that need none."""
    incorrect: tuple[Answer, ...] = ()
    template: str = ""
    """Key that pairs share if they may be averaged position by position; see `PatchingDataset.get_template`."""
    positions: Mapping[str, Places] = field(default_factory=dict)
    """Named positions in tokens of the clean prompt, BOS included where the model prepends one; negative ones count
    from the end. A name may stand for several."""
    group: str = ""
    """What it has in common with pairs that may work alike (`PatchingDataset.get_group`); empty for its template."""
    row: str = ""
    """Where the pair comes from, for messages."""
    subject: str = ""
    """What the prompt is about: its tokens become the positions `SUBJECT`, and it stands for `{}` in the prompts."""
    corrupted_subject: str = ""
    """What the corrupted prompt is about; empty where that is the same, or what it has in its place."""
    corrupted_positions: Mapping[str, Places] | None = None
    """The named positions in the corrupted prompt, where it is aligned (`PatchingDataset.get_corrupted_positions`)."""

    def __post_init__(self) -> None:
        for which, prompt in (("clean", self.clean), ("corrupted", self.corrupted)):
            if (isinstance(prompt, str) and prompt.strip()) or (prompt is None and which == "corrupted"):
                continue
            if isinstance(prompt, str) or not _holds_prompt(prompt):
                given = shortened(prompt)
                raise ValueError(f"the {which} prompt is {given}, expected a text, messages of a chat or token ids")
        for side, answers in (("correct", self.correct), ("incorrect", self.incorrect)):
            if isinstance(answers, str) or is_integer(answers):
                raise ValueError(f"{side} is {answers!r}, expected a tuple of answers: ({answers!r},)")
            # Which types there are is asked first: answers may be thousands.
            if _ANSWERS.issuperset(map(type, answers)):
                continue
            if wrong := [answer for answer in answers if not isinstance(answer, str) and not is_integer(answer)]:
                raise ValueError(f"{side} holds {wrong[0]!r}, expected texts or token ids")


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row that is no pair, and why."""

    row: str
    faults: tuple[Fault, ...]
    clean: str = ""
    corrupted: str = ""


class TableRows(tuple[PromptPair | UnreadableRow, ...]):
    """What was read of a table: numbers in it are token ids only where that is said."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what. Names are also found where they differ in case or in spaces around them, and reach into
    records by dots (`counterfactual.prompt`)."""

    clean: str = "clean"
    corrupted: str | None = "corrupted"
    correct: str | None = "correct"
    incorrect: str | None = "incorrect"
    template: str = "template"
    group: str = "group"
    subject: str | None = None
    corrupted_subject: str | None = None

    def __post_init__(self) -> None:
        for argument, name in vars(self).items():
            if is_integer(name):  # as a DataFrame without names has them
                object.__setattr__(self, argument, str(name))
            elif not isinstance(name, str) and (name is not None or argument in ("clean", "template", "group")):
                raise ValueError(f"{argument} is {name!r}, expected the name of a column")
        if self.correct is None and self.incorrect not in (None, "incorrect"):
            raise ValueError(f"correct=None leaves the right answers out: incorrect={self.incorrect!r} needs them")
        if self.corrupted_subject is not None and None in (self.subject, self.corrupted):
            raise ValueError(
                f"corrupted_subject={self.corrupted_subject!r} needs a column of subjects and one of corrupted prompts"
            )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns that there have to be."""
        incorrect = None if self.correct is None else self.incorrect
        names = (self.clean, self.corrupted, self.correct, incorrect, self.subject, self.corrupted_subject)
        return tuple(name for name in names if name is not None)

    def read(self, table: Table) -> TableRows:
        """A pair per row, or what is wrong with it.

        Raises:
            ValueError: where a column is missing, or it is not clear which one is meant.
        """
        reader = _RowReader(self, table)
        return TableRows(reader.read(i) for i in range(len(table.cells)))


class _RowReader:
    """Reads the rows of one table. Cells that are alike are read once."""

    def __init__(self, columns: Columns, table: Table) -> None:
        self.columns, self.table = columns, table
        self.find = {name: _finder(table, name) for name in columns.wanted}
        self.template, self.group = _finder(table, columns.template), _finder(table, columns.group)
        self._check_found()
        self.positions, self.corrupted_positions = (
            {
                name.strip()[len(prefix) :]: _finder(table, name)
                for name in table.columns
                if name_key(name).startswith(prefix)
            }
            for prefix in (POSITION_PREFIX, CORRUPTED_POSITION_PREFIX)
        )
        self._check_both_have_positions()
        self.read_before: dict[Any, tuple[Any, tuple[Answer, ...]]] = {}
        self.distinct: dict[tuple[Answer, ...], tuple[Answer, ...]] = {}

    def read(self, i: int) -> PromptPair | UnreadableRow:
        row = self.table.cells[i]
        cells = {name: find(row) for name, find in self.find.items() if find}
        faults = [self.table.faults[i]] if i in self.table.faults else []
        if not faults or faults[0].kind == "overfull":
            faults += self._faults(cells)
        if not faults:
            try:
                return self._pair(cells, row, self.table.rows[i])
            except ValueError as error:
                faults.append(Fault("cells", str(error)))
        prompts = [_short(cells.get(name or "")) for name in (self.columns.clean, self.columns.corrupted)]
        return UnreadableRow(self.table.rows[i], tuple(faults), *prompts)

    def _faults(self, cells: Mapping[str, Any]) -> list[Fault]:
        faults = []
        if self.table.separator is not None:
            faults += [Fault("cells", _unquoted(name, cell)) for name, cell in cells.items() if _is_unquoted(cell)]
        if missing := [name for name, value in cells.items() if is_empty(value)]:
            faults.append(Fault("empty", ", ".join(missing)))
        return faults

    def _pair(self, cells: Mapping[str, Any], row: Sequence[Any], name: str) -> PromptPair:
        columns = self.columns
        others = _positions(self.corrupted_positions, row, CORRUPTED_POSITION_PREFIX)
        return PromptPair(
            clean=_prompt(cells[columns.clean], columns.clean, "clean"),
            corrupted=None
            if columns.corrupted is None
            else _prompt(cells[columns.corrupted], columns.corrupted, "corrupted"),
            correct=self._answers(cells, columns.correct, "correct"),
            incorrect=self._answers(cells, columns.incorrect, "incorrect") if columns.correct else (),
            template=_key(self.template(row)) if self.template else "",
            group=_key(self.group(row)) if self.group else "",
            positions=_positions(self.positions, row, POSITION_PREFIX),
            row=name,
            subject="" if columns.subject is None else str(cells[columns.subject]).strip(),
            corrupted_subject=""
            if columns.corrupted_subject is None
            else str(cells[columns.corrupted_subject]).strip(),
            corrupted_positions=others or None,
        )

    def _answers(self, cells: Mapping[str, Any], column: str | None, argument: str) -> tuple[Answer, ...]:
        if column is None:
            return ()
        value = cells[column]
        # A list is known by what it is and not by what it holds: the table keeps it, so that no other takes its place.
        known = value if isinstance(value, str) else id(value)
        if known not in self.read_before:
            answers = _alternatives(value, column, argument, self.table.separator)
            self.read_before[known] = value, self.distinct.setdefault(answers, answers)
        return self.read_before[known][1]

    def _check_both_have_positions(self) -> None:
        """Of names that stand in both prompts each has both columns: what is meant by one alone depends."""
        if not self.corrupted_positions or self.positions.keys() == self.corrupted_positions.keys():
            return
        prefixes = POSITION_PREFIX, CORRUPTED_POSITION_PREFIX
        sides = [
            [prefix + name for name in of] for prefix, of in zip(prefixes, (self.positions, self.corrupted_positions))
        ]
        has = " and ".join(", ".join(map(repr, side)) or "none" for side in sides)
        raise ValueError(
            f"{self.table.source} has the columns {has}: give every named position both, {POSITION_PREFIX}NAME and "
            f"{CORRUPTED_POSITION_PREFIX}NAME, with the same number where it is the same"
        )

    def _check_found(self) -> None:
        columns = self.columns
        missing = [name for name, find in self.find.items() if find is None]
        optional = (("template", columns.template, self.template), ("group", columns.group, self.group))
        missing += [name for argument, name, find in optional if find is None and name != argument]
        if not missing:
            return
        hints = {
            columns.incorrect: "Without incorrect answers, for metrics that read right ones alone, say incorrect=None",
            columns.correct: "Without answers, for metrics that need none (kl_divergence), say correct=None",
            columns.corrupted: "Without corrupted prompts, where noise makes the corrupted run, say corrupted=None",
        }
        argument = next(name for name, value in vars(columns).items() if value == missing[0])
        has = ", ".join(repr(shortened(name)[1:-1]) for name in self.table.columns[:30]) or "none"
        sentences = [f"Rename the columns, or say which they are with {argument}='...'"]
        sentences += [hint for name, hint in hints.items() if name in missing]
        raise ValueError(
            f"{self.table.source} has no column {', '.join(map(repr, missing))}; it has {has}. {'. '.join(sentences)}"
        )


_Finder: TypeAlias = Callable[[Sequence[Any]], Any]
"""Finds what a row has in a column."""


def _finder(table: Table, name: str) -> _Finder | None:
    """Finds what a row has in this column; None where the table has no such column.

    Raises:
        ValueError: where several may be meant.
    """
    exact = [i for i, column in enumerate(table.columns) if column == name]
    alike = exact or [i for i, column in enumerate(table.columns) if name_key(column) == name_key(name)]
    if len(exact) > 1:
        raise ValueError(f"{table.source} has the column {name!r} twice: give each column its own name")
    if len(alike) > 1:
        found = " and ".join(repr(table.columns[i]) for i in alike)
        raise ValueError(f"{table.source} has the columns {found}, each of which may be {name!r}: say which is meant")
    if alike:
        at = alike[0]
        return lambda row: row[at] if at < len(row) else None
    first, dot, path = name.partition(".")
    if dot and first in table.columns:
        within = table.columns.index(first)
        return lambda row: cell(row[within], path)
    return None


def _alternatives(value: Any, column: str, argument: str, separator: str | None) -> tuple[Answer, ...]:
    """The answers that a cell holds: one, a list, a list that was written as text, or several with `|` between them."""
    if isinstance(value, str):
        listed = listed_in(value)
        if bool(re.match(r"""\s*\[\s*['"]""", value)) != bool(re.search(r"""['"]\s*\]\s*$""", value)):
            raise ValueError(f"{column} holds {shortened(value)}, a list that lacks a bracket: write both, or a|b")
        if listed is None and separator is not None and separator in value:
            listed = value.split(separator)
            if empty := [part for part in listed if not part.strip()]:
                raise ValueError(
                    f"{column} holds {shortened(value)}, with {'nothing' if '' in empty else 'a space alone'} beside a "
                    f"{separator!r}: it stands between two answers"
                )
        several: Iterable[Any] = [value] if listed is None else listed
    elif isinstance(value, Mapping):
        several = [value]
    else:
        several = value if isinstance(value, Iterable) else [value]
    return tuple(_answer(answer, column, argument) for answer in several)


def listed_in(text: str) -> list[Any] | None:
    """The list of texts or numbers that is written in a text, as `str` writes one or JSON; None where there is none."""
    written = text.strip()
    if len(written) < 2 or written[0] + written[-1] not in ("[]", "()"):
        return None
    if re.search(r"""(?<=['"])\s+(?=['"])""", written[1:-1]) and "," not in written:
        raise ValueError(f"{shortened(text)} is a list without commas: write its entries with a comma, or a|b, between")
    try:
        found = ast.literal_eval(written)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(found, (list, tuple)) or not found:
        return None
    return list(found) if all(isinstance(entry, str) or is_integer(entry) for entry in found) else None


def _answer(answer: Any, column: str, argument: str) -> Answer:
    if isinstance(answer, str) and answer.strip():
        return answer
    if is_integer(answer):
        return int(answer)
    if isinstance(answer, float) and answer.is_integer():  # pandas makes 7.0 of 7 in a column with empty cells
        return int(answer)
    number = ", or a whole number for a token id" if isinstance(answer, float) else ""
    raise ValueError(f"{column} holds {shortened(answer)}, expected text{number}{_inside(answer, column, argument)}")


def _prompt(value: Any, column: str, argument: str) -> Prompt:
    if isinstance(value, str) or is_chat(value):
        return value
    listed = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(listed, (list, tuple)) and listed and all(map(is_integer, listed)):
        return tuple(map(int, listed))
    raise ValueError(f"{column} holds {shortened(value)}, expected text{_inside(value, column, argument)}")


def _inside(value: Any, column: str, argument: str) -> str:
    """Where a record stands in the place of a text, how to name what is in it."""
    if not isinstance(value, Mapping) or not value:
        return ""
    inside = "prompt" if "prompt" in value else next(iter(value))
    return f": name what is meant in it, for instance {argument}='{column}.{inside}'"


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: no text but white space, no value, no entry."""
    if isinstance(value, str):
        return not value.strip()
    return bool(pd.isna(value)) if pd.api.types.is_scalar(value) else len(value) == 0


def _key(value: Any) -> str:
    return "" if is_empty(value) else str(value)


def _short(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _is_unquoted(cell: Any) -> bool:
    """Whether a space stands before quotes that were to surround the cell, so that they are part of it."""
    if not isinstance(cell, str) or '"' not in cell:
        return False
    inside = cell.strip()
    return cell[:1].isspace() and inside.count('"') == 2 and inside[0] == inside[-1] == '"'


def _unquoted(column: str, cell: str) -> str:
    return f"{column} holds {shortened(cell)}, with a space before the quotes: take out the space, or the quotes"


def _holds_prompt(given: Any) -> bool:
    """Whether it is a chat or token ids, of one axis or of one row."""
    ids = as_list(given)
    if ids is not None and len(ids) == 1 and as_list(ids[0]) is not None:
        ids = as_list(ids[0])
    return bool(ids) and is_one_prompt(given if is_chat(given) else ids)


def _positions(columns: Mapping[str, _Finder | None], row: Sequence[Any], prefix: str) -> dict[str, Places]:
    """What a row has in such columns; it may have nothing in some."""
    if not columns:
        return {}
    values = {label: find(row) for label, find in columns.items() if find}
    return {label: _position(value, prefix + label) for label, value in values.items() if not is_empty(value)}


def _position(value: Any, column: str) -> Places:
    """A whole number, or a list of some for a span of tokens."""
    several: Any = listed_in(value) if isinstance(value, str) else value
    several = several.tolist() if hasattr(several, "tolist") else several
    if isinstance(several, (list, tuple)):
        return tuple(_whole(entry, column) for entry in several)
    return _whole(value, column)


def _whole(value: Any, column: str) -> int:
    try:
        return int(str(value).strip().removesuffix(".0"))  # pandas makes 7.0 of 7 in a column with empty cells
    except ValueError:
        raise ValueError(f"{column} holds {value!r}, expected a whole number") from None
