"""Models that something was done to: compiled, quantized, features spliced in; and prompts as long as the context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from actpatch.core.sites import Site, block_hook
from actpatch.engine.engine import PatchingEngine
from test_suite.helpers.by_hand import PAIRS, SITES, assert_as_by_hand
from test_suite.helpers.closeness import allowed
from test_suite.helpers.models import (
    N_CONTEXT,
    fresh_hooked,
    fresh_model,
    last_position_metric,
    model_parameters,
    needs_hooked,
    small_model,
    token_pairs,
)
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.sweeps import single as singles
from test_suite.oracles import one_prompt

NAMES = model_parameters("hooked:grouped", "hooked:learned", "bridge:gpt2", "bridge+:qwen2")


def never(graph: Any, examples: Any) -> Any:
    raise AssertionError("compiled code was run")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_the_wrapper_of_torch_compile_is_refused_by_name(name: str) -> None:
    with refused(r"compiled by torch.compile, which hooks do not reach: give the model itself", TypeError):
        PatchingEngine(torch.compile(small_model(name), backend=never))


@pytest.mark.quick(4)
@pytest.mark.parametrize("part", ["the model", "its blocks", "its method", "what a bridge wraps"])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_compiled_in_its_place_is_run_as_it_is_written(name: str, part: str) -> None:
    """Held against the same model that was not compiled; afterwards it is compiled as before."""
    model, metric = fresh_model(name), last_position_metric(len(PAIRS))
    wrapped = model.__dict__.get("original_model")
    compiled = {"its blocks": list(model.blocks), "what a bridge wraps": [wrapped]}.get(part, [model])
    if compiled == [None]:
        pytest.skip("no bridge")
    for module in compiled:
        if part == "its method":
            module.__dict__["forward"] = torch.compile(module.forward, backend=never)
        else:
            module.compile(backend=never)
    before = [(module.__dict__.get("forward"), module._compiled_call_impl) for module in compiled]
    found = engine_on(model).sweep(PAIRS, singles(SITES), [metric])
    expected = one_prompt.patched(small_model(name), PAIRS, SITES, metric)
    for values, by_hand in zip((found.patched[0], found.clean[0], found.corrupted[0]), expected):
        np.testing.assert_allclose(values, by_hand, atol=allowed(small_model(name), PAIRS.clean), rtol=0)
    after = [(module.__dict__.get("forward"), module._compiled_call_impl) for module in compiled]
    assert all(one is other for left, right in zip(before, after) for one, other in zip(left, right))


class Autoencoder(nn.Module):
    """A sparse autoencoder of the residual stream, with parameters of its own."""

    def __init__(self, width: int = 32, features: int = 64) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.encoder = nn.Parameter(torch.randn(width, features, generator=draw, dtype=torch.float64) / 6)
        self.decoder = nn.Parameter(torch.randn(features, width, generator=draw, dtype=torch.float64) / 6)

    def forward(self, value: Tensor) -> Tensor:
        return torch.relu(value @ self.encoder) @ self.decoder


@pytest.mark.quick(1)
@pytest.mark.parametrize("at", ["blocks.1.hook_resid_pre", "blocks.2.hook_mlp_out"])
@pytest.mark.parametrize("name", NAMES)
def test_a_hook_that_reconstructs_what_is_there_by_an_autoencoder(name: str, at: str) -> None:
    model, autoencoder = fresh_model(name), Autoencoder()
    bound = allowed(model, PAIRS.clean)
    model.add_hook(at, lambda value, hook: autoencoder(value))
    sites = [*SITES, Site("blocks.0.hook_resid_post"), Site(block_hook(2, "resid_pre"), position=3)]
    found, warned = assert_as_by_hand(model, sites, bound=bound)
    assert found.shortcuts == () and "code that is not its own runs at blocks." in warned


@needs_hooked
@pytest.mark.parametrize("architecture", ["learned", "gated"])
def test_a_subclass_that_carries_autoencoders(architecture: str) -> None:
    """As SAELens does it: a class of its own, that puts modules in the place of hook points."""
    model = fresh_hooked(architecture)
    bound = allowed(model, PAIRS.clean)

    class WithAutoencoders(type(model)):  # type: ignore[misc]
        def add(self, where: str, module: nn.Module) -> None:
            parent, _, own = where.rpartition(".")
            setattr(self.get_submodule(parent), own, module)
            self.setup()

    model.__class__ = WithAutoencoders
    model.add("blocks.1.hook_resid_pre", Autoencoder())
    found, warned = assert_as_by_hand(
        model, [site for site in SITES if site.hook_point in model.hook_dict], bound=bound
    )
    assert found.shortcuts == () and "blocks.1.hook_resid_pre (a Autoencoder in its place)" in warned


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "hooked:grouped", "bridge:gpt2", "bridge+:qwen2"))
def test_prompts_as_long_as_the_context(name: str) -> None:
    pairs = token_pairs([N_CONTEXT, N_CONTEXT - 3, N_CONTEXT], [(3,), (4, 6), (N_CONTEXT - 1,)])
    last = Site(block_hook(1, "v"), head=0, position=-1)
    assert_as_by_hand(
        small_model(name), [*SITES, last, Site(block_hook(0, "resid_pre"), position=N_CONTEXT - 4)], pairs
    )


@pytest.mark.filterwarnings("ignore:.*quantiz", "ignore:torch.ao", "ignore:Must explicitly")
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_model_whose_linear_layers_are_quantized_on_the_way(architecture: str) -> None:
    """They scale by the largest number of all positions, so that the last token moves what stands before it."""
    model = fresh_model(f"bridge:{architecture}").float()
    torch.ao.quantization.quantize_dynamic(model.original_model, {nn.Linear}, inplace=True)
    prompt = PAIRS.clean[0][None]
    with torch.no_grad():
        later = torch.cat([prompt[:, :-1], prompt[:, :1]], dim=1)
        assert not torch.equal(model(prompt)[:, :-1], model(later)[:, :-1])
    with pytest.raises(ValueError, match="this model's quantized layers scale by what all positions hold"):
        engine_on(model).sweep(PAIRS, singles(SITES), [last_position_metric(len(PAIRS))])
