"""Rows that do not fit: all that is wrong told in one reading, or left out and listed."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pytest

from activation_patching import PromptPair, PromptPairs
from actpatch.tasks.unfit import KINDS
from test_suite.helpers.models import bundled
from test_suite.helpers.refusals import no_forward_pass

CAT, DOG = "The cat sat on the mat", "The dog sat on the mat"
ROWS: list[dict[str, Any]] = [
    {"correct": " cat"},
    {"correct": ""},
    {"corrupted": 3},
    {"correct": " cat dog"},
    {"correct": [" cat", " dog"]},
    {"clean": "The zyzzyva sat on the mat"},
    {"corrupted": "The small dog sat on the mat"},
    {"subject": "Norway"},
    {"position:X": 7},
    {"correct": " zyzzyva", "corrupted": "The dog sat"},
    {"correct": " bird"},
]
GOOD = {"clean": CAT, "corrupted": DOG, "correct": " cat", "incorrect": " dog", "subject": "mat", "position:X": 1}
FAULTS = ["empty", "cells", "answers", "tokens", "sides", "unreadable", "lengths", "subject", "positions"]


def frame(rows: list[dict[str, Any]] = ROWS) -> pd.DataFrame:
    return pd.DataFrame([{**GOOD, **row} for row in rows])


def test_every_kind_of_fault_is_told_at_once() -> None:
    with no_forward_pass(), pytest.raises(ValueError, match=r"own prompts: 9 of 11 rows do not fit\. ") as refused:
        PromptPairs.from_dataframe(bundled(), frame(), subject="subject", single_token=True)
    message = str(refused.value)
    places = [message.index(KINDS[kind].what) for kind in FAULTS]
    assert places == sorted(places) and len(message) < 2000
    assert "1 of 11 rows have answers that are not one token each. row 3: ' cat dog' is 2" in message
    assert (
        "row 9: the model's tokenizer does not know 'zyzzyva'" in message and "2 of 11 rows have prompts of" in message
    )
    assert "row 7: 'Norway' is not in 'The cat sat on the mat'" in message
    assert message.endswith("skip_unfit=True leaves such rows out")


def test_rows_are_left_out_where_that_is_said() -> None:
    told = (
        "9 of 11 rows are left out: 1 has empty cells, 1 has cells that cannot be read, 1 has answers that cannot be "
        "read, 1 has answers that are not one"
    )
    with pytest.warns(UserWarning, match=told) as warned:
        dataset = PromptPairs.from_dataframe(bundled(), frame(), subject="subject", single_token=True, skip_unfit=True)
    assert len(warned) == 1
    assert [pair.row for pair in dataset.pairs] == ["row 0", "row 10"] and len(dataset) == 2
    assert [dataset.get_target_tokens(i)[0] for i in (0, 1)] == [
        bundled().to_single_token(t) for t in (" cat", " bird")
    ]
    assert list(dataset.left_out.columns) == ["row", "reason", "clean", "corrupted"]
    assert list(dataset.left_out["row"]) == [f"row {i}" for i in range(1, 10)]
    both = dataset.left_out.set_index("row").loc["row 9"]
    assert (both["clean"], both["corrupted"]) == (CAT, "The dog sat")
    assert re.search(r"cannot be read \(.*zyzzyva.*\); prompts of different token lengths \(.*\)", both["reason"])


def test_nothing_is_left_out_of_what_fits() -> None:
    rows = [row for i, row in enumerate(ROWS) if i in (0, 10)]
    dataset = PromptPairs.from_dataframe(bundled(), frame(rows), subject="subject", skip_unfit=True)
    assert dataset.left_out.empty and list(dataset.left_out.columns) == ["row", "reason", "clean", "corrupted"]


def test_where_no_row_is_left_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 of 2 rows have empty cells\..* No row is left"):
        PromptPairs.from_dataframe(bundled(), frame([ROWS[1]] * 2), skip_unfit=True)


def test_pairs_that_were_not_in_a_file_may_be_left_out_too() -> None:
    pairs = [PromptPair(CAT, DOG, (" cat",)), PromptPair(CAT, "The dog", (" cat",)), PromptPair(CAT, DOG, (10**6,))]
    with pytest.warns(UserWarning, match="2 of 3 rows are left out"):
        dataset = PromptPairs(bundled(), pairs, skip_unfit=True)
    assert len(dataset) == 1 and list(dataset.left_out["row"]) == ["pair 1", "pair 2"]


def test_of_many_answers_the_first_are_told_and_a_number() -> None:
    rows = [{"correct": [f" zyzzyva{i}" for i in range(3000)]}] * 7
    with pytest.raises(
        ValueError, match=r"row 4: .*' zyzzyva2'.*, and 2997 more of its 3000 answers; and 2 more"
    ) as refused:
        PromptPairs.from_dataframe(bundled(), frame(rows))
    assert "zyzzyva3" not in str(refused.value)


def test_a_message_stays_short_whatever_there_is_to_say() -> None:
    """Many rows, each with thousands of answers of several tokens, in long prompts."""
    answers = [f" cat dog{' x' * 30} {i}" for i in range(3000)]
    rows = [{**row, "correct": answers, "clean": f"{row.get('clean', CAT)} {'zyzzyva ' * 300}"} for row in ROWS * 20]
    data = frame(rows).rename(index=lambda i: f"{i} of a long name " * 4)
    with pytest.raises(ValueError, match=r"220 of 220 rows do not fit") as refused:
        PromptPairs.from_dataframe(bundled(), data, subject="subject", name="a name " * 40)
    assert len(str(refused.value)) < 2000


def test_answers_of_several_tokens_fit_unless_one_is_asked_for() -> None:
    """They serve metrics of whole answers."""
    dataset = PromptPairs.from_dataframe(bundled(), frame([ROWS[3], ROWS[0]]))
    cat, dog = (bundled().to_single_token(text) for text in (" cat", " dog"))
    assert dataset.get_target_tokens(0) == (((cat, dog),), dog) and dataset.get_target_tokens(1) == (cat, dog)
    with pytest.raises(ValueError, match=r"1 of 2 rows have answers that are not one token each\. row 0: ' cat dog'"):
        PromptPairs.from_dataframe(bundled(), frame([ROWS[3], ROWS[0]]), single_token=True)
    with pytest.raises(ValueError, match="first_token takes of longer answers the first token, and single_token none"):
        PromptPairs.from_dataframe(bundled(), frame(ROWS[:1]), single_token=True, first_token=True)
    with pytest.raises(ValueError, match="single_token is 1, expected True or False"):
        PromptPairs.from_dataframe(bundled(), frame(ROWS[:1]), single_token=1)
