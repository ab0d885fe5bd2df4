"""Results of experiments are the metrics of their runs, in matrices, lists and tables."""

from __future__ import annotations

import numpy as np
import pytest


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
