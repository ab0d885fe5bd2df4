"""What is recorded is the model's own run of each prompt alone, or the model is run otherwise, or refused."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch import ActivationPatcher
from actpatch.core.sites import Site, block_hook
from actpatch.interventions.sources import References
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from test_suite.helpers.by_hand import PAIRS, SITES, assert_as_by_hand
from test_suite.helpers.closeness import allowed, folded
from test_suite.helpers.models import (
    HAS_HOOKED,
    encoded,
    everything_metric,
    fresh_hooked,
    fresh_model,
    last_position_metric,
    model_parameters,
    needs_hooked,
    small_model,
    swept,
    token_pairs,
)
from test_suite.helpers.sweeps import engine_on, site_sweep
from test_suite.helpers.sweeps import single as singles
from test_suite.helpers.thinned import thinned
from test_suite.oracles import one_prompt
from test_suite.oracles.plain import largest_error


def of_another_class(module: Any, **methods: Any) -> Any:
    """The module as one of an unknown class of Transformers, with other methods: only numbers can show what it does."""
    module.__class__ = type("Odd", (type(module),), {**methods, "__module__": "transformers.models.odd"})
    return module


# --- what runs together ----------------------------------------------------------------------------------------------


BASES = model_parameters("hooked:rotary", "bridge:gpt2", slow=["bridge:llama", "bridge+:gpt2"])


def test_rotary_factors_that_depend_on_the_longest_prompt() -> None:
    model = fresh_model("bridge:longrope")
    logits = one_prompt.run(model, PAIRS.clean[0])
    found, warned = assert_as_by_hand(model, bound=folded(logits))  # angles are computed in single precision
    assert "padded" not in found.shortcuts and "together" in found.shortcuts
    assert "only prompts of one length are run together" in warned


def test_rotary_factors_that_grow_with_the_longest_prompt_seen() -> None:
    """The model remembers it: a prompt run alone after the others would be off as they are."""
    bound = folded(one_prompt.run(fresh_model("bridge:growing_rope"), PAIRS.clean[0]))
    model, reads = fresh_model("bridge:growing_rope"), last_position_metric(4)
    for _ in range(2):
        with pytest.warns(UserWarning, match="only prompts of one length are run together"):
            found = engine_on(model).sweep(PAIRS, singles(SITES), [reads])
        for pair in range(4):
            alone = encoded(PAIRS.clean[pair : pair + 1], PAIRS.corrupted[pair : pair + 1])
            metric = LogitDifference(Answers((reads.answers.correct[pair],), (reads.answers.incorrect[pair],)))
            expected = one_prompt.patched(fresh_model("bridge:growing_rope"), alone, SITES, metric)[0]
            np.testing.assert_allclose(found.patched[0][:, pair], expected[:, 0], atol=bound, rtol=0)


@pytest.mark.parametrize("name", BASES)
def test_logits_that_a_model_changes_after_its_unembedding(name: str) -> None:
    model = fresh_model(name)
    forward = type(model).forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        logits = forward(self, *args, **kwargs)
        is_whole = isinstance(logits, Tensor) and kwargs.get("stop_at_layer") is None
        return logits * torch.tanh(logits.std(dim=-1, keepdim=True)) if is_whole else logits

    found, warned = assert_as_by_hand(of_another_class(model, forward=scaled))
    assert "logits" not in found.shortcuts and "all logits are computed" in warned


@pytest.mark.quick(1)
@pytest.mark.parametrize("row", [1, 2])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", BASES)
def test_a_row_of_every_batch_that_is_another_prompt_each_time(name: str, direction: Any, row: int) -> None:
    """It is recorded in that row, and run in it again: in the same one, the two would agree."""
    model, pairs = fresh_model(name), token_pairs([9] * 3, [(3,)] * 3)
    bound, forward = allowed(model, pairs.clean), type(model.ln_final).forward

    def one_row_otherwise(self: Any, value: Tensor, *rest: Any) -> Tensor:
        normalized = forward(self, value, *rest)
        return torch.cat([normalized[:row], 0.5 * normalized[row : row + 1], normalized[row + 1 :]])

    of_another_class(model.ln_final, forward=one_row_otherwise)
    with pytest.warns(UserWarning, match="every run is one of a whole prompt alone"):
        found = site_sweep(model, pairs, SITES, direction)
    base = pairs if direction == "denoising" else encoded(pairs.corrupted, pairs.clean)
    expected = one_prompt.patched(model, base, SITES, last_position_metric(3))[0]
    np.testing.assert_allclose(found.patched, expected, atol=bound, rtol=0)


@pytest.mark.parametrize(("name", "direction"), thinned(BASES, ["denoising", "noising"]))
def test_code_that_no_hook_shows_and_that_names_a_row(name: str, direction: Any) -> None:
    """A norm that treats the first row of a batch otherwise."""
    model, reads = fresh_model(name), last_position_metric(4)
    forward = type(model.ln_final).forward

    def first_row_otherwise(self: Any, value: Tensor, *rest: Any) -> Tensor:
        normalized = forward(self, value, *rest)
        return torch.cat([0.5 * normalized[:1], normalized[1:]])

    of_another_class(model.ln_final, forward=first_row_otherwise)
    with pytest.warns(UserWarning, match="every run is one of a whole prompt alone"):
        found = engine_on(model).sweep(PAIRS, singles(SITES), [reads], direction)
    base = PAIRS if direction == "denoising" else encoded(PAIRS.corrupted, PAIRS.clean)
    expected = one_prompt.patched(model, base, SITES, reads)[0]
    np.testing.assert_allclose(found.patched[0], expected, atol=allowed(model, PAIRS.clean), rtol=0)


@pytest.mark.parametrize("name", BASES)
def test_prompts_that_change_each_other_in_a_batch_are_run_alone(name: str) -> None:
    model = fresh_model(name)
    forward = type(model).forward

    def of_the_batch(self: Any, *args: Any, **kwargs: Any) -> Any:
        logits = forward(self, *args, **kwargs)
        return logits - 0.5 * logits.mean(dim=0, keepdim=True) if isinstance(logits, Tensor) else logits

    found, warned = assert_as_by_hand(of_another_class(model, forward=of_the_batch))
    assert found.shortcuts == ()
    assert "every run is one of a whole prompt alone" in warned and "change each other" in warned


@pytest.mark.parametrize("name", BASES)
def test_an_unembedding_that_is_more_than_a_product_is_run_as_a_whole(name: str) -> None:
    model = fresh_model(name)
    forward = type(model.unembed).forward

    def centred(self: Any, resid: Tensor) -> Tensor:
        logits = forward(self, resid)
        return logits * torch.tanh(logits.std(dim=-1, keepdim=True))

    of_another_class(model.unembed, forward=centred)
    found, warned = assert_as_by_hand(model)
    assert {"logits"} == {"resume", "prefix", "linear", "narrow", "logits", "padded", "together"} - {*found.shortcuts}
    assert "all logits are computed" in warned


@pytest.mark.parametrize("name", BASES)
def test_a_model_that_draws_at_random_is_refused(name: str) -> None:
    model = fresh_model(name)
    forward = type(model).forward

    def drawn(self: Any, *args: Any, **kwargs: Any) -> Any:
        logits = forward(self, *args, **kwargs)
        return logits + 0.1 * torch.randn_like(logits) if isinstance(logits, Tensor) else logits

    with pytest.raises(RuntimeError, match=r"cannot be patched.*at random"):
        assert_as_by_hand(of_another_class(model, forward=drawn))


@needs_hooked
@pytest.mark.parametrize("architecture", ["learned", "rotary", "shortformer"])
def test_left_padding_and_an_own_bos_are_masked_as_the_model_masks_them(architecture: str) -> None:
    model = fresh_hooked(architecture)
    side = model.tokenizer.padding_side
    model.tokenizer.padding_side = "left"
    try:
        pairs = token_pairs([7, 9], [(3,), (4,)])
        for prompt in (*pairs.clean, *pairs.corrupted):
            prompt[:2] = 1
        assert_as_by_hand(model, pairs=pairs)
        found, warned = assert_as_by_hand(model)
        assert "resume" in found.shortcuts and not warned
    finally:
        model.tokenizer.padding_side = side


@pytest.mark.parametrize(
    "name", model_parameters("bridge:falcon_alibi", "bridge:per_layer_inputs", slow=["bridge:state_space"])
)
def test_models_whose_blocks_cannot_be_run_singly_are_run_in_full(name: str) -> None:
    sites = [Site(block_hook(1, "resid_pre")), Site(block_hook(1, "resid_pre"), position=5)]
    found, warned = assert_as_by_hand(fresh_model(name), sites)
    assert "resume" not in found.shortcuts
    assert "run" in warned


@pytest.mark.quick(1)
@pytest.mark.parametrize(("n_pairs", "name"), thinned([2, 3], ["bridge:falcon_alibi", "bridge:per_layer_inputs"]))
def test_blocks_are_checked_with_several_prompts_where_patches_enter_late(n_pairs: int, name: str) -> None:
    pairs = token_pairs([9] * n_pairs, [(3,)] * n_pairs)
    found, _ = assert_as_by_hand(
        fresh_model(name), [Site(block_hook(1, "resid_pre")), Site(block_hook(2, "resid_post"))], pairs
    )
    assert "resume" not in found.shortcuts


@pytest.mark.quick(1)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("other", [1, 2])
def test_blocks_that_are_called_otherwise_for_one_prompt_alone(other: int, direction: Any) -> None:
    """The others are alike from their first change on: what is made of their tokens there is the same."""
    clean, corrupted = (token_pairs([9] * 4, [(2,)] * 4, seed=3).in_direction(way) for way in ("noising", "denoising"))
    first, second = clean.clean[0], corrupted.clean[0]
    prompts = [[prompt.clone() for _ in range(4)] for prompt in (first, second)]
    for pair, position in ((other, 6), (3, 1)):
        for run in prompts:
            run[pair][position] = 2 + (run[pair][position] + 5) % 30
    pairs = encoded(*prompts)
    model, sites = fresh_model("bridge:per_layer_inputs"), [Site(block_hook(1, "resid_pre")), *SITES]
    found = site_sweep(model, pairs, sites, direction)
    base = pairs if direction == "denoising" else encoded(pairs.corrupted, pairs.clean)
    expected = one_prompt.patched(model, base, sites, last_position_metric(4))[0]
    np.testing.assert_allclose(found.patched, expected, atol=allowed(model, pairs.clean), rtol=0)


@pytest.mark.parametrize("name", ["bridge:longrope", "bridge+:longrope"])
def test_means_are_over_runs_that_are_the_models_own(name: str) -> None:
    """Prompts on both sides of a switch of rotary factors: what was averaged before it was found out is not used."""
    model, site, metric = fresh_model(name), Site(block_hook(0, "attn_out")), last_position_metric(2)
    pairs = token_pairs([6, 12], [(2,), (3,)])
    groups = tuple(tuple(token_pairs([length] * 3, [()] * 3, seed=length).clean) for length in (6, 12))
    found = engine_on(model).sweep(pairs, singles([site]), [metric], references=References(groups, (0, 1)))
    for pair, group in enumerate(groups):
        mean = torch.stack([one_prompt.recorded(model, prompt, site.hook_point) for prompt in group]).mean(dim=0)
        written = [(site.hook_point, functools.partial(lambda value, hook, mean: mean.clone(), mean=mean))]
        logits = one_prompt.run(model, pairs.corrupted[pair], written)
        expected = float(metric.measure(logits[None, -1:][..., metric.tokens], torch.tensor([pair])))
        assert abs(found.patched[0][0, pair] - expected) <= folded(logits)


@needs_hooked
@pytest.mark.parametrize("architecture", ["learned", "rotary"])
def test_a_mask_of_padding_for_one_pair_among_others(architecture: str) -> None:
    model, pairs = fresh_hooked(architecture), token_pairs([9] * 3, [(3,)] * 3)
    side = model.tokenizer.padding_side
    model.tokenizer.padding_side = "left"
    pairs.clean[1][:2] = pairs.corrupted[1][:2] = 1
    try:
        found, warned = assert_as_by_hand(model, [Site(block_hook(0, "resid_pre")), *SITES], pairs)
    finally:
        model.tokenizer.padding_side = side
    assert "resume" not in found.shortcuts and "mask of padding" in warned


@pytest.mark.parametrize(("name", "short"), thinned(BASES, ["q", "k", "v", "z"]))
def test_prompts_of_one_token(name: str, short: str) -> None:
    """There is one position to attend to: what chooses changes nothing, and is no fault of the hook."""
    assert_as_by_hand(
        small_model(name),
        [Site(block_hook(1, short)), Site(block_hook(0, "mlp_out"))],
        token_pairs([1, 1], [(0,), (0,)]),
    )


@pytest.mark.parametrize("name", model_parameters("bridge:scaled_residual", slow=["bridge+:scaled_residual"]))
def test_a_residual_stream_that_is_added_to_by_a_share(name: str) -> None:
    for _ in range(2):  # hooks that the model wires itself, when it is first run, stay
        assert_as_by_hand(fresh_model(name), [Site(block_hook(1, short)) for short in ("z", "mlp_out", "attn_out")])


@pytest.mark.parametrize(
    ("name", "short"),
    thinned(
        model_parameters("hooked:sandwich", "bridge:gemma2", "bridge+:olmo2", slow=("bridge:gemma3", "bridge+:gemma2")),
        ["z", "attn_out", "resid_mid", "mlp_post", "mlp_out"],
    ),
)
def test_what_is_normalized_before_it_is_added(name: str, short: str) -> None:
    """A change of one component alone is taken for linear: behind it stands a norm."""
    model = small_model(name)
    sites = [Site(block_hook(layer, short), position=at) for layer in range(3) for at in (None, 5)]
    if short == "z":
        sites += [Site(block_hook(layer, short), head=1) for layer in range(3)]
    if short == "mlp_post":
        sites += [Site(block_hook(layer, short), neuron=3) for layer in range(3)]
    pairs = token_pairs([9, 7], [(3,), (4,)])
    patches, metric = singles(sites), last_position_metric(2)
    found = swept(engine_on(model), pairs, patches, metric)
    error, where = largest_error(model, pairs, patches, "denoising", [(metric, found)])
    assert error <= allowed(model, pairs.clean), where


# --- later tokens ----------------------------------------------------------------------------------------------------


@needs_hooked
@pytest.mark.parametrize("changes", [{}, {"n_layers": 1}])
@pytest.mark.parametrize("site", [Site(block_hook(0, "attn_out")), Site("hook_embed")])
def test_a_model_that_looks_both_ways_is_found_out(changes: dict[str, Any], site: Site) -> None:
    model = fresh_hooked("rotary", **changes)
    for block in model.blocks:
        of_another_class(block.attn, apply_causal_mask=lambda self, scores, *rest: scores)
    with pytest.raises(ValueError, match="attends to later positions"):
        site_sweep(model, PAIRS, [site])


@needs_hooked
@pytest.mark.parametrize("pairs", [PAIRS, token_pairs([9, 9], [(3,), (4,)])])
def test_a_last_layer_that_looks_both_ways_is_found_out_where_early_positions_are_read(pairs: Any) -> None:
    """No keys of any layer show it, and the last position looks at nothing that comes later."""
    model = fresh_hooked("rotary")
    of_another_class(model.blocks[2].attn, apply_causal_mask=lambda self, scores, *rest: scores)
    with pytest.raises(ValueError, match="attends to later positions"):
        engine_on(model).sweep(pairs, singles(SITES[:2]), [everything_metric(len(pairs))])


@needs_hooked
def test_a_model_that_says_that_it_looks_both_ways_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="attends to later positions: only causal models"):
        ActivationPatcher(fresh_hooked(attention_dir="bidirectional"))


# --- axes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "hook"), thinned([4, 6, 8, 12], ["attn.hook_q", "attn.hook_v", "attn.hook_k"]))
def test_heads_on_another_axis_are_refused_whatever_the_length(length: int, hook: str) -> None:
    """Also where there are as many tokens as heads (4) or as a head has dimensions (8, 12)."""
    pairs = token_pairs([length], [(2,)])
    with pytest.raises(ValueError, match=f"blocks.1.{hook} holds a tensor of shape .* 4 heads are on axis 2"):
        engine_on(small_model("bridge:latent")).sweep(
            pairs, singles([Site(f"blocks.1.{hook}")]), [last_position_metric(1)]
        )


@pytest.mark.parametrize(
    ("name", "position"),
    thinned(model_parameters("hooked:rotary", "hooked:grouped", "hooked:parallel", "hooked:qk_norm"), [None, 5, -1]),
)
def test_hook_points_that_hold_every_position_in_a_resumed_run(name: str, position: int | None) -> None:
    """TransformerLens keeps keys unrotated, and rotates those of the prefix again."""
    sites = [Site(f"blocks.{layer}.attn.hook_rot_{of}", position=position) for layer in (0, 1, 2) for of in "kq"]
    found, _ = assert_as_by_hand(small_model(name), sites)
    assert "prefix" not in found.shortcuts and "resume" in found.shortcuts


@needs_hooked
def test_a_hook_point_that_holds_several_activations_is_refused() -> None:
    model = fresh_hooked("grouped")
    model.set_use_split_qkv_input(True)
    with pytest.raises(ValueError, match=r"ln1\.hook_normalized holds several activations in one run"):
        site_sweep(model, PAIRS, [Site("blocks.1.ln1.hook_normalized")])


@pytest.mark.parametrize("position", [None, 5])
def test_a_hook_point_where_what_is_there_cannot_be_written_back_is_refused(position: int | None) -> None:
    """A norm whose gain is counted from one is computed anew, from zero, where a hook returns a value.

    TransformerLens 4 counts it from one there too.
    """
    model, sites = fresh_model("bridge:offset_norm"), [Site("blocks.0.ln1.hook_normalized", position=position)]
    site_sweep(model, PAIRS, SITES)
    if not HAS_HOOKED:
        expected = one_prompt.patched(model, PAIRS, sites, last_position_metric(len(PAIRS)))[0]
        np.testing.assert_allclose(site_sweep(model, PAIRS, sites).patched, expected, atol=1e-9, rtol=0)
        return
    with pytest.raises(RuntimeError, match=r"blocks\.0\.ln1\.hook_normalized what is there changes this model's run"):
        site_sweep(model, PAIRS, sites)


def test_a_hook_point_at_which_the_model_fails_is_refused_in_a_sentence() -> None:
    model = fresh_model("bridge:weightless_norm")
    site_sweep(model, PAIRS, SITES)
    with pytest.raises(RuntimeError, match=r"writing to blocks\.2\.ln2\.hook_scale ends .* in AttributeError"):
        site_sweep(model, PAIRS, [Site("blocks.2.ln2.hook_scale")])


# --- the unembedding's own hook points -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hook"),
    thinned(
        ["bridge:gpt2", "bridge+:llama", "bridge:neox"],
        ["unembed.hook_in", "unembed.hook_out", "ln_final.hook_normalized"],
    ),
)
def test_what_sits_at_the_unembedding_can_be_patched(name: str, hook: str) -> None:
    assert_as_by_hand(small_model(name), [Site(hook), Site(hook, position=-1)])


# --- shortcuts -------------------------------------------------------------------------------------------------------


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "name",
    model_parameters(
        *("hooked:learned", "hooked:grouped", "bridge:gpt2", "bridge:llama", "bridge:opt", "bridge+:neox"),
        slow=("bridge+:qwen2", "bridge:phi", "bridge:olmo2", "bridge:gemma2", "bridge+:gpt2"),
    ),
)
def test_usual_models_have_all_of_resume_and_prefix(name: str) -> None:
    """A prefix of keys and values that is lost costs time and no number: nothing else would notice."""
    found, warned = assert_as_by_hand(small_model(name))
    assert {"resume", "prefix", "logits", "padded", "together"} <= {*found.shortcuts}
    assert not warned


@needs_hooked
@pytest.mark.parametrize("hook", ["attn.hook_attn_scores", "attn.hook_pattern"])
def test_zeroed_scores_do_not_depend_on_the_other_pairs(hook: str) -> None:
    """Padding is among the keys, and a zero there attends to it."""
    sites = [Site(f"blocks.1.{hook}", head=head) for head in range(4)]
    for architecture in ("rotary", "learned"):
        assert_as_by_hand(fresh_hooked(architecture), sites, zero=True)


# --- numbers that are none, and numbers that are rounded -------------------------------------------------------------


def test_logits_that_are_all_nan_are_told_before_anything_else() -> None:
    for name in ("bridge:llama", *(["hooked:grouped"] if HAS_HOOKED else [])):
        model = fresh_model(name)
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(float("nan"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=r"model are NaN on all of 8 prompts \(in float64\): look"):
                site_sweep(model, PAIRS, SITES)


@pytest.mark.parametrize("name", model_parameters("hooked:rotary", "bridge:llama", "bridge+:gpt2"))
def test_logits_that_are_all_nan_are_told_where_prompts_are_run_one_by_one(name: str) -> None:
    """A hook of the user's makes each run one of a prompt alone."""
    model = fresh_model(name)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    model.add_hook(block_hook(1, "mlp_out"), lambda value, hook: 2 * value)
    with (
        pytest.warns(UserWarning, match="prompt alone"),
        pytest.raises(ValueError, match="model are NaN on all of 8 prompts"),
    ):
        site_sweep(model, PAIRS, SITES)


