"""Pairs of one's own as tokens of a model: prompts, answers, subjects and positions, with every fault of every row.

Each distinct prompt and each distinct set of answers is looked at once; many texts become tokens in one call.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from actpatch.core.alignment import span_of
from actpatch.core.indices import is_integer
from actpatch.core.text import shortened
from actpatch.metrics.base import Whole
from actpatch.tasks.acceptable import Acceptable, Meaning, Meanings
from actpatch.tasks.alignment import checked_span
from actpatch.tasks.batches import prompts_of_all, spans_of_all
from actpatch.tasks.chat import is_chat, need_chat_template, one_message
from actpatch.tasks.columns import SUBJECT, Answer, Places, PromptPair, UnreadableRow, listed_in
from actpatch.tasks.tokens import Prompt, as_list, check_is_model, compare_lengths, encode_prompt, need_tokenizer
from actpatch.tasks.unfit import Fault, UnfitRows

_SLOT = "{}"
"""Where the subject stands in a prompt that leaves it out."""


@dataclass(frozen=True, slots=True)
class ReadPair:
    """One pair as tokens."""

    pair: PromptPair
    """With its subject in its prompts, its prompts as they are encoded."""
    ids: tuple[tuple[int, ...], tuple[int, ...]]
    """Of the clean and of the corrupted prompt; twice the clean one where there is no other."""
    targets: tuple[tuple[Whole, ...], tuple[Whole, ...]]
    """The correct and the incorrect answers as token ids; pairs with the same answers share them."""
    positions: Mapping[str, Places]
    corrupted_positions: Mapping[str, Places] | None
    corrupted_subject: tuple[int, ...] = ()
    """Where the corrupted prompt has its subject; empty where it has none, or is not aligned."""


class Resolver:
    """Makes tokens of rows, and keeps what is wrong with them.

    Args:
        model: the model whose tokenizer the prompts and answers are for.
        rows: pairs, and rows that are none.
        meanings: what is said of them.
    """

    def __init__(self, model: Any, rows: Sequence[PromptPair | UnreadableRow], meanings: Meanings) -> None:
        check_is_model(model)
        self.model, self.meanings, self.unfit = model, meanings, UnfitRows()
        self.pairs: dict[int, PromptPair] = {}
        self.subjects: dict[int, tuple[int, int]] = {}
        """Row -> first character of its subject in the clean prompt, and the one after its last."""
        self.other_subjects: dict[int, tuple[int, int]] = {}
        """The same of the corrupted prompt, where prompts may have other lengths."""
        for i, row in enumerate(rows):
            if isinstance(row, UnreadableRow):
                for fault in row.faults:
                    self.unfit.add(i, fault)
            else:
                self.pairs[i] = self._with_subject(i, row)
        self._check_tokenizer()
        self.prompts = self._prompts()
        self.answers = Acceptable(model, meanings, (side for pair in self.pairs.values() for side in _sides(pair)))
        self.read: dict[int, ReadPair] = {}
        spans, others = self._spans("clean", self.subjects), self._spans("corrupted", self.other_subjects)
        for i, pair in self.pairs.items():
            self._read(i, pair, spans.get(i, ()), others.get(i, ()))

    def _read(self, i: int, pair: PromptPair, span: tuple[int, ...], other_span: tuple[int, ...]) -> None:
        clean = self.prompts[_key(pair.clean)]
        corrupted = clean if pair.corrupted is None else self.prompts[_key(pair.corrupted)]
        for fault in dict.fromkeys(prompt for prompt in (clean, corrupted) if isinstance(prompt, Fault)):
            self.unfit.add(i, fault)
        correct, incorrect = self._targets(i, "correct", pair.correct), self._targets(i, "incorrect", pair.incorrect)
        if same := self.answers.shared(correct, incorrect):
            self.unfit.add(i, same)
        if isinstance(clean, Fault) or isinstance(corrupted, Fault):
            return
        ids = clean, corrupted
        if len(ids[0]) != len(ids[1]) and not self.meanings.any_length:
            self.unfit.add(i, Fault("lengths", functools.partial(_compared, self.model, *ids)))
        positions = self._positions(i, pair.positions, ids[0], "")
        others = pair.corrupted_positions
        corrupted_positions = None if others is None else self._positions(i, others, ids[1], "the corrupted prompt's ")
        if corrupted_positions is not None and not self.meanings.any_length and corrupted_positions != positions:
            self.unfit.add(i, Fault("positions", "the corrupted prompt has positions of its own: say align='names'"))
        if pair.subject and i not in self.unfit:
            if not span:
                self.unfit.add(i, Fault("subject", f"{pair.subject!r} is not in {shortened(pair.clean)}"))
            elif i in self.other_subjects and not other_span:
                self.unfit.add(i, Fault("subject", f"{_missing(pair)} {shortened(pair.corrupted)}"))
            else:
                positions[SUBJECT] = span
        if i not in self.unfit:
            self.read[i] = ReadPair(pair, ids, (correct, incorrect), positions, corrupted_positions, other_span)

    def _with_subject(self, i: int, pair: PromptPair) -> PromptPair:
        """The pair with its prompts as they are encoded, its subject in the place that is left for it."""
        if not pair.subject and self.meanings.prompts != "ids" and type(pair.clean) is type(pair.corrupted) is str:
            return pair
        prompts = {which: _as_meant(getattr(pair, which), self.meanings.prompts) for which in ("clean", "corrupted")}
        if pair.subject and isinstance(prompts["clean"], str):
            self.subjects[i] = _place_of(pair.subject, prompts["clean"])
            other = pair.corrupted_subject or pair.subject
            filled = {"clean": prompts["clean"].replace(_SLOT, pair.subject), "corrupted": prompts["corrupted"]}
            if isinstance(prompts["corrupted"], str):
                filled["corrupted"] = prompts["corrupted"].replace(_SLOT, other)
                if self.meanings.any_length:
                    place = _place_of(other, prompts["corrupted"])
                    if place == (0, 0) and not pair.corrupted_subject:
                        place = _in_its_place(self.subjects[i], filled["clean"], filled["corrupted"])
                    self.other_subjects[i] = place
            prompts = filled
        changed = {which: prompt for which, prompt in prompts.items() if prompt is not getattr(pair, which)}
        return replace(pair, **changed) if changed else pair

    def _check_tokenizer(self) -> None:
        """Token ids need no tokenizer; texts and chats do, and chats its template besides."""
        pairs = [(i, prompt) for i, pair in self.pairs.items() for prompt in (pair.clean, pair.corrupted)]
        no_texts = [(i, prompt) for i, prompt in pairs if prompt is not None and not isinstance(prompt, str)]
        are_texts = any(isinstance(prompt, str) for _, prompt in pairs) and self.meanings.prompts != "ids"
        are_chats = any(is_chat(prompt) for _, prompt in no_texts) or (self.meanings.chat and are_texts)
        if self.meanings.answers != "ids" and not are_texts:
            answers = dict.fromkeys(side for pair in self.pairs.values() for side in _sides(pair))
            are_texts = any(isinstance(answer, str) for side in answers for answer in side)
        if are_texts or are_chats:
            need_tokenizer(self.model, "PromptPairs of texts need")
        are_ids = [i for i, prompt in no_texts if not is_chat(prompt)]
        if self.meanings.chat and are_ids:
            row = self.pairs[are_ids[0]].row or f"pair {are_ids[0]}"
            raise ValueError(
                f"chat is True and {row} has token ids, which are used as they are: give texts or messages"
            )
        if are_chats:
            need_chat_template(self.model.tokenizer)

    def _prompts(self) -> dict[Hashable, tuple[int, ...] | Fault]:
        """Each distinct prompt's token ids, or why it has none."""
        distinct = {
            _key(prompt): prompt
            for pair in self.pairs.values()
            for prompt in (pair.clean, pair.corrupted)
            if prompt is not None
        }
        found: dict[Hashable, tuple[int, ...] | Fault] = {}
        texts, said = [], self.meanings.prompts
        for key, prompt in distinct.items():
            if isinstance(prompt, str) and said != "ids" and not self.meanings.chat:
                texts.append(prompt)
            elif said == "ids" and (isinstance(prompt, str) or is_chat(prompt)):
                given = shortened(prompt)
                found[key] = Fault("cells", f"a prompt is {given}, expected token ids: a list of integers")
            elif isinstance(prompt, str):
                found[key] = self._encoded(one_message(prompt))
            elif is_chat(prompt) or said == "ids" or (said is None and self.meanings.ids_unasked):
                found[key] = self._encoded(prompt)
            else:
                given = shortened(list(prompt))
                found[key] = Fault("cells", f"a prompt is {given}, expected text: for token ids say prompts='ids'")
        for text, ids in prompts_of_all(self.model, texts).items() if texts else ():
            found[text] = Fault("unreadable", ids) if callable(ids) else ids
        return found

    def _encoded(self, prompt: Prompt) -> tuple[int, ...] | Fault:
        try:
            return tuple(encode_prompt(self.model, prompt).tolist())
        except ValueError as error:
            return Fault("unreadable", str(error))

    def lists_as_text(self) -> list[str]:
        """Prompts that are lists of numbers in brackets, and are taken as text because nothing was said."""
        if self.meanings.prompts is not None:
            return []
        texts = (prompt for prompt in self.prompts if isinstance(prompt, str) and prompt[:1] == "[")
        return [text for text in texts if all(map(is_integer, listed_in(text) or [None]))]

    def _targets(self, i: int, which: str, side: tuple[Answer, ...]) -> tuple[Whole, ...]:
        ids, fault = self.answers.ids[tuple(side)]
        if fault:
            of_side = functools.partial("{} {}".format, which, fault)
            self.unfit.add(i, Fault(fault.kind, of_side) if fault.kind == "cells" else fault)
        return ids

    def _spans(self, which: str, places: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, ...]]:
        """Row -> the tokens of its subject in one of its prompts, where it stands at these characters."""
        ids = {
            prompt: tokens
            for prompt, tokens in self.prompts.items()
            if isinstance(prompt, str) and not isinstance(tokens, Fault)
        }
        prompts = {i: getattr(self.pairs[i], which) for i in places}
        rows = [i for i, (start, end) in places.items() if end > start and _key(prompts[i]) in ids]
        wanted = [(str(prompts[i]), *places[i]) for i in rows]
        return dict(zip(rows, spans_of_all(self.model, wanted, ids))) if wanted else {}

    def _positions(self, i: int, named: Mapping[str, Places], ids: Sequence[int], whose: str) -> dict[str, Places]:
        if not named:
            return {}
        bos = getattr(getattr(self.model, "tokenizer", None), "bos_token_id", None)
        shift = int(not self.meanings.positions_count_bos and bos is not None and ids[0] == bos)
        found: dict[str, Places] = {}
        for name, given in named.items():
            what = f"{whose}position {name!r} (in a prompt of {len(ids)} tokens)"
            one = is_integer(given) or isinstance(given, str) or not isinstance(given, Iterable)
            several: list[Any] = [given] if one else list(given)  # type: ignore[arg-type]
            several = [at + shift if is_integer(at) and at >= 0 else at for at in several]
            try:
                span = checked_span(several[0] if one else several, len(ids), what)
            except ValueError as error:
                self.unfit.add(i, Fault("positions", str(error)))
                continue
            found[name] = several[0] if one else span_of(span)
        return found


