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

from actpatch.core.sites import Site, kind_of
from actpatch.models.facts import check_in_memory, has_weights, model_name, readable
from actpatch.models.foreign import foreign_code
from actpatch.models.forwards import at_positions, fused_gelu, reading, unembedding_only
from actpatch.models.found import as_found, modules_of, run_as_written

KeysValues = tuple[Tensor, Tensor]
Hook = tuple[str | Callable[[str], bool], Callable[..., Tensor | None]]
"""A hook point's name, or a filter of names, and what is called with its activation."""


@dataclass(frozen=True)
class Read:
    """What of a run's logits is read."""

    at: Int[Tensor, "row read"] | None = None
    """Positions of each row at which they are read; None for all."""
    vocabulary: Int[Tensor, " token"] | None = None
    """Vocabulary entries of which they are read; None for all."""
    alone: bool = True
    """Whether no others are computed; False runs the unembedding as it stands, and takes from its output."""

    def taken(self, logits: Float[Tensor, "row pos d_vocab"]) -> Float[Tensor, "row read token"]:
        """What is read of all logits of a run."""
        logits = logits if self.at is None else at_positions(logits, self.at)
        return logits if self.vocabulary is None else logits[..., self.vocabulary.to(logits.device)]


@dataclass(frozen=True)
class Recording:
    """One run of a batch of prompts, as the engine keeps it."""

    tokens: Int[Tensor, "pair pos"]
    """Prompts, padded on the right to a common length."""
    activations: dict[str, Tensor]
    """Hook point -> activation, one row per pair."""
    logits: Float[Tensor, "pair read d_vocab"]
    """At the positions that are read (`Experiment.reads`), or at all (read = pos)."""
    keys_values: list[KeysValues] | None
    """Keys and values of each layer, laid out as the model's class keeps them; None where it keeps none."""
    position_input: Float[Tensor, "pair pos d_model"] | None = None
    """Positional embedding that a shortformer model adds inside its blocks."""
    is_masked: bool = False
    """Whether its blocks were given a mask of padding, which blocks that are run singly are not."""

    def part(self, pairs: slice, hook_points: Collection[str]) -> Recording:
        """These pairs alone, with these activations, which are copied so that what else was recorded can be freed."""
        position_input = self.position_input
        return Recording(
            self.tokens[pairs],
            {name: value[pairs].clone() for name, value in self.activations.items() if name in hook_points},
            self.logits[pairs],
            self.keys_values and [(keys[pairs], values[pairs]) for keys, values in self.keys_values],
            None if position_input is None else position_input[pairs],
            self.is_masked,
        )


def joined(recordings: Sequence[Recording]) -> Recording:
    """Recordings of prompts of one length as one; without keys and values, where one has none."""
    if len(recordings) == 1:
        return recordings[0]
    names = recordings[0].activations
    kept = [recording.keys_values for recording in recordings if recording.keys_values is not None]
    added = [recording.position_input for recording in recordings if recording.position_input is not None]
    has_keys = len(kept) == len(recordings)
    return Recording(
        torch.cat([recording.tokens for recording in recordings]),
        {name: torch.cat([recording.activations[name] for recording in recordings]) for name in names},
        torch.cat([recording.logits for recording in recordings]),
        [(torch.cat(keys), torch.cat(values)) for keys, values in (zip(*layer) for layer in zip(*kept))]
        if has_keys
        else None,
        torch.cat(added) if added else None,
        is_masked=any(recording.is_masked for recording in recordings),
    )


class _Known(Exception):
    """Ends the run of a block of which no more is needed."""


