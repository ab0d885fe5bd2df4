"""What has to be true of edges, paths and senders by what they are, found by the engine alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch.core.edge_patches import EdgePatches, edge_patches
from actpatch.core.graph import Reader
from actpatch.core.path_patches import head_paths, path_patches
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.edges import EdgeWork, Sent, sent_by
from actpatch.engine.plan import plan
from actpatch.engine.resume import Resumption
from actpatch.metrics.own import DatasetMetric
from actpatch.models.graph import graph_of
from test_suite.engine.test_edge_settings import DIRECTIONS, KINDS, PLAIN, patches_of
from test_suite.engine.test_edges import EXACT
from test_suite.helpers.edges import edge_model
from test_suite.helpers.models import (
    everything_metric,
    fresh_model,
    last_position_metric,
    model_parameters,
    token_pairs,
)
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.thinned import thinned

MODELS = model_parameters(
    *("hooked:learned", "hooked:grouped", "hooked:parallel", "bridge:gpt2"),
    slow=("hooked:attn_only_norm", "hooked:ungrouped", "bridge:llama", "bridge:phi", "bridge+:neox"),
)


def values(model: Any, pairs: Any, patches: Any, direction: Any = "denoising", metric: Any = None) -> Any:
    """What a sweep finds: patched, clean and corrupted metrics."""
    metric = last_position_metric(len(pairs)) if metric is None else metric
    found = engine_on(model).sweep(pairs, patches, [metric], direction)
    return found.patched[0], found.clean[0], found.corrupted[0]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_is_sent_by_a_head_that_writes_nothing_changes_exactly_nothing(direction: Any) -> None:
    model, pairs = fresh_model(PLAIN), token_pairs([9, 7], [(2, 4), (3,)])
    out = model.blocks[1].attn.W_O if PLAIN.startswith("hooked") else model.blocks[1].attn.o.original_component.weight
    with torch.no_grad():
        (out[2] if out.ndim == 3 else out[16:24]).zero_()
    assert not model.blocks[1].attn.W_O[2].any()
    graph = graph_of(model)
    for patches in (
        edge_patches(graph, senders="L1H2"),
        path_patches(graph, ["L1H2 → L2 MLP → logits", "L0H1 → L1H2 v → L2H0 q"]),
        head_paths(graph, ["L2H0 q", "L2H1 v"], "mlps", layers=[1])[2:3],
    ):
        patched, clean, corrupted = values(model, pairs, patches, direction)
        assert (patched == (corrupted if direction == "denoising" else clean)).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_all_that_a_reader_of_the_first_layer_reads_is_its_one_edge(name: str, direction: Any) -> None:
    """The embedding alone is read there: queries, keys, values (and the MLP beside them) become the other run's."""
    model, pairs = edge_model(name), token_pairs([9, 7], [(2, 4), (3,)])
    graph = graph_of(model)
    readers = [reader for reader in graph.readers if reader.layer == 0 and (reader.head is not None)]
    sites = [Site(block_hook(0, reader.kind), head=reader.head) for reader in readers]
    if graph.is_parallel:
        readers, sites = [*readers, graph.readers[graph.reader("m0")]], [*sites, Site(block_hook(0, "mlp_out"))]
    edges = edge_patches(graph, "input", [reader.id for reader in readers])
    expected, *_ = values(model, pairs, [Patch((site,)) for site in sites], direction)
    found, clean, corrupted = values(model, pairs, edges, direction)
    np.testing.assert_allclose(found, expected, atol=EXACT, rtol=0)
    assert np.abs(found - (corrupted if direction == "denoising" else clean)).max() > 1e-3


def together(model: Any, pairs: Any, edges: EdgePatches, direction: Any, metric: Any) -> np.ndarray:
    """The metric where what one reader reads changes by all that these edges send, in rows of the engine's own."""
    (receiver,) = edges.used_readers
    engine, found = engine_on(model), np.full(len(pairs), np.nan)
    with engine.running(pairs, {direction: edges}, True, None) as runs:
        for (chunk,) in runs.chunks():
            each, _ = sent_by(runs.experiment, chunk, edges)
            none = np.zeros(1, dtype=np.int64)
            sent = Sent(each.differences.sum(dim=0, keepdim=True), each.masks, none, none)
            ends = none, np.array([receiver])
            work = EdgeWork(engine.runner, edges.graph, chunk, sent, *ends, runs.max_tokens, runs.exactness.linear)
            logits = chunk.base.logits.clone()
            for batch in plan(work.order, work.starts, chunk.lengths, runs.max_tokens):
                call = engine.runner.begin(chunk.base, batch.start, batch.length)
                rows = Resumption(work.rows(batch, call), None, narrow=False, logits_alone=runs.exactness.logits)
                logits[batch.pairs, batch.start : batch.length] = rows.run(call)
            for i, pair in enumerate(chunk.pairs.tolist()):
                of_pair = logits[i : i + 1, : chunk.lengths[i]]
                found[pair] = float(metric.measure(of_pair, torch.tensor([pair])))
    return found


def input_of(reader: Reader) -> Site:
    """Where all that a reader makes of its input is written: what it reads is all that it is made of."""
    if reader.kind == "logits":
        return reader.site
    return Site(block_hook(reader.layer, "mlp_out" if reader.kind == "mlp" else reader.kind), head=reader.head)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "direction"), thinned(MODELS, DIRECTIONS))
