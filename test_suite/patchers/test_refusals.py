"""Bad input is refused in a sentence: before any run of the model wherever it can be seen, else with its pair."""

from __future__ import annotations

import math

import pytest
import torch

from activation_patching import ActivationPatcher, summarize_results
from actpatch.core.sites import Patch, Site
from actpatch.results.positions import PositionResults
from head_patching import HeadPatcher, print_head_results
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.prompts import ANIMALS, FLIPPED, MARY, MyTask, Prompts
from test_suite.helpers.refusals import refused

# --- bad input, refused before any run of the model -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("blocks.0.hook_atn_out", r"no hook point 'blocks\.0\.hook_atn_out'.*nearest.*blocks\.0\.hook_attn_out"),
        ("blocks.99.hook_attn_out", r"no hook point 'blocks\.99\.hook_attn_out'"),
        ("atn_out", r"no hook point 'atn_out'.*Short names.*attn_out.*list_hook_points"),
        (["attn_out", "hook_embd"], r"no hook point 'hook_embd'.*hook_embed"),
        ("hook_z", r"no hook point 'hook_z'.*nearest names are z\b"),
        ([], "hook_points is empty"),
    ],
)
def test_unknown_hook_points_are_refused_with_the_nearest_names(patcher, ioi, asked, message):
    for run in (patcher.run_patching_experiment, patcher.run_position_experiment):
        with refused(message):
            run(ioi, asked)
    with refused(message):
        patcher.run_with_cache(MARY, asked)


def test_prompts_of_different_lengths_are_refused_with_where_they_part(patcher, tiny):
    longer = Prompts(tiny, [*ANIMALS, ("The cat sat on the mat", "The cat sat on the small mat")])
    count = len(tiny.to_tokens("The cat sat on the mat")[0])
    with refused(
        f"pair 2: the clean prompt has {count} tokens and the corrupted one {count + 1}; they part at position"
    ):
        patcher.run_patching_experiment(longer, "attn_out")
    patcher.run_patching_experiment(longer, "attn_out", pair_indices=[0, 1])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((" cat dog", " dog"), "pair 0: get_target_tokens found no single token for its answer"),
        ((10**6, 3), "pair 0: target token 1000000 is outside the vocabulary"),
        ((-1, 3), "pair 0: target token -1 is outside the vocabulary"),
        ((3, 3), "pair 0: correct and incorrect answer are the same token 3"),
        ((True, 3), r"pair 0: get_target_tokens returned \(True, 3\), expected .correct token id"),
        ((3,), r"pair 0: get_target_tokens returned \(3,\), expected \(correct token id, incorrect token id\)"),
        (("zyzzyva", 3), "pair 0: a target is the tokenizer's unknown token|found no single token"),
    ],
)
def test_targets_that_are_no_single_token_are_refused(patcher, tiny, answers, message):
    with refused(message):
        patcher.run_patching_experiment(Prompts(tiny, ANIMALS, answers), "attn_out")


def test_pairs_that_are_none_are_refused(patcher, tiny):
    with refused("the dataset 'prompts' has no pairs"):
        patcher.run_patching_experiment(Prompts(tiny, []), "attn_out")
    with refused("get_clean_corrupt_pairs of the dataset 'prompts' returned None, expected a list of pairs"):
        patcher.run_patching_experiment(Prompts(tiny, None), "attn_out")
    for pair in ("The cat", ("The cat",), ("The cat", ""), ("The cat", 3)):
        with refused("pair 0 is .* expected .clean prompt, corrupted prompt., two texts"):
            patcher.run_patching_experiment(Prompts(tiny, [pair]), "attn_out")
    with refused("does not know 'zyzzyva' in 'The zyzzyva sat"):
        patcher.run_patching_experiment(Prompts(tiny, [("The zyzzyva sat on", "The dog sat on")]), "attn_out")
    long = "the cat " * tiny.cfg.n_ctx
    with refused(f"has {2 * tiny.cfg.n_ctx + 1} tokens, the model reads at most {tiny.cfg.n_ctx}"):
        patcher.run_patching_experiment(Prompts(tiny, [(long.strip(), long.strip())]), "attn_out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair_indices": [6]}, "pair index 6 is out of range: expected -6 to 5"),
        ({"pair_indices": [-7]}, "pair index -7 is out of range"),
        ({"pair_indices": [1.5]}, "pair index 1.5 is not an integer"),
        ({"pair_indices": [True]}, "pair index True is not an integer"),
        ({"pair_indices": []}, "pair_indices is empty"),
        ({"pair_indices": [2, -4]}, "names a pair twice: give each pair once"),
        ({"position": 99}, r"position \(in pair 0, of \d+ tokens\) 99 is out of range"),
        ({"position": -99}, r"position \(in pair 0, of \d+ tokens\) -99 is out of range"),
        ({"position": 1.0}, "1.0 is not an integer"),
        ({"direction": "sideways"}, "direction 'sideways' is unknown: expected one of denoising, noising"),
    ],
)
def test_choices_out_of_range_are_refused(patcher, heads_patcher, ioi, options, message):
    with refused(message):
        patcher.run_patching_experiment(ioi, "attn_out", **options)
    with refused(message):
        heads_patcher.run_all_heads_experiment(ioi, **options)


