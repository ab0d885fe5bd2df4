"""Run the patches: record both runs once, then resume the patched run from wherever a patch first changes it.

This is the one loop over forward passes. Every kind of patching says *what* to change (`Patch`) and gets numbers back.
What is saved is saved exactly:

1. patches and pairs are batched, and a batch is carried up through the layers once, rows joining where they enter;
2. below a patch's layer, and before the first token that it can change, the recorded run is used (the positions before
   as a frozen prefix of keys and values);
3. a change of what is added to the residual stream (z, attn_out, resid_mid, mlp_out) is added to the recorded stream,
   so what produced it need not be run;
4. in the last layer and in the unembedding only what the metric reads is computed;
5. a patch that changes nothing is not run.

Before a sweep the engine checks itself: resuming with no change, at every layer, must reproduce the recorded logits.
Where it does not, it falls back to full runs and says so.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from model_runners import Hook, Recording, Runner, at_positions, make_runner, reading, replaced_forward
from patching_metrics import Metric
from patching_plan import Batch, Route, Stage, plan, route
from patching_results import DIRECTIONS, Direction
from patching_sites import (
    KEY_VALUE_COMPONENTS,
    Patch,
    Site,
    block_hook,
    check_index,
    expand_hook_points,
    head_axis,
    position_axis,
)
from patching_tasks import EncodedPairs

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768, "mps": 8192}
"""Most rows × positions in one batch: on a CPU, activations beyond this leave the caches and nothing is gained."""
MEMORY_SHARE = 0.25
"""Share of the free memory that recordings, and separately one batch, may take."""
MOST_RECORDED_BYTES = 512 * 2**20
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest error of a resumed run, relative to the largest logit, that the self-check accepts."""


@dataclass(frozen=True)
class Baselines:
    """What a sweep measured."""

    patched: Float[np.ndarray, "patch pair"]
    clean: Float[np.ndarray, " pair"]
    corrupted: Float[np.ndarray, " pair"]


@dataclass(frozen=True)
class _Exactness:
    """Which shortcuts reproduce this model's recorded runs."""

    resume: bool = True
    """Running the blocks singly, from a recorded residual stream."""
    prefix: bool = True
    """Running them over recorded keys and values."""
    linear: bool = True
    """Adding a change to the recorded residual stream."""

    def weakened(self) -> _Exactness:
        """The next set of shortcuts to try."""
        if self.linear:
            return replace(self, linear=False)
        return replace(self, prefix=False) if self.prefix else _FULL_RUNS


_FULL_RUNS = _Exactness(resume=False, prefix=False, linear=False)
_ADDED = ("z", "attn.hook_result", "attn_out", "resid_mid", "mlp_out")
"""Components whose change is added to the recorded residual stream, which is checked against the layer's attn_out."""


@dataclass(frozen=True)
class _Chunk:
    """Some pairs, recorded: the run that is patched and the run whose activations are copied."""

    pairs: Int[Tensor, " pair"]
    """Index of each pair within the experiment."""
    lengths: Int[Tensor, " pair"]
    first_difference: Int[Tensor, " pair"]
    base: Recording
    source: Recording


