"""Attention patterns of heads on both prompts of one pair, as a value that figures draw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actpatch.core.indices import check_index
from actpatch.results.items import HeadPatchingResult


@dataclass(frozen=True, eq=False, repr=False)
class AttentionPatterns:
    """Attention patterns of some heads on the clean and on the corrupted prompt of one pair.

    Each row is a query position, and sums to 1 over the key positions that it attends to.
    """

    heads: tuple[tuple[int, int], ...]
    """(layer, query head) of each pattern."""
    clean: Float[np.ndarray, "head query key"]
    corrupted: Float[np.ndarray, "head query key"]
    clean_tokens: tuple[str, ...]
    """Token strings of the clean prompt, BOS included."""
    corrupted_tokens: tuple[str, ...]
    model: str
    """Name of the model."""
    task: str
    """Name of the dataset, with its corruption."""
    pair_index: int
    """Index of the pair in its dataset."""

    def __post_init__(self) -> None:
        expected = (len(self.heads), len(self.clean_tokens), len(self.clean_tokens))
        for name in ("clean", "corrupted"):
            if (shape := getattr(self, name).shape) != expected:
                raise ValueError(f"{name} has shape {shape}, expected (heads, tokens, tokens) = {expected}")
        if len(self.corrupted_tokens) != len(self.clean_tokens):
            raise ValueError(
                f"corrupted_tokens has {len(self.corrupted_tokens)} entries, clean_tokens {len(self.clean_tokens)}: "
                "expected as many"
            )

    def __repr__(self) -> str:
        shown = ", ".join(self.labels[:5]) + (" …" if len(self.labels) > 5 else "")
        return f"AttentionPatterns({shown}, {self.task}, pair {self.pair_index}, {len(self.clean_tokens)} tokens)"

    @property
    def labels(self) -> list[str]:
        return [f"L{layer}H{head}" for layer, head in self.heads]

    @property
    def difference(self) -> Float[np.ndarray, "head query key"]:
        """Clean minus corrupted: where the head looks more because of what the corruption took away."""
        return self.clean - self.corrupted


def chosen_heads(
    heads: Sequence[tuple[int, int] | str | HeadPatchingResult], n_layers: int, n_heads: int
) -> list[tuple[int, int]]:
    """(layer, query head) of heads that were named so, or by their labels (`L1H0`), or picked from results.

    Raises:
        ValueError: for no heads, one out of range or given twice, and for key-value heads, which have no pattern.
    """
    if isinstance(heads, str):
        raise ValueError(f"heads is {heads!r}, expected a list: [{heads!r}]")
    chosen: list[tuple[int, int]] = []
    for head in heads:
        if isinstance(head, HeadPatchingResult):
            if head.is_key_value_head:
                raise ValueError(
                    f"{head.label} is a key-value head, and patterns go by query head: give (layer, head) with a head "
                    f"of 0 to {n_heads - 1}"
                )
            layer, index = head.layer, head.head
        else:
            place = _named_head(head) if isinstance(head, str) else head
            if not isinstance(place, Sequence) or len(place) != 2:
                raise ValueError(f"head {head!r} is no head: expected (layer, head), for instance (1, 0), or 'L1H0'")
            layer, index = place
        chosen.append((check_index(layer, n_layers, "layer"), check_index(index, n_heads, "head")))
    if not chosen:
        raise ValueError("heads is empty: give at least one (layer, head), or results.top(3)")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"heads {chosen} names a head twice: give each head once")
    return chosen


def _named_head(label: str) -> tuple[int, int] | None:
    """(layer, head) of `L1H0`; None for what is no such label."""
    named = re.fullmatch(r"L(\d+)H(\d+)", label)
    return None if named is None else (int(named[1]), int(named[2]))
