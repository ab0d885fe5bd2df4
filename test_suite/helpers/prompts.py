"""Prompts that a test writes itself, and tasks around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from activation_patching import PatchingDataset
from actpatch.tasks.encoding import EncodedPairs
from test_suite.helpers.models import words


class Words(PatchingDataset):
    """Pairs of word prompts for small models, with names for positions. BOS takes the place of each first token."""

    def __init__(self, pairs: EncodedPairs, names: Sequence[dict[str, int]] = ()) -> None:
        self.pairs, self.names = pairs, names

    @property
    def name(self) -> str:
        return "words"

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        clean, corrupted = ([_prompt(tokens) for tokens in run] for run in (self.pairs.clean, self.pairs.corrupted))
        return list(zip(clean, corrupted))

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        return 2 + pair_idx, 8 + pair_idx

    def get_positions(self, pair_idx: int) -> dict[str, int]:
        return self.names[pair_idx] if self.names else {}


def _prompt(tokens: Tensor) -> str:
    """The prompt's words after BOS. None starts with `w1`, which is BOS wherever it stands: 13 becomes 33."""
    return f" {words([int(token) + 20 * (10 <= token < 20) for token in tokens[1:]])}"


MARY = "When Mary and John went to the store, John gave a drink to"
FLIPPED = "When Mary and John went to the store, Mary gave a drink to"


class Prompts(PatchingDataset):
    """Any pairs with any answers."""

    def __init__(self, model: Any, pairs: list, answers: Any = (" cat", " dog")) -> None:
        self.model, self.pairs, self.answers = model, pairs, answers

    @property
    def name(self) -> str:
        return "prompts"

    def get_clean_corrupt_pairs(self):
        return self.pairs

    def get_target_tokens(self, pair_idx):
        return tuple(self.model.to_single_token(a) if isinstance(a, str) else a for a in self.answers)


ANIMALS = [("The cat sat on the mat", "The dog sat on the mat"), ("The cat sat on the rug", "The dog sat on the rug")]


class MyTask(PatchingDataset):
    """The README's own task, without its metric."""

    def __init__(self, model):
        self.model = model

    @property
    def name(self) -> str:
        return "My Custom Task"

    def get_clean_corrupt_pairs(self):
        return [("The cat sat on the mat", "The dog sat on the mat")]

    def get_target_tokens(self, pair_idx):
        return (self.model.to_single_token(" cat"), self.model.to_single_token(" dog"))
