"""Runs of circuits: against readers rebuilt by hand, and what has to be true of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.edge_patches import edge_patches
from actpatch.core.graph import Graph
from actpatch.core.sites import Site
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.sources import References
from actpatch.models.graph import graph_of
from test_suite.engine.test_aligned import aligned
from test_suite.engine.test_left_as_found import assert_same_state, state_of
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.edges import edge_model
from test_suite.helpers.models import HAS_HOOKED, fresh_model, last_position_metric, model_parameters, token_pairs
from test_suite.oracles.aligned import partners_of
from test_suite.oracles.circuits import logits_of_circuit

_SLOW = ("rotary", "ungrouped", "alibi", "qk_norm", "soft_capped", "folded", "folded_rms", "parallel_grouped")
MODELS = model_parameters(
    *(f"hooked:{name}" for name in ("learned", "grouped", "parallel", "no_norm", "attn_only")),
    "bridge:gpt2",
    slow=(*(f"hooked:{name}" for name in _SLOW), "bridge:neox", "bridge+:gpt2", "bridge:phi", "bridge:falcon"),
)
PLAIN = "hooked:learned" if HAS_HOOKED else "bridge:gpt2"
DIRECTIONS: tuple[Any, ...] = ("noising", "denoising")


def some_pairs() -> Any:
    return token_pairs([9, 7, 9], [(3, 6), (2, 4), (5, 6)])


def circuits_of(graph: Graph, n: int, seed: int = 0, share: float = 0.6) -> CircuitPatches:
    kept = np.random.default_rng(seed).random((n, 1, len(graph))) < share
    return CircuitPatches(graph, kept, tuple(f"circuit {number}" for number in range(n)))


def run(model: Any, pairs: Any, circuits: CircuitPatches, direction: Any = "noising", **options: Any) -> Any:
    engine = PatchingEngine(model, show_progress=False, batch_size=options.pop("batch_size", None))
    return engine.sweep(pairs, circuits, [last_position_metric(len(pairs))], direction, **options)


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODELS)
def test_readers_read_what_writers_give_in_this_very_run(name: str) -> None:
    """Random circuits against every reader rebuilt by hand; with writers as recorded the number is another."""
    model, pairs = edge_model(name), some_pairs()
    graph = graph_of(model)
    circuits = circuits_of(graph, 2)
    for number, direction in enumerate(DIRECTIONS):  # a circuit each: the oracle runs the model for every reader
        found = run(model, pairs, circuits, direction).patched[0]
        runs = (pairs.clean[1], pairs.corrupted[1])
        base, source = runs if direction == "noising" else runs[::-1]
        logits = [
            logits_of_circuit(model, graph, base, source, circuits.kept[number, 0], from_cache=mistaken)[-1]
            for mistaken in (False, True)
        ]
        expected, mistaken = (float(each[3] - each[9]) for each in logits)
        assert found[number, 1] == pytest.approx(expected, rel=0, abs=1e-9)
        assert abs(mistaken - expected) > 1e-4


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", MODELS)
def test_all_edges_are_one_run_and_none_the_other(name: str) -> None:
    model, pairs = edge_model(name), some_pairs()
    graph = graph_of(model)
    ends = np.stack([np.ones(len(graph), bool), np.zeros(len(graph), bool)])
    for direction in DIRECTIONS:
        found = run(model, pairs, CircuitPatches(graph, ends[:, None], ("all", "none")), direction)
        base, other = (found.clean, found.corrupted) if direction == "noising" else (found.corrupted, found.clean)
        assert np.abs(found.patched[0] - np.stack([base[0], other[0]])).max() < EXACT


def test_one_edge_left_out_is_that_edge_patched() -> None:
    model, pairs = edge_model(PLAIN), some_pairs()
    graph = graph_of(model)
    edges = edge_patches(graph)
    chosen = np.random.default_rng(1).choice(len(edges), 20, replace=False)
    kept = np.ones((20, len(edges)), dtype=bool)
    kept[np.arange(20), chosen] = False
    found = run(model, pairs, CircuitPatches(graph, kept[:, None], tuple(map(str, chosen)))).patched
    assert np.abs(found - run(model, pairs, edges.taken(chosen)).patched).max() < EXACT


def test_batches_change_nothing_and_ablations_are_what_is_written() -> None:
    model, pairs = edge_model(PLAIN), some_pairs()
    graph = graph_of(model)
    circuits = circuits_of(graph, 5, seed=3)
    found = run(model, pairs, circuits).patched
    assert np.abs(run(model, pairs, circuits, batch_size=1).patched - found).max() < EXACT
    zeros = References(((),), (0, 0, 0))
    ablated = run(model, pairs, circuits, references=zeros)
    edges = edge_patches(graph)
    single = np.ones((1, len(edges)), dtype=bool)
    single[0, 7] = False
    one = run(model, pairs, CircuitPatches(graph, single[:, None], ("one",)), references=zeros).patched
    assert np.abs(one - run(model, pairs, edges.taken([7]), references=zeros).patched).max() < EXACT
    assert np.abs(ablated.patched - found).max() > 1e-3


PLACES = ((Site("", position=4),), (Site("", position=5), Site("", position=6)), (Site("", position=5),))
AT = ((4,), (5, 6), (5,))
"""Two of them share a position; some positions are in none."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", model_parameters("hooked:grouped", "bridge:gpt2", slow=("hooked:parallel", "bridge:neox"))
)
def test_at_named_positions_readers_read_their_circuit_and_elsewhere_none(name: str) -> None:
    """Random circuits of three places against every reader rebuilt by hand, position by position."""
    model, pairs = edge_model(name), token_pairs([9, 7], [(3, 6), (2, 4)])
    graph = graph_of(model)
    kept = np.random.default_rng(0).random((2, 3, len(graph))) < 0.6
    circuits = CircuitPatches(graph, kept, ("noised", "denoised"), PLACES)
    runs = (pairs.clean[1], pairs.corrupted[1])
    for number, direction in enumerate(("noising", "denoising")):
        found = run(model, pairs, circuits, direction).patched[0, number, 1]
        logits = logits_of_circuit(model, graph, *runs, kept[number], at=AT)[-1]
        assert found == pytest.approx(float(logits[3] - logits[9]), rel=0, abs=1e-9)
        assert (
            abs(found - run(model, pairs, replace(circuits, places=PLACES[::-1]), direction).patched[0, number, 1])
            > 1e-4
        )
        runs = runs[::-1]


