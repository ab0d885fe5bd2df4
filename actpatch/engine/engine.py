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

Before a sweep the engine checks itself: resuming with no change, wherever the patches enter, must reproduce the
recorded logits. Where it does not, it falls back to full runs and says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from actpatch.core.direction import DIRECTIONS, Direction
from actpatch.core.hook_points import expand_hook_points
from actpatch.core.indices import check_index, is_integer
from actpatch.core.sites import Patch, Site, block_hook, head_axis, position_axis
from actpatch.core.warn import warn_user
from actpatch.engine.exactness import FULL_RUNS, Exactness, check_writing, error_of_adding, error_of_resuming
from actpatch.engine.plan import Batch, Route, plan, route
from actpatch.engine.resume import (
    Chunk,
    Experiment,
    Resumption,
    mlp_output_weight,
    noise_hook,
    resid_name,
    run_in_full,
)
from actpatch.interventions.sources import GaussianNoise, Prompts, References
from actpatch.metrics.base import Metric
from actpatch.metrics.chosen import MetricSet
from actpatch.models.runner import Recording, Runner, make_runner
from actpatch.tasks.dataset import EncodedPairs

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 32768, "mps": 8192}
"""Most rows × positions in one batch: on a CPU, activations beyond this leave the caches and nothing is gained."""
MEMORY_SHARE = 0.25
"""Share of the free memory that recordings, and separately one batch, may take."""
MOST_RECORDED_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Baselines:
    """What a sweep measured, by metric."""

    patched: Float[np.ndarray, "metric patch pair"]
    """Empty where nothing was patched."""
    clean: Float[np.ndarray, "metric pair"]
    corrupted: Float[np.ndarray, "metric pair"]


