"""One experiment as the engine runs it, and some of its pairs once they are recorded: values; nothing runs here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.direction import Direction
from actpatch.core.estimates import Estimate
from actpatch.core.sites import Patch, block_hook
from actpatch.engine.partners import first_change
from actpatch.interventions.noise import PlacedNoise
from actpatch.interventions.sources import References
from actpatch.models.runner import Recording, Runner
from actpatch.tasks.encoding import EncodedPairs


@dataclass(frozen=True)
class Experiment:
    """What is run: patches on pairs, in a direction, for metrics that read the end of each run or all of it."""

    runner: Runner
    pairs: EncodedPairs
    """As the run that is patched counts them. Each stands here once per sample, of the noise or of what is written, and
    for whole answers once per continuation of its prompts."""
    patches: Sequence[Patch]
    positions: Sequence[Sequence[Int[Tensor, "pair _"] | None]]
    """For each site of each patch the positions in each pair that are written, -1 in the place of those that a pair
    lacks; None for all. For edges they are those of each place (`EdgePatches.places`)."""
    direction: Direction
    reads_all: bool
    """Whether the metric reads all positions."""
    vocabulary: Int[Tensor, " token"] | None
    """Vocabulary entries that the metric reads; None for all. Recordings hold the logits of no others."""
    references: References | None = None
    """The prompts whose mean activations are written; None for the pair's other run."""
    noise: PlacedNoise | None = None
    """What makes the corrupted run out of the clean prompt's embeddings; None where the prompts differ."""
    estimate: Estimate | None = None
    """How patches are estimated from gradients; None where they are run."""

    @property
    def enters(self) -> bool:
        """Whether rows of patches enter recorded runs: not where effects are estimated, nor where circuits are run."""
        return self.estimate is None and not isinstance(self.patches, CircuitPatches)

    @functools.cached_property
    def resumes(self) -> bool:
        """Whether the model's blocks are run singly, if it lets them: to patch, or to compute attention anew."""
        if isinstance(self.patches, CircuitPatches):
            return False
        if self.estimate is None or self.estimate.method != "atp_star":
            return self.estimate is None
        return any(site.component in ("q", "k") for patch in self.patches for site in patch.sites)

    @functools.cached_property
    def first_change(self) -> Int[Tensor, " pair"]:
        """First position of each pair at which what is written may differ from the run that is patched."""
        ends = self.pairs.prompt_lengths
        if self.noise is not None:
            first = self.noise.first_change
        elif self.references is not None:
            first = self.references.first_change(self.prompts[0])
        elif self.partners is not None:
            first = first_change(self.partners, self.pairs.first_difference, self.pairs.lengths)
        else:
            first = self.pairs.first_difference
        return torch.where(first < ends, first, self.pairs.lengths)  # nothing is written after the prompt

    @functools.cached_property
    def reads(self) -> Int[Tensor, "pair read"] | None:
        """Positions of the run that is patched at which logits are read; None for all.

        They are the prompt's last and those of what is appended to it. A run with fewer of them than others is read
        at its last one again.
        """
        return self._reads_of(self.pairs.lengths)

    @functools.cached_property
    def other_reads(self) -> Int[Tensor, "pair read"] | None:
        """The same of the other run, whose prompt may have another end."""
        return self._reads_of(self.pairs.other_lengths)

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

    def _reads_of(self, lengths: Int[Tensor, " pair"]) -> Int[Tensor, "pair read"] | None:
        if self.reads_all:
            return None
        appended = self.pairs.lengths - self.pairs.prompt_lengths
        last = (lengths - appended - 1)[:, None]
        return torch.minimum(last + torch.arange(int(appended.max()) + 1), lengths[:, None] - 1)


@dataclass(frozen=True)
class Chunk:
    """Some pairs of an experiment, recorded."""

    pairs: Int[Tensor, " pair"]
    """Index of each pair within the experiment."""
    lengths: Int[Tensor, " pair"]
    """Number of tokens of each of the runs that are patched: of the prompt, and of what is appended to it."""
    other_lengths: Int[Tensor, " pair"]
    """Number of tokens of each of the other runs."""
    ends: Int[Tensor, " pair"]
    """Number of tokens of each prompt of the run that is patched: nothing is written at the positions from there on."""
    reads: Int[Tensor, "pair read"] | None
    """Positions of the run that is patched at which logits are read; None for all."""
    other_reads: Int[Tensor, "pair read"] | None
    """Those of the other run."""
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

    def reads_of(self, run: Recording) -> Int[Tensor, "pair read"] | None:
        """Positions of one of the two runs at which logits are read; None for all."""
        return self.reads if run is self.base else self.other_reads


def resid_name(layer: int, n_layers: int) -> str:
    """Where the residual stream before a layer is recorded; `n_layers` stands for after the last one."""
    return block_hook(layer, "resid_pre") if layer < n_layers else block_hook(n_layers - 1, "resid_post")
