"""Which estimator a method has, what has to be recorded for it, and how many pairs it takes at once."""

from __future__ import annotations

from collections.abc import Collection

from actpatch.core.edge_patches import GraphPatches
from actpatch.core.sites import Site, block_hook
from actpatch.engine.atp_star import StarEstimator
from actpatch.engine.edge_estimates import EdgeEstimator
from actpatch.engine.estimating import ComponentEstimator
from actpatch.engine.exactness import Exactness
from actpatch.engine.experiment import Chunk, Experiment
from actpatch.engine.gradients import Differentiator, Measure


def estimator_of(
    experiment: Experiment, chunk: Chunk, measure: Measure, exactness: Exactness, most_tokens: int
) -> ComponentEstimator | EdgeEstimator:
    """What estimates the patches of an experiment on the pairs of a chunk."""
    assert experiment.estimate is not None
    differentiator = Differentiator(experiment, chunk, measure, exactness.logits)
    if experiment.estimate.method == "eap_ig":
        differentiator.check_path()
    if isinstance(experiment.patches, GraphPatches):
        return EdgeEstimator(differentiator, experiment.estimate)
    if experiment.estimate.method == "atp_star":
        return StarEstimator(differentiator, experiment.estimate, most_tokens)
    return ComponentEstimator(differentiator, experiment.estimate)


def kept_for_recomputing(written: Collection[str]) -> set[str]:
    """Hook points needed of the run that is patched where attention is computed anew."""
    sites = [Site(name) for name in written]
    layers = {site.layer for site in sites if site.component in ("q", "k") and site.layer is not None}
    return {block_hook(layer, part) for layer in layers for part in ("q", "k", "v", "z")}


def rows_with_gradients(experiment: Experiment, chunk: Chunk, most_tokens: int) -> int:
    """Number of pairs that are differentiated together: what a run of them keeps stays in the memory of one batch.

    A run with gradients keeps what every layer computed, where others keep what one does.
    """
    length = chunk.base.tokens.shape[1]
    return max(1, most_tokens // (length * max(1, experiment.runner.n_layers // 4)))
