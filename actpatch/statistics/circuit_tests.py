"""Tests of a circuit from arrays: against random ones, for equivalence with the model, minimality, and independence.

- *Random circuits* of the same size: p = (1 + random ones at least as faithful) / (1 + random ones), which is valid
  where the circuit could be one of them (Phipson & Smyth 2010). "As faithful" is as large an f, or as near to 1.
- *Equivalence* (Shi et al. 2024, arXiv 2410.13032): a circuit that does what the model does is as often above it as
  below. With θ the chance that a pair's m(C) is above its m(M), the null hypothesis is |θ − ½| < ε, and p the chance
  that a binomial variable with chance ½ + ε lies as far from n/2 as the count that was found. A large p shows nothing:
  few pairs give one always. So the opposite is tested too, with |θ − ½| ≥ ε as the null hypothesis, by two one-sided
  tests (Schuirmann 1987): a small p there says that the circuit is above and below about equally often. Neither says by
  how much. Pairs on which both are equal count half.
- *Minimality* (Shi et al. 2024): a part of a circuit that is needed changes it more than what is not needed does. Of
  the latter there are examples: a random path is put into the circuit, and one of its edges taken out again. The null
  hypothesis is that the part's change is above such a one with a chance of at least q* = 0.9, and p the chance of as
  few below it, by the binomial distribution. A small p says that the part does no more than what was put in at random;
  a large one does not show that it is needed. Changes are means over pairs of |difference of the metric|, and equal
  ones are not above.
- *Independence* (Shi et al. 2024): where the circuit is all that does the task, what is left of the model without it
  varies over pairs independently of the model. The statistic is the Hilbert-Schmidt independence criterion with
  Gaussian kernels (Gretton et al. 2007, "A kernel statistical test of independence"), tr(KHLH) / (n − 1)², the width
  of each kernel the median distance between two pairs' metrics; p by permutations, the observed order added. A small p
  says that the rest still carries something of the task; a large one does not show that it carries nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actpatch.core.heavy import stats
from actpatch.core.indices import is_integer
from actpatch.statistics.resampling import ROUNDING

FEWEST_FOR_INDEPENDENCE = 5
"""With fewer pairs there are too few orders for a p-value of 0.05."""


@dataclass(frozen=True, eq=False)
class RandomComparison:
    """A circuit's faithfulness among that of random circuits of its size."""

    random: Float[np.ndarray, " draw"]
    """Faithfulness of each random circuit."""
    p: float
    """Chance of a faithfulness at least as large, were the circuit a random one."""
    p_distance: float
    """Chance of a faithfulness at least as near to 1."""

    @property
    def smallest_p(self) -> float:
        """No p-value can be below this."""
        return 1 / (1 + len(self.random))


@dataclass(frozen=True)
class EquivalenceTest:
    """Whether a circuit's metric is above the model's as often as below it."""

    n_above: int
    """Pairs on which the circuit's metric is the larger one."""
    n_below: int
    n_equal: int
    """Pairs on which they differ by rounding alone."""
    epsilon: float
    p_different: float
    """Small where the circuit is above, or below, more often than by ½ ± epsilon."""
    p_equivalent: float
    """Small where it is above and below about equally often, within ½ ± epsilon."""

    @property
    def share_above(self) -> float:
        """Share of the pairs on which the circuit's metric is larger; equal ones count half."""
        return (self.n_above + self.n_equal / 2) / (self.n_above + self.n_below + self.n_equal)


@dataclass(frozen=True)
class IndependenceTest:
    """Whether the metric of what is left without the circuit varies with the model's."""

    statistic: float
    """The Hilbert-Schmidt independence criterion; NaN where a metric does not vary, or pairs are too few."""
    p: float
    n_pairs: int
    n_permutations: int
    seed: int


@dataclass(frozen=True, eq=False)
class MinimalityTests:
    """Whether parts of a circuit change it more than edges do that were put into it at random. An entry per part."""

    share_above: Float[np.ndarray, " part"]
    """Of the random edges, the share that changes the metric less than the part does; NaN where there is none."""
    p: Float[np.ndarray, " part"]
    """Small where the part is above random edges less often than by `quantile`: it is then not needed."""
    p_corrected: Float[np.ndarray, " part"]
    """Corrected over all parts (Bonferroni, as Shi et al. have it)."""
    quantile: float
    n_random: int


def compare_with_random(value: float, random: Float[np.ndarray, " draw"]) -> RandomComparison:
    """The faithfulness of a circuit among that of random circuits of its size (module docstring).

    Values that differ by rounding alone count as equal.

    Raises:
        ValueError: where there is no random circuit, or a value is not finite.
    """
    if not len(random):
        raise ValueError("random is empty: expected the faithfulness of at least one random circuit")
    if not np.isfinite(random).all() or not math.isfinite(value):
        raise ValueError("a faithfulness is not finite: its denominator carries no comparison")
    p_values = []
    for observed, others in ((value, random), (-abs(1 - value), -np.abs(1 - random))):
        reached = others >= observed - ROUNDING * max(1, abs(observed))
        p_values.append((1 + int(reached.sum())) / (1 + len(random)))
    return RandomComparison(random, *p_values)


