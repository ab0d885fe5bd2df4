"""The two directions of patching, as Heimersheim & Nanda (2024) name them. Nothing here knows a run or a metric."""

from __future__ import annotations

from typing import Literal

Direction = Literal["denoising", "noising"]
"""`denoising` puts clean activations into the corrupted run, `noising` corrupted ones into the clean run."""

DIRECTIONS: dict[Direction, str] = {
    "denoising": "clean into corrupted: does the component suffice to restore the behaviour?",
    "noising": "corrupted into clean: is the component necessary for the behaviour?",
}


def check_direction(direction: object) -> None:
    """Raises ValueError for what is no direction."""
    if direction not in tuple(DIRECTIONS):
        raise ValueError(f"direction {direction!r} is unknown: expected one of {', '.join(DIRECTIONS)}")
