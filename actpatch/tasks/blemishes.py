"""What texts of prompts give away before any model is run: stray spaces, a doubled BOS, escapes that stayed as written.

Nothing is mended: only who wrote the prompts knows what was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Blemish:
    """Something about prompts that is rarely meant."""

    severity: Literal["care", "note"]
    what: str
    """A sentence that goes on with the number of pairs: `The prompts end in a space in`."""
    remedy: str
    which: tuple[bool, ...]
    """Whether each pair has it."""


def blemishes(
    pairs: Sequence[Sequence[Any]], ids: Sequence[tuple[Sequence[int], Sequence[int]]], tokenizer: Any
) -> list[Blemish]:
    """What is found in these pairs; what none of them has is left out.

    Args:
        pairs: the prompts of each pair, clean and corrupted, or clean alone; what is no text is not looked at.
        ids: the token ids of both prompts of each pair, as the model reads them.
        tokenizer: the model's; None where it has none.
    """
    texts = [tuple(prompt for prompt in pair if isinstance(prompt, str)) for pair in pairs]
    found = [
        _doubled_bos(texts, ids, tokenizer),
        _uneven(texts, "begins", lambda text: text[:1].isspace()),
        _uneven(texts, "ends", lambda text: text[-1:].isspace()),
        Blemish(
            "care",
            "The prompts end in a space in",
            "Take it out, and begin the answers with it: most tokenizers put the space before a word into its token",
            tuple(bool(pair) and all(text.endswith(" ") for text in pair) for pair in texts),
        ),
        Blemish(
            "note",
            "A backslash and an n, which are two characters and no line break, stand in the prompts of",
            r"Where a line break is meant, write one (in a CSV cell within quotes), or .replace('\\n', '\n')",
            tuple(any("\\n" in text for text in pair) for pair in texts),
        ),
    ]
    return [blemish for blemish in found if blemish and any(blemish.which)]


def _doubled_bos(
    texts: Sequence[Sequence[str]], ids: Sequence[tuple[Sequence[int], Sequence[int]]], tokenizer: Any
) -> Blemish | None:
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return None
    name = repr(tokenizer.bos_token)
    written = any(text.startswith(tokenizer.bos_token) for pair in texts for text in pair)
    return Blemish(
        "care",
        f"The BOS token {name} begins the prompts twice in",
        f"Leave {name} out of the prompts: the model puts one before them" if written else f"Leave one {name} out",
        tuple(any(len(prompt) > 1 and prompt[0] == prompt[1] == bos for prompt in pair) for pair in ids),
    )


def _uneven(texts: Sequence[Sequence[str]], where: str, spaced: Callable[[str], bool]) -> Blemish:
    return Blemish(
        "care",
        f"One prompt {where} with white space and the other does not in",
        "Take it out, or write it in both: it is a token of its own, or part of another one",
        tuple(len(pair) == 2 and spaced(pair[0]) != spaced(pair[1]) for pair in texts),
    )
