"""Modules of a model with another forward pass for a while: replaced, faster, or computing only what is read.

Each is a context manager that puts the model back as it was. Nothing here knows which class a model has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@contextlib.contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """The module with another forward method.

    It is put into the instance's own dictionary: assigning the attribute would write through a bridge component into
    the Hugging Face module below it.
    """
    had = "forward" in module.__dict__
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if had:
            module.__dict__["forward"] = before
        else:
            del module.__dict__["forward"]


@contextlib.contextmanager
def fused_gelu(model: nn.Module) -> Iterator[None]:
    """The model with torch's own kernel for GPT-2's GELU (Hendrycks & Gimpel 2016, the tanh approximation).

    Both model classes spell it out in eight passes over memory, a sixth of a sweep's time. The kernel computes the
    same function, to the last bit or two.
    """
    from transformer_lens.utilities.activation_functions import gelu_fast, gelu_new
    from transformers.activations import FastGELUActivation, NewGELUActivation

    module: Any
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (NewGELUActivation, FastGELUActivation)):
                stack.enter_context(replaced_forward(module, _gelu))
            elif getattr(module, "act_fn", None) in (gelu_new, gelu_fast):
                stack.callback(setattr, module, "act_fn", module.act_fn)
                module.act_fn = _gelu
        yield


def norm_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a normalization computes, by torch's own kernel where it is one of TransformerLens' layer norms.

    These spell it out in six passes over memory and two hook points; the kernel is the same to the last bit or two. One
    with hooks on those is called as it is.
    """
    kind = type(module)
    is_known = kind.__module__.startswith("transformer_lens.") and kind.__name__ in ("LayerNorm", "LayerNormPre")
    if not is_known or any(part._forward_hooks or part._forward_pre_hooks for part in module.children()):
        return module
    weight, bias, eps = getattr(module, "w", None), getattr(module, "b", None), getattr(module, "eps", None)
    if not isinstance(eps, float):
        return module

    def normalized(values: Tensor) -> Tensor:
        if values.dtype not in (torch.float32, torch.float64):
            return module(values)
        return nn.functional.layer_norm(values, values.shape[-1:], weight, bias, eps)

    return normalized


@contextlib.contextmanager
def laid_out_as_multiplied(model: nn.Module) -> Iterator[None]:
    """The model with its attention weights, on a CPU, in the memory layout that `HookedTransformer` multiplies in.

    It lays each of them out anew at every call, which takes a twentieth of a sweep's time. Here that is done once; the
    values are the same, and the model gets its own tensors back. Accelerators copy fast and have little memory to
    spare for a second set of weights, so theirs stay as they are.
    """
    multiplied = {"W_O": (2, 0, 1), **dict.fromkeys(("W_Q", "W_K", "W_V", "_W_K", "_W_V"), (0, 2, 1))}
    with contextlib.ExitStack() as stack:
        for name, weight in model.named_parameters():
            order = multiplied.get(name.rsplit(".", 1)[-1])
            if order is None or weight.device.type != "cpu" or weight.ndim != 3 or weight.is_inference():
                continue
            stack.callback(setattr, weight, "data", weight.data)
            back = sorted(range(3), key=order.__getitem__)
            weight.data = weight.data.permute(order).contiguous().permute(back)
        yield


def _gelu(values: Tensor) -> Tensor:
    return nn.functional.gelu(values, approximate="tanh")


@contextlib.contextmanager
def reading(module: nn.Module, read: Int[Tensor, "row read"] | None) -> Iterator[None]:
    """The module with its input narrowed to the positions `read[i]` of row i; None leaves it alone."""
    if read is None:
        yield
        return
    handle = module.register_forward_pre_hook(lambda module, args: (at_positions(args[0], read), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def outputs_at(module: nn.Module, read: Int[Tensor, "row read"]) -> Iterator[None]:
    """The module with its output narrowed to the positions `read[i]` of row i, of however many rows it is run on."""
    handle = module.register_forward_hook(lambda module, args, output: at_positions(output, read[: len(output)]))
    try:
        yield
    finally:
        handle.remove()


def at_positions(values: Float[Tensor, "row pos ..."], read: Int[Tensor, "row read"]) -> Float[Tensor, "row read ..."]:
    """The positions `read[i]` of row i."""
    read = read.to(values.device)
    return values[torch.arange(len(read), device=values.device)[:, None], read]


def unembedding_only(unembed: Any, tokens: Int[Tensor, " token"] | None) -> contextlib.AbstractContextManager[None]:
    """The unembedding restricted to some vocabulary entries; what a model does to logits afterwards still happens."""
    if tokens is None:
        return contextlib.nullcontext()
    weight = unembed.W_U[:, tokens.to(unembed.W_U.device)]
    bias = unembed.b_U[tokens.to(unembed.b_U.device)]
    return replaced_forward(unembed, lambda resid: resid.to(weight) @ weight + bias)