def test_all_edges_of_a_reader_together_are_all_that_it_reads(name: str, direction: Any) -> None:
    """What a reader of a later layer reads differs by what all writers before it change: together they are the other
    run's input, and what the reader makes of that is patched alone."""
    model, pairs, metric = edge_model(name), token_pairs([9, 7, 9], [(2, 4), (3,), (5,)]), everything_metric(3)
    graph = graph_of(model)
    last = [reader for reader in graph.readers if reader.layer == graph.n_layers - 1]
    chosen = [reader for reader in last if reader.head in (None, 1)]
    for reader in chosen:
        edges = edge_patches(graph, receivers=reader.id)
        assert len(edges) > 5
        expected, clean, corrupted = values(model, pairs, [Patch((input_of(reader),))], direction, metric)
        found = together(model, pairs, edges, direction, metric)
        np.testing.assert_allclose(found, expected[0], atol=EXACT, rtol=0)
        assert np.abs(found - (corrupted if direction == "denoising" else clean)).min() > 1e-4
        alone, *_ = values(model, pairs, edges[1:2], direction, metric)
        np.testing.assert_allclose(together(model, pairs, edges[1:2], direction, metric), alone[0], atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_of_a_writer_that_only_the_logits_read_the_edge_is_the_whole_node(name: str, direction: Any) -> None:
    model, pairs = edge_model(name), token_pairs([9, 7], [(2, 4), (3,)])
    graph = graph_of(model)
    last = graph.n_layers - 1
    sites = [Site(block_hook(last, "mlp_out"))] if graph.mlps[last] else []
    writers = [f"m{last}"] if graph.mlps[last] else []
    if graph.is_parallel or not graph.mlps[last]:
        sites = [*(Site(block_hook(last, "z"), head=head) for head in range(graph.heads[last])), *sites]
        writers = [*(f"a{last}.h{head}" for head in range(graph.heads[last])), *writers]
    expected, *_ = values(model, pairs, [Patch((site,)) for site in sites], direction)
    found, clean, corrupted = values(model, pairs, edge_patches(graph, writers, "logits"), direction)
    np.testing.assert_allclose(found, expected, atol=EXACT, rtol=0)
    assert np.abs(found - (corrupted if direction == "denoising" else clean)).min() > 1e-6


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODELS)
def test_where_the_last_token_alone_differs_edges_at_it_are_all_there_is(name: str) -> None:
    """Those into keys and values move the last token too: it reads its own."""
    model, pairs = edge_model(name), token_pairs([9, 7], [(8,), (6,)])
    graph = graph_of(model)
    everywhere, _, corrupted = values(model, pairs, edge_patches(graph))
    places = [[Site("", position=-1)], [Site("", position=-2)]]
    there = values(model, pairs, edge_patches(graph, places=places))[0].reshape(-1, 2, 2)
    np.testing.assert_allclose(there[:, 0], everywhere, atol=EXACT, rtol=0)
    assert (there[:, 1] == corrupted).all()
    assert np.abs(everywhere - corrupted).max() > 1e-3


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODELS)
def test_the_embedding_of_one_changed_token_is_read_there_alone(name: str) -> None:
    model, pairs = edge_model(name), token_pairs([9, 7], [(3,), (3,)])
    graph = graph_of(model)
    everywhere, _, corrupted = values(model, pairs, edge_patches(graph, "input"))
    places = [[Site("", position=at)] for at in (2, 3, 4)]
    found = values(model, pairs, edge_patches(graph, "input", places=places))[0].reshape(-1, 3, 2)
    np.testing.assert_allclose(found[:, 1], everywhere, atol=EXACT, rtol=0)
    assert (found[:, [0, 2]] == corrupted).all()


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_changed_token_nothing_changes(kind: str) -> None:
    def before(logits: Tensor, pair: int) -> float:
        return float(logits[0, : (2, 3)[pair]].sum())

    pairs = token_pairs([9, 7], [(2, 4), (3,)])
    patched, _, corrupted = values(
        edge_model(PLAIN), pairs, patches_of(PLAIN, kind), metric=DatasetMetric(before, (0, 1))
    )
    assert (patched == corrupted).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("through", ["nothing", "mlps"])
def test_a_head_that_sends_to_one_receiver_through_nothing_is_an_edge(direction: Any, through: Any) -> None:
    """Through MLPs too, where none lies between the two."""
    model, pairs = edge_model(PLAIN), token_pairs([9, 7], [(2, 4), (3,)])
    graph, metric = graph_of(model), everything_metric(2)
    for receiver in ("L2H1 k", "L1 MLP", "logits") if through == "nothing" else ("L0 MLP", "L1 MLP"):
        layers = None if through == "nothing" else [int(receiver[1])]
        heads = head_paths(graph, receiver, through, layers=layers)
        before = [number for number in heads.senders if number < graph.n_writers_before[graph.reader(receiver)]]
        alone = edge_patches(graph, [graph.writers[number].id for number in before], receiver)
        found, *_ = values(model, pairs, heads, direction, metric)
        expected, *_ = values(model, pairs, alone, direction, metric)
        np.testing.assert_allclose(found[: len(expected)], expected, atol=EXACT, rtol=0)


def test_edges_that_are_asked_for_in_any_order_are_the_same() -> None:
    model, pairs = edge_model(PLAIN), token_pairs([9, 7], [(2, 4), (3,)])
    edges = edge_patches(graph_of(model))
    order = np.random.default_rng(1).permutation(len(edges))
    expected, *_ = values(model, pairs, edges)
    found, *_ = values(model, pairs, edges.taken(order))
    np.testing.assert_allclose(found, expected[order], atol=EXACT, rtol=0)
