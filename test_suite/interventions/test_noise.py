"""Noise on the embeddings: by plain patching, and by theorem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from activation_patching import GaussianNoise
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import embedding_deviation
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from actpatch.models.runner import make_runner
from actpatch.tasks.encoding import EncodedPairs
from test_suite.helpers.closeness import EXACT, allowed
from test_suite.helpers.models import (
    HAS_HOOKED,
    encoded,
    everything_metric,
    last_position_metric,
    model_parameters,
    sampled_sites,
    small_model,
    token_pairs,
)
from test_suite.helpers.sweeps import single, sweep_with
from test_suite.oracles.plain import PlainPatching, measured
from test_suite.oracles.sources import noise_by_hand

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
DIRECTIONS = ("denoising", "noising")

falls_back = pytest.mark.filterwarnings("ignore:this model's blocks cannot be resumed exactly")


@pytest.mark.quick(1)
@falls_back
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "name",
    model_parameters("hooked:learned", "bridge+:gpt2", slow=["hooked:grouped", "hooked:shortformer", "bridge:llama"]),
)
def test_noise_agrees_with_plain_patching(name: str, direction: str) -> None:
    model, noise = small_model(name), GaussianNoise([3, -2], multiple=1.5, samples=3, seed=5)
    pairs = token_pairs([9, 7], [(0, 1), (5,)])
    clean_pairs = encoded(pairs.clean, pairs.clean)
    patches = single([*sampled_sites(name, [None, 5, 3, -1])[::2], Site("hook_embed", position=3)])
    for some in (patches[:-1], patches[-1:]):  # resumed, and run in full
        metric = everything_metric(2) if direction == "noising" else last_position_metric(2)
        found = sweep_with(model, pairs, some, direction, noise=noise, metric=metric)
        expected = np.zeros_like(found.patched)
        for added in noise_by_hand(model, noise, [(3, 7), (3, 5)], [9, 7]):
            names = [site.hook_point for patch in some for site in patch.sites]
            plain = PlainPatching(model, clean_pairs, names, direction, noise=added)
            expected += np.array([measured(metric, logits) for logits in plain.logits(some)]) / noise.samples
        np.testing.assert_allclose(found.patched, expected, atol=allowed(model, pairs.clean), rtol=0)


@falls_back
def test_noise_works_where_every_run_is_a_full_one() -> None:
    model, pairs = small_model("bridge:bloom"), token_pairs([9, 7], [(), ()])
    patches = single([Site(block_hook(0, "resid_pre"), position=4)])
    found = sweep_with(model, pairs, patches, "denoising", noise=GaussianNoise(4, samples=2))
    np.testing.assert_allclose(found.patched[0], found.clean, atol=allowed(model, pairs.clean), rtol=0)
    assert abs(found.corrupted - found.clean).min() > 1e-3


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge+:gpt2"))
def test_restoring_the_noised_embeddings_restores_everything(name: str) -> None:
    pairs = token_pairs([9, 7], [(2,), (3,)])
    noised = Patch(tuple(Site(block_hook(0, "resid_pre"), position=at) for at in (2, 4)))
    embedding = Patch(tuple(Site("hook_embed", position=at) for at in (2, 4)))
    for patch in (noised, embedding):
        found = sweep_with(small_model(name), pairs, [patch], "denoising", noise=GaussianNoise([2, 4], samples=3))
        np.testing.assert_allclose(found.patched[0], found.clean, atol=EXACT, rtol=0)
        assert abs(found.corrupted - found.clean).min() > 1e-3


def test_no_noise_changes_nothing() -> None:
    pairs, patches = token_pairs([9, 7], [(2,), (3,)]), single(sampled_sites(PLAIN, [None, 5]))
    found = sweep_with(small_model(PLAIN), pairs, patches, noise=GaussianNoise(3, multiple=0, samples=2))
    assert (found.corrupted == found.clean).all()
    np.testing.assert_allclose(found.patched, np.tile(found.clean, (len(patches), 1)), atol=EXACT, rtol=0)


def test_noise_is_a_function_of_seed_pair_and_sample_alone() -> None:
    model, patches = small_model(PLAIN), single(sampled_sites(PLAIN, [None, 5])[::3])
    pairs = token_pairs([9, 7, 9], [(), (), ()])
    noise = GaussianNoise(3, samples=4, seed=1)
    expected = sweep_with(model, pairs, patches, "denoising", noise=noise)
    again = sweep_with(model, pairs, patches, "denoising", noise=noise)
    assert (again.patched == expected.patched).all()
    alone = EncodedPairs((2,), pairs.clean[2:], pairs.corrupted[2:], pairs.clean_tokens[2:], pairs.corrupted_tokens[2:])
    metric = LogitDifference(Answers(((4,),), ((10,),)))  # what pair 2 is measured by
    found = sweep_with(model, alone, patches, "denoising", noise=noise, metric=metric, batch_size=1)
    np.testing.assert_allclose(found.patched[:, 0], expected.patched[:, 2], atol=EXACT, rtol=0)
    other = sweep_with(model, pairs, patches, "denoising", noise=replace(noise, seed=2))
    assert abs(other.corrupted - expected.corrupted).min() > 1e-3


def test_the_deviation_is_a_multiple_of_the_whole_vocabularys() -> None:
    for name in (PLAIN, "bridge:gpt2"):
        expected = float(small_model(name).W_E.detach().double().std(correction=0))
        assert embedding_deviation(make_runner(small_model(name))) == pytest.approx(expected, rel=1e-6)
    gemma = small_model("bridge:gemma2")  # scales its embeddings by the root of their width
    expected = float(gemma.W_E.detach().double().std(correction=0)) * gemma.cfg.d_model**0.5
    assert embedding_deviation(make_runner(gemma)) == pytest.approx(expected, rel=1e-3)
