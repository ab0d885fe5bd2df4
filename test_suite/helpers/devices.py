"""Two devices on a machine that has none: tensors that say where they lie, and refuse to meet others.

A tensor of `lazy:0` or `lazy:1` holds its numbers in ordinary memory. Each operation on it is done there, after the
rule of accelerators: all tensors lie on one device; one of the CPU may take part as a single number, or as indices;
only copies lead from one device to another. (`lazy` is a type of torch's own, for which nothing is registered on a CPU,
whose gradients torch computes in the calling thread.) What is not simulated is memory, time, streams and kernels.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import dispatch_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.multi_gpu import get_device_for_block_index

from test_suite.helpers.models import HAS_HOOKED, checkpoint, fresh_model, word_tokenizer

FIRST, SECOND = torch.device("lazy:0"), torch.device("lazy:1")
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default, _aten._unsafe_index.Tensor}


class Placed(Tensor):
    """A tensor that lies on one of the devices."""

    held: Tensor
    """Its numbers."""

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> Placed:
        placed = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        placed.held = held
        return placed  # type: ignore[no-any-return]

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Placed({self.held!r}, {self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Devices(TorchDispatchMode):
    """Makes tensors on the devices, which torch itself could not."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextlib.contextmanager
def two_devices() -> Iterator[None]:
    """While this lasts there are `lazy:0` and `lazy:1`."""
    lifts = torch._C._only_lift_cpu_tensors()
    with pytest.MonkeyPatch.context() as patched, _Devices():
        patched.setattr(torch, "is_autocast_enabled", lambda *kind: False)  # torch knows no such type there
        if HAS_HOOKED:  # which asks for the very class of what it is given
            module = sys.modules["transformer_lens.HookedTransformer"]
            patched.setattr(module, "type", lambda value: Tensor if _lies(value) else type(value), raising=False)
        patched.setattr(transformers.AutoModelForCausalLM, "from_pretrained", _spread)
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(lifts)


_from_pretrained = transformers.AutoModelForCausalLM.from_pretrained


def _spread(*args: Any, device_map: Any = None, **options: Any) -> Any:
    """Transformers reads weights in threads of its own, in which there are no such devices: they are moved once they
    are read, by what Accelerate does to a model that is in memory."""
    model = _from_pretrained(*args, **options)
    return model if device_map is None else dispatch_model(model, device_map)


def place(module: nn.Module, device: torch.device) -> None:
    """Move a module's weights and buffers."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(weight.detach().to(device), weight.requires_grad)
        for name, values in part._buffers.items():
            if values is not None:
                part._buffers[name] = values.to(device)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    device = _device_of(func, args, kwargs, tensors)
    wrappers = {id(value.held): value for value in tensors if isinstance(value, Placed)}
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(_held, (args, kwargs))

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in wrappers and not (func in _COPIES and func is not _aten.copy_.default):
            return wrappers[id(value)]
        return value if device.type == "cpu" else Placed(value, device)

    return tree_map(placed, func(*args, **kwargs))


def _device_of(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> torch.device:
    """Where what an operation returns lies.

    Raises:
        RuntimeError: where its tensors lie on several devices.
    """
    if kwargs.get("device") is not None:
        return torch.device(kwargs["device"])
    if not tensors:
        return torch.device("cpu")
    if func in _COPIES:
        return args[0].device
    if func in _INDEXING:
        tensors = [args[0], *(index for index in tree_leaves(args[1]) if isinstance(index, Tensor) and _lies(index))]
        tensors += [value for value in args[2:3] if isinstance(value, Tensor) and (value.ndim or _lies(value))]
    met = {value.device for value in tensors if value.ndim or _lies(value)} or {tensors[0].device}
    if len(met) > 1:
        where = " and ".join(sorted(map(str, met)))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {where} in {func}")
    return met.pop()


def _lies(value: Tensor) -> bool:
    return isinstance(value, Placed)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Placed) else value


def split_model(name: str) -> Any:
    """A new small model of this name (`helpers.models`), the first of its layers on one device, the others and what
    comes behind them on the other.

    A `HookedTransformer` as its setting `n_devices` lays it out; a bridge as Accelerate does by a map of devices.
    """
    kind, architecture = name.split(":")
    if kind == "hooked":
        return spread(fresh_model(name))
    path = checkpoint(architecture)
    options = {"tokenizer": word_tokenizer(), "dtype": torch.float64, "device_map": device_map_of(path)}
    model = TransformerBridge.boot_transformers(str(path), **options)
    if kind == "bridge+":
        model.enable_compatibility_mode(disable_warnings=True)
    return model.eval()


def spread(model: Any) -> Any:
    """A `HookedTransformer` laid out as its setting `n_devices` says."""
    model.cfg.n_devices, model.cfg.device = 2, FIRST
    for layer, block in enumerate(model.blocks):
        place(block, get_device_for_block_index(layer, model.cfg))
    parts = {"embed": FIRST, "pos_embed": FIRST, "ln_final": SECOND, "unembed": SECOND}
    for part, device in parts.items():
        if hasattr(model, part):
            place(getattr(model, part), device)
    return model


def device_map_of(path: Path) -> dict[str, str]:
    """Module -> device, for the checkpoint in a folder: all up to the middle of the layers on the first, and the
    unembedding where it is tied to the embedding."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    blocks, name = max((len(part), name) for name, part in model.named_modules() if isinstance(part, nn.ModuleList))
    parent = name.rpartition(".")[0]
    found: dict[str, torch.device] = {}
    passed = False
    for part, _ in model.get_submodule(parent).named_children():
        if f"{parent}.{part}" == name:
            found |= {f"{name}.{layer}": SECOND if 2 * layer >= blocks else FIRST for layer in range(blocks)}
            passed = True
        else:
            found[f"{parent}.{part}"] = SECOND if passed and "rot" not in part else FIRST
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    rest = {part: FIRST if tied else SECOND for part, _ in model.named_children() if part != parent}
    return {part: str(device) for part, device in (found | rest).items()}
