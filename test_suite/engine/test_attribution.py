"""Estimates from gradients: what has to be true of them, whatever computes them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch.core.edge_patches import edge_patches
from actpatch.core.estimates import Estimate
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.metrics.own import DatasetMetric
from actpatch.models.graph import graph_of
from test_suite.engine.test_left_as_found import assert_same_state, state_of
from test_suite.helpers.attribution import (
    EDGE_METHODS,
    METHODS,
    SAME_GRADIENT,
    edge_scores,
    patches_of_writers,
    scores,
)
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.edges import BRIDGE_EDGE_MODELS, HOOKED_EDGE_MODELS, edge_model, some_edges
from test_suite.helpers.models import (
    HAS_HOOKED,
    encoded,
    fresh_model,
    last_position_metric,
    model_parameters,
    token_pairs,
)
from test_suite.oracles.edges import activations, change_of, logits_with_changed_input

_FAST_HOOKED = ("learned", "gated", "grouped", "parallel", "no_norm", "shortformer")
FAST = (*(f"hooked:{name}" for name in _FAST_HOOKED), "bridge:gpt2", "bridge:llama", "bridge:neox")
SLOW = [name for name in (*HOOKED_EDGE_MODELS, *BRIDGE_EDGE_MODELS) if name not in FAST]
MODELS = model_parameters(*FAST, slow=SLOW)
DOUBLE = model_parameters(
    *(f"hooked:{name}" for name in _FAST_HOOKED), "bridge:gpt2", "bridge:neox", slow=[n for n in SLOW if "hooked" in n]
)
"""Those that compute in double precision throughout: Hugging Face's LLaMA normalizes and rotates in single."""
PLAIN = "hooked:learned" if HAS_HOOKED else "bridge:gpt2"
NOT_SHOWN = {
    "gim": ("bridge:opt", "bridge+:opt", "bridge:gptj"),
    "relp": ("bridge+:llama",),
}
"""Rules that these models do not show the place of, which is told."""
WITHIN = 2e-6
"""Two ways through models that compute in single precision on the way, relative to the largest score."""


def some_pairs() -> Any:
    return token_pairs([9, 7, 9], [(3, 6), (2, 4), (5, 6)])


def alike_pairs(n_pairs: int = 2) -> Any:
    return token_pairs([7] * n_pairs, [(2, 4), (3, 5)][:n_pairs])


def assert_near(found: np.ndarray, expected: np.ndarray, within: float = EXACT) -> None:
    assert np.abs(found - expected).max() <= within * max(1.0, np.abs(expected).max())


# --- theorems ---------------------------------------------------------------------------------------------------------


