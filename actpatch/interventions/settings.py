"""What is asked of an experiment, besides its dataset and its patches, as one value that is checked when it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from actpatch.core.direction import Direction, check_direction
from actpatch.core.stores import Store, as_store
from actpatch.core.text import described
from actpatch.interventions.noise import GaussianNoise
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.chosen import MetricChoice


class Options(TypedDict, total=False):
    """The arguments that every experiment takes in either direction; what they mean stands with `Settings`."""

    pair_indices: Sequence[int] | None
    noise: GaussianNoise | None
    metrics: MetricChoice
    store: Store | str | Path | None


@dataclass(frozen=True)
class Settings:
    """What every experiment is asked.

    Raises:
        ValueError: for an unknown direction, for what is no source, no noise or no folder, and for an ablation together
            with noise or in both directions.
    """

    pair_indices: Sequence[int] | None = None
    """Which pairs of the dataset; None for all."""
    direction: Direction | Literal["both"] | None = None
    """None stands for denoising, and for noising where `source` is an ablation."""
    source: Source = OTHER_RUN
    """What is written."""
    noise: GaussianNoise | None = None
    """Makes the corrupted run out of the clean prompt."""
    metrics: MetricChoice = None
    """What is measured; None for the dataset's own."""
    store: Store | str | Path | None = None
    """The folder in which it is stored while it runs, and gone on with; None keeps everything in memory."""
    plan: bool = False
    """Whether nothing is run but what tells how long it would take."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", as_store(self.store))
        if not isinstance(self.source, Source):
            given = described(self.source) if isinstance(self.source, type) else repr(self.source)
            raise ValueError(
                f"source is {given}, expected OtherRun(), Zero(), Mean() or Resample(), or a Source of your own"
            )
        written = type(self.source).__name__
        if self.noise is not None and not isinstance(self.noise, GaussianNoise):
            raise ValueError(f"noise is {self.noise!r}, expected GaussianNoise(positions)")
        if self.noise is not None and self.source.is_ablation:
            raise ValueError(
                f"noise makes the corrupted run to exchange activations with, but {written}() writes none of "
                "its activations: leave out noise or source"
            )
        if self.direction == "both" and self.source.is_ablation:
            raise ValueError(
                f"direction 'both' exchanges activations between the two runs, {written}() "
                "writes neither's: choose 'noising' to ablate the clean run, or 'denoising' the corrupted one"
            )
        if self.direction not in (None, "both"):
            check_direction(self.direction)

    @property
    def stored_in(self) -> Store | None:
        """The folder, as a value."""
        return as_store(self.store)

    @property
    def directions(self) -> tuple[Direction, ...]:
        """The directions that are run."""
        if self.direction == "both":
            return ("denoising", "noising")
        return (self.direction or ("noising" if self.source.is_ablation else "denoising"),)
