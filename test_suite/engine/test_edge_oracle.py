"""What edges are held to, held itself to what has to be true of it: theorems, other ways, and TransformerLens."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from actpatch.core.graph import Reader, Writer
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.edges import (
    BRIDGE_EDGE_MODELS,
    FIRST_CHANGED,
    HOOKED_EDGE_MODELS,
    edge_model,
    every_edge,
    is_before,
    prompts,
    seen_graph,
    some_edges,
    writers_before,
)
from test_suite.helpers.models import encoded, last_position_metric, model_parameters
from test_suite.oracles.edges import (
    EMBEDDED,
    activations,
    change_of,
    logits_of_edge,
    logits_of_edges,
    logits_with_changed_input,
    made_at,
    noted,
    reading,
    writing,
    written,
)
from test_suite.oracles.one_prompt import run
from test_suite.oracles.plain import measured
from test_suite.oracles.transformer_lens import HAS_DIRECT_PATHS, direct_paths

TWO_WAYS = 1e-12
"""How far two ways to the same logits may be apart, relative to the largest one."""

_HOOKED = ("learned", "grouped", "parallel", "attn_only_norm", "shortformer")
FAST = (*(f"hooked:{name}" for name in _HOOKED), "bridge:gpt2", "bridge:llama")
SLOW = [name for name in HOOKED_EDGE_MODELS + BRIDGE_EDGE_MODELS if name not in FAST]
MODELS = model_parameters(*FAST, slow=SLOW)
HOOKED = model_parameters(
    *(name for name in FAST if name in HOOKED_EDGE_MODELS), slow=[name for name in SLOW if name in HOOKED_EDGE_MODELS]
)
DIRECT = model_parameters("bridge:gpt2", "bridge:llama", slow=("bridge+:gpt2", "bridge+:llama", "bridge:neox"))


def assert_near(found: Tensor, expected: Tensor, within: float = EXACT) -> None:
    """Alike up to rounding, relative to the largest number expected."""
    assert float((found - expected).abs().max()) <= within * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("name", MODELS)
def test_what_the_writers_write_is_all_there_is_in_the_stream(name: str) -> None:
    """But for biases of the attention's output, which no writer writes: those are the same at every position."""
    model, graph, (base, _) = edge_model(name), seen_graph(name), prompts()
    held = activations(model, base)
    last = f"blocks.{graph.n_layers - 1}.hook_resid_post"
    rest = noted(model, base, [last])[last] - sum(written(model, held, writer) for writer in graph.writers)
    assert_near(rest, rest[:1].expand_as(rest))


@pytest.mark.parametrize("name", HOOKED)
def test_a_head_writes_its_result(name: str) -> None:
    model, graph, (base, _) = edge_model(name), seen_graph(name), prompts()
    names = [f"blocks.{layer}.attn.hook_result" for layer in range(graph.n_layers)]
    held = activations(model, base)
    try:
        model.set_use_attn_result(True)
        results = noted(model, base, names)
    finally:
        model.set_use_attn_result(False)
    for writer in graph.writers:
        if writer.kind == "head":
            assert_near(written(model, held, writer), results[names[writer.layer]][:, writer.head])


@pytest.mark.parametrize("name", MODELS)
def test_edges_go_from_writers_to_the_readers_after_them(name: str) -> None:
    graph = seen_graph(name)
    assert [len(writers_before(graph, reader)) for reader in graph.readers] == graph.n_writers_before.tolist()
    for number, reader in enumerate(graph.readers):
        assert [is_before(graph, writer, reader) for writer in graph.writers] == [
            i < graph.n_writers_before[number] for i in range(len(graph.writers))
        ]


