"""Prompts of other lengths: any alignment, by a plain hooked loop over positions, and by theorem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actpatch.core.alignment import Matches, identity, matched_ends
from actpatch.core.sites import Patch, Site, block_hook, head_axis
from actpatch.engine.engine import PatchingEngine
from actpatch.tasks.encoding import EncodedPairs
from test_suite.engine.test_property import FEWEST_NEURONS, MODELS, QUICK_MODELS, looks_at_random_entries
from test_suite.helpers.closeness import EXACT, allowed
from test_suite.helpers.models import (
    D_VOCAB,
    HAS_HOOKED,
    everything_metric,
    head_count,
    last_position_metric,
    model_parameters,
    short_hook_points,
    small_model,
    swept,
    token_pairs,
)
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import engine_on, single
from test_suite.helpers.thinned import thinned
from test_suite.oracles.aligned import partners_of, patched_run
from test_suite.oracles.plain import measured

DIRECTIONS: tuple[Any, ...] = ("denoising", "noising")
PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"


def aligned(
    clean: Sequence[Sequence[int]], corrupted: Sequence[Sequence[int]], matches: Sequence[Matches]
) -> EncodedPairs:
    """Prompts of these ids, with what stands for what."""
    texts = [tuple(tuple(f"w{token}" for token in prompt) for prompt in run) for run in (clean, corrupted)]
    ids = [tuple(torch.tensor(prompt) for prompt in run) for run in (clean, corrupted)]
    return EncodedPairs(tuple(range(len(clean))), *ids, *texts, matches=tuple(matches))


def ends(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> EncodedPairs:
    clean, corrupted = zip(*pairs)
    return aligned(clean, corrupted, [matched_ends(*pair) for pair in pairs])


NAMES = ends(
    [
        ([1, 5, 6, 20, 7, 8, 9, 4], [1, 5, 6, 30, 31, 32, 7, 8, 9, 4]),
        ([1, 3, 21, 22, 11, 12], [1, 3, 33, 11, 12]),
        ([1, 5, 6, 20, 7, 8, 9, 4, 2], [1, 5, 6, 34, 7, 8, 9, 4, 2]),
        ([1, 23, 24, 6, 10], [1, 35, 6, 10]),
    ]
)
"""Names of one to three tokens against others, and a pair of as many tokens."""


def largest_error(
    model: Any, pairs: EncodedPairs, patches: Sequence[Patch], direction: str, metric: Any, found: Any
) -> tuple[float, str]:
    """How far the sweep is off the plain loop, and where; the baselines are compared as well."""
    base, other = (pairs.corrupted, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupted)
    worst, where = 0.0, ""
    for i, patch in enumerate(patches):
        logits = [
            patched_run(model, base[pair], other[pair], patch, partners_of(pairs.matches[pair], direction), pair)
            for pair in range(len(pairs))
        ]
        for pair, expected in enumerate(measured(metric, logits)):
            error = abs(float(found.patched[i, pair]) - expected)
            if not error <= worst:
                worst, where = error, f"{patch.label} on pair {pair}, {direction}"
    for run, prompts in (("clean", pairs.clean), ("corrupted", pairs.corrupted)):
        with torch.no_grad():
            expected = measured(metric, [model(prompt[None])[0] for prompt in prompts])
        if not (error := float(np.abs(getattr(found, run) - expected).max())) <= worst:
            worst, where = error, f"the {run} run"
    return worst, where


# --- any experiment --------------------------------------------------------------------------------------------------


@st.composite
def aligned_pairs(draw: st.DrawFn) -> EncodedPairs:
    """One to three pairs of any lengths: with common ends, or with any positions matched, crossing or not."""
    clean, corrupted, matches = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        token = st.integers(2, D_VOCAB - 1)
        if draw(st.booleans()):
            start, end = (draw(st.lists(token, min_size=1, max_size=4)) for _ in range(2))
            middles = [draw(st.lists(token, max_size=3)) for _ in range(2)]
            one, other = ([*start, *middle, *end] for middle in middles)
            matches.append(matched_ends(one, other))
        else:
            one, other = (draw(st.lists(token, min_size=2, max_size=9)) for _ in range(2))
            n = draw(st.integers(1, min(len(one), len(other))))
            here, there = (draw(st.permutations(range(len(prompt))))[:n] for prompt in (one, other))
            matches.append(tuple(sorted(zip(here, there))))
        clean.append(one)
        corrupted.append(other)
    return aligned(clean, corrupted, matches)


@st.composite
def patches_for(draw: st.DrawFn, name: str, lengths: Sequence[int]) -> list[Patch]:
    """A few patches of one to three sites, at all positions, one, one per pair, or a span per pair."""
    points = [point for point in short_hook_points(name) if head_axis(point) != 1]
    per_pair = st.tuples(*(st.integers(-length, length - 1) for length in lengths))
    spans = st.tuples(
        *(st.lists(st.integers(0, n - 1), min_size=1, max_size=4, unique=True).map(tuple) for n in lengths)
    )
    position = st.none() | st.integers(-min(lengths), min(lengths) - 1) | per_pair | spans
    patches = []
    for _ in range(draw(st.integers(1, 4))):
        sites = []
        for point in draw(st.lists(st.sampled_from(points), min_size=1, max_size=3)):
            heads = head_count(small_model(name), point)
            head = draw(st.none() | st.integers(0, heads - 1)) if head_axis(point) is not None else None
            has_neurons = Site(point).kind.has_neurons
            neuron = draw(st.none() | st.integers(0, FEWEST_NEURONS - 1)) if has_neurons else None
            sites.append(Site(point, head, draw(position), neuron))
        patches.append(Patch(tuple(sites)))
    return patches


def check_any_alignment(data: st.DataObject, models: Sequence[str]) -> None:
    name = data.draw(st.sampled_from(models), label="model")
    model, pairs = small_model(name), data.draw(aligned_pairs(), label="pairs")
    direction: Any = data.draw(st.sampled_from(DIRECTIONS), label="direction")
    patches = data.draw(patches_for(name, pairs.in_direction(direction).lengths.tolist()), label="patches")
    batch_size = data.draw(st.none() | st.integers(1, 6), label="batch size")
    metric = data.draw(st.sampled_from([last_position_metric, everything_metric]), label="metric")(len(pairs))
    engine = PatchingEngine(model, batch_size=batch_size, show_progress=False)
    found = swept(engine, pairs, patches, metric, direction)
    error, where = largest_error(model, pairs, patches, direction, metric, found)
    assert error <= allowed(model, [*pairs.clean, *pairs.corrupted]), f"{error:.2g} off at {where}"


@looks_at_random_entries
@settings(max_examples=20)
@given(st.data())
def test_any_alignment_agrees_with_a_plain_loop(data: st.DataObject) -> None:
    check_any_alignment(data, QUICK_MODELS)


@looks_at_random_entries
@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=20)
@given(data=st.data())
def test_many_alignments_on_every_architecture_agree_with_a_plain_loop(name: str, data: st.DataObject) -> None:
    check_any_alignment(data, (name,))


# --- names of other lengths, several lengths in one batch ------------------------------------------------------------


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "direction"),
    thinned(
        model_parameters("hooked:learned", "hooked:grouped", "bridge:llama", slow=["bridge+:gpt2", "bridge:gemma2"]),
        DIRECTIONS,
    ),
)
def test_every_component_agrees_with_a_plain_loop(name: str, direction: Any) -> None:
    model = small_model(name)
    points = [point for point in short_hook_points(name) if head_axis(point) != 1 and Site(point).layer == 1]
    at = ((3, 4), (2,), (3,), (1, -1)) if direction == "noising" else ((3, 4, 5), 2, 3, (1, 3))
    patches = single([Site(point, position=where) for point in points for where in (None, -1, 1, at)])
    patches += [
        Patch(tuple(Site(block_hook(layer, "mlp_out")) for layer in range(3))),
        Patch((Site(block_hook(0, "attn_out"), position=at), Site(block_hook(2, "resid_pre"), position=-2))),
        Patch((Site("hook_embed"),)),
    ]
    bound = allowed(model, [*NAMES.clean, *NAMES.corrupted])
    for turn, metric in enumerate((last_position_metric(4), everything_metric(4))):
        found = swept(engine_on(model), NAMES, patches[turn::2], metric, direction)
        error, where = largest_error(model, NAMES, patches[turn::2], direction, metric, found)
        assert error <= bound, f"{error:.2g} off at {where}"
        assert np.ptp(found.patched, axis=0).min() > 1e-3


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tokens_moved_within_the_common_beginning_change_it(direction: Any) -> None:
    """There both runs hold the same, but not in the place where it is written."""
    clean, corrupted = [1, 5, 6, 7, 20, 8], [1, 5, 6, 7, 30, 31, 8]
    pairs = aligned([clean], [corrupted], [((0, 0), (1, 2), (2, 1), (3, 3), (5, 6))])
    patches = single([Site(block_hook(1, "resid_pre"), position=at) for at in (None, 1, 2, ((1, 2),))])
    metric = everything_metric(1)
    found = swept(engine_on(small_model(PLAIN)), pairs, patches, metric, direction)
    error, where = largest_error(small_model(PLAIN), pairs, patches, direction, metric, found)
    assert error <= EXACT, f"{error:.2g} off at {where}"
    base = found.corrupted if direction == "denoising" else found.clean
    assert abs(found.patched - base).min() > 1e-3


def test_both_directions_from_one_recording_are_the_two_single_ones() -> None:
    engine, metric = engine_on(small_model(PLAIN)), last_position_metric(4)
    patches = single([Site(block_hook(layer, "resid_pre"), position=at) for layer in range(3) for at in (None, -2)])
    both = engine.sweeps(NAMES, dict.fromkeys(DIRECTIONS, patches), [metric])
    for direction, found in zip(DIRECTIONS, both):
        alone = engine.sweep(NAMES, patches, [metric], direction)
        np.testing.assert_allclose(found.patched, alone.patched, atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge:llama"))
def test_shortcuts_are_used_and_where_none_holds_the_numbers_are_the_same(name: str) -> None:
    """A hook of the user's takes all shortcuts away: each prompt is then run alone, as long as it is."""
    model, metric = small_model(name), everything_metric(4)
    patches = single([Site(block_hook(1, "z"), head=1), Site(block_hook(0, "resid_post"), position=-1)])
    engine = engine_on(model)
    found = engine.sweep(NAMES, patches, [metric])
    assert {"resume", "prefix", "padded", "together"} <= {*engine.shortcuts}
    handle = model.unembed.register_forward_hook(lambda module, args, output: output)
    try:
        with pytest.warns(UserWarning, match="every run is one of a whole prompt alone"):
            alone = engine.sweep(NAMES, patches, [metric])
    finally:
        handle.remove()
    assert engine.shortcuts == ()
    np.testing.assert_allclose(alone.patched, found.patched, atol=allowed(model, [*NAMES.clean]), rtol=0)


