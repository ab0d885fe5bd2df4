"""Positions as they are asked for, by number or by the names that a task gives them, found in each pair."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, TypeAlias

from actpatch.core.alignment import Span, span_of
from actpatch.core.indices import check_index, is_integer
from actpatch.tasks.encoding import EncodedPairs, named_positions

Place: TypeAlias = int | str | tuple[int | str, ...]
"""A position, a name of one or of several, or some of these together."""


def positions_in_pairs(place: Place, pairs: EncodedPairs) -> tuple[Span, ...]:
    """Where a position stands in each pair, a name or several together, counted from the front in the run that is
    patched.

    Raises:
        ValueError: where it is out of range, or a pair has no position of this name.
    """
    if isinstance(place, str):
        return named_positions(pairs, place)
    if isinstance(place, tuple):
        each = [positions_in_pairs(one, pairs) for one in place]
        together = [sorted({at for span in spans for at in span_of(span)}) for spans in zip(*each)]
        return tuple(at[0] if len(at) == 1 else tuple(at) for at in together)
    return tuple(
        check_index(place, n, f"position (in pair {pair}, of {n} tokens)")
        for pair, n in zip(pairs.indices, pairs.lengths.tolist())
    )


def as_list(positions: Any) -> list[Place]:
    """One or several positions or names as a list; several of them within it, which stand together, as tuples.

    Raises:
        ValueError: for what is neither an integer nor a name, and for none at all that should stand together.
    """
    places = list(positions) if _are_several(positions) else [positions]
    return [_together(place) if _are_several(place) else _single(place) for place in places]


def _are_several(positions: Any) -> bool:
    return isinstance(positions, Iterable) and not isinstance(positions, str) and not is_integer(positions)


def _together(places: Iterable[Any]) -> tuple[int | str, ...]:
    together = tuple(dict.fromkeys(map(_single, places)))
    if not together:
        raise ValueError("a position is empty: give at least one that is patched together, a name, or one position")
    return together


def _single(place: Any) -> int | str:
    if not isinstance(place, str) and not is_integer(place):
        raise ValueError(f"position {place!r} is not an integer, and no name of one")
    return place if isinstance(place, str) else operator.index(place)
