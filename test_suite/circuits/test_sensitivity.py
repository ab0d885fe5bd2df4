"""The sensitivity card: each row is one choice made otherwise, and its number that of a run made so by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from actpatch import (
    Circuit,
    CircuitPatcher,
    IOIDataset,
    Mean,
    OtherRun,
    PathPatcher,
    PromptPair,
    PromptPairs,
    Resample,
    Zero,
    find_circuit,
    sensitivity_card,
)
from actpatch.circuits.sensitivity import _jaccard
from actpatch.core.graph import Graph
from actpatch.models.programs import program_model
from actpatch.tasks.programs import ProgramDataset
from test_suite.helpers.models import bundled
from test_suite.helpers.refusals import refused

N_EDGES = 40


@pytest.fixture(scope="module")
def found() -> Any:
    model = bundled()
    dataset = IOIDataset(model, 12, corruption="flip_subject")
    results = PathPatcher(model, show_progress=False).run_all_edges_experiment(
        dataset, pair_indices=range(6), direction="noising"
    )
    options: Any = {"n_resamples": 3, "show_progress": False, "positions": ["IO", "S2", "END"]}
    return model, dataset, results, sensitivity_card(model, dataset, results, n_edges=N_EDGES, **options)


def by_hand(model: Any, dataset: Any, circuit: Circuit, pairs: Any, **options: Any) -> float:
    patcher = CircuitPatcher(model, show_progress=False)
    some = [circuit, Circuit.full(circuit.graph), Circuit.empty(circuit.graph)]
    if options.get("direction") == "denoising":
        some = [~one for one in some]
    alone = [patcher.run_circuits_experiment(dataset, one, pair_indices=pairs, **options).sweep.patched for one in some]
    of_circuit, full, empty = (values.mean() for values in alone)
    return float((of_circuit - empty) / (full - empty))


def value(card: Any, axis: str, number: int = 0) -> float:
    return float(card.of(axis)[number].faithfulness)


@pytest.mark.slow
def test_each_row_is_what_a_run_made_so_gives(found: Any) -> None:
    model, dataset, results, card = found
    circuit, held_out = find_circuit(results, n_edges=N_EDGES), range(6, 12)
    assert card.circuit == circuit and card.held_out is True and card.base.n_pairs == 6
    expected = {
        ("ablation", 0): by_hand(model, dataset, circuit, held_out),
        ("ablation", 1): by_hand(model, dataset, circuit, held_out, source=Mean()),
        ("ablation", 3): by_hand(model, dataset, circuit, held_out, source=Zero()),
        ("direction", 0): by_hand(model, dataset, circuit, held_out, direction="denoising"),
        ("granularity", 0): by_hand(model, dataset, Circuit.of_nodes(circuit.graph, circuit.pruned().nodes), held_out),
    }
    for (axis, number), f in expected.items():
        assert value(card, axis, number) == pytest.approx(f, abs=1e-9)
    groups = {"IO first": [6, 8, 10], "subject first": [7, 9, 11]}
    for one in card.of("template"):
        if one.value in groups:
            assert one.faithfulness == pytest.approx(by_hand(model, dataset, circuit, groups[one.value]), abs=1e-9)
    at = np.repeat(circuit.edges[None], 3, axis=0)
    there = Circuit(circuit.graph, at, "", ("IO", "S2", "END"))
    assert value(card, "positions") == pytest.approx(by_hand(model, dataset, there, held_out), abs=1e-9)
    assert len({round(f, 6) for f in expected.values()}) == 5


def test_resamples_are_of_the_pairs_of_the_search(found: Any) -> None:
    *_, card = found
    (row,) = card.of("bootstrap")
    assert 0 < row.jaccard < 1 and row.low <= row.faithfulness <= row.high and "3 circuits" in row.note


def test_orders_of_acdc_are_compared_with_the_usual_one() -> None:
    model, dataset = program_model("or_gate"), ProgramDataset("or_gate", 4)
    results = PathPatcher(model, show_progress=False).run_all_edges_experiment(dataset, direction="denoising")
    card = sensitivity_card(
        model, dataset, results, n_edges=5, split="all", acdc_threshold=0.5, n_orders=1, sources=(), positions=(),
        n_resamples=0, show_progress=False,
    )  # fmt: skip
    usual, other, _ = card.of("order of search")
    assert usual.jaccard == 1 and card.held_out is False
    assert other.jaccard < 1  # of two branches either does; which one is kept is a matter of order
    assert usual.faithfulness == pytest.approx(1, abs=1e-9) == other.faithfulness


def test_what_cannot_be_written_has_a_row_that_says_so() -> None:
    model = bundled()
    pair = PromptPair(
        clean="When Mary and John went to the store, John gave a drink to",
        corrupted="When Mary and John went to the store, Mary gave a drink to",
        correct=(" Mary",),
        incorrect=(" John",),
    )
    dataset = PromptPairs(model, [pair])
    results = PathPatcher(model, show_progress=False).run_all_edges_experiment(dataset, direction="noising")
    card = sensitivity_card(
        model, dataset, results, n_edges=N_EDGES, split="all", sources=[Resample()], n_resamples=0, show_progress=False
    )
    _, row = card.of("ablation")
    assert math.isnan(row.faithfulness) and row.note


def test_what_is_wrong_is_refused_before_any_run(found: Any) -> None:
    model, dataset, results, _ = found
    with pytest.raises(ValueError, match=r"the search saw every one of 6 pairs"):
        sensitivity_card(model, dataset, results, n_edges=N_EDGES, pair_indices=range(6))
    with pytest.raises(ValueError, match=r"no edge of .* lies on a way from the input to the logits"):
        sensitivity_card(model, dataset, results, n_edges=1)
    with pytest.raises(ValueError, match="n_resamples is -1, expected a whole number"):
        sensitivity_card(model, dataset, results, n_edges=N_EDGES, n_resamples=-1)
    with pytest.raises(ValueError, match="results is a list, expected effects of edges in one direction"):
        sensitivity_card(model, dataset, [], n_edges=3)
    for wrong, told in (
        ({"level": 95}, "level is 95, expected a share"),
        ({"sources": [Zero(), Zero()]}, "sources write zero twice, .*: give each once"),
        ({"sources": [OtherRun()]}, "sources write the other run twice"),
        ({"sources": ["zero"]}, r"source is 'zero', expected .*Zero\(\)"),
        ({"sources": Zero()}, r"sources is a Zero, expected a list of sources"),
        ({"metric": ["dataset", "kl_divergence"]}, "metric is a list of 2, expected one"),
        ({"positions": "END"}, r"positions is 'END', expected a list of them: \['END'\]"),
        ({"positions": ["S9"]}, "no position named 'S9'"),
    ):
        with refused(told):
            sensitivity_card(model, dataset, results, n_edges=N_EDGES, acdc_threshold=0.5, **wrong)
    with pytest.raises(ValueError, match="is a circuit of"):
        sensitivity_card(program_model("copy"), dataset, results, n_edges=N_EDGES)


def test_templates_that_begin_alike_have_a_row_each() -> None:
    class Alike(ProgramDataset):
        def get_template(self, pair_idx: int) -> str:
            return f"Of two templates that both begin with these many words, number {pair_idx % 2}"

    model, dataset = program_model("or_gate"), Alike("or_gate", 4)
    results = PathPatcher(model, show_progress=False).run_all_edges_experiment(dataset, direction="denoising")
    card = sensitivity_card(
        model, dataset, results, n_edges=5, split="all", sources=(), positions=(), n_resamples=0, show_progress=False
    )
    first, second, *_ = card.of("template")
    assert second.value == f"{first.value} (2)" and (first.n_pairs, second.n_pairs) == (2, 2)


def test_orders_that_keep_no_edge_are_compared_with_each_other() -> None:
    """And where the dataset has no other pairs for ACDC than those that are judged on, the rows say so."""
    model = program_model("or_gate")
    results = PathPatcher(model, show_progress=False).run_all_edges_experiment(
        ProgramDataset("or_gate", 4), direction="denoising"
    )
    other = ProgramDataset("or_gate", 4, seed=1)
    options: dict[str, Any] = {"sources": (), "positions": (), "n_resamples": 0, "show_progress": False}
    card = sensitivity_card(model, other, results, n_edges=5, split="all", acdc_threshold=1e6, n_orders=0, **options)
    rows = card.of("order of search")
    assert [row.n_edges for row in rows] == [0, 0] and [row.jaccard for row in rows] == [1, 1]
    assert all("searched on pairs that it is judged on" in row.note for row in rows)


def test_jaccard_counts_edges_that_do_something() -> None:
    graph = Graph("m", (1, 1), (1, 1), (False, False))
    whole = Circuit.of(graph, ["input->a0.h0<v>", "a0.h0->logits"])
    dangling = Circuit.of(graph, ["input->a0.h0<v>", "a0.h0->logits", "input->a1.h0<q>"])
    assert _jaccard(whole, dangling) == 1
    assert _jaccard(whole, Circuit.of(graph, ["input->logits"])) == 0
    assert _jaccard(Circuit.empty(graph), Circuit.empty(graph)) == 1
