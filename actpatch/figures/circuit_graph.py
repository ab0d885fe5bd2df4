"""A circuit as a layered graph, the input at the bottom and the logits on top; a column for each of its positions.

Knows circuits, and effects of edges; it runs and computes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from actpatch.core.circuits import Circuit
from actpatch.core.edge_patches import EdgePatches, edges_of_numbers
from actpatch.core.estimate_words import titled
from actpatch.core.graph import Graph, Reader
from actpatch.core.heavy import go
from actpatch.core.text import count, described, escaped
from actpatch.figures.certainty import Certainty, certainty
from actpatch.figures.checks import check_effects, check_top_k, checked_sweep, known_heads
from actpatch.figures.colours import BLUE, GREY, LINE, RED, SOFT
from actpatch.figures.edge_graph import signs_of
from actpatch.figures.edge_nodes import Node, node_places, node_places_by_position
from actpatch.figures.frame import finish
from actpatch.figures.graph_parts import (
    ABOVE,
    BESIDE,
    COLUMN,
    HALF_HIGH,
    MOST_EDGES,
    NARROWEST,
    Curve,
    Ends,
    Places,
    boxes_of,
    curves_between,
    ends_of_edges,
    least_width,
    line_of,
    of_kinds,
    row_height,
    row_name,
    show_legend,
    show_rows,
    widths_of,
)
from actpatch.figures.words import hovers, told
from actpatch.results.edges import EdgeResults
from actpatch.statistics.resampling import ROUNDING
from actpatch.statistics.sites import SiteStatistics

FAINT = 0.3
"""Opacity of edges of which it is not sure that they have an effect."""
PLAIN = 1.6
"""Pixels of the line of an edge of unknown effect."""
SAG = 0.38
"""How far below its row the line hangs that joins a head's nodes, in rows."""
JOINED = "dashdot"
"""Of that line."""
FULL_COLOUR = "full colour:"
"""How the figure marks what is significant, in a word."""


@dataclass(frozen=True)
class DrawnEdges:
    """The edges that are drawn, at each position in turn, and what is known of them."""

    patches: EdgePatches
    """One of each."""
    at: tuple[str, ...]
    """Where each is; empty for all positions."""
    rows: Int[np.ndarray, " edge"]
    """Which of the results is of it; -1 where none is."""
    dangling: Bool[np.ndarray, " edge"]
    """Those on no way from the input to the logits."""

    def __len__(self) -> int:
        return len(self.at)

    def of(self, chosen: Sequence[int]) -> DrawnEdges:
        return DrawnEdges(
            edges_of_numbers(self.patches.graph, self.patches.numbers[chosen]),
            tuple(self.at[i] for i in chosen),
            self.rows[chosen],
            self.dangling[chosen],
        )

    @property
    def labels(self) -> list[str]:
        return [f"{label} @{at}" if at else label for label, at in zip(self.patches.labels, self.at)]


