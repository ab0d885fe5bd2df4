"""What lies behind effects: raw metrics of every pair, and what a component is in both directions.

Knows results; it runs and computes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from actpatch.core.direction import DIRECTIONS
from actpatch.core.estimate_words import estimated_by, named, named_with_method
from actpatch.core.heavy import go
from actpatch.core.text import count, plural, signed
from actpatch.figures.certainty import Certainty, certainties
from actpatch.figures.checks import check_effects, check_top_k, checked_sweep, wrong_type
from actpatch.figures.colours import BLUE, GREY, GRID, INK, LINE, ORANGE, RED, VIOLET, ZERO_LINE
from actpatch.figures.frame import NARROW, Box, finish, height, label_points, thinned_note, thinned_pairs
from actpatch.figures.ranking import largest, rows_axis
from actpatch.figures.words import context, escaped, hovers, labels_of, metric_name, metric_unit, patched_name, told
from actpatch.results.both import BothDirections
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import Sweep
from actpatch.statistics.sites import SiteStatistics

MARKS = {
    "both": (BLUE, "circle", "sufficient and necessary"),
    "sufficient": (ORANGE, "diamond", "sufficient alone"),
    "necessary": (VIOLET, "square", "necessary alone"),
    "neither": (GREY, "circle", "neither"),
}
"""Reading -> colour, shape and what the quadrant is called."""
CORNERS = {"both": (1, 1), "sufficient": (1, 0), "necessary": (0, 1), "neither": (0, 0)}
"""Reading -> the corner of its quadrant, to the right and up."""
AREA = (NARROW, 260)
"""Pixels of the plot where there is least room: labels that keep apart there keep apart everywhere."""
MOST_LABELS = 12
MOST_LINES = 40
"""Pairs that have a line of their own in a band: lines of more run together."""
FILLED_ARE = "filled: in either direction"


def create_metric_scatter(results: SweepResults, *, top_k: int = 8, title: str | None = None) -> go.Figure:
    """Raw metrics, in their unit, behind the largest effects: a band per component, in it a line per pair.

    Of more than 40 pairs 40 are drawn, at equal distances.

    A line runs from the pair's corrupted to its clean metric, the dot is the patched one: where the dots of a band sit
    at the same place of their lines, the effect holds for every pair. Pairs that no effect can be computed for are
    drawn too; their short line is the reason.

    Raises:
        ValueError: where `results` are none of an experiment or are empty, or `top_k` is below 1.
    """
    sweep = checked_sweep(results, SweepResults, "create_metric_scatter")
    check_top_k(top_k)
    top, names = largest(sweep.effects, top_k), labels_of(results)
    shown = thinned_pairs(len(sweep.pair_indices), MOST_LINES)
    n_pairs = len(shown)
    offsets = (np.arange(n_pairs) + 0.5) / n_pairs * 0.7 - 0.35
    y = np.concatenate([band + offsets for band in range(len(top))])
    corrupted, clean = np.tile(sweep.corrupted[shown], len(top)), np.tile(sweep.clean[shown], len(top))
    gap = np.full(len(y), np.nan)
    figure = go.Figure()
    figure.add_scatter(
        x=np.column_stack([corrupted, clean, gap]).ravel(),
        y=np.column_stack([y, y, gap]).ravel(),
        mode="lines",
        line={"color": LINE, "width": 1 if n_pairs <= 12 else 0.5},
        hoverinfo="skip",
        showlegend=False,
    )
    indices = [sweep.pair_indices[j] for j in shown]
    pairs = [f"<b>{escaped(names[i])}</b>, pair {pair}" for i in top for pair in indices]
    patched, about = patched_name(sweep.estimate), f"patched: {estimated_by(sweep.estimate)}" if sweep.estimate else ""
    for run, x, symbol, colour in (
        ("corrupted", corrupted, "circle-open", RED),
        ("clean", clean, "diamond-open", BLUE),
        (patched, sweep.patched[np.ix_(top, shown)].ravel(), "circle", INK),
    ):
        figure.add_scatter(
            name=run,
            x=x,
            y=y,
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 7 if n_pairs <= 12 else 5},
            hovertext=[f"{pair}<br>{run} {signed(value)}{metric_unit(sweep)}" for pair, value in zip(pairs, x)],
        )
    figure.update_xaxes(title=escaped(", ".join(filter(None, [metric_name(sweep), about]))), zerolinecolor=LINE)
    figure.update_yaxes(title=results.kind, **rows_axis([escaped(names[i]) for i in top]))
    for edge in range(1, len(top)):
        figure.add_hline(y=edge - 0.5, line={"color": GRID, "width": 1})
    figure.update_layout(width=760, height=height(len(top), min(max(30, 7 * n_pairs), 90)), showlegend=True)
    parts = [*told(sweep), thinned_note(len(sweep.pair_indices), MOST_LINES)]
    return finish(figure, title or f"Clean, corrupted and {named(sweep.estimate, 'patched metric')}", parts)


def create_direction_quadrant(
    both: BothDirections[Any],
    *,
    threshold: float = 0.1,
    top_k: int = MOST_LABELS,
    title: str | None = None,
    statistics: tuple[SiteStatistics, SiteStatistics] | None = None,
) -> go.Figure:
    """Denoising against noising effects, a point per component, in quadrants that say what it is for the behaviour.

    To the right of the threshold a component suffices, above it is necessary (`BothDirections.reading`). Filled points
    are significant in either direction, or both.

    Args:
        both: what an experiment with `direction="both"` returned.
        threshold: the least effect that counts.
        top_k: label at most so many points that are beyond the threshold in either direction; fewer where labels would
            lie on each other. Hovering tells the others.
        title: in place of the figure's own.
        statistics: `results.statistics(...)` of denoising and of noising, for another level or correction than its
            defaults.

    Raises:
        ValueError: where `both` is no `BothDirections`, its directions are exchanged or of different patches, they
            are empty or hold no usable pair; for a threshold not above 0, and `top_k` below 1; where `statistics` are
            those of other results, or differ in level, alpha or correction.
    """
    if not isinstance(both, BothDirections):
        advice = "; run the experiment with direction='both'" if isinstance(both, SweepResults) else ""
        raise ValueError(f"{wrong_type(both, BothDirections, 'create_direction_quadrant')}{advice}")
    check_top_k(top_k)
    sweeps = _checked_directions(both)
    evidence = certainties(sweeps, both.denoising.kind, statistics, mark=FILLED_ARE)
    readings = both.reading(threshold)["reading"]
    names = labels_of(both.denoising)
    points = np.array([sweep.effects for sweep in sweeps])
    texts = _both_texts(names, sweeps, evidence)
    low, high = min(-0.1, np.nanmin(points)), max(2 * threshold, np.nanmax(points))
    ends = (low - 0.08 * (high - low), high + 0.12 * (high - low))
    figure = go.Figure()
    for reading, (colour, symbol, called) in MARKS.items():
        chosen = np.flatnonzero(readings == reading)
        hollow = ~(evidence[0].significant[chosen] | evidence[1].significant[chosen])
        figure.add_scatter(
            name=f"{called} ({len(chosen)})",
            x=points[0, chosen],
            y=points[1, chosen],
            mode="markers",
            marker={
                "symbol": [f"{symbol}-open" if is_hollow else symbol for is_hollow in hollow],
                "color": colour,
                "size": 9 if reading != "neither" else 7,
                "opacity": 0.85,
                "line": {"width": 1.2, "color": colour},
            },
            hovertext=[texts[i] for i in chosen],
        )
    _label(figure, points, names, threshold, top_k, ends)
    _quadrants(figure, threshold, ends)
    estimate = sweeps[0].estimate
    across, up = (
        named_with_method(estimate, f"{direction} effect", meaning)
        for direction, meaning in (("denoising", "sufficient"), ("noising", "necessary"))
    )
    figure.update_xaxes(title=across, range=ends, zerolinecolor=LINE)
    figure.update_yaxes(title=up, range=ends, zerolinecolor=LINE)
    figure.update_layout(width=680, height=580, showlegend=True)
    if title is None:
        by = f", as {estimate.method} estimates" if estimate else ""
        title = f"Sufficient, necessary, or both{by}: {plural(both.denoising.kind)}"
    return finish(figure, title, _told_of_both(sweeps, evidence, threshold), around=(90, 130))


def _checked_directions(both: BothDirections[Any]) -> tuple[Sweep, Sweep]:
    sweeps: dict[str, Sweep] = {}
    for direction in DIRECTIONS:
        results = getattr(both, direction)
        sweeps[direction] = checked_sweep(results, SweepResults, "create_direction_quadrant")
        check_effects(results.sweep.effects, results.sweep)
        if results.sweep.direction != direction:
            raise ValueError(f"{direction} holds results of {results.sweep.direction}: exchange the two")
    denoising, noising = sweeps["denoising"], sweeps["noising"]
    if denoising.patches != noising.patches or denoising.model != noising.model:
        raise ValueError(
            f"denoising has {count(len(denoising.patches), 'patch')} on {denoising.model}, noising "
            f"{count(len(noising.patches), 'patch')} on {noising.model}, expected the same: run both with "
            "direction='both'"
        )
    return denoising, noising


def _both_texts(names: list[str], sweeps: tuple[Sweep, Sweep], evidence: list[Certainty]) -> list[str]:
    """Both directions' hover texts one below the other, the name once."""
    parts = []
    for sweep, one in zip(sweeps, evidence):
        bodies = [text.partition("<br>")[2] for text in hovers(names, sweep, one.lines)]
        parts.append([body.replace("effect", sweep.direction, 1) for body in bodies])
    return [f"<b>{escaped(name)}</b><br>{first}<br>{second}" for name, first, second in zip(names, *parts)]


