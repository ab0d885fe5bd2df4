"""Evaluations of circuits from arrays: numbers by hand, tables, sentences and flags. Nothing here runs a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actpatch.core.circuits import Circuit
from actpatch.core.graph import Graph
from actpatch.results.circuit_evaluation import CircuitEvaluation, CircuitMeasurements

GRAPH = Graph("small", (2,), (2,), (True,))
CIRCUIT = Circuit.of(GRAPH, ["input->a0.h0<v>", "a0.h0->logits"], found_by="by hand")
N_PAIRS = 6
STEPS = np.arange(N_PAIRS) * 0.1


def measured(scale: float = 1.0, name: str = "logit difference", more_is_better: bool = True) -> CircuitMeasurements:
    """On average m(M) = 4, m(∅) = 0 and m(C) = 3, without the circuit's first part 2.99, without its second 1."""
    level = {"full": 4.0, "empty": 0.0, "circuit": 3.0, "complement": 0.4}
    single = {key: scale * (value + STEPS - STEPS.mean()) for key, value in level.items()}

    def rows(*values: float) -> np.ndarray:
        return scale * (np.array(values)[:, None] + STEPS - STEPS.mean())

    return CircuitMeasurements(
        name=name,
        unit="logits",
        more_is_better=more_is_better,
        **single,
        random=rows(0.0, 1.0, 3.5, -2.0),
        without=rows(2.99, 1.0),
        circuit_knocked=rows(0.0, 2.0, 1.0),
        model_knocked=rows(1.0, 2.0, 3.0),
        inflated=rows(*[3.0] * 10),
        inflated_without=rows(*[2.9] * 9, 1.5),
    )


def evaluation(**changes: Any) -> CircuitEvaluation:
    given: dict[str, Any] = {
        "circuit": CIRCUIT,
        "task": "by hand",
        "direction": "noising",
        "source_of_values": "the other run",
        "varies": "",
        "pair_indices": tuple(range(2, 2 + N_PAIRS)),
        "templates": ("",) * N_PAIRS,
        "held_out": True,
        "n_left_out": 2,
        "measured": (measured(), measured(-1.0, "KL divergence", more_is_better=False)),
        "kind_of_parts": "edge",
        "parts": ("input → L0H0 v", "L0H0 → logits"),
        "knock_outs": (("L0H0",), ("L0 MLP",), ("L0H0", "L0 MLP")),
        "n_greedy": 1,
        "random_sizes": np.array([2, 2, 2, 2]),
        "seed": 0,
        "level": 0.95,
    }
    return CircuitEvaluation(**{**given, **changes})


def test_numbers_are_those_by_hand():
    found = evaluation()
    assert found.faithfulness.value == pytest.approx(0.75) and found.completeness.value == pytest.approx(0.1)
    expected = (3 + STEPS - 0.25) - (STEPS - 0.25)
    assert found.faithfulness.pair_values[0] == pytest.approx(expected / 4)
    assert found.minimality.value == pytest.approx([0.0025, 0.5]) and found.not_needed == ("input → L0H0 v",)
    assert found.knocked_out.value == pytest.approx([0.25, 0, 0.5]) and found.largest_gap == 2
    assert found.random.random == pytest.approx([0, 0.25, 0.875, -0.5])
    assert (found.random.p, found.random.p_distance) == (2 / 5, 2 / 5)
    assert found.minimality_tests.share_above == pytest.approx([0, 1])  # 0.01 and 2 against 0.1, and once 1.5
    assert (found.equivalence.n_below, found.equivalence.n_above) == (6, 0)
    assert found.independence.p < 0.05 and found.independence.n_pairs == 6
    assert not found.flags


def test_the_other_metric_is_another_view_of_the_same_runs():
    found = evaluation()
    other = found.by_metric("kl_divergence")
    assert other.metric == "KL divergence" == found.by_metric("KL divergence").metric
    assert other.faithfulness.value == pytest.approx(found.faithfulness.value)
    assert found.metrics == other.metrics == ("logit difference", "KL divergence")
    with pytest.raises(ValueError, match=r"'logit_diff' was not measured: did you mean 'logit_difference'\?"):
        found.by_metric("logit_diff")


def test_the_table_has_a_row_for_each_measure_of_each_metric():
    found = evaluation()
    table = found.to_dataframe()
    assert list(table.columns) == ["measure", "metric", "value", "low", "high", "p", "n"]
    first = table[table["metric"] == "logit difference"].set_index("measure")
    assert first.loc["faithfulness", "value"] == pytest.approx(0.75)
    assert first.loc["faithfulness of the rest", "value"] == pytest.approx(0.1)
    assert first.loc["random circuits", ["value", "p", "n"]].tolist() == pytest.approx([0.125, 0.4, 4])
    assert first.loc["distance to 1", ["value", "p"]].tolist() == pytest.approx([0.25, 0.4])
    assert first.loc["largest knock-out gap", ["value", "n"]].tolist() == pytest.approx([0.5, 3])
    assert first.loc["smallest drop of a part", ["value", "n"]].tolist() == pytest.approx([0.0025, 2])
    assert first.loc["equivalence to the model", "p"] == found.equivalence.p_equivalent
    assert first.loc["difference from the model", "p"] == found.equivalence.p_different
    assert first.loc["independence of the rest", "p"] == found.independence.p
    second = table[table["metric"] == "KL divergence"]["measure"].tolist()
    assert second == first.index[:6].tolist()  # no circuit is nearer to the model than itself
    assert found.by_metric("kl_divergence").to_dataframe()["metric"][0] == "KL divergence"


