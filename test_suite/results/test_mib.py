"""Files of EAP-IG and MIB: written as EAP-IG reads them, and read as it writes them."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actpatch import Circuit, circuit_from_mib_json, edge_patches, from_mib_json, to_mib_json
from actpatch.core.edge_patches import EdgePatches
from actpatch.core.graph import Graph
from actpatch.core.sites import Site
from test_suite.core.test_graph import graph, graphs, naive_edges

BY_EAP_IG = """{"cfg": {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": false, "d_model": 8},
"nodes": {"input": {"in_graph": true}, "a0.h0": {"in_graph": true}, "a0.h1": {"in_graph": false},
          "m0": {"in_graph": false}, "logits": {"in_graph": true}},
"edges": {"input->a0.h0<q>": {"score": 0.5, "in_graph": true}, "input->a0.h0<k>": {"score": -0.25, "in_graph": false},
          "input->a0.h0<v>": {"score": 1e-07, "in_graph": false}, "input->a0.h1<q>": {"score": 0.0, "in_graph": false},
          "input->a0.h1<k>": {"score": NaN, "in_graph": false}, "input->a0.h1<v>": {"score": 2.0, "in_graph": false},
          "input->m0": {"score": 3.0, "in_graph": false}, "a0.h0->m0": {"score": 4.0, "in_graph": false},
          "a0.h1->m0": {"score": 5.0, "in_graph": false}, "input->logits": {"score": 6.0, "in_graph": false},
          "a0.h0->logits": {"score": -7.0, "in_graph": true}, "a0.h1->logits": {"score": 8.0, "in_graph": false},
          "m0->logits": {"score": 9.0, "in_graph": false}}}"""
"""Written by hand, in the layout and the order of EAP-IG's `Graph.to_json`."""


def as_eap_ig_reads(path: Path) -> dict[str, tuple[float, bool]]:
    """Score and membership of every edge, as EAP-IG takes them: 0 and out of the circuit where there is no entry.

    Keys and values are those of each head, every layer has an MLP, and of `cfg` four sizes are needed.
    """
    stored = json.loads(path.read_text())
    cfg = stored["cfg"]
    assert isinstance(cfg["d_model"], int)
    n_layers, n_heads = cfg["n_layers"], cfg["n_heads"]
    whole = Graph("m", (n_heads,) * n_layers, (n_heads,) * n_layers, (True,) * n_layers, cfg["parallel_attn_mlp"])
    found = dict.fromkeys(naive_edges(whole), (0.0, False))
    for name, info in stored["edges"].items():
        assert name in found
        found[name] = (info["score"], info["in_graph"])
    for name, info in stored["nodes"].items():
        assert name == "logits" or name in {edge.partition("->")[0] for edge in found}
        assert isinstance(info["in_graph"], bool)
    return found


def scored(of: Graph, seed: int = 0) -> tuple[EdgePatches, np.ndarray, np.ndarray]:
    """All edges, with scores and membership at random."""
    random = np.random.default_rng(seed)
    edges = edge_patches(of)
    return edges, random.normal(size=len(edges)), random.random(len(edges)) < 0.3


def written(path: Path, change: Any = None) -> Path:
    """The file written by hand, with a change made to what it holds."""
    stored = json.loads(BY_EAP_IG)
    if change is not None:
        change(stored)
    path.write_text(json.dumps(stored))
    return path


def test_a_file_of_eap_ig_is_read(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(BY_EAP_IG)
    table = from_mib_json(path, graph(1, 2, d_model=8))
    assert table.columns.tolist() == ["id", "label", "score", "in_graph"]
    assert table.id.tolist() == naive_edges(graph(1, 2))
    assert table.label.tolist()[:2] == ["input → L0H0 q", "input → L0H1 q"]
    of = table.set_index("id")
    assert of.score["input->a0.h0<k>"] == -0.25 and of.score["a0.h0->logits"] == -7.0
    assert of.score["input->a0.h0<v>"] == 1e-7 and math.isnan(of.score["input->a0.h1<k>"])
    assert of.index[of.in_graph].tolist() == ["input->a0.h0<q>", "a0.h0->logits"]


def test_both_spellings_of_nodes_and_scores_are_read(tmp_path: Path) -> None:
    def as_in_2024(stored: dict[str, Any]) -> None:
        stored["nodes"] = {name: node["in_graph"] for name, node in stored["nodes"].items()}
        del stored["nodes"]["logits"], stored["cfg"]["d_model"]
        stored["edges"]["input->a0.h1<k>"]["score"] = None
        del stored["edges"]["input->m0"]["score"]

    now, then = (from_mib_json(written(tmp_path / "g.json", c), graph(1, 2)) for c in (None, as_in_2024))
    now.loc[now.id == "input->m0", "score"] = np.nan
    assert then.equals(now)


@given(graphs(), st.integers(0, 1000), st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory: Any, of: Graph, seed: int, partly: bool) -> None:
    of = dataclasses.replace(of, d_model=8)
    edges, scores, kept = scored(of, seed)
    if partly:
        scores[~kept & (np.arange(len(edges)) % 2 == 0)] = np.nan
    path = to_mib_json(edges, scores, tmp_path_factory.mktemp("mib") / "g.json", kept=kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if partly else "error")
        table = from_mib_json(path, of)
    np.testing.assert_array_equal(table.score, scores)
    np.testing.assert_array_equal(table.in_graph, kept)
    assert table.id.tolist() == edges.ids and table.label.tolist() == edges.labels


@pytest.mark.parametrize("of", [graph(2, 3), graph(2, 3, is_parallel=True), graph(2, 4, 2), graph(11, 1)], ids=repr)
def test_eap_ig_reads_what_is_written(of: Graph, tmp_path: Path) -> None:
    of = dataclasses.replace(of, d_model=8)
    edges, scores, kept = scored(of)
    found = as_eap_ig_reads(to_mib_json(edges, scores, tmp_path / "g.json", kept=kept))
    values = dict(zip(edges.ids, zip(scores.tolist(), kept.tolist())))
    n_groups = of.key_value_heads[0]
    for name, value in found.items():
        sender, receiver = name.split("->")
        if of.is_grouped and receiver.endswith(("<k>", "<v>")):
            layer, head, kind = int(receiver[1]), int(receiver[4]), receiver[-2]
            name = f"{sender}->a{layer}.kv{head // (of.heads[0] // n_groups)}<{kind}>"
        assert values[name] == value


def test_edges_that_are_left_out_are_out_of_the_circuit(tmp_path: Path) -> None:
    of = graph(2, 2, d_model=8)
    edges = edge_patches(of, ["L0H1", "m0"], "logits")
    path = to_mib_json(edges, np.array([0.5, np.nan]), tmp_path / "g.json", kept=np.array([True, False]))
    found = as_eap_ig_reads(path)
    assert found.pop("a0.h1->logits") == (0.5, True) and set(found.values()) == {(0.0, False)}
    with pytest.warns(UserWarning, match=r"g.json has no entry for input->a0.h0<q>, .* and 40 more \(45 of 46 names\)"):
        table = from_mib_json(path, of)
    assert table.score.notna().sum() == table.in_graph.sum() == 1


def test_a_node_is_in_the_circuit_that_is_fed_and_read(tmp_path: Path) -> None:
    edges = edge_patches(graph(2, 4, 2))
    kept = np.isin(edges.ids, ["input->a0.kv1<v>", "a0.h2->m0", "a0.h1->m0", "m0->a1.h3<q>", "a1.h3->logits"])
    nodes = json.loads(to_mib_json(edges, np.ones(len(edges)), tmp_path / "g.json", kept=kept).read_text())["nodes"]
    assert list(nodes) == [*(writer.id for writer in edges.graph.writers), "logits"]
    assert [name for name, node in nodes.items() if node["in_graph"]] == ["input", "a0.h2", "m0", "a1.h3", "logits"]
    scores = to_mib_json(edges, np.ones(len(edges)), tmp_path / "s.json")
    nodes = json.loads(scores.read_text())["nodes"]
    assert [name for name, node in nodes.items() if node["in_graph"]] == ["logits"]


def test_keys_and_values_that_heads_share_are_read_from_those_of_each(tmp_path: Path) -> None:
    shared, path = graph(1, 2, 1), written(tmp_path / "g.json")
    with pytest.raises(
        ValueError,
        match=r"differs between heads that share keys and values, at 2 edges \(first, input->a0.kv0<k>\): give "
        r"copies='sum' to add up their scores$",
    ):
        from_mib_json(path, shared)
    with pytest.raises(ValueError, match="copies is 'mean', expected 'equal' or 'sum'"):
        from_mib_json(path, shared, copies="mean")  # type: ignore[arg-type]
    summed = from_mib_json(path, shared, copies="sum").set_index("id").score
    assert summed["input->a0.kv0<v>"] == 1e-7 + 2.0 and summed["input->a0.kv0<k>"] == -0.25  # the other is NaN
    assert summed["input->a0.h0<q>"] == 0.5

    def one_kept(stored: dict[str, Any]) -> None:
        for head in (0, 1):
            for kind in "kv":
                stored["edges"][f"input->a0.h{head}<{kind}>"] = {"score": 1.0, "in_graph": (head, kind) == (1, "v")}

    path = written(tmp_path / "g.json", one_kept)
    with pytest.raises(ValueError, match=r"at 1 edges \(first, input->a0.kv0<v>\)"):
        from_mib_json(path, shared)
    table = from_mib_json(path, shared, copies="sum").set_index("id")
    assert table.in_graph["input->a0.kv0<v>"] and not table.in_graph["input->a0.kv0<k>"]
    assert table.score["input->a0.kv0<v>"] == 2.0


@pytest.mark.parametrize(
    "of, message",
    [
        (graph(2, 2), "is of another model: n_layers is 1, of m 2$"),
        (graph(1, 4, is_parallel=True), "n_heads is 2, of m 4; parallel_attn_mlp is False, of m True$"),
        (graph(1, 2, d_model=16), "d_model is 8, of m 16$"),
        (graph(1, 2, mlps=(False,)), r"another model: m has no m0, input->m0, a0.h0->m0, a0.h1->m0, m0->logits \(5 of"),
    ],
)
def test_a_file_of_another_model_is_refused(of: Graph, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        from_mib_json(written(tmp_path / "g.json"), of)


@pytest.mark.parametrize(
    "name", ["m0->a0.h0<q>", "a0.h0->a0.h1<k>", "logits->m0", "m0->m0", "input->a0.h0", "x", "m0->"]
)
def test_edges_that_the_graph_has_not_are_refused(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "g.json", lambda stored: stored["edges"].update({name: {"score": 0, "in_graph": False}}))
    with pytest.raises(ValueError, match=r"is of another model: m has no .* \(1 of 19 names\)$"):
        from_mib_json(path, graph(1, 2))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "3", '{"cfg": {}, "nodes": {}}', '{"cfg": {}, "nodes": {}, "edges": 3}', "\xff", '{"format": 8}'],
)
def test_what_is_no_such_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(
        ValueError, match=r"g.json is no file of EAP-IG or MIB: expected JSON with cfg, nodes and edges"
    ):
        from_mib_json(path, graph(1, 2))
    with pytest.raises(OSError):
        from_mib_json(tmp_path / "missing.json", graph(1, 2))


@pytest.mark.parametrize("entry", [0.5, True, {"score": "0.5", "in_graph": True}, {"score": 1, "in_graph": 1}])
def test_entries_of_another_kind_are_refused(entry: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "g.json", lambda stored: stored["edges"].update({"input->m0": entry}))
    with pytest.raises(ValueError, match="for edge input->m0: expected score, a number or null, and in_graph"):
        from_mib_json(path, graph(1, 2))


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    edges, path = edge_patches(graph(1, 2)), tmp_path / "g.json"
    ones, all_kept = np.ones(len(edges)), np.ones(len(edges), dtype=bool)
    nan, infinite = ones.copy(), ones.copy()
    nan[3], infinite[4] = np.nan, -np.inf
    at = edge_patches(graph(1, 2), places=((Site("", position=2),),))
    refusals = [
        ((at, ones, None), "patched at positions, which such files do not know: give edges at all positions"),
        ((edges, ones[1:], None), r"scores has shape \(12,\), expected one entry for each of 13 edges"),
        ((edges, ones, all_kept[1:]), r"kept has shape \(12,\)"),
        ((edges, ones, ones), "kept holds float64 values, expected True or False"),
        ((edges.taken([1, 2, 1]), ones[:3], None), "some edges are given twice"),
        ((edges, infinite, None), "edge input->a0.h0<v> has an infinite score"),
        ((edges, nan, all_kept), r"edge input->a0.h1<k> is kept and has no score: give it one"),
    ]
    for (given_edges, scores, kept), message in refusals:
        with pytest.raises(ValueError, match=message):
            to_mib_json(given_edges, scores, path, kept=kept)
    assert not path.exists()
    with pytest.raises(OSError, match="cannot write"):
        to_mib_json(edges, ones, tmp_path / "no" / "folder.json")


# --- circuits ---


@given(graphs(), st.integers(0, 1000))
def test_a_circuit_that_is_written_is_read_back(tmp_path_factory: Any, of: Graph, seed: int) -> None:
    of = dataclasses.replace(of, d_model=8)
    circuit = Circuit(of, np.random.default_rng(seed).random(len(of)) < 0.3)
    path = to_mib_json(circuit, None, tmp_path_factory.mktemp("mib") / "g.json")
    read = circuit_from_mib_json(path, of)
    assert read == circuit and read.found_by == "read from g.json"
    np.testing.assert_array_equal(from_mib_json(path, of).score, circuit.edges.astype(float))


def test_a_circuit_of_gpt2_small_is_one_to_eap_ig(tmp_path: Path) -> None:
    of = graph(12, 12, d_model=768)
    circuit = Circuit.of_nodes(of, ["input", "L5H3", "L9H9", "m9", "logits"])
    scores = np.random.default_rng(0).normal(size=len(of))
    found = as_eap_ig_reads(to_mib_json(circuit, scores, tmp_path / "g.json"))
    assert len(found) == 32_491 and [name for name, (_, is_in) in found.items() if is_in] == circuit.edge_ids
    assert [score for score, _ in found.values()] == scores.tolist()
    nodes = json.loads((tmp_path / "g.json").read_text())["nodes"]
    assert [name for name, node in nodes.items() if node["in_graph"]] == ["input", "a5.h3", "a9.h9", "m9", "logits"]
    assert circuit_from_mib_json(tmp_path / "g.json", of) == circuit


def test_the_circuit_of_a_file_of_eap_ig_is_read(tmp_path: Path) -> None:
    circuit = circuit_from_mib_json(written(tmp_path / "g.json"), graph(1, 2, d_model=8))
    assert circuit.edge_ids == ["input->a0.h0<q>", "a0.h0->logits"]
    with pytest.raises(ValueError, match="is of another model: n_layers is 1, of m 2"):
        circuit_from_mib_json(tmp_path / "g.json", graph(2, 2))


def test_scores_and_kept_belong_to_edges_and_a_circuit_has_its_own(tmp_path: Path) -> None:
    circuit = Circuit.full(graph(1, 2))
    with pytest.raises(ValueError, match="kept is given beside a circuit"):
        to_mib_json(circuit, None, tmp_path / "g.json", kept=circuit.edges)
    with pytest.raises(ValueError, match="scores is None, expected a number for each of 13 edges"):
        to_mib_json(edge_patches(circuit.graph), None, tmp_path / "g.json")
    with pytest.raises(ValueError, match="is kept and has no score"):
        to_mib_json(circuit, np.full(13, np.nan), tmp_path / "g.json")
    assert not (tmp_path / "g.json").exists()
