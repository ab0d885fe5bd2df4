"""Searches against a naive one; programs whose circuits are known; and what a share of the effect is."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actpatch import (
    ActivationPatcher,
    AttributionPatcher,
    BothDirections,
    Circuit,
    CircuitPatcher,
    GaussianNoise,
    HeadPatcher,
    NeuronResults,
    PathPatcher,
    Zero,
    edge_patches,
    ensemble,
    find_circuit,
    load_results,
)
from actpatch.circuits.rankings import EdgeRanking
from actpatch.core.circuit_names import pair_key
from actpatch.core.graph import Graph
from actpatch.core.sites import Patch, Site
from actpatch.models.graph import graph_of
from actpatch.models.programs import program_model
from actpatch.results.edges import EdgeResults
from actpatch.tasks.programs import ProgramDataset, program_truths
from test_suite.core.test_graph import graphs
from test_suite.helpers.results import (
    GRAPH,
    made_up_edges,
    made_up_head_positions,
    made_up_heads,
    made_up_layers,
    made_up_sweep,
)

dangling = pytest.mark.filterwarnings("ignore:none of the .* edges of this circuit lies on a way")
PROGRAMS: Any = ("induction", "copy", "reverse", "lookup", "fraction", "or_gate", "backup_head", "cancelling_mlp")
PLACES = ((Site("", position=2, position_name="S"),), (Site("", position=4, position_name="END"),))


@functools.cache
def program(name: Any) -> tuple[Any, ProgramDataset]:
    return program_model(name), ProgramDataset(name, 6)


@functools.cache
def effects_of(name: str, **options: Any) -> Any:
    model, dataset = program(name)
    options = {"direction": "both", **options}
    return PathPatcher(model, show_progress=False).run_all_edges_experiment(dataset, **options)


@functools.cache
def estimates_of(name: str, method: Any) -> Any:
    model, dataset = program(name)
    patcher = AttributionPatcher(model, show_progress=False)
    return patcher.run_all_edges_experiment(dataset, method=method, direction="noising")


@functools.cache
def nodes_of(name: str, direction: Any = "noising") -> tuple[Any, Any]:
    model, dataset = program(name)
    heads = HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset, direction=direction)
    patcher = ActivationPatcher(model, show_progress=False)
    return heads, patcher.run_patching_experiment(dataset, ["attn_out", "mlp_out", "hook_embed"], direction=direction)


def with_effects(effects: np.ndarray, graph: Graph = GRAPH, **options: Any) -> EdgeResults:
    """Results in which every edge has this effect, on two pairs."""
    ends = {"clean": np.array([4.0, 4.0]), "corrupted": np.array([0.0, 0.0])}
    patched = 4 - 4 * np.repeat(np.asarray(effects, dtype=float)[:, None], 2, axis=1)
    return made_up_edges(graph, n_pairs=2, direction="noising", patched=patched, **ends, **options)


# --- against a naive search ---


def naive_order(graph: Graph, keys: np.ndarray, grows: bool) -> list[tuple[int, int]]:
    """(edge, place) one after the other: of all that could be taken the largest, of equal ones the first."""
    edges = edge_patches(graph)
    taken: list[tuple[int, int]] = []
    left = [
        (edge, place)
        for edge in range(len(graph))
        for place in range(len(keys))
        if keys[place, edge] == keys[place, edge]
    ]

    def leads(edge: int, place: int) -> bool:
        reader = int(edges.readers[edge])
        if graph.readers[reader].kind == "logits":
            return True
        anywhere = graph.readers[reader].kind in ("k", "v")
        return any(
            int(edges.writers[other]) in graph.moved[reader] and (anywhere or place == at) for other, at in taken
        )

    while can := [one for one in left if not grows or leads(*one)]:
        best = max(can, key=lambda one: (keys[one[1], one[0]], -one[0], -one[1]))
        taken.append(best)
        left.remove(best)
    return taken


@settings(max_examples=25, deadline=None)
@given(graphs().filter(lambda graph: len(graph) < 90), st.integers(0, 10**6), st.integers(1, 3))
def test_orders_are_those_of_a_naive_search(graph: Graph, seed: int, n_places: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.choice([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0, np.nan], size=(n_places, len(graph)))
    positions = tuple(range(n_places)) if n_places > 1 else ()
    for growth in ("top", "greedy"):
        ranking = EdgeRanking(graph, keys, growth, positions)  # type: ignore[arg-type]
        expected = naive_order(graph, keys, growth == "greedy")
        assert [divmod(number, n_places) for number in ranking.order.tolist()] == expected
        n = len(expected) // 2
        circuit = ranking.circuit(n)
        table = circuit.edges.reshape(n_places, -1)
        assert {(edge, place) for place, edge in np.argwhere(table).tolist()} == set(expected[:n])
        assert circuit.positions == positions and len(circuit) == n


@dangling
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("method", ["top", "greedy"])
def test_numbers_and_thresholds_of_results(method: Any, signed: bool) -> None:
    results = made_up_edges()
    effects = results.sweep.effects
    keys = effects if signed else np.abs(effects)
    order = [edge for edge, _ in naive_order(GRAPH, keys[None], method == "greedy")]
    for n in (1, 7, len(order)):
        found = find_circuit(results, n_edges=n, method=method, signed=signed)
        assert np.flatnonzero(found.edges).tolist() == sorted(order[:n])
    threshold = float(np.sort(keys[order[:15]])[0])
    above = next((i for i, edge in enumerate(order) if keys[edge] < threshold), len(order))
    found = find_circuit(results, threshold=threshold, method=method, signed=signed)
    assert np.flatnonzero(found.edges).tolist() == sorted(order[:above])
    assert found == find_circuit(results[::-1], threshold=threshold, method=method, signed=signed)
    by = "signed effect" if signed else "|effect|"
    assert found.found_by == f"{method} {above} of 62 edges by {by}, exact, denoising, threshold {threshold:g}"
    assert found.seen == {pair_key(results.sweep.clean_tokens[0], results.sweep.corrupted_tokens[0])}


@dangling
def test_ties_go_by_number_and_what_is_not_known_is_never_taken() -> None:
    effects = np.zeros(len(GRAPH))
    effects[[3, 8, 20]], effects[5::2], effects[[10, 40]] = 0.5, -0.0, -0.5
    found = with_effects(effects)
    assert np.flatnonzero(find_circuit(found, n_edges=4).edges).tolist() == [3, 8, 10, 20]
    assert np.flatnonzero(find_circuit(found, n_edges=6).edges).tolist() == [0, 3, 8, 10, 20, 40]
    assert np.flatnonzero(find_circuit(found, n_edges=5, signed=True).edges).tolist() == [0, 1, 3, 8, 20]
    effects[[0, 8]] = np.nan
    found = with_effects(effects)
    assert np.flatnonzero(find_circuit(found, n_edges=4).edges).tolist() == [3, 10, 20, 40]
    assert "5 of 60 edges" in find_circuit(found, n_edges=5).found_by
    with pytest.raises(ValueError, match=re.escape("n_edges is 61, only 60 edges can be taken: give at most as many")):
        find_circuit(found, n_edges=61)


@dangling
def test_edges_at_positions_are_told_apart() -> None:
    results = made_up_edges(places=PLACES)
    effects = results.sweep.effects.reshape(-1, 2)
    found = find_circuit(results, n_edges=9)
    assert found.positions == ("S", "END")
    expected = np.argsort(-np.abs(effects).ravel(), kind="stable")[:9]
    assert {(edge, place) for place, edge in np.argwhere(found.edges).tolist()} == {
        divmod(n, 2) for n in expected.tolist()
    }
    for place, name in enumerate(("S", "END")):
        one = find_circuit(results.at(name), n_edges=5)
        assert one.positions == (name,)
        assert np.flatnonzero(one.edges).tolist() == sorted(np.argsort(-np.abs(effects[:, place]))[:5].tolist())
    spans = (Site("", position=1, position_name="A"), Site("", position=2, position_name="B"))
    found = find_circuit(made_up_edges(places=(spans, (Site("", position=3),))), n_edges=9)
    assert found.positions == (("A", "B"), 3)
    assert Circuit.of(GRAPH, found.labels).everywhere == found.everywhere
    with pytest.raises(ValueError, match="some of these edges were patched at positions and others at all"):
        find_circuit(made_up_edges(places=((Site(""),), *PLACES)), n_edges=9)


# --- known circuits ---


@pytest.mark.quick(1)
@dangling
@pytest.mark.parametrize("name", PROGRAMS)
def test_exact_search_finds_the_edges_of_programs_that_show_alone(name: Any) -> None:
    for truth in program_truths(name):
        if truth.ablation == "zero":
            results = effects_of(name, direction="noising", source=Zero())
        else:
            results = getattr(effects_of(name), truth.direction or "noising")
        found = find_circuit(results, threshold=0.01)
        greedy = find_circuit(results, threshold=0.01, method="greedy") if name != "or_gate" else found
        assert set(found.edge_ids) == set(truth.visible)
        assert greedy <= found and greedy.pruned() == found.pruned()


def test_both_directions_find_what_one_cannot() -> None:
    """An OR gate shows when either branch alone brings the answer back, a backup when what it stands in for fails."""
    both = effects_of("or_gate")
    (truth,) = [one for one in program_truths("or_gate") if one.direction == "denoising"]
    with pytest.warns(UserWarning, match="none of the 1 edges of this circuit lies on a way from the input"):
        alone = find_circuit(both.noising, threshold=0.01)
    assert alone.edge_ids == ["m0->logits"]
    for goal in ({"threshold": 0.01}, {"n_edges": 5}, {"share": 0.9}):
        found = find_circuit(both, **goal)  # type: ignore[arg-type]
        assert found <= Circuit.of(found.graph, truth.edges) and "union of both" in found.found_by
    assert set(find_circuit(both, n_edges=5).edge_ids) == set(truth.edges)

    both = effects_of("backup_head")
    with pytest.warns(UserWarning, match="none of the 2 edges"):
        of_each = [find_circuit(one, threshold=0.01) for one in (both.denoising, both.noising)]
    union = find_circuit(both, threshold=0.01)
    assert union == of_each[0] | of_each[1] and len(union) > max(map(len, of_each))
    assert set(union.edge_ids) == set(program_truths("backup_head")[0].edges) - {"a1.h1->logits"}
    # By sign only what helps counts: silencing the backup does the opposite.
    assert set(find_circuit(both, threshold=0.01, signed=True).edge_ids) == set(union.edge_ids) - {"a0.h0->a1.h1<q>"}


# --- a share of the effect ---


@pytest.mark.quick(1)
@dangling
@pytest.mark.parametrize("method", ["top", "greedy"])
@pytest.mark.parametrize("name, share", [("cancelling_mlp", 1), ("induction", 0.5)])
def test_a_share_is_what_a_circuit_keeps_when_it_is_run(name: str, share: float, method: Any) -> None:
    """Each size along the ranking is run by itself: the one before keeps less."""
    model, dataset = program(name)
    results = estimates_of(name, "eap")
    found = find_circuit(results, share=share, method=method)
    patcher = CircuitPatcher(model, show_progress=False)

    def kept(n: int) -> float:
        circuit = find_circuit(results, n_edges=n, method=method) if n else Circuit.empty(results.graph)
        sweep = patcher.run_circuits_experiment(dataset, circuit).sweep
        return float((sweep.patched[0] - sweep.corrupted).mean() / (sweep.clean - sweep.corrupted).mean())

    assert found == find_circuit(results, n_edges=len(found), method=method)
    assert kept(len(found)) >= share - 1e-6 > kept(len(found) - 1)
    said = (
        f"the fewest along the ranking found to keep {share:g}: faithfulness {kept(len(found)):.3f} when run on 6 pairs"
    )
    assert said in found.found_by and "estimated by eap, noising" in found.found_by


def test_the_fewest_are_found_wherever_they_are() -> None:
    """True edges stand at some place in the ranking: the circuit ends with the last of them."""
    results = effects_of("reverse").noising
    true = Circuit.of(results.graph, program_truths("reverse")[0].edges)
    for place in (3, 17, 118):
        order = np.random.default_rng(place).permutation(np.flatnonzero(~true.edges)).tolist()
        order[0:0] = [int(np.flatnonzero(true.edges)[0])]
        order[place - 1 : place - 1] = [int(np.flatnonzero(true.edges)[1])]
        scores = np.empty(len(order))
        scores[order] = -np.arange(len(order)) / 118 - 1
        sweep = results.sweep
        patched = sweep.base + scores[:, None] * (sweep.source - sweep.base)
        measured = (dataclasses.replace(sweep.measured[0], patched=patched),)
        ranked = EdgeResults(dataclasses.replace(sweep, measured=measured))
        assert len(find_circuit(ranked, share=0.9, signed=True)) == place


def test_a_share_where_zeros_are_written_is_of_runs_with_zeros() -> None:
    results = effects_of("reverse", direction="noising", source=Zero())
    found = find_circuit(results, share=1)
    assert set(found.edge_ids) == set(program_truths("reverse")[1].edges)
    assert "(noising, zero)" in found.found_by
    only_moved = find_circuit(effects_of("reverse").noising, share=1)
    assert len(only_moved) == 2 and only_moved <= found


def test_a_share_that_no_circuit_keeps_is_refused() -> None:
    results = effects_of("induction").noising
    with pytest.raises(
        ValueError, match=r"none of 6 circuits of 1 to 23 edges keeps a share of 0\.5, the best -?0\.000"
    ):
        find_circuit(results.of(receivers=["logits", "q"])[:23], share=0.5)
    noisy = effects_of("copy", direction="noising", noise=GaussianNoise([1, 2, 3, 4]))
    with pytest.raises(ValueError, match="share= runs circuits, which have no noise"):
        find_circuit(noisy, share=0.5)


def test_a_model_that_has_changed_since_is_not_that_of_the_results() -> None:
    sweep = effects_of("copy").noising.sweep
    doubled = dataclasses.replace(sweep.measured[0], clean=2 * sweep.clean)
    results = EdgeResults(dataclasses.replace(sweep, measured=(doubled,)))
    with pytest.raises(ValueError, match="the model is not as it was when these effects were measured"):
        find_circuit(results, share=0.9)


def test_positions_are_run_as_they_are_told_apart() -> None:
    results = effects_of("induction", direction="noising", positions=(1, 2, 3, 4, 5, -1))
    for method in ("top", "greedy", "acdc"):
        goal: Any = {"threshold": 0.01} if method == "acdc" else {"share": 0.9}
        found = find_circuit(results, method=method, **goal)  # type: ignore[arg-type]
        assert set(found.everywhere.edge_ids) == set(program_truths("induction")[0].edges)
        assert len(found) == 7 and "L1H2 → logits @-1" in found


def test_results_that_do_not_know_their_model(tmp_path: Any) -> None:
    model, dataset = program("copy")
    results = effects_of("copy").noising
    expected = find_circuit(results, share=0.9)
    stored: Any = load_results(results.save(tmp_path / "results.json"))
    for one in (stored, pickle.loads(pickle.dumps(results)), copy.deepcopy(results)):
        assert one == results and find_circuit(one, n_edges=3) == find_circuit(results, n_edges=3)
        with pytest.raises(ValueError, match=r"do not know their model .*: give model= and dataset=, or another goal"):
            find_circuit(one, share=0.9)
        with pytest.raises(ValueError, match="acdc runs circuits, and these results do not know their model"):
            find_circuit(one, threshold=0.1, method="acdc")
        assert find_circuit(one, share=0.9, model=model, dataset=dataset) == expected
    with pytest.raises(ValueError, match="are not those of the results"):
        find_circuit(stored, share=0.9, model=model, dataset=ProgramDataset("copy", 6, seed=1))
    with pytest.raises(ValueError, match="dataset is given alone, expected model and dataset"):
        find_circuit(stored, share=0.9, dataset=dataset)
    zero: Any = load_results(effects_of("copy", direction="noising", source=Zero()).save(tmp_path / "zero.json"))
    with pytest.raises(ValueError, match="what zero wrote is not known of results that were read from a file"):
        find_circuit(zero, share=0.9, model=model, dataset=dataset)
    with pytest.raises(ValueError, match="these effects were measured, not estimated: there is nothing to verify"):
        results.verify()
    heads: Any = load_results(nodes_of("fraction")[0].save(tmp_path / "heads.json"))
    with pytest.raises(ValueError, match="these results of components do not know their model"):
        find_circuit(heads, n_nodes=2)
    assert find_circuit(heads, n_nodes=2, model=program("fraction")[0]) == find_circuit(
        nodes_of("fraction")[0], n_nodes=2
    )
    with pytest.raises(ValueError, match="model is program-copy of 3 layers, and the results are of program-fraction"):
        find_circuit(heads, n_nodes=2, model=model)


# --- ACDC, ensembles, components ---


def test_acdc_runs_on_the_pairs_of_the_results() -> None:
    model, dataset = program("fraction")
    results = estimates_of("fraction", "eap")
    for signed in (False, True):
        found = find_circuit(results, threshold=0.05, method="acdc", signed=signed)
        assert found == CircuitPatcher(model, show_progress=False).acdc(dataset, 0.05, signed=signed)
        assert set(found.pruned().edge_ids) == set(program_truths("fraction")[0].edges)
        assert (
            f"{'signed' if signed else 'absolute'} changes, exact, noising, all edges tried on 6 pairs"
            in found.found_by
        )
    assert find_circuit(effects_of("fraction"), threshold=0.05, method="acdc", signed=True) == found
    with pytest.raises(ValueError, match=r"acdc goes through all 172 edges, and these results are of 5: give results"):
        find_circuit(results.top(5), threshold=0.05, method="acdc")
    with pytest.raises(ValueError, match="n_edges is given, and acdc takes a threshold alone"):
        find_circuit(results, n_edges=5, method="acdc")


def test_several_methods_together() -> None:
    each = [effects_of("fraction").noising, estimates_of("fraction", "eap")]
    shares = np.mean([one.sweep.effects / np.abs(one.sweep.effects).max() for one in each], axis=0)
    expected = np.argsort(-np.abs(shares), kind="stable")[:6]
    together = ensemble(each)
    found = find_circuit(together, n_edges=6)
    assert np.flatnonzero(found.edges).tolist() == sorted(expected.tolist())
    assert "ensemble of exact effects and eap by scores, noising" in found.found_by and found.seen
    assert len(find_circuit(together, share=0.9)) == 3
    ranks = find_circuit(ensemble(each, by="ranks"), n_edges=3)
    assert set(ranks.edge_ids) == set(program_truths("fraction")[0].edges) and "by mean rank" in ranks.found_by
    with pytest.raises(ValueError, match="ranks have no unit for a threshold"):
        find_circuit(ensemble(each, by="ranks"), threshold=0.1)
    with pytest.raises(ValueError, match="ranks are by size, without a sign"):
        find_circuit(ensemble(each, by="ranks"), n_edges=3, signed=True)
    with pytest.raises(ValueError, match=r"results is a DataFrame, expected .* an ensemble\(\.\.\.\) of such as it is"):
        find_circuit(together.head(3), n_edges=3)


def test_components_have_all_edges_between_them() -> None:
    heads, layers = nodes_of("fraction")
    graph = graph_of(program("fraction")[0])
    ends = ["input", "logits"]
    found = find_circuit(heads, n_nodes=1)
    assert found == Circuit.of_nodes(graph, [*ends, "L1H0", "mlps"])
    said = "top 1 of 9 nodes by |effect|, exact, noising, all MLPs, which were not ranked, are kept"
    assert found.found_by == said and len(found.seen) == 6
    assert find_circuit(heads, threshold=0.01) == found == find_circuit(heads, share=0.9)
    assert find_circuit(heads[::-1], n_nodes=4) == find_circuit(heads, n_nodes=4)
    found = find_circuit(layers, n_nodes=2)
    assert found == Circuit.of_nodes(graph, [*ends, "L0 MLP", "L1H0", "L1H1", "L1H2"]) and "kept" not in found.found_by
    assert find_circuit(layers["mlp_out"], n_nodes=1) == Circuit.of_nodes(graph, [*ends, "heads", "L0 MLP"])
    both = BothDirections(nodes_of("fraction", "denoising")[1], layers)
    assert find_circuit(both, share=0.9) == found
    with pytest.raises(ValueError, match="n_edges is given, and these results are of components: give n_nodes"):
        find_circuit(heads, n_edges=3)
    with pytest.raises(ValueError, match="n_nodes is 10, only 9 nodes can be taken"):
        find_circuit(heads, n_nodes=10)
    with pytest.raises(ValueError, match="greedy goes from edge to edge, and these results are of components"):
        find_circuit(heads, n_nodes=3, method="greedy")


# --- what is refused ---


def refused(results: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as error:
        find_circuit(results, **{"threshold": 0.1, **options})
    return str(error.value)


def test_results_that_no_circuit_is_made_of_are_refused() -> None:
    neurons = made_up_sweep([Site("blocks.0.mlp.hook_post", neuron=3)], 2, 2)
    assert "DataFrame" not in refused(neurons) and "results is a Sweep, expected what PathPatcher" in refused(neurons)
    assert "results holds NeuronResults, expected those of edges" in refused(NeuronResults(neurons))
    assert "results holds effects of v of heads" in refused(made_up_heads(component="v"))
    assert "results holds HeadPositionResults" in refused(made_up_head_positions())
    model = program("fraction")[0]
    at_end = made_up_sweep([Site("blocks.0.hook_mlp_out", position=-1)], 3, 3, model="program-fraction")
    assert "L0 mlp_out @-1 is not one component at all positions" in refused(
        type(made_up_layers())(at_end), model=model
    )
    streams = made_up_layers(("resid_pre",), 3, model="program-fraction")
    assert "L0 resid_pre is no component of a circuit" in refused(streams, model=model)
    wide = dataclasses.replace(
        made_up_layers(("mlp_out",), 3, model="program-fraction").sweep,
        patches=tuple(Patch((Site(f"blocks.{i}.hook_mlp_out"),), window=3) for i in range(3)),
    )
    assert "is not one component at all positions" in refused(type(streams)(wide), model=model)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"n_edges": 3, "signed": "no"}, "signed is 'no', expected True, False, or None"),
        ({"method": "best"}, "method is 'best', expected one of 'top', 'greedy', 'acdc'"),
        ({"threshold": None}, "none of n_edges, n_nodes, threshold and share is given, expected exactly one"),
        ({"n_edges": 3}, "n_edges and threshold of n_edges, n_nodes, threshold and share is given"),
        ({"threshold": 0.0}, "threshold is 0.0, expected a number above 0"),
        ({"threshold": True}, "threshold is True, expected a number above 0"),
        ({"threshold": None, "share": 1.5}, "share is 1.5, expected a number above 0 and at most 1"),
        ({"threshold": None, "n_edges": 2.5}, "n_edges is 2.5, expected a whole number of at least 1"),
        ({"threshold": None, "n_nodes": 3}, "n_nodes is given, and these results are of edges: give n_edges"),
        ({"threshold": 1e9}, "no edge that can be taken has an effect of 1e+09 or more: give a smaller threshold"),
    ],
)
def test_goals_that_are_none(options: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(made_up_edges(), **options)


def test_effects_of_no_usable_pair() -> None:
    found = refused(with_effects(np.full(len(GRAPH), np.nan)))
    assert found == "every effect is NaN, no pair was usable: use a corruption that breaks the behaviour"
