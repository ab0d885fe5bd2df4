"""Circuits judged: programs whose circuits are known, numbers against single runs, held-out pairs, refusals."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from actpatch.circuits.evaluation import evaluate_circuit
from actpatch.circuits.patcher import CircuitPatcher
from actpatch.core.circuit_names import pair_key
from actpatch.core.circuits import Circuit
from actpatch.core.truth import Truth
from actpatch.interventions.sources import Mean, OtherRun, Resample, Zero
from actpatch.models.programs import ProgramName, program_graph, program_model
from actpatch.patchers.experiment import encoded
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.ioi import IOIDataset
from actpatch.tasks.programs import ProgramDataset, program_truths
from actpatch.tasks.words import IOI_SCENE_TEMPLATES
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.edges import edge_model
from test_suite.helpers.models import HAS_HOOKED, bundled
from test_suite.helpers.refusals import no_forward_pass

SOURCES = {source.label: source for source in (OtherRun(), Zero())}
TRUTHS = [truth for name in get_args(ProgramName) for truth in program_truths(name)]
FEW = {"n_random": 5, "n_knock_outs": 3, "n_greedy": 2, "n_inflated": 4}


@functools.cache
def patcher_of(program: ProgramName) -> CircuitPatcher:
    return CircuitPatcher(program_model(program), show_progress=False)


def circuit_of(truth: Truth) -> Circuit:
    return Circuit.of(truth.graph, truth.edges)


def judged(program: ProgramName, circuit: Circuit, n_pairs: int = 6, **options: Any) -> Any:
    return evaluate_circuit(patcher_of(program), ProgramDataset(program, n_pairs), circuit, **{**FEW, **options})


def truth_of(program: ProgramName, direction: Any = "noising") -> Truth:
    return next(truth for truth in program_truths(program) if truth.direction in (None, direction))


# --- known circuits ---


@pytest.mark.quick(3)
@pytest.mark.parametrize("truth", TRUTHS, ids=repr)
def test_the_true_circuit_does_all_and_the_rest_nothing(truth):
    for direction in [truth.direction] if truth.direction else ["denoising", "noising"]:
        found = judged(truth.name, circuit_of(truth), direction=direction, source=SOURCES[truth.ablation])
        # What the corruption does to other tokens than the two answers goes through other edges, and shows in the KL.
        for one, close in ((found, 1e-9), (found.by_metric("kl_divergence"), 0.01)):
            assert one.faithfulness.value == pytest.approx(1, abs=close)
            assert one.completeness.value == pytest.approx(0, abs=close)
            assert not one.faithfulness.denominator.inverted
        assert np.abs(found.knocked_out.value).max() < 1e-5
        assert found.kind_of_parts == "edge" and set(found.parts) == set(circuit_of(truth).labels)


@pytest.mark.quick(1)
@pytest.mark.parametrize("program", ["induction", "copy", "reverse", "lookup", "fraction"])
def test_every_edge_of_a_true_circuit_is_needed_and_one_that_is_put_in_is_not(program):
    truth = truth_of(program)
    alone = circuit_of(truth)
    more = alone | Circuit.of(alone.graph, ["input->a2.h0<v>", "a2.h0->logits"])
    found = judged(program, more, n_inflated=20)
    drops = dict(zip(found.parts, found.minimality.value))
    assert set(found.not_needed) == {"input → L2H0 v", "L2H0 → logits"} == set(more.labels) - set(alone.labels)
    assert all(drops[label] > 0.5 for label in alone.labels) and found.faithfulness.value == pytest.approx(1)
    tests = found.minimality_tests
    assert [part for part, p in zip(found.parts, tests.p_corrected) if p < 0.05] == list(found.not_needed)
    for edge in truth.edges:
        broken = Circuit.of(alone.graph, [other for other in truth.edges if other != edge] + ["input->logits"])
        assert judged(program, broken, n_random=0, n_inflated=0).faithfulness.value[0] < 0.5


def test_an_or_gate_without_a_branch_shows_when_the_other_is_knocked_out():
    """The circuit of one branch does all that the model does, and each edge is needed; but not what the model does
    without that branch."""
    graph = program_graph("or_gate")
    branch = Circuit.of(graph, ["input->a0.h0<v>", "a0.h0->m0", "m0->logits"])
    found = judged("or_gate", branch)
    assert found.faithfulness.value == pytest.approx(1) and not found.not_needed
    assert found.completeness.value == pytest.approx(0)  # the answer itself goes through the circuit
    gaps = dict(zip(found.knock_outs, found.knocked_out.value))
    assert gaps["L0H0",] == pytest.approx(1) and gaps["L0 MLP",] == pytest.approx(0)
    assert found.knock_outs[found.largest_gap] == ("L0H0",) and "the one of L0H0" in found.summary()
    both = judged("or_gate", circuit_of(truth_of("or_gate")))
    assert np.abs(both.knocked_out.value).max() < 1e-9
    assert set(both.not_needed) == set(both.parts) - {"L0 MLP → logits"}  # each branch stands in for the other
    nodes = judged("or_gate", circuit_of(truth_of("or_gate")), parts="node")
    assert dict(zip(nodes.parts, np.round(nodes.minimality.value, 9))) == {"L0H0": 0, "L0H1": 0, "L0 MLP": 1}


def test_denoising_restores_the_edges_of_a_circuit():
    """Of a chain any edge brings back all that comes before it; the rest brings back nothing; and each number is that
    of a run in which the circuit's edges are those that are left out of the corrupted run."""
    chain = circuit_of(truth_of("induction"))
    found = judged("induction", chain, direction="denoising")
    assert found.faithfulness.value == pytest.approx(1) and found.completeness.value == pytest.approx(0)
    assert found.not_needed == found.parts
    end = judged("induction", Circuit.of(chain.graph, ["input->a1.h2<v>", "a1.h2->logits"]), direction="denoising")
    assert end.faithfulness.value == pytest.approx(1)
    sweep = (
        patcher_of("induction")
        .run_circuits_experiment(
            ProgramDataset("induction", 6), [Circuit.empty(chain.graph), ~chain], direction="denoising"
        )
        .sweep
    )
    assert np.abs(np.stack([found.values.full, found.values.circuit]) - sweep.patched).max() < EXACT
    assert np.abs(found.values.full - sweep.clean).max() < EXACT > np.abs(found.values.empty - sweep.corrupted).max()


