"""Facts about things of one to several tokens on SmolLM2, against a plain loop over positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from activation_patching import ActivationPatcher, PatchingDataset
from actpatch.tasks.encoding import encode_pairs
from actpatch.tasks.tokens import encode_prompt
from test_suite.helpers.closeness import allowed
from test_suite.helpers.models import CLASSES, smollm2
from test_suite.oracles.aligned import partners_of, patched_run
from test_suite.oracles.one_prompt import run

FACTS = [
    ("The Eiffel Tower", "The Colosseum", " Paris", " Rome"),
    ("The Colosseum", "The Brandenburg Gate", " Rome", " Berlin"),
    ("Big Ben", "The Eiffel Tower", " London", " Paris"),
]
RELATION = " is located in the city of"


class Landmarks(PatchingDataset):
    """Where landmarks stand: subjects of other numbers of tokens, named and matched by their last ones."""

    def __init__(self, model: Any, align: Any) -> None:
        self.model, self.align = model, align

    @property
    def name(self) -> str:
        return "landmarks"

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return [(clean + RELATION, corrupted + RELATION) for clean, corrupted, *_ in FACTS]

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        right, wrong = (self.model.to_single_token(answer) for answer in FACTS[pair_idx][2:])
        return right, wrong

    def get_positions(self, pair_idx: int) -> dict[str, Any]:
        return self._named(FACTS[pair_idx][0])

    def get_corrupted_positions(self, pair_idx: int) -> dict[str, Any]:
        return self._named(FACTS[pair_idx][1])

    def _named(self, subject: str) -> dict[str, Any]:
        n_subject, n_all = (len(encode_prompt(self.model, text)) for text in (subject, subject + RELATION))
        n_bos = int(len(self.model.to_tokens(subject, prepend_bos=False)[0]) < n_subject)
        return {"SUBJECT": range(n_bos, n_subject), "RELATION": range(n_subject, n_all), "END": -1}


@pytest.mark.slow
@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_facts_of_other_lengths_are_those_by_hand(model_class: str, direction: Any) -> None:
    model = smollm2(model_class)
    patcher = ActivationPatcher(model, show_progress=False)
    for align in ("names", "ends"):
        dataset = Landmarks(model, align)
        pairs = encode_pairs(model, dataset)
        lengths = {len(prompt) for prompt in (*pairs.clean, *pairs.corrupted)}
        assert len(lengths) > 1, "the subjects have as many tokens"
        found = patcher.run_position_experiment(
            dataset,
            [f"blocks.{layer}.hook_resid_pre" for layer in (4, 16)] + ["blocks.10.hook_mlp_out"],
            positions=["SUBJECT", "RELATION", "END"],
            direction=direction,
        )
        base, other = (pairs.corrupted, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupted)

        def metric(logits: Tensor, pair: int, dataset: Landmarks = dataset) -> float:
            right, wrong = dataset.get_target_tokens(pair)
            return float(logits[-1, right] - logits[-1, wrong])

        expected = [
            [
                metric(patched_run(model, base[i], other[i], patch, partners_of(pairs.matches[i], direction), i), i)
                for i in range(len(FACTS))
            ]
            for patch in found.sweep.patches
        ]
        bound = allowed(model, [*pairs.clean, *pairs.corrupted])
        np.testing.assert_allclose(found.sweep.patched, expected, atol=bound, rtol=0)
        clean = [metric(run(model, prompt), i) for i, prompt in enumerate(pairs.clean)]
        np.testing.assert_allclose(found.sweep.clean, clean, atol=bound, rtol=0)
        assert abs(found.sweep.patched - found.sweep.base).max() > 100 * bound
        assert any("no partner" in note for note in found.sweep.notes)
