"""Parts: what one unit measured, as a Parquet file that any tool can read, and that says whether it is whole.

A row per direction, metric, patch and pair. In the file's metadata stands of which run and unit it is, how it was run,
and a hash of its numbers: a part that was cut off, altered, or is another run's is told from a good one. Nothing here
knows which parts there should be.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from actpatch.core.direction import Direction
from actpatch.engine.measured import Measured
from actpatch.results.patches import table_columns
from actpatch.runs.asked import Asked
from actpatch.runs.units import Unit

META = b"actpatch"
RUNS = ("clean", "corrupted", "patched")
_PLACES = ("site", "hook_point", "layer", "head", "neuron", "sender", "place")


@dataclass(frozen=True)
class Part:
    """What one unit measured, and how."""

    unit: Unit
    measured: tuple[Measured, ...]
    """Per direction."""
    how: Mapping[str, Any]
    """Plain values: versions, seconds, device, what happened to it."""


def check_can_store() -> None:
    """Raises ImportError where pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise ImportError(
            "storing a run needs the package pyarrow, which is not installed: pip install pyarrow, or leave out store"
        )


def part_content(run: str, asked: Asked, part: Part) -> bytes:
    """The part as a file.

    Args:
        run: id of the run.
        asked: the patches and pairs of the unit.
        part: what was measured of them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    directions: tuple[Direction, ...] = tuple(asked.patches)
    shape = (len(directions), len(asked.metrics), asked.n_patches, len(asked.pairs))
    way, metric, patch, pair = (index.ravel() for index in np.indices(shape))
    numbers = {run: _stacked(part.measured, run, shape).ravel() for run in RUNS}
    of_patch = [table_columns(patches) for patches in asked.patches.values()]
    columns: dict[str, Any] = {
        "direction": _texts(directions, way),
        "metric": _texts([metric.name for metric in asked.metrics], metric),
        "unit": _texts([metric.unit for metric in asked.metrics], metric),
        "patch": np.asarray(part.unit.patches)[patch],
        "pair": np.array(asked.pairs.indices, dtype=np.int64)[pair],
    }
    for name in _PLACES:
        each = [None if isinstance(value, tuple) else value for of in of_patch for value in of[name].each()]
        at = way * asked.n_patches + patch
        is_number = name in ("layer", "head", "neuron")
        columns["position" if name == "place" else name] = _numbers(each, at) if is_number else _texts(each, at)
    columns |= numbers
    meta = {
        "run": run,
        "unit": part.unit.id,
        "digest": _digest(run, part.unit, numbers),
        "shortcuts": [list(runs.shortcuts) for runs in part.measured],
        "notes": [list(runs.notes) for runs in part.measured],
        **part.how,
    }
    table = pa.table(columns).replace_schema_metadata({META: json.dumps(meta)})
    content = io.BytesIO()
    repeated = [name for name in columns if name != "patched"]
    pq.write_table(table, content, compression="zstd", use_dictionary=repeated, write_page_checksum=True)
    return content.getvalue()


def read_part(path: Path, run: str, unit: Unit, n_directions: int, n_metrics: int) -> Part:
    """The part in this file.

    Raises:
        OSError: where it cannot be read.
        ValueError: where it is damaged, or of another run or unit, with the reason.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            meta = json.loads((file.schema_arrow.metadata or {})[META])
            table = file.read(columns=list(RUNS))
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        raise ValueError(f"{path} is no whole part ({type(error).__name__})") from error
    shape = (n_directions, n_metrics, len(unit.patches), len(unit.pairs))
    if (meta.get("run"), meta.get("unit")) != (run, unit.id) or len(table) != np.prod(shape):
        raise ValueError(f"{path} is a part of another run or unit")
    numbers = {name: table.column(name).to_numpy() for name in RUNS}
    if meta.get("digest") != _digest(run, unit, numbers):
        raise ValueError(f"{path} was altered: its numbers are not those that were written")
    clean, corrupted, patched = (numbers[name].reshape(shape) for name in RUNS)
    measured = tuple(
        Measured(patched[i], clean[i, :, 0], corrupted[i, :, 0], tuple(meta["shortcuts"][i]), tuple(meta["notes"][i]))
        for i in range(n_directions)
    )
    return Part(unit, measured, meta)


def _stacked(measured: Sequence[Measured], run: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of one run, by direction, metric, patch and pair."""
    each = [getattr(of, run) for of in measured]
    return np.stack([np.broadcast_to(of if of.ndim == 3 else of[:, None], shape[1:]) for of in each])


def _digest(run: str, unit: Unit, numbers: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(f"{run} {unit.id}".encode())
    for name in RUNS:
        found.update(np.ascontiguousarray(numbers[name], dtype="<f8").tobytes())
    return found.hexdigest()[:32]


def _texts(values: Sequence[Any], which: np.ndarray) -> Any:
    import pyarrow as pa

    distinct = {value: i for i, value in enumerate(dict.fromkeys(v for v in values if v is not None))}
    codes = np.array([-1 if value is None else distinct[value] for value in values], dtype=np.int32)[which]
    texts = pa.array([str(text) for text in distinct], type=pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), texts)


def _numbers(values: Sequence[int | None], which: np.ndarray) -> Any:
    import pyarrow as pa

    known = np.array([-1 if value is None else value for value in values], dtype=np.int64)[which]
    return pa.array(known, mask=known < 0)
