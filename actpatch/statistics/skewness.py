"""How far the skewness of a map's changes holds its p-values back: a second and a third p-value of each site.

Flipping signs takes changes to be symmetric about 0 where a patch does nothing. Where most pairs change a little one
way and few pairs much the other way, with a mean of 0, the few are sometimes missing among the pairs at hand, and the
rest then look like an effect. Two p-values ask whether that could be; a site has the largest of the three.

**Skewness against the mean.** Student's t = mean / standard error is corrected for the site's skewness g by the cubic
of Hall (1992, "On the removal of skewness by transformation"),

    ((1 + a·t)³ - 1) / 3a + a / 2    with a = g / (3·√pairs),

and compared with Student's distribution. Only skewness against the sign of the mean counts. The cubic is level at
t = -1/a and rises again beyond; here it stays level: however large t, such a site is no surer than that.

g is 1.5 times the weight times the adjusted Fisher-Pearson coefficient of skewness (G1 of Joanes & Gill 1998). Samples
show less skewness than there is, and least where the long tail is missing: with 1 in place of 1.5, and 30 pairs, 9 % of
the maps of exponential changes and 22 % of lognormal ones had a false site; with 1.25, 6 and 14 %; with 1.5, 4 and 10 %
(600 maps of each, simulated as `docs/significance.md` says). The *weight*, from 0 to 1, is the share of the
coefficients' mean square over the map that normal changes would not show,
`1 - 6·n·(n - 1) / ((n - 2)·(n + 1)·(n + 3)) / mean(G1²)` for n pairs: the coefficient of one site is noise with few
pairs, the whole map tells whether it means anything (James & Stein's estimator in the positive part, as Efron & Morris
1973 read it).

**All on one side.** Where no pair at all goes against the mean, a site's own skewness cannot show what is missing; the
map's other sites can. The mean is then compared with the standard error that the map's median scatter gives, times the
weight, where that is larger than the site's own.

In maps of normal changes the weight is near 0 and sign flips alone decide. Below `FEWEST_FOR_SKEWNESS` pairs they
always do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.heavy import stats

FEWEST_FOR_SKEWNESS = 5
"""With fewer pairs, no pattern of signs is rare enough for anything to be held back."""
UNDERSTATED = 1.5
"""How many times the skewness that samples show is reckoned with (module docstring)."""
MOST_CELLS = 2**19
"""Most changes that are worked through at once: temporary arrays of a large map stay small."""
ROUNDING = 1e-12
"""Share of a site's largest change that the others may be off by."""


def careful_p_values(
    changes: Float[np.ndarray, "site pair"], weight: float, scatter_of_map: float | None = None
) -> Float[np.ndarray, " site"]:
    """The larger of the two p-values of the module docstring: what a site's p-value may not be below.

    Args:
        changes: changes of all the map's sites, or of some.
        weight: that of the map, `skewness_weight(changes)`.
        scatter_of_map: the map's `Skewness.scatter`; None where these are all of its sites.

    0 for a site whose changes are equal and of a map of weight 0, and below `FEWEST_FOR_SKEWNESS` pairs.
    """
    n_pairs = changes.shape[1]
    if n_pairs < FEWEST_FOR_SKEWNESS or weight == 0:
        return np.zeros(len(changes))
    scatter, scattered = deviations(changes), _scattered(changes)
    means = changes.mean(axis=1)
    held_back = np.zeros(len(changes))
    skewness = adjusted_skewness(changes, scattered)
    held_back[scattered] = skewed_p_values(means[scattered], scatter[scattered], skewness, n_pairs, weight)
    if scatter_of_map is None:
        scatter_of_map = float(np.median(scatter[scattered])) if scattered.any() else 0.0
    others = weight * scatter_of_map
    lowest, highest = changes.min(axis=1), changes.max(axis=1)
    furthest_against = np.select([means > 0, means < 0], [lowest, -highest], 0.0)
    against = furthest_against < -ROUNDING * np.maximum(highest, -lowest)
    wider = ~against & (others > scatter)
    held_back[wider] = np.maximum(held_back, _two_sided(means * np.sqrt(n_pairs) / (others or 1.0), n_pairs))[wider]
    return held_back


def skewness_weight(changes: Float[np.ndarray, "site pair"]) -> float:
    """How much of the skewness that a map's sites show is more than normal changes would: from 0, nothing, to 1."""
    found = Skewness(changes.shape[1])
    found.add(changes)
    return found.weight


