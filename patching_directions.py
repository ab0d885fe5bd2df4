"""Is a component sufficient, necessary, both, or neither?  Both directions of one experiment, read together.

Denoising (clean into corrupted) that restores the behaviour shows that a component *suffices*; noising (corrupted into
clean) that destroys it shows that it is *necessary* (Heimersheim & Nanda 2024, "How to use and interpret activation
patching", section 3). Serial parts of a mechanism are both; of parts that stand in for each other each is sufficient
and none necessary; of parts that are all needed at once each is necessary and none sufficient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import pandas as pd

from patching_results import SweepResults
from patching_sites import Patch
from patching_sources import Source
from patching_sweep import Direction, common

Results = TypeVar("Results", bound=SweepResults)

Reading = Literal["both", "sufficient", "necessary", "neither"]


@dataclass(frozen=True)
class BothDirections(Generic[Results]):
    """One experiment in both directions, with the same patches on the same pairs."""

    denoising: Results
    """Clean into corrupted."""
    noising: Results
    """Corrupted into clean."""

    def by_metric(self, name: str) -> BothDirections[Results]:
        """The same results with another metric selected, in both directions."""
        return BothDirections(self.denoising.by_metric(name), self.noising.by_metric(name))

    def to_dataframe(self) -> pd.DataFrame:
        """Both long tables, one after the other; the column `direction` tells them apart."""
        return pd.concat([self.denoising.to_dataframe(), self.noising.to_dataframe()], ignore_index=True)

    def reading(self, threshold: float = 0.1) -> pd.DataFrame:
        """What each patch is for the behaviour: a row per patch, in order.

        Args:
            threshold: the least effect that counts. Negative effects count as none: a component that works against
                the behaviour neither restores nor carries it.

        Returns:
            `site` (label), `layer`, `head`, `neuron` and `position` (or its name) of each patch, where it has one;
            `denoising` and `noising`, the effects over the usable pairs; and `reading`: `both`, `sufficient`,
            `necessary` or `neither`, and None where no pair is usable.
        """
        if not isinstance(threshold, Real) or not threshold > 0:
            raise ValueError(f"threshold is {threshold!r}, expected a number above 0: at 0 every patch counts")
        effects = zip(self.denoising.sweep.effects.tolist(), self.noising.sweep.effects.tolist())
        rows = [
            {
                **_columns(patch),
                "denoising": suffices,
                "noising": needed,
                "reading": _reading(suffices, needed, threshold),
            }
            for patch, (suffices, needed) in zip(self.denoising.sweep.patches, effects)
        ]
        return pd.DataFrame(rows)


def in_directions(
    run: Callable[[Direction | None], Results],
    direction: Direction | Literal["both"] | None,
    source: Source,
) -> Results | BothDirections[Results]:
    """The experiment in the direction asked for, or in both.

    Raises:
        ValueError: for an ablation in both directions.
    """
    if direction != "both":
        return run(direction)
    if source.is_ablation:
        raise ValueError(
            f"direction 'both' exchanges activations between the two runs, {type(source).__name__}() "
            "writes neither's: choose 'noising' to ablate the clean run, or 'denoising' the corrupted one"
        )
    return BothDirections(run("denoising"), run("noising"))


def check_kind(results: object, kind: type, made_by: str, otherwise: str = "") -> None:
    """Raises ValueError for results of another kind, and for both directions, of which one has to be chosen.

    Args:
        results: what was given.
        kind: what is needed.
        made_by: what returns it.
        otherwise: what to do with results of other kinds.
    """
    if isinstance(results, kind):
        return
    if isinstance(results, BothDirections):
        raise ValueError("results holds both directions: give results.denoising or results.noising")
    raise ValueError(f"results is a {type(results).__name__}, expected what {made_by} returns{otherwise}")


def _columns(patch: Patch) -> dict[str, Any]:
    return {
        "site": patch.label,
        "layer": common(patch, lambda site: site.layer),
        "head": common(patch, lambda site: site.head),
        "neuron": common(patch, lambda site: site.neuron),
        "position": common(patch, lambda site: site.position_name or site.position),
    }


def _reading(suffices: float, needed: float, threshold: float) -> Reading | None:
    if np.isnan(suffices) or np.isnan(needed):
        return None
    if suffices >= threshold:
        return "both" if needed >= threshold else "sufficient"
    return "necessary" if needed >= threshold else "neither"