class PatchingEngine:
    """Runs patches on one model.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        batch_size: most rows (a row is one patch on one pair) run together; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None, show_progress: bool = True) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1, or None to adapt it to the memory")
        self.runner: Runner = make_runner(model)
        self.batch_size = batch_size
        self.show_progress = show_progress

    @property
    def n_layers(self) -> int:
        return self.runner.n_layers

    @property
    def n_heads(self) -> int:
        return self.runner.model.cfg.n_heads

    @property
    def n_key_value_heads(self) -> int:
        """Length of the head axis of `hook_k` and `hook_v`."""
        cfg = self.runner.model.cfg
        if getattr(cfg, "ungroup_grouped_query_attention", False):
            return cfg.n_heads
        return getattr(cfg, "n_key_value_heads", None) or cfg.n_heads

    def hook_points(self, asked: str | Sequence[str]) -> list[str]:
        """Full names of the hook points asked for (`expand_hook_points`)."""
        return expand_hook_points(asked, self.runner.hook_points, self.n_layers)

    def record(self, tokens: Int[Tensor, "pair pos"], hook_points: Sequence[str]) -> Recording:
        """One run, with the activations at these hook points and the logits at all positions."""
        with self.runner.as_found(hook_points):
            return self.runner.record(tokens.to(self.runner.device), hook_points, read=None)

    def sweep(
        self, pairs: EncodedPairs, patches: Sequence[Patch], metric: Metric, direction: Direction = "denoising"
    ) -> Baselines:
        """The metric of every patch on every pair, and of the clean and the corrupted runs.

        Raises:
            ValueError: before any run, for an unknown direction or hook point and for a head or position out of range.
            RuntimeError: where a hook that should have written a patch did not fire.
        """
        patched = np.full((len(patches), len(pairs)), np.nan)
        clean, corrupted = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
        reads_all = metric.reads_all_positions
        base_metric, source_metric = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
        with (
            self.running(pairs, patches, direction, reads_all) as runs,
            tqdm(total=patched.size, unit="run", desc="Patching", disable=not self.show_progress) as progress,
        ):
            for chunk in runs.chunks():
                indices = chunk.pairs.numpy()
                for run, into in ((chunk.base, base_metric), (chunk.source, source_metric)):
                    logits = run.logits if metric.tokens is None else run.logits[..., metric.tokens]
                    into[indices] = _measure(metric, logits, chunk.lengths, chunk.pairs)
                patched[:, indices] = base_metric[indices]
                done = 0
                for batch, logits in runs.resumed(chunk, metric.tokens):
                    rows = torch.tensor(batch.pairs)
                    values = _measure(metric, logits, chunk.lengths[rows], chunk.pairs[rows])
                    patched[list(batch.patches), indices[list(batch.pairs)]] = values
                    done += len(batch)
                    progress.update(len(batch))
                progress.update(len(patches) * len(indices) - done)
        return Baselines(patched, clean, corrupted)

    def patched_logits(
        self, pairs: EncodedPairs, patch: Patch, direction: Direction = "denoising"
    ) -> list[Float[Tensor, "pos d_vocab"]]:
        """Logits at all positions of one patched run per pair."""
        found: dict[int, Tensor] = {}
        with self.running(pairs, [patch], direction, reads_all=True) as runs:
            for chunk in runs.chunks():
                for i, pair in enumerate(chunk.pairs.tolist()):
                    found[pair] = chunk.base.logits[i, : chunk.lengths[i]]
                for batch, logits in runs.resumed(chunk, None):
                    for i, row in zip(batch.pairs, logits):
                        found[int(chunk.pairs[i])] = row[: chunk.lengths[i]]
        return [found[pair] for pair in range(len(pairs))]

    @contextlib.contextmanager
    def running(
        self, pairs: EncodedPairs, patches: Sequence[Patch], direction: Direction, reads_all: bool
    ) -> Iterator[_Runs]:
        """The experiment, checked, with the model made ready and put back afterwards."""
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is unknown: expected one of {', '.join(DIRECTIONS)}")
        if not patches:
            raise ValueError("there is nothing to patch: give at least one site")
        positions = [[self._checked_positions(site, pairs.lengths) for site in patch.sites] for patch in patches]
        names = {site.hook_point for patch in patches for site in patch.sites}
        with self.runner.as_found(names):
            yield _Runs(self, pairs, patches, positions, direction, reads_all)

    def _checked_positions(self, site: Site, lengths: Int[Tensor, " pair"]) -> Int[Tensor, " pair"] | None:
        """The site's position in each pair; also checks its hook point and head."""
        expand_hook_points([site.hook_point], self.runner.hook_points, self.n_layers)
        if site.head is not None:
            if head_axis(site.hook_point) is None:
                raise ValueError(f"{site.hook_point} has no head axis, so head {site.head} cannot be patched there")
            is_key_value = site.component in KEY_VALUE_COMPONENTS
            size = self.n_key_value_heads if is_key_value else self.n_heads
            if not 0 <= site.head < size:
                kind = "key-value head" if is_key_value and size != self.n_heads else "head"
                raise ValueError(f"{kind} {site.head} is out of range: expected 0 to {size - 1}")
        if site.position is None:
            return None
        per_pair = site.position if isinstance(site.position, tuple) else (site.position,) * len(lengths)
        if len(per_pair) != len(lengths):
            raise ValueError(f"{len(per_pair)} positions were given for {len(lengths)} pairs: give one per pair")
        return torch.tensor(
            [check_index(p, n, f"position (in a prompt of {n} tokens)") for p, n in zip(per_pair, lengths.tolist())]
        )


