"""Texts as tokens of a model, and tokens as text. Nothing here knows what a pair or a dataset is."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from jaxtyping import Int
from torch import Tensor

from actpatch.core.text import described


def encode_prompt(model: Any, prompt: str) -> Int[Tensor, " pos"]:
    """The prompt's token ids, BOS included where the model prepends one.

    Raises:
        ValueError: for a word that the tokenizer does not know, or more tokens than the model reads.
    """
    tokens = _tokenize(model, prompt)
    _check_known(model, tokens, prompt)
    if len(tokens) > model.cfg.n_ctx:
        raise ValueError(
            f"the prompt {prompt[:40]!r}... has {len(tokens)} tokens, the model reads at most {model.cfg.n_ctx}: "
            "shorten it"
        )
    return tokens


def single_token(model: Any, text: str) -> int:
    """The id of a text that is one token for this model.

    Raises:
        ValueError: where it is several tokens, or none that the tokenizer knows.
    """
    ids = _tokenize(model, text, prepend_bos=False)
    _check_known(model, ids, text)
    if len(ids) != 1:
        parts = " + ".join(repr(part) for part in token_strings(model, ids))
        raise ValueError(f"{text!r} is {len(ids)} tokens for this model ({parts}), expected one: choose another word")
    return int(ids[0])


def token_strings(model: Any, tokens: Iterable[int] | Int[Tensor, " pos"]) -> tuple[str, ...]:
    """Each token as text, leading spaces kept."""
    return tuple(model.tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) for token in tokens)


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


def compare_lengths(model: Any, clean: Int[Tensor, " _"], corrupted: Int[Tensor, " _"]) -> str:
    """How many tokens two prompts have, and where they part, for messages."""
    at = first_difference(clean, corrupted)
    seen = [repr("".join(token_strings(model, tokens[at : at + 3]))) for tokens in (clean, corrupted)]
    return (
        f"the clean prompt has {len(clean)} tokens and the corrupted one {len(corrupted)}; they part at position {at}, "
        f"{seen[0]} against {seen[1]}"
    )


def first_difference(clean: Int[Tensor, " _"], corrupted: Int[Tensor, " _"]) -> int:
    common = min(len(clean), len(corrupted))
    differs = (clean[:common] != corrupted[:common]).nonzero()
    return int(differs[0]) if len(differs) else common


def _tokenize(model: Any, text: str, **options: bool) -> Int[Tensor, " pos"]:
    if not hasattr(model, "to_tokens"):
        raise TypeError(
            f"model is {described(model)}, expected a TransformerLens HookedTransformer or TransformerBridge: load one "
            "with load_model(...)"
        )
    return model.to_tokens(text, truncate=False, **options)[0].cpu()


def _check_known(model: Any, tokens: Int[Tensor, " pos"], text: str) -> None:
    tokenizer = model.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.bos_token_id or not bool((tokens == unknown).any()):
        return
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [span for token, span in zip(encoding["input_ids"], encoding["offset_mapping"]) if token == unknown]
    words = list(dict.fromkeys(text[start:end].strip() or text[start:end] for start, end in spans))
    raise ValueError(
        f"the model's tokenizer does not know {', '.join(map(repr, words))} in {text!r}: use words it was trained on"
    )
