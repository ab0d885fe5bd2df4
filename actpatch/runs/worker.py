"""Runs units of a folder with a loaded model, each into its part.

What kills the process loses the unit that it is at, and nothing else. A unit that does not fit into memory is halved,
as often as need be; one that fails is tried again after the others, three times in all. Who spreads a run needs no more
than `run_units`, or `Worker.attempt`, and `complete`. Nothing here knows which units somebody else runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from actpatch.core.indices import is_integer
from actpatch.core.warn import warn_user
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.measured import Measured
from actpatch.models.runner import is_out_of_memory
from actpatch.runs.asked import Asked, library_versions
from actpatch.runs.folder import ATTEMPTS, RunFolder
from actpatch.runs.joining import of_halves
from actpatch.runs.parts import Part, check_can_store, part_content
from actpatch.runs.spec import Spec
from actpatch.runs.units import Shard, Unit
from actpatch.runs.waiting import Waiting


@dataclass
class Worker:
    """Runs units of one run.

    Args:
        folder: of the run.
        spec: what was asked.
        asked: the experiment that this describes.
        engine: whose model is the one that was asked for.
    """

    folder: RunFolder
    spec: Spec
    asked: Asked
    engine: PatchingEngine
    _halved: list[str] = field(default_factory=list)

    def run(self, numbers: Sequence[int]) -> None:
        """Run these units, but for those of which a part is there, and those that failed three times.

        Raises:
            OSError: where a part cannot be written.
            Exception: of a unit, where none was ever finished.
        """
        check_can_store()
        waiting = Waiting(self.folder, self.spec, numbers)
        with waiting.shown(self.engine.show_progress) as progress, _Quiet(self.engine):
            while waiting:
                unit = waiting.take()
                error = self.attempt(unit)
                if error is not None:
                    waiting.failed(unit, error)
                    continue
                progress.update(waiting.runs_of(unit))

    def attempt(self, unit: Unit) -> Exception | None:
        """Run a unit into its part, unless another process has been there; what it failed of, which is noted.

        Raises:
            OSError: where the part cannot be written.
        """
        if self.folder.part(unit).exists():
            return None
        of_unit = self.asked.part(unit.pairs, _slice(unit.patches))
        try:
            part = self._part(unit, of_unit)
        except Exception as error:
            self.folder.fail(unit, error)
            return error
        self.folder.write_part(unit, part_content(self.spec.id, of_unit, part))
        return None

    def _part(self, unit: Unit, asked: Asked) -> Part:
        self._halved.clear()
        start = time.perf_counter()
        measured = self._measured(unit, asked)
        how = {
            "seconds": round(time.perf_counter() - start, 3),
            "versions": library_versions(),
            "device": str(self.engine.runner.device),
            "halved": list(self._halved),
        }
        return Part(unit, tuple(measured), how)

    def _measured(self, unit: Unit, asked: Asked) -> list[Measured]:
        try:
            return asked.measured(self.engine)
        except (RuntimeError, MemoryError) as error:
            halves = self.spec.units.halves(unit)
            if len(halves) == 1 or not (isinstance(error, MemoryError) or is_out_of_memory(error)):
                raise
        self._halved.append(f"{len(unit.patches)} patches × {len(unit.pairs)} pairs did not fit into memory")
        each = [self.asked.part(half.pairs, _slice(half.patches)) for half in halves]
        parts = [Part(half, tuple(self._measured(half, of)), {}) for half, of in zip(halves, each)]
        return of_halves(unit, parts, tuple(self.asked.patches))


class _Quiet:
    """An engine without a progress bar of its own, while units are run."""

    def __init__(self, engine: PatchingEngine) -> None:
        self.engine, self.showed = engine, engine.show_progress

    def __enter__(self) -> None:
        self.engine.show_progress = False

    def __exit__(self, *_: object) -> None:
        self.engine.show_progress = self.showed


def work_on(
    folder: str | Path,
    *,
    model: Any = None,
    shard: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    show_progress: bool = True,
) -> None:
    """Go on with a run from its folder alone: all of its units, or a share of them.

    Any number of processes on any machines may work on one folder. Units that are not there at the end, as they failed
    three times, are named in a warning.

    Args:
        folder: of a run that an experiment with `store=`, or `Plan.begin`, has begun.
        model: the run's model; None to load it as it was loaded by `load_model`.
        shard: which share: `3/16` is the third of sixteen; None for all units.
        device: where to load the model; None for CUDA where there is one, else the CPU.
        batch_size: most rows run together; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.

    Raises:
        ValueError: before any run, for a folder that is none of a run, one of a newer version, a shard that is none, a
            metric that a folder cannot hold, and a model other than the run's.
        OSError: where the folder cannot be written, or the disk is full.
    """
    share = None if shard is None else Shard.from_text(shard)
    at = RunFolder(Path(folder).expanduser())
    spec = at.read_spec()
    at.check_can_be_written()
    asked, engine = spec.asked, engine_of(at, spec, model, device, batch_size, show_progress)
    every = range(len(spec.units))
    wanted = every if share is None else share.of_units(every)
    complete(at, spec, wanted, partial(run_units, at, spec, asked, engine))
    warn_of_lacking(at, spec, wanted)


def warn_of_lacking(folder: RunFolder, spec: Spec, numbers: Sequence[int]) -> None:
    """Warn of those of these units that are not there at the end."""
    if lacking := sorted({*numbers} - {*folder.done(spec)}):
        warn_user(folder.told_of_lacking(len(spec.units), lacking))


def complete(folder: RunFolder, spec: Spec, numbers: Sequence[int], run: Callable[[Sequence[int]], None]) -> None:
    """Run these units until their parts are whole, those that stood there too; write the manifest where all are.

    Args:
        folder: of the run.
        spec: what was asked.
        numbers: the units.
        run: runs units of which no part is there: `run_units` of a model that is loaded, or whoever spreads them.
    """
    for _ in range(ATTEMPTS):
        run(numbers)
        whole, n_damaged = _whole_parts(folder, spec, numbers)
        if not n_damaged:
            break
    if folder.is_finished or len(folder.done(spec)) < len(spec.units):
        return
    others, n_damaged = _whole_parts(folder, spec, [number for number in range(len(spec.units)) if number not in whole])
    hows = {**whole, **others}
    if not n_damaged and len(hows) == len(spec.units):  # else whoever runs them again ends the run
        halved = [f"unit {number:06d}: {what}" for number in sorted(hows) for what in hows[number]["halved"]]
        folder.finish(spec, {"seconds": round(sum(how["seconds"] for how in hows.values()), 3), "halved": halved})


def run_units(folder: RunFolder, spec: Spec, asked: Asked, engine: PatchingEngine, numbers: Sequence[int]) -> None:
    """Run these units of a folder into their parts (`Worker`).

    Raises:
        ValueError: for a number that is none of a unit.
    """
    wrong = [number for number in numbers if not is_integer(number) or not 0 <= number < len(spec.units)]
    if wrong:
        raise ValueError(f"unit {wrong[0]!r} is none of this run's: expected 0 to {len(spec.units) - 1}")
    Worker(folder, spec, asked, engine).run(numbers)


def engine_of(
    folder: RunFolder, spec: Spec, model: Any, device: str | None, batch_size: int | None, show_progress: bool
) -> PatchingEngine:
    """An engine on the model of a run: on the one given, or on the one that its folder tells how to load.

    Raises:
        ValueError: where the folder does not tell, and for a model that is not the run's.
    """
    estimate = spec.asked.estimate  # a metric that cannot be held is told of before a model is loaded
    if model is None:
        if spec.loaded is None:
            raise ValueError(
                f"the model of the run in {folder} was not loaded by load_model, so nothing says how to load it: go on "
                "with the same call in Python, or work_on(folder, model=...)"
            )
        try:
            model = spec.loaded.load(device)
        except (ValueError, OSError) as error:
            raise ValueError(
                f"the model {spec.loaded.name_or_path!r} of the run in {folder} cannot be loaded: {error}; one that "
                "lies elsewhere now is given in Python, work_on(folder, model=...)"
            ) from error
    if differing := spec.differences_of_model(model):
        raise ValueError(
            f"the model is not that of the run in {folder}: {'; '.join(differing)}. Give the model that the run was "
            "begun with, or begin another folder"
        )
    return PatchingEngine(model, batch_size=batch_size, show_progress=show_progress, estimate=estimate)


def _whole_parts(folder: RunFolder, spec: Spec, numbers: Sequence[int]) -> tuple[dict[int, Mapping[str, Any]], int]:
    """How these units that are there were run; and of how many the part was damaged, which is put aside."""
    hows, n_damaged = {}, 0
    for number in sorted({*folder.done(spec)} & {*numbers}):
        try:
            hows[number] = folder.read_part(spec, number).how
        except FileNotFoundError:
            continue
        except ValueError as error:
            folder.drop(spec.units[number], str(error))
            n_damaged += 1
    return hows, n_damaged


def _slice(numbers: range) -> slice:
    return slice(numbers.start, numbers.stop)