def test_the_greedy_chain_finds_the_branch_that_a_circuit_lacks():
    graph = program_graph("or_gate")
    idle = [edge for head in range(3) for edge in (f"input->a1.h{head}<v>", f"a1.h{head}->logits")]
    found = judged(
        "or_gate", Circuit.of(graph, ["input->a0.h0<v>", "a0.h0->m0", "m0->logits", *idle]), n_knock_outs=0, n_greedy=3
    )
    assert found.n_greedy == 3 and found.knock_outs[0] == ("L0H0",) and found.knocked_out.value == pytest.approx(1)
    for shorter, longer in zip(found.knock_outs, found.knock_outs[1:]):
        assert set(shorter) < set(longer) and len(longer) == len(shorter) + 1


def test_random_circuits_do_less_than_the_true_one():
    found = judged("induction", circuit_of(truth_of("induction")), n_random=99)
    assert found.random_sizes.tolist() == [3] * 99
    assert found.random.p == found.random.smallest_p == 0.01 == found.random.p_distance


# --- theorems ---


def test_the_whole_model_does_all_and_the_rest_of_it_nothing():
    for source in (OtherRun(), Zero()):
        found = judged("fraction", Circuit.full(program_graph("fraction")), source=source)
        assert found.faithfulness.value == [1.0] and found.completeness.value == [0.0]
        assert found.random.random.tolist() == [1.0] * 5 and found.random_sizes.tolist() == [172] * 5
        assert not len(found.measured[0].inflated) and "only 0 of 4 random paths" in found.notes[-1]
        assert np.isnan(found.minimality_tests.p).all()


SOME = [OtherRun(), Zero(), *(pytest.param(one, marks=pytest.mark.slow) for one in (Mean(), Resample(seed=1)))]


@pytest.mark.quick(1)
@pytest.mark.parametrize("source", SOME, ids=lambda source: type(source).__name__)
def test_numbers_are_those_of_single_runs(source):
    patcher = CircuitPatcher(bundled(), show_progress=False)
    ioi = IOIDataset(patcher.model, 4, templates=IOI_SCENE_TEMPLATES[:1])
    graph = patcher.graph
    circuit = Circuit.of_nodes(graph, ["input", "L0", "L1H0", "L2H3", "L3H1", "logits"])
    options = {"parts": "node", "source": source, "seed": 3, "pair_indices": [0, 2, 3]}
    found = evaluate_circuit(patcher, ioi, circuit, **{**FEW, **options})

    def alone(one: Circuit) -> list[np.ndarray]:
        sweep = patcher.run_circuits_experiment(
            ioi, one, source=source, pair_indices=[0, 2, 3], metrics=["dataset", "kl_divergence"]
        ).sweep
        return [values.patched[0] for values in sweep.measured]

    def without(one: Circuit, *nodes: str) -> Circuit:
        ends = [(edge.partition(" → ")[0], edge.partition(" → ")[2]) for edge in Circuit.full(graph).labels]
        cut = [any(node == sender or receiver.startswith(node) for node in nodes) for sender, receiver in ends]
        return replace(one, edges=one.edges & ~np.array(cut))

    full = Circuit.full(graph)
    asked = {
        "full": full,
        "empty": Circuit.empty(graph),
        "circuit": circuit,
        "complement": ~circuit,
        "without": without(circuit, found.parts[2]),
        "circuit_knocked": without(circuit, *found.knock_outs[-1]),
        "model_knocked": without(full, *found.knock_outs[-1]),
    }
    rows = {"without": 2, "circuit_knocked": -1, "model_knocked": -1}
    for name, one in asked.items():
        for values, expected in zip(found.measured, alone(one)):
            given = getattr(values, name)
            assert np.abs((given[rows[name]] if name in rows else given) - expected).max() < EXACT, name
    values = found.measured[0]
    means = {name: getattr(values, name).mean() for name in ("full", "empty", "circuit")}
    ratio = (means["circuit"] - means["empty"]) / (means["full"] - means["empty"])
    assert found.faithfulness.value == pytest.approx(ratio, rel=1e-9)
    assert found.metrics == ("logit difference", "KL divergence") and found.pair_indices == (0, 2, 3)
    assert found.source_of_values == source.label and found.templates == tuple(ioi.get_template(i) for i in (0, 2, 3))


