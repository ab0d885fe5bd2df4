"""Spreads a stored run over the cores and devices of one machine or many, with Ray.

The process that calls hands out units and keeps nothing: the folder does, and whatever ends it, the same call goes on.
Ray (Moritz et al., 2018) is imported when it is needed. Nothing here knows how units are run or handed out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from actpatch.core.indices import is_integer
from actpatch.core.text import described
from actpatch.runs.crew import Crew, Orders
from actpatch.runs.folder import RunFolder, shortened_error
from actpatch.runs.parts import check_can_store
from actpatch.runs.waiting import Waiting
from actpatch.runs.worker import complete, warn_of_lacking

REACHED_WITHIN = 10.0
"""Seconds in which a cluster has to answer."""
OBJECTS = 100_000_000
"""Bytes that a Ray of our own keeps for objects, of which there are none worth speaking of."""
_OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
"""A Ray of our own tells nobody, and its actors have the priority of any process, which is 15 steps above Ray's."""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def run_on_ray(
    folder: str | Path,
    *,
    address: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    load: Callable[[], Any] | None = None,
    show_progress: bool = True,
) -> None:
    """Go on with a run from its folder alone, on a Ray cluster or on all cores of this machine.

    The folder has to be on a file system that all machines see, and this library installed on each. Units that failed
    three times are left alone and named in a warning.

    Args:
        folder: of a run that an experiment with `store=`, or `Plan.begin`, has begun.
        address: of the cluster, `host:port`, or `auto` for the one that runs on this machine. None for the Ray that
            this process is connected to, or else the one that the environment variable `RAY_ADDRESS` names, or else
            one of this machine's own, which is started and shut down again.
        workers: how many actors; each loads the model. None for one per GPU, or one per core where the cluster has no
            GPU. Fewer of them have more cores each, and as many threads.
        device: on what models run: None for GPUs where the cluster has some, else the CPU.
        batch_size: most rows run together; None adapts it to the free memory.
        load: gives the run's model, without arguments, and is sent to each actor; None to load it as it was loaded by
            `load_model`.
        show_progress: whether a progress bar is drawn on stderr.

    Raises:
        ImportError: where Ray is not installed.
        ValueError: before any run, for a folder that is none of a run, one of a newer version, one that an actor does
            not see, a metric that a folder cannot hold, a model other than the run's, more workers than the cluster
            has room for, and an address at which no cluster answers.
        OSError: where the folder cannot be written, or the disk is full.
    """
    check_has_ray()
    check_can_store()
    _check_given(address, workers, load)
    at = RunFolder(Path(folder).expanduser().absolute())
    spec = at.read_spec()
    at.check_can_be_written()
    _ = spec.asked  # a metric that a folder cannot hold is told of before anything is started
    if load is None and spec.loaded is None:
        raise ValueError(
            f"the model of the run in {at} was not loaded by load_model, so nothing says how to load it: give "
            "run_on_ray(folder, load=...) a function without arguments that returns it"
        )
    orders = Orders(at.path, spec.id, device, batch_size, load)

    def run(numbers: Sequence[int]) -> None:
        waiting = Waiting(at, spec, numbers)
        if waiting:
            with _ray(address), Crew(at, waiting, orders, workers) as crew:
                crew.run(show_progress)

    every = range(len(spec.units))
    complete(at, spec, every, run)
    warn_of_lacking(at, spec, every)


def check_has_ray() -> None:
    """Raises ImportError where Ray is not installed."""
    if find_spec("ray") is None:
        raise ImportError(
            "running on Ray needs the extra cluster, which is not installed: pip install "
            "'activation-patching-framework[cluster]', or go on without it, by work_on(folder)"
        )


def _check_given(address: str | None, workers: int | None, load: Callable[[], Any] | None) -> None:
    """Raises ValueError for arguments that cannot be meant."""
    if workers is not None and (not is_integer(workers) or workers < 1):
        raise ValueError(f"workers is {workers!r}, expected at least 1, or None for one per GPU or core")
    if address is not None and address != "auto" and _host_and_port(address) is None:
        raise ValueError(
            f"address is {address!r}, expected host:port of a cluster that this machine is part of, 'auto' for the one "
            "that runs here, or None"
        )
    if load is None:
        return
    if not callable(load):
        raise ValueError(f"load is {described(load)}, expected a function without arguments that returns the model")
    from ray import cloudpickle

    try:
        cloudpickle.dumps(load)
    except Exception as error:
        raise ValueError(
            f"load cannot be sent to other processes ({shortened_error(error)}): let it load the model by itself, and "
            "hold no model, file or lock"
        ) from error


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = str(address).rpartition(":")
    return (host.strip("[]"), int(port)) if host and "/" not in host and port.isdecimal() else None


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """A Ray that this process is connected to: as it stood, or else for as long as this lasts.

    Raises:
        ValueError: where no cluster answers, or another one is connected.
    """
    import ray

    with contextlib.redirect_stdout(sys.stderr):  # where Ray tells of deaths: stdout is for results
        if ray.is_initialized():
            stood = ray.get_runtime_context().gcs_address
            if address not in (None, "auto", stood):
                raise ValueError(
                    f"address is {address!r}, and this process is connected to the Ray at {stood!r}: leave out the "
                    "address, or call ray.shutdown() first"
                )
            yield
            return
        named = address or os.environ.get("RAY_ADDRESS") or "local"
        if named == "local":
            with _environment(**_OWN, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
                ray.init("local", include_dashboard=False, object_store_memory=OBJECTS, **_QUIET)
        else:
            _join(named)
        try:
            yield
        finally:
            ray.shutdown()


def _join(address: str) -> None:
    """Connect to a cluster that runs.

    Raises:
        ValueError: where none does.
    """
    import ray

    try:
        if place := _host_and_port(address):  # Ray itself waits for two minutes and then ends the process
            socket.create_connection(place, timeout=REACHED_WITHIN).close()
        ray.init(address, **_QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"no Ray cluster can be joined at {address!r} ({shortened_error(error)}): start one with `ray start "
            "--head` and give its address on a machine that is part of it, or leave out the address"
        ) from error


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables that processes which are started meanwhile find."""
    stood = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in stood.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
