"""Which activations of both runs an experiment needs. Nothing here runs or records."""

from __future__ import annotations

from collections.abc import Sequence

from actpatch.core.edge_patches import GraphPatches
from actpatch.core.sites import Patch, block_hook
from actpatch.engine.edges import INPUT, recorded_for
from actpatch.engine.estimators import kept_for_recomputing
from actpatch.engine.experiment import Experiment, resid_name
from actpatch.engine.plan import Route


def names_to_record(
    experiment: Experiment, entering: Sequence[Patch], routes: Sequence[Route]
) -> tuple[set[str], set[str]]:
    """Hook points needed of the run that is patched, and of the run whose activations are copied.

    Args:
        experiment: what is run.
        entering: patches of what its patches change: these, or of edges and circuits the places where their rows enter.
        routes: how each of them is run; empty where runs are whole.
    """
    source = {site.hook_point for patch in entering for site in patch.sites}
    if not experiment.enters:
        return _of_whole_runs(experiment, source)
    n_layers, hook_points = experiment.runner.n_layers, set(experiment.runner.hook_points)
    base = _streams(n_layers) if routes else set()
    for way in routes:
        base |= {site.hook_point for site in way.on_entry}
        for site in way.on_entry:
            if site.layer is not None and site.kind.is_added:
                base |= {block_hook(site.layer, "attn_out"), block_hook(site.layer, "mlp_out")} & hook_points
    if isinstance(experiment.patches, GraphPatches):
        of_edges, source = recorded_for(experiment.patches)
        base |= of_edges
    return base, source


def _of_whole_runs(experiment: Experiment, written: set[str]) -> tuple[set[str], set[str]]:
    """The same where circuits are run, and where effects are estimated: both runs at what is written, and at what the
    method takes besides."""
    base, n_layers = written, experiment.runner.n_layers
    if isinstance(experiment.patches, GraphPatches):
        base, written = recorded_for(experiment.patches)
    if isinstance(experiment.patches, GraphPatches) or experiment.resumes:
        base = base | _streams(n_layers)
    if experiment.resumes:
        base = base | kept_for_recomputing(written)
    if experiment.estimate is not None and experiment.estimate.method == "eap_ig":
        base, written = base | {INPUT}, written | {INPUT}
    return base | written, written


def _streams(n_layers: int) -> set[str]:
    return {resid_name(layer, n_layers) for layer in range(n_layers + 1)}
