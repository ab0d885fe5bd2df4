"""Experiments run what was chosen, all of it and nothing else, and give the numbers of their own single runs."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
import torch

from activation_patching import ActivationPatcher, IOIDataset, PatchingDataset
from actpatch.core.components import PATCH_TYPES, SHORT_NAMES
from actpatch.core.sites import Patch, Site
from actpatch.tasks.encoding import encode_pairs
from actpatch.tasks.ioi import IOI_CORRUPTIONS
from head_patching import HeadPatcher
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.refusals import refused
from test_suite.helpers.thinned import thinned


def logit_difference(dataset: PatchingDataset, logits: torch.Tensor, pair: int) -> float:
    correct, incorrect = dataset.get_target_tokens(pair)
    return float(logits[0, -1, correct] - logits[0, -1, incorrect])


# --- choosing what is run ---------------------------------------------------------------------------------------------


def test_chosen_pairs_give_the_columns_of_all_pairs(patcher, ioi):
    everything = patcher.run_patching_experiment(ioi, "attn_out").sweep
    chosen = patcher.run_patching_experiment(ioi, "attn_out", pair_indices=[3, -5])
    assert chosen.sweep.pair_indices == (3, 1)
    assert [result.pair_index for result in chosen["blocks.0.hook_attn_out"]] == [3, 1]
    np.testing.assert_allclose(chosen.sweep.patched, everything.patched[:, [3, 1]], atol=EXACT, rtol=0)
    np.testing.assert_allclose(chosen.sweep.clean, everything.clean[[3, 1]], atol=EXACT, rtol=0)
    assert chosen.sweep.clean_tokens == (everything.clean_tokens[3], everything.clean_tokens[1])


def test_chosen_layers_give_the_heads_of_those_layers(heads_patcher, head_results, ioi):
    chosen = heads_patcher.run_all_heads_experiment(ioi, layers=[-1, 1])
    last = head_results.sweep.n_layers - 1
    assert sorted({r.layer for r in chosen}) == [1, last]
    matrix = chosen.matrix()
    np.testing.assert_allclose(matrix[[1, last]], head_results.matrix()[[1, last]], atol=EXACT, rtol=0)
    assert np.isnan(np.delete(matrix, [1, last], axis=0)).all()


def test_negative_positions_count_from_the_end_of_each_prompt(patcher, ioi):
    lengths = encode_pairs(ioi.model, ioi).lengths.tolist()
    assert len(set(lengths)) > 1
    from_the_end = patcher.run_patching_experiment(ioi, "resid_pre", position=-2)
    for pair, length in enumerate(lengths):
        one = patcher.run_patching_experiment(ioi, "resid_pre", position=length - 2, pair_indices=[pair])
        np.testing.assert_allclose(from_the_end.sweep.patched[:, [pair]], one.sweep.patched, atol=EXACT, rtol=0)
    assert from_the_end["blocks.0.hook_resid_pre"][0].position == -2


@pytest.mark.parametrize(("position", "direction"), thinned([None, 4, -1], ["denoising", "noising"]))
def test_experiment_agrees_with_its_own_single_runs(patcher, ioi, direction, position):
    results = patcher.run_patching_experiment(
        ioi,
        ["blocks.0.hook_attn_out", "blocks.2.hook_resid_pre", "blocks.3.hook_attn_out"],
        position=position,
        direction=direction,
        pair_indices=[0, 1],
    )
    assert results.sweep.direction == direction
    for hook_point, pairs in results.items():
        for result in pairs:
            clean, corrupted = ioi.get_clean_corrupt_pairs()[result.pair_index]
            logits = patcher.run_patched(clean, corrupted, hook_point, position=position, direction=direction)
            patched = logit_difference(ioi, logits, result.pair_index)
            assert result.patched_metric == pytest.approx(patched, rel=0, abs=EXACT)
            clean_metric, corrupted_metric = result.clean_metric, result.corrupted_metric
            base, source = (
                (corrupted_metric, clean_metric) if direction == "denoising" else (clean_metric, corrupted_metric)
            )
            assert result.effect == pytest.approx((patched - base) / (source - base), rel=0, abs=EXACT)


def test_position_experiment_patches_each_position_alone(patcher, tiny):
    dataset = IOIDataset(tiny, 3, corruption="flip_subject", templates=["{A} and {B} met, and {S2} gave a book to"])
    results = patcher.run_position_experiment(dataset, ["resid_pre", "mlp_out"])
    n_positions = len(results.sweep.clean_tokens[0])
    assert results.components == ["resid_pre", "mlp_out"]
    for component in results.components:
        matrix = results.matrix(component)
        assert matrix.shape == (tiny.cfg.n_layers, n_positions)
        for position in (1, n_positions - 1):
            alone = patcher.run_patching_experiment(dataset, component, position=position)
            np.testing.assert_allclose(matrix[:, position], list(alone.effects.values()), atol=EXACT, rtol=0)
    with refused("component 'z' was not patched: expected one of resid_pre, mlp_out"):
        results.matrix("z")
    patch, effect = results.top(1)[0]
    matrix = results.matrix(patch.sites[0].component)
    assert abs(effect) == np.abs(np.concatenate([results.matrix(c).ravel() for c in results.components])).max()
    assert matrix[patch.sites[0].layer, patch.sites[0].position] == effect


def test_short_names_expand_over_all_layers_and_mix_with_full_ones(patcher, ioi, tiny):
    results = patcher.run_patching_experiment(ioi, ["mlp_out", "blocks.0.hook_mlp_out", "hook_embed"], pair_indices=[0])
    assert list(results) == [*(f"blocks.{i}.hook_mlp_out" for i in range(tiny.cfg.n_layers)), "hook_embed"]


def test_every_short_name_and_patch_type_runs(patcher, heads_patcher, ioi, tiny):
    results = patcher.run_patching_experiment(ioi, SHORT_NAMES, pair_indices=[0])
    assert len(results) == len(SHORT_NAMES) * tiny.cfg.n_layers and np.isfinite(list(results.effects.values())).all()
    for patch_type in PATCH_TYPES:
        results = heads_patcher.run_all_heads_experiment(ioi, patch_type, pair_indices=[0])
        assert results.patch_type == patch_type and len(results) == tiny.cfg.n_layers * tiny.cfg.n_heads
        tail = "hook_z" if patch_type == "output" else f"hook_{patch_type}"
        assert {patch.sites[0].hook_point.rpartition(".")[2] for patch in results.sweep.patches} == {tail}


def test_hook_points_are_listed_and_filtered(patcher, tiny):
    assert patcher.list_hook_points() == list(tiny.hook_dict)
    assert patcher.list_hook_points("hook_z") == [f"blocks.{i}.attn.hook_z" for i in range(tiny.cfg.n_layers)]
    last = patcher.list_hook_points(layer=-1)
    assert last and all(name.startswith(f"blocks.{tiny.cfg.n_layers - 1}.") for name in last)
    assert patcher.list_hook_points("hook_z", layer=1) == ["blocks.1.attn.hook_z"]
    assert patcher.list_hook_points("no such text") == []


def test_batches_of_any_size_give_the_same_numbers(tiny, ioi, head_results):
    for batch_size, pairs in ((1, [0, 5]), (7, [0, 1, 2, 3, 4, 5])):
        patcher = HeadPatcher(tiny, batch_size=batch_size, show_progress=False)
        found = patcher.run_all_heads_experiment(ioi, pair_indices=pairs)
        np.testing.assert_allclose(found.sweep.patched, head_results.sweep.patched[:, pairs], atol=EXACT, rtol=0)


def test_two_runs_give_the_same_numbers(heads_patcher, ioi, head_results):
    again = heads_patcher.run_all_heads_experiment(ioi)
    np.testing.assert_array_equal(again.sweep.patched, head_results.sweep.patched)


@pytest.mark.parametrize(("is_terminal", "switch", "shown"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_one_bar_of_progress_is_shown_on_a_terminal_unless_it_is_switched_off(
    tiny, ioi, capsys, monkeypatch, is_terminal, switch, shown
):
    stderr = io.StringIO()
    stderr.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stderr", stderr)
    ActivationPatcher(tiny, show_progress=switch).run_patching_experiment(ioi, "attn_out", pair_indices=[0])
    finished = re.findall(r"Patching: 100%.*?\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, +[\d.]+run/s\]\n", stderr.getvalue())
    assert len(finished) == shown and bool(stderr.getvalue()) == bool(shown)
    assert not capsys.readouterr().out


# --- what can only be found out by running ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["attn.hook_result", "hook_q_input", "hook_mlp_in"])
def test_hooks_that_are_switched_off_run_and_their_switch_is_put_back(patcher, tiny, ioi, name):
    switches = {"attn.hook_result": "use_attn_result", "hook_q_input": "use_split_qkv_input"}
    switch = switches.get(name, "use_hook_mlp_in")
    for was_on in (False, True):
        getattr(tiny, f"set_{switch}")(was_on)
        try:
            results = patcher.run_patching_experiment(ioi, f"blocks.1.{name}", pair_indices=[0])
            assert getattr(tiny.cfg, switch) is was_on
        finally:
            getattr(tiny, f"set_{switch}")(False)
    assert not math.isnan(results.effects[f"blocks.1.{name}"])


def test_all_results_of_heads_sum_to_their_layer(patcher, ioi, tiny):
    head_sum = [Patch(tuple(Site("blocks.1.attn.hook_z", head=head) for head in range(tiny.cfg.n_heads)))]
    together = patcher.sweep(ioi, head_sum).patched[0]
    whole = patcher.run_patching_experiment(ioi, "blocks.1.hook_attn_out").sweep.patched[0]
    np.testing.assert_allclose(together, whole, atol=EXACT, rtol=0)


@pytest.mark.filterwarnings("ignore:.*barely differ")
def test_every_corruption_can_be_run(patcher, tiny):
    for corruption in IOI_CORRUPTIONS:
        dataset = IOIDataset(tiny, 2, corruption=corruption)
        assert len(patcher.run_patching_experiment(dataset, "attn_out")) == tiny.cfg.n_layers
