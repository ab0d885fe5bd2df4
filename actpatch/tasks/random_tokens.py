"""Prompts of random tokens, for any vocabulary. Nothing here runs a model.

Tokens that come twice are the prompts on which what a head attends to by place and repetition shows: Elhage et al. 2021
and Olsson et al. 2022 tell previous-token and induction heads by them, for nothing in them can be predicted by anything
but their repetition. Pairs of prompts that differ in a token ask nothing of a model; what holds of every model holds on
them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from actpatch.core.indices import is_integer
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.tokens import has_tokenizer, text_tokens


@dataclass(frozen=True)
class RepeatedTokens:
    """Sequences of `length` different random tokens and the same tokens again, after BOS where the model has one."""

    tokens: Int[Tensor, "sequence pos"]
    start: int
    """Position of the first random token: 1 after BOS, else 0."""
    length: int
    """Number of random tokens before they come again."""

    @property
    def second(self) -> Int[np.ndarray, " token"]:
        """Positions of the repetition."""
        return np.arange(self.start + self.length, self.start + 2 * self.length)


def repeated_tokens(model: Any, n_sequences: int, length: int, seed: int) -> RepeatedTokens:
    """Sequences for this model, each of other tokens.

    Args:
        model: for its vocabulary, of which special tokens are left out, its BOS and the length that it reads.
        n_sequences: how many.
        length: of the part that is repeated; less where the model reads no more, or knows fewer tokens.
        seed: seed of the choice of tokens.

    Raises:
        ValueError: for what is no such number, and where not even two tokens can be repeated (`too_short_to_repeat`).
    """
    for name, given, least in (("n_sequences", n_sequences, 1), ("sequence_length", length, 2), ("seed", seed, 0)):
        if not is_integer(given) or given < least:
            raise ValueError(f"{name} is {given!r}, expected at least {least}")
    ids, bos = ordinary_tokens(model), bos_token(model)
    start = 0 if bos is None else 1
    if reason := too_short_to_repeat(model):
        raise ValueError(reason)
    length = min(length, (model.cfg.n_ctx - start) // 2, len(ids))
    chooser = np.random.default_rng(seed)
    sequences = [chooser.choice(ids, length, replace=False).tolist() for _ in range(n_sequences)]
    first = [] if bos is None else [bos]
    return RepeatedTokens(torch.tensor([[*first, *tokens, *tokens] for tokens in sequences]), start, length)


class RandomPairs(PatchingDataset):
    """Pairs of prompts of random tokens, after BOS where the model has one, that differ in the second of them.

    The answers are two random tokens; the metric is their logit difference.

    Args:
        model: for its vocabulary, of which special tokens are left out, its BOS and the length that it reads.
        n_pairs: number of pairs.
        length: number of random tokens; less where the model reads no more.
        seed: seed of the choice of tokens.

    Raises:
        ValueError: where the model reads or knows fewer than two tokens (`too_short_to_repeat`).
    """

    def __init__(self, model: Any, n_pairs: int = 4, length: int = 8, *, seed: int = 0) -> None:
        if reason := too_short_to_repeat(model):
            raise ValueError(reason)
        ids, bos = ordinary_tokens(model), bos_token(model)
        first = [] if bos is None else [bos]
        length, chooser = min(length, model.cfg.n_ctx - len(first)), np.random.default_rng(seed)
        self.seed = seed
        self.pairs: list[tuple[list[int], list[int]]] = []
        self.answers: list[tuple[int, int]] = []
        for _ in range(n_pairs):
            tokens = chooser.choice(ids, length).tolist()
            other = chooser.choice([token for token in ids if token != tokens[1]]).item()
            self.pairs.append(([*first, *tokens], [*first, tokens[0], other, *tokens[2:]]))
            right, wrong = chooser.choice(ids, 2, replace=False).tolist()
            self.answers.append((right, wrong))

    @property
    def name(self) -> str:
        return "random tokens"

    @property
    def varies(self) -> str:
        return "the second token"

    def get_clean_corrupt_pairs(self) -> list[tuple[list[int], list[int]]]:
        return self.pairs

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        return self.answers[pair_idx]


def too_short_to_repeat(model: Any) -> str:
    """Why not even two random tokens can be repeated; empty where they can."""
    n_ctx, n_tokens = model.cfg.n_ctx, len(ordinary_tokens(model))
    if (n_ctx - (bos_token(model) is not None)) // 2 >= 2 and n_tokens >= 2:
        return ""
    return f"the model reads {n_ctx} tokens and knows {n_tokens}: too few to repeat two random ones"


def ordinary_tokens(model: Any) -> list[int]:
    """Ids of the vocabulary that stand for text; all of them where the model has no tokenizer."""
    if not has_tokenizer(model):
        return list(range(model.cfg.d_vocab))
    tokenizer = model.tokenizer
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    return [token for token in range(min(model.cfg.d_vocab, len(tokenizer))) if token not in special]


def bos_token(model: Any) -> int | None:
    """The token that the model prepends to a text; None where it prepends none, or has no tokenizer."""
    if not has_tokenizer(model):
        return None
    try:
        given, bare = (text_tokens(model, "a", **options).tolist() for options in ({}, {"prepend_bos": False}))
    except ValueError:  # a tokenizer that has no BOS to prepend
        return None
    return given[0] if given[1:] == bare else None