def create_circuit_graph(
    circuit: Circuit,
    results: EdgeResults | None = None,
    *,
    prune: bool = True,
    top_k: int = MOST_EDGES,
    title: str | None = None,
    statistics: SiteStatistics | None = None,
) -> go.Figure:
    """A circuit as a graph: a row per layer, the input at the bottom, the logits on top.

    Nodes and lines are those of `create_edge_graph`: edges into queries are solid, into keys dashed, into values
    dotted. Where effects of its edges are given, they are blue above 0 and red below, and the wider the larger |effect|
    is; edges whose interval holds 0, or that are not significant after correction, are faint. Of a circuit that tells
    positions apart each position has a column, in which a component stands where it reads or writes there: an edge
    into keys or values where these read. A line of dashes and dots joins the node where a head reads keys or values to
    those where it writes, as attention moves what is read there; so it does, under grouped-query attention, keys and
    values (`L5KV0`) and the heads that share them.

    Args:
        circuit: what is drawn.
        results: effects of the edges of its model, exact or estimated, of at least some of its edges: at its positions,
            or at all positions, which are then shown at each.
        prune: leave out edges on no way from the input to the logits, of which a note says how many there are; False
            draws them in grey.
        top_k: most edges that are drawn, the largest |effect| first; without effects those nearest to the logits.
        title: in place of the figure's own.
        statistics: `results.statistics(...)`, for another level or correction than its defaults.

    Raises:
        ValueError: where `circuit` is none or has no edge to draw; where `results` are no edges, of another graph, at
            several positions that the circuit does not tell apart, empty, or hold no usable pair; where `top_k` is
            below 1 or above 200; where `statistics` are given without results, or are those of others.
    """
    results = known_heads(results)
    drawn, notes = _drawn(circuit, results, prune, top_k)
    graph = circuit.graph
    ends, readers = ends_of_edges(drawn.patches.writers.tolist(), drawn.patches.readers.tolist(), graph, drawn.at)
    nodes = list(dict.fromkeys(node for pair in ends for node in pair))
    named = [_name(at) for at in circuit.positions if any(node.at == _name(at) for node in nodes)]
    if named:
        places, bounds, layers = node_places_by_position(nodes, graph, named)
    else:
        places, n_columns, layers = node_places(nodes, graph)
        bounds = {"": (-0.5, n_columns + 0.5)}
    row = row_height(len(layers))
    half_high = HALF_HIGH / row
    evidence = _evidence(results, statistics)
    curves = curves_between(ends, readers, places, bounds, half_high)
    joined = _joined(ends, readers, places, graph)
    figure = go.Figure([*joined, *_lines(drawn, results, evidence, readers, curves)])
    figure.add_traces(boxes_of(ends, places, half_high, graph))
    show_legend(figure, _legend(drawn, results, readers, bool(joined)))
    if _unsure(drawn, evidence).any():
        show_legend(figure, [("could be 0", SOFT, "solid")], FAINT)
    high = show_rows(figure, places, layers, lambda layer: row_name(layer, graph))
    wide = max(right for _, right in bounds.values()) + 0.7
    figure.update_xaxes(visible=bool(named), range=[-0.6, wide - 0.6], showgrid=False, zeroline=False)
    if named:
        _show_positions(figure, bounds, (-0.4 + min(y for _, y in places.values()), high))
    figure.update_layout(width=max(round(BESIDE + COLUMN * wide), NARROWEST), showlegend=True)
    figure.update_layout(height=round(ABOVE + row * high) + (30 if named else 0))
    parts = [*notes, *_how_to_read(drawn, evidence, bool(joined), bool(named))]
    if results is None:
        title, parts = title or "Circuit", [*parts, graph.model]
    else:
        title = title or titled(results.sweep.estimate, "Circuit, edges by effect")
        parts += told(results.sweep, evidence.note if evidence else "", scale=True)
    if circuit.found_by:
        parts.append(f"found by: {circuit.found_by}")
    least = least_width(nodes, wide)
    return finish(figure, title, parts, narrowest=least, least_width=least, around=(BESIDE, ABOVE))


def _drawn(circuit: Any, results: Any, prune: bool, top_k: int) -> tuple[DrawnEdges, list[str]]:
    """The edges that are drawn, and what is said of them and of others."""
    if not isinstance(circuit, Circuit):
        raise ValueError(f"create_circuit_graph was given {described(circuit)}, expected a Circuit: find_circuit")
    check_top_k(top_k)
    if top_k > MOST_EDGES:
        raise ValueError(f"top_k is {top_k:,}, at most {MOST_EDGES} edges can be followed: draw fewer")
    pruned = circuit.pruned()
    shown, n_dangling = pruned if prune else circuit, len(circuit) - len(pruned)
    if not len(shown):
        what = "no edge" if not n_dangling else f"{count(n_dangling, 'edge')}, none on a way from input to logits"
        raise ValueError(f"the circuit has {what}: give one with edges{', or prune=False' * bool(n_dangling)}")
    columns, numbers = np.nonzero(shown.edges.reshape(-1, len(circuit.graph)))
    at = tuple(_name(circuit.positions[column]) for column in columns) if circuit.positions else ("",) * len(numbers)
    dangling = ~pruned.edges.reshape(-1, len(circuit.graph))[columns, numbers]
    rows, note = _rows(circuit, results, numbers, at)
    every = DrawnEdges(edges_of_numbers(circuit.graph, numbers), at, rows, dangling)
    notes = []
    chosen = _largest(every, results, top_k)
    if len(chosen) < len(every):
        which = "of largest |effect|" if results is not None else "nearest to the logits"
        notes.append(f"{len(chosen):,} edges {which}, of {len(every):,} in the circuit")
    else:
        notes.append(f"{count(len(every), 'edge')} of {circuit.edges.size:,}")
    if n_dangling:
        what = f"{count(n_dangling, 'edge')} on no way from input to logits"
        notes.append(f"{what} left out" if prune else f"{what}, in grey")
    return every.of(chosen), [*notes, note]


