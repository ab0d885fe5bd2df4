"""How is it said?  The words of figures and of the report: labels, units, hover texts, all escaped for HTML."""

from __future__ import annotations

import dataclasses
import html
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from patching_results import HeadPatchingResult
from patching_sites import Patch, Site
from patching_sweep import Sweep


def escaped(text: str) -> str:
    """Plotly and browsers show it as it is: no tags, no entities, and no `$`, which starts TeX in notebooks."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def head_kind(heads: Sequence[HeadPatchingResult]) -> str:
    return "key-value head" if heads[0].is_key_value_head else "head"


def patch_label(patch: Patch) -> str:
    """The patch without its position, which the subtitle or an axis tells."""
    sites = dict.fromkeys(dataclasses.replace(site, position=None, position_name=None) for site in patch.sites)
    return dataclasses.replace(patch, sites=tuple(sites)).label


def metric_name(sweep: Sweep) -> str:
    told = [part for part in (sweep.unit, "" if sweep.more_is_better else "less is better") if part]
    return f"{sweep.metric} ({', '.join(told)})" if told else sweep.metric


def metric_unit(sweep: Sweep | None) -> str:
    return f" {escaped(sweep.unit)}" if sweep and sweep.unit else ""


def pairs_used(usable: Any) -> str:
    pairs = f"{len(usable)} pair{'' if len(usable) == 1 else 's'}"
    return pairs if all(usable) else f"{sum(usable)} usable of {pairs}"


def _scale(sweep: Sweep) -> str:
    return "0 = corrupted, 1 = clean" if sweep.direction == "denoising" else "0 = clean, 1 = corrupted"


def effect_name(sweep: Sweep | None) -> str:
    return f"effect ({_scale(sweep)})" if sweep else "effect"


def context_line(sweep: Sweep, note: str) -> str:
    """Subtitle: what the numbers rest on, in lines that fit a phone and break between the parts."""
    places = {tuple(dict.fromkeys(map(_place, patch.sites))) for patch in sweep.patches}
    where = places.pop() if len(places) == 1 else ("",)
    parts = [
        sweep.model,
        f"{sweep.direction}: {sweep.intervention}",
        f"corrupted by {sweep.noise}" if sweep.noise else "",
        f"effect {_scale(sweep)}",
        sweep.task,
        pairs_used(sweep.usable),
        metric_name(sweep),
        f"windows of {sweep.window} layers" if sweep.window > 1 else "",
        " and ".join(where),
        note,
    ]
    unbroken = [part.replace(" ", "\xa0") if len(part) <= 52 else part for part in parts if part]
    lines = textwrap.wrap(" · ".join(unbroken), 56, break_on_hyphens=False)
    return "<br>".join(escaped(line.replace("\xa0", " ").strip(" ·")) for line in lines)


def _place(site: Site) -> str:
    if site.position_name is not None:
        return f"position {site.position_name}"
    if isinstance(site.position, tuple):
        return "one position per pair"
    return "" if site.position is None else f"position {site.position}"


def _hover(label: str, effect: float, metrics: Sequence[float], sweep: Sweep | None, usable: Any) -> str:
    named = zip(("clean", "corrupted", "patched"), metrics)
    raw = [f"{name} {value:+.3f}{metric_unit(sweep)}" for name, value in named]
    return "<br>".join([f"<b>{escaped(label)}</b>", f"effect {effect:+.3f}", *raw, pairs_used(usable)])


def head_hover(head: HeadPatchingResult, sweep: Sweep | None) -> str:
    metrics = (head.clean_metric, head.corrupted_metric, head.patched_metric)
    return _hover(head.label, head.effect, metrics, sweep, ~np.isnan(head.pair_effects))


def site_hovers(sweep: Sweep) -> list[tuple[Site, str]]:
    """The first site of each patch and its text; metrics are means over the usable pairs, as in the effects."""
    usable = sweep.usable
    clean, corrupted = sweep.clean[usable].mean(), sweep.corrupted[usable].mean()
    rows = zip(sweep.patches, sweep.effects, sweep.patched[:, usable].mean(axis=1))
    return [(p.sites[0], _hover(patch_label(p), effect, (clean, corrupted, m), sweep, usable)) for p, effect, m in rows]


def token_at(position: int, clean: Sequence[str], corrupted: Sequence[str], show: Callable[[str], str]) -> str:
    """The clean token, with the corrupted one where that is another."""
    before, after = (tokens[position] if position < len(tokens) else "" for tokens in (clean, corrupted))
    return escaped(show(before) if before == after else f"{show(before)}→{show(after)}")


def short_token(token: str) -> str:
    """Fit for a tick label; blank tokens become visible."""
    text = token.strip() or repr(token)
    return text if len(text) <= 14 else f"{text[:13]}…"
