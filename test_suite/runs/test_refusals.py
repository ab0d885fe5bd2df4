"""What a folder does not go on with is refused in a sentence, before any run, and what stood there is not harmed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from actpatch import ActivationPatcher, GaussianNoise, HeadPatcher, Mean, Store, load_run, progress_of, work_on
from actpatch.models.fingerprint import fingerprint
from model_loading import load_model
from test_suite.helpers.models import CLASSES, bundled, fresh_model, needs_hooked, small_model
from test_suite.helpers.processes import ended, files_of, forked
from test_suite.helpers.refusals import refused
from test_suite.helpers.runs import ioi_of

pytestmark = pytest.mark.filterwarnings("ignore:.* pairs", "ignore:.*single")


@pytest.fixture(scope="module")
def patcher():
    return ActivationPatcher(bundled(), show_progress=False)


@pytest.fixture(scope="module")
def half(patcher, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "half"
    patcher.run_patching_experiment(ioi_of(bundled()), "z", store=Store(folder, rows_per_unit=4))
    (folder / "manifest.json").unlink()
    for path in sorted((folder / "parts").iterdir())[::2]:
        path.unlink()
    return folder


@pytest.fixture
def begun(half, tmp_path) -> Path:
    """A run of which half is there."""
    return shutil.copytree(half, tmp_path / "run")


@contextlib.contextmanager
def unharmed(folder: Path) -> Iterator[None]:
    before = files_of(folder)
    yield
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hook_points": "mlp_out"}, "patches: .*hook_point"),
        ({"hook_points": ["z", "mlp_out"]}, "patches: 4 in the folder, 8 now"),
        ({"position": "S2"}, "patches: .*position"),
        ({"pair_indices": [0, 1]}, "pairs: 9 in the folder, 2 now"),
        ({"pair_indices": [8, 7, 6, 5, 4, 3, 2, 1, 0]}, "pairs: others of the dataset"),
        ({"direction": "noising"}, "direction: .*'denoising' in the folder, 'noising' now"),
        ({"metrics": "rank"}, "metrics: logit difference in the folder, rank now"),
        (
            {"source": Mean(), "direction": "denoising"},
            "source: label is 'the other run' in the folder, 'the mean over",
        ),
        ({"noise": GaussianNoise("S2")}, "noise: None in the folder"),
    ],
)
def test_another_call_is_told_what_differs(options, told, patcher, begun):
    asked = {"hook_points": "z", "store": begun, **options}
    with unharmed(begun), refused(rf"is the run of another call: .*{told}.*Make the same call again.*another folder"):
        patcher.run_patching_experiment(ioi_of(bundled()), **asked)


def test_a_metric_of_ones_own_that_is_set_otherwise_is_another(patcher, tmp_path):
    def logit_of(token, direction=None):
        def logit(logits, pair):
            return float(logits[0, -1, token]) + (0 if direction is None else float(logits[0, -1, :2] @ direction))

        return logit

    class Bound:
        name, unit, more_is_better = "bound", "", True
        reads_all_positions = reads_clean = False
        tokens = None

        def __init__(self, token):
            self.token, self.seen = token, []

        def measure(self, logits, pairs, clean=None):
            self.seen.append(len(pairs))
            return logits[:, -1, self.token] + 0 * pairs

    way = torch.ones(2, dtype=torch.float64)
    cases = [
        (logit_of(4), logit_of(4), logit_of(9), "token is '4' in the folder, '9' now"),
        (logit_of(4, way), logit_of(4, way.clone()), logit_of(4, 2 * way), "direction is"),
        (Bound(4), Bound(4), Bound(9), "token is '4' in the folder, '9' now"),
    ]
    for i, (metric, same, other, told) in enumerate(cases):
        run = {"dataset": ioi_of(bundled()), "hook_points": "z", "store": tmp_path / str(i)}
        stored = patcher.run_patching_experiment(**run, metrics=metric)
        assert patcher.run_patching_experiment(**run, metrics=same) == stored
        with unharmed(tmp_path), refused(f"metrics: .*own.settings.{told}"):
            patcher.run_patching_experiment(**run, metrics=other)


def test_another_shape_of_results_is_another_call(patcher, begun):
    with unharmed(begun), refused("results: 'LayerResults' in the folder, 'PositionResults' now"):
        patcher.run_position_experiment(ioi_of(bundled()), "z", positions=["S2"], store=begun)


def test_other_precision_is_another_run(begun):
    single = ActivationPatcher(bundled(dtype=torch.float32), show_progress=False)
    with unharmed(begun), refused("weights are others.*precision: weights is 'float64' in the folder, 'float32' now"):
        single.run_patching_experiment(ioi_of(bundled(dtype=torch.float32)), "z", store=begun)


def test_autocast_is_another_precision(patcher, begun):
    run = {"dataset": ioi_of(bundled()), "hook_points": "z", "store": begun}
    with unharmed(begun), torch.autocast("cpu", dtype=torch.bfloat16):
        with refused("precision: autocast is '' in the folder, 'bfloat16' now"):
            patcher.run_patching_experiment(**run)
        with refused("not that of the run.*autocast"):
            work_on(begun, model=bundled(), show_progress=False)


def test_a_model_that_lies_elsewhere_now(begun):
    spec = json.loads((begun / "spec.json").read_text())
    spec["loaded"]["name_or_path"] = str(begun / "moved")
    (begun / "spec.json").write_text(json.dumps(spec))
    with unharmed(begun), refused("the model '.*moved' of the run .*cannot be loaded: .*work_on.folder, model="):
        work_on(begun, show_progress=False)


def test_other_weights_under_the_same_name_are_refused_from_python_and_by_a_worker(begun):
    edited = load_model("tiny", dtype=torch.float64, device="cpu")
    with torch.no_grad():
        list(edited.parameters())[-1].view(-1)[-1] += 1e-9
    other = ActivationPatcher(edited, show_progress=False)
    with unharmed(begun), refused("the weights are others"):
        other.run_patching_experiment(ioi_of(edited), "z", store=begun)
    with unharmed(begun), refused("not that of the run.*the weights are others"):
        work_on(begun, model=edited)
    spec = json.loads((begun / "spec.json").read_text())
    spec["weights"] = "0" * 32
    (begun / "spec.json").write_text(json.dumps(spec))
    with unharmed(begun), refused("the weights are others"):
        work_on(begun, show_progress=False)


@pytest.mark.parametrize("model_class", CLASSES)
def test_every_weight_counts(model_class):
    model = load_model("tiny", model_class=model_class, device="cpu")
    seen = {fingerprint(model)}
    for weight in model.parameters():
        last = (-1,) * weight.ndim
        kept = weight.data[last].clone()
        weight.data[last] = torch.nextafter(kept, torch.tensor(torch.inf))
        seen.add(fingerprint(model))
        weight.data[last] = kept
    assert fingerprint(model) in seen
    assert len(seen) == 1 + len(list(model.parameters()))
    assert fingerprint(load_model("tiny", model_class=model_class, device="cpu")) in seen


def test_code_on_the_model_is_another_run(begun):
    hooked = load_model("tiny", dtype=torch.float64, device="cpu")
    hooked.add_hook("blocks.1.hook_mlp_out", lambda value, hook: 0.5 * value, is_permanent=True)
    with unharmed(begun), refused("code on the model: at is .* in the folder, .*blocks.1.hook_mlp_out"):
        ActivationPatcher(hooked, show_progress=False).run_patching_experiment(ioi_of(hooked), "z", store=begun)


def test_a_folder_that_is_no_run(patcher, tmp_path):
    (tmp_path / "thesis.tex").write_text("everything")
    with unharmed(tmp_path):
        with refused("is no run and is not empty.*thesis.tex.*give a new or an empty folder"):
            patcher.run_patching_experiment(ioi_of(bundled()), "z", store=tmp_path)
        for read in (load_run, progress_of, work_on):
            with refused("holds no spec.json: expected a folder that an experiment with store= has begun"):
                read(tmp_path)
            with refused("is no folder"):
                read(tmp_path / "nowhere")
    with unharmed(tmp_path), refused("which is a file: expected a folder"):
        patcher.run_patching_experiment(ioi_of(bundled()), "z", store=tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"format": 99}', "format 99, this version knows format 1"),
        ("{", "none of a run"),
        ("[1]", "none of a run"),
        ('{"format": 1}', "none of a run"),
    ],
)
def test_a_newer_version_and_no_specification(text, told, patcher, begun):
    (begun / "spec.json").write_text(text)
    with unharmed(begun):
        for read in (load_run, progress_of, work_on):
            with refused(told):
                read(begun)
        with refused(told):
            patcher.run_patching_experiment(ioi_of(bundled()), "z", store=begun)


@pytest.mark.parametrize("shard", ["0/4", "17/16", "3", "a/b", "-1/4", "1/0", "", "1/4/2"])
def test_a_shard_that_is_none(shard, begun):
    with unharmed(begun), refused(f"the shard is {re.escape(repr(shard))}, expected K/N with K from 1 to N"):
        work_on(begun, shard=shard)


@pytest.mark.parametrize("store", ["", 3, ["a"], b"x"])
def test_what_is_no_store(store, patcher):
    with refused("store is .*expected the path of a folder"):
        patcher.run_patching_experiment(ioi_of(bundled()), "z", store=store)


@pytest.mark.parametrize("rows", [0, -1, 2.5, True])
def test_what_is_no_size_of_units(rows):
    with refused("rows_per_unit is"):
        Store("runs/x", rows_per_unit=rows)


def test_wrong_patches_leave_no_folder(patcher, tmp_path):
    for wrong in ({"hook_points": "zz"}, {"hook_points": "z", "position": 99}, {"hook_points": "z", "metrics": "none"}):
        with refused("."):
            patcher.run_patching_experiment(ioi_of(bundled()), **wrong, store=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_without_write_permission(patcher):
    folder = Path(tempfile.mkdtemp())
    try:
        run = {"dataset": ioi_of(bundled()), "hook_points": "z"}
        patcher.run_patching_experiment(**run, store=Store(folder / "run", rows_per_unit=4))
        (folder / "run/manifest.json").unlink()
        (folder / "run/parts/000001.parquet").unlink()
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)

        def without_rights():
            if os.geteuid() == 0:
                os.setegid(65534)
                os.seteuid(65534)
            for store in (folder / "run", folder / "new"):
                with pytest.raises(OSError, match=r"cannot be written .*nothing was run; give a folder that can be"):
                    patcher.run_patching_experiment(**run, store=store)
            with pytest.raises(OSError, match="cannot be written"):
                work_on(folder / "run", model=bundled())

        told = Path(tempfile.mkdtemp()) / "told"
        told.parent.chmod(0o777)
        with unharmed(folder):
            assert ended(forked(without_rights, told)) == 0, told.read_text()
            assert load_run(folder / "run").sweep.notes[0].startswith("partial")  # reading needs no rights
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777)
        shutil.rmtree(folder)


def test_a_run_of_which_nothing_is_there_has_no_results(patcher, tmp_path):
    plan = patcher.run_patching_experiment(ioi_of(bundled()), "z", store=tmp_path / "run", plan=True)
    assert not (tmp_path / "run").exists()
    plan.begin()
    with refused("no unit of the run is finished yet"):
        load_run(tmp_path / "run")


def test_a_worker_refuses_what_a_folder_cannot_hold(patcher, tmp_path):
    def mine(logits, pair):
        return float(logits[0, -1, 0])

    patcher.run_patching_experiment(ioi_of(bundled()), "z", metrics=mine, store=tmp_path / "own")
    with refused("the metric 'mine' is a function or a class of one's own.*go on with the same call in Python"):
        work_on(tmp_path / "own")


@needs_hooked
def test_a_worker_refuses_a_model_that_nothing_says_how_to_load(tmp_path, mixed):
    model = fresh_model("hooked:learned")
    plan = HeadPatcher(model, show_progress=False).run_all_heads_experiment(mixed, store=tmp_path, plan=True)
    plan.begin()
    with refused("was not loaded by load_model, so nothing says how to load it"):
        work_on(tmp_path)
    work_on(tmp_path, model=small_model("hooked:learned"), show_progress=False)
    assert progress_of(tmp_path).is_finished


def test_results_that_memory_cannot_hold_are_refused_before_any_run(patcher, tmp_path, monkeypatch):
    from actpatch.runs import stored

    monkeypatch.setattr(stored, "MEMORY_SHARE", 1e-12)  # as if there were hardly any
    with refused("GiB of numbers.*plan=True, then plan.begin.*work .*open_run"):
        patcher.run_patching_experiment(ioi_of(bundled()), "z", store=tmp_path / "run")
    assert not (tmp_path / "run").exists()
