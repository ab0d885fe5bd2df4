"""How far a run has come, from its folder alone: units, rate, time left, failures.

Nothing here runs or changes anything.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actpatch.core.text import count
from actpatch.runs.folder import Failure, RunFolder, listed_failures
from actpatch.runs.plan import duration

WINDOW = 3600.0
"""The rate is that of the last hour in which anything was finished."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    folder: Path
    kind: str
    n_patches: int
    n_pairs: int
    directions: tuple[str, ...]
    metrics: tuple[str, ...]
    model: str
    n_units: int
    n_done: int
    rows_done: float
    """Share of the patched runs that are stored."""
    per_hour: float
    """Units finished in an hour, by all workers together; NaN where fewer than two were."""
    last: float
    """Seconds since the last unit was stored; NaN where none was."""
    failed: tuple[Failure, ...]
    """The last failure of each unit that failed and is not stored."""
    quarantined: tuple[str, ...]
    """Units that are left alone."""
    is_finished: bool

    @property
    def seconds_left(self) -> float:
        """At that rate; NaN where it is not known."""
        left = self.n_units - self.n_done - len(self.quarantined)
        return left / self.per_hour * 3600 if left else 0.0

    def __str__(self) -> str:
        size = f"{count(self.n_patches, 'patch')} × {count(self.n_pairs, 'pair')}, {' and '.join(self.directions)}"
        lines = [f"{self.kind} of {self.model}: {size}, {', '.join(self.metrics)}"]
        lines.append(f"{self.n_done:,} of {count(self.n_units, 'unit')} stored, {self.rows_done:.1%} of the runs")
        if self.is_finished:
            lines.append("finished")
        elif self.per_hour == self.per_hour:
            rate = f"{self.per_hour:.3g} units an hour, about {duration(self.seconds_left)} left"
            lines.append(f"{rate}; last unit {duration(self.last)} ago")
        if self.failed:
            lines.append(f"failed: {listed_failures(self.failed)}")
        if self.quarantined:
            lines.append(f"left alone after three failures: {', '.join(self.quarantined)}")
        return "\n".join(lines)


def progress_of(folder: str | Path) -> Progress:
    """How far the run in this folder has come.

    Raises:
        ValueError: for a folder that is none of a run, and one of a newer version.
    """
    at = RunFolder(Path(folder).expanduser())
    spec = at.read_spec()
    units, done = spec.units, at.done(spec)
    stored = []
    for number in done:
        with contextlib.suppress(FileNotFoundError):
            stored.append(at.part(units[number]).stat().st_mtime)
    times = np.sort(stored)
    recent = times[times >= times[-1] - WINDOW] if len(times) else times
    spent = float(recent[-1] - recent[0]) if len(recent) > 1 else 0.0
    failures = {unit: failed for unit, failed in at.failures().items() if int(unit) not in {*done}}
    n_pairs, n_patches = len(spec.data["pairs"]["indices"]), int(spec.data["patches"]["n"])
    return Progress(
        folder=at.path,
        kind=spec.kind,
        n_patches=n_patches,
        n_pairs=n_pairs,
        directions=tuple(spec.data["direction"]),
        metrics=tuple(metric["name"] for metric in spec.data["metrics"]),
        model=spec.data["model"]["name"],
        n_units=len(units),
        n_done=len(done),
        rows_done=sum(units[number].n_rows for number in done) / (n_pairs * n_patches),
        per_hour=(len(recent) - 1) / spent * 3600 if spent > 0 else float("nan"),
        last=max(0.0, time.time() - float(times[-1])) if len(times) else float("nan"),
        failed=tuple(failed[-1] for failed in failures.values()),
        quarantined=tuple(unit for unit in at.quarantined() if unit in failures),
        is_finished=at.is_finished and len(done) == len(units),
    )
