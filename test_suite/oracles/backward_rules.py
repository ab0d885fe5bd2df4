"""Backward rules of relevance patching and of GIM, put on a model from outside: values stay, slopes change.

One trick serves all rules: what a function gives is kept, and a second expression that has the wanted slope is added
less itself. The functions are met where PyTorch calls them: square roots are the scales of normalizations, `softmax`
is attention's, and activation functions are modules or attributes of MLPs. The rules are those of Jafari et al. 2025
(relevance patching) and of Edin et al. 2025 (GIM). Nothing of the engine is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Hook = tuple[str, Callable[..., Any]]
NEAR_ZERO = 1e-12
"""Where an activation function's input is zero, its slope is that of the value this far above."""


@dataclass(frozen=True)
class Rules:
    """Which rules hold. None: the gradient as it is."""

    constant_scales: bool = False
    """What a normalization divides by does not move."""
    proportional_activations: bool = False
    """An activation function f has the slope f(x)/x."""
    halved_products: bool = False
    """Of a gated MLP's product each factor gets half."""
    softer_attention: bool = False
    """The softmax of scores s has the slope of twice the softmax of s/2."""
    shared_attention: bool = False
    """A quarter flows back from queries and from keys, half from values."""

    @contextlib.contextmanager
    def on(self, model: Any) -> Iterator[list[Hook]]:
        """The model under these rules, and the hooks that belong to them: they come after all others."""
        with contextlib.ExitStack() as stack:
            if self.proportional_activations:
                stack.enter_context(_activations_replaced(model))
            stack.enter_context(_Functions(self))
            yield self._hooks(model)

    def _hooks(self, model: Any) -> list[Hook]:
        shares = {}
        if self.shared_attention:
            shares |= {"attn.hook_q": 0.25, "attn.hook_k": 0.25, "attn.hook_v": 0.5}
        if self.halved_products:
            shares |= {"mlp.hook_pre": 0.5, "mlp.hook_pre_linear": 0.5} if is_gated(model) else {}
        layers = range(model.cfg.n_layers)
        return [(f"blocks.{layer}.{name}", passing(share)) for layer in layers for name, share in shares.items()]


PLAIN = Rules()
RELP = Rules(constant_scales=True, proportional_activations=True, halved_products=True)
GIM = Rules(constant_scales=True, halved_products=True, softer_attention=True, shared_attention=True)
RULES = {"relp": RELP, "gim": GIM}
"""Of the methods that have rules."""


def with_slope_of(value: Tensor, other: Tensor) -> Tensor:
    """The first tensor, whose gradient flows into the second one as if that had been it."""
    return value.detach() + (other - other.detach())


def passing(share: float) -> Callable[..., Tensor]:
    """A hook through which this share of the gradient flows back."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        return with_slope_of(value, share * value)

    return hook


def is_gated(model: Any) -> bool:
    """Whether MLPs multiply two projections of what they read: seen in a run."""
    seen: list[str] = []
    name = "blocks.0.mlp.hook_pre_linear"
    if name not in model.hook_dict:
        return False
    with torch.no_grad():
        model.run_with_hooks(torch.tensor([[2, 3]]), fwd_hooks=[(name, lambda value, hook: seen.append(name))])
    return bool(seen)


def proportional(function: Callable[..., Tensor], x: Tensor, *args: Any, **options: Any) -> Tensor:
    """An activation function with slope f(x)/x."""
    at = torch.where(x == 0, torch.full_like(x, NEAR_ZERO), x).detach()
    with torch.no_grad():
        value, slope = function(x, *args, **options), function(at, *args, **options) / at
    return with_slope_of(value, slope * x)


_ROOTS = (torch.sqrt, torch.rsqrt, Tensor.sqrt, Tensor.rsqrt)
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_ACTIVATIONS = (F.silu, F.gelu, F.relu, torch.relu, Tensor.relu)
_FUSED = (F.scaled_dot_product_attention, F.rms_norm, torch.rms_norm)


class _Functions(TorchFunctionMode):
    """Functions of PyTorch by these rules."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in _FUSED and self.rules != PLAIN:
            _refuse(func)
        if self.rules.constant_scales and func in _ROOTS:
            return func(*args, **options).detach()
        if self.rules.constant_scales and func is F.layer_norm:
            return _layer_norm(*args, **options)
        if self.rules.softer_attention and func in _SOFTMAX:
            return with_slope_of(func(*args, **options), 2 * func(args[0] / 2, *args[1:], **options))
        if self.rules.proportional_activations and func in _ACTIVATIONS:
            return proportional(func, *args, **{name: of for name, of in options.items() if name != "inplace"})
        return func(*args, **options)


def _refuse(func: Any) -> NoReturn:
    raise AssertionError(f"the model calls {func.__name__}, whose parts no rule reaches")


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Layer norm over the last axis, its scale constant."""
    centred = x - x.mean(dim=-1, keepdim=True)
    slope = centred / (centred.square().mean(dim=-1, keepdim=True) + eps).sqrt().detach()
    return with_slope_of(F.layer_norm(x, shape, weight, bias, eps), slope if weight is None else slope * weight)


@contextlib.contextmanager
def _activations_replaced(model: Any) -> Iterator[None]:
    """Activation functions that PyTorch's own do not make up: modules of Transformers, attributes of TransformerLens.

    The latter are functions that a `HookedTransformer`'s MLPs hold.
    """
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            name = "act_fn" if callable(vars(module).get("act_fn")) else "forward"
            is_one = type(module).__module__ == "transformers.activations" or type(module).__name__ == "BloomGelu"
            if name == "act_fn" or is_one:
                stack.enter_context(_replaced(module, name))
        yield


@contextlib.contextmanager
def _replaced(module: Any, name: str) -> Iterator[None]:
    """A module's function, one that is an attribute or one of its class, with slope f(x)/x; put back as it was."""
    own, function = name in vars(module), getattr(module, name)
    object.__setattr__(module, name, lambda x: proportional(function, x))
    try:
        yield
    finally:
        if own:
            object.__setattr__(module, name, function)
        else:
            object.__delattr__(module, name)
