"""Files in the shapes in which others publish them; what they hold is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from activation_patching import ActivationPatcher, PromptPairs
from test_suite.helpers.models import bundled
from test_suite.helpers.tasks import answers_of

CAT, DOG = "The cat sat on the mat", "The dog sat on the mat"


def ids_of(*texts: str) -> list[int]:
    return [bundled().to_single_token(text) for text in texts]


@pytest.mark.parametrize(
    ("columns", "several"),
    [
        (("correct_idx", "incorrect_idx"), False),
        (("clean_answer_idx", "corrupted_answer_idx"), False),
        (("country_idx", "corrupted_country_idx"), False),
        (("answers_idx", "corrupted_answers_idx"), True),
    ],
)
def test_eap_files(tmp_path: Path, columns: tuple[str, str], several: bool) -> None:
    cat, dog = ids_of(" cat", " dog")
    cells = ([cat], [dog, *ids_of(" fox")]) if several else (cat, dog)
    frame = pd.DataFrame([{"clean": CAT, "corrupted": DOG, **dict(zip(columns, cells)), "corrupted_hard": CAT}])
    frame.to_csv(tmp_path / "eap.csv")  # with its index, as pandas writes it
    dataset = PromptPairs.from_eap_csv(bundled(), tmp_path / "eap.csv")
    assert dataset.get_clean_corrupt_pairs() == [(CAT, DOG)]
    assert answers_of(dataset, 0) == (" cat", {" dog", " fox"} if several else " dog")
    hard = PromptPairs.from_eap_csv(bundled(), tmp_path / "eap.csv", corrupted="corrupted_hard")
    assert hard.get_clean_corrupt_pairs() == [(CAT, CAT)]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("clean,corrupted,correct_idx", "row 2 is not of greater-than, .*and '1'. For token ids use from_file"),
        ("clean,corrupted,plural", "its 'plural' is a number for which the task chooses a list of verbs"),
        ("clean,corrupted,label", "it has 'clean', 'corrupted', 'label': say which with correct='...'"),
        (
            "clean,corrupted,country_idx,corrupted_country_idx,capital_idx,corrupted_capital_idx",
            "has the answers country_idx, corrupted_country_idx and capital_idx, corrupted_capital_idx: say which",
        ),
    ],
)
def test_eap_files_whose_answers_are_not_known(tmp_path: Path, header: str, message: str) -> None:
    row = [CAT, DOG, *["1"] * (header.count(",") - 1)]
    (tmp_path / "eap.csv").write_text(f"{header}\n{','.join(row)}\n")
    with pytest.raises(ValueError, match=message):
        PromptPairs.from_eap_csv(bundled(), tmp_path / "eap.csv")


YEARS = "The war lasted from the year {} to the year 17"


@pytest.mark.parametrize("loader", ["from_eap_csv", "from_mib"])
def test_files_of_greater_than(tmp_path: Path, loader: str) -> None:
    """The years above are right, all others wrong, and the measure is the one of the paper, computed by hand."""
    path, model = tmp_path / "gt.csv", bundled()
    rows = [f"{YEARS.format(f'17{year}')},{YEARS.format('1701')},{int(year)}" for year in ("32", "05", "98")]
    path.write_text("\n".join(["clean,corrupted,correct_idx", *rows]) + "\n")
    dataset = getattr(PromptPairs, loader)(model, path)
    assert answers_of(dataset, 2) == ("99", {f"{year:02d}" for year in range(99)})
    results = ActivationPatcher(model, show_progress=False).run_patching_experiment(
        dataset, "resid_pre", metrics="probability_difference"
    )
    years = [model.to_single_token(f"{year:02d}") for year in range(100)]
    for (clean, _), start, measured in zip(dataset.get_clean_corrupt_pairs(), (32, 5, 98), results.sweep.clean):
        with torch.no_grad():
            of_years = model(clean)[0, -1].softmax(-1)[years]
        by_hand = of_years[start + 1 :].sum() - of_years[: start + 1].sum()
        assert measured == pytest.approx(float(by_hand), abs=1e-9)


def test_what_the_prompt_of_greater_than_does_not_say_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gt.csv"
    path.write_text(f"clean,corrupted,correct_idx\n{YEARS.format('1732')},{YEARS.format('1701')},33\n")
    with pytest.raises(ValueError, match=r"row 2 is not of greater-than, .*'The war .* and '33'. For token ids"):
        PromptPairs.from_mib(bundled(), path)
    path.write_text(f"prompt,corrupted,correct_idx\n{YEARS.format('1732')},{YEARS.format('1701')},32\n")
    with pytest.raises(ValueError, match=r"gt\.csv has no column 'clean'; it has 'prompt', 'corrupted', 'correct_idx'"):
        PromptPairs.from_eap_csv(bundled(), path)


def test_auto_circuit_files(tmp_path: Path) -> None:
    """Positions count without BOS; wrong answers may be missing; prompts may be ids."""
    path, record = tmp_path / "ac.json", {"clean": CAT, "corrupt": DOG, "answers": [" cat"], "wrong_answers": [" dog"]}
    path.write_text(json.dumps({"seq_labels": ["The"], "word_idxs": {"ANIMAL": 1, "end": 5}, "prompts": [record]}))
    dataset = PromptPairs.from_auto_circuit_json(bundled(), path)
    assert (dataset.get_clean_corrupt_pairs(), answers_of(dataset, 0)) == ([(CAT, DOG)], (" cat", " dog"))
    assert dataset.get_positions(0) == {"ANIMAL": 2, "end": 6}
    path.write_text(json.dumps({"prompts": [{name: record[name] for name in ("clean", "corrupt", "answers")}]}))
    assert PromptPairs.from_auto_circuit_json(bundled(), path).get_target_tokens(0)[1] == ()
    ids: dict[str, Any] = {"clean": [3, 5, 6], "corrupt": [3, 7, 6], "answers": [5], "wrong_answers": [7, 8]}
    path.write_text(json.dumps({"word_idxs": {"A": 1}, "prompts": [ids]}))
    of_ids = PromptPairs.from_auto_circuit_json(bundled(), path)
    assert of_ids.get_clean_corrupt_pairs() == [((3, 5, 6), (3, 7, 6))]
    assert (of_ids.get_target_tokens(0), of_ids.get_positions(0)) == ((5, (7, 8)), {"A": 1})


MIB: dict[str, list[dict[str, Any]]] = {
    "ioi": [
        {
            "prompt": CAT,
            "choices": ["cat", "dog"],
            "answerKey": 0,
            "metadata": {"indirect_object": "cat", "subject": "dog"},
            "s2_io_flip_counterfactual": {"prompt": DOG, "answerKey": 1, "choices": ["cat", "dog"]},
            "abc_counterfactual": {"prompt": "The fox sat on the mat"},
        }
    ],
    "choice": [
        {
            "prompt": CAT,
            "choices": {"label": [" dog", " cat"], "text": ["one", "two"]},
            "answerKey": 1,
            "symbol_counterfactual": {"prompt": DOG, "choices": {"label": [" dog", " cat"]}, "answerKey": 0},
        }
    ],
    "arithmetic": [
        {
            "prompt": CAT,
            "operator": "+",
            "label": 18,
            "random_counterfactual": {"prompt": DOG, "label": 42},
        }
    ],
}


@pytest.mark.parametrize("kind", MIB)
def test_the_tasks_of_the_benchmark(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.json"
    pd.DataFrame(MIB[kind]).to_json(path, orient="records", lines=True)
    for rows in (pd.DataFrame(MIB[kind]), path):
        dataset = PromptPairs.from_mib(bundled(), rows)
        assert dataset.get_clean_corrupt_pairs() == [(CAT, DOG)] and dataset.name == f"MIB {kind}"
        assert answers_of(dataset, 0) == (("18", "42") if kind == "arithmetic" else (" cat", " dog"))


def test_another_counterfactual_of_the_benchmark() -> None:
    frame = pd.DataFrame(MIB["ioi"])
    dataset = PromptPairs.from_mib(bundled(), frame, counterfactual="abc_counterfactual")
    assert dataset.pairs[0].corrupted == "The fox sat on the mat"
    with pytest.raises(
        ValueError, match="no column 'other': choose counterfactual among 's2_io_flip_counterfactual', 'abc"
    ):
        PromptPairs.from_mib(bundled(), frame, counterfactual="other")
    with pytest.raises(ValueError, match="expected those of MIB's IOI, multiple choice, arithmetic or greater-than"):
        PromptPairs.from_mib(bundled(), frame[["prompt"]])


def test_a_published_shape_leaves_out_what_does_not_fit(tmp_path: Path) -> None:
    rows = [
        {"subject": subject, "attribute": "mat", "prompt": "The cat sat on the"} for subject in ("The cat", "Norway")
    ]
    (tmp_path / "known.json").write_text(json.dumps(rows))
    with pytest.warns(UserWarning, match="1 of 2 rows are left out: 1 has a subject that is not found in the prompt"):
        assert len(PromptPairs.from_known_facts(bundled(), tmp_path / "known.json", skip_unfit=True)) == 1


FAULTY_YEARS = {
    f"{YEARS.format('1732')},{YEARS.format('1701')},33": r"cells that cannot be read.* holds '33', where .* says 32",
    f"{CAT},{DOG},32": r"cells that cannot be read.* row 3: 'The cat .* does not end in 'CC' after 'CCYY'",
    f"{YEARS.format('1732')},{YEARS.format('1701')},": "empty cells.* row 3: correct_idx",
    f",{YEARS.format('1701')},32": "empty cells.* row 3: clean",
    f"{YEARS.format('1799')},{YEARS.format('1701')},99": "answers that cannot be read.* row 3: no two digits are above",
    f"{YEARS.format('1732')},{YEARS.format('1701')},32,x": "more cells than the header.* row 3: 4 cells",
    f"The {YEARS.format('1732')},{YEARS.format('1701')},32": "prompts of different token lengths.* row 3",
}


def one_left_out(loader: str, source: Any, message: str) -> Any:
    """Of three rows the second does not fit: refused, or left out."""
    load = getattr(PromptPairs, loader)
    with pytest.raises(ValueError, match=f"(?s)1 of 3 rows have {message}") as refused:
        load(bundled(), source)
    assert str(refused.value).endswith("skip_unfit=True leaves such rows out")
    with pytest.warns(UserWarning, match="1 of 3 rows are left out: 1 has"):
        dataset = load(bundled(), source, skip_unfit=True)
    assert len(dataset) == 2 and len(dataset.left_out) == 1
    return dataset


@pytest.mark.parametrize("loader", ["from_eap_csv", "from_mib"])
@pytest.mark.parametrize("row", FAULTY_YEARS)
def test_a_faulty_row_of_greater_than_is_left_out(tmp_path: Path, loader: str, row: str) -> None:
    path, good = tmp_path / "gt.csv", f"{YEARS.format('1732')},{YEARS.format('1701')},32"
    path.write_text(f"clean,corrupted,correct_idx\n{good}\n{row}\n{good}\n")
    dataset = one_left_out(loader, path, FAULTY_YEARS[row])
    assert list(dataset.left_out["row"]) == ["row 3"] and answers_of(dataset, 1)[0] >= {"33", "99"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{cat},x", "cells that cannot be read.* row 3: incorrect holds 'x', expected a token id"),
        (",{dog}", "empty cells.* row 3: correct_idx"),
        ("{cat},{cat}", "answers that do not go together.* row 3"),
        ("99999999,{dog}", "answers that cannot be read.* row 3: the token id 99999999 is outside"),
    ],
)
def test_a_faulty_row_of_token_ids_is_left_out(tmp_path: Path, row: str, message: str) -> None:
    (cat, dog), path = ids_of(" cat", " dog"), tmp_path / "eap.csv"
    rows = [f"{CAT},{DOG},{cells.format(cat=cat, dog=dog)}" for cells in ("{cat},{dog}", row, "{cat},{dog}")]
    path.write_text("\n".join(["clean,corrupted,correct_idx,incorrect_idx", *rows]) + "\n")
    one_left_out("from_eap_csv", path, message)


AC = {"clean": CAT, "corrupt": DOG, "answers": [" cat"], "wrong_answers": [" dog"]}
FACT = {"subject": "The cat", "attribute": "mat", "prompt": "The cat sat on the"}
FAULTY_RECORDS: list[tuple[str, dict[str, Any], Any, str]] = [
    ("from_auto_circuit_json", AC, {**AC, "clean": ""}, "empty cells.* row 2: clean"),
    ("from_auto_circuit_json", AC, {**AC, "answers": []}, "empty cells.* row 2: answers"),
    ("from_auto_circuit_json", AC, {**AC, "clean": [3, 4]}, "cells that cannot be read.* row 2: a prompt is"),
    ("from_auto_circuit_json", AC, {**AC, "corrupt": "The small dog sat"}, "prompts of different token lengths"),
    ("from_auto_circuit_json", AC, {"clean": CAT}, "empty cells.* row 2: corrupt, answers, wrong_answers"),
    ("from_auto_circuit_json", AC, "nothing", "no JSON object.* row 2: 'nothing'"),
    ("from_known_facts", FACT, {**FACT, "subject": "Norway"}, "a subject that is not found in the prompt.* row 2"),
    ("from_known_facts", FACT, {**FACT, "attribute": None}, "empty cells.* row 2: attribute"),
    ("from_known_facts", FACT, ["The cat"], r"no JSON object.* row 2: \['The cat'\]"),
    *((f"from_mib:{kind}", rows[0], {"prompt": CAT}, "empty cells.* row 2: corrupted") for kind, rows in MIB.items()),
    *((f"from_mib:{kind}", rows[0], {**rows[0], "prompt": None}, "empty.* row 2: clean") for kind, rows in MIB.items()),
]


@pytest.mark.parametrize(("loader", "good", "faulty", "message"), FAULTY_RECORDS)
def test_a_faulty_record_is_left_out(
    tmp_path: Path, loader: str, good: dict[str, Any], faulty: Any, message: str
) -> None:
    path, rows = tmp_path / "rows.json", [good, faulty, good]
    path.write_text(json.dumps({"word_idxs": {"end": -1}, "prompts": rows} if "auto" in loader else rows))
    one_left_out(loader.partition(":")[0], path, message)


@pytest.mark.parametrize("kind", MIB)
def test_what_task_of_the_benchmark_it_is_does_not_hang_on_the_first_row(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": CAT}, *MIB[kind] * 2]))
    with pytest.warns(UserWarning, match="1 of 3 rows are left out"):
        dataset = PromptPairs.from_mib(bundled(), path, skip_unfit=True)
    assert dataset.name == f"MIB {kind}" and list(dataset.left_out["row"]) == ["row 1"]


def test_lines_that_are_no_records_are_left_out(tmp_path: Path) -> None:
    path, line = tmp_path / "rows.jsonl", json.dumps({**AC, "answers": " cat"})
    path.write_text(f"{line}\n{line[:40]}\n{line}\n")
    columns = {"corrupted": "corrupt", "correct": "answers", "incorrect": "wrong_answers"}
    with pytest.raises(ValueError, match=r"1 of 3 rows have no JSON object\. row 2: not JSON"):
        PromptPairs.from_file(bundled(), path, **columns)
    with pytest.warns(UserWarning, match="1 of 3 rows are left out: 1 has no JSON object"):
        dataset = PromptPairs.from_file(bundled(), path, skip_unfit=True, **columns)
    assert len(dataset) == 2 and dataset.left_out.loc[0, "reason"].startswith("no JSON object (not JSON (")
