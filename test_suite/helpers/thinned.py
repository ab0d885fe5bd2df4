"""Products of parameters, of which the fast tests run a few and the slow ones all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def thinned(*axes: Sequence[Any], together: int = 1) -> list[Any]:
    """The product of these values as parameters of a test, slow but for the few that show each of them.

    Args:
        axes: values of each parameter, as they are or as `pytest.param`; what is slow among them stays slow.
        together: with 1 each value stands in some fast test, with 2 each two values of two parameters stand in one.
    """
    cases = list(itertools.product(*([_as_parameter(value) for value in axis] for axis in axes)))
    shown = {i: _shown(case, together) for i, case in enumerate(cases) if not any(map(_is_left_out, case))}
    left, fast = set[Any]().union(*shown.values()), set[int]()
    while left:
        best = max(shown, key=lambda i: len(left & shown[i]))
        left -= shown[best]
        fast.add(best)
    return [
        pytest.param(
            *(part.values[0] for part in case),
            marks=[*(mark for part in case for mark in part.marks), *([] if i in fast else [pytest.mark.slow])],
            id="-".join(part.id for part in case),
        )
        for i, case in enumerate(cases)
    ]


def _as_parameter(value: Any) -> Any:
    given = value if hasattr(value, "marks") else pytest.param(value)
    return pytest.param(*given.values, marks=given.marks, id=given.id or _name(given.values[0]))


def _name(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)


def _is_left_out(part: Any) -> bool:
    """Whether the fast tests of this environment do without the value."""
    return any(mark.name == "slow" or (mark.name == "skipif" and mark.args[0]) for mark in part.marks)


def _shown(case: Sequence[Any], together: int) -> set[Any]:
    """Which values of which parameters the case has, so many at a time."""
    return set(itertools.combinations([(axis, part.id) for axis, part in enumerate(case)], together))
