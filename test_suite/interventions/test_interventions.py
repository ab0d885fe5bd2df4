"""Do ablations, noise, neurons, windows and named positions do what they say?  By plain patching, and by theorem."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from activation_patching import (
    ActivationPatcher,
    BothDirections,
    GaussianNoise,
    IOIDataset,
    Mean,
    PatchingDataset,
    Resample,
    Zero,
    load_results,
    summarize_results,
)
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine, embedding_deviation
from actpatch.interventions.places import layer_window
from actpatch.interventions.sources import References, references
from actpatch.metrics.base import Answers, LogitDifference
from actpatch.models.runner import make_runner
from actpatch.results.shapes import HeadResults
from actpatch.results.sweep import MetricValues, Sweep
from actpatch.tasks.dataset import EncodedPairs
from head_patching import HeadPatcher
from test_suite.helpers.induction import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD, induction_model, induction_pairs
from test_suite.helpers.models import (
    HAS_HOOKED,
    Swept,
    bundled,
    encoded,
    everything_metric,
    fresh_hooked,
    last_position_metric,
    model_parameters,
    needs_hooked,
    sampled_sites,
    small_model,
    swept,
    token_pairs,
    words,
)
from test_suite.oracles.plain import PlainPatching, largest_error, measured
from test_suite.oracles.sources import drawn, noise_by_hand
from visualize import create_layer_heatmap, create_position_heatmap

TOLERANCE = 1e-5
PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
SEVERAL = ("hooked:learned", "hooked:grouped", "bridge+:gpt2")
OTHERS = ("hooked:parallel", "hooked:sandwich", "bridge:gemma2")
DIRECTIONS = ("denoising", "noising")
SOURCES = (Zero(), Mean(), Resample(seed=3))

falls_back = pytest.mark.filterwarnings("ignore:this model's blocks cannot be resumed exactly")
means_of_one = pytest.mark.filterwarnings("ignore:.*a single reference prompt")


def sweep_with(
    model: Any,
    pairs: EncodedPairs,
    patches: Sequence[Patch],
    direction: str = "noising",
    *,
    source: Any = None,
    noise: GaussianNoise | None = None,
    batch_size: int | None = None,
    metric: Any = None,
) -> Swept:
    written = None if source is None else references(source, pairs, lambda dataset: pairs)
    engine = PatchingEngine(model, batch_size=batch_size, show_progress=False)
    metric = last_position_metric(len(pairs)) if metric is None else metric
    return swept(engine, pairs, patches, metric, direction, references=written, noise=noise)


def single(sites: Sequence[Site]) -> list[Patch]:
    return [Patch((site,)) for site in sites]


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
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
@pytest.mark.parametrize("name", model_parameters(*SEVERAL, "bridge:bloom", slow=OTHERS))
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
    np.testing.assert_allclose(found.patched, expected, atol=TOLERANCE, rtol=0)
    one = sweep_with(model, pairs, patches, direction, source=Resample(2), metric=metric)
    assert abs(found.patched - one.patched).max() > 1e-3
    np.testing.assert_allclose([found.clean, found.corrupted], [one.clean, one.corrupted], atol=1e-6, rtol=0)


def assert_plain_patching_agrees(name: str, source: Any, sites: Sequence[Site], metric: Any, direction: str) -> None:
    model, pairs, patches = small_model(name), several_pairs(), single(sites)
    measured_by = metric(len(pairs))
    found = sweep_with(model, pairs, patches, direction, source=source, metric=measured_by)
    written = expected_prompts(source, pairs)
    error, where = largest_error(model, pairs, patches, direction, [(measured_by, found)], written)
    assert error <= TOLERANCE, f"{error:.2g} off at {where}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_what_a_source_writes_depends_neither_on_batches_nor_on_recordings(
    source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, patches = several_pairs(), single(sites_for(source, PLAIN)[::2])
    expected = sweep_with(small_model(PLAIN), pairs, patches, source=source)
    again = sweep_with(small_model(PLAIN), pairs, patches, source=source)
    assert (again.patched == expected.patched).all()
    monkeypatch.setattr(
        "actpatch.engine.engine.MOST_RECORDED_BYTES", 1
    )  # one pair, and one reference prompt, at a time
    found = sweep_with(small_model(PLAIN), pairs, patches, source=source, batch_size=2)
    np.testing.assert_allclose(found.patched, expected.patched, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_baselines_are_those_of_the_two_runs_whatever_is_written(source: Any) -> None:
    pairs, patches = several_pairs(), single([Site(block_hook(1, "mlp_out"))])
    expected = sweep_with(small_model(PLAIN), pairs, patches)
    found = sweep_with(small_model(PLAIN), pairs, patches, source=source)
    np.testing.assert_allclose(found.clean, expected.clean, atol=1e-6)
    np.testing.assert_allclose(found.corrupted, expected.corrupted, atol=1e-6)


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
    np.testing.assert_allclose(found.patched[0], expected.clean, atol=TOLERANCE)
    assert abs(found.patched[0] - found.clean).max() > 1e-3


@means_of_one
@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge+:gpt2"))
def test_the_mean_over_one_prompt_is_its_value(name: str) -> None:
    """Each pair is alone in its template: its mean over the corrupted prompts is its corrupted run."""
    pairs = replace(token_pairs([9, 9, 7], [(2,), (3,), (1, 4)]), templates=("a", "b", "a"))
    patches = single(sampled_sites(name, [None, 5]))
    found = sweep_with(small_model(name), pairs, patches, source=Mean())
    expected = sweep_with(small_model(name), pairs, patches)
    np.testing.assert_allclose(found.patched, expected.patched, atol=TOLERANCE, rtol=0)


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
    np.testing.assert_allclose(found.patched[0], np.full(40, found.corrupted.mean()), atol=TOLERANCE)


def test_donors_are_other_pairs_of_the_same_template_and_depend_on_the_seed() -> None:
    pairs = several_pairs()
    seen = set()
    for seed in range(20):
        found = references(Resample(seed), pairs, lambda dataset: pairs)
        donors = [next(j for j in range(7) if pairs.corrupted[j] is found.groups[g][0]) for g in found.of_pair]
        assert all(i != j and pairs.templates[i] == pairs.templates[j] for i, j in enumerate(donors))
        seen.add(tuple(donors))
    assert len(seen) > 5


def test_several_donors_are_different_and_begin_with_the_single_one() -> None:
    pairs = token_pairs([9] * 7, [(3,)] * 7)
    one, two = (references(Resample(5, samples), pairs, lambda dataset: pairs) for samples in (1, 2))
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


# --- noise on the embeddings ---------------------------------------------------------------------------------------


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
        np.testing.assert_allclose(found.patched, expected, atol=TOLERANCE, rtol=0)


@falls_back
def test_noise_works_where_every_run_is_a_full_one() -> None:
    pairs, patches = token_pairs([9, 7], [(), ()]), single([Site(block_hook(0, "resid_pre"), position=4)])
    found = sweep_with(small_model("bridge:bloom"), pairs, patches, "denoising", noise=GaussianNoise(4, samples=2))
    np.testing.assert_allclose(found.patched[0], found.clean, atol=TOLERANCE)
    assert abs(found.corrupted - found.clean).min() > 1e-3


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge+:gpt2"))
def test_restoring_the_noised_embeddings_restores_everything(name: str) -> None:
    pairs = token_pairs([9, 7], [(2,), (3,)])
    noised = Patch(tuple(Site(block_hook(0, "resid_pre"), position=at) for at in (2, 4)))
    embedding = Patch(tuple(Site("hook_embed", position=at) for at in (2, 4)))
    for patch in (noised, embedding):
        found = sweep_with(small_model(name), pairs, [patch], "denoising", noise=GaussianNoise([2, 4], samples=3))
        np.testing.assert_allclose(found.patched[0], found.clean, atol=TOLERANCE)
        assert abs(found.corrupted - found.clean).min() > 1e-3


def test_no_noise_changes_nothing() -> None:
    pairs, patches = token_pairs([9, 7], [(2,), (3,)]), single(sampled_sites(PLAIN, [None, 5]))
    found = sweep_with(small_model(PLAIN), pairs, patches, noise=GaussianNoise(3, multiple=0, samples=2))
    assert (found.corrupted == found.clean).all()
    np.testing.assert_allclose(found.patched, np.tile(found.clean, (len(patches), 1)), atol=TOLERANCE)


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
    np.testing.assert_allclose(found.patched[:, 0], expected.patched[:, 2], atol=TOLERANCE)
    other = sweep_with(model, pairs, patches, "denoising", noise=replace(noise, seed=2))
    assert abs(other.corrupted - expected.corrupted).min() > 1e-3


def test_the_deviation_is_a_multiple_of_the_whole_vocabularys() -> None:
    for name in (PLAIN, "bridge:gpt2"):
        expected = float(small_model(name).W_E.detach().double().std(correction=0))
        assert embedding_deviation(make_runner(small_model(name))) == pytest.approx(expected, rel=1e-6)
    gemma = small_model("bridge:gemma2")  # scales its embeddings by the root of their width
    expected = float(gemma.W_E.detach().double().std(correction=0)) * gemma.cfg.d_model**0.5
    assert embedding_deviation(make_runner(gemma)) == pytest.approx(expected, rel=1e-3)


# --- neurons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", model_parameters(*SEVERAL, "hooked:gated", slow=[*OTHERS, "bridge:llama", "bridge+:opt"])
)
def test_neurons_agree_with_plain_patching(name: str) -> None:
    model, pairs = small_model(name), token_pairs([9, 7], [(3,), (2, 5)])
    points = [block_hook(layer, short) for layer in range(3) for short in ("mlp_post", "mlp_pre")]
    points = [point for point in points if point in model.hook_dict]
    patches = single([Site(point, position=at, neuron=7 * i) for i, point in enumerate(points) for at in (None, 5)])
    several = [Site(block_hook(1, "mlp_post"), neuron=neuron) for neuron in (3, 11, 40)]
    patches += [
        Patch(tuple(several)),
        Patch((several[0], Site(block_hook(1, "mlp_out"), position=6))),
        Patch((Site(block_hook(0, "z"), head=1), several[1], Site(block_hook(1, "resid_post"), position=4))),
    ]
    for direction in DIRECTIONS:
        metrics = [last_position_metric(2), everything_metric(2)]
        found = [(m, sweep_with(model, pairs, patches, direction, metric=m)) for m in metrics]
        error, where = largest_error(model, pairs, patches, direction, found)
        assert error <= TOLERANCE, f"{error:.2g} off at {where}"


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "hooked:gated", "bridge+:gpt2", "bridge:llama"))
def test_a_neurons_change_is_added_without_running_its_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = small_model(name), token_pairs([9, 7], [(3,), (2, 5)])
    entered = []
    run_block = type(PatchingEngine(model).runner).run_block

    def note(self: Any, layer: int, resid: Tensor, *rest: Any) -> Tensor:
        entered.append((layer, len(resid)))
        return run_block(self, layer, resid, *rest)

    monkeypatch.setattr(type(PatchingEngine(model).runner), "run_block", note)
    sweep_with(model, pairs, single([Site(block_hook(1, "mlp_post"), neuron=n) for n in range(20)]))
    assert max(rows for layer, rows in entered if layer == 2) >= 20
    assert max((rows for layer, rows in entered if layer == 1), default=0) < 20


@pytest.mark.parametrize("name", model_parameters(*SEVERAL, slow=OTHERS))
def test_all_neurons_of_a_layer_are_its_mlp(name: str) -> None:
    model, pairs = small_model(name), token_pairs([9, 7], [(3,), (2, 5)])
    point = block_hook(1, "mlp_post")
    width = PatchingEngine(model).n_neurons(1)
    together = Patch(tuple(Site(point, neuron=neuron) for neuron in range(width)))
    found = sweep_with(model, pairs, [together, *single([Site(point), Site(block_hook(1, "mlp_out"))])])
    np.testing.assert_allclose(found.patched[1:], found.patched[[0, 0]], atol=TOLERANCE)
    assert abs(found.patched[0] - found.clean).max() > 1e-3


def test_what_a_hook_of_the_user_does_to_the_mlp_is_not_added_to() -> None:
    """Its output is then no longer its neurons times a matrix; the patch has to run it."""
    model, pairs, metric = small_model(PLAIN), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    patches = single([Site(block_hook(1, "mlp_post"), neuron=5), Site(block_hook(1, "mlp_post"))])
    with model.hooks(fwd_hooks=[(block_hook(1, "mlp_out"), lambda value, hook: value.clamp(-0.2, 0.2))]):
        found = sweep_with(model, pairs, patches)
        error, where = largest_error(model, pairs, patches, "noising", [(metric, found)])
    assert error <= TOLERANCE, where


# --- what the patchers make of it ----------------------------------------------------------------------------------


class Words(PatchingDataset):
    """Pairs of word prompts for small models, with names for positions. BOS takes the place of each first token."""

    def __init__(self, pairs: EncodedPairs, names: Sequence[dict[str, int]] = ()) -> None:
        self.pairs, self.names = pairs, names

    @property
    def name(self) -> str:
        return "words"

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        clean, corrupted = ([_prompt(tokens) for tokens in run] for run in (self.pairs.clean, self.pairs.corrupted))
        return list(zip(clean, corrupted))

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        return 2 + pair_idx, 8 + pair_idx

    def get_positions(self, pair_idx: int) -> dict[str, int]:
        return self.names[pair_idx] if self.names else {}


def _prompt(tokens: Tensor) -> str:
    """The prompt's words after BOS. None starts with `w1`, which is BOS wherever it stands: 13 becomes 33."""
    return f" {words([int(token) + 20 * (10 <= token < 20) for token in tokens[1:]])}"


