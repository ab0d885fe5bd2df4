"""How an experiment is cut into units: blocks of pairs × blocks of patches, each of some seconds of compute.

The cut depends on the experiment and on the sizes of the model alone, and is kept with what was asked: it is the same
whatever the batch size, the device or the number of workers. Nothing here runs a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actpatch.engine.engine import PatchingEngine
from actpatch.runs.asked import Asked
from actpatch.runs.work import work_of_patches

WORK_OF_UNIT = 1e12
"""Floating-point operations of a unit: about 8 s on two cores."""
FEWEST_ROWS, MOST_ROWS = 256, 2**16
"""A unit has about so many rows at least, over which its own recordings are spread, and about so many at most, which
are held; never more than twice as many."""
MOST_UNITS = 2**15
"""A longer experiment has larger units rather than more, until they hold `MOST_ROWS`: each is a file, whoever works on
the folder lists all of them, and what is lost with one is a small share of so many."""
MOST_PATCHES = 2**13
"""A unit has about so many patches at most, and never more than twice as many: one of more rows has several pairs, so
that what is read by part, some patches on all pairs, is small."""
PER_REFERENCE = 20
"""At least so many rows for each reference prompt that a unit has to run for itself."""


@dataclass(frozen=True)
class Unit:
    """What is finished together: some patches on some pairs."""

    number: int
    pairs: range
    """Places of its pairs among those of the experiment."""
    patches: range
    """Places of its patches."""

    @property
    def id(self) -> str:
        return f"{self.number:06d}"

    @property
    def n_rows(self) -> int:
        return len(self.pairs) * len(self.patches)


@dataclass(frozen=True)
class Units:
    """All units of an experiment, the patches of a block of pairs after one another."""

    pairs: tuple[int, ...]
    """Where blocks of pairs begin and end: 0, …, number of pairs."""
    patches: tuple[int, ...]
    """Where blocks of patches do."""

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Units:
        return cls(tuple(data["pairs"]), tuple(data["patches"]))

    def as_data(self) -> dict[str, Any]:
        return {"pairs": list(self.pairs), "patches": list(self.patches)}

    def __len__(self) -> int:
        return self.blocks_of_pairs * self.blocks_of_patches

    @property
    def blocks_of_pairs(self) -> int:
        return len(self.pairs) - 1

    @property
    def blocks_of_patches(self) -> int:
        return len(self.patches) - 1

    def __getitem__(self, number: int) -> Unit:
        if not 0 <= number < len(self):
            raise IndexError(f"unit {number} of {len(self)}")
        pairs, patches = divmod(number, self.blocks_of_patches)
        return Unit(number, range(*self.pairs[pairs : pairs + 2]), range(*self.patches[patches : patches + 2]))

    def halves(self, unit: Unit) -> list[Unit]:
        """The unit as two of half its size, by its patches, or else by its pairs; itself where it is a single row."""
        if len(unit.patches) > 1:
            middle = len(unit.patches) // 2
            return [Unit(unit.number, unit.pairs, half) for half in (unit.patches[:middle], unit.patches[middle:])]
        if len(unit.pairs) > 1:
            middle = len(unit.pairs) // 2
            return [Unit(unit.number, half, unit.patches) for half in (unit.pairs[:middle], unit.pairs[middle:])]
        return [unit]


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of the units: `3/16`, counted from 1."""

    number: int
    of: int

    @classmethod
    def from_text(cls, text: str) -> Shard:
        """The shard that is written so.

        Raises:
            ValueError: for anything but K/N with K from 1 to N.
        """
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", str(text))
        number, of = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= of:
            raise ValueError(
                f"the shard is {text!r}, expected K/N with K from 1 to N, as 3/16 for the third of 16 workers: give "
                "each worker a number of its own (in a SLURM array job of --array=1-16, $SLURM_ARRAY_TASK_ID/16)"
            )
        return cls(number, of)

    def of_units(self, numbers: Sequence[int]) -> list[int]:
        """Its share of these units."""
        return [number for number in numbers if number % self.of == self.number - 1]


def units_of(engine: PatchingEngine, asked: Asked, rows_per_unit: int | None = None) -> Units:
    """The cut of an experiment.

    Pairs are divided before patches are: what a unit records of its pairs then serves many patches.

    Args:
        engine: whose model it is.
        asked: the experiment.
        rows_per_unit: about how many rows each has; None for some seconds of compute, more where there would be more
            than `MOST_UNITS` of them.
    """
    n_patches, n_pairs = asked.n_patches, len(asked.pairs)
    work = work_of_patches(engine, asked)
    rows = rows_per_unit
    if rows is None:
        of_some_seconds = WORK_OF_UNIT / max(1.0, float(work.mean()))
        rows = int(np.clip(max(of_some_seconds, n_patches * n_pairs / MOST_UNITS), FEWEST_ROWS, MOST_ROWS))
        if asked.references is not None:
            rows = max(rows, PER_REFERENCE * max(map(len, asked.references.groups), default=0))
    if asked.estimate is not None:  # all patches of a pair are estimated together
        rows = max(rows, n_patches)
    together = min(n_patches, rows if asked.estimate is not None else min(rows, MOST_PATCHES))
    n_blocks, n_together = -(-n_patches // together), rows // together
    return Units((*range(0, n_pairs, n_together), n_pairs), _bounds(work, n_blocks))


def _bounds(work: np.ndarray, n_blocks: int) -> tuple[int, ...]:
    """Where blocks of patches begin and end, each of one patch at least.

    They have about the same work, and none has more than twice its share of the patches, however little work these are:
    half of what is dealt out evenly is work, the other half patches.
    """
    done = np.cumsum(work / work.sum() + 1 / len(work)) / 2
    ends = np.searchsorted(done, np.arange(1, n_blocks) / n_blocks) + 1
    return tuple(np.unique([0, *np.minimum(ends, len(work)).tolist(), len(work)]).tolist())
