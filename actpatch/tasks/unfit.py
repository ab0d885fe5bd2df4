"""Rows of data that cannot be used: all that is wrong with them in one message, or in a table of what was left out.

Knows what may be wrong, and not how it is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actpatch.core.heavy import pd
from actpatch.core.text import MOST_LISTED

LONGEST_MESSAGE = 1900
"""In characters, whatever there is to say."""


@dataclass(frozen=True)
class Kind:
    """One thing that may be wrong with a row."""

    what: str
    """What such rows have."""
    remedy: str = ""


KINDS: Mapping[str, Kind] = {
    "overfull": Kind(
        "more cells than the header",
        "A cell with what stands between cells, or with a line break, stands in double quotes, with no space before "
        'them, and a quote inside such a cell is doubled ("")',
    ),
    "records": Kind("no JSON object", "Each row is one object {...}"),
    "empty": Kind("empty cells", "Fill them, or take the rows out"),
    "cells": Kind("cells that cannot be read"),
    "answers": Kind("answers that cannot be read"),
    "tokens": Kind("answers that are not one token each"),
    "sides": Kind("answers that do not go together"),
    "unreadable": Kind("prompts that the model cannot read"),
    "lengths": Kind("prompts of different token lengths", "Replace words by words of as many tokens, or give align="),
    "subject": Kind("a subject that is not found in the prompt"),
    "positions": Kind("positions that do not fit their prompts", "Positions count tokens, from 0, and BOS is one"),
}
"""Every kind of fault, in the order in which they are told."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a row."""

    kind: str
    """A key of `KINDS`."""
    detail: str | Callable[..., str]
    """In words; a function where they take time, which only the rows that are told of need."""
    of: tuple[Any, ...] = ()
    """What the function is called with."""

    def __str__(self) -> str:
        return self.detail if isinstance(self.detail, str) else self.detail(*self.of)


class UnfitRows:
    """The faults of rows, as they are found."""

    def __init__(self) -> None:
        self.faults: dict[int, list[Fault]] = {}
        """Index of a row -> what is wrong with it."""

    def __contains__(self, row: int) -> bool:
        return row in self.faults

    def __len__(self) -> int:
        return len(self.faults)

    def add(self, row: int, fault: Fault) -> None:
        self.faults.setdefault(row, []).append(fault)

    def _of_kind(self) -> dict[str, dict[int, list[Fault]]]:
        """Kind -> index of a row -> its faults of that kind, in the order in which kinds and rows are told."""
        found: dict[str, dict[int, list[Fault]]] = {kind: {} for kind in KINDS}
        for row, faults in sorted(self.faults.items()):
            for fault in faults:
                found[fault.kind].setdefault(row, []).append(fault)
        return found

    def counts(self) -> str:
        """How many rows have what, in words: `3 have empty cells`."""
        found = {KINDS[name].what: len(rows) for name, rows in self._of_kind().items()}
        return ", ".join(f"{n} {'has' if n == 1 else 'have'} {what}" for what, n in found.items() if n)

    def refuse(self, rows: Sequence[str], source: str, remedy: str) -> None:
        """Raise a `ValueError` where there are faults: each kind with the first rows that have it and their number.

        Args:
            rows: the name of each row, of all that there are.
            source: the file or dataset.
            remedy: what can be done about every kind.
        """
        if not self.faults:
            return
        first = {kind: list(of_kind.items()) for kind, of_kind in self._of_kind().items()}
        message = ""
        for most, longest in ((MOST_LISTED, 400), (MOST_LISTED, 200), (3, 200), (2, 150), (1, 100), (1, 60)):
            told = [_told(KINDS[kind], rows, of_kind, most, longest) for kind, of_kind in first.items() if of_kind]
            total = f"{len(self)} of {len(rows)} rows do not fit. " if len(told) > 1 else ""
            message = f"{source[:100]}: {total}{'. '.join(told)}. {remedy}"
            if len(message) <= LONGEST_MESSAGE:
                break
        raise ValueError(message)

    def table(self, rows: Mapping[int, tuple[str, str, str]]) -> pd.DataFrame:
        """A row for each that does not fit: its name, the reason, and its prompts.

        Args:
            rows: index of each such row -> its name, its clean and its corrupted prompt.
        """
        columns = ["row", "reason", "clean", "corrupted"]
        left_out = [
            (rows[row][0], "; ".join(f"{KINDS[fault.kind].what} ({fault})" for fault in faults), *rows[row][1:])
            for row, faults in sorted(self.faults.items())
        ]
        return pd.DataFrame(left_out, columns=columns)


def _told(kind: Kind, rows: Sequence[str], of_kind: Sequence[tuple[int, list[Fault]]], most: int, longest: int) -> str:
    """How many rows are of this kind, the first of them, and what to do."""
    first = [f"{_cut(rows[row], 60)}: {_cut(', '.join(map(str, faults)), longest)}" for row, faults in of_kind[:most]]
    more = f"; and {len(of_kind) - most} more" if len(of_kind) > most else ""
    said = f"{len(of_kind)} of {len(rows)} rows have {kind.what}. {'; '.join(first)}{more}"
    return f"{said}. {kind.remedy}" if kind.remedy else said


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
