"""What a run would take, as a value: rows, work, time, memory, disk, units, and what its pairs can show at all.

Time is that of one process on the present device, from a calibration of a second or two: some patches on some pairs, as
the run will run them. It says nothing of other machines.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from actpatch.core.direction import Direction
from actpatch.core.stores import Store, as_store
from actpatch.core.text import count
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.measured import Measured
from actpatch.engine.memory import most_memory
from actpatch.runs.asked import Asked
from actpatch.runs.folder import RunFolder
from actpatch.runs.parts import Part, part_content
from actpatch.runs.spec import Spec, spec_of
from actpatch.runs.units import Unit, Units
from actpatch.runs.work import runs_per_pair, work_of_patches, work_of_recording
from actpatch.runs.worker import engine_of
from actpatch.statistics.site_tests import reach_of_pairs

SECONDS = 0.7
"""About how long the longer of the two samples takes that the time is reckoned from."""
MOST_DRAWN = 2**15
"""About so many rows a part has, of drawn numbers, that tells how many bytes there will be."""
GROWTH = 16
"""Each sample is at most so many times as large as the one before, until one takes long enough."""


@dataclass(frozen=True)
class Plan:
    """What a run would take."""

    kind: str
    """The shape of its results."""
    n_patches: int
    n_pairs: int
    directions: tuple[str, ...]
    rows: int
    """Patched runs: each patch on each pair, in each direction, with each sample and each whole answer."""
    work: float
    """Floating-point operations of matrix products, those of unpatched runs included."""
    seconds: float
    """How long it takes in one process on `device`, reckoned from a sample."""
    device: str
    peak_memory: int
    """Bytes at most beside Python and its libraries: weights, recordings, a batch, and one unit's results."""
    result_memory: int
    """Bytes of the results, where they are handed out whole."""
    disk: int
    """Bytes of the folder."""
    units: int
    smallest_p: float
    """No p-value can be below this, before correction."""
    too_few: str
    """Why no site alone could be significant with so many pairs; empty where one could."""
    folder: Path | None = None
    """Where it is to be stored; None where no `store` was given."""
    spec: Spec | None = field(default=None, repr=False, compare=False)

    @property
    def can_be_significant(self) -> bool:
        """Whether one site alone could be significant, at the usual level after correction."""
        return not self.too_few

    def __str__(self) -> str:
        size = f"{count(self.n_patches, 'patch')} × {count(self.n_pairs, 'pair')}, {' and '.join(self.directions)}"
        told = self.too_few or f"p-values down to {self.smallest_p:.2g}, so one site alone can be significant"
        return "\n".join(
            [
                f"{self.kind}: {size}: {self.rows:,} runs in {count(self.units, 'unit')}",
                f"work    {_scaled(self.work, 'FLOP')}, about {duration(self.seconds)} on {self.device}",
                f"memory  at most {_bytes(self.peak_memory)} while it runs, {_bytes(self.result_memory)} of results",
                f"disk    about {_bytes(self.disk)}{f' in {self.folder}' if self.folder else ', if it is stored'}",
                f"pairs   {told}",
            ]
        )

    def begin(self, folder: Store | str | Path | None = None) -> Path:
        """Begin the run in its folder without running anything: workers take it from there.

        Args:
            folder: where; None for the `store` that was given.

        Raises:
            ValueError: where there is none, and where the folder is another run's or holds something else.
            OSError: where it cannot be written.
        """
        store = as_store(folder)
        path = self.folder if store is None else Path(store.folder)
        if path is None or self.spec is None:
            raise ValueError("the plan has no folder: give one, plan.begin('runs/my-run'), or plan with store=")
        RunFolder(path).begin(self.spec)
        return path


def plan_of(engine: PatchingEngine, asked: Asked, kind: str, store: Store | None) -> Plan:
    """What this experiment would take of this engine's model, after a calibration of a second or two."""
    engine.check(asked.pairs, asked.patches, references=asked.references, noise=asked.noise)
    spec = spec_of(engine, asked, kind, None if store is None else store.rows_per_unit)
    return replan(engine, asked, spec, None if store is None else Path(store.folder))


def plan_of_folder(folder: str | Path, *, device: str | None = None) -> Plan:
    """What the whole run in this folder takes here, however far it has come: its model is loaded, and a sample run.

    Raises:
        ValueError: as `work_on`.
    """
    at = RunFolder(Path(folder).expanduser())
    spec = at.read_spec()
    return replan(engine_of(at, spec, None, device, None, False), spec.asked, spec, at.path)


def replan(engine: PatchingEngine, asked: Asked, spec: Spec, folder: Path | None) -> Plan:
    """What a run that is described already takes of this engine, all of it, after a calibration."""
    units = spec.units
    model, n_pairs = engine.runner.model, len(asked.pairs)
    of_patches = work_of_patches(engine, asked)
    work = float(of_patches.sum()) * n_pairs
    recording = work_of_recording(engine, asked) * n_pairs * units.blocks_of_patches
    seconds, disk = _calibrated(engine, asked, spec, of_patches, units)
    numbers = asked.n_patches * n_pairs * len(asked.patches) * len(asked.metrics)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    largest = max(units[number].n_rows for number in {0, len(units) - 1}) * len(asked.patches) * len(asked.metrics)
    smallest_p, too_few = reach_of_pairs(n_pairs, asked.n_patches)
    return Plan(
        kind=spec.kind,
        n_patches=asked.n_patches,
        n_pairs=n_pairs,
        directions=tuple(asked.patches),
        rows=round(asked.n_patches * n_pairs * len(asked.patches) * runs_per_pair(asked)),
        work=work + recording,
        seconds=seconds,
        device=str(engine.runner.device),
        peak_memory=weights + most_memory(model, asked.pairs.longest) + BYTES_HELD * largest,
        result_memory=8 * numbers,
        disk=disk,
        units=len(units),
        smallest_p=smallest_p,
        too_few=too_few,
        folder=folder,
        spec=spec,
    )