class Runner(ABC):
    """What both model classes share. `HookedRunner` and `BridgeRunner` add how their blocks are called."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.n_layers: int = model.cfg.n_layers
        self.foreign: list[str] = []
        """Where code that is not the model's own runs in it (`foreign_code`); known while it is held `as_found`."""
        self.devices = devices_of(model)
        """Where its weights lie."""

    @property
    def hook_points(self) -> Collection[str]:
        """Names of all hook points of the model."""
        return self.model.hook_dict.keys()

    @property
    def device(self) -> torch.device:
        """Where tokens are read."""
        return next(self.model.parameters()).device

    @property
    def index_device(self) -> torch.device:
        """Where tensors lie that index recorded ones: with the model; where that is spread over devices, on the CPU,
        from where an index reaches tensors of each."""
        return self.device if len(self.devices) == 1 else torch.device("cpu")

    def device_of(self, layer: int) -> torch.device:
        """Where a layer's weights lie, and what is recorded of it."""
        return next(self.model.blocks[layer].parameters(), next(self.model.parameters())).device

    @property
    def computes_in(self) -> set[torch.dtype]:
        """Types of the model's weights and, where torch casts on the way (`torch.autocast`), of what it casts to."""
        weights, kind = next(self.model.parameters()).dtype, self.device.type
        return {weights, torch.get_autocast_dtype(kind)} if torch.is_autocast_enabled(kind) else {weights}

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a text: the tokenizer's EOS, and those that a wrapped model's settings for generation name.

        None where the model has no tokenizer.
        """
        tokenizer = getattr(self.model, "tokenizer", None)
        if tokenizer is None:
            return frozenset()
        settings = getattr(self.model.__dict__.get("original_model"), "generation_config", None)
        named = [tokenizer.eos_token_id, getattr(settings, "eos_token_id", None)]
        return frozenset(end for one in named for end in (one if isinstance(one, list) else [one]) if end is not None)

    def record(
        self, tokens: Int[Tensor, "pair pos"], hook_points: Collection[str], read: Read, *, keeps_keys: bool = True
    ) -> Recording:
        """Run the model as `run` does and keep the activations at `hook_points` and the logits.

        Args:
            tokens: the prompts.
            hook_points: full names.
            read: which logits are kept.
            keeps_keys: whether the keys and values of each layer are kept, where the model gives them.

        Raises:
            ValueError: for a hook point that holds several activations in one run.
            RuntimeError: where the model fails for the reason that a hook is on a hook point.
        """
        activations: dict[str, Tensor] = {}
        try:
            with self.hooks(self.recording_hooks(hook_points, activations)):
                if not keeps_keys:
                    return Recording(tokens, activations, self.run(tokens, read), None)
                return self._recorded_with_keys(tokens, activations, read)
        except (AttributeError, LookupError, TypeError) as failure:
            if self.foreign:  # the failure may be that of the user's own code
                raise
            raise RuntimeError(
                f"this model cannot be patched at all of {', '.join(sorted(hook_points))}: with hooks there its run "
                f"ends in {type(failure).__name__} ({failure})"
            ) from failure

    @abstractmethod
    def _recorded_with_keys(
        self, tokens: Int[Tensor, "pair pos"], activations: dict[str, Tensor], read: Read
    ) -> Recording:
        """Run the model, with the hooks that fill `activations` on it, and keep keys and values."""

    @property
    def unembeds_by_a_product(self) -> bool:
        """Whether logits are known to come of nothing but a product with weights and a bias, each by itself."""
        unembed, whole = self.model.unembed, self.model.__dict__.get("original_model")
        forwards = [type(module).forward for module in (unembed, self.model, whole) if module is not None]
        is_known = all(code.__module__.partition(".")[0] in ("transformer_lens", "transformers") for code in forwards)
        wrapped = getattr(unembed, "original_component", None)
        return not self.foreign and is_known and type(wrapped) in (type(None), torch.nn.Linear)

    @property
    def quantizes_activations(self) -> bool:
        """Whether it has layers that torch's dynamic quantization put in the place of others."""
        return any(".quantized.dynamic" in type(module).__module__ for module in modules_of(self.model))

    @property
    def unembedding_has_weights(self) -> bool:
        """Whether the weights that logits are a product with can be had: quantized ones are packed away."""
        return all(readable(self.model.unembed, name) is not None for name in ("W_U", "b_U"))

    def blocks_are_called_alike(self, recording: Recording, start: int, length: int) -> bool:
        """Whether the blocks are called with the same for each of the prompts, beside the residual stream."""
        return True

    @property
    def positions_depend_on_the_longest(self) -> bool:
        """Whether position embeddings are known to change with the longest prompt seen (rotary ones that grow)."""
        return any("dynamic" in str(getattr(module, "rope_type", "")) for module in modules_of(self.model))

    @abstractmethod
    def reader(self) -> Callable[[Int[Tensor, "1 new"], Read], Float[Tensor, "1 read token"]]:
        """Reads one text in pieces: what is called with the tokens that follow those of its calls before, over the keys
        and values that the model itself kept of these, and returns what is read of their logits."""

    @abstractmethod
    def begin(self, recording: Recording, start: int, length: int) -> Any:
        """What the blocks have to be called with on positions `start` to `length`; handed to `run_block`."""

    @abstractmethod
    def run_block(
        self, layer: int, resid: Float[Tensor, "row pos d_model"], prefix: KeysValues | None, call: Any
    ) -> Float[Tensor, "row pos d_model"]:
        """One block, over the keys and values of the positions before."""

    def activation_in_block(
        self,
        layer: int,
        resid: Float[Tensor, "row pos d_model"],
        prefix: KeysValues | None,
        call: Any,
        hook_point: str,
    ) -> Float[Tensor, "row pos ..."]:
        """What one block, run on a residual stream, holds at a hook point; what comes behind it is not run.

        Raises:
            RuntimeError: where the hook point does not fire.
        """
        found: list[Tensor] = []

        def keep(value: Tensor, hook: Any) -> None:
            found.append(value)
            raise _Known

        with self.hooks([(hook_point, keep)]), contextlib.suppress(_Known):
            self.run_block(layer, resid, prefix, call)
        if not found:
            raise RuntimeError(f"the hook point {hook_point} did not fire in its block")
        return found[0]

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

    def run(self, tokens: Int[Tensor, "row pos"], read: Read, **options: Any) -> Float[Tensor, "row read token"]:
        """What is read of the logits of the model's own full forward pass."""
        if not read.alone:
            return read.taken(self.model(tokens, **options))
        with reading(self.model.unembed, read.at), unembedding_only(self.model.unembed, read.vocabulary):
            return self.model(tokens, **options)

    def writing_hooks(self, hook_point: str, write: Callable[..., Tensor]) -> list[Hook]:
        """The hooks that change what the model computes at a hook point as `write` changes its value."""
        return [(hook_point, write)]

    def recording_hooks(self, hook_points: Collection[str], into: dict[str, Tensor]) -> list[Hook]:
        """One hook for all, given as a filter of names: TransformerLens looks each name up by listing them all.

        A bridge has several names for one hook point, which knows itself by one of them. Each activation is kept where
        its layer's weights lie: on a bridge the stream before a layer may still lie where the layer below does.
        """
        asked: dict[str, list[str]] = {}
        hook_dict = self.model.hook_dict
        for name in hook_points:
            asked.setdefault(hook_dict[name].name or name, []).append(name)

        def keep(value: Tensor, hook: Any) -> None:
            for name in asked[hook.name]:
                layer = Site(name).layer
                device = value.device if layer is None else self.device_of(layer)
                kept = value.detach().to(device, copy=True)  # what works in place behind this hook changes none of it
                if name in into and not (into[name].shape == kept.shape and torch.equal(into[name], kept)):
                    raise ValueError(f"{name} holds several activations in one run of this model: it cannot be patched")
                into[name] = kept

        return [(set(hook_points).__contains__, keep)] if hook_points else []

    def hooks(self, hooks: Sequence[Hook]) -> contextlib.AbstractContextManager[Any]:
        """The model with these hooks; those it had before stay."""
        return self.model.hooks(fwd_hooks=list(hooks)) if hooks else contextlib.nullcontext()

    @contextlib.contextmanager
    def as_found(self, hook_points: Collection[str]) -> Iterator[None]:
        """Run the model in evaluation mode, without gradients, with the switches that these hook points need.

        Other threads that want the model wait. Afterwards it is as it was, also after an exception.

        Raises:
            ValueError: for a model that was made without weights.
        """
        if not has_weights(self.model):
            raise ValueError(f"{model_name(self.model)} has no weights, all are on the device meta: load it with them")
        needed = {switch for name in hook_points if (switch := kind_of(name).switch) is not None}
        with as_found(self.model), contextlib.ExitStack() as stack:
            self.foreign = foreign_code(self.model)
            self.devices = devices_of(self.model)
            for name in needed:
                switch = getattr(self.model, f"set_{name}")
                stack.callback(switch, bool(getattr(self.model.cfg, name, False)))
                switch(True)
            for module in modules_of(self.model):
                module.training = False
                run_as_written(module)
            stack.enter_context(torch.no_grad())
            stack.enter_context(fused_gelu(self.model))
            yield


