"""Where the nodes of a layered graph stand, and curves between them that keep clear of other nodes.

Lengths are in columns and rows. The same graph always has the same layout. Knows numbers; it knows nothing of
components and nothing of Plotly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

POINTS = 41
"""Points of a curve."""
BENDS = (0.0, *(sign * size for size in (0.35, 0.7, 1.0, 1.4, 2.0, 3.0) for sign in (1, -1)))
"""How far to the side curves are tried, in columns: the first that meets no other node is taken."""
NEAR = 0.06
"""How near a curve may come to a node that it does not belong to."""
REACH = 0.7
"""Of the way up, how far a curve's ends are straight."""


def pushed_apart(wanted: Sequence[float], last: float) -> Float[np.ndarray, " node"]:
    """The places from 0 to `last`, one column apart at least, that are nearest to those wanted, in the same order.

    Nearest in the sum of squares: an isotonic regression, by pooling adjacent violators (Barlow et al. 1972). There
    have to be as many columns as nodes.
    """
    order = np.argsort(np.asarray(wanted, dtype=float), kind="stable")
    ranks = np.arange(len(order))
    pools: list[tuple[float, int]] = []
    for value in np.asarray(wanted, dtype=float)[order] - ranks:
        mean, n = float(value), 1
        while pools and pools[-1][0] > mean:
            before, m = pools.pop()
            mean, n = (before * m + mean * n) / (m + n), m + n
        pools.append((mean, n))
    spread = np.repeat([mean for mean, _ in pools], [n for _, n in pools])
    places = np.empty(len(order))
    places[order] = np.clip(spread, 0, last + 1 - len(order)) + ranks
    return places


def curve(
    start: tuple[float, float],
    end: tuple[float, float],
    others: Float[np.ndarray, "node 4"],
    bounds: tuple[float, float],
    drawn: int = 0,
) -> Float[np.ndarray, "point 2"]:
    """A curve (cubic Bézier) from one node's upper edge to another one's lower edge, upright at both ends.

    Args:
        start: where it leaves.
        end: where it arrives.
        others: middle, half the width and half the height of each node that it is to keep clear of.
        bounds: the x that it must not leave.
        drawn: number of curves between the same two places that are drawn already: each is bent otherwise.
    """
    tried = [_bezier(start, end, bend) for bend in BENDS]
    return sorted(tried, key=lambda points: _met(points, others, bounds))[drawn % len(BENDS)]


def _bezier(start: tuple[float, float], end: tuple[float, float], bend: float) -> Float[np.ndarray, "point 2"]:
    t = np.linspace(0, 1, POINTS)[:, None]
    ends = np.array([start, end], dtype=float)
    up = (ends[1, 1] - ends[0, 1]) * REACH
    near = ends[0] + [bend, up], ends[1] + [bend, -up]
    return (1 - t) ** 3 * ends[0] + 3 * (1 - t) ** 2 * t * near[0] + 3 * (1 - t) * t**2 * near[1] + t**3 * ends[1]


def _met(points: Float[np.ndarray, "point 2"], others: Float[np.ndarray, "node 4"], bounds: tuple[float, float]) -> int:
    """How many of the points lie on nodes, or outside the bounds."""
    outside = int(((points[:, 0] < bounds[0]) | (points[:, 0] > bounds[1])).sum())
    if not len(others):
        return outside
    away = np.abs(points[:, None] - others[None, :, :2])
    return outside + int(((away[..., 0] < others[:, 2] + NEAR) & (away[..., 1] < others[:, 3] + NEAR / 2)).sum())
