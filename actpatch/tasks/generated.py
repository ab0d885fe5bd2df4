"""Draws distinct pairs: the one loop, for every task that is made of templates and words.

A task says how one pair is drawn: a template and two fillings of its slots, the clean and the corrupted one. The rest
is the same for all of them and stands here: drawing until there are as many distinct pairs as were asked for, both
prompts of a pair and all prompts of a template of one token length, the answers as token ids, and the positions of the
slots in tokens.
"""

from __future__ import annotations

import operator
import random
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from actpatch.core.indices import is_integer
from actpatch.tasks import words as task_templates
from actpatch.tasks.batches import tokens_of_all
from actpatch.tasks.dataset import PatchingDataset, TokenIds, one_or_several
from actpatch.tasks.tokens import need_tokenizer, single_token, text_tokens

T = TypeVar("T")


@dataclass(frozen=True)
class TaskPair:
    """One pair as a task draws it."""

    template: str
    """Prompt with slots in braces; pairs of one template are alike in everything but the words in its slots."""
    clean_words: Mapping[str, str]
    """Word of each slot in the clean prompt."""
    corrupted_words: Mapping[str, str]
    """Word of each slot that the corrupted prompt fills differently."""
    correct: tuple[str, ...]
    """Acceptable answers to the clean prompt, with the space they begin with."""
    incorrect: tuple[str, ...]
    group: str = ""
    """What it has in common with pairs that may work alike (`PatchingDataset.get_group`); empty for its template."""

    @property
    def clean(self) -> str:
        return task_templates.fill(self.template, **self.clean_words)

    @property
    def corrupted(self) -> str:
        return task_templates.fill(self.template, **{**self.clean_words, **self.corrupted_words})


class GeneratedTask(PatchingDataset):
    """Base class of tasks that make their pairs from templates and words: override `name`, `varies` and `draw`.

    No two pairs are the same, and no two clean prompts are while the task has new ones left.

    Args:
        model: the model whose tokenizer decides which words are single tokens.
        n_pairs: number of pairs.
        seed: seed of all choices. The global random state is neither used nor changed.

    Raises:
        ValueError: where n_pairs is below 1 or more than the task can make, the seed is no integer, or the model has
            no tokenizer.
    """

    roles: ClassVar[tuple[str, ...]] = ()
    """Named positions besides END, the last token: slots of the task's templates, where the first word of the slot
    stands, and `SLOT+1` for the token after it. A word of several tokens is named by its last one."""

    _counted: tuple[Any, Mapping[str, int]] | None = None

    def __init__(self, model: Any, n_pairs: int, *, seed: int) -> None:
        if not is_integer(n_pairs) or n_pairs < 1:
            raise ValueError(f"n_pairs is {n_pairs!r}, expected at least 1, an integer")
        if not is_integer(seed):
            raise ValueError(f"seed is {seed!r}, expected an integer: with a seed the same pairs come again")
        need_tokenizer(model, f"{type(self).__name__} needs")
        self.model, self.made_with = model, getattr(model, "tokenizer", None)
        self.seed = operator.index(seed)
        self._pairs = self._distinct_pairs(n_pairs)
        answers = {answer for pair in self._pairs for answer in (*pair.correct, *pair.incorrect)}
        self._answer_ids = {answer: single_token(model, answer) for answer in answers}

    @abstractmethod
    def draw(self, chooser: random.Random, turn: int) -> TaskPair:
        """One pair, drawn at random.

        Args:
            chooser: the source of all chance.
            turn: number of pairs that the dataset has so far, for what is not left to chance (which template).
        """

    @property
    def material(self) -> str:
        """How many words and templates the pairs are made of, for the message that they are too few."""
        return "its words and templates"

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return [(pair.clean, pair.corrupted) for pair in self._pairs]

    def get_target_tokens(self, pair_idx: int) -> tuple[TokenIds, TokenIds]:
        """Token ids (correct, incorrect): one id where there is one acceptable answer, else a tuple of ids."""
        pair = self._pairs[pair_idx]
        correct, incorrect = ([self._answer_ids[text] for text in side] for side in (pair.correct, pair.incorrect))
        return one_or_several(correct), one_or_several(incorrect)

    def get_positions(self, pair_idx: int) -> dict[str, int]:
        pair = self._pairs[pair_idx]
        clean, counts = pair.clean, self._counts()
        ends = task_templates.slot_ends(pair.template, **pair.clean_words)
        positions = {}
        for role in self.roles:
            slot = role.removesuffix("+1")
            after = counts[clean[: ends[slot]]]
            positions[role] = after - 1 if slot == role else after
        return {**positions, "END": counts[clean] - 1}

    def get_template(self, pair_idx: int) -> str:
        return self._pairs[pair_idx].template

    def get_group(self, pair_idx: int) -> str:
        return self._pairs[pair_idx].group or self._pairs[pair_idx].template

    def _distinct_pairs(self, n_pairs: int) -> list[TaskPair]:
        chooser = random.Random(self.seed)
        pairs: list[TaskPair] = []
        seen: set[str | tuple[str, str]] = set()
        lengths: dict[str, int] = {}
        clean_may_repeat = False
        misses = refused = 0
        while len(pairs) < n_pairs:
            if misses > 20 * len(pairs) + 1000:  # by then a single one left would have been drawn, surely enough
                if clean_may_repeat:
                    raise ValueError(self._too_few(n_pairs, len(pairs), refused))
                clean_may_repeat, misses = True, 0
            pair = self.draw(chooser, len(pairs))
            prompts = (pair.clean, pair.corrupted)
            misses += 1
            if (prompts if clean_may_repeat else pair.clean) in seen:
                continue
            seen |= {pair.clean, prompts}
            length, corrupted_length = map(self._count_tokens, prompts)
            if length != corrupted_length or length != lengths.setdefault(pair.template, length):
                refused += 1
                continue
            pairs.append(pair)
            misses = 0
        return pairs

    def _too_few(self, asked: int, found: int, refused: int) -> str:
        unequal = f"; {refused} more have prompts of unequal token lengths" if refused else ""
        return (
            f"asked for {asked} distinct pairs, found {found} with {self.material}{unequal}: ask for fewer, or give "
            "more of these"
        )

    def _counts(self) -> Mapping[str, int]:
        """How many tokens every clean prompt has, and its beginnings up to each of the words that it is made of.

        Counted anew where the model's tokenizer or its BOS are others.
        """
        read_by = self.model.tokenizer, getattr(self.model.cfg, "default_prepend_bos", None)
        if self._counted is None or self._counted[0] != read_by:
            texts = {pair.clean for pair in self._pairs}
            for pair in self._pairs:
                ends = task_templates.slot_ends(pair.template, **pair.clean_words)
                texts |= {pair.clean[: ends[role.removesuffix("+1")]] for role in self.roles}
            tokens = tokens_of_all(self.model, sorted(texts))
            self._counted = read_by, {text: len(ids) for text, ids in tokens.items()}
        return self._counted[1]

    def _count_tokens(self, text: str) -> int:
        return len(text_tokens(self.model, text))


