"""Code on a model that is not its own: hooks of the user's, modules that stand in the place of hook points.

Such code may depend on the shape it is given: on the position a sequence starts at, on a row of a batch. What it is
given in a run of one whole prompt is what its author meant. Hooks that TransformerLens, Transformers or Accelerate
register themselves belong to the model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

_OWN = {"actpatch", "transformer_lens", "transformers", "accelerate", "torch"}
"""Packages whose hooks and forward methods are the model's own, or the library's."""


def foreign_code(model: Any) -> list[str]:
    """Where foreign code runs in the model's forward pass: hook points and modules by name; empty where none does."""
    found = dict.fromkeys(_hooked_points(model))
    found.update(dict.fromkeys(_hooked_modules(model)))
    for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
        if not all(map(_is_own, hooks.values())):
            found["every module"] = None
    return list(found)


def _hooked_points(model: Any) -> Iterator[str]:
    points = {id(point): (name, point) for name, point in reversed(list(model.hook_dict.items()))}
    for name, point in reversed(points.values()):
        if not all(_is_own(getattr(hook, "user_hook", None) or hook) for hook in point.fwd_hooks):
            yield name
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1].startswith("hook_") and not hasattr(module, "fwd_hooks"):
            yield f"{name} (a {type(module).__name__} in its place)"


def _hooked_modules(model: nn.Module) -> Iterator[str]:
    wrapped = model.__dict__.get("original_model")
    seen: set[int] = set()
    for whole in (model, wrapped):
        for name, module in whole.named_modules() if isinstance(whole, nn.Module) else ():
            if id(module) in seen:
                continue
            seen.add(id(module))
            hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
            replaced = [module.__dict__[own] for own in ("forward", "act_fn") if own in module.__dict__]
            if not all(map(_is_own, [*hooks, *replaced])):
                yield name or "the model itself"


def _is_own(code: Any) -> bool:
    if not callable(code):  # a handle of TransformerLens 3, which does not keep what its hook calls
        return False
    while isinstance(code, functools.partial):
        code = code.func
    module = getattr(code, "__module__", None) or type(code).__module__
    return module.partition(".")[0] in _OWN
