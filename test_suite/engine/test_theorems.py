"""What must hold of activation patching whatever the model: invariances, a model solved by hand, a model left alone."""

from __future__ import annotations

import functools
import itertools
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch.core.components import SHORT_NAMES
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine import engine as patching_engine
from actpatch.engine.engine import PatchingEngine
from actpatch.metrics.base import Answers, LogitDifference
from actpatch.models.runner import laid_out_as_multiplied
from actpatch.tasks.dataset import EncodedPairs
from test_suite.helpers.induction import (
    FORGOTTEN,
    INDUCTION_HEAD,
    PREVIOUS_TOKEN_HEAD,
    SECOND_HALF_LOGIT,
    TOKENS,
    induction_model,
    induction_pairs,
)
from test_suite.helpers.models import (
    HAS_HOOKED,
    checkpoint,
    encoded,
    everything_metric,
    fresh_model,
    last_position_metric,
    model_parameters,
    needs_hooked,
    sampled_sites,
    small_model,
    swept,
    token_pairs,
)
from test_suite.oracles.plain import largest_error

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
SEVERAL = model_parameters("hooked:grouped", "bridge+:gpt2", slow=["hooked:parallel"])
LEFT_ALONE = model_parameters("hooked:learned", "bridge:gpt2", "bridge+:gpt2")
DIRECTIONS = ("denoising", "noising")


def engine_on(model: Any, batch_size: int | None = None) -> PatchingEngine:
    return PatchingEngine(model, batch_size=batch_size, show_progress=False)


def singles(sites: Sequence[Site]) -> list[Patch]:
    return [Patch((site,)) for site in sites]


def site_sweep(
    model: Any, pairs: EncodedPairs, sites: Sequence[Site], direction: str = "denoising", batch_size: int | None = None
) -> Any:
    metric = last_position_metric(len(pairs))
    return swept(engine_on(model, batch_size), pairs, singles(sites), metric, direction)


# --- invariances ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEVERAL)
def test_clean_into_clean_changes_nothing_at_all(name: str) -> None:
    pairs = token_pairs([9, 7], [(), ()])
    found = site_sweep(small_model(name), pairs, sampled_sites(name, [None, 3, -1])[::2])
    assert (found.patched == found.clean).all()
    assert (found.clean == found.corrupted).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", SEVERAL)