@pytest.mark.quick(3)
@pytest.mark.parametrize("method", EDGE_METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_the_scores_of_a_writers_edges_add_up_to_its_own(name: str, method: str) -> None:
    """Gradients are linear: what flows into a writer's output flows out of its readers' inputs."""
    model = edge_model(name)
    graph, pairs = graph_of(model), some_pairs()
    if name in NOT_SHOWN.get(method, ()):
        with pytest.raises(RuntimeError, match="backward rules cannot be set"):
            edge_scores(model, pairs, method)
        return
    of_edges = edge_scores(model, pairs, method)
    of_nodes = scores(model, pairs, patches_of_writers(graph), SAME_GRADIENT.get(method, method))
    edges = edge_patches(graph)
    sums = np.stack([of_edges[edges.writers == number].sum(axis=0) for number in range(len(graph.writers))])
    assert np.abs(of_nodes).max() > 1e-3
    assert_near(sums, of_nodes, WITHIN)
    if method in ("relp", "gim") or name.startswith("hooked"):
        assert np.abs(sums - of_nodes).max() <= EXACT * max(1.0, np.abs(of_nodes).max())


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", DOUBLE)
def test_an_edges_score_is_the_slope_of_the_edge(name: str) -> None:
    """The change of the metric where a reader reads a little of what the sender changes (central differences)."""
    model, step = edge_model(name), 1e-5
    graph, pairs = graph_of(model), alike_pairs(1)
    found, edges = edge_scores(model, pairs, "eap")[:, 0], edge_patches(graph)
    base, source = pairs.corrupted[0], pairs.clean[0]
    held = activations(model, base), activations(model, source)
    for writer, reader in some_edges(graph)[::2]:
        change = change_of(model, *held, writer)
        ways = [logits_with_changed_input(model, base, reader, sign * step * change)[-1] for sign in (1, -1)]
        slope = float((ways[0][2] - ways[0][8]) - (ways[1][2] - ways[1][8])) / (2 * step)
        number = edges.ids.index(f"{writer.id}->{reader.id}")
        assert found[number] == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("component", ["resid_mid", "z", "q", "k", "v", "pattern", "mlp_post", "mlp_out", "attn_out"])
def test_a_components_score_is_the_slope_of_patching_it(component: str, direction: str) -> None:
    model, step = edge_model(PLAIN), 1e-5
    pairs, name = alike_pairs(1), block_hook(1, component)
    if name not in model.hook_dict:
        pytest.skip(f"this model has no {name}")
    if component == "resid_mid" and not HAS_HOOKED:
        pytest.skip("a bridge's own hook there is seen by its MLP alone; its stream is patched in the next tests")
    found = scores(model, pairs, [Patch((Site(name),))], "atp", direction)[0, 0]
    runs = (pairs.corrupted[0], pairs.clean[0])
    base, source = runs if direction == "denoising" else runs[::-1]
    there, written = (_activation(model, tokens, name) for tokens in (base, source))
    ways = [_logits_writing(model, base, name, there + sign * step * (written - there)) for sign in (1, -1)]
    slope = float((ways[0][2] - ways[0][8]) - (ways[1][2] - ways[1][8])) / (2 * step)
    assert abs(slope) > 1e-6
    assert found == pytest.approx(slope, rel=1e-5, abs=1e-8)


def _activation(model: Any, tokens: Tensor, name: str) -> Tensor:
    held: list[Tensor] = []
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, lambda value, hook: held.append(value.clone()))]):
        model(tokens[None])
    return held[0]


def _logits_writing(model: Any, tokens: Tensor, name: str, written: Tensor) -> Tensor:
    with torch.no_grad(), model.hooks(fwd_hooks=[(name, lambda value, hook: written)]):
        return model(tokens[None])[0, -1]


@pytest.mark.slow
@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:gpt2"))
def test_integrated_gradients_of_the_embeddings_add_up(name: str) -> None:
    """Over the edges out of the embedding, IG comes to the whole difference of the metric; four times nearer with twice
    the steps, in the middle of each; the other grids half as far on either side."""
    model, pairs = edge_model(name), alike_pairs()
    engine = PatchingEngine(model, show_progress=False)
    runs = engine.baselines(pairs, [last_position_metric(2)])
    gap = (runs.clean - runs.corrupted)[0]
    from_input = edge_patches(graph_of(model), senders="input")
    errors = {
        steps: scores(model, pairs, from_input, "eap_ig", steps=steps, grid="midpoint").sum(axis=0) - gap
        for steps in (8, 16, 32)
    }
    assert np.abs(errors[32]).max() < 0.01 * np.abs(gap).max()
    for few, many in ((8, 16), (16, 32)):
        assert np.abs(errors[many]).max() < 0.4 * np.abs(errors[few]).max()
    ends = [scores(model, pairs, from_input, "eap_ig", steps=8, grid=grid).sum(axis=0) for grid in ("left", "right")]
    finer = scores(model, pairs, from_input, "eap_ig", steps=16, grid="left").sum(axis=0)
    middle = scores(model, pairs, from_input, "eap_ig", steps=8, grid="midpoint").sum(axis=0)
    assert_near((ends[0] + middle) / 2, finer)  # the left ends of 16 steps are those of 8, and their middles
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:gpt2"))
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("component", ["z", "mlp_out", "resid_mid", "k"])
def test_integrated_gradients_of_an_activation_add_up_to_patching_it(component: str, direction: Any, name: str) -> None:
    model, pairs = edge_model(name), some_pairs()
    patch = [Patch((Site(block_hook(1, component)),))]
    engine = PatchingEngine(model, show_progress=False)
    measured = engine.sweep(pairs, patch, [last_position_metric(3)], direction)
    base = measured.corrupted if direction == "denoising" else measured.clean
    exact = measured.patched[0] - base
    errors = [
        np.abs(scores(model, pairs, patch, "ig_activations", direction, steps=steps) - exact).max() for steps in (8, 32)
    ]
    assert errors[1] < 0.01 * np.abs(exact).max()
    assert errors[1] < 0.2 * errors[0]
    at_base = scores(model, pairs, patch, "ig_activations", direction, steps=1, grid="left")
    assert_near(at_base, scores(model, pairs, patch, "atp", direction))


