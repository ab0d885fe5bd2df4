"""Methods that estimate what patches would do from gradients: which gradients are taken, of what, and how often.

An estimate says how far a metric would move, to first order or by a mean of gradients along a path; what is exact is
run. A method is a value: results carry it, so that no estimate is taken for an effect that was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from actpatch.core.indices import is_integer

Grid = Literal["left", "right", "midpoint"]
"""Where on each step from the corrupted embeddings to the clean ones the gradient is taken: at its beginning, as the
code of Hanna et al. 2024 does for edges; at its end, as their paper writes it; in its middle."""

MethodName = Literal["atp", "atp_star", "eap", "eap_ig", "ig_activations", "clean_corrupted", "relp", "gim"]
"""Names of the methods."""


class Method(NamedTuple):
    """What a method is."""

    kinds: tuple[str, ...]
    """What it estimates: `components`, `edges`, or both."""
    gradient: str
    """Which gradient it takes, in words."""
    has_steps: bool = False
    """Whether gradients are taken at several points of a path."""
    any_source: bool = True
    """Whether what is written may be other than the activation of the pair's other run."""
    is_absolute: bool = False
    """Whether scores are sizes alone, without a sign."""


BOTH = ("components", "edges")
METHODS: dict[MethodName, Method] = {
    # Nanda 2023
    "atp": Method(("components",), "gradient in the run that is patched"),
    # Kramár et al. 2024
    "atp_star": Method(
        ("components",),
        "gradient in the run that is patched, one layer dropped at a time, attention of queries and keys recomputed",
        is_absolute=True,
    ),
    # Syed et al. 2023
    "eap": Method(("edges",), "gradient in the run that is patched"),
    # Hanna et al. 2024
    "eap_ig": Method(
        BOTH, "mean gradient between the corrupted and the clean embeddings", has_steps=True, any_source=False
    ),
    # Marks et al. 2024
    "ig_activations": Method(
        ("components",),
        "mean gradient between what is there and what is written, of one hook point at a time",
        has_steps=True,
    ),
    # Hanna et al. 2024
    "clean_corrupted": Method(BOTH, "mean of the gradients in the clean and the corrupted run", any_source=False),
    # Rezaei Jafari et al. 2025
    "relp": Method(BOTH, "relevance in the run that is patched, by rules for each kind of layer"),
    # Edin et al. 2025
    "gim": Method(BOTH, "gradient in the run that is patched, modified for interactions"),
}


@dataclass(frozen=True)
class Estimate:
    """How effects are estimated.

    Raises:
        ValueError: for an unknown method or grid, and for steps that are no whole number from 1 on, or of a method that
            takes none.
    """

    method: MethodName
    steps: int | None = None
    """At how many points gradients are taken, of the methods that take a path; None stands for 5."""
    grid: Grid | None = None
    """Where on each step, of these methods; None stands for `midpoint`."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown: expected one of {', '.join(map(repr, METHODS))}")
        if self.grid is not None and self.grid not in get_args(Grid):
            raise ValueError(f"grid {self.grid!r} is unknown: expected one of {', '.join(map(repr, get_args(Grid)))}")
        if self.steps is not None and (not is_integer(self.steps) or self.steps < 1):
            raise ValueError(f"steps is {self.steps!r}, expected a whole number from 1 on")
        if METHODS[self.method].has_steps:
            object.__setattr__(self, "steps", 5 if self.steps is None else self.steps)
            object.__setattr__(self, "grid", "midpoint" if self.grid is None else self.grid)
        elif self.steps is not None or self.grid is not None:
            with_steps = ", ".join(repr(name) for name, method in METHODS.items() if method.has_steps)
            raise ValueError(f"method {self.method!r} takes no steps and no grid: only {with_steps} do")

    @property
    def what(self) -> Method:
        """What its method is."""
        return METHODS[self.method]

    @property
    def gradient(self) -> str:
        """Which gradient is taken, at which point, in words."""
        return f"{self.what.gradient}{', sizes without sign' if self.what.is_absolute else ''}"

    @property
    def path(self) -> str:
        """The steps of a method that takes a path, and where on each: `5 steps, midpoint grid`; empty for others."""
        return f"{self.steps} steps, {self.grid} grid" if self.what.has_steps else ""

    @property
    def described(self) -> str:
        """The method and at which point gradients are taken, in words: `atp (gradient in the run that is patched)`."""
        return f"{self.method} ({', '.join(filter(None, [self.gradient, self.path]))})"

    @property
    def n_points(self) -> int:
        """At how many points gradients are taken, of which the mean counts."""
        return self.steps or (2 if self.method == "clean_corrupted" else 1)

    def shares(self) -> list[float]:
        """Where on the path gradients are taken: 0 for its beginning, 1 for its end."""
        shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[self.grid or "midpoint"]
        n_steps = self.steps or 1
        return [(step + shift) / n_steps for step in range(n_steps)]

    def check_kind(self, kind: str) -> None:
        """Raise a ValueError where the method does not estimate `components`, or `edges`."""
        if kind not in self.what.kinds:
            able = ", ".join(repr(name) for name, method in METHODS.items() if kind in method.kinds)
            raise ValueError(f"method {self.method!r} estimates no {kind}: expected one of {able}")
