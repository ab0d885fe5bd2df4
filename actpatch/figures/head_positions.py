"""The map of heads at single positions: a row per head, layer by layer, and a column per position.

Knows results; it runs and computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actpatch.core.estimate_words import titled
from actpatch.core.heavy import go
from actpatch.core.text import count
from actpatch.figures.cells import MARGINS, cells_figure, colour_limit, narrowest, room_for_numbers
from actpatch.figures.certainty import certainty
from actpatch.figures.checks import check_effects, check_top_k, checked_sweep, known_heads
from actpatch.figures.colours import ZERO_LINE
from actpatch.figures.frame import finish
from actpatch.figures.ranking import largest, rows_axis
from actpatch.figures.words import escaped, hovers, labels_of, scale_title, told
from actpatch.results.head_positions import HeadPositionResults
from actpatch.results.items import HeadPositionPatchingResult, head_label
from actpatch.statistics.sites import SiteStatistics


def create_head_position_heatmap(
    results: HeadPositionResults | Sequence[HeadPositionPatchingResult],
    *,
    top_k: int = 40,
    title: str | None = None,
    colour_range: float | None = None,
    statistics: SiteStatistics | None = None,
) -> go.Figure:
    """Head × position map of effects: heads in rows, those of a layer between two lines, positions in columns.

    Where there are more than `top_k` heads, those are drawn whose effect at some position is largest, and the subtitle
    says how many are not. A star marks sites that are significant after correction, which counts all sites, drawn or
    not; with too few pairs none is marked.

    Args:
        results: what `run_all_heads_experiment(positions=...)` returned, some of it, or a list of its entries; what it
            lacks is hatched.
        top_k: most heads that are drawn.
        title: in place of the figure's own.
        colour_range: colours span ± this effect, for maps that are to be compared; None spans the largest.
        statistics: `results.statistics(...)`, for another level or correction than its defaults.

    Raises:
        ValueError: where `results` are of no heads at positions, are empty or hold no usable pair, or `top_k` is below
            1; where `statistics` are those of other results.
    """
    shown: Any = known_heads(results)
    sweep = checked_sweep(shown, HeadPositionResults, "create_head_position_heatmap")
    check_top_k(top_k)
    check_effects(sweep.effects, sweep)
    evidence = certainty(sweep, shown.kind, statistics)
    texts = hovers(labels_of(shown), sweep, evidence.lines)
    heads, left_out = _drawn_heads(shown, top_k)
    positions = [position for position in shown.positions if any(item.position == position for item in shown)]
    effects = np.full((len(heads), len(positions)), np.nan)
    hover: dict[tuple[int, int], str] = {}
    starred: set[tuple[int, int]] = set()
    for number, (item, effect) in enumerate(zip(shown, sweep.effects)):
        if (item.layer, item.head) not in heads:
            continue
        cell = heads.index((item.layer, item.head)), positions.index(item.position)
        effects[cell], hover[cell] = effect, texts[number]
        if evidence.significant[number]:
            starred.add(cell)
    figure = cells_figure(effects, hover, starred, colour_limit(effects, colour_range), scale_title(sweep.estimate))
    names = [escaped(str(position)) for position in positions]
    figure.update_xaxes(title="position", tickvals=list(range(len(names))), ticktext=names)
    kind = "key-value head" if shown.counts_key_value_heads else "head"
    labels = [head_label(layer, head, shown.counts_key_value_heads) for layer, head in heads]
    figure.update_yaxes(title=kind, **rows_axis(labels))
    for row in range(1, len(heads)):
        if heads[row][0] != heads[row - 1][0]:
            figure.add_hline(y=row - 0.5, line={"color": ZERO_LINE, "width": 1})
    title = title or titled(sweep.estimate, f"Effect of each {kind} at each position: {escaped(shown.patch_type)}")
    note = f"{count(left_out, 'more ' + kind)} with smaller effects not drawn" if left_out else ""
    sizes = {"narrowest": narrowest(len(names)), "room_for_numbers": room_for_numbers(len(names))}
    parts = [note, *told(sweep, evidence.note, scale=True)]
    return finish(figure, title, parts, **sizes, around=(MARGINS, 90))


def _drawn_heads(results: HeadPositionResults, top_k: int) -> tuple[list[tuple[int, int]], int]:
    """(layer, head) of the heads with the largest effects at any position, in order, and how many there are more."""
    most: dict[tuple[int, int], float] = {}
    for item in results:
        head = item.layer, item.head
        most[head] = float(np.fmax(most.get(head, np.nan), abs(item.effect)))
    every = list(most)
    chosen = [every[i] for i in largest(np.array(list(most.values())), top_k)]
    return sorted(chosen), len(every) - len(chosen)
