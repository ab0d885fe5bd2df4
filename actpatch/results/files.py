"""Writes sweeps as JSON, which is read back exactly, and their long table as CSV and Parquet."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from csv import QUOTE_NONNUMERIC
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from actpatch.core.edge_patches import EdgePatches
from actpatch.core.estimates import Estimate
from actpatch.core.files import write_file
from actpatch.core.graph import Graph
from actpatch.core.heavy import pd
from actpatch.core.sites import Patch, Site
from actpatch.results.answers import AnswerSet
from actpatch.results.larger import LargerExperiment
from actpatch.results.metric_values import MetricValues
from actpatch.results.sweep import Sweep

FILE_FORMAT = 10
"""Raised whenever what is stored changes."""
READ_FORMATS = (8, 9, 10)
"""Of these, 8 knows no edges and no paths, and 8 and 9 no estimates."""
_SIDES = ("correct", "incorrect")
_NOT_STORED = ("whole", "run_exactly", "larger")
_OF_EDGES = ("writers", "readers", "columns")
"""The arrays of `EdgePatches`, each of numbers in the graph's writers, in its readers and in the places."""


def write_csv(table: pd.DataFrame, path: str | Path) -> Path:
    """The table as a file of `csv_content`.

    Raises:
        OSError: where the path cannot be written.
    """
    return write_file(path, csv_content(table))


def csv_content(table: pd.DataFrame) -> bytes:
    """The table as CSV in UTF-8, numbers exact and texts in quotes."""
    return table.to_csv(index=False, quoting=QUOTE_NONNUMERIC, lineterminator="\n").encode()


def csv_columns(table: pd.DataFrame) -> bytes:
    """The cells of `csv_content` in another order, which packs to half the size: column below column, a line each."""
    return b"".join(csv_content(table[[name]]) for name in table.columns)


def write_parquet(table: pd.DataFrame, path: str | Path) -> Path:
    """The table as Parquet.

    Raises:
        ImportError: where pyarrow is not installed.
        OSError: where the path cannot be written.
    """
    if find_spec("pyarrow") is None:
        raise ImportError(
            "writing Parquet needs the package pyarrow, which is not installed: pip install pyarrow, or write CSV "
            "with to_csv"
        )
    content = io.BytesIO()
    table.to_parquet(content, engine="pyarrow", index=False)
    return write_file(path, content.getvalue())


def write_sweeps(sweeps: Sequence[Sweep], kind: str, path: str | Path) -> Path:
    """One sweep, or those of both directions, as JSON, with the name of the kind of results they are shown as.

    Raises:
        OSError: where the path cannot be written.
    """
    return write_stored(kind, {"sweeps": [_to_json(sweep) for sweep in sweeps]}, path)


def write_stored(kind: str, content: Mapping[str, Any], path: str | Path) -> Path:
    """Plain values as JSON, with the name of the kind of results that they make.

    Raises:
        OSError: where the path cannot be written.
    """
    stored = {"format": FILE_FORMAT, "kind": kind, **content}
    text = json.dumps(stored, ensure_ascii=False, allow_nan=False, default=_number)
    return write_file(path, text.encode())


def read_sweeps(path: str | Path) -> tuple[str, list[Sweep]]:
    """(kind of results, one sweep or two) that `write_sweeps` wrote, every number as it was.

    Raises:
        OSError: where the file cannot be read.
        ValueError: where it is no such file, one of another format version, or damaged.
    """
    stored = read_stored(path)
    try:
        sweeps = [_from_json(_with_estimate(fields, stored["format"])) for fields in stored["sweeps"]]
        if len(sweeps) not in (1, 2):
            raise ValueError(f"{len(sweeps)} sweeps, expected one, or one of each direction")
        return stored["kind"], sweeps
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): run the experiment again") from error


