"""How much memory does a sweep need beyond the loaded model?  Measured in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import psutil
import torch

from actpatch.engine.engine import PatchingEngine
from benchmarks.rows import Row, Task, loaded, task

SAMPLING_SECONDS = 0.002


def peak_extra_memory(row: Row, work: Callable[[Any, Task], object] | None = None) -> int:
    """Bytes by which the resident memory of a fresh process rises at most during the row's sweep, or other work with
    its model and its task."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_measure, row, work or _sweep).result()


def _sweep(model: Any, todo: Task) -> None:
    PatchingEngine(model, show_progress=False).sweep(todo.pairs, todo.patches, [todo.metric])


def _measure(row: Row, work: Callable[[Any, Task], object]) -> int:
    model = loaded(row)
    todo = task(row, model)
    with torch.no_grad():  # brings every weight into memory, which a loader may put off
        model(torch.stack(todo.pairs.corrupted[:1]))
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc: hands back what is free, so that its reuse is seen
        ctypes.CDLL(None).malloc_trim(0)
    return rise_of_memory(lambda: work(model, todo))


def rise_of_memory(work: Callable[[], object]) -> int:
    """Bytes by which the resident memory of this process rises at most during some work."""
    process, over, highest = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not over.wait(SAMPLING_SECONDS):
            highest[0] = max(highest[0], process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        work()
    finally:
        over.set()
        watching.join()
    return max(0, highest[0] - before)
