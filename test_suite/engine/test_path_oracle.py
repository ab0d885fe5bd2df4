"""What paths and path patching are held to, held itself to what has to be true of it."""

from __future__ import annotations

import pytest
import torch

from actpatch.core.graph import Reader, Writer
from test_suite.engine.test_edge_oracle import TWO_WAYS, assert_near
from test_suite.helpers.edges import BRIDGE_EDGE_MODELS, HOOKED_EDGE_MODELS, edge_model, prompts, seen_graph, some_edges
from test_suite.helpers.models import model_parameters
from test_suite.oracles.edges import (
    W_O,
    activations,
    change_of,
    logits_of_edge,
    logits_of_edges,
    logits_with_changed_input,
    noted,
    writing,
)
from test_suite.oracles.one_prompt import run
from test_suite.oracles.paths import logits_of_path_patching, logits_of_paths

FAST = (
    *(f"hooked:{name}" for name in ("learned", "grouped", "parallel", "attn_only_norm")),
    "bridge:gpt2",
    "bridge:llama",
)
MODELS = model_parameters(*FAST, slow=[name for name in HOOKED_EDGE_MODELS + BRIDGE_EDGE_MODELS if name not in FAST])
ATTENTION_ONLY = model_parameters("hooked:attn_only", "hooked:attn_only_norm")
SEQUENTIAL = model_parameters("hooked:learned", "hooked:grouped", "bridge:gpt2", "bridge:llama")
LAST = 2
"""The last layer of the small models."""


@pytest.mark.parametrize("name", MODELS)
def test_a_path_of_length_one_is_its_edge(name: str) -> None:
    model, (base, source) = edge_model(name), prompts()
    edges = some_edges(seen_graph(name))[::4]
    assert torch.equal(logits_of_paths(model, base, source, edges), logits_of_edges(model, base, source, edges))


@pytest.mark.parametrize("name", MODELS)
def test_a_path_whose_first_writer_does_not_differ_changes_nothing(name: str) -> None:
    model, (base, _) = edge_model(name), prompts()
    logits, path = run(model, base), [Writer("head", 0, 1), key_of(name, 1, 2), Reader("q", LAST, 3), logits_reader()]
    assert_near(logits_of_paths(model, base, base, [path])[0], logits, TWO_WAYS)


@pytest.mark.parametrize("name", MODELS)
def test_where_only_the_logits_read_the_last_component_the_path_goes_on_by_itself(name: str) -> None:
    """The edge into it and the path through it to the logits are then the same."""
    model, graph, (base, source) = edge_model(name), seen_graph(name), prompts()
    # In a sequential block the MLP reads the heads: it alone is read by nothing but the logits.
    last = Reader("mlp", LAST) if graph.mlps[LAST] else key_of(name, LAST, 2)
    paths = [[Writer("input"), last], [Writer("head", 0, 1), Reader("q", 1, 3), last]]
    found = logits_of_paths(model, base, source, paths)
    longer = logits_of_paths(model, base, source, [[*path, logits_reader()] for path in paths])
    assert_near(longer, found)
    assert (found - run(model, base)).abs().amax(dim=(1, 2)).min() > 1e-7


@pytest.mark.parametrize("name", MODELS)
def test_what_goes_on_is_what_a_run_from_the_edge_writes(name: str) -> None:
    """The path through a head's queries, the change of its output read off the patched run by all heads' z."""
    model, (base, source) = edge_model(name), prompts()
    held, other = activations(model, base), activations(model, source)
    writer = Writer("head", 0, 1)
    queries = "blocks.1.attn.hook_q"
    alone = change_of(model, held, other, writer)
    shifted = [("blocks.1.hook_resid_pre", lambda value, hook: value + alone)]
    q = noted(model, base, [queries], shifted)[queries]
    z = "blocks.1.attn.hook_z"
    changed = noted(model, base, [z], [writing(queries, q, 3)])[z] - held[z]
    assert_near(changed[:, :3], torch.zeros_like(changed[:, :3]), TWO_WAYS)
    onto = logits_with_changed_input(model, base, Reader("q", LAST, 0), changed[:, 3] @ W_O(model, 1)[3])
    assert_near(logits_of_paths(model, base, source, [[writer, Reader("q", 1, 3), Reader("q", LAST, 0)]])[0], onto)


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge:llama"))
def test_of_shared_keys_all_heads_go_on_or_the_one_that_is_named(name: str) -> None:
    """Into the logits, where changes add up before the normalization: the heads' streams together are the group's."""
    model, (base, source) = edge_model(name), prompts()
    shared = Reader("k", LAST, 1, is_key_value_head=True)
    stream = f"blocks.{LAST}.hook_resid_post"
    through = [[Writer("input"), shared, Writer("head", LAST, head), logits_reader()] for head in (2, 3)]
    both, *each = logits_of_paths(model, base, source, [[Writer("input"), shared, logits_reader()], *through])
    assert (each[0] - each[1]).abs().max() > 1e-4
    held = noted(model, base, [stream])[stream]
    z = f"blocks.{LAST}.attn.hook_z"
    keys = f"blocks.{LAST}.attn.hook_k"
    other = activations(model, source)
    moved = change_of(model, activations(model, base), other, Writer("input"))
    made = noted(model, base, [keys], [(f"blocks.{LAST}.hook_resid_pre", lambda value, hook: value + moved)])[keys]
    changed = noted(model, base, [z], [writing(keys, made, 1)])[z] - noted(model, base, [z])[z]
    onto = [changed[:, head] @ W_O(model, LAST)[head] for head in (2, 3)]
    for found, change in zip((both, *each), (onto[0] + onto[1], *onto)):
        assert_near(found, run(model, base, [writing(stream, held + change)]))


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODELS)
def test_with_nothing_between_path_patching_into_one_receiver_is_the_edge(name: str) -> None:
    """Found without the edge's ways: by freezing what lies between."""
    model, (base, source) = edge_model(name), prompts()
    for writer, reader in some_edges(seen_graph(name)):
        if writer.kind == "head" and writer.head is not None:
            found = logits_of_path_patching(model, base, source, (writer.layer, writer.head), [reader])
            assert_near(found, logits_of_edge(model, base, source, writer, reader))


