"""Edges, paths and heads as senders, all of one value of patches: hooked runs of one prompt for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actpatch.core.edge_patches import EdgePatches, GraphPatches
from actpatch.core.graph import Reader, Writer
from actpatch.core.path_patches import HeadPaths, PathPatches
from test_suite.oracles.edges import Activations, Hooks, logits_of_edge
from test_suite.oracles.one_prompt import run
from test_suite.oracles.paths import logits_of_path_patching, logits_of_paths


def logits_of_patches(
    model: Any,
    patches: GraphPatches,
    base: Tensor,
    source: Tensor | Activations,
    *,
    at: Sequence[Sequence[int] | None] = (None,),
    hooks: Hooks = (),
) -> list[Tensor]:
    """Logits of the base with each patch alone, each [pos, d_vocab].

    Args:
        base: tokens of the run that is patched.
        source: tokens of the other run; or what the writers are read from in it.
        at: the positions of each place of the patches; None for all.
        hooks: part of the base.
    """
    graph = patches.graph
    if isinstance(patches, EdgePatches):
        return [
            logits_of_edge(model, base, source, graph.writers[u], graph.readers[v], at=at[column], hooks=hooks)
            for u, v, column in zip(patches.writers, patches.readers, patches.columns)
        ]
    (where,) = at
    if isinstance(patches, PathPatches):
        assert where is None
        return list(logits_of_paths(model, base, source, [nodes(patches, i) for i in range(len(patches))], hooks=hooks))
    assert isinstance(patches, HeadPaths)
    found = []
    for number in patches.senders:
        reached = [graph.readers[v] for v in patches.receivers if number < graph.n_writers_before[v]]
        sender = graph.writers[number]
        assert sender.head is not None
        found.append(
            logits_of_path_patching(
                model, base, source, (sender.layer, sender.head), reached, patches.through, at=where, hooks=hooks
            )
            if reached
            else run(model, base, hooks)
        )
    return found


def nodes(patches: PathPatches, index: int) -> list[Writer | Reader]:
    """The nodes of a path: each reader, and the writer that goes on from there."""
    path, graph = patches.paths[index], patches.graph
    found: list[Writer | Reader] = [graph.writers[path.sender]]
    for hop in path.hops:
        found.append(graph.readers[hop.reader])
        found += [] if hop.writer is None else [graph.writers[hop.writer]]
    return found


def mean_activations(runs: Sequence[dict[str, Tensor]], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of what these runs hold; zeros for none."""
    if not runs:
        return {name: torch.zeros_like(value) for name, value in like.items()}
    return {name: torch.stack([held[name] for held in runs]).mean(dim=0) for name in like}
