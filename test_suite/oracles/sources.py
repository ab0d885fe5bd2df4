"""What ablations and noise write: donors and noise drawn by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from activation_patching import GaussianNoise


def drawn(seed: int, pair: int, n_donors: int) -> list[int]:
    """The donors of a pair in the order in which they are drawn, as documented."""
    return np.random.default_rng([seed, pair]).permutation(n_donors).tolist()


def noise_by_hand(model: Any, noise: GaussianNoise, where: Sequence[Sequence[int]], lengths: Sequence[int]) -> Any:
    """For each sample the noise of each pair, drawn as documented."""
    deviation = float(model.W_E.detach().double().std(correction=0)) * noise.multiple
    d_model = model.cfg.d_model
    for sample in range(noise.samples):
        added = [torch.zeros(length, d_model) for length in lengths]
        for pair, at in enumerate(where):
            drawn = np.random.default_rng([noise.seed, pair, sample]).standard_normal((len(at), d_model))
            added[pair][sorted(at)] = deviation * torch.tensor(drawn, dtype=torch.float32)
        yield added
