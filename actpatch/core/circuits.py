"""Circuits: sets of edges of one graph, as values. Nothing here runs a model, and nothing knows how edges are chosen.

A circuit is a subgraph that is taken to do a task alone (Wang et al. 2022, "Interpretability in the Wild"; Conmy et
al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability"). Its edges are at all positions, or
each at some of those that it names, as circuits that tell positions apart have them (Haklay et al. 2025,
"Position-aware Automatic Circuit Discovery"; Miller et al. 2024, "Transformer Circuit Faithfulness Metrics are not
Robust"): what a receiver reads *there*.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from actpatch.core.circuit_comparison import CircuitComparison, compared
from actpatch.core.circuit_names import CircuitPosition, checked_position, number_of, split_name
from actpatch.core.edge_patches import EdgePatches, edges_of_numbers
from actpatch.core.files import write_file
from actpatch.core.graph import Graph
from actpatch.core.node_names import Names, as_list
from actpatch.core.text import count, described, shortened
from actpatch.core.truth import PublishedHeads, Truth

if TYPE_CHECKING:
    import networkx

FILE_FORMAT = 1
"""Raised whenever what is stored changes."""
KIND = "Circuit"
"""What files of circuits say that they hold."""


@dataclass(frozen=True, eq=False, repr=False)
class Circuit:
    """Some of the edges of a graph. Its length is their number, at each position where it tells positions apart.

    `a | b`, `a & b`, `a - b` and `~a` are the edges of both together, of both at once, of the first alone, and all
    others of the graph; `a <= b` says whether every edge of `a` is one of `b`, and `in` whether an edge is in it:
    `"L5H3 → L9H9 q" in a`. What comes out of them has an empty `found_by`, and the pairs that it was chosen by are
    those of both; neither plays a part in whether two circuits are equal.
    """

    graph: Graph
    """Of the model."""
    edges: Bool[np.ndarray, "*position edge"]
    """Whether each edge of the graph is in the circuit, in the order of `edge_patches(graph)`; of each of `positions`,
    where there are some; read only."""
    found_by: str = ""
    """How its edges were chosen, in words; empty where that is not known."""
    positions: tuple[CircuitPosition, ...] = ()
    """Where its edges are told apart; at other positions it has none. Empty for edges at all positions."""
    seen: frozenset[str] = frozenset()
    """The pairs that its edges were chosen by (`pair_key`); empty where that is not known, or none were."""

    def __post_init__(self) -> None:
        if isinstance(self.positions, str) or not isinstance(self.positions, Iterable):
            raise ValueError(
                f"positions is {shortened(self.positions)}, expected several: [{shortened(self.positions)}]"
            )
        positions = tuple(map(checked_position, self.positions))
        if len(set(positions)) < len(positions):
            raise ValueError(f"positions {shortened(positions)} name one twice: give each once")
        given = np.asarray(self.edges)
        shape = (*[len(positions)] * bool(positions), len(self.graph))
        if given.dtype != bool or given.shape != shape:
            raise ValueError(
                f"edges are {given.dtype} of shape {given.shape}, expected True or False for each of the "
                f"{len(self.graph):,} edges of {self.graph.model}{' at each position' * bool(positions)}: Circuit.of "
                "takes ids, labels and numbers"
            )
        edges = given.copy()
        edges.flags.writeable = False
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "seen", frozenset(self.seen))

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[str | int] | str, *, found_by: str = "") -> Circuit:
        """A circuit of these edges.

        Args:
            graph: of the model.
            edges: ids (`a5.h3->a9.h9<q>`), labels (`L5H3 → L9H9 q`), and numbers in the order of
                `edge_patches(graph)`; each counts once. Names may say a position (`L5H3 → L9H9 q @S2`), all of them or
                none.
            found_by: how they were chosen.

        Raises:
            ValueError: for what is no edge of the graph, and where some edges have a position and others none.
        """
        if not isinstance(edges, Iterable) or isinstance(edges, EdgePatches):
            raise ValueError(f"edges is {described(edges)}, expected a list of ids, labels or numbers of edges")
        listed = [split_name(edge) for edge in ([edges] if isinstance(edges, str) else edges)]
        positions = tuple(dict.fromkeys(at for _, at in listed))
        table = np.zeros((max(1, len(positions)), len(graph)), dtype=bool)
        for edge, at in listed:
            table[positions.index(at), number_of(graph, edge)] = True
        if positions in ((), (None,)):
            return cls(graph, table[0], found_by)
        if None in positions:
            raise ValueError("some of these edges are at a position and others at all: give each one its position")
        return cls(graph, table, found_by, positions)  # type: ignore[arg-type]

    @classmethod
    def of_nodes(cls, graph: Graph, nodes: Names, *, found_by: str = "") -> Circuit:
        """A circuit of all edges between these components, which have `input` and `logits` among them where given.

        Args:
            graph: of the model.
            nodes: ids, labels, (layer, head), `input`, `logits`, `heads`, `mlps`, or a layer (`L9`). Keys and values
                that heads share are read by a head that is among them.
            found_by: how they were chosen.

        Raises:
            ValueError: for no name and for one that the graph has not, with the nearest ones.
        """
        listed = as_list(nodes)
        others = [name for name in listed if not _is_logits(name)]
        numbers = graph.writers_named(others, "nodes") if others or not listed else np.array([], dtype=np.int64)
        writes = _mask(len(graph.writers), numbers)
        reads = np.array([bool(writes[list(moved)].any()) for moved in graph.moved])
        reads[-1] = len(others) < len(listed)
        return cls(graph, _between(graph, writes, reads), found_by)

    @classmethod
    def full(cls, graph: Graph) -> Circuit:
        """All edges of a graph: the whole model."""
        return cls(graph, np.ones(len(graph), dtype=bool), "all edges")

    @classmethod
    def empty(cls, graph: Graph) -> Circuit:
        """No edge at all."""
        return cls(graph, np.zeros(len(graph), dtype=bool), "no edge")

    def __len__(self) -> int:
        return int(np.count_nonzero(self.edges))

    def __repr__(self) -> str:
        at = f" at {count(len(self.positions), 'position')}" if self.positions else ""
        parts = [f"{len(self):,} of {self.edges.size:,} edges{at}"]
        if len(self.pruned()) < len(self):
            parts.append(f"{len(self.pruned()):,} after pruning")
        parts.append(f"{count(len(self.heads), 'head')}, {count(len(self.mlps), 'MLP')}")
        return f"Circuit({self.graph.model}: {'; '.join(filter(None, [', '.join(parts), self.found_by]))})"

    def __eq__(self, other: object) -> bool:
        """Whether graph and edges are the same, however they were found."""
        if not isinstance(other, Circuit):
            return NotImplemented
        same = (self.graph, self.positions) == (other.graph, other.positions)
        return same and np.array_equal(self.edges, other.edges)

    def __hash__(self) -> int:
        return hash((self.graph, self.positions, self.edges.tobytes()))

    def __or__(self, other: Circuit) -> Circuit:
        return self._with(other, np.logical_or)

    def __and__(self, other: Circuit) -> Circuit:
        return self._with(other, np.logical_and)

    def __sub__(self, other: Circuit) -> Circuit:
        return self._with(other, np.greater)

    def __invert__(self) -> Circuit:
        return replace(self, edges=~self.edges, found_by="")

    def __le__(self, other: Circuit) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        self._check_same_graph(other)
        return bool((self.edges <= other.edges).all())

    def __contains__(self, edge: str | int) -> bool:
        """Whether this edge, by its id, label or number, is in the circuit; without a position, at any.

        Raises:
            ValueError: for what is no edge of the graph, and a position that the circuit has not.
        """
        name, at = split_name(edge)
        if at is not None and at not in self.positions:
            raise ValueError(f"position {at!r} is none of this circuit's, which has {_places(self)}")
        rows = self._table if at is None else self._table[[self.positions.index(at)]]
        return bool(rows[:, number_of(self.graph, name)].any())

    @property
    def everywhere(self) -> Circuit:
        """The edges that it has at any position, at all positions."""
        return replace(self, edges=np.any(self._table, axis=0), positions=())

    def pruned(self) -> Circuit:
        """The circuit without edges that lie on no way from the input to the logits: they change nothing in it.

        An edge is left out if its sender is not fed or what reads it leads nowhere, and so on until no more is. A head
        is fed by any edge into its queries, keys or values, an MLP by any edge into it, and the input always; both lead
        on by an edge out of them, the logits always do. Keys and values that heads share feed each of these heads, and
        lead on by any of them. Where positions are told apart, all of this is at one position, but that what keys and
        values read at any position feeds their heads at all.
        """
        return self._pruned

    @cached_property
    def _pruned(self) -> Circuit:
        graph, table = self.graph, self._table
        fed, leads = (np.zeros((len(table), len(graph.writers)), dtype=bool) for _ in range(2))
        fed[:, 0] = True
        leading = np.ones((len(table), len(graph.readers)), dtype=bool)
        # Readers stand in the order of the forward pass, so that one walk each way is the fixed point.
        for number, reader in enumerate(graph.readers):
            into = self._into(number)
            is_fed = (into & fed[:, : into.shape[1]]).any(axis=1)
            for writer in graph.moved[number]:
                fed[:, writer] |= is_fed.any() if reader.kind in ("k", "v") else is_fed
        for number, reader in reversed(list(enumerate(graph.readers))):
            into = self._into(number)
            if reader.kind != "logits":
                leading[:, number] = leads[:, list(graph.moved[number])].any(axis=1)
                if reader.kind in ("k", "v"):
                    leading[:, number] = leading[:, number].any()
            leads[:, : into.shape[1]] |= into & leading[:, [number]]
        every = edges_of_numbers(graph, np.arange(len(graph)))
        edges = (table & fed[:, every.writers] & leading[:, every.readers]).reshape(self.edges.shape)
        n_left = int(np.count_nonzero(edges))
        if n_left == len(self):
            return self
        how = f"pruned from {len(self):,} edges to {n_left:,}"
        return replace(self, edges=edges, found_by=", ".join(filter(None, [self.found_by, how])))

    @cached_property
    def patches(self) -> EdgePatches:
        """Its edges as arrays of writers and readers, in order, each once at however many positions."""
        return edges_of_numbers(self.graph, np.flatnonzero(self._table.any(axis=0)))

    @property
    def edge_ids(self) -> list[str]:
        """Id of each edge: `a5.h3->a9.h9<q>`; `a5.h3->a9.h9<q> @S2` where positions are told apart."""
        return self._names(self.patches.ids)

    @property
    def labels(self) -> list[str]:
        """Label of each edge: `L5H3 → L9H9 q`; `L5H3 → L9H9 q @S2` where positions are told apart."""
        return self._names(self.patches.labels)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Labels of the components with an edge in and an edge out, in the order of the forward pass.

        The input is always fed and the logits always lead on, so an edge is enough for these. Keys and values that
        heads share are read by each of these heads.
        """
        writes, reads = self._writes, self._reads
        reads[0] = True
        labels = [self.graph.writers[number].label for number in np.flatnonzero(writes & reads)]
        return (*labels, *["logits"] * bool(self._reads_logits))

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of the heads among `nodes`."""
        inner = self._inner
        return tuple((w.layer, w.head) for w, is_in in zip(self.graph.writers, inner) if is_in and w.head is not None)

    @property
    def mlps(self) -> tuple[int, ...]:
        """Layers of the MLPs among `nodes`."""
        return tuple(w.layer for w, is_in in zip(self.graph.writers, self._inner) if is_in and w.kind == "mlp")

    def compare_with(self, truth: Truth | PublishedHeads) -> CircuitComparison:
        """Which edges it shares with a known circuit, which are missing and which are extra; of published heads, which
        of its `heads`. Edges at any position count.

        A circuit does not know under which ablation it was found: `truth.check_stated_for` asks that of what was run.

        Raises:
            ValueError: for a truth of another model or graph.
        """
        return compared(self.graph, self.everywhere.edges, self.heads, truth)

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The circuit as a graph of NetworkX, from component to component.

        Nodes are labels with `kind` and `layer`. Edges have `kind` (`q`, `k`, `v`, `mlp` or `logits`), which is their
        key too, `id`, and `positions`, a list that is empty for all. An edge into keys or values that heads share is
        drawn to each of these heads that an edge leaves, and to all of them where none does.
        """
        found = import_module("networkx").MultiDiGraph(model=self.graph.model, found_by=self.found_by)
        graph, patches, writes = self.graph, self.patches, self._writes
        held = self._table[:, patches.numbers].T
        for number, (sender, receiver, name) in enumerate(
            zip(patches.writers.tolist(), patches.readers.tolist(), patches.ids)
        ):
            reader, writer = graph.readers[receiver], graph.writers[sender]
            found.add_node(writer.label, kind=writer.kind, layer=writer.layer)
            moved = [i for i in graph.moved[receiver] if writes[i]] or graph.moved[receiver]
            for end in [graph.writers[i] for i in moved] or [reader]:
                found.add_node(end.label, kind=end.kind, layer=end.layer)
                positions = [at for at, is_there in zip(self.positions, held[number]) if is_there]
                of_edge = {"kind": reader.kind, "id": name, "positions": positions}
                found.add_edge(writer.label, end.label, key=reader.kind, **of_edge)
        return found

    def save(self, path: str | Path) -> Path:
        """Write the circuit as JSON: its graph, the ids of its edges, how it was found and on which pairs.

        Raises:
            OSError: where the path cannot be written.
        """
        stored = {
            "kind": KIND,
            "format": FILE_FORMAT,
            "graph": dataclasses.asdict(self.graph),
            "found_by": self.found_by,
            "positions": list(self.positions),
            "edges": [edges_of_numbers(self.graph, np.flatnonzero(row)).ids for row in self._table],
            "seen": sorted(self.seen),
        }
        return write_file(path, json.dumps(stored, ensure_ascii=False).encode())

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """The circuit that `save(path)` wrote.

        Raises:
            OSError: where the file cannot be read.
            ValueError: where it is no such file, one of another format, or damaged.
        """
        try:
            stored = json.loads(Path(path).read_text(encoding="utf-8"))
            kind, file_format = stored["kind"], stored["format"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no circuit: expected a file that Circuit.save wrote") from error
        if (kind, file_format) != (KIND, FILE_FORMAT):
            raise ValueError(
                f"{path} holds {shortened(kind)} of format {shortened(file_format)}, expected {KIND} of format "
                f"{FILE_FORMAT}: read it with the version that wrote it"
            )
        try:
            graph, positions = Graph(**stored["graph"]), tuple(map(checked_position, stored["positions"]))
            rows = [cls.of(graph, list(map(_text, row))).edges for row in stored["edges"]]
            if not positions and len(rows) > 1:
                raise ValueError(f"edges at {len(rows)} positions that have no name")
            edges = np.stack(rows) if positions else rows[0]
            return cls(graph, edges, _text(stored["found_by"]), positions, frozenset(map(_text, stored["seen"])))
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): save the circuit again") from error

    @property
    def _table(self) -> Bool[np.ndarray, "position edge"]:
        """Its edges at each position; in a row of its own, where they are not told apart."""
        return self.edges.reshape(-1, len(self.graph))

    def _names(self, of_edges: list[str]) -> list[str]:
        """The name of each edge at each of its positions, edge by edge."""
        if not self.positions:
            return of_edges
        held = self._table[:, self.patches.numbers].T
        at = [f" @{' + '.join(map(str, one)) if isinstance(one, tuple) else one}" for one in self.positions]
        return [name + at[column] for name, row in zip(of_edges, held) for column in np.flatnonzero(row)]

    def _into(self, reader: int) -> Bool[np.ndarray, "position writer"]:
        """Which of the writers that this reader reads are in the circuit with their edge to it."""
        first = int(self.graph.first_edge[reader])
        return self._table[:, first : first + int(self.graph.n_writers_before[reader])]

    @property
    def _reads_logits(self) -> bool:
        return bool(self._into(len(self.graph.readers) - 1).any())

    @property
    def _writes(self) -> Bool[np.ndarray, " writer"]:
        """Which writers an edge leaves."""
        return _mask(len(self.graph.writers), self.patches.writers)

    @property
    def _reads(self) -> Bool[np.ndarray, " writer"]:
        """Into what of which writers an edge goes."""
        found = np.zeros(len(self.graph.writers), dtype=bool)
        for number in self.patches.used_readers:
            found[list(self.graph.moved[number])] = True
        return found

    @property
    def _inner(self) -> Bool[np.ndarray, " writer"]:
        return self._writes & self._reads

    def _with(self, other: Circuit, operation: Callable[..., Any]) -> Circuit:
        if not isinstance(other, Circuit):
            return NotImplemented
        self._check_same_graph(other)
        return Circuit(self.graph, operation(self.edges, other.edges), "", self.positions, self.seen | other.seen)

    def _check_same_graph(self, other: Circuit) -> None:
        if self.graph != other.graph:
            raise ValueError(
                f"these circuits are of different graphs, {_told(self.graph, other.graph)} and "
                f"{_told(other.graph, self.graph)}: compare circuits of one model"
            )
        if self.positions != other.positions:
            raise ValueError(
                f"these circuits tell other positions apart, {_places(self)} and {_places(other)}: compare them "
                "`.everywhere`"
            )


def _places(circuit: Circuit) -> str:
    return ", ".join(map(repr, circuit.positions)) or "none"


def _between(
    graph: Graph, writes: Bool[np.ndarray, " writer"], reads: Bool[np.ndarray, " reader"]
) -> Bool[np.ndarray, " edge"]:
    """The edges from one of these writers to one of these readers."""
    every = edges_of_numbers(graph, np.arange(len(graph)))
    return writes[every.writers] & reads[every.readers]


def _mask(n: int, numbers: Sequence[int] | Int[np.ndarray, " chosen"]) -> Bool[np.ndarray, " all"]:
    mask = np.zeros(n, dtype=bool)
    mask[np.asarray(numbers, dtype=np.int64)] = True
    return mask


def _is_logits(name: object) -> bool:
    return isinstance(name, str) and name.strip().lower() == "logits"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shortened(value)} is no text")
    return value


def _told(graph: Graph, other: Graph) -> str:
    """A graph by what tells it from another one."""
    fields = [field.name for field in dataclasses.fields(graph)]
    apart = {name: getattr(graph, name) for name in fields if getattr(graph, name) != getattr(other, name)}
    return f"of {graph.model}" if "model" in apart else ", ".join(f"{k}={shortened(v)}" for k, v in apart.items())
