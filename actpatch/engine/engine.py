"""The engine: records both runs of each pair once, then resumes patched runs from wherever a patch first changes them.

This is the one loop over forward passes. Every kind of patching says *what* to change (`Patch`) and gets numbers back.
What is saved is saved exactly:

1. patches and pairs are batched, and a batch is carried up through the layers once, rows joining where they enter;
2. below a patch's layer, and before the first token that it can change, the recorded run is used (the positions before
   as a frozen prefix of keys and values);
3. a change of what is added to the residual stream (z, attn_out, resid_mid, mlp_out) is added to the recorded stream,
   so what produced it need not be run;
4. in the last layer and in the unembedding only what the metric reads is computed;
5. a patch that changes nothing is not run;
6. both directions of an experiment come from one recording.

On the runs of every sweep the engine checks itself. What is recorded must be the model's own run of a prompt alone
(`engine.agreement`), and resuming with no change, wherever the patches enter, must reproduce it (`engine.exactness`).
A shortcut that does not hold is left out, and the results say so. Nothing here knows a task, the shape of a result, or
a statistic.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.direction import Direction, check_direction
from actpatch.core.edge_patches import ALL_POSITIONS, GraphPatches
from actpatch.core.estimates import Estimate
from actpatch.core.graph import Graph
from actpatch.core.hook_points import expand_hook_points
from actpatch.core.indices import is_integer
from actpatch.core.sites import Patch, Site
from actpatch.core.text import count
from actpatch.engine import checks
from actpatch.engine.agreement import Rounding
from actpatch.engine.circuit_measure import CircuitMeasure
from actpatch.engine.edges import INPUT, recorded_for
from actpatch.engine.embeddings import embedding_deviation
from actpatch.engine.experiment import Experiment
from actpatch.engine.measured import Measured, in_order, mean_of_samples, sets_of
from actpatch.engine.partners import written_positions
from actpatch.engine.runs import Runs
from actpatch.interventions.noise import GaussianNoise
from actpatch.interventions.sources import References
from actpatch.metrics.base import Whole
from actpatch.metrics.chosen import AnyMetric, MetricSet
from actpatch.metrics.sequence import SequenceSet
from actpatch.models import facts
from actpatch.models.runner import Read, Recording, Runner, joined, make_runner
from actpatch.tasks.encoding import EncodedPairs

WORTH_A_NOTE = 0.01
"""From this share of a metric's gap on, what rounding alone does is told."""

NOTHING_TO_PATCH = "there is nothing to patch: give at least one site"


