"""The seam between the engine and TransformerLens' two model classes.

A `Runner` records a run of the model and replays single blocks of it on other residual streams, over a frozen prefix
of recorded keys and values. What is computed is the model's own code: its embedding, its blocks, its unembedding.
Nothing outside this room asks which class a model has, and TransformerLens is imported when a model is given.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.sites import kind_of
from actpatch.models.forwards import fused_gelu, reading, unembedding_only

KeysValues = tuple[Tensor, Tensor]
Hook = tuple[str | Callable[[str], bool], Callable[..., Tensor | None]]
"""A hook point's name, or a filter of names, and what is called with its activation."""


@dataclass(frozen=True)
class Recording:
    """One run of a batch of prompts, as the engine keeps it."""

    tokens: Int[Tensor, "pair pos"]
    """Prompts, padded on the right to a common length."""
    activations: dict[str, Tensor]
    """Hook point -> activation, one row per pair."""
    logits: Float[Tensor, "pair read d_vocab"]
    """At the position the metric reads (read = 1), or at all (read = pos)."""
    keys_values: list[KeysValues] | None
    """Keys and values of each layer, laid out as the model's class keeps them; None where it keeps none."""
    position_input: Float[Tensor, "pair pos d_model"] | None = None
    """Positional embedding that a shortformer model adds inside its blocks."""

    def part(self, pairs: slice, hook_points: Collection[str]) -> Recording:
        """These pairs alone, with these activations, which are copied so that what else was recorded can be freed."""
        position_input = self.position_input
        return Recording(
            self.tokens[pairs],
            {name: value[pairs].clone() for name, value in self.activations.items() if name in hook_points},
            self.logits[pairs],
            self.keys_values and [(keys[pairs], values[pairs]) for keys, values in self.keys_values],
            None if position_input is None else position_input[pairs],
        )


class Runner(ABC):
    """What both model classes share. `HookedRunner` and `BridgeRunner` add how their blocks are called."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.n_layers: int = model.cfg.n_layers

    @property
    def hook_points(self) -> Collection[str]:
        """Names of all hook points of the model."""
        return self.model.hook_dict.keys()

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @abstractmethod
    def record(
        self,
        tokens: Int[Tensor, "pair pos"],
        hook_points: Collection[str],
        read: Int[Tensor, " pair"] | None,
        vocabulary: Int[Tensor, " token"] | None = None,
    ) -> Recording:
        """Run the model and keep the activations at `hook_points` and the logits.

        Args:
            tokens: the prompts.
            hook_points: full names.
            read: position of each prompt at which logits are kept; None for all.
            vocabulary: vocabulary entries of which logits are kept; None for all.
        """

    @abstractmethod
    def begin(self, recording: Recording, start: int, length: int) -> Any:
        """What the blocks have to be called with on positions `start` to `length`; handed to `run_block`."""

    @abstractmethod
    def run_block(
        self, layer: int, resid: Float[Tensor, "row pos d_model"], prefix: KeysValues | None, call: Any
    ) -> Float[Tensor, "row pos d_model"]:
        """One block, over the keys and values of the positions before."""

    @abstractmethod
    def prefix(self, recording: Recording, layer: int, pairs: Tensor, start: int) -> KeysValues | None:
        """Recorded keys and values of the positions before `start`, one row per entry of `pairs`."""

    @abstractmethod
    def unembed(
        self, resid: Float[Tensor, "row pos d_model"], tokens: Int[Tensor, " token"] | None
    ) -> Float[Tensor, "row pos token"]:
        """Logits of the residual stream after the last block; only of `tokens`, where these are given."""

    @abstractmethod
    def attention_output(self, output: Float[Tensor, "row pos d_model"]) -> Any:
        """`output` in the form in which the model's attention module returns it."""

    def run(
        self,
        tokens: Int[Tensor, "row pos"],
        read: Int[Tensor, " row"] | None,
        vocabulary: Int[Tensor, " token"] | None = None,
    ) -> Float[Tensor, "row read token"]:
        """Logits of the model's own full forward pass, of what is read."""
        with self._unembedding(read, vocabulary):
            return self.model(tokens)

    @contextlib.contextmanager
    def _unembedding(
        self, read: Int[Tensor, " row"] | None, vocabulary: Int[Tensor, " token"] | None
    ) -> Iterator[None]:
        """The model computing logits only at these positions and of these vocabulary entries."""
        with reading(self.model.unembed, read), unembedding_only(self.model.unembed, vocabulary):
            yield

    def writing_hooks(self, hook_point: str, write: Callable[..., Tensor]) -> list[Hook]:
        """The hooks that change what the model computes at a hook point as `write` changes its value."""
        return [(hook_point, write)]

    def hooks(self, hooks: Sequence[Hook]) -> contextlib.AbstractContextManager[Any]:
        """The model with these hooks; those it had before stay."""
        return self.model.hooks(fwd_hooks=list(hooks)) if hooks else contextlib.nullcontext()

    @contextlib.contextmanager
    def as_found(self, hook_points: Collection[str]) -> Iterator[None]:
        """Run the model in evaluation mode, without gradients, with the switches that these hook points need.

        Afterwards modes and switches are as they were, also after an exception.
        """
        in_training = [module for module in self.model.modules() if module.training]
        needed = {switch for name in hook_points if (switch := kind_of(name).switch) is not None}
        switches = {name: bool(getattr(self.model.cfg, name, False)) for name in needed}
        try:
            for module in in_training:
                module.training = False
            for name in needed:
                getattr(self.model, f"set_{name}")(True)
            with torch.no_grad(), fused_gelu(self.model):
                yield
        finally:
            for name, was_on in switches.items():
                getattr(self.model, f"set_{name}")(was_on)
            for module in in_training:
                module.training = True


def make_runner(model: Any) -> Runner:
    """The runner for this model.

    Raises:
        TypeError: for anything but a `HookedTransformer` or a `TransformerBridge`.
    """
    classes = {kind.__name__ for kind in type(model).__mro__}
    if "TransformerBridge" in classes:
        from actpatch.models.bridge import BridgeRunner

        return BridgeRunner(model)
    if "HookedTransformer" in classes:
        from actpatch.models.hooked import HookedRunner

        return HookedRunner(model)
    raise TypeError(
        f"model is a {type(model).__name__}, expected a TransformerLens HookedTransformer or TransformerBridge: "
        "load one with load_model(...), HookedTransformer.from_pretrained(...) or "
        "TransformerBridge.boot_transformers(...)"
    )


def recording_hooks(model: Any, hook_points: Collection[str], into: dict[str, Tensor]) -> list[Hook]:
    """One hook for all, given as a filter of names: TransformerLens looks each name up by listing them all.

    A bridge has several names for one hook point, which knows itself by one of them.
    """
    asked: dict[str, list[str]] = {}
    hook_dict = model.hook_dict
    for name in hook_points:
        asked.setdefault(hook_dict[name].name or name, []).append(name)

    def keep(value: Tensor, hook: Any) -> None:
        into.update(dict.fromkeys(asked[hook.name], value.detach()))

    return [(set(hook_points).__contains__, keep)] if hook_points else []
