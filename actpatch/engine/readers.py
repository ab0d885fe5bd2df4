"""What readers make of a changed input: the model's own modules, run on what one of them alone reads.

Given queries, keys and values, heads do not look at each other, and nothing else of the stream reaches them. So a
layer's attention is run once for a change of what its queries (or keys, or values) read, the other two held as they
were recorded, and the slice of each head is what this head alone would have made of it. That this is so is found out
for each model (`error_of_readers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.graph import Graph, Kind
from actpatch.core.sites import block_hook
from actpatch.engine.exactness import too_far
from actpatch.engine.experiment import Chunk, resid_name
from actpatch.models.forwards import replaced_forward
from actpatch.models.runner import Hook, Runner

QUERIES_KEYS_VALUES: tuple[Kind, ...] = ("q", "k", "v")


class Readers:
    """The readers of a model on the recorded runs of some pairs, at the positions from `start` to `length`.

    Args:
        runner: of the model.
        chunk: the recorded runs; of the run that is patched with q, k, v and z of the layers whose heads are asked for.
        start: first position that is computed.
        length: end of the positions that are computed.
        call: what the blocks are called with (`Runner.begin`).
        most_tokens: most rows × positions that are run together.
    """

    def __init__(self, runner: Runner, chunk: Chunk, start: int, length: int, call: Any, most_tokens: int) -> None:
        self.runner, self.chunk, self.start, self.length, self.call = runner, chunk, start, length, call
        self.rows_at_once = max(1, most_tokens // (length - start))

    def outputs_of_heads(
        self, layer: int, kind: Kind, pairs: Int[Tensor, " row"], change: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos head d_head"]:
        """What each head of a layer gives (z), where what its queries, keys or values read changes."""
        held = [one for one in QUERIES_KEYS_VALUES if one != kind]
        return self._run(layer, pairs, change, block_hook(layer, "z"), lambda of: self._held(layer, held, of))

    def output_of_mlp(
        self,
        layer: int,
        pairs: Int[Tensor, " row"],
        change: Float[Tensor, "row pos d_model"],
        of_attention: Float[Tensor, "row pos d_model"] | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """What the MLP of a layer gives, where the stream before the layer changes and what its attention gives stays
        as it was, or changes likewise."""
        name, attn = block_hook(layer, "mlp_out"), getattr(self.runner.model.blocks[layer], "attn", None)
        if attn is None:
            return self._run(layer, pairs, change, name)
        found = []
        for rows in torch.arange(len(pairs), device=pairs.device).split(self.rows_at_once):
            output = self.recorded(block_hook(layer, "attn_out"), pairs[rows])
            output = output if of_attention is None else output + of_attention[rows]
            given = self.runner.attention_output(output)
            with replaced_forward(attn, lambda *args, given=given, **kwargs: given):
                found.append(self._run(layer, pairs[rows], change[rows], name))
        return torch.cat(found)

    def recorded(self, name: str, pairs: Int[Tensor, " row"]) -> Float[Tensor, "row pos ..."]:
        """What was recorded of the run that is patched."""
        return self.chunk.base.activations[name][pairs, self.start : self.length]

    def held_outputs(
        self, layer: int, pairs: Int[Tensor, " row"], change: Float[Tensor, "row pos d_model"], but_head: int | None
    ) -> Float[Tensor, "row pos head d_head"]:
        """What each head gives where the stream changes, but queries, keys and values are held: all, or all but the
        queries of one head."""
        name = block_hook(layer, "z")
        return self._run(layer, pairs, change, name, lambda of: self._held(layer, QUERIES_KEYS_VALUES, of, but_head))

    def _run(
        self, layer: int, pairs: Tensor, change: Tensor, name: str, hooks: Any = lambda pairs: ()
    ) -> Float[Tensor, "row pos ..."]:
        before = resid_name(layer, self.runner.n_layers)
        found = []
        for of, part in self._parts(pairs, change):
            prefix = self.runner.prefix(self.chunk.base, layer, of, self.start)
            with self.runner.hooks(hooks(of)):
                resid = self.recorded(before, of) + part
                found.append(self.runner.activation_in_block(layer, resid, prefix, self.call, name))
        return torch.cat(found)

    def _parts(self, pairs: Tensor, change: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(pairs.split(self.rows_at_once), change.split(self.rows_at_once))

    def _held(self, layer: int, kinds: Sequence[Kind], pairs: Tensor, but_head: int | None = None) -> list[Hook]:
        """Hooks that write what was recorded."""

        def hold(kind: Kind) -> list[Hook]:
            name = block_hook(layer, kind)
            value = self.recorded(name, pairs)

            def write(now: Tensor, hook: Any) -> Tensor:
                if but_head is None or kind != "q":
                    return value
                kept = value.clone()
                kept[:, :, but_head] = now[:, :, but_head]
                return kept

            return self.runner.writing_hooks(name, write)

        return [hook for kind in kinds for hook in hold(kind)]


def error_of_readers(readers: Readers, graph: Graph, layers: Sequence[int]) -> str | None:
    """Why these layers' readers are not what the graph says; None where they are.

    On the last pair of the chunk, whose stream is changed by what changes it most: that between two positions.
    """
    pair = torch.tensor([len(readers.chunk.pairs) - 1], device=readers.runner.device)
    for layer in layers:
        resid = readers.recorded(resid_name(layer, graph.n_layers), pair)
        change = resid.flip(1) + torch.linspace(0, 1, resid.shape[-1], device=resid.device, dtype=resid.dtype)
        if graph.heads[layer] and (reason := _error_of_heads(readers, graph, layer, pair, change)):
            return reason
        if graph.mlps[layer] and (reason := _error_of_mlp(readers, graph, layer, pair, change)):
            return reason
    return None


def _error_of_heads(readers: Readers, graph: Graph, layer: int, pair: Tensor, change: Tensor) -> str | None:
    expected = readers.recorded(block_hook(layer, "z"), pair)
    if too_far("", readers.held_outputs(layer, pair, change, None), expected):
        return f"heads of layer {layer} read more of the residual stream than their q, k and v"
    one_changed = readers.held_outputs(layer, pair, change, 0)
    if too_far("", one_changed[:, :, 1:], expected[:, :, 1:]):
        return f"a head of layer {layer} changes what others give whose q, k and v are the same"
    return None


def _error_of_mlp(readers: Readers, graph: Graph, layer: int, pair: Tensor, change: Tensor) -> str | None:
    expected, nothing = readers.recorded(block_hook(layer, "mlp_out"), pair), torch.zeros_like(change)
    alone = readers.output_of_mlp(layer, pair, nothing)
    if reason := too_far(f"running the MLP of layer {layer} by itself", alone, expected, "values"):
        return reason
    if not graph.heads[layer]:
        return None
    reads_attention = not torch.equal(alone, readers.output_of_mlp(layer, pair, nothing, change))
    if reads_attention == graph.is_parallel:
        is_read = "reads" if reads_attention else "does not read"
        return f"the MLP of layer {layer} {is_read} what the attention of its layer gives"
    return None
