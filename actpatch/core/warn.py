"""Warnings that point at the line of the user's own code, from however deep in the library they come."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

_PASSED_THROUGH = {"actpatch", "contextlib", "functools", "jaxtyping"}
"""Packages whose frames are the library's own, or stand between two of them."""


def warn_user(message: str) -> None:
    """A `UserWarning` at the first line outside the library that led here."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and _is_passed_through(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_passed_through(frame: FrameType) -> bool:
    """By the module that the code runs in: what is typed in has no file, and what is generated has one of any name."""
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _PASSED_THROUGH
