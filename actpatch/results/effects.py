"""Effects over pairs, as ratios of means, and the largest of them. Nothing here knows a patch."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.indices import is_integer
from actpatch.statistics.resampling import gaps_cancel


def effects_over_pairs(
    patched: Float[np.ndarray, "patch pair"],
    base: Float[np.ndarray, " pair"],
    source: Float[np.ndarray, " pair"],
    written: Bool[np.ndarray, "patch pair"],
) -> Float[np.ndarray, " patch"]:
    """Effect of each patch as a ratio of means over the pairs in which it writes anything; NaN where these are none, or
    their gaps cancel."""
    # The gaps can cancel although no pair's is 0: accuracies turn around both ways.
    gap = np.nan if gaps_cancel(source - base) else source.mean() - base.mean()
    effects = (patched.mean(axis=1) - base.mean()) / gap
    for i in np.flatnonzero(~written.all(axis=1)):
        effects[i] = _ratio_of_means((patched[i] - base)[written[i]], (source - base)[written[i]])
    return effects


def _ratio_of_means(changes: Float[np.ndarray, " pair"], gaps: Float[np.ndarray, " pair"]) -> float:
    """NaN for no pairs, and where the gaps cancel."""
    return float("nan") if not len(gaps) or gaps_cancel(gaps) else float(changes.mean() / gaps.mean())


def largest(effects: Float[np.ndarray, " patch"], k: int) -> list[int]:
    """Numbers of the k patches of largest |effect|, largest first; NaN comes last.

    Raises:
        ValueError: for a k that is no integer of at least 1.
    """
    if not is_integer(k) or k < 1:
        raise ValueError(f"k is {k!r}, expected at least 1")
    return np.argsort(-np.nan_to_num(np.abs(effects), nan=-1.0), kind="stable")[:k].tolist()
