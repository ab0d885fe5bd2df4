"""A model whose circuit is known by construction: of all its edges three carry the answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import Tensor

from actpatch.core.graph import Graph, Reader, Writer
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.edges import edge_id, every_edge
from test_suite.helpers.induction import (
    CIRCUIT,
    assert_the_circuit_acts_at_its_positions,
    assert_the_circuit_is_found,
    induction_model,
    induction_pairs,
)
from test_suite.helpers.models import needs_hooked
from test_suite.oracles.edges import logits_of_edges
from test_suite.oracles.one_prompt import run

RIGHT, WRONG = 9, 17
DIRECTIONS = ("denoising", "noising")


@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_of_all_edges_the_circuit_is_found(direction: str) -> None:
    edges = every_edge(induction_graph())
    assert_the_circuit_is_found(dict(zip(map(edge_id, edges), oracle_effects(direction, edges))), EXACT)


@pytest.mark.quick(1)
@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_its_edges_act_at_their_positions_and_nowhere_else(direction: str) -> None:
    """The circuit's edges at every position, and some of the others at those where it acts."""
    edges = every_edge(induction_graph())
    others = [edge for edge in edges[::9] if edge_id(edge) not in CIRCUIT]
    cells = [(edge, at) for edge in edges if edge_id(edge) in CIRCUIT for at in range(len(induction_pairs().clean[0]))]
    cells += [(edge, at) for edge in others for at in CIRCUIT.values()]
    effects = {(edge_id(edge), at): oracle_effects(direction, [edge], at=[at])[0] for edge, at in cells}
    assert_the_circuit_acts_at_its_positions(effects, EXACT)


def induction_graph() -> Graph:
    return Graph("induction", heads=(4, 4, 4), key_value_heads=(4, 4, 4), mlps=(False, False, False))


def oracle_effects(
    direction: str, edges: Sequence[tuple[Writer, Reader]], at: Sequence[int] | None = None
) -> list[float]:
    """Normalized effect of each edge, by hooked runs."""
    model, pairs = induction_model(), induction_pairs()
    clean, corrupted = pairs.clean[0], pairs.corrupted[0]
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    unpatched, other = (difference(run(model, tokens)) for tokens in (base, source))
    patched = logits_of_edges(model, base, source, edges, at=at)
    return [(difference(logits) - unpatched) / (other - unpatched) for logits in patched]


def difference(logits: Tensor) -> float:
    return float(logits[-1, RIGHT] - logits[-1, WRONG])
