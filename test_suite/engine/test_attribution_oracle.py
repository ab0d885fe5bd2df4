"""What attribution is held to, held itself to what has to be true of it: differences of the model's own runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch.core.graph import Writer
from test_suite.helpers.closeness import rounds_to_single
from test_suite.helpers.edges import (
    BRIDGE_EDGE_MODELS,
    HOOKED_EDGE_MODELS,
    edge_model,
    every_edge,
    prompts,
    seen_graph,
    some_edges,
)
from test_suite.helpers.models import D_VOCAB, UNWRITABLE, fresh_hooked, model_parameters, needs_hooked
from test_suite.oracles.attribution import (
    COMPONENT_METHODS,
    EDGE_METHODS,
    component_products,
    edge_products,
    edge_scores,
    gradient_at,
    size_of_dropped,
)
from test_suite.oracles.backward_rules import GIM, PLAIN, RELP, RULES, Rules
from test_suite.oracles.edges import (
    EMBEDDED,
    activations,
    change_of,
    has_mlp,
    logits_of_edges,
    logits_with_changed_input,
    noted,
    writing,
)
from test_suite.oracles.linearized import linearized
from test_suite.oracles.one_prompt import run

CORRUPTED, CLEAN = prompts()
FAST = ("hooked:learned", "hooked:grouped", "hooked:parallel", "hooked:attn_only_norm", "bridge:gpt2", "bridge:neox")
SLOW = [name for name in HOOKED_EDGE_MODELS + BRIDGE_EDGE_MODELS if name not in FAST]
MODELS = model_parameters(*FAST, slow=SLOW)
FEW = model_parameters("hooked:grouped", "bridge:gpt2")
SUMS = 1e-12
"""How far two sums of the same numbers may be apart, relative to the largest."""
DIRECTIONS = ("denoising", "noising")
HIDDEN_SCORES = ("bridge:opt", "bridge+:opt", "bridge:gptj")
"""Models of which no hook point holds what their softmax reads."""


def metric(logits: Tensor) -> Tensor:
    """Something of the last token's logits and of those of the token at position 4, which differs between prompts."""
    weights = torch.cos(1.0 + 0.9 * torch.arange(D_VOCAB, dtype=torch.float64))
    return (logits[-1].double() * weights).sum() + (logits[4].double() * weights.flip(0)).sum() / 2


def measured(model: Any, tokens: Tensor, hooks: Any = ()) -> float:
    return float(metric(run(model, tokens, hooks)))


def where(writer: Writer) -> str:
    """The hook point of what a writer writes."""
    if writer.kind == "input":
        return EMBEDDED
    return f"blocks.{writer.layer}." + ("hook_mlp_out" if writer.kind == "mlp" else "attn.hook_z")


def assert_near(found: Any, expected: Any, within: float) -> None:
    """Alike up to this share of the largest number expected."""
    expected = np.asarray(expected)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=within * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rules", [RELP, GIM], ids=["relp", "gim"])
