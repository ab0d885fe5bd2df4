"""Warnings that point at the line of the user's own code, from however deep in the library they come."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from pathlib import Path
from types import FrameType

import jaxtyping

_PACKAGE = str(Path(__file__).resolve().parents[1])
_PASSED_THROUGH = (_PACKAGE, contextlib.__file__, functools.__file__, str(Path(jaxtyping.__file__).parent), "<")
"""Files whose frames are the library's own, or stand between two of them; `<` begins the names of generated code."""
_NOTEBOOK = ("<ipython", "<stdin>", "<string>")
"""Code that a person typed also has a name instead of a file."""


def warn_user(message: str) -> None:
    """A `UserWarning` at the first line outside the library that led here."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and _is_passed_through(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_passed_through(file: str) -> bool:
    return file.startswith(_PASSED_THROUGH) and not file.startswith(_NOTEBOOK)
