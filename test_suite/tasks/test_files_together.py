"""Files and pairs of one's own with chats, ids, whole answers and other lengths: what is a row's stays with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from activation_patching import ActivationPatcher, PromptPair, PromptPairs, check_dataset, load_results
from actpatch.tasks.encoding import encode_pairs
from test_suite.helpers.chats import chat, chat_model
from test_suite.helpers.ids import bare_model
from test_suite.helpers.models import bundled
from test_suite.helpers.refusals import refused

CAT, DOG, LONG = "The cat sat on the mat", "The dog sat on the mat", "The small dog sat on the mat"
GOOD = {"clean": CAT, "corrupted": DOG, "correct": " cat", "incorrect": " dog"}

pytestmark = pytest.mark.filterwarnings("ignore:.*clearly worse", "ignore:The ", "ignore:Only ")


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([{**GOOD, **row} for row in rows])


def test_rows_of_other_lengths_are_aligned_and_mappings_stay_with_their_rows() -> None:
    rows = frame({"corrupted": LONG}, {"correct": " zyzzyva"}, {})
    with refused(r"1 of 3 rows have prompts of different token lengths\. row 0: .*, or give align="):
        PromptPairs.from_dataframe(bundled(), rows)
    mappings = [{0: 0, -1: -1}, {0: 0}, {5: 5}]
    with pytest.warns(UserWarning, match="1 of 3 rows are left out"):
        dataset = PromptPairs.from_dataframe(bundled(), rows, align=mappings, skip_unfit=True)
    assert [dataset.get_alignment(i) for i in (0, 1)] == [mappings[0], mappings[2]]
    assert encode_pairs(bundled(), dataset).matches == (((0, 0), (6, 7)), ((5, 5),))
    with refused("align has 3 mappings for 2 pairs: give one per pair, or 'ends' or 'names'"):
        PromptPairs.from_dataframe(bundled(), rows.iloc[[0, 2]], align=mappings)
    ends = PromptPairs.from_dataframe(bundled(), rows.iloc[[0]], align="ends")
    assert encode_pairs(bundled(), ends).matches == (((0, 0), (1, 1), (3, 4), (4, 5), (5, 6), (6, 7)),)


def test_positions_in_the_corrupted_prompt_are_checked_in_it() -> None:
    def pairs(at: Any, **options: Any) -> PromptPairs:
        named = {"positions": {"ANIMAL": 1}, "corrupted_positions": {"ANIMAL": at}}
        return PromptPairs(bundled(), [PromptPair(CAT, LONG, (" cat",), **named)], align="names", **options)

    dataset = pairs((1, 2), positions_count_bos=False)
    assert (dataset.get_positions(0), dataset.get_corrupted_positions(0)) == ({"ANIMAL": 2}, {"ANIMAL": (2, 3)})
    assert encode_pairs(bundled(), dataset).matches == (((2, 3),),)
    with refused(r"pair 0: the corrupted prompt's position 'ANIMAL' \(in a prompt of 8 tokens\) 8 is out of range"):
        pairs(8)


def test_what_is_changed_in_a_longer_prompt_may_have_a_name() -> None:
    rows = frame({"corrupted": LONG, "position:ANIMAL": 2})
    check = check_dataset(bundled(), PromptPairs.from_dataframe(bundled(), rows, align="ends"))
    assert not [finding for finding in check.findings if finding.what.startswith("No token that the corruption")]
    beside = rows.assign(**{"position:ANIMAL": 4})
    check = check_dataset(bundled(), PromptPairs.from_dataframe(bundled(), beside, align="ends"))
    assert [finding for finding in check.findings if finding.what.startswith("No token that the corruption")]


def test_whole_answers_are_shown_and_kept(tmp_path: Path) -> None:
    dataset = PromptPairs.from_dataframe(bundled(), frame({"correct": [" cat dog", " bird"]}, {}))
    cat, dog, bird = (bundled().to_single_token(text) for text in (" cat", " dog", " bird"))
    results = ActivationPatcher(bundled(), show_progress=False).run_patching_experiment(
        dataset, "z", metrics="sequence_log_probability"
    )
    assert [answers.ids for answers in results.sweep.correct] == [((cat, dog), bird), (cat,)]
    assert results.sweep.correct[0].texts == (" cat dog", " bird")
    assert results.to_dataframe().drop_duplicates("pair")["correct"].tolist() == [" cat dog| bird", " cat"]
    assert load_results(results.save(tmp_path / "results.json")).sweep == results.sweep
    check = check_dataset(bundled(), dataset)
    assert check.pairs[0].correct.ids == ((cat, dog), bird)
    assert f"right answer ' cat dog' ({cat} {dog}) | ' bird' ({bird})" in " ".join(str(check).split())


def test_numbers_are_ids_in_a_pair_and_not_in_a_table() -> None:
    token = bundled().tokenizer.decode([18])
    dataset = PromptPairs(bundled(), [PromptPair([1, 5, 6], [1, 7, 6], (18,), ("42", 7))])
    assert dataset.get_clean_corrupt_pairs() == [((1, 5, 6), (1, 7, 6))] and dataset.get_target_tokens(0)[0] == 18
    with refused(rf"row 0: correct holds 18, expected text: say answers='text' for '18', or 'ids' for '{token}'"):
        PromptPairs.from_dataframe(bundled(), frame({"correct": 18}))
    as_text = PromptPairs(bundled(), [PromptPair(CAT, DOG, (18,))], answers="text")
    assert as_text.get_target_tokens(0)[0] == bundled().to_single_token("18")
    with refused(r"pair 0: a prompt is \[1, 5\], expected text: for token ids say prompts='ids'"):
        PromptPairs(bundled(), [PromptPair([1, 5], [1, 6], (18,))], prompts="text")


def test_a_table_of_ids_needs_no_tokenizer() -> None:
    rows = pd.DataFrame([{"clean": [5, 6], "corrupted": [5, 7], "correct": 8, "incorrect": [9, 10]}])
    dataset = PromptPairs.from_dataframe(bare_model("bridge:gpt2"), rows, prompts="ids", answers="ids")
    assert dataset.get_target_tokens(0) == (8, (9, 10))
    with refused("^this model has no tokenizer, and PromptPairs of texts need one"):
        PromptPairs.from_dataframe(bare_model("bridge:gpt2"), frame({}))


@pytest.mark.parametrize("answers", ["w6", ["w6"]])
def test_one_record_of_chats_is_a_record(tmp_path: Path, answers: Any) -> None:
    model = chat_model("bridge:llama")
    record = {"clean": chat("w3 w4"), "corrupted": chat("w5 w4"), "correct": answers, "incorrect": ["w7"]}
    texts = {
        "line.jsonl": json.dumps(record),
        "document.json": json.dumps(record, indent=1),
        "array.json": json.dumps([record]),
        "key.json": json.dumps({"prompts": [record]}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        dataset = PromptPairs.from_file(model, tmp_path / name)
        assert dataset.get_clean_corrupt_pairs() == [(record["clean"], record["corrupted"])], name


def test_a_chat_that_cannot_be_read_is_a_row_that_does_not_fit() -> None:
    model = chat_model("bridge:llama")
    rows = pd.DataFrame(
        {
            "clean": [chat("w3 w4"), [{"role": "usr", "content": "w3"}], chat("w3")],
            "corrupted": [chat("w5 w4"), chat("w3"), chat("w3 w4")],
            "correct": "w6",
            "incorrect": "w7",
        }
    )
    with pytest.warns(UserWarning, match="2 of 3 rows are left out"):
        dataset = PromptPairs.from_dataframe(model, rows, skip_unfit=True)
    assert len(dataset) == 1 and dataset.left_out["row"].tolist() == ["row 1", "row 2"]
    aligned = PromptPairs.from_dataframe(model, rows.iloc[[0, 2]], align="names")
    assert encode_pairs(model, aligned).matches == (((3, 3), (5, 5)), ((2, 3), (4, 5)))
