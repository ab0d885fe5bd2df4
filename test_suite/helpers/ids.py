"""Models without a tokenizer, and tasks whose prompts are token ids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from activation_patching import PatchingDataset
from test_suite.helpers.models import fresh_hooked, fresh_model, model_parameters

MODULUS, EQUALS = 11, 11
BARE_MODELS = model_parameters("hooked:grouped", "bridge:gpt2", "bridge+:llama", "hooked:toy")


@functools.cache
def bare_model(name: str) -> Any:
    """A model that reads and writes numbers. `hooked:toy` is one for addition: its output has no equals sign."""
    if name == "hooked:toy":
        model = fresh_hooked(d_vocab=MODULUS + 1, d_vocab_out=MODULUS, n_ctx=3)
    else:
        model = fresh_model(name)
    model.tokenizer = None
    return model


class Addition(PatchingDataset):
    """a + b =, modulo 11, in any form of ids."""

    def __init__(self, form: Callable[[list[int]], Any] = list, n_pairs: int = 6) -> None:
        self.form, self.n_pairs = form, n_pairs

    @property
    def name(self) -> str:
        return "addition"

    def get_clean_corrupt_pairs(self) -> Iterator[tuple[Any, Any]]:
        for a in range(self.n_pairs):
            yield self.form([a, 3, EQUALS]), self.form([(a + 5) % MODULUS, 3, EQUALS])

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        return (pair_idx + 3) % MODULUS, (pair_idx + 8) % MODULUS

    def get_positions(self, pair_idx: int) -> dict[str, int]:
        return {"a": 0, "b": 1, "=": -1}