def test_tables_of_parts_and_of_knock_outs():
    found = evaluation()
    parts = found.parts_dataframe()
    assert parts["part"].tolist() == ["L0H0 → logits", "input → L0H0 v"]
    assert parts["drop"].tolist() == pytest.approx([0.5, 0.0025]) and parts["share_above"].tolist() == [1, 0]
    assert parts["p_not_needed_corrected"].tolist() == pytest.approx([1, 2e-10])
    sets = found.knock_outs_dataframe()
    assert sets["knocked_out"].tolist() == ["L0H0", "L0 MLP", "L0H0, L0 MLP"] and sets["n"].tolist() == [1, 1, 2]
    assert sets["chosen"].tolist() == ["random", "random", "greedy"]
    assert sets["gap"].tolist() == pytest.approx([0.25, 0, 0.5])


def test_sentences_say_what_was_found_and_no_more():
    found = evaluation()
    assert repr(found) == (
        f"CircuitEvaluation(2 of {len(GRAPH)} edges, by hand, noising, logit difference: faithfulness 0.75, rest 0.10, "
        "random 0.12)"
    )
    said = found.summary()
    for sentence in (
        f"Of small, 2 of {len(GRAPH)} edges kept, the other run in the place of all others (noising): what the circuit "
        "keeps of the behaviour is 0.75 by logit difference (faithfulness) over 6 pairs that its search did not see (2 "
        "that it saw left out).",
        "The rest of the model without the circuit has 0.10.",
        "1 is at least as faithful (p = 0.400), and 1 is at least as near to 1 (p = 0.400).",
        "Of 3 knock-outs, 1 of them greedy, the one of L0H0, L0 MLP makes them differ most: model less circuit +0.50.",
        "Left out alone, 1 of 2 edges changes it by less than 0.01: input → L0H0 v.",
        "1 of 2 do no more than 10 edges put in at random (quantile 0.9, corrected).",
        "The circuit is above the model on 0 % of the pairs",
        "By KL divergence, faithfulness is 0.75.",
    ):
        assert sentence in said
    assert "\u2212" not in said
    wide = replace(found, measured=tuple(varied(values) for values in found.measured))
    assert "behaviour is 0.7" in wide.summary() and f"[{wide.faithfulness.low[0]:.2f}, " in wide.summary()
    assert "(denoising): what of the behaviour comes back is 0.75" in evaluation(direction="denoising").summary()
    assert repr(found.values) == "CircuitMeasurements(logit difference, 6 pairs, full +4.00, empty +0.00)"


def varied(values: CircuitMeasurements) -> CircuitMeasurements:
    return replace(values, circuit=values.circuit + np.array([0.1, -0.2, 0.1, 0.05, 0.0, -0.1]))


def test_whatever_speaks_against_the_numbers_is_flagged():
    assert "not known which pairs" in evaluation(held_out=None).flags[0]
    assert "was chosen by some of these pairs" in evaluation(held_out=False).flags[0]
    assert evaluation(random_sizes=np.array([2, 1, 2, 2])).flags == (
        "random circuits have 1 to 2 edges, the circuit 2",
    )
    values = measured()
    turned = replace(values, full=values.empty, empty=values.full)
    found = evaluation(measured=(turned,))
    assert "does worse than with every edge off" in found.flags[0] and "does worse than" in found.summary()
    nothing = evaluation(measured=(replace(values, full=values.empty),))
    assert nothing.random is None and "is not defined" in nothing.summary()
    assert "faithfulness is not defined" in nothing.flags[0] and nothing.largest_gap is None
    few = evaluation(pair_indices=(0, 1), templates=("", ""), measured=(of_pairs(values, 2),))
    assert few.flags == ("2 pairs give no interval: 5 or more do",) and "The rest varies" not in few.summary()


def of_pairs(values: CircuitMeasurements, n: int) -> CircuitMeasurements:
    return replace(
        values, **{key: value[..., :n] for key, value in vars(values).items() if isinstance(value, np.ndarray)}
    )


def test_nothing_random_and_no_part_is_an_evaluation_too():
    values = measured()
    none = {name: getattr(values, name)[:0] for name in ("random", "without", "circuit_knocked", "model_knocked")}
    bare = replace(values, **none, inflated=values.inflated[:0], inflated_without=values.inflated[:0])
    found = evaluation(measured=(bare,), parts=(), knock_outs=(), n_greedy=0, random_sizes=np.zeros(0, dtype=np.int64))
    assert found.random is None and found.largest_gap is None and found.not_needed == () and repr(found)
    assert found.to_dataframe()["measure"].tolist()[:3] == [
        "faithfulness",
        "faithfulness of the rest",
        "difference from the model",
    ]
    assert found.summary() and found.parts_dataframe().empty and found.knock_outs_dataframe().empty


def test_arrays_of_other_shapes_are_refused():
    for wrong, name in (
        ({"pair_indices": (1, 2)}, "full"),
        ({"random_sizes": np.array([2, 2])}, "random"),
        ({"parts": ("L0H0 → logits",)}, "without"),
        ({"knock_outs": (("L0H0",),)}, "circuit_knocked"),
    ):
        with pytest.raises(ValueError, match=f"{name} of the logit difference has shape"):
            evaluation(**wrong)
    with pytest.raises(ValueError, match="metric number 3 of 2"):
        evaluation(selected=3)