# --- theorems --------------------------------------------------------------------------------------------------------


def test_an_alignment_that_changes_nothing_is_bit_for_bit_none() -> None:
    pairs = token_pairs([9, 7, 9], [(3,), (2, 5), ()])
    same = replace(pairs, matches=tuple(identity(len(prompt)) for prompt in pairs.clean))
    points = [point for point in short_hook_points(PLAIN) if head_axis(point) != 1]
    patches = single([Site(point, position=at) for point in points for at in (None, 5, -1, ((3, 4), 2, (1, 2, 8)))])
    for direction in DIRECTIONS:
        found = [
            swept(engine_on(small_model(PLAIN)), of, patches, everything_metric(3), direction) for of in (pairs, same)
        ]
        np.testing.assert_array_equal(found[0].patched, found[1].patched)


def test_a_span_is_its_positions_patched_together() -> None:
    pairs, model = token_pairs([9, 7], [(3, 4), (2, 5)]), small_model(PLAIN)
    span = [Patch((Site(block_hook(layer, "resid_pre"), position=((3, 4, 6), (2,))),)) for layer in range(3)]
    apart = [
        Patch(tuple(Site(block_hook(layer, "resid_pre"), position=at) for at in ((3, 2), (4, 2), (6, 2))))
        for layer in range(3)
    ]
    for direction in DIRECTIONS:
        found, expected = (swept(engine_on(model), pairs, of, everything_metric(2), direction) for of in (span, apart))
        np.testing.assert_array_equal(found.patched, expected.patched)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_positions_without_a_partner_and_the_common_beginning_change_nothing(direction: Any) -> None:
    middle = ((3,), (2, 3), (2,), (1, 2)) if direction == "noising" else ((3, 4, 5), 2, 2, 1)
    sites = [Site(block_hook(layer, "resid_post"), position=at) for layer in (0, 1) for at in (middle, 0)]
    found = swept(engine_on(small_model(PLAIN)), NAMES, single(sites), last_position_metric(4), direction)
    base = found.corrupted if direction == "denoising" else found.clean
    np.testing.assert_array_equal(found.patched, np.tile(base, (4, 1)))


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge+:gpt2"))
def test_the_stream_behind_the_last_token_is_all_that_the_other_run_says(name: str) -> None:
    found = swept(
        engine_on(small_model(name)),
        NAMES,
        single([Site(block_hook(2, "resid_post"), position=-1)]),
        last_position_metric(4),
    )
    np.testing.assert_allclose(found.patched[0], found.clean, atol=EXACT, rtol=0)
    assert abs(found.corrupted - found.clean).min() > 1e-3


@pytest.mark.parametrize("point", ["pattern", "attn.hook_attn_scores"])
def test_patterns_are_refused_with_the_reason(point: str) -> None:
    name = f"blocks.1.attn.hook_{point}" if point == "pattern" else f"blocks.1.{point}"
    with refused(
        r"has a column for every token .*\(pair 0: 8 and 10 tokens\)\. Patch q, k, v or z, or choose pairs of one"
    ):
        engine_on(small_model(PLAIN)).sweep(NAMES, single([Site(name)]), [last_position_metric(4)])


def test_pairs_of_other_lengths_need_to_say_what_goes_together() -> None:
    with pytest.raises(ValueError, match="pair 0: the prompts have 8 and 10 tokens, and no matches say which"):
        replace(NAMES, matches=())
