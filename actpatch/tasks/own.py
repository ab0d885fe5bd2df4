"""Prompts of one's own as a dataset: pairs from a file or a DataFrame, without a class.

One row is one pair: clean prompt, corrupted prompt, correct and incorrect answers, and if wanted a template key, named
positions and a subject. Everything that is wrong with a file is found when it is read, and named by row.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from actpatch.core.heavy import pd
from actpatch.core.text import described, shortened
from actpatch.core.warn import warn_user
from actpatch.tasks import published
from actpatch.tasks.acceptable import Meanings
from actpatch.tasks.alignment import partner_positions
from actpatch.tasks.blemishes import blemishes
from actpatch.tasks.chat import one_message
from actpatch.tasks.columns import SUBJECT, Answer, Columns, Places, PromptPair, TableRows, UnreadableRow
from actpatch.tasks.dataset import Align, PatchingDataset, TargetTokens, as_targets
from actpatch.tasks.files import Table, frame_table, read_file
from actpatch.tasks.labels import TokenLabels, check_labels
from actpatch.tasks.resolved import Resolver
from actpatch.tasks.tokens import Prompt, as_list
from actpatch.tasks.unfit import UnfitRows


class Reading(TypedDict, total=False):
    """How `PromptPairs.from_file` and its kind read a table: which columns hold what, and what cells mean.

    Columns are also found where their names differ in case or in the spaces around them; a name with dots reaches into
    records (`counterfactual.prompt`).
    """

    clean: str
    """The column of clean prompts, by default `clean`."""
    corrupted: str | None
    """The column of corrupted prompts, by default `corrupted`; None where noise makes the corrupted run."""
    correct: str | None
    """The column of correct answers, by default `correct`; None for metrics that need no answer."""
    incorrect: str | None
    """The column of incorrect answers, by default `incorrect`; None for metrics that read the right answer alone."""
    template: str
    """The column of template keys; there need be none called `template`."""
    group: str
    """The column that tells which pairs may work alike; there need be none called `group`."""
    subject: str | None
    """A column of texts that stand in the clean prompt: the tokens of each become the positions `SUBJECT`. A prompt may
    have `{}` in its place."""
    corrupted_subject: str | None
    """A column of the subjects of the corrupted prompts; by default each has the clean prompt's own subject, or what
    it has in its place. It matters where prompts are aligned."""
    answers: Literal["text", "ids"] | None
    """Whether answers are texts or token ids; by default texts, with a warning where they are digits only."""
    prompts: Literal["text", "ids"] | None
    """Whether prompts are texts or lists of token ids; by default texts."""
    leading_space: bool
    """Whether a space is put before answers that begin with none, as most tokens of words have it."""
    positions_count_bos: bool
    """False where named positions count from a prompt's first word, as if the model prepended no BOS."""
    skip_unfit: bool
    """Whether rows that do not fit are left out, with a warning, and told in `left_out`; else they are refused."""
    single_token: bool
    """Whether rows whose answers are not one token each are rows that do not fit; else they serve metrics of whole
    answers (`sequence_log_probability` and others)."""
    first_token: bool
    """Whether of answers of several tokens the first alone is taken, whatever is measured."""
    chat: bool
    """Whether prompts that are texts are what a user says in a chat, written by the tokenizer's own chat template."""
    token_labels: TokenLabels | None
    """What tokens are shown as (`PatchingDataset.token_labels`); by default what the tokenizer says."""
    align: Align
    """Which positions stand for each other in prompts of different lengths (`PatchingDataset.align`)."""
    name: str | None
    """What the task is called in tables and figures; by default the file's name."""
    varies: str
    """Which signal of the clean prompt the corruption changes."""


