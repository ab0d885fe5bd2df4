"""What the clean, the corrupted and the patched run of one pair say after their prompt, side by side.

A value that prints itself. Nothing here knows how it was run.
"""

from __future__ import annotations

from dataclasses import dataclass

from actpatch.core.direction import Direction
from actpatch.core.sites import Patch
from actpatch.core.text import count, shortened
from actpatch.results.html import TABLES, texts

RUNS = ("clean", "corrupted", "patched")


@dataclass(frozen=True, repr=False)
class Continuation:
    """What one run says after its prompt: the likeliest token each time (greedy decoding)."""

    text: str
    """The new tokens as text, without the one that ends it; the ids themselves where the model has no tokenizer."""
    ids: tuple[int, ...]
    """The new tokens, with the one that ends the text, where one does."""
    tokens: tuple[str, ...]
    """Each of them as text."""
    log_probabilities: tuple[float, ...]
    """Of each after those before it, in nats."""
    has_ended: bool
    """Whether the last one ends a text (EOS); False where the run was cut off after so many tokens."""

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Continuation({shortened(self.text)}, {count(len(self.ids), 'token')})"


@dataclass(frozen=True, repr=False)
class Generation:
    """The continuations of one pair's clean, corrupted and patched run."""

    clean: Continuation
    corrupted: Continuation
    patched: Continuation
    patch: Patch
    """What was replaced in the patched run, at positions of the prompt."""
    direction: Direction
    model: str
    """Name of the model."""
    clean_tokens: tuple[str, ...]
    """Token strings of the clean prompt, BOS included."""
    corrupted_tokens: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know: positions that were left alone, and why it took long, where it did."""

    @property
    def reading(self) -> str:
        """Which run's continuation the patched run says, in one sentence."""
        if self.clean.ids == self.corrupted.ids == self.patched.ids:
            return "All three runs say the same."
        if self.patched.ids == self.clean.ids:
            return "The patched run says what the clean run says."
        if self.patched.ids == self.corrupted.ids:
            return "The patched run says what the corrupted run says."
        return "The patched run says what neither of the others says."

    def __str__(self) -> str:
        width = max(map(len, RUNS))
        said = [f"{name:<{width}}  {self._shown(name)}" for name in RUNS]
        return "\n".join([*self._caption, *said, self.reading, *(f"note: {note}" for note in self.notes)])

    def __repr__(self) -> str:
        return f"Generation({self.patch.label}, {self.direction}, patched: {shortened(self.patched.text)})"

    def _repr_html_(self) -> str:
        return TABLES.render(
            "table.html",
            caption=texts(self._caption),
            columns=texts(["run", "says"]),
            rows=[texts([name, self._shown(name)]) for name in RUNS],
            note=texts([" ".join([self.reading, *(f"{note[:1].upper()}{note[1:]}." for note in self.notes)])])[0],
        )

    @property
    def _caption(self) -> list[str]:
        into = "clean into corrupted" if self.direction == "denoising" else "corrupted into clean"
        return [f"{self.model}, {self.patch.label} patched on the prompt, {self.direction} ({into})"]

    def _shown(self, run: str) -> str:
        said: Continuation = getattr(self, run)
        return repr(said.text) if said.has_ended else f"{said.text!r} ..."
