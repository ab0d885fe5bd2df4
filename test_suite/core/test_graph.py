"""Which edges a graph has, what they are called, and by which names its nodes are asked for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actpatch.core.graph import Graph


def graph(n_layers: int, n_heads: int, n_keys: int | None = None, **options: Any) -> Graph:
    """A graph of layers that are all alike, with MLPs if not said otherwise."""
    options = {"mlps": (True,) * n_layers, **options}
    return Graph("m", (n_heads,) * n_layers, (n_keys or n_heads,) * n_layers, **options)


MODELS = {
    "gpt2": (12, 12, 12, 32_491, 32_491),
    "pythia-70m": (6, 8, 8, 3_628, 3_628),
    "gpt2-medium": (24, 16, 16, 231_877, 231_877),
    "gpt2-xl": (48, 25, 25, 2_235_025, 2_235_025),
    "Qwen2.5-0.5B": (24, 14, 2, 179_749, 79_813),
    "gemma-2-2b": (26, 8, 4, 74_218, 50_610),
    "Llama-3.2-1B": (16, 32, 8, 386_713, 195_865),
    "Llama-3.1-8B": (32, 32, 8, 1_592_881, 805_681),
    "InterpBench-IOI": (6, 4, 4, 1_108, 1_108),
}
"""Layers, heads, key-value heads, and the number of edges with keys and values of each head, and as the model has them.

The parallel blocks of the Pythia models have fewer; the 3,628 are those of sequential ones.
"""


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_edges_of_known_models(name: str) -> None:
    n_layers, n_heads, n_keys, ungrouped, grouped = MODELS[name]
    assert len(graph(n_layers, n_heads)) == ungrouped
    assert len(graph(n_layers, n_heads, n_keys)) == grouped
    assert graph(n_layers, n_heads, n_keys).is_grouped == (n_keys != n_heads)


@pytest.mark.parametrize("n_layers, n_heads", [(12, 12), (1, 1), (6, 8), (24, 14)])
def test_the_counts_are_the_formula(n_layers: int, n_heads: int) -> None:
    width = n_heads + 1
    expected = (
        sum(3 * n_heads * (1 + width * layer) for layer in range(n_layers)),
        sum(1 + width * layer + n_heads for layer in range(n_layers)),
        1 + n_layers * width,
    )
    assert tuple(graph(n_layers, n_heads).counts.values()) == expected
    parallel = graph(n_layers, n_heads, is_parallel=True)
    assert tuple(parallel.counts.values()) == (expected[0], expected[1] - n_layers * n_heads, expected[2])


def test_the_counts_of_gpt2_and_of_an_attention_only_model() -> None:
    gpt2 = graph(12, 12)
    assert gpt2.counts == {"q, k and v": 31_320, "MLPs": 1_014, "the logits": 157}
    assert repr(gpt2) == (
        "Graph(m: 12 layers, 32,491 edges: 31,320 into q, k and v, 1,014 into MLPs, 157 into the logits)"
    )
    attention_only = graph(4, 8, mlps=(False,) * 4)
    assert len(attention_only) == 1_281
    assert attention_only.counts == {"q, k and v": 1_248, "MLPs": 0, "the logits": 33}
    assert not any("m" in node.id for node in attention_only.writers)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Graphs of layers of any kind: with or without attention, keys shared or not, with or without an MLP."""
    layers = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.booleans()), min_size=1, max_size=4))
    heads = tuple(groups * size for groups, size, _ in layers)
    keys = tuple(groups for groups, _, _ in layers)
    return Graph("m", heads, keys, tuple(mlp for *_, mlp in layers), draw(st.booleans()))