@pytest.mark.parametrize("method", METHODS)
def test_heads_and_positions_add_up(method: str) -> None:
    """Sets of sites have the sum of their scores; of sizes only positions are summed before the size is taken."""
    model, pairs, name = edge_model(PLAIN), alike_pairs(), block_hook(1, "v")
    n_heads = model.cfg.n_heads
    whole = scores(model, pairs, [Patch((Site(name),))], method)
    heads = scores(model, pairs, [Patch((Site(name, head=head),)) for head in range(n_heads)], method)
    positions = scores(model, pairs, [Patch((Site(name, position=at),)) for at in range(7)], method)
    together = scores(model, pairs, [Patch(tuple(Site(name, head=head) for head in range(n_heads)))], method)
    assert_near(together, whole)
    if method == "atp_star":
        assert (np.abs(whole) <= np.abs(heads).sum(axis=0) + EXACT).all()
    else:
        assert_near(heads.sum(axis=0)[None], whole)
        assert_near(positions.sum(axis=0)[None], whole)


@pytest.mark.quick(2)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("names", [("resid_pre", "resid_pre"), ("attn_out", "mlp_out"), ("z", "k", "mlp_post")])
def test_what_is_written_together_is_held(names: tuple[str, ...], direction: Any) -> None:
    """Several hook points, in layers 0, 1 and 2: their joint path comes to patching them all, its first step is `atp`,
    and nothing of an earlier one is counted that a later one writes over."""
    model, pairs = edge_model(PLAIN), some_pairs()
    sites = tuple(Site(block_hook(layer, name)) for layer, name in enumerate(names))
    patch = [Patch(sites, name="set")]
    measured = PatchingEngine(model, show_progress=False).sweep(pairs, patch, [last_position_metric(3)], direction)
    exact = measured.patched[0] - (measured.corrupted if direction == "denoising" else measured.clean)
    found = [scores(model, pairs, patch, "ig_activations", direction, steps=steps) for steps in (8, 32)]
    assert np.abs(found[1] - exact).max() < 0.01 * np.abs(exact).max()
    at_base = scores(model, pairs, patch, "ig_activations", direction, steps=1, grid="left")
    assert_near(scores(model, pairs, patch, "atp", direction), at_base)
    if names[0] == "resid_pre":  # all of the stream is written again behind the first block
        assert_near(at_base, scores(model, pairs, [Patch(sites[1:])], "atp", direction))


@pytest.mark.parametrize("method", METHODS)
def test_sites_that_overlap_are_written_once(method: str) -> None:
    model, pairs, name = edge_model(PLAIN), alike_pairs(), block_hook(1, "v")
    once = scores(model, pairs, [Patch((Site(name, head=1, position=4),))], method)
    twice = Patch((Site(name, head=1, position=4), Site(name, head=1, position=-3)))  # the same of seven
    assert_near(scores(model, pairs, [twice], method), once)
    of_head = Site(name, head=1)
    everywhere = Patch((of_head, Site(name, head=1, position=4)))
    assert_near(scores(model, pairs, [everywhere], method), scores(model, pairs, [Patch((of_head,))], method))
    if method != "atp_star":
        all_heads = Patch((Site(name), Site(name, head=1, position=4)))
        assert_near(scores(model, pairs, [all_heads], method), scores(model, pairs, [Patch((Site(name),))], method))