def read_stored(path: str | Path) -> dict[str, Any]:
    """What `write_stored` wrote: `kind`, and the values of that kind.

    Raises:
        OSError: where the file cannot be read.
        ValueError: where it is no such file, or one of a format version that is not read.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        found = stored["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no saved patching results: expected a file written by .save()") from error
    if found not in READ_FORMATS:
        raise ValueError(
            f"{path} has result format {found}, this version reads formats {_listed(READ_FORMATS)}: "
            "read it with the version that wrote it, or run the experiment again"
        )
    return stored


def _to_json(shown: Sweep) -> dict[str, Any]:
    """The whole experiment, and which of its patches are shown, where these are some of them."""
    sweep = shown.entire
    fields = {
        f.name: getattr(sweep, f.name)
        for f in dataclasses.fields(sweep)
        if f.name not in ("whole", "run_exactly", "larger")
    }
    if sweep.larger is not None:
        fields["chosen_out_of"] = sweep.larger.n_patches
    fields["numbers"] = shown.numbers
    fields["patches"] = _stored_patches(sweep.patches)
    fields["measured"] = [
        {f.name: _plain(getattr(values, f.name)) for f in dataclasses.fields(values)} for values in sweep.measured
    ]
    fields["versions"] = dict(sweep.versions)
    fields["estimate"] = None if sweep.estimate is None else dataclasses.asdict(sweep.estimate)
    # Many pairs may have the same long list of answers: each is stored once.
    distinct = list(dict.fromkeys((*sweep.correct, *sweep.incorrect)))
    places = {answers: place for place, answers in enumerate(distinct)}
    fields["answers"] = [dataclasses.asdict(answers) for answers in distinct]
    for side in _SIDES:
        fields[side] = [places[answers] for answers in getattr(sweep, side)]
    return fields


def _from_json(fields: dict[str, Any]) -> Sweep:
    fields["patches"] = _patches(fields["patches"])
    for name in ("pair_indices", "templates", "groups", "shortcuts", "notes"):
        fields[name] = tuple(fields[name])
    for name in ("clean_tokens", "corrupted_tokens", "matches"):
        fields[name] = _tuples(fields[name])
    answers = [AnswerSet(*map(_tuples, (stored["ids"], stored["texts"]))) for stored in fields.pop("answers")]
    for side in _SIDES:
        fields[side] = tuple(answers[place] for place in fields[side])
    n_patches, n_pairs = len(fields["patches"]), len(fields["pair_indices"])
    shapes = {"patched": (n_patches, n_pairs), "clean": (n_pairs,), "corrupted": (n_pairs,)}
    for values in fields["measured"]:
        for run, shape in shapes.items():
            values[run] = np.array(values[run], dtype=np.float64).reshape(shape)
    fields["measured"] = tuple(MetricValues(**values) for values in fields["measured"])
    numbers = fields.pop("numbers")
    if "chosen_out_of" in fields:
        fields["larger"] = LargerExperiment(fields.pop("chosen_out_of"))
    sweep = Sweep(**fields)
    return sweep.of_patches(numbers) if numbers else sweep


def _with_estimate(fields: dict[str, Any], file_format: int) -> dict[str, Any]:
    """The fields of a sweep with its estimate as a value: without one, numbers of a file that knows estimates are not
    taken for exact ones."""
    if file_format < 10:
        if "estimate" in fields:
            raise ValueError(f"files of format {file_format} know no estimates, and this one has one")
        return {**fields, "estimate": None}
    stored = fields["estimate"]
    found = None if stored is None else Estimate(**stored)
    if found is not None and dataclasses.asdict(found) != stored:
        raise ValueError(f"estimate {stored!r} lacks the steps and the grid of {found.method!r}")
    return {**fields, "estimate": found}


def _stored_patches(patches: Sequence[Patch]) -> Any:
    """Patches one by one; edges as arrays of numbers, with the graph that these count in."""
    if not isinstance(patches, EdgePatches):
        return [dataclasses.asdict(patch) for patch in patches]
    return {
        "graph": dataclasses.asdict(patches.graph),
        **{name: getattr(patches, name).tolist() for name in _OF_EDGES},
        "places": [[dataclasses.asdict(site) for site in place] for place in patches.places],
    }


def _patches(stored: Any) -> Sequence[Patch]:
    if isinstance(stored, list):
        return tuple(_patch(patch) for patch in stored)
    graph = Graph(**{name: _tuples(value) for name, value in stored["graph"].items()})
    places = tuple(tuple(_site(site) for site in place) for place in stored["places"])
    arrays = {name: np.array(stored[name], dtype=np.int64) for name in _OF_EDGES}
    for (name, numbers), known in zip(arrays.items(), (graph.writers, graph.readers, places)):
        if len(numbers) != len(arrays["writers"]) or (numbers < 0).any() or (numbers >= len(known)).any():
            raise ValueError(f"{name} of the edges are no numbers of its {len(known)}, one per edge")
    return EdgePatches(graph, **arrays, places=places)


def _listed(formats: Sequence[int]) -> str:
    return f"{', '.join(map(str, formats[:-1]))} and {formats[-1]}"


def _patch(stored: dict[str, Any]) -> Patch:
    return Patch(**{**stored, "sites": tuple(_site(site) for site in stored["sites"])})


def _site(stored: dict[str, Any]) -> Site:
    return Site(**{name: _tuples(value) for name, value in stored.items()})


def _tuples(value: Any) -> Any:
    """Lists, however deep, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Arrays as nested lists; JSON knows no numbers that are not finite, so these are written as texts."""
    if not isinstance(value, np.ndarray):
        return value
    if np.isfinite(value).all():
        return value.tolist()
    return np.where(np.isfinite(value), value.astype(object), value.astype(str)).tolist()


def _number(value: Any) -> Any:
    """A NumPy scalar, for instance a position that was taken from an array, as a plain number."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be stored: {value!r}")
