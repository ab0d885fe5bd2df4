"""Results of experiments are the metrics of their runs, in matrices, lists and tables."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re

import numpy as np
import pytest

from actpatch import PromptPair, PromptPairs, check_dataset
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.results.items import HeadPatchingResult
from actpatch.results.positions import PositionResults
from actpatch.results.saved import load_results
from actpatch.results.shapes import KINDS, HeadResults, LayerResults, NeuronResults, SweepResults
from actpatch.tasks.encoding import encode_pairs
from head_patching import print_head_results
from test_suite.helpers.results import made_up_heads, made_up_layers, made_up_sweep


def made_up_neurons(**changes) -> NeuronResults:
    return NeuronResults(made_up_sweep([Site(block_hook(1, "mlp_post"), neuron=n) for n in range(6)], 4, 3, **changes))


def test_layer_matrix_and_top_are_the_effects(layer_results, tiny):
    table = layer_results.matrix()
    assert list(table.columns) == ["attn_out", "mlp_out"] and list(table.index) == list(range(tiny.cfg.n_layers))
    for layer in table.index:
        for component in table.columns:
            assert table.loc[layer, component] == layer_results.effects[f"blocks.{layer}.hook_{component}"]
    ranked = sorted(layer_results.effects.items(), key=lambda item: -abs(item[1]))
    assert layer_results.top(3) == ranked[:3]
    assert len(layer_results.top(1000)) == len(layer_results)


def test_effects_are_ratios_of_means(layer_results, head_results):
    for results in (layer_results, head_results):
        table = results.to_dataframe()
        usable = table[table["effect"].notna()]
        means = usable.groupby("site", sort=False)[["clean", "corrupted", "patched"]].mean()
        expected = (means["patched"] - means["corrupted"]) / (means["clean"] - means["corrupted"])
        np.testing.assert_allclose(results.sweep.effects, expected, atol=1e-9)


def test_table_has_a_row_per_patch_and_pair(head_results, tiny):
    table = head_results.to_dataframe()
    assert len(table) == tiny.cfg.n_layers * tiny.cfg.n_heads * 6
    row = table[(table["layer"] == 2) & (table["head"] == 1) & (table["pair"] == 3)].iloc[0]
    result = next(r for r in head_results if (r.layer, r.head) == (2, 1))
    assert row["effect"] == pytest.approx(result.pair_effects[3], nan_ok=True)
    assert row["hook_point"] == "blocks.2.attn.hook_z" and row["direction"] == "denoising"
    moved = table["patched"] - table["corrupted"]
    np.testing.assert_allclose(
        table["effect"] * (table["clean"] - table["corrupted"]), moved.where(table["effect"].notna())
    )


def test_results_print_in_a_line(layer_results, head_results, patcher, ioi):
    positions = patcher.run_position_experiment(ioi, "resid_pre", pair_indices=[0, 4])
    for results, rows in ((layer_results, "hook points"), (head_results, "heads"), (positions, "sites")):
        text = repr(results)
        assert len(text) < 250 and "\n" not in text and rows in text and "pairs" in text


@pytest.mark.parametrize("make", [made_up_heads, made_up_neurons])
@pytest.mark.parametrize("which", [slice(3), slice(4, 1, -2)])
def test_a_slice_of_results_is_results_of_these_patches(make, which, tmp_path):
    results = make()
    for whole in (results, pickle.loads(pickle.dumps(results))):
        part = whole[which]
        assert type(part) is type(results) and list(part) == list(results)[which]
        assert part.sweep.patches == results.sweep.patches[which]
        np.testing.assert_array_equal(part.sweep.effects, results.sweep.effects[which])
        np.testing.assert_array_equal(part.sweep.patched, results.sweep.patched[which])
        assert load_results(part.save(tmp_path / "part.json")) == part
    assert (results[0], results[-1]) == (next(iter(results)), list(results)[-1])
    assert type(results[:0]) is list and not results[:0]
    assert results[:] == results and results[:].sweep is results.sweep and not results[:].is_part


def test_the_largest_and_a_sorted_copy_are_results_too(tmp_path):
    results = made_up_heads()
    for part, expected in (
        (results.top(3), sorted(results, key=lambda head: -abs(head.effect))[:3]),
        (results.sorted_by(lambda head: head.effect), sorted(results, key=lambda head: head.effect)),
        (results.sorted_by(lambda head: head.effect, reverse=True)[2:5], sorted(results, key=lambda h: -h.effect)[2:5]),
    ):
        assert isinstance(part, HeadResults) and list(map(id, part)) == list(map(id, expected))
        assert part.sweep.effects.tolist() == [head.effect for head in expected]
        assert part.to_dataframe()["site"].drop_duplicates().tolist() == [head.label for head in expected]
        assert load_results(part.save(tmp_path / "part.json")) == part


def few_of_many_significant(make=made_up_heads) -> HeadResults:
    """Results in which one patch is barely significant by itself, and not among all."""
    found = make(n_pairs=12)
    sweep = found.sweep
    noise = np.random.default_rng(0).normal(0, 1, sweep.patched.shape)
    noise[2] += 0.6
    return make(n_pairs=12, patched=sweep.base + noise)


def test_choosing_patches_makes_none_of_them_significant(tmp_path):
    results = few_of_many_significant()
    whole = results.statistics(alpha=0.2)
    lone = HeadResults(
        dataclasses.replace(results.sweep, patches=results.sweep.patches[2:3], measured=only(results, 2))
    )
    assert lone.statistics().significant[0] and not results.statistics().significant[2], "what choosing could do"
    for part, numbers in (
        (results[2:3], [2]),
        (results[1:4][1:2], [2]),
        (results.top(4), [labels_of(results).index(head.label) for head in results.top(4)]),
        (results.sorted_by(lambda head: head.effect), np.argsort(results.sweep.effects, kind="stable").tolist()),
        (load_results(results[2:3].save(tmp_path / "part.json")), [2]),
        (pickle.loads(pickle.dumps(results[2:3])), [2]),
        (copy.deepcopy(results)[2:3], [2]),
    ):
        found = part.statistics(alpha=0.2)
        for name in ("effect", "low", "high", "p", "p_corrected", "significant", "detectable", "too_skewed"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name)[numbers])
        assert found.sites == tuple(head.label for head in part) and found.n_corrected == len(results)
        assert part.is_part == (len(part) < len(results))


def test_printed_parts_count_the_whole_map(capsys):
    results = few_of_many_significant()
    print_head_results(results[2:3])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"correction over {len(results)} heads" in printed
    line = next(line for line in printed.split("#") if "L0H2" in line)
    assert "n.s." in line
    assert f"correction over {len(results)} patches" in results[2:3]._repr_html_()


def test_a_part_shows_another_metric():
    sweep = few_of_many_significant().sweep
    other = dataclasses.replace(sweep.measured[0], name="rank", patched=sweep.patched[::-1].copy())
    both = HeadResults(dataclasses.replace(sweep, measured=(*sweep.measured, other)))
    part = both[1:3].by_metric("rank")
    assert part.sweep.effects.tolist() == both.by_metric("rank").sweep.effects[1:3].tolist()
    np.testing.assert_array_equal(part.statistics().p_corrected, both.by_metric("rank").statistics().p_corrected[1:3])
    assert part == both.by_metric("rank")[1:3] and part != both[1:3]


def test_a_part_that_contradicts_its_whole_is_refused():
    part = made_up_heads()[:3].sweep
    for changes in ({"patches": part.patches[::-1]}, {"pair_indices": tuple(range(5))}):
        with pytest.raises(ValueError, match="patches, pairs or estimate are not those of the whole experiment"):
            dataclasses.replace(part, **changes)


def test_a_list_that_was_sorted_is_cut_as_it_stands():
    results = made_up_heads()
    results.sort(key=lambda result: result.effect)
    expected = sorted(made_up_heads(), key=lambda result: result.effect)
    assert isinstance(results[:3], HeadResults) and list(results[:3]) == expected[:3]
    assert results[:3].sweep.effects.tolist() == [head.effect for head in expected[:3]]
    results.append(dataclasses.replace(expected[0], layer=9))
    assert type(results[-2:]) is list, "what was added is of no experiment"


def test_a_component_of_layer_results_is_all_its_layers(tmp_path):
    results = made_up_layers()
    part = results["mlp_out"]
    assert isinstance(part, LayerResults) and list(part) == [f"blocks.{i}.hook_mlp_out" for i in range(4)]
    assert all(part[name] == results[name] for name in part) and part.is_part
    np.testing.assert_array_equal(part.statistics().p_corrected, results.statistics().p_corrected[4:])
    assert load_results(part.save(tmp_path / "part.json")) == part
    assert isinstance(results["blocks.0.hook_mlp_out"], list) and "mlp_out" not in results
    with pytest.raises(KeyError, match=r"'z' was not patched: there are 'blocks.0.hook_attn_out'.*all layers of 'at"):
        results["z"]


def test_patches_of_any_sweep_are_ranked():
    sweep = made_up_layers().sweep
    ranked = sorted(zip(sweep.patches, sweep.effects.tolist()), key=lambda each: -abs(each[1]))
    assert sweep.top(3) == SweepResults(sweep).top(3) == made_up_positions_of(sweep) == ranked[:3]
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        SweepResults(sweep).top(0)


def made_up_positions_of(sweep):
    """The same, by results of positions."""
    sites = [Site(patch.sites[0].hook_point, position=1) for patch in sweep.patches]
    placed = PositionResults(dataclasses.replace(sweep, patches=tuple(Patch((site,)) for site in sites)))
    numbers = {patch: i for i, patch in enumerate(placed.sweep.patches)}
    return [(sweep.patches[numbers[patch]], effect) for patch, effect in placed.top(3)]


def only(results, number):
    return tuple(dataclasses.replace(m, patched=m.patched[number : number + 1]) for m in results.sweep.measured)


def labels_of(results):
    return [head.label for head in results]


@pytest.mark.parametrize("make", [made_up_heads, made_up_neurons])
def test_an_item_prints_in_a_line(make):
    first = make(n_pairs=500)[0]
    assert repr(first) == f"{type(first).__name__}({first.label}, effect {first.effect:+.3f} on 500 pairs)"


def test_a_shape_of_ones_own_is_read_back_by_its_name(tmp_path):
    class RankedHeads(HeadResults):
        """Heads of one's own."""

    mine = RankedHeads(made_up_heads().sweep)
    assert load_results(mine.save(tmp_path / "mine.json")) == mine and isinstance(mine[0], HeadPatchingResult)
    del KINDS["RankedHeads"]


