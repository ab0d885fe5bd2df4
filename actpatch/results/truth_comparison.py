"""A ranking by effects beside a known circuit: how well it finds the true edges, or heads. Runs nothing.

A ranking of single edges can find such as have an effect alone. Where the truth has hidden ones, it is compared twice:
with all of the truth's edges, and without the hidden ones, which then count neither as true nor as false.

The benchmark's AUROC (Mueller et al. 2025, arXiv 2504.13151) is of circuits that grow from the logits by |score|, at
its ten sizes, pruned to what lies on a way from the input to the logits (`statistics.recovery`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.circuits import Circuit
from actpatch.core.edge_patches import edge_patches
from actpatch.core.estimate_words import exact_or_estimated
from actpatch.core.graph import Graph
from actpatch.core.growth import grown
from actpatch.core.heavy import pd
from actpatch.core.text import count, described, number
from actpatch.core.truth import PublishedHeads, Truth
from actpatch.results.sweep import Sweep
from actpatch.statistics.recovery import Recovery, mib_counts, recovery

MOST_NAMED = 3
"""Most missed ones that the `repr` names."""


@dataclass(frozen=True, eq=False, repr=False)
class TruthComparison:
    """How well a ranking by effects finds a known circuit."""

    truth: str
    """Name of the known circuit."""
    kind: Literal["edge", "head"]
    """What was ranked."""
    ranked_by: str
    """By what: `|effect|, exact, denoising`."""
    metric: str
    recovery: Recovery
    """Of all that is true."""
    visible: Recovery
    """Without the edges that have no effect alone; the same where there are none."""
    missed: tuple[str, ...]
    """Labels of true ones that are not among the highest, of which as many are taken as are true; one that is level
    with false ones there counts as missed."""
    hidden: tuple[str, ...] = ()
    """Labels of the true edges that have no effect alone."""
    notes: tuple[str, ...] = ()
    """What a reader should know: what was not ranked, and what the truth is stated for."""

    @property
    def is_exact(self) -> bool:
        """Whether every true one that has an effect alone ranks above every false one."""
        return self.visible.auroc == 1.0

    def to_dataframe(self) -> pd.DataFrame:
        """A row per measure: `measure`, `value`, `chance`, and `of`, which is `all` or `visible`."""
        of = {"all": self.recovery} | ({"visible": self.visible} if self.hidden else {})
        table = pd.concat([found.to_dataframe().assign(of=name) for name, found in of.items()], ignore_index=True)
        return table if self.kind == "edge" else table[table["measure"] != "AUROC (MIB)"].reset_index(drop=True)

    def __repr__(self) -> str:
        all_of_it = (
            f"{self.recovery.n_true} of {count(self.recovery.n_edges, self.kind)} true: {self._told(self.recovery)}"
        )
        parts = [f"{self.truth}, by {self.ranked_by}: {all_of_it}"]
        if self.hidden:
            parts.append(f"without {len(self.hidden)} hidden: {self._told(self.visible)}")
        if self.missed:
            named = ", ".join(self.missed[:MOST_NAMED]) + (" …" if len(self.missed) > MOST_NAMED else "")
            parts.append(f"{len(self.missed)} missed: {named}")
        return f"TruthComparison({'; '.join([*parts, *self.notes])})"

    def _told(self, found: Recovery) -> str:
        precision = "".join(f", precision at {k} {number(value)}" for k, value in found.precision_at.items())
        benchmark = f", AUROC (MIB) {number(found.mib_auroc)}" if self.kind == "edge" else ""
        return f"AUROC {number(found.auroc)}, AUPRC {number(found.auprc)}{precision}{benchmark}"


def compared_edges(
    graph: Graph,
    effects: Float[np.ndarray, " edge"],
    truth: Truth,
    *,
    ranked_by: str,
    metric: str,
    absolute: bool = True,
    ks: Sequence[int] | None = None,
    hidden: bool = True,
    notes: Sequence[str] = (),
) -> TruthComparison:
    """The effects of all edges of a graph beside a known circuit of it.

    Args:
        graph: of the model.
        effects: in the order of `edge_patches(graph)`; NaN where one is not known.
        truth: the known circuit.
        ranked_by: whose effects they are, in words.
        metric: which metric they are of.
        absolute: rank by |effect|.
        ks: the k of the precisions, of all that is true; None for the number of true edges.
        hidden: whether the truth's hidden edges are such for these effects; where not, all count as visible.
        notes: what a reader should know of the effects.

    Raises:
        ValueError: for what is no truth, one of another graph, and a k that is no number of edges.
    """
    check_truth(truth)
    truth.check_graph(graph)
    true, circuits, every = truth.mask(graph), mib_circuits(graph, effects), edge_patches(graph)
    seen = truth.mask(graph, hidden=False) | ~true if hidden else np.ones(len(graph), dtype=bool)
    of_all, of_seen = (
        recovery(effects[which], true[which], absolute=absolute, ks=asked, circuits=circuits[:, which])
        for which, asked in ((np.ones_like(seen), ks), (seen, None))
    )
    missed, unseen = (
        tuple(every.taken(np.flatnonzero(which)).labels) for which in (_missed(effects, true, absolute), ~seen)
    )
    return TruthComparison(
        truth.name,
        "edge",
        f"{'|effect|' if absolute else 'signed effect'}, {ranked_by}",
        metric,
        of_all,
        of_seen,
        missed,
        unseen,
        (*notes, *_not_ranked(effects, "edge")),
    )


def compared_heads(
    matrix: Float[np.ndarray, "layer head"],
    sweep: Sweep,
    truth: PublishedHeads,
    *,
    absolute: bool = True,
    ks: Sequence[int] | None = None,
) -> TruthComparison:
    """The effects of all heads of a model beside a published circuit: `HeadResults.compare_with`.

    Raises:
        ValueError: for what are no published heads, and such as are of another model.
    """
    if not isinstance(truth, PublishedHeads):
        otherwise = ": compare results of edges with it" if isinstance(truth, Truth) else ""
        raise ValueError(f"truth is {described(truth)}, expected PublishedHeads{otherwise}")
    truth.check_model(sweep.model, *matrix.shape)
    effects, true = matrix.ravel(), truth.mask()
    found = recovery(effects, true.ravel(), absolute=absolute, ks=ks)
    missed = np.argwhere(_missed(effects, true.ravel(), absolute).reshape(matrix.shape))
    stated = f"published with {truth.ablation} written, these are with {sweep.source_of_values}"
    return TruthComparison(
        truth.name,
        "head",
        f"{'|effect|' if absolute else 'signed effect'}, {exact_or_estimated(sweep.estimate)}, {sweep.direction}",
        sweep.metric,
        found,
        found,
        tuple(f"L{layer}H{head}" for layer, head in missed.tolist()),
        (),
        (stated, *_not_ranked(effects, "head")),
    )


def mib_circuits(graph: Graph, effects: Float[np.ndarray, " edge"]) -> Bool[np.ndarray, "size edge"]:
    """Which edges the benchmark's circuits hold: grown from the logits by |effect|, of its ten sizes, and pruned."""
    known = np.flatnonzero(~np.isnan(effects))
    ranked = known[np.argsort(-np.abs(effects[known]), kind="stable")]
    order = np.fromiter(grown(graph, ranked), dtype=np.int64)
    members = np.zeros((len(mib_counts(len(graph))), len(graph)), dtype=bool)
    for row, size in zip(members, mib_counts(len(graph))):
        row[order[:size]] = True
    return np.stack([Circuit(graph, row).pruned().edges for row in members])


def check_truth(truth: object) -> None:
    """Raises ValueError for what is no truth about edges."""
    if isinstance(truth, PublishedHeads):
        raise ValueError(f"{truth.name} names heads and no edges: compare results of heads, or a circuit, with it")
    if not isinstance(truth, Truth):
        raise ValueError(f"truth is {described(truth)}, expected a Truth, as program_truths gives them")


def _missed(
    effects: Float[np.ndarray, " one"], true: Bool[np.ndarray, " one"], absolute: bool
) -> Bool[np.ndarray, " one"]:
    """True ones that are not among the highest, of which as many are taken as are true; no tie counts as found."""
    ranked = np.where(np.isnan(effects), -np.inf, np.abs(effects) if absolute else effects)
    border = np.sort(ranked)[-int(true.sum())]
    is_tied = (ranked >= border).sum() > true.sum()
    return true & ((ranked <= border) if is_tied else (ranked < border))


def _not_ranked(effects: Float[np.ndarray, " one"], kind: str) -> list[str]:
    n = int(np.isnan(effects).sum())
    return [f"{count(n, kind)} not ranked, below all others"] if n else []
