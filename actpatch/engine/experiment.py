"""One experiment as the engine runs it, and some of its pairs once they are recorded: values; nothing runs here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.direction import Direction
from actpatch.core.sites import Patch, block_hook
from actpatch.interventions.noise import PlacedNoise
from actpatch.interventions.sources import References
from actpatch.models.runner import Recording, Runner
from actpatch.tasks.encoding import EncodedPairs


@dataclass(frozen=True)
class Experiment:
    """What is run: patches on pairs, in a direction, for metrics that read the end of each run or all of it."""

    runner: Runner
    pairs: EncodedPairs
    """Each pair stands here once per sample, of the noise or of what is written, and for whole answers once per
    continuation of its prompts."""
    patches: Sequence[Patch]
    positions: Sequence[Sequence[Int[Tensor, " pair"] | None]]
    """For each site of each patch its position in each pair; None for all positions."""
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
        ends = self.pairs.prompt_lengths
        if self.noise is not None:
            first = self.noise.first_change
        elif self.references is not None:
            first = self.references.first_change(self.prompts[0])
        else:
            first = self.pairs.first_difference
        return torch.where(first < ends, first, self.pairs.lengths)  # nothing is written after the prompt

    @functools.cached_property
    def reads(self) -> Int[Tensor, "pair read"] | None:
        """Positions of each pair's runs at which logits are read; None for all.

        They are the prompt's last and those of what is appended to it. A run with fewer of them than others is read
        at its last one again.
        """
        if self.reads_all:
            return None
        lengths, ends = self.pairs.lengths, self.pairs.prompt_lengths
        most = int((lengths - ends).max())
        return torch.minimum(ends[:, None] - 1 + torch.arange(most + 1), lengths[:, None] - 1)

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
    ends: Int[Tensor, " pair"]
    """Number of tokens of each pair's prompts: nothing is written at the positions from there on."""
    reads: Int[Tensor, "pair read"] | None
    """Positions at which logits are read; None for all."""
    first_change: Int[Tensor, " pair"]
    """First position at which what is written may differ from the run that is patched."""
    base: Recording
    """The run that is patched."""
    other: Recording
    """The other run of the pair."""
    source: dict[str, Tensor]
    """Hook point -> what is written there, one row per pair."""
    base_noise: Float[Tensor, "pair pos d_model"] | None = None
    """What is added to the embeddings of the run that is patched."""
    other_noise: Float[Tensor, "pair pos d_model"] | None = None
    """What is added to those of the other run."""


def resid_name(layer: int, n_layers: int) -> str:
    """Where the residual stream before a layer is recorded; `n_layers` stands for after the last one."""
    return block_hook(layer, "resid_pre") if layer < n_layers else block_hook(n_layers - 1, "resid_post")