def test_every_value_prints_in_a_line(head_results, layer_results, patcher, ioi, tiny):
    """None of them writes out what it holds for each pair."""
    positions = patcher.run_position_experiment(ioi, "resid_pre", positions=["S2", "END"])
    pairs = encode_pairs(tiny, ioi)
    own = PromptPairs(tiny, [PromptPair("The cat sat on the", "The dog sat on the", (" mat",), (" rug",))])
    check = check_dataset(tiny, ioi)
    values = [
        *pairs.metrics(["logit_difference", "rank", "kl_divergence"]),
        pairs.answers,
        positions.top(1)[0],
        positions.sweep,
        positions.sweep.measured[0],
        positions.sweep.patches[0].sites[0],
        head_results.top(1),
        head_results.top(1)[0],
        layer_results["attn_out"],
        next(iter(layer_results.values()))[0],
        check,
        check.pairs[0],
        *check.findings,
        own,
        ioi,
    ]
    for value in values:
        assert len(repr(value)) < 260 and "\n" not in repr(value), repr(value)
        assert not re.search(r"\d\.\d{5}", repr(value).rpartition(", ")[0]), repr(value)
    top = head_results.top(1)
    assert repr(top).startswith(f"HeadResults({top[0].label} {top[0].effect:+.3f}; 1 head (of ")
    assert repr(ioi) == f'IOIDataset(6 pairs, "{ioi.name}", seed 0)'
    assert repr(own) == 'PromptPairs(1 pair, "own prompts")'
    assert repr(Site("hook_embed", position=tuple(range(9)))) == (
        "Site('hook_embed', position=(0, 1, 2, 3, … 9 positions))"
    )
    assert repr(next(iter(layer_results.values()))[0]).startswith("PatchingResult(blocks.0.hook_attn_out, pair 0, eff")
