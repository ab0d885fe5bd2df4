"""Indirect object identification, who is given something (Wang et al. 2022, "Interpretability in the Wild").

"When Mary and John went to the store, John gave a drink to" is continued with " Mary", the indirect object (IO), not
with " John", the subject (S).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actpatch.tasks import words as task_templates
from actpatch.tasks.generated import GeneratedTask, TaskPair, forms_in, listed, spaced, usable


@dataclass(frozen=True)
class IOICorruption:
    """How the names of a clean IOI prompt are changed, and what that varies."""

    label: str
    varies: str
    """Which signal of the clean prompt the corrupted one changes."""


IOI_CORRUPTIONS = {
    "swap_names": IOICorruption(
        "names swapped throughout", "which token the subject is; its position stays (the weaker of the two signals)"
    ),
    "flip_subject": IOICorruption(
        "second subject flipped", "which token the subject is, and at which position it stood before"
    ),
    "swap_order": IOICorruption(
        "name order swapped, giver kept", "the order of the names alone: the right answer stays, so nothing is broken"
    ),
    "unrelated_names": IOICorruption(
        "three unrelated names (ABC)", "every name: nothing of the clean prompt's names is left"
    ),
}


class IOIDataset(GeneratedTask):
    """Indirect object identification (Wang et al. 2022, "Interpretability in the Wild").

    "When Mary and John went to the store, John gave a drink to" is continued with " Mary", the indirect object (IO),
    not with " John", the subject (S). The default corruption swaps the two names throughout, which turns the right
    answer around. Which corruption is right depends on the question: `varies` says what each one changes.

    The corruptions, for the prompt above:
        swap_names: When John and Mary went to the store, Mary gave a drink to
        flip_subject: When Mary and John went to the store, Mary gave a drink to
        swap_order: When John and Mary went to the store, John gave a drink to (the answer is still Mary)
        unrelated_names: When Tom and Anna went to the store, Paul gave a drink to

    Named positions, all of the clean prompt: IO, S1 (the subject's first mention), S1+1 (the token after it), S2 (the
    giver) and END. Templates are told apart by name order too.

    Args:
        model: the model whose tokenizer decides which words are single tokens.
        n_pairs: number of pairs. They go through the templates, the indirect object first in one, the subject first
            in the next, until each template has had both orders; the two orders are the groups.
        corruption: one of the names above.
        seed: seed of the choice of names, places and objects. The first pair of seed 0 is the one above, where its
            words are among those to choose from.
        templates: sentences with the slots {A}, {B} (the two names in order) and {S2} (the giver), and {PLACE} and
            {OBJECT} if wanted; by default the five scenes of `tasks.words.IOI_SCENE_TEMPLATES`.
            `tasks.words.IOI_TEMPLATES` has 21.
        prefix: text to put before every prompt, with a space between, for instance of `tasks.words.IOI_PREFIXES`.
        names: names to choose from. By default all of `tasks.words.NAMES` that are one token for this model.

    Raises:
        ValueError: for an unknown corruption, a name of several tokens, a template without its slots, or more pairs
            than can be made.
    """

    roles = ("IO", "S1", "S1+1", "S2")

    def __init__(
        self,
        model: Any,
        n_pairs: int = 10,
        *,
        corruption: str = "swap_names",
        seed: int = 0,
        templates: Sequence[str] = task_templates.IOI_SCENE_TEMPLATES,
        prefix: str = "",
        names: Sequence[str] | None = None,
    ) -> None:
        if corruption not in IOI_CORRUPTIONS:
            raise ValueError(f"corruption {corruption!r} is unknown: expected one of {', '.join(IOI_CORRUPTIONS)}")
        self.corruption = corruption
        self._templates = _checked_templates(templates)
        self._prefix = _as_literal(prefix)
        forms = [spaced if self._prefix else forms_in(template, "A") for template in self._templates]
        usable_names = {
            texts: usable(
                model,
                task_templates.NAMES,
                names,
                texts=texts,
                at_least=5,
                what="IOI needs at least five names",
                remedy="give others with names=[...]",
            )
            for texts in set(forms)
        }
        self._names = [usable_names[texts] for texts in forms]
        self._scenes = {
            "PLACE": self._usable_scenes(model, "PLACE", task_templates.PLACES),
            "OBJECT": self._usable_scenes(model, "OBJECT", task_templates.OBJECTS),
        }
        super().__init__(model, n_pairs, seed=seed)

    @property
    def name(self) -> str:
        return f"IOI ({IOI_CORRUPTIONS[self.corruption].label})"

    @property
    def varies(self) -> str:
        return IOI_CORRUPTIONS[self.corruption].varies

    @property
    def material(self) -> str:
        n_names = len(set().union(*self._names))
        return f"{n_names} names and {len(self._templates)} templates"

    def draw(self, chooser: random.Random, turn: int) -> TaskPair:
        round_of_templates, at = divmod(turn, len(self._templates))
        io, subject, *others = chooser.sample(self._names[at], 5)
        scene = {slot: chooser.choice(words) for slot, words in self._scenes.items()}
        if turn == 0 and self.seed == 0 and self._has_classic_words:
            io, subject, scene = "Mary", "John", {"PLACE": "store", "OBJECT": "drink"}
            others = [name for name in self._names[0] if name not in (io, subject)][:3]
        # With an even number of templates each would always come in one order.
        subject_first = (turn + round_of_templates * (1 - len(self._templates) % 2)) % 2
        first, second = ("S1", "IO") if subject_first else ("IO", "S1")
        sentence = self._templates[at].replace("{A}", f"{{{first}}}").replace("{B}", f"{{{second}}}")
        return TaskPair(
            template=self._prefix + sentence,
            clean_words={"IO": io, "S1": subject, "S2": subject, **scene},
            corrupted_words=self._corrupted_names(io, subject, dict(zip((first, second, "S2"), others))),
            correct=(f" {io}",),
            incorrect=(f" {subject}",),
            group="subject first" if subject_first else "IO first",
        )

    @property
    def _has_classic_words(self) -> bool:
        names, places, objects = self._names[0], self._scenes["PLACE"], self._scenes["OBJECT"]
        return "Mary" in names and "John" in names and "store" in places and "drink" in objects

    def _corrupted_names(self, io: str, subject: str, others: Mapping[str, str]) -> Mapping[str, str]:
        return {
            "swap_names": {"IO": subject, "S1": io, "S2": io},
            "flip_subject": {"S2": io},
            "swap_order": {"IO": subject, "S1": io},
            "unrelated_names": others,
        }[self.corruption]

    def _usable_scenes(self, model: Any, slot: str, words: Sequence[str]) -> Sequence[str]:
        if not any(slot in task_templates.slots(template) for template in self._templates):
            return words
        return usable(
            model,
            words,
            None,
            texts=spaced,
            at_least=1,
            what=f"templates with {{{slot}}} need at least one word for it",
            remedy=f"give templates without {{{slot}}}",
        )


def _as_literal(prefix: str) -> str:
    """The prefix and a space, as part of a template: braces in it are no slots."""
    if not isinstance(prefix, str):
        raise ValueError(f"prefix is {prefix!r}, expected one text: make a dataset for each prefix")
    text = prefix.strip().replace("{", "{{").replace("}", "}}")
    return f"{text} " if text else ""


def _checked_templates(templates: Sequence[str]) -> Sequence[str]:
    expected = "a list of sentences with {A}, {B} and {S2}"
    sentences = listed(templates, expected)
    if not sentences:
        raise ValueError(f"templates is [], expected {expected}")
    known = {"A", "B", "S2", "PLACE", "OBJECT"}
    for template in sentences:
        found = set(task_templates.slots(template))
        if not {"A", "B", "S2"} <= found <= known:
            raise ValueError(
                f"the template {template!r} has the slots {sorted(found)}, expected {{A}}, {{B}} and {{S2}}, and "
                "{PLACE} and {OBJECT} if wanted"
            )
    return sentences
