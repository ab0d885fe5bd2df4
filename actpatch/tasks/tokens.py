"""Prompts as tokens of a model, and tokens as text. Nothing here knows what a pair or a dataset is."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from actpatch.core.indices import is_integer
from actpatch.core.text import described, shortened
from actpatch.tasks.chat import Message, chat_text, is_chat, role_positions

Prompt: TypeAlias = "str | Sequence[Message] | Sequence[int] | np.ndarray | Tensor"
"""A text, messages of a chat, or token ids: a list, a tuple, an array or a tensor of integers, of one axis or of one
row.

Messages become a text by the tokenizer's chat template. Ids are used as they are given: no BOS is added to them.
"""


NO_TOKENIZER = "this model has no tokenizer: give prompts as token ids, or set model.tokenizer"


class WrongTokenizer(ValueError):
    """The model has no tokenizer for these texts, or they were made into tokens by that of another model."""


def encode_prompt(model: Any, prompt: Prompt) -> Int[Tensor, " pos"]:
    """The prompt's token ids: of a text with BOS where the model prepends one, of ids as they are given.

    Of a chat there is one BOS, whether its template writes it, the model prepends it, or both.

    Raises:
        ValueError: for a text or a chat where the model has no tokenizer (`WrongTokenizer`), a word that the tokenizer
            does not know, what is neither a text, nor messages, nor ids of the model's vocabulary, a tokenizer without
            a chat template or whose template refuses the messages, and for no tokens or more than the model reads.
    """
    if is_chat(prompt):
        tokens = _chat_tokens(model, prompt)
    else:
        tokens = text_tokens(model, prompt) if isinstance(prompt, str) else _given_ids(model, prompt)
    if isinstance(prompt, str):
        check_known(model, tokens, prompt)
    if len(tokens) > model.cfg.n_ctx:
        begins = repr(prompt[:40]) if isinstance(prompt, str) else str(tokens[:10].tolist()).rstrip("]")
        raise ValueError(
            f"the prompt {begins}... has {len(tokens)} tokens, the model reads at most {model.cfg.n_ctx}: shorten it"
        )
    return tokens


def text_tokens(model: Any, text: str, **options: bool) -> Int[Tensor, " pos"]:
    """The text's token ids as the model's tokenizer makes them, unknown words included.

    Raises:
        TypeError: for what is no model.
        ValueError: where the model has no tokenizer (`WrongTokenizer`), or one that cannot do it.
    """
    check_is_model(model)
    if not has_tokenizer(model):
        raise WrongTokenizer(NO_TOKENIZER)
    try:
        return model.to_tokens(text, truncate=False, **options)[0].cpu()
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error).split(". ")[0]
        raise ValueError(
            f"the model's tokenizer cannot make tokens of {shortened(text)} ({reason}): give prompts as token "
            "ids, or set another model.tokenizer"
        ) from error


def named_in_chat(model: Any, prompt: Prompt, tokens: Int[Tensor, " pos"]) -> dict[str, int]:
    """Positions that a chat's roles give names to (`tasks.chat.role_positions`); none in any other prompt."""
    return role_positions(model.tokenizer, prompt, tokens.tolist()) if is_chat(prompt) else {}


def check_is_model(model: Any) -> None:
    """Raises TypeError for what is no model."""
    if not hasattr(model, "to_tokens"):
        raise TypeError(
            f"model is {described(model)}, expected a TransformerLens HookedTransformer or TransformerBridge: load one "
            "with load_model(...)"
        )


def is_one_prompt(given: Any) -> bool:
    """Whether this is a text, a chat or a row of token ids, and no pair of such."""
    ids = as_list(given)
    return isinstance(given, str) or is_chat(given) or (ids is not None and all(map(_is_id, ids)))


def as_list(several: Any) -> list[Any] | None:
    """What a list, a tuple, an array or a tensor holds; None for what holds nothing, and for texts."""
    several = several.tolist() if hasattr(several, "tolist") else several
    return list(several) if isinstance(several, Sequence) and not isinstance(several, (str, bytes)) else None


def has_tokenizer(model: Any) -> bool:
    return getattr(model, "tokenizer", None) is not None


def need_tokenizer(model: Any, what: str) -> None:
    """Raises WrongTokenizer where the model has none.

    Args:
        model: any model, and whatever was given in the place of one: that is told elsewhere.
        what: what needs it, for the message.
    """
    if hasattr(model, "tokenizer") and model.tokenizer is None:
        raise WrongTokenizer(
            f"this model has no tokenizer, and {what} one: set model.tokenizer, or give prompts as token ids in a "
            "PatchingDataset of your own"
        )


def single_token(model: Any, text: str) -> int:
    """The id of a text that is one token for this model.

    Raises:
        ValueError: where it is several tokens, or none that the tokenizer knows.
    """
    ids = known_tokens(model, text)
    if len(ids) != 1:
        parts = " + ".join(repr(part) for part in token_strings(model, ids))
        raise ValueError(f"{text!r} is {len(ids)} tokens for this model ({parts}), expected one: choose another word")
    return int(ids[0])


def known_tokens(model: Any, text: str) -> Int[Tensor, " token"]:
    """The token ids of a text that is no whole prompt, without BOS.

    Raises:
        ValueError: where the tokenizer does not know a word of it.
    """
    ids = text_tokens(model, text, prepend_bos=False)
    check_known(model, ids, text)
    return ids


def token_strings(model: Any, tokens: Iterable[int] | Int[Tensor, " pos"]) -> tuple[str, ...]:
    """Each token as text, leading spaces kept; its id where the model has no tokenizer, or that has no text for it."""
    if not has_tokenizer(model):
        return tuple(str(int(token)) for token in tokens)
    return tuple(_decoded(model.tokenizer, int(token)) for token in tokens)


