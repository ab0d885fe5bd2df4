"""Processes that tests may kill: forks of the test's own, which have the model loaded."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def forked(action: Callable[[], Any], told: Path | None = None) -> int:
    """The id of a process that does this and ends, with 0 where it ended well; what it failed of is written down."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which tests have none of that run
        process = os.fork()
    if process:
        return process
    status = 1
    try:
        action()
        status = 0
    except BaseException as error:
        if told is not None:
            with contextlib.suppress(OSError):
                told.write_text(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"[:1500])
    finally:
        os._exit(status)


def ended(process: int, within: float = 120.0) -> int:
    """What a process ended with: its exit status, or less the signal that ended it."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"process {process} did not end")


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that stands in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
