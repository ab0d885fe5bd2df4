"""How `TransformerBridge` of TransformerLens 3.x and 4.x, which wraps a Hugging Face model, is run."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from actpatch.models.forwards import replaced_forward, unembedding_only
from actpatch.models.runner import Hook, KeysValues, Read, Recording, Runner, is_out_of_memory


class BridgeRunner(Runner):
    """`TransformerBridge` of TransformerLens 3.x and 4.x, which wraps a Hugging Face model.

    Its blocks are called with whatever the Hugging Face model calls them with (masks, rotary angles, a cache): a dry
    run over blocks that only note their arguments tells what that is for a given prefix and length.
    """

    _hands_on = False
    """Whether the attention reads the cache by its old name alone: TransformerLens 4.3 with Transformers 5.24."""
    _block_outputs: int | None = None
    """Length of the tuple that a block returns; None where it returns a tensor."""

    def _recorded_with_keys(
        self, tokens: Int[Tensor, "pair pos"], activations: dict[str, Tensor], read: Read
    ) -> Recording:
        handle = self.model.blocks[0].register_forward_hook(self._note_block_output)
        try:
            cache, logits = self._run_with_cache(tokens, activations, read)
            if self._filled(cache, tokens.shape[1]) is None and self._cache_name == "cache" and not self._hands_on:
                self._hands_on = True
                cache, logits = self._run_with_cache(tokens, activations, read)
        except Exception as failure:  # a model with states beside keys and values takes no such cache
            if is_out_of_memory(failure):
                raise
            activations.clear()
            return Recording(tokens, activations, self.run(tokens, read), None)
        finally:
            handle.remove()
        return Recording(tokens, activations, logits, self._filled(cache, tokens.shape[1]))

    def _run_with_cache(
        self, tokens: Int[Tensor, "pair pos"], activations: dict[str, Tensor], read: Read
    ) -> tuple[DynamicCache, Tensor]:
        cache = DynamicCache()
        activations.clear()
        with self._cache_handed_on():
            return cache, self.run(tokens, read, **self._caching(cache))

    def reader(self) -> Callable[[Tensor, Read], Tensor]:
        cache = DynamicCache()

        def read_on(tokens: Int[Tensor, "1 new"], read: Read) -> Float[Tensor, "1 read token"]:
            with self._cache_handed_on():
                return self.run(tokens, read, **self._caching(cache))

        return read_on

    def begin(self, recording: Recording, start: int, length: int) -> list[tuple[tuple, dict[str, Any]]]:
        return self._calls(recording, slice(1), start, length)

    def blocks_are_called_alike(self, recording: Recording, start: int, length: int) -> bool:
        called_with = _tensors(self._calls(recording, slice(None), start, length))
        n_prompts = len(recording.tokens)
        return all(bool((value == value[:1]).all()) for value in called_with if len(value) == n_prompts)

    def _calls(
        self, recording: Recording, prompts: slice, start: int, length: int
    ) -> list[tuple[tuple, dict[str, Any]]]:
        """What each block is called with in a run of these prompts, beside the residual stream."""
        calls: list[tuple[tuple, dict[str, Any]]] = []

        def note(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append((args, kwargs))
            return self._block_output(hidden.to(self.device_of(len(calls) - 1)))

        options: dict[str, Any] = {}
        if recording.keys_values is not None:
            options = self._caching(_past(recording.keys_values[0], prompts, start))
        with contextlib.ExitStack() as stack:
            for block in self.model.blocks:
                stack.enter_context(replaced_forward(block, _with_hidden_states_first(note)))
            tokens = recording.tokens[prompts, start:length]
            self.run(tokens, Read(torch.zeros(len(tokens), 1, dtype=torch.long)), **options)
        return calls

    def run_block(
        self, layer: int, resid: Float[Tensor, "row pos d_model"], prefix: KeysValues | None, call: Any
    ) -> Float[Tensor, "row pos d_model"]:
        args, kwargs = call[layer]
        cache = _PrefixCache(prefix)
        args = tuple(cache if isinstance(value, DynamicCache) else value for value in args)
        kwargs = {name: cache if isinstance(value, DynamicCache) else value for name, value in kwargs.items()}
        with self._cache_handed_on(layer):
            output = self.model.blocks[layer](resid.to(self.device_of(layer)), *args, **kwargs)
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
            return self._block_output(resid.to(self.device_of(-1)))

        blocks = list(self.model.blocks)
        with contextlib.ExitStack() as stack:
            for block in blocks:
                replacement = give if block is blocks[-1] else pass_on
                stack.enter_context(replaced_forward(block, _with_hidden_states_first(replacement)))
            stack.enter_context(unembedding_only(self.model.unembed, tokens))
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
            resid = before[0][: len(attn_out)].to(attn_out.device)
            return write(resid + attn_out, hook) - resid

        return [(f"{block}.hook_resid_pre", note), (f"{block}.hook_attn_out", add)]

    @functools.cached_property
    def _cache_name(self) -> str:
        """What the wrapped model's argument for keys and values of earlier positions is called."""
        taken = inspect.signature(self.model.original_model.forward).parameters
        return "cache" if "cache" in taken else "past_key_values"  # renamed in Transformers 5.24

    def _caching(self, cache: DynamicCache) -> dict[str, Any]:
        return {self._cache_name: cache, "use_cache": True}

    @contextlib.contextmanager
    def _cache_handed_on(self, layer: int | None = None) -> Iterator[None]:
        """The attention of a layer, or of all, given the cache by the old name too, if that is what it reads."""
        with contextlib.ExitStack() as stack:
            for block in self.model.blocks if layer is None else [self.model.blocks[layer]]:
                attn = getattr(block, "attn", None)
                if self._hands_on and attn is not None:
                    stack.enter_context(replaced_forward(attn, _with_both_names(attn.forward)))
            yield

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


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors with an axis among nested values."""
    if isinstance(values, Tensor):
        yield from [values] if values.ndim else []
    elif isinstance(values, (tuple, list, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _with_both_names(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` with the cache under its old name too."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("cache") is not None:
            kwargs = {**kwargs, "past_key_values": kwargs["cache"]}
        return forward(*args, **kwargs)

    return call


def _past(first_layer: KeysValues, prompts: slice, start: int) -> DynamicCache:
    """A cache that looks as if `start` positions had been run: the first layer alone tells a model its length."""
    cache = DynamicCache()
    if start:
        keys, values = first_layer
        cache.update(keys[prompts, :, :start], values[prompts, :, :start], 0)
    return cache


def _with_hidden_states_first(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` for callers that pass the hidden states by name."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not args:
            args = (kwargs.pop("hidden_states"),)
        return forward(*args, **kwargs)

    return call