def test_rules_leave_values_as_they_are_and_the_model_as_it_was(name: str, rules: Rules) -> None:
    model = edge_model(name)
    before, attributes = run(model, CLEAN), {id(module): set(vars(module)) for module in model.modules()}
    with torch.no_grad(), rules.on(model) as hooks:
        assert torch.equal(model.run_with_hooks(CLEAN[None], fwd_hooks=hooks)[0], before)
    plain, moved = (gradient_at(model, CLEAN, metric, EMBEDDED, rules=which) for which in (PLAIN, rules))
    assert (plain - moved).abs().max() > 1e-3 * plain.abs().max() or name in ("hooked:attn_only", "hooked:no_norm")
    assert torch.equal(gradient_at(model, CLEAN, metric, EMBEDDED), plain)
    assert {id(module): set(vars(module)) for module in model.modules()} == attributes
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["eap", "relp", "gim"])
def test_scores_are_slopes_of_the_metric_along_an_edge(name: str, method: str) -> None:
    """Central differences of whole runs, in which each function that has a rule is the straight line by that rule."""
    if method == "gim" and name in HIDDEN_SCORES:
        pytest.skip("its scores cannot be read, so that no straight line can be laid through them")
    model, graph = edge_model(name), seen_graph(name)
    edges = some_edges(graph)[::3]
    held, other = activations(model, CORRUPTED), activations(model, CLEAN)
    hooks = linearized(model, CORRUPTED, RULES.get(method, PLAIN))
    single = rounds_to_single(model)
    step = 1e-3 if single else 1e-4
    slopes = []
    for writer, reader in edges:
        change = step * change_of(model, held, other, writer)
        ends = [
            metric(logits_with_changed_input(model, CORRUPTED, reader, sign * change, way="two_runs", hooks=hooks))
            for sign in (1, -1)
        ]
        slopes.append(float(ends[0] - ends[1]) / (2 * step))
    found = edge_scores(model, CLEAN, CORRUPTED, metric, edges, method=method)
    assert_near(found, slopes, 1e-2 if single else 1e-6)


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", EDGE_METHODS)
def test_all_edges_of_a_writer_together_are_the_writer(name: str, method: str) -> None:
    """Of every method whose scores are linear in the gradient; not of `atp_star`, nor of `ig_activations`."""
    model, graph = edge_model(name), seen_graph(name)
    edges = every_edge(graph)
    options: dict[str, Any] = {"direction": "noising", "steps": 2}
    scores = edge_scores(model, CLEAN, CORRUPTED, metric, edges, method=method, **options)
    sums = [sum(score for score, edge in zip(scores, edges) if edge[0] == writer) for writer in graph.writers]
    of_nodes = "atp" if method == "eap" else method
    products = {
        name: component_products(model, CLEAN, CORRUPTED, metric, name, method=of_nodes, **options)
        for name in dict.fromkeys(map(where, graph.writers))
    }
    nodes = [
        products[where(writer)][slice(None) if writer.head is None else (slice(None), writer.head)].sum()
        for writer in graph.writers
    ]
    assert_near(sums, nodes, 1e-5 if rounds_to_single(model) else SUMS)


@pytest.mark.parametrize("name", model_parameters("hooked:learned", slow=("bridge:gpt2",)))
def test_along_the_embeddings_the_scores_of_the_input_sum_to_the_whole_difference(name: str) -> None:
    """The error falls with the square of the number of midpoints, and with the number itself of left and right ends."""
    model, graph = edge_model(name), seen_graph(name)
    whole = measured(model, CLEAN) - measured(model, CORRUPTED)

    def error(steps: int, grid: str) -> float:
        options: dict[str, Any] = {"method": "eap_ig", "steps": steps, "grid": grid}
        return float(component_products(model, CLEAN, CORRUPTED, metric, EMBEDDED, **options).sum() - whole)

    edges = [edge for edge in every_edge(graph) if edge[0].kind == "input"]
    for grid in ("left", "right", "midpoint"):
        scores = edge_scores(model, CLEAN, CORRUPTED, metric, edges, method="eap_ig", steps=4, grid=grid)
        assert_near(scores.sum() - whole, error(4, grid), 1e-10)
    assert abs(error(24, "midpoint")) < 1e-2 * abs(whole)
    assert error(12, "midpoint") / error(24, "midpoint") == pytest.approx(4, rel=0.2)
    assert error(12, "left") / error(24, "left") == pytest.approx(2, rel=0.2)
    slopes = [component_products(model, CLEAN, CORRUPTED, metric, EMBEDDED, direction=d).sum() for d in DIRECTIONS]
    assert error(9, "left") - error(9, "right") == pytest.approx((slopes[0] + slopes[1]) / 9, rel=1e-9)


