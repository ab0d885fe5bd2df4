"""Edges: what a sender changes in what one receiver reads, as rows that enter where the receiver has written.

Patching an edge from writer u to reader v gives v alone the input `base + (u in the other run - u in the base run)`, on
the residual stream before its normalization, which is computed anew. What v makes of it is a change of its output, and
from there the row is like any other (`engine.resume`):

- into queries, keys or values of a head: the change of its output (under grouped-query attention, of all heads of the
  group), entering after the attention;
- into an MLP: the change of its output, entering before the next block;
- into the logits: the change itself, entering after the last block.

So of the model no part is run for an edge that comes before its receiver has written; a layer's attention is run once
for each sender and kind (`engine.readers`), not once for each edge.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actpatch.core.edge_patches import EdgePatches, GraphPatches
from actpatch.core.graph import Graph, Reader, Writer
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.entering import Rows, Work, changed_output, with_bias
from actpatch.engine.exactness import too_far
from actpatch.engine.experiment import Chunk, Experiment, resid_name
from actpatch.engine.plan import Batch, Stage
from actpatch.engine.readers import QUERIES_KEYS_VALUES, Readers, error_of_readers
from actpatch.engine.writes import runs_of_equal
from actpatch.models.runner import Hook, Runner

INPUT = block_hook(0, "resid_pre")
"""Where what the embedding writes, of token and position, is read."""


Made: TypeAlias = tuple[slice, "list[int] | None", Float[Tensor, "row pos ..."]]
"""What readers made in some rows: which rows; of which heads, None for an MLP; what."""


def hooks_that_write(runner: Runner, made: Mapping[str, Sequence[Made]]) -> list[Hook]:
    """Hooks that write what readers made, by hook point."""

    def writer(values: Sequence[Made]) -> Callable[..., Tensor]:
        def write(now: Tensor, hook: Any) -> Tensor:
            now = now.clone()
            for rows, heads, value in values:
                now[(rows,) if heads is None else (rows, slice(None), heads)] = value
            return now

        return write

    return [hook for name, values in made.items() for hook in runner.writing_hooks(name, writer(values))]


def entry_of(reader: Reader, n_layers: int, linear: bool) -> tuple[int, Stage]:
    """Where a row enters: behind what its reader has written; before the reader's layer, where no change may be added
    to what was recorded, so that a hook has to write it."""
    if reader.kind == "logits":
        return n_layers, Stage.BLOCK
    if not linear:
        return reader.layer, Stage.BLOCK
    return (reader.layer + 1, Stage.BLOCK) if reader.kind == "mlp" else (reader.layer, Stage.ATTENTION)


def output_of(reader: Reader) -> str:
    """Hook point of what a reader changes: the logits change the residual stream that they are read from."""
    name = {"logits": "resid_post", "mlp": "mlp_out"}.get(reader.kind, "z")
    return block_hook(reader.layer, name)


def written_by(writer: Writer) -> str:
    """Hook point of what a writer writes: of a head all heads' outputs, which its slice of the weights multiplies."""
    if writer.layer < 0:
        return INPUT
    return block_hook(writer.layer, "mlp_out" if writer.head is None else "z")


def patches_that_enter_alike(edges: GraphPatches) -> list[Patch]:
    """Patches of outputs, one for each place where rows of these edges enter."""
    readers = [edges.graph.readers[number] for number in edges.used_readers]
    heads = {output_of(reader): 0 if reader.kind in QUERIES_KEYS_VALUES else None for reader in readers}
    return [Patch((Site(name, head=head),)) for name, head in heads.items()]


def recorded_for(edges: GraphPatches) -> tuple[set[str], set[str]]:
    """Hook points needed of the run that is patched, beside those that rows enter with, and of what is written."""
    writers = [edges.graph.writers[number] for number in edges.used_writers]
    readers = [edges.graph.readers[number] for number in edges.used_readers]
    source = {written_by(writer) for writer in writers}
    layers = edges.layers
    base = {name for layer in layers for name in _outputs_of(edges.graph, layer)}
    of_heads = {reader.layer for reader in readers if reader.kind in QUERIES_KEYS_VALUES}
    base |= {block_hook(layer, name) for layer in of_heads for name in QUERIES_KEYS_VALUES}
    base |= {block_hook(layer, "z") for layer in layers if edges.graph.heads[layer]}
    return base | source, source


