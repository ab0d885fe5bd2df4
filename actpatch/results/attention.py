"""Attention patterns of heads on both prompts of a pair, or on average over pairs, as a value that figures draw.

Knows which pair shows best what heads do, and what the tokens of several pairs have in common; it runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actpatch.core.estimate_words import exact_or_estimated
from actpatch.core.estimates import Estimate
from actpatch.core.indices import check_index
from actpatch.results.items import HeadPatchingResult


@dataclass(frozen=True, eq=False, repr=False)
class AttentionPatterns:
    """Attention patterns of some heads on the clean and on the corrupted prompt of one pair, or their mean over pairs.

    Each row is a query position, and sums to 1 over the key positions that it attends to.
    """

    heads: tuple[tuple[int, int], ...]
    """(layer, query head) of each pattern."""
    clean: Float[np.ndarray, "head query key"]
    corrupted: Float[np.ndarray, "head query key"]
    clean_tokens: tuple[str, ...]
    """Token strings of the clean prompt, BOS included; of a mean, what the pairs' tokens have in common."""
    corrupted_tokens: tuple[str, ...]
    model: str
    """Name of the model."""
    task: str
    """Name of the dataset, with its corruption."""
    pair_index: int | None
    """Index of the pair in its dataset; None for a mean over pairs."""
    averaged: tuple[int, ...] = ()
    """Indices of the pairs of a mean."""
    why: str = ""
    """Why this pair or these pairs, where they were not asked for."""
    effects: tuple[float, ...] = ()
    """Effect of patching each head on this pair, where that was measured; else empty."""
    mean_effects: tuple[float, ...] = ()
    """Effect of patching each head over all pairs that it was measured on; empty as `effects` is."""
    estimate: Estimate | None = None
    """How these effects are estimated; None where patches were run, or where there are none."""

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
        return f"AttentionPatterns({shown}, {self.task}, {self.pairs}, {len(self.clean_tokens)} tokens)"

    @property
    def labels(self) -> list[str]:
        return [f"L{layer}H{head}" for layer, head in self.heads]

    @property
    def pairs(self) -> str:
        """The pair, or the pairs of the mean, in words."""
        return f"mean over {len(self.averaged)} pairs" if self.pair_index is None else f"pair {self.pair_index}"

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


NEAREST = "nearest the heads' mean effect"
OF_ONE_TEMPLATE = "those of one template and length"
FIRST = "the first, as pairs of one template and length are needed for a mean"


def measured_heads(heads: Sequence[tuple[int, int] | str | HeadPatchingResult]) -> list[HeadPatchingResult]:
    """The heads, where all are entries of results that know their effect on pairs of a dataset; else none."""
    known = [head for head in heads if isinstance(head, HeadPatchingResult) and head.pair_indices]
    return known if len(known) == len(heads) else []


def nearest_pair(heads: Sequence[HeadPatchingResult]) -> int | None:
    """Index in the dataset of the pair on which the heads' mean effect is nearest to their mean effect over all pairs.

    None where no pair was usable.

    Raises:
        ValueError: where the heads were measured on different pairs, or their effects are not all exact, or estimated
            by one method.
    """
    if len({head.pair_indices for head in heads}) > 1:
        raise ValueError("the heads were measured on different pairs, so none stands for all: give pair_index")
    if len({head.estimate for head in heads}) > 1:
        kinds = " and ".join(dict.fromkeys(exact_or_estimated(head.estimate) for head in heads))
        raise ValueError(f"the heads' effects are {kinds}, which have no mean: give pair_index, or heads of one kind")
    each = np.mean([head.pair_effects for head in heads], axis=0)
    if np.isnan(each).all():
        return None
    return heads[0].pair_indices[int(np.nanargmin(np.abs(each - np.mean([head.effect for head in heads]))))]


def effects_on(heads: Sequence[HeadPatchingResult], pair_index: int) -> tuple[float, ...]:
    """Each head's effect on a pair of the dataset; nothing where it was not measured on it, or not all alike."""
    if len({head.estimate for head in heads}) > 1 or not all(pair_index in head.pair_indices for head in heads):
        return ()
    return tuple(head.pair_effects[head.pair_indices.index(pair_index)] for head in heads)


def alike(templates: Sequence[str], lengths: Sequence[Hashable]) -> list[int]:
    """Numbers of the pairs of one template and length, of those of which there are most; none without two of any."""
    groups: dict[tuple[str, Hashable], list[int]] = {}
    for number, (template, length) in enumerate(zip(templates, lengths)):
        if template:
            groups.setdefault((template, length), []).append(number)
    largest = max(groups.values(), key=len, default=[])
    return largest if len(largest) > 1 else []


def common_tokens(prompts: Sequence[Sequence[str]], names: Mapping[int, str]) -> tuple[str, ...]:
    """What stands at each position of several prompts: their token, the position's name, or the first token and `…`.

    Args:
        prompts: tokens of each, all of one length.
        names: of positions that have one.
    """
    return tuple(
        tokens[0] if len(set(tokens)) == 1 else f"[{names[at]}]" if at in names else f"{tokens[0]}…"
        for at, tokens in enumerate(zip(*prompts))
    )
