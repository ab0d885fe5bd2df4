"""Where gradients go wrong in known ways: the effects that the models were made for, exact and as each method says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor

from actpatch.models.graph import graph_of
from test_suite.helpers.edges import every_edge
from test_suite.helpers.gates import (
    GATES,
    Gate,
    answer,
    cancelling_paths,
    opposite_signs,
    or_gate,
    saturated_keys,
    saturated_queries,
)
from test_suite.helpers.models import needs_hooked
from test_suite.oracles.attribution import component_products, edge_scores, size_of_dropped
from test_suite.oracles.edges import logits_of_edge, noted, writing
from test_suite.oracles.one_prompt import run

pytestmark = needs_hooked
NOTHING = 1e-12
Z, Q, K = (f"blocks.0.attn.hook_{name}" for name in ("z", "q", "k"))
MLP = "blocks.0.hook_mlp_out"


def prompts(gate: Gate, direction: str, pair: int = 0) -> tuple[Tensor, Tensor]:
    """Base and source."""
    both = gate.pairs.corrupted[pair], gate.pairs.clean[pair]
    return both if direction == "denoising" else both[::-1]


def exact(gate: Gate, hook_point: str, direction: str = "denoising", head: int | None = None, pair: int = 0) -> float:
    """How far the answer moves where this is patched."""
    base, source = prompts(gate, direction, pair)
    hooks = [writing(hook_point, noted(gate.model, source, [hook_point])[hook_point], head)]
    return float(answer(run(gate.model, base, hooks)) - answer(run(gate.model, base)))


def products(gate: Gate, hook_point: str, method: str = "atp", pair: int = 0, **options: Any) -> np.ndarray:
    clean, corrupted = gate.pairs.clean[pair], gate.pairs.corrupted[pair]
    return component_products(gate.model, clean, corrupted, answer, hook_point, method=method, **options)


def star(gate: Gate, hook_point: str, **options: Any) -> float:
    """The score of `atp_star` of a whole hook point."""
    found = products(gate, hook_point, "atp_star", **options)
    return size_of_dropped(found.reshape(len(found), -1).sum(axis=1))


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=NOTHING)


@pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)
def test_answers_are_those_that_the_docstrings_say(gate: Any) -> None:
    expected = {
        saturated_queries: [(1, -1)],
        saturated_keys: [(1, -1)],
        cancelling_paths: [(1, 0)],
        or_gate: [(1, 0)],
        opposite_signs: [(2.5, -0.5), (1.5, 0.5)],
    }[gate]
    made = gate()
    runs = [[answer(run(made.model, tokens)) for tokens in prompts(made, "noising", i)] for i in range(len(expected))]
    close(np.array(runs, dtype=np.float64), expected)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(("gate", "hook_point"), [(saturated_queries, Q), (saturated_keys, K)], ids=["q", "k"])
def test_a_saturated_head_has_no_gradient_at_queries_and_keys(gate: Any, hook_point: str, direction: Any) -> None:
    sign = 1 if direction == "denoising" else -1
    close(exact(gate(), hook_point, direction), 2.0 * sign)
    assert abs(products(gate(), hook_point, direction=direction).sum()) < 1e-10
    close(star(gate(), hook_point, direction=direction), 2.0)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("gate", "hook_point"), [(saturated_queries, Q), (saturated_keys, K)], ids=["q", "k"])
@pytest.mark.parametrize("method", ["eap_ig", "ig_activations"])
def test_a_path_meets_the_moment_at_which_a_saturated_head_turns_only_with_many_steps(
    method: str, gate: Any, hook_point: str
) -> None:
    """Of five midpoints the middle one alone is there, with four times the mean slope; of five left ends none is."""
    assert abs(products(gate(), hook_point, method, steps=200).sum() - 2) < 1e-6
    assert abs(products(gate(), hook_point, method, steps=5).sum() - 8) < 1e-3
    assert abs(products(gate(), hook_point, method, steps=5, grid="left").sum()) < 0.03


def test_direct_and_indirect_path_cancel_in_the_gradient_but_not_with_a_layer_dropped() -> None:
    gate = cancelling_paths()
    close(exact(gate, MLP), 1.0)
    close(products(gate, MLP).sum(), 0.0)
    close(star(gate, MLP), 1.0)
    close(products(gate, MLP, "atp_star").sum(axis=(1, 2)), [0.0, 1.0])
    close(exact(gate, MLP, "noising"), -1.0)
    close(products(gate, MLP, direction="noising").sum(), -2.0)
    close(star(gate, MLP, direction="noising"), 1.0)


@pytest.mark.parametrize("head", [0, 1])
def test_noising_is_blind_to_either_input_of_an_or_and_denoising_sees_each(head: int) -> None:
    gate = or_gate()
    for direction, expected in (("denoising", 1.0), ("noising", 0.0)):
        close(exact(gate, Z, direction, head), expected)
        close(products(gate, Z, direction=direction)[:, head].sum(), expected)
    close(products(gate, Z, "eap_ig", steps=2, direction="noising")[:, head].sum(), -0.5)
    close(products(gate, Z, "clean_corrupted", direction="noising")[:, head].sum(), -0.5)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_edges_into_an_or_are_as_the_heads(direction: Any) -> None:
    gate = or_gate()
    base, source = prompts(gate, direction)
    edges = every_edge(graph_of(gate.model))
    clean, corrupted = gate.pairs.clean[0], gate.pairs.corrupted[0]
    found = dict(zip(edges, edge_scores(gate.model, clean, corrupted, answer, edges, direction=direction)))
    of_heads = [(writer, reader) for writer, reader in edges if writer.kind == "head" and reader.kind == "mlp"]
    for edge in of_heads:
        moved = float(answer(logits_of_edge(gate.model, base, source, *edge)) - answer(run(gate.model, base)))
        close([moved, found[edge]], 1.0 if direction == "denoising" else 0.0)
    assert len(of_heads) == 2


def test_opposite_signs_cancel_in_the_mean_over_pairs() -> None:
    gate = opposite_signs()
    found = [products(gate, Z, pair=pair)[:, 1].sum() for pair in range(2)]
    close(found, [exact(gate, Z, head=1, pair=pair) for pair in range(2)])
    close(np.mean(found), 0.0)
    close(np.mean(np.abs(found)), 1.0)
    close([products(gate, Z, pair=pair)[:, 0].sum() for pair in range(2)], 2.0)
