"""ACDC: a circuit by leaving out edges one after the other, as long as each costs less than a threshold.

Readers are gone through from the logits backwards, of each its senders (Conmy et al. 2023, "Towards Automated Circuit
Discovery for Mechanistic Interpretability"). When a reader is visited, what is behind it is settled, so that of a
candidate only what this reader's edges lead to is run; everything else is as in the circuit so far, which is run once
and held. An edge into what leads to the logits by no edge costs nothing, and is not run.

Candidates are run many at a time, each with those before it left out, or not, as they are guessed to be settled: first
that all are left out, then as the run before made it look. They are settled as far as the guesses are right, and the
others run again, so that the circuit is that of one candidate after the other. Nothing here knows how circuits are run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Bool, Int

from actpatch.core.circuit_names import CircuitPosition, pair_key
from actpatch.core.circuit_reach import leading_writers
from actpatch.core.circuits import Circuit
from actpatch.core.edge_patches import ALL_POSITIONS
from actpatch.core.graph import Graph
from actpatch.core.indices import is_integer
from actpatch.core.sites import Site
from actpatch.core.text import described, shortened
from actpatch.engine.circuit_measure import CircuitMeasure
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.places import named_columns
from actpatch.interventions.sources import References
from actpatch.metrics.chosen import AnyMetric
from actpatch.tasks.encoding import EncodedPairs

WayThrough = Literal["reverse", "forward", "random"]
Order: TypeAlias = "WayThrough | Sequence[str | tuple[int, int]]"
"""In which order the senders of a receiver are tried: a word, or all senders of the graph by name."""

FEWEST_AT_ONCE, MOST_AT_ONCE = 16, 256
"""Candidates that are run together."""
HELD_FOR = 32
"""So many candidates, into other readers too, are run over one held circuit."""


@dataclass(frozen=True)
class Search:
    """How ACDC is to go: checked before any run."""

    threshold: float
    senders: Int[np.ndarray, " writer"]
    """All writers, in the order in which they are tried; of each reader anew where it is random."""
    order: str
    """The order in words."""
    rng: np.random.Generator | None
    """For a random order."""
    signed: bool

    @classmethod
    def of(cls, graph: Graph, threshold: Any, order: Any, seed: Any, signed: bool) -> Search:
        """
        Raises:
            ValueError: for a threshold that is no number from 0 on, an order that is unknown or lacks a sender, and a
                seed that is no whole number.
        """
        is_number = isinstance(threshold, (int, float, np.number)) and not isinstance(threshold, bool)
        if not is_number or not 0 <= threshold < math.inf:
            raise ValueError(f"threshold is {threshold!r}, expected a number from 0 on, in the metric's unit")
        if not is_integer(seed):
            raise ValueError(f"seed is {seed!r}, expected a whole number")
        every = np.arange(len(graph.writers))
        if isinstance(order, str):
            if order not in get_args(WayThrough):
                raise ValueError(
                    f"order {order!r} is unknown: expected 'reverse', 'forward', 'random', or all senders of the graph "
                    "in a list"
                )
            senders = every[::-1] if order == "reverse" else every
            rng = np.random.default_rng(seed) if order == "random" else None
            return cls(float(threshold), senders, f"{order} order" + (f" (seed {seed})" if rng else ""), rng, signed)
        if not isinstance(order, Sequence):
            raise ValueError(f"order is {described(order)}, expected a word or all senders of the graph in a list")
        senders = np.array([graph.writer(name) for name in order], dtype=np.int64)
        if not np.array_equal(np.sort(senders), every):
            lacking = [graph.writers[number].label for number in np.setdiff1d(every, senders)]
            what = f"lacks {shortened(', '.join(lacking))}" if lacking else "names some twice"
            raise ValueError(f"order {what}: expected each of the {len(every)} senders of the graph once")
        digest = sha256(",".join(map(str, senders)).encode()).hexdigest()[:8]
        return cls(float(threshold), senders, f"the order given (digest {digest})", None, signed)

    def candidates(self, graph: Graph, reader: int) -> Int[np.ndarray, " edge"]:
        """The edges into a reader, in the order in which they are tried."""
        n, first = int(graph.n_writers_before[reader]), int(graph.first_edge[reader])
        within = self.senders[self.senders < n]
        return first + (within if self.rng is None else self.rng.permutation(within))

    def stays(self, lost: Any) -> Any:
        """Whether edges stay whose removal costs this."""
        return (lost if self.signed else np.abs(lost)) >= self.threshold


def acdc(
    engine: PatchingEngine,
    pairs: EncodedPairs,
    metric: AnyMetric,
    start: Circuit,
    search: Search,
    references: References | None = None,
) -> Circuit:
    """The circuit that ACDC finds on these pairs.

    Args:
        engine: of the model.
        pairs: the prompts.
        metric: what the search goes by.
        start: the circuit to begin with.
        search: how to go.
        references: the prompts whose mean activations are written for senders that are left out; None for the other
            run of each pair.

    Raises:
        ValueError: before any run, for a position that a pair lacks.
    """
    graph = start.graph
    places = places_of(start.positions, pairs.in_direction("noising"))
    kept = start.edges.reshape(-1, len(graph)).copy()
    sign = 1.0 if metric.more_is_better else -1.0
    with engine.measuring_circuits(pairs, graph, metric, places=places, references=references) as measure:
        kept = _Going(measure, graph, kept, search, sign).through()
    seen = frozenset(map(pair_key, pairs.clean_tokens, pairs.corrupted_tokens))
    how = "" if search.signed else " either way"
    by = f"ACDC, threshold {search.threshold:g} of the {metric.name}{how}, senders in {search.order}"
    begun = "" if len(start) == start.edges.size else f", from {len(start):,} edges"
    return Circuit(graph, kept.reshape(start.edges.shape), by + begun, start.positions, seen)


def places_of(positions: Sequence[CircuitPosition], pairs: EncodedPairs) -> tuple[tuple[Site, ...], ...]:
    """Where circuits tell their edges apart, counted in the run of these pairs that is patched.

    Raises:
        ValueError: for a position out of range and a name that a pair lacks.
    """
    return tuple(map(tuple, named_columns(positions, pairs))) if positions else ALL_POSITIONS  # type: ignore[arg-type]


class _Going:
    """One search as it goes: the edges that are left, and what they come to."""

    def __init__(
        self, measure: CircuitMeasure, graph: Graph, kept: Bool[np.ndarray, "place edge"], search: Search, sign: float
    ) -> None:
        self.measure, self.graph, self.kept, self.search, self.sign = measure, graph, kept, search, sign
        self.now = self._values(kept[None])[0]
        self.at_once = FEWEST_AT_ONCE

    def through(self) -> Bool[np.ndarray, "place edge"]:
        """Go through all readers; what is left."""
        stages: dict[tuple[int, bool, bool], list[int]] = {}
        for number, reader in reversed(list(enumerate(self.graph.readers))):
            stages.setdefault((reader.layer, reader.kind == "logits", reader.kind == "mlp"), []).append(number)
        for readers in stages.values():
            self._stage(readers)
        return self.kept

    def _stage(self, readers: list[int]) -> None:
        """Readers of which none reads what another one moves, so that which of them lead on is known before."""
        leads = leading_writers(self.graph, np.any(self.kept, axis=0))
        waiting: list[tuple[int, int, int]] = []
        for number in readers:
            moved = list(self.graph.moved[number])
            is_read = not moved or bool(leads[moved].any())
            for edge in self.search.candidates(self.graph, number).tolist():
                for place in np.flatnonzero(self.kept[:, edge]).tolist():
                    if is_read:
                        waiting.append((number, place, edge))
                    elif not self.search.stays(0.0):
                        self.kept[place, edge] = False
        held_for, n_since = -1, HELD_FOR
        guessed: list[bool] = []
        while waiting:
            if waiting[0][0] != held_for and n_since >= HELD_FOR:
                self.measure.hold(self.kept)
                held_for, n_since = waiting[0][0], 0
            some = waiting[: self.at_once]
            n_settled, guessed = self._try(some, [*guessed, *[False] * len(some)][: len(some)])
            del waiting[:n_settled]
            n_since += n_settled

    def _try(self, some: list[tuple[int, int, int]], guessed: list[bool]) -> tuple[int, list[bool]]:
        """Run each of some candidates left out, with those before it as they are guessed to be settled.

        They are settled as far as the guesses before them are right. What the others came to is the next guess.

        Args:
            guessed: whether each is taken to stay.

        Returns:
            How many are settled; of each of the others, whether it is taken to stay.
        """
        tried, left = np.repeat(self.kept[None], len(some), axis=0), self.kept.copy()
        for row, (_, place, edge), stays in zip(tried, some, guessed):
            row[:] = left
            row[place, edge] = False
            left[place, edge] = stays
        found = self._values(tried)
        before, n_settled, is_settled, seen = self.now, 0, True, []
        for row, value, guess in zip(tried, found, guessed):
            stays = bool(self.search.stays(before - value))
            if is_settled:
                n_settled += 1
                if not stays:
                    self.kept, self.now = row, value
                is_settled = stays == guess
            else:
                seen.append(stays)
            before = before if guess else value
        is_all = n_settled == len(some)
        self.at_once = min(MOST_AT_ONCE, 2 * self.at_once) if is_all else max(FEWEST_AT_ONCE, 2 * n_settled)
        return n_settled, seen

    def _values(self, kept: Bool[np.ndarray, "circuit place edge"]) -> np.ndarray:
        found = self.sign * self.measure(kept).mean(axis=1)
        if not np.isfinite(found).all():  # whatever changes costs no number, and every edge would go
            raise ValueError(
                "the metric is not finite in a run with edges left out, so that ACDC cannot go on: load the model in "
                "float32 or float64, or choose another metric"
            )
        return found