class PromptPairs(PatchingDataset):
    """Prompt pairs of one's own: from a file or a DataFrame, or as a list of `PromptPair`.

    Columns are `clean`, `corrupted`, `correct` and `incorrect`, and if wanted `template`, `group` (pairs that may work
    alike, by default those of a template) and one `position:NAME` for each named position (a whole number, a list of
    such for several tokens, or empty where the pair has none), with `corrupted_position:NAME` where prompts are aligned
    and it stands elsewhere in the corrupted one; others are ignored, and `Reading` gives columns other
    names. Answers are taken as they are written: after "... gave a drink to" comes " Mary", with its space. In files
    of separated cells several acceptable answers are separated by `|`; else they are a list. An answer may have several
    tokens: it serves metrics of whole answers (`sequence_log_probability` and others), or others by its first token,
    where that is asked for. Pairs may repeat; `repeated_pairs` tells which do.

    In the place of a text a prompt may be the messages of a chat. Prompts and answers may be token ids too, for models
    without a tokenizer: of a `PromptPair` as they are, of a table where that is said.

    Args:
        model: the model whose tokenizer the prompts and answers are for.
        pairs: the pairs.
        name: what the task is called in tables and figures.
        varies: which signal of the clean prompt the corruption changes.
        answers: what the answers are: `"text"`, `"ids"` for token ids, or None for what they are, text or numbers; of
            a table texts, with a warning where they are digits only.
        prompts: likewise what the prompts are.
        leading_space: whether a space is put before answers that begin with none.
        positions_count_bos: False where named positions count as if the model prepended no BOS.
        skip_unfit: whether rows that do not fit are left out, with a warning.
        single_token: whether rows whose answers are not one token each do not fit.
        first_token: whether of answers of several tokens the first alone is taken, whatever is measured.
        chat: whether each prompt that is a text is what a user says in a chat, written by the tokenizer's own chat
            template.
        token_labels: what tokens are shown as (`PatchingDataset.token_labels`); None for what the tokenizer says.
        align: which positions stand for each other in prompts of different lengths (`PatchingDataset.align`).

    Raises:
        ValueError: for texts and a model without a tokenizer, a chat and a tokenizer without a chat template, no pairs,
            and rows that do not fit: unreadable cells, answers that the tokenizer does not know, or on both sides (or
            that begin with the same token, where the first alone is taken), prompts of different token lengths without
            `align`, with unknown words or longer than the context, subjects that are not in their prompt and positions
            outside it. Every kind is told at once, with up to five rows and their number.
    """

    def __init__(
        self,
        model: Any,
        pairs: Iterable[PromptPair | UnreadableRow],
        *,
        name: str = "own prompts",
        varies: str = "",
        answers: Literal["text", "ids"] | None = None,
        prompts: Literal["text", "ids"] | None = None,
        leading_space: bool = False,
        positions_count_bos: bool = True,
        skip_unfit: bool = False,
        single_token: bool = False,
        first_token: bool = False,
        chat: bool = False,
        token_labels: TokenLabels | None = None,
        align: Align = None,
    ) -> None:
        if not isinstance(pairs, Iterable):
            raise ValueError(f"pairs is {described(pairs)}, expected a list of PromptPair(clean, corrupted, ...)")
        rows = tuple(pairs)
        if not rows:
            raise ValueError(f"{name} has no pairs: give at least one row")
        if wrong := [row for row in rows if not isinstance(row, (PromptPair, UnreadableRow))]:
            raise ValueError(f"pairs holds {described(wrong[0])}, expected PromptPair(clean, corrupted, ...)")
        meanings = Meanings(
            answers,
            prompts,
            leading_space,
            positions_count_bos,
            any_length=align is not None,
            chat=chat,
            first_token=first_token,
            single_token=single_token,
            ids_unasked=not isinstance(pairs, TableRows),
        )
        check_labels(token_labels)
        self.model, self.made_with = model, getattr(model, "tokenizer", None)
        self._name, self._varies = name, varies
        self.chat, self.token_labels, self.first_token = chat, token_labels, first_token
        resolved = Resolver(model, rows, meanings)
        self._unfit = resolved.unfit
        self._unfit_rows = self._left_out(rows, resolved.unfit, skip_unfit)
        self._read = [read for _, read in sorted(resolved.read.items())]
        self.align = _of_rows(align, len(rows), sorted(resolved.read))
        self.pairs = tuple(read.pair for read in self._read)
        # Pairs with the same answers share them, of which there may be thousands.
        self._targets = {
            id(side): as_targets(side) for side in {id(s): s for r in self._read for s in r.targets}.values()
        }
        self._warn(resolved)

    @classmethod
    def from_file(
        cls, model: Any, path: str | Path, *, key: str | None = None, **reading: Unpack[Reading]
    ) -> PromptPairs:
        """Pairs from a file. What kind of file it is, is seen from what it holds, and not from its name.

        Text with cells that are separated by commas, tabs or semicolons, below a header, which may stand below other
        lines; JSON: an array of objects, one under a key, a dict of columns; or one JSON object per line. In UTF-8, or
        in UTF-16. Rows are named in errors by their line in the file, those of a JSON document by their number.

        Args:
            model: the model whose tokenizer the prompts and answers are for.
            path: the file.
            key: of a JSON document the key under which the records are; needed only where several may be meant.
            reading: which columns hold what, and what cells mean (`Reading`).

        Raises:
            OSError: where the file cannot be read.
            ValueError: for a file that is none of these, missing columns, and what the class refuses.
        """
        columns, others = _columns(reading)
        return cls._from_table(model, read_file(Path(path), columns.wanted, key), columns, others, Path(path).stem)

    @classmethod
    def from_csv(cls, model: Any, path: str | Path, **reading: Unpack[Reading]) -> PromptPairs:
        """Pairs from a CSV file; arguments and errors are those of `from_file`."""
        return cls.from_file(model, path, **reading)

    @classmethod
    def from_jsonl(cls, model: Any, path: str | Path, **reading: Unpack[Reading]) -> PromptPairs:
        """Pairs from a file with one JSON object per line; arguments and errors are those of `from_file`."""
        return cls.from_file(model, path, **reading)

    @classmethod
    def from_dataframe(cls, model: Any, frame: pd.DataFrame, **reading: Unpack[Reading]) -> PromptPairs:
        """Pairs from the rows of a DataFrame, which errors name by their index labels; otherwise as `from_file`."""
        if not isinstance(frame, pd.DataFrame):
            raise ValueError(f"frame is {described(frame)}, expected a pandas DataFrame: pd.DataFrame(rows)")
        columns, others = _columns(reading)
        return cls._from_table(model, frame_table(frame), columns, others, "own prompts")

    @classmethod
    def from_eap_csv(cls, model: Any, path: str | Path, **reading: Unpack[Reading]) -> PromptPairs:
        """Pairs from a file of the EAP-IG circuits (`published.eap_csv`): their answers are token ids."""
        return cls._from_published(model, *published.eap_csv(Path(path), reading))

    @classmethod
    def from_auto_circuit_json(cls, model: Any, path: str | Path, **reading: Unpack[Reading]) -> PromptPairs:
        """Pairs from a file of the package auto-circuit (`published.auto_circuit_json`), with its named positions."""
        return cls._from_published(model, *published.auto_circuit_json(Path(path), reading))

    @classmethod
    def from_known_facts(cls, model: Any, path: str | Path, **reading: Unpack[Reading]) -> PromptPairs:
        """Facts for causal tracing from a file like `known_1000.json` (`published.known_facts`), for noise on their
        subject: `GaussianNoise("SUBJECT")`."""
        return cls._from_published(model, *published.known_facts(Path(path), reading))

    @classmethod
    def from_mib(
        cls,
        model: Any,
        rows: str | Path | pd.DataFrame,
        *,
        counterfactual: str | None = None,
        **reading: Unpack[Reading],
    ) -> PromptPairs:
        """Pairs of the Mechanistic Interpretability Benchmark (`published.mib`), from a file or a DataFrame.

        Args:
            model: the model whose tokenizer the prompts and answers are for.
            rows: what `load_dataset("mib-bench/...")` gives, as a DataFrame (`to_pandas()`) or file (`to_json(path)`).
            counterfactual: the column of the corrupted prompts; None for the one that the benchmark uses.
            reading: as for `from_file`.
        """
        return cls._from_published(model, *published.mib(rows, counterfactual, reading))

    @classmethod
    def _from_published(cls, model: Any, table: Table, reading: Reading) -> PromptPairs:
        columns, others = _columns(reading)
        return cls._from_table(model, table, columns, others, Path(table.source).stem)

    @classmethod
    def _from_table(
        cls, model: Any, table: Table, columns: Columns, others: dict[str, Any], source: str
    ) -> PromptPairs:
        others["name"] = others.get("name") or source
        return cls(model, columns.read(table), **others)

    @property
    def name(self) -> str:
        return self._name

    @property
    def varies(self) -> str:
        return self._varies

    @property
    def repeated_pairs(self) -> tuple[int, ...]:
        """Indices of the pairs whose prompts and answers are those of an earlier one."""
        first: dict[Any, int] = {}
        prompts = [[as_list(prompt) or prompt for prompt in (pair.clean, pair.corrupted)] for pair in self.pairs]
        said = [repr((both, pair.correct, pair.incorrect)) for both, pair in zip(prompts, self.pairs)]
        return tuple(i for i, pair in enumerate(said) if first.setdefault(pair, i) < i)

    def get_clean_corrupt_pairs(self) -> list[Any]:
        """The pairs; a clean prompt alone, where it has no corrupted one."""
        both = [(self._as_asked(pair.clean), pair.corrupted) for pair in self.pairs]
        return [clean if other is None else (clean, self._as_asked(other)) for clean, other in both]

    def get_target_tokens(self, pair_idx: int) -> tuple[TargetTokens, TargetTokens]:
        """Token ids (correct, incorrect): one id where there is one acceptable answer, else a tuple of ids; of whole
        answers a tuple of tuples, where one of them has several tokens."""
        correct, incorrect = self._read[pair_idx].targets
        return self._targets[id(correct)], self._targets[id(incorrect)]

    def get_positions(self, pair_idx: int) -> Mapping[str, Places]:
        return self._read[pair_idx].positions

    def get_corrupted_positions(self, pair_idx: int) -> Mapping[str, Places] | None:
        read = self._read[pair_idx]
        if self.align is None or not read.corrupted_subject:
            return read.corrupted_positions
        others = read.corrupted_positions
        if others is None and self.align == "names":
            others = read.positions
        elif others is None:
            others = partner_positions(read.positions, pair_idx, *read.ids, self.get_alignment(pair_idx))
        return {**others, SUBJECT: read.corrupted_subject}

    def get_template(self, pair_idx: int) -> str:
        return self.pairs[pair_idx].template

    def get_group(self, pair_idx: int) -> str:
        return self.pairs[pair_idx].group or self.pairs[pair_idx].template

    def _as_asked(self, prompt: Prompt) -> Prompt:
        return one_message(prompt) if self.chat and isinstance(prompt, str) else prompt

    @functools.cached_property
    def left_out(self) -> pd.DataFrame:
        """The rows that were left out (`skip_unfit`): `row`, `reason`, and both prompts."""
        return self._unfit.table(self._unfit_rows)

    def _left_out(
        self, rows: tuple[PromptPair | UnreadableRow, ...], unfit: UnfitRows, skip_unfit: bool
    ) -> dict[int, tuple[str, str, str]]:
        """The name and both prompts of each row that does not fit; raises where these are not to be left out."""
        if not unfit.faults:
            return {}
        names = [row.row or f"pair {i}" for i, row in enumerate(rows)]
        if not skip_unfit:
            unfit.refuse(names, self.name, "skip_unfit=True leaves such rows out")
        if len(unfit) == len(rows):
            unfit.refuse(names, self.name, "No row is left")
        warn_user(
            f"{self.name}: {len(unfit)} of {len(rows)} rows are left out: {unfit.counts()}. The attribute left_out "
            "of the dataset tells which, and why"
        )
        return {i: (names[i], _shown(rows[i].clean), _shown(rows[i].corrupted)) for i in unfit.faults}

    def _warn(self, resolved: Resolver) -> None:
        """Of what can be read and is rarely meant. Only the user knows."""
        for sentence in (self._digits(resolved), self._lists(resolved), self._joined(resolved)):
            if sentence:
                warn_user(f"{self.name}: {sentence}")
        prompts = [(pair.clean, pair.corrupted) for pair in self.pairs]
        for blemish in blemishes(prompts, [read.ids for read in self._read], self.made_with):
            if blemish.severity == "care":
                first = self._named(blemish.which.index(True))
                warn_user(
                    f"{self.name}: {blemish.what} {sum(blemish.which)} of {len(self.pairs)} rows, the first is "
                    f"{first}. {blemish.remedy}"
                )

    def _digits(self, resolved: Resolver) -> str:
        """Answers of digits only may be token ids."""
        digits = resolved.answers.digits() if resolved.meanings.answers is None else {}
        of_row = _first_in_rows(self.pairs, lambda answer: answer in digits) if digits else {}
        if not of_row:
            return ""
        row, answer = next(iter(of_row.items()))
        return (
            f"{len(of_row)} of {len(self.pairs)} rows have answers of digits only, the first is {self._named(row)}: "
            f"{answer!r} is taken as text; as a token id it is {digits[str(answer)]}. Say answers='ids' if ids are "
            "meant, answers='text' if not"
        )

    def _lists(self, resolved: Resolver) -> str:
        if not (lists := resolved.lists_as_text()):
            return ""
        return (
            f"{shortened(lists[0])} is taken as the text of a prompt, not as token ids. Say prompts='ids' if ids are "
            "meant, prompts='text' if not"
        )

    def _joined(self, resolved: Resolver) -> str:
        """After "... gave a drink to", "Mary" makes "toMary", which may be a token."""
        if resolved.meanings.answers == "ids" or resolved.meanings.leading_space or self.chat:
            return ""
        spaced = resolved.answers.with_space(text for text in resolved.answers.tokens if text[:1].isalpha())
        after_word = {
            i: pair for i, pair in enumerate(self.pairs) if isinstance(pair.clean, str) and pair.clean[-1:].isalpha()
        }
        of_row = _first_in_rows(after_word.values(), lambda answer: answer in spaced)
        if not of_row:
            return ""
        first, answer = next(iter(of_row.items()))
        return (
            f"{len(of_row)} of {len(self.pairs)} rows have answers that go on in the prompt's last word, the first is "
            f"{self._named(list(after_word)[first])}, {answer!r}. They are measured as they are written; if a new word "
            f"was meant, write {f' {answer}'!r}, or say leading_space=True"
        )

    def _named(self, index: int) -> str:
        return self.pairs[index].row or f"pair {index}"


