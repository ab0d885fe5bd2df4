"""In which order the patches are run, and what is shared between them. Pure planning: nothing here touches a model.

A *row* is one patch on one pair. It is run from the place where it first changes anything (its *entry*) and from the
token position where it first changes anything (its *start*); everything before is taken from the recorded run. Rows
are grouped into batches that share a start and a length, so that a batch is one rectangular tensor, and ordered by
entry, so that a batch is carried up through the layers once while rows join it where they enter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from jaxtyping import Int
from torch import Tensor

from actpatch.core.components import Entry, in_forward_order
from actpatch.core.sites import Patch, Site

MERGE_TOKENS = 64
"""Groups are merged where that adds fewer tokens per layer than this: about what one more call of a block costs."""


class Stage(IntEnum):
    """Where in a layer a row enters."""

    BLOCK = 0
    """With a residual stream, before the block."""
    ATTENTION = 1
    """With an attention output, so that of this block only what follows the attention is run."""


@dataclass(frozen=True)
class Route:
    """How one patch is run: where it enters, what is changed on entering, and what is changed by hooks on the way."""

    layer: int
    """Layer of entry; the number of layers stands for the residual stream after the last block."""
    stage: Stage
    on_entry: tuple[Site, ...]
    """Ordered as a forward pass meets them, so that what is written downstream wins."""
    hooked: tuple[Site, ...]

    @property
    def order(self) -> tuple[int, int]:
        return self.layer, self.stage


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that are run together, ordered by entry. Positions `start` to `length` are computed."""

    patches: Int[np.ndarray, " row"]
    """Index of each row's patch."""
    pairs: Int[np.ndarray, " row"]
    """Index of each row's pair."""
    start: int
    length: int

    @classmethod
    def of(cls, patches: Sequence[int], pairs: Sequence[int], start: int, length: int) -> Batch:
        """A batch of rows that are listed."""
        return cls(np.array(patches, dtype=np.int64), np.array(pairs, dtype=np.int64), start, length)

    def __len__(self) -> int:
        return len(self.patches)

    @property
    def tokens(self) -> int:
        """Rows × positions."""
        return len(self) * (self.length - self.start)

    def parts(self, max_tokens: int, max_rows: int | None = None) -> list[Batch]:
        """The batch in parts of at most so many tokens and rows, but at least one row."""
        size = max(1, max_tokens // (self.length - self.start))
        size = size if max_rows is None else min(size, max_rows)
        return [
            replace(self, patches=self.patches[i : i + size], pairs=self.pairs[i : i + size])
            for i in range(0, len(self), size)
        ]


def route(patch: Patch, linear: bool) -> Route:
    """How a patch is run.

    Args:
        patch: sites inside the blocks.
        linear: whether a change of z, attn_out, resid_mid, mlp_post or mlp_out may be added to the recorded residual
            stream instead of re-running what produced it.
    """
    entries = {site: _entry(site, linear) for site in patch.sites}
    layer, stage, _ = min(entries.values())
    on_entry = [site for site, entry in entries.items() if entry == (layer, stage, True)]
    if {"z", "attn.hook_result"} <= {site.component for site in on_entry}:  # a result overwrites what its z added
        return route(patch, linear=False)
    on_entry.sort(key=lambda site: (site.layer, in_forward_order(site.kind)))
    hooked = tuple(site for site in patch.sites if site not in on_entry)
    return Route(layer, stage, tuple(on_entry), hooked)


def _entry(site: Site, linear: bool) -> tuple[int, Stage, bool]:
    """(layer, stage, whether the change is made on entering rather than by a hook)."""
    layer, entry = site.layer, site.kind.entry
    if layer is None:
        raise ValueError(f"{site.hook_point} lies outside the blocks: a resumed run cannot change it")
    if entry is None or (site.kind.is_added and not linear):
        return layer, Stage.BLOCK, False
    if entry is Entry.AFTER_ATTENTION:
        return layer, Stage.ATTENTION, True
    return layer + (entry is Entry.AFTER_BLOCK), Stage.BLOCK, True


def plan(
    order: Int[np.ndarray, "patch 2"],
    starts: Int[Tensor, "patch pair"],
    lengths: Int[Tensor, " pair"],
    max_tokens: int,
    max_rows: int | None = None,
) -> list[Batch]:
    """Batches that cover every row that has something to run.

    Args:
        order: layer and stage of each patch's entry.
        starts: first position each row changes; a row whose start is not below its pair's length changes nothing and
            is left out.
        lengths: number of tokens of each pair.
        max_tokens: most tokens (rows × positions) a batch may hold; a batch has at least one row.
        max_rows: most rows a batch may hold.
    """
    of_pairs, each = lengths.numpy(), starts.numpy()
    patches, pairs = (each < of_pairs).nonzero()
    if not len(patches):
        return []
    ends = np.stack([of_pairs[pairs], each[patches, pairs]], axis=1)
    groups, group, sizes = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    batches = []
    for (start, length), members in _merged([(start, length) for length, start in groups.tolist()], sizes.tolist()):
        rows = np.isin(group.ravel(), members).nonzero()[0]
        layers, stages = order[patches[rows]].T
        rows = rows[np.lexsort((pairs[rows], patches[rows], stages, layers))]
        batches += Batch(patches[rows], pairs[rows], start, length).parts(max_tokens, max_rows)
    return batches


def _merged(ends: Sequence[tuple[int, int]], sizes: Sequence[int]) -> list[tuple[tuple[int, int], list[int]]]:
    """Groups joined with their neighbours wherever computing a few tokens too many costs less than another batch.

    Args:
        ends: start and length of each group, ordered by length.
        sizes: number of rows of each.

    Returns:
        Start and length of what is run together, and which groups that are.
    """
    merged: list[tuple[tuple[int, int], list[int]]] = []
    for group, ((start, length), size) in enumerate(zip(ends, sizes)):
        if merged:
            (last_start, last_length), last = merged[-1]
            joint = (min(start, last_start), max(length, last_length))
            width = joint[1] - joint[0]
            rows = sum(sizes[i] for i in last)
            extra = size * (width - length + start) + rows * (width - last_length + last_start)
            if extra <= MERGE_TOKENS:
                merged[-1] = (joint, [*last, group])
                continue
        merged.append(((start, length), [group]))
    joined: dict[tuple[int, int], list[int]] = {}
    for key, members in merged:
        joined.setdefault(key, []).extend(members)
    return list(joined.items())