@dataclass(frozen=True)
class Sent:
    """What senders change in what is read of them, on the recorded pairs of a chunk."""

    differences: Float[Tensor, "writer pair pos d_model"]
    """Of each writer, what is written of it and what the run that is patched has, from its first change on."""
    masks: Bool[Tensor, "column pair pos"]
    """At which positions each place is written."""
    writers: Int[np.ndarray, " sender"]
    """Which of the writers each sender is."""
    columns: Int[np.ndarray, " sender"]
    """At which of the places."""

    def at(
        self, senders: Int[np.ndarray, " row"], pairs: Int[Tensor, " row"], start: int, length: int
    ) -> Float[Tensor, "row pos d_model"]:
        """What these senders change on these pairs, at positions `start` to `length`."""
        device = self.differences.device
        writers = torch.from_numpy(self.writers[senders]).to(device)
        change = self.differences[writers, pairs.to(device), start:length]
        if len(self.masks) == 1:  # it is in the differences
            return change
        columns = torch.from_numpy(self.columns[senders]).to(device)
        return change * self.masks[columns, pairs.to(device), start:length, None]

    @functools.cached_property
    def first(self) -> Int[Tensor, "sender pair"]:
        """First position at which each sender changes anything; the number of positions where it changes nothing."""
        differs = self.differences.ne(0).any(dim=-1)
        n_positions = differs.shape[-1]
        found = torch.empty(len(self.writers), differs.shape[1], dtype=torch.long)
        for column, mask in enumerate(self.masks):
            changed = differs & mask
            first = torch.where(changed.any(dim=-1), changed.int().argmax(dim=-1), n_positions).cpu()
            of_column = torch.from_numpy(np.flatnonzero(self.columns == column))
            found[of_column] = first[torch.from_numpy(self.writers[self.columns == column])]
        return found


