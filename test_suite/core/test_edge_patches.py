"""Many edges as arrays: which they are, in which order, and that each is the patch that it stands for."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actpatch.core.edge_patches import EdgePatches, edge_patches
from actpatch.core.graph import Graph
from actpatch.core.sites import Patch, Site
from test_suite.core.test_graph import graph, graphs, naive_edges

PLACES = (
    (Site("", position=4, position_name="S2"),),
    (Site("", position=-1),),
    (Site("", position=2, position_name="IO"), Site("", position=5)),
)


@given(graphs())
def test_all_edges_are_those_of_a_walk_through_the_model(of: Graph) -> None:
    edges = edge_patches(of)
    assert edges.ids == naive_edges(of)
    assert len(edges) == len(of)
    assert edges.labels == [patch.name for patch in edges]


@given(graphs(), st.data())
def test_chosen_edges_are_those_of_all_that_go_from_one_of_them_to_one_of_them(of: Graph, data: st.DataObject) -> None:
    senders = data.draw(st.sets(st.sampled_from([writer.id for writer in of.writers]), min_size=1))
    receivers = data.draw(st.sets(st.sampled_from([reader.id for reader in of.readers]), min_size=1))
    n_places = data.draw(st.integers(1, 3))
    expected = []
    for edge in naive_edges(of):
        sender, receiver = edge.split("->")
        expected += [(edge, place) for place in range(n_places) if sender in senders and receiver in receivers]
    sending, reading = ({edge.split("->")[end] for edge, _ in expected} for end in (0, 1))
    if sending == senders and reading == receivers:
        edges = edge_patches(of, list(senders), list(receivers), PLACES[:n_places])
        assert list(zip(edges.ids, edges.columns.tolist())) == expected
    else:
        with pytest.raises(ValueError, match=r"has no edge (to|from) any") as failure:
            edge_patches(of, list(senders), list(receivers), PLACES[:n_places])
        ((what, named),) = re.findall(r"the (sender|receiver) '(.+?)' has no", str(failure.value))
        assert named in (senders - sending if what == "sender" else receivers - reading)


def test_an_edge_is_a_patch_of_its_receiver_by_its_sender() -> None:
    edges = edge_patches(graph(12, 12), "L5H3", "L9H9 q")
    assert list(edges) == [Patch((Site("blocks.9.hook_q_input", head=9, sender="a5.h3"),), name="L5H3 → L9H9 q")]
    assert (edges.id(0), edges.label(0), edges.labels, edges.ids) == (
        *("a5.h3->a9.h9<q>", "L5H3 → L9H9 q"),
        *(["L5H3 → L9H9 q"], ["a5.h3->a9.h9<q>"]),
    )
    (logits,) = edge_patches(graph(12, 12), "m0", "logits")
    assert logits == Patch((Site("blocks.11.hook_resid_post", sender="m0"),), name="L0 MLP → logits")
    (shared,) = edge_patches(graph(12, 12, 4), "input", "L11KV3 v")
    assert shared == Patch((Site("blocks.11.hook_v_input", head=3, sender="input"),), name="input → L11KV3 v")


def test_edges_at_positions() -> None:
    edges = edge_patches(graph(2, 2), ["m0", "L0H1"], ["L1H0 k", "logits"], PLACES)
    assert edges.column_names == ["S2", "-1", "IO + 5"]
    assert edges.labels == [
        f"{sender} → {receiver} @{place}"
        for receiver in ("L1H0 k", "logits")
        for sender in ("L0H1", "L0 MLP")
        for place in ("S2", "-1", "IO + 5")
    ]
    assert edges.ids[:3] == ["a0.h1->a1.h0<k>"] * 3
    assert edges[2].sites == (
        Site("blocks.1.hook_k_input", head=0, position=2, position_name="IO", sender="a0.h1"),
        Site("blocks.1.hook_k_input", head=0, position=5, sender="a0.h1"),
    )
    assert edge_patches(graph(2, 2)).column_names == [""]


def test_edges_are_a_sequence() -> None:
    edges = edge_patches(graph(3, 2))
    assert edges[-1] == edges[len(edges) - 1] and edges[np.int64(3)] == edges[3]
    assert edges[-1].name == "L2 MLP → logits"
    part = edges[5:20:3]
    assert isinstance(part, EdgePatches) and list(part) == [edges[i] for i in range(5, 20, 3)]
    assert len(edges[:0]) == 0 and list(edges[:0]) == []
    assert edges.index(edges[7]) == 7 and edges[7] in edges
    with pytest.raises(IndexError):
        edges[len(edges)]


def test_edges_are_taken_by_number_and_by_mask() -> None:
    edges = edge_patches(graph(3, 2))
    assert edges.taken([8, 1, 1]).ids == [edges.ids[i] for i in (8, 1, 1)]
    mask = np.arange(len(edges)) % 5 == 0
    assert edges.taken(mask).ids == edges.ids[::5]
    assert len(edges.taken([])) == 0


def test_edges_are_equal_where_all_of_them_are() -> None:
    edges = edge_patches(graph(2, 2))
    assert edges == edge_patches(graph(2, 2)) and edges == edges[:]
    assert edges != edges[::-1] and edges != edges[1:] and edges != list(edges)
    assert edges != edge_patches(graph(2, 2, is_parallel=True))
    assert edges[:1] != edge_patches(graph(2, 2), places=PLACES[:1])[:1]
    assert repr(edges[:5]) == f"EdgePatches(5 of {graph(2, 2)!r})"


def test_receivers_before_senders_are_refused() -> None:
    of = graph(12, 12)
    with pytest.raises(
        ValueError,
        match=r"the sender 'L10H0' has no edge to any receiver: the last of these, L9H3 v, reads before it writes; "
        "leave it out, or give a receiver behind it, L10 MLP or later$",
    ):
        edge_patches(of, ["L10H0", "L1H0"], ["L2H1 q", "L9H3 v"])
    with pytest.raises(
        ValueError,
        match=r"the receiver 'a2.h1<q>' has no edge from any sender: the first of these, L5H0, writes behind it; "
        "leave it out, or give a sender before it, L1 MLP or earlier$",
    ):
        edge_patches(of, ["L7", "L5H0"], ["a2.h1<q>", "L9H3 v"])
    with pytest.raises(ValueError, match=r"'m11' has no edge .* L11 MLP, reads .* give a receiver behind it, logits$"):
        edge_patches(of, "m11", "mlps")
    with pytest.raises(ValueError, match="'heads' has no edge to any receiver: the last of these, L0 MLP, reads"):
        edge_patches(graph(1, 4, is_parallel=True), "heads", "mlps")
    with pytest.raises(ValueError, match=r"the receiver 'L0H1' has no edge .* give a sender before it, input$"):
        edge_patches(of, "heads", ["L0H1", "logits"])
    with pytest.raises(ValueError, match="the sender 'L9H9' has no edge to any receiver"):
        edge_patches(of, [(9, 9), "L1H1"], ["L9H9 q"])
    with pytest.raises(ValueError, match="no writer is called 'L5H12'"):
        edge_patches(of, ["L5H12"])
    with pytest.raises(ValueError, match="no reader is called 'L5H12 q'"):
        edge_patches(of, None, ["L5H12 q"])


def test_of_a_name_for_many_a_part_may_have_no_edge() -> None:
    of = graph(3, 2)
    assert edge_patches(of, "heads", "heads").ids == [
        edge for edge in naive_edges(of) if edge.startswith("a") and "<" in edge
    ]
    assert edge_patches(of, "L1", ["L1", "L2H0 q"]).ids == [
        edge for edge in naive_edges(of) if edge[:2] in ("a1", "m1") and ("->m1" in edge or "->a2.h0<q>" in edge)
    ]
    for senders, receivers, named in ((["heads", "L2"], "L2H0 q", "sender 'L2'"), ("L1", ["L0", "q"], "receiver 'L0'")):
        with pytest.raises(ValueError, match=f"the {named} has no edge"):
            edge_patches(of, senders, receivers)


def test_a_million_edges_are_arrays() -> None:
    edges = edge_patches(graph(48, 25))
    assert len(edges) == 2_235_025
    assert edges.writers.nbytes + edges.readers.nbytes + edges.columns.nbytes == 3 * 8 * len(edges)
    assert edges[1_000_000] == edges.taken([1_000_000])[0]