def make_runner(model: Any) -> Runner:
    """The runner for this model.

    Raises:
        TypeError: for anything but a `HookedTransformer` or a `TransformerBridge`.
        ValueError: for one that is no stack of blocks over tokens, or says that it attends to later positions; and for
            one whose weights are not in memory.
    """
    classes = {kind.__name__ for kind in type(model).__mro__}
    if classes & {"TransformerBridge", "HookedTransformer"}:
        _check_is_causal_decoder(model)
        check_in_memory(model)
    if "TransformerBridge" in classes:
        from actpatch.models.bridge import BridgeRunner

        return BridgeRunner(model)
    if "HookedTransformer" in classes:
        from actpatch.models.hooked import HookedRunner

        return HookedRunner(model)
    if "OptimizedModule" in classes:
        raise TypeError(
            "model was compiled by torch.compile, which hooks do not reach: give the model itself, "
            "compiled._orig_mod, or use model.compile(), which is left out while it is patched"
        )
    raise TypeError(
        f"model is a {type(model).__name__}, expected a TransformerLens HookedTransformer or TransformerBridge: "
        "load one with load_model(...), HookedTransformer.from_pretrained(...) or "
        "TransformerBridge.boot_transformers(...)"
    )


def devices_of(model: Any) -> list[torch.device]:
    """Where a model's weights lie."""
    return list(dict.fromkeys(weight.device for weight in model.parameters()))


def is_out_of_memory(error: BaseException) -> bool:
    is_said = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return is_said or isinstance(error, torch.OutOfMemoryError)


def _check_is_causal_decoder(model: Any) -> None:
    """What the model says of itself; whether it is true is seen when it is run (`engine.agreement`)."""
    wrapped = model.__dict__.get("original_model")
    name = type(model if wrapped is None else wrapped).__name__
    if getattr(getattr(wrapped, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder: only decoder-only models can be patched")
    if not hasattr(model, "blocks") or not hasattr(model, "unembed"):
        raise ValueError(f"{name} has no stack of blocks with an unembedding: only decoder-only models can be patched")
    if getattr(model.cfg, "attention_dir", "causal") == "bidirectional":
        raise ValueError(f"{name} attends to later positions: only causal models can be patched")
