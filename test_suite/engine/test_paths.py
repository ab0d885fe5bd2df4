"""Paths and path patching by the engine, against hooked runs of the whole model for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from actpatch.core.edge_patches import GraphPatches, edge_patches
from actpatch.core.graph import Graph, Reader, Writer
from actpatch.core.path_patches import head_paths, path_patches
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.measured import Measured
from actpatch.models.graph import graph_of
from test_suite.engine.test_edges import EXACT, pairs_of
from test_suite.helpers.edges import edge_model
from test_suite.helpers.models import encoded, last_position_metric, model_parameters
from test_suite.helpers.thinned import thinned
from test_suite.oracles.paths import logits_of_path_patching, logits_of_paths

MODELS = model_parameters(
    *("hooked:learned", "hooked:grouped", "hooked:parallel", "hooked:attn_only_norm", "bridge:gpt2", "bridge:llama"),
    *("bridge:phi", "bridge:falcon", "bridge+:neox"),
)


def swept(name: str, patches: GraphPatches, direction: Any = "denoising") -> Measured:
    runs = pairs_of()
    clean, corrupted = [source for _, source in runs], [base for base, _ in runs]
    if direction == "noising":
        clean, corrupted = corrupted, clean
    engine = PatchingEngine(edge_model(name), show_progress=False)
    return engine.sweep(encoded(clean, corrupted), patches, [last_position_metric(2)], direction)


def metric(logits: Any, pair: int) -> Any:
    return (logits[..., -1, 2 + pair] - logits[..., -1, 8 + pair]).numpy()


def paths_of(graph: Graph) -> list[str]:
    """Paths of two to five nodes through heads, and through MLPs where there are some."""
    grouped = graph.is_grouped
    found = [
        "L0H1 → L2H0 q",
        "input → L1H2 v → L2H3 q → logits",
        "L0H0 → L1H1 k → L2H0 v → logits",
        "input → L0H3 q → L1H1 q → L2H2 k → logits",
        f"L1H3 → L2{'KV0' if grouped else 'H1'} v",
    ]
    if graph.mlps[0]:
        found += ["input → L0 MLP → L1H0 v → L2 MLP → logits", "m0 → m1", "L0H2 → m1 → m2 → logits"]
    return found


def by_nodes(graph: Graph, path: str) -> list[Writer | Reader]:
    """The nodes of a path as the oracle takes them, read without the library's own reading."""
    first, *rest = path.split(" → ")
    nodes: list[Writer | Reader] = [graph.writers[graph.writer(first)]]
    for i, name in enumerate(rest):
        if name.startswith("L") and name[-1] in "kv" and "H" in name and graph.is_grouped:
            layer, head = int(name[1]), int(name[3])
            group = head * graph.key_value_heads[layer] // graph.heads[layer]
            nodes.append(Reader(name[-1], layer, group, True))  # type: ignore[arg-type]
            nodes += [Writer("head", layer, head)] * (i < len(rest) - 1)
        else:
            nodes.append(graph.readers[graph.reader(name)])
    return nodes


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_path_carries_what_it_says_alone(name: str, direction: Any) -> None:
    graph = graph_of(edge_model(name))
    paths = paths_of(graph)
    measured = swept(name, path_patches(graph, paths), direction)
    for pair, (base, source) in enumerate(pairs_of()):
        expected = logits_of_paths(edge_model(name), base, source, [by_nodes(graph, path) for path in paths])
        np.testing.assert_allclose(measured.patched[0, :, pair], metric(expected, pair), atol=EXACT)
    assert (np.abs(measured.patched - measured.corrupted[:, None]) > 1e-9).any()


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODELS)
def test_a_path_of_one_step_is_its_edge(name: str) -> None:
    graph = graph_of(edge_model(name))
    edges = edge_patches(graph)
    which = np.random.default_rng(0).choice(len(edges), 12, replace=False)
    alone = swept(name, edges.taken(which)).patched
    np.testing.assert_allclose(swept(name, path_patches(graph, edges.taken(which).labels)).patched, alone, atol=EXACT)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "through"), thinned(MODELS, ["nothing", "mlps"]))
def test_path_patching_of_each_head(name: str, through: Any) -> None:
    model, graph = edge_model(name), graph_of(edge_model(name))
    own = "KV0" if graph.is_grouped else "H0"
    chosen = [["L2H1 q"], ["logits"], ["L1H1 q", f"L2{own} k", "L2H3 q", f"L2{own} v"]]
    if graph.mlps[0]:
        chosen += [["L2 MLP"], ["L1 MLP", "L2H2 q"]]
    for receivers in chosen:
        patches = head_paths(graph, receivers, through)
        readers = [graph.readers[number] for number in patches.receivers]
        measured = swept(name, patches)
        for pair, (base, source) in enumerate(pairs_of()):
            for i, number in enumerate(patches.senders):
                writer = graph.writers[number]
                if all(number >= graph.n_writers_before[reader] for reader in patches.receivers):
                    assert measured.patched[0, i, pair] == measured.corrupted[0, pair]
                    continue
                assert writer.head is not None
                head = (writer.layer, writer.head)
                reached = [
                    reader for reader, r in zip(readers, patches.receivers) if number < graph.n_writers_before[r]
                ]
                logits = logits_of_path_patching(model, base, source, head, reached, through)
                np.testing.assert_allclose(measured.patched[0, i, pair], metric(logits, pair), atol=EXACT)
