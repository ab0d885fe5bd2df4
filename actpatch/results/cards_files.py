"""Cards of heads as rows of a table and as plain values of a file, which are read back exactly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from actpatch.core.direction import DIRECTIONS
from actpatch.results.cards import (
    SCORES,
    Copying,
    HeadCard,
    HeadCards,
    PartEffect,
    PlaceEffect,
    QueryKeyScore,
    RoleAttention,
)
from actpatch.results.files import read_stored


def read_cards(path: str | Path) -> HeadCards:
    """The cards that `HeadCards.save` wrote.

    Raises:
        OSError: where the file cannot be read.
        ValueError: where it holds no cards, or is damaged.
    """
    stored = read_stored(path)
    try:
        return _read(HeadCards, stored["cards"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): describe the heads again") from error


def card_rows(card: HeadCard) -> Iterator[dict[str, Any]]:
    for part in card.effects:
        sure = {name: getattr(part, name) for name in ("low", "high", "p_corrected", "significant")}
        yield {"measure": "effect", "of": part.part, "run": part.direction, "value": part.effect, **sure}
    for place in card.places:
        for direction in DIRECTIONS:
            yield {"measure": "effect at", "of": place.position, "run": direction, "value": getattr(place, direction)}
    for each in card.attention:
        for run in ("clean", "corrupted"):
            yield {"measure": "attention", "of": each.query, "key": each.key, "run": run, "value": getattr(each, run)}
    for score in SCORES:
        yield {"measure": "score", "of": SCORES[score], "value": getattr(card, score)}
    for tokens in card.copying:
        for measure in ("copied", "suppressed"):
            yield {"measure": measure, "of": tokens.tokens, "value": getattr(tokens, measure)}
    yield {"measure": "eigenvalue score", "value": card.eigenvalue_score}
    for pair in card.query_key:
        yield {"measure": "query-key score", "of": pair.query, "key": pair.key, "value": pair.score}


def plain(value: Any) -> Any:
    """Values as JSON has them: numbers that are not finite as texts."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


_ITEMS: dict[str, type] = {
    "cards": HeadCard,
    "effects": PartEffect,
    "places": PlaceEffect,
    "attention": RoleAttention,
    "copying": Copying,
    "query_key": QueryKeyScore,
}
"""Fields that hold several values -> what these are."""


def _read(kind: Callable[..., Any], stored: Mapping[str, Any]) -> Any:
    """The value of this class that `plain` made these of."""
    fields: dict[str, Any] = {}
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = stored[f.name]
        if isinstance(value, list):
            item = _ITEMS.get(f.name)
            value = tuple(value if item is None else (_read(item, one) for one in value))
        fields[f.name] = float(value) if f.type == "float" else value
    return kind(**fields)