class _Runs:
    """One experiment while it runs: records chunks of pairs and resumes their patched runs."""

    def __init__(
        self,
        engine: PatchingEngine,
        pairs: EncodedPairs,
        patches: Sequence[Patch],
        positions: list[list[Int[Tensor, " pair"] | None]],
        direction: Direction,
        reads_all: bool,
    ) -> None:
        self.runner = engine.runner
        self.batch_size = engine.batch_size
        self.pairs, self.patches, self.positions = pairs, patches, positions
        self.direction, self.reads_all = direction, reads_all
        self.max_tokens = self._tokens_that_fit()
        inside = all(site.layer is not None for patch in patches for site in patch.sites)
        self.exactness = _Exactness() if inside else _FULL_RUNS
        self.routes = self._routes()

    # --- recording -----------------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[_Chunk]:
        """The pairs, recorded a few at a time; those of like length and like first difference together."""
        lengths, first = self.pairs.lengths, self.pairs.first_difference
        order = sorted(range(len(self.pairs)), key=lambda i: (int(lengths[i]), int(first[i])))
        size = self._pairs_that_fit()
        for i in range(0, len(order), size):
            chunk = self._record(torch.tensor(order[i : i + size]))
            if i == 0:
                chunk = self._checked(chunk)
                self._check_writing(chunk)
            yield chunk

    def _record(self, pairs: Int[Tensor, " pair"]) -> _Chunk:
        base_names, source_names = self._recorded_names()
        lengths = self.pairs.lengths[pairs]
        read = None if self.reads_all else lengths - 1
        clean, corrupted = (_padded([run[i] for i in pairs]) for run in (self.pairs.clean, self.pairs.corrupted))
        base, source = (corrupted, clean) if self.direction == "denoising" else (clean, corrupted)
        device = self.runner.device
        chunk = _Chunk(
            pairs,
            lengths,
            self.pairs.first_difference[pairs],
            self.runner.record(base.to(device), base_names, read),
            self.runner.record(source.to(device), source_names, read),
        )
        for name in source_names:
            self._check_shape(name, chunk.source.activations.get(name), base.shape)
        return chunk

    def _recorded_names(self) -> tuple[set[str], set[str]]:
        """Hook points needed of the run that is patched, and of the run whose activations are copied."""
        source = {_source_name(site, self.runner.n_layers) for patch in self.patches for site in patch.sites}
        if not self.exactness.resume:
            return set(), source
        base = {block_hook(layer, "resid_pre") for layer in range(self.runner.n_layers)}
        base.add(block_hook(self.runner.n_layers - 1, "resid_post"))
        for taken in self.routes:
            base |= {site.hook_point for site in taken.on_entry}
            base |= {block_hook(site.layer, "attn_out") for site in taken.on_entry if site.component in _ADDED}
        return base, source

    def _check_shape(self, name: str, value: Tensor | None, tokens: torch.Size) -> None:
        if value is None:
            raise RuntimeError(f"the hook point {name} did not fire in a run of this model: it cannot be patched")
        axis = position_axis(name)
        if value.ndim <= axis or value.shape[0] != tokens[0] or value.shape[axis] != tokens[1]:
            raise ValueError(
                f"{name} holds a tensor of shape {tuple(value.shape)} for {tokens[0]} prompts of {tokens[1]} tokens: "
                "only activations with a prompt and a position axis can be patched"
            )

    # --- resuming ------------------------------------------------------------------------------------------------

    def resumed(
        self, chunk: _Chunk, tokens: Int[Tensor, " token"] | None
    ) -> Iterator[tuple[Batch, Float[Tensor, "row read token"]]]:
        """Each batch with its patched logits, of `tokens` alone where these are given.

        `read` is the last position alone, or all positions where the metric wants them.
        """
        starts = self._starts(chunk)
        if not self.exactness.prefix:
            starts = torch.where(starts < chunk.lengths, 0, starts)
        order = [taken.order for taken in self.routes] if self.exactness.resume else [(0, 0)] * len(self.patches)
        waiting = plan(order, starts, chunk.lengths, self.max_tokens)[::-1]
        if self.batch_size is not None:
            waiting = [part for batch in waiting for part in _split(batch, self.batch_size)]
        calls: dict[tuple[int, int], Any] = {}
        while waiting:
            batch = waiting.pop()
            try:
                logits = self._run_batch(batch, chunk, calls, tokens)
            except RuntimeError as error:
                if not _is_out_of_memory(error) or len(batch) == 1:
                    raise
                self.max_tokens = max(1, self.max_tokens // 2)
                waiting += reversed(batch.halves())
                continue
            yield batch, logits

    def _run_batch(
        self, batch: Batch, chunk: _Chunk, calls: dict[tuple[int, int], Any], tokens: Int[Tensor, " token"] | None
    ) -> Float[Tensor, "row read token"]:
        if not self.exactness.resume:
            logits = self._run_full(batch, chunk)
            return logits if tokens is None else logits[..., tokens]
        key = (batch.start, batch.length)
        if key not in calls:
            calls[key] = self.runner.begin(chunk.base, batch.start, batch.length)
        logits = _Resumption(self, batch, chunk, self.routes).run(calls[key], tokens)
        if self.reads_all and batch.start:
            before = chunk.base.logits[list(batch.pairs), : batch.start]
            logits = torch.cat([before, logits], dim=1)
        return logits

    def _run_full(self, batch: Batch, chunk: _Chunk) -> Float[Tensor, "row read d_vocab"]:
        rows = torch.tensor(batch.pairs)
        batch = replace(batch, start=0)
        writes = _writes(batch, [patch.sites for patch in self.patches])
        hooks, fired = _write_hooks(self, batch, chunk, writes)
        read = None if self.reads_all else chunk.lengths[rows] - 1
        with self.runner.hooks(hooks):
            logits = self.runner.run(chunk.base.tokens[rows, : batch.length], read)
        _check_fired(writes, fired)
        return logits

    def _starts(self, chunk: _Chunk) -> Int[Tensor, "patch pair"]:
        """First position that each patch changes; a pair's length where it changes nothing.

        Both runs agree before their first differing token, so nothing before it can change.
        """
        first, lengths = chunk.first_difference, chunk.lengths
        starts = torch.empty(len(self.patches), len(lengths), dtype=torch.long)
        differences: dict[str, Tensor | None] = {}
        for i, (patch, positions) in enumerate(zip(self.patches, self.positions)):
            changes = []
            for site, at in zip(patch.sites, positions):
                name = _source_name(site, self.runner.n_layers)
                if name not in differences:
                    differences[name] = _difference(name, chunk)
                start = first if at is None else torch.where(at[chunk.pairs] < first, lengths, at[chunk.pairs])
                same = _is_same(differences[name], site, at, chunk)
                changes.append(torch.where(same, lengths, start))
            starts[i] = torch.stack(changes).amin(dim=0)
        return starts

    # --- self-check ----------------------------------------------------------------------------------------------

    def _checked(self, chunk: _Chunk) -> _Chunk:
        """Find the shortcuts that are exact for this model, from all of them to none; warn where none is.

        Returns the chunk, recorded again where fewer shortcuts need other activations.
        """
        reasons: list[str] = []
        while self.exactness.resume:
            try:
                reason = self._error_of_adding(chunk.base) or self._error_of_resuming(chunk)
            except Exception as error:  # whatever an unknown architecture does when its blocks are called singly
                reason = f"{type(error).__name__}: {error}"
            if reason is None:
                return chunk
            reasons.append(reason)
            self.exactness = self.exactness.weakened()
            self.routes = self._routes()
            chunk = self._record(chunk.pairs)
        if reasons:
            warnings.warn(
                f"this model's blocks cannot be resumed exactly ({reasons[-1]}), so every patch is a full run: the "
                "numbers are right, only slower",
                stacklevel=5,
            )
        return chunk

    def _check_writing(self, chunk: _Chunk) -> None:
        """Raise where hooks fire but what they write is not used (attention that has already been computed, say)."""
        hooked = [taken.hooked for taken in self.routes] or [patch.sites for patch in self.patches]
        by_component: dict[str, set[str]] = {}
        for site in (site for sites in hooked for site in sites):
            by_component.setdefault(site.component, set()).add(site.hook_point)
        for names in by_component.values():
            if not any(self._is_used(name, chunk) for name in sorted(names)):
                raise RuntimeError(
                    f"writing to {sorted(names)[0]} changes nothing in this model: it computes on without what the "
                    "hook returns, so it cannot be patched there"
                )

    def _is_used(self, name: str, chunk: _Chunk) -> bool:
        """Whether the model computes on with what is written to a hook point."""

        def disturb(value: Tensor, hook: Any) -> Tensor:
            return 2 * value + torch.linspace(0, 1, value.numel(), device=value.device).view_as(value).to(value.dtype)

        def run(hooks: list[Hook]) -> Tensor:
            with self.runner.hooks(hooks):
                if layer is None or not self.exactness.resume:
                    return self.runner.run(tokens, None)
                resid = chunk.base.activations[block_hook(layer, "resid_pre")][:1]
                return self.runner.run_block(layer, resid, None, self.runner.begin(chunk.base, 0, resid.shape[1]))

        layer, tokens = Site(name).layer, chunk.base.tokens[:1]
        return not torch.equal(run([]), run(self.runner.writing_hooks(name, disturb)))

    def _routes(self) -> list[Route]:
        return [route(patch, self.exactness.linear) for patch in self.patches] if self.exactness.resume else []

    def _error_of_resuming(self, chunk: _Chunk) -> str | None:
        """What differs when a pair is resumed with no change at every layer; None where nothing does."""
        if chunk.base.keys_values is None:
            self.exactness = replace(self.exactness, prefix=False)
        pair = int(chunk.first_difference.argmin())
        length, first = int(chunk.lengths[pair]), int(chunk.first_difference[pair])
        start = min(first, length - 1) if self.exactness.prefix else 0
        routes = [
            Route(layer, stage, (), ())
            for layer in range(self.runner.n_layers)
            for stage in Stage
            if stage == Stage.BLOCK or block_hook(layer, "attn_out") in chunk.base.activations
        ]
        batch = Batch(tuple(range(len(routes))), (pair,) * len(routes), start, length)
        call = self.runner.begin(chunk.base, start, length)
        logits = _Resumption(self, batch, chunk, routes).run(call, None)
        expected = chunk.base.logits[pair, start:length] if self.reads_all else chunk.base.logits[pair]
        error = float((logits - expected).abs().max())
        allowed = _allowed_error(expected)
        if error <= allowed:
            return None
        return f"resuming with no change gives logits that are {error:.2g} off, {allowed:.2g} is allowed"

    def _error_of_adding(self, base: Recording) -> str | None:
        """Where the recorded parts do not add up as the shortcut for linear writes assumes; None where they do."""
        for site in {replace(site, head=None, position=None) for taken in self.routes for site in taken.on_entry}:
            error, allowed = self._adding_error(site, base.activations)
            if not error <= allowed:
                return f"{site.hook_point} does not add up to the residual stream ({error:.2g} off)"
        return None

    def _adding_error(self, site: Site, recorded: dict[str, Tensor]) -> tuple[float, float]:
        """(error, allowed error) of what the site's activation should add up to."""
        layer, component = site.layer, site.component
        if layer is None or component not in _ADDED or component == "attn_out":
            return 0.0, 0.0
        before = recorded[block_hook(layer, "resid_pre")]
        attn_out = recorded[block_hook(layer, "attn_out")]
        if component == "mlp_out":
            expected = recorded[_resid_name(layer + 1, self.runner.n_layers)]
            found = before + attn_out + recorded[site.hook_point]
        elif component == "resid_mid":
            expected, found = recorded[site.hook_point], before + attn_out
        else:  # z and result: compared between positions, so that the output bias does not matter
            expected = attn_out - attn_out.roll(1, dims=1)
            moved = {site.hook_point: recorded[site.hook_point].roll(1, dims=1)}
            found = self.attention_change(site, moved, recorded)
        return float((found - expected).abs().max()), max(_allowed_error(expected), _allowed_error(before))

    def attention_change(
        self, site: Site, base: dict[str, Tensor], source: dict[str, Tensor]
    ) -> Float[Tensor, "pair pos d_model"]:
        """What the attention output changes by when the site's activation is replaced."""
        change = source[site.hook_point] - base[site.hook_point]
        if site.component == "resid_mid":
            return change
        if site.head is not None:
            change = change[:, :, site.head : site.head + 1]
        if site.component != "z":
            return change.sum(dim=2)
        weight = self.runner.model.blocks[site.layer].attn.W_O
        weight = weight if site.head is None else weight[site.head : site.head + 1]
        return torch.einsum("bphd,hdm->bpm", change, weight)

    # --- memory --------------------------------------------------------------------------------------------------

    @property
    def _bytes_per_value(self) -> int:
        return next(self.runner.model.parameters()).element_size()

    def _tokens_that_fit(self) -> int:
        """Most rows × positions of a batch, by the device's kind and its free memory."""
        cfg, device = self.runner.model.cfg, self.runner.device
        widest = max(cfg.d_model, getattr(cfg, "d_mlp", None) or 0)
        longest = int(self.pairs.lengths.max())
        # Residual streams, attention and hidden activations, scores, and the gathered prefix of keys and values.
        values = 12 * cfg.d_model + 5 * widest + 4 * cfg.n_heads * longest + 4 * cfg.d_model * longest
        per_token = values * self._bytes_per_value
        if self.reads_all:
            per_token += 2 * cfg.d_vocab * 4
        most = TOKENS_PER_BATCH.get(device.type, 8192)
        return int(max(1, min(most, MEMORY_SHARE * _free_memory(device) // per_token)))

    def _pairs_that_fit(self) -> int:
        """Number of pairs whose recordings fit into memory together."""
        cfg = self.runner.model.cfg
        longest = int(self.pairs.lengths.max())
        base, source = self._recorded_names()
        per_token = (2 * cfg.n_layers + len(base) + len(source)) * cfg.d_model
        logits = cfg.d_vocab * (longest if self.reads_all else 1) * 2
        per_pair = (per_token * longest + logits) * self._bytes_per_value
        budget = min(MOST_RECORDED_BYTES, MEMORY_SHARE * _free_memory(self.runner.device))
        return max(1, min(len(self.pairs), int(budget // per_pair)))


class _Resumption:
    """One batch, carried up through the layers while its rows enter."""

    def __init__(self, runs: _Runs, batch: Batch, chunk: _Chunk, routes: Sequence[Route]) -> None:
        self.runs, self.runner, self.batch, self.chunk = runs, runs.runner, batch, chunk
        self.routes = [routes[patch] for patch in batch.patches]
        device = self.runner.device
        self.pairs = torch.tensor(batch.pairs, device=device)
        self.read = (chunk.lengths[list(batch.pairs)] - 1 - batch.start).to(device)
        self.writes = _writes(batch, [taken.hooked for taken in routes])

    def run(self, call: Any, tokens: Int[Tensor, " token"] | None) -> Float[Tensor, "row read token"]:
        hooks, fired = _write_hooks(self.runs, self.batch, self.chunk, self.writes)
        last = self.runner.n_layers - 1
        if self._can_narrow_last_layer():
            z = block_hook(last, "z")
            hooks.append((z, lambda value, hook: at_positions(value, self.read[: len(value)])))
        resid: Tensor | None = None
        with self.runner.hooks(hooks):
            for layer in range(self.routes[0].layer, last + 1):
                resid = self._joined(resid, layer)
                resid = self._run_layer(resid, layer, call)
        resid = self._joined(resid, last + 1)
        _check_fired(self.writes, fired)
        return self.runner.unembed(resid if self.runs.reads_all else at_positions(resid, self.read), tokens)

    def _entered(self, layer: int, stage: Stage) -> int:
        """How many rows have entered by then; rows are ordered by entry."""
        return sum(taken.order <= (layer, stage) for taken in self.routes)

    def _joined(self, resid: Tensor | None, layer: int) -> Tensor:
        """The residual stream with the rows that enter before this layer, changed as their patches say."""
        begin = 0 if resid is None else len(resid)
        end = self._entered(layer, Stage.BLOCK)
        entering = self._recorded_resid(layer, begin, end)
        for rows, site, i in self._on_entry(begin, end):
            source = self.chunk.source.activations[_source_name(site, self.runner.n_layers)]
            if site.component == "mlp_out":
                change = source - self.chunk.base.activations[site.hook_point]
                self._add(entering[rows], change, site, i)
            else:
                _put(entering[rows], source, replace(site, hook_point=block_hook(0, "resid_pre")), *self._where(i))
        return entering if resid is None else torch.cat([resid, entering])

    def _run_layer(self, resid: Tensor, layer: int, call: Any) -> Tensor:
        entered, total = len(resid), self._entered(layer, Stage.ATTENTION)
        if not total:
            return resid
        prefix = self.runner.prefix(self.chunk.base, layer, self.pairs[:entered], self.batch.start)
        block = self.runner.model.blocks[layer]
        with contextlib.ExitStack() as stack:
            narrowed = layer == self.runner.n_layers - 1 and self._can_narrow_last_layer()
            if total > entered:
                outputs = self._attention_outputs(layer, entered, total)
                if narrowed:
                    outputs = at_positions(outputs, self.read[entered:total])
                stack.enter_context(self._given_attention(block.attn, outputs, entered, total))
                resid = torch.cat([resid, self._recorded_resid(layer, entered, total)])
            if narrowed and getattr(block, "mlp", None) is not None:
                stack.enter_context(reading(block.mlp, self.read[:total]))
            return self.runner.run_block(layer, resid, prefix, call)

    def _given_attention(self, attn: Any, given: Tensor, entered: int, total: int) -> Any:
        """The attention with its outputs given for the rows after `entered`, run only for those before."""
        original = attn.forward

        def rows_before(value: Any) -> Any:
            return value[:entered] if isinstance(value, Tensor) and len(value) == total else value

        def forward(*args: Any, **kwargs: Any) -> Any:
            outputs = given
            if entered:
                run = original(*map(rows_before, args), **{name: rows_before(v) for name, v in kwargs.items()})
                outputs = torch.cat([run[0] if isinstance(run, tuple) else run, given])
            return self.runner.attention_output(outputs)

        return replaced_forward(attn, forward)

    def _attention_outputs(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        """Attention outputs of the rows that enter there, changed as their patches say."""
        base, source = self.chunk.base.activations, self.chunk.source.activations
        name = block_hook(layer, "attn_out")
        outputs = self._slice(base[name], begin, end)
        for rows, site, i in self._on_entry(begin, end):
            if site.component == "attn_out":
                _put(outputs[rows], source[name], site, *self._where(i))
            else:
                self._add(outputs[rows], self.runs.attention_change(site, base, source), site, i)
        return outputs

    def _recorded_resid(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        return self._slice(self.chunk.base.activations[_resid_name(layer, self.runner.n_layers)], begin, end)

    def _slice(self, recorded: Tensor, begin: int, end: int) -> Tensor:
        """A copy of what was recorded for these rows, at the positions that are computed."""
        return recorded[self.pairs[begin:end], self.batch.start : self.batch.length]

    def _on_entry(self, begin: int, end: int) -> Iterator[tuple[slice, Site, tuple[int, int, slice]]]:
        for patch, rows in _runs_of_equal(self.batch.patches, begin, end):
            for site in self.routes[rows.start].on_entry:
                index = self.runs.patches[patch].sites.index(site)
                yield slice(rows.start - begin, rows.stop - begin), site, (patch, index, rows)

    def _where(self, i: tuple[int, int, slice]) -> tuple[Tensor, Tensor | None, int, int]:
        patch, index, rows = i
        return _where(self.runs, self.chunk, self.batch, patch, index, rows)

    def _add(self, target: Tensor, change: Tensor, site: Site, i: tuple[int, int, slice]) -> None:
        pairs, at, start, length = self._where(i)
        if at is None:
            target += change[pairs, start:length]
        else:
            rows = torch.arange(len(pairs), device=target.device)
            target[rows, at - start] += change[pairs, at]

    def _can_narrow_last_layer(self) -> bool:
        """Whether in the last layer only the position that is read has to be computed beyond the values and keys."""
        if self.runs.reads_all or self.batch.length - self.batch.start == 1:
            return False
        last = self.runner.n_layers - 1
        if block_hook(last, "z") not in self.runner.hook_points:
            return False
        before_z = ("q", "k", "v", "z", "pattern", "resid_pre")
        sites = [site for taken in self.routes for site in taken.hooked]
        return all(site.layer != last or site.component in before_z for site in sites)


_Write = tuple[slice, int, int]
"""Rows of a batch, their patch, and the index of the site in the patch's sites that is written there."""


def _writes(batch: Batch, sites: Sequence[Sequence[Site]]) -> list[tuple[slice, int, Site]]:
    return [
        (rows, patch, site) for patch, rows in _runs_of_equal(batch.patches, 0, len(batch)) for site in sites[patch]
    ]


def _write_hooks(
    runs: _Runs, batch: Batch, chunk: _Chunk, writes: list[tuple[slice, int, Site]]
) -> tuple[list[Hook], set[str]]:
    """Hooks that write the source's activations into the rows, and the set of hook points that did."""
    fired: set[str] = set()
    by_hook: dict[str, list[tuple[slice, int, Site]]] = {}
    for write in writes:
        by_hook.setdefault(write[2].hook_point, []).append(write)

    def writer(name: str) -> Any:
        source = chunk.source.activations[_source_name(Site(name), runs.runner.n_layers)]

        def write(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            for rows, patch, site in by_hook[name]:
                index = runs.patches[patch].sites.index(site)
                _put(value[rows], source, site, *_where(runs, chunk, batch, patch, index, rows))
            fired.add(name)
            return value

        return write

    hooks = []
    for name in by_hook:
        hooks += runs.runner.writing_hooks(name, writer(name))
    return hooks, fired


def _check_fired(writes: list[tuple[slice, int, Site]], fired: set[str]) -> None:
    if silent := {site.hook_point for _, _, site in writes} - fired:
        raise RuntimeError(
            f"the hook {', '.join(sorted(silent))} did not fire, so its patch was not applied: this model computes "
            "without it"
        )


def _where(
    runs: _Runs, chunk: _Chunk, batch: Batch, patch: int, index: int, rows: slice
) -> tuple[Tensor, Tensor | None, int, int]:
    """(pairs of the rows, their positions or None for all, first position, length) of a write."""
    pairs = torch.tensor(batch.pairs[rows])
    at = runs.positions[patch][index]
    device = runs.runner.device
    return (
        pairs.to(device),
        None if at is None else at[chunk.pairs[pairs]].to(device),
        batch.start,
        batch.length,
    )


def _put(target: Tensor, source: Tensor, site: Site, pairs: Tensor, at: Tensor | None, start: int, length: int) -> None:
    """Write the source's activation of each row's pair into the rows, which hold positions `start` to `length`."""
    axis, heads = position_axis(site.hook_point), head_axis(site.hook_point)
    source = source.to(target.device)
    if site.head is not None and heads is not None:
        target, source = target.select(heads, site.head), source.select(heads, site.head)
        axis -= heads < axis
    is_attention = head_axis(site.hook_point) == 1
    if is_attention:
        source, target = source[..., :length], target[..., :length]
    if at is None:
        target.copy_(source[pairs].narrow(axis, start, length - start))
        return
    rows = torch.arange(len(pairs), device=target.device)
    new = source[pairs].movedim(axis, 1)[rows, at]
    target.movedim(axis, 1)[rows, at - start] = new


def _runs_of_equal(values: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, slice]]:
    """(value, where) of each stretch of equal values."""
    while begin < end:
        stop = begin
        while stop < end and values[stop] == values[begin]:
            stop += 1
        yield values[begin], slice(begin, stop)
        begin = stop


def _difference(name: str, chunk: _Chunk) -> Tensor | None:
    """Where the runs' activations differ at a hook point, on the axes pair, pos (and head); None where not recorded."""
    base, source = chunk.base.activations.get(name), chunk.source.activations[name]
    if base is None:
        return None
    real = torch.arange(base.shape[1]) < chunk.lengths[:, None]
    differs = (base != source).flatten(3 if head_axis(name) == 2 else 2).any(dim=-1).cpu()
    return differs & real.view(*real.shape, *[1] * (differs.ndim - 2))


def _is_same(differs: Tensor | None, site: Site, at: Int[Tensor, " pair"] | None, chunk: _Chunk) -> Tensor:
    """For each pair, whether both runs hold the very same activation at the site (as far as both were recorded)."""
    rows = torch.arange(len(chunk.pairs))
    if differs is None:
        return torch.zeros(len(rows), dtype=torch.bool)
    if differs.ndim == 3:
        differs = differs.any(dim=2) if site.head is None else differs[:, :, site.head]
    return ~differs.any(dim=1) if at is None else ~differs[rows, at[chunk.pairs]]


def _resid_name(layer: int, n_layers: int) -> str:
    """Where the residual stream before a layer is recorded; `n_layers` stands for after the last one."""
    return block_hook(layer, "resid_pre") if layer < n_layers else block_hook(n_layers - 1, "resid_post")


def _source_name(site: Site, n_layers: int) -> str:
    """Hook point at which a site's activation is recorded: what follows a block is what precedes the next."""
    if site.component == "resid_post" and site.layer is not None:
        return _resid_name(site.layer + 1, n_layers)
    return site.hook_point


def _measure(
    metric: Metric, logits: Float[Tensor, "row pos token"], lengths: Int[Tensor, " row"], pairs: Int[Tensor, " row"]
) -> Float[np.ndarray, " row"]:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not metric.reads_all_positions:
        return metric.measure(logits, pairs).double().cpu().numpy()
    values = [metric.measure(logits[i : i + 1, :n], pairs[i : i + 1]) for i, n in enumerate(lengths.tolist())]
    return torch.cat(values).double().cpu().numpy()


def _padded(prompts: Sequence[Int[Tensor, " pos"]]) -> Int[Tensor, "pair pos"]:
    """Prompts of one length, by repeating their last token: attention is causal, so nothing that is read sees it."""
    longest = max(len(prompt) for prompt in prompts)
    return torch.stack([torch.cat([p, p[-1:].expand(longest - len(p))]) for p in prompts])


def _split(batch: Batch, size: int) -> list[Batch]:
    if len(batch) <= size:
        return [batch]
    return [
        replace(batch, patches=batch.patches[i : i + size], pairs=batch.pairs[i : i + size])
        for i in range(0, len(batch), size)
    ]


def _allowed_error(values: Tensor) -> float:
    return TOLERANCE.get(values.dtype, 1e-5) * max(1.0, float(values.abs().max()))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
