"""The units of a run that are still to be run, each three times at most. Nothing here runs anything."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence

from tqdm.auto import tqdm

from actpatch.runs.folder import ATTEMPTS, RunFolder
from actpatch.runs.spec import Spec
from actpatch.runs.units import Unit

FAILED_AT_ONCE = 3
"""After so many failures, where no unit was ever finished, the last one is raised: it is the run that fails."""


class Waiting:
    """Units of a run that wait: those of which no part is there, and that did not fail three times.

    Args:
        folder: of the run.
        spec: what was asked.
        numbers: the units that it is about.
    """

    def __init__(self, folder: RunFolder, spec: Spec, numbers: Sequence[int]) -> None:
        self._folder, self._spec = folder, spec
        self._attempts = {unit: len(failed) for unit, failed in folder.failures().items()}
        done = {*folder.done(spec)}
        units = [spec.units[number] for number in numbers]
        self._units = deque(unit for unit in units if unit.number not in done and self._may_be_tried(unit))
        if self._units:  # two processes begin apart
            self._units.rotate(random.SystemRandom().randrange(len(self._units)))
        self._n_asked, self._n_failed = len(units), 0
        self._total = sum(map(self.runs_of, units))
        self._at_first = self._total - sum(map(self.runs_of, self._units))

    def __len__(self) -> int:
        return len(self._units)

    def take(self) -> Unit:
        """The next one, which waits no longer."""
        return self._units.popleft()

    def again(self, unit: Unit) -> None:
        """It was taken and not run: it waits as before."""
        self._units.appendleft(unit)

    def failed(self, unit: Unit, error: Exception) -> None:
        """It was run and failed: it waits behind the others, unless that was the third time.

        Raises:
            Exception: the error, where units fail and none was ever finished.
        """
        self._n_failed += 1
        self._attempts[unit.id] = self._attempts.get(unit.id, 0) + 1
        if self._n_failed >= min(FAILED_AT_ONCE, self._n_asked) and not self._folder.done(self._spec):
            raise error
        if self._may_be_tried(unit):
            self._units.append(unit)

    def runs_of(self, unit: Unit) -> int:
        """How many patched runs a unit is."""
        return unit.n_rows * len(self._spec.data["direction"])

    def shown(self, show: bool) -> tqdm:
        """A progress bar over the patched runs of all of these units."""
        disable = None if show else True
        return tqdm(total=self._total, initial=self._at_first, unit="run", desc="Units", disable=disable)

    def _may_be_tried(self, unit: Unit) -> bool:
        return self._attempts.get(unit.id, 0) < ATTEMPTS
