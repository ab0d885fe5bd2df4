"""Results of edges, which are too many for an object each: items are made when they are looked at. Knows no figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, SupportsIndex, TypeVar, overload

import numpy as np
from jaxtyping import Float, Int

from actpatch.core.edge_patches import EdgePatches, ends_of
from actpatch.core.estimate_words import exact_or_estimated
from actpatch.core.graph import Graph, Names
from actpatch.core.heavy import pd
from actpatch.core.text import count, shortened
from actpatch.core.truth import Truth
from actpatch.results.effects import largest
from actpatch.results.items import EdgePatchingResult
from actpatch.results.metric_values import mean
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import Sweep
from actpatch.results.truth_comparison import TruthComparison, check_truth, compared_edges

Edges = TypeVar("Edges", bound="EdgeResults")


class EdgeResults(SweepResults, Sequence[EdgePatchingResult]):
    """A sequence with one `EdgePatchingResult` per edge, at each position in turn where edges were patched at some.

    Edges are in order of receiver, sender and position. `results["L5H3 → L9H9 q"]` and `results["a5.h3->a9.h9<q>"]`
    are the same one. It is no list: of a million edges only those are made that are looked at. The whole sweep is in
    `.sweep`, its effects as an array in `.sweep.effects`.
    """

    def __init__(self, sweep: Sweep) -> None:
        if not isinstance(sweep.patches, EdgePatches):
            raise ValueError(
                f"the patches of this sweep are a {type(sweep.patches).__name__}, expected edges: give it another shape"
            )
        super().__init__(sweep)

    @property
    def edges(self) -> EdgePatches:
        """What was patched, as arrays."""
        assert isinstance(self.sweep.patches, EdgePatches)
        return self.sweep.patches

    @property
    def graph(self) -> Graph:
        """All writers, readers and edges of the model, whether they were patched or not."""
        return self.edges.graph

    @property
    def kind(self) -> str:
        return "edge" if len(self.edges.places) == 1 else "site"

    @property
    def positions(self) -> list[int | str]:
        """The positions that edges were patched at, in the order in which they were asked for; none for all."""
        return [at for at in self._places if at is not None]

    def __len__(self) -> int:
        return len(self.edges)

    @overload
    def __getitem__(self, index: SupportsIndex | str) -> EdgePatchingResult: ...

    @overload
    def __getitem__(self: Edges, index: slice) -> Edges: ...

    def __getitem__(self, index: Any) -> Any:
        """An edge by its number, its id or its label; of a slice the results of these edges alone.

        Statistics of a slice are those of the whole experiment: p-values stay corrected over all of its edges. An empty
        slice is a plain list.

        Raises:
            KeyError: for a name that stands for none of these edges, or for several.
            IndexError: for a number that is out of range.
        """
        if isinstance(index, slice):
            numbers = range(len(self))[index]
            return self._taken(numbers) if numbers else []
        if isinstance(index, str):
            return self._item(self._number(index))
        return self._item(range(len(self))[index])

    def __iter__(self) -> Iterator[EdgePatchingResult]:
        return map(self._item, range(len(self)))

    def __contains__(self, item: object) -> bool:
        """Whether an edge of this id or label, or this very item, is among them."""
        name = item.label if isinstance(item, EdgePatchingResult) else item
        if not isinstance(name, str):
            return False
        try:
            found = self[name]
        except KeyError:
            return False
        return isinstance(item, str) or found == item

    def top(self: Edges, k: int = 10) -> Edges:
        """The k edges of largest |effect|, largest first, as results. Their statistics are those of a slice."""
        return self._taken(largest(self.sweep.effects, k))

    def sorted_by(self: Edges, key: Callable[[Any], Any], *, reverse: bool = False) -> Edges:
        """The results in another order: `results.sorted_by(lambda item: item.effect)`. Statistics are the same.

        Args:
            key: of each item what they are sorted by, as for Python's `sorted`, which gives a plain list.
            reverse: whether what is largest comes first.
        """
        keys = list(map(key, self))
        return self._taken(sorted(range(len(self)), key=keys.__getitem__, reverse=reverse))

    def of(self: Edges, senders: Names | None = None, receivers: Names | None = None) -> Edges:
        """The edges from one of these writers to one of these readers. Their statistics are those of a slice.

        Args:
            senders: writers as `Graph.writers_named` takes them: `["L5H3", "heads"]`; None for all.
            receivers: readers as `Graph.readers_named` takes them: `["L9H9 q", "logits"]`; None for all.

        Raises:
            ValueError: for a name that the graph has not, with the nearest ones, and where none of these edges is left.
        """
        edges = self.edges
        chosen = np.ones(len(edges), dtype=bool)
        if senders is not None:
            chosen &= np.isin(edges.writers, edges.graph.writers_named(senders))
        if receivers is not None:
            chosen &= np.isin(edges.readers, edges.graph.readers_named(receivers))
        if not chosen.any():
            raise ValueError(
                f"none of these {len(edges):,} edges goes from {_asked(senders)} to {_asked(receivers)}: give other "
                "names, or look at all edges of the experiment"
            )
        return self._taken(np.flatnonzero(chosen).tolist())

    def at(self: Edges, position: int | str) -> Edges:
        """The edges at one position. Their p-values stay corrected over all edges and positions.

        Raises:
            ValueError: where none was patched there.
        """
        return self._taken(self._numbers_at(position).tolist())

    def matrix(self, position: int | str | None = None) -> pd.DataFrame:
        """Effects as a sender × receiver table of labels; NaN where there is no such edge or it was not measured.

        Its rows and columns are the senders and the receivers of these edges, in the order of the forward pass.

        Raises:
            ValueError: for a position that no edge was patched at, and where there are several and none is given.
        """
        edges = self.edges
        if position is None and len(patched := np.unique(edges.columns)) > 1:
            names = ", ".join(repr(self._places[column]) for column in patched)
            raise ValueError(
                f"these edges were patched at {len(patched)} positions: choose matrix(position) of {names}"
            )
        chosen: Any = slice(None) if position is None else self._numbers_at(position)
        writers, rows = np.unique(edges.writers[chosen], return_inverse=True)
        readers, columns = np.unique(edges.readers[chosen], return_inverse=True)
        table = np.full((len(writers), len(readers)), np.nan)
        table[rows, columns] = self.sweep.effects[chosen]
        senders = [self.graph.writers[i].label for i in writers]
        receivers = [self.graph.readers[i].label for i in readers]
        return pd.DataFrame(table, pd.Index(senders, name="sender"), pd.Index(receivers, name="receiver"))

    def compare_with(self, truth: Truth, *, absolute: bool = True, ks: Sequence[int] | None = None) -> TruthComparison:
        """How well these effects find a known circuit: AUROC, AUPRC, precision, and the benchmark's own AUROC.

        Edges of the graph that are not among these results rank below all others, as do such as have no effect known;
        the comparison says how many.

        Args:
            truth: the known circuit.
            absolute: rank by |effect|; False puts edges that work against the behaviour last.
            ks: precision is told at each of these; None for the number of true edges.

        Raises:
            ValueError: for edges at positions, a truth of another model or graph, and one that is stated for another
                ablation or direction than these results are of.
        """
        check_truth(truth)
        effects = self.effects_of_all
        truth.check_graph(self.graph)
        sweep = self.sweep
        truth.check_stated_for(sweep.source_of_values, sweep.direction)
        return compared_edges(
            self.graph,
            effects,
            truth,
            ranked_by=f"{exact_or_estimated(sweep.estimate)}, {sweep.direction}",
            metric=sweep.metric,
            absolute=absolute,
            ks=ks,
        )

    @property
    def effects_of_all(self) -> Float[np.ndarray, " edge"]:
        """Effect of each edge of the graph, in the order of `edge_patches(graph)`; NaN of such as are not among these.

        Raises:
            ValueError: for edges at positions.
        """
        if self.positions:
            raise ValueError(
                f"these edges were patched at {count(len(self.positions), 'position')}, expected one effect of each: "
                "patch all positions at once"
            )
        effects = np.full(len(self.graph), np.nan)
        effects[self.edges.numbers] = self.sweep.effects
        return effects

    def _item(self, number: int) -> EdgePatchingResult:
        sweep, edges = self.sweep, self.edges
        usable, base, gaps, effects, clean, corrupted = self._of_all
        writer, reader = self.graph.writers[edges.writers[number]], self.graph.readers[edges.readers[number]]
        patched = sweep.patched[number]
        item = EdgePatchingResult(
            id=edges.id(number),
            sender=writer.label,
            receiver=reader.label,
            position=self._places[edges.columns[number]],
            clean_metric=clean,
            corrupted_metric=corrupted,
            patched_metric=_number(mean(patched[usable])),
            effect=_number(effects[number]),
            pair_effects=tuple(map(_number, ((patched - base) / gaps[number]).tolist())),
            pair_indices=sweep.pair_indices,
            estimate=sweep.estimate,
        )
        return item.taken_from(sweep.entire, sweep.numbers[number] if sweep.numbers else number)

    @cached_property
    def _of_all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, Float[np.ndarray, " edge"], float, float]:
        """What all items need: which pairs are usable, base and gap of each pair and edge that effects are of, effects,
        mean clean and corrupted."""
        sweep, usable = self.sweep, self.sweep.usable
        gaps = np.where(usable & sweep.written, sweep.source - sweep.base, np.nan)
        clean, corrupted = (_number(mean(run[usable])) for run in (sweep.clean, sweep.corrupted))
        return usable, sweep.base, gaps, sweep.effects, clean, corrupted

    @cached_property
    def _places(self) -> list[int | str | None]:
        """What each of `edges.places` is called: a number, if that is its name; None for all positions."""
        names = self.edges.column_names
        return [(int(name) if name.removeprefix("-").isdecimal() else name) if name else None for name in names]

    def _number(self, name: str) -> int:
        """The number of the edge of this id or label.

        Raises:
            KeyError: where it stands for none of these edges, or for several.
        """
        edge, _, at = name.partition("@")
        try:
            writer, reader = ends_of(self.graph, edge.strip(), self._example)
            column = self._column(at.strip()) if at else None
        except ValueError as error:
            raise KeyError(str(error)) from None
        edges = self.edges
        found = (edges.writers == writer) & (edges.readers == reader)
        numbers = np.flatnonzero(found if column is None else found & (edges.columns == column))
        if not len(numbers):
            raise KeyError(f"{shortened(name)} is not among these edges")
        if len(numbers) > 1:
            labels = ", ".join(map(edges.label, numbers.tolist()))
            raise KeyError(f"{shortened(name)} was patched at {len(numbers)} positions: name one, of {labels}")
        return int(numbers[0])

    @property
    def _example(self) -> str:
        return self.edges.label(0) if len(self) else "L5H3 → L9H9 q"

    def _numbers_at(self, position: int | str) -> Int[np.ndarray, " chosen"]:
        numbers = np.flatnonzero(self.edges.columns == self._column(position))
        if not len(numbers):
            raise ValueError(f"none of these edges was patched at position {position!r}")
        return numbers

    def _column(self, position: int | str) -> int:
        asked = str(position)
        for column, name in enumerate(self.edges.column_names):
            if name and name == asked:
                return column
        patched = f"expected one of {', '.join(map(repr, self.positions))}" if self.positions else "all were, together"
        raise ValueError(f"position {position!r} was not patched: {patched}")

    def _taken(self: Edges, numbers: Sequence[int]) -> Edges:
        return type(self)(self.sweep.of_patches(numbers))


def _asked(names: Names | None) -> str:
    return "any" if names is None else shortened(names)


def _number(value: float) -> float:
    """A plain number; NaN as the one that is equal to itself inside a tuple, so that an item equals itself."""
    return float(value) if value == value else math.nan
