"""What a dataset says of the positions of a pair, checked: their names, and which stand for each other.

Nothing here knows where the tokens come from.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actpatch.core.alignment import Matches, Span, matched_ends, matched_names, span_of
from actpatch.core.indices import check_index, is_integer
from actpatch.core.text import shortened
from actpatch.tasks.dataset import PatchingDataset


@dataclass(frozen=True)
class PairPositions:
    """The positions of one pair, counted from the front."""

    clean: Mapping[str, Span]
    """By name, in the clean prompt."""
    corrupted: Mapping[str, Span]
    """By name, in the corrupted one."""
    matches: Matches | None
    """Which stand for each other; None where each stands for that of its own number."""


def pair_positions(
    dataset: PatchingDataset,
    index: int,
    clean: Sequence[int],
    corrupted: Sequence[int],
    in_chats: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {}),
) -> PairPositions:
    """What the dataset says of the positions of a pair, whose tokens these are.

    Names that the roles of a chat give (`in_chats`) stand beside those of the dataset, which go before them. Where
    nothing is aligned they are those of the same position in both prompts.

    Raises:
        ValueError: for a position outside its prompt or given twice, a span of no tokens, an `align` that is none, and
            where nothing is matched.
    """
    named = _checked_names(dataset.get_positions(index), index, len(clean), "get_positions")
    given = dataset.get_alignment(index)
    if given is None and dataset.align is None:
        of_chats = {name: at for name, at in in_chats[0].items() if in_chats[1].get(name) == at}
        return PairPositions({**of_chats, **named}, {**of_chats, **named}, None)
    matches = None
    if given is not None:
        matches = _checked_mapping(given, index, len(clean), len(corrupted))
    elif dataset.align == "ends":
        matches = matched_ends(clean, corrupted)
    elif dataset.align != "names":
        raise ValueError(
            f"the dataset {dataset.name!r} has align = {shortened(dataset.align)}, expected 'ends', 'names', a "
            "list of mappings (clean position -> corrupted position), one per pair, or None"
        )
    told = dataset.get_corrupted_positions(index)
    if told is None and matches is not None:
        others = _by_partner(named, matches)
    else:
        told = dataset.get_positions(index) if told is None else told
        others = _checked_names(told, index, len(corrupted), "get_corrupted_positions", "the corrupted prompt ")
    clean_chat, corrupted_chat = ({name: at for name, at in c.items() if name not in named} for c in in_chats)
    named, others = {**clean_chat, **named}, {**corrupted_chat, **others}
    if matches is None:
        try:
            matches = matched_names(named, others)
        except ValueError as error:
            raise ValueError(f"pair {index}: {error}") from None
    if not matches:
        raise ValueError(f"pair {index}: {_nothing_matched(dataset, given)}")
    return PairPositions(named, others, matches)


def partner_positions(
    named: Mapping[str, Any],
    index: int,
    clean: Sequence[int],
    corrupted: Sequence[int],
    given: Mapping[int, int] | None,
) -> dict[str, Span]:
    """Where the partners of a pair's named clean tokens stand, by the mapping that is given, else by the ends of its
    prompts; names of tokens without a partner are left out.

    Raises:
        ValueError: as `pair_positions` does.
    """
    here = _checked_names(named, index, len(clean), "get_positions")
    matches = matched_ends(clean, corrupted)
    if given is not None:
        matches = _checked_mapping(given, index, len(clean), len(corrupted))
    return _by_partner(here, matches)


def checked_span(given: Any, length: int, what: str) -> Span:
    """A position, or several as an ascending tuple of at least two, counted from the front.

    Raises:
        ValueError: where it is none, out of range, or holds one twice.
    """
    if is_integer(given) or isinstance(given, str) or not isinstance(given, Iterable):
        return check_index(given, length, what)
    span = sorted(check_index(at, length, what) for at in given)
    if not span:
        raise ValueError(f"{what} is empty: give at least one position")
    if len(set(span)) < len(span):
        raise ValueError(f"{what} {span} names a position twice: give each once")
    return span[0] if len(span) == 1 else tuple(span)


def _checked_names(given: Any, index: int, length: int, method: str, where: str = "") -> dict[str, Span]:
    if not isinstance(given, Mapping):
        raise ValueError(
            f"pair {index}: {method} returned {given!r}, expected a mapping name -> position, or several positions"
        )
    return {
        name: checked_span(at, length, f"pair {index}, {where}{length} tokens long: position {name!r}")
        for name, at in given.items()
    }


def _checked_mapping(given: Any, index: int, n_clean: int, n_corrupted: int) -> Matches:
    if not isinstance(given, Mapping):
        raise ValueError(
            f"pair {index}: the alignment is {shortened(given)}, expected a mapping clean position -> "
            "corrupted position"
        )
    what = f"pair {index}, {{}} prompt of {{}} tokens: aligned position"
    matches = sorted(
        (
            check_index(at, n_clean, what.format("clean", n_clean)),
            check_index(partner, n_corrupted, what.format("corrupted", n_corrupted)),
        )
        for at, partner in given.items()
    )
    for side, run in enumerate(("clean", "corrupted")):
        positions = [match[side] for match in matches]
        if twice := [at for i, at in enumerate(positions) if at in positions[:i]]:
            raise ValueError(
                f"pair {index}: the alignment has position {twice[0]} of the {run} prompt twice: give each one partner"
            )
    return tuple((operator.index(at), operator.index(partner)) for at, partner in matches)


def _by_partner(named: Mapping[str, Span], matches: Matches) -> dict[str, Span]:
    """Where the named tokens' partners stand; a name none of whose tokens has one is left out."""
    partners = dict(matches)
    found = {name: sorted(partners[at] for at in span_of(span) if at in partners) for name, span in named.items()}
    return {name: at[0] if len(at) == 1 else tuple(at) for name, at in found.items() if at}


def _nothing_matched(dataset: PatchingDataset, given: Any) -> str:
    if given is not None:
        return "the alignment is empty, so nothing would be patched: match at least one position"
    if dataset.align == "ends":
        return (
            "the prompts begin and end with other tokens, so align 'ends' matches nothing: use prompts that share "
            "their beginning or end, or align 'names'"
        )
    return (
        "no position has a name in both prompts, so align 'names' matches nothing: name some in get_positions and, "
        "where they stand elsewhere in the corrupted prompt, get_corrupted_positions"
    )
