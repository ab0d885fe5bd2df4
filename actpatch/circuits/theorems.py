"""What holds of every model, asked of one: what circuits are at both ends and one edge off, and what estimates sum to.

The tests of the library ask it of many architectures; here it is asked of a model that they do not know.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from actpatch.circuits.patcher import CircuitPatcher
from actpatch.core.circuits import Circuit
from actpatch.core.edge_patches import edge_patches
from actpatch.interventions.settings import Settings
from actpatch.patchers.attribution import AttributionPatcher
from actpatch.patchers.experiment import encoded
from actpatch.patchers.paths import PathPatcher
from actpatch.results.self_test import Theorem
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.random_tokens import RandomPairs

N_EDGES = 6
"""Edges that are left out one by one."""
STEPS = (16, 64, 256)
"""Points of a path of integrated gradients; more are taken where fewer are too few."""
LEAST_ROUNDING = 1e-6
OF_A_PATH = 0.05
"""How far the sum of integrated gradients may be off, as a share: a path has so many points and no more."""


def theorems_of(model: Any, dataset: PatchingDataset | None = None) -> tuple[Theorem, ...]:
    """Ask theorems of a model.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge`.
        dataset: prompt pairs and metric; None for random tokens of its vocabulary.

    Returns:
        Each with its largest error, as a share of the metric, and how much rounding may make of it: the square root of
        the precision that the model computes in, or a millionth, since some normalize in single precision whatever
        they compute in. Where a model's edges cannot be patched, the reason.

    Raises:
        ValueError: for a dataset that does not fit the model.
        TypeError: for a model of another class.
    """
    patcher = CircuitPatcher(model, show_progress=False)
    pairs = RandomPairs(model) if dataset is None else dataset
    with warnings.catch_warnings():
        if dataset is None:  # random tokens ask nothing of the model, so it gives no right answers
            warnings.simplefilter("ignore", UserWarning)
        encoded(model, pairs, Settings())
        return tuple(_asked(statement, *how) for statement, how in _asked_of(patcher, pairs).items())


def _asked_of(patcher: CircuitPatcher, pairs: PatchingDataset) -> dict[str, tuple[Callable[[], float], float]]:
    """Statement -> what finds its largest error, and how large that may be."""
    model = patcher.model
    rounding = max(torch.finfo(next(model.parameters()).dtype).eps ** 0.5, LEAST_ROUNDING)
    return {
        "the circuit of all edges is the clean run": (lambda: _whole(patcher, pairs), rounding),
        "the circuit of no edge is the corrupted run": (lambda: _none(patcher, pairs), rounding),
        "without one edge it is the run in which that edge is patched": (lambda: _but_one(patcher, pairs), rounding),
        "estimates of the edges out of a head add up to the head's (eap, atp)": (lambda: _out(model, pairs), rounding),
        "integrated gradients out of the input add up to the change of the metric (eap_ig)": (
            lambda: _path(model, pairs),
            OF_A_PATH,
        ),
    }


def _asked(statement: str, error: Callable[[], float], tolerance: float) -> Theorem:
    try:
        return Theorem(statement, error(), tolerance)
    except (ValueError, RuntimeError) as reason:  # what this model cannot be asked, in the words of who refuses it
        return Theorem(statement, float("nan"), tolerance, str(reason))


def _whole(patcher: CircuitPatcher, dataset: PatchingDataset) -> float:
    sweep = patcher.run_circuits_experiment(dataset, Circuit.full(patcher.graph)).sweep
    return _off(sweep.patched[0], sweep.clean, sweep)


def _none(patcher: CircuitPatcher, dataset: PatchingDataset) -> float:
    sweep = patcher.run_circuits_experiment(dataset, Circuit.empty(patcher.graph)).sweep
    return _off(sweep.patched[0], sweep.corrupted, sweep)


def _but_one(patcher: CircuitPatcher, dataset: PatchingDataset) -> float:
    """A few edges, chosen by chance, each left out of the whole model, and patched alone."""
    graph, full = patcher.graph, Circuit.full(patcher.graph)
    numbers = np.random.default_rng(0).choice(len(graph), min(N_EDGES, len(graph)), replace=False)
    ids = edge_patches(graph).taken(np.sort(numbers)).ids
    circuits = {edge: full - Circuit.of(graph, edge) for edge in ids}
    sweep = patcher.run_circuits_experiment(dataset, circuits).sweep
    edges = PathPatcher(patcher.model, batch_size=patcher.engine.batch_size, show_progress=False)
    alone = []
    for edge in ids:
        sender, receiver = edge.split("->")
        found = edges.run_all_edges_experiment(dataset, senders=[sender], receivers=[receiver], direction="noising")
        alone.append(found.sweep.patched[0])
    return _off(sweep.patched, np.stack(alone), sweep)


def _out(model: Any, dataset: PatchingDataset) -> float:
    patcher = AttributionPatcher(model, show_progress=False)
    edges: Any = patcher.run_all_edges_experiment(dataset, method="eap", direction="noising")
    heads: Any = patcher.run_all_heads_experiment(dataset, method="atp", direction="noising")
    graph, changes = edges.graph, edges.sweep.patched - edges.sweep.base
    of_writer = np.zeros((len(graph.writers), changes.shape[1]))
    np.add.at(of_writer, edges.edges.writers, changes)
    are_heads = [writer.head is not None for writer in graph.writers]
    alone = heads.sweep.patched - heads.sweep.base
    return float(np.abs(of_writer[are_heads] - alone).max() / max(np.abs(alone).max(), 1e-30))


def _path(model: Any, dataset: PatchingDataset) -> float:
    patcher = AttributionPatcher(model, show_progress=False)
    error = np.inf
    for steps in STEPS:
        results: Any = patcher.run_all_edges_experiment(
            dataset, method="eap_ig", steps=steps, senders=["input"], direction="noising"
        )
        sweep = results.sweep
        whole, found = sweep.source - sweep.base, (sweep.patched - sweep.base).sum(axis=0)
        error = float(np.abs(found - whole).max() / max(np.abs(whole).max(), 1e-30))
        if error <= OF_A_PATH / 2:
            break
    return error


def _off(found: np.ndarray, expected: np.ndarray, sweep: Any) -> float:
    """Largest difference, as a share of the largest metric."""
    scale = max(np.abs(sweep.clean).max(), np.abs(sweep.corrupted).max(), 1e-30)
    return float(np.abs(found - expected).max() / scale)
