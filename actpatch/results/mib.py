"""Scores of edges, and which of them a circuit keeps, as the JSON files of EAP-IG and of the MIB benchmark.

Such a file holds `cfg` (sizes of the model), `nodes` (name to `{"in_graph": bool}`, or to the bool alone in files of
2024) and `edges` (name to `{"score": float, "in_graph": bool}`). Names are the ids of `core.graph`, but for keys and
values that heads share: those files have an entry for each query head. They know no positions. The layout is that of
`Graph.to_json` and `Graph.from_json` in https://github.com/hannamw/EAP-IG (commit 4fad6c6, Hanna et al. 2024, "Have
Faith in Faithfulness"), which https://github.com/hannamw/MIB-circuit-track reads too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Shaped
from numpy.typing import ArrayLike

from actpatch.core.edge_patches import EdgePatches, edge_patches
from actpatch.core.graph import Graph, Reader
from actpatch.core.heavy import pd
from actpatch.core.text import MOST_LISTED, shortened
from actpatch.core.warn import warn_user
from actpatch.results.files import write_file

Copies = Literal["equal", "sum"]


def to_mib_json(
    edges: EdgePatches,
    scores: ArrayLike,
    path: str | Path,
    *,
    kept: ArrayLike | None = None,
) -> Path:
    """Write edges with their scores, which EAP-IG's `Graph.from_json` reads.

    An edge that has no score, or is not among `edges`, is left out: it is read as one of score 0 outside the circuit.
    Keys and values that heads share are written once for each of these heads, with one score. A node is in the circuit
    where an edge that goes into it is kept and one that goes out of it.

    Args:
        edges: edges at all positions.
        scores: one number for each edge; NaN where it was not measured.
        path: the file.
        kept: True for each edge that is in the circuit, False for each other one; None for none, as of edges that are
            scored and not yet chosen.

    Returns:
        The file.

    Raises:
        OSError: where the file cannot be written.
        ValueError: for edges at positions or given twice, for scores and `kept` of another length, for an infinite
            score, and for a kept edge without one.
    """
    values = np.asarray(scores, dtype=np.float64)
    is_kept = np.zeros(len(edges), dtype=bool) if kept is None else np.asarray(kept)
    _check_writable(edges, values, is_kept)
    graph = edges.graph
    into = [_names(graph, reader) for reader in graph.readers]
    written = {}
    for writer, reader, score, keep in zip(edges.writers, edges.readers, values.tolist(), is_kept.tolist()):
        if not math.isnan(score):
            for name in into[reader]:
                written[f"{graph.writers[writer].id}->{name}"] = {"score": score, "in_graph": keep}
    content = {"cfg": _sizes(graph), "nodes": _nodes(edges, is_kept), "edges": written}
    return write_file(path, json.dumps(content, allow_nan=False).encode())


def from_mib_json(path: str | Path, graph: Graph, *, copies: Copies = "equal") -> pd.DataFrame:
    """Scores of the edges of a graph, and which of them are in the circuit, from a file of EAP-IG or MIB.

    Args:
        path: the file.
        graph: of the model that it is about (`graph_of(model)`).
        copies: what is done with the entries of keys or values that heads share, of which such a file has one per
            query head. `"equal"`: they have to be the same. `"sum"`: their scores are added up, which is the score of
            the shared ones where scores are gradients; the edge is in the circuit where one of them is.

    Returns:
        A row per edge, in the order of `edge_patches(graph)`: `id`, `label`, `score` (NaN where the file has none) and
        `in_graph`.

    Raises:
        OSError: where the file cannot be read.
        ValueError: where it is no such file, or is of another model, or has different entries for heads that share.

    Warns:
        UserWarning: where it has no entry for some edges.
    """
    if copies not in ("equal", "sum"):
        raise ValueError(f"copies is {copies!r}, expected 'equal' or 'sum'")
    entries = _entries(path, graph)
    edges = edge_patches(graph)
    into = [_names(graph, reader) for reader in graph.readers]
    senders = [writer.id for writer in graph.writers]
    scores, is_kept = np.full(len(edges), np.nan), np.zeros(len(edges), dtype=bool)
    missing, apart = [], []
    for edge, (writer, reader) in enumerate(zip(edges.writers.tolist(), edges.readers.tolist())):
        names = [f"{senders[writer]}->{name}" for name in into[reader]]
        found = [entries[name] for name in names if name in entries]
        missing += [name for name in names if name not in entries]
        if not found:
            continue
        scored = [score for score, _ in found if not math.isnan(score)]
        if copies == "equal" and (len({*scored}) > 1 or 0 < len(scored) < len(names) or len({k for _, k in found}) > 1):
            apart.append((edge, names))
        scores[edge] = (scored[0] if copies == "equal" else sum(scored)) if scored else np.nan
        is_kept[edge] = any(keep for _, keep in found)
    if apart:
        edge, names = apart[0]
        raise ValueError(
            f"{path} differs between heads that share keys and values, at {len(apart)} edges ({names[0]} and other "
            f"heads of {edges.id(edge)}): give copies='sum' to add up their scores"
        )
    if missing:
        n_all = sum(len(into[reader]) for reader in edges.readers.tolist())
        warn_user(f"{path} has no entry for {_listed(missing, n_all)}: they have no score and are not in the circuit")
    return pd.DataFrame({"id": edges.ids, "label": edges.labels, "score": scores, "in_graph": is_kept})


def _names(graph: Graph, reader: Reader) -> list[str]:
    """What such files call a reader: one name, or one for each query head that shares it."""
    if not reader.is_key_value_head:
        return [reader.id]
    heads = range(graph.heads[reader.layer])
    sharing = [head for head in heads if graph.key_value_head(reader.layer, head) == reader.head]
    return [Reader(reader.kind, reader.layer, head).id for head in sharing]


def _sizes(graph: Graph) -> dict[str, Any]:
    sizes = {"n_layers": graph.n_layers, "n_heads": max(graph.heads), "parallel_attn_mlp": graph.is_parallel}
    return sizes if graph.d_model is None else {**sizes, "d_model": graph.d_model}


def _nodes(edges: EdgePatches, is_kept: Bool[np.ndarray, " edge"]) -> dict[str, dict[str, bool]]:
    graph = edges.graph
    writes = {graph.writers[i].id for i in np.unique(edges.writers[is_kept])}
    reads = {
        name.partition("<")[0] for i in np.unique(edges.readers[is_kept]) for name in _names(graph, graph.readers[i])
    }
    found = {writer.id: writer.id in writes and writer.id in {*reads, "input"} for writer in graph.writers}
    return {name: {"in_graph": is_in} for name, is_in in {**found, "logits": True}.items()}


def _check_writable(edges: EdgePatches, scores: Shaped[np.ndarray, "..."], is_kept: Shaped[np.ndarray, "..."]) -> None:
    if len(edges.places) > 1 or any(site.position is not None for site in edges.places[0]):
        raise ValueError(
            "these edges are patched at positions, which such files do not know: give edges at all positions"
        )
    for name, array in (("scores", scores), ("kept", is_kept)):
        if array.shape != (len(edges),):
            raise ValueError(f"{name} has shape {array.shape}, expected one entry for each of {len(edges):,} edges")
    if is_kept.dtype != bool:
        raise ValueError(f"kept holds {is_kept.dtype} values, expected True or False for each edge")
    number = edges.readers * len(edges.graph.writers) + edges.writers
    if len(np.unique(number)) < len(edges):
        raise ValueError("some edges are given twice: give each edge once")
    for is_wrong, what in (
        (np.isinf(scores), "has an infinite score: give a finite one, or NaN where it was not measured"),
        (is_kept & np.isnan(scores), "is kept and has no score: give it one, for instance 0"),
    ):
        if is_wrong.any():
            raise ValueError(f"edge {edges.id(int(is_wrong.argmax()))} {what}")


def _entries(path: str | Path, graph: Graph) -> dict[str, tuple[float, bool]]:
    """Score, NaN where it has none, and membership by name, of a file that is about this graph."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        cfg, nodes, edges = (dict(stored[part]) for part in ("cfg", "nodes", "edges"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of EAP-IG or MIB: expected JSON with cfg, nodes and edges") from error
    expected = _sizes(graph)
    differing = [
        f"{name} is {cfg[name]!r}, of {graph.model} {size!r}"
        for name, size in expected.items()
        if name in cfg and cfg[name] != size
    ]
    if differing:
        raise ValueError(f"{path} is of another model: {'; '.join(differing)}")
    known = {writer.id for writer in graph.writers} | {"logits"}
    into = {name: int(n) for r, n in zip(graph.readers, graph.n_writers_before) for name in _names(graph, r)}
    number = {writer.id: i for i, writer in enumerate(graph.writers)}
    unknown = [name for name in nodes if name not in known]
    for name in edges:
        sender, _, receiver = name.partition("->")
        if number.get(sender, len(number)) >= into.get(receiver, 0):
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{path} is of another model: {graph.model} has no {_listed(unknown, len(nodes) + len(edges))}"
        )
    return {name: _entry(path, name, entry) for name, entry in edges.items()}


def _entry(path: str | Path, name: str, entry: Any) -> tuple[float, bool]:
    if isinstance(entry, Mapping):
        score, is_kept = entry.get("score"), entry.get("in_graph", False)
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if (score is None or is_number) and isinstance(is_kept, bool):
            return math.nan if score is None else float(score), is_kept
    raise ValueError(
        f"{path} has {shortened(entry)} for edge {name}: expected score, a number or null, and in_graph, a truth value"
    )


def _listed(names: list[str], n_all: int) -> str:
    more = f" and {len(names) - MOST_LISTED:,} more" if len(names) > MOST_LISTED else ""
    return f"{', '.join(names[:MOST_LISTED])}{more} ({len(names):,} of {n_all:,} names)"
