"""The tasks that the library brings, and their answers as text."""

from __future__ import annotations

from typing import Any

from activation_patching import (
    AgreementDataset,
    CapitalsDataset,
    DocstringDataset,
    GenderedPronounDataset,
    GreaterThanDataset,
    InductionDataset,
    IOIDataset,
)
from actpatch.tasks.answers import checked_targets
from actpatch.tasks.tokens import token_strings

BEHAVIOURS = (
    InductionDataset,
    GreaterThanDataset,
    GenderedPronounDataset,
    AgreementDataset,
    CapitalsDataset,
    DocstringDataset,
)
TASKS = (IOIDataset, *BEHAVIOURS)


def answers_of(dataset: Any, pair: int) -> tuple[Any, Any]:
    """Texts of the correct and of the incorrect answers: one each, or a set."""
    sides = (token_strings(dataset.model, ids) for ids in checked_targets(dataset.model, dataset, pair))
    correct, incorrect = (side[0] if len(side) == 1 else set(side) for side in sides)
    return correct, incorrect
