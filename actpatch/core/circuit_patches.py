"""Circuits as patches: in each run all edges but those of a circuit are patched together. Nothing here runs a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from actpatch.core.edge_patches import ALL_POSITIONS, GraphPatches
from actpatch.core.graph import Graph
from actpatch.core.sites import Patch, Site


@dataclass(frozen=True, eq=False, repr=False)
class CircuitPatches(GraphPatches):
    """Circuits of a graph, each run alone: every receiver reads of its senders in the circuit what these give in this
    very run, and of all others what is written."""

    graph: Graph
    kept: Bool[np.ndarray, "circuit place edge"]
    """Which edges each circuit has at each of the places, of all in the order of `edge_patches(graph)`. At a position
    of several places it has those of each, at positions of none it has no edge."""
    names: tuple[str, ...]
    """What each circuit is called."""
    places: tuple[tuple[Site, ...], ...] = ALL_POSITIONS

    def __post_init__(self) -> None:
        expected = (len(self.names), len(self.places), len(self.graph))
        if self.kept.shape != expected:
            raise ValueError(
                f"circuits are of shape {self.kept.shape}, expected (circuits, places, edges) = {expected}"
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return replace(self, kept=self.kept[index], names=self.names[index])
        return Patch((Site("blocks.0.hook_resid_pre"),), name=self.names[index])

    @property
    def used_writers(self) -> Int[np.ndarray, " used"]:
        return np.arange(len(self.graph.writers))

    @property
    def used_readers(self) -> Int[np.ndarray, " used"]:
        return np.arange(len(self.graph.readers))

    @property
    def tells_positions_apart(self) -> bool:
        """Whether its places are some of the positions, and not all of them together."""
        return self.places != ALL_POSITIONS
