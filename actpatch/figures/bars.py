"""The largest effects and how far they hold: bars with intervals, attention against MLP, effects over pairs.

Knows results; it runs and computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actpatch.core.estimate_words import named_with_method, titled
from actpatch.core.estimates import Estimate
from actpatch.core.heavy import go
from actpatch.core.sites import block_hook
from actpatch.core.text import plural
from actpatch.figures.cells import STARS
from actpatch.figures.certainty import Certainty, certainty
from actpatch.figures.checks import Heads, check_effects, check_top_k, checked_layers, checked_sweep, known_heads
from actpatch.figures.colours import BLUE, BLUE_AREA, INK, ORANGE, RED
from actpatch.figures.frame import finish, height, step, thinned_note, thinned_pairs, width
from actpatch.figures.heads import drawn_heads
from actpatch.figures.ranking import largest, rows_axis, starred, strip
from actpatch.figures.words import effect_line, effect_name, escaped, hovers, labels_of, told
from actpatch.results.edges import EdgeResults
from actpatch.results.shapes import LayerResults, SweepResults
from actpatch.statistics.sites import SiteStatistics

WHISKER = {"type": "data", "color": INK, "thickness": 1.2, "width": 4}
DOT = {"size": 5, "color": ORANGE, "opacity": 0.8, "line": {"width": 0.7, "color": INK}}
STAR_APART = 0.04
"""Of the bars' height, how far beyond its bar a star stands."""
STRIP = 0.26
"""How far the points of a row lie from its middle at most: all on its bar."""


@dataclass(frozen=True)
class Bar:
    """A bar with its points."""

    label: str
    effect: float
    on_pairs: Sequence[tuple[int, float]]
    """Each pair's index and effect; NaN where the pair is not usable."""
    text: str
    """Of its hover."""


def create_top_heads_bar(
    results: Heads, *, top_k: int = 15, title: str | None = None, statistics: SiteStatistics | None = None
) -> go.Figure:
    """Heads of largest |effect| as bars with intervals, largest on top, and the effect on each usable pair as points.

    The points lie on the bar that they belong to; of more than a hundred pairs a hundred have one, at equal distances.
    A star beside its name marks a head that is significant after correction; with too few pairs none is marked. Heads
    of no one experiment have neither intervals nor stars.

    Args:
        results: what `run_all_heads_experiment` returned, or a list picked from it.
        top_k: number of heads.
        title: in place of the figure's own.
        statistics: `results.statistics(...)`, for another level or correction than its defaults.

    Raises:
        ValueError: where `results` are no head results, are empty or hold no usable pair, or `top_k` is below 1; where
            `statistics` are those of other results.
    """
    results = known_heads(results)
    drawn = drawn_heads(results, "create_top_heads_bar", statistics)
    check_top_k(top_k)
    measured = [head for head in drawn.heads if not math.isnan(head.effect)]
    top = sorted(measured, key=lambda head: abs(head.effect), reverse=True)[:top_k]
    patches = [drawn.patches[head.label] for head in top]
    bars = [
        Bar(head.label, head.effect, list(zip(drawn.pair_indices, head.pair_effects)), drawn.texts[i])
        for head, i in zip(top, patches)
    ]
    figure = _bars(bars, patches, drawn.certainty, drawn.estimate)
    figure.update_xaxes(title=drawn.effect_name)
    figure.update_yaxes(title=drawn.kind)
    parts = [*drawn.told(drawn.certainty.bar_note(patches)), thinned_note(drawn.n_usable)]
    title = title or titled(drawn.estimate, f"Largest effects, {drawn.kind}s: {drawn.patch_type}")
    return finish(figure, title, parts)