def test_the_whole_residual_stream_at_any_layer_carries_the_whole_behaviour(name: str, direction: str) -> None:
    pairs = token_pairs([9, 7], [(2, 4), (3,)])
    sites = [Site(block_hook(layer, short)) for layer in range(3) for short in ("resid_pre", "resid_post")]
    found = site_sweep(small_model(name), pairs, sites, direction)
    source = found.clean if direction == "denoising" else found.corrupted
    np.testing.assert_allclose(found.patched, np.tile(source, (len(sites), 1)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SEVERAL)
def test_what_is_not_read_at_the_last_position_of_the_last_layer_has_no_effect(name: str) -> None:
    pairs = token_pairs([9, 9], [(2, 4), (3,)])
    sites = [Site(block_hook(2, short), position=5) for short in ("resid_post", "mlp_out", "attn_out")]
    found = site_sweep(small_model(name), pairs, sites)
    np.testing.assert_allclose(found.patched, np.tile(found.corrupted, (3, 1)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("short", ["resid_pre", "z", "k", "pattern", "mlp_out"])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_patch_leaves_the_positions_before_it_alone(name: str, short: str) -> None:
    model, pairs = small_model(name), token_pairs([10], [(2, 4)])
    hook_point = block_hook(1, short)
    if hook_point not in model.hook_dict:
        pytest.skip(f"this model has no {hook_point}")
    engine = engine_on(model)
    both = torch.stack([pairs.corrupted[0], pairs.clean[0]])  # in one pass, as the engine records them: rounded alike
    unpatched = engine.record(both, []).logits[0]
    patched = engine.patched_logits(pairs, Patch((Site(hook_point, position=6),)))[0]
    assert torch.equal(patched[:6], unpatched[:6])
    assert not torch.allclose(patched[6:], unpatched[6:], atol=1e-4)


@pytest.mark.parametrize("short", ["resid_pre", "q", "z", "mlp_out"])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_patch_leaves_the_layers_below_it_alone(name: str, short: str) -> None:
    """Whatever is run there is one of the two recorded runs: a hook of the user sees nothing else."""
    model, pairs, below = small_model(name), token_pairs([10], [(2, 4)]), block_hook(1, "resid_pre")
    runs = [engine_on(model).record(prompt[0][None], [below]) for prompt in (pairs.clean, pairs.corrupted)]
    seen: list[Tensor] = []
    with model.hooks(fwd_hooks=[(below, lambda value, hook: seen.append(value.clone()))]):
        found = site_sweep(model, pairs, [Site(block_hook(1 if short != "resid_pre" else 2, short))])
    assert abs(found.patched - found.corrupted).max() > 1e-4
    for row in (row for value in seen for row in value):
        assert min(float((row - run.activations[below][0, -len(row) :]).abs().max()) for run in runs) <= 1e-5


@pytest.mark.parametrize("name", SEVERAL)
def test_a_patch_before_the_first_difference_has_no_effect_at_all(name: str) -> None:
    pairs = token_pairs([9, 9], [(4,), (6, 7)])
    found = site_sweep(small_model(name), pairs, sampled_sites(name, [0, 2, 3])[::2])
    assert (found.patched == found.corrupted).all()


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "hooked:grouped", "bridge:gpt2", "bridge+:llama"))
def test_positions_before_the_first_difference_are_not_run_again(name: str) -> None:
    engine, pairs = engine_on(small_model(name)), token_pairs([9, 9], [(4,), (4, 6)])
    run_block, widths = engine.runner.run_block, set()

    def note(layer: int, resid: Tensor, *rest: Any) -> Tensor:
        if len(resid) > 1:  # one row alone is the engine's check that what hooks write is used
            widths.add(resid.shape[1])
        return run_block(layer, resid, *rest)

    engine.runner.run_block = note
    swept(engine, pairs, singles([Site(block_hook(1, "q"), head) for head in range(4)]), last_position_metric(2))
    assert widths == {5}


@pytest.mark.parametrize("name", SEVERAL)
def test_the_embedding_of_the_changed_token_is_the_whole_difference(name: str) -> None:
    """Where one token differs, the residual stream before the first block at that position carries everything."""
    pairs = token_pairs([9, 9], [(4,), (6,)])
    found = site_sweep(small_model(name), pairs, [Site(block_hook(0, "resid_pre"), position=(4, 6))])
    np.testing.assert_allclose(found.patched[0], found.clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SEVERAL)
def test_both_directions_agree_where_the_runs_are_exchanged(name: str) -> None:
    pairs = token_pairs([9, 7], [(2, 4), (3,)])
    exchanged = encoded(pairs.corrupted, pairs.clean)
    sites = sampled_sites(name, [None, 5])[::3]
    forth = site_sweep(small_model(name), pairs, sites, "denoising")
    back = site_sweep(small_model(name), exchanged, sites, "noising")
    assert (forth.patched == back.patched).all()
    assert (forth.clean == back.corrupted).all()


@pytest.mark.parametrize("name", SEVERAL)
def test_two_runs_are_equal_bit_for_bit(name: str) -> None:
    pairs = token_pairs([9, 7, 9], [(2, 4), (3,), (0,)])
    first, second = (site_sweep(small_model(name), pairs, sampled_sites(name, [None, 5])[1::3]) for _ in range(2))
    assert (first.patched == second.patched).all()


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge+:gpt2"))
def test_the_batch_size_does_not_matter(name: str, batch_size: int) -> None:
    pairs = token_pairs([9, 7, 9], [(2, 4), (3,), (0,)])
    sites = sampled_sites(name, [None, 5])[::2]
    found = site_sweep(small_model(name), pairs, sites, batch_size=batch_size)
    expected = site_sweep(small_model(name), pairs, sites)
    np.testing.assert_allclose(found.patched, expected.patched, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SEVERAL)
def test_pairs_of_mixed_lengths_together_agree_with_one_at_a_time(name: str) -> None:
    lengths, changed = [14, 6, 10, 14], [(9,), (0, 5), (3,), (13,)]
    together = token_pairs(lengths, changed)
    model, metric = small_model(name), everything_metric(4)
    patches = singles(sampled_sites(name, [None, 5, -2])[::3])
    found = swept(engine_on(model), together, patches, metric, "denoising")
    for i in range(4):
        alone = encoded([together.clean[i]] * 4, [together.corrupted[i]] * 4)  # every pair has weights of its own
        expected = swept(engine_on(model), alone, patches, metric, "denoising")
        np.testing.assert_allclose(found.patched[:, i], expected.patched[:, i], atol=1e-5, rtol=0)
        np.testing.assert_allclose(found.corrupted[i], expected.corrupted[i], atol=1e-5, rtol=0)


def test_many_pairs_in_several_recordings_agree_with_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = token_pairs([9, 7, 9, 12, 9], [(2, 4), (3,), (0,), (6,), (8,)])
    sites = sampled_sites(PLAIN, [None, 5])
    expected = site_sweep(small_model(PLAIN), pairs, sites)
    monkeypatch.setattr("actpatch.engine.engine.MOST_RECORDED_BYTES", 1)
    found = site_sweep(small_model(PLAIN), pairs, sites)
    np.testing.assert_allclose(found.patched, expected.patched, atol=1e-5, rtol=0)


def test_recordings_held_in_memory_do_not_grow_with_the_number_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at most: the one whose patches are done when the next is made."""
    monkeypatch.setattr("actpatch.engine.engine.MOST_RECORDED_BYTES", 2**16)
    record, made, held, sizes = patching_engine._Runs._record, [], [], []

    def note(runs: Any, indices: Tensor) -> Any:
        chunk = record(runs, indices)
        made.append(weakref.ref(chunk))
        held.append(sum(earlier() is not None for earlier in made))
        sizes.append(len(indices))
        return chunk

    monkeypatch.setattr(patching_engine._Runs, "_record", note)
    site_sweep(small_model(PLAIN), token_pairs([9] * 40, [(2, 4)] * 40), [Site(block_hook(1, "z"), head=0)])
    assert len(made) >= 4 and max(sizes) <= 10 and max(held) <= 2


# --- a model whose heads are known by construction -----------------------------------------------------------------


def induction_effects(sites: Sequence[Site], direction: str) -> np.ndarray:
    metric = LogitDifference(Answers(correct=((9,),), incorrect=((17,),)))
    found = swept(engine_on(induction_model()), induction_pairs(), singles(sites), metric, direction)
    base, source = (found.corrupted, found.clean) if direction == "denoising" else (found.clean, found.corrupted)
    assert found.clean[0] == pytest.approx(SECOND_HALF_LOGIT)
    assert found.corrupted[0] == pytest.approx(0, abs=1e-6)
    return ((found.patched - base) / (source - base))[:, 0]


@needs_hooked
def test_the_induction_model_solves_repeated_random_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        half = 1 + torch.randperm(TOKENS - 1, generator=generator)[:11]
        prompt = torch.cat([torch.zeros(1, dtype=torch.long), half, half])
        logits = induction_model()(prompt[None])[0]
        assert (logits[12:-1].argmax(dim=-1) == prompt[13:]).all()


@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_its_two_heads_are_found_and_no_others(direction: str) -> None:
    heads = list(itertools.product(range(3), range(4)))
    effects = induction_effects([Site(block_hook(layer, "z"), head=head) for layer, head in heads], direction)
    expected = [float(head in (PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD)) for head in heads]
    np.testing.assert_allclose(effects, expected, atol=1e-6)


@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_its_heads_act_at_their_positions_and_nowhere_else(direction: str) -> None:
    """The previous-token head where the token after the forgotten one stands, the induction head at the end."""
    last = len(induction_pairs().clean[0]) - 1
    acting = {(*PREVIOUS_TOKEN_HEAD, FORGOTTEN + 1), (*INDUCTION_HEAD, last)}
    cells = list(itertools.product(range(3), range(4), range(last + 1)))
    effects = induction_effects([Site(block_hook(layer, "z"), head, at) for layer, head, at in cells], direction)
    np.testing.assert_allclose(effects, [float(cell in acting) for cell in cells], atol=1e-6)


@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("short", "moved"),
    [("q", ()), ("k", (INDUCTION_HEAD,)), ("v", (PREVIOUS_TOKEN_HEAD,)), ("pattern", (INDUCTION_HEAD,))],
)
def test_its_heads_are_moved_by_what_they_read(short: str, moved: tuple[tuple[int, int], ...], direction: str) -> None:
    """The first head attends alike in both runs and copies another token; the second attends by other keys."""
    heads = list(itertools.product(range(3), range(4)))
    effects = induction_effects([Site(block_hook(layer, short), head=head) for layer, head in heads], direction)
    np.testing.assert_allclose(effects, [float(head in moved) for head in heads], atol=1e-6)


@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_its_residual_stream_carries_the_answer_from_position_to_position(direction: str) -> None:
    """From the forgotten token, by the first head to the one after it, by the second head to the end."""
    last = len(induction_pairs().clean[0]) - 1
    path = {(0, FORGOTTEN), (1, FORGOTTEN + 1), (2, last)}
    cells = list(itertools.product(range(3), range(last + 1)))
    effects = induction_effects([Site(block_hook(layer, "resid_pre"), position=at) for layer, at in cells], direction)
    np.testing.assert_allclose(effects, [float(cell in path) for cell in cells], atol=1e-6)


# --- the model is left as found ------------------------------------------------------------------------------------


def state_of(model: Any) -> dict[str, Any]:
    """Everything about a model that patching might disturb."""
    modules = dict(model.named_modules())
    return {
        "hooks": {name: len(getattr(point, "fwd_hooks", ())) for name, point in model.hook_dict.items()},
        "torch hooks": {
            name: (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks))
            for name, module in modules.items()
        },
        "training": {name: module.training for name, module in modules.items()},
        "attributes": {
            name: sorted(key for key in module.__dict__ if not key.startswith("_fired"))  # a bridge's own notes
            for name, module in modules.items()
        },
        "forwards": {name: module.__dict__.get("forward") for name, module in modules.items()},
        "settings": {name: value for name, value in vars(model.cfg).items() if isinstance(value, (bool, int, str))},
        "requires grad": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "weights": {name: weight.data_ptr() for name, weight in model.named_parameters()},
        "grads": torch.is_grad_enabled(),
    }


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    for aspect, value in before.items():
        assert after[aspect] == value, aspect


@functools.cache
def spare_model(name: str) -> Any:
    """A model that tests put into other states: none but `model_to_disturb` asks for it."""
    return fresh_model(name)


@pytest.fixture
def model_to_disturb(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The spare model of the test's `name`, which is put back into its first state after the test."""
    model = spare_model(request.getfixturevalue("name"))
    yield model
    model.reset_hooks()
    model.eval().requires_grad_(True)


def switch_sites() -> list[Site]:
    sites = [
        Site(block_hook(1, "resid_pre")),
        Site(block_hook(2, "mlp_out"), position=-1),
        Site(block_hook(0, "pattern")),
    ]
    return [*sites, Site("blocks.1.attn.hook_result", head=1)]


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_the_model_is_left_as_found(name: str, model_to_disturb: Any) -> None:
    model, pairs = model_to_disturb, token_pairs([9, 7], [(2,), (3,)])
    site_sweep(model, pairs, switch_sites())  # the first run may fill caches of the model's own
    logits = model(pairs.clean[0][None])
    model.train()
    model.blocks[1].eval()
    next(model.parameters()).requires_grad_(False)
    before = state_of(model)
    for direction in DIRECTIONS:
        site_sweep(model, pairs, switch_sites(), direction)
    engine_on(model).patched_logits(pairs, Patch((Site(block_hook(1, "z"), head=0),)))
    assert_same_state(before, state_of(model))
    assert torch.equal(model.eval()(pairs.clean[0][None]), logits)


@needs_hooked
@pytest.mark.parametrize("architecture", ["learned", "grouped"])
def test_attention_weights_are_laid_out_once_and_given_back(architecture: str) -> None:
    model = fresh_model(f"hooked:{architecture}")
    before = {name: (weight.data_ptr(), weight.stride()) for name, weight in model.named_parameters()}
    values = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with laid_out_as_multiplied(model):
        attn = model.blocks[0].attn
        assert attn.W_Q.permute(0, 2, 1).is_contiguous()
        assert attn.W_O.permute(2, 0, 1).is_contiguous()
        for name, weight in model.named_parameters():
            assert torch.equal(weight, values[name]), name
    assert before == {name: (weight.data_ptr(), weight.stride()) for name, weight in model.named_parameters()}


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("when", [0, 1, 5])
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_the_model_is_left_as_found_after_an_exception(name: str, model_to_disturb: Any, when: int) -> None:
    """The exception comes from the metric, in the baselines or in the first or a later batch of patched runs."""
    model, pairs = model_to_disturb, token_pairs([9, 7], [(2,), (3,)])
    site_sweep(model, pairs, switch_sites())
    model.train()
    before, calls = state_of(model), itertools.count()

    class FailingMetric:
        name, unit, more_is_better, reads_all_positions, reads_clean, tokens = "failing", "", True, True, False, None

        def measure(self, logits: Tensor, pairs: Tensor, clean: None = None) -> Tensor:
            if next(calls) == when:
                raise StopHereError
            return logits[:, -1, 3]

    with pytest.raises(StopHereError):
        swept(engine_on(model), pairs, singles(switch_sites()), FailingMetric(), "denoising")
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("when", [0, 3, 5])
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_the_model_is_left_as_found_after_an_exception_inside_a_block(
    name: str, model_to_disturb: Any, when: int
) -> None:
    """The exception comes while a run is recorded, or while blocks are run singly."""
    model, pairs = model_to_disturb, token_pairs([9, 7], [(2,), (3,)])
    sites = [Site(block_hook(layer, "pattern"), position=at) for layer in range(2) for at in (3, 5, 6)]
    site_sweep(model, pairs, sites, batch_size=2)
    calls = itertools.count()

    def fail(value: Tensor, hook: Any) -> None:
        if next(calls) == when:
            raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[(block_hook(1, "mlp_out"), fail)]):
        before = state_of(model)
        with pytest.raises(KeyboardInterrupt):
            site_sweep(model, pairs, sites, batch_size=2)
        assert_same_state(before, state_of(model))


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_hooks_of_the_user_stay_and_take_part(name: str, model_to_disturb: Any) -> None:
    """A head ablated by the user is ablated in every run of the sweep too, however its hook was added."""
    model, pairs = model_to_disturb, token_pairs([9, 7], [(2,), (3,)])
    sites = [Site(block_hook(layer, short)) for layer in range(3) for short in ("resid_pre", "attn_out", "mlp_out")]
    metric = last_position_metric(2)

    def ablate(z: Tensor, hook: Any) -> Tensor:
        z = z.clone()
        z[..., : z.shape[-1] // 2] = 0
        return z

    untouched = site_sweep(model, pairs, sites)
    model.add_hook(block_hook(1, "attn_out"), ablate)
    try:
        with model.hooks(fwd_hooks=[(block_hook(2, "attn_out"), ablate)]):
            before = state_of(model)
            found = site_sweep(model, pairs, sites)
            assert_same_state(before, state_of(model))
            error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    finally:
        model.reset_hooks()
    assert error <= 1e-5, where
    assert abs(found.clean - untouched.clean).max() > 1e-3


def test_gradients_stay_switched_as_they_were() -> None:
    model, pairs = small_model(PLAIN), token_pairs([7], [(2,)])
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            site_sweep(model, pairs, [Site(block_hook(1, "z"))])
            assert torch.is_grad_enabled() == enabled
    assert all(weight.grad is None for weight in model.parameters())


# --- when memory runs out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge+:gpt2"))
@pytest.mark.parametrize("rows_that_fit", [12, 7])
def test_batches_are_halved_until_they_fit_into_memory(name: str, rows_that_fit: int) -> None:
    model, pairs = small_model(name), token_pairs([9, 7, 9], [(2, 4), (3,), (0,)])
    sites = sampled_sites(name, [None, 5])[::2]
    expected = site_sweep(model, pairs, sites)
    engine, refused = engine_on(model), []
    run_block = engine.runner.run_block

    def run_few_rows(layer: int, resid: Tensor, *rest: Any) -> Tensor:
        if len(resid) > rows_that_fit:
            refused.append(len(resid))
            raise torch.OutOfMemoryError(f"cannot hold {len(resid)} rows")
        return run_block(layer, resid, *rest)

    engine.runner.run_block = run_few_rows
    found = swept(engine, pairs, singles(sites), last_position_metric(3), "denoising")
    assert refused
    np.testing.assert_allclose(found.patched, expected.patched, atol=1e-5, rtol=0)


def test_recordings_are_halved_until_they_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, sites = token_pairs([9, 7, 9, 8, 9], [(2, 4), (3,), (0,), (6,), (8,)]), sampled_sites(PLAIN, [None, 5])
    expected = site_sweep(small_model(PLAIN), pairs, sites)
    engine, asked = engine_on(small_model(PLAIN)), []
    record = engine.runner.record

    def record_few_prompts(tokens: Tensor, *rest: Any) -> Any:
        asked.append(len(tokens))
        if len(tokens) > 4:
            raise torch.OutOfMemoryError(f"cannot hold {len(tokens)} prompts")
        return record(tokens, *rest)

    monkeypatch.setattr(engine.runner, "record", record_few_prompts)
    found = swept(engine, pairs, singles(sites), last_position_metric(5), "denoising")
    assert asked == [10, 4, 4, 2]
    np.testing.assert_allclose(found.patched, expected.patched, atol=1e-5, rtol=0)


def test_after_memory_ran_out_batches_stay_as_large_as_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several batches may be refused; later recordings are run in halves, not in single rows."""
    monkeypatch.setattr("actpatch.engine.engine.MOST_RECORDED_BYTES", 1)
    monkeypatch.setitem(patching_engine.TOKENS_PER_BATCH, "cpu", 64)
    pairs = token_pairs([9] * 6, [(1,)] * 6)
    sites = [Site(block_hook(0, "q"), head, position) for head in range(4) for position in range(1, 9)]
    engine, rows_of_last_pair = engine_on(small_model(PLAIN)), []
    run_block = engine.runner.run_block

    def run_few_rows(layer: int, resid: Tensor, *rest: Any) -> Tensor:
        if len(resid) > 6:
            rows_of_last_pair.clear()
            raise torch.OutOfMemoryError(f"cannot hold {len(resid)} rows")
        rows_of_last_pair.append(len(resid))
        return run_block(layer, resid, *rest)

    engine.runner.run_block = run_few_rows
    swept(engine, pairs, singles(sites), last_position_metric(6), "denoising")
    assert np.median(rows_of_last_pair) >= 3


# --- what cannot be resumed ----------------------------------------------------------------------------------------


FALLS_BACK = "cannot be resumed"


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge+:gpt2"))
def test_a_hook_that_depends_on_the_position_is_noticed(name: str, layer: int) -> None:
    """Blocks can still be run singly, but on all positions."""
    model, pairs, metric = small_model(name), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    sites = sampled_sites(name, [None, 5])[::2]

    def fade(value: Tensor, hook: Any) -> Tensor:
        return value * (1 + torch.arange(value.shape[1])[:, None] / 8)

    with model.hooks(fwd_hooks=[(block_hook(layer, "mlp_out"), fade)]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = site_sweep(model, pairs, sites)
        error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    assert not any(FALLS_BACK in str(warning.message) for warning in caught)
    assert error <= 1e-5, where


@pytest.mark.parametrize("where_added", ["resid_pre", "resid_post", "attn_out", "resid_mid"])
def test_a_steering_vector_of_the_user_is_added_once(where_added: str) -> None:
    """Resuming from a recorded activation would add it again."""
    model, pairs, metric = small_model(PLAIN), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    sites = [*sampled_sites(PLAIN, [None, 5])[::2], Site(block_hook(0, "resid_post"))]
    if not HAS_HOOKED and where_added == "resid_mid":
        pytest.skip("on a bridge, writing to hook_resid_mid reaches the MLP alone")
    steer = torch.linspace(-1, 1, model.cfg.d_model)
    with model.hooks(fwd_hooks=[(block_hook(1, where_added), lambda value, hook: value + steer)]):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=f".*{FALLS_BACK}.*")
            found = site_sweep(model, pairs, sites)
        error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    assert error <= 1e-5, where


def test_what_a_hook_of_the_user_clamps_is_not_added_to() -> None:
    """Clamping twice is clamping once, so resuming survives it; adding a change to what was clamped does not."""
    model, pairs, metric = small_model(PLAIN), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    sites = [Site(block_hook(0, short)) for short in ("mlp_out", "z", "resid_post", "attn_out")]
    with model.hooks(fwd_hooks=[(block_hook(1, "resid_pre"), lambda value, hook: value.clamp(-0.3, 0.3))]):
        found = site_sweep(model, pairs, sites)
        error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    assert error <= 1e-5, where


@pytest.mark.parametrize("name", ["bridge:bloom", "bridge+:bloom"])
def test_bloom_is_run_in_full_with_one_warning(name: str) -> None:
    model, pairs, metric = small_model(name), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    sites = sampled_sites(name, [None, 5])[::3]
    with pytest.warns(UserWarning, match=FALLS_BACK) as caught:
        found = site_sweep(model, pairs, sites)
    error, where = largest_error(model, pairs, singles(sites), "denoising", [(metric, found)])
    assert sum(FALLS_BACK in str(warning.message) for warning in caught) == 1
    assert error <= 1e-5, where


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "hooked:grouped", "bridge:gpt2", "bridge+:llama"))
def test_usual_models_are_resumed_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        site_sweep(small_model(name), token_pairs([9, 7], [(3,), (4,)]), sampled_sites(name, [None, 5]))


# --- hooks that never fire -----------------------------------------------------------------------------------------


@needs_hooked
def test_a_hook_that_never_fires_is_an_error() -> None:
    model, pairs = small_model("hooked:attn_only"), token_pairs([7], [(2,)])
    hook_point = block_hook(1, "mlp_out")
    if hook_point not in model.hook_dict:
        pytest.skip("this TransformerLens gives attention-only blocks no hook_mlp_out")
    with pytest.raises((RuntimeError, ValueError), match=r"blocks\.1\.hook_mlp_out"):
        site_sweep(model, pairs, [Site(hook_point)])


def test_a_hook_whose_result_the_model_ignores_is_an_error() -> None:
    """OPT's attention hands its pattern out and does not compute with it."""
    model, pairs = small_model("bridge+:opt"), token_pairs([7], [(2,)])
    with pytest.raises(RuntimeError, match=r"blocks\.1\.attn\.hook_pattern.*changes nothing"):
        site_sweep(model, pairs, [Site(block_hook(1, "pattern"))])


@pytest.mark.parametrize("name", model_parameters("hooked:grouped"))
@pytest.mark.parametrize("hook", ["attn.hook_k", "attn.hook_v", "attn.hook_rot_k"])
def test_a_head_beyond_the_key_value_heads_is_an_error(name: str, hook: str) -> None:
    with pytest.raises(ValueError, match=r"head 3 is out of range"):
        site_sweep(small_model(name), token_pairs([7], [(2,)]), [Site(f"blocks.1.{hook}", head=3)])


def test_all_short_names_are_covered_by_the_samples() -> None:
    assert {site.component for site in sampled_sites(PLAIN, [None])} == set(SHORT_NAMES)


def test_the_bridge_and_its_checkpoint_are_the_same_model() -> None:
    """The bridge in compatibility mode computes what Hugging Face does, up to a constant per position."""
    import transformers

    pairs = token_pairs([9], [()])
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint("gpt2"))(pairs.clean[0][None]).logits
        bridge = small_model("bridge+:gpt2")(pairs.clean[0][None])
    torch.testing.assert_close(bridge.log_softmax(-1), plain.log_softmax(-1), atol=1e-4, rtol=0)
