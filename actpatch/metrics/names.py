"""How the names of metrics are compared. Results know metrics by name alone, and are read without torch."""

from __future__ import annotations

import re


def metric_key(name: str) -> str:
    """A metric's name as it is looked up: `KL divergence` and `kl_divergence` are the same."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
