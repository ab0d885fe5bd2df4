"""Random maps of effects."""

from __future__ import annotations

import numpy as np


def random_map(seed: int, n_sites: int = 16, n_pairs: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patched, base and source of a map whose effects go from 0 to 1."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal(n_pairs)
    source = base + 5 + rng.standard_normal(n_pairs)
    share = np.linspace(0, 1, n_sites)[:, None] + 0.3 * rng.standard_normal((n_sites, n_pairs))
    return base + share * (source - base), base, source