def create_top_edges_bar(
    results: EdgeResults, *, top_k: int = 20, title: str | None = None, statistics: SiteStatistics | None = None
) -> go.Figure:
    """Edges of largest |effect| as bars with intervals, largest on top, and the effect on each usable pair as points.

    Bars, points and stars are those of `create_top_heads_bar`.

    Args:
        results: what patching edges returned, some of it (`results.of("L8", "L9H9")`), or a list of its entries.
        top_k: number of edges.
        title: in place of the figure's own.
        statistics: `results.statistics(...)`, for another level or correction than its defaults.

    Raises:
        ValueError: where `results` are no edges, are empty or hold no usable pair, or `top_k` is below 1; where
            `statistics` are those of other results.
    """
    results = known_heads(results)
    sweep = checked_sweep(results, EdgeResults, "create_top_edges_bar")
    check_top_k(top_k)
    check_effects(sweep.effects, sweep)
    evidence = certainty(sweep, results.kind, statistics)
    patches = largest(sweep.effects, top_k)
    part = EdgeResults(sweep.of_patches(patches))
    texts = hovers(part.labels, part.sweep, lambda i: evidence.lines(patches[i]))
    bars = [
        Bar(label, effect, list(zip(sweep.pair_indices, on_pairs)), text)
        for label, effect, on_pairs, text in zip(
            part.labels, part.sweep.effects.tolist(), part.sweep.pair_effects.tolist(), texts
        )
    ]
    figure = _bars(bars, patches, evidence, sweep.estimate)
    figure.update_xaxes(title=effect_name(sweep))
    figure.update_yaxes(title="edge")
    left_out = len(results) - len(patches)
    note = f"{left_out:,} more with smaller effects not drawn" if left_out else ""
    parts = [*told(sweep, evidence.bar_note(patches)), note, thinned_note(int(sweep.usable.sum()))]
    return finish(figure, title or titled(sweep.estimate, "Largest effects, edges"), parts)


def create_component_comparison(
    results: LayerResults,
    n_layers: int | None = None,
    *,
    title: str | None = None,
    statistics: SiteStatistics | None = None,
) -> go.Figure:
    """Attention (`attn_out`) against MLP (`mlp_out`), one bar each per layer, with intervals.

    A star beyond its interval marks a bar that is significant after correction; with too few pairs none is marked.

    Raises:
        ValueError: as `create_layer_heatmap`, and where one of the two was not patched, naming it.
    """
    sweep = checked_layers(results, n_layers, "create_component_comparison")
    components = list(dict.fromkeys(patch.sites[0].component for patch in sweep.patches if patch.name is None))
    if missing := [name for name in ("attn_out", "mlp_out") if name not in components]:
        raise ValueError(
            f"{' and '.join(missing)} not patched: these results have {', '.join(components)}, the comparison expects "
            "attn_out and mlp_out. Patch both, with hook_points=['attn_out', 'mlp_out']"
        )
    evidence = certainty(sweep, results.kind, statistics)
    texts = hovers(labels_of(results), sweep, evidence.lines)
    number = {label: i for i, label in enumerate(results.labels)}
    figure = go.Figure()
    drawn: list[int] = []
    stars: list[tuple[float, float]] = []
    for component, name, colour, beside in (("attn_out", "attention", BLUE, -0.2), ("mlp_out", "MLP", ORANGE, 0.2)):
        layers = [layer for layer in range(sweep.n_layers) if block_hook(layer, component) in number]
        patches = [number[block_hook(layer, component)] for layer in layers]
        drawn += patches
        below, above = evidence.whiskers(patches)
        figure.add_bar(
            name=f"{name} ({component})",
            x=layers,
            y=sweep.effects[patches],
            error_y={**WHISKER, "array": above, "arrayminus": below, "visible": evidence.has_intervals},
            marker={"color": colour},
            hovertext=[texts[i] for i in patches],
        )
        ends = _ends(sweep.effects[patches], below, above)
        stars += [(layer + beside, end) for layer, end, i in zip(layers, ends, patches) if evidence.significant[i]]
    if stars:
        apart = STAR_APART * np.ptp([0.0, *(end for _, end in stars)])
        figure.add_scatter(
            name=STARS,
            x=[x for x, _ in stars],
            y=[end + math.copysign(apart, end) for _, end in stars],
            mode="markers",
            marker={"symbol": "asterisk-open", "size": 5, "color": INK, "line": {"width": 1}},
            hoverinfo="skip",
            showlegend=False,
        )
    figure.update_xaxes(title="layer", dtick=step(sweep.n_layers, 16), range=[-0.6, sweep.n_layers - 0.4])
    figure.update_yaxes(title=named_with_method(sweep.estimate))
    figure.update_layout(barmode="group", bargap=0.2, width=width(sweep.n_layers, 36), height=380, showlegend=True)
    parts = told(sweep, evidence.bar_note(drawn), scale=True)
    return finish(figure, title or "Attention against MLP in each layer", parts)


