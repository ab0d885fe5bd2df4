"""Where heads attend: by role on a task's prompts, by place and repetition on random tokens. Patterns in, numbers out.

The scores on repeated random tokens are mean attention weights from the queries of the repetition (position i, with the
same token n before):

    duplicate token    to i - n, the previous occurrence of the same token (Wang et al. 2022, section 3.3)
    induction          to i - n + 1, what followed that occurrence (Olsson et al. 2022: "prefix matching")
    previous token     to i - 1, from every random token but the first (Olsson et al. 2022)

`transformer_lens.head_detector` sums the same weights and divides by all rows of the pattern instead of those queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actpatch.core.alignment import Span, span_of
from actpatch.tasks.encoding import EncodedPairs
from actpatch.tasks.random_tokens import RepeatedTokens

END = "END"
LAST = "last token"
REST = "rest"


@dataclass(frozen=True)
class Roles:
    """The positions of a task's prompts by what they are to it, per pair and name one, or several of a span."""

    keys: Mapping[str, tuple[Span, ...]]
    """Named positions that every pair has, and the first token where it has no name; empty where there are no names."""
    end: str
    """What the last token is called: `END`, or `last token` where the task calls another one END."""
    ends: tuple[int, ...]
    left_out: tuple[str, ...]
    """Names that some pairs lack."""

    @property
    def places(self) -> dict[str, tuple[Span, ...]]:
        """The named positions, with the last one."""
        named = {name: at for name, at in self.keys.items() if name not in FIRST}
        return {**named, self.end: self.ends} if named else {}

    def queries(self, name: str) -> tuple[int, ...]:
        """From where a named position looks in each pair: a span from its last token, which has seen the others."""
        at = self.ends if name == self.end else self.places[name]
        return tuple(span_of(span)[-1] for span in at)


FIRST = ("BOS", "first token")
"""What position 0 is called where the task has no name for it."""


def roles_of(pairs: EncodedPairs, bos: int | None) -> Roles:
    """The roles of these pairs' positions; `bos` is the token that the model prepends to texts."""
    positions = pairs.positions or ({},) * len(pairs)
    every = list(dict.fromkeys(name for has in positions for name in has))
    common = [name for name in every if all(name in has for has in positions)]
    keys = {name: tuple(has[name] for has in positions) for name in common}
    ends = tuple(int(length) - 1 for length in pairs.lengths)
    end = END if keys.get(END, ends) == ends else LAST
    if all(0 not in span_of(span) for at in keys.values() for span in at):
        starts_with_bos = bos is not None and all(int(prompt[0]) == bos for prompt in pairs.clean)
        keys[FIRST[0] if starts_with_bos else FIRST[1]] = (0,) * len(pairs)
    return Roles(keys, end, ends, tuple(name for name in every if name not in common))


def attention_by_role(
    patterns: Sequence[Float[np.ndarray, "_ _"]], queries: Sequence[int], roles: Roles
) -> dict[str, float]:
    """Mean over pairs of the attention weight from each pair's query to each role that it can see, and to the rest.

    Without names the roles are the first token, the token before the query, and the query itself. The weight of a span
    is the sum over its tokens. Positions of two roles count for both; the rest is what has none.
    """
    keys: dict[str, Sequence[Span]] = dict(roles.keys)
    if not roles.places:
        keys = {**keys, "previous token": tuple(max(at - 1, 0) for at in queries), "itself": tuple(queries)}
    spans = {name: [list(span_of(span)) for span in at] for name, at in keys.items()}
    seen = {name: at for name, at in spans.items() if all(max(key) <= query for key, query in zip(at, queries))}
    rows = [pattern[query, : query + 1] for pattern, query in zip(patterns, queries)]
    weights = {name: float(np.mean([row[key].sum() for row, key in zip(rows, at)])) for name, at in seen.items()}
    others = [
        np.delete(row, sorted({key for at in seen.values() for key in at[pair]})).sum() for pair, row in enumerate(rows)
    ]
    return {**weights, REST: float(np.mean(others))}


def repetition_scores(
    patterns: Float[np.ndarray, "sequence query key"], repeated: RepeatedTokens
) -> tuple[float, float, float]:
    """(previous-token, duplicate-token, induction) score, as the module's docstring defines them."""
    second, n = repeated.second, repeated.length
    every = np.arange(repeated.start + 1, repeated.start + 2 * n)
    keys = ((every, every - 1), (second, second - n), (second, second - n + 1))
    previous, duplicate, induction = (float(patterns[:, query, key].mean()) for query, key in keys)
    return previous, duplicate, induction
