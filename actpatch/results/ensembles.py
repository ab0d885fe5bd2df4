"""One ranking from several methods' estimates of the same patches: their errors are not the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from actpatch.core.heavy import pd
from actpatch.results.differences import differing
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import Sweep
from actpatch.statistics.ensembles import mean_rank, normalised_mean

By = Literal["scores", "ranks"]


_MEMBERS = "_ranked_together"
"""Where a table keeps what it is of. pandas hands it to no table that is made of this one."""


@dataclass(frozen=True, eq=False)
class Members:
    """What an ensemble is of, and its scores."""

    results: tuple[SweepResults, ...]
    """What was ranked together."""
    by: By
    scores: Float[np.ndarray, " patch"]
    """The score of each patch, in the order of the patches; by ranks the mean rank, below 0, so that more is better."""
    are_sizes: bool
    """Whether scores have no sign."""


def ensemble(results: Sequence[SweepResults], *, by: By = "scores") -> pd.DataFrame:
    """The sites of several results of the same patches, ranked by all of them together.

    Mondorf et al. 2025 average normalised scores, or ranks, of several methods; it costs nothing beside their runs.

    Args:
        results: of the same patches on the same pairs, by several methods, exact ones among them or not.
        by: `scores` for the mean of each method's effects as shares of its largest one, with their signs (of methods
            without signs, sizes of all); `ranks` for the mean rank by size, 1 for the largest.

    Returns:
        A row per site, the first the most important: `site`, `score` (or `rank`), and the effects by each method.
        `find_circuit` takes the table as it is.

    Raises:
        ValueError: for fewer than two results, and for such as are of other patches, runs or metrics.
    """
    if by not in get_args(By):
        raise ValueError(f"by is {by!r}, expected 'scores' or 'ranks'")
    if len(results) < 2 or not all(isinstance(one, SweepResults) for one in results):
        raise ValueError(f"results holds {len(results)}, expected the results of two methods at least")
    sweeps = [one.sweep for one in results]
    first = sweeps[0]
    for other in sweeps[1:]:
        if what := differing(first, other) or ("patches" if first.patches != other.patches else None):
            raise ValueError(f"the results differ in {what}, expected the same patches on the same pairs")
    names = ["exact" if sweep.estimate is None else sweep.estimate.method for sweep in sweeps]
    scores, are_sizes = _scores(sweeps, by)
    columns = {"site": first.labels, **({"rank": -scores} if by == "ranks" else {"score": scores})}
    for number, (name, sweep) in enumerate(zip(names, sweeps)):
        twice = names.index(name) != number
        columns[f"{name} ({number})" if twice else name] = sweep.effects
    order = np.argsort(-np.abs(scores) if by == "scores" else -scores, kind="stable")
    table = pd.DataFrame(columns).iloc[order].reset_index(drop=True)
    object.__setattr__(table, _MEMBERS, Members(tuple(results), by, scores, are_sizes))
    return table


def members_of(table: Any) -> Members | None:
    """What a table that `ensemble` returned is of; None for anything else, and for tables that were made of it."""
    return getattr(table, "__dict__", {}).get(_MEMBERS)


def _scores(sweeps: Sequence[Sweep], by: By) -> tuple[Float[np.ndarray, " patch"], bool]:
    """The score of each patch, and whether scores have no sign."""
    effects = [sweep.effects for sweep in sweeps]
    are_sizes = any(sweep.estimate is not None and sweep.estimate.what.is_absolute for sweep in sweeps)
    compared = [np.abs(each) for each in effects] if are_sizes else effects
    if by == "ranks":
        return -mean_rank(compared), True
    return normalised_mean(compared), are_sizes
