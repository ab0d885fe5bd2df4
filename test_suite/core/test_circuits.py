"""Circuits are sets of edges, pruned to those on a way from the input to the logits, and stored as they are."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actpatch import Circuit, edge_patches
from actpatch.core.graph import Graph
from test_suite.core.test_graph import graph, graphs, naive_edges

GPT2 = graph(12, 12)
SMALL = Graph("m", (2, 2), (2, 2), (True, False))
"""Two layers of two heads, the first with an MLP; 39 edges."""
GROUPED = Graph("g", (2, 4), (2, 2), (False, False))


def random_circuit(of: Graph, seed: int, share: float = 0.3) -> Circuit:
    return Circuit(of, np.random.default_rng(seed).random(len(of)) < share)


def components(of: Graph, edge_id: str) -> tuple[str, list[str]]:
    """What sends an edge and what it goes into, keys and values that heads share into each of these."""
    sender, receiver = edge_id.split("->")
    node = receiver.partition("<")[0]
    layer, found, shared = node.partition(".kv")
    if not found:
        return sender, [node]
    number = int(layer[1:])
    size = of.heads[number] // of.key_value_heads[number]
    return sender, [f"{layer}.h{head}" for head in range(int(shared) * size, (int(shared) + 1) * size)]


def naively_pruned(circuit: Circuit) -> list[str]:
    """One round of leaving out after another, until nothing changes."""
    left = circuit.edge_ids
    while True:
        ends = {name: components(circuit.graph, name) for name in left}
        fed = {"input"} | {node for _, into in ends.values() for node in into}
        leading = {"logits"} | {sender for sender, _ in ends.values()}
        still = [name for name in left if ends[name][0] in fed and leading & set(ends[name][1])]
        if still == left:
            return left
        left = still


# --- what is in it ---


def test_edges_are_named_by_ids_labels_and_numbers() -> None:
    names = ["a1.h0->logits", "input → L0H1 q", 0, "INPUT -> l0h1 Q", np.int64(3), -1]
    circuit = Circuit.of(SMALL, names)
    every = naive_edges(SMALL)
    assert circuit.edge_ids == [every[0], "input->a0.h1<q>", every[3], "a1.h0->logits", every[-1]]
    assert circuit.labels == [edge_patches(SMALL).labels[i] for i in np.flatnonzero(circuit.edges)]
    assert len(circuit) == 5 and "a1.h0->logits" in circuit and 0 in circuit and "a1.h0->logits" not in ~circuit
    assert Circuit.of(SMALL, "input->logits").labels == ["input → logits"]
    assert list(circuit.patches) == list(edge_patches(SMALL).taken(circuit.edges))
    np.testing.assert_array_equal(circuit.patches.numbers, np.flatnonzero(circuit.edges))


@given(graphs())
def test_every_edge_is_found_by_its_id_and_its_number(of: Graph) -> None:
    every = edge_patches(of)
    np.testing.assert_array_equal(every.numbers, np.arange(len(of)))
    for number, name in enumerate(every.ids):
        assert Circuit.of(of, [name]) == Circuit.of(of, [number])
    assert Circuit.of(of, every.ids) == Circuit.full(of) and len(Circuit.full(of)) == len(of)
    assert Circuit.of(of, []) == Circuit.empty(of) and len(Circuit.empty(of)) == 0


def test_a_circuit_of_nodes_has_every_edge_between_them() -> None:
    circuit = Circuit.of_nodes(GPT2, ["input", (5, 3), "L9H9", "m9", "logits"])
    assert circuit.labels == [
        *("input → L5H3 q", "input → L5H3 k", "input → L5H3 v"),
        *(f"{sender} → L9H9 {kind}" for kind in "qkv" for sender in ("input", "L5H3")),
        *(f"{sender} → L9 MLP" for sender in ("input", "L5H3", "L9H9")),
        *(f"{sender} → logits" for sender in ("input", "L5H3", "L9H9", "L9 MLP")),
    ]
    assert circuit.nodes == ("input", "L5H3", "L9H9", "L9 MLP", "logits")
    assert circuit.heads == ((5, 3), (9, 9)) and circuit.mlps == (9,)
    assert Circuit.of_nodes(GPT2, "L9H9") == Circuit.of_nodes(GPT2, "logits") == Circuit.empty(GPT2)
    assert Circuit.of_nodes(GPT2, ["input", "heads", "mlps", "logits"]) == Circuit.full(GPT2)
    assert len(Circuit.full(GPT2)) == 32_491
    assert len(Circuit.of_nodes(GPT2, ["input", "mlps", "logits"])) == 12 + 66 + 13
    with_input = Circuit.of_nodes(GROUPED, ["input", (1, 3)])
    assert with_input.edge_ids == ["input->a1.h3<q>", "input->a1.kv1<k>", "input->a1.kv1<v>"]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (["L0H0"], "'L0H0' is no edge: expected an id or a label, for instance 'L5H3 → L9H9 q'"),
        (["L1H0 → L0H0 q"], "the sender writes after the receiver reads"),
        (["L0H7 → logits"], "no writer is called 'L0H7'"),
        ([39], "edge 39 is out of range: expected -39 to 38"),
        ([0.5], "edge 0.5 is not an integer"),
        ([True], "edge True is not an integer"),
        (3, "edges is a int, expected a list of ids, labels or numbers"),
    ],
)
def test_what_is_no_edge_is_refused(edges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Circuit.of(SMALL, edges)


def test_nodes_and_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no writer is called 'L7H7' \(in nodes\)"):
        Circuit.of_nodes(SMALL, ["logits", "L7H7"])
    with pytest.raises(ValueError, match="nodes is empty"):
        Circuit.of_nodes(SMALL, [])
    with pytest.raises(ValueError, match=r"edges are bool of shape \(3,\), expected True or False for each of the 39"):
        Circuit(SMALL, np.ones(3, dtype=bool))


def test_a_circuit_stays_as_it_was_made() -> None:
    mask = np.zeros(len(SMALL), dtype=bool)
    circuit = Circuit(SMALL, mask)
    mask[0] = True
    assert len(circuit) == 0
    with pytest.raises(ValueError, match="read-only"):
        circuit.edges[0] = True
    with pytest.raises(dataclasses.FrozenInstanceError):
        circuit.edges = mask  # type: ignore[misc]


# --- set operations ---


@given(graphs(), st.integers(0, 99), st.integers(100, 199))
def test_set_operations_are_those_of_sets_of_ids(of: Graph, first: int, second: int) -> None:
    a, b = random_circuit(of, first), random_circuit(of, second)
    ids_a, ids_b, every = set(a.edge_ids), set(b.edge_ids), set(naive_edges(of))
    assert set((a | b).edge_ids) == ids_a | ids_b and set((a & b).edge_ids) == ids_a & ids_b
    assert set((a - b).edge_ids) == ids_a - ids_b and set((~a).edge_ids) == every - ids_a
    assert (a <= b) == (ids_a <= ids_b) and a & b <= a <= a | b and a | b >= b
    assert ~~a == a and ~(a | b) == ~a & ~b and ~(a & b) == ~a | ~b and a - b == a & ~b
    assert a | ~a == Circuit.full(of) == ~Circuit.empty(of) and len(a & ~a) == 0
    assert len(a) + len(~a) == len(of) and len(a | b) == len(a) + len(b) - len(a & b)


def test_circuits_are_equal_by_graph_and_edges() -> None:
    a = random_circuit(SMALL, 0)
    same = Circuit(SMALL, a.edges, "by hand")
    assert a == same and hash(a) == hash(same) and {a: 1}[same] == 1
    assert a != ~a and a != dataclasses.replace(SMALL, model="other") and a != random_circuit(GROUPED, 0)
    assert a != Circuit(dataclasses.replace(SMALL, model="other"), a.edges)


@pytest.mark.parametrize("operation", ["__or__", "__and__", "__sub__", "__le__"])
def test_circuits_of_different_graphs_are_refused(operation: str) -> None:
    a = random_circuit(SMALL, 0)
    with pytest.raises(ValueError, match="these circuits are of different graphs, of m and of g: compare circuits of"):
        getattr(a, operation)(random_circuit(GROUPED, 0))
    parallel = Circuit.full(dataclasses.replace(SMALL, d_model=8))
    with pytest.raises(ValueError, match="different graphs, d_model=None and d_model=8"):
        getattr(a, operation)(parallel)
    assert getattr(a, operation)({1}) is NotImplemented


# --- pruning ---


@given(graphs(), st.integers(0, 999), st.sampled_from([0.05, 0.2, 0.5]))
def test_pruning_is_leaving_out_until_nothing_changes(of: Graph, seed: int, share: float) -> None:
    circuit = random_circuit(of, seed, share)
    pruned = circuit.pruned()
    assert pruned.edge_ids == naively_pruned(circuit)
    assert pruned.pruned() is pruned and pruned <= circuit
    assert set(pruned.nodes) <= set(circuit.nodes)


@given(graphs(), st.integers(0, 99), st.integers(100, 199))
def test_pruning_never_loses_what_a_smaller_circuit_keeps(of: Graph, first: int, second: int) -> None:
    a, b = random_circuit(of, first, 0.15), random_circuit(of, second, 0.15)
    assert a.pruned() | b.pruned() <= (a | b).pruned() and Circuit.full(of).pruned() == Circuit.full(of)


def test_dangling_edges_are_pruned_to_the_fixed_point() -> None:
    chain = ["input->a0.h0<q>", "a0.h0->m3", "m3->a5.h3<k>", "a5.h3->logits"]
    led_nowhere = ["m3->a4.h0<v>", "a4.h0->m6", "m6->a7.h7<q>"]
    unfed = ["a1.h1->m2", "m2->a5.h3<v>"]
    circuit = Circuit.of(GPT2, [*chain, *led_nowhere, *unfed], found_by="by hand")
    assert sorted(circuit.pruned().edge_ids) == sorted(chain)
    assert circuit.pruned().found_by == "by hand, pruned from 9 edges to 4"
    assert circuit.nodes == ("input", "L0H0", "L2 MLP", "L3 MLP", "L4H0", "L5H3", "L6 MLP", "logits")
    assert circuit.pruned().nodes == ("input", "L0H0", "L3 MLP", "L5H3", "logits")
    assert len((circuit - Circuit.of(GPT2, ["a0.h0->m3"])).pruned()) == 0
    assert Circuit.of(GPT2, ["input->logits"]).pruned() == Circuit.of(GPT2, ["input->logits"])


def test_shared_keys_feed_every_head_and_lead_on_by_any() -> None:
    """Heads 2 and 3 of layer 1 share keys; queries of one of them feed this one alone."""
    by_keys = Circuit.of(GROUPED, ["input->a1.kv1<k>", "a1.h2->logits"])
    assert by_keys.pruned() == by_keys and by_keys.nodes == ("input", "L1H2", "logits")
    by_queries = Circuit.of(GROUPED, ["input->a1.h3<q>", "a1.h2->logits"])
    assert len(by_queries.pruned()) == 0 and by_queries.nodes == ("input", "logits")
    of_others = Circuit.of(GROUPED, ["input->a1.kv0<v>", "a1.h2->logits"])
    assert len(of_others.pruned()) == 0


def test_a_same_layer_edge_of_a_head_to_its_mlp_exists_in_sequential_blocks_alone() -> None:
    ids = ["input->a0.h0<q>", "a0.h0->m0", "m0->logits"]
    assert len(Circuit.of(graph(2, 2), ids).pruned()) == 3
    with pytest.raises(ValueError, match="is no edge: the sender writes after"):
        Circuit.of(graph(2, 2, is_parallel=True), ids)


# --- what it looks like, and files ---


def test_the_repr_tells_sizes_nodes_and_how_it_was_found() -> None:
    ids = ["input->a5.h3<q>", "a5.h3->a9.h9<q>", "a9.h9->logits", "a9.h9->m10"]
    assert repr(Circuit.of(GPT2, ids, found_by="by hand")) == (
        "Circuit(m: 4 of 32,491 edges, 3 after pruning, 2 heads, 0 MLPs; by hand)"
    )
    assert (
        repr(Circuit.of_nodes(SMALL, ["input", "L0H0", "m0", "logits"])) == "Circuit(m: 8 of 39 edges, 1 head, 1 MLP)"
    )


@given(graphs(), st.integers(0, 999))
def test_networkx_has_its_edges_and_its_ways(of: Graph, seed: int) -> None:
    circuit = random_circuit(of, seed, 0.2)
    drawn = circuit.to_networkx()
    assert {data["id"] for *_, data in drawn.edges(data=True)} == set(circuit.edge_ids)
    assert networkx.is_directed_acyclic_graph(drawn)
    is_led = drawn.has_node("input") and drawn.has_node("logits") and networkx.has_path(drawn, "input", "logits")
    assert is_led == (len(circuit.pruned()) > 0)
    if not of.is_grouped:
        assert drawn.number_of_edges() == len(circuit)
    assert set(circuit.pruned().to_networkx()) == set(circuit.pruned().nodes)


def test_networkx_knows_kinds() -> None:
    drawn = Circuit.of(GROUPED, ["input->a1.kv1<k>", "a1.h2->logits", "input->a1.kv0<v>"]).to_networkx()
    found = sorted((sender, receiver, key) for sender, receiver, key in drawn.edges(keys=True))
    assert found == [
        ("L1H2", "logits", "logits"),
        *(("input", receiver, kind) for receiver, kind in (("L1H0", "v"), ("L1H1", "v"), ("L1H2", "k"))),
    ]
    assert drawn.nodes["L1H2"] == {"kind": "head", "layer": 1} and drawn.nodes["input"]["kind"] == "input"
    assert drawn.edges["input", "L1H2", "k"]["id"] == "input->a1.kv1<k>"


@given(graphs(), st.integers(0, 999))
def test_what_is_saved_is_read_back(tmp_path_factory: Any, of: Graph, seed: int) -> None:
    of = dataclasses.replace(of, d_model=8)
    circuit = dataclasses.replace(random_circuit(of, seed), found_by="top 3 → ≥ all")
    path = circuit.save(tmp_path_factory.mktemp("circuit") / "c.json")
    read = Circuit.load(path)
    assert read == circuit and read.graph == of and read.found_by == circuit.found_by
    assert read.save(path.with_name("again.json")).read_bytes() == path.read_bytes()


def test_files_that_are_no_circuit_are_refused(tmp_path: Path) -> None:
    path = random_circuit(SMALL, 0).save(tmp_path / "c.json")
    stored = json.loads(path.read_text())
    for text in ("", "[]", "{}", "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"c.json holds no circuit: expected a file that Circuit.save wrote"):
            Circuit.load(path)
    for change, message in (
        ({"format": 2}, "holds 'Circuit' of format 2, expected Circuit of format 1"),
        ({"kind": "EdgeResults"}, "holds 'EdgeResults' of format 1"),
        ({"edges": [["a9.h9->logits"]]}, "is damaged .*no writer is called 'a9.h9'"),
        ({"edges": [[3]]}, "is damaged .*3 is no text"),
        ({"graph": {}}, "is damaged"),
        ({"found_by": None}, "is damaged"),
    ):
        path.write_text(json.dumps({**stored, **change}))
        with pytest.raises(ValueError, match=message):
            Circuit.load(path)
    with pytest.raises(OSError):
        Circuit.load(tmp_path / "missing.json")


def test_full_circuits_of_known_models_have_every_head_and_mlp() -> None:
    heads = defaultdict(list)
    for layer, head in Circuit.full(GPT2).heads:
        heads[layer].append(head)
    assert heads == {layer: list(range(12)) for layer in range(12)}
    assert Circuit.full(GPT2).mlps == tuple(range(12)) and len(Circuit.full(GPT2).nodes) == 144 + 12 + 2


# --- positions told apart ---


def at_positions(of: Graph, seed: int, share: float = 0.3) -> Circuit:
    positions = ("S2", 4, ("IO", "S1"))
    return Circuit(of, np.random.default_rng(seed).random((3, len(of))) < share, "", positions, frozenset("a"))


def naively_pruned_at_positions(circuit: Circuit) -> set[tuple[str, int]]:
    """The same as `naively_pruned`, with a component of each position; keys and values lead to and from all."""
    places = range(len(circuit.positions))
    left = {(name, at) for at in places for name in Circuit(circuit.graph, circuit.edges[at]).edge_ids}
    while True:
        fed, leading, still = {("input", at) for at in places}, {("logits", at) for at in places}, set()
        for name, at in left:
            sender, into = components(circuit.graph, name)
            everywhere = name.endswith(("<k>", "<v>"))
            fed |= {(node, other) for node in into for other in (places if everywhere else [at])}
            leading.add((sender, at))
        for name, at in left:
            sender, into = components(circuit.graph, name)
            ends = places if name.endswith(("<k>", "<v>")) else [at]
            if (sender, at) in fed and any((node, other) in leading for node in into for other in ends):
                still.add((name, at))
        if still == left:
            return left
        left = still


@pytest.mark.parametrize("of", [SMALL, GROUPED], ids=lambda of: of.model)
@pytest.mark.parametrize("seed", range(12))
def test_pruning_at_positions_is_a_fixed_point_of_each(of: Graph, seed: int) -> None:
    circuit = at_positions(of, seed, 0.06 + 0.02 * (seed % 6))
    expected = naively_pruned_at_positions(circuit)
    pruned = circuit.pruned()
    found = {(name, at) for at in range(3) for name in Circuit(of, pruned.edges[at]).edge_ids}
    assert found == expected and len(pruned) == len(expected)


def test_circuits_at_positions_are_values_too(tmp_path: Path) -> None:
    circuit = at_positions(SMALL, 1)
    loaded = Circuit.load(circuit.save(tmp_path / "c.json"))
    assert (loaded, loaded.seen, loaded.positions) == (circuit, circuit.seen, circuit.positions)
    assert Circuit.of(SMALL, circuit.labels).everywhere == circuit.everywhere
    again = Circuit.of(SMALL, circuit.edge_ids)
    assert set(again.positions) == set(circuit.positions) and set(again.edge_ids) == set(circuit.edge_ids)
    assert len(circuit) == len(circuit.labels) == int(circuit.edges.sum()) and all(
        name in circuit for name in circuit.labels
    )
    assert (
        len(circuit | ~circuit) == 3 * len(SMALL) and len(circuit & ~circuit) == 0 and (circuit - circuit).seen == {"a"}
    )
    assert "at 3 positions" in repr(circuit)
    drawn = circuit.to_networkx()
    assert sum(len(data["positions"]) for *_, data in drawn.edges(data=True)) == len(circuit)


def test_positions_that_do_not_go_together_are_refused() -> None:
    circuit = at_positions(SMALL, 1)
    with pytest.raises(ValueError, match=r"tell other positions apart, 'S2', 4, \('IO', 'S1'\) and none"):
        circuit | circuit.everywhere
    with pytest.raises(ValueError, match="some of these edges are at a position"):
        Circuit.of(SMALL, ["a0.h0->a1.h1<q> @S2", "input->logits"])
    with pytest.raises(ValueError, match="name one twice"):
        Circuit(SMALL, np.zeros((2, len(SMALL)), dtype=bool), "", ("S2", "S2"))
    with pytest.raises(ValueError, match="position 'S3' is none of this circuit's"):
        _ = "input->logits @S3" in circuit


def test_what_is_no_position_is_refused_and_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    graph = Graph("m", (1,), (1,), (True,))
    edges = np.ones((1, len(graph)), dtype=bool)
    circuit = Circuit(graph, edges, positions=(np.int64(3),))  # type: ignore[arg-type]
    assert circuit.positions == (3,) and Circuit.load(circuit.save(tmp_path / "circuit.json")) == circuit
    for wrong in (1.5, None, True, "", ()):
        with pytest.raises(ValueError, match="is no position: expected a number, a name, or several"):
            Circuit(graph, edges, positions=(wrong,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"positions is 'A', expected several: \['A'\]"):
        Circuit(graph, edges, positions="A")  # type: ignore[arg-type]
    stored = json.loads((tmp_path / "circuit.json").read_text(encoding="utf-8"))
    (tmp_path / "lost.json").write_text(json.dumps({**stored, "positions": [], "edges": stored["edges"] * 2}))
    with pytest.raises(ValueError, match=r"is damaged .*edges at 2 positions that have no name"):
        Circuit.load(tmp_path / "lost.json")
