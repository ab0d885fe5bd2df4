"""Reads files of prompts into a table, whatever kind of file it is: that is seen from what it holds, not from its name.

Text with separated cells (commas, tabs, semicolons), JSON documents and JSON lines, in UTF-8 or UTF-16. Knows no model,
and of the columns only which names are looked for, by which a header is recognized.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from actpatch.core.heavy import pd
from actpatch.core.text import MOST_LISTED
from actpatch.tasks.documents import json_documents
from actpatch.tasks.unfit import Fault

ANSWER_SEPARATOR = "|"
"""What stands between several acceptable answers in a cell of a file of separated cells."""
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
"""What may stand between the cells of a CSV file."""
_MOST_LINES_ABOVE = 20
"""Among so many lines the header is looked for."""
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_OTHER_KINDS = {
    b"PAR1": ("a Parquet file", "from_dataframe(model, pd.read_parquet(path))"),
    b"PK\x03\x04": ("an Excel or zip file", "from_dataframe(model, pd.read_excel(path)), or unpack it"),
    b"\x1f\x8b": ("a gzip file", "from_dataframe(model, pd.read_csv(path)), or unpack it"),
}
"""How files begin that hold no text, what they are, and how they can be read."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns, each row with the name that messages call it by."""

    source: str
    """The file, for messages."""
    columns: tuple[str, ...]
    cells: Sequence[Sequence[Any]]
    """Of each row, one per column."""
    rows: Sequence[str]
    """Name of each row, for instance `row 3`."""
    separator: str | None = None
    """What stands between several answers in one cell; None where they are a list."""
    faults: Mapping[int, Fault] = field(default_factory=dict)
    """Index of a row -> why it holds no cells that can be used."""


def read_file(path: Path, wanted: Sequence[str] = (), key: str | None = None) -> Table:
    """The table that a file holds.

    Args:
        path: the file.
        wanted: names of columns, by which the header is told from lines above it, and how cells are separated.
        key: of a JSON document the key under which the records are; None where only one can be meant.

    Raises:
        OSError: where the file cannot be read.
        ValueError: for a file of another kind or encoding, an empty one, and one that cannot be read as what it is.
    """
    path = Path(path)
    if path.is_dir():
        within = ", ".join(sorted(one.name for one in path.iterdir() if one.is_file())[:MOST_LISTED]) or "nothing"
        raise IsADirectoryError(f"{path} is a directory, expected a file; in it there is {within}")
    encoding = encoding_of(path)
    with path.open(encoding=encoding, newline="") as file:
        try:
            begins = _first_character(file)
            if begins in ("[", "{"):
                columns, cells, rows, faults = json_documents(file, path.name, key)
                return Table(path.name, columns, cells, rows, faults=faults)
            if not begins:
                raise ValueError(f"{path.name} is empty: its first line names the columns, or it holds JSON objects")
            if key is not None:
                raise ValueError(f"{path.name} is no JSON document: leave out key={key!r}")
            return _separated(file, path.name, wanted)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path.name} is not in UTF-8 ({error}): save it in that encoding, or in UTF-16 with its mark"
            ) from None


def frame_table(frame: pd.DataFrame) -> Table:
    """The table of a DataFrame; its rows are named by their index labels."""
    columns = [list(frame.iloc[:, i]) for i in range(frame.shape[1])]
    cells = list(zip(*columns)) if columns else [() for _ in frame.index]
    return Table("the DataFrame", tuple(map(str, frame.columns)), cells, [f"row {label}" for label in frame.index])


def name_key(name: str) -> str:
    """A column's name without the differences that are not looked at: spaces around it, and case."""
    return str(name).strip().casefold()


def encoding_of(path: Path) -> str:
    """UTF-8 unless the file begins with the mark of UTF-16, or has zeros where UTF-16 has them."""
    with path.open("rb") as file:
        head = file.read(256)
    for begin, (kind, remedy) in _OTHER_KINDS.items():
        if head.startswith(begin):
            raise ValueError(f"{path.name} is {kind}, expected text (CSV, TSV, JSON or JSONL): {remedy}")
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    high, low = head[1::2].count(0), head[::2].count(0)
    if max(high, low) * 4 > len(head):
        return "utf-16-le" if high > low else "utf-16-be"
    return "utf-8"


