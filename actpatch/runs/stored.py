"""Runs in a folder, begun or gone on with, and their results as those of a sweep in memory.

The folder says what is there; results are put together from its parts each time. Nothing here runs a model by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm.auto import tqdm

from actpatch.core.stores import Store
from actpatch.core.warn import warn_user
from actpatch.engine.engine import PatchingEngine
from actpatch.results.both import BothDirections
from actpatch.results.saved import SavedResults
from actpatch.results.sweep import Sweep
from actpatch.runs.asked import Asked
from actpatch.runs.folder import RunFolder
from actpatch.runs.joining import Joined, in_all, said_once
from actpatch.runs.parts import check_can_store
from actpatch.runs.plan import replan
from actpatch.runs.spec import Spec, spec_of
from actpatch.runs.worker import complete, run_units

LONG = 10
"""A run of which so many units are lacking says first what all of it takes."""
MEMORY_SHARE = 0.5
"""Share of the free memory that results may take which are handed out whole."""


def stored_sweeps(engine: PatchingEngine, asked: Asked, kind: str, store: Store) -> list[Sweep]:
    """The sweeps of an experiment that is stored: begun or gone on with in its folder, per direction.

    Raises:
        ValueError: before any run, where the folder is another run's or no run, for results that memory cannot hold,
            and for whatever of the patches is wrong.
        OSError: where the folder cannot be written, or the disk is full.
    """
    check_can_store()
    folder = RunFolder(Path(store.folder))
    engine.check(asked.pairs, asked.patches, references=asked.references, noise=asked.noise)
    check_fits_into_memory(len(asked.patches), len(asked.metrics), asked.n_patches, len(asked.pairs), folder)
    spec = folder.begin(spec_of(engine, asked, kind, store.rows_per_unit))
    if engine.show_progress and len(spec.units) - len(folder.done(spec)) >= LONG:
        tqdm.write(str(replan(engine, asked, spec, folder.path)), file=sys.stderr)
    complete(folder, spec, range(len(spec.units)), partial(run_units, folder, spec, asked, engine))
    found = read_parts(folder, spec, asked)
    if found.lacking:
        warn_user(folder.told_of_lacking(len(spec.units), found.lacking))
    sweeps = found.sweeps(asked)
    engine.shortcuts = sweeps[0].shortcuts
    return sweeps


def load_run(folder: str | Path) -> SavedResults | BothDirections[Any]:
    """The results of a run in its folder, as far as it has come.

    Of a run that is not finished they are of the pairs, or of the patches, that are there in full, whichever is more;
    `results.sweep.notes` begins with what is lacking, and a warning says it.

    Raises:
        ValueError: for a folder that is none of a run, one of a newer version, one in which nothing is finished, and
            for results that memory cannot hold.
    """
    at = RunFolder(Path(folder).expanduser())
    spec = at.read_spec()
    asked = spec.asked_to_read
    check_fits_into_memory(len(asked.patches), len(asked.metrics), asked.n_patches, len(asked.pairs), at)
    found = read_parts(at, spec, asked)
    sweeps = found.sweeps(asked)
    if found.lacking:
        warn_user(sweeps[0].notes[0])
    results = [spec.shape(sweep) for sweep in sweeps]
    return results[0] if len(results) == 1 else BothDirections(*results)  # type: ignore[return-value]


def check_fits_into_memory(n_directions: int, n_metrics: int, n_patches: int, n_pairs: int, folder: RunFolder) -> None:
    """Raises ValueError where results of this size are too large to be handed out whole."""
    size = 8 * n_directions * n_metrics * n_patches * n_pairs
    free = psutil.virtual_memory().available
    if size > MEMORY_SHARE * free:
        raise ValueError(
            f"the results are {size / 2**30:.1f} GiB of numbers, more than {MEMORY_SHARE:.0%} of the "
            f"{free / 2**30:.1f} GiB of free memory. Store them without holding them: plan=True, then plan.begin(), "
            f"and `python -m actpatch.runs work {folder.path}`; read them with open_run({str(folder.path)!r})"
        )


@dataclass(frozen=True)
class Found:
    """What the parts of a run hold, put together."""

    joined: Joined
    spec: Spec
    there: np.ndarray
    """Which units are there."""
    shortcuts: list[list[tuple[str, ...]]]
    """Per direction those of each unit."""
    notes: list[list[str]]
    """Per direction those of all units."""
    versions: tuple[tuple[tuple[str, str], ...], ...]
    """Of the libraries that units were computed with."""

    @property
    def lacking(self) -> list[int]:
        """Numbers of the units that are not there."""
        return np.flatnonzero(~self.there).tolist()

    def sweeps(self, asked: Asked) -> list[Sweep]:
        """The sweeps, per direction, of what is there in full.

        Raises:
            ValueError: where nothing is.
        """
        if not self.there.any():
            raise ValueError("no unit of the run is finished yet, so there are no results: wait, or go on with it")
        shortcuts = [in_all(of) for of in self.shortcuts]
        notes = [said_once([*self._said, *of]) for of in self.notes]
        measured = self.joined.measured(shortcuts, notes)
        sweeps = asked.sweeps(measured)
        if not self.lacking:
            return sweeps
        pairs, patches = self._whole()
        said = (
            f"partial: {int(self.there.sum())} of {len(self.there)} units are there; these are {len(patches)} of "
            f"{asked.n_patches} patches on {len(pairs)} of {len(asked.pairs)} pairs"
        )
        return [_of(sweep, pairs, patches, said) for sweep in sweeps]

    @property
    def _said(self) -> list[str]:
        if len(self.versions) < 2:
            return []
        each = [", ".join(f"{name} {number}" for name, number in of) for of in self.versions]
        return [f"units were computed with several versions: {'; '.join(each)}"]

    def _whole(self) -> tuple[list[int], list[int]]:
        """Pairs and patches of which all are there: all patches of some pairs, or some patches of all pairs that
        anything is known of, whichever is more."""
        units = self.spec.units
        grid = self.there.reshape(units.blocks_of_pairs, units.blocks_of_patches)
        each_pair = [[*range(*units.pairs[i : i + 2])] for i in range(units.blocks_of_pairs)]
        each_patch = [[*range(*units.patches[i : i + 2])] for i in range(units.blocks_of_patches)]

        def chosen(pairs: np.ndarray, patches: np.ndarray) -> tuple[list[int], list[int]]:
            return (
                [pair for block in np.flatnonzero(pairs) for pair in each_pair[block]],
                [patch for block in np.flatnonzero(patches) for patch in each_patch[block]],
            )

        options = [chosen(np.asarray(grid.all(axis=1)), np.asarray(grid.any(axis=0)))]
        rows = np.unique(grid[grid.any(axis=1)], axis=0)
        for wanted in rows:  # pairs that have all of these blocks of patches
            options.append(chosen(np.logical_or(grid, ~wanted).all(axis=1), wanted))
        return max(options, key=lambda option: len(option[0]) * len(option[1]))


def _of(sweep: Sweep, pairs: Sequence[int], patches: Sequence[int], said: str) -> Sweep:
    """The sweep of these pairs and patches alone, as an experiment of its own that says what it lacks."""
    some = replace(sweep.of_patches(patches), whole=None, numbers=())
    return replace(some.of_pairs(pairs), notes=(said, *sweep.notes))


def read_parts(folder: RunFolder, spec: Spec, asked: Asked) -> Found:
    """All parts that are there, put together."""
    n = len(asked.patches)
    joined = Joined(tuple(asked.patches), len(asked.metrics), asked.n_patches, len(asked.pairs))
    there = np.zeros(len(spec.units), dtype=bool)
    shortcuts: list[list[tuple[str, ...]]] = [[] for _ in range(n)]
    notes: list[list[str]] = [[] for _ in range(n)]
    versions: dict[tuple[tuple[str, str], ...], None] = {}
    for number in folder.done(spec):
        try:
            part = folder.read_part(spec, number)
        except (FileNotFoundError, ValueError):  # not whole: it is not there
            continue
        joined.put(part.unit, part.measured)
        there[number] = True
        for i, runs in enumerate(part.measured):
            shortcuts[i].append(runs.shortcuts)
            notes[i] += runs.notes
        versions[tuple(sorted(part.how["versions"].items()))] = None
    return Found(joined, spec, there, shortcuts, notes, tuple(versions))
