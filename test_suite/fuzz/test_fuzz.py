"""A fixed sample of the random walk: seeds that every version of TransformerLens turns into the same kind of case."""

from __future__ import annotations

import pytest

from test_suite.fuzz.case import MODELS
from test_suite.fuzz.walk import check

QUICK = 12
"""Of so many models the first of the seeds is among the fast tests."""


def sample() -> list:
    """Seeds of each model: of a few the first is fast, all others are slow."""
    return []
