"""Simulated experiments with normal changes, of which the reach of a test is found.

One number is kept of each power of an experiment's changes, not the changes: what is added to all of them alike, an
effect, changes the sums of powers by the binomial theorem. An experiment of many pairs is then looked at again and
again, with effects of other sizes, at the cost of one of few.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actpatch.statistics.skewness import adjusted_skewness

N_SIMULATED = 4_000
"""Experiments from which the power of the test is found."""
HIGHEST = 6
"""The highest power whose sum is asked for."""
MOST_CELLS = 2**20
"""Most numbers that are drawn at once."""


@dataclass(frozen=True, eq=False)
class Simulated:
    """Experiments without an effect, whose changes have mean 0 and standard deviation 1."""

    n_pairs: int
    estimates: Float[np.ndarray, " draw"]
    """The standard deviation, as estimated from as many other pairs."""
    means: Float[np.ndarray, " draw"]
    """Of the changes."""
    scatter: Float[np.ndarray, " draw"]
    """Their standard deviation."""
    skewness: Float[np.ndarray, " draw"]
    """G1 (`skewness.adjusted_skewness`)."""
    central: Float[np.ndarray, "power draw"]
    """Sums of the powers, from the zeroth on, of changes less their mean."""
    changes: Float[np.ndarray, "draw pair"]
    """The changes themselves, where they are kept; else of no pair."""

    def sums_of_powers(self, added: Float[np.ndarray, " draw"]) -> Float[np.ndarray, "power draw"]:
        """Sums of the powers, from the first on, of changes to each of which `added` is added."""
        shift = self.means + added
        return np.array(
            [
                sum(math.comb(power, k) * self.central[k] * shift ** (power - k) for k in range(power + 1))
                for power in range(1, HIGHEST + 1)
            ]
        )


@functools.lru_cache(maxsize=64)
def simulated(n_pairs: int, *, keep: bool = False) -> Simulated:
    """The experiments with so many pairs, always the same ones: `keep` their changes too, of few pairs."""
    rng = np.random.default_rng(0)
    means, scatter, skewness = (np.zeros(N_SIMULATED) for _ in range(3))
    central = np.zeros((HIGHEST + 1, N_SIMULATED))
    changes = np.zeros((N_SIMULATED, n_pairs if keep else 0))
    for rows in _portions(n_pairs):
        draws = rng.standard_normal((rows.stop - rows.start, n_pairs))
        if keep:
            changes[rows] = draws
        means[rows], scatter[rows] = draws.mean(axis=1), draws.std(axis=1, ddof=1)
        if n_pairs > 2:
            skewness[rows] = adjusted_skewness(draws)
        draws -= means[rows, None]
        central[:, rows] = _sums_of_powers(draws)
    estimates = np.sqrt(rng.chisquare(n_pairs - 1, N_SIMULATED) / (n_pairs - 1))
    return Simulated(n_pairs, estimates, means, scatter, skewness, central, changes)


def _portions(n_pairs: int) -> Iterator[slice]:
    at_once = max(1, MOST_CELLS // n_pairs)
    for start in range(0, N_SIMULATED, at_once):
        yield slice(start, min(start + at_once, N_SIMULATED))


def _sums_of_powers(centred: Float[np.ndarray, "draw pair"]) -> Float[np.ndarray, "power draw"]:
    """From the zeroth on; that of the first power is 0 but for rounding."""
    square = centred * centred
    cube = square * centred
    return np.array(
        [
            np.full(len(centred), float(centred.shape[1])),
            centred.sum(axis=1),
            square.sum(axis=1),
            cube.sum(axis=1),
            np.einsum("ij,ij->i", square, square),
            np.einsum("ij,ij->i", square, cube),
            np.einsum("ij,ij->i", cube, cube),
        ]
    )
