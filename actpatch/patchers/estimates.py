"""What can be estimated: which methods go with which sources, metrics, prompts and patches, before anything is run."""

from __future__ import annotations

from collections.abc import Sequence

from actpatch.core.edge_patches import EdgePatches, GraphPatches
from actpatch.core.estimates import METHODS, Estimate
from actpatch.core.sites import Patch
from actpatch.interventions.settings import Settings
from actpatch.metrics.answers import Rank
from actpatch.metrics.chosen import AnyMetric
from actpatch.metrics.sequence import SequenceAccuracy, SequenceMetric
from actpatch.tasks.encoding import EncodedPairs

BEFORE_BLOCKS = ("hook_embed", "hook_pos_embed", "hook_tokens", "embed.", "pos_embed.", "embed_ln")
"""How the names of hook points begin that come before the first block."""


def check_can_be_estimated(
    estimate: Estimate,
    settings: Settings,
    pairs: EncodedPairs,
    metrics: Sequence[AnyMetric],
    patches: Sequence[Patch],
) -> None:
    """Raise a ValueError where the method does not allow what is asked, with the reason and what to do.

    Args:
        estimate: the method.
        settings: source and direction.
        pairs: the prompts.
        metrics: what is measured.
        patches: what is estimated.
    """
    method = repr(estimate.method)
    if isinstance(patches, GraphPatches) and not isinstance(patches, EdgePatches):
        raise ValueError("paths have no estimates: run them with PathPatcher, or estimate edges")
    estimate.check_kind("edges" if isinstance(patches, GraphPatches) else "components")
    if not estimate.what.any_source:
        others = ", ".join(repr(name) for name, other in METHODS.items() if other.any_source)
        if settings.source.is_ablation:
            raise ValueError(
                f"method {method} takes gradients of both runs of a pair, so it estimates no {settings.source!r}: "
                f"leave out source, or choose one of {others}"
            )
        if pairs.matches:
            raise ValueError(
                f"method {method} needs prompts of as many tokens in both runs of a pair, these are aligned: choose "
                f"one of {others}"
            )
    for metric in metrics:
        _check_metric(metric, estimate, settings)
    if not isinstance(patches, GraphPatches):
        _check_places(estimate, patches)


def _check_metric(metric: AnyMetric, estimate: Estimate, settings: Settings) -> None:
    if isinstance(metric, (Rank, SequenceAccuracy)):
        raise ValueError(
            f"the metric {metric.name!r} counts, so it has no gradient: measure logit_difference or log_probability, "
            "or run the patches themselves"
        )
    if isinstance(metric, SequenceMetric) or not metric.reads_clean:
        return
    if estimate.method == "eap_ig" and estimate.shares() == [1.0]:
        raise ValueError(
            f"the {metric.name} to the clean run is least there, so its gradient at the clean run is 0 and 'eap_ig' "
            "with one step, at its right end, estimates nothing: take more steps, or grid='midpoint'"
        )
    if "noising" not in settings.directions:
        return
    only_clean = estimate.what.has_steps and estimate.method != "eap_ig" and estimate.shares() == [0.0]
    if only_clean or not (estimate.what.has_steps or estimate.method == "clean_corrupted"):
        raise ValueError(
            f"the {metric.name} to the clean run is least there, so its gradient at the clean run is 0 and "
            f"{estimate.method!r} in noising estimates nothing: choose direction='denoising', 'eap_ig' or "
            "'clean_corrupted'"
        )


def _check_places(estimate: Estimate, patches: Sequence[Patch]) -> None:
    for name in {site.hook_point: None for patch in patches for site in patch.sites}:
        is_before = name.startswith(BEFORE_BLOCKS)
        if estimate.method == "eap_ig" and is_before:
            raise ValueError(
                f"'eap_ig' goes along the residual stream before the first block, so {name}, which comes before it, "
                "has no estimate: choose resid_pre of layer 0, or 'atp'"
            )
        if estimate.method == "atp_star" and (is_before or ".hook_resid" in name or not name.startswith("blocks.")):
            raise ValueError(
                f"'atp_star' drops what one layer adds to the residual stream, and {name} is no part of one layer: "
                "choose q, k, v, z, pattern, attn_out, mlp_out or neurons, or 'atp'"
            )
