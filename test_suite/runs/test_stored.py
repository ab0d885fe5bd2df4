"""What is stored in units is what one call in memory gives: every kind of experiment, whatever is said of it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from actpatch import ActivationPatcher, Store, load_run, open_run, progress_of
from actpatch.engine.engine import PatchingEngine
from actpatch.runs import units
from actpatch.runs.folder import RunFolder
from actpatch.runs.parts import Part
from actpatch.runs.worker import run_units
from test_suite.helpers.models import bundled
from test_suite.helpers.runs import assert_same_results, experiments, ioi_of, sweeps_of

KINDS = list(experiments(bundled()))
OTHERWISE_WRITTEN = ("resample", "whole answers", "edges", "circuits", "matched")
"""Those whose patches, sources or metrics are written down each in a way of its own."""
WITHIN = 1e-9
"""In double precision."""

pytestmark = pytest.mark.filterwarnings("ignore:(The|the) ", "ignore:.* pairs", "ignore:estimates", "ignore:.*single")


@pytest.fixture(scope="module")
def run():
    return experiments(bundled())["layers"]


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """A folder of several units, and what its run gave."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, run(store=Store(folder, rows_per_unit=20))


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in OTHERWISE_WRITTEN)) for kind in KINDS]
)
def test_units_together_are_the_sweep_of_one_call_and_a_folder_holds_all_that_a_worker_needs(kind, tmp_path):
    run = experiments(bundled())[kind]
    whole = run()
    n = sweeps_of(whole)[0].patched.size
    stored = run(store=Store(tmp_path / "run", rows_per_unit=max(1, n // 2)))
    assert_same_results(stored, whole, WITHIN)
    assert load_run(tmp_path / "run") == stored  # the folder alone says all of it
    folder = RunFolder(tmp_path / "run")
    spec = folder.read_spec()
    assert len(spec.units) > 1
    for number in range(len(spec.units)):
        folder.part(spec.units[number]).unlink()
    engine = PatchingEngine(bundled(), show_progress=False, estimate=spec.asked.estimate)
    run_units(folder, spec, spec.asked, engine, range(len(spec.units)))
    assert load_run(tmp_path / "run") == stored
    assert run(store=tmp_path / "run") == stored


def test_in_single_precision_effects_differ_by_less_than_a_millionth(tmp_path):
    run = experiments(bundled(dtype=torch.float32))["neurons"]
    whole, stored = run(), run(store=Store(tmp_path, rows_per_unit=20))
    for one, other in zip(sweeps_of(stored), sweeps_of(whole)):
        np.testing.assert_allclose(one.effects, other.effects, rtol=0, atol=1e-6)


def test_what_changes_nothing_has_an_effect_of_exactly_0(tmp_path):
    """Before the first token that differs nothing is written: in whichever unit, on whichever baseline."""
    data = ioi_of(bundled(dtype=torch.float32))
    patcher = ActivationPatcher(data.model, show_progress=False)
    results = patcher.run_patching_experiment(
        data, ["resid_pre", "z"], position=1, store=Store(tmp_path, rows_per_unit=6)
    )
    assert (results.sweep.pair_effects[:, results.sweep.usable] == 0).all()


def test_a_run_goes_on_where_it_ended_and_runs_nothing_twice(run, finished, folder):
    parts = {path: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}
    gone = sorted(parts)[1::2]
    for path in gone:
        path.unlink()
    assert run(store=folder) == finished[1]
    assert {path for path, at in parts.items() if path.stat().st_mtime_ns == at} == {*parts} - {*gone}


def test_a_metric_of_ones_own_is_stored_and_gone_on_with(tmp_path):
    data = ioi_of(bundled())
    patcher = ActivationPatcher(bundled(), show_progress=False)

    def first_logit(logits, pair):
        return float(logits[0, -1, 5 + pair] + pair)

    run = {"dataset": data, "hook_points": "attn_out", "metrics": [first_logit, "kl_divergence"]}
    whole = patcher.run_patching_experiment(**run)
    stored = patcher.run_patching_experiment(**run, store=Store(tmp_path, rows_per_unit=5))
    assert_same_results(stored, whole, WITHIN)
    assert load_run(tmp_path) == stored
    with pytest.raises(ValueError, match=r"first_logit.*cannot hold: go on with the same call"):
        _ = RunFolder(tmp_path).read_spec().asked


def test_a_part_is_a_table_that_says_by_itself_what_was_measured(finished):
    folder, stored = finished
    table = pd.read_parquet(folder / "parts")
    theirs = stored.to_dataframe()
    keys = ["direction", "metric", "site", "pair"]
    assert len(table) == len(theirs)
    both = table.merge(theirs, on=keys, suffixes=("", "_of_results"), validate="one_to_one")
    assert len(both) == len(table)
    for name in ("patched", "clean", "corrupted"):
        np.testing.assert_allclose(both[name], both[f"{name}_of_results"], atol=1e-9)
    assert (both["layer"] == both["layer_of_results"]).all()


def test_units_have_some_patches_on_several_pairs_rather_than_very_many_on_one(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "MOST_PATCHES", 4)
    plan = experiments(bundled())["neurons"](store=Store(tmp_path, rows_per_unit=8), plan=True)
    cut = plan.spec.units
    assert (cut.pairs, cut.blocks_of_patches) == ((0, 2, 4, 6, 8, 9), 3)
    assert sum(cut[number].n_rows for number in range(len(cut))) == 10 * 9


def test_a_home_directory_is_a_persons(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    stored = experiments(bundled())["places"](store="~/my run")
    assert (tmp_path / "my run/spec.json").exists()
    assert load_run("~/my run") == stored and progress_of("~/my run").is_finished
    assert open_run("~/my run").metric == stored.sweep.metric


def test_units_do_not_depend_on_how_they_are_run(tmp_path):
    data = ioi_of(bundled())
    specs = []
    for name, batch_size in (("a", 1), ("b", None)):
        patcher = ActivationPatcher(bundled(), batch_size=batch_size, show_progress=False)
        patcher.run_patching_experiment(data, "attn_out", store=tmp_path / name)
        specs.append(json.loads((tmp_path / name / "spec.json").read_text()))
    assert specs[0] == specs[1]


def test_of_an_unfinished_run_there_is_what_is_whole(run, finished, folder):
    stored = finished[1]
    (folder / "manifest.json").unlink()
    (folder / "parts/000003.parquet").unlink()
    lost = RunFolder(folder).read_spec().units[3]
    with pytest.warns(UserWarning, match=r"partial: \d+ of \d+ units"):
        partial = load_run(folder)
    for one, whole in zip(sweeps_of(partial), sweeps_of(stored)):
        assert one.notes[0].startswith("partial: ")
        kept = [i for i in range(len(whole.pair_indices)) if i not in lost.pairs]
        assert one.pair_indices == tuple(whole.pair_indices[i] for i in kept)
        np.testing.assert_array_equal(one.patched, whole.patched[:, kept])
        assert one.statistics().n_corrected == len(one.patches)
    assert run(store=folder) == stored


def test_parts_of_a_unit_are_the_unit(tmp_path):
    """Halves, by patches and by pairs, put together, are what the unit is."""
    from actpatch.runs.joining import of_halves

    experiments(bundled())["layers"](store=Store(tmp_path, rows_per_unit=1000))
    spec = RunFolder(tmp_path).read_spec()
    engine, (whole,) = PatchingEngine(bundled(), show_progress=False), [spec.units[0]]

    def measured(unit):
        return spec.asked.part(unit.pairs, slice(unit.patches.start, unit.patches.stop)).measured(engine)

    quarters = [
        Part(half, tuple(of_halves(half, [Part(q, tuple(measured(q)), {}) for q in spec.units.halves(half)], ways)), {})
        for ways in [tuple(spec.asked.patches)]
        for half in spec.units.halves(whole)
    ]
    for found, expected in zip(of_halves(whole, quarters, tuple(spec.asked.patches)), measured(whole)):
        for run in ("patched", "clean", "corrupted"):
            np.testing.assert_allclose(getattr(found, run), getattr(expected, run), atol=WITHIN)