def create_effect_distribution(
    results: SweepResults, *, top_k: int = 10, title: str | None = None, statistics: SiteStatistics | None = None
) -> go.Figure:
    """How the largest effects are spread over pairs: a box, a point per usable pair, and the effect over all.

    Of more than a hundred pairs a hundred have points, at equal distances; boxes are of all.

    A diamond is the effect over all pairs, filled where it is significant after correction; it is a ratio of means and
    need not lie at the box's middle.

    Args:
        results: what any experiment returned: layers, heads, neurons, positions.
        top_k: number of components.
        title: in place of the figure's own.
        statistics: `results.statistics(...)`, for another level or correction than its defaults.

    Raises:
        ValueError: where `results` are none of an experiment, are empty or hold no usable pair, or `top_k` is below 1;
            where `statistics` are those of other results.
    """
    sweep = checked_sweep(results, SweepResults, "create_effect_distribution")
    check_top_k(top_k)
    check_effects(sweep.effects, sweep)
    evidence = certainty(sweep, results.kind, statistics, mark="filled:")
    top = largest(sweep.effects, top_k)
    names, texts = [escaped(label) for label in labels_of(results)], hovers(labels_of(results), sweep, evidence.lines)
    effects = sweep.pair_effects[:, sweep.usable][top]
    usable = np.flatnonzero(sweep.usable)
    shown = thinned_pairs(len(usable))
    pairs = [sweep.pair_indices[usable[j]] for j in shown]
    spread = strip(len(shown), STRIP)
    figure = go.Figure()
    figure.add_box(
        name="pairs",
        x=effects.ravel(),
        y=np.repeat(np.arange(len(top)), len(usable)),
        orientation="h",
        boxpoints=False,
        fillcolor=BLUE_AREA,
        line={"color": BLUE, "width": 1},
        hoverinfo="skip",
    )
    figure.add_scatter(
        name="one pair each",
        x=effects[:, shown].ravel(),
        y=np.concatenate([row + spread for row in range(len(top))]),
        mode="markers",
        marker=DOT,
        hovertext=[
            f"<b>{names[i]}</b>, pair {pair}<br>{effect_line(effects[row, j], sweep.estimate)}"
            for row, i in enumerate(top)
            for j, pair in zip(shown, pairs)
        ],
    )
    figure.add_scatter(
        name="over all pairs",
        x=sweep.effects[top],
        y=list(range(len(top))),
        mode="markers",
        marker={
            "symbol": ["diamond" if evidence.significant[i] else "diamond-open" for i in top],
            "size": 9,
            "color": INK,
            "line": {"width": 1.5, "color": INK},
        },
        hovertext=[texts[i] for i in top],
    )
    figure.update_xaxes(title=effect_name(sweep))
    figure.update_yaxes(title=results.kind, **rows_axis([names[i] for i in top]))
    figure.update_layout(width=760, height=height(len(top), 34), showlegend=True)
    parts = [*told(sweep, evidence.note), thinned_note(len(usable))]
    return finish(figure, title or titled(sweep.estimate, f"Effects over pairs, {plural(results.kind)}"), parts)


def _bars(bars: Sequence[Bar], patches: Sequence[int], evidence: Certainty, estimate: Estimate | None) -> go.Figure:
    """Bars in rows, the first on top, of these patches of a sweep; each with its interval, points, and star."""
    below, above = evidence.whiskers(patches)
    figure = go.Figure()
    figure.add_bar(
        name="over all pairs",
        x=[bar.effect for bar in bars],
        y=list(range(len(bars))),
        width=0.76,
        orientation="h",
        error_x={**WHISKER, "array": above, "arrayminus": below, "visible": evidence.has_intervals},
        marker={"color": [BLUE if bar.effect > 0 else RED for bar in bars]},
        hovertext=[bar.text for bar in bars],
    )
    xs, ys, texts = [], [], []
    for row, bar in enumerate(bars):
        usable = [(pair, effect) for pair, effect in bar.on_pairs if not math.isnan(effect)]
        shown = thinned_pairs(len(usable))
        for at, (pair, effect) in zip(strip(len(shown), STRIP), (usable[j] for j in shown)):
            xs.append(effect)
            ys.append(row + at)
            texts.append(f"<b>{escaped(bar.label)}</b>, pair {pair}<br>{effect_line(effect, estimate)}")
    figure.add_scatter(name="one pair each", x=xs, y=ys, mode="markers", marker=DOT, hovertext=texts)
    labels = [starred(escaped(bar.label), evidence.significant[i]) for bar, i in zip(bars, patches)]
    figure.update_yaxes(**rows_axis(labels))
    figure.update_layout(width=760, height=height(len(bars), 26), showlegend=True)
    return figure


def _ends(effects: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Where bars end with their whiskers, away from 0."""
    return effects + np.where(effects > 0, np.nan_to_num(above), -np.nan_to_num(below))
