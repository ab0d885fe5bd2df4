"""One experiment as the engine runs it, and some of its pairs once they are recorded: values; nothing runs here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.direction import Direction
from actpatch.core.sites import Patch, block_hook
from actpatch.engine.partners import first_change
from actpatch.interventions.noise import PlacedNoise
from actpatch.interventions.sources import References
from actpatch.models.runner import Recording, Runner
from actpatch.tasks.encoding import EncodedPairs


@dataclass(frozen=True)
class Experiment:
    """What is run: patches on pairs, in a direction, for a metric that reads the last position or all of them."""

    runner: Runner
    pairs: EncodedPairs
    """As the run that is patched counts them. Each stands here once per sample, of the noise or of what is written."""
    patches: Sequence[Patch]
    positions: Sequence[Sequence[Int[Tensor, "pair _"] | None]]
    """For each site of each patch the positions in each pair that are written, -1 in the place of those that a pair
    lacks; None for all."""
    direction: Direction
    reads_all: bool
    """Whether the metric reads all positions."""
    vocabulary: Int[Tensor, " token"] | None
    """Vocabulary entries that the metric reads; None for all. Recordings hold the logits of no others."""
    references: References | None = None
    """The prompts whose mean activations are written; None for the pair's other run."""
    noise: PlacedNoise | None = None
    """What makes the corrupted run out of the clean prompt's embeddings; None where the prompts differ."""

    @functools.cached_property
    def first_change(self) -> Int[Tensor, " pair"]:
        """First position of each pair at which what is written may differ from the run that is patched."""
        if self.noise is not None:
            return self.noise.first_change
        if self.references is not None:
            return self.references.first_change(self.prompts[0])
        if self.partners is not None:
            return first_change(self.partners, self.pairs.first_difference, self.pairs.lengths)
        return self.pairs.first_difference

    @property
    def partners(self) -> Int[Tensor, "pair longest"] | None:
        """For each position of the run that is patched the one in the other run whose activation is written there, -1
        for none; None where it is the position of the same number, and where what is written is of no other run."""
        return None if self.references is not None else self.pairs.partners

    @property
    def prompts(self) -> tuple[Sequence[Int[Tensor, " _"]], Sequence[Int[Tensor, " _"]]]:
        """The prompts of the runs that are patched, and those of the other runs."""
        clean, corrupted = self.pairs.clean, self.pairs.corrupted
        return (corrupted, clean) if self.direction == "denoising" else (clean, corrupted)


@dataclass(frozen=True)
class Chunk:
    """Some pairs of an experiment, recorded."""

    pairs: Int[Tensor, " pair"]
    """Index of each pair within the experiment."""
    lengths: Int[Tensor, " pair"]
    """Number of tokens of each prompt of the run that is patched."""
    other_lengths: Int[Tensor, " pair"]
    """Number of tokens of each prompt of the other run."""
    first_change: Int[Tensor, " pair"]
    """First position at which what is written may differ from the run that is patched."""
    base: Recording
    """The run that is patched."""
    other: Recording
    """The other run of the pair."""
    source: dict[str, Tensor]
    """Hook point -> what is written there, one row per pair, by the positions of the run that is patched."""
    base_noise: Float[Tensor, "pair pos d_model"] | None = None
    """What is added to the embeddings of the run that is patched."""
    other_noise: Float[Tensor, "pair pos d_model"] | None = None
    """What is added to those of the other run."""

    def lengths_of(self, run: Recording) -> Int[Tensor, " pair"]:
        """Number of tokens of each prompt of one of the two runs."""
        return self.lengths if run is self.base else self.other_lengths


def resid_name(layer: int, n_layers: int) -> str:
    """Where the residual stream before a layer is recorded; `n_layers` stands for after the last one."""
    return block_hook(layer, "resid_pre") if layer < n_layers else block_hook(n_layers - 1, "resid_post")
