"""IOI prompts say word for word what their corruption promises, and the bundled model behaves as its card says."""

from __future__ import annotations

import functools
import importlib.util
import random
import re
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from activation_patching import ActivationPatcher, IOIDataset
from head_patching import HeadPatcher
from ioi_task import IOI_CORRUPTIONS
from model_loading import TINY, load_model
from patching_tasks import encode_pairs, single_token, token_strings
from task_templates import IOI_SCENE_TEMPLATES, IOI_TEMPLATES, NAMES
from test_suite.models import needs_hooked, smol_checkpoint

CLEAN = re.compile(r"When (\w+) and (\w+) went to the store, (\w+) gave a drink to")
FRESH_PROMPTS = 420


@functools.cache
def bundled() -> Any:
    return load_model("tiny", device="cpu")


@functools.cache
def smollm2() -> Any:
    return load_model(smol_checkpoint(), device="cpu")


MODELS = [bundled, pytest.param(smollm2, marks=pytest.mark.slow)]


# --- what the prompts say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corruption", IOI_CORRUPTIONS)
def test_corruption_changes_the_names_it_says_and_nothing_else(corruption):
    dataset = IOIDataset(bundled(), 20, corruption=corruption, templates=IOI_SCENE_TEMPLATES[:1])
    for i, (clean, corrupted) in enumerate(dataset.get_clean_corrupt_pairs()):
        first, second, giver = CLEAN.fullmatch(clean).groups()
        receiver = {first: second, second: first}[giver]
        assert dataset.get_target_tokens(i) == tuple(
            bundled().to_single_token(f" {name}") for name in (receiver, giver)
        )
        expected = {
            "swap_names": f"When {second} and {first} went to the store, {receiver} gave a drink to",
            "flip_subject": f"When {first} and {second} went to the store, {receiver} gave a drink to",
            "swap_order": f"When {second} and {first} went to the store, {giver} gave a drink to",
        }
        if corruption in expected:
            assert corrupted == expected[corruption]
        else:
            others = CLEAN.fullmatch(corrupted).groups()
            assert len({first, second, *others}) == 5 and set(others) <= set(NAMES)


def test_default_corruption_swaps_the_names_throughout():
    dataset = IOIDataset(bundled())
    same = IOIDataset(bundled(), 10, corruption="swap_names", seed=0)
    assert dataset.get_clean_corrupt_pairs() == same.get_clean_corrupt_pairs()
    assert dataset.name == "IOI (names swapped throughout)" and len(dataset) == 10
    assert "position stays" in dataset.varies


def test_documented_example_is_what_the_corruptions_make():
    """The lines of the class docstring, word for word."""
    documented = dict(re.findall(r"^ +(\w+): (When .* drink to)", IOIDataset.__doc__, re.MULTILINE))
    assert set(documented) == set(IOI_CORRUPTIONS)
    assert documented["swap_names"] == "When John and Mary went to the store, Mary gave a drink to"
    assert documented["flip_subject"] == "When Mary and John went to the store, Mary gave a drink to"
    assert documented["swap_order"] == "When John and Mary went to the store, John gave a drink to"
    names = ["Mary", "John", "Tom", "Anna", "Paul"]
    for seed in range(2000):
        dataset = IOIDataset(bundled(), 1, names=names, seed=seed)
        if dataset.get_clean_corrupt_pairs()[0][0] == "When Mary and John went to the store, John gave a drink to":
            break
    for corruption in ("swap_names", "flip_subject", "swap_order"):
        again = IOIDataset(bundled(), 1, names=names, seed=seed, corruption=corruption)
        assert again.get_clean_corrupt_pairs()[0][1] == documented[corruption]


def test_both_name_orders_come_equally_often_in_every_scene():
    n_templates = len(IOI_SCENE_TEMPLATES)
    dataset = IOIDataset(bundled(), 4 * n_templates)
    for i, (clean, _) in enumerate(dataset.get_clean_corrupt_pairs()):
        pattern = re.escape(IOI_SCENE_TEMPLATES[i % n_templates]).replace(r"\ ", " ")
        for slot in ("A", "B", "S2"):
            pattern = pattern.replace(rf"\{{{slot}\}}", r"(\w+)")
        first, second, giver = re.fullmatch(pattern, clean).groups()
        io_comes_first = (i // n_templates) % 2 == 0
        assert giver == (second if io_comes_first else first)


def test_pairs_are_distinct_and_of_equal_length():
    dataset = IOIDataset(bundled(), 200, templates=IOI_TEMPLATES)
    pairs = dataset.get_clean_corrupt_pairs()
    assert len(set(pairs)) == len({clean for clean, _ in pairs}) == 200
    encoded = encode_pairs(bundled(), dataset)
    assert all(len(a) == len(b) for a, b in zip(encoded.clean, encoded.corrupted))


def test_seed_decides_the_pairs():
    def pairs(seed: int) -> list:
        return IOIDataset(bundled(), 10, seed=seed).get_clean_corrupt_pairs()

    assert pairs(3) == pairs(3) != pairs(4)


def test_seed_leaves_the_global_random_state_alone():
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), float(torch.rand(()))
    random.seed(1)
    torch.manual_seed(1)
    IOIDataset(bundled(), 5, seed=9)
    assert (random.random(), float(torch.rand(()))) == expected


