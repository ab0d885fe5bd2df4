"""Models whose weights are packed: they are called, never read, and give what the same values in full give."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from actpatch import AttributionPatcher, CircuitPatcher, HeadPatcher, PathPatcher, PromptPair, PromptPairs
from actpatch.core.estimates import Estimate
from actpatch.core.sites import Site, block_hook
from actpatch.models.fingerprint import fingerprint
from actpatch.models.graph import graph_of
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import last_position_metric, sampled_sites, swept, token_pairs
from test_suite.helpers.packed import PackedLinear, packed_bridge
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import engine_on, single

NAMES = ["weight", "qweight"]
"""Under which libraries keep packed weights: in the place of the matrix, or beside it."""


def some_pairs() -> Any:
    return token_pairs([10, 7, 10], [(3, 6), (5,), (9,)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("architecture", ["llama", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_patches_of_packed_models_are_those_of_the_values_in_full(architecture: str, name: str) -> None:
    pairs, metric = some_pairs(), last_position_metric(3)
    neuron = Site(block_hook(2, "mlp_post"), neuron=3, position=5)
    patches = single([*sampled_sites(f"bridge:{architecture}", [None, 5]), neuron])
    whole = packed_bridge(architecture, name, unpacked=True)
    model = packed_bridge(architecture, name)
    expected = swept(engine_on(whole), pairs, patches, metric)
    engine = engine_on(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a model that is resumed takes no time worth a warning
        found = swept(engine, pairs, patches, metric)
    assert {"resume", "prefix", "narrow", "padded", "together"} <= {*engine.shortcuts}
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)
    assert np.abs(found.patched - found.corrupted).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_estimates_of_packed_models_are_those_of_the_values_in_full(name: str) -> None:
    pairs, metric = some_pairs(), last_position_metric(3)
    patches = single([Site(block_hook(layer, "z"), head=1) for layer in range(3)])
    found, expected = (
        swept(engine_on(packed_bridge("llama", name, unpacked=full), estimate=Estimate("atp")), pairs, patches, metric)
        for full in (False, True)
    )
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)
    assert np.abs(found.patched - found.corrupted).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_what_multiplies_by_weights_of_heads_is_refused_before_any_run(name: str) -> None:
    model = packed_bridge("llama", name)
    dataset = PromptPairs(model, [PromptPair("w5 w6 w7 w8", "w5 w6 w9 w8", ("w2",), ("w3",))])
    called: list[int] = []
    model.original_model.register_forward_pre_hook(lambda *given: called.append(1))
    quiet = {"show_progress": False}
    asked: list[Any] = [
        lambda: graph_of(model),
        lambda: PathPatcher(model, **quiet).run_all_edges_experiment(dataset),
        lambda: PathPatcher(model, **quiet).run_path_experiment(dataset, ["L0H1 -> L1 MLP -> logits"]),
        lambda: AttributionPatcher(model, **quiet).run_all_edges_experiment(dataset),
        lambda: CircuitPatcher(model, **quiet).graph,
    ]
    for ask in asked:
        with refused("single edges, paths and circuits of .* are packed .quantized.* Patch heads, layers and neurons"):
            ask()
    assert not called


def test_cards_say_that_packed_weights_cannot_be_read() -> None:
    model = packed_bridge("llama", "weight")
    dataset = PromptPairs(model, [PromptPair(f"w5 w6 w{n} w8", f"w5 w6 w{n + 1} w8", ("w2",), ("w3",)) for n in (4, 7)])
    (card,) = HeadPatcher(model, show_progress=False).describe_heads(dataset, ["L1H1"])
    assert "its weights cannot be read" in card.absent["weights"]


@pytest.mark.parametrize("name", NAMES)
def test_a_fingerprint_is_of_packed_weights_too(name: str) -> None:
    model = packed_bridge("llama", name)
    found = fingerprint(model)
    assert (
        found == fingerprint(packed_bridge("llama", name)) != fingerprint(packed_bridge("llama", name, unpacked=True))
    )
    packed = next(module for module in model.original_model.modules() if isinstance(module, PackedLinear))
    getattr(packed, name).data[3, 2] ^= 1
    assert fingerprint(model) != found
