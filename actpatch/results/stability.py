"""The stability of a sweep's effects, or of what estimates them, under resampling of its usable pairs."""

from __future__ import annotations

from typing import TypedDict, Unpack

import numpy as np

from actpatch.results.sweep import Sweep
from actpatch.statistics.stability import Absolute, Stability, stability


class StabilityOptions(TypedDict, total=False):
    """What `statistics.stability.stability` takes besides numbers and labels, with its defaults."""

    top_k: int
    absolute: Absolute
    level: float
    n_resamples: int
    seed: int


def stability_of(sweep: Sweep, **options: Unpack[StabilityOptions]) -> Stability:
    """How far the sign and the order of the effects hang on the pairs, of the sites that were patched in all of them.

    A draw of pairs compares sites: one that was patched in some pairs alone is left out, as where groups are compared.

    Options and errors are those of `statistics.stability.stability`.

    Raises:
        ValueError: where fewer than two pairs are usable, or no site was patched in all of them.
    """
    usable, labels = sweep.usable, sweep.labels
    whole = np.flatnonzero(sweep.written[:, usable].all(axis=1) & ~sweep.unmatched)
    if labels and not len(whole):
        raise ValueError("no position that was patched has a partner in every pair: match or name others")
    changes = (sweep.patched - sweep.base)[whole][:, usable]
    gaps = (sweep.source - sweep.base)[usable]
    return stability(changes, gaps, sites=[labels[i] for i in whole], **options)
