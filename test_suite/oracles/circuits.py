"""A circuit's run rebuilt by hand: reader by reader, each from what the writers before it give in the run so far.

One prompt at a time, one run of the model for every reader; nothing is cached over the run. `from_cache=True` is the
classic mistake, of which tests show that it is one: writers as they were recorded of the run without patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actpatch.core.edge_patches import edge_patches
from actpatch.core.graph import Graph
from test_suite.oracles.edges import activations, made_at, noted, reading, writing, written
from test_suite.oracles.one_prompt import run


def logits_of_circuit(
    model: Any,
    graph: Graph,
    base: Tensor,
    source: Tensor,
    kept: np.ndarray,
    *,
    at: Sequence[Sequence[int]] | None = None,
    partners: Mapping[int, int] | None = None,
    from_cache: bool = False,
) -> Tensor:
    """Logits of one prompt, [pos, d_vocab], where readers read of senders outside the circuit what these write in the
    source.

    Args:
        kept: which edges the circuit has, in the order of `edge_patches(graph)`; a row for each place, where some are
            given.
        at: the positions of each place; None for all positions.
        partners: position in the base -> the one in the source that stands for it: nothing is written at others. None
            where each stands for that of its own number.
    """
    is_in = np.zeros((len(base), len(edge_patches(graph))), dtype=bool)
    for place, of_place in zip([range(len(base))] if at is None else at, kept.reshape(-1, is_in.shape[1])):
        is_in[list(place)] |= of_place
    edges = edge_patches(graph)
    held = activations(model, source)
    if partners is not None:
        is_in[[position for position in range(len(base)) if position not in partners]] = True
        taken = [partners.get(position, 0) for position in range(len(base))]
        held = {name: value[taken] for name, value in held.items()}
    at_base = activations(model, base)
    hooks: list[Any] = []
    for number, reader in enumerate(graph.readers):
        of_reader = np.flatnonzero((edges.readers == number) & ~is_in.all(axis=0))
        if not len(of_reader):
            continue
        now = at_base if from_cache else activations(model, base, hooks)
        change = sum(
            (
                written(model, held, graph.writers[edges.writers[edge]])
                - written(model, now, graph.writers[edges.writers[edge]])
            )
            * torch.from_numpy(~is_in[:, edge])[:, None]
            for edge in of_reader
        )
        assert isinstance(change, Tensor)
        if reader.kind == "logits":
            with reading(model, base, reader, change, hooks=hooks) as last:
                return run(model, base, last)
        name = made_at(reader)
        with reading(model, base, reader, change, hooks=hooks) as changed:
            made = noted(model, base, [name], changed)[name]
        hooks.append(writing(name, made, reader.head))
    return run(model, base, hooks)
