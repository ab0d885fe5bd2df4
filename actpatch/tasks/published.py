"""Files of prompts in the shapes in which others publish them, as tables with the columns that `PromptPairs` reads.

What is known of each shape stands with its function. Nothing here knows a model: what tokens are is said, not found.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actpatch.core.heavy import pd
from actpatch.tasks.columns import POSITION_PREFIX
from actpatch.tasks.documents import cell
from actpatch.tasks.files import Table, frame_table, name_key, read_file

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
    file is for.

    Raises:
        ValueError: where it has none of these columns, as the files of greater-than and subject-verb agreement, whose
            `correct_idx` and `plural` are no token ids; or several, so that `correct` and `incorrect` have to be said.
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
    if not found:
        numbers = [name for name in ("correct_idx", "plural") if name in has]
        why = (
            f"its {numbers[0]!r} is a number from which the task makes sets of answers (years above it, plural verbs), "
            "and no token id: write the answers into a column and read it with from_file"
            if numbers
            else f"it has {', '.join(map(repr, table.columns))}: say which with correct='...', incorrect='...'"
        )
        raise ValueError(f"{path.name} has no token ids of right and wrong answers; {why}")
    correct, incorrect = found[0]
    return table, {**said, "correct": correct, "incorrect": incorrect}


def auto_circuit_json(path: Path, reading: Reading) -> tuple[Table, Reading]:
    """A file of the package auto-circuit (github.com/UFO-101/auto-circuit, `datasets/`, read by its `data.py`):
    `{"prompts": [{"clean", "corrupt", "answers", "wrong_answers"}], "word_idxs": {name: position}}`. Prompts are texts
    or lists of token ids; answers are lists of texts or ids, the wrong ones sometimes missing; positions count without
    BOS, and hold for all pairs.

    Raises:
        ValueError: where it is no such file.
    """
    table = read_file(path, key="prompts")
    document = json.loads(path.read_text(encoding="utf-8-sig"))
    named = document.get("word_idxs") or {}
    columns = table.columns + tuple(f"{POSITION_PREFIX}{name}" for name in named)
    cells = [[*row, *named.values()] for row in table.cells]
    said: Reading = {"corrupted": "corrupt", "correct": "answers", "positions_count_bos": False}
    said["incorrect"] = "wrong_answers" if "wrong_answers" in table.columns else None
    if cells and not isinstance(cells[0][table.columns.index("clean")] if "clean" in table.columns else "", str):
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
    space; multiple choice in `choices["label"]` at `answerKey`; arithmetic in `label`.

    Raises:
        ValueError: where the rows are of none of these tasks, or the counterfactual is not among their columns.
    """
    table = frame_table(rows) if isinstance(rows, pd.DataFrame) else read_file(Path(rows))
    records = [dict(zip(table.columns, row)) for row in table.cells]
    first: Mapping[str, Any] = records[0] if records else {}
    if cell(first, "metadata.indirect_object") is not None:
        kind, right, wrong = "ioi", "metadata.indirect_object", "metadata.subject"
    elif cell(first, "choices.label") is not None:
        kind, right, wrong = "choice", "", ""
    elif "label" in first and "operator" in first:
        kind, right, wrong = "arithmetic", "label", ""
    else:
        has = ", ".join(map(repr, table.columns)) or "none"
        raise ValueError(
            f"{table.source} has the columns {has}, expected those of MIB's IOI, multiple choice or arithmetic: read "
            "it with from_file or from_dataframe"
        )
    column = counterfactual or MIB_COUNTERFACTUALS[kind]
    if column not in first:
        others = ", ".join(repr(name) for name in first if name.endswith("_counterfactual")) or "none"
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
    made = Table(table.source, ("clean", "corrupted", "correct", "incorrect"), cells, table.rows)
    return made, {**said, **reading}


def _chosen(record: Any) -> Any:
    """The label of the right choice."""
    key = cell(record, "answerKey")
    labels = cell(record, "choices.label")
    labels = labels.tolist() if hasattr(labels, "tolist") else labels
    if isinstance(labels, list) and key is not None and str(key).isdecimal() and int(key) < len(labels):
        return labels[int(key)]
    return None
