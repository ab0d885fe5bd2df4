"""Backward rules: other derivatives of the same run, set by hooks that leave every value as it is.

- `frozen_norms`: what normalizations divide by is a constant (RelP's LN-rule; GIM).
- `relp`: besides, an activation function f has the slope f(x) / x (identity rule), and each factor of a gated MLP's
  product gets half of what flows back (half rule). Attention's softmax keeps its own. Rezaei Jafari et al. 2025,
  "RelP".
- `gim`: besides, the softmax of attention is differentiated as that of scores at temperature 2, without the factor 1/2
  that comes of the temperature; of what flows back queries and keys get a quarter, values half, and each factor of a
  gated MLP half. Edin et al. 2025, "GIM".
- `dropping`: what flows back through what a layer adds to the stream is multiplied by a number that may be 0 (GradDrop;
  Kramár et al. 2024, "AtP*").

A rule that a model does not compute with would change nothing, without a word: each is seen to be in use.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from actpatch.core.sites import block_hook
from actpatch.engine.exactness import too_far
from actpatch.models.forwards import replaced_forward
from actpatch.models.runner import Hook, Runner

_ACTIVATION = re.compile(r"elu|swish|act|tanh|sigmoid", re.IGNORECASE)
"""What the classes of activation functions are called."""
TEMPERATURE = 2.0
"""Of the softmax that GIM differentiates in the place of the model's."""


@dataclass
class Rules:
    """What changes derivatives: hooks, and modules with another forward pass."""

    before: list[Hook] = field(default_factory=list)
    """Hooks that come before an activation is held: it is held as they return it."""
    behind: list[Hook] = field(default_factory=list)
    """Hooks that come behind: what flows back into what is held went through them."""
    activations: list[tuple[nn.Module, int]] = field(default_factory=list)
    """Modules that apply an activation function, with their layers."""
    used: dict[str, Tensor] = field(default_factory=dict)
    """What rules returned, by where, which the metric has to depend on."""
    expected: set[str] = field(default_factory=set)
    """Where a rule has to have been met."""
    is_checked: bool = False
    """Whether what rules returned was seen to be computed on with."""

    @contextlib.contextmanager
    def modules(self) -> Iterator[None]:
        """The modules with their other forward passes."""
        with contextlib.ExitStack() as stack, warnings.catch_warnings():
            # A bridge says at every change of a norm's scale that it then computes the norm itself.
            warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
            for module, layer in self.activations:
                name = f"the activation function of layer {layer}"
                if "act_fn" in vars(module) and callable(module.act_fn):
                    stack.callback(setattr, module, "act_fn", module.act_fn)
                    module.act_fn = self._identity_rule(module.act_fn, name)
                else:
                    stack.enter_context(replaced_forward(module, self._identity_rule(module.forward, name)))
            yield

    def check_in_use(self, values: Tensor) -> None:
        """Raise a RuntimeError where a rule was not met, or what it returned is not computed on with."""
        if missing := sorted(self.expected - {*self.used}):
            raise RuntimeError(
                f"the backward rules cannot be set for this model: it does not show {missing[0]}; use another method"
            )
        names = [name for name, value in self.used.items() if value.requires_grad]
        if self.is_checked or not names:
            return
        self.is_checked = True
        slopes = torch.autograd.grad(
            values[values.isfinite()].sum(), [self.used[name] for name in names], retain_graph=True, allow_unused=True
        )
        for name, slope in zip(names, slopes):
            if slope is None:
                raise RuntimeError(
                    f"the backward rules cannot be set for this model: it computes past {name}; use another method"
                )

    def _identity_rule(self, function: Callable[..., Tensor], name: str) -> Callable[..., Tensor]:
        def apply(values: Tensor) -> Tensor:
            found = values * _slope_of(function, values)
            self.used[name] = found
            return found

        return apply


def _slope_of(function: Callable[..., Tensor], values: Tensor) -> Tensor:
    """f(x) / x as a constant; at 0 its limit."""
    at = values.detach()
    at = torch.where(at == 0, torch.finfo(at.dtype).eps, at)
    return function(at) / at


class Dropping:
    """A number for each layer by which what flows back through its contributions is multiplied; 1 at first."""

    def __init__(self, runner: Runner) -> None:
        self.factors = [1.0] * runner.n_layers
        known = set(runner.hook_points)
        self.rules = Rules()
        for layer in range(runner.n_layers):
            for part in ("attn_out", "mlp_out"):
                if (name := block_hook(layer, part)) in known:
                    self.rules.behind.append((name, self._gate(name, layer)))

    @contextlib.contextmanager
    def of(self, layer: int | None) -> Iterator[None]:
        """With nothing flowing back through what this layer adds; None drops nothing."""
        before = list(self.factors)
        if layer is not None:
            self.factors[layer] = 0.0
        try:
            yield
        finally:
            self.factors[:] = before

    def _gate(self, name: str, layer: int) -> Callable[..., Tensor]:
        def gate(value: Tensor, hook: Any) -> Tensor:
            found = _scaled_backward(value, lambda: self.factors[layer])
            self.rules.used[name] = found
            return found

        return gate


