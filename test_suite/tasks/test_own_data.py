"""Prompt pairs of one's own: the same dataset from every kind of file, and every fault named by its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activation_patching import ActivationPatcher, IOIDataset, PromptPair, PromptPairs
from actpatch.tasks.encoding import encode_pairs, named_positions
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import bundled, smollm2
from test_suite.helpers.tasks import answers_of

MARY = "When Mary and John went to the store, John gave a drink to"
JOHN = "When Mary and John went to the store, Mary gave a drink to"
CAT, DOG = "The cat sat on the mat", "The dog sat on the mat"
HEADER = ["clean", "corrupted", "correct", "incorrect"]


def write_csv(
    path: Path, *lines: str, header: str = "clean,corrupted,correct,incorrect", encoding: str = "utf-8"
) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding=encoding)
    return path


def good_rows(number: int) -> list[str]:
    return [f"{CAT},{DOG}, cat, dog"] * number


def frame_of(*rows: tuple[Any, ...], columns: list[str] = HEADER) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=columns)


# --- what is read -----------------------------------------------------------------------------------------------------


def test_csv_jsonl_and_dataframe_make_the_same_dataset(tmp_path):
    rows = [
        {"clean": MARY, "corrupted": JOHN, "correct": [" Mary"], "incorrect": [" John"], "template": "store"},
        {"clean": CAT, "corrupted": DOG, "correct": [" cat", " bird"], "incorrect": [" dog", " fox", " bear"]},
    ]
    positions = [{"S2": 10, "END": -1}, {"END": 6}]
    flat = [{**row, **{f"position:{name}": at for name, at in has.items()}} for row, has in zip(rows, positions)]
    json_lines = tmp_path / "lines.jsonl"
    json_lines.write_text("\n".join(json.dumps(row) for row in flat))
    table = pd.DataFrame(flat)
    in_cells = table.assign(correct=table["correct"].map("|".join), incorrect=table["incorrect"].map("|".join))
    in_cells.to_csv(tmp_path / "cells.csv", index=False)
    datasets = [
        PromptPairs.from_csv(bundled(), tmp_path / "cells.csv"),
        PromptPairs.from_jsonl(bundled(), str(json_lines)),
        PromptPairs.from_dataframe(bundled(), table),
    ]
    assert [dataset.name for dataset in datasets] == ["cells", "lines", "own prompts"]
    for dataset in datasets:
        assert dataset.get_clean_corrupt_pairs() == [(MARY, JOHN), (CAT, DOG)]
        assert answers_of(dataset, 0) == (" Mary", " John")
        assert answers_of(dataset, 1) == ({" cat", " bird"}, {" dog", " fox", " bear"})
        pairs = encode_pairs(bundled(), dataset)
        assert pairs.templates == ("store", "")
        assert pairs.positions == ({"S2": 10, "END": 14}, {"END": 6})
        assert [pairs.clean_tokens[0][at] for at in pairs.positions[0].values()] == [" John", " to"]
        assert named_positions(pairs, "END") == (14, 6)
        with pytest.raises(ValueError, match="1 of 2 pairs have no position named 'S2': pair 1 has END"):
            named_positions(pairs, "S2")


def test_a_file_of_ioi_pairs_gives_the_numbers_of_the_ioi_task(tmp_path):
    task = IOIDataset(bundled(), 6, corruption="flip_subject")
    answers = [answers_of(task, i) for i in range(6)]
    rows = [(*pair, *said) for pair, said in zip(task.get_clean_corrupt_pairs(), answers)]
    frame_of(*rows).to_csv(tmp_path / "ioi.csv", index=False)
    own = PromptPairs.from_csv(bundled(), tmp_path / "ioi.csv", name="mine", varies="the subject")
    assert (own.name, own.varies, len(own)) == ("mine", "the subject", 6)
    patcher = ActivationPatcher(bundled(), show_progress=False)
    expected, found = (patcher.run_patching_experiment(dataset, "z").sweep for dataset in (task, own))
    for part in ("clean", "corrupted", "patched"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))


def test_columns_may_have_other_names_and_stand_beside_others(tmp_path):
    path = write_csv(
        tmp_path / "named.csv",
        f"1,{CAT},{DOG}, cat, dog,animals",
        header="id,good, bad ,right,wrong,scene",
    )
    names = {"clean": "good", "corrupted": "bad", "correct": "right", "incorrect": "wrong", "template": "scene"}
    dataset = PromptPairs.from_csv(bundled(), path, **names)
    assert dataset.get_clean_corrupt_pairs() == [(CAT, DOG)]
    assert dataset.get_template(0) == "animals" and answers_of(dataset, 0) == (" cat", " dog")
    frame = pd.read_csv(path).rename(columns=str.strip)
    again = PromptPairs.from_dataframe(bundled(), frame, **names)
    json_lines = tmp_path / "named.jsonl"
    frame.to_json(json_lines, orient="records", lines=True)
    for other in (again, PromptPairs.from_jsonl(bundled(), json_lines, **names)):
        assert other.pairs[0].clean == CAT and other.get_template(0) == "animals"


def test_text_is_taken_as_it_is_written(tmp_path):
    """No cell becomes a number, a date or a missing value; quotes, line breaks, BOM and CRLF are read."""
    path = tmp_path / "years.csv"
    start = "The war lasted from the year 17{} to the year 17"
    text = f'clean,corrupted,correct,incorrect\r\n"{start.format("02")}",{start.format("01")},03|99,00|01\r\n'
    path.write_bytes(text.encode("utf-8-sig"))
    assert answers_of(PromptPairs.from_csv(bundled(), path), 0) == ({"03", "99"}, {"00", "01"})
    code = 'def run(self, size, path, {}):\n    """oil column\n\n    :param'
    quoted = (f'"{code.format(name)}"'.replace('"""', '""""""') for name in ("name", "text"))
    path.write_text("clean,corrupted,correct,incorrect\n" + ",".join(quoted) + ", size, path\n")
    assert PromptPairs.from_csv(bundled(), path).pairs[0].clean == code.format("name")