def sent_by(experiment: Experiment, chunk: Chunk, edges: EdgePatches) -> tuple[Sent, Int[np.ndarray, " edge"]]:
    """What the senders of these edges change, and which of them each edge's is."""
    numbers, of_edge = np.unique(edges.writers, return_inverse=True)
    masks = written_at(experiment, chunk)
    stream = chunk.base.activations[resid_name(0, edges.graph.n_layers)]
    differences = stream.new_empty(len(numbers), *stream.shape)
    for change, number in zip(differences, numbers):
        change[:] = difference(experiment, chunk, edges.graph.writers[number])
    differences *= masks.any(dim=0)[None, ..., None].to(differences.device)
    if len(masks) == 1:
        masks = torch.ones_like(masks)
    n_columns = len(masks)
    senders = np.arange(len(numbers) * n_columns)
    sent = Sent(differences, masks.to(differences.device), senders // n_columns, senders % n_columns)
    return sent, of_edge.ravel() * n_columns + edges.columns


def written_at(experiment: Experiment, chunk: Chunk) -> Bool[Tensor, "place pair pos"]:
    """At which positions each place is written: none before a pair's first change, and none that are appended."""
    every = torch.arange(chunk.base.tokens.shape[1])
    may_change = (every >= chunk.first_change[:, None]) & (every < chunk.ends[:, None])
    masks = torch.zeros(len(experiment.positions), *may_change.shape, dtype=torch.bool)
    for mask, positions in zip(masks, experiment.positions):
        for at in positions:
            if at is None:
                mask[:] = True
            else:
                mask |= (every[None, :, None] == at[chunk.pairs][:, None, :]).any(dim=2)
    return masks & may_change


def difference(experiment: Experiment, chunk: Chunk, writer: Writer) -> Float[Tensor, "pair pos d_model"]:
    """What a writer writes, less what it has written in the run that is patched."""
    name = written_by(writer)
    source, base = chunk.source[name], chunk.base.activations[name]
    if writer.head is None:
        return source - base
    weight = experiment.runner.model.blocks[writer.layer].attn.W_O[writer.head]
    return (source[:, :, writer.head] - base[:, :, writer.head]) @ weight


class EdgeRows(Rows):
    """The rows of edges, each of which enters with what its receiver has made of what its sender changes.

    Args:
        graph: of the model.
        batch: the rows.
        chunk: the recorded runs.
        sent: what senders change.
        senders: of each row.
        receivers: number of each row's receiver among the graph's readers.
        made: what heads have made of what senders change; more is put into it.
        linear: whether a change may be added to what was recorded; else it is written by hooks.
    """

    def __init__(
        self,
        graph: Graph,
        batch: Batch,
        chunk: Chunk,
        sent: Sent,
        senders: Int[np.ndarray, " row"],
        receivers: Int[np.ndarray, " row"],
        made: MadeByHeads,
        linear: bool,
    ) -> None:
        super().__init__(made.readers.runner, batch, chunk)
        self.graph, self.sent, self.senders, self.receivers, self.made = graph, sent, senders, receivers, made
        self.linear = linear
        readers = [graph.readers[number] for number in receivers.tolist()]
        self.orders = [entry_of(reader, graph.n_layers, linear) for reader in readers]
        # What receivers make is computed before the batch is run: a block of it may be run otherwise than theirs.
        runs = [(graph.readers[number], rows) for number, rows in runs_of_equal(receivers, 0, len(batch))]
        self._made = {rows.start: self._made_by(reader, rows) for reader, rows in runs}
        self._hooked = [
            (output_of(reader), reader, rows) for reader, rows in runs if not linear and reader.kind != "logits"
        ]
        self.hooked = [Site(name) for name, _, _ in self._hooked]

    def before_block(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        entering = self.recorded_resid(layer, begin, end)
        for number, rows in runs_of_equal(self.receivers, begin, end):
            reader, here = self.graph.readers[number], slice(rows.start - begin, rows.stop - begin)
            if reader.kind == "logits":
                entering[here] += self._made[rows.start].to(entering.device)
            elif self.linear:
                has_heads = self.graph.heads[reader.layer] > 0
                before = self.recorded_mid if has_heads else self.recorded_resid
                entering[here] = before(reader.layer, rows.start, rows.stop) + self._made[rows.start]
        return entering

    def after_attention(
        self, layer: int, begin: int, end: int
    ) -> tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_model"]]:
        outputs = [
            self._attention_output(self.graph.readers[number], rows)
            for number, rows in runs_of_equal(self.receivers, begin, end)
        ]
        return self.recorded_resid(layer, begin, end), torch.cat(outputs)

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        by_name: dict[str, list[Made]] = {}
        for name, reader, rows in self._hooked:
            heads = None if reader.kind == "mlp" else self.graph.heads_of(reader)
            by_name.setdefault(name, []).append((rows, heads, self._made[rows.start]))
        with self.runner.hooks(hooks_that_write(self.runner, by_name)):
            yield

    def _made_by(self, reader: Reader, rows: slice) -> Float[Tensor, "row pos ..."]:
        """What the receiver of these rows gives: heads their z, an MLP its output, the logits what is added there."""
        senders, pairs = self.senders[rows], self.pairs[rows]
        if reader.kind in QUERIES_KEYS_VALUES:
            of_layer = self.made.of(reader, self.sent, senders, self.batch.pairs[rows])
            return of_layer[:, :, self.graph.heads_of(reader)]
        change = self.sent.at(senders, pairs, self.batch.start, self.batch.length)
        return change if reader.kind == "logits" else self.made.readers.output_of_mlp(reader.layer, pairs, change)

    def _attention_output(self, reader: Reader, rows: slice) -> Float[Tensor, "row pos d_model"]:
        """The output of a layer's attention, of which these rows' receivers change heads."""
        layer, begin, end = reader.layer, rows.start, rows.stop
        heads, attn = self.graph.heads_of(reader), self.runner.model.blocks[layer].attn
        z, changed = self.recorded(block_hook(layer, "z"), begin, end), self._made[begin]

        def in_full(at: Tensor) -> Tensor:
            every = z[at]
            every[:, heads] = changed[at]
            return with_bias(every.flatten(1) @ attn.W_O.flatten(0, 1), attn, "b_O")

        before, weight = z[:, :, heads].flatten(2), attn.W_O[heads].flatten(0, 1)
        output = self.recorded(block_hook(layer, "attn_out"), begin, end)
        return changed_output(output, (before, changed.flatten(2), weight), in_full)


class MadeByHeads:
    """What the heads of a layer make of what senders change in what their queries (or keys, or values) read.

    It is kept while rows of the same layer and kind follow each other, as those of its heads do.
    """

    def __init__(self, readers: Readers) -> None:
        self.readers = readers
        self._of: tuple[int, str] | None = None
        self._slots: dict[tuple[int, int], int] = {}
        self._kept: list[Tensor] = []

    def of(
        self, reader: Reader, sent: Sent, senders: Int[np.ndarray, " row"], pairs: Int[np.ndarray, " row"]
    ) -> Float[Tensor, "row pos head d_head"]:
        """What all heads of the reader's layer give in each of these rows."""
        if self._of != (reader.layer, reader.kind):
            self._of, self._slots, self._kept = (reader.layer, reader.kind), {}, []
        rows = [*zip(senders.tolist(), pairs.tolist())]
        if new := [row for row in dict.fromkeys(rows) if row not in self._slots]:
            of_senders, of_pairs = np.array(new).T
            on_device = torch.from_numpy(np.ascontiguousarray(of_pairs)).to(self.readers.runner.index_device)
            change = sent.at(of_senders, on_device, self.readers.start, self.readers.length)
            self._kept.append(self.readers.outputs_of_heads(reader.layer, reader.kind, on_device, change))
            self._kept = [torch.cat(self._kept)]
            self._slots |= {row: len(self._slots) + i for i, row in enumerate(new)}
        slots = torch.tensor([self._slots[row] for row in rows], device=self.readers.runner.index_device)
        return self._kept[0][slots]


class EdgeWork(Work):
    """Changes of what single readers read, on the pairs of a chunk.

    Args:
        runner: of the model.
        graph: of the model.
        chunk: the recorded runs.
        sent: what senders change.
        senders: of each change, among those of `sent`.
        receivers: of each change, among the graph's readers.
        most_tokens: most rows × positions that are run together.
        linear: whether a change may be added to what was recorded.
    """

    def __init__(
        self,
        runner: Runner,
        graph: Graph,
        chunk: Chunk,
        sent: Sent,
        senders: Int[np.ndarray, " change"],
        receivers: Int[np.ndarray, " change"],
        most_tokens: int,
        linear: bool,
    ) -> None:
        self.runner, self.graph, self.chunk, self.sent = runner, graph, chunk, sent
        self.senders, self.receivers, self.most_tokens, self.linear = senders, receivers, most_tokens, linear
        self._made: dict[tuple[int, int], MadeByHeads] = {}

    @property
    def starts(self) -> Int[Tensor, "change pair"]:
        return torch.minimum(self.sent.first[torch.from_numpy(self.senders)], self.chunk.lengths)

    @property
    def order(self) -> Int[np.ndarray, "change 2"]:
        n_layers = self.graph.n_layers
        entries = np.array([entry_of(reader, n_layers, self.linear) for reader in self.graph.readers], dtype=np.int64)
        return entries[self.receivers]

    def rows(self, batch: Batch, call: Any) -> EdgeRows:
        key = batch.start, batch.length
        if key not in self._made:
            readers = Readers(self.runner, self.chunk, *key, call, self.most_tokens)
            self._made = {key: MadeByHeads(readers)}
        of_rows = self.senders[batch.patches], self.receivers[batch.patches]
        return EdgeRows(self.graph, batch, self.chunk, self.sent, *of_rows, self._made[key], self.linear)


def error_of_edges(
    experiment: Experiment, edges: GraphPatches, chunk: Chunk, prefix: bool, most_tokens: int
) -> str | None:
    """Why what writes or reads by these edges does it otherwise than the graph says; None where it does not.

    Args:
        prefix: whether blocks may be run over recorded keys and values.
    """
    if reason := error_of_writers(experiment.runner, edges, chunk):
        return reason
    length = int(chunk.lengths[-1])
    start = min(max(int(chunk.first_change[-1]), 1), length - 1) if prefix else 0
    call = experiment.runner.begin(chunk.base, start, length)
    readers = Readers(experiment.runner, chunk, start, length, call, most_tokens)
    return error_of_readers(readers, edges.graph, sorted(edges.layers_run))


def error_of_writers(runner: Runner, edges: GraphPatches, chunk: Chunk) -> str | None:
    """Whether the residual stream is what is added to it in the layers whose outputs are passed on."""
    graph, at = edges.graph, chunk.base.activations
    for layer in sorted(edges.layers_written):
        before, after = (at[resid_name(index, graph.n_layers)] for index in (layer, layer + 1))
        outputs = [at[name] for name in _outputs_of(graph, layer)]
        if graph.heads[layer]:
            attn, z = runner.model.blocks[layer].attn, at[block_hook(layer, "z")]
            summed = with_bias(z.flatten(2) @ attn.W_O.flatten(0, 1), attn, "b_O")
            if reason := too_far(f"adding up the heads of layer {layer}", summed, outputs[0], "values"):
                return reason
        if too_far("", before + sum(outputs), after):
            return f"the residual stream behind layer {layer} is not that before it, plus what its heads and MLP give"
    return None


def _outputs_of(graph: Graph, layer: int) -> list[str]:
    """Hook points of what a layer adds to the residual stream."""
    parts = {"attn_out": graph.heads[layer] > 0, "mlp_out": graph.mlps[layer]}
    return [block_hook(layer, name) for name, is_there in parts.items() if is_there]
