"""Chats as prompts: tokens as the tokenizer's own template makes them, BOS once, and positions by role."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from activation_patching import GaussianNoise, PromptPair, PromptPairs
from actpatch.tasks.chat import chat_text, is_chat, role_positions
from actpatch.tasks.encoding import encode_pairs
from actpatch.tasks.tokens import encode_prompt, is_one_prompt
from test_suite.helpers.chats import BODY, TEMPLATE, chat, chat_model
from test_suite.helpers.ids import bare_model
from test_suite.helpers.models import model_parameters, smollm2, word_tokenizer
from test_suite.helpers.prompts import Prompts
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import patcher_on, raw

# Random models do no task, of which sweeps warn.
pytestmark = pytest.mark.filterwarnings("ignore:The model prefers|The corrup|.* pairs .* (repeat|barely)")

MODELS = model_parameters("hooked:learned", "bridge:llama")
CLEAN, CORRUPTED = chat("w3 w4", "w5", "w6 w7", system="w8 w9"), chat("w3 w4", "w5", "w6 w20", system="w8 w9")
IDS = [1, 30, 8, 9, 33, 31, 3, 4, 33, 32, 5, 33, 31, 6, 7, 33, 32]
"""What `TEMPLATE` writes of the clean chat."""
NAMED = {"SYSTEM": 3, "ASSISTANT": 10, "USER": 14, "END": 16}


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("with_bos", [True, False])
@pytest.mark.parametrize("template", [TEMPLATE, BODY])
def test_tokens_are_those_of_the_template_with_one_bos(name: str, with_bos: bool, template: str) -> None:
    model = chat_model(name, template, with_bos=with_bos)
    found = encode_prompt(model, CLEAN).tolist()
    own = model.tokenizer.apply_chat_template(CLEAN, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert found == (own if template is TEMPLATE or not with_bos else [1, *own])
    assert found == (IDS if template is TEMPLATE or with_bos else IDS[1:])


@pytest.mark.parametrize("name", MODELS)
def test_a_chat_may_end_in_the_assistants_own_words(name: str) -> None:
    model = chat_model(name)
    messages = chat("w3 w4", "w5 w6")
    assert encode_prompt(model, messages).tolist() == [1, 31, 3, 4, 33, 32, 5, 6]
    assert encode_pairs(model, Prompts(model, [(messages, messages)])).positions == (
        {"USER": 3, "ASSISTANT": 7, "END": 7},
    )


def test_a_chat_is_one_prompt_and_no_pair() -> None:
    assert is_chat(CLEAN) and is_one_prompt(CLEAN)
    assert not is_chat((CLEAN, CORRUPTED)) and not is_one_prompt((CLEAN, CORRUPTED))
    assert not any(map(is_chat, ("w3", [1, 2], [], np.array([1]), torch.tensor([1]), {"role": "user"})))


# --- positions by role ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("template", "with_bos"), [(TEMPLATE, True), (BODY, True), (BODY, False)])
def test_roles_name_the_last_token_of_what_they_say_last(name: str, template: str, with_bos: bool) -> None:
    model = chat_model(name, template, with_bos=with_bos)
    pairs = encode_pairs(model, Prompts(model, [(CLEAN, CORRUPTED)]))
    before = 0 if template is TEMPLATE or with_bos else 1
    assert pairs.positions == ({role: at - before for role, at in NAMED.items()},)
    tokens = pairs.clean_tokens[0]
    assert [tokens[at].strip() for at in pairs.positions[0].values()] == ["w9", "w5", "w7", "w32"]


def test_what_a_message_says_is_found_where_the_template_put_it() -> None:
    """Not where the same words stand elsewhere, in a role or in another message; stripped or not."""
    tokenizer = chat_model("bridge:llama").tokenizer
    for template in (TEMPLATE, TEMPLATE.replace("message['content']", "message['content'] | trim")):
        tokenizer.chat_template = template
        messages = chat("w31", "w33 w31", "w31 w31 ", system="  w30 w31")
        ids = tokenizer(chat_text(tokenizer, messages), add_special_tokens=False)["input_ids"]
        assert ids == [1, 30, 30, 31, 33, 31, 31, 33, 32, 33, 31, 33, 31, 31, 31, 33, 32]
        assert role_positions(tokenizer, messages, ids) == {"SYSTEM": 3, "ASSISTANT": 10, "USER": 14, "END": 16}


def test_what_stands_right_behind_the_words_is_none_of_them() -> None:
    template = TEMPLATE.replace("}} w33", "}}{{ eos_token }}")
    tokenizer = chat_model("bridge:llama", template).tokenizer
    ids = tokenizer(chat_text(tokenizer, chat("w3 w4", "w5 ", "w6")), add_special_tokens=False)["input_ids"]
    assert ids == [1, 31, 3, 4, 1, 32, 5, 1, 31, 6, 1, 32]
    assert role_positions(tokenizer, chat("w3 w4", "w5 ", "w6"), ids) == {"ASSISTANT": 6, "USER": 9, "END": 11}


@pytest.mark.parametrize(
    "content",
    ["message['content'] ~ ' w20' if loop.first else 'w5'", "message['content'] ~ ' ' ~ message['content']", "'w5'"],
)
def test_where_the_template_writes_something_else_only_the_end_is_named(content: str) -> None:
    tokenizer = chat_model("bridge:llama", TEMPLATE.replace("message['content']", content)).tokenizer
    ids = tokenizer(chat_text(tokenizer, CLEAN), add_special_tokens=False)["input_ids"]
    assert role_positions(tokenizer, CLEAN, ids) == {"END": len(ids) - 1}


@pytest.mark.parametrize("name", MODELS)
def test_a_name_that_stands_elsewhere_in_the_other_prompt_is_left_out(name: str) -> None:
    model = chat_model(name)
    pair = chat("w3", system="w4 w5 w6"), chat("w3 w4", system="w5 w6")
    mixed = Prompts(model, [pair, (CLEAN, encode_prompt(model, CORRUPTED))])
    assert encode_pairs(model, mixed).positions == ({"USER": 7, "END": 9}, {})
    with refused("2 of 2 pairs have no position named 'SYSTEM': pair 0 has USER, END; pair 1 has none"):
        patcher_on(model).run_patching_experiment(mixed, "z", position="SYSTEM")


@pytest.mark.parametrize("name", MODELS)
def test_the_datasets_own_names_come_first(name: str) -> None:
    model = chat_model(name)
    dataset = type("Own", (Prompts,), {"get_positions": lambda self, pair: {"USER": 2, "ME": -2}})
    pairs = encode_pairs(model, dataset(model, [(CLEAN, CORRUPTED)]))
    assert pairs.positions == ({**NAMED, "USER": 2, "ME": 15},)


@pytest.mark.parametrize("name", MODELS)
def test_sweeps_take_chats_and_their_names(name: str) -> None:
    model = chat_model(name)
    patcher = patcher_on(model)
    chats = Prompts(model, [(CLEAN, CORRUPTED)] * 2, (4, 6))
    as_ids = Prompts(model, [(IDS, [*IDS[:14], 20, *IDS[15:]])] * 2, (4, 6))
    for position in ("USER", "END"):
        found = patcher.run_patching_experiment(chats, ["resid_pre", "z"], position=position)
        expected = patcher.run_patching_experiment(as_ids, ["resid_pre", "z"], position=NAMED[position])
        np.testing.assert_array_equal(raw(found), raw(expected))
    noise = {"noise": GaussianNoise("USER", samples=2)}
    assert np.isfinite(raw(patcher.run_patching_experiment(chats, "mlp_out", **noise))).all()
    logits = patcher.run_patched(CLEAN, CORRUPTED, "blocks.1.hook_resid_pre")
    torch.testing.assert_close(logits, patcher.run_patched(*as_ids.pairs[0], "blocks.1.hook_resid_pre"))


# --- PromptPairs ------------------------------------------------------------------------------------------------------


def test_files_and_frames_give_chats(tmp_path: Any) -> None:
    model = chat_model("bridge:llama")
    row = {"clean": "w3 w4", "corrupted": "w5 w4", "correct": "w6", "incorrect": "w7"}
    user = {"clean": chat("w3 w4"), "corrupted": chat("w5 w4")}
    pd.DataFrame([row]).to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "chats.jsonl").write_text(json.dumps({**row, **user}))
    datasets = [
        PromptPairs.from_csv(model, tmp_path / "rows.csv", chat=True),
        PromptPairs.from_jsonl(model, tmp_path / "rows.jsonl", chat=True),
        PromptPairs.from_jsonl(model, tmp_path / "chats.jsonl"),
        PromptPairs.from_dataframe(model, pd.DataFrame([row]), chat=True),
        PromptPairs.from_dataframe(model, pd.DataFrame([{**row, **user}])),
        PromptPairs(model, [PromptPair("w3 w4", "w5 w4", ("w6",), ("w7",))], chat=True),
    ]
    for dataset in datasets:
        assert dataset.get_clean_corrupt_pairs() == [(user["clean"], user["corrupted"])]
        pairs = encode_pairs(model, dataset)
        assert pairs.clean[0].tolist() == [1, 31, 3, 4, 33, 32] and pairs.positions == ({"USER": 3, "END": 5},)
        assert dataset.get_target_tokens(0) == (6, 7)
    plain = PromptPairs.from_csv(model, tmp_path / "rows.csv")
    assert encode_pairs(model, plain).clean[0].tolist() == [1, 3, 4]


def test_repeated_chats_are_told() -> None:
    model = chat_model("bridge:llama")
    pair = PromptPair(chat("w3 w4"), tuple(chat("w5 w4")), ("w6",), ("w7",))
    other = PromptPair(chat("w3 w9"), chat("w5 w9"), ("w6",), ("w7",))
    again = PromptPair(tuple(chat("w3 w4")), chat("w5 w4"), ("w6",), ("w7",))
    assert PromptPairs(model, [pair, other, again]).repeated_pairs == (2,)


# --- what is refused --------------------------------------------------------------------------------------------------


NO_TEMPLATE = (
    "^(pair 0: )?the model's tokenizer has no chat template: give prompts as texts, or set model.tokenizer.chat"
)


@pytest.mark.parametrize("name", MODELS)
def test_without_a_template_there_is_one_sentence(name: str) -> None:
    model = chat_model(name, None)
    patcher = patcher_on(model)
    with refused(NO_TEMPLATE):
        patcher.run_patching_experiment(Prompts(model, [(CLEAN, CORRUPTED)], (4, 6)), "z")
    with refused(NO_TEMPLATE):
        patcher.generate(CLEAN, CORRUPTED, "blocks.0.attn.hook_z")
    for pair in (PromptPair("w3", "w4", ("w5",), ("w6",)), PromptPair(CLEAN, CORRUPTED, ("w5",), ("w6",))):
        with refused(NO_TEMPLATE):
            PromptPairs(model, [pair] * 9, chat=True)
    with refused(NO_TEMPLATE):
        PromptPairs(model, [PromptPair(CLEAN, CORRUPTED, ("w5",), ("w6",))])


def test_without_a_tokenizer_there_is_one_sentence() -> None:
    model = bare_model("bridge:gpt2")
    with refused("^this model has no tokenizer: give prompts as token ids, or set model.tokenizer$"):
        patcher_on(model).run_patching_experiment(Prompts(model, [(CLEAN, CORRUPTED)], (4, 6)), "z")
    with refused("^this model has no tokenizer, and PromptPairs of texts need one: set model.tokenizer, or give"):
        PromptPairs(model, [PromptPair(CLEAN, CORRUPTED, (5,), (6,))])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            [{"role": "user"}],
            r"message 0 of the chat is \{'role': 'user'\}, expected \{\"role\": \"user\", \"content\"",
        ),
        ([*CLEAN, "w3"], r"message 4 of the chat is 'w3', expected"),
        ([{"role": "usr", "content": "w3"}], "message 0 has the role 'usr', expected one of system, developer, user,"),
        ([{"role": "user", "content": " "}], "message 0 has the content ' ', expected a text"),
        ([{"role": "user", "content": None}], "message 0 has the content None, expected a text"),
        ([{"role": "user", "content": [1, 2]}], r"message 0 has the content \[1, 2\], expected a text"),
        (
            [{"role": "tool", "content": "w3"}],
            r"the tokenizer's chat template cannot write .* \(.*\): give messages in",
        ),
        (chat("w3 w99"), "the model's tokenizer does not know 'w99' in"),
        (chat("w3 " * 40), "the prompt .* has 44 tokens, the model reads at most 24: shorten it"),
    ],
)
def test_messages_that_cannot_be_are_refused(messages: Any, message: str) -> None:
    model = chat_model("bridge:llama", TEMPLATE.replace("}[message['role']]", "}[message['role']].strip()"))
    with refused(f"^pair 1: {message}"):
        patcher_on(model).run_patching_experiment(Prompts(model, [(CLEAN, CORRUPTED), (messages, messages)]), "z")
    with refused(message):
        PromptPairs(model, [PromptPair(messages, messages, ("w5",), ("w6",))])


def test_what_the_template_refuses_is_told_with_its_reason() -> None:
    rule = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user begins') }}{% endif %}"
    model = chat_model("bridge:llama", rule + TEMPLATE)
    with refused(
        r"the tokenizer's chat template cannot write \[.* \(the user begins\): give messages in the order and"
    ):
        encode_prompt(model, CLEAN)
    assert encode_prompt(model, chat("w3")).tolist() == [1, 31, 3, 33, 32]


def test_chat_is_a_truth_value_and_not_for_ids() -> None:
    model = chat_model("bridge:llama")
    with refused("chat is 'yes', expected True or False"):
        PromptPairs(model, [PromptPair("w3", "w4", ("w5",), ("w6",))], chat="yes")
    with refused("chat is True and pair 0 has token ids, which are used as they are: give texts or messages"):
        PromptPairs(model, [PromptPair([3, 4], [5, 4], ("w5",), ("w6",))], chat=True)


def test_the_helper_word_tokenizer_has_no_template() -> None:
    assert not word_tokenizer().chat_template


# --- a real one -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_answers_a_chat() -> None:
    model = smollm2()
    ask = "What is the capital of {}? Answer with one word."
    clean, corrupted = (chat(ask.format(country)) for country in ("France", "Germany"))
    tokens = encode_prompt(model, clean).tolist()
    own = model.tokenizer.apply_chat_template(clean, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert tokens == own and tokens[0] == model.tokenizer.bos_token_id != tokens[1]
    pairs = encode_pairs(model, Prompts(model, [(clean, corrupted)]))
    assert [pairs.clean_tokens[0][at] for at in pairs.positions[0].values()] == [".", "\n"]
    patcher = patcher_on(model)
    country = int((pairs.clean[0] != pairs.corrupted[0]).nonzero())
    generation = patcher.generate(clean, corrupted, "blocks.0.hook_resid_pre", position=country, max_new_tokens=8)
    assert "Paris" in generation.clean.text and "Berlin" in generation.corrupted.text
    assert generation.patched == generation.clean and generation.clean.has_ended
    assert generation.clean.ids[-1] == model.tokenizer.eos_token_id and "<|im_end|>" not in generation.clean.text
    expected = model.generate(
        torch.tensor([tokens]), max_new_tokens=8, do_sample=False, use_past_kv_cache=True, verbose=False
    )[0, len(tokens) :].tolist()
    assert list(generation.clean.ids) == expected[: len(generation.clean.ids)]
