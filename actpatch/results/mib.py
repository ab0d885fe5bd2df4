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
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import ArrayLike

from actpatch.core.circuits import Circuit
from actpatch.core.edge_patches import EdgePatches, edge_patches
from actpatch.core.files import write_file
from actpatch.core.graph import Graph, Reader
from actpatch.core.heavy import pd
from actpatch.core.text import MOST_LISTED, shortened
from actpatch.core.warn import warn_user

Copies = Literal["equal", "sum"]


def to_mib_json(
    edges: EdgePatches | Circuit,
    scores: ArrayLike | None,
    path: str | Path,
    *,
    kept: ArrayLike | None = None,
) -> Path:
    """Write edges with their scores, or a circuit, which EAP-IG's `Graph.from_json` reads.

    An edge that has no score, or is not among `edges`, is left out: it is read as one of score 0 outside the circuit.
    Keys and values that heads share are written once for each of these heads, with one score. A node is in the circuit
    where an edge that goes into it is kept and one that goes out of it. Scores may be exact effects or estimates; such
    files do not say which.

    Args:
        edges: edges at all positions; or a circuit, which stands for all edges of its graph and says which are kept.
        scores: one number for each edge; NaN where it was not measured. None, of a circuit alone, gives its edges 1 and
            all others 0, so that what ranks edges by their scores finds the circuit.
        path: the file.
        kept: True for each edge that is in the circuit, False for each other one; None for none, as of edges that are
            scored and not yet chosen, or where a circuit is given.

    Returns:
        The file.

    Raises:
        OSError: where the file cannot be written.
        ValueError: for edges at positions or given twice, for scores and `kept` of another length, for an infinite
            score, for a kept edge without one, for edges without scores, for a circuit that tells positions apart, and
            for `kept` beside one.
    """
    if isinstance(edges, Circuit):
        if kept is not None:
            raise ValueError("kept is given beside a circuit, which says itself which edges are kept: leave it out")
        if edges.positions:
            raise ValueError("these files know no positions, which this circuit tells apart: write circuit.everywhere")
        kept, scores = edges.edges, edges.edges.astype(np.float64) if scores is None else scores
        edges = edge_patches(edges.graph)
    elif scores is None:
        raise ValueError(
            f"scores is None, expected a number for each of {len(edges):,} edges: a circuit alone has none"
        )
    values = np.asarray(scores, dtype=np.float64)
    is_kept = np.zeros(len(edges), dtype=bool) if kept is None else np.asarray(kept)
    _check_writable(edges, values, is_kept)
    graph = edges.graph
    senders, into = [writer.id for writer in graph.writers], [_names(graph, reader) for reader in graph.readers]
    columns = (edges.writers.tolist(), edges.readers.tolist(), values.tolist(), is_kept.tolist())
    written = {
        f"{senders[writer]}->{name}": {"score": score, "in_graph": keep}
        for writer, reader, score, keep in zip(*columns)
        if not math.isnan(score)
        for name in into[reader]
    }
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
    edges = edge_patches(graph)
    of_edge, scores, is_kept, is_there = _read(path, graph)
    n_scored = np.add.reduceat(~np.isnan(scores), of_edge)
    lowest, highest = np.fmin.reduceat(scores, of_edge), np.fmax.reduceat(scores, of_edge)
    any_kept, all_kept = np.logical_or.reduceat(is_kept, of_edge), np.logical_and.reduceat(is_kept, of_edge)
    n_names = np.diff(of_edge, append=len(scores))
    apart = (any_kept & ~all_kept) | (lowest < highest) | ((n_scored > 0) & (n_scored < n_names))
    if copies == "equal" and apart.any():
        first = edges.id(int(apart.argmax()))
        raise ValueError(
            f"{path} differs between heads that share keys and values, at {int(apart.sum()):,} edges (first, "
            f"{first}): give copies='sum' to add up their scores"
        )
    if not is_there.all():
        _warn_of_missing(path, edges, of_edge, np.flatnonzero(~is_there), len(scores))
    sums = np.add.reduceat(np.where(np.isnan(scores), 0.0, scores), of_edge)
    found = np.where(n_scored > 0, lowest if copies == "equal" else sums, np.nan)
    return pd.DataFrame({"id": edges.ids, "label": edges.labels, "score": found, "in_graph": any_kept})


