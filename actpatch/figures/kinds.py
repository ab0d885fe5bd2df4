"""Two maps beside each other: whether their effects are exact or estimates, in words. Knows no results."""

from __future__ import annotations

from dataclasses import dataclass

from actpatch.core.estimate_words import named
from actpatch.core.estimates import Estimate
from actpatch.figures.words import scale_title


@dataclass(frozen=True)
class Kinds:
    """Whether the effects of two maps are exact or estimates, in words."""

    first: Estimate | None
    second: Estimate | None

    @property
    def of_scale(self) -> str:
        """The title of their colours."""
        if self.first == self.second:
            return scale_title(self.first)
        return "effect, exact<br>or estimated" if self.are_mixed else "estimated<br>effect"

    @property
    def of_effects(self) -> str:
        """Both together."""
        if self.first == self.second:
            return f"the {named(self.first, 'effects')}"
        return "exact and estimated effects" if self.are_mixed else "the two estimates"

    @property
    def of_difference(self) -> str:
        """What is said of their difference; nothing of that of exact effects."""
        return "" if self.first is self.second is None else f"difference of {self.of_effects}"

    def told(self, names: tuple[str, str]) -> list[str]:
        """Which gradients are taken of which of them, where it is not the same."""
        if self.first == self.second:
            return []
        both = zip(names, (self.first, self.second))
        return [f"{name}: {estimate.gradient}" for name, estimate in both if estimate is not None]

    @property
    def are_mixed(self) -> bool:
        return (self.first is None) != (self.second is None)