def naive_edges(of: Graph) -> list[str]:
    """Ids of all edges: a walk through the model that reads whatever is on the residual stream at that moment."""
    stream, edges = ["input"], []

    def read(reader: str) -> None:
        edges.extend(f"{writer}->{reader}" for writer in stream)

    for layer, (n_heads, n_keys, mlp) in enumerate(zip(of.heads, of.key_value_heads, of.mlps)):
        for kind in "qkv":
            shared = kind != "q" and n_keys != n_heads
            for head in range(n_keys if shared else n_heads):
                read(f"a{layer}.{'kv' if shared else 'h'}{head}<{kind}>")
        written = [f"a{layer}.h{head}" for head in range(n_heads)]
        if mlp and of.is_parallel:
            read(f"m{layer}")
        stream += written
        if mlp and not of.is_parallel:
            read(f"m{layer}")
        stream += [f"m{layer}"] * mlp
    read("logits")
    return edges


@given(graphs())
def test_the_edges_are_those_of_a_walk_through_the_model(of: Graph) -> None:
    found = [
        f"{writer.id}->{reader.id}" for reader, n in zip(of.readers, of.n_writers_before) for writer in of.writers[:n]
    ]
    assert found == naive_edges(of)
    assert len(of) == len(found) == len(set(found)) == sum(of.counts.values())


@given(graphs())
def test_every_id_and_label_names_its_node_alone(of: Graph) -> None:
    for number, writer in enumerate(of.writers):
        assert of.writer(writer.id) == of.writer(writer.label) == number
    for number, reader in enumerate(of.readers):
        assert of.reader(reader.id) == of.reader(reader.label) == number
    np.testing.assert_array_equal(of.writers_named(None), np.arange(len(of.writers)))
    np.testing.assert_array_equal(of.readers_named(None), np.arange(len(of.readers)))


def test_order_ids_and_labels() -> None:
    of = graph(2, 4, 2)
    assert [writer.id for writer in of.writers] == (
        ["input", "a0.h0", "a0.h1", "a0.h2", "a0.h3", "m0", "a1.h0", "a1.h1", "a1.h2", "a1.h3", "m1"]
    )
    assert [writer.label for writer in of.writers[:6]] == ["input", "L0H0", "L0H1", "L0H2", "L0H3", "L0 MLP"]
    layer = ["a0.h0<q>", "a0.h1<q>", "a0.h2<q>", "a0.h3<q>", "a0.kv0<k>", "a0.kv1<k>", "a0.kv0<v>", "a0.kv1<v>", "m0"]
    assert [reader.id for reader in of.readers] == [*layer, *(name.replace("0", "1", 1) for name in layer), "logits"]
    labels = ["L1H0 q", "L1H1 q", "L1H2 q", "L1H3 q", "L1KV0 k", "L1KV1 k", "L1KV0 v", "L1KV1 v", "L1 MLP", "logits"]
    assert [reader.label for reader in of.readers[9:]] == labels
    assert of.n_writers_before.tolist() == [1] * 8 + [5] + [6] * 8 + [10, 11]


def test_where_each_reader_reads() -> None:
    of = graph(12, 12)
    sites = {name: of.readers[of.reader(name)].site for name in ("L9H11 q", "L9H11 k", "m10", "logits")}
    assert (sites["L9H11 q"].hook_point, sites["L9H11 q"].head) == ("blocks.9.hook_q_input", 11)
    assert (sites["L9H11 k"].hook_point, sites["L9H11 k"].head) == ("blocks.9.hook_k_input", 11)
    assert (sites["m10"].hook_point, sites["m10"].head) == ("blocks.10.hook_mlp_in", None)
    assert (sites["logits"].hook_point, sites["logits"].head) == ("blocks.11.hook_resid_post", None)


def test_layers_and_heads_of_two_digits() -> None:
    of = graph(12, 12)
    assert of.writers[of.writer("a10.h11")].label == "L10H11"
    assert of.writers[of.writer("L1H1")].id == "a1.h1"
    assert of.readers[of.reader("a11.h10<v>")].label == "L11H10 v"
    assert of.n_writers_before[of.reader("L10H0 q")] == 1 + 10 * 13
    assert len(of.writers_named("L1")) == len(of.writers_named("L11")) == 13


