"""Texts for tokens in the place of ids, as a dataset gives them. Nothing here knows a pair."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from actpatch.core.text import described, shortened
from actpatch.tasks.tokens import token_strings

TokenLabels: TypeAlias = Mapping[int, str] | Sequence[str] | Callable[[int], str | None]
"""Token id -> text: a mapping, a list in the order of ids, or a function. A token that it lacks, or gives None, is
shown as the model's tokenizer has it, or as its id."""


def check_labels(labels: Any) -> None:
    """Raises ValueError for what gives no texts for tokens."""
    is_list = isinstance(labels, Sequence) and not isinstance(labels, (str, bytes))
    if labels is not None and not (callable(labels) or is_list or isinstance(labels, Mapping)):
        raise ValueError(
            f"token_labels is {described(labels)}, expected a mapping or a function from token ids to texts, or a list "
            "of texts"
        )


def labelled(
    model: Any, tokens: Iterable[int], labels: TokenLabels | None, told: dict[int, str] | None = None
) -> tuple[str, ...]:
    """Each token as the text that it is shown as.

    Args:
        model: whose tokenizer says what tokens are.
        tokens: their ids.
        labels: what they are shown as instead.
        told: what the tokenizer said of tokens before, which this adds to.

    Raises:
        ValueError: for labels that are no texts, and a function that fails.
    """
    ids = [operator.index(token) for token in tokens]
    known = {} if labels is None else {token: _label(labels, token) for token in set(ids)}
    told = {} if told is None else told
    new = [token for token in dict.fromkeys(ids) if token not in told]
    told |= zip(new, token_strings(model, new))
    return tuple(told[token] if (label := known.get(token)) is None else label for token in ids)


def _label(labels: TokenLabels, token: int) -> str | None:
    if isinstance(labels, Mapping):
        label = labels.get(token)
    elif callable(labels):
        try:
            label = labels(token)
        except Exception as error:  # the user's own code, which fails in ways of its own
            raise ValueError(
                f"token_labels fails for token {token} ({type(error).__name__}: {error}): let it return None for "
                "tokens that it does not know"
            ) from error
    else:
        label = labels[token] if token < len(labels) else None
    if label is not None and not isinstance(label, str):
        raise ValueError(f"token_labels gives {shortened(label)} for token {token}, expected a text")
    return label
