"""Says in one sentence what an experiment found, and no more than its statistics carry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from actpatch.core.edge_patches import EdgePatches
from actpatch.core.estimate_words import estimated_by, untested
from actpatch.core.text import count, number
from actpatch.results.baselines import baseline_findings
from actpatch.results.both import BothDirections
from actpatch.results.patches import common
from actpatch.results.shapes import LayerResults, RowResults, SweepResults
from actpatch.results.sweep import Sweep
from actpatch.statistics.groups import GroupDifferences
from actpatch.statistics.sites import SiteStatistics

_WHOLE_STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Components that carry all that is before them: that they restore a behaviour is no finding."""
_IN_WORDS = {
    "attn_out": "attention of layer {}",
    "mlp_out": "the MLP of layer {}",
    "resid_pre": "the residual stream before layer {}",
    "resid_mid": "the residual stream after the attention of layer {}",
    "resid_post": "the residual stream after layer {}",
}
TOLD_FIRST = 0.25
"""From this on a difference of a site's effects between groups of pairs is told in the place of its mean."""


def headline(*results: SweepResults | BothDirections) -> str:
    """What these results say, in one sentence: how many sites matter, and how much the largest of them restores.

    "8 of 16 heads matter (corrected p ≤ 0.05, 30 pairs): L1H0 restores 0.61 [0.55, 0.67] of the difference". Only sites
    that are significant after correction over their map are said to matter. Of estimates it says what patches
    would do: "estimated by atp, 8 of 16 heads would matter (…)". Where effects of a site differ between groups of
    pairs, both are given in the place of its mean. Where the pairs carry no conclusion, that is what is said.

    Args:
        results: of one experiment or of several, for instance heads and layers; of both directions each is told.

    Raises:
        ValueError: where no results are given.
    """
    if not results:
        raise ValueError("headline was given no results, expected what an experiment returns")
    each = [one for given in results for one in _directions(given)]
    directions = {one.sweep.direction for one in each}
    parts = [
        f"{one.sweep.direction}: {part}" if len(directions) > 1 else part
        for i, one in enumerate(each)
        for part in _told(one, counts=i == 0 or one.sweep.direction != each[i - 1].sweep.direction)
    ]
    sentence = "; ".join(dict.fromkeys(parts))
    return sentence[:1].upper() + sentence[1:]


def _directions(results: SweepResults | BothDirections) -> tuple[SweepResults, ...]:
    return (results.denoising, results.noising) if isinstance(results, BothDirections) else (results,)


def _told(results: SweepResults, counts: bool) -> Iterator[str]:
    """What is said of one sweep.

    Args:
        results: the results of the sweep.
        counts: whether it is said how many sites matter, and not of the largest alone.
    """
    sweep, kind = results.sweep, results.kind
    faults = [finding for finding in baseline_findings(sweep) if finding.severity == "fault"]
    if faults:
        yield f"these pairs carry no conclusion: {faults[0].what}"
        return
    try:
        statistics = sweep.statistics()
    except ValueError as error:
        yield f"nothing can be said of {kind}s: {error}"
        return
    chosen = f" chosen out of {sweep.larger.n_patches:,}" if sweep.larger else ""
    sites, pairs = count(len(sweep.patches), kind) + chosen, count(statistics.n_pairs, "pair")
    words = _Words.of(sweep)
    if untested(sweep.estimate):
        everything = np.ones(len(sweep.patches), dtype=bool)
        yield f"{words.start}of {sites}, {_largest(results, everything, statistics)} of the difference"
        return
    if not statistics.tells_significance:
        yield f"{words.start}{pairs} cannot tell which of {sites} {words.verb('matter', len(sweep.patches))}"
        return
    level = f"{words.test} ≤ {statistics.alpha:g}, {pairs}"
    differing = _differing(statistics.differences, len(sweep.patches))
    if statistics.differences is not None and differing.any():
        site = int(np.argmax(np.where(differing, statistics.differences.spread, -1)))
        yield (
            f"{words.start}{differing.sum()} of {sites} {words.verb('act', differing.sum())} otherwise in one group of "
            f"pairs than in another: {_by_group(results, site, statistics.differences)}"
        )
    alike = statistics.significant & ~differing
    if not statistics.significant.any():
        yield f"{words.start}none of {sites} has a significant mean effect ({level})"
    elif alike.any():
        others = f"{'other ' if differing.any() else ''}{kind}"
        matter = f"{words.start}{alike.sum()} of {count(len(alike) - differing.sum(), others)}{chosen}"
        matter += f" {words.verb('matter', alike.sum())} ({level}): "
        largest = _largest(results, alike, statistics)
        yield f"{matter}{largest} of the difference" if counts else f"{words.start}{largest}"


