"""Tokens shown as texts of the user's own, and pairs of token ids, for models with a tokenizer and without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from activation_patching import GaussianNoise, PromptPair, PromptPairs, check_dataset, load_results
from actpatch.patchers.heads import HeadPatcher
from actpatch.tasks.encoding import encode_pairs
from test_suite.helpers.ids import EQUALS, MODULUS, Addition, bare_model
from test_suite.helpers.models import model_parameters, needs_hooked, small_model
from test_suite.helpers.prompts import Prompts
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import patcher_on, raw
from visualize import create_full_report, create_position_heatmap

# Random models do no task, of which sweeps warn.
pytestmark = pytest.mark.filterwarnings("ignore:The model prefers|The corrup|.* pairs .* (repeat|barely)")

MODELS = model_parameters("hooked:grouped", "bridge:gpt2")
WRITTEN = {**{i: f"n{i}" for i in range(MODULUS)}, EQUALS: "="}


def addition(model: Any, n_pairs: int = 6, form: Any = list, **options: Any) -> PromptPairs:
    """The sums of `Addition` as pairs of one's own."""
    task = Addition(form, n_pairs)
    targets = [task.get_target_tokens(i) for i in range(n_pairs)]
    pairs = [
        PromptPair(clean, corrupted, (right,), (wrong,), positions=task.get_positions(0))
        for (clean, corrupted), (right, wrong) in zip(task.get_clean_corrupt_pairs(), targets)
    ]
    return PromptPairs(model, pairs, name="addition", **options)


class Labelled(Addition):
    token_labels = WRITTEN


class ByMethod(Addition):
    def token_labels(self, token: int) -> str:
        return WRITTEN[token]


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_labels_come_as_a_mapping_a_list_or_a_function(name: str) -> None:
    model = bare_model(name)
    texts = [WRITTEN[i] for i in range(len(WRITTEN))]
    datasets = [Labelled(), ByMethod()]
    datasets += [addition(model, token_labels=labels) for labels in (WRITTEN, texts, tuple(texts), WRITTEN.get)]
    for dataset in datasets:
        pairs = encode_pairs(model, dataset)
        assert pairs.clean_tokens[2] == ("n2", "n3", "=") and pairs.corrupted_tokens[2] == ("n7", "n3", "=")


@pytest.mark.parametrize("labels", [{3: "three"}, lambda token: {3: "three"}.get(token)])
def test_what_has_no_label_is_shown_as_without_labels(labels: Any) -> None:
    for model, expected in (
        (bare_model("bridge:gpt2"), ("2", "three", "11")),
        (small_model("bridge:gpt2"), ("w2", "three", "w11")),
    ):
        assert encode_pairs(model, addition(model, 3, token_labels=labels)).clean_tokens[2] == expected
    short = encode_pairs(bare_model("bridge:gpt2"), addition(bare_model("bridge:gpt2"), token_labels=["zero", "one"]))
    assert short.clean_tokens[1] == ("one", "3", "11")


@pytest.mark.parametrize("name", MODELS)
def test_labels_are_shown_in_the_place_of_ids_everywhere(name: str, tmp_path: Any) -> None:
    model = bare_model(name)
    patcher, heads = patcher_on(model), HeadPatcher(model, show_progress=False)
    positions = patcher.run_position_experiment(Labelled(), "resid_pre")
    assert positions.sweep.clean_tokens[1] == ("n1", "n3", "=")
    assert load_results(positions.save(tmp_path / "positions.json")).sweep.clean_tokens[1] == ("n1", "n3", "=")
    drawn = create_position_heatmap(positions).to_json()
    assert "n3" in drawn and "n0" in drawn
    check = check_dataset(model, Labelled())
    assert "0 a 'n0' -> 'n5'" in str(check)
    by_head = heads.run_all_heads_experiment(Labelled())
    report = create_full_report(head_results=by_head, position_results=positions, check=check, save_dir=tmp_path)[0]
    assert "n3" in report.read_text(encoding="utf-8")
    assert heads.attention_patterns(Labelled(), [(0, 1)], pair_index=2).clean_tokens == ("n2", "n3", "=")
    noised = patcher.run_patching_experiment(Labelled(), "mlp_out", noise=GaussianNoise("a", samples=2))
    assert noised.sweep.corrupted_tokens[1] == ("n1", "n3", "=")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("abc", "token_labels is a str, expected a mapping or a function from token ids to texts, or a list of texts"),
        (7, "token_labels is a int, expected a mapping"),
        ({2: 5}, "token_labels gives 5 for token 2, expected a text"),
        (lambda token: {}[token], r"token_labels fails for token \d+ \(KeyError: \d+\): let it return None for tokens"),
        (["a", "b", 3], "token_labels gives 3 for token 2, expected a text"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels: Any, message: str) -> None:
    model = bare_model("bridge:gpt2")
    dataset = Addition()
    dataset.token_labels = labels
    with refused(message):
        patcher_on(model).run_patching_experiment(dataset, "attn_out")


