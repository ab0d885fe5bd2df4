"""Runs are resumed behind a patch only where that is exact; else they are full ones. Dead hooks are errors."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from actpatch.core.components import SHORT_NAMES
from actpatch.core.sites import Site, block_hook
from test_suite.helpers.closeness import EXACT, allowed, folded
from test_suite.helpers.models import (
    HAS_HOOKED,
    checkpoint,
    last_position_metric,
    model_parameters,
    needs_hooked,
    sampled_sites,
    small_model,
    token_pairs,
)
from test_suite.helpers.sweeps import single as singles
from test_suite.helpers.sweeps import site_sweep
from test_suite.oracles.plain import largest_error

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"

# --- what cannot be resumed ----------------------------------------------------------------------------------------


FALLS_BACK = "cannot be resumed"


@pytest.mark.quick(1)
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge+:gpt2"))
def test_a_hook_that_depends_on_the_position_is_noticed(name: str, layer: int) -> None:
    """Blocks can still be run singly, but on all positions."""
    model, pairs, metric = small_model(name), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    sites = sampled_sites(name, [None, 5])[::2]

    def fade(value: Tensor, hook: Any) -> Tensor:
        return value * (1 + torch.arange(value.shape[1])[:, None] / 8)

    with model.hooks(fwd_hooks=[(block_hook(layer, "mlp_out"), fade)]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = site_sweep(model, pairs, sites)
        error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    assert not any(FALLS_BACK in str(warning.message) for warning in caught)
    assert error <= EXACT, where


@pytest.mark.quick(1)
@pytest.mark.parametrize("where_added", ["resid_pre", "resid_post", "attn_out", "resid_mid"])
def test_a_steering_vector_of_the_user_is_added_once(where_added: str) -> None:
    """Resuming from a recorded activation would add it again."""
    model, pairs, metric = small_model(PLAIN), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    sites = [*sampled_sites(PLAIN, [None, 5])[::2], Site(block_hook(0, "resid_post"))]
    if not HAS_HOOKED and where_added == "resid_mid":
        pytest.skip("on a bridge, writing to hook_resid_mid reaches the MLP alone")
    steer = torch.linspace(-1, 1, model.cfg.d_model)
    with model.hooks(fwd_hooks=[(block_hook(1, where_added), lambda value, hook: value + steer)]):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*{FALLS_BACK}.*")
            found = site_sweep(model, pairs, sites)
        error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    assert error <= EXACT, where


def test_what_a_hook_of_the_user_clamps_is_not_added_to() -> None:
    """Clamping twice is clamping once, so resuming survives it; adding a change to what was clamped does not."""
    model, pairs, metric = small_model(PLAIN), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    sites = [Site(block_hook(0, short)) for short in ("mlp_out", "z", "resid_post", "attn_out")]
    with model.hooks(fwd_hooks=[(block_hook(1, "resid_pre"), lambda value, hook: value.clamp(-0.3, 0.3))]):
        found = site_sweep(model, pairs, sites)
        error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    assert error <= EXACT, where


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ["bridge:bloom", "bridge+:bloom"])
def test_bloom_is_run_in_full_with_one_warning(name: str) -> None:
    model, pairs, metric = small_model(name), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    sites = sampled_sites(name, [None, 5])[::3]
    with pytest.warns(UserWarning, match=FALLS_BACK) as caught:
        found = site_sweep(model, pairs, sites)
    error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    assert sum(FALLS_BACK in str(warning.message) for warning in caught) == 1
    assert error <= allowed(model, pairs.clean), where


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "hooked:grouped", "bridge:gpt2", "bridge+:llama"))
def test_usual_models_are_resumed_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        site_sweep(small_model(name), token_pairs([9, 7], [(3,), (4,)]), sampled_sites(name, [None, 5]))


# --- hooks that never fire -----------------------------------------------------------------------------------------


@needs_hooked
def test_a_hook_that_never_fires_is_an_error() -> None:
    model, pairs = small_model("hooked:attn_only"), token_pairs([7], [(2,)])
    hook_point = block_hook(1, "mlp_out")
    if hook_point not in model.hook_dict:
        pytest.skip("this TransformerLens gives attention-only blocks no hook_mlp_out")
    with pytest.raises((RuntimeError, ValueError), match=r"blocks\.1\.hook_mlp_out"):
        site_sweep(model, pairs, [Site(hook_point)])


def test_a_hook_whose_result_the_model_ignores_is_an_error() -> None:
    """OPT's attention hands its pattern out and does not compute with it."""
    model, pairs = small_model("bridge+:opt"), token_pairs([7], [(2,)])
    with pytest.raises(RuntimeError, match=r"blocks\.1\.attn\.hook_pattern.*changes nothing"):
        site_sweep(model, pairs, [Site(block_hook(1, "pattern"))])


@pytest.mark.parametrize("name", model_parameters("hooked:grouped"))
@pytest.mark.parametrize("hook", ["attn.hook_k", "attn.hook_v", "attn.hook_rot_k"])
def test_a_head_beyond_the_key_value_heads_is_an_error(name: str, hook: str) -> None:
    with pytest.raises(ValueError, match=r"head 3 is out of range"):
        site_sweep(small_model(name), token_pairs([7], [(2,)]), [Site(f"blocks.1.{hook}", head=3)])


def test_all_short_names_are_covered_by_the_samples() -> None:
    assert {site.component for site in sampled_sites(PLAIN, [None])} == set(SHORT_NAMES)


def test_the_bridge_and_its_checkpoint_are_the_same_model() -> None:
    """The bridge in compatibility mode computes what Hugging Face does, up to a constant per position."""
    import transformers

    pairs = token_pairs([9], [()])
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("gpt2"), dtype=torch.float64)
        bridge = small_model("bridge+:gpt2")(pairs.clean[0][None])
        expected = plain(pairs.clean[0][None]).logits
    torch.testing.assert_close(bridge.log_softmax(-1), expected.log_softmax(-1), atol=folded(expected), rtol=0)
