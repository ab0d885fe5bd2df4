"""Runs on Ray: real clusters on this machine, with actors, a node and the calling process killed on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from actpatch import HeadPatcher, Plan, Store, load_model, load_run, progress_of, run_on_ray
from actpatch.runs import cluster as cluster_module
from actpatch.runs.crew import share_of
from actpatch.runs.folder import RunFolder
from docs.examples import ROOT
from test_suite.helpers.models import bundled
from test_suite.helpers.processes import files_of
from test_suite.helpers.refusals import refused
from test_suite.helpers.runs import FRAGILE_PAIR, assert_same_results, fragile, ioi_of

WITHIN = 1e-9
N_PAIRS = 60
MANY_PAIRS = 250
"""A run that is not over before it is seen that it has begun."""
LONGEST = 300.0
"""Seconds that a test waits for something to come about."""
SETTINGS = {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
on_ray = partial(run_on_ray, show_progress=False)
pytestmark = pytest.mark.filterwarnings("ignore:every run is one of a whole prompt")  # of a model with code of its own


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("tiny", dtype=torch.float64, device="cpu")


@pytest.fixture(scope="module")
def experiment(model) -> Callable[..., Any]:
    """16 heads on 60 pairs, in both directions: a unit per pair."""

    def experiment(folder: Path | None = None, of: Any = model, n_pairs: int = N_PAIRS, **options: Any) -> Any:
        store = None if folder is None else Store(folder, rows_per_unit=16)
        patcher = HeadPatcher(of, show_progress=False)
        return patcher.run_all_heads_experiment(ioi_of(of, n_pairs), direction="both", store=store, **options)

    return experiment


@pytest.fixture(scope="module")
def undisturbed(experiment) -> Any:
    return experiment()


@pytest.fixture(scope="module")
def plan(experiment) -> Plan:
    return experiment(Path("run"), plan=True)


@pytest.fixture
def begun(plan, tmp_path) -> Path:
    return plan.begin(tmp_path / "run")


class Nodes:
    """A cluster of two nodes of one core each, of which one can be killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.size = {"num_cpus": 1, "object_store_memory": 100_000_000}
        head = {**self.size, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.other: Any = None
        self.make_two()

    @property
    def address(self) -> str:
        return self.cluster.address

    def make_two(self) -> None:
        if self.other is None:
            self.other = self.cluster.add_node(**self.size)
            self.cluster.wait_for_nodes()

    def end_one(self, *, is_asked: bool) -> None:
        """End a node: asked to, as of machines that are taken back, or killed."""
        self.cluster.remove_node(self.other, allow_graceful=is_asked)
        self.other = None


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SETTINGS.items():
            patched.setenv(name, value)
        nodes = Nodes()
        yield nodes
        nodes.cluster.shutdown()
    wait_until(lambda: not processes_of_ray())


@pytest.fixture
def two_nodes(cluster) -> Nodes:
    cluster.make_two()
    return cluster


def wait_until(has_come: Callable[[], Any]) -> None:
    until = time.monotonic() + LONGEST
    while not has_come():
        if time.monotonic() > until:
            raise TimeoutError("it did not come about")
        time.sleep(0.005)


def processes_of_ray(of: int | None = None) -> list[psutil.Process]:
    """Those that a process has started, this one if no other is named."""
    found = []
    for process in psutil.Process(of).children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "ray" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_actors() -> int:
    """Kill every actor that this process' clusters have; how many there were."""
    actors = [process for process in processes_of_ray() if "UnitsActor.attempt" in " ".join(process.cmdline())]
    for actor in actors:
        actor.kill()
    return len(actors)


def stored_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("parts/*.parquet")}


def kept(stored: dict[Path, int]) -> bool:
    """Whether none of these parts was written again."""
    return {path: path.stat().st_mtime_ns for path in stored} == stored