def _differing(differences: GroupDifferences | None, n_sites: int) -> Bool[np.ndarray, " site"]:
    """Sites whose effects differ between groups so much that their mean says little."""
    if differences is None:
        return np.zeros(n_sites, dtype=bool)
    return differences.significant & (differences.spread >= TOLD_FIRST)


def _by_group(results: SweepResults, site: int, differences: GroupDifferences) -> str:
    told = [
        f"{number(effect)} in {count(n, 'pair')} ({group})"
        for effect, group, n in zip(differences.effects[site], differences.groups, differences.n_pairs)
    ]
    each = f"{', '.join(told[:-1])} and {told[-1]}"
    return f"{_name(results, site)} {_Words.of(results.sweep).moves} {each} of the difference"


def _largest(results: SweepResults, among: Bool[np.ndarray, " site"], statistics: SiteStatistics) -> str:
    """The largest of these effects with its interval; not of the whole residual stream where there is another."""
    parts = among & ~_is_whole_stream(results.sweep)
    chosen = parts if parts.any() else among
    site = int(np.argmax(np.where(chosen, np.abs(statistics.effect), -1)))
    effect, low, high = (float(of[site]) for of in (statistics.effect, statistics.low, statistics.high))
    interval = f" [{number(low)}, {number(high)}]" if np.isfinite([low, high]).all() else ""
    share = f"{number(effect)}{interval}"
    alone = " alone" if isinstance(results, LayerResults) else ""
    words = _Words.of(results.sweep)
    if effect < 0:
        return f"{_name(results, site)}{alone} {words.verb('work', 1)} the other way, {share}"
    return f"{_name(results, site)}{alone} {words.moves} {share}"


def _name(results: SweepResults, site: int) -> str:
    patch = results.sweep.patches[site]
    if isinstance(results.sweep.patches, EdgePatches):
        return patch.label
    words = _IN_WORDS.get(_component(results.sweep, site) or "")
    layer = common(patch, lambda one: one.layer)
    if words is None or layer is None or patch.window > 1 or isinstance(results, RowResults):
        return results.labels[site]
    position = common(patch, lambda one: one.position_name or one.position)
    return words.format(layer) + ("" if position is None else f" at {position}")


def _is_whole_stream(sweep: Sweep) -> Bool[np.ndarray, " site"]:
    """Which patches replace all of the residual stream; an edge into the logits is what one writer alone adds to it."""
    if isinstance(sweep.patches, EdgePatches):
        return np.zeros(len(sweep.patches), dtype=bool)
    return np.array([_component(sweep, i) in _WHOLE_STREAM for i in range(len(sweep.patches))], dtype=bool)


def _component(sweep: Sweep, site: int) -> str | None:
    return common(sweep.patches[site], lambda one: one.component)


@dataclass(frozen=True)
class _Words:
    """How a sentence says what was measured, or what patches would do by an estimate."""

    start: str
    """What it begins with."""
    test: str
    """What is compared with a level."""
    moves: str
    """What a component does to the behaviour."""
    is_estimate: bool

    @classmethod
    def of(cls, sweep: Sweep) -> _Words:
        ablated = "" if sweep.direction == "denoising" or sweep.source_kind == "other run" else "when ablated "
        if sweep.estimate is None:
            moves = "restores" if sweep.direction == "denoising" else "takes away"
            return cls("", "corrected p", f"{ablated}{moves}", False)
        moves = "would restore" if sweep.direction == "denoising" else "would take away"
        if sweep.estimate.what.is_absolute:
            moves = "would move the metric most, either way, by"
        return cls(f"{estimated_by(sweep.estimate)}, ", "corrected p of the estimate", f"{ablated}{moves}", True)

    def verb(self, verb: str, n: int | np.integer) -> str:
        """A verb of so many components: `matters`, or `would matter`."""
        return f"would {verb}" if self.is_estimate else f"{verb}{'s' if n == 1 else ''}"
