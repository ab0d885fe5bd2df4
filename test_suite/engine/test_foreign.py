"""Code of the user's own on a model sees whole prompts alone, as its author meant it, and is named in a warning."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from actpatch.core.sites import Site, block_hook
from test_suite.helpers.by_hand import PAIRS, SITES, assert_as_by_hand
from test_suite.helpers.closeness import allowed
from test_suite.helpers.models import (
    checkpoint,
    fresh_hooked,
    fresh_model,
    model_parameters,
    needs_hooked,
    small_model,
    token_pairs,
    word_tokenizer,
)
from test_suite.helpers.thinned import thinned


def first_row(value: Tensor, hook: Any = None) -> Tensor:
    value = value.clone()
    value[0, 2] = 0
    return value


def first_position(value: Tensor, hook: Any = None) -> Tensor:
    value = value.clone()
    value[:, 0] = 0
    return value


def _lens(hook_point: str, code: Callable[..., Tensor]) -> Callable[[Any], Any]:
    return lambda model: model.add_hook(hook_point, code)


def _torch(part: str, code: Callable[..., Tensor]) -> Callable[[Any], Any]:
    def add(model: Any) -> Any:
        module = model.get_submodule(part)
        return module.register_forward_hook(
            lambda module, given, output: (code(output[0]), *output[1:]) if isinstance(output, tuple) else code(output)
        )

    return add


def _before(model: Any) -> Any:
    return model.blocks[2].register_forward_pre_hook(lambda module, given: (first_row(given[0]), *given[1:]))


def _own_class(model: Any) -> None:
    mlp = model.blocks[2].mlp
    forward = type(mlp).forward

    def changed(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return first_position(forward(self, *args, **kwargs))

    mlp.__class__ = type("OwnMLP", (type(mlp),), {"forward": changed})


def _own_method(model: Any) -> None:
    attn = model.blocks[2].attn
    if isinstance(model, TransformerBridge):
        attn = model.blocks[2].attn.o
    name = "forward" if isinstance(model, TransformerBridge) else "calculate_z_scores"
    method = getattr(attn, name)
    attn.__dict__[name] = lambda *args, **kwargs: first_position(method(*args, **kwargs))


def _of_accelerate(model: Any) -> None:
    class Own(ModelHook):
        def post_forward(self, module: Any, output: Tensor) -> Tensor:
            return first_position(output)

    is_bridge = isinstance(model, TransformerBridge)
    add_hook_to_module(model.original_model.transformer.ln_f if is_bridge else model.ln_final, Own())


def _of_transformer_lens(model: Any) -> None:
    """A function of TransformerLens' on a hook point, where it is the user who put it."""

    def setter(value: Tensor, hook: Any) -> Tensor:
        return first_position(value)

    setter.__module__ = "transformer_lens.patching"
    model.add_hook("blocks.2.hook_mlp_out", functools.partial(setter))


def _replaced(model: Any) -> Any:
    forward = model.unembed.forward
    model.unembed.__dict__["forward"] = lambda resid: first_row(forward(resid))


FOREIGN = {
    "of torch, on a hook point": lambda model: model.hook_dict["blocks.1.hook_mlp_out"].register_forward_hook(
        lambda module, given, output: first_row(output)
    ),
    "a row, early": _lens("blocks.0.hook_resid_post", first_row),
    "a position, in the last layer": _lens("blocks.2.hook_mlp_out", first_position),
    "at the unembedding": _lens("ln_final.hook_normalized", first_row),
    "of torch, on a block": _torch("blocks.1", first_row),
    "of torch, on the unembedding": _torch(
        "unembed", lambda logits: 3 * torch.tanh(logits / 3) + logits.mean(-1, True)
    ),
    "of torch, before a block": _before,
    "another forward method": _replaced,
}


@pytest.mark.quick(2)
@pytest.mark.parametrize(("name", "code"), thinned(model_parameters("hooked:grouped", "bridge:qwen2"), FOREIGN))
def test_code_of_the_users_own_sees_whole_prompts_alone(name: str, code: str) -> None:
    model, bound = fresh_model(name), allowed(small_model(name), PAIRS.clean)
    FOREIGN[code](model)
    found, warned = assert_as_by_hand(model, bound=bound)
    assert found.shortcuts == ()
    assert "code that is not its own runs at" in warned


