"""Cards of attention heads: what each one does for a task, where it looks, and what its weights do. Plain values.

A card claims nothing by itself; `card.summary` puts its numbers into words, no more than they carry (`cards_text`).
Nothing here knows how the numbers were found; `patchers.cards` does, and says where each definition comes from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from actpatch.core.components import PATCH_TYPES
from actpatch.core.direction import Direction
from actpatch.core.heavy import pd
from actpatch.core.text import count, plain
from actpatch.results.files import write_csv, write_stored
from actpatch.results.items import head_label

PARTS = tuple(PATCH_TYPES)
"""What of a head is patched: its output, and the pattern, queries, keys and values that make it."""
SCORES = {"previous_token": "previous token", "duplicate_token": "duplicate token", "induction": "induction"}
"""Field of a card -> what its score on repeated random tokens is called."""


@dataclass(frozen=True)
class PartEffect:
    """Effect of patching one part of a head, in one direction, over the usable pairs."""

    part: str
    """`output`, `pattern`, `q`, `k` or `v`."""
    direction: Direction
    effect: float
    """Ratio of means (`results.sweep`); NaN where no pair is usable."""
    low: float = math.nan
    """Ends of its interval; NaN where there are too few pairs for one."""
    high: float = math.nan
    p_corrected: float = math.nan
    """p-value, corrected over all parts of all heads of these cards; NaN where there is none."""
    significant: bool = False
    """Whether that is at most `alpha`; False where it is not known."""


@dataclass(frozen=True)
class PlaceEffect:
    """Effect of patching a head's output at one position alone."""

    position: str
    denoising: float
    noising: float

    @property
    def size(self) -> float:
        """Mean |effect| of both directions."""
        return (abs(self.denoising) + abs(self.noising)) / 2


@dataclass(frozen=True)
class RoleAttention:
    """Attention weight from one position to another, mean over all pairs."""

    query: str
    key: str
    clean: float
    corrupted: float


@dataclass(frozen=True)
class Copying:
    """How many of some tokens a head's value and output weights copy (`patchers.head_weights`)."""

    tokens: str
    """The position that they stand at in the clean prompts, or `random tokens`."""
    copied: float
    """Share that is among the largest logits of what the head writes when it reads the token."""
    suppressed: float
    """Share that is among the smallest: the copy score with the sign of what is written turned around."""
    n_tokens: int


@dataclass(frozen=True)
class QueryKeyScore:
    """Raw query-key score of two tokens' embeddings, mean over the clean prompts (`patchers.head_weights`)."""

    query: str
    key: str
    score: float


@dataclass(frozen=True)
class HeadCard:
    """What is known of one attention head. Printed, it is a table of at most 80 columns."""

    layer: int
    head: int
    """Its number among the query heads."""
    effects: tuple[PartEffect, ...]
    metric: str
    """What the effects are shares of."""
    n_pairs: int
    """Pairs that the effects rest on: the usable ones."""
    alpha: float
    """Level of significance."""
    key_value_head: int | None = None
    """The key-value head whose keys and values it shares under grouped-query attention; None where they are its own."""
    shares_with: tuple[str, ...] = ()
    """The other heads that share them: patching k or v patches all of them."""
    places: tuple[PlaceEffect, ...] = ()
    """Its output patched at each named position; empty where the task names none."""
    attention: tuple[RoleAttention, ...] = ()
    previous_token: float = math.nan
    """Mean attention to the token before, on random tokens that come twice (`patchers.head_attention`)."""
    duplicate_token: float = math.nan
    """Mean attention of the repetition to the previous occurrence of the same token."""
    induction: float = math.nan
    """Mean attention of the repetition to the token after the previous occurrence."""
    copying: tuple[Copying, ...] = ()
    eigenvalue_score: float = math.nan
    """Σλ / Σ|λ| of W_E W_V W_O W_U: 1 where all eigenvalues are positive."""
    query_key: tuple[QueryKeyScore, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)
    """What could not be said -> why."""

    @property
    def label(self) -> str:
        return head_label(self.layer, self.head, False)

    def effect(self, part: str = "output", direction: Direction = "denoising") -> PartEffect:
        """The effect of patching this part in this direction."""
        return next(found for found in self.effects if (found.part, found.direction) == (part, direction))

    @property
    def main_query(self) -> str | None:
        """The position that its attention is told from first: where its output has most effect, else the last one."""
        queries = list(dict.fromkeys(each.query for each in self.attention))
        best = max(self.places, key=lambda place: place.size, default=None)
        if best is not None and best.position in queries:
            return best.position
        return queries[0] if queries else None

    @property
    def summary(self) -> str:
        """What the numbers say, in a few sentences; where they carry no claim, that."""
        from actpatch.results.cards_text import summary_of

        return summary_of(self)

    def __repr__(self) -> str:
        found = self.effect()
        return f"HeadCard({self.label}, output {plain(found.effect)} denoising, {count(self.n_pairs, 'pair')})"

    def __str__(self) -> str:
        from actpatch.results.cards_text import card_text

        return card_text(self)