@pytest.mark.parametrize("name", MODELS)
def test_edges_whose_sender_does_not_differ_change_nothing(name: str) -> None:
    model, (base, _) = edge_model(name), prompts()
    edges = some_edges(seen_graph(name))
    assert_near(logits_of_edges(model, base, base, edges), run(model, base).expand(len(edges), -1, -1), TWO_WAYS)


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", MODELS)
def test_every_edge_changes_the_logits_from_the_first_changed_token_on(name: str) -> None:
    model, (base, source) = edge_model(name), prompts()
    edges = some_edges(seen_graph(name))
    logits = run(model, base)
    changes = logits_of_edges(model, base, source, edges) - logits
    assert_near(changes[:, :FIRST_CHANGED], torch.zeros_like(changes[:, :FIRST_CHANGED]), TWO_WAYS)
    assert (changes[:, FIRST_CHANGED:].abs().amax(dim=(1, 2)) > 1e-6 * logits.abs().max()).all()


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", MODELS)
def test_all_edges_of_a_reader_together_are_all_that_it_reads(name: str) -> None:
    """Queries, keys, values and the MLP's output are then the other run's, and the logits too."""
    model, graph, (base, source) = edge_model(name), seen_graph(name), prompts()
    held, other = activations(model, base), activations(model, source)
    for reader in graph.readers:
        change = torch.stack([change_of(model, held, other, writer) for writer in writers_before(graph, reader)])
        found = logits_with_changed_input(model, base, reader, change.sum(dim=0))
        if reader.kind == "logits":
            assert_near(found, run(model, source))
        else:
            made = noted(model, source, [made_at(reader)])[made_at(reader)]
            assert_near(found, run(model, base, [writing(made_at(reader), made, reader.head)]))


@pytest.mark.parametrize("name", MODELS)
def test_an_edge_into_the_logits_is_added_to_the_last_stream(name: str) -> None:
    model, graph, (base, source) = edge_model(name), seen_graph(name), prompts()
    held, other = activations(model, base), activations(model, source)
    last = f"blocks.{graph.n_layers - 1}.hook_resid_post"
    stream = noted(model, base, [last])[last]
    edges = some_edges(graph, kinds=["logits"])
    for (writer, _), found in zip(edges, logits_of_edges(model, base, source, edges)):
        changed = (stream + change_of(model, held, other, writer))[None]
        with torch.no_grad():
            read = model.unembed(model.ln_final(changed) if hasattr(model, "ln_final") else changed)[0]
        cap = getattr(model.cfg, "output_logits_soft_cap", 0) or 0
        assert_near(found, cap * torch.tanh(read / cap) if cap > 0 else read)


@pytest.mark.parametrize("name", MODELS)
def test_of_a_writer_that_only_the_logits_read_the_edge_is_the_whole_node(name: str) -> None:
    model, graph, (base, source) = edge_model(name), seen_graph(name), prompts()
    logits, other = graph.readers[-1], activations(model, source)
    only = [w for w in graph.writers if sum(is_before(graph, w, reader) for reader in graph.readers) == 1]
    assert {writer.kind for writer in only} >= ({"mlp"} if graph.mlps[-1] else {"head"})
    for writer, found in zip(only, logits_of_edges(model, base, source, [(writer, logits) for writer in only])):
        assert_near(found, run(model, base, [node_patch(writer, other)]))


@pytest.mark.parametrize("name", HOOKED)
def test_all_edges_of_a_writer_together_are_the_whole_node(name: str) -> None:
    model, graph, (base, source) = edge_model(name), seen_graph(name), prompts()
    held, other = activations(model, base), activations(model, source)
    for writer in graph.writers:
        change = change_of(model, held, other, writer)
        hooks: list[Any] = []
        with contextlib.ExitStack() as stack:
            for reader in graph.readers:
                if is_before(graph, writer, reader):
                    hooks += stack.enter_context(reading(model, base, reader, change, way="split"))
            found = run(model, base, hooks)
        assert_near(found, run(model, base, [node_patch(writer, other)]))


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", HOOKED)
def test_the_switches_and_two_runs_agree(name: str) -> None:
    model, (base, source) = edge_model(name), prompts()
    edges = some_edges(seen_graph(name))
    for at in (None, [2, -1]):
        split, two_runs = (logits_of_edges(model, base, source, edges, at=at, way=way) for way in ("split", "two_runs"))
        assert_near(two_runs, split, TWO_WAYS)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOOKED)
def test_the_switches_and_two_runs_agree_on_every_edge(name: str) -> None:
    model, (base, source) = edge_model(name), prompts()
    edges = every_edge(seen_graph(name))
    split, two_runs = (logits_of_edges(model, base, source, edges, way=way) for way in ("split", "two_runs"))
    assert_near(two_runs, split, TWO_WAYS)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODELS)
