"""Reads tables of prompts: CSV, JSONL and DataFrames to pairs, with every fault named by its row. Knows no model."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from actpatch.core.heavy import pd
from actpatch.core.indices import is_integer
from actpatch.core.text import MOST_LISTED
from actpatch.tasks.chat import is_chat
from actpatch.tasks.tokens import Prompt, as_list, is_one_prompt

POSITION_PREFIX = "position:"
"""What the names of columns with named positions begin with."""
ANSWER_SEPARATOR = "|"
"""What stands between several acceptable answers in a CSV cell."""
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
"""What may stand between the cells of a CSV file."""


@dataclass(frozen=True)
class PromptPair:
    """One pair of one's own."""

    clean: Prompt
    """A text, messages of a chat, or token ids."""
    corrupted: Prompt
    correct: tuple[str | int, ...]
    """Acceptable answers to the clean prompt, each as it stands after it, with the space if it begins with one; or
    token ids."""
    incorrect: tuple[str | int, ...] = ()
    template: str = ""
    """Key that pairs share if they may be averaged position by position; see `PatchingDataset.get_template`."""
    positions: Mapping[str, int | Sequence[int]] = field(default_factory=dict)
    """Named positions in tokens of the clean prompt, BOS included where the model prepends one; negative ones count
    from the end. A name may stand for several."""
    group: str = ""
    """What it has in common with pairs that may work alike (`PatchingDataset.get_group`); empty for its template."""
    row: str = ""
    """Where the pair comes from, for messages."""
    corrupted_positions: Mapping[str, int | Sequence[int]] | None = None
    """The named positions in the corrupted prompt, where it is aligned (`PatchingDataset.get_corrupted_positions`)."""

    def __post_init__(self) -> None:
        for which, prompt in (("clean", self.clean), ("corrupted", self.corrupted)):
            if not (prompt.strip() if isinstance(prompt, str) else is_one_prompt(prompt) and as_list(prompt)):
                raise ValueError(f"the {which} prompt is {prompt!r}, expected a text, messages of a chat or token ids")
        for side, answers in (("correct", self.correct), ("incorrect", self.incorrect)):
            if isinstance(answers, str) or is_integer(answers):
                raise ValueError(f"{side} is {answers!r}, expected a tuple of answers: ({answers!r},)")
            if wrong := [answer for answer in answers if not isinstance(answer, str) and not is_integer(answer)]:
                raise ValueError(f"{side} holds {wrong[0]!r}, expected texts or token ids")


@dataclass(frozen=True)
class Columns:
    """Which column holds what, and how a row becomes a pair."""

    clean: str
    corrupted: str
    correct: str
    incorrect: str | None
    template: str
    group: str
    separator: str | None = None
    """What stands between several answers in one text; None where they are a list."""

    def read(self, frame: pd.DataFrame, rows: Sequence[str], source: str) -> list[PromptPair]:
        self._check(frame, source)
        positions = [name for name in frame.columns if str(name).startswith(POSITION_PREFIX)]
        pairs, empty, wrong = [], [], []
        for row, cells in zip(rows, frame.to_dict("records")):
            if missing := [column for column in self._filled if _is_empty(cells[column])]:
                empty.append((row, ", ".join(missing)))
                continue
            try:
                pairs.append(self._pair(cells, positions, row))
            except ValueError as error:
                wrong.append((row, str(error)))
        refuse(empty, len(rows), source, "empty cells", "fill them, or take the rows out")
        refuse(wrong, len(rows), source, "cells that cannot be read")
        return pairs

    @property
    def _filled(self) -> list[str]:
        return [name for name in (self.clean, self.corrupted, self.correct, self.incorrect) if name is not None]

    def _check(self, frame: pd.DataFrame, source: str) -> None:
        columns = list(frame.columns)
        if twice := sorted({str(name) for name in columns if columns.count(name) > 1}):
            raise ValueError(f"{source} has the column {twice[0]!r} twice: give each column its own name")
        optional = {"template": self.template, "group": self.group}
        needed = self._filled + [name for argument, name in optional.items() if name != argument]
        missing = [name for name in needed if name not in columns]
        if not missing:
            return
        without = (
            ". Without incorrect answers, for metrics that read the right answer alone, say incorrect=None"
            if self.incorrect in missing
            else ""
        )
        raise ValueError(
            f"{source} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, columns)) or 'none'}. Rename the columns, or say which they are with "
            f"{self._argument(missing[0])}='...'{without}"
        )

    def _argument(self, column: str) -> str:
        return next(name for name, value in vars(self).items() if value == column)

    def _pair(self, cells: Mapping[Any, Any], positions: Sequence[str], row: str) -> PromptPair:
        return PromptPair(
            clean=_prompt(cells[self.clean], self.clean),
            corrupted=_prompt(cells[self.corrupted], self.corrupted),
            correct=self._answers(cells[self.correct], self.correct),
            incorrect=() if self.incorrect is None else self._answers(cells[self.incorrect], self.incorrect),
            template=_key(cells.get(self.template)),
            group=_key(cells.get(self.group)),
            positions={
                column.removeprefix(POSITION_PREFIX): _position(cells[column], column)
                for column in positions
                if not _is_empty(cells[column])
            },
            row=row,
        )

    def _answers(self, cell: Any, column: str) -> tuple[str, ...]:
        if isinstance(cell, str):
            several: Iterable[Any] = [cell] if self.separator is None else cell.split(self.separator)
        else:
            several = cell if isinstance(cell, Iterable) else [cell]
        return tuple(_text(answer, column) for answer in several)


