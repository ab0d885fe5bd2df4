"""How much there is to compute, counted before anything is run: matrix products of what the engine has left to do.

A row (one patch on one pair) is run from the layer and the position at which it first changes anything, so its work is
that of the layers above, at the positions from there on. It is counted in floating-point operations of products with
weights; attention itself, normalizations and what is shared between edges are left out, which a calibration makes up
for. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from actpatch.core.alignment import span_of
from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.edge_patches import EdgePatches, GraphPatches
from actpatch.core.sites import Patch, Site
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.measured import sets_of
from actpatch.runs.asked import Asked

MOST_PAIRS = 64
"""Pairs that are looked at, evenly spread, for how many positions there are to compute."""


def work_of_patches(engine: PatchingEngine, asked: Asked) -> Float[np.ndarray, " patch"]:
    """Floating-point operations of each patch on a pair, as a mean over pairs, all directions, samples and runs of
    whole answers together. Of estimates it is what all patches share, evenly."""
    per_layer, n_layers = _per_token(engine), engine.n_layers
    n_runs = runs_per_pair(asked)
    if asked.estimate is not None:
        whole = 3 * 2 * asked.estimate.n_points * per_layer * n_layers * float(asked.pairs.lengths.double().mean())
        return np.full(asked.n_patches, whole * n_runs * len(asked.patches) / asked.n_patches)
    total = np.zeros(asked.n_patches)
    for direction, patches in asked.patches.items():
        pairs = asked.pairs.in_direction(direction)
        looked_at = np.unique(np.linspace(0, len(pairs) - 1, MOST_PAIRS).astype(int))
        lengths, first = pairs.lengths.numpy()[looked_at], pairs.first_difference.numpy()[looked_at]
        if asked.noise is not None or asked.references is not None:
            first = np.zeros_like(lengths)
        layers, starts, which = _entries(patches, looked_at, lengths, first)
        positions = np.maximum(lengths - starts, 0).mean(axis=1)[which]
        total += n_runs * per_layer * (np.maximum(n_layers - layers, 0) * positions + 1)
    return total


def work_of_recording(engine: PatchingEngine, asked: Asked) -> float:
    """Floating-point operations of the unpatched runs of a pair, and its share of reference prompts."""
    per_layer = _per_token(engine)
    n_prompts = 2.0 + (0 if asked.noise is None else asked.noise.samples)
    if asked.references is not None:
        n_prompts += sum(map(len, asked.references.groups)) / max(1, len(asked.pairs))
    return n_prompts * per_layer * engine.n_layers * float(asked.pairs.lengths.double().mean())


def runs_per_pair(asked: Asked) -> float:
    """How many runs there are of a patch on a pair, as a mean: of each sample, and of each whole answer."""
    n_pairs = len(asked.pairs)
    return sum(of.n_runs(n_pairs) for of in sets_of(asked.metrics, asked.samples)) / n_pairs


def _per_token(engine: PatchingEngine) -> float:
    """Operations of one layer at one position, as a mean over layers: two for each weight."""
    blocks = engine.runner.model.blocks
    return 2 * sum(weight.numel() for block in blocks for weight in block.parameters()) / max(1, len(blocks))


def _entries(
    patches: Sequence[Patch], pairs: np.ndarray, lengths: np.ndarray, first: np.ndarray
) -> tuple[Float[np.ndarray, " patch"], Float[np.ndarray, "place pair"], Int[np.ndarray, " patch"]]:
    """Layer at which each patch enters, the first position that each distinct place changes in each of these pairs, and
    which of the places each patch has."""
    which = np.zeros(len(patches), dtype=np.int64)
    if isinstance(patches, CircuitPatches):
        return np.zeros(len(patches)), np.zeros((1, len(pairs))), which
    if isinstance(patches, EdgePatches):
        layers = np.array([reader.layer for reader in patches.graph.readers], dtype=float)[patches.readers]
        return layers, np.stack([_starts(place, pairs, lengths, first) for place in patches.places]), patches.columns
    if isinstance(patches, GraphPatches):
        starts = _starts(patches.places[0], pairs, lengths, first)
        return np.full(len(patches), float(min(patches.layers, default=0))), starts[None], which
    layers = np.zeros(len(patches))
    places: dict[object, int] = {}
    each: list[np.ndarray] = []
    for i, patch in enumerate(patches):
        layers[i] = min(site.layer or 0 for site in patch.sites)
        key = tuple(id(site.position) if isinstance(site.position, tuple) else site.position for site in patch.sites)
        if key not in places:
            places[key] = len(each)
            each.append(_starts(patch.sites, pairs, lengths, first))
        which[i] = places[key]
    return layers, np.stack(each), which


def _starts(sites: Sequence[Site], pairs: np.ndarray, lengths: np.ndarray, first: np.ndarray) -> np.ndarray:
    """First position in each pair that these sites change."""
    each = []
    for site in sites:
        at = site.position
        if at is None:
            each.append(first)
            continue
        per_pair = [at[i] for i in pairs] if isinstance(at, tuple) else [at] * len(pairs)
        earliest = [min((p % n for p in span_of(span)), default=n) for span, n in zip(per_pair, lengths.tolist())]
        each.append(np.maximum(first, earliest))
    return np.min(each, axis=0).astype(float)