def _compared(model: Any, clean: Sequence[int], corrupted: Sequence[int]) -> str:
    return compare_lengths(model, torch.tensor(clean), torch.tensor(corrupted))


def _sides(pair: PromptPair) -> tuple[tuple[Answer, ...], tuple[Answer, ...]]:
    return tuple(pair.correct), tuple(pair.incorrect)


def _key(prompt: Any) -> Hashable:
    """By what a prompt is known from others; messages cannot be hashed."""
    if isinstance(prompt, str):
        return prompt
    return ("chat", repr(list(prompt))) if is_chat(prompt) else prompt


def _as_meant(prompt: Any, meaning: Meaning) -> Any:
    """Ids as a tuple of integers, also where they are written in a text; a text and a chat as they are."""
    if is_chat(prompt):
        return prompt
    if isinstance(prompt, str):
        if meaning != "ids":
            return prompt
        numbers = listed_in(prompt) or prompt.replace(",", " ").split()
        return tuple(map(int, numbers)) if all(str(n).strip().isdecimal() for n in numbers) else prompt
    if prompt is None:
        return None
    ids = as_list(prompt) or []
    row = as_list(ids[0]) if len(ids) == 1 else None
    return tuple(ids if row is None else row)


def _place_of(subject: str, prompt: str) -> tuple[int, int]:
    """Where the subject stands: in the place that is left for it, or where it is first written, as a word if it is one.

    (0, 0) where it is nowhere.
    """
    if _SLOT in prompt:
        start = prompt.index(_SLOT)
        return start, start + len(subject)
    starts, at = [], prompt.find(subject)
    while at >= 0:
        starts.append(at)
        at = prompt.find(subject, at + 1)
    words = [start for start in starts if _stands_alone(prompt, start, start + len(subject))]
    start = next(iter(words or starts), -1)
    return (start, start + len(subject)) if start >= 0 else (0, 0)


def _in_its_place(subject: tuple[int, int], clean: str, corrupted: str) -> tuple[int, int]:
    """What the corrupted prompt has between what stands before the subject in the clean one and what stands after it.

    (0, 0) where these do not frame it.
    """
    start, end = subject
    before, after = clean[:start], clean[end:]
    framed = corrupted.startswith(before) and corrupted.endswith(after)
    stop = len(corrupted) - len(after)
    return (start, stop) if end > start and framed and stop > start else (0, 0)


def _missing(pair: PromptPair) -> str:
    """What was looked for in the corrupted prompt."""
    if pair.corrupted_subject:
        return f"{pair.corrupted_subject!r} is not in"
    return f"neither {pair.subject!r} nor, in its place, another subject (say corrupted_subject=) is in"


def _stands_alone(text: str, start: int, end: int) -> bool:
    return not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum())