def test_without_incorrect_answers_only_metrics_of_the_right_answer_can_be_measured(tmp_path):
    frame = frame_of((CAT, DOG, " cat"), columns=HEADER[:3])
    dataset = PromptPairs.from_dataframe(bundled(), frame, incorrect=None)
    patcher = ActivationPatcher(bundled(), show_progress=False)
    with pytest.raises(
        ValueError, match=r"'logit difference' needs a wrong answer .* 1 of 1 pairs have none \(pair 0\)"
    ):
        patcher.run_patching_experiment(dataset, "attn_out")
    sweep = patcher.run_patching_experiment(dataset, "attn_out", metrics="log_probability").sweep
    expected = bundled()(CAT)[0, -1].log_softmax(-1)[bundled().to_single_token(" cat")]
    assert sweep.clean[0] == pytest.approx(float(expected), rel=0, abs=EXACT)


def test_repeated_pairs_are_kept_and_told():
    rows = [
        (CAT, DOG, " cat", " dog"),
        (DOG, CAT, " dog", " cat"),
        (CAT, DOG, " cat", " dog"),
        (CAT, DOG, " cat", " fox"),
    ]
    dataset = PromptPairs.from_dataframe(bundled(), frame_of(*rows, rows[0]))
    assert len(dataset) == 5 and dataset.repeated_pairs == (2, 4)


