"""One ranking from several methods' estimates of the same patches: their errors are not the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from actpatch.core.heavy import pd
from actpatch.results.differences import differing
from actpatch.results.shapes import SweepResults
from actpatch.statistics.ensembles import mean_rank, normalised_mean

By = Literal["scores", "ranks"]


def ensemble(results: Sequence[SweepResults], *, by: By = "scores") -> pd.DataFrame:
    """The sites of several results of the same patches, ranked by all of them together.

    Mondorf et al. 2025 average normalised scores, or ranks, of several methods; it costs nothing beside their runs.

    Args:
        results: of the same patches on the same pairs, by several methods, exact ones among them or not.
        by: `scores` for the mean of each method's effects as shares of its largest one, with their signs (of methods
            without signs, sizes of all); `ranks` for the mean rank by size, 1 for the largest.

    Returns:
        A row per site, the first the most important: `site`, `score` (or `rank`), and the effects by each method.

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
    effects = [sweep.effects for sweep in sweeps]
    are_sizes = any(sweep.estimate is not None and sweep.estimate.what.is_absolute for sweep in sweeps)
    compared = [np.abs(each) for each in effects] if are_sizes else effects
    table = pd.DataFrame({"site": first.labels})
    if by == "ranks":
        table = table.assign(rank=mean_rank(compared))
        order = np.argsort(table["rank"].to_numpy(), kind="stable")
    else:
        table = table.assign(score=normalised_mean(compared))
        order = np.argsort(-np.abs(table["score"].to_numpy()), kind="stable")
    for number, (name, each) in enumerate(zip(names, effects)):
        twice = names.index(name) != number
        table[f"{name} ({number})" if twice else name] = each
    return table.iloc[order].reset_index(drop=True)
