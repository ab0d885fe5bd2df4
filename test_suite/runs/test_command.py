"""`python -m actpatch.runs`: what it shows is what is in the folder, and shards together are the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actpatch import HeadPatcher, Store, load_model, load_run, progress_of
from actpatch.runs.command import main
from actpatch.runs.units import Shard
from docs.examples import ROOT
from test_suite.helpers.models import DEFAULT_CLASS
from test_suite.helpers.runs import assert_same_results, ioi_of

WITHIN = 1e-5  # single precision, of metrics of about ten


@pytest.fixture(scope="module")
def whole():
    model = load_model("tiny", device="cpu")
    return HeadPatcher(model, show_progress=False).run_all_heads_experiment(ioi_of(model), direction="both")


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    model = load_model("tiny", device="cpu")
    patcher = HeadPatcher(model, show_progress=False)
    store = Store(tmp_path_factory.mktemp("runs") / "empty", rows_per_unit=18)
    return patcher.run_all_heads_experiment(ioi_of(model), direction="both", store=store, plan=True).begin()


@pytest.fixture
def begun(empty, tmp_path) -> Path:
    """A run of which nothing is there."""
    return shutil.copytree(empty, tmp_path / "run")


def test_shards_together_are_the_run(begun, whole, capsys):
    for shard in ("2/3", "1/3"):
        assert main(["work", str(begun), "--shard", shard, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "HeadResults of tiny: 16 patches × 9 pairs, denoising and noising, logit difference" in printed
    assert "6 of 9 units stored" in printed and "units an hour, about" in printed and "finished" not in printed
    assert not progress_of(begun).is_finished
    assert main(["work", str(begun), "--shard", "3/3", "--device", "cpu"]) == 0
    assert "9 of 9 units stored, 100.0% of the runs\nfinished" in capsys.readouterr().out
    assert_same_results(load_run(begun), whole, WITHIN)


@pytest.mark.parametrize("of", [1, 3, 7, 40])
def test_each_unit_is_in_one_shard(of):
    shares = [Shard(number, of).of_units(range(18)) for number in range(1, of + 1)]
    assert sorted(unit for share in shares for unit in share) == list(range(18))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_plan_and_show(begun, capsys):
    assert main(["plan", str(begun), "--device", "cpu"]) == 0
    assert "HeadResults: 16 patches × 9 pairs, denoising and noising: 288 runs in 9 units" in capsys.readouterr().out
    assert main(["show", str(begun)]) == 0
    assert "0 of 9 units stored, 0.0% of the runs" in capsys.readouterr().out


def test_failures_are_shown(begun, capsys):
    from actpatch.runs.folder import RunFolder

    folder = RunFolder(begun)
    units = folder.read_spec().units
    for error in ("first", "second", "third"):
        folder.fail(units[4], RuntimeError(error))
    folder.fail(units[5], RuntimeError("once"))
    assert main(["show", str(begun)]) == 0
    printed = capsys.readouterr().out
    assert "failed: unit 000004 (RuntimeError: third), unit 000005 (RuntimeError: once)" in printed
    assert "left alone after three failures: 000004" in printed
    assert main(["work", str(begun), "--device", "cpu"]) == 1
    told = capsys.readouterr()
    assert "of 9 units, 1 failed three times" in told.err and "8 of 9 units stored" in told.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["show", "nowhere"], "'nowhere' is no folder: expected"),
        (["work", "nowhere", "--shard", "0/4"], "the shard is '0/4', expected K/N"),
        (["plan", "."], "holds no spec.json"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"python -m actpatch.runs {arguments[0]}: ") and told in printed
    assert len(printed.splitlines()) == 1


@pytest.mark.slow
def test_a_process_of_its_own_goes_on_with_a_folder(begun, whole):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "actpatch.runs", "work", str(begun)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("finished\n") and DEFAULT_CLASS
    assert_same_results(load_run(begun), whole, WITHIN)
