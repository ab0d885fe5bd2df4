"""What a model is, as far as its numbers go: a fingerprint of its weights, its sizes, and how it computes.

The fingerprint is a hash (SHA-256) over all bytes of all weights. A sample of them would be faster and would miss what
is common here: one matrix edited, one head or neuron set to zero. A gigabyte takes a second or two on one core, less
than loading it, and tensors are hashed side by side. Nothing here runs the model.
"""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from actpatch.models.facts import model_name, n_key_value_heads
from actpatch.models.foreign import foreign_code

_SIZES = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn", "normalization_type")
_HOW = (
    "attn_scale", "use_attn_scale", "scale_attn_by_inverse_layer_idx", "attention_dir", "window_size", "attn_types",
    "use_local_attn", "parallel_attn_mlp", "positional_embedding_type", "rotary_base", "rotary_dim", "eps",
    "attn_scores_soft_cap", "output_logits_soft_cap",
)  # fmt: skip
"""Switches of a model's configuration that change what it computes from the same weights."""


def fingerprint(model: Any) -> str:
    """A hash over the names, shapes, types and values of all weights, the same on every device."""
    # Of a bridge the one lacks some that the other has; quantized weights are no parameters.
    weights: dict[str, Any] = {**dict(model.named_parameters()), **model.state_dict()}
    distinct = {_key(weight): weight for weight in weights.values()}  # tied weights are looked at once
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        said = dict(zip(distinct, pool.map(_said, distinct.values())))
    lines = sorted(f"{name} {said[_key(weight)]}" for name, weight in weights.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def identity(model: Any) -> dict[str, dict[str, Any]]:
    """What a model's numbers rest on besides its weights: `model`, `precision` and `attention kernel`."""
    cfg = model.cfg
    said = {name: _plain(getattr(cfg, name, None)) for name in (*_SIZES, *_HOW)}
    return {
        "model": {"name": model_name(model), "n_key_value_heads": n_key_value_heads(model), **said},
        "precision": {
            "weights": str(next(model.parameters()).dtype).removeprefix("torch."),
            "matrix products": torch.get_float32_matmul_precision(),
            "autocast": _autocast(next(model.parameters()).device.type),
        },
        "attention kernel": {"kernel": attention_kernel(model)},
        "code on the model": {"at": sorted(map(str, foreign_code(model)))},
    }


def attention_kernel(model: Any) -> str:
    """By which code attention is computed: TransformerLens' own, or the one that a Hugging Face model was given."""
    whole = model.__dict__.get("original_model") or getattr(model, "original_model", None)
    return str(getattr(getattr(whole, "config", None), "_attn_implementation", None) or "transformer_lens")


def _autocast(device: str) -> str:
    """The type that `torch.autocast` computes in where it is entered; empty where it is not."""
    return str(torch.get_autocast_dtype(device)).removeprefix("torch.") if torch.is_autocast_enabled(device) else ""


def _key(weight: Any) -> Any:
    return (weight.data_ptr(), weight.shape, weight.stride()) if isinstance(weight, Tensor) else id(weight)


def _said(weight: Any) -> str:
    """Shape, type and hash of a tensor; the hash of what else stands among weights (quantized ones, packed away)."""
    if isinstance(weight, Tensor) and not weight.is_quantized:
        raw = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return f"{tuple(weight.shape)} {weight.dtype} {hashlib.sha256(raw.numpy().data).hexdigest()}"
    kept = io.BytesIO()
    torch.save(weight, kept)
    return hashlib.sha256(kept.getvalue()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(value)  # NumPy's too
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
