"""The folder of a run, which is its only state: what was asked, the parts, the failures, and at last the manifest.

    spec.json       what was asked
    parts/          a Parquet file per unit, whole or not there
    failures/       a file per failed attempt of a unit
    manifest.json   written last: that all units are there

Files are written under another name, brought to the disk, and renamed. Nothing is locked: a unit that two processes
finish is written twice, with the same numbers. Nothing here runs anything.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actpatch.core.text import MOST_LISTED, count, shortened
from actpatch.runs.parts import Part, read_part
from actpatch.runs.spec import FORMAT, PARTS, Spec
from actpatch.runs.units import Unit

STALE = 3600.0
"""Seconds after which a file that was begun and never renamed is taken away."""
ATTEMPTS = 3
"""A unit that failed so often is left alone."""
LACK = "the results lack what is theirs"
"""Said of units that are not there at the end."""
_OURS = {"spec.json", "parts", "failures", "manifest.json"}


@dataclass(frozen=True)
class Failure:
    """One failed attempt of a unit."""

    unit: str
    error: str
    at: str

    def __str__(self) -> str:
        return f"unit {self.unit}: {self.error}"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    def __str__(self) -> str:
        return repr(str(self.path))

    @property
    def exists(self) -> bool:
        return (self.path / "spec.json").exists()

    def read_spec(self) -> Spec:
        """What was asked.

        Raises:
            ValueError: for a folder that is none of a run, or one of a newer version.
        """
        what = "expected a folder that an experiment with store= has begun"
        try:
            data = json.loads((self.path / "spec.json").read_text(encoding="utf-8"))
            found = data["format"]
            lacking = [] if found != FORMAT else [name for name in PARTS if name not in data]
            if lacking:
                raise KeyError(lacking[0])
        except FileNotFoundError:
            there = "is no folder" if not self.path.is_dir() else "holds no spec.json"
            raise ValueError(f"{self} {there}: {what}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the spec.json in {self} is none of a run ({type(error).__name__}): {what}") from error
        if found != FORMAT:
            raise ValueError(
                f"{self} is a run of format {found}, this version knows format {FORMAT}: go on with the version that "
                "began it, or begin another folder"
            )
        return Spec(data)

    def begin(self, spec: Spec) -> Spec:
        """The run of this folder, which is begun where there is none.

        Raises:
            ValueError: where the folder is another run's, or holds something else.
            OSError: where it cannot be written.
        """
        if not self.exists:
            self._check_is_free()
            with _told(self, "nothing was run"):
                for name in ("", "parts", "failures"):
                    (self.path / name).mkdir(parents=True, exist_ok=True)
                _write(self.path / "spec.json", json.dumps(spec.data, allow_nan=False).encode(), keeps=True)
        stood = self.read_spec()
        if differing := stood.differences(spec):
            listed = "; ".join(differing[:MOST_LISTED])
            raise ValueError(
                f"{self} is the run of another call: {listed}. Make the same call again to go on with it, or give "
                "another folder"
            )
        self._tidy(self.check_can_be_written())
        return stood

    def done(self, spec: Spec) -> list[int]:
        """Numbers of the units of which a part is there, ascending; whether parts are whole is seen on reading them."""
        with contextlib.suppress(FileNotFoundError):
            names = {entry.name for entry in os.scandir(self.path / "parts")}
            return [number for number in range(len(spec.units)) if f"{number:06d}.parquet" in names]
        return []

    def part(self, unit: Unit) -> Path:
        return self.path / "parts" / f"{unit.id}.parquet"

    def read_part(self, spec: Spec, number: int) -> Part:
        """The part of a unit.

        Raises:
            FileNotFoundError: where it is not there.
            ValueError: where it is damaged, with the reason.
        """
        unit = spec.units[number]
        return read_part(self.part(unit), spec.id, unit, len(spec.data["direction"]), len(spec.data["metrics"]))

    def write_part(self, unit: Unit, content: bytes) -> None:
        """Put a unit's part there.

        Raises:
            OSError: where the disk is full, or cannot be written.
        """
        with _told(self, f"unit {unit.id} is not stored; all units that were are"):
            _write(self.part(unit), content)

    def drop(self, unit: Unit, reason: str) -> None:
        """Put a part that is damaged, or another run's, aside among the failures, and note it: the run is not finished.

        Raises:
            OSError: where the folder cannot be written.
        """
        with _told(self, f"the part of unit {unit.id} is damaged"), contextlib.suppress(FileNotFoundError):
            (self.path / "manifest.json").unlink(missing_ok=True)
            self.part(unit).replace(self.path / "failures" / f"{unit.id}-{uuid.uuid4().hex[:12]}.damaged.parquet")
        self._note(unit, "damaged", reason)

    def fail(self, unit: Unit, error: BaseException) -> None:
        """Note a failed attempt."""
        self._note(unit, "failed", shortened_error(error))

    def failures(self) -> dict[str, list[Failure]]:
        """Unit -> its failed attempts."""
        found: dict[str, list[Failure]] = {}
        for path in sorted((self.path / "failures").glob("*.failed.json"), key=_written_at):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # what is no note of ours
                data = json.loads(path.read_text(encoding="utf-8"))
                failure = Failure(f"{int(data['unit']):06d}", str(data["error"]), str(data["at"]))
                found.setdefault(failure.unit, []).append(failure)
        return found

    def quarantined(self) -> dict[str, Failure]:
        """Unit -> its last failure, of those that are left alone."""
        return {unit: failed[-1] for unit, failed in self.failures().items() if len(failed) >= ATTEMPTS}

    def told_of_lacking(self, n_units: int, lacking: Sequence[int]) -> str:
        """A sentence on units that are not there at the end: those that are left alone, if any are."""
        found = {unit: failure for unit, failure in self.quarantined().items() if int(unit) in {*lacking}}
        if not found:
            return (
                f"{len(lacking)} of {count(n_units, 'unit')} are not stored, and {LACK}: make "
                "the same call again to go on with the run"
            )
        return (
            f"of {count(n_units, 'unit')}, {len(found)} failed three times and {LACK}: "
            f"{listed_failures([*found.values()])}. To try again, delete the folder {str(self.path / 'failures')!r} "
            "and go on with the run"
        )

    def finish(self, spec: Spec, said: Mapping[str, Any]) -> None:
        """Write the manifest: every unit is there."""
        data = {"run": spec.id, "units": len(spec.units), "finished": _now(), **said}
        with _told(self, "all units are stored, and the manifest is not"):
            _write(self.path / "manifest.json", json.dumps(data, indent=1).encode())

    @property
    def is_finished(self) -> bool:
        return (self.path / "manifest.json").exists()

    def _note(self, unit: Unit, what: str, error: str) -> None:
        data = {"unit": unit.id, "error": error, "at": _now(), "host": socket.gethostname(), "pid": os.getpid()}
        with contextlib.suppress(OSError):  # a full disk is told of when the next part is written
            name = f"{unit.id}-{uuid.uuid4().hex[:12]}.{what}.json"
            _write(self.path / "failures" / name, json.dumps(data, indent=1).encode())

    def _check_is_free(self) -> None:
        """Raises ValueError where something else stands there."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"store is {self}, which is a file: expected a folder, new or empty")
        others = sorted(_names(self.path) - _OURS) if self.path.exists() else []
        if others:
            raise ValueError(
                f"{self} is no run and is not empty (it holds {shortened(others[0])}"
                f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}): give a new or an empty folder"
            )

    def check_can_be_written(self) -> float:
        """What time it is by the clock of the file system, which may be another machine's.

        Raises:
            OSError: where no part could be written.
        """
        with _told(self, "nothing was run"):
            for name in ("parts", "failures"):
                (self.path / name).mkdir(exist_ok=True)
                beside = self.path / name / f".{uuid.uuid4().hex}.tmp"
                beside.touch()
                now = beside.stat().st_mtime
                beside.unlink()
        return now

    def _tidy(self, now: float) -> None:
        """Take away what was begun long ago and never finished."""
        for beside in self.path.glob("**/.*.tmp"):
            with contextlib.suppress(OSError):
                if now - beside.stat().st_mtime > STALE:
                    beside.unlink()


