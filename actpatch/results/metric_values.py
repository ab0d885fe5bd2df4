"""What a metric came to in every run of an experiment, and which pairs can be told by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.text import count, plain

MIN_RELATIVE_CHANGE = 0.1
"""Below this share of the larger metric, the difference of a pair's two runs is too small to divide by."""


@dataclass(frozen=True, eq=False, repr=False)
class MetricValues:
    """What one metric came to in every run of an experiment."""

    name: str
    """For instance `logit difference`."""
    unit: str
    """For instance `logits`; empty where it has none, or none is known."""
    more_is_better: bool
    """Whether it is the higher, the better the model does what the clean prompt asks for."""
    patched: Float[np.ndarray, "patch pair"]
    """Of each patched run, in `unit`."""
    clean: Float[np.ndarray, " pair"]
    """Of each clean run, in `unit`."""
    corrupted: Float[np.ndarray, " pair"]
    """Of each corrupted run, in `unit`."""

    def __repr__(self) -> str:
        of = " × ".join(count(n, what) for n, what in zip(self.patched.shape, ("patch", "pair")))
        clean, corrupted = (mean(run) for run in (self.clean, self.corrupted))
        return f"MetricValues({self.name}, {of}, clean {plain(clean, 2)}, corrupted {plain(corrupted, 2)})"

    def __eq__(self, other: object) -> bool:
        """Whether names and every number are the same; NaN is the same as NaN."""
        if not isinstance(other, MetricValues):
            return NotImplemented
        same = (self.name, self.unit, self.more_is_better) == (other.name, other.unit, other.more_is_better)
        return same and all(
            np.array_equal(getattr(self, run), getattr(other, run), equal_nan=True)
            for run in ("patched", "clean", "corrupted")
        )


def usable_pairs(
    clean: Float[np.ndarray, " pair"],
    corrupted: Float[np.ndarray, " pair"],
    min_relative_change: float = MIN_RELATIVE_CHANGE,
) -> Bool[np.ndarray, " pair"]:
    """Which pairs have a clean and a corrupted metric that differ enough to divide by the difference."""
    difference = np.abs(clean - corrupted)
    scale = np.maximum(np.abs(clean), np.abs(corrupted))
    return (difference > 1e-6) & (difference >= min_relative_change * scale)


def mean(values: Float[np.ndarray, " pair"]) -> float:
    """NaN for no pairs."""
    return float(values.mean()) if len(values) else float("nan")
