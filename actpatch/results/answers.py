"""The answers of one side of a pair, as ids and as texts: what a metric measured, for tables and files."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SHOWN = 4
"""So many answers of a pair are shown; the others are counted."""


@dataclass(frozen=True)
class AnswerSet:
    """Answers that count alike; pairs with the same ones share them."""

    ids: tuple[int | tuple[int, ...], ...] = ()
    """Their token ids, of an answer of several tokens all of them; empty where there is no answer, or none is known."""
    texts: tuple[str, ...] = ()
    """Each as text, its leading space kept."""

    def __str__(self) -> str:
        """In quotes, the first ones and how many more there are."""
        return self._listed([repr(text) for text in self.texts])

    @property
    def told(self) -> str:
        """Likewise with the ids."""
        return self._listed([f"{text!r} ({_written(ids)})" for text, ids in zip(self.texts, self.ids)])

    @property
    def plain(self) -> str:
        """The texts as they are, with `|` between them, the first ones and how many more there are."""
        more = len(self.texts) - MOST_SHOWN
        return "|".join(self.texts[:MOST_SHOWN]) + (f" and {more:,} more" if more > 0 else "")

    def _listed(self, answers: list[str]) -> str:
        more = len(answers) - MOST_SHOWN
        return " | ".join(answers[:MOST_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _written(ids: int | tuple[int, ...]) -> str:
    return " ".join(map(str, ids if isinstance(ids, tuple) else (ids,)))


NO_ANSWER = AnswerSet()
