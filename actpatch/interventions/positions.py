"""Positions as they are asked for, by number or by the names that a task gives them, found in each pair."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from actpatch.core.indices import check_index, is_integer
from actpatch.tasks.encoding import EncodedPairs, named_positions


def positions_in_pairs(place: int | str, pairs: EncodedPairs) -> tuple[int, ...]:
    """Where a position, or one that the task names, stands in each pair, counted from the front.

    Raises:
        ValueError: where it is out of range, or a pair has no position of this name.
    """
    if isinstance(place, str):
        return named_positions(pairs, place)
    return tuple(
        check_index(place, n, f"position (in pair {pair}, of {n} tokens)")
        for pair, n in zip(pairs.indices, pairs.lengths.tolist())
    )


def as_list(positions: Any) -> list[int | str]:
    """One or several positions or names as a list.

    Raises:
        ValueError: for what is neither an integer nor a name.
    """
    several = isinstance(positions, Iterable) and not isinstance(positions, str) and not is_integer(positions)
    places = list(positions) if several else [positions]
    if wrong := [place for place in places if not isinstance(place, str) and not is_integer(place)]:
        raise ValueError(f"position {wrong[0]!r} is not an integer, and no name of one")
    return [place if isinstance(place, str) else operator.index(place) for place in places]
