"""Invariances: what must hold of activation patching whatever the model."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.recording import Recorder
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import (
    HAS_HOOKED,
    encoded,
    everything_metric,
    last_position_metric,
    model_parameters,
    sampled_sites,
    small_model,
    swept,
    token_pairs,
)
from test_suite.helpers.sweeps import engine_on, site_sweep
from test_suite.helpers.sweeps import single as singles

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
SEVERAL = model_parameters("hooked:grouped", "bridge+:gpt2", slow=["hooked:parallel"])
DIRECTIONS = ("denoising", "noising")


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
    np.testing.assert_allclose(found.patched, np.tile(source, (len(sites), 1)), atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", SEVERAL)
def test_what_is_not_read_at_the_last_position_of_the_last_layer_has_no_effect(name: str) -> None:
    pairs = token_pairs([9, 9], [(2, 4), (3,)])
    sites = [Site(block_hook(2, short), position=5) for short in ("resid_post", "mlp_out", "attn_out")]
    found = site_sweep(small_model(name), pairs, sites)
    np.testing.assert_allclose(found.patched, np.tile(found.corrupted, (3, 1)), atol=EXACT, rtol=0)


@pytest.mark.parametrize("short", ["resid_pre", "z", "k", "pattern", "mlp_out"])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_patch_leaves_the_positions_before_it_alone(name: str, short: str) -> None:
    model, pairs = small_model(name), token_pairs([10], [(2, 4)])
    hook_point = block_hook(1, short)
    if hook_point not in model.hook_dict:
        pytest.skip(f"this model has no {hook_point}")
    engine = engine_on(model)
    unpatched = engine.patched_logits(pairs, Patch((Site(hook_point, position=0),)))[0]  # where the runs do not differ
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
        assert min(float((row - run.activations[below][0, -len(row) :]).abs().max()) for run in runs) <= EXACT


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
    np.testing.assert_allclose(found.patched[0], found.clean, atol=EXACT, rtol=0)


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


@pytest.mark.quick(1)
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge+:gpt2"))
def test_the_batch_size_does_not_matter(name: str, batch_size: int) -> None:
    pairs = token_pairs([9, 7, 9], [(2, 4), (3,), (0,)])
    sites = sampled_sites(name, [None, 5])[::2]
    found = site_sweep(small_model(name), pairs, sites, batch_size=batch_size)
    expected = site_sweep(small_model(name), pairs, sites)
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


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
        np.testing.assert_allclose(found.patched[:, i], expected.patched[:, i], atol=EXACT, rtol=0)
        np.testing.assert_allclose(found.corrupted[i], expected.corrupted[i], atol=EXACT, rtol=0)


def test_many_pairs_in_several_recordings_agree_with_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = token_pairs([9, 7, 9, 12, 9], [(2, 4), (3,), (0,), (6,), (8,)])
    sites = sampled_sites(PLAIN, [None, 5])
    expected = site_sweep(small_model(PLAIN), pairs, sites)
    monkeypatch.setattr("actpatch.engine.memory.MOST_RECORDED_BYTES", 1)
    found = site_sweep(small_model(PLAIN), pairs, sites)
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


def test_recordings_held_in_memory_do_not_grow_with_the_number_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at most: the one whose patches are done when the next is made."""
    monkeypatch.setattr("actpatch.engine.memory.MOST_RECORDED_BYTES", 2**16)
    record, made, held, sizes = Recorder.record, [], [], []

    def note(recorder: Any, indices: Tensor, *names: Any, **options: Any) -> Any:
        chunks = record(recorder, indices, *names, **options)
        made.append(weakref.ref(chunks[0]))
        held.append(sum(earlier() is not None for earlier in made))
        sizes.append(len(indices))
        return chunks

    monkeypatch.setattr(Recorder, "record", note)
    site_sweep(small_model(PLAIN), token_pairs([9] * 40, [(2, 4)] * 40), [Site(block_hook(1, "z"), head=0)])
    assert len(made) >= 4 and max(sizes) <= 10 and max(held) <= 2
