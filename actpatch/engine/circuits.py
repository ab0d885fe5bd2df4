"""Circuits: runs in which every reader reads some of its writers as they are in this very run, and others as written.

Writers change as the run goes on, so that a difference to what was *recorded* would be another number once two edges of
a chain are left out (Hanna et al. 2024; Bhaskar et al. 2024). With no edge left out a run is the one that is patched,
with all of them the other one; both are checked.

Nothing is run that circuits do not change: of a run that is held (the one that is patched, or a circuit's) those parts
are taken whose readers read the same, by whatever way, and those that lead to the logits by no edge. So a batch begins
at the lowest layer that is changed, over the frozen prefix of keys and values before the first position that differs.
Where blocks cannot be run singly, rows are run by the model's own full pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.circuit_reach import changing_writers, leading_writers, reader_groups
from actpatch.core.sites import block_hook
from actpatch.engine.circuit_rows import CircuitRows, Held, Shared
from actpatch.engine.edges import difference, written_at
from actpatch.engine.exactness import Exactness, too_far
from actpatch.engine.experiment import Chunk, Experiment, resid_name
from actpatch.engine.partners import written_positions
from actpatch.engine.plan import Batch
from actpatch.engine.writes import noise_hook
from actpatch.models.runner import KeysValues, Read, is_out_of_memory

MOST_BYTES = 256 * 2**20
"""Most that what all writers change, and what a layer's readers read, takes in the rows that are run together."""


