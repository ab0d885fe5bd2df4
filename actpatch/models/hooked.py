"""How `HookedTransformer` of TransformerLens 3.x is run."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import TransformerLensKeyValueCache, TransformerLensKeyValueCacheEntry

from actpatch.models.forwards import laid_out_as_multiplied, unembedding_only
from actpatch.models.runner import KeysValues, Recording, Runner, recording_hooks


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
        with self.hooks(recording_hooks(model, hook_points, activations)), self._unembedding(read, vocabulary):
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
        devices = [next(block.parameters()).device for block in self.model.blocks]
        return [torch.empty(rows, 0, heads, cfg.d_head, dtype=cfg.dtype, device=device) for device in devices]


def _key_value_cache(layers: Sequence[KeysValues], frozen: bool) -> Any:
    keys = layers[0][0]
    seen = torch.ones(keys.shape[:2], dtype=torch.int, device=keys.device)
    entries = [TransformerLensKeyValueCacheEntry(k, v, frozen=frozen) for k, v in layers]
    return TransformerLensKeyValueCache(entries=entries, frozen=frozen, previous_attention_mask=seen)