def _rows(
    circuit: Circuit, results: Any, numbers: Int[np.ndarray, " edge"], at: Sequence[str]
) -> tuple[Int[np.ndarray, " edge"], str]:
    """Which of the results is of each edge, -1 where none is, and what has to be said of that."""
    if results is None:
        return np.full(len(numbers), -1), ""
    sweep = checked_sweep(results, EdgeResults, "create_circuit_graph")
    check_effects(sweep.effects, sweep)
    if results.graph != circuit.graph:
        raise ValueError(
            f"the results are of {results.graph!r}, the circuit is of {circuit.graph!r}: give effects of its own edges"
        )
    edges, names = results.edges, results.edges.column_names
    patched_at = [names[column] for column in np.unique(edges.columns)]
    if not circuit.positions and len(patched_at) > 1:
        raise ValueError(
            f"the results are at {len(patched_at)} positions ({', '.join(patched_at)}), which the circuit does not "
            "tell apart: give results of all positions together, or of one (results.at)"
        )
    is_of_all = patched_at == [""]
    wanted = np.flatnonzero(np.isin(edges.numbers, numbers)).tolist()
    found = {(int(edges.numbers[i]), names[edges.columns[i]]): i for i in wanted}
    places = [patched_at[0] if is_of_all or not where else where for where in at]
    rows = np.array([found.get((int(number), where), -1) for number, where in zip(numbers, places)], dtype=np.int64)
    if circuit.positions and is_of_all:
        return rows, "sizes are of edges at all positions together"
    if not circuit.positions and patched_at != [""]:
        return rows, f"sizes are of edges at position {patched_at[0]}"
    return rows, ""


def _largest(every: DrawnEdges, results: EdgeResults | None, most: int) -> list[int]:
    """The edges that are drawn, in their order."""
    if len(every) <= most:
        return list(range(len(every)))
    if results is None:
        keys = _steps_to_logits(every).astype(float)
    else:
        keys = -np.nan_to_num(np.abs(_effects(every, results)), nan=-1.0)
    return sorted(np.argsort(keys, kind="stable")[:most].tolist())


def _steps_to_logits(every: DrawnEdges) -> Int[np.ndarray, " edge"]:
    """How many edges there are from the end of each edge to the logits, at whatever positions."""
    graph = every.patches.graph
    steps = np.full(len(graph.writers), len(graph.writers) + 1)
    writers, readers = every.patches.writers, every.patches.readers
    of_reader = np.zeros(len(graph.readers), dtype=np.int64)
    for reader in range(len(graph.readers) - 1, -1, -1):
        moved = list(graph.moved[reader])
        of_reader[reader] = 0 if reader == len(graph.readers) - 1 else steps[moved].min() + 1
        into = writers[readers == reader]
        steps[into] = np.minimum(steps[into], of_reader[reader])
    return of_reader[readers]


def _effects(drawn: DrawnEdges, results: EdgeResults | None) -> Float[np.ndarray, " edge"]:
    """NaN where it is not known."""
    if results is None:
        return np.full(len(drawn), np.nan)
    return np.where(drawn.rows >= 0, results.sweep.effects[drawn.rows], np.nan)


def _is_grey(drawn: DrawnEdges, results: EdgeResults | None) -> Bool[np.ndarray, " edge"]:
    """Edges that lead nowhere, and such as have no effect but for rounding, or none that is known."""
    sizes = np.nan_to_num(np.abs(_effects(drawn, results)))
    return drawn.dangling | (sizes <= ROUNDING * sizes.max())


def _evidence(results: EdgeResults | None, statistics: SiteStatistics | None) -> Certainty | None:
    if results is not None:
        return certainty(results.sweep, results.kind, statistics, mark=FULL_COLOUR)
    if statistics is not None:
        raise ValueError("statistics are given without the results that they are of: give both")
    return None


def _unsure(drawn: DrawnEdges, evidence: Certainty | None) -> Bool[np.ndarray, " edge"]:
    """Edges whose effect could be none: not significant, or with 0 in the interval, as far as these are known."""
    rows, known = drawn.rows, drawn.rows >= 0
    unsure = np.zeros(len(drawn), dtype=bool)
    if evidence is None or evidence.statistics is None:
        return unsure
    if evidence.could_be:
        unsure |= known & ~evidence.significant[rows]
    if evidence.has_intervals:
        low, high = evidence.statistics.low[rows], evidence.statistics.high[rows]
        unsure |= known & (low <= 0) & (high >= 0)
    return unsure


