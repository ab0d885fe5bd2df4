"""How `HookedTransformer` of TransformerLens 3.x is run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import TransformerLensKeyValueCache, TransformerLensKeyValueCacheEntry

from actpatch.models.forwards import laid_out_as_multiplied, replaced_forward, unembedding_only
from actpatch.models.runner import KeysValues, Read, Recording, Runner


class HookedRunner(Runner):
    """`HookedTransformer` of TransformerLens 3.x."""

    def _recorded_with_keys(
        self, tokens: Int[Tensor, "pair pos"], activations: dict[str, Tensor], read: Read
    ) -> Recording:
        # Keys and values are taken from a growing cache: hook_k comes before the normalization of keys. Each block is
        # handed its own, because a model that is handed one makes up a mask of padding.
        entries = _key_value_cache([(k, k) for k in self._no_keys(len(tokens))], frozen=False).entries
        given: list[dict[str, Any]] = []
        with contextlib.ExitStack() as stack:
            for block, entry in zip(self.model.blocks, entries):
                stack.enter_context(replaced_forward(block, _filling(block.forward, entry, given)))
            logits = self.run(tokens, read)
        masks = [mask for options in given if (mask := options.get("attention_mask")) is not None]
        if not all(bool(mask.all()) for mask in masks):  # blocks that are run singly are given none
            return Recording(tokens, activations, logits, None, is_masked=True)
        keys_values = [(entry.past_keys, entry.past_values) for entry in entries]
        return Recording(tokens, activations, logits, keys_values, given[0].get("shortformer_pos_embed"))

    def reader(self) -> Callable[[Tensor, Read], Tensor]:
        cache = _key_value_cache([(k, k) for k in self._no_keys(1)], frozen=False)

        def read_on(tokens: Int[Tensor, "1 new"], read: Read) -> Float[Tensor, "1 read token"]:
            # Without a mask the model would make one up, in which a token that also pads is padding.
            return self.run(tokens, read, past_kv_cache=cache, attention_mask=torch.ones_like(tokens))

        return read_on

    def begin(self, recording: Recording, start: int, length: int) -> Tensor | None:
        position_input = recording.position_input
        return None if position_input is None else position_input[:1, start:length]

    def run_block(
        self, layer: int, resid: Float[Tensor, "row pos d_model"], prefix: KeysValues | None, call: Tensor | None
    ) -> Float[Tensor, "row pos d_model"]:
        block, device = self.model.blocks[layer], self.device_of(layer)
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
        with unembedding_only(self.model.unembed, tokens):
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
        like = [next(block.parameters()) for block in self.model.blocks]
        return [torch.empty(rows, 0, heads, cfg.d_head, dtype=cfg.dtype, device=weight.device) for weight in like]


def _filling(forward: Callable[..., Any], entry: Any, given: list[dict[str, Any]]) -> Callable[..., Any]:
    """A block's forward pass that fills its cache, and notes what it is given beside the residual stream."""

    def fill(resid: Tensor, **options: Any) -> Any:
        given.append(options)
        return forward(resid, **{**options, "past_kv_cache_entry": entry})

    return fill


def _key_value_cache(layers: Sequence[KeysValues], frozen: bool) -> Any:
    keys = layers[0][0]
    seen = torch.ones(keys.shape[:2], dtype=torch.int, device=keys.device)
    entries = [TransformerLensKeyValueCacheEntry(k, v, frozen=frozen) for k, v in layers]
    return TransformerLensKeyValueCache(entries=entries, frozen=frozen, previous_attention_mask=seen)
