"""Shows cards of heads in a notebook, as one HTML table: a row per head, its sentences, and how to read the numbers."""

from __future__ import annotations

import math

from actpatch.results.cards import PARTS, SCORES, HeadCard, HeadCards
from actpatch.results.cards_text import DIRECTIONS, describe_cards, effect_text, legend
from actpatch.results.html import TABLES, texts


def cards_html(cards: HeadCards) -> str:
    """The table of all cards."""
    columns = card_columns(cards)
    return TABLES.render(
        "table.html",
        caption=texts(describe_cards(cards)),
        columns=texts(columns),
        rows=[texts(cells) for cells in zip(*columns.values())],
        note=texts([" ".join(legend(cards))])[0],
    )


def card_columns(cards: HeadCards) -> dict[str, list[str]]:
    """Heading -> a cell per card: effects of the output, what the parts carry, attention, scores, weights, words."""
    columns = {"head": cards.labels}
    for direction in DIRECTIONS:
        for part in PARTS:
            columns[f"{part}, {direction}"] = [effect_text(card.effect(part, direction)) for card in cards]
    columns["attention, clean / corrupted"] = ["; ".join(_attention(card)) for card in cards]
    for field, name in SCORES.items():
        columns[name] = [_number(getattr(card, field)) for card in cards]
    columns["copies"] = ["; ".join(f"{each.tokens} {each.copied:.2f}" for each in card.copying) for card in cards]
    columns["suppresses"] = ["; ".join(f"{each.tokens} {each.suppressed:.2f}" for each in card.copying) for card in cards]
    columns["OV eigenvalues"] = [_number(card.eigenvalue_score) for card in cards]
    columns["query · key"] = [
        "; ".join(f"{each.query} → {each.key} {each.score:+.2f}" for each in card.query_key) for card in cards
    ]
    columns["not said"] = ["; ".join(f"{what}: {why}" for what, why in card.absent.items()) for card in cards]
    columns["in words"] = [card.summary for card in cards]
    return {heading: cells for heading, cells in columns.items() if any(cells)}


def _attention(card: HeadCard) -> list[str]:
    return [f"{each.query} → {each.key} {each.clean:.2f} / {each.corrupted:.2f}" for each in card.attention]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
