"""A model's weights as its heads use them: what a head reads, what it writes, and the ways into and out of the stream.

Both model classes keep them by the same names, but not the same numbers: where layer norms are folded, their gains
stand in the weights behind them, and the mean of what is written is gone. What is asked for here does not depend on
that: `Norm` gives a norm's gain and whether it takes the mean away, and products that contain both are the same either
way. Nothing here knows a task or what the weights are read for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actpatch.models.runner import Runner

CHUNK = 8192
"""Vocabulary entries that are held in double precision at once."""
PROBE_SIZE = 1000.0
"""Root mean square of what a norm is probed with: so large that what it adds to the variance does not count."""


@dataclass(frozen=True)
class Norm:
    """What a normalization does besides dividing each position by a number: x -> gain · (x - mean) / size + bias.

    It is read off what the module makes of two vectors, x and -x, and so holds for norms whose gain is stored as it is,
    less one, or in the weights behind it.
    """

    gain: Float[Tensor, " d_model"]
    """Up to one factor for all."""
    bias: Float[Tensor, " d_model"]
    centres: bool
    """Whether the mean is taken away, as in LayerNorm; not in RMSNorm."""

    def before(self, weight: Float[Tensor, "d_model out"]) -> Float[Tensor, "d_model out"]:
        """`weight` with the norm's gain and centring put into it: what it makes of a vector that is not normalized, up
        to the number that the norm divides by."""
        folded = self.gain[:, None] * weight
        return folded - folded.mean(dim=0) if self.centres else folded


@dataclass(frozen=True)
class HeadWeights:
    """The weights of one head, in double precision. Under grouped-query attention keys and values are its group's."""

    query: Float[Tensor, "d_model d_head"]
    query_bias: Float[Tensor, " d_head"]
    key: Float[Tensor, "d_model d_head"]
    key_bias: Float[Tensor, " d_head"]
    value: Float[Tensor, "d_model d_head"]
    value_bias: Float[Tensor, " d_head"]
    output: Float[Tensor, "d_head d_model"]
    scale: float
    """What query · key is divided by."""


class Weights:
    """The weights of one model. To be used while the model is held `as_found`: norms are run to be read."""

    def __init__(self, runner: Runner) -> None:
        self.model = runner.model

    def head(self, layer: int, head: int) -> HeadWeights:
        """The weights of one query head."""
        attn = self.model.blocks[layer].attn
        n_heads = self.model.cfg.n_heads
        parts = {}
        for name, weight in (("query", "W_Q"), ("key", "W_K"), ("value", "W_V")):
            matrices, biases = getattr(attn, weight), getattr(attn, weight.replace("W", "b"))
            at = head * len(matrices) // n_heads
            parts[name] = _double(matrices[at])
            none = torch.zeros(matrices.shape[-1], dtype=torch.float64)
            parts[f"{name}_bias"] = none if biases is None else _double(biases[head * len(biases) // n_heads])
        return HeadWeights(**parts, output=_double(attn.W_O[head]), scale=_scale(attn, self.model.cfg))

    def attention_output(self, layer: int, z: Float[Tensor, "... head d_head"]) -> Float[Tensor, "... d_model"]:
        """What all heads of a layer write, with the layer's bias."""
        attn = self.model.blocks[layer].attn
        written = torch.einsum("...hd,hdm->...m", z.to(attn.W_O), attn.W_O)
        return _double(written if attn.b_O is None else written + attn.b_O)

    def read(self, layer: int, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The residual stream as the attention of a layer reads it, normalized by the layer's own norm."""
        return _double(_run(self._norm_module(layer), resid))

    def norm(self, layer: int | None) -> Norm:
        """The norm before a layer's attention; that before the unembedding for None."""
        module = self._norm_module(layer)
        like = self.model.blocks[0].attn.W_O
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.model.cfg.d_model, generator=generator, dtype=torch.float64)
        x = (x - x.mean()).to(device=like.device, dtype=like.dtype) * PROBE_SIZE
        there, back, moved = (_double(_run(module, probe)) for probe in (x, -x, x + PROBE_SIZE))
        gain = (there - back) / 2 / _double(x)
        centres = bool((moved - there).abs().max() < 0.1 * (there - back).abs().mean())
        return Norm(gain / gain.abs().mean(), (there + back) / 2, centres)

    def logits(self, written: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """What the model would say if `written` were all of its last residual stream: final norm and unembedding."""
        unembed = self.model.unembed
        normalized = _run(self._norm_module(None), written.to(unembed.W_U))
        logits = normalized.to(unembed.W_U) @ unembed.W_U
        return _double(logits if unembed.b_U is None else logits + unembed.b_U)

    def vocabulary(self) -> Iterator[tuple[Float[Tensor, "token d_model"], Float[Tensor, "d_model token"]]]:
        """(embeddings, unembeddings) of the vocabulary, some entries at a time.

        Raises:
            ValueError: where the model does not answer in the vocabulary that it reads, or normalizes embeddings.
        """
        embedding, unembedding = self.model.W_E, self.model.unembed.W_U
        if not self.answers_in_its_vocabulary:
            raise ValueError(
                f"the model reads {len(embedding)} tokens and answers in {unembedding.shape[1]}: the circuit from "
                "tokens to tokens is not square"
            )
        if embedding.shape[1] != len(unembedding):
            raise ValueError("embeddings are not of the residual stream's width")
        if hasattr(self.model, "embed_ln"):
            raise ValueError("embeddings are normalized before the first block reads them")
        for start in range(0, len(embedding), CHUNK):
            chosen = slice(start, start + CHUNK)
            yield _double(embedding[chosen]), _double(unembedding[:, chosen])

    @property
    def answers_in_its_vocabulary(self) -> bool:
        """Whether the model's answers are of the vocabulary that it reads."""
        return len(self.model.W_E) == self.model.unembed.W_U.shape[1]

    def normalizes_output(self, layer: int) -> bool:
        """Whether what the attention writes is normalized once more before it is added to the stream."""
        return hasattr(self.model.blocks[layer], "ln1_post")

    def _norm_module(self, layer: int | None) -> Any:
        return (
            getattr(self.model, "ln_final", None) if layer is None else getattr(self.model.blocks[layer], "ln1", None)
        )


def _run(norm: Any, values: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    if norm is None:
        return values
    values = values.to(next(norm.parameters(), values).device)
    return norm(values.reshape(1, -1, values.shape[-1])).reshape(values.shape)


def _scale(attn: Any, cfg: Any) -> float:
    if getattr(attn, "attn_scale", None) is not None:
        return float(attn.attn_scale)
    scaling = getattr(getattr(attn, "original_component", None), "scaling", None)
    return 1 / float(scaling) if isinstance(scaling, (int, float)) else float(cfg.d_head) ** 0.5


def _double(values: Tensor) -> Tensor:
    return values.detach().to(device="cpu", dtype=torch.float64)