def test_pairs_can_be_given_without_a_file():
    dataset = PromptPairs(bundled(), [PromptPair(CAT, DOG, (" cat",), (" dog",), positions={"ANIMAL": 2})])
    assert encode_pairs(bundled(), dataset).positions == ({"ANIMAL": 2},)
    with pytest.raises(
        ValueError, match=r"own prompts: 1 of 1 rows have prompts of different token lengths\. pair 0: the"
    ):
        PromptPairs(bundled(), [PromptPair(CAT, "The dog sat", (" cat",))])
    with pytest.raises(ValueError, match="own prompts has no pairs: give at least one row"):
        PromptPairs(bundled(), [])
    with pytest.raises(ValueError, match=r"pairs holds a tuple, expected PromptPair\(clean, corrupted, ...\)"):
        PromptPairs(bundled(), [(CAT, DOG)])
    with pytest.raises(ValueError, match=r"incorrect is ' dog', expected a tuple of answers: \(' dog',\)"):
        PromptPair(CAT, DOG, (" cat",), " dog")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        (
            "clean,corrupt,correct,wrong",
            good_rows(1),
            "bad.csv has no column 'corrupted', 'incorrect'; it has 'clean', 'corrupt', 'correct', 'wrong'. Rename the "
            "columns, or say which they are with corrupted='...'. Without incorrect .* incorrect=None",
        ),
        ("clean,clean,correct,incorrect", good_rows(1), "bad.csv has the column 'clean' twice"),
        (
            "clean,corrupted,correct,incorrect",
            [*good_rows(2), f",{DOG}, cat, dog", "", f"{CAT},{DOG}, ,", f"{CAT},{DOG}"],
            "bad: 3 of 5 rows have empty cells. row 4: clean; row 6: correct, incorrect; row 7: correct, "
            "incorrect. Fill them, or take the rows out",
        ),
        (
            "clean,corrupted,correct,incorrect",
            [*good_rows(1), f"{MARY},{JOHN}, Mary, John"],
            "bad: 1 of 2 rows have more cells than the header. row 3: 6 cells, with a comma between them, under 4 "
            "columns. A cell with what stands between cells, or with a line break, stands in double quotes",
        ),
        (
            "clean,corrupted,correct,incorrect",
            [f"{MARY},{JOHN}, Mary, John"],
            "bad: 1 of 1 rows have more cells than the header. row 2: 6 cells",
        ),
        (
            "clean,corrupted,correct,incorrect",
            ['"The cat\nsat","The dog\nsat", cat, dog', f'"{MARY},"{JOHN}", Mary, John'],
            r"bad.csv, row 5 cannot be read \(',' expected after '\"'\): a cell with a comma",
        ),
        (
            "clean,corrupted,correct,incorrect",
            [*good_rows(1), f"{CAT},{DOG}, cat dog, dog", f"{CAT},{DOG}, cat, zyzzyva| dog"],
            "bad: 1 of 3 rows have answers that cannot be read. row 4: the model's tokenizer does not know 'zyzzyva'",
        ),
        (
            "clean,corrupted,correct,incorrect",
            [*good_rows(1), f"{CAT},{DOG}, cat| dog, dog", f"{CAT},{DOG}, cat, dog| dog"],
            r"bad: 1 of 3 rows have answers that do not go together\. row 3: correct and incorrect answer are the same "
            r"token \d+ \(' dog'\)",
        ),
        (
            "clean,corrupted,correct,incorrect",
            [f"{CAT},{DOG}, cat|, dog"],
            "bad: 1 of 1 rows have cells that cannot be read. row 2: correct holds ' cat.', with nothing beside a '.'",
        ),
        (
            "clean,corrupted,correct,incorrect",
            [*good_rows(1), *[f"{CAT},The small dog sat on the mat, cat, dog"] * 7],
            "bad: 7 of 8 rows have prompts of different token lengths. row 3: the clean prompt has 7 tokens and the "
            "corrupted one 8; they part at position 2, ' cat sat on' against ' small dog sat'; row 4: .*; row 7: "
            "[^;]*; [^;]*; and 2 more. Replace words",
        ),
        (
            "clean,corrupted,correct,incorrect",
            [*good_rows(1), f"The zyzzyva sat,{DOG}, cat, dog"],
            "bad: 1 of 2 rows have prompts that the model cannot read. row 3: .* does not know 'zyzzyva'",
        ),
        (
            "clean,corrupted,correct,incorrect,position:END",
            [f"{good_rows(1)[0]},6", f"{good_rows(1)[0]},7", f"{good_rows(1)[0]},-8"],
            "bad: 2 of 3 rows have positions that do not fit their prompts. row 3: position 'END' .in a prompt of 7 "
            "tokens. 7 is out of range: expected -7 to 6; row 4: ",
        ),
        (
            "clean,corrupted,correct,incorrect,position:END",
            [f"{good_rows(1)[0]},last", f"{good_rows(1)[0]},1.5"],
            "bad: 2 of 2 rows have cells that cannot be read. row 2: position:END holds 'last', expected a whole "
            "number; row 3: position:END holds '1.5'",
        ),
        ("clean,corrupted,correct,incorrect", [], "bad has no pairs: give at least one row"),
    ],
)
def test_faults_of_a_csv_name_file_and_rows(tmp_path, header, lines, message):
    path = write_csv(tmp_path / "bad.csv", *lines, header=header)
    with pytest.raises(ValueError, match=message):
        PromptPairs.from_csv(bundled(), path)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_columns_may_be_separated_by_semicolons_or_tabs(tmp_path, separator):
    """As spreadsheets write them. Commas need no quotes then, and the separator does."""
    rows = [
        ["clean", "corrupted", "correct", "incorrect", "position:X"],
        [MARY, JOHN, " Mary", " John| Tom", "2"],
        [CAT, DOG, " cat", " dog", ""],
    ]
    path = tmp_path / "other.csv"
    path.write_text("\n" + "\r\n".join(separator.join(row) for row in rows), encoding="utf-8-sig")
    dataset = PromptPairs.from_csv(bundled(), path)
    assert [pair.clean for pair in dataset.pairs] == [rows[1][0], CAT] and "," in rows[1][0]
    assert dataset.pairs[0].incorrect == (" John", " Tom") and dataset.pairs[0].positions == {"X": 2}
    assert [pair.row for pair in dataset.pairs] == ["row 3", "row 4"]
    path.write_text("\n".join([separator.join(rows[0][:4]), separator.join([CAT, DOG, " cat", " dog", "x"])]))
    kind = {";": "a semicolon", "\t": "a tab"}[separator]
    with pytest.raises(
        ValueError, match=rf"row 2: 5 cells, with {kind} between them, under 4 columns\. A cell with what"
    ):
        PromptPairs.from_csv(bundled(), path)
    path.write_text("\n".join([separator.join(rows[0][:4]), separator.join([f'"{CAT}', DOG, " cat", " dog"])]))
    with pytest.raises(ValueError, match=rf"other.csv, row 2 cannot be read .*: a cell with {kind} or a line break"):
        PromptPairs.from_csv(bundled(), path)


