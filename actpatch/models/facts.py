"""What a model says of itself, the same of both classes."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def model_name(model: Any) -> str:
    """What the model is called; the name of its class where it says nothing."""
    return str(getattr(model.cfg, "model_name", None) or type(model).__name__)


def check_in_memory(model: Any) -> None:
    """Raise a ValueError where some weights are kept elsewhere until they are needed: modules that are run singly, as
    the engine runs them, would miss them. A model without any (all of it on the device meta) has sizes and a graph."""
    weights = dict(model.named_parameters())
    elsewhere = [name for name, weight in weights.items() if weight.device.type == "meta"]
    if elsewhere and len(elsewhere) < len(weights):
        raise ValueError(
            f"the weights {elsewhere[0]} are not in memory, offloaded to the CPU or to disk by the model's device_map: "
            "load it with a device_map of devices alone, which hold all of it"
        )


def has_weights(model: Any) -> bool:
    """Whether a model was made with weights; one without (all of it on the device meta) cannot be run."""
    return any(weight.device.type != "meta" for weight in model.parameters())


def readable(module: Any, name: str) -> Tensor | None:
    """A module's weight, to be multiplied with; None where there is none of that name, or it is packed (quantized)."""
    try:
        weight = getattr(module, name, None)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError):  # what reading packed ones raises
        return None
    return weight if isinstance(weight, Tensor) and weight.is_floating_point() else None


def n_key_value_heads(model: Any) -> int:
    """Length of the head axis of `hook_k` and `hook_v`."""
    cfg = model.cfg
    if getattr(cfg, "ungroup_grouped_query_attention", False):
        return cfg.n_heads
    return getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
