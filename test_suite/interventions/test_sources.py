"""What ablations write: by plain patching, and by theorem."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from activation_patching import Mean, Resample, Zero
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.interventions.sources import References
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from actpatch.tasks.encoding import EncodedPairs
from test_suite.helpers.closeness import EXACT, allowed
from test_suite.helpers.models import (
    HAS_HOOKED,
    encoded,
    everything_metric,
    last_position_metric,
    model_parameters,
    needs_hooked,
    sampled_sites,
    small_model,
    token_pairs,
)
from test_suite.helpers.sweeps import single, sweep_with
from test_suite.helpers.thinned import thinned
from test_suite.oracles.plain import PlainPatching, largest_error, measured
from test_suite.oracles.sources import drawn

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
SEVERAL = ("hooked:learned", "hooked:grouped", "bridge+:gpt2")
OTHERS = ("hooked:parallel", "hooked:sandwich", "bridge:gemma2")
DIRECTIONS = ("denoising", "noising")
SOURCES = (Zero(), Mean(), Resample(seed=3))
NAMED_SOURCES = [pytest.param(source, id=type(source).__name__) for source in SOURCES]

falls_back = pytest.mark.filterwarnings("ignore:this model's blocks cannot be resumed exactly")
means_of_one = pytest.mark.filterwarnings("ignore:.*a single reference prompt")


def sites_for(source: Any, name: str, offset: int = 0) -> list[Site]:
    """Sampled sites. Zero does without resid_mid: a norm divides by what rounding leaves of it, however it is run."""
    sites = sampled_sites(name, [None, 5, -1, 2], offset)
    return [site for site in sites if not (isinstance(source, Zero) and site.component == "resid_mid")]


def several_pairs(seed: int = 0) -> EncodedPairs:
    """Pairs of two lengths, of which each has a partner of its template, except that two templates share a length."""
    pairs = token_pairs([9, 7, 9, 7, 9, 9, 9], [(3,), (2, 4), (3,), (), (5, 6), (0,), (8,)], seed=seed)
    return replace(pairs, templates=("a", "a", "a", "a", "b", "b", "a"))


# --- where the value comes from: against plain patching ------------------------------------------------------------


def expected_prompts(source: Any, pairs: EncodedPairs) -> list[list[Tensor]]:
    """The prompts whose mean is written, by the definition of each source."""
    alike = [
        [j for j in range(len(pairs)) if (pairs.templates[j], len(pairs.clean[j])) == (template, len(prompt))]
        for template, prompt in zip(pairs.templates, pairs.clean)
    ]
    if isinstance(source, Zero):
        return [[] for _ in alike]
    if isinstance(source, Mean):
        return [[pairs.corrupted[j] for j in group] for group in alike]
    donors = [[j for j in group if j != i] for i, group in enumerate(alike)]
    return [[pairs.corrupted[group[drawn(source.seed, i, len(group))[0]]]] for i, group in enumerate(donors)]


@falls_back
@pytest.mark.parametrize(
    ("name", "source"), thinned(model_parameters(*SEVERAL, "bridge:bloom", slow=OTHERS), NAMED_SOURCES)
)
def test_every_source_agrees_with_plain_patching(name: str, source: Any) -> None:
    offset = SOURCES.index(source)
    sites = sites_for(source, name, offset)[offset::3]
    metric = last_position_metric if offset else everything_metric
    assert_plain_patching_agrees(name, source, sites, metric, DIRECTIONS[(len(name) + offset) % 2])


@falls_back
@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("name", model_parameters(*SEVERAL, *OTHERS, "bridge:bloom"))
def test_every_source_at_every_hook_point_agrees_with_plain_patching(name: str, source: Any, direction: str) -> None:
    for metric in (last_position_metric, everything_metric):
        assert_plain_patching_agrees(name, source, sites_for(source, name), metric, direction)


@falls_back
@pytest.mark.parametrize("direction", ["noising", pytest.param("denoising", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", model_parameters(PLAIN, slow=["hooked:grouped", "bridge:llama", "bridge:bloom"]))
def test_several_donors_are_run_one_by_one_and_their_metrics_averaged(name: str, direction: str) -> None:
    model, samples = small_model(name), 2
    pairs = token_pairs([9, 7, 9, 7, 9, 7], [(3,), (2, 4), (3,), (), (5, 6), (0,)])
    places = [Site(block_hook(1, "attn_out"), position=(4, 3, 6, 3, 4, 5)), Site(block_hook(2, "mlp_post"), neuron=3)]
    patches = [*single([*sampled_sites(name, [None, 5, -1])[::3], *places]), Patch(tuple(places))]
    metric = everything_metric(6) if direction == "noising" else last_position_metric(6)
    found = sweep_with(model, pairs, patches, direction, source=Resample(2, samples), metric=metric)
    others = [[j for j in range(6) if j != i and len(pairs.clean[j]) == len(pairs.clean[i])] for i in range(6)]
    expected = np.zeros_like(found.patched)
    for sample in range(samples):
        donors = [others[i][drawn(2, i, len(others[i]))[sample]] for i in range(6)]
        names = [site.hook_point for patch in patches for site in patch.sites]
        written = [[pairs.corrupted[donor]] for donor in donors]
        plain = PlainPatching(model, pairs, names, direction, written=written)
        expected += np.array([measured(metric, logits) for logits in plain.logits(patches)]) / samples
    np.testing.assert_allclose(found.patched, expected, atol=allowed(model, pairs.clean), rtol=0)
    one = sweep_with(model, pairs, patches, direction, source=Resample(2), metric=metric)
    assert abs(found.patched - one.patched).max() > 1e-3
    within = allowed(model, pairs.clean)
    np.testing.assert_allclose([found.clean, found.corrupted], [one.clean, one.corrupted], atol=within, rtol=0)


def assert_plain_patching_agrees(name: str, source: Any, sites: Sequence[Site], metric: Any, direction: str) -> None:
    model, pairs, patches = small_model(name), several_pairs(), single(sites)
    measured_by = metric(len(pairs))
    found = sweep_with(model, pairs, patches, direction, source=source, metric=measured_by)
    written = expected_prompts(source, pairs)
    error, where = largest_error(model, pairs, patches, direction, [(measured_by, found)], written)
    assert error <= allowed(model, pairs.clean), f"{error:.2g} off at {where}"


@pytest.mark.quick(1)
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_what_a_source_writes_depends_neither_on_batches_nor_on_recordings(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, patches = several_pairs(), single(sites_for(source, PLAIN)[::2])
    expected = sweep_with(small_model(PLAIN), pairs, patches, source=source)
    again = sweep_with(small_model(PLAIN), pairs, patches, source=source)
    assert (again.patched == expected.patched).all()
    monkeypatch.setattr(
        "actpatch.engine.memory.MOST_RECORDED_BYTES", 1
    )  # one pair, and one reference prompt, at a time
    found = sweep_with(small_model(PLAIN), pairs, patches, source=source, batch_size=2)
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_baselines_are_those_of_the_two_runs_whatever_is_written(source: Any) -> None:
    pairs, patches = several_pairs(), single([Site(block_hook(1, "mlp_out"))])
    expected = sweep_with(small_model(PLAIN), pairs, patches)
    found = sweep_with(small_model(PLAIN), pairs, patches, source=source)
    np.testing.assert_allclose(found.clean, expected.clean, atol=EXACT, rtol=0)
    np.testing.assert_allclose(found.corrupted, expected.corrupted, atol=EXACT, rtol=0)


# --- where the value comes from: theorems --------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "hooked:grouped"))
@needs_hooked
def test_zero_of_what_a_head_writes_is_the_model_without_the_head(name: str) -> None:
    model, pairs = small_model(name), token_pairs([9, 7], [(2,), (3,)])
    found = sweep_with(model, pairs, single([Site(block_hook(1, "z"), head=2)]), source=Zero())
    without = copy.deepcopy(model)
    with torch.no_grad():
        without.blocks[1].attn.W_O[2] = 0
    expected = sweep_with(without, pairs, single([Site(block_hook(1, "z"))]))
    np.testing.assert_allclose(found.patched[0], expected.clean, atol=EXACT, rtol=0)
    assert abs(found.patched[0] - found.clean).max() > 1e-3


@means_of_one
@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge+:gpt2"))
def test_the_mean_over_one_prompt_is_its_value(name: str) -> None:
    """Each pair is alone in its template: its mean over the corrupted prompts is its corrupted run."""
    pairs = replace(token_pairs([9, 9, 7], [(2,), (3,), (1, 4)]), templates=("a", "b", "a"))
    patches = single(sampled_sites(name, [None, 5]))
    found = sweep_with(small_model(name), pairs, patches, source=Mean())
    expected = sweep_with(small_model(name), pairs, patches)
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


def test_the_mean_of_equal_prompts_and_another_value_of_an_equal_prompt_change_nothing() -> None:
    prompt = token_pairs([9], [()]).clean[0]
    pairs, patches = encoded([prompt] * 3, [prompt] * 3), single(sampled_sites(PLAIN, [None, 5]))
    for source in (Mean(), Resample()):
        found = sweep_with(small_model(PLAIN), pairs, patches, source=source)
        assert (found.patched == found.clean).all()


@needs_hooked
def test_the_mean_over_many_prompts_is_the_mean_of_their_activations() -> None:
    """Where only a linear map follows, without a norm, the mean activation gives the mean logits."""
    pairs = token_pairs([9] * 40, [(8,)] * 40)
    metric = LogitDifference(Answers(((4,),) * 40, ((9,),) * 40))
    patches = single([Site(block_hook(2, "resid_post"))])
    found = sweep_with(small_model("hooked:attn_only"), pairs, patches, source=Mean(), metric=metric)
    np.testing.assert_allclose(found.patched[0], np.full(40, found.corrupted.mean()), atol=EXACT, rtol=0)


def test_donors_are_other_pairs_of_the_same_template_and_depend_on_the_seed() -> None:
    pairs = several_pairs()
    seen = set()
    for seed in range(20):
        found = Resample(seed).references(pairs)
        donors = [next(j for j in range(7) if pairs.corrupted[j] is found.groups[g][0]) for g in found.of_pair]
        assert all(i != j and pairs.templates[i] == pairs.templates[j] for i, j in enumerate(donors))
        seen.add(tuple(donors))
    assert len(seen) > 5


def test_several_donors_are_different_and_begin_with_the_single_one() -> None:
    pairs = token_pairs([9] * 7, [(3,)] * 7)
    one, two = (Resample(5, samples).references(pairs) for samples in (1, 2))
    of_one, of_two = ([r.groups[group][0] for group in r.of_pair] for r in (one, two))
    assert (one.samples, two.samples, len(of_two)) == (1, 2, 14)
    for i in range(7):
        first, second = of_two[2 * i : 2 * i + 2]
        assert first is of_one[i] and second is not first and pairs.corrupted[i] is not second


def test_a_patch_that_writes_what_is_there_is_not_run() -> None:
    """Neurons and positions before the first difference of every reference prompt."""
    model, pairs = small_model(PLAIN), token_pairs([9, 9, 9], [(4,), (4,), (5,)])
    shared = pairs.clean[0][:3]
    clean, corrupted = ([torch.cat([shared, p[3:]]) for p in run] for run in (pairs.clean, pairs.corrupted))
    pairs = encoded(clean, corrupted)
    early = [Site(point, position=2) for point in (block_hook(1, "q"), block_hook(0, "mlp_post"), block_hook(2, "z"))]
    for source in (Mean(), Resample()):
        found = sweep_with(model, pairs, single(early), source=source)
        assert (found.patched == found.clean).all()
    late = sweep_with(model, pairs, single([replace(site, position=5) for site in early[:2]]), source=Mean())
    assert abs(late.patched - late.clean).max() > 1e-4


def test_the_references_first_change_is_the_first_token_in_which_one_differs() -> None:
    base = torch.tensor([1, 2, 3, 4])
    others = [torch.tensor(tokens) for tokens in ([1, 2, 3, 9], [1, 2, 9, 4], [1, 2, 3, 4])]
    groups = ((), (others[0],), tuple(others), (others[2],))
    assert References(groups, (0, 1, 2, 3)).first_change([base] * 4).tolist() == [0, 3, 2, 4]
