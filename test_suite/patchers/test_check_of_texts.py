"""What the check of a dataset shows of its answers and names, and what it finds in texts and spellings."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
import torch

from activation_patching import ActivationPatcher, IOIDataset, PromptPairs, check_dataset, load_results
from actpatch import HeadPatcher, create_full_report
from actpatch.metrics.answers import LogProbability
from actpatch.metrics.base import Answers, AnswerSequences
from actpatch.patchers.spelling import other_spelling
from test_suite.helpers.models import bundled, smollm2
from test_suite.helpers.pages import shown_text
from test_suite.helpers.prompts import Prompts

CAT, DOG = "The cat sat on the mat", "The dog sat on the mat"


def pairs(*rows: dict[str, Any], model: Any = None, **reading: Any) -> PromptPairs:
    given = {"clean": CAT, "corrupted": DOG, "correct": " cat", "incorrect": " dog"}
    return PromptPairs.from_dataframe(model or bundled(), pd.DataFrame([{**given, **row} for row in rows]), **reading)


def found(check: Any, *starts: str) -> list[Any]:
    return [finding for finding in check.findings if finding.what.startswith(starts)]


# --- what is measured is seen -----------------------------------------------------------------------------------------


def test_answers_and_tokens_under_names_are_shown() -> None:
    several = [" dog", " fox", " bear", " bird", " mat", " fish"]
    dataset = pairs({"incorrect": several, "position:ANIMAL": 2, "position:PLACE": -1})
    check = check_dataset(bundled(), dataset)
    ids = [bundled().to_single_token(text) for text in (" cat", *several)]
    printed = " ".join(str(check).split())
    assert f"right answer ' cat' ({ids[0]})" in printed
    assert f"wrong answer ' dog' ({ids[1]}) | ' fox' ({ids[2]})" in printed and "and 2 more" in printed
    assert "in pair 0: ANIMAL ' cat', PLACE ' mat'" in printed
    assert max(map(len, str(check).splitlines())) <= 80
    (row,) = check.to_dataframe().to_dict("records")
    assert (row["correct"], row["correct_ids"], row["incorrect_ids"]) == (" cat", (ids[0],), tuple(ids[1:]))
    assert row["incorrect"] == " dog| fox| bear| bird and 2 more" and row["named_tokens"] == "' cat', ' mat'"
    assert json.loads(json.dumps(check.to_dict()))["pairs"][0]["incorrect"]["texts"] == several


def test_answers_are_in_results_tables_files_and_the_report(tmp_path: Any) -> None:
    dataset = pairs(
        {"incorrect": [" dog", " fox"]}, {"clean": DOG, "corrupted": CAT, "correct": " dog", "incorrect": " cat"}
    )
    results = HeadPatcher(bundled(), show_progress=False).run_all_heads_experiment(dataset)
    cat, dog, fox = (bundled().to_single_token(text) for text in (" cat", " dog", " fox"))
    assert [answers.ids for answers in results.sweep.correct] == [(cat,), (dog,)]
    assert [answers.texts for answers in results.sweep.incorrect] == [(" dog", " fox"), (" cat",)]
    assert results.sweep.incorrect[0].ids == (dog, fox)
    table = results.to_dataframe().drop_duplicates("pair")
    assert list(zip(table["correct"], table["incorrect"])) == [(" cat", " dog| fox"), (" dog", " cat")]
    assert load_results(results.save(tmp_path / "results.json")).sweep == results.sweep
    page = shown_text(create_full_report(results, save_dir=tmp_path)[0].read_text(encoding="utf-8"))
    assert "Right answer Wrong answer" in page and "' dog' | ' fox'" in page


def test_the_answers_are_those_of_the_metric_that_was_given() -> None:
    fox = bundled().to_single_token(" fox")
    given = LogProbability(Answers(((fox,),), ((),)))
    sweep = (
        ActivationPatcher(bundled(), show_progress=False).run_patching_experiment(pairs({}), "z", metrics=given).sweep
    )
    assert sweep.correct[0].texts == (" fox",) and sweep.incorrect[0].texts == ()


def test_where_nothing_gives_answers_there_are_none() -> None:
    dataset = pairs({}, correct=None)
    check = check_dataset(bundled(), dataset)
    assert check.metric == "KL divergence" and "kl_divergence" in found(check, "No pair has a right answer")[0].remedy
    assert check.verdict != "not usable" and check.to_dataframe()["correct"].tolist() == [""]
    sweep = ActivationPatcher(bundled(), show_progress=False).run_patching_experiment(
        dataset, "z", metrics="kl_divergence"
    )
    assert sweep.sweep.correct[0].ids == ()


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_texts_are_looked_at_of_every_dataset() -> None:
    bos = bundled().tokenizer.bos_token
    checks = {
        "One prompt begins with white space and the other does not in 1 of 2 pairs (pair 1)": (CAT, f" {DOG}"),
        f"The BOS token {bos!r} begins the prompts twice in 1 of 2 pairs (pair 1)": (bos + CAT, bos + DOG),
    }
    for what, pair in checks.items():
        check = check_dataset(bundled(), Prompts(bundled(), [(CAT, DOG), pair]))
        (finding,) = found(check, what[:12])
        assert (finding.what, finding.severity, finding.pairs) == (what, "care", (1,))
        assert 1 not in check.sound_pairs
    assert not found(check_dataset(bundled(), IOIDataset(bundled(), 6)), "One prompt", "The BOS", "The prompts end")


def test_names_beside_what_is_changed_are_told() -> None:
    check = check_dataset(bundled(), pairs({"position:ANIMAL": 1, "position:END": 6}))
    (note,) = found(check, "No token that the corruption changes has a name")
    assert note.severity == "note" and "ANIMAL 'The'" in note.what and "positions_count_bos=False" in note.remedy
    right = check_dataset(bundled(), pairs({"position:ANIMAL": 1}, positions_count_bos=False))
    assert not found(right, "No token") and right.pairs[0].changes[0].names == ("ANIMAL",)
    assert not found(check_dataset(bundled(), pairs({})), "No token")


# --- spelling ---------------------------------------------------------------------------------------------------------


def test_other_spellings_are_those_of_the_vocabulary() -> None:
    model = bundled()
    known = model.tokenizer.get_vocab()
    mary = [model.to_single_token(text) for text in ("Mary", " Mary")]
    answers = Answers(((mary[0],), (mary[1], mary[0]), (model.to_single_token(" mat"),)), ((), (), ()))
    other = other_spelling(model, answers)
    assert other is not None and other.other.correct[:2] == ((mary[1],), (mary[0], mary[1]))
    assert other.has_other[2] == ("mat" in known)


def test_the_other_spelling_of_whole_answers_is_measured_by_hand() -> None:
    """The first answer of each pair, whose tokens may all be others; ids that no text is read as have no spelling."""
    model = bundled()
    assert other_spelling(model, AnswerSequences((((3, 2),),), ((),))) is None
    mary = tuple(model.to_tokens(" Mary gave", prepend_bos=False)[0].tolist())
    other = tuple(model.to_tokens("Mary gave", prepend_bos=False)[0].tolist())
    found = other_spelling(model, AnswerSequences((((mary), (other)), ((other),)), ((), ())))
    assert found is not None and found.other.correct == ((other,), (mary,))
    assert found.written.correct == ((mary,), (other,)) and found.has_other == (True, True)


@pytest.mark.filterwarnings("ignore")
def test_a_missing_space_is_told_of_answers_of_several_tokens() -> None:
    model, prompt = bundled(), "When Mary and John went to the store, John gave a drink to"
    flipped = "When Mary and John went to the store, Mary gave a drink to"
    for space, told in (("", True), (" ", False)):
        answers = {"correct": f"{space}Mary Mary", "incorrect": f"{space}John John"}
        dataset = pairs({"clean": prompt, "corrupted": flipped, **answers}, model=model)
        findings = found(check_dataset(model, dataset), "The model prefers the answers")
        assert bool(findings) is told
    (finding,) = findings or found(
        check_dataset(
            model, pairs({"clean": prompt, "corrupted": flipped, "correct": "Mary Mary", "incorrect": "John John"})
        ),
        "The model prefers",
    )
    by_hand = []
    for text in ("Mary Mary", " Mary Mary"):
        tokens = model.to_tokens(text, prepend_bos=False)[0]
        prompt_tokens = model.to_tokens(prompt)[0]
        with torch.no_grad():
            logs = model(torch.cat([prompt_tokens, tokens])[None])[0].log_softmax(-1)
        at = len(prompt_tokens) - 1
        by_hand.append(sum(float(logs[at + i, token]) for i, token in enumerate(tokens)))
    assert f"by {by_hand[1] - by_hand[0]:.1f} nats on average: ' Mary Mary' instead of 'Mary Mary'" in finding.what


def log_probability(model: Any, prompt: str, answer: str) -> float:
    with torch.no_grad():
        return float(model(prompt)[0, -1].log_softmax(-1)[model.to_single_token(answer)])


CAPITALS = {"France": "Paris", "England": "London", "Peru": "Lima", "China": "Beijing", "Texas": "Austin"}
ENDS = [
    ("The capital of {} is", "", True),
    ("The capital of {} is", " ", False),
    ("The capital of {} is ", "", True),
    ("Q: The capital of Italy? A: Rome\nQ: The capital of {}? A:", "", True),
    ("Q: The capital of Italy? A: Rome\nQ: The capital of {}? A:", " ", False),
    ('The capital of {} is called "', "", False),
    ("The capital of {} (", "", False),
    ("The capital of {} is to be found at www.", "", False),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("prompt", "space", "told"), ENDS)
def test_a_missing_leading_space_is_measured(prompt: str, space: str, told: bool) -> None:
    """It is told where the model itself likes the other spelling better, and nowhere else."""
    model, names = smollm2(), list(CAPITALS)
    rows = [
        {
            "clean": prompt.format(one),
            "corrupted": prompt.format(other),
            "correct": space + CAPITALS[one],
            "incorrect": space + CAPITALS[other],
        }
        for one, other in zip(names, [*names[1:], names[0]])
    ]
    dataset = pairs(*rows, model=model, single_token=True, skip_unfit=True)
    assert len(dataset)
    findings = found(check_dataset(model, dataset), "The model prefers the answers")
    assert bool(findings) is told
    other = "" if space else " "
    gains = []
    for clean, _ in dataset.get_clean_corrupt_pairs():
        answer = CAPITALS[next(name for name in names if name in clean)]
        if len(model.to_tokens(other + answer, prepend_bos=False)[0]) == 1:
            gains.append(log_probability(model, clean, other + answer) - log_probability(model, clean, space + answer))
    mean = sum(gains) / len(gains)
    assert (mean >= 1) is told
    if told:
        (finding,) = findings
        assert f"by {mean:.1f} nats on average" in finding.what and finding.severity == "care"
        assert len(finding.pairs) == sum(gain > 0 for gain in gains)