class PatchingEngine:
    """Runs patches on one model.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        batch_size: most rows (a row is one patch on one pair) run together; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.
        estimate: how metrics of patched runs are estimated from gradients; None runs them.
    """

    def __init__(
        self,
        model: Any,
        *,
        batch_size: int | None = None,
        show_progress: bool = True,
        estimate: Estimate | None = None,
    ) -> None:
        if batch_size is not None and (not is_integer(batch_size) or batch_size < 1):
            raise ValueError(f"batch_size is {batch_size!r}, expected at least 1, or None to adapt it to the memory")
        self.runner: Runner = make_runner(model)
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.estimate = estimate
        self.shortcuts: tuple[str, ...] | None = None
        """Names of the shortcuts that were exact in the last sweep; None before the first."""

    def exact(self) -> PatchingEngine:
        """An engine on the same model, made alike, that runs patches."""
        return PatchingEngine(self.runner.model, batch_size=self.batch_size, show_progress=self.show_progress)

    def __repr__(self) -> str:
        held = "found by the first sweep" if self.shortcuts is None else ", ".join(self.shortcuts) or "none"
        return f"{self.model_name}, {count(self.n_layers, 'layer')} × {count(self.n_heads, 'head')}, shortcuts: {held}"

    @property
    def model_name(self) -> str:
        """The name that the model's configuration gives it."""
        return facts.model_name(self.runner.model)

    @property
    def dtype(self) -> str:
        """The type of the model's weights, for instance `float32`."""
        return str(next(self.runner.model.parameters()).dtype).removeprefix("torch.")

    @property
    def n_layers(self) -> int:
        return self.runner.n_layers

    @property
    def n_heads(self) -> int:
        return self.runner.model.cfg.n_heads

    @property
    def n_key_value_heads(self) -> int:
        """Length of the head axis of `hook_k` and `hook_v`."""
        return facts.n_key_value_heads(self.runner.model)

    def n_neurons(self, layer: int) -> int:
        """Number of neurons of a layer's MLP."""
        return checks.n_neurons(self.runner, layer)

    def hook_points(self, asked: str | Sequence[str]) -> list[str]:
        """Full names of the hook points asked for (`expand_hook_points`)."""
        return expand_hook_points(asked, self.runner.hook_points, self.n_layers)

    def record(self, tokens: Int[Tensor, "pair pos"], hook_points: Sequence[str]) -> Recording:
        """The runs of these prompts, each alone, with the activations at these hook points and all logits."""
        with self.runner.as_found(hook_points):
            prompts = tokens.to(self.runner.device).split(1)
            read = Read(alone=False)
            return joined([self.runner.record(one, hook_points, read, keeps_keys=False) for one in prompts])

    def sweep(
        self,
        pairs: EncodedPairs,
        patches: Sequence[Patch],
        metrics: Sequence[AnyMetric],
        direction: Direction = "denoising",
        *,
        references: References | None = None,
        noise: GaussianNoise | None = None,
    ) -> Measured:
        """Every metric of every patch on every pair, and of the clean and the corrupted runs, all from the same runs.

        Args:
            pairs: the prompts.
            patches: what is replaced in each patched run.
            metrics: what is measured on the logits, all of it in the same runs; of whole answers in runs of the prompts
                with answers appended, which nothing is written into (`metrics.sequence`).
            direction: which run of each pair is patched.
            references: the prompts whose mean activations are written (`interventions.sources.References`); None for
                the pair's other run.
            noise: makes the corrupted run out of the clean prompt. The metric is averaged over the samples of either.

        Raises:
            ValueError: before any run, for an unknown direction or hook point and for a head, neuron or position out
                of range.
            RuntimeError: where a hook that should have written a patch did not fire.
        """
        return self.sweeps(pairs, {direction: patches}, metrics, references=references, noise=noise)[0]

    def sweeps(
        self,
        pairs: EncodedPairs,
        patches: Mapping[Direction, Sequence[Patch]],
        metrics: Sequence[AnyMetric],
        *,
        references: References | None = None,
        noise: GaussianNoise | None = None,
    ) -> list[Measured]:
        """`sweep` in each of these directions, from one recording of both runs. Arguments and errors are its own.

        In each direction there are as many patches, of the same hook points; their positions are those of the run that
        is patched, which may be others where prompts have other lengths.
        """
        if not all(patches.values()):
            raise ValueError(NOTHING_TO_PATCH)
        return self._measured(pairs, patches, metrics, references, noise)

    def check(
        self,
        pairs: EncodedPairs,
        patches: Mapping[Direction, Sequence[Patch]],
        *,
        references: References | None = None,
        noise: GaussianNoise | None = None,
    ) -> None:
        """Raise what `sweeps` raises before any run, for sites, positions and what goes together; nothing is run."""
        if not all(patches.values()):
            raise ValueError(NOTHING_TO_PATCH)
        self._checked(pairs, patches, references, noise)

    def baselines(
        self, pairs: EncodedPairs, metrics: Sequence[AnyMetric], *, noise: GaussianNoise | None = None
    ) -> Measured:
        """Every metric of the clean and the corrupted runs alone, as a sweep measures them. Arguments are those of
        `sweep`."""
        return self._measured(pairs, {"denoising": ()}, metrics, None, noise)[0]

    def patched_logits(
        self, pairs: EncodedPairs, patch: Patch, direction: Direction = "denoising"
    ) -> list[Float[Tensor, "_ d_vocab"]]:
        """Logits at all positions of one patched run per pair."""
        logits: dict[int, Tensor] = {}
        with self.running(pairs, {direction: [patch]}, reads_all=True, vocabulary=None) as runs:
            for (chunk,) in runs.chunks():
                for i, pair in enumerate(chunk.pairs.tolist()):
                    logits[pair] = chunk.base.logits[i, : chunk.lengths[i]]
                for batch, rows in runs.batches(runs.experiment, chunk):
                    for i, row in zip(batch.pairs, rows):
                        logits[int(chunk.pairs[i])] = row[: chunk.lengths[i]]
        return [logits[pair] for pair in range(len(pairs))]

    @contextlib.contextmanager
    def measuring_circuits(
        self,
        pairs: EncodedPairs,
        graph: Graph,
        metric: AnyMetric,
        *,
        places: tuple[tuple[Site, ...], ...] = ALL_POSITIONS,
        references: References | None = None,
    ) -> Iterator[CircuitMeasure]:
        """For searches, which choose what is run next by what was measured: what measures circuits in noising runs.

        Both runs of all pairs are recorded once, and kept while the context lasts.

        Args:
            pairs: the prompts.
            graph: of the model.
            metric: what is measured.
            places: where circuits tell their edges apart, counted in the run that is patched.
            references: as in `sweep`.
        """
        (measured,) = sets_of([metric], samples := _samples(references, None))
        every = np.ones((1, len(places), len(graph)), dtype=bool)
        whole = CircuitPatches(graph, every, ("all edges",), places)
        asked: Any = (pairs, {"noising": whole}, measured.reads_all_positions, measured.tokens)
        with self.running(*asked, references=references, noise=None, continuations=measured.continuations) as runs:
            yield CircuitMeasure(runs, measured, whole, len(pairs), samples)

    def _measured(
        self,
        pairs: EncodedPairs,
        patches: Mapping[Direction, Sequence[Patch]],
        metrics: Sequence[AnyMetric],
        references: References | None,
        noise: GaussianNoise | None,
    ) -> list[Measured]:
        sets = sets_of(metrics, _samples(references, noise))
        parts = [self._measured_of(pairs, patches, of, references, noise) for of in sets]
        found = [in_order(metrics, sets, of_sets) for of_sets in zip(*parts)]
        self.shortcuts = found[0].shortcuts
        return found

    def _measured_of(
        self,
        pairs: EncodedPairs,
        patches: Mapping[Direction, Sequence[Patch]],
        measured: MetricSet | SequenceSet,
        references: References | None,
        noise: GaussianNoise | None,
    ) -> list[Measured]:
        """Metrics that are measured on the same runs."""
        samples = measured.samples
        n_runs = measured.n_runs(len(pairs))
        n_patches = len(next(iter(patches.values())))
        patched = np.full((len(patches), len(measured), n_patches, n_runs), np.nan)
        clean, corrupted = np.full((2, len(measured), n_runs), np.nan)
        with (
            self.running(
                pairs,
                patches,
                measured.reads_all_positions,
                measured.tokens,
                references=references,
                noise=noise,
                continuations=measured.continuations,
            ) as runs,
            tqdm(
                total=len(patches) * n_patches * n_runs,
                unit="run",
                desc="Patching" if self.estimate is None else "Estimating",
                disable=None if self.show_progress and n_patches else True,  # None: not where stderr is no terminal
            ) as progress,
        ):
            for chunks in runs.chunks():
                for chunk, experiment, values in zip(chunks, runs.experiments, patched):
                    indices = chunk.pairs.numpy()
                    is_denoising = experiment.direction == "denoising"
                    clean_run = chunk.other if is_denoising else chunk.base
                    corrupted_run = chunk.base if is_denoising else chunk.other
                    measure = functools.partial(
                        measured.measure,
                        clean=clean_run.logits,
                        pairs=chunk.pairs,
                        clean_lengths=chunk.lengths_of(clean_run),
                    )
                    every = torch.arange(len(indices))
                    for values_of_run, run in ((clean, clean_run), (corrupted, corrupted_run)):
                        of_run = measure(run.logits, rows=every, lengths=chunk.lengths_of(run))
                        values_of_run[:, indices] = of_run.numpy()
                    values[:, :, indices] = (corrupted if is_denoising else clean)[:, None, indices]
                    done = 0
                    if self.estimate is not None and n_patches:
                        for rows, scores in runs.scores(experiment, chunk, measure):
                            at = values[:, :, indices[rows.numpy()]]
                            moved = np.where(np.isfinite(at), scores.cpu().numpy(), 0)
                            values[:, :, indices[rows.numpy()]] = at + moved
                            done += n_patches * len(rows)
                            progress.update(n_patches * len(rows))
                        continue
                    for batch, logits in runs.batches(experiment, chunk):
                        of_rows = measure(logits, rows=torch.from_numpy(batch.pairs), lengths=chunk.lengths)
                        values[:, batch.patches, indices[batch.pairs]] = of_rows.numpy()
                        done += len(batch)
                        progress.update(len(batch))
                    progress.update(n_patches * len(indices) - done)
        notes = (*runs.notes, *_rounding_notes(measured, runs.rounding))
        clean, corrupted, *each = (
            mean_of_samples(measured.of_pairs(values), samples) for values in (clean, corrupted, *patched)
        )
        return [Measured(values, clean, corrupted, runs.exactness.held, notes) for values in each]

    def _checked(
        self,
        pairs: EncodedPairs,
        patches: Mapping[Direction, Sequence[Patch]],
        references: References | None,
        noise: GaussianNoise | None,
    ) -> tuple[dict[Direction, list[list[Int[Tensor, "pair _"] | None]]], set[str]]:
        """The positions of each direction's patches, and the hook points that are written."""
        for direction in patches:
            check_direction(direction)
        known = self.runner.hook_points
        positions = {
            direction: self._positions(pairs.in_direction(direction), of_direction, known)
            for direction, of_direction in patches.items()
        }
        if noise is not None and references is not None:
            raise ValueError("noise makes the corrupted run that is patched from or into: ablations take none")
        names = {name for of_direction in patches.values() for name in _written(of_direction)}
        if noise is None and references is None:
            checks.check_can_be_aligned(names, pairs)
        if self.estimate is not None and any(weight.is_inference() for weight in self.runner.model.parameters()):
            raise ValueError(
                "the model's weights were made in inference mode, through which torch takes no gradients: load the "
                "model outside of torch.inference_mode(), or run the patches themselves"
            )
        return positions, names

    def _positions(
        self, pairs: EncodedPairs, patches: Sequence[Patch], known: Collection[str]
    ) -> list[list[Int[Tensor, "pair _"] | None]]:
        """Of each site of each patch, or each place of edges, the positions in each pair; every site is checked."""
        found: dict[str, Int[Tensor, "pair _"]] = {}
        if isinstance(patches, GraphPatches):
            checked = [[replace(at, hook_point=INPUT) for at in place] for place in patches.places]
        else:
            checked = [list(patch.sites) for patch in patches]
        return [
            [checks.checked_positions(self.runner, site, pairs, known, found) for site in sites] for sites in checked
        ]

    @contextlib.contextmanager
    def running(
        self,
        pairs: EncodedPairs,
        patches: Mapping[Direction, Sequence[Patch]],
        reads_all: bool,
        vocabulary: Int[Tensor, " token"] | None,
        *,
        references: References | None = None,
        noise: GaussianNoise | None = None,
        continuations: Sequence[Sequence[Whole]] | None = None,
    ) -> Iterator[Runs]:
        """The experiment, checked, with the model made ready and put back afterwards.

        Args:
            continuations: what is appended to both prompts of each pair, a run each; None for nothing. Positions count
                in the prompts, and nothing is written after them.
        """
        positions, names = self._checked(pairs, patches, references, noise)
        # Gradients are taken in whatever mode the caller is: what is recorded in inference mode has none.
        mode = contextlib.nullcontext() if self.estimate is None else torch.inference_mode(False)
        with mode, self.runner.as_found(names):
            placed = None
            if noise is not None:
                placed = noise.placed(pairs, functools.partial(embedding_deviation, self.runner))
                pairs = replace(pairs, corrupted=pairs.clean, matches=(), corrupted_positions=())
            seen = {direction: pairs.in_direction(direction) for direction in patches}
            samples = _samples(references, noise)
            times = torch.full((len(pairs),), samples)
            repeated = {direction: of_run.repeated(samples) for direction, of_run in seen.items()}
            if continuations is not None:
                of_runs = [of_pair for of_pair in continuations for _ in range(samples)]
                each = [len(of_run) for of_run in of_runs]
                references, placed = references and references.repeated(each), placed and placed.repeated(each)
                repeated = {direction: of_run.continued(of_runs) for direction, of_run in repeated.items()}
                times *= torch.tensor([*map(len, continuations)])
            experiments = [
                Experiment(
                    self.runner,
                    repeated[direction],
                    of_direction,
                    [
                        [_of_runs(at, None if references else seen[direction].partners, times) for at in of_patch]
                        for of_patch in positions[direction]
                    ],
                    direction,
                    reads_all,
                    vocabulary,
                    references,
                    placed,
                    self.estimate,
                )
                for direction, of_direction in patches.items()
            ]
            runs = Runs(experiments, self.batch_size)
            yield runs
            self.shortcuts = runs.exactness.held


