"""Shows cards of heads in a notebook, as one HTML table: a column per head, its numbers, its sentences, the legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from actpatch.core.text import number, with_minus
from actpatch.results.cards import PARTS, SCORES, HeadCard, HeadCards
from actpatch.results.cards_text import DIRECTIONS, describe_cards, effect_text, legend, two_places
from actpatch.results.html import TABLES, texts


def cards_html(cards: HeadCards) -> str:
    """The table of all cards."""
    return TABLES.render(
        "table.html",
        caption=texts(map(with_minus, describe_cards(cards))),
        columns=texts(["", *cards.labels]),
        rows=[texts([heading, *map(with_minus, cells)]) for heading, cells in _rows(cards).items()],
        note=texts([" ".join(legend(cards))])[0],
    )


def _rows(cards: HeadCards) -> dict[str, list[str]]:
    """Heading -> a cell per card, empty where the card has no such number."""
    rows = {"in words": [card.summary for card in cards]}
    for part in PARTS:
        for direction in DIRECTIONS:
            rows[f"{part}, {direction}"] = [effect_text(card.effect(part, direction)) for card in cards]
    rows |= _named(
        cards,
        lambda card: (
            (f"output at {p.position}", f"{two_places(p.denoising)} / {two_places(p.noising)}") for p in card.places
        ),
    )
    rows |= _named(
        cards,
        lambda card: (
            (f"attention {each.query} → {each.key}, clean / corrupted", f"{each.clean:.2f} / {each.corrupted:.2f}")
            for each in card.attention
        ),
    )
    for field, name in SCORES.items():
        rows[f"random tokens: {name}"] = [_known(getattr(card, field), number) for card in cards]
    rows |= _named(
        cards,
        lambda card: (
            (f"copies / suppresses {each.tokens}", f"{each.copied:.2f} / {each.suppressed:.2f}")
            for each in card.copying
        ),
    )
    rows["OV eigenvalues"] = [_known(card.eigenvalue_score, two_places) for card in cards]
    rows |= _named(
        cards,
        lambda card: ((f"query · key {each.query} → {each.key}", two_places(each.score)) for each in card.query_key),
    )
    rows |= _named(cards, lambda card: ((f"no {what}", why) for what, why in card.absent.items()))
    return {heading: cells for heading, cells in rows.items() if any(cells)}


def _named(cards: HeadCards, cells_of: Callable[[HeadCard], Iterable[tuple[str, str]]]) -> dict[str, list[str]]:
    """Rows of what some cards have and others may not."""
    found = [dict(cells_of(card)) for card in cards]
    return {heading: [cells.get(heading, "") for cells in found] for cells in found for heading in cells}


def _known(value: float, shown: Callable[[float], str]) -> str:
    return "" if math.isnan(value) else shown(value)
