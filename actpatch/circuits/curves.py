"""Faithfulness by size: circuits of the largest effects, at several sizes, run on pairs that the ranking did not see.

Sizes, pruning and both rankings are those of the MIB benchmark (Mueller et al. 2025, "MIB: A Mechanistic
Interpretability Benchmark"): circuits are run once dangling edges are pruned. Beside them stand circuits of random
rankings, chosen in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from actpatch.circuits.held_out import Split, held_out_indices
from actpatch.circuits.measured import CircuitMetrics
from actpatch.circuits.patcher import patcher_of
from actpatch.circuits.rankings import EdgeRanking, Growth, Scores, edge_ranking, scores_of
from actpatch.core.circuit_names import CircuitPosition
from actpatch.core.circuits import Circuit
from actpatch.core.graph import Graph
from actpatch.core.heavy import pd
from actpatch.core.indices import is_integer
from actpatch.core.text import described, shortened
from actpatch.interventions.settings import Settings
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.chosen import MetricChoice
from actpatch.patchers.experiment import encoded
from actpatch.results.both import BothDirections
from actpatch.results.edges import EdgeResults
from actpatch.results.ensembles import members_of
from actpatch.results.faithfulness_curve import FaithfulnessCurve
from actpatch.results.shapes import SweepResults
from actpatch.statistics.areas import MIB_SIZES, edge_counts
from actpatch.tasks.dataset import PatchingDataset

Signs = Literal["signed", "absolute"]


def faithfulness_curve(
    model: Any,
    dataset: PatchingDataset,
    results: EdgeResults | BothDirections[Any] | pd.DataFrame | ArrayLike,
    *,
    method: Growth = "top",
    rankings: Sequence[Signs] = ("signed", "absolute"),
    sizes: Sequence[float] = MIB_SIZES,
    n_random: int = 20,
    split: Split = "held-out",
    source: Source = OTHER_RUN,
    metric: MetricChoice = None,
    pair_indices: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    show_progress: bool = True,
) -> FaithfulnessCurve:
    """How much of the behaviour the circuits of the largest effects keep, by their size.

    All circuits are run together, equal ones once.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge`.
        dataset: prompt pairs and metric; those of them that the ranking saw are left out, unless `split` says other.
        results: effects of edges, exact or estimated, of both directions, or an `ensemble`, as `find_circuit` takes
            them; or one score for each edge of the graph, in the order of `edge_patches(graph)`, NaN for none
            (`from_mib_json(path, graph)["score"]`).
        method: how circuits are chosen, as in `find_circuit`: `top` or `greedy`.
        rankings: `signed`, by effects, and `absolute`, by their sizes.
        sizes: shares of all edges; of each share the number of edges is rounded down. A circuit has fewer where no more
            edges have a score, or lead to the logits.
        n_random: number of random rankings.
        split: `held-out`, or `all` pairs, whether the ranking saw them or not.
        source: what stands in the place of senders that are left out.
        metric: one metric, as in `ActivationPatcher.run_patching_experiment`; None for the dataset's own.
        pair_indices: which pairs of the dataset; None for all.
        seed: of the random rankings.
        batch_size: most prompts run at once; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.

    Raises:
        TypeError: for a model of another class.
        ValueError: before any run of the model, for results of anything but edges of this model, settings out of range,
            a dataset whose pairs the ranking saw all, and for whatever of the dataset is wrong.
        RuntimeError: where circuits of this model cannot be run, with the reason.
    """
    shares = _checked(method, rankings, sizes, n_random, seed, metric)
    patcher = patcher_of(model, batch_size, show_progress)
    graph = patcher.graph
    scored = _Scored(graph, results)
    nominal = edge_counts(len(graph) * scored.n_places, shares.tolist())
    settings = Settings(pair_indices=pair_indices, source=source, direction="noising", metrics=metric)
    chosen = held_out_indices(encoded(patcher.model, dataset, settings), scored.seen, split)
    ranked = [scored.ranking(signs == "signed", method) for signs in rankings]
    drawn = [scored.random(np.random.default_rng([seed, draw]), method) for draw in range(n_random)]
    circuits = [_of_sizes(ranking, nominal) for ranking in (*ranked, *drawn)]
    settings = replace(settings, pair_indices=chosen.pair_indices)
    run = CircuitMetrics(patcher, dataset, settings)
    flat = run.of([one for of_ranking in circuits for one in of_ranking])[0]
    values = flat.reshape(len(circuits), len(shares), -1)
    real = np.array([[len(one) for one in of_ranking] for of_ranking in circuits], dtype=np.int64)
    n = len(rankings)
    sweep = run.sweep
    return FaithfulnessCurve(
        model=sweep.model,
        task=sweep.task,
        metric=sweep.metric,
        unit=sweep.unit,
        more_is_better=sweep.more_is_better,
        direction=sweep.direction,
        source_of_values=sweep.source_of_values,
        ranked_by=scored.how,
        method=method,
        rankings=tuple(rankings),
        n_edges=len(graph) * scored.n_places,
        sizes=shares,
        nominal=np.tile(nominal, (n, 1)),
        real=real[:n],
        values=values[:n],
        full=run.full[0],
        empty=run.empty[0],
        random_values=values[n:],
        random_real=real[n:].reshape(n_random, len(shares)),
        pair_indices=chosen.pair_indices,
        held_out=chosen.held_out,
        seed=seed,
        notes=(*scored.notes, *sweep.notes),
    )


class _Scored:
    """Scores of the edges of a graph, from results or as they are given."""

    def __init__(self, graph: Graph, results: Any) -> None:
        self.graph, self.scores = graph, None
        self.positions: tuple[CircuitPosition, ...] = ()
        notes: list[str] = []
        if not isinstance(results, (SweepResults, BothDirections)) and members_of(results) is None:
            self.given = _given(graph, results)
            self.how, self.seen = "given scores", frozenset[str]()
            n_known = int((~np.isnan(self.given)).sum())
        else:
            self.scores = scores_of(results)
            of_edges = _edges_of(self.scores, graph)
            one = edge_ranking(of_edges, self.scores.keys(False), "top")
            self.how, self.seen, self.positions, n_known = self.scores.how, self.scores.seen, one.positions, one.n_known
            if not (self.scores.has_sign and self.scores.has_unit):
                notes.append("these scores have no sign, so that the signed ranking is the absolute one")
        if not n_known:
            raise ValueError("no edge has a score, all are NaN: use a corruption that breaks the behaviour")
        if n_lacking := len(graph) * self.n_places - n_known:
            notes.append(f"{n_lacking:,} edges have no score, and are in no circuit")
        self.notes = tuple(notes)

    @property
    def n_places(self) -> int:
        return max(1, len(self.positions))

    def ranking(self, signed: bool, method: Growth) -> EdgeRanking:
        if self.scores is None:
            return EdgeRanking(self.graph, (self.given if signed else np.abs(self.given))[None], method)
        return edge_ranking(_edges_of(self.scores, self.graph), self.scores.keys(signed), method)

    def random(self, rng: np.random.Generator, method: Growth) -> EdgeRanking:
        """The ranking of all edges by random scores."""
        return EdgeRanking(self.graph, rng.random((self.n_places, len(self.graph))), method, self.positions)


def _edges_of(scores: Scores, graph: Graph) -> EdgeResults:
    results = scores.results
    if not isinstance(results, EdgeResults):
        raise ValueError(
            f"results holds {type(results).__name__}, expected those of edges (PathPatcher, AttributionPatcher): the "
            "curve is over numbers of edges"
        )
    if results.graph != graph:
        raise ValueError(f"results are of edges of {results.graph!r}, this model has {graph!r}")
    return results


def _given(graph: Graph, scores: Any) -> Float[np.ndarray, " edge"]:
    try:
        given = np.asarray(scores, dtype=float)
    except (TypeError, ValueError):
        given = np.empty(0)
    if given.shape != (len(graph),):
        shape = f" of shape {np.shape(scores)}" if isinstance(scores, np.ndarray) else ""
        raise ValueError(
            f"results is {described(scores)}{shape}, expected effects of edges (PathPatcher, AttributionPatcher), or a "
            f"score for each of the {len(graph):,} edges of {graph.model}"
        )
    return given


def _of_sizes(ranking: EdgeRanking, nominal: Sequence[int] | np.ndarray) -> list[Circuit]:
    """The pruned circuit of each size; the same one for sizes that leave the same edges."""
    return [ranking.circuit(int(n)).pruned() for n in nominal]


def _checked(
    method: str, rankings: Sequence[str], sizes: Sequence[float], n_random: int, seed: int, metric: Any
) -> Float[np.ndarray, " size"]:
    """The sizes, ascending; ValueError for settings out of range."""
    if method not in get_args(Growth):
        raise ValueError(f"method is {method!r}, expected one of {', '.join(map(repr, get_args(Growth)))}")
    known = get_args(Signs)
    if isinstance(rankings, str) or not rankings or len(set(rankings)) < len(rankings) or set(rankings) - set(known):
        raise ValueError(f"rankings is {rankings!r}, expected some of {known}, each once")
    for name, given in (("n_random", n_random), ("seed", seed)):
        if not is_integer(given) or given < 0:
            raise ValueError(f"{name} is {given!r}, expected a whole number from 0 on")
    if isinstance(metric, (list, tuple)) and len(metric) != 1:
        raise ValueError(f"metric is a list of {len(metric)}, expected one: make a curve for each")
    try:
        shares = np.unique(np.asarray(sizes, dtype=float))
    except (TypeError, ValueError):
        shares = np.empty(0)
    if not len(shares):
        raise ValueError(f"sizes is {shortened(sizes)}, expected shares of all edges, from 0 to 1")
    return shares
