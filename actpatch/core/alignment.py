"""Which positions of a clean and a corrupted prompt stand for each other, where they have other lengths.

Prompts are seen as rows of token ids. Nothing here knows a task, a model, or what is patched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Span: TypeAlias = int | tuple[int, ...]
"""One position, or several that belong together, ascending."""
Matches: TypeAlias = tuple[tuple[int, int], ...]
"""(position in the clean prompt, position in the corrupted one), ascending; each position stands there at most once."""


def span_of(position: Span) -> tuple[int, ...]:
    """The positions of a span, of which one alone may stand as it is."""
    return position if isinstance(position, tuple) else (position,)


def identity(length: int) -> Matches:
    """Each position stands for that of its own number."""
    return tuple((at, at) for at in range(length))


def matched_ends(clean: Sequence[int], corrupted: Sequence[int]) -> Matches:
    """The tokens before the first difference, counted from the start, and those after the last one, from the end.

    What lies between is matched where it has as many tokens in both prompts, and left out otherwise.
    """
    shortest = min(len(clean), len(corrupted))
    if len(clean) == len(corrupted):
        return identity(shortest)
    begin = next((at for at in range(shortest) if clean[at] != corrupted[at]), shortest)
    rest = shortest - begin
    end = next((at for at in range(rest) if clean[-1 - at] != corrupted[-1 - at]), rest)
    return identity(begin) + tuple((len(clean) - at, len(corrupted) - at) for at in range(end, 0, -1))


def matched_names(clean: Mapping[str, Span], corrupted: Mapping[str, Span]) -> Matches:
    """The positions that have the same name in both prompts; of spans the last tokens, as many as the shorter one has.

    Raises:
        ValueError: where two names give one position two partners.
    """
    partners: dict[int, tuple[int, str]] = {}
    taken: dict[int, tuple[int, str]] = {}
    for name in (name for name in clean if name in corrupted):
        one, other = span_of(clean[name]), span_of(corrupted[name])
        common = min(len(one), len(other))
        for at, partner in zip(one[len(one) - common :], other[len(other) - common :]):
            for known, here, there in ((partners, at, partner), (taken, partner, at)):
                before = known.setdefault(here, (there, name))
                if before[0] != there:
                    raise ValueError(
                        f"the names {before[1]!r} and {name!r} match one position with two others: give one of them "
                        "other positions"
                    )
    return tuple(sorted((at, partner) for at, (partner, _) in partners.items()))


def flipped(matches: Matches) -> Matches:
    """The same, with the corrupted prompt's positions first."""
    return tuple(sorted((there, here) for here, there in matches))