# --- pairs of ids -----------------------------------------------------------------------------------------------------


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", [list, tuple, np.array])
def test_pairs_of_ids_give_the_numbers_of_a_task_of_ids(name: str, form: Any) -> None:
    model = bare_model(name)
    patcher = patcher_on(model)
    own = addition(model, form=form)
    found, expected = (patcher.run_patching_experiment(dataset, "z", position="a") for dataset in (own, Addition()))
    np.testing.assert_array_equal(raw(found), raw(expected))
    assert found.sweep.clean_tokens == expected.sweep.clean_tokens and own.get_target_tokens(1) == (4, 9)
    assert check_dataset(model, own).to_dataframe().equals(check_dataset(model, Addition()).to_dataframe())


@needs_hooked
def test_pairs_of_ids_are_checked_as_pairs_of_texts_are() -> None:
    model = bare_model("hooked:toy")
    good = ([0, 3, EQUALS], [5, 3, EQUALS])
    for pair, message in (
        (PromptPair(*good, (EQUALS,), (2,)), "pair 1: the token id 11 is outside the vocabulary of 11"),
        (PromptPair(*good, (3,), (3,)), "pair 1: correct and incorrect answer are the same token 3"),
        (PromptPair([0, 3], good[1], (3,), (4,)), "pair 1: the clean prompt has 2 tokens and the corrupted one 3"),
        (PromptPair([0, 3, 12], good[1], (3,), (4,)), "pair 1: the prompt has the token id 12, outside the vocabulary"),
        (PromptPair(*good, (3,), (4,), positions={"a": 3}), "pair 1: position 'a' .* 3 is out of range"),
    ):
        with refused(message):
            PromptPairs(model, [PromptPair(*good, (3,), (8,)), pair])
    assert PromptPairs(
        model, [PromptPair(*good, (3,), (8,)), PromptPair(*map(tuple, good), (3,), (8,))]
    ).repeated_pairs == (1,)


@pytest.mark.parametrize("name", MODELS)
def test_one_text_among_ids_needs_a_tokenizer(name: str) -> None:
    model = bare_model(name)
    for pair in (PromptPair([1, 2], [3, 2], (" w3",)), PromptPair([1, 2], "w3 w2", (3,)), PromptPair("w1", "w2", (3,))):
        with refused(
            "^this model has no tokenizer, and PromptPairs of texts need one: set model.tokenizer, or give prom"
        ):
            PromptPairs(model, [PromptPair([1, 2], [3, 2], (3,)), pair])
    with_tokenizer = small_model(name)
    mixed = PromptPairs(with_tokenizer, [PromptPair([5, 2], "w2", ("w3",), (np.int64(4),))])
    assert mixed.get_target_tokens(0) == (3, 4) and encode_pairs(with_tokenizer, mixed).corrupted[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [1], (3,)), r"the clean prompt is \[\], expected a text, messages of a chat or token ids"),
        (([1], [1.5], (3,)), r"the corrupted prompt is \[1\.5\], expected a text, messages of a chat or token ids"),
        ((1, [1], (3,)), "the clean prompt is 1, expected a text"),
        (([1], [2], 3), r"correct is 3, expected a tuple of answers: \(3,\)"),
        (([1], [2], (3,), (None,)), "incorrect holds None, expected texts or token ids"),
        (([1], [2], (True,)), "correct holds True, expected texts or token ids"),
    ],
)
def test_pairs_that_cannot_be_are_refused(arguments: Any, message: str) -> None:
    with refused(message):
        PromptPair(*arguments)


def test_labels_of_texts_too() -> None:
    model = small_model("bridge:llama")
    dataset = Prompts(model, [("w3 w4", "w5 w4")], (4, 6))
    dataset.token_labels = {3: "subject", 1: "BOS"}
    assert encode_pairs(model, dataset).clean_tokens == (("BOS", "subject", "w4"),)