@pytest.mark.parametrize(
    "names, expected",
    [
        ("L1H2", ["a1.h2"]),
        (" l1h2 ", ["a1.h2"]),
        ("a1.h2", ["a1.h2"]),
        ((1, 2), ["a1.h2"]),
        ([(1, 2), (0, 3)], ["a0.h3", "a1.h2"]),
        ([(np.int64(1), np.int64(2))], ["a1.h2"]),
        (("m1", "input"), ["input", "m1"]),
        (["MLP1", "MLP 1", "l1  mlp", "m1"], ["m1"]),
        ("mlps", ["m0", "m1"]),
        ("L1", ["a1.h0", "a1.h1", "a1.h2", "a1.h3", "m1"]),
        (["heads", "L0"], [f"a0.h{i}" for i in range(4)] + ["m0"] + [f"a1.h{i}" for i in range(4)]),
        ((name for name in ["INPUT"]), ["input"]),
    ],
)
def test_writers_are_asked_for(names: Any, expected: list[str]) -> None:
    of = graph(2, 4, 2)
    assert [of.writers[i].id for i in of.writers_named(names)] == expected


@pytest.mark.parametrize(
    "names, expected",
    [
        ("L1H2 q", ["a1.h2<q>"]),
        ("a1.h2<Q>", ["a1.h2<q>"]),
        ("L1KV1", ["a1.kv1<k>", "a1.kv1<v>"]),
        ("a1.kv1", ["a1.kv1<k>", "a1.kv1<v>"]),
        (["logits", "L1KV0 k"], ["a1.kv0<k>", "logits"]),
        ("L1 v", ["a1.kv0<v>", "a1.kv1<v>"]),
        ("k", ["a0.kv0<k>", "a0.kv1<k>", "a1.kv0<k>", "a1.kv1<k>"]),
        ("mlps", ["m0", "m1"]),
        ("L1 MLP", ["m1"]),
        ("L0", [*(f"a0.h{i}<q>" for i in range(4)), *(f"a0.kv{i}<{kind}>" for kind in "kv" for i in range(2)), "m0"]),
    ],
)
def test_readers_are_asked_for(names: Any, expected: list[str]) -> None:
    of = graph(2, 4, 2)
    assert [of.readers[i].id for i in of.readers_named(names)] == expected


@pytest.mark.parametrize("names", ["L1H2", "a1.h2", (1, 2), [(1, 2)]])
def test_a_head_as_a_reader_is_its_queries_keys_and_values(names: Any) -> None:
    of = graph(2, 4)
    assert [of.readers[i].id for i in of.readers_named(names)] == ["a1.h2<q>", "a1.h2<k>", "a1.h2<v>"]
    assert len(of.readers_named("heads")) == 24


def test_names_that_the_graph_has_not() -> None:
    of = graph(12, 12)
    with pytest.raises(
        ValueError,
        match=r"^no writer is called 'L12H1' \(in senders\): the model has layers 0 to 11, of up to 12 heads; "
        r"the nearest names are L\d+H1\d?, L\d+H\d+, L\d+H\d+$",
    ):
        of.writers_named("L12H1")
    with pytest.raises(
        ValueError, match=r"^no reader is called 'logit' \(in receivers\): .*; the nearest names are logits"
    ):
        of.readers_named(["q", "logit"])
    with pytest.raises(ValueError, match=r"nearest names are mlps,"):
        of.readers_named("mpls")
    with pytest.raises(ValueError, match=r"^no writer is called 'whatever' \(in senders\): the model has .* 12 heads$"):
        of.writers_named("whatever")
    with pytest.raises(ValueError, match=r"^no reader is called 'input' \(in receivers\)"):
        of.readers_named("input")
    with pytest.raises(ValueError, match=r"^no writer is called 'L9H9 q' \(in senders\).*nearest names are L9H9"):
        of.writers_named("L9H9 q")


@pytest.mark.parametrize("name", [5, None, (1, 2, 3), ("L1H1", 2), (1.0, 2), True])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^no writer is called .* \(in senders\): expected an id, a label or \(layer, head\)$"
    ):
        graph(2, 4).writers_named([name])
    if not isinstance(name, tuple | None):
        with pytest.raises(ValueError, match="expected an id"):
            graph(2, 4).writers_named(name)


