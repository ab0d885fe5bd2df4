"""Signs, and how many patterns of them bring a site's sum of changes as far from 0 as it was observed.

Nearly all the work of a large map's p-values is here: each pattern's sum of each site. Numbers of half the length add
up in half the time, so changes are rounded to whole numbers of a unit that is chosen for each site, a power of two, in
which the sum of their sizes stays below 2^24. Single precision adds such numbers up *exactly*, in whatever order. What
rounding left out of a site's changes bounds how far such a sum is off; the few patterns whose sum is that near to the
observed one are added up again in double precision. Counts are therefore those of double precision, and changes that
are whole numbers already, as those of accuracies, leave nothing out.

Knows neither effects nor p-values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int8

ROUNDING = 1e-12
"""Share of what is added up that a sum may be off by."""
AT_ONCE = 128
"""Patterns that are counted at once: few enough for a byte, and a multiple of four, which is what a drawn word gives
signs for: portions of so many patterns draw what all of them at once would."""
SITES_AT_ONCE = 4096
MOST_ROUNDED = 1000
"""With more pairs rounding leaves out so much that nearly all sums would be added up again."""
_BITS = 24
"""Whole numbers up to 2 to this power are exact in single precision."""


def all_signs(n_pairs: int) -> Iterator[Int8[np.ndarray, "flip pair"]]:
    """Every pattern of signs whose last sign is +, in portions."""
    n_patterns = 2 ** (n_pairs - 1)
    for start in range(0, n_patterns, AT_ONCE):
        patterns = np.arange(start, min(start + AT_ONCE, n_patterns))
        yield (1 - 2 * ((patterns[:, None] >> np.arange(n_pairs)) & 1)).astype(np.int8)


def random_signs(n_pairs: int, n_flips: int, seed: int) -> Iterator[Int8[np.ndarray, "flip pair"]]:
    """So many random patterns of signs, in portions."""
    rng = np.random.default_rng(seed)
    for start in range(0, n_flips, AT_ONCE):
        size = (min(AT_ONCE, n_flips - start), n_pairs)
        yield np.int8(1) - np.int8(2) * rng.integers(0, 2, size=size, dtype=np.int8)


def counts_reaching(
    changes: Float[np.ndarray, "site pair"], signs: Iterable[Int8[np.ndarray, "flip pair"]]
) -> Float[np.ndarray, " site"]:
    """How many patterns bring each site's |sum| to the observed one, or further.

    Args:
        changes: of each site.
        signs: patterns, in portions of at most `AT_ONCE`.
    """
    sizes = np.concatenate([np.abs(changes[rows]).sum(axis=1) for rows in _sites(changes)])
    # The same sum in another order differs by rounding: it has to count as equal.
    observed = np.abs(changes.sum(axis=1)) - ROUNDING * sizes
    rounded = _rounded(changes, observed, sizes) if changes.shape[1] <= MOST_ROUNDED else None
    reached, room = np.zeros(len(changes)), np.empty(AT_ONCE * min(SITES_AT_ONCE, len(changes)), dtype=np.float32)
    for some in signs:
        exactly = some.astype(np.float64)
        shortly = some.astype(np.float32)
        for rows in _sites(changes):
            if rounded is None:
                reached[rows] += _count(exactly @ changes[rows].T, observed[rows])
            else:
                found, doubtful = rounded.counts(rows, shortly, room)
                again = rows.start + np.flatnonzero(doubtful)
                found[doubtful] = _count(exactly @ changes[again].T, observed[again]) if len(again) else 0
                reached[rows] += found
    return reached


@dataclass(frozen=True)
class _Rounded:
    """Changes in whole numbers of each site's unit, and from which sums on the observed one is reached."""

    changes: Float[np.ndarray, "site pair"]
    surely: Float[np.ndarray, " site"]
    """A rounded |sum| from here on reaches the observed one, whatever was left out."""
    perhaps: Float[np.ndarray, " site"]
    """One below does not."""

    def counts(
        self, rows: slice, signs: Float[np.ndarray, "flip pair"], room: Float[np.ndarray, " cell"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """How many sums surely reach the observed one, and for which sites some others might; sums stand in `room`."""
        shape = len(signs), rows.stop - rows.start
        sums = np.matmul(signs, self.changes[rows].T, out=room[: math.prod(shape)].reshape(shape))
        np.abs(sums, out=sums)
        surely = _reaching(sums, self.surely[rows])
        return surely, surely != _reaching(sums, self.perhaps[rows])


def _rounded(
    changes: Float[np.ndarray, "site pair"], observed: Float[np.ndarray, " site"], sizes: Float[np.ndarray, " site"]
) -> _Rounded:
    """In a unit in which sizes, with what rounding adds to them, come to less than 2^24."""
    exponent = _BITS - np.frexp(sizes * (1 + MOST_ROUNDED / 2**_BITS))[1]
    whole = np.empty(changes.shape, dtype=np.float32)
    left_out = np.empty(len(changes))
    for rows in _sites(changes):
        scaled = np.ldexp(changes[rows], exponent[rows, None])
        nearest = np.rint(scaled)
        whole[rows], left_out[rows] = nearest, np.abs(scaled - nearest).sum(axis=1)
    # Where anything is left out, sums in double precision are not exact either.
    margin = np.where(left_out > 0, left_out + ROUNDING * np.ldexp(sizes, exponent), 0)
    threshold = np.ldexp(observed, exponent)
    surely, perhaps = (np.ceil(threshold + off).astype(np.float32) for off in (margin, -margin))
    return _Rounded(whole, surely, perhaps)


def _sites(changes: Float[np.ndarray, "site pair"]) -> Iterator[slice]:
    """Portions of the sites; one that is empty where there are none."""
    for start in range(0, max(1, len(changes)), SITES_AT_ONCE):
        yield slice(start, min(start + SITES_AT_ONCE, len(changes)))


def _count(sums: Float[np.ndarray, "flip site"], observed: Float[np.ndarray, " site"]) -> np.ndarray:
    return _reaching(np.abs(sums, out=sums), observed)


def _reaching(sizes: Float[np.ndarray, "flip site"], least: Float[np.ndarray, " site"]) -> np.ndarray:
    """How many of at most `AT_ONCE` sizes of each site are no smaller."""
    return np.add.reduce((sizes >= least).view(np.uint8), axis=0, dtype=np.uint8)
