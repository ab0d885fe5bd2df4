"""Exact runs of what was estimated: the same pairs, the same settings, the engine that runs patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actpatch.core.direction import Direction
from actpatch.core.sites import Patch
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.settings import Settings
from actpatch.results.sweep import Sweep
from actpatch.tasks.encoding import EncodedPairs


class ExactRuns:
    """Runs patches of an experiment that was estimated.

    Results carry it, so that they can be verified. It holds the model: a copy of results that is pickled is without it.

    Args:
        engine: that estimated.
        pairs: of the experiment.
        settings: of the experiment.
        direction: of these results.
    """

    def __init__(self, engine: PatchingEngine, pairs: EncodedPairs, settings: Settings, direction: Direction) -> None:
        self.engine, self.pairs, self.settings = engine, pairs, replace(settings, direction=direction)

    def __call__(self, patches: Sequence[Patch]) -> Sweep:
        """The exact sweep of these patches."""
        from actpatch.patchers.experiment import run_sweeps  # which hands results what runs them

        engine = self.engine.exact()
        return run_sweeps(engine, self.pairs, lambda pairs: patches, self.settings)[0]

    def __reduce__(self) -> Any:
        return type(None), ()