def test_edges_at_positions_add_up() -> None:
    model, pairs = edge_model(PLAIN), alike_pairs()
    graph = graph_of(model)
    places = [(Site("", position=at),) for at in range(7)]
    at_each = edge_patches(graph, places=places)
    found = scores(model, pairs, at_each, "eap")
    sums = np.stack([found[at_each.columns == column] for column in range(7)]).sum(axis=0)
    assert_near(sums, edge_scores(model, pairs, "eap"))


@pytest.mark.parametrize("method", METHODS)
def test_identical_prompts_score_nothing(method: str) -> None:
    pairs = alike_pairs()
    same = replace(pairs, clean=pairs.corrupted, clean_tokens=pairs.corrupted_tokens)
    model = edge_model(PLAIN)
    patches = [Patch((Site(block_hook(layer, "z"), head=0),)) for layer in range(3)]
    assert (scores(model, same, patches, method) == 0).all()
    if method in EDGE_METHODS:
        assert (edge_scores(model, same, method) == 0).all()


@pytest.mark.quick(1)
@pytest.mark.parametrize("method", METHODS)
def test_batches_and_other_lengths_change_nothing(method: str) -> None:
    """Pairs one at a time, together, and each in an experiment of its own."""
    model, pairs = edge_model(PLAIN), some_pairs()
    patches = [Patch((Site(block_hook(layer, kind), head=1),)) for layer in (0, 2) for kind in ("q", "k", "v", "z")]
    together = scores(model, pairs, patches, method)
    assert_near(scores(model, pairs, patches, method, batch_size=1), together)
    if method in EDGE_METHODS:
        assert_near(edge_scores(model, pairs, method, batch_size=1), edge_scores(model, pairs, method))
    for number in range(3):
        alone = encoded([pairs.clean[number]], [pairs.corrupted[number]])
        metric = last_position_metric(3)
        of_pair = replace(
            metric.answers,
            correct=metric.answers.correct[number : number + 1],
            incorrect=metric.answers.incorrect[number : number + 1],
        )
        found = scores(model, alone, patches, method, metric=replace(metric, answers=of_pair))
        assert_near(found[:, 0], together[:, number])


def test_positions_are_worked_on_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = edge_model(PLAIN), some_pairs()
    expected = edge_scores(model, pairs, "eap")
    monkeypatch.setattr("actpatch.engine.edge_estimates.MOST_EXPANDED_BYTES", 1)
    assert_near(edge_scores(model, pairs, "eap"), expected)


@pytest.mark.parametrize("method", ["atp", "eap"])
def test_a_linear_metric_of_the_last_layer_is_exact(method: str) -> None:
    """What reaches the logits by no more than the last normalization is exact without one."""
    if not HAS_HOOKED:
        pytest.skip("HookedTransformer alone builds a model without normalization")
    model, pairs = edge_model("hooked:no_norm"), some_pairs()
    engine = PatchingEngine(model, show_progress=False)
    if method == "atp":
        patches: Any = [Patch((Site(block_hook(2, "mlp_out")),)), Patch((Site(block_hook(2, "resid_post")),))]
    else:
        patches = edge_patches(graph_of(model), receivers="logits")
    measured = engine.sweep(pairs, patches, [last_position_metric(3)])
    assert_near(scores(model, pairs, patches, method), measured.patched[0] - measured.corrupted)


