"""Single runs of a patcher are plain hooked runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import model_parameters, small_model
from test_suite.helpers.prompts import FLIPPED, MARY
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import patcher_on


def test_run_with_cache_gives_the_models_own_logits_and_activations(patcher, tiny):
    names = ["blocks.1.attn.hook_pattern", "blocks.2.hook_resid_pre", "blocks.0.hook_mlp_out"]
    logits, activations = patcher.run_with_cache(MARY, names)
    with torch.no_grad():
        expected, cache = tiny.run_with_cache(MARY)
    torch.testing.assert_close(logits, expected, atol=EXACT, rtol=0)
    assert list(activations) == names
    for name in names:
        torch.testing.assert_close(activations[name], cache[name], atol=EXACT, rtol=0)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(
    ("hook_point", "head", "position"),
    [
        ("blocks.1.hook_attn_out", None, None),
        ("blocks.2.hook_mlp_out", None, -1),
        ("blocks.0.hook_resid_pre", None, 10),
        ("blocks.3.hook_resid_post", None, None),
        ("blocks.1.attn.hook_z", 2, None),
        ("blocks.1.attn.hook_q", 1, -1),
        ("blocks.2.attn.hook_k", 0, 3),
        ("blocks.2.attn.hook_v", None, None),
        ("blocks.2.attn.hook_pattern", 3, 12),
        ("hook_embed", None, None),
    ],
)
def test_run_patched_equals_a_plain_hooked_run(patcher, tiny, hook_point, head, position, direction):
    source, base = (MARY, FLIPPED) if direction == "denoising" else (FLIPPED, MARY)
    with torch.no_grad():
        _, cache = tiny.run_with_cache(source)

    def write(value, hook):
        where: list[Any] = [slice(None)] * value.ndim
        is_pattern = hook_point.endswith("pattern")
        if head is not None:
            where[1 if is_pattern else 2] = head
        if position is not None:
            where[2 if is_pattern else 1] = position
        value = value.clone()
        value[tuple(where)] = cache[hook_point][tuple(where)]
        return value

    with torch.no_grad():
        expected = tiny.run_with_hooks(base, fwd_hooks=[(hook_point, write)])
    patched = patcher.run_patched(MARY, FLIPPED, hook_point, head=head, position=position, direction=direction)
    torch.testing.assert_close(patched, expected, atol=EXACT, rtol=0)


def test_run_patched_takes_a_short_name_only_with_its_layer(patcher):
    with refused(r"'attn_out' stands for all 4 layers: name one, for instance 'blocks\.0\.hook_attn_out'"):
        patcher.run_patched(MARY, FLIPPED, "attn_out")


@pytest.mark.parametrize("given", [["blocks.0.hook_attn_out", "blocks.1.hook_attn_out"], ("z",), None, 3])
def test_run_patched_takes_one_name(patcher, given):
    with refused(r"hook_point is .*, expected one name: give several to run_patching_experiment, or several that are"):
        patcher.run_patched(MARY, FLIPPED, given)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "name", model_parameters("hooked:shortformer", "bridge+:llama", slow=["hooked:learned", "bridge:gpt2"])
)
def test_what_run_with_cache_returns_belongs_to_the_caller(name):
    model, prompt = small_model(name), [3, 7, 20]
    asked = [hook_point for hook_point in model.hook_dict if "blocks.1" in hook_point or "embed" in hook_point]
    asked += ["blocks.0.hook_resid_post"]
    passed = [hook_point for hook_point in dict.fromkeys(asked) if hook_point in _passed(model, prompt)]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    first_logits, first = patcher_on(model).run_with_cache(prompt, passed)
    expected = {key: value.clone() for key, value in first.items()}
    expected_logits = first_logits.clone()
    for changed in passed:
        if not first[changed].is_floating_point():
            continue
        first[changed].add_(100.0)
        for other in passed:
            same = first[other] - 100.0 if other == changed else first[other]
            torch.testing.assert_close(same, expected[other], atol=1e-4, rtol=1e-4, msg=f"{changed} changed {other}")
        first[changed].copy_(expected[changed])
        assert torch.equal(first_logits, expected_logits)
    first_logits.zero_()
    assert all(torch.equal(first[key], value) for key, value in expected.items())
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    again_logits, again = patcher_on(model).run_with_cache(prompt, passed)
    assert torch.equal(again_logits, expected_logits)
    assert all(torch.equal(again[key], value) for key, value in expected.items())


def _passed(model, prompt):
    with torch.no_grad():
        return model.run_with_cache(torch.tensor([prompt]))[1].keys()
