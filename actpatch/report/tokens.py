"""Prompts as strips of tokens, coloured by what patching each position does to that very pair.

A strip has the clean token above the corrupted one, framed where the two differ. Its colour is the position's effect in
the layer where that is largest, not the sum over layers: the residual stream restores the metric in every layer, and a
sum would count that many times over. Knows prompts and positions; it knows nothing of layers × heads or of figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actpatch.core.alignment import span_of
from actpatch.core.estimate_words import estimated_by, named
from actpatch.core.text import signed
from actpatch.figures.words import NO_PARTNER, short_token
from actpatch.report.rendering import REPORT
from actpatch.results.positions import PositionResults
from actpatch.results.sweep import Sweep

if TYPE_CHECKING:
    from markupsafe import Markup

MOST_STRIPS = 10
"""Pairs that are drawn."""
STRIPS_AT_ONCE = 2
"""Those of them that are not folded away."""
MOST_TOKENS = 200
"""Tokens of each that are drawn."""
STRONGEST_TINT = 60
"""Percentage of colour at the largest effect: text stays legible on it, on white and on black."""
SMALLEST_RANGE = 0.05
"""Colours span at least this effect, so that strips on which nothing matters look pale."""


@dataclass(frozen=True)
class PositionEffect:
    """What patching one position of one pair does, in the layer in which it does most."""

    effect: float
    layer: int


def strips_section(sweep: Sweep, positions: PositionResults | None) -> Markup:
    """The first pairs of a sweep as strips, coloured where `positions` are that sweep's."""
    from markupsafe import Markup

    components = [None] if positions is None else positions.components
    return Markup().join(_strips(sweep, positions, component) for component in components)


def position_effects(positions: PositionResults, component: str) -> list[dict[int, PositionEffect]]:
    """Of each pair: position -> the effect of largest size over the component's layers.

    Positions are counted from the start of the prompt that is patched. Those whose effect is NaN on a pair are left out
    of it, and so are those that were patched with others.
    """
    sweep = positions.sweep
    largest: list[dict[int, PositionEffect]] = [{} for _ in sweep.pair_indices]
    for patch, effects in zip(sweep.patches, sweep.pair_effects):
        site = patch.sites[0]
        if site.component != component or site.layer is None or site.position is None or len(patch.centre) > 1:
            continue
        each = site.position if isinstance(site.position, tuple) else (site.position,) * len(largest)
        for pair, (at, effect) in enumerate(zip(each, effects.tolist())):
            for position in span_of(at):
                place = position % len(sweep.base_tokens[pair])
                known = largest[pair].get(place)
                if not np.isnan(effect) and (known is None or abs(effect) > abs(known.effect)):
                    largest[pair][place] = PositionEffect(effect, site.layer)
    return largest


def _strips(sweep: Sweep, positions: PositionResults | None, component: str | None) -> Markup:
    drawn = range(min(MOST_STRIPS, len(sweep.pair_indices)))
    nothing: list[dict[int, PositionEffect]] = [{} for _ in sweep.pair_indices]
    effects = nothing if positions is None or component is None else position_effects(positions, component)
    limit = max([SMALLEST_RANGE, *(abs(each.effect) for pair in drawn for each in effects[pair].values())])
    return REPORT.render(
        "strips.html",
        noise=sweep.noise,
        component=component,
        effect=named(sweep.estimate),
        method=estimated_by(sweep.estimate),
        limit=f"{limit:.2f}",
        n_pairs=len(sweep.pair_indices),
        at_once=STRIPS_AT_ONCE,
        strips=[_strip(sweep, pair, effects[pair], limit) for pair in drawn],
    )


def _strip(sweep: Sweep, pair: int, effects: dict[int, PositionEffect], limit: float) -> dict[str, Any]:
    clean, corrupted = ([NO_PARTNER if token is None else token for token in side] for side in sweep.tokens_at[pair])
    tokens, effect = list(zip(clean, corrupted)), named(sweep.estimate)
    return {
        "pair": sweep.pair_indices[pair],
        "tokens": [_token(at, *both, effects.get(at), limit, effect) for at, both in enumerate(tokens[:MOST_TOKENS])],
        "left_out": max(len(tokens) - MOST_TOKENS, 0),
    }


def _token(
    at: int, clean: str, corrupted: str, position: PositionEffect | None, limit: float, effect: str
) -> dict[str, str]:
    differs = clean != corrupted
    description = f"position {at}: {clean!r}" + (f", corrupted {corrupted!r}" if differs else "")
    kinds = ["differs"] if differs else []
    share, number = "", ""
    if position is not None:
        kinds.append("positive" if position.effect > 0 else "negative")
        share = f"{STRONGEST_TINT * min(abs(position.effect) / limit, 1):.0f}%"
        number = _signed(position.effect)
        description += f"; {effect} {signed(position.effect)} in layer {position.layer}"
    return {
        "kinds": " ".join(kinds),
        "share": share,
        "description": description,
        "clean": _visible(clean),
        "corrupted": _visible(corrupted),
        "effect": number,
    }


def _signed(effect: float) -> str:
    """With a sign, unless it is 0 to two places."""
    return "0" if abs(effect) < 0.005 else signed(effect, 2)


def _visible(token: str) -> str:
    """A token as it is drawn: short, and never nothing, which has no height."""
    return short_token(token) if token else "–"
