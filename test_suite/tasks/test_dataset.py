"""Positions, templates and answers of any dataset are checked and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from activation_patching import PatchingDataset
from actpatch.tasks.answers import checked_targets
from actpatch.tasks.encoding import EncodedPairs, encode_pairs, named_positions
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import bundled


class Animals(PatchingDataset):
    """A task written as its user would: nothing but what must be given, and what the test is about."""

    def __init__(self, targets: Any = None, positions: Any = None) -> None:
        self.targets, self.positions = targets, positions

    @property
    def name(self) -> str:
        return "animals"

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return [("The cat sat on the mat", "The dog sat on the mat"), ("The cat sat on", "The dog sat on")] * 4

    def get_target_tokens(self, pair_idx: int) -> Any:
        if self.targets is not None:
            return self.targets
        return bundled().to_single_token(" cat"), bundled().to_single_token(" dog")


class NamedAnimals(Animals):
    def get_positions(self, pair_idx: int) -> Any:
        return self.positions[pair_idx] if isinstance(self.positions, list) else self.positions


def test_a_task_need_not_name_anything():
    dataset = Animals()
    assert (dataset.varies, dataset.get_positions(0), dataset.get_template(0)) == ("", {}, "")
    pairs = encode_pairs(bundled(), dataset, [1, 0])
    assert pairs.positions == ({}, {}) and pairs.templates == ("", "")


def test_positions_are_counted_from_the_front_and_kept_in_the_order_of_the_pairs():
    dataset = NamedAnimals(positions=[{"ANIMAL": 2, "END": -1}] * 8)
    pairs = encode_pairs(bundled(), dataset, [1, 0])
    assert named_positions(pairs, "ANIMAL") == (2, 2)
    assert named_positions(pairs, "END") == tuple(len(tokens) - 1 for tokens in pairs.clean) == (4, 6)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({"SEAT": 6}, "pair 1, 5 tokens long: position 'SEAT' 6 is out of range: expected -5 to 4"),
        ({"SEAT": -6}, "pair 1, 5 tokens long: position 'SEAT' -6 is out of range"),
        ({"SEAT": 1.5}, "pair 0, 7 tokens long: position 'SEAT' 1.5 is not an integer"),
        ([("SEAT", 6)] * 8, r"pair 0: get_positions returned \('SEAT', 6\), expected a mapping name -> position"),
    ],
)
def test_positions_that_are_none_name_pair_and_position(positions, message):
    with pytest.raises(ValueError, match=message):
        encode_pairs(bundled(), NamedAnimals(positions=positions))


def test_templates_that_are_no_text_are_refused():
    class Unnamed(Animals):
        def get_template(self, pair_idx: int) -> Any:
            return None

    with pytest.raises(ValueError, match="pair 1: get_template returned None, expected a text, empty for no template"):
        encode_pairs(bundled(), Unnamed(), [1])


def test_pairs_that_lack_a_position_are_named_with_what_they_have():
    dataset = NamedAnimals(positions=[{"ANIMAL": 2, "END": 3}] + [{"END": 4}] * 2 + [{}] * 5)
    pairs = encode_pairs(bundled(), dataset, [7, 0, 1, 2, 3, 4, 5])
    with pytest.raises(
        ValueError, match="6 of 7 pairs have no position named 'ANIMAL': pair 7 has none; pair 1 has END; "
    ):
        named_positions(pairs, "ANIMAL")
    with pytest.raises(ValueError, match=r"pair 4 has none; and 1 more\. Choose another name"):
        named_positions(pairs, "ANIMAL")
    bare = EncodedPairs(pairs.indices, pairs.clean, pairs.corrupted, pairs.clean_tokens, pairs.corrupted_tokens)
    with pytest.raises(ValueError, match="7 of 7 pairs have no position named 'END': pair 7 has none"):
        named_positions(bare, "END")
    assert named_positions(encode_pairs(bundled(), dataset, [0]), "ANIMAL") == (2,)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((5, 6), ((5,), (6,))),
        (([5, 7, 5], 6), ((5, 7), (6,))),
        ((torch.tensor(5), torch.tensor([6, 7])), ((5,), (6, 7))),
        ((np.int64(5), range(6, 9)), ((5,), (6, 7, 8))),
        ((5, None), ((5,), ())),
        ((None, ()), ((), ())),
    ],
)
def test_each_side_may_have_one_answer_several_or_none(targets, expected):
    assert checked_targets(bundled(), Animals(targets), 0) == expected


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (([5, 7], [8, 7, 5]), r"pair 3: correct and incorrect answer are the same tokens 5 \('.*'\), 7 \('.*'\)"),
        ((5, [6, 10**6]), "pair 3: target token 1000000 is outside the vocabulary"),
        (([5, 1], 6), "pair 3: a target is the tokenizer's unknown token"),
        (("5", 6), "pair 3: get_target_tokens returned the text '5': the model's tokenizer does not know '5'"),
        ((b"5", 6), "pair 3: get_target_tokens returned .* expected .correct token id, incorrect token id., or in the"),
        (5, "pair 3: get_target_tokens returned 5, expected"),
        ((5, 6, 7), r"pair 3: get_target_tokens returned \(5, 6, 7\), expected"),
        ((5.0, 6), r"pair 3: get_target_tokens returned \(5.0, 6\), expected"),
    ],
)
def test_answers_that_cannot_be_are_refused(targets, message):
    assert bundled().tokenizer.unk_token_id == 1
    with pytest.raises(ValueError, match=message):
        checked_targets(bundled(), Animals(targets), 3)


def test_several_answers_count_as_one_of_their_summed_probability():
    logits = torch.randn(1, 4, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = logits[0, -1].double().softmax(-1)
    odds = (shares[[3, 5]].sum() / shares[[4, 6, 7]].sum()).log()
    assert Animals(([3, 5], [4, 6, 7])).compute_metric(logits, 0) == pytest.approx(float(odds), rel=0, abs=EXACT)
    with pytest.raises(ValueError, match=r"'logit difference' needs a wrong answer .* \(pair 2\): give"):
        Animals((3, None)).compute_metric(logits, 2)