class PatchingEngine:
    """Runs patches on one model.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        batch_size: most rows (a row is one patch on one pair) run together; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None, show_progress: bool = True) -> None:
        if batch_size is not None and (not is_integer(batch_size) or batch_size < 1):
            raise ValueError(f"batch_size is {batch_size!r}, expected at least 1, or None to adapt it to the memory")
        self.runner: Runner = make_runner(model)
        self.batch_size = batch_size
        self.show_progress = show_progress

    @property
    def model_name(self) -> str:
        """The name that the model's configuration gives it."""
        model = self.runner.model
        return str(getattr(model.cfg, "model_name", None) or type(model).__name__)

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

    def n_neurons(self, layer: int) -> int:
        """Number of neurons of a layer's MLP."""
        weight = mlp_output_weight(self.runner, layer)
        return self.runner.model.cfg.d_mlp if weight is None else len(weight)

    def hook_points(self, asked: str | Sequence[str]) -> list[str]:
        """Full names of the hook points asked for (`expand_hook_points`)."""
        return expand_hook_points(asked, self.runner.hook_points, self.n_layers)

    def record(self, tokens: Int[Tensor, "pair pos"], hook_points: Sequence[str]) -> Recording:
        """One run, with the activations at these hook points and the logits at all positions."""
        with self.runner.as_found(hook_points):
            return self.runner.record(tokens.to(self.runner.device), hook_points, read=None)

    def sweep(
        self,
        pairs: EncodedPairs,
        patches: Sequence[Patch],
        metrics: Sequence[Metric],
        direction: Direction = "denoising",
        *,
        references: References | None = None,
        noise: GaussianNoise | None = None,
    ) -> Baselines:
        """Every metric of every patch on every pair, and of the clean and the corrupted runs, all from the same runs.

        Args:
            pairs: the prompts.
            patches: what is replaced in each patched run.
            metrics: what is measured on the logits, all of it in the same runs.
            direction: which run of each pair is patched.
            references: the prompts whose mean activations are written (`interventions.sources.references`); None for
                the pair's other run.
            noise: makes the corrupted run out of the clean prompt. The metric is averaged over the samples of either.

        Raises:
            ValueError: before any run, for an unknown direction or hook point and for a head, neuron or position out
                of range.
            RuntimeError: where a hook that should have written a patch did not fire.
        """
        if not patches:
            raise ValueError("there is nothing to patch: give at least one site")
        return self._measured(pairs, patches, metrics, direction, references, noise)

    def baselines(
        self, pairs: EncodedPairs, metrics: Sequence[Metric], *, noise: GaussianNoise | None = None
    ) -> Baselines:
        """Every metric of the clean and the corrupted runs alone, as a sweep measures them. Arguments are those of
        `sweep`."""
        return self._measured(pairs, (), metrics, "denoising", None, noise)

    def _measured(
        self,
        pairs: EncodedPairs,
        patches: Sequence[Patch],
        metrics: Sequence[Metric],
        direction: Direction,
        references: References | None,
        noise: GaussianNoise | None,
    ) -> Baselines:
        measured = MetricSet(tuple(metrics))
        samples = _samples(references, noise)
        n_runs = len(pairs) * samples
        patched = np.full((len(measured), len(patches), n_runs), np.nan)
        clean, corrupted = np.full((2, len(measured), n_runs), np.nan)
        base_metric, other_metric = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
        with (
            self.running(
                pairs,
                patches,
                direction,
                measured.reads_all_positions,
                measured.tokens,
                references=references,
                noise=noise,
            ) as runs,
            tqdm(
                total=len(patches) * n_runs,
                unit="run",
                desc="Patching",
                disable=None if self.show_progress and patches else True,  # None: not where stderr is no terminal
            ) as progress,
        ):
            for chunk in runs.chunks():
                indices = chunk.pairs.numpy()
                base, other = chunk.base.logits, chunk.other.logits
                clean_logits = other if direction == "denoising" else base
                measure = functools.partial(
                    measured.measure, clean=clean_logits, pairs=chunk.pairs // samples, lengths=chunk.lengths
                )
                every = torch.arange(len(indices))
                base_metric[:, indices] = measure(base, rows=every).numpy()
                other_metric[:, indices] = measure(other, rows=every).numpy()
                patched[:, :, indices] = base_metric[:, None, indices]
                done = 0
                for batch, logits in runs.batches(chunk):
                    values = measure(logits, rows=torch.tensor(batch.pairs))
                    patched[:, list(batch.patches), indices[list(batch.pairs)]] = values.numpy()
                    done += len(batch)
                    progress.update(len(batch))
                progress.update(len(patches) * len(indices) - done)
        return Baselines(*(_mean_of_samples(values, samples) for values in (patched, clean, corrupted)))

    def patched_logits(
        self, pairs: EncodedPairs, patch: Patch, direction: Direction = "denoising"
    ) -> list[Float[Tensor, "_ d_vocab"]]:
        """Logits at all positions of one patched run per pair."""
        found: dict[int, Tensor] = {}
        with self.running(pairs, [patch], direction, reads_all=True, vocabulary=None) as runs:
            for chunk in runs.chunks():
                for i, pair in enumerate(chunk.pairs.tolist()):
                    found[pair] = chunk.base.logits[i, : chunk.lengths[i]]
                for batch, logits in runs.batches(chunk):
                    for i, row in zip(batch.pairs, logits):
                        found[int(chunk.pairs[i])] = row[: chunk.lengths[i]]
        return [found[pair] for pair in range(len(pairs))]

    @contextlib.contextmanager
    def running(
        self,
        pairs: EncodedPairs,
        patches: Sequence[Patch],
        direction: Direction,
        reads_all: bool,
        vocabulary: Int[Tensor, " token"] | None,
        *,
        references: References | None = None,
        noise: GaussianNoise | None = None,
    ) -> Iterator[_Runs]:
        """The experiment, checked, with the model made ready and put back afterwards."""
        if direction not in tuple(DIRECTIONS):
            raise ValueError(f"direction {direction!r} is unknown: expected one of {', '.join(DIRECTIONS)}")
        known = self.runner.hook_points
        positions = [[self._checked_positions(site, pairs, known) for site in patch.sites] for patch in patches]
        if noise is not None and references is not None:
            raise ValueError("noise makes the corrupted run that is patched from or into: ablations take none")
        names = {site.hook_point for patch in patches for site in patch.sites}
        with self.runner.as_found(names):
            placed = None
            if noise is not None:
                placed = noise.placed(pairs, functools.partial(embedding_deviation, self.runner))
                pairs = replace(pairs, corrupted=pairs.clean)
            pairs, positions = _repeated(pairs, positions, _samples(references, noise))
            experiment = Experiment(
                self.runner, pairs, patches, positions, direction, reads_all, vocabulary, references, placed
            )
            yield _Runs(experiment, self.batch_size)

    def _checked_positions(
        self, site: Site, pairs: EncodedPairs, known: Collection[str]
    ) -> Int[Tensor, " pair"] | None:
        """The site's position in each pair; also checks its hook point and head."""
        names = expand_hook_points([site.hook_point], known, self.n_layers)
        if names != [site.hook_point]:
            raise ValueError(
                f"the site {site.hook_point!r} stands for every layer: name one, for instance {names[0]!r}"
            )
        if site.head is not None:
            if head_axis(site.hook_point) is None:
                raise ValueError(f"{site.hook_point} has no head axis, so head {site.head} cannot be patched there")
            is_key_value = site.kind.per_key_value_head
            size = self.n_key_value_heads if is_key_value else self.n_heads
            if not is_integer(site.head) or not 0 <= site.head < size:
                kind = "key-value head" if is_key_value and size != self.n_heads else "head"
                raise ValueError(f"{kind} {site.head!r} is out of range: expected 0 to {size - 1}")
        if site.neuron is not None:
            self._check_neuron(site, site.neuron)
        if site.position is None:
            return None
        per_pair = site.position if isinstance(site.position, tuple) else (site.position,) * len(pairs)
        if len(per_pair) != len(pairs):
            raise ValueError(f"{len(per_pair)} positions were given for {len(pairs)} pairs: give one per pair")
        where = zip(per_pair, pairs.indices, pairs.lengths.tolist())
        return torch.tensor([check_index(at, n, f"position (in pair {pair}, of {n} tokens)") for at, pair, n in where])

    def _check_neuron(self, site: Site, neuron: int) -> None:
        if site.layer is None or not site.kind.has_neurons:
            raise ValueError(f"{site.hook_point} has no axis of neurons, so neuron {neuron} cannot be patched there")
        size = self.n_neurons(site.layer)
        if not is_integer(neuron) or not 0 <= neuron < size:
            raise ValueError(f"neuron {neuron!r} is out of range: expected 0 to {size - 1}")