def command(folder: Path, *options: str) -> subprocess.Popen[str]:
    """The command line, as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "actpatch.runs", "work", str(folder), "--ray", *options],
        env={**os.environ, **SETTINGS},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.one_version
def test_a_ray_of_its_own_gives_the_numbers_of_a_run_in_memory_and_is_gone_afterwards(begun, undisturbed, monkeypatch):
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(begun.parent)
    on_ray("run", workers=1)
    assert RunFolder(begun).is_finished and not ray.is_initialized()
    assert_same_results(load_run(begun), undisturbed, WITHIN)
    wait_until(lambda: not processes_of_ray())


@pytest.mark.slow
@pytest.mark.one_version
@pytest.mark.parametrize("is_asked", [False, True])
def test_actors_and_a_node_are_killed_and_nothing_is_lost_or_run_again(is_asked, begun, undisturbed, two_nodes):
    seen: list[dict[Path, int]] = []
    harmed: list[int] = []

    def harm() -> None:
        wait_until(lambda: len(stored_in(begun)) >= 5)
        wait_until(lambda: harmed.append(kill_actors()) or harmed[-1])
        seen.append(stored_in(begun))
        wait_until(lambda: len(stored_in(begun)) >= len(seen[0]) + 10)
        two_nodes.end_one(is_asked=is_asked)
        seen.append(stored_in(begun))

    harming = threading.Thread(target=harm)
    harming.start()
    on_ray(begun, address=two_nodes.address)
    harming.join()
    assert len(seen) == 2 and len(seen[1]) < N_PAIRS and all(map(kept, seen))
    assert RunFolder(begun).is_finished
    failed = [failure for of_unit in RunFolder(begun).failures().values() for failure in of_unit]
    assert len(failed) <= harmed[-1] and all("its process died" in failure.error for failure in failed)
    assert_same_results(load_run(begun), undisturbed, WITHIN)


@pytest.mark.slow
@pytest.mark.one_version
@pytest.mark.parametrize("is_embedded", [True, False])
def test_the_calling_process_is_killed_and_started_again(is_embedded, begun, undisturbed, request):
    where = ["--workers", "1"] if is_embedded else ["--address", request.getfixturevalue("two_nodes").address]
    driver = command(begun, *where)
    wait_until(lambda: len(stored_in(begun)) >= 3 or driver.poll() is not None)
    assert driver.poll() is None, driver.communicate()
    of_driver = processes_of_ray(driver.pid)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not [process for process in of_driver if process.is_running()])
    stored = stored_in(begun)
    assert 3 <= len(stored) < N_PAIRS and not list((begun / "failures").iterdir())
    again = command(begun, *where)
    told, error = again.communicate(timeout=LONGEST)
    assert again.returncode == 0, error
    assert told.endswith("finished\n") and kept(stored)
    assert_same_results(load_run(begun), undisturbed, WITHIN)


@pytest.mark.slow
@pytest.mark.one_version
def test_ctrl_c_ends_it_in_a_sentence_and_the_same_call_goes_on(experiment, tmp_path, two_nodes):
    begun = experiment(tmp_path / "run", n_pairs=MANY_PAIRS, plan=True).begin()
    driver = command(begun, "--address", two_nodes.address)
    wait_until(lambda: len(stored_in(begun)) >= 3 or driver.poll() is not None)
    driver.send_signal(signal.SIGINT)
    _, error = driver.communicate(timeout=LONGEST)
    assert driver.returncode == 130, error
    assert "stopped: what was finished is stored; the same command goes on" in error
    assert not list((begun / "failures").iterdir()) and len(stored := stored_in(begun)) < MANY_PAIRS
    on_ray(begun, address=two_nodes.address)
    assert RunFolder(begun).is_finished and kept(stored)


def killed() -> None:
    """As by the kernel, for lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def failed() -> None:
    raise KeyError("no such thing")


@pytest.mark.slow
@pytest.mark.one_version
def test_a_unit_that_kills_its_process_is_left_alone_after_three_times_and_the_rest_goes_on(
    experiment, tmp_path, two_nodes
):
    folder, told = tmp_path / "run", tmp_path / "told"
    expected = experiment(of=fragile(killed, told), n_pairs=9)
    experiment(folder, of=fragile(killed, told), n_pairs=9, plan=True).begin()
    told.touch()
    how = {"address": two_nodes.address, "load": partial(fragile, killed, told)}
    with pytest.warns(
        UserWarning, match=r"of 9 units, 1 failed three times.*unit 000004 \(RuntimeError: its process d"
    ):
        on_ray(folder, **how)
    assert not RunFolder(folder).is_finished and progress_of(folder).quarantined == ("000004",)
    assert len(list((folder / "failures").iterdir())) == 3 and len(stored := stored_in(folder)) == 8
    told.unlink()
    for path in (folder / "failures").iterdir():
        path.unlink()
    on_ray(folder, **how)
    assert RunFolder(folder).is_finished and kept(stored)
    assert_same_results(load_run(folder), expected, WITHIN)


@pytest.mark.slow
@pytest.mark.one_version
def test_a_run_of_which_every_unit_fails_says_so_at_once(experiment, tmp_path, two_nodes):
    folder, told = tmp_path / "run", tmp_path / "told"
    one = {"n_pairs": FRAGILE_PAIR + 1, "pair_indices": [FRAGILE_PAIR]}
    experiment(folder, of=fragile(failed, told), plan=True, **one).begin()
    told.touch()
    with pytest.raises(RuntimeError, match="KeyError: 'no such thing'"):
        on_ray(folder, address=two_nodes.address, load=partial(fragile, failed, told))


def edited() -> Any:
    """The bundled model with other weights under the same name."""
    model = load_model("tiny", dtype=torch.float64, device="cpu")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-9
    return model


