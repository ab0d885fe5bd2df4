"""Many texts as tokens in one call of the tokenizer, and where a text's tokens stand in it.

`tokens.text_tokens` makes one text into tokens as the model itself does. What that adds to the tokenizer's own tokens,
or takes from them, is found on a few of the texts, and the same is done to all. Nothing here knows what pairs are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actpatch.tasks.tokens import encode_prompt, text_tokens, token_strings, unknown_token

FEWEST = 8
"""Fewer texts than these are made into tokens one by one."""
AT_ONCE = 4096
"""So many texts are handed to the tokenizer at once: what it says of each takes memory."""
_PLAIN = {"return_attention_mask": False}


@dataclass(frozen=True)
class _Rule:
    """What a model does around its tokenizer."""

    before: str
    """What it puts before a text."""
    front: int
    """How many of the first tokens it leaves out."""
    back: int
    """How many of the last."""

    def of(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids[self.front : len(ids) - self.back])


def tokens_of_all(model: Any, texts: Iterable[str], **options: bool) -> dict[str, tuple[int, ...]]:
    """Each text's token ids, as `text_tokens` gives them one by one, unknown words included.

    Args:
        model: the model whose tokenizer it is.
        texts: the texts; each is made into tokens once.
        options: `prepend_bos=False` for texts that are parts of a prompt.

    Raises:
        ValueError: where the model has no tokenizer (`WrongTokenizer`), or one that cannot do it.
    """
    distinct = list(dict.fromkeys(texts))
    # Where a special token is written in a text, what is added and taken away may be that one.
    every = "\n".join(distinct)
    special = [token for token in getattr(model.tokenizer, "all_special_tokens", ()) or () if token in every]
    plain = [text for text in distinct if not any(token in text for token in special)] if special else distinct
    rule = _rule(model, plain, options) if len(plain) >= FEWEST else None
    if rule is None:
        plain = []
    found = dict(zip(plain, map(rule.of, _raw(model, [rule.before + text for text in plain])))) if rule else {}
    return {
        text: found[text] if text in found else tuple(text_tokens(model, text, **options).tolist()) for text in distinct
    }


def prompts_of_all(model: Any, texts: Iterable[str]) -> dict[str, tuple[int, ...] | Callable[[], str]]:
    """Each prompt's token ids as `encode_prompt` gives them, or what says the reason why there are none."""
    unknown, longest = unknown_token(model), model.cfg.n_ctx
    return {
        text: functools.partial(_refusal, model, text) if len(ids) > longest or unknown in ids else ids
        for text, ids in tokens_of_all(model, texts).items()
    }


def _refusal(model: Any, text: str) -> str:
    """What `encode_prompt` says of a prompt that it refuses."""
    try:
        encode_prompt(model, text)
    except ValueError as error:
        return str(error)
    return ""


def spans_of_all(
    model: Any, wanted: Sequence[tuple[str, int, int]], ids: Mapping[str, tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """The tokens that stand, in whole or in part, at some characters of a prompt.

    Args:
        model: the model whose tokenizer it is.
        wanted: (prompt, first character, character after the last).
        ids: each prompt's token ids, as the model reads them.

    Returns:
        for each of them the positions, one after the other; none where the tokenizer does not say.
    """
    texts = list(dict.fromkeys(text for text, _, _ in wanted))
    spans = dict(zip(texts, _characters(model, texts, ids)))
    return [
        tuple(i for i, (begins, ends) in enumerate(spans[text]) if begins < end and ends > start and begins < ends)
        for text, start, end in wanted
    ]


def _characters(model: Any, texts: list[str], ids: Mapping[str, tuple[int, ...]]) -> list[list[tuple[int, int]]]:
    """For each token of each text where it begins and ends in the text; a BOS before it stands nowhere."""
    if not getattr(model.tokenizer, "is_fast", False):  # it does not say: by the tokens as text, one after the other
        return [_joined(model, text, ids[text]) for text in texts]
    encoded = model.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, **_PLAIN)
    return [
        _shifted(raw, offsets, ids[text])
        for text, raw, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"])
    ]


def _shifted(raw: Sequence[int], offsets: Sequence[tuple[int, int]], ids: tuple[int, ...]) -> list[tuple[int, int]]:
    """The offsets of the tokens of a text alone as those of a prompt that begins with more, or ends with it."""
    for before in range(len(ids) - len(raw) + 1):
        if ids[before : before + len(raw)] == tuple(raw):
            return [(0, 0)] * before + [tuple(span) for span in offsets]  # type: ignore[misc]
    return []


def _joined(model: Any, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    spans, at = [], 0
    for piece in token_strings(model, ids):
        found = text.find(piece, at)
        spans.append((found, found + len(piece)) if 0 <= found <= at + 1 else (0, 0))
        at = spans[-1][1] or at
    return spans


def _rule(model: Any, texts: Sequence[str], options: Mapping[str, bool]) -> _Rule | None:
    """What the model does around its tokenizer; None where it is nothing as simple."""
    by_length = sorted(texts, key=len)
    samples = [texts[0], texts[-1], by_length[0], by_length[-1]]
    expected = [tuple(text_tokens(model, text, **options).tolist()) for text in samples]
    bos = getattr(model.tokenizer, "bos_token", None) or ""
    for before in dict.fromkeys(("", bos)):
        raw = _raw(model, [before + text for text in samples])
        for front in (0, 1):
            for back in (0, 1):
                rule = _Rule(before, front, back)
                if [rule.of(ids) for ids in raw] == expected:
                    return rule
    return None


def _raw(model: Any, texts: list[str]) -> list[list[int]]:
    tokenizer = model.tokenizer
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if len(texts) < FEWEST or not hasattr(backend, "encode_batch_fast"):
        return tokenizer(texts, **_PLAIN)["input_ids"]
    tokenizer(texts[0], **_PLAIN)  # after which the tokenizer pads and cuts nothing
    portions = (texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE))
    return [encoded.ids for portion in portions for encoded in backend.encode_batch_fast(portion)]
