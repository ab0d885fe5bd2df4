"""Code of the user's own on a model sees whole prompts alone, as its author meant it, and is named in a warning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from test_suite.helpers.by_hand import PAIRS, SITES, assert_as_by_hand
from test_suite.helpers.closeness import allowed
from test_suite.helpers.models import (
    fresh_hooked,
    fresh_model,
    model_parameters,
    needs_hooked,
    small_model,
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


@pytest.mark.parametrize(("name", "code"), thinned(model_parameters("hooked:grouped", "bridge:qwen2"), FOREIGN))
def test_code_of_the_users_own_sees_whole_prompts_alone(name: str, code: str) -> None:
    model, bound = fresh_model(name), allowed(small_model(name), PAIRS.clean)
    FOREIGN[code](model)
    found, warned = assert_as_by_hand(model, bound=bound)
    assert found.shortcuts == ()
    assert "code that is not its own runs at" in warned


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