UNHOOKED = {
    "a class of the user's own": _own_class,
    "a method of the user's own": _own_method,
    "a hook of Accelerate's with code of the user's": _of_accelerate,
    "a function of TransformerLens' as the user's hook": _of_transformer_lens,
}
LATE = [Site(block_hook(layer, short), position=-1) for layer in (0, 1) for short in ("resid_pre", "mlp_out", "v")]


@pytest.mark.quick(2)
@pytest.mark.parametrize("code", UNHOOKED)
@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "hooked:learned", "bridge:gpt2"))
def test_code_of_the_users_own_is_seen_however_it_came_there(name: str, code: str) -> None:
    """In the last layer, what is done to another position is seen in no run but those that begin with the last one."""
    model, pairs = fresh_model(name), token_pairs([9] * 3, [(3,)] * 3)
    bound = allowed(model, pairs.clean)
    UNHOOKED[code](model)
    found, warned = assert_as_by_hand(model, LATE, pairs, bound=bound)
    assert found.shortcuts == ()
    assert "code that is not its own runs at" in warned


@pytest.mark.quick(1)
@pytest.mark.parametrize("returns", [True, False])
@pytest.mark.parametrize("at", ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out"])
@pytest.mark.parametrize("name", model_parameters("hooked:learned", "hooked:grouped", "bridge:gpt2", "bridge+:qwen2"))
def test_hooks_that_work_in_place_change_nothing_that_was_recorded(name: str, at: str, returns: bool) -> None:
    """The residual stream before a block is the very tensor that stood behind the one before."""
    model = fresh_model(name)
    bound = allowed(model, PAIRS.clean)

    def steer(value: Tensor, hook: Any) -> Tensor | None:
        value += torch.linspace(-1, 1, value.shape[-1], dtype=value.dtype)
        return value if returns else None

    model.add_hook(at, steer)
    shorts = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    assert_as_by_hand(model, [Site(block_hook(layer, short)) for layer in range(3) for short in shorts], bound=bound)


def test_hooks_of_another_bridge_around_the_same_model_are_seen() -> None:
    whole = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float64)
    options = {"hf_model": whole, "tokenizer": word_tokenizer(), "device": "cpu", "dtype": torch.float64}
    other, model = (TransformerBridge.boot_transformers("random", **options) for _ in range(2))
    pairs = token_pairs([9] * 3, [(3,)] * 3)
    bound = allowed(model, pairs.clean)
    other.add_hook("blocks.2.hook_mlp_out", lambda value, hook: first_position(value))
    found, warned = assert_as_by_hand(model, LATE, pairs, bound=bound)
    assert found.shortcuts == () and "mlp" in warned


def test_hooks_on_what_a_bridge_wraps_are_seen() -> None:
    model = fresh_model("bridge:llama")
    model.original_model.model.register_forward_pre_hook(lambda module, given: None)
    found, warned = assert_as_by_hand(model)
    assert "model" in warned and found.shortcuts == ()


class Spliced(torch.nn.Module):
    """What stands in the place of a hook point, as a sparse autoencoder does."""

    def forward(self, value: Tensor) -> Tensor:
        return value + torch.relu(value)


@needs_hooked
@pytest.mark.parametrize(
    ("architecture", "where"),
    thinned(["rotary", "gated"], ["blocks.1.hook_resid_pre", "blocks.2.hook_resid_post", "blocks.1.hook_mlp_out"]),
)
def test_a_module_in_the_place_of_a_hook_point(architecture: str, where: str) -> None:
    model = fresh_hooked(architecture)
    parent, _, own = where.rpartition(".")
    setattr(model.get_submodule(parent), own, Spliced())
    model.setup()
    sites = [site for site in SITES if site.hook_point != where]
    _, warned = assert_as_by_hand(model, sites)
    assert f"{where} (a Spliced in its place)" in warned