def read_csv(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Every cell as the text it is, and the line of the file on which each row begins.

    Cells are separated as those of the header are. Read with Python's own reader: that of pandas loses the lines,
    because cells may hold line breaks.
    """
    records: list[list[str]] = []
    rows: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        begins, delimiter = 1, ","
        try:
            delimiter = _delimiter(file, path.name)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    records.append(cells)
                    rows.append(f"row {begins}")
                begins = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path.name}, row {begins} cannot be read ({error}): {_quoting(delimiter)}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name} is not in UTF-8 ({error}): save it in that encoding") from None
    if not records:
        raise ValueError(f"{path.name} is empty: its first line names the columns")
    header, *records = records
    width = len(header)
    overfull = [
        (row, f"{len(cells)} cells under {width} columns")
        for row, cells in zip(rows[1:], records)
        if len(cells) > width
    ]
    refuse(overfull, len(records), path.name, "more cells than the header", _quoting(delimiter))
    filled = [cells + [""] * (width - len(cells)) for cells in records]
    return pd.DataFrame(filled, columns=[name.strip() for name in header]), rows[1:]


def _delimiter(file: TextIO, source: str) -> str:
    """What separates the columns that the header, the first line with a text, names; the file is put back."""
    header = next((line for line in iter(file.readline, "") if line.strip()), "")
    file.seek(0)
    delimiter = max(_DELIMITERS, key=header.count)  # the comma where there are as many of several
    if delimiter not in header and ANSWER_SEPARATOR in header:
        raise ValueError(
            f"{source}: the columns are separated by {ANSWER_SEPARATOR!r}, which stands between answers: separate them "
            "by commas, semicolons or tabs"
        )
    return delimiter


def _quoting(delimiter: str) -> str:
    return (
        f"a cell with {_DELIMITERS[delimiter]} or a line break stands in double quotes, and a quote inside such a cell "
        'is doubled ("")'
    )


def read_jsonl(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """One record per line. pandas' own reader names no line in its errors and turns text into numbers and dates."""
    records, rows = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path.name}, row {number} is not JSON ({error}): give one object per line") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path.name}, row {number} is {line.strip()[:40]}, expected an object {{...}} per line")
        records.append(record)
        rows.append(f"row {number}")
    if not records:
        raise ValueError(f"{path.name} is empty: give one JSON object per line")
    return pd.DataFrame(records, dtype=object), rows


def refuse(faults: Sequence[tuple[str, str]], n_rows: int, source: str, what: str, remedy: str = "") -> None:
    """Raise a `ValueError` where there are faults, with the first rows that have one and how many there are.

    Args:
        faults: (row, what is wrong with it).
        n_rows: number of rows in all.
        source: file or dataset.
        what: what the rows have.
        remedy: what to do about it.
    """
    if not faults:
        return
    rows: dict[str, list[str]] = {}
    for row, fault in faults:
        rows.setdefault(row, []).append(fault)
    listed = "; ".join(f"{row}: {', '.join(faults)}" for row, faults in list(rows.items())[:MOST_LISTED])
    more = f"; and {len(rows) - MOST_LISTED} more" if len(rows) > MOST_LISTED else ""
    raise ValueError(
        f"{source}: {len(rows)} of {n_rows} rows have {what}. {listed}{more}" + (f". {remedy}" if remedy else "")
    )


def _key(cell: Any) -> str:
    return "" if _is_empty(cell) else str(cell)


def _is_empty(cell: Any) -> bool:
    if isinstance(cell, str):
        return not cell.strip()
    return bool(pd.isna(cell)) if pd.api.types.is_scalar(cell) else len(cell) == 0


def _prompt(cell: Any, column: str) -> Prompt:
    return cell if is_chat(cell) else _text(cell, column)


def _text(cell: Any, column: str) -> str:
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(f"{column} holds {cell!r}, expected text")
    return cell


def _position(cell: Any, column: str) -> int:
    try:
        return int(str(cell).strip().removesuffix(".0"))  # pandas makes 7.0 of 7 in a column with empty cells
    except ValueError:
        raise ValueError(f"{column} holds {cell!r}, expected a whole number") from None
