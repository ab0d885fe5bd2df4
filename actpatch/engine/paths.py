"""Paths: what goes from a sender to a receiver by way of others, as changes of what the receiver reads.

- *A path* (`L3H0 → L5H5 k → L9H9 q`): what the sender changes in what the next component reads changes what this one
  gives; that change alone is what the one behind it reads, and so on. What the last one makes of it goes on as usual.
  A path of one step is its edge.
- *Path patching* (Wang et al. 2022, "Interpretability in the Wild", appendix B): one head sends, with all other heads
  held at what they gave in the run that is patched, and MLPs likewise or computed anew; what the receivers read then is
  what they read, all of them together, in a run in which everything else is computed as usual.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actpatch.core.edge_patches import EdgePatches, GraphPatches
from actpatch.core.graph import Reader, Writer
from actpatch.core.path_patches import HeadPaths, Path, PathPatches
from actpatch.core.sites import Site, block_hook
from actpatch.engine.edges import EdgeWork, Made, Sent, difference, hooks_that_write, sent_by, written_at, written_by
from actpatch.engine.entering import Rows, Work
from actpatch.engine.exactness import Exactness
from actpatch.engine.experiment import Chunk, Experiment
from actpatch.engine.plan import Batch, Stage
from actpatch.engine.readers import Readers
from actpatch.models.runner import Runner


def graph_work(
    experiment: Experiment,
    patches: GraphPatches,
    chunk: Chunk,
    exactness: Exactness,
    most_tokens: int,
    most_rows: int | None = None,
) -> Work:
    """The changes on these pairs that edges, paths or senders stand for.

    Args:
        most_tokens: most rows × positions that are run together.
        most_rows: most rows that are run together; None for as many as there are tokens for.
    """
    runner, graph = experiment.runner, patches.graph
    make = functools.partial(EdgeWork, runner, graph, chunk, most_tokens=most_tokens, linear=exactness.linear)
    if isinstance(patches, EdgePatches):
        sent, senders = sent_by(experiment, chunk, patches)
        return make(sent=sent, senders=senders, receivers=patches.readers)
    start = int(chunk.first_change.min()) if exactness.prefix else 0
    length = chunk.base.tokens.shape[1]
    if start >= length:  # nothing changes on any of these pairs
        start = 0
    call = runner.begin(chunk.base, start, length)
    readers = Readers(runner, chunk, start, length, call, most_tokens, most_rows)
    every = np.arange(len(patches))
    if isinstance(patches, PathPatches):
        sent = _sent(torch.stack([_along(experiment, chunk, patches, path, readers) for path in patches.paths]))
        ends = np.array([path.hops[-1].reader for path in patches.paths])
        return make(sent=sent, senders=every, receivers=ends)
    if not isinstance(patches, HeadPaths):
        raise TypeError(f"no work is known for {type(patches).__name__}")
    read = _read_by_receivers(experiment, chunk, patches, readers)
    if len(patches.receivers) == 1:
        return make(sent=read[0], senders=every, receivers=np.full(len(patches), patches.receivers[0]))
    return ReceiverWork(runner, patches, chunk, read, most_tokens)


def _sent(differences: Float[Tensor, "sender pair pos d_model"]) -> Sent:
    """Senders each with its own change, at all positions."""
    masks = torch.ones(1, *differences.shape[1:3], dtype=torch.bool, device=differences.device)
    return Sent(differences, masks, np.arange(len(differences)), np.zeros(len(differences), dtype=np.int64))


def _written(experiment: Experiment, chunk: Chunk, writer: Writer) -> Float[Tensor, "pair pos d_model"]:
    """What a writer changes, at the positions at which it is written."""
    (mask,) = written_at(experiment, chunk)
    change = difference(experiment, chunk, writer).to(experiment.runner.device_of(0))
    return change * mask[..., None].to(change.device)


def _along(
    experiment: Experiment, chunk: Chunk, patches: PathPatches, path: Path, readers: Readers
) -> Float[Tensor, "pair pos d_model"]:
    """What the last component of a path reads of what its sender changes."""
    graph, every = patches.graph, torch.arange(len(chunk.pairs), device=experiment.runner.index_device)
    change = _written(experiment, chunk, graph.writers[path.sender])
    for hop in path.hops[:-1]:
        assert hop.writer is not None
        writer, kind = graph.writers[hop.writer], graph.readers[hop.reader].kind
        read, before = change[:, readers.start :], readers.recorded(written_by(writer), every)
        if writer.head is None:
            moved = readers.output_of_mlp(writer.layer, every, read) - before
        else:
            z = readers.outputs_of_heads(writer.layer, kind, every, read) - before
            moved = z[:, :, writer.head] @ experiment.runner.model.blocks[writer.layer].attn.W_O[writer.head]
        change = torch.zeros_like(change)
        change[:, readers.start :] = moved.to(read.device) * _from_change_on(read)
    return change


def _from_change_on(read: Float[Tensor, "*row pos d_model"]) -> Bool[Tensor, "*row pos 1"]:
    """The positions from the first change of what is read on: elsewhere what is computed anew differs by rounding."""
    return read.ne(0).any(dim=-1, keepdim=True).int().cummax(dim=-2).values.bool()


def _read_by_receivers(experiment: Experiment, chunk: Chunk, patches: HeadPaths, readers: Readers) -> list[Sent]:
    """Of each receiver what each sender changes in what it reads: nothing, where the receiver comes before."""
    graph = patches.graph
    receivers = [graph.readers[number] for number in patches.receivers]
    changes = torch.stack([_written(experiment, chunk, graph.writers[number]) for number in patches.senders])
    at = {_layer_of(receiver): changes for receiver in receivers}
    if patches.through == "mlps":
        at = _through_mlps(chunk, patches, changes, readers, {*at})
    found = []
    for receiver, number in zip(receivers, patches.receivers):
        is_reached = torch.tensor(patches.senders, device=changes.device) < int(graph.n_writers_before[number])
        found.append(_sent(at[_layer_of(receiver)] * is_reached[:, None, None, None]))
    return found


def _layer_of(receiver: Reader) -> int:
    """The layer before which the stream is that a receiver reads; one more than the last for the logits."""
    return receiver.layer + (receiver.kind == "logits")


def _through_mlps(
    chunk: Chunk,
    patches: HeadPaths,
    changes: Float[Tensor, "sender pair pos d_model"],
    readers: Readers,
    layers: Collection[int],
) -> dict[int, Float[Tensor, "sender pair pos d_model"]]:
    """How senders change the stream before each of these layers, where heads are held and MLPs computed anew.

    In the sender's own layer that is what it writes itself, which an MLP behind it reads.
    """
    graph, now, found = patches.graph, changes.clone(), {}
    own = torch.tensor([graph.writers[number].layer for number in patches.senders], device=changes.device)
    every = torch.arange(len(chunk.pairs), device=readers.runner.index_device)
    for layer in range(max(layers) + 1):
        if layer in layers:
            found[layer] = now.clone()
        moving = (own < layer) if graph.is_parallel else (own <= layer)
        if layer == max(layers) or not graph.mlps[layer] or not moving.any():
            continue
        name, pairs = block_hook(layer, "mlp_out"), every.repeat(int(moving.sum()))
        reads = now[moving, :, readers.start :]
        moved = readers.output_of_mlp(layer, pairs, reads.flatten(0, 1)) - readers.recorded(name, pairs)
        now[moving, :, readers.start :] = reads + moved.view_as(reads).to(reads.device) * _from_change_on(reads)
    return found


class ReceiverWork(Work):
    """Changes of what several readers read together, on the pairs of a chunk.

    Args:
        runner: of the model.
        patches: senders and receivers.
        chunk: the recorded runs.
        read: of each receiver what each sender changes in what it reads.
        most_tokens: most rows × positions that are run together.
    """

    def __init__(
        self, runner: Runner, patches: HeadPaths, chunk: Chunk, read: Sequence[Sent], most_tokens: int
    ) -> None:
        self.runner, self.patches, self.chunk, self.read, self.most_tokens = runner, patches, chunk, read, most_tokens
        self.receivers = [patches.graph.readers[number] for number in patches.receivers]

    @property
    def starts(self) -> Int[Tensor, "sender pair"]:
        return torch.minimum(torch.stack([sent.first for sent in self.read]).amin(dim=0), self.chunk.lengths)

    @property
    def order(self) -> Int[np.ndarray, "sender 2"]:
        first = min(receiver.layer for receiver in self.receivers)
        return np.tile(np.array([[first, int(Stage.BLOCK)]]), (len(self.patches), 1))

    def rows(self, batch: Batch, call: Any) -> ReceiverRows:
        readers = Readers(self.runner, self.chunk, batch.start, batch.length, call, self.most_tokens)
        return ReceiverRows(self, batch, readers)


class ReceiverRows(Rows):
    """Rows in which several readers read something else: what each makes of it is written by hooks, all in one run."""

    def __init__(self, work: ReceiverWork, batch: Batch, readers: Readers) -> None:
        super().__init__(work.runner, batch, work.chunk)
        self.orders = [tuple(order) for order in work.order[batch.patches].tolist()]
        self._values: dict[str, list[Made]] = {}
        for receiver, sent in zip(work.receivers, work.read):
            change = sent.at(batch.patches, self.pairs, batch.start, batch.length)
            name = block_hook(receiver.layer, "mlp_out" if receiver.kind == "mlp" else receiver.kind)
            made = readers.read_by(receiver.layer, receiver.kind, self.pairs, change)
            heads = None if receiver.head is None else [receiver.head]
            self._values.setdefault(name, []).append((slice(None), heads, made if heads is None else made[:, :, heads]))
        self.hooked = [Site(name) for name in self._values]

    @contextlib.contextmanager
    def written(self) -> Iterator[None]:
        with self.runner.hooks(hooks_that_write(self.runner, self._values)):
            yield

    def before_block(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        return self.recorded_resid(layer, begin, end)

    def after_attention(self, layer: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("rows with several receivers enter before a block")
