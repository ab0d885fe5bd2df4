"""One score from several methods' scores of the same sites: the mean of their shares of the largest, and the mean rank.

Methods differ in scale, so that their scores cannot be averaged as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from actpatch.core.heavy import stats


def normalised_mean(scores: Sequence[np.ndarray]) -> Float[np.ndarray, " site"]:
    """Mean over methods of score / largest |score| of the method; NaN for a site that any method has no score of.

    Signs are kept, so that methods which disagree about a site's sign cancel there. Give sizes, `np.abs(scores)`, where
    one of the methods has no sign.

    Raises:
        ValueError: where no scores are given, or of other numbers of sites; where all of a method's are 0 or NaN.
    """
    checked = _checked(scores)
    largest = np.where(np.isnan(checked), 0.0, np.abs(checked)).max(axis=1, keepdims=True)
    if lacking := np.flatnonzero(largest[:, 0] == 0).tolist():
        raise ValueError(f"all scores of method number {lacking[0]} are 0 or NaN, so there is no largest to divide by")
    return (checked / largest).mean(axis=0)


def mean_rank(scores: Sequence[np.ndarray]) -> Float[np.ndarray, " site"]:
    """Mean over methods of the rank by |score|: 1 for the largest, ties sharing the mean of their ranks.

    NaN for a site that any method has no score of; it takes no rank from others.

    Raises:
        ValueError: where no scores are given, or of other numbers of sites.
    """
    checked = _checked(scores)
    return stats.rankdata(-np.abs(checked), axis=1, nan_policy="omit").mean(axis=0)


def _checked(scores: Sequence[np.ndarray]) -> Float[np.ndarray, "method site"]:
    shapes = [np.shape(one) for one in scores]
    if not shapes or set(shapes) != {shapes[0]} or len(shapes[0]) != 1 or not shapes[0][0]:
        raise ValueError(
            f"scores have the shapes {shapes}, expected a score per site, of the same sites by each method"
        )
    return np.array(scores, dtype=float)
