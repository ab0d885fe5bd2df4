"""Every kind of experiment in half precision: the numbers of double precision to its own rounding, and exact zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from actpatch import (
    AttributionPatcher,
    Circuit,
    CircuitPatcher,
    HeadPatcher,
    IOIDataset,
    PathPatcher,
    graph_of,
)
from test_suite.helpers.closeness import ROUNDINGS
from test_suite.helpers.models import CLASSES, bundled

KINDS = ["heads", "edges", "circuits", "estimates of heads", "estimates of edges"]
DTYPES = [torch.bfloat16, torch.float16]


def sweep_of(model: Any, kind: str) -> Any:
    """The sweep of an experiment of this kind on two pairs."""
    dataset, quiet, some = IOIDataset(model, 2), {"show_progress": False}, {"pair_indices": [0, 1]}
    if kind == "heads":
        return HeadPatcher(model, **quiet).run_all_heads_experiment(dataset, **some).sweep
    if kind == "edges":
        return PathPatcher(model, **quiet).run_all_edges_experiment(dataset, **some).sweep
    if kind == "circuits":
        graph = graph_of(model)
        half = {"half": Circuit(graph, np.arange(len(graph)) % 2 == 0)}
        return CircuitPatcher(model, **quiet).run_circuits_experiment(dataset, half, **some).sweep
    patcher = AttributionPatcher(model, **quiet)
    run = patcher.run_all_heads_experiment if kind.endswith("heads") else patcher.run_all_edges_experiment
    return run(dataset, **some).sweep


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["heads", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
@pytest.mark.parametrize("model_class", CLASSES)
def test_half_precision_is_double_precision_to_its_own_rounding(model_class: str, kind: str, dtype: Any) -> None:
    """Metrics themselves are computed in more. What changes nothing has an effect of exactly 0 in both."""
    exact, found = (sweep_of(bundled(model_class, of), kind) for of in (torch.float64, dtype))
    assert found.patched.dtype == np.float64
    size = max(np.abs(exact.clean).max(), np.abs(exact.corrupted).max())
    within = ROUNDINGS * torch.finfo(dtype).eps * size
    for name in ("clean", "corrupted", "patched"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), atol=within, rtol=0)
    unmoved = exact.patched == exact.corrupted[None]
    assert (found.patched == found.corrupted[None])[unmoved].all()
    assert np.abs(exact.patched - exact.corrupted[None]).max() > within


def test_attention_before_a_change_moves_nothing_in_half_precision_either() -> None:
    """Queries at positions before the first changed token are the same in both runs: such patches are not run."""
    model = bundled(CLASSES[-1], torch.bfloat16)
    dataset = IOIDataset(model, 2)
    results = HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset, "q", positions=[1])
    assert (results.sweep.patched == results.sweep.corrupted[None]).all()