def test_a_header_with_commas_is_one_of_commas(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text(f"clean,corrupted,correct,incorrect,a;b;c;d\n{CAT},{DOG}, cat, dog,x;y\n")
    assert PromptPairs.from_csv(bundled(), path).pairs[0].corrupted == DOG


def test_another_separator_is_told(tmp_path):
    path = tmp_path / "bars.csv"
    path.write_text(f"clean|corrupted|correct|incorrect\n{CAT}|{DOG}| cat| dog\n")
    message = (
        r"bars.csv: the columns are separated by '\|', which stands between answers: separate them by commas, semi"
    )
    with pytest.raises(ValueError, match=message):
        PromptPairs.from_csv(bundled(), path)


def test_rows_are_named_by_their_line_even_after_cells_of_several_lines(tmp_path):
    path = write_csv(
        tmp_path / "lines.csv", '"The cat\nsat","The dog\nsat", cat, dog', "", f"{CAT},{DOG}, cat,", *good_rows(1)
    )
    assert path.read_text().splitlines()[6 - 1] == f"{CAT},{DOG}, cat,"
    with pytest.raises(ValueError, match=r"1 of 3 rows have empty cells\. row 6: incorrect"):
        PromptPairs.from_csv(bundled(), path)


def test_files_that_are_no_csv_are_told(tmp_path):
    path = tmp_path / "file.csv"
    path.write_text("")
    with pytest.raises(ValueError, match=r"file.csv is empty: its first line names the columns"):
        PromptPairs.from_csv(bundled(), path)
    write_csv(path, "Él,Él, cat, dog", encoding="latin-1")
    with pytest.raises(ValueError, match=r"file.csv is not in UTF-8 .*: save it in that encoding"):
        PromptPairs.from_csv(bundled(), path)
    write_csv(path, *good_rows(1))
    with pytest.raises(ValueError, match=r"file.csv has no column 'scene'"):
        PromptPairs.from_csv(bundled(), path, template="scene")
    with pytest.raises(FileNotFoundError):
        PromptPairs.from_csv(bundled(), tmp_path / "none.csv")


GOOD = json.dumps(dict(zip(HEADER, (CAT, DOG, " cat", " dog"))))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "bad.jsonl is empty: its first line names the columns, or it holds JSON objects"),
        ([GOOD, "", "{clean: 1}"], r"1 of 2 rows have no JSON object. row 3: not JSON \(Expecting property name"),
        ([GOOD, "[1, 2]"], r"row 2: \[1, 2\]. Each row is one object \{...\}. skip_unfit=True leaves such rows out"),
        (['{"clean": "a"}'], "bad.jsonl has no column 'corrupted', 'correct', 'incorrect'; it has 'clean'"),
        ([GOOD, "", '{"clean": "The cat"}'], "1 of 2 rows have empty cells. row 3: corrupted, correct, incorrect"),
        ([GOOD, GOOD.replace('" cat"', "[]")], "1 of 2 rows have empty cells. row 2: correct"),
        (
            [GOOD, GOOD.replace('" cat"', "3")],
            "1 of 2 rows have cells that cannot be read. row 2: correct holds 3, expected",
        ),
        ([GOOD, GOOD.replace('" cat"', '[" cat", 3]')], "row 2: correct holds 3, expected text"),
        (
            [GOOD, GOOD.replace('" cat"', '" cat| dog"')],
            "row 2: .*tokenizer does not know|row 2: .* tokens for this model",
        ),
        ([GOOD.replace("}", ', "position:A": true}')], "row 1: position:A holds True, expected a whole number"),
    ],
)
def test_faults_of_a_jsonl_name_file_and_rows(tmp_path, lines, message):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        PromptPairs.from_jsonl(bundled(), path)


