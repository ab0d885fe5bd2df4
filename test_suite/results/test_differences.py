"""The difference of two experiments is tested as it says: pair by pair, right as often as it claims."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from actpatch.results.differences import difference_statistics, same_pairs
from actpatch.results.sweep import Sweep
from actpatch.statistics.resampling import sign_flip_p_values
from actpatch.statistics.skewness import careful_p_values, skewness_weight
from test_suite.helpers.results import made_up_heads

N_SITES, N_PAIRS = 6, 12


def sweep_of(effects: np.ndarray, *, gap: float = 0.0, seed: int = 0, **changes) -> Sweep:
    """A sweep with these effects of each site on each pair, and gaps that scatter by this share."""
    random = np.random.default_rng(seed)
    n_sites, n_pairs = effects.shape
    corrupted = random.normal(-3, 0.5, n_pairs)
    clean = corrupted + 6 * random.lognormal(0, gap, n_pairs) if gap else corrupted + 6
    patched = corrupted + effects * (clean - corrupted)
    values = {"clean": clean, "corrupted": corrupted, "patched": patched}
    return made_up_heads(n_sites, 1, n_pairs=n_pairs, **values, **changes).sweep


def compared(first: Sweep, second: Sweep, **settings):
    return difference_statistics(
        first, second, [(i, i) for i in range(len(first.patches))], like=first.statistics(**settings)
    )


def test_difference_is_that_of_the_effects_and_reversing_it_turns_its_sign():
    random = np.random.default_rng(0)
    first, second = (sweep_of(random.normal(0.2, 0.3, (N_SITES, N_PAIRS)), gap=0.3, seed=seed) for seed in (1, 2))
    there, back = compared(first, second), compared(second, first)
    np.testing.assert_allclose(there.effect, second.effects - first.effects, atol=1e-12)
    np.testing.assert_allclose(there.effect, -back.effect, atol=1e-12)
    np.testing.assert_array_equal(there.p, back.p)
    np.testing.assert_array_equal(there.sites, [patch.label for patch in first.patches])


def test_with_one_gap_for_all_pairs_it_is_the_test_of_the_pairs_differences():
    random = np.random.default_rng(0)
    effects = random.normal(0.2, 0.3, (2, N_SITES, N_PAIRS))
    found = compared(sweep_of(effects[0]), sweep_of(effects[1]), alpha=0.01, correction="by", level=0.9)
    differences = effects[1] - effects[0]
    held_back = careful_p_values(differences, skewness_weight(differences))
    np.testing.assert_allclose(found.p, np.maximum(sign_flip_p_values(differences), held_back), atol=1e-9)
    assert (found.alpha, found.correction, found.level, found.n_pairs) == (0.01, "by", 0.9, N_PAIRS)
    assert (found.low < found.effect).all() and (found.effect < found.high).all()


def test_an_experiment_does_not_differ_from_itself():
    sweep = sweep_of(np.random.default_rng(0).normal(0.2, 0.3, (N_SITES, N_PAIRS)), gap=0.3)
    found = compared(sweep, sweep)
    assert (found.effect == 0).all() and (found.p == 1).all()


def test_equal_effects_are_called_different_no_more_often_than_alpha_says():
    """Also where the gaps of the two scatter, each in its own way, and effects are large."""
    random = np.random.default_rng(0)
    shares = []
    for seed in range(12):
        first, second = (
            sweep_of(0.6 + random.normal(0, 0.2, (100, N_PAIRS)), gap=0.5, seed=100 * side + seed) for side in (0, 1)
        )
        shares.append((compared(first, second, n_resamples=99).p <= 0.05).mean())
    assert 0.02 < np.mean(shares) < 0.07


def test_pairs_that_only_one_can_use_are_left_out():
    effects = np.random.default_rng(0).normal(0.2, 0.3, (N_SITES, N_PAIRS))
    first, second = sweep_of(effects), sweep_of(effects + 0.1)
    values = second.measured[0]
    clean = values.clean.copy()
    clean[3] = values.corrupted[3] + 1e-9
    broken = dataclasses.replace(second, measured=(dataclasses.replace(values, clean=clean),))
    assert compared(first, broken).n_pairs == N_PAIRS - 1


def test_other_prompts_and_other_pairs_cannot_be_compared():
    sweep = sweep_of(np.zeros((N_SITES, N_PAIRS)))
    other_words = dataclasses.replace(sweep, clean_tokens=(("<s>", "Other"),) * N_PAIRS)
    other_pairs = dataclasses.replace(sweep, pair_indices=tuple(range(50, 50 + N_PAIRS)))
    cut_otherwise = dataclasses.replace(sweep, clean_tokens=tuple(("".join(t),) for t in sweep.clean_tokens))
    for other in (other_words, other_pairs):
        with pytest.raises(ValueError, match="the experiments have other pairs"):
            compared(sweep, other)
    assert same_pairs(sweep, cut_otherwise)