def _columns(reading: Reading) -> tuple[Columns, dict[str, Any]]:
    """What is said of columns, and all else."""
    names = {field.name for field in dataclasses.fields(Columns)}
    given = {name: value for name, value in reading.items() if name in names}
    return Columns(**given), {name: value for name, value in reading.items() if name not in names}  # type: ignore[arg-type]


def _first_in_rows(pairs: Iterable[PromptPair], asked: Callable[[Answer], bool]) -> dict[int, Answer]:
    """Place of a pair -> its first answer of which this is true; answers that pairs share are asked once."""
    known: dict[tuple[Answer, ...], Answer | None] = {}
    found: dict[int, Answer] = {}
    for i, pair in enumerate(pairs):
        for side in (pair.correct, pair.incorrect):
            if side not in known:
                known[side] = next(filter(asked, side), None)
            if (answer := known[side]) is not None:
                found.setdefault(i, answer)
    return found


def _of_rows(align: Align, n_rows: int, kept: Sequence[int]) -> Align:
    """The mappings of the rows that are kept, where there is one for each."""
    if align is None or isinstance(align, str):
        return align
    if len(align) != n_rows:
        raise ValueError(f"align has {len(align)} mappings for {n_rows} pairs: give one per pair, or 'ends' or 'names'")
    return [align[row] for row in kept]


def _shown(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "" if prompt is None else str(list(prompt))
