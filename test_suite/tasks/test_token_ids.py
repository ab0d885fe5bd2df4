"""Prompts given as token ids: they are used as they are, by models without a tokenizer too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizer

from activation_patching import (
    GaussianNoise,
    Mean,
    PatchingDataset,
    PromptPair,
    PromptPairs,
    Resample,
    check_dataset,
    load_results,
    summarize_results,
)
from actpatch.patchers.heads import HeadPatcher, print_head_results
from actpatch.tasks.encoding import encode_pairs
from actpatch.tasks.tokens import encode_prompt, single_token, token_strings
from test_suite.helpers.ids import BARE_MODELS, MODULUS, Addition, bare_model
from test_suite.helpers.models import D_VOCAB, N_CONTEXT, fresh_model, model_parameters, needs_hooked, small_model
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import patcher_on, raw
from test_suite.helpers.tasks import TASKS
from visualize import create_full_report, create_head_heatmap, create_position_heatmap

# Random models do no task, of which sweeps warn.
pytestmark = pytest.mark.filterwarnings("ignore:The model prefers|The corrup|.* pairs .* (repeat|barely)")

WITH_TOKENIZER = model_parameters("hooked:rotary", "bridge:llama", "bridge+:gpt2")
NO_TOKENIZER = "^this model has no tokenizer: give prompts as token ids, or set model.tokenizer$"
CLEAN, CORRUPTED = " w3 w7 w20 w5", " w3 w9 w20 w5"


class Pairs(PatchingDataset):
    def __init__(self, pairs: Any, targets: Any = (4, 6)) -> None:
        self.pairs, self.targets = pairs, targets

    @property
    def name(self) -> str:
        return "pairs"

    def get_clean_corrupt_pairs(self) -> Any:
        return self.pairs

    def get_target_tokens(self, pair_idx: int) -> Any:
        return self.targets() if callable(self.targets) else self.targets


def in_one_row(ids: list[int]) -> torch.Tensor:
    return torch.tensor([ids], dtype=torch.int32)


# --- ids are what the text would have been ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_ids_of_a_text_give_the_numbers_of_the_text(name: str) -> None:
    model = small_model(name)
    clean, corrupted = (model.to_tokens(text) for text in (CLEAN, CORRUPTED))
    texts = Pairs([(CLEAN, CORRUPTED)] * 2)
    mixed = Pairs([(CLEAN, corrupted), (clean[0].numpy(), CORRUPTED)])
    patcher = patcher_on(model)
    expected, found = (patcher.run_position_experiment(pairs, ["resid_pre", "z"]) for pairs in (texts, mixed))
    np.testing.assert_array_equal(raw(found), raw(expected))
    assert found.sweep.clean_tokens == expected.sweep.clean_tokens
    assert found.sweep.corrupted_tokens == expected.sweep.corrupted_tokens


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_ids_get_no_bos(name: str) -> None:
    model = small_model(name)
    ids = [5, 7, 20]
    logits, activations = patcher_on(model).run_with_cache(ids, "blocks.1.hook_resid_pre")
    with torch.no_grad():
        expected, cache = model.run_with_cache(torch.tensor([ids]))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        activations["blocks.1.hook_resid_pre"], cache["blocks.1.hook_resid_pre"], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    "form", [list, tuple, np.array, torch.tensor, in_one_row, lambda ids: [ids], lambda ids: np.array(ids, np.uint8)]
)
def test_ids_come_in_any_form(form: Any) -> None:
    name = "bridge:gpt2"
    expected = encode_pairs(bare_model(name), Addition())
    found = encode_pairs(bare_model(name), Addition(form))
    for one, other in zip((*found.clean, *found.corrupted), (*expected.clean, *expected.corrupted)):
        assert torch.equal(one, other) and one.dtype == torch.long


def test_pairs_may_be_the_rows_of_one_array() -> None:
    pairs = torch.tensor([[[1, 2, 3], [1, 4, 3]], [[5, 6, 7], [5, 2, 7]]])
    for given in (pairs, pairs.numpy(), pairs[:, :, :1]):
        encoded = encode_pairs(bare_model("bridge:gpt2"), Pairs(given))
        assert torch.equal(torch.stack(encoded.corrupted), torch.as_tensor(given)[:, 1])


def test_a_change_of_the_given_ids_changes_no_encoded_pair() -> None:
    given = torch.tensor([[1, 2, 3], [1, 4, 3]])
    encoded = encode_pairs(bare_model("bridge:gpt2"), Pairs([given]))
    given.zero_()
    assert encoded.clean[0].tolist() == [1, 2, 3]


# --- models without a tokenizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge:gpt2", "bridge+:llama"))
def test_without_a_tokenizer_the_numbers_are_those_of_the_model_with_one(name: str) -> None:
    found, expected = (
        patcher_on(model).run_patching_experiment(
            Addition(n_pairs=3), ["attn_out", "mlp_out"], position="a", direction="both"
        )
        for model in (bare_model(name), small_model(name))
    )
    for direction in ("denoising", "noising"):
        np.testing.assert_array_equal(raw(getattr(found, direction)), raw(getattr(expected, direction)))
    assert found.denoising.sweep.clean_tokens[1] == ("1", "3", "11")
    assert expected.denoising.sweep.clean_tokens[1] == ("w1", "w3", "w11")


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "name", model_parameters("hooked:grouped", "bridge:gpt2", slow=["bridge+:llama", "hooked:toy"])
)
def test_everything_downstream_works_without_a_tokenizer(name: str, tmp_path: Any, capsys: Any) -> None:
    model = bare_model(name)
    patcher, heads = patcher_on(model), HeadPatcher(model, show_progress=False)
    positions = patcher.run_position_experiment(Addition(), "resid_pre", positions=["a", "=", 1])
    by_number = patcher.run_position_experiment(Addition(), "resid_pre")
    np.testing.assert_array_equal(raw(positions)[:2], raw(by_number)[[0, 2]])
    layers = patcher.run_patching_experiment(Addition(), ["attn_out", "mlp_out"], metrics=["rank", "kl_divergence"])
    by_head = heads.run_all_heads_experiment(Addition(torch.tensor))
    noised = patcher.run_patching_experiment(Addition(), "mlp_out", noise=GaussianNoise("a", samples=2))
    same = type("Same", (Addition,), {"get_template": lambda self, pair: "a + b"})
    for source in (Mean(same(n_pairs=9)), Resample(0)):
        assert np.isfinite(raw(patcher.run_patching_experiment(same(), "attn_out", source=source))).all()
    assert np.isfinite(raw(noised)).all()
    summarize_results(layers)
    print_head_results(by_head)
    check = check_dataset(model, Addition())
    assert len(check.to_dataframe()) == 6 and "0 a '0' -> '5'" in str(check)
    assert "addition" in capsys.readouterr().out
    loaded = load_results(by_head.save(tmp_path / "heads.json"))
    assert loaded == by_head and loaded.sweep.clean_tokens[0] == ("0", "3", "11")
    assert create_head_heatmap(by_head).data and create_position_heatmap(by_number).data
    report = create_full_report(
        head_results=by_head, layer_results=layers, position_results=by_number, check=check, save_dir=tmp_path
    )[0]
    assert "addition" in report.read_text(encoding="utf-8")
    patterns = heads.attention_patterns(Addition(), [(0, 1)], pair_index=2)
    assert patterns.clean_tokens == ("2", "3", "11")
    patched = patcher.run_patched([0, 3, 11], np.array([5, 3, 11]), "blocks.1.hook_resid_pre")
    with torch.no_grad():
        expected = model(torch.tensor([[0, 3, 11]]))
    torch.testing.assert_close(patched, expected, atol=1e-4, rtol=0)


@needs_hooked
def test_answers_are_of_the_vocabulary_that_is_written() -> None:
    model = bare_model("hooked:toy")
    equals = Pairs([([1, 2, 11], [3, 2, 11])], (MODULUS, 2))
    with refused("pair 0: target token 11 is outside the vocabulary of 11"):
        patcher_on(model).run_patching_experiment(equals, "attn_out")


@pytest.mark.parametrize("name", BARE_MODELS)
def test_texts_are_refused_in_one_sentence(name: str) -> None:
    model = bare_model(name)
    patcher = patcher_on(model)
    texts, mixed = Pairs([("w1 w2", "w3 w2")] * 3), Pairs([([1, 2], [3, 2]), ("w1 w2", "w3 w2")])
    for run in (
        lambda: patcher.run_patching_experiment(texts, "attn_out"),
        lambda: HeadPatcher(model).run_all_heads_experiment(mixed),
        lambda: patcher.run_with_cache("w1 w2", "z"),
        lambda: patcher.run_patched([1, 2], "w1 w2", "blocks.0.hook_attn_out"),
        lambda: check_dataset(model, texts),
    ):
        with refused(NO_TOKENIZER):
            run()
    check = check_dataset(model, mixed, metric="kl_divergence")
    assert check.pairs[1].fault == NO_TOKENIZER.strip("^$") and not check.pairs[0].fault


@pytest.mark.parametrize("name", BARE_MODELS)
def test_tasks_of_words_say_that_they_need_a_tokenizer(name: str) -> None:
    model = bare_model(name)
    for task in TASKS:
        with refused(
            "^this model has no tokenizer, and .* needs? one: set model.tokenizer, or give prompts as token ids"
        ):
            task(model, 2)
    with refused(
        "^this model has no tokenizer, and PromptPairs of texts need one: set model.tokenizer, or give prompts as"
    ):
        PromptPairs(model, [PromptPair("w1", "w2", (" w3",))])
    answers = Pairs([([1, 2], [3, 2])], lambda: (model.to_single_token("w3"), 4))
    with refused("pair 0: get_target_tokens failed .*, and this model has no tokenizer: return token ids"):
        patcher_on(model).run_patching_experiment(answers, "attn_out")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_TOKENIZER)
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt has no token ids: give at least one"),
        (torch.tensor([[]], dtype=torch.long), "the prompt has no token ids"),
        ([1, 2.5], r"the prompt is \[1, 2.5\], expected a text or one list of token ids, which are integers"),
        (np.array([1.0, 2.0]), r"the prompt is array\(\[1., 2.\]\), expected a text or one list of token ids"),
        ([True, False], r"the prompt is \[True, False\], expected a text or one list"),
        ([[1, 2], [3, 4]], r"the prompt is \[\[1, 2\], \[3, 4\]\], expected a text or one list"),
        ([1, D_VOCAB], f"the prompt has the token id {D_VOCAB}, outside the vocabulary of {D_VOCAB}: expected 0 to"),
        ([-1, 3], f"the prompt has the token id -1, outside the vocabulary of {D_VOCAB}"),
        (
            [3] * (N_CONTEXT + 1),
            rf"the prompt \[3, 3, .*\.\.\. has {N_CONTEXT + 1} tokens, the model reads at most {N_CONTEXT}: shorten it",
        ),
    ],
)
def test_ids_that_cannot_be_are_refused(name: str, prompt: Any, message: str) -> None:
    patcher = patcher_on(small_model(name))
    with refused(f"^pair 1: {message}"):
        patcher.run_patching_experiment(Pairs([(CLEAN, CORRUPTED), (prompt, prompt)]), "attn_out")
    with refused(message):
        patcher.run_with_cache(prompt, "z")
    with refused(message):
        patcher.run_patching_experiment(Pairs([(prompt, prompt)]), "attn_out", noise=GaussianNoise(0))


@pytest.mark.parametrize("pair", [(1, 2), 3, [1, 2, 3], None, ([1, 2], 3), ("", [1]), {"clean": [1]}, np.arange(2)])
def test_what_is_no_pair_is_refused(pair: Any) -> None:
    for name in ("bridge:gpt2", "bridge+:llama"):
        with refused(r"^pair 0 is .*, expected \(clean prompt, corrupted prompt\), two texts or lists of token ids$"):
            patcher_on(small_model(name)).run_patching_experiment(Pairs([pair]), "attn_out")


def test_ids_of_different_lengths_are_told_apart_in_numbers() -> None:
    with refused(
        "the clean prompt has 3 tokens and the corrupted one 4; they part at position 1, '2 3' against '4 12 3'"
    ):
        patcher_on(bare_model("bridge:gpt2")).run_patching_experiment(Pairs([([1, 2, 3], [1, 4, 12, 3])]), "attn_out")


# --- odd tokenizers ---------------------------------------------------------------------------------------------------


class Slow(PreTrainedTokenizer):
    """Knows no offsets, and no option of `decode`."""

    def __init__(self, size: int = 30, **special: str) -> None:
        self.words = [f"w{i}" for i in range(size)]
        super().__init__(name_or_path="slow", **special)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(self.words[token] for token in token_ids)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int | None:
        return self.get_vocab().get(token, 0 if self.unk_token else None)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def build_inputs_with_special_tokens(self, token_ids_0: list[int], token_ids_1: Any = None) -> list[int]:
        return token_ids_0


def with_slow_tokenizer(name: str, **special: str) -> Any:
    model = fresh_model(name)
    model.tokenizer = None
    model.tokenizer = Slow(**special)
    model.cfg.tokenizer_prepends_bos = False
    return model


ODD = model_parameters("hooked:learned", "bridge:llama")


@pytest.mark.parametrize("name", ODD)
def test_a_tokenizer_without_offsets_names_unknown_words_too(name: str) -> None:
    model = with_slow_tokenizer(name, unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w2")
    model.cfg.default_prepend_bos = False
    assert encode_prompt(model, "w3 w4").tolist() == [3, 4] and single_token(model, "w7") == 7
    assert token_strings(model, [3, 29, 35]) == ("w3", "w29", "35"), "the vocabulary is larger than the tokenizer's"
    with refused("the model's tokenizer does not know 'zz', 'y' in 'w3 zz w4 zz y': use words it was trained on"):
        encode_prompt(model, "w3 zz w4 zz y")
    with refused("pair 0: a target is the tokenizer's unknown token"):
        patcher_on(model).run_patching_experiment(Pairs([("w3 w4", "w5 w4")], (0, 4)), "attn_out")


@pytest.mark.parametrize("name", ODD)
def test_without_unknown_token_and_bos_there_is_an_answer_or_a_sentence(name: str) -> None:
    model = with_slow_tokenizer(name, eos_token="w2", pad_token="w2")
    assert model.cfg.default_prepend_bos and encode_prompt(model, "w3 w4").tolist() == [3, 4]
    assert np.isfinite(raw(patcher_on(model).run_patching_experiment(Pairs([("w3 w4", "w5 w4")]), "attn_out"))).all()
    with refused("the model's tokenizer cannot make tokens of 'w3 zz' .*: give prompts as token ids, or set another"):
        encode_prompt(model, "w3 zz")
    without_padding = with_slow_tokenizer(name)
    with refused("cannot make tokens of 'w3 w4' .Asking to pad .*: give prompts as token ids, or set another"):
        encode_prompt(without_padding, "w3 w4")
    assert encode_prompt(without_padding, [3, 4]).tolist() == [3, 4]
