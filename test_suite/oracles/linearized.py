"""Backward rules as runs of the model: each function that has one is the straight line through what it gives there.

Of such a run a difference of two metrics is the slope that a rule says, without any gradient. Nothing of the engine is
used, nor of the other oracle of these rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from test_suite.oracles.backward_rules import Hook, Rules, is_gated
from test_suite.oracles.edges import has_mlp


def linearized(model: Any, tokens: Tensor, rules: Rules) -> list[Hook]:
    """Hooks under which functions are straight lines around this prompt's run."""
    hooks: list[Hook] = []
    if rules.constant_scales:
        scales = [name for name in model.hook_dict if name.endswith(".hook_scale")]
        hooks += [(name, _constant(value)) for name, value in _whole(model, tokens, scales).items()]
    for layer in range(model.cfg.n_layers):
        attention = _whole(
            model, tokens, [f"blocks.{layer}.attn.hook_{x}" for x in ("q", "k", "v", "attn_scores", "pattern")]
        )
        if rules.shared_attention:
            q, k, v, *_ = attention.items()
            hooks += [(name, _share(value, share)) for (name, value), share in zip((q, k, v), (0.25, 0.25, 0.5))]
        if rules.softer_attention:
            *_, scores, pattern = attention.items()
            hooks += _softer(scores, pattern)
        if has_mlp(model, layer) and (rules.proportional_activations or rules.halved_products):
            hooks += _mlp(model, tokens, layer, rules)
    return hooks


def _whole(model: Any, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What a run holds at those of these hook points that it passes, with all axes."""
    found: dict[str, Tensor] = {}

    def keeping(name: str) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            found[name] = value.detach().clone()

        return keep

    with torch.no_grad():
        model.run_with_hooks(tokens[None], fwd_hooks=[(name, keeping(name)) for name in names])
    return {name: found[name] for name in names if name in found}


def _constant(held: Tensor) -> Callable[..., Tensor]:
    return lambda value, hook: held.clone()


def _share(held: Tensor, share: float) -> Callable[..., Tensor]:
    return lambda value, hook: held + share * (value - held)


def _softer(scores: tuple[str, Tensor], pattern: tuple[str, Tensor]) -> list[Hook]:
    """The pattern that the scores' change makes by the slope of twice the softmax of half the scores."""
    (at_scores, base), (at_pattern, held) = scores, pattern
    seen = torch.where(held > 0, base, -torch.inf)
    torch.testing.assert_close(
        torch.softmax(seen, dim=-1), held, rtol=1e-5, atol=1e-6
    )  # the mask is all that comes between the two
    softer = torch.softmax(seen / 2, dim=-1)
    changes: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        changes.append(torch.where(held > 0, value - base, 0.0))

    def write(value: Tensor, hook: Any) -> Tensor:
        change = changes.pop()
        return held + softer * (change - (softer * change).sum(dim=-1, keepdim=True))

    return [(at_scores, keep), (at_pattern, write)]


def _mlp(model: Any, tokens: Tensor, layer: int, rules: Rules) -> list[Hook]:
    pre, linear, post = names = [f"blocks.{layer}.mlp.hook_{x}" for x in ("pre", "pre_linear", "post")]
    gated = is_gated(model)
    if gated and not rules.proportional_activations:
        held = _whole(model, tokens, names)
        return [(name, _share(held[name], 0.5)) for name in (pre, linear)]
    if not rules.proportional_activations:
        return []
    held = _whole(model, tokens, names if gated else [pre, post])
    seen: dict[str, Tensor] = {}

    def keeping(name: str) -> Callable[..., None]:
        return lambda value, hook: seen.update({name: value.clone()})

    def write(value: Tensor, hook: Any) -> Tensor:
        if not gated:
            return seen[pre] * (held[post] / held[pre]).view(seen[pre].shape)
        active = F.silu(held[pre])  # of all gated models here
        by_pre = active / held[pre] * (seen[pre] - held[pre]) * held[linear]
        return held[post] + (by_pre + active * (seen[linear] - held[linear])) / 2

    return [*((name, keeping(name)) for name in held if name != post), (post, write)]