def _written(patches: Sequence[Patch]) -> set[str]:
    """Hook points at which is written."""
    if isinstance(patches, GraphPatches):
        return recorded_for(patches)[0]
    return {site.hook_point for patch in patches for site in patch.sites}


def _of_runs(
    at: Int[Tensor, "pair _"] | None, partners: Int[Tensor, "pair longest"] | None, times: Int[Tensor, " pair"]
) -> Int[Tensor, "run _"] | None:
    """The positions that are written in each run: each pair's, once per sample and continuation."""
    written = written_positions(at, partners)
    return None if written is None else written.repeat_interleave(times, dim=0)


def _samples(references: References | None, noise: GaussianNoise | None) -> int:
    """How many runs there are of each patch on each pair."""
    if references is not None:
        return references.samples
    return 1 if noise is None else noise.samples


def _rounding_notes(metrics: MetricSet | SequenceSet, rounding: Rounding | None) -> Iterator[str]:
    """A sentence for each metric that rounding alone moves by more than a share of its gap."""
    if rounding is None:
        return

    def measured(runs: Float[Tensor, "way read token"], length: int) -> Float[np.ndarray, "metric way"]:
        return metrics.measure(
            runs,
            rounding.clean[:1],
            rows=torch.zeros(len(runs), dtype=torch.long),
            pairs=torch.tensor([rounding.pair]),
            lengths=torch.tensor([length]),
            clean_lengths=torch.tensor([rounding.clean_length]),
        ).numpy()

    clean = measured(rounding.clean, rounding.clean_length)
    corrupted = measured(rounding.corrupted, rounding.corrupted_length)
    with np.errstate(invalid="ignore"):  # a run from which no answer of a side is read has -inf there
        gaps = np.abs(clean[:, 0] - corrupted[:, 0])
        moved = np.maximum(*(np.abs(runs - runs[:, :1]).max(axis=1) for runs in (clean, corrupted)))
    for name, size, gap in zip(metrics.names, moved, gaps):
        if size > WORTH_A_NOTE * gap:
            share = f"{size / gap:.1%} of its gap" if gap else "although its gap is 0"
            yield f"rounding alone moves the {name} by {size:.2g}, {share} (of one pair, run in other ways)"
