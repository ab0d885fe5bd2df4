"""Is the floor of the benchmarks what it claims to be?  Counted from shapes there, by torch's own counter here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from actpatch.core.edge_patches import edge_patches
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.models.graph import graph_of
from benchmarks.floor import floor_flops
from benchmarks.rows import BY_POSITION, Task
from test_suite.helpers.models import fresh_hooked, last_position_metric, needs_hooked, small_model, token_pairs

LENGTH = 14


def counted(run: Callable[[], Any]) -> int:
    """Operations of the matrix products in a run."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


@needs_hooked
@pytest.mark.parametrize("name", ["hooked:learned", "hooked:grouped"])
def test_the_floor_of_no_patches_is_two_forward_passes_less_what_nothing_reads(name: str) -> None:
    model = small_model(name)
    cfg, last = model.cfg, model.blocks[-1]
    todo = Task(token_pairs([LENGTH], [(0,)]), [], last_position_metric(1))
    mlp = [last.mlp.W_in, last.mlp.W_out, *([last.mlp.W_gate] if cfg.gated_mlp else [])]
    unread = sum(weight.numel() for weight in (last.attn.W_Q, last.attn.W_O, *mlp)) * 2 * (LENGTH - 1)
    per_key = 4 * cfg.n_heads * cfg.d_head
    masked = per_key * (cfg.n_layers - 1) * (LENGTH * (LENGTH - 1) // 2) + per_key * LENGTH * (LENGTH - 1)
    unembedded = 2 * cfg.d_model * (LENGTH * cfg.d_vocab - 2)
    forward_pass = counted(lambda: model(todo.pairs.clean[0][None]))
    assert floor_flops(cfg, todo) == 2 * (forward_pass - unread - masked - unembedded)


@functools.cache
def deep_model() -> Any:
    """Twelve layers, narrow: as many as GPT-2 small has, so that the share of the layer of entry is that of a sweep."""
    return fresh_hooked(n_layers=12, d_model=128, n_heads=8, d_head=16, d_mlp=512)


MOST_BEYOND = {"z": 0.04, "pattern": 0.10, "resid_pre": 0.07, "attn_out": 0.18, "mlp_out": 0.08, "edges": 0.08}
"""Share of the floor that the engine may compute beyond it for one more patch. It computes scores that the causal mask
hides, all queries of the last layer and, in the layer where a row enters, also the tokens that its patch leaves alone;
of attn_out by position those are most of an MLP. For an edge into one of queries, keys and values it projects all three
of them, and carries what the embedding changes at few positions at all from the first on."""


@pytest.mark.quick(1)
@needs_hooked
@pytest.mark.parametrize(
    "component",
    ["z", "resid_pre", *(pytest.param(c, marks=pytest.mark.slow) for c in ("pattern", "attn_out", "mlp_out"))],
)
def test_the_engine_computes_all_of_the_floor_and_little_beyond(component: str) -> None:
    model, pairs = deep_model(), token_pairs([LENGTH] * 8, [(2, 4, 9)] * 8)
    by_position = component in BY_POSITION

    def counts(where: Sequence[int]) -> tuple[float, float]:
        narrowed = [{"position" if by_position else "head": at} for at in where]
        patches = [Patch((Site(block_hook(layer, component), **at),)) for layer in range(12) for at in narrowed]
        todo = Task(pairs, patches, last_position_metric(len(pairs)))
        engine = PatchingEngine(model, show_progress=False)
        return counted(lambda: engine.sweep(pairs, patches, [todo.metric])), floor_flops(model.cfg, todo)

    ours, floor = counts((1, 4, 10, 12, 13) if by_position else (0, 2, 4, 5))
    few, floor_of_few = counts((13,) if by_position else (0,))  # recorded and checked alike, which is no floor's matter
    assert 1 <= (ours - few) / (floor - floor_of_few) <= 1 + MOST_BEYOND[component]
    assert few > floor_of_few


@pytest.mark.slow
@needs_hooked
def test_the_engine_computes_all_of_the_floor_of_edges_and_little_beyond() -> None:
    model, pairs = deep_model(), token_pairs([LENGTH] * 2, [(2, 4, 9)] * 2)
    graph, metric = graph_of(model), last_position_metric(2)

    def counts(senders: list[str]) -> tuple[float, float]:
        edges = edge_patches(graph, senders)
        engine = PatchingEngine(model, show_progress=False)
        return counted(lambda: engine.sweep(pairs, edges, [metric])), floor_flops(model.cfg, Task(pairs, edges, metric))

    few = ["L0H1", "L3 MLP", "L11H2"]  # recorded and checked alike, which is no floor's matter
    ours, floor = counts([*few, "L0 MLP", "L2H0", "L2H5", "L5H7", "L8 MLP"])
    of_few, floor_of_few = counts(few)
    assert 1 <= (ours - of_few) / (floor - floor_of_few) <= 1 + MOST_BEYOND["edges"]
    assert of_few > floor_of_few


@needs_hooked
def test_the_floor_of_an_edge_is_that_of_what_it_makes_of_its_receiver() -> None:
    """An edge into an MLP costs that MLP and a change of its output; one into the logits a part of the unembedding."""
    model, pairs = deep_model(), token_pairs([LENGTH], [(2, 4, 9)])
    graph, metric = graph_of(model), last_position_metric(1)

    def floor(patches: Sequence[Patch]) -> float:
        return floor_flops(model.cfg, Task(pairs, patches, metric)) - nothing

    def edge(sender: str, receiver: str) -> float:
        return floor(edge_patches(graph, sender, receiver))

    nothing = 0.0
    nothing = floor([])
    cfg, changed = model.cfg, LENGTH - 2
    mlp, head = 4 * cfg.d_model * cfg.d_mlp, 2 * cfg.d_model * cfg.d_head
    above = floor([Patch((Site(block_hook(5, "mlp_out")),))])
    assert edge("L3 MLP", "L5 MLP") == changed * mlp + above
    assert edge("L3H1", "L5 MLP") == changed * (head + mlp) + above
    assert edge("L3 MLP", "logits") == 4 * cfg.d_model
    assert edge("L3 MLP", "L11 MLP") == mlp + 4 * cfg.d_model
    assert edge("input", "logits") == edge("input", "L11H3 q") == 0  # the last token is the same
    z = floor([Patch((Site(block_hook(5, "z"), head=0),))])
    for kind, n_products in (
        ("q", 2 * 102),
        ("k", 102 + 78),
        ("v", 78),
    ):  # keys seen from 2 on: 3 + ... + 14, or their own
        assert edge("L3 MLP", f"L5H0 {kind}") == z + changed * head + n_products * 2 * cfg.d_head