def test_heads_and_layers_out_of_range_are_refused(patcher, heads_patcher, ioi, tiny):
    n_layers, n_heads = tiny.cfg.n_layers, tiny.cfg.n_heads
    with refused(f"layer {n_layers} is out of range: expected -{n_layers} to {n_layers - 1}"):
        heads_patcher.run_all_heads_experiment(ioi, layers=[n_layers])
    with refused(f"layer -{n_layers + 1} is out of range"):
        patcher.list_hook_points(layer=-n_layers - 1)
    with refused("layers is empty: give at least one layer"):
        heads_patcher.run_all_heads_experiment(ioi, layers=[])
    with refused(f"head {n_heads} is out of range: expected .*0 to {n_heads - 1}|head {n_heads} is out of range"):
        patcher.run_patched(MARY, FLIPPED, "blocks.0.attn.hook_z", head=n_heads)
    with refused("blocks.0.hook_attn_out has no head axis"):
        patcher.run_patched(MARY, FLIPPED, "blocks.0.hook_attn_out", head=0)
    with refused("position .* 99 is out of range"):
        patcher.run_patched(MARY, FLIPPED, "blocks.0.hook_attn_out", position=99)
    with refused("2 positions were given for 6 pairs"):
        patcher.sweep(ioi, [Patch((Site("blocks.0.hook_attn_out", position=(1, 2)),))])
    with refused("nothing to patch"):
        patcher.sweep(ioi, [])


def test_unknown_options_are_refused(tiny, heads_patcher, ioi, head_results, layer_results):
    with refused("patch_type 'outputs' is unknown: expected one of output, pattern, q, k, v"):
        heads_patcher.run_all_heads_experiment(ioi, patch_type="outputs")
    with refused("batch_size is 0"):
        ActivationPatcher(tiny, batch_size=0)
    with refused("threshold is -1"):
        heads_patcher.find_important_heads(head_results, threshold=-1)
    with refused("results is a list, expected what an experiment returns"):
        summarize_results(list(head_results))
    with refused("results is a LayerResults, expected what run_all_heads_experiment returns"):
        print_head_results(layer_results)
    for top, results in ((summarize_results, layer_results), (print_head_results, head_results)):
        with refused("is 0, expected at least 1"):
            top(results, top_k=0)
    with refused("L0 attn_out has no place in a layer × position map"):
        PositionResults(layer_results.sweep)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), "gpt2-small", None])
def test_what_is_no_model_is_refused(model):
    for kind in (ActivationPatcher, HeadPatcher):
        with refused("HookedTransformer|TransformerBridge", TypeError):
            kind(model)


def test_a_map_over_positions_needs_one_length_and_layers(patcher, ioi):
    with refused("a map over all positions needs one length"):
        patcher.run_position_experiment(ioi, "resid_pre")
    with refused("hook_embed lies in no layer"):
        patcher.run_position_experiment(ioi, "hook_embed", pair_indices=[0])


# --- what can only be found out by running ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (math.nan, "compute_metric returned nan for pair 1, expected a finite number"),
        (math.inf, "compute_metric returned inf for pair 1"),
        (None, "compute_metric returned NoneType for pair 1, expected one number"),
        ("high", "compute_metric returned str for pair 1"),
        (torch.zeros(2), "compute_metric returned Tensor for pair 1"),
    ],
)
def test_a_metric_that_is_no_number_is_refused_with_its_pair(patcher, tiny, returned, message):
    class Broken(MyTask):
        def get_clean_corrupt_pairs(self):
            return ANIMALS

        def compute_metric(self, logits, pair_idx):
            return returned if pair_idx == 1 else 1.0

    with pytest.raises(ValueError, match=message):
        patcher.run_patching_experiment(Broken(tiny), "attn_out")
    assert not any(hook.fwd_hooks for hook in tiny.hook_dict.values())


def test_pairs_that_barely_differ_are_named_left_out_and_counted(patcher, tiny, ioi, capsys):
    class WithOneIdle(Prompts):
        def get_target_tokens(self, pair_idx):
            return ioi.get_target_tokens(0)

    clean, corrupted = ioi.get_clean_corrupt_pairs()[0]
    dataset = WithOneIdle(tiny, [(clean, corrupted), (clean, clean)])
    with pytest.warns(UserWarning, match=r"1 of 2 pairs .* barely differ.*pair 1 \(clean .*Use a corruption that"):
        results = patcher.run_patching_experiment(dataset, "attn_out")
    usable = patcher.run_patching_experiment(dataset, "attn_out", pair_indices=[0])
    for hook_point, (first, second) in results.items():
        assert math.isnan(second.effect)
        assert results.effects[hook_point] == pytest.approx(first.effect)
        assert first.effect == pytest.approx(usable.effects[hook_point], rel=0, abs=EXACT)  # batches of other sizes
    summarize_results(results)
    assert "1 of them left out of the effects" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="1 of 1 pairs"):
        nothing = patcher.run_patching_experiment(dataset, "attn_out", pair_indices=[1])
    assert all(math.isnan(effect) for effect in nothing.effects.values())
    summarize_results(nothing)
    printed = capsys.readouterr().out
    assert "nan" in printed.lower() and "logits, of one pair\n" in printed
