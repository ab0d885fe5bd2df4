"""Estimates on models that are not plain: switches, code and precision of the user's own, copies that models make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch.core.edge_patches import edge_patches
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.models.graph import graph_of
from test_suite.engine.test_attribution import alike_pairs, assert_near, some_pairs
from test_suite.helpers.attribution import EDGE_METHODS, METHODS, edge_scores, patches_of_writers, scores
from test_suite.helpers.models import HAS_HOOKED, fresh_model, model_parameters, needs_hooked, small_model
from test_suite.helpers.refusals import refused

HAS_COPIES_WITH_GRADIENT = not HAS_HOOKED
"""Whether TransformerLens (4) computes on with what a bridge shows scaled, whatever its values."""

pytestmark = pytest.mark.filterwarnings("ignore:runs take|every run is one|all logits are")


@pytest.mark.quick(1)
@needs_hooked
@pytest.mark.parametrize("switch", ["use_split_qkv_input", "use_attn_in", "use_attn_result", "use_hook_mlp_in"])
@pytest.mark.parametrize("name", ["hooked:learned", "hooked:grouped"])
def test_switches_of_the_model_change_no_edge(name: str, switch: str) -> None:
    """Each head may be given an input of its own, which is the same one as before."""
    if name == "hooked:grouped" and switch == "use_attn_in":
        pytest.skip("TransformerLens has no such input where keys are shared")
    model, plain, pairs = fresh_model(name), small_model(name), some_pairs()
    getattr(model, f"set_{switch}")(True)
    for method in EDGE_METHODS:
        assert_near(edge_scores(model, pairs, method), edge_scores(plain, pairs, method))


@needs_hooked
@pytest.mark.parametrize("method", ["eap", "relp"])
def test_code_of_the_users_own_counts_positions_from_the_prompts_beginning(method: str) -> None:
    model, pairs = fresh_model("hooked:learned"), alike_pairs()

    def double_at_three(value: Tensor, hook: Any) -> Tensor:
        return torch.cat([value[:, :3], 2 * value[:, 3:4], value[:, 4:]], dim=1)

    model.add_hook("blocks.1.ln1.hook_normalized", double_at_three)
    graph = graph_of(model)
    edges, of_edges = edge_patches(graph), edge_scores(model, pairs, method)
    of_nodes = scores(model, pairs, patches_of_writers(graph), "atp" if method == "eap" else method)
    sums = np.stack([of_edges[edges.writers == number].sum(axis=0) for number in range(len(graph.writers))])
    assert_near(sums, of_nodes)


@needs_hooked
def test_scores_that_are_masked_are_written_nothing() -> None:
    """Both runs have -inf there, whose difference is no number."""
    model, pairs, name, step = small_model("hooked:learned"), alike_pairs(), "blocks.1.attn.hook_attn_scores", 1e-5
    found = scores(model, pairs, [Patch((Site(name, head=1),)), Patch((Site(name, head=1, position=5),))], "atp")
    held = [model.run_with_cache(run[0][None])[1][name] for run in (pairs.corrupted, pairs.clean)]
    change = torch.where(held[0] == held[1], 0, held[1] - held[0])
    for of_patch, queries in zip(found, (slice(None), slice(5, 6))):
        chosen = torch.zeros_like(change)
        chosen[:, 1, queries] = change[:, 1, queries]
        ways = [_moved(model, pairs.corrupted[0], name, sign * step * chosen) for sign in (1, -1)]
        assert of_patch[0] == pytest.approx((ways[0] - ways[1]) / (2 * step), rel=1e-5, abs=1e-8)
    assert np.isfinite(scores(model, pairs, [Patch((Site(name),))], "ig_activations")).all()


def _moved(model: Any, tokens: Tensor, name: str, change: Tensor) -> float:
    with torch.no_grad():
        logits = model.run_with_hooks(tokens[None], fwd_hooks=[(name, lambda value, hook: value + change)])[0, -1]
    return float(logits[2] - logits[8])


@pytest.mark.parametrize("part", ["mlp_out", "attn_out"])
def test_what_is_shown_as_a_copy_has_its_gradient_or_is_told(part: str) -> None:
    """Granite's bridge shows what is added, scaled; TransformerLens 3 takes it back only where its values changed."""
    model, pairs, name, step = small_model("bridge:scaled_residual"), alike_pairs(), block_hook(1, part), 1e-3
    for method in ("eap_ig", "relp", "atp"):
        try:
            found = scores(model, pairs, [Patch((Site(name),))], method)
        except RuntimeError as error:
            assert f"the gradient does not reach {name}: this model" in str(error)
            assert not HAS_COPIES_WITH_GRADIENT
        else:
            assert HAS_COPIES_WITH_GRADIENT
    if HAS_COPIES_WITH_GRADIENT:
        held: list[Tensor] = []
        for run in (pairs.corrupted, pairs.clean):
            with torch.no_grad(), model.hooks(fwd_hooks=[(name, lambda value, hook: held.append(value.clone()))]):
                model(run[0][None])
        ways = [_moved(model, pairs.corrupted[0], name, sign * step * (held[1] - held[0])) for sign in (1, -1)]
        assert found[0, 0] == pytest.approx((ways[0] - ways[1]) / (2 * step), rel=1e-2)  # it computes in single


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", model_parameters("hooked:gated", "bridge:llama"))
@pytest.mark.parametrize("method", ["relp", "gim"])
def test_backward_rules_in_half_precision(name: str, method: str) -> None:
    pairs, patches = alike_pairs(), [Patch((Site(block_hook(1, "z"), head=head),)) for head in range(4)]
    model = fresh_model(name)
    expected = edge_scores(model, pairs, method), scores(model, pairs, patches, method)
    half = model.to(torch.bfloat16)
    found = edge_scores(half, pairs, method), scores(half, pairs, patches, method)
    for ours, theirs in zip(found, expected):
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("method", ["relp", "gim"])
def test_a_run_that_rules_end_is_told(method: str) -> None:
    """The bridge of OLMo computes a normalization itself where a hook changes its scale, with weights that it lacks."""
    with pytest.raises(
        RuntimeError, match="the backward rules cannot be set for this model: with them its run ends in"
    ):
        scores(small_model("bridge:weightless_norm"), alike_pairs(), [Patch((Site(block_hook(1, "z")),))], method)


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:gpt2"))
def test_weights_made_in_inference_mode_are_refused(name: str) -> None:
    with torch.inference_mode():
        model = fresh_model(name)
    if not any(weight.is_inference() for weight in model.parameters()):
        pytest.skip("TransformerLens 4 makes this model's weights anew")
    asked = [weight.requires_grad for weight in model.parameters()]
    runs: list[Callable[[], Any]] = [
        *[
            lambda method=method: scores(model, alike_pairs(), [Patch((Site(block_hook(1, "z")),))], method)
            for method in METHODS
        ],
        lambda: edge_scores(model, alike_pairs(), "eap"),
    ]
    for run in runs:
        with refused("the model's weights were made in inference mode, through which torch takes no gradients"):
            run()
    assert asked == [weight.requires_grad for weight in model.parameters()]
