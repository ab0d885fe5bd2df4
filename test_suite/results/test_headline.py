"""The sentence about what was found: its numbers are those of the statistics, and it claims no more than they carry."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from activation_patching import BothDirections
from actpatch.core.sites import Site, block_hook
from actpatch.results.headline import TOLD_FIRST, headline
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import HeadResults, LayerResults, NeuronResults, SweepResults
from test_suite.helpers.results import made_up_sweep

N_PAIRS = 20


def results_of(effects: list[float], shape: Any = HeadResults, sites: list[Site] | None = None, **changes: Any) -> Any:
    """Results of these effects, with a scatter of a fiftieth between pairs that are all unlike each other."""
    n_pairs = changes.pop("n_pairs", N_PAIRS)
    sites = sites or [Site(block_hook(i // 3, "z"), i % 3) for i in range(len(effects))]
    clean, corrupted = np.full(n_pairs, 3.0), np.full(n_pairs, -1.0)
    base, gap = (clean, -4.0) if changes.get("direction") == "noising" else (corrupted, 4.0)
    scatter = 0.02 * np.random.default_rng(0).normal(size=(len(effects), n_pairs))
    by_pair = np.array(effects)[:, None] + scatter + changes.pop("by_pair", 0)
    tokens = tuple(("<s>", f"word{i}") for i in range(n_pairs))
    fields = {"clean": clean, "corrupted": corrupted, "patched": base + gap * by_pair, "clean_tokens": tokens}
    return shape(made_up_sweep(sites, 4, 3, n_pairs, **{**fields, **changes}))


def numbers(results: SweepResults, site: int) -> str:
    found = results.statistics()
    effect, low, high = (f"{of[site]:.2f}" for of in (found.effect, found.low, found.high))
    return f"{effect} [{low}, {high}] of the difference"


def test_it_counts_what_is_significant_and_gives_the_largest_with_its_interval():
    results = results_of([0.0, 0.61, 0.3, 0.0, 0.0, -0.2])
    assert headline(results) == (
        f"3 of 6 heads matter (corrected p ≤ 0.05, 20 pairs): L0H1 restores {numbers(results, 1)}"
    )
    against = results_of([0.0, 0.1, 0.0, -0.7])
    assert headline(against).endswith(f"L1H0 works the other way, {numbers(against, 3)}")
    one = results_of([0.0, 0.0, 0.5])
    assert headline(one).startswith("1 of 3 heads matters (corrected")


def test_nothing_is_claimed_where_nothing_is_significant_or_could_be():
    assert headline(results_of([0.0] * 6)) == (
        "None of 6 heads has a significant mean effect (corrected p ≤ 0.05, 20 pairs)"
    )
    for n_pairs, said in ((1, "1 pair cannot"), (4, "4 pairs cannot")):
        assert headline(results_of([0.0, 0.9], n_pairs=n_pairs)) == f"{said} tell which of 2 heads matter"
    assert headline(results_of([0.9], n_pairs=4)) == "4 pairs cannot tell which of 1 head matters"


def test_pairs_that_carry_no_conclusion_are_said_first_and_alone():
    results = results_of([0.0, 0.9], clean=np.full(N_PAIRS, -1.0))
    said = headline(results)
    assert said.startswith("These pairs carry no conclusion: The model prefers the wrong answer on 20 of 20 clean")
    assert "matter" not in said and "restores" not in said


def test_effects_that_differ_between_groups_stand_in_the_place_of_their_mean():
    groups = ("IO first", "subject first") * 10
    opposed = np.zeros((4, N_PAIRS))
    opposed[1, ::2], opposed[1, 1::2] = -0.6, 0.6
    results = results_of([0.0, 0.5, 0.3, 0.0], by_pair=opposed, groups=groups)
    one, other = (of.sweep.effects[1] for of in results.by_group().values())
    assert headline(results) == (
        f"1 of 4 heads acts otherwise in one group of pairs than in another: L0H1 restores -{abs(one):.2f} in 10 pairs "
        f"(IO first) and {other:.2f} in 10 pairs (subject first) of the difference; 1 of 3 other heads matters "
        f"(corrected p ≤ 0.05, 20 pairs): L0H2 restores {numbers(results, 2)}"
    )
    alone = results_of([0.0, 0.0], by_pair=opposed[:2], groups=groups)
    assert headline(alone).endswith("; none of 2 heads has a significant mean effect (corrected p ≤ 0.05, 20 pairs)")
    slight = opposed * (0.4 * TOLD_FIRST / 0.6)
    assert headline(results_of([0.0, 0.5, 0.3, 0.0], by_pair=slight, groups=groups)).startswith("2 of 4 heads matter")


def test_layers_are_named_in_words_and_the_whole_stream_is_no_finding_beside_its_parts():
    sites = [Site(block_hook(1, component)) for component in ("resid_pre", "attn_out", "mlp_out")]
    layers = results_of([1.0, 0.79, 0.1], LayerResults, sites)
    assert headline(layers) == (
        f"3 of 3 hook points matter (corrected p ≤ 0.05, 20 pairs): attention of layer 1 alone restores "
        f"{numbers(layers, 1)}"
    )
    streams = [Site(block_hook(layer, "resid_pre"), position=(2,) * N_PAIRS, position_name="S2") for layer in range(3)]
    places = results_of([0.0, 1.0, 0.5], PositionResults, streams)
    assert f": the residual stream before layer 1 at S2 restores {numbers(places, 1)}" in headline(places)
    neurons = results_of([0.0, 0.4], NeuronResults, [Site(block_hook(1, "mlp_post"), neuron=i) for i in range(2)])
    assert headline(neurons).startswith("1 of 2 neurons matters")


def test_direction_and_what_was_written_decide_the_verb():
    noised = results_of([0.0, 0.5], direction="noising")
    assert f"L0H1 takes away {numbers(noised, 1)}" in headline(noised)
    ablated = results_of([0.0, 0.5], direction="noising", source_kind="ablation", source_of_values="zero")
    assert "L0H1 when ablated takes away 0.5" in headline(ablated)


def test_several_results_make_one_sentence_and_nothing_is_said_twice():
    heads = results_of([0.0, 0.61])
    layers = results_of([0.0, 0.8], LayerResults, [Site(block_hook(1, name)) for name in ("mlp_out", "attn_out")])
    alone = numbers(layers, 1).removesuffix(" of the difference")
    assert headline(heads, layers) == f"{headline(heads)}; attention of layer 1 alone restores {alone}"
    both = headline(BothDirections(heads, results_of([0.0, 0.5], direction="noising")))
    assert re.fullmatch(r"Denoising: 1 of 2 heads .* restores .*; noising: 1 of 2 heads .* takes away .*", both)
    unsound = [results_of([0.0, 0.9], clean=np.full(N_PAIRS, -1.0)) for _ in range(2)]
    assert headline(*unsound).count("no conclusion") == 1
    with pytest.raises(ValueError, match="headline was given no results, expected what an experiment returns"):
        headline()
