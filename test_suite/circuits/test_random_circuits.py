"""Random circuits and knock-outs: unions of paths of the right size, sets that differ, chains that grow."""

from __future__ import annotations

import numpy as np
import pytest

from actpatch.circuits.knock_outs import MOST_CANDIDATES, greedy_sets, nodes_of, random_sets, without_nodes
from actpatch.circuits.random_circuits import RandomPaths, random_circuits
from actpatch.core.circuits import Circuit
from actpatch.core.graph import Graph

GRAPHS = {
    "plain": Graph("plain", (3, 3, 3), (3, 3, 3), (True, True, True)),
    "grouped": Graph("grouped", (4, 4), (2, 2), (True, False)),
    "parallel": Graph("parallel", (2, 2), (2, 2), (True, True), is_parallel=True),
}


def some(graph: Graph, n: int, positions: tuple = (), seed: int = 0) -> Circuit:
    shape = (*[len(positions)] * bool(positions), len(graph))
    edges = np.zeros(shape, dtype=bool)
    edges.flat[np.random.default_rng(seed).choice(edges.size, n, replace=False)] = True
    return Circuit(graph, edges, positions=positions)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.9, 1.0])
def test_they_have_as_many_edges_and_all_survive_pruning(name, share):
    graph = GRAPHS[name]
    for positions in ((), ("S", "IO", -1)):
        size = max(1, len(positions)) * len(graph)
        like = some(graph, round(share * size), positions).pruned()
        if not len(like):
            continue
        found = random_circuits(like, 6, seed=1)
        for one in found:
            assert len(one) == len(one.pruned()) and one.positions == positions and not one.seen
        sizes = [len(one) for one in found]
        if not positions:
            assert sizes == [len(like)] * 6
        assert max(sizes) <= len(like) and min(sizes) >= 0.9 * len(like)
        assert found == random_circuits(like, 6, seed=1)
        if share == 0.3:
            assert len(set(found)) > 1 and found != random_circuits(like, 6, seed=2)


def test_edges_into_the_logits_are_where_the_circuit_has_some():
    graph = GRAPHS["plain"]
    like = Circuit.of(graph, [f"{edge} @{at}" for edge, at in (("input->a0.h0<k>", "S"), ("input->a0.h0<q>", "END"))])
    like |= Circuit(graph, Circuit.of(graph, ["a0.h0->logits"]).edges * np.array([[False], [True]]), "", like.positions)
    assert len(like.pruned()) == 3
    for one in random_circuits(like, 20):
        assert not one.edges[0, graph.first_edge[-1] :].any() and len(one.pruned()) == len(one)


def test_every_path_is_drawn_and_small_circuits_are_single_paths():
    graph = Graph("small", (2,), (2,), (True,))
    paths = RandomPaths(Circuit.full(graph))
    rng = np.random.default_rng(0)
    found = {tuple(sorted(edge for edge, _ in paths.path(rng))) for _ in range(2000)}
    heads = 2 * 3  # by queries, keys or values
    assert len(found) == 1 + heads + (1 + heads)  # direct, through a head, through the MLP, that directly or by a head
    for path in found:
        assert len(Circuit.of(graph, path).pruned()) == len(path)


def test_a_path_is_put_in_and_one_of_its_edges_taken_out():
    graph = GRAPHS["grouped"]
    circuit = Circuit.of(graph, ["input->m0", "m0->logits"])
    rng = np.random.default_rng(0)
    for _ in range(20):
        both, cut = RandomPaths(circuit).with_path(circuit, rng)
        assert circuit <= cut <= both and len(cut) == len(both) - 1 and len(both.pruned()) == len(both)
    assert RandomPaths(Circuit.full(graph)).with_path(Circuit.full(graph), rng) is None


def test_there_is_none_like_a_circuit_that_does_nothing():
    with pytest.raises(ValueError, match="no edge on a way from the input to the logits: random ones have no size"):
        random_circuits(Circuit.of(GRAPHS["plain"], ["a0.h0->logits"]), 3)


def test_sets_are_different_and_all_there_are_where_few_exist():
    assert random_sets((1, 2, 4), 7) == [(1,), (2,), (4,), (1, 2), (1, 4), (2, 4), (1, 2, 4)]
    found = random_sets(tuple(range(12)), 50, seed=3)
    assert len(set(found)) == 50 and all(found) and found == random_sets(tuple(range(12)), 50, seed=3)
    assert np.mean([len(one) for one in found]) == pytest.approx(6, abs=1)
    assert random_sets((), 5) == [] == random_sets((1, 2, 3), 0)


def test_the_chain_takes_what_makes_the_gap_largest():
    worth = {1: 0.2, 2: 3.0, 3: -5.0, 4: 1.0}
    found = greedy_sets((1, 2, 3, 4), 3, lambda sets: np.array([sum(worth[node] for node in one) for one in sets]))
    assert found == [(2,), (2, 4), (1, 2, 4)]
    assert len(greedy_sets((1, 2), 9, lambda sets: np.zeros(len(sets)))) == 2
    tried = []
    many = tuple(range(40))
    greedy_sets(many, 2, lambda sets: tried.append(len(sets)) or np.zeros(len(sets)))
    assert tried == [MOST_CANDIDATES, MOST_CANDIDATES]


def test_what_is_knocked_out_has_no_edge_left_and_all_others_have():
    graph = GRAPHS["grouped"]
    full = Circuit.full(graph)
    head = graph.writer("L1H2")
    left = without_nodes(full, (head,))
    gone = {"L1H2 → logits", *(f"{writer.label} → L1H2 q" for writer in graph.writers if writer.layer < 1)}
    assert set(full.labels) - set(left.labels) == gone  # keys and values are read by L1H3 too
    both = without_nodes(full, (head, head + 1))
    assert not any("L1KV1" in label or "L1H2" in label or "L1H3" in label for label in both.labels)
    assert nodes_of(Circuit.of(graph, ["input->m0", "m0->logits", "input->a1.h0<q>"])) == (graph.writer("L0 MLP"),)
