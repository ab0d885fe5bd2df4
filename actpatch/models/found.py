"""A model as it was found: what a sweep may replace on it is noted before, and put back whatever happens.

One sweep at a time runs on a model: hooks, forward methods and switches are the model's own, so two at once would take
each other's for the original. Other threads wait. Nothing here knows what is replaced, or why.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

_LOCKS: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_LOCKS_CHANGE = threading.Lock()
_COMPILED = "_compiled_call_impl"
"""Where `module.compile()` puts what runs in the place of the module's own code."""
_TORCH_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OF_INSTANCE = ("forward", "act_fn", _COMPILED)
"""What is replaced in a module's own dictionary."""


def modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules that take part in a run, each once: those of what a bridge wraps, which it does not register, too."""
    wrapped = model.__dict__.get("original_model")
    both = [*model.modules(), *(wrapped.modules() if isinstance(wrapped, nn.Module) else ())]
    return list(dict.fromkeys(both))


def run_as_written(module: nn.Module) -> None:
    """Take away what `torch.compile` put in the place of a module's own code, which hooks need not reach."""
    own = module.__dict__
    if own.get(_COMPILED) is not None:
        own[_COMPILED] = None
    written = getattr(own.get("forward"), "_torchdynamo_orig_callable", None)
    if written is not None:
        own["forward"] = written


@contextlib.contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """The model to change at will, for this thread alone; afterwards it is as it was, also after an exception.

    The thread that has it may have it again. What is put back: hooks, but for those that the model wires itself when it
    is first run, training modes, forward methods, activation functions, and the memory that weights lie in.
    """
    with _lock_of(model):
        found = _Found(model)
        try:
            yield
        finally:
            try:
                found.put_back()
            except BaseException:  # an interrupt while it is put back: once more, and then let it through
                found.put_back()
                raise


def _lock_of(model: nn.Module) -> Any:
    """The lock of the model; bridges around one Hugging Face model share one."""
    wrapped = model.__dict__.get("original_model")
    owner = wrapped if isinstance(wrapped, nn.Module) else model
    with _LOCKS_CHANGE:
        return _LOCKS.setdefault(owner, threading.RLock())


class _Found:
    """What the model was like."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.level = getattr(model, "context_level", None)
        self.modules = [(module, _state_of(module)) for module in modules_of(model)]
        self.buffers = [(module, dict(module._buffers), _longest_seen(module)) for module, _ in self.modules]
        self.weights = [(weight, weight.data) for weight in model.parameters()]

    def put_back(self) -> None:
        for module, (training, own, hooks, lens_hooks) in self.modules:
            if module.training != training:
                module.training = training
            for name in _OF_INSTANCE:
                _put_back_own(module, name, own)
            kept = None if lens_hooks is None else _kept(module, lens_hooks)
            for name, before in hooks.items():
                registered = getattr(module, name)
                for key in [key for key in registered if key not in before]:
                    if _is_of_the_sweep(registered[key]) if kept is None else key not in kept:
                        del registered[key]
        for module, buffers, longest in self.buffers:
            module._buffers.update(buffers)
            for name, value in longest.items():
                setattr(module, name, value)
        for weight, data in self.weights:
            if weight.data_ptr() != data.data_ptr():
                weight.data = data
        if self.level is not None:
            self.model.context_level = self.level


def _state_of(module: nn.Module) -> tuple[bool, dict[str, Any], dict[str, tuple[int, ...]], list[Any] | None]:
    own = {name: module.__dict__[name] for name in _OF_INSTANCE if name in module.__dict__}
    hooks = {name: tuple(getattr(module, name)) for name in _TORCH_HOOKS}
    lens_hooks = module.__dict__.get("fwd_hooks")
    return module.training, own, hooks, None if lens_hooks is None else list(lens_hooks)


def _kept(point: Any, before: list[Any]) -> set[int]:
    """Ids of the hooks that stay on a hook point: those that were there, and what the model wires for good itself."""
    point.fwd_hooks[:] = [hook for hook in point.fwd_hooks if hook.is_permanent or any(hook is one for one in before)]
    return {hook.hook.id for hook in point.fwd_hooks}


def _is_of_the_sweep(hook: Any) -> bool:
    """Whether the library registered this hook: a model may wire its own when it is first run."""
    return str(getattr(hook, "__module__", "")).partition(".")[0] == "actpatch"


def _longest_seen(module: nn.Module) -> dict[str, Any]:
    """What rotary embeddings that grow with the prompt remember of the longest one."""
    return {name: value for name, value in vars(module).items() if name.endswith("max_seq_len_cached")}


def _put_back_own(module: nn.Module, name: str, own: dict[str, Any]) -> None:
    if name not in own:
        module.__dict__.pop(name, None)
    elif module.__dict__.get(name) is not own[name]:
        module.__dict__[name] = own[name]