@pytest.mark.parametrize("name", model_parameters("hooked:rotary", "bridge:llama", "bridge+:gpt2"))
def test_logits_that_are_nan_on_one_prompt_leave_the_others_as_they_are(name: str) -> None:
    model = fresh_model(name)
    expected = site_sweep(model, PAIRS, SITES)
    broken = int(PAIRS.clean[1][4])
    assert not any((prompt == broken).any() for i in (0, 2, 3) for prompt in (PAIRS.clean[i], PAIRS.corrupted[i]))
    with torch.no_grad():
        embedding = model.embed.W_E if name.startswith("hooked") else model.original_model.get_input_embeddings().weight
        embedding[broken] = float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = site_sweep(model, PAIRS, SITES)
    others = [0, 2, 3]
    assert np.isnan(found.clean[1])
    np.testing.assert_allclose(
        found.patched[:, others], expected.patched[:, others], atol=allowed(model, PAIRS.clean[:1])
    )


@pytest.mark.parametrize("name", model_parameters("hooked:rotary", "bridge:gpt2"))
def test_single_precision_that_is_run_in_half_says_what_rounding_moves(name: str) -> None:
    model = fresh_hooked(name.split(":")[1], dtype=torch.float32) if name.startswith("hooked") else fresh_model(name)
    model.float()
    notes: list[str] = []
    for seed in range(10):
        pairs = token_pairs([9] * 3, [(1,)] * 3, seed=seed)
        with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            notes += engine_on(model).sweep(pairs, singles(SITES), [last_position_metric(3)]).notes
    assert any("rounding alone moves the logit difference by" in note for note in notes)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", model_parameters("hooked:rotary", "bridge:gpt2"))
def test_half_precision_says_what_rounding_moves(name: str) -> None:
    """It is told where rounding moves a metric by more than 1 % of its gap, which it does on some prompts."""
    told = {}
    for dtype in (torch.bfloat16, torch.float64):
        model = fresh_model(name)
        model.to(dtype, **({"print_details": False} if name.startswith("hooked") else {}))
        notes: list[str] = []
        for seed in range(10 if dtype == torch.bfloat16 else 3):
            pairs = token_pairs([9] * 3, [(1,)] * 3, seed=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                notes += engine_on(model).sweep(pairs, singles(SITES), [last_position_metric(3)]).notes
        told[dtype] = [note for note in notes if "rounding alone moves the logit difference by" in note]
    assert 1 <= len(told[torch.bfloat16]) < 10
    assert not told[torch.float64]
