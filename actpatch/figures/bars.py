"""The largest effects and how far they hold: bars with intervals, attention against MLP, effects over pairs.

Knows results; it runs and computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from actpatch.core.heavy import go
from actpatch.core.sites import block_hook
from actpatch.core.text import plural
from actpatch.figures.certainty import Certainty, certainty
from actpatch.figures.checks import Heads, check_effects, check_top_k, checked_layers, checked_sweep, known_heads
from actpatch.figures.colours import BLUE, BLUE_AREA, INK, ORANGE, RED
from actpatch.figures.frame import FADED, finish, height, step, thinned_note, thinned_pairs, width
from actpatch.figures.heads import drawn_heads
from actpatch.figures.ranking import largest, rows_axis
from actpatch.figures.words import context_line, effect_name, escaped, hovers, labels_of
from actpatch.results.shapes import LayerResults, SweepResults
from actpatch.statistics.sites import SiteStatistics

WHISKER = {"type": "data", "color": INK, "thickness": 1.2, "width": 4}


def create_top_heads_bar(
    results: Heads, *, top_k: int = 15, title: str | None = None, statistics: SiteStatistics | None = None
) -> go.Figure:
    """Heads of largest |effect| as bars with intervals, largest on top, and the effect on each usable pair as points.

    Of more than a hundred pairs a hundred have points, at equal distances. Bars of heads that are not significant after
    correction are faded, unless there are too few pairs to tell. Heads of no one experiment have neither intervals nor
    fading.

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
    below, above = drawn.certainty.whiskers(patches)
    figure = go.Figure()
    figure.add_bar(
        name="over all pairs",
        x=[head.effect for head in top],
        y=[row - 0.12 for row in range(len(top))],
        width=0.46,
        orientation="h",
        error_x={**WHISKER, "array": above, "arrayminus": below, "visible": drawn.certainty.has_intervals},
        marker={
            "color": [BLUE if head.effect > 0 else RED for head in top],
            "opacity": _opacities(drawn.certainty, patches),
        },
        hovertext=[drawn.texts[i] for i in patches],
    )
    points = []
    for row, head in enumerate(top):
        usable = [
            (pair, effect) for pair, effect in zip(drawn.pair_indices, head.pair_effects) if not math.isnan(effect)
        ]
        for pair, effect in (usable[j] for j in thinned_pairs(len(usable))):
            points.append((effect, row + 0.28, f"<b>{head.label}</b>, pair {pair}<br>effect {effect:+.3f}"))
    figure.add_scatter(
        name="one pair each",
        x=[x for x, _, _ in points],
        y=[y for _, y, _ in points],
        mode="markers",
        marker={"size": 5, "color": ORANGE, "opacity": 0.7, "line": {"width": 0.5, "color": INK}},
        hovertext=[text for _, _, text in points],
    )
    figure.update_xaxes(title=effect_name(drawn.sweep))
    figure.update_yaxes(title=drawn.kind, **rows_axis([head.label for head in top]))
    figure.update_layout(width=760, height=height(len(top), 26), showlegend=True)
    subtitle = drawn.subtitle(drawn.certainty.bar_note(patches), thinned_note(drawn.n_usable))
    return finish(figure, title or f"Largest effects, {drawn.kind}s: {drawn.patch_type}", subtitle)


def create_component_comparison(
    results: LayerResults,
    n_layers: int | None = None,
    *,
    title: str | None = None,
    statistics: SiteStatistics | None = None,
) -> go.Figure:
    """Attention (`attn_out`) against MLP (`mlp_out`), one bar each per layer, with intervals.

    Bars that are not significant after correction are faded, unless there are too few pairs to tell.

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
    for component, name, colour in (("attn_out", "attention", BLUE), ("mlp_out", "MLP", ORANGE)):
        layers = [layer for layer in range(sweep.n_layers) if block_hook(layer, component) in number]
        patches = [number[block_hook(layer, component)] for layer in layers]
        drawn += patches
        below, above = evidence.whiskers(patches)
        figure.add_bar(
            name=f"{name} ({component})",
            x=layers,
            y=sweep.effects[patches],
            error_y={**WHISKER, "array": above, "arrayminus": below, "visible": evidence.has_intervals},
            marker={"color": colour, "opacity": _opacities(evidence, patches)},
            hovertext=[texts[i] for i in patches],
        )
    figure.update_xaxes(title="layer", dtick=step(sweep.n_layers, 16), range=[-0.6, sweep.n_layers - 0.4])
    figure.update_yaxes(title=effect_name(sweep))
    figure.update_layout(barmode="group", width=width(sweep.n_layers, 36), height=420, showlegend=True)
    subtitle = context_line(sweep, evidence.bar_note(drawn))
    return finish(figure, title or "Attention against MLP in each layer", subtitle)


def create_effect_distribution(
    results: SweepResults, *, top_k: int = 10, title: str | None = None, statistics: SiteStatistics | None = None
) -> go.Figure:
    """How the largest effects are spread over pairs: a box, a point per usable pair, and the effect over all.

    Of more than a hundred pairs a hundred have points, at equal distances; boxes are of all.

    A diamond is the effect over all pairs, hollow where it is not significant after correction; it is a ratio of means
    and need not lie at the box's middle.

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
    evidence = certainty(sweep, results.kind, statistics, muted_are="hollow: not significant")
    top = largest(sweep.effects, top_k)
    names, texts = [escaped(label) for label in labels_of(results)], hovers(labels_of(results), sweep, evidence.lines)
    effects = sweep.pair_effects[:, sweep.usable][top]
    usable = np.flatnonzero(sweep.usable)
    shown = thinned_pairs(len(usable))
    pairs = [sweep.pair_indices[usable[j]] for j in shown]
    # Where in its row a point stands tells nothing: pairs are spread over it in an order that follows no other.
    spread = np.random.default_rng(0).permutation(np.linspace(-0.28, 0.28, len(shown))) if len(shown) > 1 else [0.0]
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
        y=np.concatenate([row + np.asarray(spread) for row in range(len(top))]),
        mode="markers",
        marker={"size": 5, "color": ORANGE, "opacity": 0.7, "line": {"width": 0.5, "color": INK}},
        hovertext=[
            f"<b>{names[i]}</b>, pair {pair}<br>effect {effects[row, j]:+.3f}"
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
            "symbol": ["diamond-open" if evidence.muted[i] else "diamond" for i in top],
            "size": 9,
            "color": INK,
            "line": {"width": 1.5, "color": INK},
        },
        hovertext=[texts[i] for i in top],
    )
    figure.update_xaxes(title=effect_name(sweep))
    figure.update_yaxes(title=results.kind, **rows_axis([names[i] for i in top]))
    figure.update_layout(width=760, height=height(len(top), 34), showlegend=True)
    subtitle = context_line(sweep, evidence.note, thinned_note(len(usable)))
    return finish(figure, title or f"Effects over pairs, {plural(results.kind)}", subtitle)


def _opacities(evidence: Certainty, patches: Sequence[int]) -> list[float]:
    return [FADED if evidence.muted[i] else 1.0 for i in patches]