@pytest.mark.parametrize("model", MODELS)
def test_names_are_single_tokens_and_prompts_read_as_written(model):
    dataset = IOIDataset(model(), 30)
    encoded = encode_pairs(model(), dataset)
    bos = 1 if encoded.clean[0][0] == model().tokenizer.bos_token_id else 0
    for i, (clean, corrupted) in enumerate(dataset.get_clean_corrupt_pairs()):
        assert "".join(encoded.clean_tokens[i][bos:]) == clean
        assert "".join(encoded.corrupted_tokens[i][bos:]) == corrupted
        answers = token_strings(model(), torch.tensor(dataset.get_target_tokens(i)))
        assert all(answer.strip() in NAMES and answer.startswith(" ") for answer in answers)
        assert all(answer in clean for answer in answers)


def test_chosen_names_and_templates_are_used():
    names = ["Mary", "John", "Tom", "Anna", "Paul"]
    dataset = IOIDataset(
        bundled(), 8, names=names, templates=["{A} and {B} met at the {PLACE}. {S2} gave a {OBJECT} to"]
    )
    for clean, _ in dataset.get_clean_corrupt_pairs():
        first, second, giver = re.match(r"(\w+) and (\w+) met at the \w+\. (\w+) gave a \w+ to$", clean).groups()
        assert {first, second} <= set(names) and giver in (first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": "shuffle"}, "corruption 'shuffle' is unknown: expected one of swap_names, flip_subject"),
        ({"n_pairs": 0}, "n_pairs is 0, expected at least 1"),
        ({"names": ["Mary", "John", "Tom", "Anna", "John Tom"]}, "' John Tom' is 2 tokens .* expected one"),
        ({"names": ["Mary", "John", "Tom", "Anna", "Zyzzyva"]}, "does not know 'Zyzzyva'"),
        ({"names": ["Mary", "John", "Tom", "Tom", "Tom"]}, "at least five names .* leaves 3"),
        ({"templates": []}, r"templates is \[\], expected a list of sentences"),
        ({"templates": "{A} and {B}: {S2}"}, "expected a list of sentences"),
        ({"templates": ["{A} gave {B} a book"]}, r"has the slots \['A', 'B'\], expected"),
        ({"templates": ["{A} and {B} met, {S2} gave {C}"]}, r"has the slots \['A', 'B', 'C', 'S2'\], expected"),
        (
            {"n_pairs": 100, "names": ["Mary", "John", "Tom", "Anna", "Paul"], "templates": IOI_SCENE_TEMPLATES[:1]},
            r"asked for 100 distinct pairs, found \d+ with 5 names and 1 templates: ask for fewer",
        ),
    ],
)
def test_impossible_datasets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IOIDataset(bundled(), **options)


@pytest.mark.slow
def test_names_of_several_tokens_are_left_out_or_refused():
    split = [name for name in NAMES if len(smollm2().to_tokens(f" {name}", prepend_bos=False)[0]) > 1]
    prompts = " ".join(clean for clean, _ in IOIDataset(smollm2(), 200).get_clean_corrupt_pairs())
    used = {name for name in NAMES if re.search(rf"\b{name}\b", prompts)}
    assert used == set(NAMES) - set(split)
    with pytest.raises(ValueError, match=r"' Nebuchadnezzar' is \d tokens for this model \(' N.*choose another word"):
        single_token(smollm2(), " Nebuchadnezzar")


# --- what a model that solves the task does with them -----------------------------------------------------------------