# --- what a model is, and is left as ----------------------------------------------------------------------------------


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:gpt2"))
@pytest.mark.parametrize("method", ["eap", "gim", "relp", "eap_ig"])
def test_the_model_is_left_as_it_was(name: str, method: str) -> None:
    model = fresh_model(name)
    edge_scores(model, alike_pairs(), method)  # a bridge wires hooks of its own at its first run
    for number, weight in enumerate(model.parameters()):
        weight.requires_grad_(number % 3 != 0)
    model.train()
    before = state_of(model)
    edge_scores(model, alike_pairs(), method)
    assert_same_state(before, state_of(model))

    def failing(logits: Tensor, pair: int) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edge_scores(model, alike_pairs(), method, metric=DatasetMetric(failing, (0, 1)))
    assert_same_state(before, state_of(model))
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("method", ["atp", "atp_star"])
def test_whatever_mode_the_caller_is_in(method: str) -> None:
    model, pairs = edge_model(PLAIN), alike_pairs()
    patches = [Patch((Site(block_hook(1, kind), head=1),)) for kind in ("q", "z")]
    expected = scores(model, pairs, patches, method)
    with torch.inference_mode():
        assert_near(scores(model, pairs, patches, method), expected)
    with torch.no_grad():
        assert_near(scores(model, pairs, patches, method), expected)


def test_in_half_precision_sums_are_in_single() -> None:
    """bfloat16 has 8 bits: scores are near those of double precision, and pairs in batches are the same."""
    model = fresh_model(PLAIN)
    pairs = some_pairs()
    expected = edge_scores(model, pairs, "eap")
    half = model.to(torch.bfloat16)
    found = edge_scores(half, pairs, "eap")
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99
    assert np.isfinite(found).all()


def test_a_function_of_ones_own_has_to_return_a_tensor() -> None:
    model, pairs = edge_model(PLAIN), alike_pairs()
    patches = [Patch((Site(block_hook(1, "z"), head=1),))]
    with_graph = DatasetMetric(lambda logits, pair: logits[0, -1, 2 + pair] - logits[0, -1, 8 + pair], (0, 1))
    assert_near(scores(model, pairs, patches, "atp", metric=with_graph), scores(model, pairs, patches, "atp"))
    without = DatasetMetric(lambda logits, pair: float(logits[0, -1, 2]), (0, 1))
    with pytest.raises(ValueError, match="metric, for pair 0, has no gradient: expected a tensor"):
        scores(model, pairs, patches, "atp", metric=without)
    in_one = DatasetMetric(lambda logits, pair: logits[0, -1, 2] if pair else float(logits[0, -1, 2]), (1, 0))
    with pytest.raises(ValueError, match="metric, for pair 0, has no gradient: expected a tensor"):
        scores(model, pairs, patches, "atp", metric=in_one)


class Detached(DatasetMetric):
    """A metric of the user's, that loses the graph."""

    def measure(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().measure(*args, **kwargs).detach()


def test_a_metric_without_a_gradient_is_refused_beside_others_that_have_one() -> None:
    model, pairs = edge_model(PLAIN), alike_pairs()
    patches = [Patch((Site(block_hook(1, "z"), head=1),))]
    good = DatasetMetric(lambda logits, pair: logits[0, -1, 2], (0, 1), name="good")
    bad = Detached(lambda logits, pair: logits[0, -1, 3], (0, 1), name="bad")
    engine = PatchingEngine(model, show_progress=False, estimate=Estimate("atp"))
    engine.sweep(pairs, patches, [good])
    with pytest.raises(ValueError, match="the metric 'bad' has no gradient: expected a tensor"):
        engine.sweep(pairs, patches, [good, bad])


def test_a_model_whose_logits_have_no_gradient_is_told_of() -> None:
    model, pairs = fresh_model(PLAIN), alike_pairs()
    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    detaching = model.hooks(fwd_hooks=[(last, lambda value, hook: value.detach())])
    told = pytest.warns(UserWarning, match="detaches what it passes on")
    with detaching, told, pytest.raises(RuntimeError, match="no gradient reaches the logits"):
        scores(model, pairs, [Patch((Site(block_hook(1, "z"), head=1),))], "atp")
