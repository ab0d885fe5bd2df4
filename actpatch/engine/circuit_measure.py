"""Circuits measured again and again in noising runs of the same pairs.

It is for searches, which choose what is run by what was measured.
Nothing here chooses anything.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.engine.measured import mean_of_samples
from actpatch.engine.runs import Runs
from actpatch.metrics.chosen import MetricSet
from actpatch.metrics.sequence import SequenceSet


class CircuitMeasure:
    """Measures circuits on pairs that were recorded once.

    Args:
        runs: the experiment.
        measured: the metric.
        patches: whose places are those of the circuits.
        n_pairs: number of pairs.
        samples: number of runs of each.
    """

    def __init__(
        self, runs: Runs, measured: MetricSet | SequenceSet, patches: CircuitPatches, n_pairs: int, samples: int
    ) -> None:
        self.runs, self.measured, self.patches, self.n_pairs, self.samples = runs, measured, patches, n_pairs, samples
        self._of_chunks = [runs.circuit_runs(runs.experiment, chunk) for (chunk,) in runs.chunks()]

    def __call__(self, kept: Bool[np.ndarray, "circuit place edge"]) -> Float[np.ndarray, "circuit pair"]:
        """The metric of each circuit on each pair."""
        patches = replace(self.patches, kept=kept, names=tuple(map(str, range(len(kept)))))
        values = np.full((len(self.measured), len(kept), self.measured.n_runs(self.n_pairs)), np.nan)
        for of_chunk in self._of_chunks:
            chunk = of_chunk.chunk
            for batch, logits in self.runs.circuit_batches(of_chunk, patches):
                of_rows = self.measured.measure(
                    logits,
                    chunk.base.logits,
                    rows=torch.from_numpy(batch.pairs),
                    pairs=chunk.pairs,
                    lengths=chunk.lengths,
                    clean_lengths=chunk.lengths,
                )
                values[:, batch.patches, chunk.pairs.numpy()[batch.pairs]] = of_rows.numpy()
        return mean_of_samples(self.measured.of_pairs(values), self.samples)[0]

    def hold(self, kept: Bool[np.ndarray, "place edge"]) -> None:
        """Run this circuit, so that of those that are measured next only what is not as in this one has to be run."""
        for of_chunk in self._of_chunks:
            of_chunk.hold(kept)
