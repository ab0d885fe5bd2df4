"""Estimates of random effects beside the effects, for tests of what is told and drawn of them: no model is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from actpatch.core.estimates import Estimate
from actpatch.core.graph import Graph
from actpatch.results.sweep import Sweep
from actpatch.results.verification import Verification
from test_suite.helpers.results import made_up_edges, made_up_heads

LARGER = Graph("made-up", (4,) * 6, (4,) * 6, (True,) * 6)
"""A graph of 1,317 edges."""


def with_effects(sweep: Sweep, effects: np.ndarray, estimate: Estimate | None = None) -> Sweep:
    """The sweep with these effects on every pair, estimated in this way."""
    values = sweep.measured[sweep.selected]
    patched = sweep.base + effects[:, None] * (sweep.source - sweep.base)
    measured = list(sweep.measured)
    measured[sweep.selected] = replace(values, patched=patched)
    return replace(sweep, measured=tuple(measured), estimate=estimate)


def both_sweeps(sweep: Sweep, *, noise: float = 0.3, saturated: float = 0.02, seed: int = 0) -> tuple[Sweep, Sweep]:
    """Estimates of all sites and their exact effects, a share of the estimates being far too small."""
    random = np.random.default_rng(seed)
    exact = 0.02 * random.standard_t(2.5, len(sweep.patches))
    estimates = exact + noise * 0.02 * random.normal(size=len(exact))
    estimates[random.random(len(exact)) < saturated] *= 0.05
    return with_effects(sweep, estimates, Estimate("eap")), with_effects(sweep, exact)


def verified(estimated: Sweep, exact: Sweep, n_top: int = 20, n_sample: int = 60, **changes: Any) -> Verification:
    """The largest estimates and a random sample of the others, with their exact effects."""
    order = np.argsort(-np.abs(np.nan_to_num(estimated.effects)), kind="stable")
    top = order[:n_top]
    sample = np.sort(np.random.default_rng(changes.get("seed", 0)).permutation(order[n_top:])[:n_sample])
    fields = {"top": tuple(top), "sample": tuple(sample), "seed": 0, "kind": "edge", **changes}
    numbers = [*map(int, fields["top"]), *map(int, fields["sample"])]
    run = replace(exact.of_patches(numbers), whole=None, numbers=())
    return Verification(estimated, run, **fields)


def verified_edges(graph: Graph = LARGER, n_top: int = 20, n_sample: int = 60, **changes: Any) -> Verification:
    sweep = made_up_edges(graph, n_pairs=3).sweep
    return verified(*both_sweeps(sweep), n_top, n_sample, **changes)


def verified_heads(n_layers: int = 6, n_heads: int = 8, n_top: int = 10, n_sample: int = 20, **changes: Any):
    sweep = made_up_heads(n_layers, n_heads).sweep
    sweeps = both_sweeps(sweep, saturated=0.1)
    return verified(*sweeps, n_top, n_sample, **{"kind": "head", **changes})
