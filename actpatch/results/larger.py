"""What is known of an experiment out of which the patches of a sweep were chosen. Nothing here knows a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from actpatch.statistics.sites import SiteStatistics


@dataclass(frozen=True)
class LargerExperiment:
    """An experiment that is too large to be held, out of which patches were chosen."""

    n_patches: int
    """How many it has."""
    statistics: Callable[..., SiteStatistics] | None = field(default=None, compare=False, repr=False)
    """From a metric's name and options to the entries of the chosen patches, corrected over all of its patches; None
    where it is not at hand, or the sweep is of other pairs."""
