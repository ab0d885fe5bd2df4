"""JSON as tables: a document (an array of records, records under a key, a dict of columns) or one record per line.

Knows no model and no names of columns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from actpatch.core.text import shortened
from actpatch.tasks.chat import is_chat
from actpatch.tasks.unfit import Fault

Read = tuple[tuple[str, ...], list[list[Any]], list[str], dict[int, Fault]]
"""Names of the columns, the cells of each row, the name of each row for messages, and which rows are no records."""


def json_documents(file: TextIO, source: str, key: str | None = None) -> Read:
    """The table that a JSON document holds, or a file with one JSON object per line.

    Raises:
        ValueError: where it is neither, or a document that holds no table, or several.
    """
    if key is None and (lines := _lines(file)) is not None:
        return lines
    text = file.read()
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is not JSON ({error}): give an array of objects, or one object per line") from None
    return _table(document, source, key)


def cell(record: Any, name: str) -> Any:
    """What a record has under a name, or under a path of names joined by dots; None where it has nothing there.

    A whole number in a path counts the entries of a list, from 0.
    """
    if isinstance(record, Mapping) and name in record:
        return record[name]
    for part in name.split("."):
        if isinstance(record, Mapping):
            record = record.get(part)
        elif isinstance(record, Sequence) and not isinstance(record, str) and part.isdecimal():
            record = record[int(part)] if int(part) < len(record) else None
        else:
            return None
    return record


def _lines(file: TextIO) -> Read | None:
    """One record per line; None where the first line is no record, so that it is a document. The file is put back.

    pandas' own reader names no line in its errors, and turns texts into numbers and dates.
    """
    records: list[Mapping[str, Any]] = []
    rows: list[str] = []
    faults: dict[int, Fault] = {}
    known: dict[Any, Any] = {}
    first: Mapping[str, Any] = {}
    for number, line in enumerate(iter(file.readline, ""), start=1):
        if not line.strip():
            continue
        fault = ""
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            record, fault = {}, f"not JSON ({error})"
        if not isinstance(record, Mapping):
            record, fault = {}, line.strip()[:40]
        if fault and not records:
            file.seek(0)
            return None
        if fault:
            faults[len(records)] = Fault("records", fault)
        if not records:
            first = record
        records.append({name: _shared(value, known) for name, value in record.items()})
        rows.append(f"row {number}")
    if len(records) == 1 and _holds_tables(first):
        file.seek(0)
        return None
    return _of_records(records, rows, faults)


def _table(document: Any, source: str, key: str | None) -> Read:
    for part in key.split(".") if key is not None else ():
        if not isinstance(document, Mapping) or part not in document:
            has = f"it has {', '.join(map(repr, document))}" if isinstance(document, Mapping) else "it has no keys"
            raise ValueError(f"{source} has no key {part!r}: {has}")
        document = document[part]
    if isinstance(document, list):
        return _array(document, source)
    if not isinstance(document, Mapping):
        raise ValueError(f"{source} holds {shortened(document)}, expected an array of objects")
    tables = {name: value for name, value in document.items() if _is_records(value)}
    for name, within in document.items():
        if isinstance(within, Mapping):
            tables |= {f"{name}.{inner}": value for inner, value in within.items() if _is_records(value)}
    if len(tables) > 1:
        keys = list(tables)
        raise ValueError(f"{source} has records under {', '.join(map(repr, keys))}: say which with key={keys[0]!r}")
    if tables:
        return _array(next(iter(tables.values())), source)
    if (columns := _columns(document)) is not None:
        return columns
    if document and all(isinstance(value, Mapping) for value in document.values()):
        return _of_records(list(document.values()), [f"row {name!r}" for name in document])
    if document and not any(isinstance(value, Mapping) for value in document.values()):
        return _of_records([document], ["row 1"])
    has = ", ".join(map(repr, list(document)[:10])) or "none"
    raise ValueError(
        f"{source} is one JSON document without a table: its keys are {has}. Expected an array of objects, one under a "
        "key (say which with key='...'), or a dict of columns of one length"
    )


def _array(document: list[Any], source: str) -> Read:
    if not document:
        raise ValueError(f"{source} is empty: expected an array of objects")
    faults = {
        i: Fault("records", shortened(record)) for i, record in enumerate(document) if not isinstance(record, Mapping)
    }
    if len(faults) == len(document):
        raise ValueError(f"{source}, record 1 is {shortened(document[0])}, expected an object {{...}}")
    records = [{} if i in faults else record for i, record in enumerate(document)]
    return _of_records(records, [f"row {i}" for i in range(1, len(document) + 1)], faults)


def _columns(document: Mapping[str, Any]) -> Read | None:
    """A dict of columns: lists of one length, or as pandas writes frames, dicts by index or a `split` of them."""
    names = list(document)
    if set(names) == {"columns", "index", "data"} and isinstance(document["data"], list):
        rows = [f"row {label}" for label in document["index"]]
        return tuple(map(str, document["columns"])), [list(cells) for cells in document["data"]], rows, {}
    values = list(document.values())
    if any(map(_is_messages, values)):
        return None
    if values and all(isinstance(value, list) for value in values) and len({len(value) for value in values}) == 1:
        rows = [f"row {i + 1}" for i in range(len(values[0]))]
        return tuple(names), [list(cells) for cells in zip(*values)], rows, {}
    by_index = values and all(isinstance(value, Mapping) and value for value in values)
    if by_index and all(str(label).isdecimal() for value in values for label in value):
        labels = list(dict.fromkeys(label for value in values for label in value))
        rows = [f"row {label}" for label in labels]
        return tuple(names), [[value.get(label) for value in values] for label in labels], rows, {}
    return None


def _of_records(records: Sequence[Mapping[str, Any]], rows: list[str], faults: dict[int, Fault] | None = None) -> Read:
    names = tuple(dict.fromkeys(name for record in records for name in record))
    return names, [[record.get(name) for name in names] for record in records], rows, faults or {}


def _is_records(value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value) and all(isinstance(record, Mapping) for record in value)
    return is_list and not _is_messages(value)


def _is_messages(value: Any) -> bool:
    """Whether these are the messages of a chat, which are one prompt and no records."""
    return is_chat(value) and all({"role", "content"} <= set(message) for message in value)


def _holds_tables(record: Mapping[str, Any]) -> bool:
    """Whether the only line of a file is a document of records or columns, and no record of its own."""
    values = list(record.values())
    if any(map(_is_messages, values)):
        return False
    if any(map(_is_records, values)) or (values and all(isinstance(value, (Mapping, list)) for value in values)):
        return True
    below = [inner for value in values if isinstance(value, Mapping) for inner in value.values()]
    return any(map(_is_records, below)) and not any(isinstance(value, str) for value in values)


def _shared(value: Any, known: dict[Any, Any]) -> Any:
    """A list of texts or numbers that many records have, once."""
    kinds = {*map(type, value)} if isinstance(value, list) else {dict}
    if kinds & {list, dict}:
        return value
    kept = tuple(value)
    return known.setdefault(kept if kinds == {str} else (kept, tuple(map(type, kept))), kept)
