"""Knock-outs: a circuit and its model, both without some of the circuit's components. Nothing here runs a model.

A circuit is complete if it does without a set K of its parts what the model does without it (Wang et al. 2022,
"Interpretability in the Wild", section 4). A part that stands in for another one shows in no other test: the circuit
without the backup does all that the model does, until the head is knocked out that it backs up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from actpatch.core.circuits import Circuit
from actpatch.core.edge_patches import edges_of_numbers

Nodes: TypeAlias = tuple[int, ...]
"""Numbers of writers, ascending."""

MOST_CANDIDATES = 16
"""Most components that are tried at a step of the greedy chain, chosen at random."""


def nodes_of(circuit: Circuit) -> Nodes:
    """The heads and MLPs of a circuit, by the number of each writer: what can be knocked out."""
    labels = set(circuit.nodes)
    return tuple(n for n, writer in enumerate(circuit.graph.writers) if n and writer.label in labels)


def without_nodes(circuit: Circuit, nodes: Nodes) -> Circuit:
    """The circuit without all edges of these components: those out of them, and into what moves no other."""
    graph, out = circuit.graph, set(nodes)
    every = edges_of_numbers(graph, np.arange(len(graph)))
    read_alone = np.array([bool(moved) and out.issuperset(moved) for moved in graph.moved])
    cut = np.isin(every.writers, nodes) | read_alone[every.readers]
    return replace(circuit, edges=circuit.edges & ~cut, found_by="")


def random_sets(nodes: Nodes, n: int, *, seed: int = 0) -> list[Nodes]:
    """Different sets of these components, each in a set with a chance of one half; all there are, if these are no more
    than `n`. None is empty."""
    if 2 ** len(nodes) - 1 <= n:
        sizes = range(1, len(nodes) + 1)
        return [chosen for size in sizes for chosen in itertools.combinations(nodes, size)]
    rng = np.random.default_rng([seed, 2])
    found: dict[Nodes, None] = {}
    while len(found) < n:
        is_in = rng.random(len(nodes)) < 0.5
        if is_in.any():
            found[tuple(node for node, chosen in zip(nodes, is_in.tolist()) if chosen)] = None
    return list(found)


def greedy_sets(
    nodes: Nodes, n_steps: int, gaps: Callable[[Sequence[Nodes]], Float[np.ndarray, " set"]], *, seed: int = 0
) -> list[Nodes]:
    """A chain of sets, each with one component more than the last: the one that makes the gap largest.

    Args:
        nodes: to choose from.
        n_steps: sets in the chain, fewer where there are fewer components.
        gaps: how far model and circuit are apart without each of some sets. Of equal ones the first is taken.
        seed: of the choice of candidates, where there are more than `MOST_CANDIDATES`.
    """
    rng = np.random.default_rng([seed, 3])
    found: list[Nodes] = []
    for _ in range(min(n_steps, len(nodes))):
        held = found[-1] if found else ()
        left = [node for node in nodes if node not in held]
        if len(left) > MOST_CANDIDATES:
            left = sorted(rng.choice(left, MOST_CANDIDATES, replace=False).tolist())
        tried = [tuple(sorted((*held, node))) for node in left]
        found.append(tried[int(np.argmax(gaps(tried)))])
    return found
