"""Rows of data that cannot be used: all that is wrong with them in one message, or in a table of what was left out.

Knows what may be wrong, and not how it is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
        "a cell with what stands between cells, or with a line break, stands in double quotes, with no space before "
        'them, and a quote inside such a cell is doubled ("")',
    ),
    "empty": Kind("empty cells", "fill them, or take the rows out"),
    "cells": Kind("cells that cannot be read"),
    "answers": Kind("answers that are not one token each"),
    "sides": Kind("answers that do not go together"),
    "unreadable": Kind("prompts that the model cannot read"),
    "lengths": Kind("prompts of different token lengths", "replace words by words of as many tokens"),
    "subject": Kind("a subject that is not found in the prompt"),
    "positions": Kind("positions outside their prompt", "positions count tokens, from 0, and BOS is one"),
}
"""Every kind of fault, in the order in which they are told."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row."""

    kind: str
    """A key of `KINDS`."""
    detail: str


class UnfitRows:
    """The faults of rows, as they are found."""

    def __init__(self) -> None:
        self.faults: dict[int, list[Fault]] = {}
        """Index of a row -> what is wrong with it."""

    def __contains__(self, row: int) -> bool:
        return row in self.faults

    def __len__(self) -> int:
        return len(self.faults)

    def add(self, row: int, kind: str, detail: str) -> None:
        self.faults.setdefault(row, []).append(Fault(kind, detail))

    def of_kind(self, kind: str) -> dict[int, list[str]]:
        """Row -> the details of its faults of this kind."""
        found = {row: [f.detail for f in faults if f.kind == kind] for row, faults in sorted(self.faults.items())}
        return {row: details for row, details in found.items() if details}

    def counts(self) -> str:
        """How many rows have what, in words: `3 have empty cells`."""
        found = {kind.what: len(self.of_kind(name)) for name, kind in KINDS.items()}
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
        message = ""
        for most, longest in ((MOST_LISTED, 400), (MOST_LISTED, 200), (3, 200), (2, 150), (1, 100), (1, 60)):
            message = f"{source[:100]}: {self._told(rows, most, longest)}. {remedy}"
            if len(message) <= LONGEST_MESSAGE:
                break
        raise ValueError(message)

    def table(self, rows: Sequence[str], prompts: Sequence[tuple[str, str]]) -> pd.DataFrame:
        """A row for each that is left out: its name, the reason, and its prompts.

        Args:
            rows: the name of each row, of all that there are.
            prompts: the clean and the corrupted prompt of each.
        """
        columns = ["row", "reason", "clean", "corrupted"]
        left_out = [
            (rows[row], "; ".join(f"{KINDS[fault.kind].what} ({fault.detail})" for fault in faults), *prompts[row])
            for row, faults in sorted(self.faults.items())
        ]
        return pd.DataFrame(left_out, columns=columns)

    def _told(self, rows: Sequence[str], most: int, longest: int) -> str:
        kinds = [(kind, of_kind) for name, kind in KINDS.items() if (of_kind := self.of_kind(name))]
        sentences = [f"{len(self)} of {len(rows)} rows do not fit"] if len(kinds) > 1 else []
        for kind, of_kind in kinds:
            first = list(of_kind.items())[:most]
            listed = [f"{_cut(rows[row], 60)}: {_cut(', '.join(details), longest)}" for row, details in first]
            more = f"; and {len(of_kind) - most} more" if len(of_kind) > most else ""
            sentence = f"{len(of_kind)} of {len(rows)} rows have {kind.what}. {'; '.join(listed)}{more}"
            sentences.append(sentence + (f". {kind.remedy}" if kind.remedy else ""))
        return ". ".join(sentences)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."
