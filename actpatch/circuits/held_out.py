"""Which pairs to judge a circuit on: by default those that it was not chosen by. Nothing here runs a model.

What was chosen by some pairs does better on these than on others, so numbers on them say little of the behaviour.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Literal, get_args

from actpatch.core.circuit_names import pair_key
from actpatch.core.text import count
from actpatch.tasks.encoding import EncodedPairs

Split = Literal["held-out", "all"]
"""`held-out`: pairs that a search saw are left out; `all`: they are not."""


@dataclass(frozen=True)
class HeldOut:
    """The pairs to judge on, and what the search knew of them."""

    pair_indices: tuple[int, ...]
    """Index of each in its dataset, in order: what experiments take as `pair_indices`."""
    held_out: bool | None
    """Whether the search saw none of them; None where it is not known which pairs it saw."""
    n_left_out: int
    """How many of the pairs were left out because the search saw them."""


def held_out_indices(pairs: EncodedPairs, seen: Set[str], split: Split = "held-out") -> HeldOut:
    """The pairs to judge on.

    Args:
        pairs: to choose from, as `patchers.experiment.encoded` gives them; all are taken of a dataset that the search
            did not see.
        seen: keys of the pairs that the search saw (`Circuit.seen`, `pair_key`); empty where that is not known, and
            all pairs are taken.
        split: whether those that it saw are left out.

    Raises:
        ValueError: for an unknown split, and where the search saw every one of the pairs and they are to be left out.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}, expected one of {', '.join(map(repr, get_args(Split)))}")
    if not seen:
        return HeldOut(pairs.indices, None, 0)
    was_seen = [pair_key(*both) in seen for both in zip(pairs.clean_tokens, pairs.corrupted_tokens)]
    if split == "all":
        return HeldOut(pairs.indices, not any(was_seen), 0)
    left = tuple(index for index, known in zip(pairs.indices, was_seen) if not known)
    if not left:
        raise ValueError(
            f"the search saw every one of {count(len(pairs), 'pair')}, so none is held out: give a dataset "
            "of other pairs, search on some of them (pair_indices=), or judge on what it saw (split='all')"
        )
    return HeldOut(left, True, sum(was_seen))