@needs_hooked
def test_on_a_linear_model_an_edge_is_what_patching_it_does() -> None:
    """Attention alone, no normalization, and no scores, so that every pattern is even."""
    model, graph = fresh_hooked("attn_only"), seen_graph("hooked:attn_only")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.b_Q.zero_()
    edges = some_edges(graph)
    for direction, (base, source) in zip(DIRECTIONS, ((CORRUPTED, CLEAN), (CLEAN, CORRUPTED))):
        patched = [float(metric(logits)) for logits in logits_of_edges(model, base, source, edges, way="two_runs")]
        for method in EDGE_METHODS[:3]:
            found = edge_scores(model, CLEAN, CORRUPTED, metric, edges, method=method, direction=direction)
            assert_near(found, np.array(patched) - measured(model, base), 1e-12)
    zeros = {name: torch.zeros_like(value) for name, value in activations(model, CLEAN).items()}
    patched = [float(metric(logits)) for logits in logits_of_edges(model, CORRUPTED, zeros, edges, way="two_runs")]
    found = edge_scores(model, CLEAN, CORRUPTED, metric, edges, source="zero")
    assert_near(found, np.array(patched) - measured(model, CORRUPTED), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_identical_prompts_score_exactly_nothing(name: str) -> None:
    model = edge_model(name)
    for method in EDGE_METHODS:
        assert not edge_scores(model, CLEAN, CLEAN, metric, some_edges(seen_graph(name)), method=method).any()
    for method in COMPONENT_METHODS:
        for point in ("attn.hook_q", "attn.hook_k", "attn.hook_z", "hook_mlp_out"):
            assert not component_products(model, CLEAN, CLEAN, metric, f"blocks.1.{point}", method=method).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("source", ["other run", "zero"])
def test_along_activations_a_hook_point_sums_to_what_patching_all_of_it_does(name: str, source: Any) -> None:
    """The error falls with the square of the number of midpoints; only with very many on a stream's way to zero."""
    model = edge_model(name)
    points = ["attn.hook_k", "attn.hook_pattern", "attn.hook_z", "mlp.hook_post", "hook_resid_pre"]
    for point in points if source == "other run" else points[:-1]:
        name = f"blocks.1.{point}"
        written = noted(model, CORRUPTED, [name])[name] * (source == "other run")
        whole = measured(model, CLEAN, [writing(name, written)]) - measured(model, CLEAN)
        options: dict[str, Any] = {"direction": "noising", "method": "ig_activations", "source": source}
        errors = [
            component_products(model, CLEAN, CORRUPTED, metric, name, steps=steps, **options).sum() - whole
            for steps in (20, 40)
        ]
        assert abs(errors[1]) < 5e-3 * max(1.0, abs(whole))
        assert abs(errors[1]) < 1e-9 or errors[0] / errors[1] == pytest.approx(4, rel=0.2)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", FEW)
def test_methods_that_know_both_ends_change_sign_with_the_direction(name: str) -> None:
    model, edges = edge_model(name), some_edges(seen_graph(name))
    there, back = (
        {m: edge_scores(model, CLEAN, CORRUPTED, metric, edges, method=m, direction=d) for m in EDGE_METHODS[:3]}
        for d in DIRECTIONS
    )
    assert_near(there["eap_ig"], -back["eap_ig"], SUMS)
    assert_near(there["clean_corrupted"], -back["clean_corrupted"], SUMS)
    assert_near(there["clean_corrupted"], (there["eap"] - back["eap"]) / 2, SUMS)
    name = "blocks.1.attn.hook_z"
    products = [component_products(model, CLEAN, CORRUPTED, metric, name, direction=d) for d in DIRECTIONS]
    both = component_products(model, CLEAN, CORRUPTED, metric, name, method="clean_corrupted")
    assert_near(both, (products[0] - products[1]) / 2, SUMS)


@pytest.mark.parametrize("name", FEW)
def test_edges_at_positions_are_those_products_alone(name: str) -> None:
    model, edges = edge_model(name), some_edges(seen_graph(name))
    products = edge_products(model, CLEAN, CORRUPTED, metric, edges)
    assert_near(edge_scores(model, CLEAN, CORRUPTED, metric, edges, at=[2, -1]), products[:, [2, 6]].sum(axis=1), SUMS)
    assert not products[:, :2].any()
    one = edge_scores(model, CLEAN, CORRUPTED, metric, edges[3:4])
    assert_near(one, products[3:4].sum(axis=1), SUMS)


@pytest.mark.parametrize("name", model_parameters(*FAST[:2], *FAST[4:], slow=("hooked:qk_norm",)))
@pytest.mark.parametrize("point", ["attn.hook_z", "hook_mlp_out", "attn.hook_v"])
def test_a_dropped_layer_is_one_whose_attention_and_mlp_stay_as_they_are(name: str, point: str) -> None:
    """Central differences of runs in which what they write is held."""
    model = edge_model(name)
    hook_point = f"blocks.0.{point}"
    products = component_products(model, CLEAN, CORRUPTED, metric, hook_point, method="atp_star")
    base, other = (noted(model, tokens, [hook_point])[hook_point] for tokens in (CORRUPTED, CLEAN))
    slopes = []
    for layer in range(model.cfg.n_layers):
        names = [f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out"][: 1 + has_mlp(model, layer)]
        frozen = [writing(name, value) for name, value in noted(model, CORRUPTED, names).items()]
        ends = [
            measured(model, CORRUPTED, [writing(hook_point, base + step * (other - base)), *frozen])
            for step in (1e-4, -1e-4)
        ]
        slopes.append((ends[0] - ends[1]) / 2e-4)
    found = products.reshape(len(products), -1).sum(axis=1)
    assert_near(found, slopes, 1e-6)
    assert found[0] == 0
    assert size_of_dropped(found) == pytest.approx(np.abs(slopes).sum() / 2)


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:gpt2"))
def test_queries_and_keys_are_put_through_the_softmax_as_kramar_et_al_write_it(name: str) -> None:
    """A query's row of scores as a whole; of a key, the one probability that its score moves by the sigmoid's rule."""
    model, layer, head = edge_model(name), 1, 2
    names = [f"blocks.{layer}.attn.hook_{kind}" for kind in ("q", "k", "v", "pattern", "z")]
    base, other = ([found[name] for name in names] for found in (noted(model, t, names) for t in (CORRUPTED, CLEAN)))
    (q, k, v, pattern, z), (q_other, k_other, *_) = base, other
    q, k, v, z, q_other, k_other = (value[:, head].numpy() for value in (q, k, v, z, q_other, k_other))
    p, width = pattern[head].numpy(), q.shape[1] ** 0.5
    gradients = [gradient_at(model, CORRUPTED, metric, names[4], dropped=i).numpy()[:, head] for i in range(3)]

    scores = np.where(p > 0, q_other @ k.T / width, -np.inf)
    rows = np.exp(scores - scores.max(axis=1, keepdims=True))
    moved = rows / rows.sum(axis=1, keepdims=True) @ v - z
    found = component_products(model, CLEAN, CORRUPTED, metric, names[0], method="atp_star")
    assert_near(found[:, :, head], [moved * gradient for gradient in gradients], 1e-10)

    found = component_products(model, CLEAN, CORRUPTED, metric, names[1], method="atp_star")
    expected = np.zeros((3, len(q)))
    for t in range(2, len(q)):  # at the first position a query has no other key
        delta = q[t:] @ (k_other[t] - k[t]) / width
        was = p[t:, t]
        now = 1 / (1 + (1 - was) / was * np.exp(-delta))
        moved = ((now - was) / (1 - was))[:, None] * (v[t] - z[t:])
        expected[:, t] = [(moved * gradient[t:]).sum() for gradient in gradients]
    assert_near(found[:, :, head], expected, 1e-10)


@pytest.mark.parametrize("name", FEW)
def test_products_are_of_the_shape_of_their_hook_points(name: str) -> None:
    """Queries and keys too, but for their heads of `atp_star`; the sum over a hook point is a slope of the metric."""
    model = edge_model(name)
    points = [f"attn.hook_{kind}" for kind in ("q", "k", "v", "pattern", "z")]
    points += ["hook_attn_out", "hook_mlp_out", "mlp.hook_post", "hook_resid_pre", "hook_resid_mid", "hook_resid_post"]
    for point in points:
        name = f"blocks.1.{point}"
        base, other = (noted(model, tokens, [name])[name] for tokens in (CORRUPTED, CLEAN))
        found = component_products(model, CLEAN, CORRUPTED, metric, name)
        assert found.shape == base.shape
        ends = [measured(model, CORRUPTED, [writing(name, base + h * (other - base))]) for h in (1e-4, -1e-4)]
        assert_near(found.sum(), (ends[0] - ends[1]) / 2e-4, 1e-6)


@pytest.mark.parametrize("name", model_parameters("bridge:opt"))
def test_a_hook_point_on_which_the_model_does_not_compute_has_no_gradient(name: str) -> None:
    assert UNWRITABLE[name] == ("pattern",)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        component_products(edge_model(name), CLEAN, CORRUPTED, metric, "blocks.1.attn.hook_pattern")