BYTES_HELD = 120
"""Bytes for each number of a unit while it is made a table."""


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    for size, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{0 if seconds >= 20 * size else 1}f} {name}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def _calibrated(
    engine: PatchingEngine, asked: Asked, spec: Spec, of_patches: np.ndarray, units: Units
) -> tuple[float, int]:
    """(seconds, bytes on the disk) of the run, from a very short sample and one that is long enough to fill batches."""
    showed, engine.show_progress = engine.show_progress, False
    try:
        _sampled(engine, asked, spec, 1)  # the first run of a model is slower than all others
        short = long = _sampled(engine, asked, spec, 1)
        while long.seconds < SECONDS and long.n_rows < asked.n_patches * len(asked.pairs):
            faster = min(GROWTH, 1.5 * SECONDS / max(long.seconds - 0.9 * short.seconds, 1e-4))
            before, long = long, _sampled(engine, asked, spec, max(2 * long.n_rows, int(faster * long.n_rows)))
            if long.n_rows <= before.n_rows:
                break
    finally:
        engine.show_progress = showed
    first, second = (
        (sample.seconds, float(of_patches[list(sample.patches)].sum()) * len(sample.pairs)) for sample in (short, long)
    )
    work = float(of_patches.sum()) * len(asked.pairs)
    return reckoned(first, second, work, len(units)), _disk(asked, spec, long)


def reckoned(short: tuple[float, float], long: tuple[float, float], work: float, n_units: int) -> float:
    """Seconds of so many units of so much work in all, from (seconds, work) of a short and of a long sample.

    The short one tells what each unit costs by itself, the other what work costs: a tenth of its seconds at least.
    """
    fixed = max(0.0, short[0] - long[0] / long[1] * short[1])
    return n_units * fixed + max(long[0] - fixed, 0.1 * long[0]) / long[1] * work


def _disk(asked: Asked, spec: Spec, sample: _Sample) -> int:
    """Bytes of the folder, from a part of the first unit's patches with numbers like those of the sample."""
    unit = spec.units[0]
    pairs = unit.pairs[: max(1, MOST_DRAWN // len(unit.patches))]
    some = asked.part(pairs, slice(unit.patches.start, unit.patches.stop))
    rng, shape = np.random.default_rng(0), (len(unit.patches), len(pairs))
    drawn = [_drawn_like(runs, asked.dtype, way, shape, rng) for way, runs in zip(asked.patches, sample.measured)]
    whole = len(part_content(spec.id, some, Part(Unit(0, pairs, unit.patches), tuple(drawn), {})))
    rows = asked.n_patches * len(asked.pairs)
    per_row = max(0, whole - sample.size_of_one) / (shape[0] * shape[1])
    return len(json.dumps(spec.data)) + round(len(spec.units) * sample.size_of_one + rows * per_row)


def _drawn_like(
    runs: Measured, dtype: str, way: Direction, shape: tuple[int, int], rng: np.random.Generator
) -> Measured:
    """Numbers that take as many bytes: as many of them are the baseline, whole, or of single precision."""
    places = rng.integers(0, runs.clean.shape[1], shape[1])
    clean, corrupted = runs.clean[:, places], runs.corrupted[:, places]
    base, of_sample = (corrupted, runs.corrupted) if way == "denoising" else (clean, runs.clean)
    patched = np.empty((len(clean), *shape))
    for into, own, values, of_values in zip(patched, base, runs.patched, of_sample):
        changed = values[values != of_values]
        into[:] = own
        if len(changed):
            where = rng.random(shape) < len(changed) / values.size
            found = rng.choice(changed, int(where.sum()))
            if (changed != np.rint(changed)).any():
                found = found * (1 + 1e-3 * rng.standard_normal(len(found)))
            into[where] = found if dtype == "float64" else found.astype(np.float32)
    return Measured(patched, clean, corrupted)


@dataclass(frozen=True)
class _Sample:
    patches: range
    pairs: Sequence[int]
    seconds: float
    measured: tuple[Measured, ...]
    size_of_one: int
    """Bytes of a part of a single row."""

    @property
    def n_rows(self) -> int:
        return len(self.patches) * len(self.pairs)


def _sampled(engine: PatchingEngine, asked: Asked, spec: Spec, n_rows: int) -> _Sample:
    """About so many rows: how long they take, and their numbers.

    Patches are evenly spread, on as few pairs as may be, as in a unit. Of estimates all are taken, as they share their
    gradients.
    """
    step = 1 if asked.estimate is not None else max(1, asked.n_patches // n_rows)
    chosen = range(step // 2, asked.n_patches, step)
    n_pairs = min(len(asked.pairs), -(-n_rows // len(chosen)))
    pairs = np.linspace(0, len(asked.pairs), n_pairs, endpoint=False).astype(int).tolist()
    some = asked.part(pairs, slice(chosen.start, chosen.stop, chosen.step))
    start = time.perf_counter()
    measured = some.measured(engine)
    seconds = time.perf_counter() - start
    one = asked.part(pairs[:1], slice(chosen.start, chosen.start + 1))
    of_one = [Measured(of.patched[:, :1, :1], of.clean[:, :1], of.corrupted[:, :1]) for of in measured]
    size = len(part_content(spec.id, one, Part(Unit(0, range(1), range(1)), tuple(of_one), {})))
    return _Sample(chosen, pairs, seconds, tuple(measured), size)


def _scaled(value: float, unit: str) -> str:
    for size, name in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {name}{unit}"
    return f"{value:.0f} {unit}"


def _bytes(value: float) -> str:
    for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f} bytes"
