"""Answers that a dataset gives as texts are the tokens that they are, wherever answers are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from activation_patching import ActivationPatcher, GaussianNoise, check_dataset
from actpatch.tasks.answers import checked_targets
from actpatch.tasks.tokens import WrongTokenizer
from test_suite.helpers.models import bundled, fresh_model, smollm2
from test_suite.helpers.prompts import ANIMALS, Prompts
from test_suite.helpers.refusals import refused


class Texts(Prompts):
    """Answers as they are given, texts included."""

    def get_target_tokens(self, pair_idx: int) -> Any:
        return self.answers


class OfNoModel(Texts):
    """A dataset that does not say which model it is for."""

    def __init__(self, answers: Any) -> None:
        self.pairs, self.answers = ANIMALS, answers


@pytest.fixture(name="model")
def bundled_model() -> Any:
    return bundled()


@pytest.mark.parametrize(
    ("texts", "ids"),
    [
        ((" cat", " dog"), lambda one: (one(" cat"), one(" dog"))),
        (([" cat", " rug"], " dog"), lambda one: ((one(" cat"), one(" rug")), one(" dog"))),
        (((" cat", 9), {" dog"}), lambda one: ((one(" cat"), 9), one(" dog"))),
        ((" cat", None), lambda one: (one(" cat"), None)),
    ],
)
def test_texts_are_their_tokens(model: Any, texts: Any, ids: Any) -> None:
    one = model.to_single_token
    assert checked_targets(model, Texts(model, ANIMALS, texts), 0) == checked_targets(
        model, Texts(model, ANIMALS, ids(one)), 0
    )


@pytest.mark.filterwarnings("ignore:.*check_dataset")
def test_everything_that_reads_answers_reads_texts(model: Any) -> None:
    answers = (" cat", [" dog", " mat"])
    as_ids = (model.to_single_token(" cat"), [model.to_single_token(answer) for answer in answers[1]])
    texts, ids = Texts(model, ANIMALS, answers), Texts(model, ANIMALS, as_ids)
    patcher = ActivationPatcher(model, show_progress=False)
    for options in ({}, {"metrics": ["rank", "logit_difference"]}, {"noise": GaussianNoise(2, samples=2)}):
        found, expected = (patcher.run_patching_experiment(data, "attn_out", **options) for data in (texts, ids))
        for one, other in zip(found.sweep.measured, expected.sweep.measured, strict=True):
            np.testing.assert_array_equal(one.patched, other.patched)
    assert check_dataset(model, texts) == check_dataset(model, ids)
    logits = torch.randn(1, 4, model.cfg.d_vocab, generator=torch.Generator().manual_seed(0))
    assert texts.compute_metric(logits, 1) == ids.compute_metric(logits, 1)
    without = patcher.run_patching_experiment(OfNoModel(answers), "attn_out")
    np.testing.assert_array_equal(without.sweep.patched, expected_of(patcher, ids))


def expected_of(patcher: ActivationPatcher, dataset: Any) -> np.ndarray:
    return patcher.run_patching_experiment(dataset, "attn_out").sweep.patched


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            (" cat dog", " dog"),
            r"pair 0: the answer ' cat dog' is 2 tokens for this model \(' cat' \+ ' dog'\), and what",
        ),
        ((" cat", [" dog", " dog rug"]), r"pair 0: the answer ' dog rug' is 2 tokens for this model"),
        (("zyzzyva", " dog"), "pair 0: get_target_tokens returned the text 'zyzzyva': .*does not know 'zyzzyva'"),
        ((" cat", " cat"), "pair 0: correct and incorrect answer are the same token"),
    ],
)
def test_texts_that_are_no_single_token_are_refused(model: Any, answers: Any, message: str) -> None:
    patcher = ActivationPatcher(model, show_progress=False)
    with refused(message):
        patcher.run_patching_experiment(Texts(model, ANIMALS, answers), "attn_out")


@pytest.mark.slow
def test_a_text_that_lacks_its_space_is_told_where_that_would_be_one_token() -> None:
    model = smollm2()
    dataset = Texts(model, [("The cat saw", "The dog saw")], ("Michelle", " dog"))
    with refused("'Michelle' is 2 tokens for this model .*or write it with the space: ' Michelle' is one token"):
        ActivationPatcher(model, show_progress=False).run_patching_experiment(dataset, "attn_out")


def test_without_a_tokenizer_or_a_model_texts_are_refused(model: Any) -> None:
    bare = fresh_model("bridge+:gpt2")
    bare.tokenizer = None
    ids = Texts(bare, [([3, 4, 5], [3, 6, 5])], (" cat", 7))
    with refused(
        "pair 0: the answer ' cat' is a text, and this model has no tokenizer: return token ids", WrongTokenizer
    ):
        ActivationPatcher(bare, show_progress=False).run_patching_experiment(ids, "attn_out")
    logits = torch.zeros(1, 3, model.cfg.d_vocab)
    with refused(
        r"the answers ' cat' are texts, and the dataset 'prompts' does not say which model it is for: set self"
    ):
        OfNoModel((" cat", " dog")).compute_metric(logits, 0)
