"""How is each kind of model run?  The one seam between the engine and TransformerLens' two model classes.

A `Runner` records a run of the model and replays single blocks of it on other residual streams, over a frozen prefix
of recorded keys and values. What is computed is the model's own code: its embedding, its blocks, its unembedding.
Nothing outside this module asks which class a model has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.utilities.activation_functions import gelu_fast, gelu_new
from transformers import DynamicCache
from transformers.activations import FastGELUActivation, NewGELUActivation

from actpatch.core.sites import kind_of

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


class Runner:
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
        raise NotImplementedError

    def begin(self, recording: Recording, start: int, length: int) -> Any:
        """What the blocks have to be called with on positions `start` to `length`; handed to `run_block`."""
        raise NotImplementedError

    def run_block(
        self, layer: int, resid: Float[Tensor, "row pos d_model"], prefix: KeysValues | None, call: Any
    ) -> Float[Tensor, "row pos d_model"]:
        """One block, over the keys and values of the positions before."""
        raise NotImplementedError

    def prefix(self, recording: Recording, layer: int, pairs: Tensor, start: int) -> KeysValues | None:
        """Recorded keys and values of the positions before `start`, one row per entry of `pairs`."""
        raise NotImplementedError

    def unembed(
        self, resid: Float[Tensor, "row pos d_model"], tokens: Int[Tensor, " token"] | None
    ) -> Float[Tensor, "row pos token"]:
        """Logits of the residual stream after the last block; only of `tokens`, where these are given."""
        raise NotImplementedError

    def attention_output(self, output: Float[Tensor, "row pos d_model"]) -> Any:
        """`output` in the form in which the model's attention module returns it."""
        raise NotImplementedError

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
        with reading(self.model.unembed, read), _unembedding_only(self.model.unembed, vocabulary):
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


class HookedRunner(Runner):
    """`HookedTransformer` of TransformerLens 3.x."""

    def record(
        self,
        tokens: Int[Tensor, "pair pos"],
        hook_points: Collection[str],
        read: Int[Tensor, " pair"] | None,
        vocabulary: Int[Tensor, " token"] | None = None,
    ) -> Recording:
        model = self.model
        activations: dict[str, Tensor] = {}
        with self.hooks(_recording_hooks(model, hook_points, activations)), self._unembedding(read, vocabulary):
            # Keys and values are taken from a growing cache: hook_k comes before the normalization of keys.
            resid, _, position_input, _ = model.input_to_embed(tokens)
            cache = _key_value_cache([(k, k) for k in self._no_keys(len(tokens))], frozen=False)
            logits = model(resid, start_at_layer=0, past_kv_cache=cache, shortformer_pos_embed=position_input)
        keys_values = [(entry.past_keys, entry.past_values) for entry in cache.entries]
        return Recording(tokens, activations, logits, keys_values, position_input)

    def begin(self, recording: Recording, start: int, length: int) -> Tensor | None:
        position_input = recording.position_input
        return None if position_input is None else position_input[:1, start:length]

    def run_block(
        self, layer: int, resid: Float[Tensor, "row pos d_model"], prefix: KeysValues | None, call: Tensor | None
    ) -> Float[Tensor, "row pos d_model"]:
        block = self.model.blocks[layer]
        device = next(block.parameters()).device
        position_input = None if call is None else call.to(device)
        entry = None if prefix is None else _key_value_cache([prefix], frozen=True).entries[0]
        return block(resid.to(device), past_kv_cache_entry=entry, shortformer_pos_embed=position_input)

    def prefix(self, recording: Recording, layer: int, pairs: Tensor, start: int) -> KeysValues | None:
        if not start or recording.keys_values is None:
            return None
        keys, values = recording.keys_values[layer]
        return keys[pairs, :start], values[pairs, :start]

    def unembed(
        self, resid: Float[Tensor, "row pos d_model"], tokens: Int[Tensor, " token"] | None
    ) -> Float[Tensor, "row pos token"]:
        with _unembedding_only(self.model.unembed, tokens):
            return self.model(resid, start_at_layer=self.n_layers)

    def attention_output(self, output: Float[Tensor, "row pos d_model"]) -> Tensor:
        return output

    @contextlib.contextmanager
    def as_found(self, hook_points: Collection[str]) -> Iterator[None]:
        with super().as_found(hook_points), laid_out_as_multiplied(self.model):
            yield

    def _no_keys(self, rows: int) -> list[Tensor]:
        cfg = self.model.cfg
        grouped = cfg.n_key_value_heads is not None and not cfg.ungroup_grouped_query_attention
        heads = cfg.n_key_value_heads if grouped else cfg.n_heads
        devices = [next(block.parameters()).device for block in self.model.blocks]
        return [torch.empty(rows, 0, heads, cfg.d_head, dtype=cfg.dtype, device=device) for device in devices]


