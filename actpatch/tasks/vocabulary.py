"""Whether a dataset's tokens are this model's: token ids mean nothing without the tokenizer that they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.tokens import WrongTokenizer, as_list, has_tokenizer, text_tokens

_compared: WeakKeyDictionary[Any, WeakKeyDictionary[Any, tuple[tuple[int, int], bool]]] = WeakKeyDictionary()
"""Two tokenizers -> their sizes when they were compared, and whether they share their ids."""


def check_made_for(model: Any, dataset: PatchingDataset, pairs: Sequence[Any]) -> None:
    """Raise WrongTokenizer where the dataset was made for a model that reads texts as other tokens.

    Models may differ and still agree: two loads of one checkpoint, sizes of one family, both classes of one model.
    They agree where neither vocabulary contradicts the other and a prompt of the dataset is the same tokens to both,
    BOS included. What is called `model` without being one is not looked at, nor is one without a tokenizer.

    Args:
        model: the model that the dataset is used with.
        dataset: the dataset, which says what it was `made_for`, and `made_with` where that may have changed since.
        pairs: its pairs.
    """
    other = dataset.made_for
    if not all(hasattr(other, name) for name in ("to_tokens", "cfg")) or not (
        has_tokenizer(model) and has_tokenizer(other)
    ):
        return
    made_with = other.tokenizer if dataset.made_with is None else dataset.made_with
    if _share_ids(model.tokenizer, made_with) and (other is model or _reads_alike(model, other, pairs)):
        return
    raise WrongTokenizer(
        f"this dataset was made for another model's tokenizer: make it anew for this model (dataset {dataset.name!r})"
    )


def _share_ids(one: Any, other: Any) -> bool:
    """Whether the tokenizers give the same tokens the same ids, as far as both know them; two are compared once."""
    if one is other:
        return True
    try:
        sizes = len(one), len(other)
        known = _compared.setdefault(one, WeakKeyDictionary())
        if other not in known or known[other][0] != sizes:
            known[other] = sizes, _agree(one.get_vocab(), other.get_vocab())
        return known[other][1]
    except (AttributeError, NotImplementedError, TypeError):  # a tokenizer that cannot be asked: prompts tell
        return True


def _agree(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether one of the vocabularies contains the other: some have a few tokens more, for padding or chats."""
    return one.items() <= other.items() or other.items() <= one.items()


def _reads_alike(model: Any, other: Any, pairs: Sequence[Any]) -> bool:
    """Whether both models read the dataset's first text as the same tokens."""
    text = next(
        (prompt for pair in pairs for prompt in as_list(pair) or () if isinstance(prompt, str) and prompt), None
    )
    if text is None:
        return True
    try:
        return text_tokens(model, text).tolist() == text_tokens(other, text).tolist()
    except ValueError:  # a tokenizer that cannot read it, which is told as such
        return True
