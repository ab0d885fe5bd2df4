"""Which tokens the corruption of a pair changes, where the prompts go together token by token and where they do not."""

from __future__ import annotations

from collections.abc import Iterator

from actpatch.core.alignment import identity, span_of
from actpatch.results.check import Change
from actpatch.tasks.encoding import EncodedPairs


def changes_of(pairs: EncodedPairs, pair: int) -> tuple[Change, ...]:
    """The changed tokens of a pair, by their position in the clean prompt.

    What stands for nothing in the other prompt is one change together with what stands between the same neighbours
    there, unless it is the same text.
    """
    clean, corrupted = pairs.clean_tokens[pair], pairs.corrupted_tokens[pair]
    found = []
    for (begin, end), (other_begin, other_end) in _stretches(pairs, pair):
        ids = [
            run[pair][a:b].tolist()
            for run, a, b in ((pairs.clean, begin, end), (pairs.corrupted, other_begin, other_end))
        ]
        if ids[0] == ids[1]:
            continue
        names = {name for name, span in pairs.positions[pair].items() if any(begin <= at < end for at in span_of(span))}
        found.append(
            Change(
                position=begin,
                names=tuple(name for name in pairs.positions[pair] if name in names),
                clean="".join(clean[begin:end]),
                corrupted="".join(corrupted[other_begin:other_end]),
            )
        )
    return tuple(found)


def _stretches(pairs: EncodedPairs, pair: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """(begin, end) in the clean prompt and in the corrupted one: of each match, and of what lies between two of them.

    Where matches cross, nothing lies between.
    """
    n_clean, n_corrupted = len(pairs.clean[pair]), len(pairs.corrupted[pair])
    here = there = 0
    for at, partner in [*(pairs.matches[pair] if pairs.matches else identity(n_clean)), (n_clean, n_corrupted)]:
        if at > here or partner > there:
            yield (here, at), (there, max(partner, there))
        if at < n_clean:
            yield (at, at + 1), (partner, partner + 1)
        here, there = at + 1, partner + 1
