"""Whatever ends a run or harms its folder: nothing finished is lost or counted twice, and the numbers are those of a
run that nothing disturbed."""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from actpatch import ActivationPatcher, HeadPatcher, Store, load_run, progress_of, work_on
from actpatch.runs.folder import RunFolder
from test_suite.helpers.models import bundled
from test_suite.helpers.processes import ended, files_of, forked
from test_suite.helpers.runs import assert_same_results, fragile, ioi_of

WITHIN = 1e-9
KILLS = 4
ROWS = 9
METRICS = ["logit_difference", "kl_divergence"]


@pytest.fixture(scope="module")
def model():
    return bundled()


@pytest.fixture(scope="module")
def run(model):
    """An experiment of nine units."""
    patcher, data = HeadPatcher(model, show_progress=False), ioi_of(model)

    def run(folder: Path | None = None):
        store = None if folder is None else Store(folder, rows_per_unit=ROWS)
        return patcher.run_all_heads_experiment(data, layers=[1, 2], direction="both", metrics=METRICS, store=store)

    return run


@pytest.fixture(scope="module")
def undisturbed(run):
    return run()


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A run that is finished, to be harmed."""
    return shutil.copytree(finished, tmp_path / "run")


def assert_each_row_is_there_once(folder: Path) -> None:
    table = pd.read_parquet(folder / "parts")
    assert len(table) == 2 * 2 * 8 * 9
    assert not table.duplicated(["direction", "metric", "patch", "pair"]).any()


def kill_at_random(run, folder: Path, seed: int, kills: int, slowest: float) -> int:
    """Kill the run at random moments until it ends by itself, or was killed so often; how often it was."""
    chance = random.Random(seed)
    for n_killed in range(kills):
        process = forked(lambda: run(folder))
        time.sleep(chance.uniform(0.01, slowest))
        os.kill(process, signal.SIGKILL)
        if ended(process) == 0:
            return n_killed
    return kills


def survive(run, undisturbed, tmp_path: Path, kills: int) -> None:
    started = time.perf_counter()
    run(tmp_path / "timed")
    slowest = 0.4 * (time.perf_counter() - started)
    n_killed = n_runs = 0
    for seed in itertools.count():
        folder = tmp_path / str(seed)
        n_killed += kill_at_random(run, folder, seed, kills - n_killed, slowest)
        n_runs += 1
        there = {path: path.stat().st_mtime_ns for path in folder.glob("parts/*.parquet")}
        found = run(folder)
        assert_same_results(found, undisturbed, WITHIN)
        assert_each_row_is_there_once(folder)
        assert {path: path.stat().st_mtime_ns for path in there} == there  # nothing finished was run again
        if n_killed >= kills:
            break
    assert n_killed >= kills and n_runs < kills


def test_a_run_that_is_killed_now_and_again_gives_the_same_numbers(run, undisturbed, tmp_path):
    survive(run, undisturbed, tmp_path, KILLS)


@pytest.mark.slow
@pytest.mark.one_version
def test_a_run_that_is_killed_dozens_of_times_gives_the_same_numbers(run, undisturbed, tmp_path):
    survive(run, undisturbed, tmp_path, 60)


def test_two_processes_on_one_folder_do_each_unit_once_as_far_as_counting_goes(run, undisturbed, tmp_path):
    folder = tmp_path / "run"
    processes = [forked(lambda: run(folder), tmp_path / f"told{i}") for i in range(3)]
    told = [ended(process) for process in processes]
    assert told == [0, 0, 0], [path.read_text() for path in tmp_path.glob("told*")]
    assert_each_row_is_there_once(folder)
    assert_same_results(load_run(folder), undisturbed, WITHIN)


def test_ctrl_c_ends_it_and_the_same_call_goes_on(run, undisturbed, tmp_path):
    def interrupted():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        run(tmp_path / "run")

    for _ in range(2):
        process = forked(interrupted, tmp_path / "told")
        while not (tmp_path / "run/parts").exists() or not list((tmp_path / "run/parts").glob("*.parquet")):
            time.sleep(0.005)
        os.kill(process, signal.SIGINT)
        if ended(process) == 1:
            assert (tmp_path / "told").read_text().startswith("KeyboardInterrupt")
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    assert not list((tmp_path / "run/failures").iterdir())
    assert_same_results(run(tmp_path / "run"), undisturbed, WITHIN)


def test_a_full_disk_is_told_and_what_was_stored_stays(run, folder, undisturbed, tmp_path):
    told = tmp_path / "told"
    (folder / "manifest.json").unlink()
    for path in sorted((folder / "parts").iterdir())[5:]:
        path.unlink()
    before = files_of(folder)

    def with_little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # the system refuses to write more, as of a full disk
        run(folder)

    assert ended(forked(with_little_room, told)) == 1
    assert "is full" in told.read_text() and "make room, and go on" in told.read_text()
    assert files_of(folder) == before
    assert_same_results(run(folder), undisturbed, WITHIN)


def cut_off(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def flipped(path: Path, chance: random.Random) -> None:
    """A bit of its numbers."""
    columns = pq.read_metadata(path).row_group(0)
    (numbers,) = (
        columns.column(i) for i in range(columns.num_columns) if columns.column(i).path_in_schema == "patched"
    )
    content = bytearray(path.read_bytes())
    size = numbers.total_compressed_size
    content[numbers.data_page_offset + chance.randrange(size // 2, size)] ^= 1 << chance.randrange(8)  # behind a header
    path.write_bytes(bytes(content))


def rewritten(path: Path, chance: random.Random) -> None:
    """As any tool could: another number, in a file that is whole."""
    table = pq.read_table(path)
    values = table["patched"].to_numpy().copy()
    values[chance.randrange(len(values))] += 1.0
    pq.write_table(table.set_column(table.schema.get_field_index("patched"), "patched", [values]), path)


def of_another_unit(path: Path, chance: random.Random) -> None:
    path.write_bytes(chance.choice([other for other in path.parent.iterdir() if other != path]).read_bytes())


@pytest.mark.parametrize("harm", [cut_off, flipped, rewritten, of_another_unit])
def test_parts_that_are_harmed_are_told_from_good_ones_and_run_again(harm, run, folder, undisturbed):
    expected, chance = load_run(folder), random.Random(0)
    chosen = chance.sample(sorted((folder / "parts").iterdir()), 6)
    for path in chosen:
        harm(path, chance)
    contents = {path.read_bytes() for path in chosen}
    with pytest.warns(UserWarning, match="partial: "):
        seen = load_run(folder)  # reads past them
    for sweep in (seen.denoising.sweep, seen.noising.sweep):
        whole = getattr(expected, sweep.direction).sweep
        pairs = [whole.pair_indices.index(pair) for pair in sweep.pair_indices]
        rows = [whole.patches.index(patch) for patch in sweep.patches]
        np.testing.assert_array_equal(sweep.patched, whole.patched[rows][:, pairs])
    assert_same_results(run(folder), undisturbed, WITHIN)
    assert_each_row_is_there_once(folder)
    assert {path.read_bytes() for path in (folder / "failures").glob("*.damaged.parquet")} == contents  # put aside
    assert progress_of(folder).is_finished


def test_a_finished_run_that_lacks_a_part_is_not_finished(run, folder, undisturbed):
    (folder / "parts/000003.parquet").unlink()
    assert not progress_of(folder).is_finished and "finished" not in str(progress_of(folder))
    assert_same_results(run(folder), undisturbed, WITHIN)
    assert progress_of(folder).is_finished


def test_a_worker_checks_the_parts_of_a_finished_run(folder, model, undisturbed):
    (folder / "parts/000003.parquet").write_bytes(b"")
    work_on(folder, model=model, show_progress=False)
    assert_same_results(load_run(folder), undisturbed, WITHIN)


def test_what_else_lies_in_the_folder_is_left_alone(run, folder, undisturbed):
    notes = {"a": "[1]", "b": '{"unit": "zz", "error": 1, "at": 2}', "c": '{"unit": "000003", "error": {}, "at": null}'}
    for name, text in notes.items():
        (folder / f"failures/{name}.failed.json").write_text(text)
    for name in (".DS_Store", "000999.parquet", "notes.txt"):
        (folder / "parts" / name).write_text("x")
    (folder / "manifest.json").write_text("{")
    (folder / "parts/000003.parquet").unlink()
    assert "failed: unit 000003" in str(progress_of(folder))
    before = {path: content for path, content in files_of(folder).items() if "manifest" not in str(path)}
    assert_same_results(run(folder), undisturbed, WITHIN)
    after = files_of(folder)
    assert {path: after[path] for path in before} == before
    assert progress_of(folder).is_finished


class Greedy:
    """A logit whose measuring takes more memory than there is, of more than four runs at once."""

    name, unit, more_is_better = "greedy", "", True
    reads_all_positions = reads_clean = False
    tokens = None

    def measure(self, logits, pairs, clean=None):
        torch.empty(2**40 * (len(logits) > 4), dtype=torch.float64)
        return logits[:, -1, 7] + pairs.to(logits)


def test_a_unit_that_does_not_fit_into_memory_is_halved_and_noted(model, tmp_path):
    class Modest(Greedy):
        def measure(self, logits, pairs, clean=None):
            return logits[:, -1, 7] + pairs.to(logits)

    data, patcher = ioi_of(model), ActivationPatcher(model, show_progress=False)
    expected = patcher.run_patching_experiment(data, "z", metrics=Modest()).sweep
    stored = patcher.run_patching_experiment(data, "z", metrics=Greedy(), store=Store(tmp_path, rows_per_unit=16)).sweep
    np.testing.assert_allclose(stored.patched, expected.patched, atol=WITHIN)
    assert "did not fit into memory" in (tmp_path / "manifest.json").read_text()
    assert not list((tmp_path / "failures").iterdir())


def test_a_unit_that_always_fails_is_left_alone_and_the_rest_goes_on(model, tmp_path):
    broken, tried = [True], []
    data, patcher = ioi_of(model), ActivationPatcher(model, show_progress=False)

    def fragile(logits, pair):
        if pair == 4 and broken[0]:
            tried.append(pair)
            raise RuntimeError("pair 4 has no such logit")
        return float(logits[0, -1, pair])

    def run():
        return patcher.run_patching_experiment(data, "z", metrics=fragile, store=Store(tmp_path, rows_per_unit=4)).sweep

    with pytest.warns(UserWarning, match=r"1 failed three times.*unit 000004 \(RuntimeError: pair 4 has no such"):
        partial = run()
    assert len(tried) == 3 and partial.pair_indices == (0, 1, 2, 3, 5, 6, 7, 8)
    assert partial.notes[0].startswith("partial: 8 of 9 units")
    assert not (tmp_path / "manifest.json").exists()
    with pytest.warns(UserWarning, match="failed three times"):
        run()
    assert len(tried) == 3  # it is left alone
    broken[0] = False
    for path in (tmp_path / "failures").iterdir():
        path.unlink()
    assert run().pair_indices == tuple(range(9)) and RunFolder(tmp_path).is_finished


def test_who_goes_on_from_the_folder_is_told_what_is_lacking(tmp_path):
    def failed():
        raise RuntimeError("no such thing")

    model, told = fragile(failed, tmp_path / "told"), tmp_path / "told"
    data, patcher = ioi_of(model), HeadPatcher(model, show_progress=False)
    patcher.run_all_heads_experiment(data, plan=True, store=Store(tmp_path / "run", rows_per_unit=16)).begin()
    told.touch()
    with pytest.warns(UserWarning, match=r"of 9 units, 1 failed three times .*unit 000004 \(RuntimeError: no such"):
        work_on(tmp_path / "run", model=model, show_progress=False)
    told.unlink()
    with pytest.warns(UserWarning, match="1 failed three times"):
        work_on(tmp_path / "run", model=model, show_progress=False)
    for path in (tmp_path / "run/failures").iterdir():
        path.unlink()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*lack")
        work_on(tmp_path / "run", model=model, show_progress=False)
    assert RunFolder(tmp_path / "run").is_finished


def test_a_run_of_which_every_unit_fails_says_so_at_once(model, tmp_path):
    def wrong(logits, pair):
        raise KeyError("no such thing")

    data, patcher = ioi_of(model), ActivationPatcher(model, show_progress=False)
    with pytest.raises(KeyError, match="no such thing"):
        patcher.run_patching_experiment(data, "z", metrics=wrong, store=Store(tmp_path, rows_per_unit=4))
    assert len(list((tmp_path / "failures").iterdir())) == 3
