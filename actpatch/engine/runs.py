"""One experiment while it runs: pairs recorded in chunks, patches run in batches, each on the shortest exact way.

Nothing here measures anything: it hands out logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.sites import Site, block_hook
from actpatch.core.warn import warn_user
from actpatch.engine.exactness import FULL_RUNS, Exactness, check_writing, error_of_adding, error_of_resuming
from actpatch.engine.experiment import Chunk, Experiment, resid_name
from actpatch.engine.full import run_in_full
from actpatch.engine.memory import is_out_of_memory, pairs_that_fit, tokens_that_fit
from actpatch.engine.plan import Batch, Route, plan, route
from actpatch.engine.recording import Recorder
from actpatch.engine.resume import Resumption
from actpatch.engine.starts import starts_of


class Runs:
    """An experiment, in one direction or in both of them.

    Args:
        experiments: the experiment, once per direction; all else is the same in each.
        batch_size: most rows run together; None adapts it to the free memory.
    """

    def __init__(self, experiments: Sequence[Experiment], batch_size: int | None) -> None:
        self.experiments = experiments
        self.experiment = experiments[0]
        self.runner, self.pairs, self.patches = (
            self.experiment.runner,
            self.experiment.pairs,
            self.experiment.patches,
        )
        self.batch_size = batch_size
        layers = [site.layer for patch in self.patches for site in patch.sites]
        resumed = bool(layers) and None not in layers  # without patches nothing is resumed
        self.exactness = Exactness() if resumed else FULL_RUNS
        self.max_tokens = tokens_that_fit(self.experiment)
        self._recorder = Recorder(experiments, self._pairs_at_once)
        self._routes: dict[bool, list[Route]] = {}

    @property
    def routes(self) -> list[Route]:
        """How each patch is run; empty where all are run in full."""
        if not self.exactness.resume:
            return []
        linear = self.exactness.linear
        if linear not in self._routes:
            self._routes[linear] = [route(patch, linear) for patch in self.patches]
        return self._routes[linear]

    def chunks(self) -> Iterator[tuple[Chunk, ...]]:
        """The pairs, recorded a few at a time, as seen in each direction.

        Those of like length, references and first change are recorded together.
        """
        lengths, first, references = self.pairs.lengths, self.experiment.first_change, self.experiment.references
        group = [0] * len(self.pairs) if references is None else references.of_pair
        order = sorted(range(len(self.pairs)), key=lambda i: (int(lengths[i]), group[i], int(first[i])))
        size, begin = self._pairs_at_once(), 0
        while begin < len(order):
            indices = torch.tensor(order[begin : begin + size])
            try:
                chunks = self._record(indices)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(indices) == 1:
                    raise
                size = len(indices) // 2
                continue
            yield self._checked(chunks) if begin == 0 else chunks
            begin += len(indices)

    def batches(self, experiment: Experiment, chunk: Chunk) -> Iterator[tuple[Batch, Float[Tensor, "row read token"]]]:
        """Each batch with its patched logits: of what the metric reads, positions and vocabulary entries."""
        routes = self.routes
        starts = starts_of(experiment, chunk)
        if not self.exactness.prefix:
            starts = torch.where(starts < chunk.lengths, 0, starts)
        order = [way.order for way in routes] or [(0, 0)] * len(self.patches)
        waiting = plan(order, starts, chunk.lengths, self.max_tokens, self.batch_size)[::-1]
        calls: dict[tuple[int, int], Any] = {}
        while waiting:
            batch = waiting.pop()
            try:
                yield batch, self._run(experiment, batch, chunk, routes, calls)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                self.max_tokens = batch.tokens // 2
                waiting = [part for b in [*waiting, batch] for part in reversed(b.parts(self.max_tokens))]

    def _run(
        self,
        experiment: Experiment,
        batch: Batch,
        chunk: Chunk,
        routes: Sequence[Route],
        calls: dict[tuple[int, int], Any],
    ) -> Float[Tensor, "row read token"]:
        if not routes:
            return run_in_full(experiment, batch, chunk)
        key = (batch.start, batch.length)
        if key not in calls:
            calls[key] = self.runner.begin(chunk.base, *key)
        logits = Resumption(experiment, batch, chunk, routes, narrow=self.exactness.narrow).run(calls[key])
        if experiment.reads_all and batch.start:
            before = chunk.base.logits[list(batch.pairs), : batch.start]
            logits = torch.cat([before, logits], dim=1)
        return logits

    def _record(self, pairs: Int[Tensor, " pair"]) -> tuple[Chunk, ...]:
        return self._recorder.record(pairs, *self._recorded_names())

    def _pairs_at_once(self) -> int:
        base, source = self._recorded_names()
        recorded = [len(base), len(source)] if len(self.experiments) == 1 else [len(base | source)] * 2
        return pairs_that_fit(self.experiment, recorded)

    def _recorded_names(self) -> tuple[set[str], set[str]]:
        """Hook points needed of the run that is patched, and of the run whose activations are copied."""
        n_layers, hook_points = self.runner.n_layers, set(self.runner.hook_points)
        source = {site.hook_point for patch in self.patches for site in patch.sites}
        routes = self.routes
        base = {resid_name(layer, n_layers) for layer in range(n_layers + 1)} if routes else set()
        for way in routes:
            base |= {site.hook_point for site in way.on_entry}
            for site in way.on_entry:
                if site.layer is not None and site.kind.is_added:
                    base |= {block_hook(site.layer, "attn_out"), block_hook(site.layer, "mlp_out")} & hook_points
        return base, source

    def _checked(self, chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        """Find the shortcuts that are exact for this model, from all of them to none; warn where none is.

        Returns the chunks, recorded again where fewer shortcuts need other activations.
        """
        reason = None
        embedding = [(Site("hook_embed"),)] if self.experiment.noise is not None else []
        while self.exactness.resume:
            if chunks[0].base.keys_values is None:
                self.exactness = replace(self.exactness, prefix=False)
            reason = next(filter(None, map(self._error, self.experiments, chunks)), None)
            if reason is None:
                break
            self.exactness = self.exactness.weakened()
            chunks = self._record(chunks[0].pairs)
        if reason is not None:
            warn_user(
                f"this model's blocks cannot be resumed exactly ({reason}), so every patch is a full run: the numbers "
                "are right, only slower"
            )
        hooked = [way.hooked for way in self.routes] or [patch.sites for patch in self.patches]
        check_writing(self.experiment, chunks[0], self.exactness, [*hooked, *embedding])
        return chunks

    def _error(self, experiment: Experiment, chunk: Chunk) -> str | None:
        """What is not exact with the present shortcuts on the run that is patched in this direction."""
        reason = error_of_adding(experiment, chunk.base, self.routes)
        return reason or error_of_resuming(experiment, chunk, self.exactness, self.routes)
