"""How often significance is wrong: maps of sites without an effect, and with five real ones, by how changes scatter.

    python -m benchmarks.significance                  # the table of docs/significance.md: about eight minutes
    python -m benchmarks.significance --maps 100       # a rough one

Every map has 40 sites and is drawn anew. Changes have mean 0 and standard deviation 1 where there is no effect; real
ones are 4.5 / √pairs besides, three up and two down. Sites of one map are correlated by a normal variable per pair that
they share, from which their changes are then made: the scatter of a site is the same at any correlation. Knows the
statistics alone, no model.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from actpatch.statistics.evidence import WEIGHTS
from actpatch.statistics.resampling import detectable_size, sign_flip_p_values
from actpatch.statistics.skewness import careful_p_values, skewness_weight

N_SITES, N_REAL, ALPHA = 40, 5, 0.05
N_FLIPS = 16_000
"""As many as `site_statistics` draws for 40 sites."""
REAL = 4.5 * np.array([1, -1, 1, -1, 1])
"""Mean changes of the real sites, in standard errors."""
Maps = Float[np.ndarray, "map site pair"]


def clumps(one_in: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """One pair in so many changes up by as much less 1, the rest down by 1, with a scatter of 0.2 about either."""

    def values(uniform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        places = np.where(uniform > 1 - 1 / one_in, one_in - 1.0, -1.0)
        return (places + 0.2 * rng.standard_normal(uniform.shape)) / np.sqrt(one_in - 1 + 0.04)

    return values


SCATTER: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "normal": lambda uniform, rng: stats.norm.ppf(uniform),
    "t, 3 degrees": lambda uniform, rng: stats.t.ppf(uniform, 3) / np.sqrt(3),
    "exponential": lambda uniform, rng: -np.log1p(-uniform) - 1,
    "one in five": clumps(5),
    "one in ten": clumps(10),
    "lognormal": lambda uniform, rng: (np.exp(stats.norm.ppf(uniform)) - np.exp(0.5)) / np.sqrt(np.e * (np.e - 1)),
}
"""How changes are made from uniform variables, with mean 0 and standard deviation 1."""
PAIRS, CORRELATIONS = (10, 30, 100), (0.0, 0.5, 0.9)


@dataclass(frozen=True)
class Found:
    """What a test found in simulated maps."""

    any_false: float
    """Share of the maps without any effect that had a significant site."""
    false_share: float
    """Mean share of sites without an effect among the significant ones, in maps with real ones; 0 where none is."""
    power: float
    """Share of the real sites that were significant."""


def simulate(scatter: str, n_pairs: int, correlation: float, n_maps: int, seed: int = 0) -> tuple[Found, Found]:
    """Found by sign flips alone, and by the p-values of `site_statistics`, in the same maps."""
    rng = np.random.default_rng([seed, n_pairs, round(10 * correlation)])
    idle = draw(scatter, n_pairs, correlation, n_maps, rng)
    real = idle.copy()
    real[:, :N_REAL] += REAL[:, None] / np.sqrt(n_pairs)
    without, among = p_values(idle), p_values(real)
    before, now = (_found(by_test_without, by_test_among) for by_test_without, by_test_among in zip(without, among))
    return before, now


def draw(scatter: str, n_pairs: int, correlation: float, n_maps: int, rng: np.random.Generator) -> Maps:
    """Changes of maps without any effect."""
    normal = np.sqrt(1 - correlation) * rng.standard_normal((n_maps, N_SITES, n_pairs))
    normal += np.sqrt(correlation) * rng.standard_normal((n_maps, 1, n_pairs))
    return SCATTER[scatter](np.clip(stats.norm.cdf(normal), 1e-16, 1 - 1e-16), rng)


def p_values(maps: Maps) -> tuple[Float[np.ndarray, "map site"], Float[np.ndarray, "map site"]]:
    """By sign flips alone, and held back by skewness as in `site_statistics`.

    Signs are flipped where |mean| is above the root of the mean square / pairs. Elsewhere p is 1 here: it is at least
    0.1 (Oleszkiewicz 1996, "On the Stein property of Rademacher sequences"), which no correction makes significant.
    """
    flips = np.ones(maps.shape[:2])
    large = np.abs(maps.sum(axis=2)) > np.sqrt((maps**2).sum(axis=2))
    flips[large] = sign_flip_p_values(maps[large], n_flips=N_FLIPS)
    careful = np.array([careful_p_values(changes, skewness_weight(changes)) for changes in maps])
    return flips, np.maximum(flips, careful)


def detectable_is_found(scatter: str, n_pairs: int, n_maps: int, seed: int = 0) -> tuple[float, float]:
    """Share of new maps in which an effect was found whose size is the one that a map before gave as detectable.

    Of effects up and of effects down: that of the first site, the deviation that of its own changes in the map before.
    """
    rng = np.random.default_rng([seed, n_pairs])
    before, new = (draw(scatter, n_pairs, 0.0, n_maps, rng) for _ in range(2))
    weights = [round(skewness_weight(changes) * WEIGHTS) / WEIGHTS for changes in before]
    sizes = np.array([detectable_size(n_pairs, ALPHA / N_SITES, n_flips=N_FLIPS, weight=weight) for weight in weights])
    up = np.arange(n_maps) % 2 == 0
    new[:, 0] += (np.where(up, sizes, -sizes) * before[:, 0].std(axis=1, ddof=1) / np.sqrt(n_pairs))[:, None]
    told = np.isfinite(sizes)
    found = significant(p_values(new[told])[1])[:, 0]
    return float(found[up[told]].mean()), float(found[~up[told]].mean())


def significant(p: Float[np.ndarray, "map site"]) -> Bool[np.ndarray, "map site"]:
    """After Benjamini and Hochberg's correction over each map."""
    return stats.false_discovery_control(p, axis=1) <= ALPHA


def _found(idle: Float[np.ndarray, "map site"], real: Float[np.ndarray, "map site"]) -> Found:
    among = significant(real)
    false_share = among[:, N_REAL:].sum(axis=1) / np.maximum(1, among.sum(axis=1))
    return Found(
        float(significant(idle).any(axis=1).mean()), float(false_share.mean()), float(among[:, :N_REAL].mean())
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--maps", type=int, default=1000, help="maps of each kind")
    n_maps = options.parse_args().maps
    print(
        "| scatter | pairs | correlation | any false: before | now | false share: before | now | found: before | now |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for scatter, n_pairs, correlation in itertools.product(SCATTER, PAIRS, CORRELATIONS):
        before, now = simulate(scatter, n_pairs, correlation, n_maps)
        cells = [
            f"{getattr(test, name):.3f}" for name in ("any_false", "false_share", "power") for test in (before, now)
        ]
        print(f"| {' | '.join([scatter, str(n_pairs), f'{correlation:g}', *cells])} |", flush=True)
    print("\n| scatter | pairs | effects up found | effects down found |\n|---|---|---|---|")
    for scatter, n_pairs in itertools.product(("normal", "exponential"), (12, 20, 30, 100)):
        up, down = detectable_is_found(scatter, n_pairs, n_maps)
        print(f"| {scatter} | {n_pairs} | {up:.3f} | {down:.3f} |", flush=True)


if __name__ == "__main__":
    main()
