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
    """How far the sign and the order of the effects hang on the pairs; sites that write nothing are left out.

    Options and errors are those of `statistics.stability.stability`.

    Raises:
        ValueError: where fewer than two pairs are usable, or no site writes anything.
    """
    usable, written = sweep.usable, np.flatnonzero(~sweep.unmatched)
    labels = sweep.labels
    changes = (sweep.patched - sweep.base)[written][:, usable]
    gaps = (sweep.source - sweep.base)[usable]
    return stability(changes, gaps, sites=[labels[i] for i in written], **options)
