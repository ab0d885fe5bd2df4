"""Short ways to run the engine and the patchers on given sites, without progress bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from activation_patching import ActivationPatcher, GaussianNoise
from actpatch.core.sites import Patch, Site
from actpatch.engine.engine import PatchingEngine
from actpatch.tasks.encoding import EncodedPairs
from test_suite.helpers.models import Swept, last_position_metric, swept


def engine_on(model: Any, batch_size: int | None = None, **options: Any) -> PatchingEngine:
    return PatchingEngine(model, batch_size=batch_size, show_progress=False, **options)


def single(sites: Sequence[Site]) -> list[Patch]:
    return [Patch((site,)) for site in sites]


def site_sweep(
    model: Any, pairs: EncodedPairs, sites: Sequence[Site], direction: str = "denoising", batch_size: int | None = None
) -> Any:
    metric = last_position_metric(len(pairs))
    return swept(engine_on(model, batch_size), pairs, single(sites), metric, direction)


def sweep_with(
    model: Any,
    pairs: EncodedPairs,
    patches: Sequence[Patch],
    direction: str = "noising",
    *,
    source: Any = None,
    noise: GaussianNoise | None = None,
    batch_size: int | None = None,
    metric: Any = None,
) -> Swept:
    written = None if source is None else source.references(pairs)
    engine = PatchingEngine(model, batch_size=batch_size, show_progress=False)
    metric = last_position_metric(len(pairs)) if metric is None else metric
    return swept(engine, pairs, patches, metric, direction, references=written, noise=noise)


def patcher_on(model: Any) -> ActivationPatcher:
    return ActivationPatcher(model, show_progress=False)


def raw(results: Any) -> np.ndarray:
    return results.sweep.patched