def test_a_circuit_that_tells_positions_apart_is_compared_with_the_whole_model():
    """The model is all of it, at all positions; the circuit without a set has what single runs of it give."""
    patcher, data = patcher_of("reverse"), ProgramDataset("reverse", 5)
    edges = [f"{edge} @{at}" for edge in ("input->a1.h2<v>", "a1.h2->logits") for at in (*range(1, 5), -1)]
    circuit = Circuit.of(patcher.graph, edges)
    found = evaluate_circuit(patcher, data, circuit, metrics="logit_difference", **FEW)
    assert found.faithfulness.value == pytest.approx(1) and found.completeness.value == pytest.approx(0)
    runs = [Circuit.full(patcher.graph), Circuit.empty(patcher.graph), circuit]
    sweep = patcher.run_circuits_experiment(data, runs).sweep
    values = found.values
    assert np.abs(np.stack([values.full, values.empty, values.circuit]) - sweep.patched).max() < EXACT
    assert len(found.parts) == 10 == len(circuit.labels) and set(found.parts) == set(circuit.labels)
    drops = dict(zip(found.parts, found.minimality.value))
    assert drops["L1H2 → logits @-1"] == pytest.approx(1)
    for label, without in zip(found.parts, values.without):
        one = replace(circuit, edges=circuit.edges & ~_like(circuit, label))
        assert np.abs(without - patcher.run_circuits_experiment(data, one).sweep.patched[0]).max() < EXACT
    assert any("at the circuit's positions alone" in note for note in found.notes)


def _like(circuit: Circuit, label: str) -> np.ndarray:
    """Where in the circuit's array this edge of one position is."""
    one = Circuit.of(circuit.graph, [label])
    found = np.zeros_like(circuit.edges)
    found[circuit.positions.index(one.positions[0])] = one.edges[0]
    return found


def test_an_ablation_has_its_own_run_without_edges():
    patcher = CircuitPatcher(edge_model("hooked:learned" if HAS_HOOKED else "bridge:gpt2"), show_progress=False)
    data = Tokens()
    circuit = Circuit.of_nodes(patcher.graph, ["input", "L0", "logits"])
    zero = evaluate_circuit(patcher, data, circuit, source=Zero(), metrics="kl_divergence", **FEW)
    other = evaluate_circuit(patcher, data, circuit, metrics="kl_divergence", **FEW)
    assert np.abs(zero.values.empty - other.values.empty).min() > 1e-3
    assert other.values.full == pytest.approx(0) and zero.values.full == pytest.approx(0)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_batches_change_none():
    circuit, data = circuit_of(truth_of("backup_head")), ProgramDataset("backup_head", 5)
    model = program_model("backup_head")
    first, second, other = (
        evaluate_circuit(model, data, circuit, seed=seed, batch_size=size, show_progress=False, **FEW)
        for seed, size in ((1, None), (1, 3), (2, None))
    )
    for name in ("random", "inflated", "circuit_knocked"):
        values = [getattr(each.values, name) for each in (first, second, other)]
        assert np.abs(values[0] - values[1]).max() < EXACT, name
    assert first.knock_outs == second.knock_outs and first.seed == 1
    circuits = [judged("backup_head", Circuit.full(circuit.graph), seed=seed).knock_outs for seed in (1, 1, 2)]
    assert circuits[0] == circuits[1] != circuits[2]


# --- which pairs ---


class Tokens(PatchingDataset):
    """Pairs of token ids."""

    name = "tokens"

    def get_clean_corrupt_pairs(self):
        return [([1, 2, 3, 4 + i], [1, 2, 9, 4 + i]) for i in range(3)]

    def get_target_tokens(self, pair_idx):
        return 5, 6


