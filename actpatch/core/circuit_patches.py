"""Circuits as patches: in each run all edges but those of a circuit are patched together. Nothing here runs a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
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
    kept: Bool[np.ndarray, "circuit edge"]
    """Which edges each circuit has, of all in the order of `edge_patches(graph)`."""
    names: tuple[str, ...]
    """What each circuit is called."""
    places: tuple[tuple[Site, ...], ...] = ALL_POSITIONS

    def __post_init__(self) -> None:
        if self.kept.shape != (len(self.names), len(self.graph)):
            raise ValueError(
                f"circuits are of shape {self.kept.shape}, expected (circuits, edges) = "
                f"{(len(self.names), len(self.graph))}"
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

    @cached_property
    def first_edge(self) -> Int[np.ndarray, " reader"]:
        """Number of the first edge into each reader: those into one reader follow each other, by sender."""
        return np.concatenate([[0], np.cumsum(self.graph.n_writers_before)[:-1]])

    def left_out(self, circuits: Int[np.ndarray, " row"], readers: list[int]) -> Bool[np.ndarray, "row reader writer"]:
        """Which of the edges into some readers with as many senders each are not in these circuits."""
        n_writers = int(self.graph.n_writers_before[readers[0]])
        edges = self.first_edge[readers][:, None] + np.arange(n_writers)
        return ~self.kept[circuits][:, edges]
