"""What readers make of a changed input: the model's own modules, run on what one of them alone reads.

Given queries, keys and values, heads do not look at each other, and nothing else of the stream reaches them. So a
layer's attention is run once for a change of what its queries (or keys, or values) read, the other two held as they
were recorded, and the slice of each head is what this head alone would have made of it. That this is so is found out
for each model (`error_of_readers`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.graph import Graph, Kind
from actpatch.core.sites import block_hook
from actpatch.engine.exactness import too_far
from actpatch.engine.experiment import Chunk, resid_name
from actpatch.models.runner import Hook, Runner

HooksOfRows: TypeAlias = Callable[[slice], Sequence[Hook]]
"""The hooks of some of the rows."""

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
        most_rows: most rows that are run together; None for as many as there are tokens for.
    """

    def __init__(
        self,
        runner: Runner,
        chunk: Chunk,
        start: int,
        length: int,
        call: Any,
        most_tokens: int,
        most_rows: int | None = None,
    ) -> None:
        self.runner, self.chunk, self.start, self.length, self.call = runner, chunk, start, length, call
        rows = max(1, most_tokens // (length - start))
        self.rows_at_once = rows if most_rows is None else min(rows, most_rows)

    def outputs_of_heads(
        self, layer: int, kind: Kind, pairs: Int[Tensor, " row"], change: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos head d_head"]:
        """What each head of a layer gives (z), where what its queries, keys or values read changes."""
        held = [one for one in QUERIES_KEYS_VALUES if one != kind]
        hooks = functools.partial(self._held, layer, held, pairs)
        return self._run(layer, pairs, change, block_hook(layer, "z"), hooks)

    def output_of_mlp(
        self,
        layer: int,
        pairs: Int[Tensor, " row"],
        change: Float[Tensor, "row pos d_model"],
        of_heads: Float[Tensor, "row pos head d_head"] | None = None,
    ) -> Float[Tensor, "row pos d_model"]:
        """What the MLP of a layer gives, where the stream before the layer changes and what its heads give stays as it
        was, or changes likewise."""
        name, z = block_hook(layer, "mlp_out"), block_hook(layer, "z")
        if z not in self.chunk.base.activations:
            return self._run(layer, pairs, change, name)
        given = self.recorded(z, pairs)
        given = given if of_heads is None else given + of_heads
        return self._run(layer, pairs, change, name, lambda rows: self.runner.writing_hooks(z, _writing(given[rows])))

    def read_by(
        self, layer: int, kind: Kind, pairs: Int[Tensor, " row"], change: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos ..."]:
        """Queries, keys or values of all heads, or the output of the MLP, where what is read changes."""
        if kind == "mlp":
            return self.output_of_mlp(layer, pairs, change)
        return self._run(layer, pairs, change, block_hook(layer, kind))

    def heads_with(
        self, layer: int, kind: Kind, pairs: Int[Tensor, " row"], value: Float[Tensor, "row pos own_head d_head"]
    ) -> Float[Tensor, "row pos head d_head"]:
        """What each head of a layer gives (z) with these queries, keys or values, the other two held."""
        held = [one for one in QUERIES_KEYS_VALUES if one != kind]

        def hooks(rows: slice) -> list[Hook]:
            written = self.runner.writing_hooks(block_hook(layer, kind), _writing(value[rows]))
            return [*self._held(layer, held, pairs, rows), *written]

        stream = self.recorded(resid_name(layer, self.runner.n_layers), pairs)
        return self._run(layer, pairs, torch.zeros_like(stream), block_hook(layer, "z"), hooks)

    def recorded(self, name: str, pairs: Int[Tensor, " row"]) -> Float[Tensor, "row pos ..."]:
        """What was recorded of the run that is patched."""
        return self.chunk.base.activations[name][pairs, self.start : self.length]

    def held_outputs(
        self, layer: int, pairs: Int[Tensor, " row"], change: Float[Tensor, "row pos d_model"], but_head: int | None
    ) -> Float[Tensor, "row pos head d_head"]:
        """What each head gives where the stream changes, but queries, keys and values are held: all, or all but the
        queries of one head."""
        hooks = functools.partial(self._held, layer, QUERIES_KEYS_VALUES, pairs, but_head=but_head)
        return self._run(layer, pairs, change, block_hook(layer, "z"), hooks)

    def _run(
        self,
        layer: int,
        pairs: Int[Tensor, " row"],
        change: Float[Tensor, "row pos d_model"],
        name: str,
        hooks: HooksOfRows = lambda rows: [],
    ) -> Float[Tensor, "row pos ..."]:
        """What a layer holds at a hook point where the stream before it changes, a few rows at a time."""
        before = resid_name(layer, self.runner.n_layers)
        found = []
        for begin in range(0, len(pairs), self.rows_at_once):
            rows = slice(begin, begin + self.rows_at_once)
            resid = self.recorded(before, pairs[rows])
            resid = resid + change[rows].to(resid.device)
            prefix = self.runner.prefix(self.chunk.base, layer, pairs[rows], self.start)
            with self.runner.hooks(hooks(rows)):
                found.append(self.runner.activation_in_block(layer, resid, prefix, self.call, name))
        return torch.cat(found)

    def _held(
        self, layer: int, kinds: Sequence[Kind], pairs: Int[Tensor, " row"], rows: slice, but_head: int | None = None
    ) -> list[Hook]:
        """Hooks that write what was recorded."""
        hooks = []
        for kind in kinds:
            name = block_hook(layer, kind)
            spared = but_head if kind == "q" else None
            hooks += self.runner.writing_hooks(name, _writing(self.recorded(name, pairs[rows]), spared))
        return hooks


def _writing(value: Float[Tensor, "row pos head d_head"], but_head: int | None = None) -> Callable[..., Tensor]:
    """Writes a value, but for one head's."""

    def write(now: Tensor, hook: Any) -> Tensor:
        if but_head is None:
            return value
        kept = value.clone()
        kept[:, :, but_head] = now[:, :, but_head]
        return kept

    return write


def error_of_readers(readers: Readers, graph: Graph, layers: Sequence[int]) -> str | None:
    """Why these layers' readers are not what the graph says; None where they are, as far as they were recorded.

    On two rows, the last and the first pair of the chunk, whose stream is changed by what changes it most: that between
    two positions.
    """
    pairs = torch.tensor([len(readers.chunk.pairs) - 1, 0], device=readers.runner.index_device)
    for layer in layers:
        resid = readers.recorded(resid_name(layer, graph.n_layers), pairs)
        change = resid.flip(1) + torch.linspace(0, 1, resid.shape[-1], device=resid.device, dtype=resid.dtype)
        has_queries = block_hook(layer, "q") in readers.chunk.base.activations
        if has_queries and (reason := _error_of_heads(readers, graph, layer, pairs, change)):
            return reason
        if graph.mlps[layer] and (reason := _error_of_mlp(readers, graph, layer, pairs, change)):
            return reason
    return None


def _error_of_heads(readers: Readers, graph: Graph, layer: int, pairs: Tensor, change: Tensor) -> str | None:
    expected = readers.recorded(block_hook(layer, "z"), pairs)
    if too_far("", readers.held_outputs(layer, pairs, change, None), expected):
        return f"heads of layer {layer} read more of the residual stream than their q, k and v"
    one_changed = readers.held_outputs(layer, pairs, change, 0)
    if too_far("", one_changed[:, :, 1:], expected[:, :, 1:]):
        return f"a head of layer {layer} changes what others give whose q, k and v are the same"
    return None


def _error_of_mlp(readers: Readers, graph: Graph, layer: int, pairs: Tensor, change: Tensor) -> str | None:
    expected, nothing = readers.recorded(block_hook(layer, "mlp_out"), pairs), torch.zeros_like(change)
    alone = readers.output_of_mlp(layer, pairs, nothing)
    if reason := too_far(f"running the MLP of layer {layer} by itself", alone, expected, "values"):
        return reason
    if not graph.heads[layer]:
        return None
    z = readers.recorded(block_hook(layer, "z"), pairs)
    reads_attention = not torch.equal(alone, readers.output_of_mlp(layer, pairs, nothing, z.flip(1) + 1))
    if reads_attention == graph.is_parallel:
        is_read = "reads" if reads_attention else "does not read"
        return f"the MLP of layer {layer} {is_read} what the attention of its layer gives"
    return None
