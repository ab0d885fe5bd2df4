"""A circuit beside a known one: which edges, or heads, both have, which are missing, and which are extra.

Precision, recall and Jaccard index say how far two sets of edges are the same; they do not say how well a circuit does
the task (Hanna et al. 2024, "Have Faith in Faithfulness"). Nothing here runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool

from actpatch.core.edge_patches import edge_patches
from actpatch.core.graph import Graph
from actpatch.core.heavy import pd
from actpatch.core.text import count, described, number
from actpatch.core.truth import PublishedHeads, Truth

MOST_NAMED = 3
"""Most missing or extra ones that the `repr` names."""


@dataclass(frozen=True, repr=False)
class CircuitComparison:
    """What a circuit has of a known one, by labels."""

    truth: str
    """Name of the known circuit."""
    kind: Literal["edge", "head"]
    """What is compared."""
    both: tuple[str, ...]
    """True ones that the circuit has."""
    missing: tuple[str, ...]
    """True ones that it has not."""
    extra: tuple[str, ...]
    """Those of the circuit that are not true."""
    hidden: tuple[str, ...] = ()
    """Those of the missing that have no effect alone, so that no ranking of single edges finds them."""

    def __repr__(self) -> str:
        n_true = len(self.both) + len(self.missing)
        lists = [
            f"{what} {', '.join(names[:MOST_NAMED])}{' …' if len(names) > MOST_NAMED else ''}"
            for what, names in (("missing", self.missing), ("extra", self.extra))
            if names
        ]
        hidden = f" ({len(self.hidden)} of the missing hidden)" if self.hidden else ""
        values = f"precision {number(self.precision)}, recall {number(self.recall)}, Jaccard {number(self.jaccard)}"
        found = f"{len(self.both)} of {count(n_true, self.kind)}{hidden}"
        return f"CircuitComparison({'; '.join([f'{self.truth}: {found}, {values}', *lists])})"

    @property
    def precision(self) -> float:
        """Share of the circuit that is true; NaN for an empty circuit."""
        return _share(len(self.both), len(self.both) + len(self.extra))

    @property
    def recall(self) -> float:
        """Share of the truth that the circuit has."""
        return _share(len(self.both), len(self.both) + len(self.missing))

    @property
    def jaccard(self) -> float:
        """Share of what either has that both have."""
        return _share(len(self.both), len(self.both) + len(self.missing) + len(self.extra))

    @property
    def is_exact(self) -> bool:
        """Whether the circuit is the known one."""
        return not self.missing and not self.extra

    def to_dataframe(self) -> pd.DataFrame:
        """A row per edge, or head, that either has: its label under `edge` or `head`, `is_true`, `in_circuit`, and
        `is_hidden` for missing ones that have no effect alone."""
        rows = [
            *((name, True, True, False) for name in self.both),
            *((name, True, False, name in self.hidden) for name in self.missing),
            *((name, False, True, False) for name in self.extra),
        ]
        return pd.DataFrame(rows, columns=[self.kind, "is_true", "in_circuit", "is_hidden"])


def compared(
    graph: Graph,
    edges: Bool[np.ndarray, " edge"],
    heads: Iterable[tuple[int, int]],
    truth: Truth | PublishedHeads,
) -> CircuitComparison:
    """A circuit of these edges, and so of these heads, beside a known one.

    Raises:
        ValueError: for a truth of another model or graph, and for what is none.
    """
    if isinstance(truth, Truth):
        truth.check_graph(graph)
        every, true, visible = edge_patches(graph), truth.mask(graph), truth.mask(graph, hidden=False)
        both, missing, extra, hidden = (
            tuple(every.taken(np.flatnonzero(which)).labels)
            for which in (edges & true, true & ~edges, edges & ~true, true & ~edges & ~visible)
        )
        return CircuitComparison(truth.name, "edge", both, missing, extra, hidden)
    if not isinstance(truth, PublishedHeads):
        raise ValueError(f"truth is {described(truth)}, expected a Truth (edges) or PublishedHeads")
    truth.check_model(graph.model, graph.n_layers, max(graph.heads))
    found, known = set(heads), set(truth.heads)
    sets = (found & known, known - found, found - known)
    return CircuitComparison(truth.name, "head", *(tuple(f"L{i}H{j}" for i, j in sorted(one)) for one in sets))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
