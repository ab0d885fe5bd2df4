"""Noise that makes the corrupted run out of the clean prompt: causal tracing (Meng et al. 2022).

Noise is described and drawn here; the engine adds it to embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.interventions.draws import check_seed, checked_samples
from actpatch.interventions.positions import as_list, positions_in_pairs
from actpatch.tasks.encoding import EncodedPairs


@dataclass(frozen=True)
class GaussianNoise:
    """The corrupted run is the clean prompt with noise on the embeddings of chosen tokens: causal tracing.

    Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2. The noise is normal, independent in
    every entry, and its standard deviation is `multiple` times that of the token embeddings: of all entries of the
    embeddings of the whole vocabulary, as they pass `hook_embed` (for most models the matrix W_E, without positional
    embeddings). The authors' code takes it over the tokens of its data's subjects alone, which depends on the data at
    hand. The metric is averaged over the samples of each pair, so that pairs stay the unit of all statistics.
    """

    positions: int | str | Sequence[int | str]
    """Which tokens: positions (negative ones count from the end) or names that the task gives them; one or several."""
    multiple: float = 3.0
    samples: int = 10
    """How many draws of the noise each pair is run with."""
    seed: int = 0
    """The noise is a function of the seed, the pair's index in its dataset and the number of the sample alone."""

    def __post_init__(self) -> None:
        multiple = self.multiple
        if isinstance(multiple, bool) or not isinstance(multiple, Real) or not 0 <= multiple < np.inf:
            raise ValueError(f"noise multiple is {multiple!r}, expected a number of at least 0, usually 3")
        object.__setattr__(self, "samples", checked_samples(self.samples, "noise"))
        check_seed(self.seed)
        places = as_list(self.positions)
        if not places:
            raise ValueError("noise positions is empty: give at least one token to put noise on")
        object.__setattr__(self, "positions", tuple(dict.fromkeys(places)))

    @property
    def label(self) -> str:
        where = ", ".join(map(str, as_list(self.positions)))
        draws = f"{self.samples} sample{'' if self.samples == 1 else 's'}"
        return f"Gaussian noise at {where} of {self.multiple:g} × the embeddings' sd ({draws}, seed {self.seed})"

    def placed(self, pairs: EncodedPairs, deviation: Callable[[], float]) -> PlacedNoise:
        """The noise of each pair and sample.

        Args:
            pairs: the pairs.
            deviation: finds the standard deviation of the embeddings; called only once the positions are known.

        Raises:
            ValueError: for a position out of range or a name that a pair lacks.
        """
        per_place = [positions_in_pairs(place, pairs) for place in as_list(self.positions)]
        where = [
            tuple(sorted({one for span in spans for one in (span if isinstance(span, tuple) else (span,))}))
            for spans in zip(*per_place)
        ]
        return PlacedNoise(
            positions=tuple(at for at in where for _ in range(self.samples)),
            keys=tuple((self.seed, index, sample) for index in pairs.indices for sample in range(self.samples)),
            deviation=self.multiple * deviation(),
        )


@dataclass(frozen=True)
class PlacedNoise:
    """Noise for each run of an experiment: its pairs, each as often as there are samples."""

    positions: tuple[tuple[int, ...], ...]
    """The noised positions of each run, in order."""
    keys: tuple[tuple[int, int, int], ...]
    """(seed, pair's index in its dataset, sample): what each run's noise is drawn from."""
    deviation: float

    @property
    def first_change(self) -> Int[Tensor, " run"]:
        """First noised position of each run."""
        return torch.tensor([at[0] for at in self.positions])

    def values(self, runs: Sequence[int], length: int, d_model: int) -> Float[Tensor, "run pos d_model"]:
        """What is added to the embeddings of these runs."""
        added = torch.zeros(len(runs), length, d_model)
        for row, run in enumerate(runs):
            drawn = np.random.default_rng(self.keys[run]).standard_normal((len(self.positions[run]), d_model))
            added[row, list(self.positions[run])] = self.deviation * torch.from_numpy(drawn).float()
        return added
