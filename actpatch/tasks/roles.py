"""Whether one position plays another role in some pairs than in others, by the names that the dataset gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from actpatch.core.alignment import span_of
from actpatch.core.text import count
from actpatch.tasks.encoding import EncodedPairs


def mixed_roles(pairs: EncodedPairs, positions: Iterable[int]) -> str:
    """A sentence that names a position whose role is not the same in all pairs, and what to do; empty where none is.

    Args:
        pairs: the pairs; of a dataset that names no positions none is known to be mixed.
        positions: counted from each prompt's start, or its end where negative.
    """
    mixed = {}
    for position in dict.fromkeys(positions):
        roles = Counter(_role(pairs, i, position) for i in range(len(pairs)))
        if len(roles) > 1:
            mixed[position] = roles.most_common(2)
    if not mixed:
        return ""
    position, (one, other) = max(mixed.items(), key=lambda item: all(role for role, _ in item[1]))
    more = f", and {count(len(mixed) - 1, 'more position')} likewise" if len(mixed) > 1 else ""
    names = ", ".join(repr(name) for name in dict.fromkeys(name for has in pairs.named for name in has))
    return (
        f"position {position} is {one[0] or 'unnamed'} in {count(one[1], 'pair')} and {other[0] or 'unnamed'} in "
        f"{other[1]}{more}: effects there are means over unlike things; go by names instead ({names})"
    )


def _role(pairs: EncodedPairs, pair: int, position: int) -> str:
    names = pairs.named[pair] if pairs.named else {}
    at = position % int(pairs.lengths[pair])
    return "/".join(sorted(name for name, span in names.items() if at in span_of(span)))