class Skewness:
    """The skewness of a map's sites, of which some may be added at a time.

    Args:
        n_pairs: of each site.
    """

    def __init__(self, n_pairs: int) -> None:
        self.n_pairs, self._squares, self._n_sites = n_pairs, 0.0, 0
        self._scatters: list[np.ndarray] = []

    def add(self, changes: Float[np.ndarray, "site pair"]) -> None:
        """Take in these sites."""
        scattered = _scattered(changes)
        if self.n_pairs >= FEWEST_FOR_SKEWNESS and scattered.any():
            self._squares += float((adjusted_skewness(changes, scattered) ** 2).sum())
            self._n_sites += int(scattered.sum())
            self._scatters.append(deviations(changes)[scattered])

    @property
    def scatter(self) -> float:
        """Median standard deviation of the sites whose changes differ; 0 where there are none."""
        return float(np.median(np.concatenate(self._scatters))) if self._scatters else 0.0

    @property
    def weight(self) -> float:
        """`skewness_weight` of all of them."""
        if not self._n_sites:
            return 0.0
        n = self.n_pairs
        normal = 6 * n * (n - 1) / ((n - 2) * (n + 1) * (n + 3))
        return max(0.0, 1 - normal / max(self._squares / self._n_sites, normal))


def skewed_p_values(
    means: Float[np.ndarray, " site"],
    scatter: Float[np.ndarray, " site"],
    skewness: Float[np.ndarray, " site"],
    n_pairs: int,
    weight: float,
) -> Float[np.ndarray, " site"]:
    """Two-sided p-values of t, corrected for skewness against the mean (module docstring).

    Args:
        means: of each site's changes.
        scatter: standard deviations, above 0.
        skewness: G1 of each site.
        n_pairs: pairs that these are of.
        weight: that of the map.

    0 where skewness goes with the mean.
    """
    t = np.abs(means) / scatter * np.sqrt(n_pairs)
    against = np.maximum(-np.sign(means) * skewness, 0.0)
    a = UNDERSTATED * weight * against / (3 * np.sqrt(n_pairs))
    # With a against the sign of t, and t for |t|: (1 - (1 - a·t)³) / 3a - a / 2, level from a·t = 1 on.
    x = np.minimum(a * t, 1.0)
    corrected = np.divide(x, a, out=t, where=x > 0) * (1 - x + x**2 / 3) - a / 2
    return np.where(against > 0, _two_sided(np.maximum(corrected, 0.0), n_pairs), 0.0)


def adjusted_skewness(
    changes: Float[np.ndarray, "site pair"], which: Bool[np.ndarray, " site"] | None = None
) -> Float[np.ndarray, " some"]:
    """G1 of Joanes & Gill (1998), for unequal changes: taken in units of the largest, so that no cube overflows.

    Args:
        changes: of each site.
        which: the sites that it is asked of; None for all.
    """
    n, chosen = changes.shape[1], np.arange(len(changes)) if which is None else np.flatnonzero(which)
    g1 = np.empty(len(chosen))
    for some in _portions(len(chosen), n):
        centred = changes[chosen[some]]
        centred /= np.abs(centred).max(axis=1, keepdims=True)
        centred -= centred.mean(axis=1, keepdims=True)
        square = centred**2
        g1[some] = (square * centred).mean(axis=1) / square.mean(axis=1) ** 1.5
    return g1 * np.sqrt(n * (n - 1)) / (n - 2)


def deviations(changes: Float[np.ndarray, "site pair"]) -> Float[np.ndarray, " site"]:
    """Standard deviation of each site's changes, a portion of the sites at a time."""
    found = np.empty(len(changes))
    for some in _portions(*changes.shape):
        found[some] = changes[some].std(axis=1, ddof=1)
    return found


def _two_sided(t: Float[np.ndarray, " site"], n_pairs: int) -> Float[np.ndarray, " site"]:
    return 2 * stats.t.sf(np.abs(t), n_pairs - 1)


def _scattered(changes: Float[np.ndarray, "site pair"]) -> Bool[np.ndarray, " site"]:
    """Which sites' changes differ by more than rounding."""
    lowest, highest = changes.min(axis=1), changes.max(axis=1)
    return highest - lowest > ROUNDING * np.maximum(highest, -lowest)


def _portions(n_sites: int, n_pairs: int) -> Iterator[slice]:
    """Sites that are worked through together."""
    at_once = max(1, MOST_CELLS // n_pairs)
    for start in range(0, n_sites, at_once):
        yield slice(start, min(start + at_once, n_sites))