@pytest.mark.parametrize("name", ATTENTION_ONLY)
def test_without_mlps_it_is_the_same_what_they_do(name: str) -> None:
    model, (base, source) = edge_model(name), prompts()
    receivers = [Reader("q", 1, 0), Reader("k", LAST, 2), Reader("v", LAST, 3)]
    nothing, mlps = (
        logits_of_path_patching(model, base, source, (0, 1), receivers, how) for how in ("nothing", "mlps")
    )
    assert torch.equal(nothing, mlps)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_through_mlps_the_next_block_reads_what_the_mlp_makes_of_the_head_too(name: str) -> None:
    model, (base, source) = edge_model(name), prompts()
    head, mlp = Writer("head", 1, 2), Reader("mlp", 1)
    held, other = activations(model, base), activations(model, source)
    change = change_of(model, held, other, head)
    made = "blocks.1.hook_mlp_out"
    through = noted(model, base, [made], [("blocks.1.hook_attn_out", lambda value, hook: value + change)])
    carried = change_of(model, held, through, Writer("mlp", mlp.layer))
    receiver = Reader("q", LAST, 3)
    found = logits_of_path_patching(model, base, source, (1, 2), [receiver], "mlps")
    assert_near(found, logits_with_changed_input(model, base, receiver, change + carried))
    direct = logits_of_path_patching(model, base, source, (1, 2), [receiver], "nothing")
    assert (found - direct).abs().max() > 1e-4


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_receivers_get_together_what_each_of_them_makes_by_itself(name: str) -> None:
    """Queries, keys and values of one head, all three: its output is then what it makes of the changed stream."""
    model, (base, source) = edge_model(name), prompts()
    receivers = [Reader("q", LAST, 1), key_of(name, LAST, 0), key_of(name, LAST, 0, "v")]
    change = change_of(model, activations(model, base), activations(model, source), Writer("head", 1, 2))
    names = [f"blocks.{LAST}.attn.hook_{kind}" for kind in "qkv"]
    made = noted(model, base, names, [(f"blocks.{LAST}.hook_resid_pre", lambda value, hook: value + change)])
    written = [writing(name, made[name], receiver.head) for name, receiver in zip(names, receivers)]
    assert_near(logits_of_path_patching(model, base, source, (1, 2), receivers), run(model, base, written))


@pytest.mark.parametrize("through", ["nothing", "mlps"])
@pytest.mark.parametrize("name", MODELS)
def test_receivers_that_read_no_later_than_the_sender_writes_get_nothing(name: str, through: str) -> None:
    model, (base, source) = edge_model(name), prompts()
    receivers = [Reader("q", 1, 0), key_of(name, 1, 2), key_of(name, 0, 1, "v")]
    assert_near(logits_of_path_patching(model, base, source, (1, 2), receivers, through), run(model, base), TWO_WAYS)


@pytest.mark.parametrize("through", ["nothing", "mlps"])
@pytest.mark.parametrize("name", MODELS)
def test_path_patching_changes_nothing_before_the_position_of_the_sender(name: str, through: str) -> None:
    model, (base, source) = edge_model(name), prompts()
    logits = run(model, base)
    found = logits_of_path_patching(model, base, source, (0, 1), [Reader("q", 1, 0)], through, at=[4])
    assert_near(found[:4], logits[:4], TWO_WAYS)
    assert (found[4:] - logits[4:]).abs().max() > 1e-6


def logits_reader() -> Reader:
    return Reader("logits", LAST)


def key_of(name: str, layer: int, head: int, kind: str = "k") -> Reader:
    """The reader of the keys (or values) of a head: where they are shared, of its group."""
    graph = seen_graph(name)
    group = head * graph.key_value_heads[layer] // graph.heads[layer]
    return Reader(kind, layer, group if graph.is_grouped else head, graph.is_grouped)  # type: ignore[arg-type]
