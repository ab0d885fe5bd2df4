"""Models whose layers lie on two devices give the numbers of the same models on one.

The devices are made up (`helpers.devices`): tensors of two of them that meet in an operation raise what they raise on
accelerators. What is not moved to where it is needed is seen so, on a machine that has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from activation_patching import ActivationPatcher, IOIDataset, Patch, Site
from actpatch import HeadPatcher, PathPatcher, PromptPair, PromptPairs, Store, load_model, load_run, work_on
from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.edge_patches import edge_patches
from actpatch.core.estimates import Estimate
from actpatch.core.path_patches import HeadPaths
from actpatch.core.sites import block_hook
from actpatch.metrics.own import DatasetMetric
from actpatch.models.graph import graph_of
from actpatch.models.load import TINY
from test_suite.helpers.attribution import EDGE_METHODS, METHODS
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.devices import FIRST, SECOND, device_map_of, split_model, spread, two_devices
from test_suite.helpers.models import (
    HAS_HOOKED,
    checkpoint,
    everything_metric,
    last_position_metric,
    model_parameters,
    sampled_sites,
    small_model,
    swept,
    token_pairs,
)
from test_suite.helpers.prompts import FLIPPED, MARY
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.sweeps import single as singles

MODELS = model_parameters(
    "hooked:learned", "bridge:llama", slow=("hooked:grouped", "hooked:parallel", "bridge:gpt2", "bridge+:llama")
)


def some_pairs() -> Any:
    return token_pairs([10, 7], [(3, 6), (5,)])


def patches_of(name: str, kind: str) -> Any:
    """What is patched, of this kind; of edges and paths some."""
    if kind == "sites":
        return singles(sampled_sites(name, [None, 5])[::2])
    graph = graph_of(small_model(name))
    if kind == "edges":
        return edge_patches(graph).taken(np.arange(0, len(graph), 29))
    if kind == "circuits":
        kept = np.random.default_rng(0).random((2, 1, len(graph))) < 0.6
        return CircuitPatches(graph, kept, ("one", "other"))
    senders = [number for number, writer in enumerate(graph.writers) if writer.kind == "head"]
    receivers = [
        number for number, reader in enumerate(graph.readers) if reader.layer == 2 and reader.kind in ("q", "v")
    ]
    return HeadPaths(graph, tuple(senders[::3]), tuple(receivers[-2:]), "mlps")


def at_all_positions(n_pairs: int) -> DatasetMetric:
    """A user's metric, that takes the logits to where its own numbers lie."""
    metric = everything_metric(n_pairs)
    return DatasetMetric(lambda logits, pair: metric.compute_metric(logits.cpu(), pair), tuple(range(n_pairs)))


def assert_as_on_one_device(name: str, patches: Any, direction: str, metric: Any, **options: Any) -> None:
    pairs, whole = some_pairs(), engine_on(small_model(name), **options)
    expected = swept(whole, pairs, patches, metric, direction)
    with two_devices():
        model = split_model(name)
        assert {weight.device for weight in model.parameters()} == {FIRST, SECOND}
        engine = engine_on(model, **options)
        found = swept(engine, pairs, patches, metric, direction)
    assert engine.shortcuts == whole.shortcuts
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)
    base = expected.corrupted if direction == "denoising" else expected.clean
    assert np.abs(expected.patched - base[None]).max() > 1e-3


def test_tensors_of_two_devices_refuse_to_meet() -> None:
    """What torch lets pass on accelerators passes: copies, single numbers, indices of the CPU."""
    with two_devices(), torch.no_grad():
        one, other, third = torch.ones(3, device=FIRST), torch.ones(3, device=SECOND), torch.ones(3)
        meetings: list[Any] = [
            *[lambda: one + other, lambda: one + third, lambda: torch.cat([one, other])],
            *[lambda: one[other.long()], lambda: third[one.long()], lambda: one.mul_(other)],
            lambda: one.index_put_((torch.tensor([0]),), other[:1]),
        ]
        for meeting in meetings:
            with refused("Expected all tensors to be on the same device", RuntimeError):
                meeting()
        one[1:].copy_(other[1:] * 2)
        one[torch.tensor([0])] = torch.tensor(5.0)
        assert (one * torch.tensor(2.0)).tolist() == [10.0, 4.0, 4.0] and (one + other.to(FIRST)).device == FIRST


