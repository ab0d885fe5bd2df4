"""A card of settings keeps its rows in order, has one base case, and prints as a table that fits a terminal."""

from __future__ import annotations

import math

import pytest

from actpatch import Circuit, SensitivityCard, Variation
from actpatch.results.sensitivity import AXES
from test_suite.helpers.results import GRAPH

CIRCUIT = Circuit.of(GRAPH, ["input->logits", "input->m0"])
BASE = Variation("ablation", "the other run", 0.75, 0.7, 0.8, 1.0, 2, 12, is_base=True)


def card_of(*rows: Variation, **changes) -> SensitivityCard:
    fields = {"circuit": CIRCUIT, "metric": "logit difference", "unit": "logits", "task": "IOI", "held_out": True}
    return SensitivityCard(**{**fields, **changes}, variations=rows)


def test_rows_stand_by_axis_and_the_base_case_counts_in_each_range():
    order = Variation("order of search", "random 1", 0.6, jaccard=0.5)
    zero = Variation("ablation", "zero", -0.2, -0.5, 0.1)
    back = Variation("direction", "denoising", math.nan, note="no gap")
    card = card_of(order, back, BASE, zero)
    assert card.axes == ("ablation", "direction", "order of search") and card.base == BASE
    assert card.variations == (BASE, zero, back, order) and card.of("ablation") == (BASE, zero)
    assert card.range_of("ablation") == (-0.2, 0.75) and card.range_of("order of search") == (0.6, 0.75)
    assert card.range_of("direction") == (0.75, 0.75), "what is not defined does not count"
    table = card.to_dataframe()
    assert list(table["value"]) == ["the other run", "zero", "denoising", "random 1"]
    assert table["is_base"].sum() == 1 and table["n_edges"].dropna().tolist() == [2]


def test_each_axis_may_repeat_the_base_case():
    again = Variation("direction", "noising", 0.75, is_base=True)
    assert card_of(BASE, again).of("direction") == (again,)


def test_it_prints_as_a_table_of_80_columns():
    long = Variation("ablation", "another pair's corrupted run, of the same template and length (seed 0)", -0.03)
    rows = [BASE, long, *(Variation(axis, "a setting", 0.5, 0.4, 0.6, 0.8, 100_000, 8) for axis in AXES[1:])]
    text = repr(card_of(*rows, notes=("a note " * 20,)))
    assert max(map(len, text.splitlines())) <= 80
    assert "-0.03" in text and "−" not in text and "100,000" in text
    assert [line.endswith(" *") for line in text.splitlines()].count(True) == 1
    assert "not defined" in repr(card_of(BASE, Variation("direction", "denoising", math.nan)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Variation("ablations", "zero", 0.1), "axis 'ablations' is unknown: expected one of ablation"),
        (lambda: Variation("ablation", "", 0.1), "value is '', expected the setting in words"),
        (lambda: Variation("ablation", "zero", 0.1, 0.3, 0.2), "ablation: zero ends at 0.2, below where it begins"),
        (lambda: Variation("ablation", "zero", 0.1, jaccard=1.5), "jaccard of ablation: zero is 1.5"),
        (lambda: Variation("ablation", "zero", 0.1, n_pairs=-1), "n_pairs of ablation: zero is -1"),
        (lambda: card_of(BASE, circuit="L9H9"), "circuit is a str, expected the Circuit"),
        (lambda: card_of("zero"), "variations hold a str"),
        (lambda: card_of(Variation("ablation", "zero", 0.1)), "no variation is the base case"),
        (lambda: card_of(BASE, BASE), "'ablation: the other run' is there more than once"),
        (
            lambda: card_of(BASE, Variation("ablation", "zero", 0.75, is_base=True)),
            "'ablation' has more than one base case",
        ),
        (
            lambda: card_of(BASE, Variation("direction", "noising", 0.5, is_base=True)),
            "faithfulness 0.75 under .* and 0.5 under",
        ),
        (lambda: card_of(BASE).of("direction"), "'direction' was not varied: expected one of ablation"),
    ],
)
def test_what_is_no_card_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