def equivalence_test(
    circuit: Float[np.ndarray, "..."], full: Float[np.ndarray, "..."], *, epsilon: float = 0.1
) -> EquivalenceTest:
    """Sign tests of paired metrics (module docstring).

    Args:
        circuit: metric of the circuit on each pair.
        full: that of the whole model.
        epsilon: how far from ½ the chance of a larger metric may be; Shi et al. take 0.1.

    Raises:
        ValueError: where the shapes differ or there is no pair, and for an epsilon that is not between 0 and ½.
    """
    _check_paired(circuit, full, "circuit", "full")
    if not 0 < epsilon < 0.5:
        raise ValueError(f"epsilon is {epsilon!r}, expected a number between 0 and 0.5, for instance 0.1")
    differences = circuit - full
    equal = np.abs(differences) <= ROUNDING * np.maximum(np.abs(circuit), np.abs(full))
    n_above, n_equal = int(((differences > 0) & ~equal).sum()), int(equal.sum())
    n = len(circuit)
    found = n_above + n_equal / 2
    distance = abs(found - n / 2)
    upper = stats.binom(n, 0.5 + epsilon)
    # Both ends under ½ + ε; under ½ − ε they change places.
    different = float(upper.sf(math.ceil(n / 2 + distance) - 1) + upper.cdf(math.floor(n / 2 - distance)))
    # The count farther from n/2 decides; a half counts as the whole number beyond it.
    equivalent = float(upper.cdf(math.ceil(n / 2 + distance)))
    return EquivalenceTest(n_above, n - n_above - n_equal, n_equal, epsilon, min(1.0, different), equivalent)


def minimality_tests(
    changes: Float[np.ndarray, " part"], random: Float[np.ndarray, " draw"], *, quantile: float = 0.9
) -> MinimalityTests:
    """The test of minimality of each part (module docstring). Without a random edge nothing is known: all is NaN.

    Args:
        changes: how much each part changes the circuit's metric, from 0 on.
        random: how much each random edge changes that of the circuit it was put into.
        quantile: the share of random edges that a needed part is above; Shi et al. take 0.9.

    Raises:
        ValueError: for a change that is negative or not finite, and a quantile that is not between 0 and 1.
    """
    for name, values in (("changes", changes), ("random", random)):
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"{name} has values below 0 or not finite: expected means of absolute differences")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile is {quantile!r}, expected a number between 0 and 1, for instance 0.9")
    n = len(random)
    if not n:
        unknown = np.full(len(changes), math.nan)
        return MinimalityTests(unknown, unknown, unknown, quantile, 0)
    least = ROUNDING * max([0.0, *changes.tolist(), *random.tolist()])
    n_above = (changes[:, None] > random + least).sum(axis=1)
    p = stats.binom.cdf(n_above, n, quantile)
    return MinimalityTests(n_above / n, p, np.minimum(1.0, p * len(p)), quantile, n)


def independence_test(
    complement: Float[np.ndarray, "..."],
    full: Float[np.ndarray, "..."],
    *,
    n_permutations: int = 1999,
    seed: int = 0,
) -> IndependenceTest:
    """The test of independence by the Hilbert-Schmidt criterion (module docstring).

    Args:
        complement: metric of the model without the circuit on each pair.
        full: that of the whole model.
        n_permutations: random orders of the pairs.
        seed: of these orders.

    Raises:
        ValueError: where the shapes differ or there is no pair, and for fewer than one permutation.
    """
    _check_paired(complement, full, "complement", "full")
    if not is_integer(n_permutations) or n_permutations < 1:
        raise ValueError(f"n_permutations is {n_permutations!r}, expected a whole number of at least 1")
    n = len(full)
    kernels = [_gaussian_kernel(values) for values in (complement, full)]
    if n < FEWEST_FOR_INDEPENDENCE or kernels[0] is None or kernels[1] is None:
        return IndependenceTest(math.nan, math.nan, n, n_permutations, seed)
    centring = np.eye(n) - 1 / n
    first, second = centring @ kernels[0] @ centring, kernels[1]
    observed = float((first * second).sum())
    generator = np.random.default_rng(seed)
    orders = (generator.permutation(n) for _ in range(n_permutations))
    least = observed - ROUNDING * abs(observed)
    reached = sum(bool((first * second[np.ix_(order, order)]).sum() >= least) for order in orders)
    return IndependenceTest(observed / (n - 1) ** 2, (1 + reached) / (1 + n_permutations), n, n_permutations, seed)


def _gaussian_kernel(values: Float[np.ndarray, " pair"]) -> Float[np.ndarray, "pair pair"] | None:
    """exp(−distance² / 2 width²), its width the median distance of two pairs; None where no two pairs differ.

    Where most pairs are equal, the median of the distances that are not 0.
    """
    distances = np.abs(values[:, None] - values[None])
    distances[distances <= ROUNDING * np.abs(values).max()] = 0
    apart = distances[np.triu_indices(len(values), 1)]
    if not apart.any():
        return None
    width = np.median(apart) or np.median(apart[apart > 0])
    return np.exp(-((distances / width) ** 2) / 2)


def _check_paired(
    first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."], first_name: str, second_name: str
) -> None:
    if first.shape != second.shape or first.ndim != 1 or not first.size:
        raise ValueError(
            f"{first_name} has shape {first.shape}, {second_name} {second.shape}: expected one metric a pair of both"
        )
    for name, values in ((first_name, first), (second_name, second)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{int((~np.isfinite(values)).sum())} metrics of {name} are not finite: leave their pairs out"
            )
