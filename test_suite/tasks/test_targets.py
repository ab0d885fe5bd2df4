"""Answers as datasets give them: texts, ids, alternatives, of one token or several, and their first tokens alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from activation_patching import PatchingDataset, PromptPair, PromptPairs
from actpatch.tasks.answers import checked_sequences, checked_targets
from actpatch.tasks.dataset import CleanPrompts
from actpatch.tasks.encoding import encode_pairs
from actpatch.tasks.targets import whole_answers
from test_suite.helpers.models import bundled

CAT, DOG = "The cat sat on the", "The dog sat on the"


def ids(text: str) -> tuple[int, ...]:
    return tuple(bundled().to_tokens(text, prepend_bos=False)[0].tolist())


class Given(PatchingDataset):
    """One pair with these targets."""

    def __init__(self, targets: Any, first_token: bool = False) -> None:
        self.model, self.targets, self.first_token = bundled(), targets, first_token

    @property
    def name(self) -> str:
        return "given"

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return [(CAT, DOG)]

    def get_target_tokens(self, pair_idx: int) -> Any:
        return self.targets


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (12, [(12,)]),
        (" cat", [ids(" cat")]),
        (" cat dog", [ids(" cat dog")]),
        ([12, 7], [(12,), (7,)]),
        ([" cat", " cat dog", " cat"], [ids(" cat"), ids(" cat dog")]),
        ([[12, 7]], [(12, 7)]),
        ([[12, 7], [9], (12, 7)], [(12, 7), (9,)]),
        (np.array([[12, 7], [9, 3]]), [(12, 7), (9, 3)]),
        (torch.tensor([12, 7]), [(12,), (7,)]),
        ([torch.tensor([12, 7]), np.array([9])], [(12, 7), (9,)]),
        ([" cat", [12, 7]], [ids(" cat"), (12, 7)]),
        (iter([12, 7]), [(12,), (7,)]),
        (None, []),
        ([], []),
    ],
)
def test_each_way_to_give_answers(side: Any, expected: list) -> None:
    assert len(ids(" cat dog")) == 2
    assert whole_answers(bundled(), side) == tuple(expected)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (
            [[12, 7], 9],
            r"are token ids beside lists of them: give each answer as a list of its ids, \[\[12, 7\], \[9\]\]",
        ),
        ([[12, 7], []], r"the answer \[\] has no tokens"),
        ("", "the answer '' has no tokens"),
        (" cat zyzzyva", "does not know"),
        ([[12, 10**6]], "target token 1000000 is outside the vocabulary"),
        ([[12, 1]], "a target is the tokenizer's unknown token"),
        ([[12, True]], "get_target_tokens returned"),
        ([[[12]]], "get_target_tokens returned"),
        ([[12, 7.5]], "get_target_tokens returned"),
        (b"cat", "get_target_tokens returned"),
    ],
)
def test_answers_that_cannot_be_are_refused(side: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"pair 0: .*{message}"):
        checked_sequences(bundled(), Given((side, [[3, 4]])), 0)


def test_an_answer_is_right_or_wrong() -> None:
    with pytest.raises(ValueError, match="correct and incorrect answer are the same ' cat dog': an answer is one or"):
        checked_sequences(bundled(), Given((" cat dog", [" dog", " cat dog"])), 0)
    assert checked_sequences(bundled(), Given((" cat", " cat dog")), 0) == ((ids(" cat"),), (ids(" cat dog"),))


@pytest.mark.parametrize("metric", [None, "logit_difference", "probability", "rank", "accuracy", "dataset"])
def test_metrics_of_one_token_refuse_longer_answers_and_name_both_ways_on(metric: str | None) -> None:
    pairs = encode_pairs(bundled(), Given((" cat dog", " dog")))
    expected = (
        r"pair 0: the answer ' cat dog' is 2 tokens for this model \(' cat' \+ ' dog'\), and what is measured reads "
        "one: measure whole answers with metrics='sequence_log_probability' or 'sequence_log_probability_difference', "
        "or their first tokens alone by first_token=True"
    )
    with pytest.raises(ValueError, match=expected):
        pairs.metrics(metric)
    with pytest.raises(ValueError, match=r"the answer \[12, 7\]|the answer '.*' is 2 tokens"):
        encode_pairs(bundled(), Given(([[12, 7]], 3))).metrics("log_probability")
    assert [m.name for m in pairs.metrics(["sequence_log_probability_difference", "kl_divergence"])] == [
        "sequence log-probability difference",
        "KL divergence",
    ]


def test_the_first_token_alone_is_a_named_choice() -> None:
    dataset = Given(([" cat dog", " cat", " bird cat"], " dog cat"), first_token=True)
    cat, dog, bird = ids(" cat")[0], ids(" dog")[0], ids(" bird")[0]
    for of in (dataset, CleanPrompts(dataset)):
        assert checked_targets(bundled(), of, 0) == ((cat, bird), (dog,))
        assert checked_sequences(bundled(), of, 0) == (((cat,), (bird,)), ((dog,),))
    logits = torch.randn(1, 5, bundled().cfg.d_vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = logits[0, -1, [cat, bird]].logsumexp(0) - logits[0, -1, dog]
    assert dataset.compute_metric(logits, 0) == pytest.approx(float(expected))
    sentence = encode_pairs(bundled(), dataset).first_token_alone
    assert sentence == "of the answers of 1 of 1 pairs only the first token is measured: ' cat' of ' cat dog'"
    assert encode_pairs(bundled(), Given((" cat", " dog"), first_token=True)).first_token_alone == ""


def test_first_tokens_that_are_the_same_tell_nothing() -> None:
    expected = r"begin with the same token \d+ \(' cat'\), and first_token takes no more of them: measure whole answers"
    with pytest.raises(ValueError, match=expected):
        checked_targets(bundled(), Given((" cat dog", " cat bird"), first_token=True), 0)
    with pytest.raises(ValueError, match="are the same token"):
        checked_targets(bundled(), Given((" cat", " cat"), first_token=True), 0)
    rows = [PromptPair(CAT, DOG, (" cat dog",), (" cat bird",))]
    with pytest.raises(
        ValueError, match=r"own prompts: 1 of 1 rows have answers that do not go together\. pair 0: .*begin"
    ):
        PromptPairs(bundled(), rows, first_token=True)
    assert len(PromptPairs(bundled(), rows)) == 1


def test_own_prompts_keep_whole_answers() -> None:
    rows = [PromptPair(CAT, DOG, (" cat dog", " bird"), (" dog",)), PromptPair(CAT, DOG, (" cat",), (" dog", " bird"))]
    dataset = PromptPairs(bundled(), rows)
    assert dataset.get_target_tokens(0) == ((ids(" cat dog"), ids(" bird")), ids(" dog")[0])
    assert dataset.get_target_tokens(1) == (ids(" cat")[0], (ids(" dog")[0], ids(" bird")[0]))
    pairs = encode_pairs(bundled(), dataset)
    assert pairs.sequences.correct == ((ids(" cat dog"), ids(" bird")), (ids(" cat"),))
    assert pairs.sequences.longest.tolist() == [2, 1]
    with pytest.raises(ValueError, match="pair 0: the answer ' cat dog' is 2 tokens"):
        pairs.metrics()
    assert encode_pairs(bundled(), dataset, [1]).metrics()[0].name == "logit difference"


def test_what_stands_for_several_answers_in_csv_is_told_where_they_are_a_list() -> None:
    rows = [PromptPair(CAT, DOG, (" cat", " dog")), PromptPair(CAT, DOG, (" cat| dog",))]
    with pytest.raises(ValueError, match=r"1 of 2 rows have answers that cannot be read. pair 1: .* list here"):
        PromptPairs(bundled(), rows)


def test_a_prompt_that_has_no_room_for_its_answer_is_refused() -> None:
    n_ctx = bundled().cfg.n_ctx

    class Long(Given):
        def get_clean_corrupt_pairs(self) -> list[Any]:
            return [([ids(" cat")[0]] * n_ctx, [ids(" dog")[0]] * n_ctx)]

    encode_pairs(bundled(), Long((" cat", None))).metrics("sequence_log_probability")
    with pytest.raises(
        ValueError, match=f"pair 0: its prompt of {n_ctx} tokens with an answer of 2 is longer than the"
    ):
        encode_pairs(bundled(), Long((" cat dog", None))).metrics("sequence_log_probability")


def test_whole_answers_need_the_sides_that_they_are_measured_with() -> None:
    pairs = encode_pairs(bundled(), Given((" cat dog", None)))
    with pytest.raises(
        ValueError,
        match=r"'sequence log-probability difference' needs a wrong answer .* measure sequence_log_probability,",
    ):
        pairs.metrics("sequence_log_probability_difference")
    assert pairs.metrics("sequence_log_probability_per_token")[0].unit == "nats"
