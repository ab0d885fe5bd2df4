"""Whether answers are written as the model itself would write them: with or without the space before a word.

Where the tokenizer puts that space into the token of the word, "Paris" and " Paris" are two tokens. Which of them goes
on with a prompt is not to be seen in the texts: after a word or a colon it is the one with the space, after a
parenthesis or a quote that without. The model knows: for answers of one token its clean run is there anyway, those of
several are run once more, with their other spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from actpatch.core.text import share_of_pairs
from actpatch.metrics.answers import LogProbability
from actpatch.metrics.base import Answers, AnswerSequences, Whole
from actpatch.metrics.sequence import SequenceLogProbability
from actpatch.results.baselines import Finding, chosen
from actpatch.tasks.batches import tokens_of_all
from actpatch.tasks.tokens import text_of, token_strings, unknown_token

MOST = 0.5
"""From so large a share of the pairs on, whose other spelling is likelier, something is said."""
CLEAR = 1.0
"""And from so large a mean gain on, in nats."""
_SPACES = ("Ġ", "▁", " ")
"""What stands for a leading space in the entries of vocabularies: of byte-level BPE, of SentencePiece, and plain."""


@dataclass(frozen=True)
class OtherSpelling:
    """The right answers of pairs with the space that they lack, or without the one that they have."""

    written: Answers | AnswerSequences
    """Of whole answers the first of each pair."""
    other: Answers | AnswerSequences
    """Of a pair without another spelling the answers as they are."""
    has_other: tuple[bool, ...]

    @property
    def metrics(self) -> tuple[LogProbability | SequenceLogProbability, ...]:
        """What is to be measured: the log-probability of both, in nats."""
        both = (self.written, "as written"), (self.other, "spelled otherwise")
        return tuple(
            LogProbability(answers, name) if isinstance(answers, Answers) else SequenceLogProbability(answers, name)
            for answers, name in both
        )

    def finding(
        self,
        model: Any,
        prompts: Sequence[Any],
        written: Float[np.ndarray, " pair"],
        other: Float[np.ndarray, " pair"],
    ) -> Finding | None:
        """What the clean runs say; None where they prefer the answers as they are written, or no clear other.

        Args:
            model: the model, for the texts of tokens.
            prompts: the clean prompts, as the dataset gives them.
            written: log-probability of the answers as they are written in each clean run, in nats.
            other: the same of the other spelling.
        """
        kept = np.array(self.has_other) & np.isfinite(written) & np.isfinite(other)
        gains = np.where(kept, other - written, 0.0)
        if not kept.any() or (gains > 0).sum() < MOST * kept.sum() or gains[kept].mean() < CLEAR:
            return None
        first = int(np.flatnonzero(gains > 0)[0])
        written_first, other_first = (_tokens_of(answers.correct[first][0]) for answers in (self.written, self.other))
        texts = [repr(_text(model, answer)) for answer in (written_first, other_first)]
        if texts[0] == texts[1]:  # a tokenizer that shows no leading space
            texts = [repr(_entry(model.tokenizer, answer[0])) for answer in (written_first, other_first)]
        with_space = _entry(model.tokenizer, other_first[0]).startswith(_SPACES)
        ends_in_space = isinstance(prompts[first], str) and prompts[first].endswith(" ")
        return Finding(
            "care",
            f"The model prefers the answers {'with' if with_space else 'without'} a leading space in "
            f"{share_of_pairs(gains > 0, self.written.pair_indices)}, by {gains[kept].mean():.1f} nats on average: "
            f"{texts[1]} instead of {texts[0]}",
            f"Take the space from the prompts' end, and write {texts[1]}"
            if ends_in_space and with_space
            else f"Write {texts[1]}" + (", or read them with leading_space=True" if with_space else ""),
            chosen(gains > 0, self.written.pair_indices),
        )


def other_spelling(model: Any, answers: Answers | AnswerSequences) -> OtherSpelling | None:
    """The other spelling of the right answers; None where no answer has one."""
    tokenizer: Any = getattr(model, "tokenizer", None)
    if not all(hasattr(tokenizer, name) for name in ("convert_ids_to_tokens", "get_vocab")):
        return None
    return _of_tokens(model, answers) if isinstance(answers, Answers) else _of_wholes(model, answers)


def _of_wholes(model: Any, answers: AnswerSequences) -> OtherSpelling | None:
    """The first right answer of each pair spelled otherwise, whose tokens may all be others."""
    written = [of_pair[0] for of_pair in answers.correct]
    texts = {whole: text_of(model, whole) for whole in dict.fromkeys(written)}
    spelled = {whole: text[1:] if text.startswith(" ") else f" {text}" for whole, text in texts.items()}
    both = [text for text in (*texts.values(), *spelled.values()) if text.strip()]
    tokens = tokens_of_all(model, both, prepend_bos=False)
    unknown = unknown_token(model)
    # An answer whose text is read as other tokens was given as ids, and has no spelling.
    found = {
        whole: tokens[spelled[whole]]
        for whole, text in texts.items()
        if text.strip()
        and tokens[text] == whole
        and tokens[spelled[whole]] not in ((), whole)
        and unknown not in tokens[spelled[whole]]
    }
    if not found:
        return None
    one_each = all(len(of_pair) == 1 for of_pair in answers.correct)
    none, firsts = ((),) * len(answers), tuple((whole,) for whole in written)
    others = tuple((found.get(whole, whole),) for whole in written)
    return OtherSpelling(
        answers if one_each else AnswerSequences(firsts, none, answers.pair_indices),
        AnswerSequences(others, none, answers.pair_indices),
        tuple(whole in found for whole in written),
    )


def _of_tokens(model: Any, answers: Answers) -> OtherSpelling | None:
    tokenizer, unknown = model.tokenizer, unknown_token(model)
    known: dict[tuple[int, ...], tuple[int, ...]] = {}
    vocabulary: dict[str, int] | None = None
    for ids in answers.correct:
        if ids in known:
            continue
        if vocabulary is None:
            vocabulary = tokenizer.get_vocab()
        found = [_other(tokenizer, vocabulary, token) for token in ids]
        known[ids] = tuple(dict.fromkeys(token for token in found if token is not None and token != unknown))
    has_other = tuple(bool(known[ids]) for ids in answers.correct)
    if not any(has_other):
        return None
    none = ((),) * len(answers)
    others = tuple(known[ids] or ids for ids in answers.correct)
    return OtherSpelling(
        Answers(answers.correct, none, answers.pair_indices), Answers(others, none, answers.pair_indices), has_other
    )


def _other(tokenizer: Any, vocabulary: dict[str, int], token: int) -> int | None:
    piece = _entry(tokenizer, token)
    for space in _SPACES:
        if piece.startswith(space):
            return vocabulary.get(piece[len(space) :])
    return next((vocabulary[space + piece] for space in _SPACES if space + piece in vocabulary), None)


def _entry(tokenizer: Any, token: int) -> str:
    """The token as the vocabulary has it; empty for an id that it does not have."""
    try:
        return str(tokenizer.convert_ids_to_tokens(token) or "")
    except (IndexError, KeyError):
        return ""


def _tokens_of(answer: int | Whole) -> Whole:
    return answer if isinstance(answer, tuple) else (answer,)


def _text(model: Any, answer: Whole) -> str:
    return token_strings(model, answer)[0] if len(answer) == 1 else text_of(model, answer)
