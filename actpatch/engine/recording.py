"""Records both runs of some pairs in one pass, and the means over reference prompts that ablations write.

What was recorded of the two runs serves either direction. Nothing here knows how patches are run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.engine.checks import check_shape, positions_are_ambiguous
from actpatch.engine.exactness import Exactness
from actpatch.engine.experiment import Chunk, Experiment
from actpatch.engine.memory import prompts_that_fit
from actpatch.engine.partners import in_order_of_base
from actpatch.engine.writes import noise_hook
from actpatch.interventions.sources import Prompts
from actpatch.models.runner import Read, Recording, joined


class Recorder:
    """Records the pairs of an experiment, a few at a time, for each direction that it is run in.

    Args:
        experiments: the experiment, once per direction.
        pairs_at_once: how many prompts of references fit into memory together.
    """

    def __init__(self, experiments: Sequence[Experiment], pairs_at_once: Callable[[], int]) -> None:
        self.experiments = experiments
        self.experiment = experiments[0]
        self.runner, self.pairs = self.experiment.runner, self.experiment.pairs
        self.pairs_at_once = pairs_at_once
        self._means: dict[int, dict[str, Tensor]] = {}
        self._exactness = Exactness()
        self._axes_are_known = False

    def record(
        self, pairs: Int[Tensor, " pair"], base_names: set[str], source_names: set[str], *, exactness: Exactness
    ) -> tuple[Chunk, ...]:
        """The pairs' runs, as seen in each direction.

        Both are recorded from one pass: for few tokens, reading the weights is what a pass takes.

        Args:
            pairs: which pairs.
            base_names: hook points needed of the run that is patched.
            source_names: hook points whose activations are written.
            exactness: the shortcuts that hold.

        Raises:
            ValueError: for a hook point without a prompt, a position, or the heads that it should have.
            RuntimeError: for one that does not fire.
        """
        if exactness != self._exactness:  # means of runs made in a way that is not the model's own
            self._means.clear()
        self._exactness = exactness
        averaged = self.experiment.references is not None
        of_base, of_other = (base_names | source_names, set()) if averaged else (base_names, source_names)
        if len(self.experiments) > 1:  # each run is then patched in one direction and copied from in the other
            of_base = of_other = base_names | source_names
        runs = [[run[i] for i in pairs] for run in (self.pairs.clean, self.pairs.corrupted)]
        names = (of_other, of_base) if self.experiment.direction == "denoising" else (of_base, of_other)
        noise = self._noise(pairs)
        # Clean first, whatever the direction: rounding depends on it.
        at = [of_run[pairs] for of_run in self._reads() if of_run is not None]
        passes = [([*runs[0], *runs[1]], torch.cat(at) if at else None)]
        if not exactness.padded and len(runs[0][0]) != len(runs[1][0]):
            passes = [*zip(runs, at or (None, None))]
        recordings = [
            self._recorded_together(prompts, of_base | of_other, source_names, of_run, noise)
            for prompts, of_run in passes
        ]
        halves = slice(len(pairs)), slice(len(pairs), None)
        added = None if noise is None else [noise[half] for half in halves]
        if len(recordings) == 1:
            parts = [recordings[0].part(half, of_run) for half, of_run in zip(halves, names)]
        else:
            parts = [recorded.part(slice(None), of_run) for recorded, of_run in zip(recordings, names)]
        return tuple(self._chunk(experiment, pairs, parts, added, source_names) for experiment in self.experiments)

    def _reads(self) -> tuple[Int[Tensor, "pair read"] | None, Int[Tensor, "pair read"] | None]:
        """Where logits are read of the clean runs and of the corrupted ones; None for all positions."""
        reads = self.experiment.reads, self.experiment.other_reads
        return reads[::-1] if self.experiment.direction == "denoising" else reads

    def _recorded_together(
        self,
        prompts: Sequence[Int[Tensor, " _"]],
        names: set[str],
        source_names: set[str],
        at: Int[Tensor, "prompt read"] | None,
        noise: Float[Tensor, "prompt pos d_model"] | None,
    ) -> Recording:
        tokens = padded(prompts)
        recorded = self._record_run(tokens, names, at, noise)
        for name in source_names:
            check_shape(name, recorded.activations.get(name), tokens.shape, self.runner)
        self._check_axes(tokens, source_names, recorded)
        return recorded

    def _chunk(
        self,
        experiment: Experiment,
        pairs: Int[Tensor, " pair"],
        runs: Sequence[Recording],
        noise: Sequence[Float[Tensor, "pair pos d_model"]] | None,
        source_names: set[str],
    ) -> Chunk:
        """The recorded clean and corrupted runs, as seen in the direction of the experiment."""
        patched = experiment.direction == "denoising"
        base, other = runs[patched], runs[not patched]
        source = other.activations
        if experiment.references is not None:
            source = self._reference_means(pairs, base, source_names)
        elif experiment.partners is not None:
            copied = {name: other.activations[name] for name in source_names}
            source = in_order_of_base(copied, experiment.partners[pairs], base.tokens.shape[1])
        return Chunk(
            pairs,
            experiment.pairs.lengths[pairs],
            experiment.pairs.other_lengths[pairs],
            experiment.pairs.prompt_lengths[pairs],
            None if experiment.reads is None else experiment.reads[pairs],
            None if experiment.other_reads is None else experiment.other_reads[pairs],
            experiment.first_change[pairs],
            base,
            other,
            source,
            None if noise is None else noise[patched],
            None if noise is None else noise[not patched],
        )

    def _check_axes(self, prompts: Int[Tensor, "prompt pos"], names: set[str], recorded: Recording) -> None:
        """Look at a shorter prompt where another axis is as long as that of the positions, and might be meant."""
        if self._axes_are_known or prompts.shape[1] < 2:
            return
        unsure = {name for name in names if positions_are_ambiguous(name, recorded.activations[name])}
        if unsure:
            shorter = prompts[:1, :-1]
            found = self._record_run(shorter, unsure, _last(shorter)).activations
            for name in unsure:
                check_shape(name, found.get(name), shorter.shape, self.runner)
        self._axes_are_known = True

    def _record_run(
        self,
        prompts: Int[Tensor, "prompt pos"],
        hook_points: Collection[str],
        at: Int[Tensor, "prompt read"] | None,
        noise: Float[Tensor, "prompt pos d_model"] | None = None,
    ) -> Recording:
        """One run of all these prompts, or of as many at a time as fit into memory; of one, where only that is the
        model's own."""
        exactness = self._exactness
        size = prompts_that_fit(self.runner, prompts.shape[1]) if exactness.together else 1
        runs = []
        for begin in range(0, len(prompts), size):
            rows = slice(begin, begin + size)
            read = Read(None if at is None else at[rows], self.experiment.vocabulary, exactness.logits)
            with self.runner.hooks([] if noise is None else [noise_hook(noise[rows])]):
                tokens = prompts[rows].to(self.runner.device)
                runs.append(self.runner.record(tokens, hook_points, read, keeps_keys=exactness.prefix))
        return joined(runs)

    def _noise(self, pairs: Int[Tensor, " pair"]) -> Float[Tensor, "prompt pos d_model"] | None:
        """Added to the embeddings of the clean runs, which is nothing, and then of the corrupted ones."""
        if self.experiment.noise is None:
            return None
        longest = int(self.pairs.lengths[pairs].max())
        noise = self.experiment.noise.values(pairs.tolist(), longest, self.runner.model.cfg.d_model)
        noise = noise.to(self.runner.device)
        return torch.cat([torch.zeros_like(noise), noise])

    def _reference_means(
        self, pairs: Int[Tensor, " pair"], base: Recording, names: set[str]
    ) -> dict[str, Float[Tensor, "pair ..."]]:
        """Each hook point's mean over the reference prompts of each pair, zero where there are none."""
        references = self.experiment.references
        assert references is not None
        groups = [references.of_pair[pair] for pair in pairs.tolist()]
        means = {group: self._means[group] for group in groups if group in self._means}
        if new := sorted({*groups} - {*means}):
            means |= zip(new, self._means_over([references.groups[group] for group in new], base, names))
        self._means = means
        shapes = {name: base.activations[name].shape[1:] for name in names}
        return {name: torch.stack([_fitted(means[group][name], shapes[name]) for group in groups]) for name in names}

    def _batches(self, waiting: Sequence[tuple[int, Int[Tensor, " _"]]]) -> Iterator[list[tuple[int, Tensor]]]:
        """Prompts with their groups, those together that may be run so."""
        size = self.pairs_at_once()
        batch: list[tuple[int, Tensor]] = []
        for item in waiting:
            is_other = bool(batch) and not self._exactness.padded and len(item[1]) != len(batch[0][1])
            if len(batch) == size or is_other:
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    def _means_over(self, groups: Sequence[Prompts], base: Recording, names: set[str]) -> list[dict[str, Tensor]]:
        """Each hook point's mean over each group of prompts; sums are kept, not the prompts' own activations."""
        sums = [{name: torch.zeros_like(base.activations[name][0]) for name in names} for _ in groups]
        waiting = [(i, prompt) for i, prompts in enumerate(groups) for prompt in prompts]
        waiting.sort(key=lambda item: len(item[1]))
        for batch in self._batches(waiting):
            prompts = padded([prompt for _, prompt in batch])
            recorded = self._record_run(prompts, names, _last(prompts)).activations
            for row, (i, _) in enumerate(batch):
                for name in names:
                    value = recorded[name][row]
                    total = sums[i][name].to(torch.promote_types(value.dtype, torch.float32))
                    sums[i][name] = value + _fitted(total, value.shape)
        return [
            {name: (total / max(1, len(prompts))).to(base.activations[name].dtype) for name, total in of_group.items()}
            for of_group, prompts in zip(sums, groups)
        ]


def padded(prompts: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, "pair pos"]:
    """Prompts of one length, by repeating their last token: attention is causal, so nothing that is read sees it."""
    longest = max(len(prompt) for prompt in prompts)
    return torch.stack([torch.cat([p, p[-1:].expand(longest - len(p))]) for p in prompts])


def _last(prompts: Int[Tensor, "prompt pos"]) -> Int[Tensor, "prompt 1"]:
    """Where logits are read of runs of which none are wanted."""
    return torch.full((len(prompts), 1), prompts.shape[1] - 1)


def _fitted(value: Tensor, shape: Sequence[int]) -> Tensor:
    """The activation of one prompt, cut off or padded with zeros where it has other numbers of positions."""
    fitted = value.new_zeros(tuple(shape))
    common = tuple(slice(min(sizes)) for sizes in zip(value.shape, shape))
    fitted[common] = value[common]
    return fitted