def _lines(
    drawn: DrawnEdges,
    results: EdgeResults | None,
    evidence: Certainty | None,
    readers: Sequence[Reader],
    curves: Sequence[Curve],
) -> list[Any]:
    """A line per edge, the smallest first, so that larger ones lie on them."""
    effects, labels, unsure = _effects(drawn, results), drawn.labels, _unsure(drawn, evidence)
    texts = [f"<b>{escaped(label)}</b><br>{'effect not measured' if results else 'in the circuit'}" for label in labels]
    if results is not None and evidence is not None and (known := np.flatnonzero(~np.isnan(effects)).tolist()):
        part = results.sweep.of_patches(drawn.rows[known].tolist())
        told_of = hovers([labels[i] for i in known], part, lambda i: evidence.lines(int(drawn.rows[known[i]])))
        texts = [dict(zip(known, told_of)).get(i, text) for i, text in enumerate(texts)]
    widths = np.where(np.isnan(effects), PLAIN, widths_of(effects))
    colours = np.where(_is_grey(drawn, results), GREY, np.where(effects > 0, BLUE, RED)).tolist()
    order = np.argsort(np.nan_to_num(np.abs(effects), nan=-1.0), kind="stable")
    return [
        line_of(
            curves[i],
            colours[i],
            float(widths[i]),
            readers[i].kind,
            texts[i] + ("<br>on no way from input to logits" if drawn.dangling[i] else ""),
            FAINT if unsure[i] else None,
        )
        for i in order
    ]


def _joined(ends: Ends, readers: Sequence[Reader], places: Places, graph: Graph) -> list[Any]:
    """Thin lines from where heads read keys and values to where they write, of those that are two nodes."""
    writes = list(dict.fromkeys(sender for sender, _ in ends if sender.kind == "head"))
    pairs: dict[tuple[Node, Node], None] = {}
    for (_, receiver), reader in zip(ends, readers):
        if reader.kind not in ("k", "v"):
            continue
        heads = {graph.writers[number].label for number in graph.moved[graph.readers.index(reader)]}
        pairs |= {(receiver, node): None for node in writes if node.label in heads and node != receiver}
    if not pairs:
        return []
    x: list[float | None] = []
    y: list[float | None] = []
    t = np.linspace(0, 1, 21)
    for one, other in pairs:
        (left, row), (right, _) = places[one], places[other]
        side = 1 if right > left else -1
        start, end = left + side * one.half_wide, right - side * other.half_wide
        x += [*(start + (end - start) * t).round(3).tolist(), None]
        y += [*(row - SAG * 4 * t * (1 - t)).round(3).tolist(), None]
    look = {"color": LINE, "width": 1.5, "dash": JOINED}
    return [go.Scatter(x=x, y=y, mode="lines", line=look, hoverinfo="skip", showlegend=False)]


def _show_positions(figure: go.Figure, bounds: dict[str, tuple[float, float]], ends: tuple[float, float]) -> None:
    """The names of positions below their columns, and lines between these."""
    middles = [(left + right) / 2 for left, right in bounds.values()]
    figure.update_xaxes(title="position", tickvals=middles, ticktext=[escaped(name) for name in bounds])
    edges = list(bounds.values())
    for (_, right), (left, _) in itertools.pairwise(edges):
        at, line = (right + left) / 2, {"color": LINE, "width": 1}
        figure.add_shape(type="line", x0=at, x1=at, y0=ends[0], y1=ends[0] + ends[1], line=line, layer="below")


def _legend(
    drawn: DrawnEdges,
    results: EdgeResults | None,
    readers: Sequence[Reader],
    is_joined: bool,
) -> list[tuple[str, str, str]]:
    entries = of_kinds(readers)
    known = drawn.rows >= 0
    if results is not None and (coloured := drawn.rows[known & ~_is_grey(drawn, results)].tolist()):
        entries += signs_of(results.sweep.of_patches(coloured))
    if drawn.dangling.any():
        entries.append(("on no way", GREY, "solid"))
    if results is not None and not known[~drawn.dangling].all():
        entries.append(("not measured", GREY, "solid"))
    if is_joined:
        entries.append(("the same head" if any(drawn.at) else "of these heads", LINE, JOINED))
    return entries


def _how_to_read(drawn: DrawnEdges, evidence: Certainty | None, is_joined: bool, has_positions: bool) -> list[str]:
    parts = []
    if evidence is not None:
        parts.append("the wider, the larger")
        if unsure := int(_unsure(drawn, evidence).sum()):
            why = "not significant, or the interval holds 0" if evidence.could_be else "the interval holds 0"
            parts.append(f"faint: {why} ({count(unsure, 'edge')})")
    if has_positions:
        parts.append("a component stands at each position where it reads or writes, keys and values where they read")
    if is_joined:
        parts.append(
            "dashes and dots: the same head, which moves what it reads in one place to another"
            if has_positions
            else "dashes and dots: heads that share these keys and values"
        )
    return parts


def _name(position: Any) -> str:
    return " + ".join(map(str, position)) if isinstance(position, tuple) else str(position)