@pytest.mark.slow
@pytest.mark.one_version
def test_what_actors_find_is_refused_in_a_sentence(begun, two_nodes, monkeypatch, model):
    before = files_of(begun)
    with refused("not that of the run.*the weights are others"):
        on_ray(begun, address=two_nodes.address, load=edited)
    monkeypatch.chdir(begun.parent)  # actors have another working folder, and see another one under this name
    with refused("the machine .* does not see the run in '/proc/self/cwd/run'.*file system that all machines"):
        on_ray("/proc/self/cwd/run", address=two_nodes.address)
    with refused("workers is 3, and the cluster has 2 cores: expected at least 1 and at most"):
        on_ray(begun, address=two_nodes.address, workers=3)
    with refused("workers is None, and the cluster has 0 GPUs.*or device='cpu'"):
        on_ray(begun, address=two_nodes.address, device="cuda")
    assert files_of(begun) == before


@pytest.mark.slow
@pytest.mark.one_version
def test_a_ray_that_stood_is_used_and_left(begun, undisturbed, two_nodes):
    import ray

    ray.init(two_nodes.address, log_to_driver=False)
    try:
        with refused("address is '127.0.0.1:1', and this process is connected to the Ray at .*: leave out the address"):
            on_ray(begun, address="127.0.0.1:1")
        on_ray(begun)
        assert ray.is_initialized() and sum(node["Alive"] for node in ray.nodes()) == 2
    finally:
        ray.shutdown()
    assert_same_results(load_run(begun), undisturbed, WITHIN)


def test_an_address_at_which_nothing_answers(begun):
    before = files_of(begun)
    with refused("no Ray cluster can be joined at '127.0.0.1:1' .*refused.*ray start --head"):
        on_ray(begun, address="127.0.0.1:1")
    assert files_of(begun) == before


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"address": "ray://head:10001"}, "address is 'ray://head:10001', expected host:port"),
        ({"address": "head"}, "address is 'head', expected host:port"),
        ({"workers": 0}, "workers is 0, expected at least 1"),
        ({"workers": 1.5}, "workers is 1.5, expected at least 1"),
        ({"load": "gpt2"}, "load is a str, expected a function without arguments"),
        ({"load": partial(print, threading.Lock())}, "load cannot be sent to other processes .*let it load the model"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_started(given, told, begun):
    import ray

    before = files_of(begun)
    with refused(told):
        on_ray(begun, **given)
    assert files_of(begun) == before and not ray.is_initialized()


def test_ray_missing_names_the_extra(begun, monkeypatch):
    before = files_of(begun)
    monkeypatch.setattr(cluster_module, "find_spec", lambda name: None)
    with refused(r"needs the extra cluster, .*pip install 'activation-patching-framework\[cluster\]'", ImportError):
        on_ray(begun)
    assert files_of(begun) == before


def test_what_a_folder_cannot_hold_is_told_before_anything_is_started(experiment, tmp_path):
    def mine(logits: Any, pair: int) -> float:
        return float(logits[0, -1, 0])

    experiment(tmp_path / "own", metrics=mine, n_pairs=3, plan=True).begin()
    with refused("the metric 'mine' is a function or a class of one's own.*go on with the same call in Python"):
        on_ray(tmp_path / "own")
    experiment(tmp_path / "other", of=bundled(), n_pairs=3, plan=True).begin()
    spec = (tmp_path / "other/spec.json").read_text()
    loaded = spec[spec.index('"loaded": ') :].partition("}")[0] + "}"
    (tmp_path / "other/spec.json").write_text(spec.replace(loaded, '"loaded": null'))
    with refused(r"was not loaded by load_model.*give run_on_ray\(folder, load=...\)"):
        on_ray(tmp_path / "other")
    with refused("is no folder"):
        on_ray(tmp_path / "nowhere")


CORES = [{"CPU": 4.0}, {"CPU": 2.0}]
GPUS = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 6.0, "GPU": 2.0}, {"CPU": 64.0}]


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "expected"),
    [
        (CORES, None, None, (6, 1, 0, "cpu")),
        (CORES, 3, None, (3, 2, 0, "cpu")),
        (CORES, 2, "cpu", (2, 2, 0, "cpu")),
        (CORES, 1, None, (1, 4, 0, "cpu")),
        (GPUS, None, None, (6, 3, 1, "cuda")),
        (GPUS, 2, "cuda", (2, 3, 1, "cuda")),
        (GPUS, None, "cpu", (86, 1, 0, "cpu")),
        ([{"GPU": 2.0}], None, None, (2, 0, 1, "cuda")),
    ],
)
def test_an_actor_per_device_or_core_share(nodes, workers, device, expected):
    share = share_of(nodes, workers, device)
    assert (share.workers, share.cores, share.gpus, share.device) == expected


@pytest.mark.parametrize(("nodes", "workers", "device"), [(CORES, 7, None), (CORES, 1, "cuda"), (GPUS, 7, None)])
def test_more_workers_than_there_is_room_for(nodes, workers, device):
    with refused(f"workers is {workers}, and the cluster has "):
        share_of(nodes, workers, device)
