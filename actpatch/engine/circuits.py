"""Circuits: runs in which every reader reads some of its writers as they are in this very run, and others as written.

    input of v = stream + Σ (what is written of u - what u gives in this run),  over the edges u -> v that are left out

before its normalization, which is computed anew (Hanna et al. 2024; Bhaskar et al. 2024). Writers change as the run
goes on, so that a difference to what was *recorded* would be another number once two edges of a chain are left out.
With no edge left out a run is the one that is patched, with all of them the other one; both are checked.

Rows are run by the model's own full pass. What a head's queries, keys and values read is normalized for each head by
itself and goes through its own weights, which costs about what the layer's projection costs; no input is kept split.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.graph import Kind, Writer
from actpatch.core.sites import block_hook
from actpatch.engine.edges import INPUT, written_at, written_by
from actpatch.engine.exactness import too_far
from actpatch.engine.experiment import Chunk, Experiment
from actpatch.engine.plan import Batch
from actpatch.engine.readers import QUERIES_KEYS_VALUES
from actpatch.engine.writes import noise_hook
from actpatch.models.runner import Hook, Read

MOST_BYTES = 256 * 2**20
"""Most that what all writers change, and what a layer's readers read, takes in the rows that are run together."""


def circuit_batches(
    experiment: Experiment,
    patches: CircuitPatches,
    chunk: Chunk,
    most_tokens: int,
    most_rows: int | None,
    *,
    alone: bool,
    check: bool,
) -> Iterator[tuple[Batch, Float[Tensor, "row read token"]]]:
    """Each batch of circuits on pairs, with its logits.

    Args:
        most_tokens: most rows × positions that are run together.
        most_rows: most rows that are run together; None for as many as there are tokens for.
        alone: whether no logits are computed but those that are read.
        check: whether the runs whose result is known are run first.

    Raises:
        RuntimeError: where a run with no edge left out is not the one that is patched, or with all of them not the
            other run.
    """
    runs = CircuitRuns(experiment, patches, chunk, alone)
    if check:
        runs.check()
    n_pairs, length = len(chunk.pairs), chunk.base.tokens.shape[1]
    size = max(1, min(most_tokens // length, MOST_BYTES // runs.bytes_per_row))
    size = size if most_rows is None else min(size, most_rows)
    rows = np.arange(len(patches) * n_pairs)
    for begin in range(0, len(rows), size):
        some = rows[begin : begin + size]
        batch = Batch(some // n_pairs, some % n_pairs, 0, length)
        yield batch, runs.logits(patches, batch.patches, torch.from_numpy(batch.pairs))


class CircuitRuns:
    """Runs circuits on the pairs of a chunk.

    Args:
        experiment: what is run.
        patches: the circuits.
        chunk: the recorded runs.
        alone: whether no logits are computed but those that are read.
    """

    def __init__(self, experiment: Experiment, patches: CircuitPatches, chunk: Chunk, alone: bool) -> None:
        self.experiment, self.chunk, self.alone = experiment, chunk, alone
        self.runner, self.graph = experiment.runner, patches.graph
        self.patches = patches
        self.masks = written_at(experiment, chunk)[0]

    @property
    def bytes_per_row(self) -> int:
        """What is held of one row: of all writers what they change, and twice what the readers of a layer read."""
        cfg, most = self.runner.model.cfg, max(3 * heads + 1 for heads in self.graph.heads)
        width = self.chunk.base.tokens.shape[1] * cfg.d_model * next(self.runner.model.parameters()).element_size()
        return (len(self.graph.writers) + 3 * most) * width

    def check(self) -> None:
        """Raise a RuntimeError where the two runs whose result is known are not what they are."""
        of_copies = self.experiment.references is None and self.experiment.partners is None
        ends = CircuitPatches(self.graph, np.stack([self._none | True, self._none]), ("all", "none"))
        pair = torch.zeros(1, dtype=torch.long)
        for number, (run, what) in enumerate(((self.chunk.base, "every edge"), (self.chunk.other, "no edge"))):
            if run is self.chunk.other and not (of_copies and self._is_all_written(pair)):
                continue
            found = self.logits(ends, np.array([number]), pair)
            if reason := too_far(f"a circuit with {what}", found, run.logits[pair]):
                raise RuntimeError(f"circuits of this model cannot be run: {reason}")

    @property
    def _none(self) -> np.ndarray:
        return np.zeros(len(self.graph), dtype=bool)

    def _is_all_written(self, pair: Tensor) -> bool:
        """Whether both prompts end together, so that with no edge kept the run is the other one."""
        chunk = self.chunk
        return bool(((chunk.lengths == chunk.other_lengths) & (chunk.ends == chunk.lengths))[pair])

    def logits(
        self, patches: CircuitPatches, circuits: Int[np.ndarray, " row"], pairs: Int[Tensor, " row"]
    ) -> Float[Tensor, "row read token"]:
        """What is read of the logits of these circuits on these pairs."""
        run = _Run(self, patches, circuits, pairs)
        read = Read(
            None if self.chunk.reads is None else self.chunk.reads[pairs], self.experiment.vocabulary, self.alone
        )
        noise = self.chunk.base_noise
        tokens = self.chunk.base.tokens[pairs]
        with ExitStack() as stack:
            for layer, block in enumerate(self.runner.model.blocks):
                run.watch(stack, layer, block)
            hooks = [] if noise is None else [noise_hook(noise[pairs, : tokens.shape[1]])]
            stack.enter_context(self.runner.hooks([*hooks, *run.hooks()]))
            found = self.runner.run(tokens, read)
        run.check_complete()
        return found


class _Run:
    """One run of some rows: what writers have changed so far, and the hooks that let readers read it."""

    def __init__(
        self, runs: CircuitRuns, patches: CircuitPatches, circuits: Int[np.ndarray, " row"], pairs: Int[Tensor, " row"]
    ) -> None:
        self.runs, self.patches, self.circuits, self.pairs = runs, patches, circuits, pairs
        self.graph, self.runner, chunk = runs.graph, runs.runner, runs.chunk
        like = chunk.source[INPUT]
        shape = len(circuits), len(self.graph.writers), *like.shape[1:]
        self.changes = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.mask = runs.masks[pairs].to(like.device)[..., None]
        self.norms: dict[tuple[int, str], tuple[nn.Module, Tensor, Tensor]] = {}
        self.streams: dict[int, Tensor] = {}
        self.is_inside = False
        self.met: set[str] = set()
        self.numbers = {(writer.layer, writer.head): number for number, writer in enumerate(self.graph.writers)}
        self.readers: dict[tuple[int, Kind], list[int]] = {}
        for number, reader in enumerate(self.graph.readers):
            self.readers.setdefault((reader.layer, reader.kind), []).append(number)

    def watch(self, stack: ExitStack, layer: int, block: Any) -> None:
        """See what a block, its normalizations and its MLP are given, and give the MLP what it reads."""

        def enter(module: nn.Module, args: Any) -> None:
            self.streams[layer] = args[0]

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                if not self.is_inside:
                    self.norms.setdefault((layer, name), (module, args[0], output))

            return hook

        def read(module: nn.Module, args: Any) -> Any:
            return (self._read_by_mlp(layer, args[0]), *args[1:])

        stack.callback(block.register_forward_pre_hook(enter).remove)
        for name, module in block.named_children():
            if name.startswith("ln"):
                stack.callback(module.register_forward_hook(note(name)).remove)
        if self.graph.mlps[layer] and (mlp := getattr(block, "mlp", None)) is not None:
            stack.callback(mlp.register_forward_pre_hook(read).remove)

    def hooks(self) -> list[Hook]:
        """Hooks that note what writers give, and let queries, keys, values and the logits read it."""
        hooks: list[Hook] = [(INPUT, self._noting([self.graph.writers[0]]))]
        for layer in range(self.graph.n_layers):
            if self.graph.heads[layer]:
                hooks += [(block_hook(layer, kind), self._reading(layer, kind)) for kind in QUERIES_KEYS_VALUES]
                of_layer = [Writer("head", layer, head) for head in range(self.graph.heads[layer])]
                hooks.append((block_hook(layer, "z"), self._noting(of_layer)))
            if self.graph.mlps[layer]:
                hooks.append((block_hook(layer, "mlp_out"), self._noting([Writer("mlp", layer)])))
        return [*hooks, (block_hook(self.graph.n_layers - 1, "resid_post"), self._reading_logits)]

    def check_complete(self) -> None:
        """Raise a RuntimeError where a reader was not met, which would then have read what no circuit says."""
        expected = {f"{kind} of layer {layer}" for layer, kind in self.readers}
        if missing := sorted(expected - self.met):
            raise RuntimeError(f"circuits of this model cannot be run: it does not show what the {missing[0]} reads")

    def _noting(self, writers: list[Writer]) -> Any:
        """A hook that notes how far what is written of these writers is from what they give."""

        def note(value: Tensor, hook: Any) -> None:
            source = self.runs.chunk.source[written_by(writers[0])][self.pairs]
            change = (source - value) * (self.mask if value.ndim == 3 else self.mask[..., None])
            for writer in writers:
                of_writer = change
                if writer.head is not None:
                    weight = self.runner.model.blocks[writer.layer].attn.W_O[writer.head]
                    of_writer = change[:, :, writer.head] @ weight
                self.changes[:, self.numbers[writer.layer, writer.head]] = of_writer

        return note

    def _left_out(self, layer: int, kind: Kind) -> Float[Tensor, "row reader pos d_model"] | None:
        """What is added to what these readers read; None where no edge into them is left out."""
        self.met.add(f"{kind} of layer {layer}")
        off = self.patches.left_out(self.circuits, self.readers[layer, kind])
        if not off.any():
            return None
        weights = torch.from_numpy(off).to(self.changes)
        found = torch.bmm(weights, self.changes[:, : off.shape[2]].flatten(2))
        return found.unflatten(2, self.changes.shape[2:])

    def _reading(self, layer: int, kind: Kind) -> Any:
        """A hook by which queries, keys or values are those of what their heads read."""

        def read(value: Tensor, hook: Any) -> Tensor | None:
            added = self._left_out(layer, kind)
            if added is None:
                return None
            stream = self.streams[layer]
            module, gave = self._norm(layer, "ln1", stream)
            each = self._normalized(module, stream[:, None] + added)
            weight = getattr(self.runner.model.blocks[layer].attn, f"W_{kind.upper()}")
            weight = weight[:: len(weight) // value.shape[2]]
            made = torch.einsum("bpm,hmd->bphd", gave, weight)
            self._check_weights(layer, kind, value, made)
            return value + (torch.einsum("bhpm,hmd->bphd", each, weight) - made)

        return read

    def _check_weights(self, layer: int, kind: Kind, value: Tensor, made: Tensor) -> None:
        """Raise a RuntimeError where queries, keys or values are not what their weights make of what is normalized."""
        if too_far("", value[0] - value[0, :1], made[0] - made[0, :1]):
            raise RuntimeError(
                f"circuits of this model cannot be run: {kind} of layer {layer} are not what their weights make of the "
                "normalized stream"
            )

    def _read_by_mlp(self, layer: int, given: Tensor) -> Tensor:
        added = self._left_out(layer, "mlp")
        if added is None:
            return given
        for (at, _), (module, stream, gave) in reversed(self.norms.items()):
            if at == layer and gave.shape == given.shape and torch.equal(gave, given):
                return self._normalized(module, stream[:, None] + added)[:, 0]
        raise RuntimeError(f"circuits of this model cannot be run: the MLP of layer {layer} reads what no norm gave")

    def _reading_logits(self, value: Tensor, hook: Any) -> Tensor | None:
        added = self._left_out(self.graph.n_layers - 1, "logits")
        return None if added is None else value + added[:, 0]

    def _norm(self, layer: int, name: str, stream: Tensor) -> tuple[nn.Module, Tensor]:
        """A normalization of a layer and what it gave; where there is none, what came into the block."""
        module, _, gave = self.norms.get((layer, name), (nn.Identity(), stream, stream))
        return module, gave

    def _normalized(
        self, module: nn.Module, streams: Float[Tensor, "row reader pos d_model"]
    ) -> Float[Tensor, "row reader pos d_model"]:
        self.is_inside = True
        try:
            return module(streams.flatten(0, 1)).view_as(streams)
        finally:
            self.is_inside = False
