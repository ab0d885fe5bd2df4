"""What the bundled model is: small, trained on nothing that is held out, and good at every task."""

from __future__ import annotations

import functools
import importlib.util
import random
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from activation_patching import IOIDataset
from actpatch.models.load import TINY
from actpatch.tasks.words import IOI_TEMPLATES, NAMES
from head_patching import HeadPatcher
from test_suite.helpers.closeness import folded
from test_suite.helpers.models import bundled, needs_hooked

FRESH_PROMPTS = 252


@functools.cache
def training_script() -> ModuleType:
    """tools/train_tiny.py, which knows what was held out. It is read, not run."""
    path = Path(__file__).resolve().parents[2] / "tools" / "train_tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_training", path)
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


def test_training_draws_nothing_that_is_held_out():
    script, shown = training_script(), random.Random(5)
    for task in script.MEASURED:
        trained = {task(shown, False).prompt for _ in range(300)}
        assert not trained & {case.prompt for case in script.held_out_cases(task, 300, random.Random(20))}
    unseen = "|".join(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(t)) for t in script.HELD_OUT_IOI_TEMPLATES)
    assert re.fullmatch(unseen, script.ioi(shown, True, script.HELD_OUT_IOI_TEMPLATES[0]).prompt)
    for prompt in (script.ioi(shown, False).prompt for _ in range(300)):
        pair = sorted({word for word in re.findall(r"\w+", prompt) if word in NAMES})
        assert len(pair) == 2 and not script.is_held_out(*pair, one_in=20)
        assert not re.fullmatch(unseen, prompt)


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
        expected = checkpoint()[0].double()(tokens).logits.log_softmax(-1)
        torch.testing.assert_close(bundled()(tokens).log_softmax(-1), expected, atol=folded(expected), rtol=0)


def test_every_template_has_what_the_corruptions_fill():
    for template in IOI_TEMPLATES:
        assert all(template.count(slot) == 1 for slot in ("{A}", "{B}", "{S2}"))
        assert template.index("{A}") < template.index("{B}") < template.index("{S2}")
        assert not template.endswith(" ")