def test_faults_of_a_dataframe_name_its_index_labels():
    frame = frame_of((CAT, DOG, " cat", " dog"), (CAT, DOG, " cat", None), (CAT, DOG, np.nan, " dog"))
    frame.index = pd.Index(["a", "b", "c"])
    with pytest.raises(
        ValueError, match=r"own prompts: 2 of 3 rows have empty cells\. row b: incorrect; row c: correct"
    ):
        PromptPairs.from_dataframe(bundled(), frame)
    with pytest.raises(ValueError, match="row b: corrupted holds 3, expected text"):
        PromptPairs.from_dataframe(bundled(), frame_of((CAT, 3, " cat", " dog")).rename(index={0: "b"}))
    with pytest.raises(ValueError, match=r"the DataFrame has no column 'clean', .* it has none"):
        PromptPairs.from_dataframe(bundled(), pd.DataFrame())
    with pytest.raises(ValueError, match=r"frame is a dict, expected a pandas DataFrame: pd.DataFrame\(rows\)"):
        PromptPairs.from_dataframe(bundled(), {"clean": [CAT]})


def test_an_answer_without_its_space_is_never_guessed():
    """ "...to" and "Mary" make "toMary". Both may be tokens: a warning. An error names the right one where one is."""
    assert bundled().tokenizer.unk_token_id != bundled().to_single_token("Mary") != bundled().to_single_token(" Mary")
    with pytest.warns(UserWarning, match=r"1 of 2 rows have answers that go on in .* row 1, 'Mary'.*write ' Mary'"):
        dataset = PromptPairs.from_dataframe(
            bundled(), frame_of((CAT, DOG, " cat", " dog"), (MARY, JOHN, "Mary", " John"))
        )
    assert answers_of(dataset, 1) == ("Mary", " John")


@pytest.mark.slow
def test_an_answer_that_is_one_token_only_with_its_space_is_told_so():
    frame = frame_of(("The cat saw", "The dog saw", "Michelle", " dog"))
    expected = "pair 0: the answer 'Michelle' is 2 tokens .*, or write it with the space: ' Michelle' is one token"
    with pytest.raises(ValueError, match=expected):
        encode_pairs(smollm2(), PromptPairs.from_dataframe(smollm2(), frame)).metrics()
