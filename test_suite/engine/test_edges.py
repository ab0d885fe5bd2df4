"""Every edge by the engine, against a hooked run of the whole model for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch.core.edge_patches import EdgePatches, edge_patches
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.measured import Measured
from actpatch.models.graph import graph_of
from test_suite.helpers.edges import BRIDGE_EDGE_MODELS, HOOKED_EDGE_MODELS, edge_model, prompts
from test_suite.helpers.models import encoded, last_position_metric, model_parameters
from test_suite.oracles.edges import logits_of_edges

EXACT = 1e-10
NOT_RESUMED = {"bridge:bloom", "bridge+:bloom", "bridge:falcon_alibi", "bridge:gptj"}
"""Whose blocks cannot be run singly: ALiBi made for so many rows, rotary angles in single precision."""
RESUMED = [name for name in (*HOOKED_EDGE_MODELS, *BRIDGE_EDGE_MODELS) if name not in NOT_RESUMED]
EVERY = model_parameters(*RESUMED)


def pairs_of(n_pairs: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Bases and sources, of seven and of nine tokens."""
    base, source = prompts()
    longer = torch.cat([torch.tensor([3, 8]), base])
    other = longer.clone()
    other[6] = 11
    return [(base, source), (longer, other)][:n_pairs]


def swept(
    name: str, *, direction: Any = "denoising", edges: EdgePatches | None = None, n_pairs: int = 2, **options: Any
) -> tuple[EdgePatches, Measured]:
    model = edge_model(name)
    edges = edge_patches(graph_of(model)) if edges is None else edges
    runs = pairs_of(n_pairs)
    clean, corrupted = ([source for _, source in runs], [base for base, _ in runs])
    if direction == "noising":
        clean, corrupted = corrupted, clean
    engine = PatchingEngine(model, show_progress=False, batch_size=options.pop("batch_size", None))
    return edges, engine.sweep(encoded(clean, corrupted), edges, [last_position_metric(n_pairs)], direction, **options)


def by_hand(name: str, edges: EdgePatches, which: np.ndarray, pair: int, *, source: Any = None, at: Any = None) -> Any:
    base, other = pairs_of()[pair]
    chosen = [(edges.graph.writers[edges.writers[i]], edges.graph.readers[edges.readers[i]]) for i in which]
    logits = logits_of_edges(edge_model(name), base, other if source is None else source, chosen, at=at)[:, -1]
    return (logits[:, 2 + pair] - logits[:, 8 + pair]).numpy()


def some(edges: EdgePatches, size: int = 30, seed: int = 0) -> np.ndarray:
    """Edges drawn so that each kind of receiver is among them."""
    rng = np.random.default_rng(seed)
    kinds = np.array([reader.kind for reader in edges.graph.readers])[edges.readers]
    drawn = [rng.choice(np.flatnonzero(kinds == kind), size // 5 + 1) for kind in np.unique(kinds)]
    return np.unique(np.concatenate(drawn))


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", EVERY)
def test_some_edges_are_those_of_hooked_runs(name: str) -> None:
    edges, measured = swept(name)
    which = some(edges, 15)
    for pair in range(2):
        np.testing.assert_allclose(measured.patched[0, which, pair], by_hand(name, edges, which, pair), atol=EXACT)
    assert np.abs(measured.patched[0] - measured.corrupted[0]).max() > 1e-3
    assert "resume" in measured.shortcuts


@pytest.mark.parametrize("name", model_parameters(*sorted(NOT_RESUMED)))
def test_a_model_that_is_not_resumed_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(RuntimeError, match="single edges of this model cannot be patched: its blocks are not run"):
        swept(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_edge_is_that_of_a_hooked_run(name: str, direction: Any) -> None:
    edges, measured = swept(name, direction=direction)
    which = np.arange(len(edges))
    for pair in range(2):
        np.testing.assert_allclose(measured.patched[0, :, pair], by_hand(name, edges, which, pair), atol=EXACT)