def usable(
    model: Any,
    known: Iterable[T],
    given: Iterable[T] | None,
    *,
    texts: Callable[[T], Iterable[str]],
    at_least: int,
    what: str,
    remedy: str,
) -> list[T]:
    """The words a task may use, each once: of the known ones those that are single tokens, or the given ones, which
    must be.

    Args:
        model: the model with the tokenizer.
        known: the words that the task brings with it.
        given: the user's words instead; None for the known ones.
        texts: the texts of a word that must each be one token, for instance with a space before it.
        at_least: how many different words the task needs.
        what: what is needed, for the message.
        remedy: what to do where there are too few.

    Raises:
        ValueError: where a given word is several tokens or unknown, too few different words are left, one text is
            given in the place of a list, or the model has no tokenizer.
    """
    need_tokenizer(model, "tasks that are made of words need")
    if given is None:
        words = [word for word in known if all(_is_single_token(model, text) for text in texts(word))]
    else:
        words = list(dict.fromkeys(listed(given, f"a list: {remedy}")))
        for text in (text for word in words for text in texts(word)):
            single_token(model, text)
    if len(words) < at_least:
        raise ValueError(f"{what} of one token each, this model's tokenizer leaves {len(words)}: {remedy}")
    return words


def listed(given: Any, expected: str) -> list[Any]:
    """Words or templates of the user's as a list.

    A set is sorted: its own order is another one each time Python starts, and the seed alone is to decide.

    Raises:
        ValueError: for what is no list, one text in the place of one included.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        kind = "a text" if isinstance(given, str) else "no list"
        raise ValueError(f"{given!r} is {kind}, expected {expected}")
    return sorted(given) if isinstance(given, (set, frozenset)) else list(given)


def spaced(word: str) -> tuple[str, ...]:
    """A word as it stands inside a prompt."""
    return (f" {word}",)


def bare_and_spaced(word: str) -> tuple[str, ...]:
    """A word as it stands at the beginning of a prompt, and inside one."""
    return word, f" {word}"


def forms_in(template: str, slot: str) -> Callable[[str], tuple[str, ...]]:
    """As what a word of this slot must be a single token: without a space too, where the prompt begins with it."""
    return bare_and_spaced if template.startswith(f"{{{slot}}}") else spaced


def _is_single_token(model: Any, text: str) -> bool:
    try:
        single_token(model, text)
    except ValueError:
        return False
    return True
