"""A run read by part says what its results say, and holds a part of them."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pandas as pd
import pytest

from actpatch import HeadPatcher, Store, create_full_report, headline, load_results, load_run, open_run
from actpatch.runs import reading
from actpatch.runs.folder import RunFolder
from actpatch.runs.parts import Part, part_content
from actpatch.runs.spec import Spec
from test_suite.helpers.models import bundled
from test_suite.helpers.runs import experiments, ioi_of, sweeps_of
from test_suite.statistics.test_portions import assert_same as assert_same_statistics

pytestmark = pytest.mark.filterwarnings("ignore:.* pairs", "ignore:.*single", "ignore:partial", "ignore:estimates")


@pytest.mark.parametrize("kind", ["layers", "estimates", "matched"])
def test_effects_and_statistics_are_those_of_the_results(kind, tmp_path, monkeypatch):
    fewer = {"metrics": ["logit_difference"]} if kind == "layers" else {}
    results = experiments(bundled())[kind](store=Store(tmp_path, rows_per_unit=30), **fewer)
    monkeypatch.setattr(reading, "MOST_CELLS", 120)  # many portions
    monkeypatch.setattr(reading, "MOST_HELD", 250)  # blocks in several goes
    run, options = open_run(tmp_path), {"seed": 3, "n_resamples": 199}
    for sweep in sweeps_of(results):
        for name in sweep.metrics:
            whole, part = sweep.by_metric(name), run.by_metric(name).by_direction(sweep.direction)
            np.testing.assert_allclose(part.effects(), whole.effects, rtol=1e-12, atol=1e-12)
            if not whole.usable.any():
                continue
            expected = whole.statistics(**options)
            assert_same_statistics(part.statistics(**options), expected)
            best = part.top(3)
            numbers = [whole.labels.index(label) for label in best.sweep.labels]
            np.testing.assert_array_equal(best.sweep.patched, whole.patched[numbers])
            np.testing.assert_array_equal(best.sweep.effects, whole.effects[numbers])
            np.testing.assert_array_equal(best.sweep.written, whole.written[numbers])
            assert_same_statistics(best.statistics(**options), expected.of_sites(numbers))


def test_what_was_chosen_out_of_a_run_knows_out_of_how_much(tmp_path):
    results = experiments(bundled())["neurons"](store=Store(tmp_path / "run", rows_per_unit=30))
    best = open_run(tmp_path / "run").top(4)
    assert isinstance(best, type(results)) and best.is_part
    assert "4 neurons (of 10 patches)" in repr(best) and "chosen out of 10 patches" in best.sweep.notes[0]
    assert best.statistics().n_corrected == 10 and "4 neurons chosen out of 10" in headline(best)
    assert best.statistics() is best.statistics()
    again = load_results(best.save(tmp_path / "best.json"))
    assert again == best and again.sweep.n_in_all == 10
    few = type(best)(best.sweep.of_patches([1]))
    assert few.statistics().p_corrected[0] == best.statistics().p_corrected[1]
    for without in (again, type(best)(best.sweep.of_pairs(range(5)))):
        with pytest.raises(ValueError, match="4 patches chosen out of 10 by their effects: p-values over them alone"):
            without.statistics()
    assert pickle.loads(pickle.dumps(best)).statistics().n_corrected == 10


def test_a_report_of_the_largest_effects_is_corrected_over_all(tmp_path):
    results = experiments(bundled())["neurons"](store=Store(tmp_path / "run", rows_per_unit=30))
    best = open_run(tmp_path / "run").top(3)
    assert set(best.labels) < set(results.labels)
    written = create_full_report(top_results=best, save_dir=tmp_path / "report")
    page = written[0].read_text()
    assert "the largest 3 of 10 effects" in page and "correction over 10 sites" in " ".join(page.split())
    assert "chosen out of 10 patches by their effects" in page and all(label in page for label in best.labels)
    assert [path.name for path in written] == ["report.html", "effect_distribution.html", "plotly.min.js"]


def test_tables_are_the_parts_one_by_one(tmp_path):
    experiments(bundled())["layers"](store=Store(tmp_path, rows_per_unit=30))
    tables = list(open_run(tmp_path).tables())
    assert len(tables) > 1
    pd.testing.assert_frame_equal(
        pd.concat([table.astype({"site": str}) for table in tables], ignore_index=True)[["site", "pair", "patched"]],
        pd.read_parquet(tmp_path / "parts").astype({"site": str})[["site", "pair", "patched"]],
    )


def test_of_an_unfinished_run_the_pairs_that_are_whole_count(tmp_path):
    experiments(bundled())["neurons"](store=Store(tmp_path, rows_per_unit=20))
    (tmp_path / "parts/000002.parquet").unlink()
    run, partial = open_run(tmp_path), load_run(tmp_path)
    assert [run.asked.pairs.indices[pair] for pair in run.pairs] == list(partial.sweep.pair_indices)
    np.testing.assert_allclose(run.effects(), partial.sweep.effects, rtol=1e-12)
    for path in (tmp_path / "parts").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="no pair has all of its patches yet"):
        open_run(tmp_path).effects()


def test_what_was_not_measured_is_refused(tmp_path):
    experiments(bundled())["layers"](store=Store(tmp_path, rows_per_unit=1000), direction="noising")
    run = open_run(tmp_path)
    with pytest.raises(ValueError, match="'accuracy' was not measured: expected one of logit_difference"):
        run.by_metric("accuracy")
    with pytest.raises(ValueError, match="'denoising' was not run: expected one of noising"):
        run.by_direction("denoising")


def many_times(folder: RunFolder, times: int) -> RunFolder:
    """A run with its patches so many times over, written as workers write it: large without anything being run."""
    import copy

    spec = folder.read_spec()
    data = copy.deepcopy(dict(spec.data))
    columns = data["patches"]["each"][0]
    n = columns["n"]
    columns["n"] = n * times
    for column in columns.values():
        if isinstance(column, dict) and "which" in column:
            column["which"] = column["which"] * times
    data["patches"]["n"] = n * times
    data["units"]["patches"] = [n * i for i in range(times + 1)]
    large = RunFolder(folder.path.with_name("large"))
    other = large.begin(Spec(data))
    n_blocks = other.units.blocks_of_patches
    for number in range(len(other.units)):
        unit = other.units[number]
        part = folder.read_part(spec, number // n_blocks)
        asked = spec.asked_to_read.part(unit.pairs, slice(0, n))
        content = part_content(
            other.id, asked, Part(unit, part.measured, {"versions": {}, "seconds": 1.0, "halved": []})
        )
        large.write_part(unit, content)
    return large


@pytest.mark.slow
def test_memory_is_that_of_a_part_whatever_the_size_of_the_run(tmp_path, monkeypatch):
    model = bundled()
    patcher = HeadPatcher(model, show_progress=False)
    patcher.run_all_heads_experiment(
        ioi_of(model, 60), positions=list(range(-6, 0)), store=Store(tmp_path / "small", rows_per_unit=96 * 20)
    )
    monkeypatch.setattr(reading, "MOST_CELLS", 96 * 60)
    peaks = []
    for times in (20, 80):
        folder = many_times(RunFolder(tmp_path / "small"), times)
        run = open_run(folder.path)
        _ = run.asked, run.baselines
        tracemalloc.start()
        effects = run.effects()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(effects) == 96 * times and (effects.reshape(times, -1) == effects[:96]).all()
        folder.path.rename(tmp_path / f"done{times}")
    whole = 8 * 96 * 80 * 60
    assert peaks[1] < whole / 3 and peaks[1] < peaks[0] + 8 * 4 * 96 * 60