class CircuitRuns:
    """Runs circuits on the pairs of a chunk.

    Args:
        experiment: what is run; its patches are circuits, whose places are those of all circuits that are run.
        chunk: the recorded runs.
        exactness: the shortcuts that hold.
    """

    def __init__(self, experiment: Experiment, chunk: Chunk, exactness: Exactness) -> None:
        assert isinstance(experiment.patches, CircuitPatches)
        self.patches = experiment.patches
        self.experiment, self.chunk, self.exactness = experiment, chunk, exactness
        self.runner, self.graph = experiment.runner, self.patches.graph
        self.resumes = exactness.resume
        start = self._start()
        everywhere = [[written_positions(None, experiment.partners)]]  # where a position has a partner to write from
        anywhere = written_at(replace(experiment, positions=everywhere), chunk)[0].to(self.runner.device_of(0))
        places = written_at(experiment, chunk).to(self.runner.device_of(0))
        self.shared = Shared(self.runner, self.graph, chunk, start, anywhere[:, start:], places[:, :, start:], {})
        self.covers_all = bool((places.any(dim=0) == anywhere).all())
        """Whether each position at which anything is written is one of the places."""
        self.base = self._base()
        self.held = self.base
        self._call: Any = None

    def _start(self) -> int:
        """The first position that is computed: that of the first change or the first that is read."""
        if not (self.resumes and self.exactness.prefix) or self.chunk.base.keys_values is None:
            return 0
        first = int(self.chunk.first_change.min())
        last = int(self.chunk.lengths.min()) - 1 if self.chunk.reads is None else int(self.chunk.reads.min())
        return min(first, last)

    def _base(self) -> Held:
        """The run that is patched, with all edges."""
        start, base = self.shared.start, self.chunk.base.activations
        stream = base[resid_name(0, self.graph.n_layers)][:, start:]
        changes = stream.new_empty(*stream.shape[:2], len(self.graph.writers), stream.shape[2])
        for number, writer in enumerate(self.graph.writers):
            changes[:, :, number] = difference(self.experiment, self.chunk, writer)[:, start:]
        changes *= self.shared.is_written[..., None, None]
        return Held(None, base, changes)

    def batches(
        self, patches: CircuitPatches, most_tokens: int, most_rows: int | None
    ) -> Iterator[tuple[Batch, Float[Tensor, "row read token"]]]:
        """Each batch of circuits on pairs, with its logits.

        Args:
            most_tokens: most rows × positions that are run together.
            most_rows: most rows that are run together; None for as many as there are tokens for.
        """
        n_pairs, length = len(self.chunk.pairs), self.shared.length
        width = length - self.shared.start
        size = max(1, min(most_tokens // width, MOST_BYTES // self._bytes_per_row(self._run(patches.kept))))
        size = size if most_rows is None else min(size, most_rows)
        rows = np.arange(len(patches) * n_pairs)
        for begin in range(0, len(rows), size):
            some = rows[begin : begin + size]
            batch = Batch(some // n_pairs, some % n_pairs, self.shared.start, length)
            yield batch, self.logits(patches, batch.patches, torch.from_numpy(batch.pairs))

    def _bytes_per_row(self, run: Bool[np.ndarray, " writer"]) -> int:
        """What is held of one row: what the writers that are run change, and thrice what the readers of a kind read."""
        most = max(int(run[group.moved].sum()) for group in reader_groups(self.graph))
        of_one = self.held.changes[0, :, 0]
        n = len(run) if self.patches.tells_positions_apart else int(run.sum())
        return (1 + n + 3 * most) * of_one.numel() * of_one.element_size()

    def logits(
        self, patches: CircuitPatches, circuits: Int[np.ndarray, " row"], pairs: Int[Tensor, " row"]
    ) -> Float[Tensor, "row read token"]:
        """What is read of the logits of these circuits on these pairs."""
        return self._logits(self._rows(patches, circuits, pairs))

    def hold(self, kept: Bool[np.ndarray, "place edge"]) -> None:
        """Run a circuit on each pair and let its parts stand for what circuits like it do not change."""
        if not self.resumes or (self.held.kept is not None and np.array_equal(self.held.kept, kept)):
            return
        n_pairs = len(self.chunk.pairs)
        patches = replace(self.patches, kept=kept[None], names=("held",))
        rows = self._rows(patches, np.zeros(n_pairs, dtype=np.int64), torch.arange(n_pairs), notes_all=True)
        streams: dict[int, Tensor] = {}
        names = {
            block_hook(layer, name)
            for layer in range(self.graph.n_layers)
            for kind, of_kind in (("q", ("z", "attn_out")), ("mlp", ("mlp_out",)))
            for name in of_kind
            if rows.runs_part(layer, kind)  # type: ignore[arg-type]
        }
        seen: dict[str, Tensor] = {}
        self._last_stream(rows, streams, self.runner.recording_hooks(names, seen))
        seen |= {resid_name(layer, self.graph.n_layers): stream for layer, stream in streams.items()}
        activations = dict(self.held.activations)
        for name, value in seen.items():
            before = activations[name][:, : self.shared.start]
            activations[name] = torch.cat([before, value.to(before.device)], dim=1)
        changes = self.held.changes.clone()
        changes[:, :, torch.from_numpy(rows.noted).to(changes.device)] = rows.changes
        self.held = Held(kept, activations, changes)

    def check(self) -> str | None:
        """Why the runs whose result is known are not what they are; None where they are.

        Raises:
            RuntimeError: in full passes, where the model does not show what its readers read.
        """
        if not self.resumes:
            return self._error()
        try:
            return self._error()
        except Exception as failure:  # whatever an unknown architecture does when its blocks are called singly
            if is_out_of_memory(failure):
                raise
            return f"{type(failure).__name__}: {failure}"

    def _error(self) -> str | None:
        graph, chunk = self.graph, self.chunk
        heads = np.array([writer.kind == "head" for writer in graph.writers])
        others = np.array([writer.kind == "mlp" for writer in graph.writers])
        every, ways = heads | others, {"every edge": heads | others}
        if self.resumes:
            ways |= {
                "every edge, heads alone being run": heads,
                "every edge, MLPs alone being run": others,
            }
            if not self.runner.blocks_are_called_alike(chunk.base, self.shared.start, self.shared.length):
                return "its blocks are called with something else for each prompt"
        pairs = torch.tensor(sorted({0, len(chunk.pairs) - 1}))
        for what, run in ways.items():
            if reason := self._known(what, True, pairs, run, chunk.base.logits):
                return reason
        of_copies = self.experiment.references is None and self.experiment.partners is None
        same = (chunk.lengths == chunk.other_lengths) & (chunk.ends == chunk.lengths)
        if of_copies and len(pairs := pairs[same[pairs]]):
            return self._known("no edge", False, pairs, every, chunk.other.logits)
        return None

    def _known(self, what: str, kept: bool, pairs: Tensor, run: np.ndarray, expected: Tensor) -> str | None:
        """How far a run whose result is known is from it, with these writers run."""
        n_places = len(self.patches.places)
        if kept and not self.covers_all:  # no circuit at these places has every edge
            return None
        table = np.full((1, n_places, len(self.graph)), kept)
        patches = replace(self.patches, kept=table, names=(what,))
        circuits = np.zeros(len(pairs), dtype=np.int64)
        found = self._logits(CircuitRows(self.shared, patches, circuits, pairs, self.base, run, run))
        for row, pair in enumerate(pairs.tolist()):
            end = int(self.chunk.lengths[pair]) if self.experiment.reads_all else None
            if reason := too_far(f"a circuit with {what}", found[row, :end], expected[pair, :end]):
                return reason
        return None

    def _rows(
        self, patches: CircuitPatches, circuits: Int[np.ndarray, " row"], pairs: Tensor, *, notes_all: bool = False
    ) -> CircuitRows:
        run = self._run(distinct := patches.kept[np.unique(circuits)])
        read = run if self.resumes else leading_writers(self.graph, distinct.any(axis=(0, 1)))
        return CircuitRows(self.shared, patches, circuits, pairs, self.held, run, read, notes_all=notes_all)

    def _run(self, kept: Bool[np.ndarray, "circuit place edge"]) -> Bool[np.ndarray, " writer"]:
        """The writers that have to be run for these circuits."""
        if not self.resumes:
            return np.arange(len(self.graph.writers)) > 0
        if self.held.kept is None:
            changed = ~np.all(kept, axis=(0, 1)) | (not self.covers_all)
        else:
            changed = np.any(kept != self.held.kept, axis=(0, 1))
        return changing_writers(self.graph, np.any(kept, axis=(0, 1)), changed)

    def _logits(self, rows: CircuitRows) -> Float[Tensor, "row read token"]:
        if not self.resumes:
            found = self._in_full(rows)
            rows.check_complete()
            return found
        resid = self._last_stream(rows)
        reads, start = self.chunk.reads, self.shared.start
        at = None if reads is None else reads[rows.pairs.cpu()].to(resid.device) - start
        resid = rows.read_by_logits(resid, at)
        rows.check_complete()
        if self.exactness.logits:
            logits = self.runner.unembed(resid, self.experiment.vocabulary)
        else:
            logits = Read(None, self.experiment.vocabulary).taken(self.runner.unembed(resid, None))
        if self.experiment.reads_all and start:
            logits = torch.cat([self.chunk.base.logits[rows.pairs.to(logits.device), :start], logits], dim=1)
        return logits

    def _last_stream(
        self, rows: CircuitRows, streams: dict[int, Tensor] | None = None, hooks: Any = ()
    ) -> Float[Tensor, "row pos d_model"]:
        """The stream behind the last layer, with blocks run singly from the lowest of which a part is run."""
        n_layers = self.graph.n_layers
        parts = [(layer, kind) for layer in range(n_layers) for kind in ("q", "mlp") if rows.runs_part(layer, kind)]  # type: ignore[arg-type]
        first = parts[0][0] if parts else n_layers
        resid = rows.recorded(resid_name(first, n_layers))
        if self._call is None and parts:
            self._call = self.runner.begin(self.chunk.base, self.shared.start, self.shared.length)
        run = [layer for layer in range(first, n_layers) if {(layer, "q"), (layer, "mlp")} & {*parts}]
        with ExitStack() as stack:
            own = rows.prepare(stack, run, has_both=False)
            stack.enter_context(self.runner.hooks([*own, *hooks]))
            for layer in range(first, n_layers):
                if layer in run:
                    resid = self.runner.run_block(layer, resid, self._prefix(layer, rows), self._call)
                else:
                    resid = rows.stream_after(layer, resid)
                if streams is not None:
                    streams[layer + 1] = resid
        return resid

    def _prefix(self, layer: int, rows: CircuitRows) -> KeysValues | None:
        """Keys and values of the positions before; of one pair alone without a copy for each row."""
        if len(rows.distinct_pairs) > 1:
            return self.runner.prefix(self.chunk.base, layer, rows.pairs, self.shared.start)
        of_pair = self.runner.prefix(self.chunk.base, layer, rows.pairs[:1], self.shared.start)
        if of_pair is None:
            return None
        keys, values = (value.expand(len(rows.pairs), *value.shape[1:]) for value in of_pair)
        return keys, values

    def _in_full(self, rows: CircuitRows) -> Float[Tensor, "row read token"]:
        """The same by the model's own full pass."""
        chunk, pairs = self.chunk, rows.pairs.cpu()
        read = Read(
            None if chunk.reads is None else chunk.reads[pairs], self.experiment.vocabulary, self.exactness.logits
        )

        def reading_logits(value: Tensor, hook: Any) -> Tensor:
            return rows.read_by_logits(value)

        with ExitStack() as stack:
            if chunk.base_noise is not None:
                stack.enter_context(self.runner.hooks([noise_hook(chunk.base_noise[pairs, : self.shared.length])]))
            hooks = rows.prepare(stack, range(self.graph.n_layers), has_both=True)
            last = block_hook(self.graph.n_layers - 1, "resid_post")
            stack.enter_context(self.runner.hooks([*hooks, (last, reading_logits)]))
            return self.runner.run(chunk.base.tokens[pairs], read)