def patcher_on(model: Any) -> ActivationPatcher:
    return ActivationPatcher(model, show_progress=False)


@pytest.fixture
def mixed() -> Words:
    """Pairs of other lengths whose named positions stand elsewhere."""
    pairs = token_pairs([9, 7, 9], [(3, 6), (2, 4), (5, 6)])
    return Words(pairs, [{"A": 4, "B": 7, "END": -1}, {"A": 3, "B": 5, "END": -1}, {"A": 6, "B": 7, "END": -1}])


def raw(results: Any) -> np.ndarray:
    return results.sweep.patched


def test_named_positions_are_their_integers(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    together = patcher.run_position_experiment(mixed, "resid_post", positions=["A", "END"])
    assert together.names == ["A", "END"]
    assert together.matrix().shape == (3, 2)
    for pair, named in enumerate(mixed.names):
        alone = patcher.run_position_experiment(mixed, "resid_post", pair_indices=[pair])
        for column, name in enumerate(together.names):
            at = named[name] % len(alone.sweep.clean_tokens[0])
            expected = alone.sweep.patched[[p.sites[0].position == at for p in alone.sweep.patches]]
            np.testing.assert_allclose(raw(together)[column::2, [pair]], expected, atol=TOLERANCE)
    frame = together.to_dataframe()
    assert set(frame["position_name"]) == {"A", "END"}
    first = frame[(frame["position_name"] == "A") & (frame["layer"] == 0)]
    assert first["position"].tolist() == [4, 3, 6]
    assert first["token"].tolist() == [together.sweep.clean_tokens[i][at] for i, at in enumerate((4, 3, 6))]


def test_a_named_position_works_wherever_a_position_does(mixed: Words) -> None:
    model = small_model(PLAIN)
    layers = patcher_on(model).run_patching_experiment(mixed, ["attn_out"], position="B")
    assert [result.position for result in layers["blocks.0.hook_attn_out"]] == [7, 5, 7]
    heads = HeadPatcher(model, show_progress=False).run_all_heads_experiment(mixed, layers=[1], position="B")
    sites = [Site(block_hook(1, "z"), head=head, position=(7, 5, 7)) for head in range(4)]
    np.testing.assert_array_equal(raw(heads), patcher_on(model).sweep(mixed, single(sites)).patched)


def test_several_positions_are_patched_together(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    found = patcher.run_patching_experiment(mixed, "resid_pre", position=["A", 2, -1])
    together = [
        Patch((Site(point, position=(4, 3, 6)), Site(point, position=2), Site(point, position=-1))) for point in found
    ]
    np.testing.assert_array_equal(raw(found), patcher.sweep(mixed, together).patched)
    assert found["blocks.0.hook_resid_pre"][0].position == (4, 2, -1)


def test_a_set_of_hook_points_is_patched_together(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    pair = ("blocks.0.hook_attn_out", "blocks.2.hook_mlp_out")
    found = patcher.run_patching_experiment(mixed, [pair, "resid_post", ("mlp_out",)])
    expected = patcher.sweep(mixed, [Patch(tuple(map(Site, pair)))]).patched[0]
    np.testing.assert_array_equal(raw(found)[0], expected)
    assert [result.hook_point for result in found[" + ".join(pair)]] == [" + ".join(pair)] * 3
    assert found.matrix().columns.tolist() == ["resid_post"]


def test_a_window_of_one_is_none_and_one_of_all_layers_is_the_set(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    plain = patcher.run_patching_experiment(mixed, ["mlp_out", "attn_out"])
    assert patcher.run_patching_experiment(mixed, ["mlp_out", "attn_out"], window=1) == plain
    wide = patcher.run_patching_experiment(mixed, ["mlp_out", "attn_out"], window=5)
    every = patcher.run_patching_experiment(mixed, [("mlp_out",), ("attn_out",)])
    np.testing.assert_allclose(raw(wide), np.repeat(raw(every), 3, axis=0), atol=TOLERANCE)


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge+:gpt2"))
def test_windows_agree_with_plain_patching(name: str) -> None:
    model, pairs = small_model(name), token_pairs([9, 7], [(3,), (2, 5)])
    patches = [
        layer_window([Site(block_hook(layer, short), position=at)], 3, 3)
        for layer in range(3)
        for short in ("mlp_out", "z", "resid_pre", "k")
        for at in (None, 5)
    ]
    assert [len(patch.sites) for patch in patches[::8]] == [2, 3, 2]
    metric = last_position_metric(2)
    found = sweep_with(model, pairs, patches)
    error, where = largest_error(model, pairs, patches, "noising", [(metric, found)])
    assert error <= TOLERANCE, where


def test_a_window_belongs_to_its_middle_layer(mixed: Words, capsys: pytest.CaptureFixture[str]) -> None:
    patcher = patcher_on(small_model(PLAIN))
    results = patcher.run_patching_experiment(mixed, "mlp_out", window=3)
    assert list(results) == [block_hook(layer, "mlp_out") for layer in range(3)]
    assert [patch.label for patch in results.sweep.patches] == [f"L{layer}±1 mlp_out" for layer in range(3)]
    assert results.matrix()["mlp_out"].tolist() == list(results.effects.values())
    assert results.to_dataframe()["layer"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    summarize_results(results)
    assert "windows of 3 adjacent layers" in capsys.readouterr().out
    positions = patcher.run_position_experiment(mixed, "mlp_out", positions=["A", "B"], window=3)
    assert positions.sweep.patches[2].label == "L1±1 mlp_out @A"


def test_neurons_are_found_by_layer_and_number(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    results = patcher.run_neurons_experiment(mixed, -1, [5, 0, -1], position="END")
    width = patcher.engine.n_neurons(2)
    assert [(r.layer, r.neuron, r.label) for r in results] == [(2, n, f"L2N{n}") for n in (0, 5, width - 1)]
    sites = [Site(block_hook(2, "mlp_post"), position=-1, neuron=n) for n in (0, 5, width - 1)]
    np.testing.assert_array_equal(raw(results), patcher.sweep(mixed, single(sites)).patched)
    assert len(patcher.run_neurons_experiment(mixed, 0)) == width
    assert results.top(1)[0] == max(results, key=lambda r: abs(r.effect))
    assert results.to_dataframe()["neuron"].tolist() == [0] * 3 + [5] * 3 + [width - 1] * 3


# --- both directions -----------------------------------------------------------------------------------------------


def test_both_directions_are_the_two_single_ones(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    heads = HeadPatcher(small_model(PLAIN), show_progress=False)
    runs = [
        lambda way: patcher.run_patching_experiment(mixed, ["attn_out"], direction=way),
        lambda way: patcher.run_position_experiment(mixed, positions=["A", "B"], direction=way),
        lambda way: patcher.run_neurons_experiment(mixed, 1, [3, 4], direction=way),
        lambda way: heads.run_all_heads_experiment(mixed, direction=way),
    ]
    for run in runs:
        both = run("both")
        assert both == BothDirections(run("denoising"), run("noising"))
        reading = both.reading(0.2)
        assert reading["denoising"].tolist() == both.denoising.sweep.effects.tolist()
        assert reading["noising"].tolist() == both.noising.sweep.effects.tolist()


@needs_hooked
def test_the_heads_of_the_induction_model_are_sufficient_and_necessary() -> None:
    """Each of its two heads in series restores everything alone and takes everything away alone; no other does."""
    heads = single([Site(block_hook(layer, "z"), head=head) for layer in range(3) for head in range(4)])
    pairs, metric = induction_pairs(), LogitDifference(Answers(((9,),), ((17,),)))

    def results(direction: Any) -> HeadResults:
        found = swept(PatchingEngine(induction_model(), show_progress=False), pairs, heads, metric, direction)
        values = MetricValues(metric.name, metric.unit, True, found.patched, found.clean, found.corrupted)
        tokens = {"clean_tokens": pairs.clean_tokens, "corrupted_tokens": pairs.corrupted_tokens}
        sizes = {"n_layers": 3, "n_heads": 4, "n_key_value_heads": 4}
        settings = {"model": "by hand", "task": "", "pair_indices": (0,), **sizes, **tokens}
        return HeadResults(Sweep(tuple(heads), (values,), direction, **settings))

    reading = BothDirections(results("denoising"), results("noising")).reading(threshold=0.5)
    found = {(row.layer, row.head): row.reading for row in reading.itertuples()}
    both = {PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD}
    assert found == {cell: "both" if cell in both else "neither" for cell in found} and len(found) == 12


def in_two_ways(denoising: Sequence[float], noising: Sequence[float], n_pairs: int = 12) -> BothDirections:
    """Heads of these effects, given exactly by the pairs' mean and varied over pairs by a tenth of the gap."""
    heads = single([Site(block_hook(0, "z"), head=head) for head in range(len(denoising))])
    tokens = ((" a",),) * n_pairs
    sizes = {"n_layers": 1, "n_heads": len(denoising), "n_key_value_heads": len(denoising)}
    about = {"model": "made-up", "task": "", "clean_tokens": tokens, "corrupted_tokens": tokens, **sizes}
    scatter = np.random.default_rng(0).normal(0, 0.1, (len(denoising), n_pairs))
    scatter -= scatter.mean(axis=1, keepdims=True)

    def results(direction: Any, effects: Sequence[float]) -> HeadResults:
        share = np.array(effects)[:, None] + scatter
        patched = 4 * share if direction == "denoising" else 4 - 4 * share
        values = MetricValues("logit difference", "logits", True, patched, np.full(n_pairs, 4.0), np.zeros(n_pairs))
        return HeadResults(Sweep(tuple(heads), (values,), direction, pair_indices=tuple(range(n_pairs)), **about))

    return BothDirections(results("denoising", denoising), results("noising", noising))


def test_readings_name_the_four_cases() -> None:
    reading = in_two_ways([0.5, 0.5, -0.9, 0.0], [0.5, 0.0, 0.2, -0.9]).reading(0.1)
    assert reading["reading"].tolist() == ["both", "sufficient", "necessary", "neither"]
    np.testing.assert_allclose(
        reading[["denoising", "noising"]], [[0.5, 0.5], [0.5, 0], [-0.9, 0.2], [0, -0.9]], atol=1e-9
    )
    idle = in_two_ways([0.5], [0.5])
    values = replace(idle.noising.sweep.measured[0], corrupted=np.full(12, 4.0))
    unknown = BothDirections(idle.denoising, HeadResults(replace(idle.noising.sweep, measured=(values,))))
    assert unknown.reading()["reading"].tolist() == unknown.reading(alpha=0.05)["reading"].tolist() == [None]


def test_readings_may_ask_for_significance() -> None:
    """0.02 is far from certain with this scatter, 0.08 is certain, and 0.5 is both large and certain."""
    both = in_two_ways([0.02, 0.08, 0.5, -0.5], [0.5, 0.08, 0.02, -0.5])
    for threshold, alpha, expected in (
        (0.1, None, ["necessary", "neither", "sufficient", "neither"]),
        (0.01, None, ["both", "both", "both", "neither"]),
        (None, 0.05, ["necessary", "both", "sufficient", "neither"]),
        (0.1, 0.05, ["necessary", "neither", "sufficient", "neither"]),
        (0.01, 0.05, ["necessary", "both", "sufficient", "neither"]),
    ):
        assert both.reading(threshold, alpha=alpha)["reading"].tolist() == expected
    sure = both.reading(None, alpha=0.01)
    for direction, results in (("denoising", both.denoising), ("noising", both.noising)):
        assert sure[f"{direction}_p"].tolist() == results.statistics(alpha=0.01).p_corrected.tolist()
    with pytest.warns(UserWarning, match=r"nothing is significant at 0\.05: .*use at least"):
        few = in_two_ways([0.5], [0.5], n_pairs=4).reading(alpha=0.05)
    assert few["reading"].tolist() == ["neither"]
    with pytest.raises(ValueError, match="threshold and alpha are both None"):
        both.reading(None)
    with pytest.raises(ValueError, match="alpha is 5, expected a number between 0 and 1"):
        both.reading(alpha=5)


# --- what results record -------------------------------------------------------------------------------------------


@means_of_one
def test_results_record_what_was_done(mixed: Words, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    patcher, heads = patcher_on(small_model(PLAIN)), HeadPatcher(small_model(PLAIN), show_progress=False)
    noise = GaussianNoise("A", multiple=2, samples=2, seed=4)
    runs = {
        "zero into clean": patcher.run_patching_experiment(mixed, "mlp_out", source=Zero(), window=3),
        "the mean over the corrupted prompts": patcher.run_patching_experiment(mixed, "mlp_out", source=Mean()),
        "Gaussian noise at A of 2": patcher.run_patching_experiment(
            mixed, [("mlp_out", "attn_out"), "z"], noise=noise, position=["A", -1]
        ),
    }
    for told, results in runs.items():
        summarize_results(results)
        assert told in " ".join(capsys.readouterr().out.split())
        assert load_results(results.save(tmp_path / "results.json")) == results
    assert runs["zero into clean"].sweep.direction == "noising"
    frame = runs["zero into clean"].to_dataframe()
    assert set(frame["source"]) == {"zero"} and set(frame["window"]) == {3}
    others = [
        patcher.run_neurons_experiment(mixed, 1, [3]),
        patcher.run_position_experiment(mixed, positions=["A", 2]),
        heads.run_all_heads_experiment(mixed, source=Zero(), position="B"),
    ]
    for results in others:
        loaded = load_results(results.save(tmp_path / "results.json"))
        assert loaded == results and type(loaded) is type(results)
    assert load_results(others[1].save(tmp_path / "results.json")).names == ["A", "2"]


def test_ablations_are_of_the_clean_run_unless_asked_otherwise(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    assert patcher.run_patching_experiment(mixed, "mlp_out").sweep.direction == "denoising"
    default = patcher.run_patching_experiment(mixed, "mlp_out", source=Zero())
    assert default == patcher.run_patching_experiment(mixed, "mlp_out", source=Zero(), direction="noising")
    corrupted = patcher.run_patching_experiment(mixed, "mlp_out", source=Zero(), direction="denoising")
    assert corrupted.sweep.intervention == "zero into corrupted"
    assert abs(raw(corrupted) - raw(default)).min() > 1e-4


@means_of_one
def test_reference_prompts_may_be_another_datasets() -> None:
    model = bundled()
    patcher = patcher_on(model)
    dataset, other = IOIDataset(model, n_pairs=6), IOIDataset(model, n_pairs=30, seed=1, corruption="unrelated_names")
    own = patcher.run_patching_experiment(dataset, "attn_out", source=Mean())
    wide = patcher.run_patching_experiment(dataset, "attn_out", source=Mean(other))
    clean = patcher.run_patching_experiment(dataset, "attn_out", source=Mean(other, run="clean"))
    assert abs(raw(own) - raw(wide)).max() > 1e-3 and abs(raw(clean) - raw(wide)).max() > 1e-3
    some = patcher.run_patching_experiment(dataset, "attn_out", source=Mean(), pair_indices=[3])
    np.testing.assert_allclose(raw(some)[:, 0], raw(own)[:, 3], atol=1e-4)


def test_noise_needs_no_corrupted_prompt() -> None:
    class CleanOnly(Words):
        def get_clean_corrupt_pairs(self) -> Any:
            return [clean for clean, _ in super().get_clean_corrupt_pairs()]

    pairs = token_pairs([9, 7], [(2,), (3,)])
    patcher, noise = patcher_on(small_model(PLAIN)), GaussianNoise(3, samples=2)
    alone = patcher.run_patching_experiment(CleanOnly(pairs), "mlp_out", noise=noise)
    beside = patcher.run_patching_experiment(Words(pairs), "mlp_out", noise=noise)
    assert raw(alone).tolist() == raw(beside).tolist()
    assert alone.sweep.corrupted_tokens == alone.sweep.clean_tokens


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": Zero}, r"source is the class Zero, expected OtherRun\(\)"),
        ({"source": "zero"}, r"source is 'zero', expected OtherRun\(\)"),
        ({"source": Mean(), "noise": GaussianNoise(1)}, r"Mean\(\) writes none of its activations: leave out"),
        ({"noise": 3.0}, r"noise is 3\.0, expected GaussianNoise"),
        ({"noise": GaussianNoise("C")}, r"3 of 3 pairs have no position named 'C'"),
        ({"noise": GaussianNoise(20)}, r"position .* 20 is out of range"),
        ({"direction": "both", "source": Zero()}, r"'both' exchanges .* Zero\(\) writes neither's"),
        ({"window": 2}, r"window is 2, expected an odd number of layers"),
        ({"window": 0}, r"window is 0, expected an odd number"),
        ({"position": "C"}, r"3 of 3 pairs have no position named 'C'"),
        ({"position": []}, r"position is empty"),
        ({"position": [1, 50]}, r"position \(in pair 0, of 9 tokens\) 50 is out of range"),
        ({"position": 8}, r"position \(in pair 1, of 7 tokens\) 8 is out of range"),
        ({"source": Resample(), "pair_indices": [1]}, r"pair 1 .*7 tokens.* has no other pair of the same"),
        (
            {"source": Resample(samples=2), "pair_indices": [0, 2]},
            r"pair 0 \(9 tokens\) and 1 more have fewer than 2 other pairs of the same template and length whose value "
            r"could be taken: make the dataset larger, ask for at most 1 samples, or leave",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_run(mixed: Words, options: Any, message: str) -> None:
    patcher = patcher_on(small_model(PLAIN))
    patcher.engine.runner.record = None  # any run would fail otherwise
    with pytest.raises(ValueError, match=message):
        patcher.run_patching_experiment(mixed, "mlp_out", **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mean("IOI"), r"Mean is over a str, expected a PatchingDataset"),
        (lambda: Mean(IOIDataset), r"Mean is over the class IOIDataset, expected a PatchingDataset"),
        (lambda: Mean(run="both"), r"'both', expected 'corrupted' or 'clean'"),
        (lambda: Resample(seed=-1), r"seed is -1"),
        (lambda: Resample(seed=0.5), r"seed is 0\.5"),
        (lambda: Resample(samples=0), r"Resample samples is 0, expected at least 1, an integer"),
        (lambda: Resample(samples=1.5), r"Resample samples is 1\.5"),
        (lambda: GaussianNoise([]), r"noise positions is empty"),
        (lambda: GaussianNoise(1, multiple=-1), r"multiple is -1"),
        (lambda: GaussianNoise(1, multiple=float("nan")), r"multiple is nan"),
        (lambda: GaussianNoise(1, samples=0), r"samples is 0"),
    ],
)
def test_senseless_sources_cannot_be_made(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_pair_without_reference_prompts_is_named() -> None:
    pairs = token_pairs([9, 7], [(2,), (3,)])
    patcher = patcher_on(small_model(PLAIN))
    with pytest.raises(ValueError, match=r"pair 1 \(7 tokens\) has no reference prompt"):
        patcher.run_patching_experiment(Words(pairs), "mlp_out", source=Mean(Words(token_pairs([9], [(2,)]))))


def test_more_than_can_be_patched_is_refused(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    width = patcher.engine.n_neurons(1)
    for neuron in (width, -width - 1):
        with pytest.raises(ValueError, match=rf"neuron {neuron} is out of range"):
            patcher.run_neurons_experiment(mixed, 1, [neuron])
    with pytest.raises(ValueError, match="layer 3 is out of range"):
        patcher.run_neurons_experiment(mixed, 3)
    with pytest.raises(ValueError, match=f"neuron {width} is out of range"):
        patcher.sweep(mixed, single([Site(block_hook(1, "mlp_post"), neuron=width)]))
    with pytest.raises(ValueError, match="hook_z has no axis of neurons"):
        patcher.sweep(mixed, single([Site(block_hook(1, "z"), neuron=1)]))
    with pytest.raises(
        ValueError, match=r"7 and 9 tokens.*positions=\['A', 'B', 'END'\].*7 tokens: 1 of 3 pairs \(pair 1\); 9"
    ):
        patcher.run_position_experiment(mixed)
    with pytest.raises(ValueError, match="names 'A' twice"):
        patcher.run_position_experiment(mixed, positions=["A", "A"])
    with pytest.raises(ValueError, match="positions is empty"):
        patcher.run_position_experiment(mixed, positions=[])
    with pytest.raises(ValueError, match="set mlp_out has no layer in its middle"):
        patcher.run_patching_experiment(mixed, [("mlp_out",)], window=3)
    with pytest.raises(ValueError, match="hook_embed lies in no layer"):
        patcher.run_patching_experiment(mixed, "hook_embed", window=3)
    both = patcher.run_patching_experiment(mixed, "mlp_out", direction="both")
    with pytest.raises(ValueError, match="threshold is 0"):
        both.reading(0)


def test_a_model_without_an_mlp_has_no_neurons() -> None:
    if not HAS_HOOKED:
        pytest.skip("needs an attention-only model")
    patcher = patcher_on(fresh_hooked("attn_only"))
    with pytest.raises(ValueError, match=r"no hook point 'blocks\.0\.mlp\.hook_post'"):
        patcher.run_neurons_experiment(Words(token_pairs([7], [(2,)])), 0)


# --- figures -------------------------------------------------------------------------------------------------------


def test_figures_say_what_was_written_and_where(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    named = patcher.run_position_experiment(mixed, positions=["A", "END"], source=Zero())
    figure = create_position_heatmap(named)
    assert list(figure.layout.xaxis.ticktext) == ["A", "END"]
    np.testing.assert_array_equal(figure.data[0].z, named.matrix())
    assert "position END" in figure.data[0].hovertext[1][1]
    assert "zero into clean" in _subtitle(figure)
    noise = GaussianNoise("A", samples=1)
    layers = patcher.run_patching_experiment(mixed, ["z", ("z", "mlp_out")], noise=noise, position="B")
    assert "Gaussian noise at A" in _subtitle(create_layer_heatmap(layers))
    assert "position B" in _subtitle(create_layer_heatmap(layers))
    assert "not drawn: z + mlp_out" in _subtitle(create_layer_heatmap(layers))
    windows = create_layer_heatmap(patcher.run_patching_experiment(mixed, "z", window=3))
    assert "windows of 3 layers" in _subtitle(windows)
    assert "L1±1 z" in windows.data[0].hovertext[1][0]


def _subtitle(figure: Any) -> str:
    written = f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"
    return " ".join(written.replace("<br>", " ").split())
