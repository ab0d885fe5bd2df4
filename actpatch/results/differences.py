"""Compares two experiments, component by component: intervals and p-values of the difference of their effects.

Both experiments need the same clean prompts, so that each pair says by itself how much the effects differ. With the
change c = patched - base and the gap g = source - base of a pair, the effect over pairs is e = mean(c) / mean(g), and
to first order a pair contributes e + (c - e·g) / mean(g) to it (the delta method, which puts the mean gap's own scatter
among the pairs'). Subtracted pair by pair, these contributions have the difference of the effects as their mean, and
are tested as the changes of one experiment are (`statistics.sites`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.estimate_words import exact_or_estimated, untested
from actpatch.results.sweep import Sweep
from actpatch.statistics.sites import SiteStatistics, site_statistics

RUNS = (
    "model",
    "direction",
    "metric",
    "pair_indices",
    "clean_tokens",
    "corrupted_tokens",
    "noise",
    "source_of_values",
    "path",
)
"""Fields of a `Sweep` that say what was run, beside its patches."""


def difference_statistics(
    first: Sweep, second: Sweep, matched: Sequence[tuple[int, int]], *, like: SiteStatistics
) -> SiteStatistics:
    """Second minus first: statistics of the difference of the effects, from the pairs usable in both, and
    of those from the ones in which both patches write anything.

    Args:
        first, second: the sweeps.
        matched: which patch of the first is compared with which of the second, by number.
        like: the options are those of these statistics.

    Raises:
        ValueError: where the sweeps have other clean prompts, no pair is usable in both, or nothing is matched, and for
            some of an experiment's patches, which lack those that the correction counts.
    """
    if first.is_part or second.is_part:
        raise ValueError("these are some of the patches of an experiment: compare the whole results")
    if not same_pairs(first, second):
        raise ValueError("the experiments have other pairs, so their effects cannot be compared pair by pair")
    usable = first.usable & second.usable
    both = first.written[[one for one, _ in matched]] & second.written[[other for _, other in matched]]
    known = np.flatnonzero(both[:, usable].any(axis=1) | ~usable.any()).tolist()
    firsts, seconds = ([matched[i][side] for i in known] for side in (0, 1))
    written = both[known][:, usable]
    difference = _contributions(second, seconds, usable, written) - _contributions(first, firsts, usable, written)
    names = first.labels
    labels = [names[one] for one, _ in matched]
    found = site_statistics(
        difference,
        np.zeros(difference.shape[1]),
        np.ones(difference.shape[1]),
        sites=[labels[i] for i in known],
        written=written,
        **like.options,
    )
    found = found if len(known) == len(labels) else found.among(labels, known)
    if first.estimate == second.estimate and not untested(first.estimate):
        return found.of_estimates(first.estimate)
    kinds = (
        f"the first effects are {exact_or_estimated(first.estimate)}, the second {exact_or_estimated(second.estimate)}"
    )
    return replace(found, notes=(*found.notes, f"{kinds}: what is tested is how far these numbers lie apart"))


def differing(first: Sweep, second: Sweep) -> str | None:
    """The first field in which the runs of two sweeps, of whatever patches, differ; None if there is none."""
    return next((name for name in RUNS if getattr(first, name) != getattr(second, name)), None)


def same_pairs(first: Sweep, second: Sweep) -> bool:
    """Whether pair i is the same clean prompt in both, as text: models may cut it into other tokens."""
    prompts = [["".join(tokens) for tokens in sweep.clean_tokens] for sweep in (first, second)]
    return first.pair_indices == second.pair_indices and prompts[0] == prompts[1]


def _contributions(
    sweep: Sweep, patches: Sequence[int], usable: np.ndarray, written: Bool[np.ndarray, "patch pair"]
) -> Float[np.ndarray, "patch pair"]:
    """What each pair says of each effect; their mean over the pairs in which it is patched is the effect over these."""
    changes, gaps = (sweep.patched[patches] - sweep.base)[:, usable], (sweep.source - sweep.base)[usable]
    if written.all():
        effects, gap = changes.mean(axis=1, keepdims=True) / gaps.mean(), gaps.mean()
    else:
        gap = np.mean(np.broadcast_to(gaps, changes.shape), axis=1, keepdims=True, where=written)
        effects = np.mean(changes, axis=1, keepdims=True, where=written) / gap
    return effects + (changes - effects * gaps) / gap
