"""Files of prompts in the shapes in which others publish them, as tables with the columns that `PromptPairs` reads.

What is known of each shape stands with its function. Nothing here knows a model: what tokens are is said, not found.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actpatch.core.heavy import pd
from actpatch.core.text import shortened
from actpatch.tasks.columns import POSITION_PREFIX, is_empty
from actpatch.tasks.documents import cell
from actpatch.tasks.files import Table, encoding_of, frame_table, name_key, read_file
from actpatch.tasks.unfit import Fault

if TYPE_CHECKING:
    from actpatch.tasks.own import Reading

EAP_ANSWERS = (
    ("correct_idx", "incorrect_idx"),
    ("clean_answer_idx", "corrupted_answer_idx"),
    ("country_idx", "corrupted_country_idx"),
    ("capital_idx", "corrupted_capital_idx"),
    ("answers_idx", "corrupted_answers_idx"),
)
"""Columns of right and wrong answers, as the tasks of the EAP-IG circuits call them."""
GREATER_THAN = re.compile(r".*(?<!\d)(\d\d)(\d\d)(?!\d).*(?<!\d)\1", re.DOTALL)
"""A prompt of greater-than: the last number of four digits, and at the end the first two of them again."""
_DIGITS = tuple(f"{year:02d}" for year in range(100))
_YEARS = [(_DIGITS[start + 1 :], _DIGITS[: start + 1]) for start in range(100)]
"""Of each two digits those above them, and all others."""
MIB_COUNTERFACTUALS = {
    "ioi": "s2_io_flip_counterfactual",
    "choice": "symbol_counterfactual",
    "arithmetic": "random_counterfactual",
}
"""Kind of a task of the benchmark -> the column that its circuit track takes corrupted prompts from."""


def eap_csv(path: Path, reading: Reading) -> tuple[Table, Reading]:
    """A file of the circuits of Hanna et al. 2024, "Have Faith in Faithfulness" (`data/` of
    github.com/hannamw/eap-ig-faithfulness): CSV with `clean`, `corrupted` and token ids of the answers, whose columns
    each task calls otherwise (`EAP_ANSWERS`); several ids are a list in one cell. Ids belong to the tokenizer that the
    file is for. In files of greater-than `correct_idx` is no id, but two digits of the prompt: right are all of two
    digits above them, wrong the others (`greater_than`).

    Raises:
        ValueError: where it has none of these columns, as the files of subject-verb agreement, whose `plural` is no
            token id; or several, so that `correct` and `incorrect` have to be said.
    """
    prompts = [str(reading.get("clean", "clean")), str(reading.get("corrupted", "corrupted"))]
    table = read_file(path, [*prompts, *(name for pair in EAP_ANSWERS for name in pair)])
    has = {name_key(name) for name in table.columns}
    said: Reading = {"answers": "ids", **reading}
    if "correct" in reading:
        return table, said
    found = [pair for pair in EAP_ANSWERS if has >= set(pair)]
    if len(found) > 1:
        listed = " and ".join(f"{correct}, {incorrect}" for correct, incorrect in found)
        raise ValueError(f"{path.name} has the answers {listed}: say which with correct='...', incorrect='...'")
    if not found and "correct_idx" in has:
        return greater_than(table, reading)
    if not found:
        why = (
            "its 'plural' is a number for which the task chooses a list of verbs, and no token id: write the answers "
            "into a column and read it with from_file"
            if "plural" in has
            else f"it has {', '.join(map(repr, table.columns))}: say which with correct='...', incorrect='...'"
        )
        raise ValueError(f"{path.name} has no token ids of right and wrong answers; {why}")
    correct, incorrect = found[0]
    return table, {**said, "correct": correct, "incorrect": incorrect}


def greater_than(table: Table, reading: Reading) -> tuple[Table, Reading]:
    """A table of the task of Hanna et al. 2023, "How does GPT-2 compute greater-than?": `correct_idx` is the number
    that two digits make ("... from the year 1732 to the year 17": 32), without its leading zero. Right answers are the
    texts `33` to `99`, wrong ones `00` to `32`. The paper's measure is `metrics="probability_difference"`.

    Raises:
        ValueError: where no row is of greater-than. Single ones that are not do not fit (`Table.faults`).
    """
    names = [name_key(name) for name in table.columns]
    prompts = name_key(str(reading.get("clean", "clean")))
    answers: Reading = {"answers": "text", "correct": "greater", "incorrect": "not greater", **reading}
    if prompts not in names:
        return table, {"correct": None, "incorrect": None, **reading}
    clean, number = names.index(prompts), names.index("correct_idx")
    faults: dict[int, Fault] = {}
    cells: list[Sequence[Any]] = []
    for i, row in enumerate(table.cells):
        years = _YEARS[2]
        if i not in table.faults:
            found = _years(row[clean], row[number])
            if isinstance(found, Fault):
                faults[i] = found
            else:
                years = found
        cells.append([*row, *years])
    if cells and len(faults) == len(cells):
        row = table.cells[0]
        raise ValueError(
            f"{table.source} has the column 'correct_idx' and no wrong answers, and {table.rows[0]} is not of "
            "greater-than, whose prompts end in 'CC' after 'CCYY', with YY in correct_idx: it has "
            f"{shortened(row[clean])} and {shortened(row[number])}. For token ids use "
            "from_file(..., correct='correct_idx', incorrect=None, answers='ids')"
        )
    columns = (*table.columns, "greater", "not greater")
    return replace(table, columns=columns, cells=cells, faults={**faults, **table.faults}), answers


def _years(prompt: Any, number: Any) -> tuple[tuple[str, ...], tuple[str, ...]] | Fault:
    """The right and the wrong answers to a prompt of greater-than, or why it is none."""
    if is_empty(prompt):
        return _YEARS[2]  # what is told of as such
    if is_empty(number):
        return Fault("empty", "correct_idx")
    said, number = GREATER_THAN.fullmatch(str(prompt).rstrip()), str(number).strip().removesuffix(".0")
    if said is None:
        return Fault("cells", f"{shortened(prompt)} does not end in 'CC' after 'CCYY'")
    if number not in (said[2], str(int(said[2]))):
        return Fault("cells", f"correct_idx holds {shortened(number)}, where the prompt says {said[2]}")
    if said[2] == "99":
        return Fault("answers", "no two digits are above 99")
    return _YEARS[int(said[2])]


def auto_circuit_json(path: Path, reading: Reading) -> tuple[Table, Reading]:
    """A file of the package auto-circuit (github.com/UFO-101/auto-circuit, `datasets/`, read by its `data.py`):
    `{"prompts": [{"clean", "corrupt", "answers", "wrong_answers"}], "word_idxs": {name: position}}`. Prompts are texts
    or lists of token ids; answers are lists of texts or ids, the wrong ones sometimes missing; positions count without
    BOS, and hold for all pairs.

    Raises:
        ValueError: where it is no such file.
    """
    table = read_file(path, key="prompts")
    document = json.loads(path.read_text(encoding_of(path)))
    named = document.get("word_idxs") or {}
    columns = table.columns + tuple(f"{POSITION_PREFIX}{name}" for name in named)
    cells = [[*row, *named.values()] for row in table.cells]
    said: Reading = {"corrupted": "corrupt", "correct": "answers", "positions_count_bos": False}
    said["incorrect"] = "wrong_answers" if "wrong_answers" in table.columns else None
    prompts = [row[table.columns.index("clean")] for row in table.cells if "clean" in table.columns]
    if sum(is_ids := [isinstance(prompt, (list, tuple)) for prompt in prompts]) * 2 > len(is_ids):
        said["prompts"] = said["answers"] = "ids"
    return replace(table, columns=columns, cells=cells), {**said, **reading}


def known_facts(path: Path, reading: Reading) -> tuple[Table, Reading]:
    """A file of facts like `known_1000.json` of Meng et al. 2022, "Locating and Editing Factual Associations in GPT"
    (github.com/kmeng01/rome, `dsets/knowns.py`): an array of `{"subject", "attribute", "template", "prediction",
    "prompt"}`, where `template` has `{}` for the subject and `attribute` is the answer, without its leading space.
    There is no corrupted prompt: noise on the subject makes the corrupted run.
    """
    said: Reading = {
        "clean": "prompt",
        "corrupted": None,
        "correct": "attribute",
        "incorrect": None,
        "subject": "subject",
        "leading_space": True,
    }
    return read_file(path, ("prompt", "subject", "attribute")), {**said, **reading}


def mib(rows: str | Path | pd.DataFrame, counterfactual: str | None, reading: Reading) -> tuple[Table, Reading]:
    """A task of Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark" (huggingface.co/mib-bench; read as
    its circuit track's `dataset.py` does): records with `prompt` and several `..._counterfactual`, which hold a
    `prompt` of their own. IOI names its answers in `metadata` (`indirect_object`, `subject`), without their leading
    space; multiple choice in `choices["label"]` at `answerKey`; arithmetic in `label`. Its files of greater-than are
    CSV (`greater_than`).

    Raises:
        ValueError: where the rows are of none of these tasks, or the counterfactual is not among their columns.
    """
    table = frame_table(rows) if isinstance(rows, pd.DataFrame) else read_file(Path(rows))
    if {name_key(name) for name in table.columns} >= {"clean", "corrupted", "correct_idx"}:
        return greater_than(table, {"name": "MIB greater-than", **reading})
    records = [dict(zip(table.columns, row)) for row in table.cells]
    if any(cell(record, "metadata.indirect_object") is not None for record in records):
        kind, right, wrong = "ioi", "metadata.indirect_object", "metadata.subject"
    elif any(cell(record, "choices.label") is not None for record in records):
        kind, right, wrong = "choice", "", ""
    elif {"label", "operator"} <= {*table.columns}:
        kind, right, wrong = "arithmetic", "label", ""
    else:
        has = ", ".join(map(repr, table.columns)) or "none"
        raise ValueError(
            f"{table.source} has the columns {has}, expected those of MIB's IOI, multiple choice, arithmetic or "
            "greater-than: read it with from_file or from_dataframe"
        )
    column = counterfactual or MIB_COUNTERFACTUALS[kind]
    if column not in table.columns:
        others = ", ".join(repr(name) for name in table.columns if name.endswith("_counterfactual")) or "none"
        raise ValueError(f"{table.source} has no column {column!r}: choose counterfactual among {others}")
    cells: list[Sequence[Any]] = []
    for record in records:
        other = record.get(column) or {}
        answers = (
            (_chosen(record), _chosen(other))
            if kind == "choice"
            else (cell(record, right), cell(record, wrong) if wrong else cell(other, right))
        )
        cells.append((record.get("prompt"), cell(other, "prompt"), *answers))
    said: Reading = {"answers": "text", "leading_space": kind == "ioi", "name": f"MIB {kind}"}
    made = Table(table.source, ("clean", "corrupted", "correct", "incorrect"), cells, table.rows, faults=table.faults)
    return made, {**said, **reading}


def _chosen(record: Any) -> Any:
    """The label of the right choice."""
    key = cell(record, "answerKey")
    labels = cell(record, "choices.label")
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    if isinstance(labels, list) and key is not None and str(key).isdecimal() and int(key) < len(labels):
        return labels[int(key)]
    return None
