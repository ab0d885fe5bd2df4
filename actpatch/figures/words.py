"""The words of figures and of the report: labels, units and hover texts, escaped for HTML. Knows nothing of drawing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actpatch.core.estimate_words import estimated_by, named, named_with_method
from actpatch.core.estimates import Estimate
from actpatch.core.sites import Patch, Site
from actpatch.core.text import count, escaped, signed
from actpatch.results.items import HeadPatchingResult
from actpatch.results.patches import places_of
from actpatch.results.shapes import LayerResults, SweepResults
from actpatch.results.sweep import NOT_MATCHED, Sweep

NO_PARTNER = "∅"
"""What is shown in the place of a token that has no partner in the other prompt."""


def head_kind(heads: Sequence[HeadPatchingResult]) -> str:
    return "key-value head" if heads[0].is_key_value_head else "head"


def labels_of(results: SweepResults) -> list[str]:
    """What each patch is called on a figure: hook points by their short name, `L3 attn_out`."""
    if isinstance(results, LayerResults):
        return [_without_position(patch) for patch in results.sweep.patches]
    return results.labels


def _without_position(patch: Patch) -> str:
    """The patch's label without its position, which the subtitle tells."""
    sites = dict.fromkeys(dataclasses.replace(site, position=None, position_name=None) for site in patch.sites)
    return dataclasses.replace(patch, sites=tuple(sites)).label


def metric_name(sweep: Sweep) -> str:
    notes = [part for part in (sweep.unit, "" if sweep.more_is_better else "less is better") if part]
    return f"{sweep.metric} ({', '.join(notes)})" if notes else sweep.metric


def metric_unit(sweep: Sweep | None) -> str:
    return f" {escaped(sweep.unit)}" if sweep and sweep.unit else ""


def pairs_used(usable: Any) -> str:
    pairs = count(len(usable), "pair")
    return pairs if all(usable) else f"{sum(usable)} usable of {pairs}"


def _scale(sweep: Sweep) -> str:
    return "0 = corrupted, 1 = clean" if sweep.direction == "denoising" else "0 = clean, 1 = corrupted"


def effect_name(sweep: Sweep) -> str:
    """What an axis of effects shows."""
    return named_with_method(sweep.estimate, more=_scale(sweep))


def effect_line(effect: float, estimate: Estimate | None) -> str:
    """The line of a hover text with an effect."""
    return f"{named(estimate)} {signed(effect)}{f' ({estimate.method})' if estimate else ''}"


def scale_title(estimate: Estimate | None) -> str:
    """What stands above a colour bar, in short lines."""
    return "effect" if estimate is None else f"estimated<br>effect<br>({estimate.method})"


def patched_name(estimate: Estimate | None) -> str:
    """What the metric of a patched run is called."""
    return "patched" if estimate is None else "patched, estimated"


def context(sweep: Sweep) -> dict[str, str]:
    """What the numbers rest on, by part; a part is empty where there is nothing to tell."""
    known, of_patches = places_of(sweep.patches)
    places = {tuple(dict.fromkeys(map(_place, known[number]))) for number in set(of_patches.tolist())}
    where = places.pop() if len(places) == 1 else ("",)
    return {
        "estimate": estimated_by(sweep.estimate),
        "model": sweep.model,
        "task": sweep.task,
        "direction": f"{sweep.direction}: {sweep.intervention}",
        "path": sweep.path,
        "scale": f"{named(sweep.estimate)} {_scale(sweep)}",
        "metric": metric_name(sweep),
        "pairs": pairs_used(sweep.usable),
        "gradient": "" if sweep.estimate is None else sweep.estimate.gradient,
        "noise": f"corrupted by {sweep.noise}" if sweep.noise else "",
        "window": f"windows of {sweep.window} layers" if sweep.window > 1 else "",
        "place": " and ".join(where),
    }


def told(sweep: Sweep, significance: str = "", *, scale: bool = False) -> list[str]:
    """What the numbers rest on, the most important first.

    Args:
        sweep: the sweep.
        significance: how what is significant can be told (`Certainty.note`).
        scale: whether to say what effects of 0 and 1 are, where no axis does.
    """
    parts = context(sweep)
    if not scale:
        del parts["scale"]
    first = [parts.pop(name) for name in ("estimate", "model", "task", "direction", "path", "metric", "pairs")]
    return [part for part in [*first, significance, *parts.values()] if part]


def _place(site: Site) -> str:
    if site.position_name is not None:
        return f"position {site.position_name}"
    if isinstance(site.position, tuple):
        several = any(isinstance(at, tuple) for at in site.position)
        return "positions of each pair's own" if several else "one position per pair"
    return "" if site.position is None else f"position {site.position}"


def hovers(labels: Sequence[str], sweep: Sweep, lines_of: Callable[[int], list[str]]) -> list[str]:
    """A text per patch: effect, what `lines_of` says of how sure it is, and metrics, means over the usable pairs."""
    usable = sweep.usable
    clean, corrupted = sweep.clean[usable].mean(), sweep.corrupted[usable].mean()
    rows = zip(labels, sweep.effects, sweep.patched[:, usable].mean(axis=1))
    unmatched, unit, estimate, pairs = sweep.unmatched, metric_unit(sweep), sweep.estimate, pairs_used(usable)
    return [
        f"<b>{escaped(label)}</b><br>{NOT_MATCHED}: no partner in the other run"
        if unmatched[i]
        else _hover(label, (effect, estimate), lines_of(i), (clean, corrupted, patched), unit, pairs)
        for i, (label, effect, patched) in enumerate(rows)
    ]


def head_hover(head: HeadPatchingResult) -> str:
    """The text of a head of which nothing else is known."""
    metrics = (head.clean_metric, head.corrupted_metric, head.patched_metric)
    pairs = pairs_used(~np.isnan(head.pair_effects))
    return _hover(head.label, (head.effect, head.estimate), [], metrics, "", pairs)


def _hover(
    label: str,
    effect: tuple[float, Estimate | None],
    lines: list[str],
    metrics: Sequence[float],
    unit: str,
    pairs: str,
) -> str:
    names = ("clean", "corrupted", patched_name(effect[1]))
    raw = [f"{name} {signed(value)}{unit}" for name, value in zip(names, metrics)]
    return "<br>".join([f"<b>{escaped(label)}</b>", effect_line(*effect), *lines, *raw, pairs])


def token_labels(
    clean: Sequence[str], corrupted: Sequence[str], shown: Sequence[int], differing: Sequence[int]
) -> list[str]:
    """A tick label per position shown, with the tokens of both prompts; bold where the prompts differ."""
    labels = [f"{at}: {token_at(at, clean, corrupted, short_token)}" for at in shown]
    return [f"<b>{label}</b>" if at in differing else label for at, label in zip(shown, labels)]


def token_at(position: int, clean: Sequence[str], corrupted: Sequence[str], show: Callable[[str], str]) -> str:
    """The clean token, with the corrupted one where that is another."""
    before, after = (tokens[position] if position < len(tokens) else "" for tokens in (clean, corrupted))
    return escaped(show(before) if before == after else f"{show(before)}→{show(after)}")


def short_token(token: str) -> str:
    """Fit for a tick label; blank tokens become visible."""
    text = token.strip() or repr(token)
    return text if len(text) <= 14 else f"{text[:13]}…"
