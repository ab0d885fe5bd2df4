"""Whole numbers that choose something: checked, and counted from the front. Nothing here knows what is chosen."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any


def is_integer(number: Any) -> bool:
    """Whether this is a whole number, NumPy's own included; a truth value is none."""
    if isinstance(number, bool):
        return False
    try:
        operator.index(number)
    except TypeError:
        return False
    return True


def as_integer(number: Any) -> Any:
    """NumPy's and PyTorch's whole numbers as Python's; whatever else was given, as it is."""
    return operator.index(number) if is_integer(number) else number


def check_index(index: int, size: int, what: str) -> int:
    """`index` counted from the front; negative counts from the end.

    Raises:
        ValueError: where it is no integer or out of range.
    """
    if not is_integer(index):
        raise ValueError(f"{what} {index!r} is not an integer")
    index = operator.index(index)
    if not -size <= index < size:
        raise ValueError(f"{what} {index} is out of range: expected {-size} to {size - 1}")
    return index % size


def check_indices(indices: Iterable[int], size: int, name: str, what: str) -> list[int]:
    """Several indices, each as `check_index` gives it.

    Args:
        indices: what was given.
        size: how many there are to choose from.
        name: the argument that they were given as.
        what: what each of them counts.

    Raises:
        ValueError: where they are no list of integers in range, or none at all.
    """
    try:
        given = None if isinstance(indices, str) else list(indices)
    except TypeError:  # also for a tensor that holds a single number
        given = None
    if given is None:
        raise ValueError(f"{name} is {indices!r}, expected a list of integers, or None for all")
    checked = [check_index(index, size, what) for index in given]
    if not checked:
        raise ValueError(f"{name} is empty: give at least one {what}, or None for all")
    return checked
