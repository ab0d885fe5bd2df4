"""Estimates on small models: of every writer as a component, of every edge, and what has to be true of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actpatch.core.edge_patches import edge_patches
from actpatch.core.estimates import Estimate
from actpatch.core.graph import Graph, Writer
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.models.graph import graph_of
from test_suite.helpers.models import last_position_metric

SAME_GRADIENT = {"eap": "atp"}
"""Methods of edges -> those of components that take the same gradients, where their names are not the same."""
EDGE_METHODS = ("eap", "eap_ig", "clean_corrupted", "relp", "gim")
METHODS = ("atp", "eap_ig", "ig_activations", "clean_corrupted", "relp", "gim", "atp_star")


def scores(
    model: Any,
    pairs: Any,
    patches: Sequence[Patch],
    method: str,
    direction: Any = "denoising",
    *,
    steps: int | None = None,
    grid: Any = None,
    batch_size: int | None = None,
    metric: Any = None,
    **options: Any,
) -> np.ndarray:
    """By how much each patch is estimated to move the metric of each pair."""
    estimate = Estimate(method, steps, grid)  # type: ignore[arg-type]
    engine = PatchingEngine(model, show_progress=False, batch_size=batch_size, estimate=estimate)
    metric = metric or last_position_metric(len(pairs))
    found = engine.sweep(pairs, patches, [metric], direction, **options)
    base = found.corrupted if direction == "denoising" else found.clean
    return found.patched[0] - base[0][None]


def edge_scores(model: Any, pairs: Any, method: str, direction: Any = "denoising", **options: Any) -> np.ndarray:
    """The same of every edge, in the order of the graph."""
    return scores(model, pairs, edge_patches(graph_of(model)), method, direction, **options)


def site_of(writer: Writer) -> Site:
    """Where what a writer writes is patched as a component."""
    if writer.kind == "input":
        return Site("blocks.0.hook_resid_pre")
    if writer.head is None:
        return Site(block_hook(writer.layer, "mlp_out"))
    return Site(block_hook(writer.layer, "z"), head=writer.head)


def patches_of_writers(graph: Graph) -> list[Patch]:
    return [Patch((site_of(writer),)) for writer in graph.writers]