def circuit_from_mib_json(path: str | Path, graph: Graph, *, copies: Copies = "equal") -> Circuit:
    """The circuit in a file of EAP-IG or MIB: the edges that it says are in the graph.

    Arguments, errors and warnings are those of `from_mib_json`, which gives the scores too. The nodes of such files say
    nothing more: they are in the graph where edges go into them and out of them.

    Raises:
        OSError: where the file cannot be read.
        ValueError: where it is no such file, or is of another model, or has different entries for heads that share.
    """
    is_kept = from_mib_json(path, graph, copies=copies)["in_graph"].to_numpy(dtype=bool)
    return Circuit(graph, is_kept, f"read from {Path(path).name}")


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
    circuit = Circuit.of(graph, edges.numbers[is_kept].tolist())
    found = {writer.id: writer.label in circuit.nodes for writer in graph.writers}
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
    if len(np.unique(edges.numbers)) < len(edges):
        raise ValueError("some edges are given twice: give each edge once")
    for is_wrong, what in (
        (np.isinf(scores), "has an infinite score: give a finite one, or NaN where it was not measured"),
        (is_kept & np.isnan(scores), "is kept and has no score: give it one, for instance 0"),
    ):
        if is_wrong.any():
            raise ValueError(f"edge {edges.id(int(is_wrong.argmax()))} {what}")


def _read(
    path: str | Path, graph: Graph
) -> tuple[Int[np.ndarray, " edge"], Float[np.ndarray, " name"], Bool[np.ndarray, " name"], Bool[np.ndarray, " name"]]:
    """What a file that is about this graph says of each name of an edge, edges in the order of `edge_patches`.

    Returns:
        The number of the first name of each edge; and of each name its score (NaN where it has none), whether it is in
        the circuit, and whether the file has it.
    """
    nodes, entries = _parts(path, graph)
    senders = {writer.id: number for number, writer in enumerate(graph.writers)}
    places: dict[str, tuple[int, int, int]] = {}
    names_of_edges, n_all = [], 0
    for reader, n_before in zip(graph.readers, graph.n_writers_before.tolist()):
        names = _names(graph, reader)
        places.update({name: (n_before, len(names), n_all + i) for i, name in enumerate(names)})
        names_of_edges.append(np.full(n_before, len(names)))
        n_all += n_before * len(names)
    scores, is_kept, is_there = np.full(n_all, np.nan), np.zeros(n_all, dtype=bool), np.zeros(n_all, dtype=bool)
    unknown = [name for name in nodes if name not in senders and name != "logits"]
    for name, entry in entries.items():
        sender, _, receiver = name.partition("->")
        n_before, step, first = places.get(receiver, (0, 0, 0))
        number = senders.get(sender, n_before)
        if number >= n_before:
            unknown.append(name)
            continue
        at = first + number * step
        scores[at], is_kept[at] = _entry(path, name, entry)
        is_there[at] = True
    if unknown:
        n_names = len(nodes) + len(entries)
        raise ValueError(f"{path} is of another model: {graph.model} has no {_listed(unknown, len(unknown), n_names)}")
    n_names_of = np.concatenate(names_of_edges)
    return np.cumsum(n_names_of) - n_names_of, scores, is_kept, is_there


def _parts(path: str | Path, graph: Graph) -> tuple[dict[str, Any], dict[str, Any]]:
    """The nodes and the edges of a file about a model of this graph's sizes."""
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        cfg, nodes, entries = (dict(stored[part]) for part in ("cfg", "nodes", "edges"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of EAP-IG or MIB: expected JSON with cfg, nodes and edges") from error
    differing = [
        f"{name} is {cfg[name]!r}, of {graph.model} {size!r}"
        for name, size in _sizes(graph).items()
        if name in cfg and cfg[name] != size
    ]
    if differing:
        raise ValueError(f"{path} is of another model: {'; '.join(differing)}")
    return nodes, entries


def _warn_of_missing(
    path: str | Path, edges: EdgePatches, of_edge: Int[np.ndarray, " edge"], missing: Int[np.ndarray, " _"], n_all: int
) -> None:
    names = []
    for number in missing[:MOST_LISTED]:
        edge = int(np.searchsorted(of_edge, number, side="right")) - 1
        reader = _names(edges.graph, edges.graph.readers[edges.readers[edge]])[number - of_edge[edge]]
        names.append(f"{edges.graph.writers[edges.writers[edge]].id}->{reader}")
    listed = _listed(names, len(missing), n_all)
    warn_user(f"{path} has no entry for {listed}: they have no score and are not in the circuit")


def _entry(path: str | Path, name: str, entry: Any) -> tuple[float, bool]:
    if isinstance(entry, Mapping):
        score, is_kept = entry.get("score"), entry.get("in_graph", False)
        is_number = isinstance(score, int | float) and not isinstance(score, bool)
        if (score is None or is_number) and isinstance(is_kept, bool):
            return math.nan if score is None else float(score), is_kept
    raise ValueError(
        f"{path} has {shortened(entry)} for edge {name}: expected score, a number or null, and in_graph, a truth value"
    )


def _listed(names: list[str], n: int, n_all: int) -> str:
    """The first of `n` names, which are given, of `n_all`."""
    more = f" and {n - MOST_LISTED:,} more" if n > MOST_LISTED else ""
    return f"{', '.join(names[:MOST_LISTED])}{more} ({n:,} of {n_all:,} names)"