@pytest.mark.parametrize("kind", ["sites", "edges", "circuits", "paths"])
@pytest.mark.parametrize("name", MODELS)
def test_patches_are_run_as_on_one_device(name: str, kind: str) -> None:
    assert_as_on_one_device(name, patches_of(name, kind), "denoising", last_position_metric(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sites", "edges"])
@pytest.mark.parametrize("name", MODELS)
def test_noising_and_metrics_of_all_positions_are_run_as_on_one_device(name: str, kind: str) -> None:
    assert_as_on_one_device(name, patches_of(name, kind), "noising", at_all_positions(2))


@pytest.mark.parametrize("method", ["atp", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS[1:])])
@pytest.mark.parametrize("name", MODELS)
def test_components_are_estimated_as_on_one_device(name: str, method: Any) -> None:
    if (name, method) == ("bridge+:llama", "relp"):
        pytest.skip("does not show its activation function, on one device as little as on two")
    sites = [Site(block_hook(0, "z"), head=1), Site(block_hook(2, "q"), head=1), Site(block_hook(2, "mlp_out"))]
    several = [] if method == "atp_star" else [Patch((sites[0], sites[2]))]  # each of which lies elsewhere
    patches = [*singles(sites), *several]
    assert_as_on_one_device(name, patches, "denoising", last_position_metric(2), estimate=Estimate(method))


@pytest.mark.parametrize("method", ["eap", *(pytest.param(m, marks=pytest.mark.slow) for m in EDGE_METHODS[1:])])
@pytest.mark.parametrize("name", MODELS)
def test_edges_are_estimated_as_on_one_device(name: str, method: Any) -> None:
    if (name, method) == ("bridge+:llama", "relp"):
        pytest.skip("does not show its activation function, on one device as little as on two")
    patches = patches_of(name, "edges")
    assert_as_on_one_device(name, patches, "noising", last_position_metric(2), estimate=Estimate(method))


def tiny(is_split: bool) -> Any:
    """The bundled model, in double precision: unfolded, where it is a bridge."""
    if HAS_HOOKED:
        model = load_model("tiny", dtype=torch.float64, device="cpu")
        return spread(model) if is_split else model
    place: Any = {"device_map": device_map_of(TINY)} if is_split else {"device": "cpu"}
    return TransformerBridge.boot_transformers(str(TINY), dtype=torch.float64, **place).eval()


@pytest.mark.slow
def test_what_is_said_generated_and_described_is_as_on_one_device() -> None:
    """Patterns, continuations, the cards of heads, which read weights, and path patching's receivers."""

    def asked(model: Any) -> tuple[Any, ...]:
        dataset, quiet = IOIDataset(model, 2), {"show_progress": False}
        heads, patcher = HeadPatcher(model, **quiet), ActivationPatcher(model, **quiet)
        said = patcher.generate(MARY, FLIPPED, Patch((Site(block_hook(3, "resid_pre")),)), max_new_tokens=2)
        paths = PathPatcher(model, **quiet).run_all_heads_experiment(
            dataset, receivers=["L1H0 q", "L3H1 v"], through="nothing"
        )
        patterns = heads.attention_patterns(dataset, heads=[(0, 1), (3, 2)], pair_index=0)
        return said, heads.describe_heads(dataset, [(0, 1), (3, 2)]), patterns.clean, paths.sweep.patched

    expected = asked(tiny(is_split=False))
    with two_devices():
        found = asked(tiny(is_split=True))
    assert found[0] == expected[0] and str(found[1]) == str(expected[1])
    for ours, one_device in zip(found[2:], expected[2:]):
        np.testing.assert_allclose(ours, one_device, atol=EXACT, rtol=0)


def test_a_map_of_devices_is_kept_by_what_loads_the_model_again(tmp_path: Any) -> None:
    path = checkpoint("llama")
    patches = singles([Site(block_hook(layer, "z"), head=1) for layer in range(3)])
    whole = load_model(path, dtype=torch.float64, device="cpu", model_class="TransformerBridge")
    dataset = PromptPairs(whole, [PromptPair("w5 w6 w7 w8", "w5 w6 w9 w8", ("w2",), ("w3",))])
    expected = ActivationPatcher(whole, show_progress=False).sweep(dataset, patches)
    with two_devices():
        model = load_model(path, dtype=torch.float64, device_map=device_map_of(path))
        patcher = ActivationPatcher(model, show_progress=False)
        patcher.plan(dataset, patches, store=Store(tmp_path / "run", rows_per_unit=2)).begin()
        work_on(tmp_path / "run", shard="1/2", show_progress=False)
    work_on(tmp_path / "run", device="cpu", show_progress=False)
    found = load_run(tmp_path / "run").sweep.patched
    np.testing.assert_allclose(found, expected.patched, atol=EXACT, rtol=0)
    assert np.abs(np.diff(found, axis=0)).min() > 1e-3


def test_a_tied_unembedding_that_lies_elsewhere_cannot_be_folded_into() -> None:
    with two_devices(), refused("TransformerLens cannot fold the norms of .* load it unfolded"):
        load_model("tiny", device_map=device_map_of(TINY))