@dataclass(frozen=True, eq=False, repr=False)
class HeadCards(Sequence[HeadCard]):
    """Cards of some heads of one model on one task, and what they rest on. Printed, at most 80 columns wide."""

    cards: tuple[HeadCard, ...]
    model: str
    """Name of the model."""
    task: str
    """Name of the dataset, with its corruption."""
    metric: str
    unit: str
    more_is_better: bool
    clean_metric: float
    """Mean over the usable pairs."""
    corrupted_metric: float
    pair_indices: tuple[int, ...]
    """Index of each pair in its dataset."""
    n_usable: int
    """Pairs whose baselines an effect can divide by."""
    varies: str
    """Which signal the corruption changes; empty where the dataset does not say."""
    level: float
    """Share of intervals meant to hold the true effect."""
    alpha: float
    correction: str
    """How p-values were corrected, over all parts of all these heads."""
    n_sequences: int
    """Sequences of random tokens that come twice; 0 where there are none."""
    sequence_length: int
    """Random tokens in each, before they come again."""
    seed: int
    """Seed of the random tokens."""
    top_k: int
    """A token is copied where it is among so many largest logits."""
    dtype: str = ""
    notes: tuple[str, ...] = ()
    """What a reader should know of how it was found."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that computed it."""

    def __len__(self) -> int:
        return len(self.cards)

    def __iter__(self) -> Iterator[HeadCard]:
        return iter(self.cards)

    @overload
    def __getitem__(self, which: int | str) -> HeadCard: ...

    @overload
    def __getitem__(self, which: slice) -> HeadCards: ...

    def __getitem__(self, which: Any) -> Any:
        """A card by its number or by its head's label (`cards["L1H2"]`), or the cards of a slice.

        Raises:
            KeyError: for a label that has no card.
        """
        if isinstance(which, slice):
            return dataclasses.replace(self, cards=self.cards[which])
        if isinstance(which, str):
            if which not in self.labels:
                raise KeyError(f"no card of {which!r}: there are {', '.join(self.labels)}")
            return self.cards[self.labels.index(which)]
        return self.cards[which]

    @property
    def labels(self) -> list[str]:
        return [card.label for card in self.cards]

    def __eq__(self, other: object) -> bool:
        """Whether everything is the same; NaN is the same as NaN."""
        from actpatch.results.cards_files import plain

        return plain(self) == plain(other) if isinstance(other, HeadCards) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.model, self.task, tuple(self.labels)))

    def __repr__(self) -> str:
        shown = ", ".join(self.labels[:5]) + (" …" if len(self) > 5 else "")
        pairs = f"{self.n_usable} of {count(len(self.pair_indices), 'pair')}"
        return f"HeadCards({shown}, {self.task} on {self.model}, {pairs})"

    def __str__(self) -> str:
        from actpatch.results.cards_text import cards_text

        return cards_text(self)

    def _repr_html_(self) -> str:
        from actpatch.results.cards_html import cards_html

        return cards_html(self)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form, a row per number.

        Columns: `label`, `layer`, `head`; `measure` (`effect`, `effect at`, `attention`, `score`, `copied`,
        `suppressed`, `eigenvalue score` or `query-key score`); `of`, the part, position, score or tokens that it is of,
        and `key`, the position attended to, missing elsewhere; `run`, the direction, or `clean` or `corrupted`, missing
        elsewhere; the `value`, and of effects of parts `low`, `high`, `p_corrected` and `significant`.
        """
        from actpatch.results.cards_files import card_rows

        rows = [
            {"label": card.label, "layer": card.layer, "head": card.head, **row}
            for card in self
            for row in card_rows(card)
        ]
        texts = ["label", "measure", "of", "key", "run"]
        columns = ["label", "layer", "head", "measure", "of", "key", "run", "value", "low", "high", "p_corrected"]
        frame = pd.DataFrame(rows, columns=[*columns, "significant"])
        return frame.astype({**dict.fromkeys(texts, "string"), "significant": "boolean"})

    def to_csv(self, path: str | Path) -> Path:
        """Write the long table as CSV (`results.files.write_csv`)."""
        return write_csv(self.to_dataframe(), path)

    def save(self, path: str | Path) -> Path:
        """Write the cards as JSON; `load_results` reads them back, equal to these."""
        from actpatch.results.cards_files import plain

        return write_stored(type(self).__name__, {"cards": plain(self)}, path)
