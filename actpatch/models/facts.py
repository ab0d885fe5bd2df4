"""What a model says of itself, the same of both classes."""

from __future__ import annotations

from typing import Any


def model_name(model: Any) -> str:
    """What the model is called; the name of its class where it says nothing."""
    return str(getattr(model.cfg, "model_name", None) or type(model).__name__)


def n_key_value_heads(model: Any) -> int:
    """Length of the head axis of `hook_k` and `hook_v`."""
    cfg = model.cfg
    if getattr(cfg, "ungroup_grouped_query_attention", False):
        return cfg.n_heads
    return getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
