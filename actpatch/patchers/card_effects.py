"""What patching each part of some heads does, in both directions, from one sweep: the effects on their cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from actpatch.core.components import PATCH_TYPES
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.settings import Settings
from actpatch.patchers.experiment import run_sweeps
from actpatch.patchers.head_attention import Roles
from actpatch.results.cards import PARTS, PartEffect, PlaceEffect
from actpatch.results.items import head_label
from actpatch.results.sweep import Sweep
from actpatch.statistics.sites import SiteStatistics
from actpatch.tasks.encoding import EncodedPairs

Head: TypeAlias = tuple[int, int]
"""(layer, query head)."""


@dataclass(frozen=True)
class HeadEffects:
    """What patching the heads' parts does, and their outputs at single positions."""

    parts: dict[Head, tuple[PartEffect, ...]]
    places: dict[Head, tuple[PlaceEffect, ...]]
    queries: dict[Head, tuple[str, ...]]
    """Names of the positions that each head's attention is told from."""
    sweeps: list[Sweep]
    level: float
    notes: tuple[str, ...]


def head_effects(
    engine: PatchingEngine,
    pairs: EncodedPairs,
    heads: Sequence[Head],
    roles: Roles,
    settings: Settings,
    alpha: float,
) -> HeadEffects:
    """The effects of all parts of these heads, and of their outputs at each named position, with how sure they are."""
    sites = {(head, part): _site(engine, head, part) for head in heads for part in PARTS}
    at = {
        (head, name): replace(sites[head, "output"], position=place, position_name=name)
        for head in heads
        for name, place in roles.places.items()
    }
    of_parts = list(dict.fromkeys(sites.values()))  # heads that share keys and values share their patches
    patches = [Patch((site,)) for site in (*of_parts, *at.values())]
    sweeps = run_sweeps(engine, pairs, lambda _: patches, settings)
    parts: dict[Head, list[PartEffect]] = {head: [] for head in heads}
    notes: dict[str, None] = {}
    level = 0.95
    for sweep in sweeps:
        tested = replace(sweep.of_patches(range(len(of_parts))), whole=None, numbers=())  # corrected over the parts
        statistics: SiteStatistics | None = None
        try:
            statistics = tested.statistics(alpha=alpha)
            level = statistics.level
            notes |= dict.fromkeys(statistics.notes)
        except ValueError as error:
            notes[f"no intervals and no significance: {error}"] = None
        for (head, part), site in sites.items():
            i = of_parts.index(site)
            sure = {} if statistics is None else _sure(statistics, i)
            parts[head].append(PartEffect(part, sweep.direction, float(tested.effects[i]), **sure))
    places: dict[Head, list[PlaceEffect]] = {head: [] for head in heads}
    for i, (head, name) in enumerate(at, start=len(of_parts)):
        places[head].append(PlaceEffect(name, *(float(sweep.effects[i]) for sweep in sweeps)))
    return HeadEffects(
        {head: tuple(found) for head, found in parts.items()},
        {head: tuple(found) for head, found in places.items()},
        {head: _queries(places[head], roles) for head in heads},
        sweeps,
        level,
        tuple(notes),
    )


def _sure(statistics: SiteStatistics, i: int) -> dict[str, Any]:
    known = statistics.n_pairs > 1
    return {
        "low": float(statistics.low[i]),
        "high": float(statistics.high[i]),
        "p_corrected": float(statistics.p_corrected[i]) if known else np.nan,
        "significant": bool(statistics.significant[i]) and known,
    }


def _queries(places: Sequence[PlaceEffect], roles: Roles) -> tuple[str, ...]:
    """END, and before it the position at which patching the output has most effect, where that is another one."""
    best = max(places, key=lambda place: place.size if place.size == place.size else 0.0, default=None)
    return (roles.end,) if best is None else tuple(dict.fromkeys((best.position, roles.end)))


def _site(engine: PatchingEngine, head: Head, part: str) -> Site:
    component = PATCH_TYPES[part]
    shared = key_value_head(engine, head) if component.per_key_value_head else None
    return Site(block_hook(head[0], component.name), head=head[1] if shared is None else shared)


def key_value_head(engine: PatchingEngine, head: Head) -> int | None:
    """The key-value head whose keys and values a query head shares; None where each has its own."""
    if engine.n_key_value_heads == engine.n_heads:
        return None
    return head[1] * engine.n_key_value_heads // engine.n_heads


def sharing(engine: PatchingEngine, head: Head) -> tuple[str, ...]:
    """Labels of the other heads that share a head's keys and values."""
    own = key_value_head(engine, head)
    others = ((head[0], other) for other in range(engine.n_heads) if other != head[1] and own is not None)
    return tuple(head_label(*other, False) for other in others if key_value_head(engine, other) == own)