class BridgeRunner(Runner):
    """`TransformerBridge` of TransformerLens 3.x and 4.x, which wraps a Hugging Face model.

    Its blocks are called with whatever the Hugging Face model calls them with (masks, rotary angles, a cache): a dry
    run over blocks that only note their arguments tells what that is for a given prefix and length.
    """

    _block_outputs: int | None = None
    """Length of the tuple that a block returns; None where it returns a tensor."""

    def record(
        self,
        tokens: Int[Tensor, "pair pos"],
        hook_points: Collection[str],
        read: Int[Tensor, " pair"] | None,
        vocabulary: Int[Tensor, " token"] | None = None,
    ) -> Recording:
        model, cache = self.model, DynamicCache()
        activations: dict[str, Tensor] = {}
        handle = model.blocks[0].register_forward_hook(self._note_block_output)
        try:
            with self.hooks(_recording_hooks(model, hook_points, activations)), self._unembedding(read, vocabulary):
                logits = model(tokens, past_key_values=cache, use_cache=True)
        finally:
            handle.remove()
        return Recording(tokens, activations, logits, self._filled(cache, tokens.shape[1]))

    def begin(self, recording: Recording, start: int, length: int) -> list[tuple[tuple, dict[str, Any]]]:
        calls: list[tuple[tuple, dict[str, Any]]] = []

        def note(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            return self._block_output(hidden)

        options: dict[str, Any] = {}
        if recording.keys_values is not None:
            options = {"past_key_values": _past(recording.keys_values[0], start), "use_cache": True}
        with contextlib.ExitStack() as stack:
            for block in self.model.blocks:
                stack.enter_context(replaced_forward(block, _with_hidden_states_first(note)))
            self.model(recording.tokens[:1, start:length], **options)
        return calls

    def run_block(
        self, layer: int, resid: Float[Tensor, "row pos d_model"], prefix: KeysValues | None, call: Any
    ) -> Float[Tensor, "row pos d_model"]:
        args, kwargs = call[layer]
        cache = _PrefixCache(prefix)
        args = tuple(cache if isinstance(value, DynamicCache) else value for value in args)
        kwargs = {name: cache if isinstance(value, DynamicCache) else value for name, value in kwargs.items()}
        output = self.model.blocks[layer](resid, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def prefix(self, recording: Recording, layer: int, pairs: Tensor, start: int) -> KeysValues | None:
        if not start or recording.keys_values is None:
            return None
        keys, values = recording.keys_values[layer]
        return keys[pairs, :, :start], values[pairs, :, :start]

    def unembed(
        self, resid: Float[Tensor, "row pos d_model"], tokens: Int[Tensor, " token"] | None
    ) -> Float[Tensor, "row pos token"]:
        def pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._block_output(hidden)

        def give(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._block_output(resid)

        blocks = list(self.model.blocks)
        with contextlib.ExitStack() as stack:
            for block in blocks:
                replacement = give if block is blocks[-1] else pass_on
                stack.enter_context(replaced_forward(block, _with_hidden_states_first(replacement)))
            stack.enter_context(_unembedding_only(self.model.unembed, tokens))
            return self.model(torch.zeros(resid.shape[:2], dtype=torch.long, device=self.device))

    def attention_output(self, output: Float[Tensor, "row pos d_model"]) -> tuple[Tensor, None]:
        return output, None

    def writing_hooks(self, hook_point: str, write: Callable[..., Tensor]) -> list[Hook]:
        if not hook_point.endswith(".hook_resid_mid"):
            return [(hook_point, write)]
        # A bridge's hook_resid_mid changes only what the MLP reads: the difference has to be added by the attention.
        block = hook_point.removesuffix(".hook_resid_mid")
        before: list[Tensor] = []

        def note(resid: Tensor, hook: Any) -> None:
            before[:] = [resid]

        def add(attn_out: Tensor, hook: Any) -> Tensor:
            return write(before[0][: len(attn_out)] + attn_out, hook) - before[0][: len(attn_out)]

        return [(f"{block}.hook_resid_pre", note), (f"{block}.hook_attn_out", add)]

    def _note_block_output(self, module: nn.Module, args: Any, output: Any) -> None:
        self._block_outputs = len(output) if isinstance(output, tuple) else None

    def _block_output(self, hidden: Tensor) -> Any:
        if self._block_outputs is None:
            return hidden
        return (hidden,) + (None,) * (self._block_outputs - 1)

    def _filled(self, cache: DynamicCache, length: int) -> list[KeysValues] | None:
        """The cache's keys and values; None where the model did not fill it (it then runs without a prefix)."""
        layers: list[Any] = list(cache.layers)
        if len(layers) != self.n_layers:
            return None
        if any(getattr(layer, "keys", None) is None or layer.keys.shape[-2] != length for layer in layers):
            return None
        return [(layer.keys, layer.values) for layer in layers]


def make_runner(model: Any) -> Runner:
    """The runner for this model.

    Raises:
        TypeError: for anything but a `HookedTransformer` or a `TransformerBridge`.
    """
    classes = {kind.__name__ for kind in type(model).__mro__}
    if "TransformerBridge" in classes:
        return BridgeRunner(model)
    if "HookedTransformer" in classes:
        return HookedRunner(model)
    raise TypeError(
        f"model is a {type(model).__name__}, expected a TransformerLens HookedTransformer or TransformerBridge: "
        "load one with load_model(...), HookedTransformer.from_pretrained(...) or "
        "TransformerBridge.boot_transformers(...)"
    )


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
    module: Any
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (NewGELUActivation, FastGELUActivation)):
                stack.enter_context(replaced_forward(module, _gelu))
            elif getattr(module, "act_fn", None) in (gelu_new, gelu_fast):
                stack.callback(setattr, module, "act_fn", module.act_fn)
                module.act_fn = _gelu
        yield


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
            if order is None or weight.device.type != "cpu" or weight.ndim != 3:
                continue
            stack.callback(setattr, weight, "data", weight.data)
            back = sorted(range(3), key=order.__getitem__)
            weight.data = weight.data.permute(order).contiguous().permute(back)
        yield


def _gelu(values: Tensor) -> Tensor:
    return nn.functional.gelu(values, approximate="tanh")


@contextlib.contextmanager
def reading(module: nn.Module, read: Int[Tensor, " row"] | None) -> Iterator[None]:
    """The module with its input narrowed to position `read[i]` of row i; None leaves it alone."""
    if read is None:
        yield
        return
    handle = module.register_forward_pre_hook(lambda module, args: (at_positions(args[0], read), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def outputs_at(module: nn.Module, read: Int[Tensor, " row"]) -> Iterator[None]:
    """The module with its output narrowed to position `read[i]` of row i, of however many rows it is run on."""
    handle = module.register_forward_hook(lambda module, args, output: at_positions(output, read[: len(output)]))
    try:
        yield
    finally:
        handle.remove()


def at_positions(values: Float[Tensor, "row pos ..."], read: Int[Tensor, " row"]) -> Float[Tensor, "row 1 ..."]:
    """Position `read[i]` of row i."""
    read = read.to(values.device)
    return values[torch.arange(len(read), device=values.device), read].unsqueeze(1)


class _PrefixCache(DynamicCache):
    """A frozen prefix of keys and values for one layer, in the shape of a Hugging Face cache."""

    def __init__(self, prefix: KeysValues | None) -> None:
        super().__init__()
        self._prefix = prefix

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeysValues:
        if self._prefix is None:
            return key_states, value_states
        keys, values = self._prefix
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


def _past(first_layer: KeysValues, start: int) -> DynamicCache:
    """A cache that looks as if `start` positions had been run: the first layer alone tells a model its length."""
    cache = DynamicCache()
    if start:
        keys, values = first_layer
        cache.update(keys[:1, :, :start], values[:1, :, :start], 0)
    return cache


def _key_value_cache(layers: Sequence[KeysValues], frozen: bool) -> Any:
    from transformer_lens import TransformerLensKeyValueCache, TransformerLensKeyValueCacheEntry

    keys = layers[0][0]
    seen = torch.ones(keys.shape[:2], dtype=torch.int, device=keys.device)
    entries = [TransformerLensKeyValueCacheEntry(k, v, frozen=frozen) for k, v in layers]
    return TransformerLensKeyValueCache(entries=entries, frozen=frozen, previous_attention_mask=seen)


def _recording_hooks(model: Any, hook_points: Collection[str], into: dict[str, Tensor]) -> list[Hook]:
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


def _with_hidden_states_first(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` for callers that pass the hidden states by name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not args:
            args = (kwargs.pop("hidden_states"),)
        return forward(*args, **kwargs)

    return call


def _unembedding_only(unembed: Any, tokens: Int[Tensor, " token"] | None) -> contextlib.AbstractContextManager[None]:
    """The unembedding restricted to some vocabulary entries; what a model does to logits afterwards still happens."""
    if tokens is None:
        return contextlib.nullcontext()
    weight = unembed.W_U[:, tokens.to(unembed.W_U.device)]
    bias = unembed.b_U[tokens.to(unembed.b_U.device)]
    return replaced_forward(unembed, lambda resid: resid.to(weight.dtype) @ weight + bias)