def relp(runner: Runner) -> Rules:
    """The rules of RelP."""
    rules = frozen_norms(runner)
    _halve_gates(rules, runner)
    for layer, block in enumerate(runner.model.blocks):
        if (mlp := getattr(block, "mlp", None)) is not None and block_hook(layer, "mlp_out") in runner.hook_points:
            rules.expected.add(f"the activation function of layer {layer}")
            rules.activations += [(module, layer) for module in _activations_in(mlp)]
    return rules


def gim(runner: Runner) -> Rules:
    """The rules of GIM."""
    rules = frozen_norms(runner)
    _halve_gates(rules, runner)
    for layer in range(runner.n_layers):
        if block_hook(layer, "z") not in runner.hook_points:
            continue
        for kind, factor in (("q", 0.25), ("k", 0.25), ("v", 0.5)):
            _scale(rules, block_hook(layer, kind), factor)
        scores: list[Tensor] = []
        pattern = block_hook(layer, "pattern")
        rules.before += [
            (pattern.replace("hook_pattern", "hook_attn_scores"), _noting(scores)),
            (pattern, _softened(rules, pattern, scores)),
        ]
        rules.expected.add(pattern)
    return rules


def frozen_norms(runner: Runner) -> Rules:
    """What normalizations divide by is a constant."""
    rules = Rules()
    scales = [name for name in runner.hook_points if name.endswith("hook_scale")]
    rules.before = [(name, lambda value, hook: value.detach()) for name in scales]
    return rules


def _halve_gates(rules: Rules, runner: Runner) -> None:
    """Each factor of gated MLPs gets half of what flows back."""
    known, cfg = set(runner.hook_points), runner.model.cfg
    has_experts = bool(getattr(cfg, "num_experts", None))
    for layer in range(runner.n_layers):
        linear = f"blocks.{layer}.mlp.hook_pre_linear"
        if linear in known:
            _scale(rules, block_hook(layer, "mlp_pre"), 0.5)
            _scale(rules, linear, 0.5)
        elif (getattr(cfg, "gated_mlp", False) or has_experts) and block_hook(layer, "mlp_out") in known:
            rules.expected.add(f"the factors of the gated MLP of layer {layer}")


def _scale(rules: Rules, name: str, factor: float) -> None:
    def scale(value: Tensor, hook: Any) -> Tensor:
        rules.used[name] = _scaled_backward(value, lambda: factor)
        return rules.used[name]

    rules.behind.append((name, scale))
    rules.expected.add(name)


def _noting(into: list[Tensor]) -> Callable[..., None]:
    def note(value: Tensor, hook: Any) -> None:
        into[:] = [value]

    return note


def _softened(rules: Rules, name: str, scores: list[Tensor]) -> Callable[..., Tensor]:
    """The pattern, with the derivative of the softmax at another temperature."""

    def soften(pattern: Tensor, hook: Any) -> Tensor:
        if not scores:
            raise RuntimeError(
                f"the backward rules cannot be set for this model: it does not show the scores behind {name}; use "
                "another method"
            )
        found, expected = (values.detach().to(torch.float32) for values in (scores[0].softmax(-1), pattern))
        if reason := too_far("the softmax of its scores", found, expected, f"values of {name}"):
            raise RuntimeError(f"the backward rules cannot be set for this model: {reason}; use another method")
        soft = TEMPERATURE * (scores[0] / TEMPERATURE).softmax(-1)
        rules.used[name] = pattern.detach() + (soft - soft.detach())
        return rules.used[name]

    return soften


class _ScaledBackward(torch.autograd.Function):
    """The values as they are; what flows back is multiplied by a number that is asked for then."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Callable[[], float]) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Tensor, None]:
        return slopes[0] * ctx.factor(), None


def _scaled_backward(values: Tensor, factor: Callable[[], float]) -> Tensor:
    return _ScaledBackward.apply(values, factor)  # type: ignore[no-any-return]


def _activations_in(mlp: nn.Module) -> list[nn.Module]:
    """The modules of an MLP that apply an activation function: as attribute, or as modules of their own."""
    if callable(vars(mlp).get("act_fn")):
        return [mlp]
    wrapped = mlp.__dict__.get("original_component")
    inside = [*mlp.modules(), *(wrapped.modules() if isinstance(wrapped, nn.Module) else ())]
    leaves = [module for module in dict.fromkeys(inside) if not [*module.children(), *module.parameters()]]
    return [module for module in leaves if _ACTIVATION.search(type(module).__name__)]
