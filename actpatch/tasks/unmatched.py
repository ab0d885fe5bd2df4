"""What results say of positions that stand for none in the other prompt, in words. Nothing here knows what is run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from actpatch.core.alignment import Span, span_of
from actpatch.core.sites import Patch
from actpatch.core.text import count
from actpatch.tasks.encoding import EncodedPairs


def unmatched_sentence(pairs: EncodedPairs) -> str:
    """How many positions of the run that is patched are left alone; empty where all have a partner."""
    has_partner = _has_partner(pairs)
    if has_partner is None:
        return ""
    lengths = pairs.lengths
    left = lengths - has_partner.sum(dim=1)
    if not int(left.sum()):
        return ""
    several = " (mean over pairs)" if len(pairs) > 1 else ""
    n_left, n_tokens = (f"{numbers.double().mean():.3g}" for numbers in (left, lengths))
    prompts = "prompts" if len(pairs) > 1 else "prompt"
    return (
        f"{n_left} of {n_tokens} positions of the {pairs.patched} {prompts} have no partner in the other run and are "
        f"left alone{several}"
    )


def nothing_written_sentence(pairs: EncodedPairs, patches: Sequence[Patch]) -> str:
    """Which of the patches lie at positions without a partner in every pair; empty where none does."""
    has_partner = _has_partner(pairs)
    if has_partner is None:
        return ""
    known: dict[int | tuple[Span, ...] | None, bool] = {}
    idle = []
    for patch in patches:
        for site in patch.sites:
            if site.position not in known:
                known[site.position] = any(_written_in(site.position, has_partner, pairs))
        if not any(known[site.position] for site in patch.sites):
            idle.append(patch)
    if not idle:
        return ""
    more = f" and {count(len(idle) - 1, 'more patch')}" if len(idle) > 1 else ""
    return (
        f"{idle[0].label}{more} {'change' if more else 'changes'} nothing: the position has a partner in no pair, so "
        "there is no effect"
    )


def sometimes_written_sentence(pairs: EncodedPairs, patches: Sequence[Patch]) -> str:
    """Which of the patches have a partner in some of the pairs alone; empty where none does."""
    has_partner = _has_partner(pairs)
    if has_partner is None:
        return ""
    known: dict[int | tuple[Span, ...] | None, list[bool]] = {}
    found = []
    for patch in patches:
        for site in patch.sites:
            if site.position not in known:
                known[site.position] = _written_in(site.position, has_partner, pairs)
        n_written = sum(map(any, zip(*(known[site.position] for site in patch.sites))))
        if 0 < n_written < len(pairs):
            found.append((patch.label, n_written))
    if not found:
        return ""
    (label, n_written), more = found[0], len(found) - 1
    others = f" (and {count(more, 'more patch')} in some alone)" if more else ""
    return (
        f"{label} has a partner in {n_written} of {len(pairs)} pairs{others}: its effect is that of these, and the "
        "others are left out"
    )


def _has_partner(pairs: EncodedPairs) -> Bool[Tensor, "pair longest"] | None:
    return None if pairs.partners is None else pairs.partners >= 0


def _written_in(position: int | tuple[Span, ...] | None, has_partner: Tensor, pairs: EncodedPairs) -> list[bool]:
    """Whether anything is written there, in each pair; positions out of range are told of elsewhere."""
    if position is None:
        return [True] * len(pairs)
    each = position if isinstance(position, tuple) else (position,) * len(pairs)
    return [
        bool(torch.any(has_partner[pair, [at % length for at in span_of(span)]]))
        for pair, (span, length) in enumerate(zip(each, pairs.lengths.tolist()))
    ]