def shortened_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def listed_failures(failures: Collection[Failure]) -> str:
    """`unit 000003 (RuntimeError: …) and 2 more`."""
    named = [f"unit {failure.unit} ({failure.error[:200]})" for failure in [*failures][:MOST_LISTED]]
    more = f" and {count(len(failures) - MOST_LISTED, 'more unit')}" if len(failures) > MOST_LISTED else ""
    return f"{', '.join(named)}{more}"


def _names(path: Path) -> set[str]:
    return {entry.name for entry in os.scandir(path) if not entry.name.startswith(".")}


def _written_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


@contextlib.contextmanager
def _told(folder: RunFolder, state: str) -> Any:
    """Errors of files with what they mean for the run."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what, remedy = ("is full", "make room") if full else ("cannot be written", "give a folder that can be")
        raise OSError(
            error.errno,
            f"{folder} {what} ({error.strerror or error}): {state}; {remedy}, and go on with the run",
        ) from error


def _write(path: Path, content: bytes, *, keeps: bool = False) -> None:
    """A file that is whole or not there, also after the machine has lost its power.

    Args:
        keeps: whether a file of that name, which another process may have put there meanwhile, is left as it is.
    """
    beside = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not keeps or (not _linked(beside, path) and not path.exists()):
            beside.replace(path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def _linked(beside: Path, path: Path) -> bool:
    """Whether the file has its name now, from this process or another one."""
    try:
        os.link(beside, path)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def _sync_folder(path: Path) -> None:
    with contextlib.suppress(OSError):  # not every system lets folders be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