def baselines(model: Any, corruption: str, n_pairs: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Logit differences IO - S of the clean and the corrupted prompts, by plain runs of the model."""
    dataset = IOIDataset(model, n_pairs, corruption=corruption)
    runs = []
    for prompts in zip(*dataset.get_clean_corrupt_pairs()):
        with torch.no_grad():
            last = [model(prompt)[0, -1] for prompt in prompts]
        targets = [dataset.get_target_tokens(i) for i in range(n_pairs)]
        runs.append(np.array([float(logits[io] - logits[s]) for logits, (io, s) in zip(last, targets)]))
    return runs[0], runs[1]


@pytest.mark.parametrize("model", MODELS)
def test_flipping_corruptions_turn_the_answer_around_in_every_pair(model):
    for corruption in ("swap_names", "flip_subject"):
        clean, corrupted = baselines(model(), corruption)
        assert (clean > 0).all()
        assert (corrupted < 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_order_swap_breaks_nothing(model):
    """The giver stays, so the right answer stays: such a pair cannot carry a conclusion."""
    clean, corrupted = baselines(model(), "swap_order")
    assert (clean > 0).all() and (corrupted > 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_unrelated_names_take_the_signal_away(model):
    clean, corrupted = baselines(model(), "unrelated_names")
    assert (clean > corrupted).all()
    assert abs(corrupted.mean()) < 0.35 * clean.mean()


@pytest.mark.parametrize("model", MODELS)
def test_sweep_measures_the_baselines_of_plain_runs(model):
    sweep = (
        ActivationPatcher(model(), show_progress=False).run_patching_experiment(IOIDataset(model()), "attn_out").sweep
    )
    clean, corrupted = baselines(model(), "swap_names")
    np.testing.assert_allclose(sweep.clean, clean, atol=1e-4)
    np.testing.assert_allclose(sweep.corrupted, corrupted, atol=1e-4)


# --- the bundled model ------------------------------------------------------------------------------------------------


@functools.cache
def training_script() -> ModuleType:
    """models/tiny/train.py, which knows what was held out. It is read, not run."""
    spec = importlib.util.spec_from_file_location("tiny_training", TINY / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@functools.cache
def checkpoint() -> tuple[Any, Any]:
    """The bundled model and its tokenizer, as Hugging Face loads them."""
    return transformers.AutoModelForCausalLM.from_pretrained(TINY), transformers.AutoTokenizer.from_pretrained(TINY)


def right_on_fresh_prompts(task: str) -> tuple[float, Any]:
    """Share of held-out prompts whose likeliest next token is right, and the logit differences by prompt."""
    script = training_script()
    cases = script.held_out_cases(getattr(script, task), FRESH_PROMPTS, random.Random(20))
    measured = script.measure(*checkpoint(), cases)
    return measured["top"], measured


def test_bundled_model_solves_ioi_on_fresh_prompts_in_both_name_orders():
    script = training_script()
    cases = script.held_out_cases(script.ioi, FRESH_PROMPTS, random.Random(20))
    model, tokenizer = checkpoint()
    first = [c for c in cases if c.prompt.index(c.right[0].strip()) < c.prompt.index(c.wrong[0].strip())]
    for order in (first, [case for case in cases if case not in first]):
        assert len(order) > FRESH_PROMPTS / 3
        assert script.measure(model, tokenizer, order)["top"] >= 0.99


def test_bundled_model_continues_repeated_words():
    assert right_on_fresh_prompts("induction")[0] >= 0.95


@pytest.mark.parametrize("task", ["greater_than", "pronoun", "agreement"])
def test_bundled_model_has_more_behaviours_that_a_corruption_breaks(task):
    right, measured = right_on_fresh_prompts(task)
    assert right >= 0.95
    for corrupted in measured["corrupted"].values():
        assert (corrupted < measured["clean"]).float().mean() >= 0.95


@pytest.mark.parametrize("corruption", ["swap_names", "flip_subject"])
def test_some_head_of_the_bundled_model_carries_a_quarter_of_ioi(corruption):
    dataset = IOIDataset(bundled(), 30, corruption=corruption)
    heads = HeadPatcher(bundled(), show_progress=False).run_all_heads_experiment(dataset)
    assert heads.top(1)[0].effect >= 0.25


def test_bundled_model_is_small():
    assert sum(path.stat().st_size for path in TINY.iterdir() if path.is_file()) <= 5 * 2**20


def test_bundled_model_knows_the_words_of_the_readmes_own_task():
    for prompt in ("The cat sat on the mat", "The dog sat on the mat"):
        tokens = bundled().to_tokens(prompt, prepend_bos=False)[0]
        assert len(tokens) == 6 and bundled().tokenizer.unk_token_id not in tokens[1:].tolist()


@needs_hooked
def test_bundled_checkpoint_gives_the_logits_of_hugging_face():
    prompt = "When Mary and John went to the store, John gave a drink to"
    tokens = bundled().to_tokens(prompt)
    with torch.no_grad():
        expected = checkpoint()[0](tokens).logits.log_softmax(-1)
        torch.testing.assert_close(bundled()(tokens).log_softmax(-1), expected, atol=1e-4, rtol=0)


def test_every_template_has_what_the_corruptions_fill():
    for template in IOI_TEMPLATES:
        assert all(template.count(slot) == 1 for slot in ("{A}", "{B}", "{S2}"))
        assert template.index("{A}") < template.index("{B}") < template.index("{S2}")
        assert not template.endswith(" ")
