"""Numbers of several units as those of one sweep. Nothing here knows a file, and nothing runs.

Each unit records the unpatched runs of its pairs for itself, so that of a pair there are several baselines, apart by
rounding. Those of the first unit count. A patch that changed nothing in its unit has the unit's own baseline, and gets
the one that counts: its effect stays exactly 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from actpatch.core.direction import Direction
from actpatch.engine.measured import Measured
from actpatch.runs.parts import Part
from actpatch.runs.units import Unit


class Joined:
    """The numbers of an experiment, into which those of units are put. What is lacking is NaN.

    Args:
        n_patches, n_pairs, n_metrics: of the experiment.
        directions: in which it is run.
    """

    def __init__(self, directions: Sequence[Direction], n_metrics: int, n_patches: int, n_pairs: int) -> None:
        self.directions = tuple(directions)
        n = len(self.directions)
        self.patched = np.full((n, n_metrics, n_patches, n_pairs), np.nan)
        self.clean, self.corrupted = np.full((2, n, n_metrics, n_pairs), np.nan)
        self.known = np.zeros(n_pairs, dtype=bool)
        """Pairs whose baselines are there."""

    def put(self, unit: Unit, measured: Sequence[Measured]) -> None:
        """Put in what a unit measured. Units are given in order: the baselines of a pair are those of its first."""
        pairs, patches = slice(unit.pairs.start, unit.pairs.stop), slice(unit.patches.start, unit.patches.stop)
        is_first = ~self.known[pairs]
        for i, (direction, runs) in enumerate(zip(self.directions, measured)):
            for kept, own in ((self.clean, runs.clean), (self.corrupted, runs.corrupted)):
                kept[i, :, pairs] = np.where(is_first, own, kept[i, :, pairs])
            is_denoising = direction == "denoising"
            own, counts = (runs.corrupted, self.corrupted) if is_denoising else (runs.clean, self.clean)
            self.patched[i, :, patches, pairs] = on_base(runs.patched, own, counts[i, :, pairs])
        self.known[pairs] = True

    def measured(self, shortcuts: Sequence[Sequence[str]], notes: Sequence[Sequence[str]]) -> list[Measured]:
        """The whole, per direction, with what is said of how each direction was run."""
        return [
            Measured(patched, clean, corrupted, tuple(of), tuple(said))
            for patched, clean, corrupted, of, said in zip(self.patched, self.clean, self.corrupted, shortcuts, notes)
        ]


def on_base(
    patched: Float[np.ndarray, "metric patch pair"],
    own: Float[np.ndarray, "metric pair"],
    counts: Float[np.ndarray, "metric pair"],
) -> Float[np.ndarray, "metric patch pair"]:
    """Patched runs of a unit, those that are its own baseline being the one that counts."""
    return np.where(patched == own[:, None], counts[:, None], patched)


def of_halves(whole: Unit, halves: Sequence[Part], directions: Sequence[Direction]) -> list[Measured]:
    """What the halves of a unit measured, as the unit."""
    first = halves[0].measured
    joined = Joined(directions, len(first[0].clean), len(whole.patches), len(whole.pairs))
    for half in halves:
        pairs, patches = half.unit.pairs, half.unit.patches
        at = [
            range(of.start - start, of.stop - start)
            for of, start in ((pairs, whole.pairs.start), (patches, whole.patches.start))
        ]
        joined.put(Unit(whole.number, *at), half.measured)
    ways = range(len(first))
    shortcuts = [in_all(half.measured[i].shortcuts for half in halves) for i in ways]
    notes = [said_once(note for half in halves for note in half.measured[i].notes) for i in ways]
    return joined.measured(shortcuts, notes)


def in_all(each: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """What stands in all of them, in the order of the first."""
    first, *others = each
    return tuple(name for name in first if all(name in other for other in others))


def said_once(notes: Iterable[str]) -> tuple[str, ...]:
    """The sentences, of those that differ in a number alone (what rounding does to a unit's first pair) the first."""
    found: dict[str, str] = {}
    for note in notes:
        found.setdefault(re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", "#", note), note)
    return tuple(found.values())