def _told_of_both(sweeps: tuple[Sweep, Sweep], evidence: list[Certainty], threshold: float) -> list[str]:
    first, second = (context(sweep) for sweep in sweeps)
    shared = {part: text for part, text in first.items() if part not in ("direction", "scale")}
    if first["pairs"] != second["pairs"]:
        shared["pairs"] = f"{first['pairs']} (noising: {second['pairs']})"
    leading = [shared.pop(part) for part in ("estimate", "model", "task", "metric", "pairs")]
    notes = dict.fromkeys(one.note for one in evidence)
    return [*leading, *notes, f"threshold {threshold:g}", *shared.values()]


def _label(
    figure: go.Figure, points: np.ndarray, names: list[str], threshold: float, top_k: int, ends: tuple[float, float]
) -> None:
    size = np.nan_to_num(np.abs(points), nan=0.0).max(axis=0)
    order = np.argsort(-size, kind="stable")
    order = order[~np.isnan(points[:, order]).any(axis=0)]
    chosen = [int(i) for i in order[:top_k] if size[i] >= threshold]
    labels = [escaped(names[i]) for i in chosen]
    all_points = [tuple(points[:, i]) for i in order]
    at = label_points(all_points, labels, ends, ends, AREA, [_corner(reading) for reading in MARKS])
    shown = [(i, label, where) for i, label, where in zip(chosen, labels, at) if where is not None]
    figure.add_scatter(
        x=points[0, [i for i, _, _ in shown]],
        y=points[1, [i for i, _, _ in shown]],
        mode="markers+text",
        marker={"size": 11, "color": "rgba(0,0,0,0)"},
        text=[label for _, label, _ in shown],
        textposition=[where for _, _, where in shown],
        textfont={"size": 11},
        hoverinfo="skip",
        showlegend=False,
    )


def _corner(reading: str) -> Box:
    """Where the name of a quadrant stands."""
    (x, y), wide = CORNERS[reading], 6.5 * len(MARKS[reading][2])
    left, low = x * (AREA[0] - wide), y * (AREA[1] - 18)
    return left, low, left + wide, low + 18


def _quadrants(figure: go.Figure, threshold: float, ends: tuple[float, float]) -> None:
    """Threshold lines, and what each quadrant means in its corner."""
    for add in (figure.add_vline, figure.add_hline):
        add(threshold, line={"color": ZERO_LINE, "width": 1, "dash": "dash"})
    for reading, (x, y) in CORNERS.items():
        _, _, called = MARKS[reading]
        figure.add_annotation(
            text=called,
            x=x,
            y=y,
            xref="x domain",
            yref="y domain",
            xanchor="right" if x else "left",
            yanchor="top" if y else "bottom",
            showarrow=False,
            font={"size": 11},
        )
