"""A stored run read by part: tables, effects and statistics of more numbers than memory holds.

At any time one part is held, and for statistics some patches on all pairs. Nothing here runs or changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Unpack

import numpy as np
from jaxtyping import Float

from actpatch.core.direction import Direction
from actpatch.core.heavy import pd
from actpatch.core.text import count
from actpatch.engine.measured import Measured
from actpatch.metrics.names import metric_key
from actpatch.results.metric_values import MIN_RELATIVE_CHANGE, usable_pairs
from actpatch.results.patches import labels_of, of_pairs, taken
from actpatch.results.sweep import Sweep, largest
from actpatch.runs.asked import Asked
from actpatch.runs.folder import RunFolder
from actpatch.runs.joining import on_base
from actpatch.runs.parts import Part
from actpatch.runs.progress import Progress, progress_of
from actpatch.runs.spec import Spec
from actpatch.statistics.portions import statistics_by_portion
from actpatch.statistics.resampling import gaps_cancel
from actpatch.statistics.sites import SiteStatistics, StatisticsOptions

MOST_CELLS = 2**22
"""Most numbers of some patches on all pairs that are held at once: 32 MiB."""


@dataclass(frozen=True, eq=False)
class StoredRun:
    """A run in its folder, of which nothing is held but what was asked and the baselines of its pairs.

    What it says of effects is of one metric and one direction, the first ones unless others are selected, and of the
    pairs of which all patches are there.
    """

    folder: RunFolder
    spec: Spec
    selected: int = 0
    """Which of the metrics."""
    way: int = 0
    """Which of the directions."""

    def __repr__(self) -> str:
        size = f"{count(self.asked.n_patches, 'patch')} × {count(len(self.asked.pairs), 'pair')}"
        done = f"{len(self.folder.done(self.spec))} of {count(len(self.spec.units), 'unit')}"
        return f"StoredRun({size}, {self.direction}, {self.metric}; {done} in {self.folder})"

    @property
    def asked(self) -> Asked:
        """What was asked."""
        return self.spec.asked_to_read

    @property
    def metric(self) -> str:
        return self.asked.metrics[self.selected].name

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(metric.name for metric in self.asked.metrics)

    @property
    def direction(self) -> Direction:
        return tuple(self.asked.patches)[self.way]

    @property
    def progress(self) -> Progress:
        """How far it has come."""
        return progress_of(self.folder.path)

    @property
    def labels(self) -> list[str]:
        """How each patch is printed."""
        return labels_of(self.asked.patches[self.direction])

    def by_metric(self, name: str) -> StoredRun:
        """The same run with another metric selected.

        Raises:
            ValueError: for one that was not measured.
        """
        keys = [metric_key(metric) for metric in self.metrics]
        if metric_key(name) not in keys:
            raise ValueError(f"the metric {name!r} was not measured: expected one of {', '.join(keys)}")
        return replace(self, selected=keys.index(metric_key(name)))

    def by_direction(self, direction: Direction) -> StoredRun:
        """The same run in another direction.

        Raises:
            ValueError: for one that was not run.
        """
        ways = tuple(self.asked.patches)
        if direction not in ways:
            raise ValueError(f"the direction {direction!r} was not run: expected one of {', '.join(ways)}")
        return replace(self, way=ways.index(direction))

    def tables(self) -> Iterator[pd.DataFrame]:
        """The parts that are there, one by one, as tables: a row per direction, metric, patch and pair."""
        import pyarrow.parquet as pq

        for number in self.folder.done(self.spec):
            if self._part(number) is not None:
                yield pq.read_table(self.folder.part(self.spec.units[number])).to_pandas()

    @cached_property
    def pairs(self) -> tuple[int, ...]:
        """Places of the pairs of which all patches are there."""
        units, done = self.spec.units, {*self.folder.done(self.spec)}
        blocks = [
            range(*units.pairs[block : block + 2])
            for block in range(units.blocks_of_pairs)
            if all(block * units.blocks_of_patches + i in done for i in range(units.blocks_of_patches))
        ]
        return tuple(pair for block in blocks for pair in block)

    @cached_property
    def baselines(self) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
        """The selected metric of the clean and the corrupted run of each of `pairs`."""
        runs = [(part.measured[self.way].clean, part.measured[self.way].corrupted) for part in self._block(0)]
        if not runs:
            raise ValueError("no pair has all of its patches yet: wait, or go on with the run")
        clean, corrupted = (np.concatenate([both[side][self.selected] for both in runs]) for side in (0, 1))
        return clean, corrupted

    @property
    def usable(self) -> np.ndarray:
        """Which of `pairs` have a clean and a corrupted metric that differ enough to divide by."""
        return usable_pairs(*self.baselines, MIN_RELATIVE_CHANGE)

    def portions(self) -> Iterator[Float[np.ndarray, "patch pair"]]:
        """The selected metric of patched runs: some patches after the other, each on all of `pairs`."""
        base = self._base
        units = self.spec.units
        for block in range(units.blocks_of_patches):
            n_patches = units.patches[block + 1] - units.patches[block]
            n_at_once = max(1, MOST_CELLS // max(1, len(self.pairs)))
            for first in range(0, n_patches, n_at_once):
                some, at = [], 0
                for part in self._block(block):
                    runs, n_pairs = part.measured[self.way], len(part.unit.pairs)
                    own = runs.corrupted if self.direction == "denoising" else runs.clean
                    patched = runs.patched[self.selected, first : first + n_at_once]
                    some.append(on_base(patched[None], own[[self.selected]], base[None, at : at + n_pairs])[0])
                    at += n_pairs
                yield np.concatenate(some, axis=1)

    def effects(self) -> Float[np.ndarray, " patch"]:
        """Effect of each patch over the usable pairs, as `Sweep.effects`."""
        self._check_all_written()
        usable, base, source = self.usable, self._base, self._source
        if not usable.any():
            return np.full(self.asked.n_patches, np.nan)
        gaps = (source - base)[usable]
        gap = np.nan if gaps_cancel(gaps) else source[usable].mean() - base[usable].mean()
        return np.concatenate([(of[:, usable].mean(axis=1) - base[usable].mean()) / gap for of in self.portions()])

    def statistics(self, **options: Unpack[StatisticsOptions]) -> SiteStatistics:
        """How sure the effects are, p-values corrected over all patches: those of `Sweep.statistics`, without what
        needs all patches at once (`statistics.portions`). Options and errors are its own."""
        self._check_all_written()
        usable = self.usable
        if not usable.any():
            raise ValueError("no pair is usable: clean and corrupted metric hardly differ in any")
        found = statistics_by_portion(
            lambda: (portion[:, usable] for portion in self.portions()),
            self._base[usable],
            self._source[usable],
            self.labels,
            **options,
        )
        return found.of_estimates(self.asked.estimate)

    def summary(self, **options: Unpack[StatisticsOptions]) -> pd.DataFrame:
        """A row per patch: `site`, its effect, interval and p-values, as `SiteStatistics.to_dataframe`."""
        return self.statistics(**options).to_dataframe()

    def top(self, k: int = 10) -> Sweep:
        """The k patches of largest |effect|, largest first, on all of `pairs`, as a sweep that can be drawn and saved.

        Its own statistics would be corrected over these k alone, so that they would be too sure: `statistics` of the
        run are those of all patches, and the sweep's notes say so.
        """
        chosen = largest(self.effects(), k)
        asked = self.asked
        rows = {number: np.empty((len(asked.metrics), len(self.pairs))) for number in chosen}
        runs: list[list[np.ndarray]] = [[], []]
        for block in range(self.spec.units.blocks_of_patches):
            at = 0
            for part in self._block(block):
                of, n_pairs = part.measured[self.way], len(part.unit.pairs)
                if block == 0:
                    runs[0].append(of.clean)
                    runs[1].append(of.corrupted)
                for number in chosen:
                    if number in part.unit.patches:
                        rows[number][:, at : at + n_pairs] = of.patched[:, number - part.unit.patches.start]
                at += n_pairs
        patches = of_pairs(taken(asked.patches[self.direction], chosen), self.pairs)
        some = replace(asked.part(self.pairs, slice(0, 0)), patches={self.direction: patches})
        clean, corrupted = (np.concatenate(each, axis=1) for each in runs)
        measured = Measured(np.stack([rows[number] for number in chosen], axis=1), clean, corrupted)
        said = f"chosen out of {asked.n_patches} patches by their effects: p-values over these alone would be too small"
        return replace(some.sweeps([measured])[0], selected=self.selected, notes=(said,))

    @property
    def _base(self) -> Float[np.ndarray, " pair"]:
        return self.baselines[1 if self.direction == "denoising" else 0]

    @property
    def _source(self) -> Float[np.ndarray, " pair"]:
        return self.baselines[0 if self.direction == "denoising" else 1]

    def _block(self, block: int) -> Iterator[Part]:
        """The parts of one block of patches, of the pairs of which all is there."""
        units, there = self.spec.units, {*self.pairs}
        for row in range(units.blocks_of_pairs):
            number = row * units.blocks_of_patches + block
            if units[number].pairs.start in there:
                part = self._part(number)
                if part is None:
                    raise ValueError(f"the part {self.folder.part(units[number])} is damaged: go on with the run")
                yield part

    def _part(self, number: int) -> Part | None:
        try:
            return self.folder.read_part(self.spec, number)
        except (FileNotFoundError, ValueError):
            return None

    def _check_all_written(self) -> None:
        if self.asked.pairs.matches and self.asked.references is None:
            raise ValueError(
                "prompts of this run are matched token by token, so that patches may write in some pairs alone: "
                f"read it whole, load_run({str(self.folder.path)!r})"
            )


def open_run(folder: str | Path) -> StoredRun:
    """A run to be read by part, of however many numbers, as far as it has come.

    Raises:
        ValueError: for a folder that is none of a run, and one of a newer version.
    """
    at = RunFolder(Path(folder))
    return StoredRun(at, at.read_spec())
