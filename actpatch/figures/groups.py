"""The comparison of two groups of pairs in one experiment: a map of each, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from actpatch.core.estimate_words import of_estimates
from actpatch.core.heavy import go
from actpatch.core.text import count, with_minus
from actpatch.figures.certainty import STAR, Certainty, unknown
from actpatch.figures.checks import checked_sweep
from actpatch.figures.comparison import MapResults, compared
from actpatch.results.both import BothDirections
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import HeadResults, LayerResults
from actpatch.results.sweep import Sweep
from actpatch.statistics.groups import FEWEST_OF_A_GROUP, group_differences

Results = TypeVar("Results", bound=MapResults)


def create_group_comparison(
    results: MapResults,
    groups: Sequence[str] | None = None,
    *,
    component: str | None = None,
    title: str | None = None,
    colour_range: float | None = None,
    alpha: float = 0.05,
) -> go.Figure:
    """Maps of two groups of pairs and the second minus the first, all on one colour scale.

    A star in the difference marks cells whose effect differs significantly between the two groups, corrected over the
    map (`statistics.groups`).

    Args:
        results: head, layer or position results whose dataset names groups (`PatchingDataset.get_group`).
        groups: the names of two groups; None for the two between which effects differ most.
        component: of position results, which component; None for the first.
        title: in place of the figure's own.
        colour_range: colours span ± this effect; None spans the largest of the three maps.
        alpha: cells are marked where the corrected p-value is at most this.

    Raises:
        ValueError: where the results are of one group, `groups` are not two of theirs, or a map cannot be drawn.
    """
    if isinstance(results, BothDirections):
        raise ValueError("results holds both directions: give results.denoising or results.noising")
    sweep = checked_sweep(results, (HeadResults, LayerResults, PositionResults), "create_group_comparison")
    names = _two_groups(sweep, groups)
    by_group = results.by_group()
    evidence = _evidence(sweep, names, alpha)
    return compared(
        (by_group[names[0]], by_group[names[1]]),
        names,
        component=component,
        title=title or f"{names[0]} against {names[1]}",
        colour_range=colour_range,
        change=evidence,
    )


def _two_groups(sweep: Sweep, groups: Sequence[str] | None) -> tuple[str, str]:
    known = list(dict.fromkeys(filter(None, sweep.groups)))
    if len(known) < 2:
        raise ValueError(
            f"the pairs of these results are of {count(len(known), 'group')}, expected two: let the dataset's "
            "get_group tell them apart"
        )
    if groups is None:
        differences = sweep.statistics().differences if sweep.usable.any() else None
        if differences is None:
            return known[0], known[1]
        site = int(np.nanargmax(differences.spread))
        ends = sorted((int(differences.effects[site].argmin()), int(differences.effects[site].argmax())))
        return differences.groups[ends[0]], differences.groups[ends[1]]
    if isinstance(groups, str) or len(groups) != 2 or groups[0] == groups[1] or not set(groups) <= set(known):
        raise ValueError(f"groups is {groups!r}, expected two of {', '.join(map(repr, known))}")
    return groups[0], groups[1]


def _evidence(sweep: Sweep, names: tuple[str, str], alpha: float) -> Certainty:
    """How sure the differences between the two groups are, an entry per patch."""
    usable = sweep.usable & np.isin(np.array(sweep.groups, dtype=object), names)
    written = sweep.written[:, usable]
    if not written.all(axis=1).any():
        return unknown(len(sweep.patches), "not tested: no site was patched in all of these pairs")
    found = group_differences(
        (sweep.patched - sweep.base)[:, usable],
        (sweep.source - sweep.base)[usable],
        [group for group, kept in zip(sweep.groups, usable) if kept],
        sites=sweep.labels,
        written=written,
        alpha=alpha,
    )
    if found is None or found.smallest_p > alpha:
        return unknown(len(sweep.patches), f"not tested: {FEWEST_OF_A_GROUP} usable pairs of each group are needed")
    told = f"{STAR if found.significant.any() else 'none'} significant"
    test = f"p\xa0≤\xa0{with_minus(f'{alpha:g}')}, dealing {sum(found.n_pairs)} pairs anew to the groups"
    about = f", of estimates · {of_estimates(sweep.estimate)}" if sweep.estimate else ""
    return Certainty(None, found.significant, f"{told}: {test}{about}", could_be=True)
