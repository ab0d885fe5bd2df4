"""Figures with a row per component, the largest on top: which are drawn, and the axis that names them.

Knows effects and labels; it knows neither results nor how they are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actpatch.figures.certainty import STAR


def largest(effects: np.ndarray, top_k: int) -> list[int]:
    """Numbers of the patches of largest |effect|, largest first; NaN comes last."""
    return np.argsort(-np.nan_to_num(np.abs(effects), nan=-1.0), kind="stable")[:top_k].tolist()


def strip(n: int, reach: float) -> np.ndarray:
    """Where in their row n points stand, at most `reach` from its middle.

    The place tells nothing: points are spread in an order that follows no other, so that none hides another.
    """
    return np.random.default_rng(0).permutation(np.linspace(-reach, reach, n)) if n > 1 else np.zeros(n)


def starred(label: str, is_significant: bool) -> str:
    """A label, marked where its effect is significant."""
    return f"{label} {STAR}" if is_significant else label


def rows_axis(labels: Sequence[str]) -> dict[str, Any]:
    """An axis with a row per label, the first on top."""
    ticks = {"tickvals": list(range(len(labels))), "ticktext": list(labels)}
    return {**ticks, "range": [len(labels) - 0.5, -0.5], "showgrid": False, "zeroline": False}
