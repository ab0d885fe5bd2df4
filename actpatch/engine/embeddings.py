"""How much the embeddings of the whole vocabulary scatter, which noise on them is measured by."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.models.runner import Read, Runner


def embedding_deviation(runner: Runner) -> float:
    """Standard deviation of all entries of the vocabulary's embeddings, as they pass `hook_embed`."""
    cfg = runner.model.cfg
    width = min(cfg.n_ctx, 256)
    tokens = torch.arange(cfg.d_vocab)
    whole = len(tokens) // width * width
    batches = [*tokens[:whole].view(-1, width).split(64), tokens[None, whole:]]
    count, total, squares = 0, 0.0, 0.0
    for batch in batches:
        if batch.numel():
            embedded = _embedded(runner, batch.to(runner.device)).double()
            count += embedded.numel()
            total += float(embedded.sum())
            squares += float(embedded.square().sum())
    return max(0.0, squares / count - (total / count) ** 2) ** 0.5


class _EmbeddedError(Exception):
    """Ends a run once its embeddings are known."""


def _embedded(runner: Runner, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
    seen: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        seen.append(value.detach().cpu())
        raise _EmbeddedError

    with contextlib.suppress(_EmbeddedError), runner.hooks([("hook_embed", keep)]):
        runner.run(tokens, Read())
    if not seen:
        raise RuntimeError("hook_embed did not fire in a run of this model: no noise can be put on its embeddings")
    return seen[0]
