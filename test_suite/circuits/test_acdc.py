"""ACDC against the plain way, one candidate after the other; what it says of itself; what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from actpatch import Zero
from actpatch.circuits.acdc import Search, acdc, places_of
from actpatch.circuits.patcher import CircuitPatcher
from actpatch.core.circuit_names import pair_key
from actpatch.core.circuits import Circuit
from actpatch.core.graph import Graph
from actpatch.engine.engine import PatchingEngine
from actpatch.models.graph import graph_of
from actpatch.tasks.encoding import encode_pairs
from test_suite.engine.test_left_as_found import assert_same_state, state_of
from test_suite.helpers.edges import edge_model
from test_suite.helpers.models import D_VOCAB, HAS_HOOKED, fresh_model, last_position_metric, needs_hooked, token_pairs
from test_suite.helpers.prompts import Words
from test_suite.helpers.refusals import refused

# Random models do no task, of which sweeps warn.
pytestmark = pytest.mark.filterwarnings("ignore:The model prefers|The corrup|.* pairs .* (repeat|barely)|runs take")

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge:gpt2"
PARALLEL = "hooked:parallel_grouped" if HAS_HOOKED else "bridge:neox"


def some_pairs() -> Any:
    return token_pairs([9, 7], [(3, 6), (2, 4)])


def patcher(name: str = PLAIN) -> CircuitPatcher:
    return CircuitPatcher(edge_model(name), show_progress=False)


def some_of(graph: Graph, share: float, seed: int = 0) -> Circuit:
    """A random circuit with all edges into the logits, so that much of it leads there."""
    edges = np.random.default_rng(seed).random(len(graph)) < share
    edges[graph.first_edge[-1] :] = True
    return Circuit(graph, edges)


def plainly(measure: Any, graph: Graph, start: Circuit, search: Search, sign: float = 1.0) -> Circuit:
    """One candidate after the other, by what `measure` gives of tables of edges."""
    kept = start.edges.reshape(-1, len(graph)).copy()
    now = sign * measure(kept[None]).mean()
    for number in reversed(range(len(graph.readers))):
        for edge in search.candidates(graph, number):
            for place in np.flatnonzero(kept[:, edge]):
                without = kept.copy()
                without[place, edge] = False
                value = sign * measure(without[None]).mean()
                if not search.stays(now - value):
                    kept, now = without, value
    return Circuit(graph, kept.reshape(start.edges.shape), "", start.positions)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "share", "threshold", "order", "signed", "metric"),
    [
        pytest.param(PLAIN, 1.0, 0.05, "reverse", True, None, marks=pytest.mark.slow),
        (PLAIN, 0.4, 0.005, "reverse", True, None),
        (PLAIN, 0.4, 0.01, "forward", False, None),
        (PLAIN, 0.4, 0.003, "random", False, None),
        (PLAIN, 0.4, 0.0002, "reverse", True, "kl_divergence"),
        (PARALLEL, 0.4, 0.005, "reverse", False, None),
    ],
)
def test_the_circuit_is_that_of_one_candidate_after_the_other(
    name: str, share: float, threshold: float, order: Any, signed: bool, metric: Any
) -> None:
    of, dataset = patcher(name), Words(some_pairs())
    graph = of.graph
    start = some_of(graph, share)
    options: dict[str, Any] = {"order": order, "signed": signed, "seed": 3}
    found = of.acdc(dataset, threshold, start=start, metric=metric, **options)
    pairs = encode_pairs(of.model, dataset)
    (chosen,) = pairs.metrics(metric)
    with of.engine.measuring_circuits(pairs, graph, chosen) as measure:
        sign = 1.0 if chosen.more_is_better else -1.0
        expected = plainly(measure, graph, start, Search.of(graph, threshold, order, 3, signed), sign)
    assert found == expected
    assert 0 < len(found) < len(start)


@pytest.mark.slow
def test_it_is_that_of_runs_of_circuits_ablations_included() -> None:
    of, dataset = patcher(), Words(some_pairs())
    start = some_of(of.graph, 0.05, seed=2)

    def measure(kept: np.ndarray) -> np.ndarray:
        return of.run_circuits_experiment(dataset, Circuit(of.graph, kept[0, 0]), source=Zero()).sweep.patched

    found = of.acdc(dataset, 0.02, start=start, source=Zero(), signed=False)
    assert found == plainly(measure, of.graph, start, Search.of(of.graph, 0.02, "reverse", 0, False))
    assert 0 < len(found) < len(start)


def test_positions_are_told_apart() -> None:
    of, pairs = patcher(), some_pairs()
    names = [{"S": 3, "END": 8}, {"S": 2, "END": 6}]
    dataset = Words(pairs, names)
    table = np.random.default_rng(1).random((2, len(of.graph))) < 0.12
    table[:, of.graph.first_edge[-1] :] = True
    start = Circuit(of.graph, table, positions=("S", "END"))
    found = of.acdc(dataset, 0.0005, start=start, signed=False)
    encoded = encode_pairs(of.model, dataset)
    (chosen,) = encoded.metrics()
    places = places_of(start.positions, encoded.in_direction("noising"))
    with of.engine.measuring_circuits(encoded, of.graph, chosen, places=places) as measure:
        assert found == plainly(measure, of.graph, start, Search.of(of.graph, 0.0005, "reverse", 0, False))
    assert found.positions == ("S", "END")
    assert 0 < len(found) < len(start)


@pytest.mark.slow
def test_an_order_of_ones_own_is_the_order_and_is_said() -> None:
    of, dataset = patcher(), Words(some_pairs())
    labels = [writer.label for writer in of.graph.writers]
    start = some_of(of.graph, 0.7)
    forward = of.acdc(dataset, 0.003, start=start, order="forward", signed=False)
    assert of.acdc(dataset, 0.003, start=start, order=labels, signed=False) == forward
    shuffled = [labels[i] for i in np.random.default_rng(0).permutation(len(labels))]
    found = of.acdc(dataset, 0.003, start=start, order=shuffled, signed=False)
    assert found != forward
    assert "forward order" in forward.found_by and "the order given" in found.found_by
    assert found.found_by != of.acdc(dataset, 0.003, start=start, order=shuffled[::-1]).found_by
    pairs = encode_pairs(of.model, dataset)
    assert found.seen == {*map(pair_key, pairs.clean_tokens, pairs.corrupted_tokens)}


def test_an_impossible_threshold_leaves_nothing_and_none_everything_that_counts() -> None:
    of, dataset = patcher(), Words(some_pairs())
    start = some_of(of.graph, 0.5)
    assert len(of.acdc(dataset, 1e9, start=start, signed=False)) == 0
    kept = of.acdc(dataset, 0.0, start=start, signed=False)
    assert kept == start


def test_circuits_of_several_positions_run_together() -> None:
    """Each in its own place, as alone."""
    of = patcher()
    dataset = Words(some_pairs(), [{"S": 3}, {"S": 2}])
    tables = np.random.default_rng(0).random((4, 2, len(of.graph))) < 0.6
    circuits = {
        "a": Circuit(of.graph, tables[0], positions=("S", -1)),
        "b": Circuit(of.graph, tables[1, 0]),
        "c": Circuit(of.graph, tables[2], positions=("S", -1)),
        "d": Circuit(of.graph, tables[3], positions=(("S", 4), -1)),
    }
    together = of.run_circuits_experiment(dataset, circuits)
    assert [patch.name for patch in together.sweep.patches] == [*"abcd"]
    for number, circuit in enumerate(circuits.values()):
        alone = of.run_circuits_experiment(dataset, circuit).sweep.patched
        assert together.sweep.patched[number] == pytest.approx(alone[0], rel=0, abs=1e-9)
    every = Circuit(of.graph, np.ones((7, len(of.graph)), dtype=bool), positions=tuple(range(7)))
    some = of.run_circuits_experiment(dataset, every, pair_indices=[1]).sweep
    assert some.patched[0] == pytest.approx(some.clean, rel=0, abs=1e-9)


def test_what_cannot_be_searched_is_refused() -> None:
    of, dataset = patcher(), Words(some_pairs())
    with refused("threshold is -1, expected a number from 0 on"):
        of.acdc(dataset, -1)
    with refused("order 'backwards' is unknown"):
        of.acdc(dataset, 0.1, order="backwards")  # type: ignore[arg-type]
    with refused("order lacks 'L0H0"):
        of.acdc(dataset, 0.1, order=["input"])
    with refused("seed is 0.5, expected a whole number"):
        of.acdc(dataset, 0.1, seed=0.5)  # type: ignore[arg-type]
    with refused("metric names 2, expected one"):
        of.acdc(dataset, 0.1, metric=["logit_difference", "kl_divergence"])
    with refused("IO"):
        of.run_circuits_experiment(
            dataset, [Circuit.full(of.graph), Circuit(of.graph, some_of(of.graph, 0.5).edges[None], positions=("IO",))]
        )


def test_the_model_is_left_as_it_was() -> None:
    model = fresh_model(PLAIN)
    pairs, graph = some_pairs(), graph_of(model)
    engine = PatchingEngine(model, show_progress=False)
    search = Search.of(graph, 0.1, "reverse", 0, True)
    acdc(engine, pairs, last_position_metric(2), some_of(graph, 0.2), search)
    before = state_of(model)
    acdc(engine, pairs, last_position_metric(2), some_of(graph, 0.2), search)
    assert_same_state(before, state_of(model))


@needs_hooked
def test_a_metric_that_is_no_number_ends_the_search() -> None:
    """No threshold is below it, so that every edge would be left out."""
    model = fresh_model("hooked:learned")  # whose embedding and unembedding are two
    for parameter in model.unembed.parameters():  # of a single token, one of the answers
        parameter.data.index_fill_(parameter.shape.index(D_VOCAB), torch.tensor([2]), float("inf"))
    with pytest.raises(ValueError, match="not finite in a run with edges left out"):
        CircuitPatcher(model, show_progress=False).acdc(Words(some_pairs()), 0.1)


def test_what_is_no_circuit_is_refused() -> None:
    with refused("circuits is a int, expected a Circuit, several"):
        patcher().run_circuits_experiment(Words(some_pairs()), 5)  # type: ignore[arg-type]
