"""Code on a model that is not its own: hooks of the user's, their classes and methods, modules in the place of others.

Such code may depend on the shape it is given: on the position a sequence starts at, on a row of a batch. What it is
given in a run of one whole prompt is what its author meant. What TransformerLens, Transformers or Accelerate register
and define themselves belongs to the model; but on a hook point a function of TransformerLens' may be what the user put
there, unless it is of those that bridges are wired with.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

_OWN = {
    *("actpatch", "transformer_lens", "transformers", "transformers_modules", "accelerate", "torch"),
    *("peft", "bitsandbytes", "torchao", "gptqmodel", "auto_gptq", "awq", "hqq", "optimum"),  # weights in another form
}
"""Packages whose hooks, classes and methods are the model's own, or the library's."""
_WIRING = "transformer_lens.model_bridge."
"""Of what lies there bridges put hooks on their own hook points when they are made (OPT, in TransformerLens 4)."""


def foreign_code(model: Any) -> list[str]:
    """Where foreign code runs in the model's forward pass: hook points and modules by name; empty where none does."""
    found: dict[str, None] = {}
    for name, module in _modules_by_name(model):
        if _is_spliced(name, module):
            found[f"{name} (a {type(module).__name__} in its place)"] = None
        elif _is_hooked(module) or not all(map(_is_own, _code_of(module))):
            found[name or "the model itself"] = None
    for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
        if not all(map(_is_own, hooks.values())):
            found["every module"] = None
    return list(found)


def _modules_by_name(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Hook points by the name that they are asked for by, then all modules, those that a bridge wraps too; each once,
    but one that has the same hook point at several places by its first name."""
    wrapped = model.__dict__.get("original_model")
    seen: set[int] = set()
    wholes = [whole.named_modules() for whole in (model, wrapped) if isinstance(whole, nn.Module)]
    for named in (model.hook_dict.items(), *wholes):
        for name, module in named:
            if id(module) not in seen:
                seen.add(id(module))
                yield name.replace("._original_component", ""), module


def _is_spliced(name: str, module: nn.Module) -> bool:
    """Whether the module stands in the place of a hook point."""
    return name.rsplit(".", 1)[-1].startswith("hook_") and not hasattr(module, "fwd_hooks")


def _is_hooked(module: Any) -> bool:
    """Whether it is a hook point on which anyone but the library has put hooks."""
    hooks = [getattr(handle, "user_hook", None) for handle in getattr(module, "fwd_hooks", ())]
    return not all(_is_of({"actpatch"}, hook) or _module_of(hook).startswith(_WIRING) for hook in hooks)


def _code_of(module: nn.Module) -> Iterator[Any]:
    """What runs when the module is called: hooks, what stands in the place of its methods, and its class's methods,
    where that is derived from one of the model's own."""
    yield from module._forward_hooks.values()
    yield from module._forward_pre_hooks.values()
    kind = type(module)
    for name, value in module.__dict__.items():
        if callable(value) and (name == "act_fn" or hasattr(kind, name)):
            yield value
    around = module.__dict__.get("_hf_hook")  # what Accelerate calls before and after
    yield from map(type, getattr(around, "hooks", () if around is None else (around,)))
    for derived in kind.__mro__:
        if _is_own(derived):
            return
        own, base = vars(derived), derived.__mro__[1]
        yield from (own[name] for name in own if hasattr(base, name) and not name.startswith("__"))


def _is_own(code: Any) -> bool:
    return isinstance(code, types.BuiltinFunctionType) or _is_of(_OWN, code)


def _is_of(packages: set[str], code: Any) -> bool:
    """Whether a function, a class or a hook is defined in one of these packages."""
    return _module_of(code).partition(".")[0] in packages


def _module_of(code: Any) -> str:
    while isinstance(code, functools.partial):
        code = code.func
    return getattr(code, "__module__", None) or type(code).__module__