def keys_of(program: ProgramName, data: ProgramDataset, indices: Any = None) -> frozenset[str]:
    from actpatch.interventions.settings import Settings

    pairs = encoded(patcher_of(program).model, data, Settings(pair_indices=indices))
    return frozenset(pair_key(*both) for both in zip(pairs.clean_tokens, pairs.corrupted_tokens))


def test_pairs_that_the_search_saw_are_left_out():
    data = ProgramDataset("fraction", 7)
    seen = keys_of("fraction", data, [1, 4])
    circuit = replace(circuit_of(truth_of("fraction")), seen=seen)

    def found(some: Circuit, data: Any = data, **options: Any) -> Any:
        return evaluate_circuit(patcher_of("fraction"), data, some, **{**FEW, **options})

    held_out = found(circuit)
    assert held_out.pair_indices == (0, 2, 3, 5, 6) and (held_out.held_out, held_out.n_left_out) == (True, 2)
    assert "over 5 pairs that its search did not see (2 that it saw left out)" in held_out.summary()
    everything = found(circuit, split="all")
    assert len(everything.pair_indices) == 7 and (everything.held_out, everything.n_left_out) == (False, 0)
    assert any("was chosen by some of these pairs" in flag for flag in everything.flags)
    other = found(circuit, ProgramDataset("fraction", 5, seed=8))
    assert (other.held_out, len(other.pair_indices)) == (True, 5)
    unknown = found(replace(circuit, seen=frozenset()))
    assert unknown.held_out is None and any("not known which pairs" in flag for flag in unknown.flags)
    with pytest.raises(ValueError, match=r"saw every one of 2 pairs.*split='all'"):
        found(circuit, pair_indices=[1, 4])


# --- what is refused ---


def test_what_cannot_be_judged_is_refused_before_any_run():
    data, graph = ProgramDataset("fraction", 5), program_graph("fraction")
    good = circuit_of(truth_of("fraction"))
    dangling = Circuit.of(graph, ["input->a0.h0<v>", "a1.h0->logits"])

    def refused(match: str, circuit: Any = good, **options: Any) -> None:
        with no_forward_pass(), pytest.raises(ValueError, match=match):
            evaluate_circuit(patcher_of("fraction"), data, circuit, **options)

    refused("none of the circuit's 2 edges lies on a way from the input to the logits", dangling)
    refused("none of the circuit's 0 edges", Circuit.empty(graph))
    refused(
        r"circuit is a circuit of Graph\(program-copy.*this model has Graph\(program-fraction", circuit_of(TRUTHS[2])
    )
    refused("circuit is a list, expected a Circuit", [good])
    refused("parts is 'head', expected 'node', 'edge', or None", parts="head")
    refused("no head and no MLP to leave out", Circuit.of(graph, ["input->logits"]), parts="node")
    refused("split is 'test', expected one of 'held-out', 'all'", split="test")
    refused("level is 95", level=95)
    refused(r"Zero\(\) writes something else: choose direction='noising'", direction="denoising", source=Zero())
    there = Circuit.of(graph, [f"{edge} @END" for edge in truth_of("fraction").edges])
    refused("would restore all other positions too", there, direction="denoising")
    elsewhere = Circuit.of(graph, [f"{edge} @ELSEWHERE" for edge in truth_of("fraction").edges])
    refused("no position named 'ELSEWHERE'", elsewhere)
    refused("direction", direction="both")
    for name in (*FEW, "seed"):
        refused(f"{name} is -1, expected a whole number from 0 on", **{name: -1})
        refused(f"{name} is 2.5", **{name: 2.5})


def test_a_circuit_without_heads_has_edges_for_parts_and_nothing_to_knock_out():
    found = judged("fraction", Circuit.of(program_graph("fraction"), ["input->logits"]))
    assert found.parts == ("input → logits",) and found.knock_outs == () and found.largest_gap is None
    assert "no head and no MLP" in " ".join(found.notes) and found.summary()


def test_idle_edges_are_run_but_not_counted():
    graph = program_graph("fraction")
    good = circuit_of(truth_of("fraction"))
    found = judged("fraction", good | Circuit.of(graph, ["a2.h1->logits"]))
    assert len(found.parts) == 3 and found.random_sizes.tolist() == [3] * 5
    assert any(note.startswith("1 of the circuit's edges on no way") for note in found.notes)


def test_the_bundled_model_is_judged_as_each_class(tiny, ioi):
    found = evaluate_circuit(
        tiny, ioi, Circuit.full(CircuitPatcher(tiny).graph), parts="node", show_progress=False, **FEW
    )
    assert found.faithfulness.value == pytest.approx(1) and found.kind_of_parts == "node"