def _first_character(file: TextIO) -> str:
    """The first that is no white space; the file is put back."""
    found = next((line.lstrip()[0] for line in iter(lambda: file.read(4096), "") if line.strip()), "")
    file.seek(0)
    return found


def _separated(file: TextIO, source: str, wanted: Sequence[str]) -> Table:
    """Every cell as the text it is, and the line of the file on which each row begins.

    Read with Python's own reader: that of pandas loses the lines, because cells may hold line breaks.
    """
    above, delimiter = _header(file, source, wanted)
    for _ in range(above):
        file.readline()
    begins = above + 1
    known: dict[str, str] = {}  # a text that many cells have is kept once
    header: list[str] | None = None
    cells: list[list[str]] = []
    rows: list[str] = []
    faults: dict[int, Fault] = {}
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            name, begins = f"row {begins}", above + reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = [cell.strip().removeprefix("\ufeff") for cell in row]
                continue
            if len(row) > len(header):
                if any(cell.strip() for cell in row[len(header) :]):
                    under = f"{_DELIMITERS[delimiter]} between them, under {len(header)} columns"
                    faults[len(rows)] = Fault("overfull", f"{len(row)} cells, with {under}")
                row = row[: len(header)]
            cells.append([known.setdefault(cell, cell) for cell in row] + [""] * (len(header) - len(row)))
            rows.append(name)
    except csv.Error as error:
        raise ValueError(f"{source}, row {begins} cannot be read ({error}): {_quoting(delimiter)}") from None
    assert header is not None, "a file with text has a line with text"
    while header and not header[-1]:  # a delimiter at the end of every line makes a column without a name
        header.pop()
    return Table(source, tuple(header), cells, rows, ANSWER_SEPARATOR, faults)


def _header(file: TextIO, source: str, wanted: Sequence[str]) -> tuple[int, str]:
    """How many lines stand above the header, and what separates its cells; the file is put back.

    The header is the line that has most of the wanted columns. Where none has any, it is the first line with a text
    that does not begin with `#`.
    """
    lines = [line for line, _ in zip(iter(file.readline, ""), range(_MOST_LINES_ABOVE))]
    file.seek(0)
    looked_for = {name_key(name) for name in wanted}
    found = [
        (sum(name in looked_for for name in names), line, delimiter)
        for line, text in enumerate(lines)
        for delimiter in _DELIMITERS
        if (names := set(_names(text, delimiter)))
    ]
    most = max(found, key=lambda which: which[0], default=(0, 0, ","))
    if most[0] > (1 if len(looked_for) > 1 else 0):
        return most[1], most[2]
    plain = [line for line, text in enumerate(lines) if text.strip() and not text.lstrip().startswith("#")]
    line = plain[0] if plain else next((i for i, text in enumerate(lines) if text.strip()), 0)
    delimiter = max(_DELIMITERS, key=lines[line].count)  # the comma where there are as many of several
    if delimiter not in lines[line] and ANSWER_SEPARATOR in lines[line]:
        raise ValueError(
            f"{source}: the columns are separated by {ANSWER_SEPARATOR!r}, which stands between answers: separate them "
            "by commas, semicolons or tabs"
        )
    return line, delimiter


def _names(line: str, delimiter: str) -> Iterator[str]:
    """The line's cells as names of columns; none where it is no line of such cells."""
    try:
        cells = next(csv.reader(io.StringIO(line), delimiter=delimiter), [])
    except csv.Error:
        return
    yield from (name_key(cell.removeprefix("\ufeff")) for cell in cells)


def _quoting(delimiter: str) -> str:
    """How cells with such a delimiter are written."""
    return (
        f"a cell with {_DELIMITERS[delimiter]} or a line break stands in double quotes, with no space before them, and "
        'a quote inside such a cell is doubled ("")'
    )