class _Runs:
    """One experiment while it runs: records chunks of pairs and runs their patches in batches."""

    def __init__(self, experiment: Experiment, batch_size: int | None) -> None:
        self.experiment = experiment
        self.runner, self.pairs, self.patches = experiment.runner, experiment.pairs, experiment.patches
        self.batch_size = batch_size
        layers = [site.layer for patch in self.patches for site in patch.sites]
        resumed = bool(layers) and None not in layers  # without patches nothing is resumed
        self.exactness = Exactness() if resumed else FULL_RUNS
        self.max_tokens = self._tokens_that_fit()
        self._means: dict[int, dict[str, Tensor]] = {}
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

    def chunks(self) -> Iterator[Chunk]:
        """The pairs, recorded a few at a time; those of like length, references and first change together."""
        lengths, first, references = self.pairs.lengths, self.experiment.first_change, self.experiment.references
        group = [0] * len(self.pairs) if references is None else references.of_pair
        order = sorted(range(len(self.pairs)), key=lambda i: (int(lengths[i]), group[i], int(first[i])))
        size, begin = self._pairs_that_fit(), 0
        while begin < len(order):
            indices = torch.tensor(order[begin : begin + size])
            try:
                chunk = self._record(indices)
            except RuntimeError as error:
                if not _is_out_of_memory(error) or len(indices) == 1:
                    raise
                size = len(indices) // 2
                continue
            yield self._checked(chunk) if begin == 0 else chunk
            begin += len(indices)

    def batches(self, chunk: Chunk) -> Iterator[tuple[Batch, Float[Tensor, "row read token"]]]:
        """Each batch with its patched logits: of what the metric reads, positions and vocabulary entries."""
        routes = self.routes
        starts = _starts(self.experiment, chunk)
        if not self.exactness.prefix:
            starts = torch.where(starts < chunk.lengths, 0, starts)
        order = [taken.order for taken in routes] or [(0, 0)] * len(self.patches)
        waiting = plan(order, starts, chunk.lengths, self.max_tokens, self.batch_size)[::-1]
        calls: dict[tuple[int, int], Any] = {}
        while waiting:
            batch = waiting.pop()
            try:
                yield batch, self._run(batch, chunk, routes, calls)
            except RuntimeError as error:
                if not _is_out_of_memory(error) or len(batch) == 1:
                    raise
                self.max_tokens = batch.tokens // 2
                waiting = [part for b in [*waiting, batch] for part in reversed(b.parts(self.max_tokens))]

    def _run(
        self, batch: Batch, chunk: Chunk, routes: Sequence[Route], calls: dict[tuple[int, int], Any]
    ) -> Float[Tensor, "row read token"]:
        if not routes:
            return run_in_full(self.experiment, batch, chunk)
        key = (batch.start, batch.length)
        if key not in calls:
            calls[key] = self.runner.begin(chunk.base, *key)
        resumption = Resumption(self.experiment, batch, chunk, routes, narrow=self.exactness.narrow)
        logits = resumption.run(calls[key])
        if self.experiment.reads_all and batch.start:
            before = chunk.base.logits[list(batch.pairs), : batch.start]
            logits = torch.cat([before, logits], dim=1)
        return logits

    def _record(self, pairs: Int[Tensor, " pair"]) -> Chunk:
        """Both runs of the pairs, from one pass: for few tokens, reading the weights is what a pass takes."""
        base_names, source_names = self._recorded_names()
        lengths = self.pairs.lengths[pairs]
        averaged = self.experiment.references is not None
        of_base, of_other = (base_names | source_names, set()) if averaged else (base_names, source_names)
        prompts = torch.cat([_padded([run[i] for i in pairs]) for run in self.experiment.prompts])
        noise = self._noise(pairs)
        recorded = self._record_run(prompts, of_base | of_other, torch.cat([lengths, lengths]) - 1, noise)
        for name in source_names:
            _check_shape(name, recorded.activations.get(name), prompts.shape)
        base, other = recorded.part(slice(len(pairs)), of_base), recorded.part(slice(len(pairs), None), of_other)
        return Chunk(
            pairs,
            lengths,
            self.experiment.first_change[pairs],
            base,
            other,
            self._reference_means(pairs, base, source_names) if averaged else other.activations,
            None if noise is None else noise[: len(pairs)],
        )

    def _record_run(
        self,
        prompts: Int[Tensor, "prompt pos"],
        hook_points: set[str],
        read: Int[Tensor, " prompt"],
        noise: Float[Tensor, "prompt pos d_model"] | None = None,
    ) -> Recording:
        with self.runner.hooks([] if noise is None else [noise_hook(noise)]):
            return self.runner.record(
                prompts.to(self.runner.device),
                hook_points,
                None if self.experiment.reads_all else read,
                self.experiment.vocabulary,
            )

    def _noise(self, pairs: Int[Tensor, " pair"]) -> Float[Tensor, "prompt pos d_model"] | None:
        """Added to the embeddings of the runs that are patched, then of the other runs; nothing to one of them."""
        if self.experiment.noise is None:
            return None
        longest = int(self.pairs.lengths[pairs].max())
        noise = self.experiment.noise.values(pairs.tolist(), longest, self.runner.model.cfg.d_model)
        noise = noise.to(self.runner.device)
        nothing = torch.zeros_like(noise)
        return torch.cat([noise, nothing] if self.experiment.direction == "denoising" else [nothing, noise])

    def _reference_means(
        self, pairs: Int[Tensor, " pair"], base: Recording, names: set[str]
    ) -> dict[str, Float[Tensor, "pair ..."]]:
        """Each hook point's mean over the reference prompts of each pair, zero where there are none."""
        references = self.experiment.references
        assert references is not None
        groups = [references.of_pair[pair] for pair in pairs.tolist()]
        means = {group: self._means[group] for group in groups if group in self._means}
        if new := sorted({*groups} - {*means}):
            found = self._means_over([references.groups[group] for group in new], base, names)
            means |= zip(new, found)
        self._means = means
        shapes = {name: base.activations[name].shape[1:] for name in names}
        return {name: torch.stack([_fitted(means[group][name], shapes[name]) for group in groups]) for name in names}

    def _means_over(self, groups: Sequence[Prompts], base: Recording, names: set[str]) -> list[dict[str, Tensor]]:
        """Each hook point's mean over each group of prompts; sums are kept, not the prompts' own activations."""
        sums = [{name: torch.zeros_like(base.activations[name][0]) for name in names} for _ in groups]
        waiting = [(i, prompt) for i, prompts in enumerate(groups) for prompt in prompts]
        size = self._pairs_that_fit()
        for begin in range(0, len(waiting), size):
            batch = waiting[begin : begin + size]
            prompts = _padded([prompt for _, prompt in batch])
            read = torch.tensor([len(prompt) - 1 for _, prompt in batch])
            recorded = self._record_run(prompts, names, read).activations
            for row, (i, _) in enumerate(batch):
                for name in names:
                    value = recorded[name][row]
                    total = sums[i][name].to(torch.promote_types(value.dtype, torch.float32))
                    sums[i][name] = value + _fitted(total, value.shape)
        return [
            {name: (total / max(1, len(prompts))).to(base.activations[name].dtype) for name, total in of_group.items()}
            for of_group, prompts in zip(sums, groups)
        ]

    def _recorded_names(self) -> tuple[set[str], set[str]]:
        """Hook points needed of the run that is patched, and of the run whose activations are copied."""
        n_layers, hook_points = self.runner.n_layers, set(self.runner.hook_points)
        source = {site.hook_point for patch in self.patches for site in patch.sites}
        routes = self.routes
        base = {resid_name(layer, n_layers) for layer in range(n_layers + 1)} if routes else set()
        for taken in routes:
            base |= {site.hook_point for site in taken.on_entry}
            for site in taken.on_entry:
                if site.layer is not None and site.kind.is_added:
                    base |= {block_hook(site.layer, "attn_out"), block_hook(site.layer, "mlp_out")} & hook_points
        return base, source

    def _checked(self, chunk: Chunk) -> Chunk:
        """Find the shortcuts that are exact for this model, from all of them to none; warn where none is.

        Returns the chunk, recorded again where fewer shortcuts need other activations.
        """
        reason = None
        embedding = [(Site("hook_embed"),)] if self.experiment.noise is not None else []
        while self.exactness.resume:
            if chunk.base.keys_values is None:
                self.exactness = replace(self.exactness, prefix=False)
            reason = error_of_adding(self.experiment, chunk.base, self.routes)
            reason = reason or error_of_resuming(self.experiment, chunk, self.exactness, self.routes)
            if reason is None:
                break
            self.exactness = self.exactness.weakened()
            chunk = self._record(chunk.pairs)
        if reason is not None:
            warn_user(
                f"this model's blocks cannot be resumed exactly ({reason}), so every patch is a full run: the numbers "
                "are right, only slower"
            )
        hooked = [taken.hooked for taken in self.routes] or [patch.sites for patch in self.patches]
        check_writing(self.experiment, chunk, self.exactness, [*hooked, *embedding])
        return chunk

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
        if self.experiment.vocabulary is None:  # logits, of each position or of a row that may compute one alone
            per_token += (2 if self.experiment.reads_all else 1) * cfg.d_vocab * 4
        most = TOKENS_PER_BATCH.get(device.type, 8192)
        return int(max(1, min(most, MEMORY_SHARE * _free_memory(device) // per_token)))

    def _pairs_that_fit(self) -> int:
        """Number of pairs whose recordings fit into memory together."""
        cfg = self.runner.model.cfg
        longest = int(self.pairs.lengths.max())
        base, source = self._recorded_names()
        per_token = (2 * cfg.n_layers + len(base) + len(source)) * cfg.d_model
        logits = cfg.d_vocab * (longest if self.experiment.reads_all else 1) * 2
        per_pair = (per_token * longest + logits) * self._bytes_per_value
        budget = min(MOST_RECORDED_BYTES, MEMORY_SHARE * _free_memory(self.runner.device))
        return max(1, min(len(self.pairs), int(budget // per_pair)))


def _starts(experiment: Experiment, chunk: Chunk) -> Int[Tensor, "patch pair"]:
    """First position that each patch changes; a pair's length where it changes nothing.

    Before a pair's first change, what is written is what the run that is patched holds there.
    """
    first, lengths = chunk.first_change, chunk.lengths
    starts = torch.empty(len(experiment.patches), len(lengths), dtype=torch.long)
    differences: dict[str, Tensor | None] = {}
    for i, (patch, positions) in enumerate(zip(experiment.patches, experiment.positions)):
        changes = []
        for site, at in zip(patch.sites, positions):
            name = site.hook_point
            if name not in differences:
                differences[name] = _difference(site, experiment.runner.n_layers, chunk)
            start = first if at is None else torch.where(at[chunk.pairs] < first, lengths, at[chunk.pairs])
            same = _is_same(differences[name], site, at, chunk)
            changes.append(torch.where(same, lengths, start))
        starts[i] = torch.stack(changes).amin(dim=0)
    return starts


def _difference(site: Site, n_layers: int, chunk: Chunk) -> Tensor | None:
    """Where what is written differs from what is there, on the axes pair, pos (and head or neuron).

    None where what is there was not recorded.
    """
    name = site.hook_point
    in_base = name if site.layer is None or site.component != "resid_post" else resid_name(site.layer + 1, n_layers)
    base = chunk.base.activations.get(in_base)
    source = chunk.source[name]
    if base is None:
        return None
    differs = base != source
    if head_axis(name) == 1:
        differs = differs.movedim(1, 2)
    if not site.kind.has_neurons:
        differs = differs.flatten(2 if head_axis(name) is None else 3).any(dim=-1)
    differs = differs.cpu()
    real = torch.arange(differs.shape[1]) < chunk.lengths[:, None]
    return differs & real.view(*real.shape, *[1] * (differs.ndim - 2))


def _is_same(differs: Tensor | None, site: Site, at: Int[Tensor, " pair"] | None, chunk: Chunk) -> Tensor:
    """For each pair, whether what is written at the site is the very same that is there (as far as that is known)."""
    rows = torch.arange(len(chunk.pairs))
    if differs is None:
        return torch.zeros(len(rows), dtype=torch.bool)
    if differs.ndim == 3:
        index = site.neuron if site.head is None else site.head
        differs = differs.any(dim=2) if index is None else differs[:, :, index]
    return ~differs.any(dim=1) if at is None else ~differs[rows, at[chunk.pairs]]


def _check_shape(name: str, value: Tensor | None, tokens: torch.Size) -> None:
    if value is None:
        raise RuntimeError(f"the hook point {name} did not fire in a run of this model: it cannot be patched")
    axis = position_axis(name)
    if value.ndim <= axis or value.shape[0] != tokens[0] or value.shape[axis] != tokens[1]:
        raise ValueError(
            f"{name} holds a tensor of shape {tuple(value.shape)} for {tokens[0]} prompts of {tokens[1]} tokens: "
            "only activations with a prompt and a position axis can be patched"
        )


def embedding_deviation(runner: Runner) -> float:
    """Standard deviation of all entries of the vocabulary's embeddings, as they pass `hook_embed`."""
    cfg = runner.model.cfg
    width = min(cfg.n_ctx, 256)
    tokens = torch.arange(cfg.d_vocab)
    whole = len(tokens) // width * width
    batches = [*tokens[:whole].view(-1, width).split(64), tokens[None, whole:]]
    count, total, squares = 0, 0.0, 0.0
    for batch in batches:
        if batch.numel():
            embedded = _embedded(runner, batch.to(runner.device)).double()
            count += embedded.numel()
            total += float(embedded.sum())
            squares += float(embedded.square().sum())
    return max(0.0, squares / count - (total / count) ** 2) ** 0.5


class _EmbeddedError(Exception):
    """Ends a run once its embeddings are known."""


def _embedded(runner: Runner, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
    seen: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> None:
        seen.append(value.detach().cpu())
        raise _EmbeddedError

    with contextlib.suppress(_EmbeddedError), runner.hooks([("hook_embed", keep)]):
        runner.run(tokens, None)
    if not seen:
        raise RuntimeError("hook_embed did not fire in a run of this model: no noise can be put on its embeddings")
    return seen[0]


def _samples(references: References | None, noise: GaussianNoise | None) -> int:
    """How many runs there are of each patch on each pair."""
    if references is not None:
        return references.samples
    return 1 if noise is None else noise.samples


def _repeated(
    pairs: EncodedPairs, positions: Sequence[Sequence[Int[Tensor, " pair"] | None]], samples: int
) -> tuple[EncodedPairs, list[list[Int[Tensor, " run"] | None]]]:
    """Each pair, and its patched positions, once per sample."""
    fields = dataclasses.fields(pairs)
    runs = {field.name: tuple(v for v in getattr(pairs, field.name) for _ in range(samples)) for field in fields}
    per_run = [[None if at is None else at.repeat_interleave(samples) for at in patch] for patch in positions]
    return EncodedPairs(**runs), per_run


def _mean_of_samples(values: Float[np.ndarray, "... run"], samples: int) -> Float[np.ndarray, "... pair"]:
    return values.reshape(*values.shape[:-1], values.shape[-1] // samples, samples).mean(axis=-1)


def _fitted(value: Tensor, shape: Sequence[int]) -> Tensor:
    """The activation of one prompt, cut off or padded with zeros where it has other numbers of positions."""
    fitted = value.new_zeros(tuple(shape))
    common = tuple(slice(min(sizes)) for sizes in zip(value.shape, shape))
    fitted[common] = value[common]
    return fitted


def _padded(prompts: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, "pair pos"]:
    """Prompts of one length, by repeating their last token: attention is causal, so nothing that is read sees it."""
    longest = max(len(prompt) for prompt in prompts)
    return torch.stack([torch.cat([p, p[-1:].expand(longest - len(p))]) for p in prompts])


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