def test_positions_are_those_at_which_the_reader_reads(name: str) -> None:
    """Queries, MLPs and logits of one position change nothing before it; the logits elsewhere stay."""
    model, graph, (base, source) = edge_model(name), seen_graph(name), prompts()
    at = 4
    logits = run(model, base)
    edges = some_edges(graph)
    found = logits_of_edges(model, base, source, edges, at=[at])
    whole = logits_of_edges(model, base, source, edges)
    for (_, reader), there, everywhere in zip(edges, found, whole):
        assert_near(there[:at], logits[:at], TWO_WAYS)
        if reader.kind == "logits" or (reader.layer == graph.n_layers - 1 and reader.kind in ("q", "mlp")):
            assert_near(there[at + 1 :], logits[at + 1 :], TWO_WAYS)
            assert_near(there[at], everywhere[at], TWO_WAYS)


@pytest.mark.skipif(not HAS_DIRECT_PATHS, reason="TransformerLens 3 has no direct paths")
@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("name", DIRECT)
def test_direct_paths_of_transformer_lens_are_edges_between_heads(name: str, component: Any) -> None:
    """Its metric is that of the corrupted run, into which the clean head's part is put at all positions."""
    model, graph, (base, source) = edge_model(name), seen_graph(name), prompts()
    if component != "q" and graph.is_grouped:
        pytest.skip("it refuses keys and values that heads share")
    metric, sender = last_position_metric(1), Writer("head", 0, 2)
    theirs = direct_paths(model, encoded([source], [base]), metric, (0, 2), component)
    edges = [(sender, Reader(component, layer, head)) for layer in (1, 2) for head in range(graph.heads[layer])]
    ours = [measured(metric, [logits])[0] for logits in logits_of_edges(model, base, source, edges)]
    assert torch.isnan(theirs[0]).all()
    assert_near(torch.tensor(ours, dtype=torch.float64), theirs[1:].flatten())


@pytest.mark.parametrize("name", MODELS)
def test_what_writers_are_read_from_may_be_given_instead_of_the_source(name: str) -> None:
    """For zeros: what a head writes into the logits is then taken from the last stream."""
    model, graph, (base, source) = edge_model(name), seen_graph(name), prompts()
    edges = some_edges(graph)[::3]
    given = logits_of_edges(model, base, activations(model, source), edges)
    assert torch.equal(given, logits_of_edges(model, base, source, edges))
    held = activations(model, base)
    zeros = {name: torch.zeros_like(value) for name, value in held.items()}
    last = f"blocks.{graph.n_layers - 1}.hook_resid_post"
    writer = Writer("head", 1, 3)
    without = noted(model, base, [last])[last] - written(model, held, writer)
    found = logits_of_edge(model, base, zeros, writer, graph.readers[-1])
    assert_near(found, run(model, base, [writing(last, without)]))


@pytest.mark.parametrize("name", MODELS)
def test_hooks_are_part_of_the_base(name: str) -> None:
    """With the embeddings of other tokens the edges are those of a base of these tokens."""
    model, (base, source) = edge_model(name), prompts()
    edges = some_edges(seen_graph(name))[::3]
    other = base.clone()
    other[3] = 22
    hooks = [writing("hook_embed", noted(model, other, ["hook_embed"])["hook_embed"])]
    found = logits_of_edges(model, base, source, edges, hooks=hooks)
    assert_near(found, logits_of_edges(model, other, source, edges), TWO_WAYS)


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_left_as_found(name: str) -> None:
    model, (base, source) = edge_model(name), prompts()
    before = run(model, base)
    logits_of_edges(model, base, source, some_edges(seen_graph(name))[:4])
    assert torch.equal(run(model, base), before)


def node_patch(writer: Writer, other: dict[str, Tensor]) -> Any:
    """Writes all that a writer writes in the other run."""
    if writer.kind == "input":
        return writing(EMBEDDED, other[EMBEDDED])
    name = f"blocks.{writer.layer}." + ("hook_mlp_out" if writer.kind == "mlp" else "attn.hook_z")
    return writing(name, other[name], writer.head)
