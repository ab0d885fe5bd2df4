"""Names by which nodes of a graph are asked for: an id, a label, a word for many. Nothing here knows the graph."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int

from actpatch.core.indices import is_integer
from actpatch.core.text import shortened

Names: TypeAlias = "str | tuple[int, int] | Sequence[str | tuple[int, int]]"
"""Nodes as they are asked for: ids, labels, (layer, head), and words for many (`heads`, `mlps`, `L9`)."""

MOST_NEAREST = 3


class NodeNames:
    """Every name of some nodes, each standing for one of them or for several.

    Names are read without regard to case and to blanks at their ends or doubled.
    """

    def __init__(self, what: str, labels: Sequence[str], names: Iterable[Iterable[str]], shape: str) -> None:
        """
        Args:
            what: what the nodes are, for messages.
            labels: what each node is called in messages.
            names: the names of each node.
            shape: what the graph is like, for messages about names that it has not.
        """
        self.what = what
        self.labels = labels
        self.shape = shape
        self._numbers: dict[str, list[int]] = {}
        self._spelled: dict[str, str] = {}
        for number, of_node in enumerate(names):
            for name in dict.fromkeys(of_node):
                self._numbers.setdefault(_key(name), []).append(number)
                self._spelled.setdefault(_key(name), name)

    def numbers(
        self, names: Names | None, argument: str = "", explained: Callable[[str], str | None] = lambda name: None
    ) -> Int[np.ndarray, " chosen"]:
        """Numbers of the nodes asked for, in order and each once; None for all.

        Args:
            names: one name or several.
            argument: what they were given as, for messages; empty where that is clear.
            explained: why a name that is not known cannot be, where that is known.

        Raises:
            ValueError: for no name and for one that no node has, with the nearest ones.
        """
        if names is None:
            return np.arange(len(self.labels))
        found = self.by_name(names, argument, explained)
        return np.array(sorted({number for numbers in found.values() for number in numbers}))

    def by_name(
        self, names: Names, argument: str = "", explained: Callable[[str], str | None] = lambda name: None
    ) -> dict[str, list[int]]:
        """The numbers that each of the names stands for, by the name as it was given. Arguments and errors are those of
        `numbers`."""
        given = as_list(names)
        if not given:
            raise ValueError(f"{argument} is empty: give at least one name, for instance 'L5H3', or None for all")
        found: dict[str, list[int]] = {}
        for name in given:
            text = f"L{name[0]}H{name[1]}" if not isinstance(name, str) and _is_layer_and_head(name) else name
            if not isinstance(text, str) or _key(text) not in self._numbers:
                reason = explained(text) if isinstance(text, str) else "expected an id, a label or (layer, head)"
                given_as = f" (in {argument})" if argument else ""
                raise ValueError(
                    f"no {self.what} is called {shortened(name)}{given_as}: {reason or self._nearest(str(text))}"
                )
            found[text] = self._numbers[_key(text)]
        return found

    def number(self, name: str | tuple[int, int], explained: Callable[[str], str | None] = lambda name: None) -> int:
        """Number of the one node with this name.

        Raises:
            ValueError: for a name that no node or several have.
        """
        found = self.numbers([name], explained=explained)
        if len(found) > 1:
            several = [self.labels[i] for i in found[:MOST_NEAREST]] + ["..."] * (len(found) > MOST_NEAREST)
            raise ValueError(f"{name!r} stands for {len(found)} {self.what}s ({', '.join(several)}): name one of them")
        return int(found[0])

    def _nearest(self, name: str) -> str:
        keys = difflib.get_close_matches(_key(name), self._numbers, n=2 * MOST_NEAREST, cutoff=0.5)
        # Of several names of the same nodes one is said.
        nearest = {tuple(self._numbers[key]): self._spelled[key] for key in reversed(keys)}
        said = [self.labels[numbers[0]] if len(numbers) == 1 else word for numbers, word in nearest.items()]
        said = said[::-1][:MOST_NEAREST]
        return f"{self.shape}; the nearest names are {', '.join(said)}" if said else self.shape


def as_list(names: Names) -> list[Any]:
    """The names asked for, of one or several."""
    if isinstance(names, str) or _is_layer_and_head(names) or not isinstance(names, Iterable):
        return [names]
    return list(names)


def _is_layer_and_head(name: object) -> bool:
    return isinstance(name, tuple) and len(name) == 2 and all(map(is_integer, name))


def _key(name: str) -> str:
    return " ".join(name.lower().split())
