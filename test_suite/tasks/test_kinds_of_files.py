"""Files of every kind that people have, read by one call: what they are is seen from what they hold."""

from __future__ import annotations

import codecs
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activation_patching import PromptPairs
from actpatch.tasks.blemishes import blemishes
from test_suite.helpers.models import bundled, smollm2
from test_suite.helpers.tasks import answers_of

CAT, DOG = "The cat sat on the mat", "The dog sat on the mat"
RECORD = {"clean": CAT, "corrupted": DOG, "correct": " cat", "incorrect": [" dog", " fox"]}
CELLS = [["clean", "corrupted", "correct", "incorrect"], [CAT, DOG, " cat", " dog| fox"]]


def read(path: Path, content: str | bytes | Any, **reading: Any) -> PromptPairs:
    """The pairs of a file with this content, which is read without a warning."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return PromptPairs.from_file(bundled(), path, **reading)


def separated(by: str, *above: str) -> str:
    return "\n".join([*above, *(by.join(cells) for cells in CELLS)]) + "\n"


def columns_of(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [record[name] for record in records] for name in records[0]}


TEXTS = {
    "commas": separated(","),
    "tabs": separated("\t"),
    "semicolons": separated(";"),
    "below a comment": separated(",", "# made by hand, for a test; no more", ""),
    "below a title": separated("\t", "Animals, first version"),
    "spreadsheet": "\n".join([",,clean,corrupted,correct,incorrect,,", f"1,1,{CAT},{DOG}, cat, dog| fox,,"]),
    "columns twice that are not read": f"id,clean,corrupted,correct,incorrect,id\n1,{CAT},{DOG}, cat, dog| fox,2\n",
    "header of other case": separated(",").replace("clean,corrupted", " Clean ,CORRUPTED"),
    "lists as text": f'clean,corrupted,correct,incorrect\n{CAT},{DOG},"[\' cat\']","["" dog"", \' fox\']"\n',
    "quoted names": f'"clean","corrupted","correct","incorrect"\n"{CAT}","{DOG}"," cat"," dog| fox"\n',
    "lines": json.dumps(RECORD) + "\n",
    "lines with empty ones": "\n" + json.dumps(RECORD) + "\n\n",
    "array": json.dumps([RECORD]),
    "array over lines": json.dumps([RECORD], indent=2),
    "array below a key": json.dumps({"name": "animals", "prompts": [RECORD], "seq_labels": ["a", "b"]}, indent=1),
    "array below a key in one line": json.dumps({"prompts": [RECORD]}),
    "array below two keys": json.dumps({"version": 1, "data": {"prompts": [RECORD]}}),
    "columns": json.dumps(columns_of([RECORD])),
    "columns over lines": json.dumps(columns_of([RECORD]), indent=1),
    "frame": pd.DataFrame([RECORD]).to_json(),
    "frame, split": pd.DataFrame([RECORD]).to_json(orient="split"),
    "frame, index": pd.DataFrame([RECORD], index=["a"]).to_json(orient="index"),
    "frame, records": pd.DataFrame([RECORD]).to_json(orient="records"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_is_what_it_holds(tmp_path: Path, kind: str) -> None:
    dataset = read(tmp_path / "file.dat", TEXTS[kind])
    assert dataset.get_clean_corrupt_pairs() == [(CAT, DOG)] and dataset.name == "file"
    assert answers_of(dataset, 0) == (" cat", {" dog", " fox"}) and dataset.left_out.empty


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, "le", "be"])
@pytest.mark.parametrize("kind", ["commas", "lines", "array over lines", "below a title"])
def test_encodings(tmp_path: Path, kind: str, mark: bytes | str) -> None:
    encoding = {b"": "utf-8", codecs.BOM_UTF8: "utf-8", "le": "utf-16-le", "be": "utf-16-be"}.get(
        mark, "utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be"
    )
    content = (mark if isinstance(mark, bytes) else b"") + TEXTS[kind].encode(encoding)
    assert read(tmp_path / "file.csv", content).get_clean_corrupt_pairs() == [(CAT, DOG)]


def test_records_are_reached_into_by_dots(tmp_path: Path) -> None:
    nested = {"prompt": CAT, "counterfactual": {"prompt": DOG}, "answers": {"right": [" cat"], "wrong": [" dog", " x"]}}
    names = {"clean": "prompt", "correct": "answers.right", "incorrect": "answers.wrong.0"}
    dataset = read(tmp_path / "nested.json", [nested], corrupted="counterfactual.prompt", **names)
    assert dataset.get_clean_corrupt_pairs() == [(CAT, DOG)] and answers_of(dataset, 0) == (" cat", " dog")
    message = r"corrupted='counterfactual\.prompt'"
    with pytest.raises(
        ValueError, match=rf"counterfactual holds \{{'prompt': .*: name what is meant in it, .*{message}"
    ):
        read(tmp_path / "nested.json", [nested], corrupted="counterfactual", **names)


def test_quotes_after_a_space_are_no_part_of_a_cell(tmp_path: Path) -> None:
    """`"a", "b"` is written by hand, and read as a cell that begins with a space and a quote."""
    content = f'clean, corrupted, correct, incorrect\n"{CAT}", "{DOG}", " cat", " dog"\n'
    with pytest.raises(
        ValueError, match=r"row 2: corrupted holds ' \"The dog sat on the mat\"', with a space before the quotes"
    ):
        read(tmp_path / "spaced.csv", content)
    assert len(read(tmp_path / "spaced.csv", content.replace('", "', '","')).pairs) == 1


def test_one_of_several_keys_is_said(tmp_path: Path) -> None:
    two = {"train": [RECORD], "meta": {"test": [{**RECORD, "clean": DOG}]}, "test": [{"clean": 1}]}
    assert len(read(tmp_path / "two.json", two, key="train")) == 1
    assert read(tmp_path / "two.json", two, key="meta.test").pairs[0].clean == DOG
    with pytest.raises(
        ValueError, match=r"two\.json has records under 'train', 'test', 'meta.test': say which with key='train'"
    ):
        read(tmp_path / "two.json", two)
    with pytest.raises(ValueError, match=r"two\.json has no key 'dev': it has 'train', 'meta', 'test'"):
        read(tmp_path / "two.json", two, key="dev")
    with pytest.raises(ValueError, match="is no JSON document: leave out key='train'"):
        read(tmp_path / "two.csv", TEXTS["commas"], key="train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1\x00", r"is a Parquet file, expected text .*: from_dataframe\(model, pd.read_parquet\(path\)\)"),
        (b"PK\x03\x04\x00", "is an Excel or zip file, expected text"),
        (b"\x1f\x8b\x00", "is a gzip file, expected text"),
        ("Él,É".encode("latin-1"), "is not in UTF-8 .*: save it in that encoding"),
        ("  \n ", "is empty"),
        ("{", "is not JSON .*: give an array of objects, or one object per line"),
        ("[1, 2]", r"record 1 is 1, expected an object \{...\}"),
        ("[]", "is empty: expected an array of objects"),
        ('{"a": {"b": 1}, "c": [1, 2], "d": [1]}', "is one JSON document without a table: its keys are 'a', 'c', 'd'"),
        (json.dumps(RECORD) + "\n{", r"1 of 2 rows have no JSON object. row 2: not JSON \("),
        (json.dumps([RECORD, "x"]), r"1 of 2 rows have no JSON object. row 2: 'x'. Each row is one object"),
        ("Clean,CLEAN,corrupted,correct,incorrect\na,b,c,d,e\n", "has the columns 'Clean' and 'CLEAN', each of"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^odd(\.dat)?.* {message}|^odd\.dat,? {message}"):
        read(tmp_path / "odd.dat", content)


def test_positions_that_do_not_count_bos(tmp_path: Path) -> None:
    """The file counts from its first word; ids that are given have the BOS that they have."""
    header, row = "clean,corrupted,correct,incorrect,position:ANIMAL,position:END", f"{CAT},{DOG}, cat, dog"
    text = f"{header}\n{row},1,-1\n{row},[1;2],5\n".replace(";", "|").replace("[1|2]", '"[1, 2]"')
    dataset = read(tmp_path / "positions.csv", text, positions_count_bos=False)
    assert [dataset.get_positions(i) for i in (0, 1)] == [{"ANIMAL": 2, "END": -1}, {"ANIMAL": (2, 3), "END": 6}]
    assert read(tmp_path / "positions.csv", text).get_positions(1) == {"ANIMAL": (1, 2), "END": 5}
    with pytest.raises(ValueError, match=r"position 'END' \(in a prompt of 7 tokens\) 7 is out of range"):
        read(tmp_path / "positions.csv", text.replace(",5\n", ",6\n"), positions_count_bos=False)
    ids = [{"clean": [5, 6, 7], "corrupted": [5, 8, 7], "position:A": 1}, {"clean": [0, 6, 7], "corrupted": [0, 8, 7]}]
    ids[1]["position:A"] = 1
    given = read(tmp_path / "ids.json", ids, prompts="ids", correct=None, positions_count_bos=False)
    assert [given.get_positions(i)["A"] for i in (0, 1)] == [1, 2 if bundled().tokenizer.bos_token_id == 0 else 1]


# --- ids --------------------------------------------------------------------------------------------------------------


def test_answers_of_digits_are_texts_and_both_readings_are_told(tmp_path: Path) -> None:
    path = tmp_path / "idx.csv"
    path.write_text(f"clean,corrupted,correct,incorrect\n{CAT},{DOG}, cat, dog\n{CAT},{DOG},18,42|07\n")
    token = bundled().tokenizer.decode([18])
    said = f"1 of 2 rows have .* the first is row 3: '18' is taken as text; as a token id it is '{token}'"
    with pytest.warns(UserWarning, match=said):
        as_text = PromptPairs.from_file(bundled(), path)
    assert answers_of(as_text, 1) == ("18", {"42", "07"})
    rows = path.read_text().replace(" cat, dog", "18,42").replace("42|07", "42|7")
    as_ids = read(path, rows, answers="ids")
    assert [as_ids.get_target_tokens(i) for i in (0, 1)] == [(18, 42), (18, (42, 7))]
    assert answers_of(read(path, rows.replace("|7", ""), answers="text"), 1) == ("18", "42")


def test_digits_that_are_no_number_of_a_token_are_texts_without_a_warning(tmp_path: Path) -> None:
    """Nobody writes the token 7 as 07; the last digits of years are written so."""
    assert answers_of(read(tmp_path / "years.json", [{**RECORD, "correct": "03", "incorrect": "00"}]), 0) == (
        "03",
        "00",
    )


@pytest.mark.parametrize("kind", ["commas", "lines"])
def test_answers_that_many_rows_have_are_kept_once(tmp_path: Path, kind: str) -> None:
    header, row = TEXTS[kind].splitlines() if kind == "commas" else ("", TEXTS[kind].strip())
    dataset = read(tmp_path / "many", "\n".join([header, *[row] * 3]))
    assert len(dataset) == 3 and all(pair.incorrect is dataset.pairs[0].incorrect for pair in dataset.pairs)


def test_integers_become_nothing_unasked() -> None:
    frame = pd.DataFrame([{"clean": CAT, "corrupted": DOG, "correct": 18, "incorrect": np.int64(42)}])
    token = bundled().tokenizer.decode([18])
    message = rf"row 0: correct holds 18, expected text: say answers='text' for '18', or 'ids' for '{token}'"
    with pytest.raises(ValueError, match=message):
        PromptPairs.from_dataframe(bundled(), frame)
    as_ids, as_text = (PromptPairs.from_dataframe(bundled(), frame, answers=said) for said in ("ids", "text"))
    assert as_ids.get_target_tokens(0) == (18, 42) and answers_of(as_text, 0) == ("18", "42")
    floats = frame.assign(correct=18.0, incorrect=[[42.0, 7]])
    assert PromptPairs.from_dataframe(bundled(), floats, answers="ids").get_target_tokens(0) == (18, (42, 7))
    for wrong, told in (
        ("x", "correct holds 'x', expected a token id"),
        (10**6, "token id 1000000 is outside the"),
    ):
        with pytest.raises(ValueError, match=told):
            PromptPairs.from_dataframe(bundled(), frame.assign(correct=[wrong]), answers="ids")
    with pytest.raises(ValueError, match="answers is 'id', expected 'text' or 'ids'"):
        PromptPairs.from_dataframe(bundled(), frame, answers="id")


@pytest.mark.parametrize("clean", [[0, 5, 6], np.array([0, 5, 6]), "[0, 5, 6]", "0 5 6", (0, 5, 6)])
def test_prompts_that_are_ids_are_said_to_be(clean: Any) -> None:
    frame = pd.DataFrame({"clean": [clean], "corrupted": [[0, 7, 6]], "correct": ["5"], "incorrect": [[7, 8]]})
    dataset = PromptPairs.from_dataframe(bundled(), frame, prompts="ids", answers="ids")
    assert dataset.get_clean_corrupt_pairs() == [((0, 5, 6), (0, 7, 6))]
    with pytest.raises(ValueError, match=r"a prompt is \[0, 7, 6\], expected text: for token ids say prompts='ids'"):
        PromptPairs.from_dataframe(bundled(), frame, answers="ids")
    with pytest.raises(ValueError, match="a prompt is 'The cat', expected token ids: a list of integers"):
        PromptPairs.from_dataframe(bundled(), frame.assign(clean="The cat"), prompts="ids", answers="ids")


# --- what is said of answers ------------------------------------------------------------------------------------------


def test_a_dataset_without_answers(tmp_path: Path) -> None:
    text = "\n".join(",".join(cells[:2]) for cells in CELLS)
    dataset = read(tmp_path / "none.csv", text, correct=None)
    assert dataset.get_target_tokens(0) == ((), ())
    with pytest.raises(ValueError, match=r"no column 'correct', 'incorrect'.*\(kl_divergence\), say correct=None"):
        read(tmp_path / "none.csv", text)
    with pytest.raises(ValueError, match="correct=None leaves the right answers out: incorrect='wrong' needs them"):
        read(tmp_path / "none.csv", text, correct=None, incorrect="wrong")


def test_one_line_of_ids_is_one_record(tmp_path: Path) -> None:
    lines = [{"clean": [5, 6], "corrupted": [5, 7], "correct": [8, 9], "incorrect": [10]}]
    as_ids = read(tmp_path / "ids.jsonl", json.dumps(lines[0]), prompts="ids", answers="ids")
    assert as_ids.get_clean_corrupt_pairs() == [((5, 6), (5, 7))] and as_ids.get_target_tokens(0) == ((8, 9), 10)


@pytest.mark.slow
def test_a_list_of_numbers_as_text_is_told() -> None:
    frame = pd.DataFrame([{**RECORD, "clean": "[5, 6]", "corrupted": "[5, 7]", "incorrect": " dog"}])
    with pytest.warns(UserWarning, match=r"'\[5, 6\]' is taken as the text of a prompt, .* Say prompts='ids' if"):
        PromptPairs.from_dataframe(smollm2(), frame)


@pytest.mark.parametrize(
    ("argument", "name"), [("clean", None), ("group", None), ("corrupted", 1.5), ("subject", ["a"])]
)
def test_what_names_no_column_is_told(argument: str, name: Any) -> None:
    frame = pd.DataFrame([RECORD])
    with pytest.raises(ValueError, match=rf"{argument} is .*, expected the name of a column"):
        PromptPairs.from_dataframe(bundled(), frame, **{argument: name})
    with pytest.raises(TypeError, match="model is a str, expected a TransformerLens"):
        PromptPairs.from_dataframe("tiny", frame)


def test_columns_without_names_are_named_by_their_numbers() -> None:
    dataset = PromptPairs.from_dataframe(
        bundled(), pd.DataFrame([CELLS[1][:3]]), clean=0, corrupted=1, correct=2, incorrect=None
    )
    assert dataset.get_clean_corrupt_pairs() == [(CAT, DOG)]


def test_a_leading_space_is_put_before_answers_that_have_none(tmp_path: Path) -> None:
    text = separated(",").replace(" cat,", "cat,")
    assert answers_of(read(tmp_path / "bare.csv", text, leading_space=True), 0) == (" cat", {" dog", " fox"})


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (" cat|", r"correct holds ' cat\|', with nothing beside a '\|': it stands between two answers"),
        (" cat| | fox", "with a space alone beside a"),
        (" cat zyzzyva", r"does not know 'zyzzyva' in ' cat zyzzyva'"),
        ("\"[' cat' ' fox']\"", "is a list without commas"),
        ("\"[' cat', ' fox'\"", r"correct holds .*, a list that lacks a bracket: write both, or a\|b"),
        ("\"' cat', ' fox']\"", "a list that lacks a bracket"),
    ],
)
def test_faults_between_answers_are_named(tmp_path: Path, cell: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "bars.csv", f"clean,corrupted,correct,incorrect\n{CAT},{DOG},{cell}, dog\n")


def test_a_directory_is_no_file_and_what_is_in_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").touch()
    with pytest.raises(IsADirectoryError, match=r"is a directory, expected a file; in it there is pairs\.csv$"):
        PromptPairs.from_file(bundled(), tmp_path)


def test_a_text_in_brackets_that_is_no_list_is_a_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not know|is \d tokens"):
        read(tmp_path / "brackets.csv", f"clean,corrupted,correct,incorrect\n{CAT},{DOG},[cat], dog\n")


def test_stray_spaces_are_told_when_they_are_read() -> None:
    frame = pd.DataFrame([{"clean": CAT, "corrupted": f" {DOG}", "correct": " cat", "incorrect": " dog"}])
    said = "One prompt begins with white space and the other does not in 1 of 1 rows, the first is row 0"
    with pytest.warns(UserWarning, match=said):
        PromptPairs.from_dataframe(bundled(), frame)


@pytest.mark.parametrize(
    ("pair", "found"),
    [
        ((CAT, DOG), []),
        ((f" {CAT}", f" {DOG}"), []),
        ((f" {CAT}", DOG), ["One prompt begins with white space"]),
        ((CAT, f"{DOG}\n"), ["One prompt ends with white space"]),
        ((f"{CAT} ", f"{DOG} "), ["The prompts end in a space"]),
        ((f"{CAT} ",), ["The prompts end in a space"]),
        ((r"Q: why\nA:", "Q: why\nA:"), ["A backslash and an n"]),
        (([1, 2], [1, 3]), []),
    ],
)
def test_what_texts_give_away(pair: tuple[Any, ...], found: list[str]) -> None:
    seen = blemishes([(CAT, DOG), pair], [((1, 2), (1, 3))] * 2, bundled().tokenizer)
    assert [blemish.what[: len(start)] for blemish, start in zip(seen, found)] == found and len(seen) == len(found)
    assert all(blemish.which == (False, True) for blemish in seen)


def test_a_doubled_bos_is_told_when_it_is_read() -> None:
    bos = bundled().tokenizer.bos_token
    frame = pd.DataFrame([{"clean": bos + CAT, "corrupted": bos + DOG, "correct": " cat", "incorrect": " dog"}])
    with pytest.warns(UserWarning, match=r"The BOS token .* begins the prompts twice in 1 of 1 .*Leave .* out of the"):
        PromptPairs.from_dataframe(bundled(), frame)


@pytest.mark.slow
def test_blanks_around_the_bar_between_answers_are_no_token_of_them(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("clean,corrupted,correct,incorrect\nThe big pet was a,The wild animal was a, cat | pet, fox\n")
    with pytest.raises(ValueError, match=r"' cat ' is 2 tokens .*it ends in white space: write ' cat'"):
        PromptPairs.from_file(smollm2(), path)
