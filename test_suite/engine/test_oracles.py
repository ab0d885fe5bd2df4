"""Is every number right?  The engine against patching done the plain way, and against TransformerLens' own."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import pytest
import torch

from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.metrics.answers import LogitDifference
from actpatch.tasks.encoding import EncodedPairs, encode_pairs
from actpatch.tasks.ioi import IOIDataset
from test_suite.helpers.closeness import EXACT, ROUNDINGS, allowed, folded
from test_suite.helpers.models import (
    BRIDGE_MODELS,
    HAS_HOOKED,
    HOOKED_MODELS,
    bundled,
    checkpoint,
    everything_metric,
    exhaustive_sites,
    fresh_model,
    head_count,
    last_position_metric,
    loaded,
    model_parameters,
    needs_hooked,
    sampled_sites,
    small_model,
    smollm2,
    swept,
    token_pairs,
)
from test_suite.helpers.thinned import thinned
from test_suite.oracles.plain import PlainPatching, largest_error
from test_suite.oracles.transformer_lens import BY_HEAD, BY_HEAD_AND_POSITION, BY_POSITION, reference

QUICK_MODELS = (
    *(name for name in HOOKED_MODELS if name not in ("hooked:gated", "hooked:ungrouped")),
    "bridge:llama",
    *(f"bridge+:{name}" for name in ("gpt2", "llama", "neox", "gemma2", "olmo2", "opt")),
)
ALL_MODELS = (*HOOKED_MODELS, *BRIDGE_MODELS)
DIRECTIONS = ("denoising", "noising")

falls_back = pytest.mark.filterwarnings("ignore:this model's blocks cannot be resumed exactly")


def assert_plain_patching_agrees(
    model: Any, pairs: EncodedPairs, patches: Sequence[Patch], direction: str, batch_size: int | None = None
) -> None:
    """The engine finds what full hooked runs find, for a metric of the last position and for one of all positions."""
    engine = PatchingEngine(model, show_progress=False, batch_size=batch_size)
    metrics = [last_position_metric(len(pairs)), everything_metric(len(pairs))]
    sweeps = [(metric, swept(engine, pairs, patches, metric, direction)) for metric in metrics]
    error, where = largest_error(model, pairs, patches, direction, sweeps)
    assert error <= allowed(model, pairs.clean), f"{error:.2g} off at {where}"


def single(sites: Sequence[Site]) -> list[Patch]:
    return [Patch((site,)) for site in sites]


# --- against a plain loop ----------------------------------------------------------------------------------------


@pytest.mark.quick(2)
@falls_back
@pytest.mark.parametrize("name", model_parameters(*QUICK_MODELS))
def test_every_hook_point_agrees_with_plain_patching(name: str) -> None:
    offset = ALL_MODELS.index(name)
    pairs = token_pairs([11, 11, 11], [(3,), (5, 7), (0, 9)], seed=offset)
    patches = single(sampled_sites(name, [None, 7, 3, -1, 10], offset)[offset % 2 :: 2])
    assert_plain_patching_agrees(small_model(name), pairs, patches, DIRECTIONS[offset % 2])


@falls_back
@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", model_parameters(*ALL_MODELS))
def test_every_hook_point_head_and_position_agrees_with_plain_patching(name: str, direction: str) -> None:
    pairs = token_pairs([10, 10, 10, 7], [(3,), (5, 7), (0, 9), (2, 3)], seed=1)
    patches = single(exhaustive_sites(name, [None, 0, 2, 3, 5, 6, -2, -1]))
    assert_plain_patching_agrees(small_model(name), pairs, patches, direction)


SETS = {
    "heads of three layers": [("z", 0, 0, None), ("z", 1, 1, None), ("z", 2, 3, None)],
    "heads of one layer": [("z", 1, 0, None), ("z", 1, 2, None)],
    "a head at two positions": [("z", 1, 2, 6), ("z", 1, 2, 8)],
    "layers at different positions": [("resid_pre", 1, None, 6), ("q", 1, 2, None), ("attn_out", 2, None, -1)],
    "pattern and values": [("pattern", 1, 1, None), ("v", 1, 1, None)],
    "what a block adds": [("attn_out", 1, None, None), ("mlp_out", 1, None, None)],
    "mlp, then a head": [("mlp_out", 0, None, 7), ("z", 2, 2, None)],
}
OVERLAPPING_SETS = {
    "only one after the first difference": [("z", 0, 1, 2), ("z", 1, 0, 8)],
    "attn_out before z, in the order of writing": [("attn_out", 1, None, 7), ("z", 1, 0, None)],
    "all heads and one": [("z", 1, None, None), ("z", 1, 0, None)],
    "a head and resid_mid": [("z", 1, 1, None), ("resid_mid", 1, None, None)],
    "attn_out and resid_mid": [("attn_out", 0, None, None), ("resid_mid", 0, None, None)],
    "resid_pre and the MLP before it": [("resid_pre", 1, None, 7), ("mlp_out", 0, None, None)],
    "resid_post and the MLP in it": [("resid_post", 0, None, None), ("mlp_out", 0, None, None)],
    "an MLP twice": [("mlp_out", 0, None, None), ("mlp_out", 0, None, 7)],
}


def described(sets: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(described, id=name) for name, described in sets.items()]


def patch_of(described: Sequence[tuple[str, int, int | None, int | None]]) -> Patch:
    return Patch(tuple(Site(block_hook(layer, name), head, position) for name, layer, head, position in described))


@pytest.mark.parametrize(
    ("described", "name"), thinned(described(SETS), model_parameters("hooked:sandwich", "bridge+:gpt2"))
)
def test_sites_patched_together_agree_with_plain_patching(name: str, described: list[Any]) -> None:
    pairs = token_pairs([12, 10], [(5, 7), (1,)])
    assert_plain_patching_agrees(small_model(name), pairs, [patch_of(described)], "denoising")


@pytest.mark.parametrize(
    ("described", "name"), thinned(described(OVERLAPPING_SETS), model_parameters("hooked:learned", "bridge+:gpt2"))
)
def test_sites_that_overwrite_each_other_agree_with_plain_patching(name: str, described: list[Any]) -> None:
    """Whatever is written downstream wins, in whichever order the sites are listed."""
    pairs = token_pairs([12, 12], [(5,), (5, 7)])
    patches = [patch_of(described), patch_of(described[::-1])]
    assert_plain_patching_agrees(small_model(name), pairs, patches, "denoising")


@pytest.mark.parametrize("name", model_parameters("hooked:rotary", "bridge+:llama"))
def test_one_position_per_pair_agrees_with_plain_patching(name: str) -> None:
    pairs = token_pairs([12, 12, 9], [(3,), (5, 7), (0, 4)])
    sites = [Site(block_hook(1, short), position=(4, 8, -2)) for short in ("resid_pre", "z", "k", "mlp_out", "pattern")]
    assert_plain_patching_agrees(small_model(name), pairs, single(sites), "noising")


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        pytest.param("hooked:learned", "denoising", marks=needs_hooked),
        pytest.param("hooked:grouped", "noising", marks=needs_hooked),
        ("bridge+:gpt2", "denoising"),
    ],
)
def test_mixed_lengths_agree_with_plain_patching(name: str, direction: str) -> None:
    pairs = token_pairs([14, 6, 10], [(9,), (0, 5), (3,)])
    patches = single(sampled_sites(name, [None, 4, -1], offset=3)[::2])
    assert_plain_patching_agrees(small_model(name), pairs, patches, direction)


UNUSUAL = (
    "blocks.1.ln1.hook_normalized",
    "blocks.2.ln2.hook_scale",
    "blocks.0.mlp.hook_pre",
    "blocks.2.mlp.hook_post",
    "blocks.1.attn.hook_attn_scores",
    "hook_embed",
    "hook_pos_embed",
    "ln_final.hook_normalized",
)


@pytest.mark.parametrize("hook_point", UNUSUAL)
@pytest.mark.parametrize("name", model_parameters("hooked:learned"))
def test_unusual_hook_points_agree_with_plain_patching(name: str, hook_point: str) -> None:
    pairs = token_pairs([10, 10], [(3,), (5, 7)])
    patches = single([Site(hook_point), Site(hook_point, position=6), Site(hook_point, position=-1)])
    assert_plain_patching_agrees(small_model(name), pairs, patches, "denoising")


@pytest.mark.parametrize("name", model_parameters("bridge+:gpt2"))
def test_the_embedding_of_a_bridge_agrees_with_plain_patching(name: str) -> None:
    pairs = token_pairs([10, 10], [(3,), (5, 7)])
    assert_plain_patching_agrees(small_model(name), pairs, single([Site("hook_embed", position=5)]), "denoising")


@contextlib.contextmanager
def switched_on(model: Any, switch: str) -> Iterator[None]:
    getattr(model, f"set_{switch}")(True)
    try:
        yield
    finally:
        getattr(model, f"set_{switch}")(False)


SWITCHED = {
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
}


@pytest.mark.parametrize(
    ("name", "hook"), thinned(model_parameters("hooked:learned", "hooked:rotary", "bridge+:gpt2"), SWITCHED)
)
def test_hook_points_that_are_switched_off_are_switched_on_for_the_sweep(name: str, hook: str) -> None:
    model, pairs = small_model(name), token_pairs([10, 10], [(3,), (5, 7)])
    tail = f"attn.{hook}" if hook == "hook_result" else hook
    patches = single([Site(f"blocks.{layer}.{tail}", head=h) for layer in range(3) for h in (None, 1)])
    metric = last_position_metric(2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be resumed.*")
        found = swept(PatchingEngine(model, show_progress=False), pairs, patches, metric, "denoising")
    assert not getattr(model.cfg, SWITCHED[hook])
    with switched_on(model, SWITCHED[hook]):
        error, where = largest_error(model, pairs, patches, "denoising", [(metric, found)])
    assert error <= allowed(model, pairs.clean), where


def test_the_patched_logits_are_those_of_plain_patching() -> None:
    name = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
    model, pairs = small_model(name), token_pairs([12, 9], [(3,), (5,)])
    patch = Patch((Site(block_hook(1, "z"), head=2),))
    logits = PatchingEngine(model, show_progress=False).patched_logits(pairs, patch)
    (expected,) = PlainPatching(model, pairs, [patch.sites[0].hook_point], "denoising").logits([patch])
    for found, plain in zip(logits, expected):
        torch.testing.assert_close(found, plain, atol=EXACT, rtol=0)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "dtype"),
    thinned(
        model_parameters("hooked:learned", "hooked:grouped", "bridge:gpt2", "bridge+:gpt2"),
        [torch.bfloat16, torch.float16, torch.float32, torch.float64],
    ),
)
def test_other_precisions_agree_with_plain_patching_to_their_own(name: str, dtype: torch.dtype) -> None:
    """Each rounds in its own order, which is so many roundings of the largest logit. Nothing falls back."""
    model, pairs, metric = fresh_model(name).to(dtype), token_pairs([10, 7], [(2, 4), (3,)]), last_position_metric(2)
    patches = [Patch((site,)) for site in sampled_sites(name, [None, 5])]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be resumed.*")
        found = swept(PatchingEngine(model, show_progress=False), pairs, patches, metric, "denoising")
    largest = max(abs(found.clean).max(), abs(found.corrupted).max())
    error, where = largest_error(model, pairs, patches, "denoising", [(metric, found)])
    with torch.no_grad():
        largest_logit = max(float(model(prompt[None]).abs().max()) for prompt in pairs.clean)
    assert error <= max(ROUNDINGS * torch.finfo(dtype).eps * largest_logit, EXACT), where
    assert abs(found.patched - found.corrupted[None]).max() > 0.1 * largest


# --- against TransformerLens' own patching -------------------------------------------------------------------------


def bundled_pairs(n_pairs: int) -> tuple[EncodedPairs, LogitDifference]:
    model = bundled()
    dataset = IOIDataset(model, n_pairs=n_pairs, corruption="flip_subject")
    pairs = encode_pairs(model, dataset)
    (metric,) = pairs.metrics("logit_difference")
    return pairs, metric


def assert_first_pair(
    model: Any, pairs: EncodedPairs, metric: LogitDifference, sites: Sequence[Site], expected: torch.Tensor
) -> None:
    """The engine finds these numbers; in single precision as nearly as batches of other shapes agree."""
    found = first_pair(model, pairs, metric, sites)
    within = allowed(model, [pairs.clean[0], pairs.corrupted[0]])
    torch.testing.assert_close(found, expected.double(), atol=within, rtol=0)


def first_pair(model: Any, pairs: EncodedPairs, metric: LogitDifference, sites: Sequence[Site]) -> torch.Tensor:
    measured = swept(PatchingEngine(model, show_progress=False), pairs, single(sites), metric, "denoising")
    return torch.tensor(measured.patched[:, 0])


@pytest.mark.quick(1)
@pytest.mark.parametrize("short", BY_POSITION)
def test_layers_and_positions_agree_with_transformer_lens(short: str) -> None:
    model, (pairs, metric) = bundled(), bundled_pairs(2)
    if short == "resid_mid" and not HAS_HOOKED:
        pytest.skip("on a bridge, TransformerLens' resid_mid patch reaches the MLP alone")
    length = int(pairs.lengths[0])
    sites = [Site(block_hook(layer, short), position=at) for layer in range(model.cfg.n_layers) for at in range(length)]
    expected = reference(BY_POSITION[short], model, pairs, metric).flatten()
    assert_first_pair(model, pairs, metric, sites, expected)


@pytest.mark.parametrize("short", BY_HEAD)
def test_heads_of_the_bundled_model_agree_with_transformer_lens(short: str) -> None:
    model, (pairs, metric) = bundled(), bundled_pairs(2)
    heads = range(model.cfg.n_heads)
    sites = [Site(block_hook(layer, short), head=head) for layer in range(model.cfg.n_layers) for head in heads]
    expected = reference(BY_HEAD[short], model, pairs, metric).flatten()
    assert_first_pair(model, pairs, metric, sites, expected)


def assert_heads_by_position_agree(model: Any, pairs: EncodedPairs, metric: LogitDifference, sites: list[Site]) -> None:
    """With TransformerLens, given as a table which of its cells to run."""
    short = sites[0].component
    frame = pd.DataFrame([(site.layer, site.position, site.head) for site in sites], columns=["layer", "pos", "head"])
    if short == "pattern":
        frame = frame[["layer", "head", "pos"]].set_axis(["layer", "head_index", "dest_pos"], axis=1)
    options = {"index_axis_names": None, "index_df": frame}
    expected = reference(BY_HEAD_AND_POSITION[short], model, pairs, metric, **options)
    assert_first_pair(model, pairs, metric, sites, expected)


@pytest.mark.quick(1)
@pytest.mark.parametrize("short", BY_HEAD_AND_POSITION)
def test_heads_by_position_agree_with_transformer_lens(short: str) -> None:
    model, (pairs, metric) = bundled(), bundled_pairs(2)
    second_subject, end = pairs.positions[0]["S2"], pairs.positions[0]["END"]
    sites = [
        Site(block_hook(layer, short), head=head, position=at)
        for layer in range(model.cfg.n_layers)
        for at in (second_subject, end - 1, end)
        for head in range(model.cfg.n_heads)
    ]
    assert_heads_by_position_agree(model, pairs, metric, sites)


# --- a real language model ---------------------------------------------------------------------------------------


@functools.cache
def smol_pairs() -> tuple[EncodedPairs, LogitDifference]:
    model = smollm2()
    dataset = IOIDataset(model, n_pairs=2, corruption="flip_subject")
    pairs = encode_pairs(model, dataset)
    (metric,) = pairs.metrics("logit_difference")
    return pairs, metric


@pytest.mark.slow
@pytest.mark.parametrize("short", BY_HEAD)
def test_heads_of_smollm2_agree_with_transformer_lens(short: str) -> None:
    """Told which heads there are, for TransformerLens counts query heads also of keys and values (its issue 980)."""
    model, (pairs, metric) = smollm2(), smol_pairs()
    layers, heads = (0, 29), range(head_count(model, block_hook(0, short)))
    frame = pd.DataFrame([(layer, head) for layer in layers for head in heads], columns=["layer", "head"])
    sites = [Site(block_hook(layer, short), head=head) for layer in layers for head in heads]
    expected = reference(BY_HEAD[short], model, pairs, metric, index_axis_names=None, index_df=frame)
    assert_first_pair(model, pairs, metric, sites, expected)


@pytest.mark.slow
@pytest.mark.parametrize("short", BY_HEAD_AND_POSITION)
def test_heads_of_smollm2_by_position_agree_with_transformer_lens(short: str) -> None:
    model, (pairs, metric) = smollm2(), smol_pairs()
    last = head_count(model, block_hook(0, short)) - 1
    sites = [
        Site(block_hook(layer, short), head=head, position=at)
        for layer in (16, 29)
        for at in (pairs.positions[0]["S2"], pairs.positions[0]["END"])
        for head in (0, last)
    ]
    assert_heads_by_position_agree(model, pairs, metric, sites)


@pytest.mark.slow
@pytest.mark.parametrize("short", ["resid_pre", "attn_out", "mlp_out"])
def test_layers_and_positions_of_smollm2_agree_with_transformer_lens(short: str) -> None:
    model, (pairs, metric) = smollm2(), smol_pairs()
    layers, positions = (0, 14, 29), range(int(pairs.lengths[0]) - 1, 0, -3)
    frame = pd.DataFrame([(layer, at) for layer in layers for at in positions], columns=["layer", "pos"])
    sites = [Site(block_hook(layer, short), position=at) for layer in layers for at in positions]
    expected = reference(BY_POSITION[short], model, pairs, metric, index_axis_names=None, index_df=frame)
    assert_first_pair(model, pairs, metric, sites, expected)


@pytest.mark.slow
@pytest.mark.parametrize("short", ["k", "v"])
def test_key_value_heads_of_smollm2_agree_with_plain_patching(short: str) -> None:
    model, (pairs, metric) = smollm2(), smol_pairs()
    patches = single([Site(block_hook(layer, short), head=head) for layer in (0, 12, 29) for head in range(3)])
    found = swept(PatchingEngine(model, show_progress=False), pairs, patches, metric, "noising")
    error, where = largest_error(model, pairs, patches, "noising", [(metric, found)])
    assert error <= allowed(model, [*pairs.clean, *pairs.corrupted]), where


@needs_hooked
@pytest.mark.slow
def test_smollm2_is_the_same_on_both_classes() -> None:
    """Each class rounds in its own way, from folded weights on: their plain runs say how far apart that takes them."""
    pairs, metric = smol_pairs()
    patches = single([Site(block_hook(layer, "z"), head=head) for layer in range(0, 30, 4) for head in range(9)])
    sweeps = [
        swept(PatchingEngine(smollm2(kind), show_progress=False), pairs, patches, metric, "denoising")
        for kind in ("HookedTransformer", "TransformerBridge")
    ]
    apart = max(abs(getattr(sweeps[0], run) - getattr(sweeps[1], run)).max() for run in ("clean", "corrupted"))
    assert abs(sweeps[0].patched - sweeps[1].patched).max() <= 4 * max(apart, allowed(smollm2(), pairs.clean))


# --- one model, two classes, two versions --------------------------------------------------------------------------


@needs_hooked
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_checkpoint_gives_the_same_numbers_on_both_classes(architecture: str) -> None:
    bridge = f"bridge+:{architecture}"
    hooked = loaded(checkpoint(architecture), "HookedTransformer")
    pairs, metric = token_pairs([12, 9, 12], [(3,), (5, 7), (0,)]), last_position_metric(3)
    patches = single(sampled_sites(bridge, [None, 8, -1]))
    sweeps = [
        swept(PatchingEngine(model, show_progress=False), pairs, patches, metric, "noising")
        for model in (hooked, small_model(bridge))
    ]
    assert abs(sweeps[0].patched - sweeps[1].patched).max() <= folded(sweeps[0].patched)


GOLDEN = {
    "z": [-1.9606671941, -2.7028587271],
    "resid_mid": [-1.9565552518, -2.7098867980],
    "mlp_out": [-1.9603046574, -2.7143784427],
    "k": [-1.9790095896, -2.7010710462],
    "pattern": [-1.9597715503, -2.7024758648],
}
"""Metrics of patches in layer 1 of the random GPT-2 checkpoint, from full hooked runs of `HookedTransformer` 3.9."""


@pytest.mark.parametrize("model_class", [pytest.param("HookedTransformer", marks=needs_hooked), "TransformerBridge"])
def test_numbers_are_the_same_on_every_version_and_class(model_class: str) -> None:
    model = loaded(checkpoint("gpt2"), model_class)
    pairs, metric = token_pairs([10, 8], [(3,), (5,)]), last_position_metric(2)
    patches = single([Site(block_hook(1, short), position=6) for short in GOLDEN])
    found = swept(PatchingEngine(model, show_progress=False), pairs, patches, metric, "denoising")
    expected = torch.tensor(list(GOLDEN.values()), dtype=torch.float64)
    torch.testing.assert_close(torch.tensor(found.patched), expected, atol=folded(expected), rtol=0)