@pytest.mark.quick(1)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_positions_without_a_partner_are_left_alone(direction: Any) -> None:
    """Of pairs of other lengths, readers there read every writer as it is in this very run, whatever the circuit."""
    model = edge_model(PLAIN)
    clean = ([1, 5, 6, 20, 7, 8, 9, 4], [1, 23, 24, 6, 10, 9, 8, 3])
    corrupted = ([1, 5, 6, 30, 31, 32, 7, 8, 9, 4], [1, 35, 6, 10, 9, 8, 3])
    pairs = aligned(clean, corrupted, [((2, 3), (4, 6), (7, 9)), ((1, 1), (3, 2), (5, 5), (7, 6))])
    graph = graph_of(model)
    circuits = circuits_of(graph, 2)
    placed = CircuitPatches(graph, np.tile(circuits.kept[:1], (1, 2, 1)), ("placed",), PLACES[:2])
    found = np.concatenate([run(model, pairs, each, direction).patched[0] for each in (circuits, placed)])
    for pair in (0, 1):
        base, source = (pairs.clean[pair], pairs.corrupted[pair])[:: 1 if direction == "noising" else -1]
        partners = partners_of(pairs.matches[pair], direction)
        assert len(partners) < len(base)
        for number, kept, at in ((0, circuits.kept[0], None), (1, circuits.kept[1], None), (2, placed.kept[0], AT[:2])):
            logits = logits_of_circuit(model, graph, base, source, kept, at=at, partners=partners)[-1]
            expected = float(logits[2 + pair] - logits[8 + pair])
            assert found[number, pair] == pytest.approx(expected, rel=0, abs=1e-9)


def test_a_circuit_at_every_position_is_that_circuit() -> None:
    model, pairs = edge_model(PLAIN), token_pairs([7, 7], [(3, 6), (2, 4)])
    circuits = circuits_of(graph_of(model), 3)
    places = tuple((Site("", position=at),) for at in range(7))
    apart = CircuitPatches(circuits.graph, circuits.kept.repeat(7, axis=1), circuits.names, places)
    both = tuple(run(model, pairs, one).patched for one in (circuits, apart))
    assert np.abs(both[0] - both[1]).max() < EXACT
    one = replace(circuits, places=(tuple(site for place in places for site in place),))
    assert np.abs(both[0] - run(model, pairs, one).patched).max() < EXACT


@pytest.mark.parametrize("name", MODELS[:1] + MODELS[-1:])
def test_runs_that_are_resumed_are_the_models_own(name: str) -> None:
    """With a hook of the user's on it a model is run in full: all edges of some readers, as the only ones that change,
    and circuits at positions come to the same."""
    model, pairs = fresh_model(name), some_pairs()
    graph = graph_of(model)
    circuits = circuits_of(graph, 6, share=0.5)
    edges = edge_patches(graph)
    for number, layer in enumerate((0, 1, 1, 2)):  # whole below a layer, and in it but for its MLP or heads
        kinds = ("mlp", "logits") if number % 2 else ("q", "k", "v", "logits")
        below = [r for r, reader in enumerate(graph.readers) if reader.layer < layer or reader.kind not in kinds]
        circuits.kept[number, 0, np.isin(edges.readers, below)] = True
    circuits.kept[5] = False
    placed = CircuitPatches(graph, circuits.kept[:3].swapaxes(0, 1), ("placed",), PLACES)
    for of in (circuits, placed):
        for direction in DIRECTIONS:
            resumed = run(model, pairs, of, direction)
            assert {"resume", "prefix"} <= {*resumed.shortcuts}
            handle = model.blocks[0].register_forward_hook(lambda module, args, output: output)
            in_full = run(model, pairs, of, direction)
            handle.remove()
            assert "resume" not in in_full.shortcuts
            assert np.abs(resumed.patched - in_full.patched).max() < EXACT


def test_what_is_held_changes_nothing() -> None:
    """Circuits are the same over whatever run of a circuit they are run."""
    model, pairs = edge_model(PLAIN), some_pairs()
    graph = graph_of(model)
    kept = circuits_of(graph, 12, share=0.7).kept
    engine = PatchingEngine(model, show_progress=False)
    with engine.measuring_circuits(pairs, graph, last_position_metric(len(pairs))) as measure:
        plain = measure(kept)
        for number in range(6):
            measure.hold(kept[number])
            assert np.abs(measure(kept[number:]) - plain[number:]).max() < EXACT
            near = kept[number].repeat(3, axis=0)[:, None]
            near[np.arange(3), 0, [5, 60, len(graph) - 3]] ^= True
            found = measure(near)
            assert np.abs(found - run(model, pairs, replace(circuits_of(graph, 3), kept=near)).patched[0]).max() < EXACT


def test_the_model_is_left_as_it_was() -> None:
    model = fresh_model(PLAIN)
    circuits = circuits_of(graph_of(model), 2)
    run(model, some_pairs(), circuits)
    before = state_of(model)
    run(model, some_pairs(), circuits)
    assert_same_state(before, state_of(model))
