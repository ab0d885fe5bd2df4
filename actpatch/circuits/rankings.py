"""Edges and components in the order of their effects, and the circuits of the first of them. Nothing here runs a model.

Edges are ranked by themselves, or as a circuit grows from the logits downwards (Hanna et al. 2024, "Have Faith in
Faithfulness"), so that each leads to the logits. Of components a circuit has all edges between them. Ties go by number,
what has no effect is never ranked, and of several scores of one edge (both directions) the largest counts: what is
large in either is in the circuit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from actpatch.core.circuit_names import CircuitPosition, pair_key, position_named
from actpatch.core.circuits import Circuit
from actpatch.core.estimate_words import exact_or_estimated, method_of
from actpatch.core.graph import Graph
from actpatch.core.growth import grown
from actpatch.core.sites import Patch
from actpatch.core.text import described
from actpatch.results.both import BothDirections
from actpatch.results.edges import EdgeResults
from actpatch.results.ensembles import members_of
from actpatch.results.shapes import HeadResults, LayerResults, SweepResults
from actpatch.results.sweep import Sweep

Growth = Literal["top", "greedy"]
"""The largest of all; or the largest of those into the logits and into what already leads there by an edge taken."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What edges or components are ranked by: one or several scores of each patch of some results."""

    results: SweepResults
    """Whose patches they are of."""
    parts: tuple[Float[np.ndarray, " patch"], ...]
    """Several where there are results of both directions."""
    how: str
    """`exact, noising`."""
    has_sign: bool = True
    has_unit: bool = True
    """Whether they are more than an order, so that a threshold means something."""

    @property
    def sweep(self) -> Sweep:
        return self.results.sweep

    @property
    def seen(self) -> frozenset[str]:
        """Keys of the pairs that the effects are of."""
        return frozenset(pair_key(*both) for both in zip(self.sweep.clean_tokens, self.sweep.corrupted_tokens))

    def keys(self, signed: bool) -> Float[np.ndarray, " patch"]:
        """What each patch is ranked by, the largest first."""
        # Where there is no sign a rank is below 0 all the same, and the largest is the best.
        parts = self.parts if signed or not self.has_unit else [np.abs(part) for part in self.parts]
        return np.fmax.reduce(parts)

    def by(self, signed: bool) -> str:
        """What that is, in words."""
        if not self.has_unit:
            return "mean rank"
        return "signed effect" if signed and self.has_sign else "|effect|"


def scores_of(results: Any) -> Scores:
    """What the circuits of some results are ranked by.

    Raises:
        ValueError: for what holds no effects.
    """
    if isinstance(results, BothDirections):
        each = scores_of(results.denoising), scores_of(results.noising)
        how = f"{exact_or_estimated(each[0].sweep.estimate)}, the larger of denoising and noising (union of both)"
        return Scores(results.noising, (each[0].parts[0], each[1].parts[0]), how, each[0].has_sign)
    if isinstance(results, SweepResults):
        estimate = results.sweep.estimate
        how = f"{exact_or_estimated(estimate)}, {results.sweep.direction}"
        return Scores(results, (results.sweep.effects,), how, estimate is None or not estimate.what.is_absolute)
    if members := members_of(results):
        sweeps = [one.sweep for one in members.results]
        methods = " and ".join(method_of(sweep.estimate) or "exact effects" for sweep in sweeps)
        how = f"ensemble of {methods} by {members.by}, {sweeps[0].direction}"
        return Scores(members.results[0], (members.scores,), how, not members.are_sizes, members.by == "scores")
    raise ValueError(
        f"results is {described(results)}, expected what PathPatcher, AttributionPatcher, HeadPatcher or "
        "ActivationPatcher returns, or an ensemble(...) of such as it is"
    )


class Ranking(ABC):
    """Edges or components in order. Its length is the number of those that are ranked."""

    graph: Graph
    keys: Float[np.ndarray, " ranked"]
    """What each was ranked by."""
    noun: str
    """What is ranked, in a word."""
    n_known: int
    """How many have an effect, whether they are ranked or not."""
    kept: str = ""
    """What is in the circuit besides, in words."""

    def __len__(self) -> int:
        return len(self.keys)

    @abstractmethod
    def circuit(self, n: int) -> Circuit:
        """That of the first n."""


