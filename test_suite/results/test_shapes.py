"""Results of experiments are the metrics of their runs, in matrices, lists and tables."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from actpatch.core.sites import Site, block_hook
from actpatch.results.items import HeadPatchingResult
from actpatch.results.saved import load_results
from actpatch.results.shapes import KINDS, HeadResults, NeuronResults
from test_suite.helpers.results import made_up_heads, made_up_sweep


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


def test_a_list_that_was_sorted_is_cut_as_it_stands():
    results = made_up_heads()
    results.sort(key=lambda result: result.effect)
    assert type(results[:3]) is list and results[:3] == sorted(made_up_heads(), key=lambda result: result.effect)[:3]


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
