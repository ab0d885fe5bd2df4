"""Which words matter?  Prompts as strips of tokens, coloured by what patching each position does to that very pair.

A strip has the clean token above the corrupted one, framed where the two differ. Its colour is the position's effect in
the layer where that is largest, not the sum over layers: the residual stream restores the metric in every layer, and a
sum would count that many times over.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from actpatch.figures.words import short_token
from actpatch.results.shapes import PositionResults
from actpatch.results.sweep import Sweep

MOST_STRIPS = 10
"""Pairs that are drawn."""
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


def strips_section(sweep: Sweep, positions: PositionResults | None) -> str:
    """The first pairs of a sweep as strips, coloured where `positions` are that sweep's."""
    components = [None] if positions is None else positions.components
    return "".join(_strips(sweep, positions, component) for component in components)


def position_effects(positions: PositionResults, component: str) -> list[dict[int, PositionEffect]]:
    """Of each pair: position, counted from the start -> the effect of largest size over the component's layers.

    Positions whose effect is NaN on a pair are left out of it.
    """
    sweep = positions.sweep
    found: list[dict[int, PositionEffect]] = [{} for _ in sweep.pair_indices]
    for patch, effects in zip(sweep.patches, sweep.pair_effects):
        site = patch.sites[0]
        if site.component != component or site.layer is None or site.position is None:
            continue
        each = site.position if isinstance(site.position, tuple) else (site.position,) * len(found)
        for pair, (at, effect) in enumerate(zip(each, effects.tolist())):
            at %= len(sweep.clean_tokens[pair])
            known = found[pair].get(at)
            if not np.isnan(effect) and (known is None or abs(effect) > abs(known.effect)):
                found[pair][at] = PositionEffect(effect, site.layer)
    return found


def _strips(sweep: Sweep, positions: PositionResults | None, component: str | None) -> str:
    shown = range(min(MOST_STRIPS, len(sweep.pair_indices)))
    nothing: list[dict[int, PositionEffect]] = [{} for _ in sweep.pair_indices]
    effects = nothing if positions is None or component is None else position_effects(positions, component)
    sizes = [abs(found.effect) for j in shown for found in effects[j].values()]
    limit = max([SMALLEST_RANGE, *sizes])
    parts = [_legend(sweep, component, limit)]
    if len(shown) < len(sweep.pair_indices):
        parts.append(f"<p>The first {len(shown)} of {len(sweep.pair_indices):,} pairs:</p>")
    for j in shown:
        parts.append(f"<h3>Pair {sweep.pair_indices[j]}</h3>")
        parts.append(_strip(sweep.clean_tokens[j], sweep.corrupted_tokens[j], effects[j], limit))
    return "".join(parts)


def _legend(sweep: Sweep, component: str | None, limit: float) -> str:
    what = "Above: clean token. Below: corrupted token."
    if sweep.noise:
        what = f"The corrupted run has the same tokens, with {html.escape(sweep.noise)}."
    told = [f'<p>{what} <span class="key differs">Framed</span>: the two differ.']
    if component is not None:
        told.append(
            f"The number is the effect of patching <b>{html.escape(component)}</b> at that position, on this pair "
            "alone, in the layer where it is largest (point at a token to see which). "
            '<span class="key positive">Blue</span> moves the metric towards the run the activation came from, '
            f'<span class="key negative">red</span> away from it; full colour is ±{limit:.2f}.'
        )
    return " ".join(told) + "</p>"


def _strip(clean: Sequence[str], corrupted: Sequence[str], effects: dict[int, PositionEffect], limit: float) -> str:
    pairs = list(zip_longest(clean, corrupted, fillvalue=""))
    items = [_token(at, *pair, effects.get(at), limit) for at, pair in enumerate(pairs[:MOST_TOKENS])]
    left_out = len(pairs) - len(items)
    more = f'<p class="soft">… and {left_out:,} more tokens</p>' if left_out else ""
    return f'<ol class="strip">{"".join(items)}</ol>{more}'


def _token(at: int, clean: str, corrupted: str, found: PositionEffect | None, limit: float) -> str:
    differs = clean != corrupted
    told = f"position {at}: {clean!r}" + (f", corrupted {corrupted!r}" if differs else "")
    kinds = ["differs"] if differs else []
    style, number = "", ""
    if found is not None:
        kinds.append("positive" if found.effect > 0 else "negative")
        style = f' style="--share: {STRONGEST_TINT * min(abs(found.effect) / limit, 1):.0f}%"'
        number = f'<span class="effect">{_signed(found.effect)}</span>'
        told += f"; effect {found.effect:+.3f} in layer {found.layer}"
    return (
        f'<li class="{" ".join(kinds)}"{style} title="{html.escape(told)}">'
        f'<span class="before">{html.escape(_shown(clean))}</span>'
        f'<span class="after">{html.escape(_shown(corrupted))}</span>{number}</li>'
    )


def _signed(effect: float) -> str:
    """With a sign, unless it is 0 to two places."""
    return "0" if abs(effect) < 0.005 else f"{effect:+.2f}"


def _shown(token: str) -> str:
    """A token as it is drawn: short, and never nothing, which has no height."""
    return short_token(token) if token else "–"
