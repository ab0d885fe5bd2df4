"""The self-test: exact search finds every program's circuit, and what is not so fails it."""

from __future__ import annotations

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch

from actpatch.circuits.selftest import ESTIMATES, SEARCHES, main, selftest
from actpatch.circuits.theorems import theorems_of
from actpatch.core.truth import OTHER_RUN
from actpatch.models.programs import ProgramName
from actpatch.results.self_test import SelfTest, Theorem
from actpatch.tasks.programs import program_truths
from actpatch.tasks.random_tokens import RandomPairs
from test_suite.helpers.models import fresh_model, small_model

REVERSE = program_truths("reverse")[0]


@pytest.mark.slow
def test_exact_search_finds_exactly_the_circuit_of_every_program():
    found = selftest(methods=())
    assert found.passed and not found.failures
    assert {(one.truth, one.ablation) for one in found.findings} == {
        (truth.name, truth.ablation) for name in get_args(ProgramName) for truth in program_truths(name)
    }
    for one in found.findings:
        assert one.method == "exact" and one.needed and not one.extra and set(one.missed) == set(one.hidden)
        assert one.hidden or (one.is_whole and one.auroc == 1.0)


def test_what_the_methods_are_known_to_miss():
    found = selftest(truths=[*program_truths("or_gate"), *program_truths("lookup")], methods=["eap", "eap_ig", "acdc"])
    table = found.table()
    assert table["exact"]["or_gate", OTHER_RUN, "both"] == "all"  # noising sees no branch, denoising both
    assert table["exact"]["or_gate", OTHER_RUN, "noising"].startswith("1/5")
    assert table["edges"]["or_gate", OTHER_RUN, "noising"] == "5 (4 hidden)"
    assert table["eap"]["lookup", OTHER_RUN, "noising"] == "1/3 0.67"  # one-hot attention has no slope
    assert table["eap_ig"]["lookup", OTHER_RUN, "noising"] == "all"
    assert table["acdc"]["or_gate", OTHER_RUN, "noising"] == "3/5"  # one branch is enough
    assert table["acdc"]["lookup", OTHER_RUN, "noising"] == "all"
    assert table["acdc"]["lookup", OTHER_RUN, "denoising"] == ""
    rows = found.to_dataframe()
    assert len(rows) == len(found.findings) and rows["n_missed"].max() == 4


@pytest.mark.slow
def test_all_methods_on_all_programs():
    found = selftest()
    table = found.table()
    refused = {note.partition(":")[0] for note in found.notes}  # native bridges do not show what the rules need
    assert found.passed and {"edges", "exact", *ESTIMATES, *SEARCHES} - refused <= set(table)
    assert refused <= {"relp", "gim"} and all(f"Not run: {note}" in repr(found) for note in found.notes)
    assert table["eap_ig"]["cancelling_mlp", OTHER_RUN, "noising"] == "all"
    assert table["eap_ig"]["copy", "zero", "noising"] == ""  # its path leads to the other run
    acdc = table["acdc"].unstack("direction")["noising"]
    assert (acdc[["copy", "fraction", "induction", "lookup", "reverse"]] == "all").all()
    rows = found.to_dataframe()
    assert (rows.groupby("method")["is_whole"].sum() > 0).all()


def test_the_printed_table_says_it_all(capsys):
    assert main([REVERSE], ["top"]) == 0
    said = capsys.readouterr().out
    assert "reverse  the other run  denoising  2      all    all\n" in said
    assert said.endswith("Self-test passed.\n")


@pytest.mark.parametrize(
    ("edges", "told"),
    [
        ((*REVERSE.edges, "input->a0.h0<q>"), "exact search misses input → L0H0 q"),
        (REVERSE.edges[:1], "exact search finds what is not of it: L1H2 → logits"),
    ],
)
def test_a_truth_that_exact_search_does_not_find_fails(edges, told, capsys):
    assert main([dataclasses.replace(REVERSE, edges=edges)], []) == 1
    said = capsys.readouterr().out
    assert "Self-test FAILED, 3 failures:" in said and told in said


def test_a_visible_edge_that_is_said_to_be_hidden_fails():
    found = selftest(truths=[dataclasses.replace(REVERSE, hidden=REVERSE.edges[:1])], methods=[])
    assert not found.passed and "finds what is said to be hidden: input → L1H2 v" in found.failures[0]


def test_a_direction_alone_is_not_asked_of_both():
    (denoising, _) = program_truths("or_gate")
    assert {one.direction for one in selftest(truths=[denoising], methods=[]).findings} == {"denoising"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The model prefers")  # random tokens ask nothing of a random model
def test_theorems_hold_of_a_model():
    model = small_model("bridge:gpt2")
    found = selftest(model, dataset=RandomPairs(model, 2, 4), truths=[REVERSE], methods=[])
    assert found.passed and len(found.theorems) == 5 and all(not theorem.reason for theorem in found.theorems)
    assert "the circuit of no edge is the corrupted run: holds (off by" in repr(found)


def test_a_theorem_that_fails_fails_the_test():
    found = SelfTest((), "some model", (Theorem("one is two", 1.0, 1e-6), Theorem("two is two", np.nan, 0, "no twos")))
    assert found.failures == ("some model: one is two: FAILS (off by 1.0e+00, at most 1e-06)",)
    assert "two is two: not asked: no twos" in repr(found)


def test_what_cannot_be_asked_of_a_model_is_told():
    theorems = theorems_of(small_model("bridge:gemma2"))
    assert all(theorem.holds and "post-norm blocks" in theorem.reason for theorem in theorems)


def test_random_pairs_fit_any_vocabulary():
    model = fresh_model("bridge:gpt2")
    pairs = RandomPairs(model, 3, 6, seed=1)
    assert pairs.pairs == RandomPairs(model, 3, 6, seed=1).pairs != RandomPairs(model, 3, 6, seed=2).pairs
    for (clean, corrupted), (right, wrong) in zip(pairs.pairs, pairs.answers):
        differing = np.flatnonzero(np.array(clean) != np.array(corrupted))
        assert len(differing) == 1 and right != wrong and len(clean) - differing[0] == 5
        assert torch.tensor(clean).max() < model.cfg.d_vocab


def test_wrong_arguments_are_refused_before_any_run():
    with pytest.raises(ValueError, match="'reverse' is no truth of a program"):
        selftest(truths=["reverse"])
    with pytest.raises(ValueError, match="'my own' is no truth of a program"):
        selftest(truths=[dataclasses.replace(REVERSE, name="my own")])
    with pytest.raises(ValueError, match="stated for the mean being written, expected the other run or zero"):
        selftest(truths=[dataclasses.replace(REVERSE, ablation="the mean")])
    with pytest.raises(ValueError, match="method 'atp' is unknown: expected some of eap, eap_ig"):
        selftest(methods=["atp"])
    with pytest.raises(ValueError, match="dataset is given and no model"):
        selftest(dataset=RandomPairs(small_model("bridge:gpt2")))
    with pytest.raises(TypeError, match="HookedTransformer"):
        selftest("gpt2")
