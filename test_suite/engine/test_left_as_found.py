"""The model is left as it was found, whatever happens while it is patched."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from actpatch.core.sites import Patch, Site, block_hook
from actpatch.models.forwards import laid_out_as_multiplied
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import (
    HAS_HOOKED,
    fresh_model,
    last_position_metric,
    model_parameters,
    needs_hooked,
    small_model,
    swept,
    token_pairs,
)
from test_suite.helpers.sweeps import engine_on, site_sweep
from test_suite.helpers.sweeps import single as singles
from test_suite.oracles.plain import largest_error

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
LEFT_ALONE = model_parameters("hooked:learned", "bridge:gpt2", "bridge+:gpt2")
DIRECTIONS = ("denoising", "noising")


def state_of(model: Any) -> dict[str, Any]:
    """Everything about a model that patching might disturb."""
    modules = dict(model.named_modules())
    return {
        "hooks": {name: len(getattr(point, "fwd_hooks", ())) for name, point in model.hook_dict.items()},
        "torch hooks": {
            name: (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks))
            for name, module in modules.items()
        },
        "training": {name: module.training for name, module in modules.items()},
        "attributes": {
            name: sorted(key for key in module.__dict__ if not key.startswith("_fired"))  # a bridge's own notes
            for name, module in modules.items()
        },
        "forwards": {name: module.__dict__.get("forward") for name, module in modules.items()},
        "settings": {name: value for name, value in vars(model.cfg).items() if isinstance(value, (bool, int, str))},
        "requires grad": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "weights": {name: weight.data_ptr() for name, weight in model.named_parameters()},
        "grads": torch.is_grad_enabled(),
    }


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    for aspect, value in before.items():
        assert after[aspect] == value, aspect


@functools.cache
def spare_model(name: str) -> Any:
    """A model that tests put into other states: none but `model_to_disturb` asks for it."""
    return fresh_model(name)


@pytest.fixture
def model_to_disturb(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The spare model of the test's `name`, which is put back into its first state after the test."""
    model = spare_model(request.getfixturevalue("name"))
    yield model
    model.reset_hooks()
    model.eval().requires_grad_(True)


def switch_sites() -> list[Site]:
    sites = [
        Site(block_hook(1, "resid_pre")),
        Site(block_hook(2, "mlp_out"), position=-1),
        Site(block_hook(0, "pattern")),
    ]
    return [*sites, Site("blocks.1.attn.hook_result", head=1)]


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_the_model_is_left_as_found(name: str, model_to_disturb: Any) -> None:
    model, pairs = model_to_disturb, token_pairs([9, 7], [(2,), (3,)])
    site_sweep(model, pairs, switch_sites())  # the first run may fill caches of the model's own
    logits = model(pairs.clean[0][None])
    model.train()
    model.blocks[1].eval()
    next(model.parameters()).requires_grad_(False)
    before = state_of(model)
    for direction in DIRECTIONS:
        site_sweep(model, pairs, switch_sites(), direction)
    engine_on(model).patched_logits(pairs, Patch((Site(block_hook(1, "z"), head=0),)))
    assert_same_state(before, state_of(model))
    assert torch.equal(model.eval()(pairs.clean[0][None]), logits)


@needs_hooked
@pytest.mark.parametrize("architecture", ["learned", "grouped"])
def test_attention_weights_are_laid_out_once_and_given_back(architecture: str) -> None:
    model = fresh_model(f"hooked:{architecture}")
    before = {name: (weight.data_ptr(), weight.stride()) for name, weight in model.named_parameters()}
    values = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with laid_out_as_multiplied(model):
        attn = model.blocks[0].attn
        assert attn.W_Q.permute(0, 2, 1).is_contiguous()
        assert attn.W_O.permute(2, 0, 1).is_contiguous()
        for name, weight in model.named_parameters():
            assert torch.equal(weight, values[name]), name
    assert before == {name: (weight.data_ptr(), weight.stride()) for name, weight in model.named_parameters()}


@needs_hooked
def test_a_model_that_was_built_in_inference_mode_is_patched_as_any_other() -> None:
    with torch.inference_mode():
        model = fresh_model("hooked:learned")
    pairs, sites = token_pairs([9, 7], [(2,), (3,)]), [Site(block_hook(1, "z"), head=1), Site(block_hook(0, "mlp_out"))]
    expected = site_sweep(fresh_model("hooked:learned"), pairs, sites)
    assert abs(site_sweep(model, pairs, sites).patched - expected.patched).max() <= EXACT


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("when", [0, 1, 5])
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_the_model_is_left_as_found_after_an_exception(name: str, model_to_disturb: Any, when: int) -> None:
    """The exception comes from the metric, in the baselines or in the first or a later batch of patched runs."""
    model, pairs = model_to_disturb, token_pairs([9, 7], [(2,), (3,)])
    site_sweep(model, pairs, switch_sites())
    model.train()
    before, calls = state_of(model), itertools.count()

    class FailingMetric:
        name, unit, more_is_better, reads_all_positions, reads_clean, tokens = "failing", "", True, True, False, None

        def measure(self, logits: Tensor, pairs: Tensor, clean: None = None) -> Tensor:
            if next(calls) == when:
                raise StopHereError
            return logits[:, -1, 3]

    with pytest.raises(StopHereError):
        swept(engine_on(model), pairs, singles(switch_sites()), FailingMetric(), "denoising")
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("when", [0, 3, 5])
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_the_model_is_left_as_found_after_an_exception_inside_a_block(
    name: str, model_to_disturb: Any, when: int
) -> None:
    """The exception comes while a run is recorded, or while blocks are run singly."""
    model, pairs = model_to_disturb, token_pairs([9, 7], [(2,), (3,)])
    sites = [Site(block_hook(layer, "pattern"), position=at) for layer in range(2) for at in (3, 5, 6)]
    site_sweep(model, pairs, sites, batch_size=2)
    calls = itertools.count()

    def fail(value: Tensor, hook: Any) -> None:
        if next(calls) == when:
            raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[(block_hook(1, "mlp_out"), fail)]):
        before = state_of(model)
        with pytest.raises(KeyboardInterrupt):
            site_sweep(model, pairs, sites, batch_size=2)
        assert_same_state(before, state_of(model))


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_hooks_of_the_user_stay_and_take_part(name: str, model_to_disturb: Any) -> None:
    """A head ablated by the user is ablated in every run of the sweep too, however its hook was added."""
    model, pairs = model_to_disturb, token_pairs([9, 7], [(2,), (3,)])
    sites = [Site(block_hook(layer, short)) for layer in range(3) for short in ("resid_pre", "attn_out", "mlp_out")]
    metric = last_position_metric(2)

    def ablate(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[..., : z.shape[-1] // 2] = 0
        return z

    untouched = site_sweep(model, pairs, sites)
    model.add_hook(block_hook(1, "attn_out"), ablate)
    try:
        with model.hooks(fwd_hooks=[(block_hook(2, "attn_out"), ablate)]):
            before = state_of(model)
            found = site_sweep(model, pairs, sites)
            assert_same_state(before, state_of(model))
            error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    finally:
        model.reset_hooks()
    assert error <= EXACT, where
    assert abs(found.clean - untouched.clean).max() > 1e-3


def test_gradients_stay_switched_as_they_were() -> None:
    model, pairs = small_model(PLAIN), token_pairs([7], [(2,)])
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            site_sweep(model, pairs, [Site(block_hook(1, "z"))])
            assert torch.is_grad_enabled() == enabled
    assert all(weight.grad is None for weight in model.parameters())