@pytest.mark.parametrize("names", [[], (), np.array([])])
def test_no_names_are_refused(names: Any) -> None:
    with pytest.raises(ValueError, match=r"receivers is empty: give at least one name, .* or None for all"):
        graph(2, 4).readers_named(names)


@pytest.mark.parametrize(
    "name, instead",
    [("L1H3 k", "L1KV1 k"), ("a1.h3<V>", "L1KV1 v"), ("L1H0", "L1H0 q and L1KV0"), ((0, 2), "L0H2 q and L0KV1")],
)
def test_keys_and_values_of_one_head_among_those_that_share_them(name: Any, instead: str) -> None:
    of = graph(2, 4, 2)
    with pytest.raises(ValueError, match=f"heads share keys and values in this model, give {instead}$"):
        of.readers_named([name])
    of.readers_named(instead.split(" and "))  # what is said can be given
    with pytest.raises(ValueError, match="the nearest names are"):
        of.readers_named("L1H4 k")


def test_one_node_is_asked_for_by_a_name_of_its_own() -> None:
    of = graph(2, 4)
    assert of.writer((1, 2)) == of.writer("L1H2") == 8
    with pytest.raises(ValueError, match=r"^'L1' stands for 5 writers \(L1H0, L1H1, L1H2, ...\): name one of them$"):
        of.writer("L1")
    with pytest.raises(ValueError, match=r"^'mlps' stands for 2 writers \(L0 MLP, L1 MLP\): name one of them$"):
        of.writer("mlps")
    with pytest.raises(ValueError, match=r"^'L1H2' stands for 3 readers \(L1H2 q, L1H2 k, L1H2 v\): name one of them"):
        of.reader("L1H2")
    with pytest.raises(
        ValueError, match=r"^no writer is called 'L7H0': the model has layers 0 to 1, of up to 4 heads; the nearest"
    ):
        of.writer("L7H0")


def test_the_key_value_head_of_a_query_head() -> None:
    assert [graph(1, 6, 2).key_value_head(0, head) for head in range(6)] == [0, 0, 0, 1, 1, 1]
    assert [graph(1, 3).key_value_head(0, head) for head in range(3)] == [0, 1, 2]


def test_a_layer_without_attention_and_one_without_an_mlp() -> None:
    of = Graph("m", (0, 4), (0, 2), (True, False))
    assert [writer.id for writer in of.writers] == ["input", "m0", "a1.h0", "a1.h1", "a1.h2", "a1.h3"]
    assert Counter(reader.kind for reader in of.readers) == {"mlp": 1, "q": 4, "k": 2, "v": 2, "logits": 1}
    assert of.n_writers_before.tolist() == [1] + [2] * 8 + [6]


def test_graphs_are_values() -> None:
    of = graph(2, 4)
    assert of == Graph("m", [4, 4], [4, 4], [True, True])  # type: ignore[arg-type]
    assert hash(of) == hash(graph(2, 4)) and of != dataclasses.replace(of, is_parallel=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        of.is_parallel = True  # type: ignore[misc]


@pytest.mark.parametrize(
    "heads, keys, mlps, message",
    [
        ((4,), (4, 4), (True, True), r"heads, key_value_heads and mlps have 1, 2 and 2 entries: give one per layer"),
        ((4, 4), (4, 3), (True, True), r"layer 1 has 4 heads and 3 key-value heads: expected whole groups"),
        ((4, 0), (4, 2), (True, True), r"layer 1 has 0 heads and 2 key-value heads"),
        ((4,), (0,), (True,), r"layer 0 has 4 heads and 0 key-value heads"),
        ((-4,), (-4,), (True,), r"layer 0 has -4 heads"),
        ((), (), (), r"the graph has no layers"),
    ],
)
def test_graphs_that_cannot_be(heads: Any, keys: Any, mlps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Graph("m", heads, keys, mlps)
