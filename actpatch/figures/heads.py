"""Heads to be drawn, whether results of an experiment or a plain list picked from them, as one kind of value.

Knows what each head is called, how sure its effect is and what is told of it; it knows nothing of how heads are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

from actpatch.core.estimate_words import estimated_from, named_with_method
from actpatch.core.estimates import Estimate
from actpatch.core.text import escaped
from actpatch.figures.certainty import Certainty, certainty, unknown
from actpatch.figures.checks import checked_heads
from actpatch.figures.words import effect_name, head_hover, head_kind, hovers, labels_of, told
from actpatch.results.items import HeadPatchingResult
from actpatch.results.shapes import HeadResults
from actpatch.results.sweep import Sweep
from actpatch.statistics.sites import SiteStatistics


@dataclass(frozen=True)
class DrawnHeads:
    """Heads with all that figures tell of them."""

    heads: tuple[HeadPatchingResult, ...]
    sweep: Sweep | None
    """None for a plain list, which does not know what was run."""
    certainty: Certainty
    """An entry per patch."""
    texts: list[str]
    """A hover text per patch."""
    patches: dict[str, int]
    """Label of a head -> number of its patch."""

    @property
    def kind(self) -> str:
        return head_kind(self.heads)

    @property
    def patch_type(self) -> str:
        return escaped(self.heads[0].patch_type)

    @property
    def estimate(self) -> Estimate | None:
        """How the effects are estimated."""
        return self.heads[0].estimate

    @property
    def effect_name(self) -> str:
        """What an axis of effects shows."""
        return effect_name(self.sweep) if self.sweep else named_with_method(self.estimate)

    @property
    def pair_indices(self) -> Sequence[int]:
        return self.sweep.pair_indices if self.sweep else range(max(len(head.pair_effects) for head in self.heads))

    @property
    def n_usable(self) -> int:
        """Pairs that an effect could be computed for; 0 where that is not known."""
        return int(self.sweep.usable.sum()) if self.sweep else 0

    def told(self, significance: str, *, scale: bool = False) -> list[str]:
        """What the numbers rest on (`figures.words.told`); hardly anything where that is not known."""
        return told(self.sweep, significance, scale=scale) if self.sweep else [estimated_from(self.estimate)]


@singledispatch
def drawn_heads(results: object, caller: str, statistics: SiteStatistics | None = None) -> DrawnHeads:
    """What is given to a figure of heads; for another kind of results, register a function.

    Args:
        results: of an experiment, or a plain list.
        caller: the figure, for errors.
        statistics: those of the results.

    Raises:
        ValueError: where the results are no heads, are empty or hold no usable pair, mix patch types or repeat a head;
            where the statistics are those of other results, or were given with a plain list.
    """
    heads, _ = checked_heads(results, caller)  # type: ignore[arg-type]
    if statistics is not None:
        raise ValueError("statistics are of an experiment, these heads are of no one: pass the results")
    texts, patches = [head_hover(head) for head in heads], {head.label: i for i, head in enumerate(heads)}
    return DrawnHeads(tuple(heads), None, unknown(len(heads), ""), texts, patches)


@drawn_heads.register
def _(results: HeadResults, caller: str, statistics: SiteStatistics | None = None) -> DrawnHeads:
    heads, _ = checked_heads(results, caller)
    evidence = certainty(results.sweep, results.kind, statistics)
    texts = hovers(labels_of(results), results.sweep, evidence.lines)
    return DrawnHeads(
        tuple(heads), results.sweep, evidence, texts, {label: i for i, label in enumerate(results.labels)}
    )
