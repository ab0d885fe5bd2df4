"""Rankings and circuits beside a known circuit: golden values by hand, and what is hidden, missing or not ranked."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from actpatch.core.circuits import Circuit
from actpatch.core.edge_patches import edge_patches
from actpatch.core.graph import Graph
from actpatch.core.truth import PublishedHeads, Truth
from actpatch.results.both import BothDirections
from actpatch.results.edges import EdgeResults
from actpatch.results.truth_comparison import mib_circuits
from actpatch.statistics.recovery import mib_auroc, mib_counts
from test_suite.helpers.results import GRAPH, made_up_edges, made_up_heads

SMALL = Graph("made-up", (2, 2), (2, 2), (True, False))
"""Two layers of two heads, the first with an MLP; 39 edges."""
TRUE = ("input->a0.h1<v>", "a0.h1->a1.h0<k>", "a1.h0->logits")
TRUTH = Truth("a chain", SMALL, TRUE)
EVERY = edge_patches(SMALL).ids


def ranked(effects: dict[str, float], *, rest: float = 0.0, direction: str = "noising", **changes) -> EdgeResults:
    """Results of all edges with these effects, the same on every pair."""
    each = np.array([effects.get(edge, rest) for edge in EVERY])
    runs = {"clean": np.full(5, 1.0), "corrupted": np.zeros(5), "direction": direction}
    patched = (1 - each if direction == "noising" else each)[:, None] * np.ones(5)
    return made_up_edges(SMALL, patched=patched, **{**runs, **changes})


def test_golden_values_of_a_ranking():
    effects = {TRUE[0]: 0.9, TRUE[1]: -0.5, TRUE[2]: 0.1, "input->logits": 0.3}
    found = ranked(effects).compare_with(TRUTH)
    # 36 false edges: two true ones are above all of them, the third below one.
    assert found.recovery.auroc == pytest.approx((36 + 36 + 35) / (3 * 36))
    assert found.recovery.auprc == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found.recovery.precision_at == pytest.approx({3: 2 / 3})
    assert found.missed == ("L1H0 → logits",) and not found.is_exact and not found.hidden
    assert found.visible.auroc == found.recovery.auroc
    signed = ranked(effects).compare_with(TRUTH, absolute=False, ks=[1, 39])
    assert signed.recovery.auroc == pytest.approx((36 + 0 + 35) / (3 * 36))
    assert signed.recovery.precision_at == pytest.approx({1: 1, 39: 3 / 39})
    assert "3 of 39 edges true: AUROC 0.99" in repr(found) and "1 missed: L1H0 → logits" in repr(found)
    assert found.ranked_by == "|effect|, exact, noising" and found.metric == "logit difference"


def test_an_exact_ranking_finds_all():
    found = ranked(dict.fromkeys(TRUE, 0.5)).compare_with(TRUTH)
    assert found.is_exact and not found.missed and found.recovery.auprc == found.recovery.precision_at[3] == 1


def test_the_benchmarks_circuits_grow_from_the_logits():
    """An edge that leads nowhere ranks first, and is no part of any circuit until it is fed and leads on."""
    results = ranked({**dict.fromkeys(TRUE, 0.5), "input->a1.h1<q>": 0.9})
    circuits = mib_circuits(SMALL, results.effects_of_all)
    assert mib_counts(39)[4:] == [1, 1, 2, 4, 8, 20, 39][1:]
    place = [EVERY.index(edge) for edge in TRUE]
    assert not circuits[:6, :].any()  # one or two edges from the logits up are fed by nothing
    assert circuits[7, place].all() and circuits[9].all()
    found = results.compare_with(TRUTH).recovery
    assert found.mib_auroc == pytest.approx(mib_auroc(circuits, TRUTH.mask()))


def test_hidden_edges_count_apart():
    truth = dataclasses.replace(TRUTH, hidden=TRUE[:1])
    found = ranked({TRUE[1]: 0.5, TRUE[2]: 0.4}).compare_with(truth)
    assert found.is_exact and found.hidden == ("input → L0H1 v",) == found.missed
    assert found.visible.n_true == 2 and found.visible.n_edges == 38 and found.visible.auroc == 1
    assert found.recovery.auroc == pytest.approx((36 + 36 + 18) / (3 * 36))
    table = found.to_dataframe()
    assert set(table["of"]) == {"all", "visible"}
    assert table.set_index(["of", "measure"])["value"]["visible", "AUROC"] == 1
    assert "without 1 hidden: AUROC 1.00" in repr(found)


def test_ties_with_false_edges_count_as_missed():
    assert len(ranked({}).compare_with(TRUTH).missed) == 3
    assert ranked({TRUE[0]: 1, TRUE[1]: 0.5}, rest=0.1).compare_with(TRUTH).missed == ("L1H0 → logits",)


def test_edges_that_were_not_run_rank_below_all_others_and_are_told():
    results = ranked(dict.fromkeys(TRUE, 0.5)).of(receivers="logits")
    found = results.compare_with(TRUTH)
    n_known = len(results)
    assert found.recovery.n_unranked == 39 - n_known
    assert found.notes == (f"{39 - n_known} edges not ranked, below all others",) and found.notes[0] in repr(found)
    assert len(found.missed) == 2
    unusable = ranked({}, clean=np.zeros(5)).compare_with(TRUTH)
    assert unusable.recovery.n_unranked == 39 and unusable.recovery.auroc == 0.5


def test_both_directions_rank_by_the_larger_effect():
    truth = dataclasses.replace(TRUTH, direction="noising", hidden=TRUE[:2])
    both = BothDirections(ranked(dict.fromkeys(TRUE[:2], -0.5), direction="denoising"), ranked({TRUE[2]: 0.5}))
    found = both.compare_with(truth)
    assert found.is_exact and not found.missed and not found.hidden
    assert found.ranked_by == "|effect|, exact, both directions"
    with pytest.raises(ValueError, match="stated for zero being written, and this wrote the other run"):
        both.compare_with(dataclasses.replace(truth, ablation="zero"))
    with pytest.raises(ValueError, match="these are HeadResults, expected edges"):
        BothDirections(made_up_heads(), made_up_heads()).compare_with(truth)


def test_truths_of_something_else_are_refused():
    results = ranked({})
    with pytest.raises(ValueError, match="is of the model other, and these edges are of made-up"):
        results.compare_with(Truth("t", dataclasses.replace(SMALL, model="other"), TRUE))
    with pytest.raises(ValueError, match="the truth 't' is of Graph"):
        results.compare_with(Truth("t", GRAPH, ("input->logits",)))
    with pytest.raises(ValueError, match="stated for zero being written, and this wrote the other run"):
        results.compare_with(dataclasses.replace(TRUTH, ablation="zero"))
    with pytest.raises(ValueError, match="stated for denoising, and this is noising"):
        results.compare_with(dataclasses.replace(TRUTH, direction="denoising"))
    with pytest.raises(ValueError, match="names heads and no edges"):
        results.compare_with(HEADS)
    with pytest.raises(ValueError, match="truth is a str, expected a Truth, as program_truths"):
        results.compare_with("induction")
    with pytest.raises(ValueError, match="k is 40, expected a whole number from 1 to the number of edges, 39"):
        results.compare_with(TRUTH, ks=[40])


HEADS = PublishedHeads(
    "three heads", "made-up", 4, 3, {"first": ((0, 1),), "last": ((3, 0), (3, 2))}, "a paper", "the mean", {}
)


def made_up_head_effects(effects: dict[tuple[int, int], float], **changes):
    each = np.array([effects.get((layer, head), 0.0) for layer in range(4) for head in range(3)])
    runs = {"clean": np.ones(5), "corrupted": np.zeros(5), "patched": each[:, None] * np.ones(5)}
    return made_up_heads(**{**runs, **changes})


def test_heads_of_a_published_circuit():
    found = made_up_head_effects({(0, 1): 0.9, (3, 0): -0.4, (2, 2): 0.3, (3, 2): 0.1}).compare_with(HEADS)
    assert found.recovery.auroc == pytest.approx((9 + 9 + 8) / 27) and found.missed == ("L3H2",)
    assert found.recovery.auprc == pytest.approx((1 + 1 + 3 / 4) / 3) and found.recovery.precision_at == {3: 2 / 3}
    assert found.notes == ("published with the mean written, these are with the other run",)
    assert "AUROC (MIB)" not in list(found.to_dataframe()["measure"]) and "MIB" not in repr(found)
    part = made_up_head_effects({(0, 1): 0.9, (3, 0): -0.4})[:6].compare_with(HEADS)
    assert part.recovery.n_unranked == 6 and "6 heads not ranked" in repr(part)


def test_heads_of_something_else_are_refused():
    results = made_up_head_effects({})
    with pytest.raises(ValueError, match="three heads is published of gpt2, and this is of made-up"):
        results.compare_with(dataclasses.replace(HEADS, model="gpt2"))
    results.compare_with(dataclasses.replace(HEADS, model="gpt2", model_names=("made-up",)))
    with pytest.raises(ValueError, match="published of 5 layers × 3 heads, and these are of 4 × 3"):
        results.compare_with(dataclasses.replace(HEADS, n_layers=5))
    with pytest.raises(ValueError, match="expected PublishedHeads: compare results of edges with it"):
        results.compare_with(TRUTH)
    with pytest.raises(ValueError, match="key-value heads, which several heads share"):
        made_up_heads(component="v", n_heads=4, n_key_value_heads=2).compare_with(HEADS)


def test_a_circuit_beside_a_truth():
    truth = dataclasses.replace(TRUTH, hidden=TRUE[:1])
    circuit = Circuit.of(SMALL, [TRUE[1], TRUE[2], "input->logits"])
    found = circuit.compare_with(truth)
    assert (found.precision, found.recall, found.jaccard) == pytest.approx((2 / 3, 2 / 3, 2 / 4))
    assert found.both == ("L0H1 → L1H0 k", "L1H0 → logits") and found.extra == ("input → logits",)
    assert found.missing == found.hidden == ("input → L0H1 v",) and not found.is_exact
    assert len(found.to_dataframe()) == 4 and found.to_dataframe()["is_hidden"].sum() == 1
    assert "2 of 3 edges (1 of the missing hidden)" in repr(found) and "extra input → logits" in repr(found)
    assert Circuit.of(SMALL, TRUE).compare_with(truth).is_exact
    assert Circuit.of(SMALL, [f"{edge} @S2" for edge in TRUE]).compare_with(truth).is_exact
    assert math.isnan(Circuit.empty(SMALL).compare_with(truth).precision)
    with pytest.raises(ValueError, match="is of the model other"):
        circuit.compare_with(Truth("t", dataclasses.replace(SMALL, model="other"), TRUE))
    with pytest.raises(ValueError, match="expected a Truth"):
        circuit.compare_with(None)


def test_a_circuit_beside_published_heads():
    heads = PublishedHeads("two heads", "made-up", 2, 2, {"all": ((0, 0), (1, 0))}, "", "", {})
    found = Circuit.of(SMALL, TRUE).compare_with(heads)
    assert (found.both, found.missing, found.extra) == (("L1H0",), ("L0H0",), ("L0H1",)) and found.kind == "head"
    assert found.jaccard == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="published of 3 layers"):
        Circuit.of(SMALL, TRUE).compare_with(dataclasses.replace(heads, n_layers=3))
