"""Neurons, named positions, several positions, sets and windows are patched where they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from activation_patching import summarize_results
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.places import layer_window
from head_patching import HeadPatcher
from test_suite.helpers.closeness import EXACT, allowed
from test_suite.helpers.models import (
    HAS_HOOKED,
    everything_metric,
    last_position_metric,
    model_parameters,
    small_model,
    token_pairs,
)
from test_suite.helpers.prompts import Words
from test_suite.helpers.sweeps import patcher_on, raw, single, sweep_with
from test_suite.oracles.plain import largest_error

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
SEVERAL = ("hooked:learned", "hooked:grouped", "bridge+:gpt2")
OTHERS = ("hooked:parallel", "hooked:sandwich", "bridge:gemma2")
DIRECTIONS = ("denoising", "noising")


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
        assert error <= allowed(model, pairs.clean), f"{error:.2g} off at {where}"


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
    np.testing.assert_allclose(found.patched[1:], found.patched[[0, 0]], atol=allowed(model, pairs.clean), rtol=0)
    assert abs(found.patched[0] - found.clean).max() > 1e-3


def test_what_a_hook_of_the_user_does_to_the_mlp_is_not_added_to() -> None:
    """Its output is then no longer its neurons times a matrix; the patch has to run it."""
    model, pairs, metric = small_model(PLAIN), token_pairs([9, 7], [(3,), (4,)]), last_position_metric(2)
    patches = single([Site(block_hook(1, "mlp_post"), neuron=5), Site(block_hook(1, "mlp_post"))])
    with model.hooks(fwd_hooks=[(block_hook(1, "mlp_out"), lambda value, hook: value.clamp(-0.2, 0.2))]):
        found = sweep_with(model, pairs, patches)
        error, where = largest_error(model, pairs, patches, "noising", [(metric, found)])
    assert error <= EXACT, where


# --- what the patchers make of it ----------------------------------------------------------------------------------


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
            np.testing.assert_allclose(raw(together)[column::2, [pair]], expected, atol=EXACT, rtol=0)
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
    np.testing.assert_allclose(raw(found)[0], expected, atol=EXACT, rtol=0)
    assert [result.hook_point for result in found[" + ".join(pair)]] == [" + ".join(pair)] * 3
    assert found.matrix().columns.tolist() == ["resid_post"]


def test_a_window_of_one_is_none_and_one_of_all_layers_is_the_set(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    plain = patcher.run_patching_experiment(mixed, ["mlp_out", "attn_out"])
    assert patcher.run_patching_experiment(mixed, ["mlp_out", "attn_out"], window=1) == plain
    wide = patcher.run_patching_experiment(mixed, ["mlp_out", "attn_out"], window=5)
    every = patcher.run_patching_experiment(mixed, [("mlp_out",), ("attn_out",)])
    np.testing.assert_allclose(raw(wide), np.repeat(raw(every), 3, axis=0), atol=EXACT, rtol=0)


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
    assert error <= EXACT, where


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
    for given in (np.int64(2), torch.tensor(2), [np.int64(2)]):
        assert patcher.run_neurons_experiment(mixed, given, [5], position="END")[0].label == "L2N5"  # type: ignore[arg-type]
    assert results.top(1)[0] == max(results, key=lambda r: abs(r.effect))
    assert results.to_dataframe()["neuron"].tolist() == [0] * 3 + [5] * 3 + [width - 1] * 3