class EdgeRanking(Ranking):
    """Edges of a graph, at each of some positions where these are told apart.

    Args:
        graph: whose edges.
        keys: what each edge is ranked by; NaN for those that never are.
        growth: how.
        positions: as a `Circuit` has them.
    """

    noun = "edge"

    def __init__(
        self,
        graph: Graph,
        keys: Float[np.ndarray, "place edge"],
        growth: Growth = "top",
        positions: tuple[CircuitPosition, ...] = (),
    ) -> None:
        self.graph, self.positions, self.n_places = graph, positions, len(keys)
        each = keys.T.ravel()  # ties go by edge, then by position
        known = np.flatnonzero(~np.isnan(each))
        ranked = known[np.argsort(-each[known], kind="stable")]
        self.n_known = len(known)
        self.order = ranked if growth == "top" else np.fromiter(grown(graph, ranked, len(keys)), dtype=np.int64)
        self.keys = each[self.order]

    def circuit(self, n: int) -> Circuit:
        edges = np.zeros(len(self.graph) * self.n_places, dtype=bool)
        edges[self.order[:n]] = True
        table = edges.reshape(-1, self.n_places).T
        return Circuit(self.graph, table if self.positions else table[0], positions=self.positions)


def edge_ranking(results: EdgeResults, keys: Float[np.ndarray, " patch"], growth: Growth) -> EdgeRanking:
    """The ranking of the edges of some results by these keys.

    Raises:
        ValueError: for results at some positions and at all of them together.
    """
    edges = results.edges
    used, columns = np.unique(edges.columns, return_inverse=True)
    names = [edges.column_names[column] for column in used]
    if len(names) > 1 and "" in names:
        raise ValueError(
            "some of these edges were patched at positions and others at all positions together: give results.at(...) "
            "of one, or patch them at positions alone"
        )
    table = np.full((len(names), len(results.graph)), np.nan)
    table[columns, edges.numbers] = keys
    return EdgeRanking(results.graph, table, growth, tuple(map(position_named, names)) if any(names) else ())


class NodeRanking(Ranking):
    """Components of a graph: heads, whole layers of them, MLPs. A circuit has all edges between those that it takes.

    Args:
        graph: whose components.
        results: of outputs of heads, or of attention and MLPs.
        keys: what each patch is ranked by.

    Raises:
        ValueError: for effects of anything else.
    """

    noun = "node"

    def __init__(self, graph: Graph, results: SweepResults, keys: Float[np.ndarray, " patch"]) -> None:
        self.graph = graph
        units = [_writers_of(graph, patch) for patch in results.sweep.patches]
        known = [i for i, unit in enumerate(units) if unit and not np.isnan(keys[i])]
        by_number = sorted(known, key=lambda i: units[i])
        self.order = [units[i] for i in sorted(by_number, key=lambda i: -keys[i])]
        self.keys = np.array(sorted((keys[i] for i in known), reverse=True))
        self.n_known = len(known)
        ranked = {graph.writers[number].kind for unit in units for number in unit}
        self._besides = [i for i, writer in enumerate(graph.writers) if writer.kind not in ranked]
        besides = {graph.writers[i].kind for i in self._besides} - {"input"}
        names = {"head": "heads", "mlp": "MLPs"}
        self.kept = " and ".join(f"all {names[kind]}, which were not ranked, are kept" for kind in sorted(besides))

    def circuit(self, n: int) -> Circuit:
        chosen = {*self._besides, *(number for unit in self.order[:n] for number in unit)}
        return Circuit.of_nodes(self.graph, [*(self.graph.writers[i].id for i in sorted(chosen)), "logits"])


def is_of_nodes(results: SweepResults) -> bool:
    """Whether these are effects of components that circuits consist of.

    Raises:
        ValueError: for effects that no circuit is made of.
    """
    if isinstance(results, EdgeResults):
        return False
    if isinstance(results, LayerResults) or (isinstance(results, HeadResults) and results.patch_type == "output"):
        return True
    what = f"effects of {results.patch_type} of heads" if isinstance(results, HeadResults) else type(results).__name__
    raise ValueError(
        f"results holds {what}, expected those of edges (PathPatcher, AttributionPatcher), of heads' outputs at all "
        "positions, or of attn_out and mlp_out: circuits consist of edges between whole components"
    )


def _writers_of(graph: Graph, patch: Patch) -> tuple[int, ...]:
    """Numbers of the writers that a patch replaces at all positions; none for the embedding, which is in any circuit.

    Raises:
        ValueError: where that is anything else.
    """
    site = patch.sites[0]
    if len(patch.sites) > 1 or patch.window > 1 or site.position is not None:
        raise ValueError(
            f"{patch.label} is not one component at all positions: patch each of heads, attn_out or mlp_out alone and "
            "without position="
        )
    if site.hook_point == "hook_embed":
        return ()
    kind = {"z": "head", "attn_out": "head", "mlp_out": "mlp"}.get(site.component)
    found = tuple(
        number
        for number, writer in enumerate(graph.writers)
        if (writer.layer, writer.kind) == (site.layer, kind) and site.head in (None, writer.head)
    )
    if not found:
        raise ValueError(
            f"{patch.label} is no component of a circuit: expected effects of heads' outputs, attn_out or mlp_out"
        )
    return found