def text_of(model: Any, tokens: Sequence[int]) -> str:
    """Tokens as one text; the ids, with spaces between them, where the model has no tokenizer."""
    if not has_tokenizer(model):
        return " ".join(token_strings(model, tokens))
    try:
        return model.tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    except (TypeError, KeyError, IndexError):  # it does not know the option, or one of the ids
        return "".join(token_strings(model, tokens))


def unknown_token(model: Any) -> int | None:
    """The id that stands for unknown words; None where there is none, or it is that of BOS too."""
    tokenizer = getattr(model, "tokenizer", None)
    unknown = getattr(tokenizer, "unk_token_id", None)
    return None if unknown == getattr(tokenizer, "bos_token_id", None) else unknown


def token_ids(targets: Any) -> tuple[int, ...]:
    """Answers as a dataset gives them: one id, several, or None for none; each once."""
    if targets is None:
        return ()
    if isinstance(targets, (str, bytes)):
        raise TypeError(f"{targets!r} is a text, expected token ids")
    several = targets.tolist() if hasattr(targets, "tolist") else targets
    ids = list(several) if isinstance(several, Iterable) else [several]
    if any(isinstance(token, bool) for token in ids):
        raise TypeError(f"{targets!r} is a truth value, expected token ids")
    return tuple(dict.fromkeys(map(operator.index, ids)))


def space_hint(model: Any, answer: str) -> str:
    """Where the answer with a space before it is one token, a sentence that says so."""
    try:
        single_token(model, f" {answer}")
    except ValueError:
        return ""
    return f", or write it with the space: {' ' + answer!r} is one token"


def compare_lengths(model: Any, clean: Int[Tensor, " _"], corrupted: Int[Tensor, " _"]) -> str:
    """How many tokens two prompts have, and where they part, for messages."""
    at = first_difference(clean, corrupted)
    between = "" if has_tokenizer(model) else " "
    seen = [repr(between.join(token_strings(model, tokens[at : at + 3]))) for tokens in (clean, corrupted)]
    return (
        f"the clean prompt has {len(clean)} tokens and the corrupted one {len(corrupted)}; they part at position {at}, "
        f"{seen[0]} against {seen[1]}"
    )


def first_difference(clean: Int[Tensor, " _"], corrupted: Int[Tensor, " _"]) -> int:
    common = min(len(clean), len(corrupted))
    differs = (clean[:common] != corrupted[:common]).nonzero()
    return int(differs[0]) if len(differs) else common


def _chat_tokens(model: Any, messages: Sequence[Message]) -> Int[Tensor, " pos"]:
    if not has_tokenizer(model):
        raise WrongTokenizer(NO_TOKENIZER)
    text = chat_text(model.tokenizer, messages)
    tokens = text_tokens(model, text)
    check_known(model, tokens, text)
    bos = model.tokenizer.bos_token_id
    return tokens[1:] if tokens[:2].tolist() == [bos, bos] else tokens


def _given_ids(model: Any, prompt: Any) -> Int[Tensor, " pos"]:
    """Token ids as a tensor of their own."""
    ids = as_list(prompt)
    if ids is not None and len(ids) == 1 and (row := as_list(ids[0])) is not None:
        ids = row
    if ids is None or not all(map(_is_id, ids)):
        raise ValueError(
            f"the prompt is {shortened(prompt)}, expected a text or one list of token ids, which are integers"
        )
    if not ids:
        raise ValueError("the prompt has no token ids: give at least one")
    d_vocab = model.cfg.d_vocab
    if outside := [operator.index(token) for token in ids if not 0 <= token < d_vocab]:
        raise ValueError(
            f"the prompt has the token id {outside[0]}, outside the vocabulary of {d_vocab}: expected 0 to "
            f"{d_vocab - 1}"
        )
    return torch.tensor([operator.index(token) for token in ids])


def _is_id(token: Any) -> bool:
    return is_integer(token) and getattr(token, "ndim", 0) == 0  # a tensor of one element passes for an integer too


def _decoded(tokenizer: Any, token: int) -> str:
    try:
        return tokenizer.decode([token], clean_up_tokenization_spaces=False)
    except TypeError:  # a tokenizer that does not know the option
        pass
    try:
        return tokenizer.decode([token])
    except (TypeError, KeyError, IndexError):  # an id beyond the tokenizer's own, in a vocabulary that was padded
        return str(token)


def check_known(model: Any, tokens: Int[Tensor, " pos"], text: str) -> None:
    """Raises ValueError where one of the tokens of a text stands for words that the tokenizer does not know."""
    unknown = unknown_token(model)
    if unknown is not None and bool((tokens == unknown).any()):
        raise ValueError(unknown_words(model, text))


def unknown_words(model: Any, text: str) -> str:
    """A sentence on the words of a text that the tokenizer does not know, of which there is one at least."""
    words = ", ".join(map(repr, _unknown_words(model.tokenizer, text, unknown_token(model)))) or "a word"
    return f"the model's tokenizer does not know {words} in {text!r}: use words it was trained on"


def _unknown_words(tokenizer: Any, text: str, unknown: int | None) -> list[str]:
    if getattr(tokenizer, "is_fast", False):
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = [span for token, span in zip(encoding["input_ids"], encoding["offset_mapping"]) if token == unknown]
        words = [text[start:end].strip() or text[start:end] for start, end in spans]
    else:  # it does not know where in a text a token stands
        words = [piece for piece in tokenizer.tokenize(text) if tokenizer.convert_tokens_to_ids(piece) == unknown]
    return list(dict.fromkeys(words))
