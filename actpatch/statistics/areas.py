"""Areas under faithfulness against circuit size: CPR and CMD, as the Mechanistic Interpretability Benchmark has them.

Over circuits of growing size k, a share of all edges, with faithfulness f(k) and by the trapezoidal rule

    CPR = ∫ f dk,  CMD = ∫ |1 − f| dk

(Mueller et al. 2025, arXiv 2504.13151): a large CPR says that small circuits do much, a small CMD that small circuits
do what the model does. The benchmark asks CPR of circuits chosen by signed scores, and CMD of such as were chosen by
|score|; both can be computed of either, so the ranking has to be told with them. CPR has no upper bound.

The benchmark's ten sizes go from 0.1 % to all edges, on a linear scale, so that the integral of 1 is 0.999. There the
circuits of at most 1 % weigh 1.4 % together, those of 20 % and 50 % of all edges weigh 60 %, and the whole model, whose
f is 1 by definition, 25 %: circuits that do nothing have CPR 0.25 and CMD 0.75 (0.749). On a logarithmic scale small
circuits count as much as large ones; this area is divided by the range of ln k, so that it is a mean over that range
and the integral of 1 is 1.

A size is *nominal* (what was asked for; the benchmark's choice) or *real* (edges that are left once dangling ones are
pruned). Of real sizes the smallest and the largest circuit may leave part of the range uncovered: it is not filled in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

Scale = Literal["linear", "log"]

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all edges that the benchmark evaluates."""


@dataclass(frozen=True)
class Areas:
    """CPR and CMD over one kind of size, on both scales; NaN where there are not two different sizes."""

    cpr: float
    """Trapezoids of f over k."""
    cmd: float
    """Trapezoids of |1 − f| over k."""
    cpr_log: float
    """Mean of f over ln k; circuits without any edge left out."""
    cmd_log: float
    """Mean of |1 − f| over ln k, likewise."""


def edge_counts(n_edges: int, sizes: Sequence[float] = MIB_SIZES) -> Int[np.ndarray, " size"]:
    """How many of so many edges each share is, rounded down as the benchmark does.

    Raises:
        ValueError: where a share is not between 0 and 1.
    """
    shares = np.asarray(sizes, dtype=float)
    _check_shares(shares)
    return np.array([int(share * n_edges) for share in shares], dtype=np.int64)


def areas(sizes: Float[np.ndarray, "..."], values: Float[np.ndarray, "..."]) -> Areas:
    """CPR and CMD of circuits of these sizes (shares of all edges) and this faithfulness (module docstring).

    Raises:
        ValueError: where the shapes differ, and for sizes that are not between 0 and 1.
    """
    distances = np.abs(1 - values)
    return Areas(
        cpr=area(sizes, values),
        cmd=area(sizes, distances),
        cpr_log=area(sizes, values, scale="log"),
        cmd_log=area(sizes, distances, scale="log"),
    )


def area(sizes: Float[np.ndarray, "..."], values: Float[np.ndarray, "..."], *, scale: Scale = "linear") -> float:
    """Integral of the values over the sizes, by trapezoids; on the scale `log` divided by the range of ln k.

    Sizes may come in any order. NaN where a value is, and where there are not two different sizes.

    Raises:
        ValueError: where the shapes differ, for sizes that are not between 0 and 1, and for an unknown scale.
    """
    if sizes.shape != values.shape or sizes.ndim != 1:
        raise ValueError(f"sizes has shape {sizes.shape}, values {values.shape}: expected one value a size")
    weights = area_weights(sizes, scale=scale)
    counted = weights != 0
    return float(weights[counted] @ values[counted]) if counted.any() else math.nan


def area_weights(sizes: Float[np.ndarray, " size"], *, scale: Scale = "linear") -> Float[np.ndarray, " size"]:
    """What the value at each size counts in the area; NaN where there are not two different sizes.

    An area is the sum of weights × values, and so a ratio of means over pairs as faithfulness is.

    Raises:
        ValueError: for sizes that are not between 0 and 1, and for an unknown scale.
    """
    _check_shares(sizes)
    if scale not in get_args(Scale):
        raise ValueError(f"scale {scale!r} is unknown: expected one of {', '.join(get_args(Scale))}")
    order = np.argsort(sizes, kind="stable")
    if scale == "log":
        order = order[sizes[order] > 0]
    at = sizes[order] if scale == "linear" else np.log(sizes[order])
    if not len(at) or at[0] == at[-1]:
        return np.full(len(sizes), np.nan)
    steps = np.diff(at) / (1 if scale == "linear" else at[-1] - at[0])
    weights = np.zeros(len(sizes))
    weights[order[:-1]] += steps / 2
    weights[order[1:]] += steps / 2
    return weights


def _check_shares(sizes: Float[np.ndarray, " size"]) -> None:
    if outside := [float(size) for size in sizes if not 0 <= size <= 1]:
        raise ValueError(f"size {outside[0]:g} is no share of all edges: expected numbers from 0 to 1")
