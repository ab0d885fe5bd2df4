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
from jaxtyping import Bool, Float

from actpatch.core.direction import Direction
from actpatch.core.heavy import pd
from actpatch.core.text import count
from actpatch.engine.measured import Measured
from actpatch.metrics.names import metric_key
from actpatch.results.effects import effects_over_pairs, largest
from actpatch.results.larger import LargerExperiment
from actpatch.results.metric_values import MIN_RELATIVE_CHANGE, usable_pairs
from actpatch.results.patches import labels_of, of_pairs, taken, written_in
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import NO_PARTNER
from actpatch.runs.asked import Asked
from actpatch.runs.folder import RunFolder
from actpatch.runs.joining import on_base
from actpatch.runs.parts import Part
from actpatch.runs.patches import part_of_patches
from actpatch.runs.progress import Progress, progress_of
from actpatch.runs.spec import Spec
from actpatch.statistics.portions import statistics_by_portion
from actpatch.statistics.site_tests import StatisticsOptions
from actpatch.statistics.sites import SiteStatistics

MOST_CELLS = 2**22
"""Most numbers that are worked through at once, of some patches on all pairs: 32 MiB."""
MOST_HELD = 2**26
"""Most numbers that are held, of more patches on all pairs: parts are read for all of them at once."""


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
        selected = keys.index(metric_key(name))
        return self if selected == self.selected else replace(self, selected=selected)

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
        clean, corrupted = self._all_baselines
        return clean[self.selected], corrupted[self.selected]

    @property
    def usable(self) -> np.ndarray:
        """Which of `pairs` have a clean and a corrupted metric that differ enough to divide by."""
        return usable_pairs(*self.baselines, MIN_RELATIVE_CHANGE)

    def portions(self) -> Iterator[Float[np.ndarray, "patch pair"]]:
        """The selected metric of patched runs: some patches after the other, each on all of `pairs`."""
        for _, portion in self._portions():
            yield portion

    def effects(self) -> Float[np.ndarray, " patch"]:
        """Effect of each patch over the usable pairs, as `Sweep.effects`."""
        usable = self.usable
        if not usable.any():
            return np.full(self.asked.n_patches, np.nan)
        found, base, source = np.empty(self.asked.n_patches), self._base[usable], self._source[usable]
        for some, patched in self._portions():
            found[some] = effects_over_pairs(patched[:, usable], base, source, self._written(some)[:, usable])
        return found

    def statistics(self, **options: Unpack[StatisticsOptions]) -> SiteStatistics:
        """How sure the effects are, p-values corrected over all patches: those of `Sweep.statistics`, whose options and
        errors these are. Those without options are computed once.

        Raises:
            OSError: where the system's temporary folder is full: it takes 3.2 KB for each patch meanwhile.
        """
        return self._computed_statistics(options) if options else self._usual_statistics

    @cached_property
    def _usual_statistics(self) -> SiteStatistics:
        return self._computed_statistics({})

    def _computed_statistics(self, options: StatisticsOptions) -> SiteStatistics:
        usable, labels, n_patches = self.usable, self.labels, self.asked.n_patches
        judged = usable if usable.any() else np.ones_like(usable)
        known = np.concatenate([self._written(some)[:, judged].any(axis=1) for some in self._slices()])
        if n_patches and not known.any():
            raise ValueError(NO_PARTNER)
        numbers = np.flatnonzero(known).tolist()
        groups = [self.asked.pairs.groups[pair] for pair, kept in zip(self.pairs, usable) if kept]

        def portions() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for some, portion in self._portions():
                rows = np.ix_(known[some], usable)
                if known[some].any():
                    yield portion[rows], self._written(some)[rows]

        names = labels if known.all() else [labels[i] for i in numbers]
        found = statistics_by_portion(portions, self._base[usable], self._source[usable], names, groups, **options)
        found = found.of_estimates(self.asked.estimate)
        return found if known.all() else found.among(labels, numbers)

    def summary(self, **options: Unpack[StatisticsOptions]) -> pd.DataFrame:
        """A row per patch: `site`, its effect, interval and p-values, as `SiteStatistics.to_dataframe`."""
        return self.statistics(**options).to_dataframe()

    def top(self, k: int = 10) -> SweepResults:
        """The k patches of largest |effect|, largest first, on all of `pairs`, as results that can be drawn, saved and
        reported (`create_full_report(top_results=...)`).

        They know what they were chosen out of: their statistics are the run's, corrected over all of its patches, and
        computed when they are first asked for. Those of some of their pairs, and of a file of them, are refused.
        """
        chosen = largest(self.effects(), k)
        asked, units, is_base = self.asked, self.spec.units, int(self.direction == "denoising")
        patched = np.empty((len(asked.metrics), len(chosen), len(self.pairs)))
        for block, first, end in zip(range(units.blocks_of_patches), units.patches, units.patches[1:]):
            rows = [row for row, number in enumerate(chosen) if first <= number < end]
            for at, part in self._block(block) if rows else ():
                runs = part.measured[self.way]
                own, counts = (runs.clean, runs.corrupted)[is_base], self._all_baselines[is_base][:, at]
                patched[:, rows, at] = on_base(runs.patched[:, [chosen[row] - first for row in rows]], own, counts)
        patches = of_pairs(taken(asked.patches[self.direction], chosen), self.pairs)
        some = replace(asked.part(self.pairs, slice(0, 0)), patches={self.direction: patches})
        (sweep,) = some.sweeps([Measured(patched, *self._all_baselines)])
        larger = LargerExperiment(asked.n_patches, ChosenStatistics(self, tuple(chosen)))
        said = f"chosen out of {asked.n_patches:,} patches by their effects"
        return self.spec.shape(replace(sweep, selected=self.selected, notes=(said, *sweep.notes), larger=larger))

    @property
    def _base(self) -> Float[np.ndarray, " pair"]:
        return self.baselines[1 if self.direction == "denoising" else 0]

    @property
    def _source(self) -> Float[np.ndarray, " pair"]:
        return self.baselines[0 if self.direction == "denoising" else 1]

    @cached_property
    def _all_baselines(self) -> tuple[Float[np.ndarray, "metric pair"], Float[np.ndarray, "metric pair"]]:
        """Every metric of the clean and the corrupted run of each of `pairs`: those of its first unit."""
        if not self.pairs:
            raise ValueError("no pair has all of its patches yet: wait, or go on with the run")
        runs = [part.measured[self.way] for _, part in self._block(0)]
        return np.concatenate([of.clean for of in runs], axis=1), np.concatenate([of.corrupted for of in runs], axis=1)

    def _slices(self) -> Iterator[slice]:
        """Patches that are worked through together: some of a block's."""
        n_at_once = max(1, MOST_CELLS // max(1, len(self.pairs)))
        for first, end in zip(self.spec.units.patches, self.spec.units.patches[1:]):
            for start in range(first, end, n_at_once):
                yield slice(start, min(start + n_at_once, end))

    def _portions(self) -> Iterator[tuple[slice, Float[np.ndarray, "patch pair"]]]:
        """Which patches, and the selected metric of their runs. Each part is read once, or as often as its block of
        patches has portions of `MOST_HELD` numbers."""
        units, n_pairs, base = self.spec.units, len(self.pairs), self._base
        is_base, slices = int(self.direction == "denoising"), list(self._slices())
        for block, first, end in zip(range(units.blocks_of_patches), units.patches, units.patches[1:]):
            of_block = [some for some in slices if first <= some.start < end]
            n_together = max(1, MOST_HELD // MOST_CELLS)
            for i in range(0, len(of_block), n_together):
                some = of_block[i : i + n_together]
                begin, stop = some[0].start, some[-1].stop
                held = np.empty((n_pairs, stop - begin))
                for at, part in self._block(block):
                    runs = part.measured[self.way]
                    own = (runs.clean, runs.corrupted)[is_base][[self.selected]]
                    patched = runs.patched[[self.selected], begin - first : stop - first]
                    held[at] = on_base(patched, own, base[None, at])[0].T
                for one in some:
                    yield one, np.ascontiguousarray(held[:, one.start - begin : one.stop - begin].T)

    def _written(self, some: slice) -> Bool[np.ndarray, "patch pair"]:
        """In which of `pairs` these patches write anything, as `Sweep.written`."""
        pairs, side = self.asked.pairs, int(self.direction == "denoising")
        matches = () if self.asked.source_kind == "ablation" else pairs.matches
        tokens = pairs.corrupted_tokens if side else pairs.clean_tokens
        lengths = [len(tokens[pair]) for pair in self.pairs]
        if not matches:
            return np.broadcast_to(True, (some.stop - some.start, len(lengths)))
        patches = part_of_patches(self.asked.patches[self.direction], some, self.pairs)
        return written_in(patches, [matches[pair] for pair in self.pairs], side, lengths)

    def _block(self, block: int) -> Iterator[tuple[slice, Part]]:
        """The parts of one block of patches, of the pairs of which all is there, and where these are among `pairs`."""
        units, there, at = self.spec.units, {*self.pairs}, 0
        for row in range(units.blocks_of_pairs):
            number = row * units.blocks_of_patches + block
            if units[number].pairs.start in there:
                part = self._part(number)
                if part is None:
                    raise ValueError(f"the part {self.folder.part(units[number])} is damaged: go on with the run")
                yield slice(at, at + len(part.unit.pairs)), part
                at += len(part.unit.pairs)

    def _part(self, number: int) -> Part | None:
        try:
            return self.folder.read_part(self.spec, number)
        except (FileNotFoundError, ValueError):
            return None


@dataclass(frozen=True)
class ChosenStatistics:
    """Statistics of patches that were chosen out of a run, which are those of all of its patches."""

    run: StoredRun
    chosen: tuple[int, ...]

    def __call__(self, metric: str, **options: Unpack[StatisticsOptions]) -> SiteStatistics:
        return self.run.by_metric(metric).statistics(**options).of_sites(self.chosen)


def open_run(folder: str | Path) -> StoredRun:
    """A run to be read by part, of however many numbers, as far as it has come.

    Raises:
        ValueError: for a folder that is none of a run, and one of a newer version.
    """
    at = RunFolder(Path(folder).expanduser().absolute())
    return StoredRun(at, at.read_spec())
