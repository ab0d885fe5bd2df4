"""What the texts of a dataset say of it before it is run, as findings of its check: stray spaces, a doubled BOS, names
that stand beside what the corruption changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actpatch.core.alignment import Span, identity, span_of
from actpatch.core.text import share_of_pairs
from actpatch.results.baselines import Finding, chosen
from actpatch.tasks.blemishes import blemishes
from actpatch.tasks.encoding import EncodedPairs
from actpatch.tasks.tokens import as_list, is_one_prompt


def text_findings(model: Any, prompts: Sequence[Any], pairs: EncodedPairs) -> list[Finding]:
    """What the prompts' texts give away.

    Args:
        model: the model, for its tokenizer.
        prompts: the prompts of each of the pairs as the dataset gives them, clean and corrupted, or clean alone.
        pairs: the same as tokens.
    """
    texts = [[pair] if is_one_prompt(pair) else as_list(pair) or [] for pair in prompts]
    ids = [(clean.tolist(), corrupted.tolist()) for clean, corrupted in zip(pairs.clean, pairs.corrupted)]
    return [
        Finding(
            blemish.severity,
            f"{blemish.what} {share_of_pairs(blemish.which, pairs.indices)}",
            blemish.remedy,
            chosen(blemish.which, pairs.indices),
        )
        for blemish in blemishes(texts, ids, getattr(model, "tokenizer", None))
    ]


def unnamed_changes(pairs: EncodedPairs) -> Finding | None:
    """Where a dataset names positions and the corruption changes tokens, and none of these has any of the names."""
    named = [_named(has) for has in pairs.positions]
    changed = [_changed(pairs, pair) for pair in range(len(pairs))]
    asked = [(here, there) for here, there in zip(named, changed) if here and there]
    if not asked or any(here & there for here, there in asked):
        return None
    shown = next(i for i, (here, there) in enumerate(zip(named, changed)) if here and there)
    tokens = ", ".join(f"{name} {text!r}" for name, text in tokens_at_names(pairs, shown))
    return Finding(
        "note",
        f"No token that the corruption changes has a name; in pair {pairs.indices[shown]} the names stand at {tokens}",
        "If others were meant: positions count BOS, where the model prepends one; of files that do not count it say "
        "positions_count_bos=False",
    )


def tokens_at_names(pairs: EncodedPairs, index: int) -> list[tuple[str, str]]:
    """(name, token under it in the clean prompt) of a pair; of a name of several tokens all of them."""
    tokens = pairs.clean_tokens[index]
    positions = pairs.positions[index] if pairs.positions else {}
    return [(name, "".join(tokens[at] for at in sorted(_named({name: place})))) for name, place in positions.items()]


def _named(positions: Mapping[str, Span]) -> set[int]:
    """Every position that has a name."""
    return {at for place in positions.values() for at in span_of(place)}


def _changed(pairs: EncodedPairs, pair: int) -> set[int]:
    """Positions of the clean prompt whose token stands for another one in the corrupted prompt, or for none."""
    clean, corrupted = pairs.clean[pair].tolist(), pairs.corrupted[pair].tolist()
    matches = pairs.matches[pair] if pairs.matches else identity(len(clean))
    same = {at for at, partner in matches if clean[at] == corrupted[partner]}
    return {*range(len(clean))} - same
