"""Results are read back as they were saved, with what they were drawn from."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

import activation_patching
from activation_patching import IOIDataset
from actpatch.results.positions import PositionResults
from actpatch.results.saved import load_results
from actpatch.results.sweep import PER_PAIR
from test_suite.helpers.prompts import ANIMALS, Prompts
from test_suite.helpers.refusals import refused


def test_results_are_read_back_as_they_were_saved(patcher, layer_results, head_results, tiny, ioi, tmp_path):
    positions = patcher.run_position_experiment(ioi, "resid_pre", pair_indices=[0, 4], direction="noising")
    for results in (layer_results, head_results, positions):
        path = results.save(tmp_path / "results.json")
        loaded = load_results(str(path))
        assert type(loaded) is type(results) and repr(loaded) == repr(results)
        for name in ("patched", "clean", "corrupted"):
            np.testing.assert_array_equal(getattr(loaded.sweep, name), getattr(results.sweep, name))
        for name in ("patches", *PER_PAIR, "versions", "direction", "task"):
            assert getattr(loaded.sweep, name) == getattr(results.sweep, name)
        assert loaded.to_dataframe().equals(results.to_dataframe())
        if not isinstance(results, PositionResults):
            assert loaded.top(5) == results.top(5)


def test_results_keep_what_the_pairs_were_drawn_from(tiny, patcher, tmp_path):
    drawn = IOIDataset(tiny, 2, seed=np.int64(7), corruption="flip_subject")
    results = patcher.run_patching_experiment(drawn, "blocks.0.hook_mlp_out")
    loaded = load_results(results.save(tmp_path / "results.json")).sweep
    assert (loaded.dataset_seed, type(loaded.dataset_seed)) == (7, int)
    assert loaded.varies == drawn.varies != "" and "subject" in loaded.task
    noised = patcher.run_patching_experiment(
        drawn, "blocks.0.hook_mlp_out", noise=activation_patching.GaussianNoise("S2", samples=1)
    )
    assert (noised.sweep.dataset_seed, noised.sweep.varies) == (7, ""), "noise makes the corrupted run"
    own = Prompts(tiny, ANIMALS)
    assert patcher.run_patching_experiment(own, "resid_pre", position=2).sweep.dataset_seed is None
    own.seed = "today"
    with refused("the dataset 'prompts' has the seed 'today', expected the integer that its pairs were drawn from, or"):
        patcher.run_patching_experiment(own, "resid_pre", position=2)


def test_a_file_that_holds_no_results_is_named(tmp_path):
    path = tmp_path / "other.json"
    for text in ("not json", "[1]", "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"other\.json holds no saved patching results"):
            load_results(path)
    path.write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has result format 99, this version reads formats 8, 9 and 10"):
        load_results(path)


def test_saved_versions_are_those_installed(layer_results):
    assert layer_results.sweep.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert layer_results.sweep.versions["transformers"] == transformers.__version__


def test_reading_results_does_not_wait_for_what_tables_and_figures_need():
    heavy = ("torch", "pandas", "scipy", "plotly", "transformers", "transformer_lens")
    code = (
        "import sys, actpatch.statistics.sites; from actpatch import load_results; load_results\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
