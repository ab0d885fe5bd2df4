"""The section of a report on what single heads do: a row per head with its sentences, and all numbers, folded away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actpatch.core.text import with_minus
from actpatch.report.parts import table
from actpatch.report.rendering import REPORT
from actpatch.results.cards import HeadCards
from actpatch.results.cards_text import DIRECTIONS, card_text, describe_cards, effect_text, legend

if TYPE_CHECKING:
    from markupsafe import Markup


def cards_section(cards: HeadCards) -> Markup:
    """What was asked, a table of heads, each head's card, and how its numbers are to be read."""
    heads = ["Head", *(f"Output, {direction}" for direction in DIRECTIONS), "In words"]
    rows = [
        [
            card.label,
            *(with_minus(effect_text(card.effect("output", direction))) for direction in DIRECTIONS),
            with_minus(card.summary),
        ]
        for card in cards
    ]
    return REPORT.render(
        "cards.html",
        asked=[with_minus(line) for line in describe_cards(cards)],
        table=table(heads, rows, "What each head does", kind="sentences", texts=heads[-1:]),
        cards=[(card.label, with_minus(card_text(card))) for card in cards],
        legend=legend(cards),
    )
