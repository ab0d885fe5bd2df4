"""Figures with a row per component, the largest on top: which are drawn, and the axis that names them.

Knows effects and labels; it knows neither results nor what is drawn in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def largest(effects: np.ndarray, top_k: int) -> list[int]:
    """Numbers of the patches of largest |effect|, largest first; NaN comes last."""
    return np.argsort(-np.nan_to_num(np.abs(effects), nan=-1.0), kind="stable")[:top_k].tolist()


def rows_axis(labels: Sequence[str]) -> dict[str, Any]:
    """An axis with a row per label, the first on top."""
    ticks = {"tickvals": list(range(len(labels))), "ticktext": list(labels)}
    return {**ticks, "range": [len(labels) - 0.5, -0.5], "showgrid": False, "zeroline": False}
