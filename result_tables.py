"""How do results print?  What was run and the largest effects, as text of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np

from patching_sweep import DIRECTIONS, OTHER_RUN, Sweep

WIDTH = 80
HEADING_WIDTH = 14
"""Headings of columns of numbers are wrapped to so many letters."""
BAR_WIDTH = 20


def describe_experiment(sweep: Sweep) -> str:
    """What was run, and the baselines of every metric."""
    is_ablation = sweep.source_of_values != OTHER_RUN
    done = sweep.intervention if is_ablation else DIRECTIONS[sweep.direction]
    lines = [f"{sweep.task} on {sweep.model}", f"{sweep.direction}: {done}"]
    if sweep.noise:
        lines.append(f"corrupted: the clean prompt with {sweep.noise}")
    if sweep.window > 1:
        lines.append(f"windows of {sweep.window} adjacent layers, each named by the one in the middle")
    for name in sweep.metrics:
        shown = sweep.by_metric(name)
        excluded = int((~shown.usable).sum())
        lines.append(
            f"{name}: clean {shown.clean.mean():+.3f}, corrupted {shown.corrupted.mean():+.3f}"
            + (f" {shown.unit}" if shown.unit else "")
            + ("" if shown.more_is_better else " (less is better)")
            + f", mean of {len(sweep.pair_indices)} pairs"
        )
        if excluded:
            lines.append(f"  {excluded} of them left out of the effects: clean and corrupted barely differ")
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def effects_table(heading: str, rows: Sequence[tuple[str, int]], sweep: Sweep) -> str:
    """The effects of some patches.

    Of a single metric with what it came to, mean of the usable pairs, and a bar; of several a column each, in as many
    tables as fit the width.

    Args:
        heading: what a row is.
        rows: label and number of each patch, in the order of rows.
        sweep: the sweep of these patches.
    """
    labels, patches = [label for label, _ in rows], [patch for _, patch in rows]
    first = _column(heading, labels, left=True)
    if len(sweep.metrics) == 1:
        effects = sweep.effects[patches]
        values = [sweep.patched[i, sweep.usable].mean() if sweep.usable.any() else np.nan for i in patches]
        bars = ["", *(effect_bar(effect) for effect in effects)]
        columns = [_column("effect", _signed(effects)), _column(sweep.metric, _signed(values))]
        return _beside([first, *columns, bars])
    columns = [_column(name, _signed(sweep.by_metric(name).effects[patches])) for name in sweep.metrics]
    room = WIDTH - max(map(len, first))
    tables: list[list[list[str]]] = [[]]
    for column in columns:
        if tables[-1] and sum(2 + len(c[-1]) for c in [*tables[-1], column]) > room:
            tables.append([])
        tables[-1].append(column)
    told = f"effect on each metric; the largest on {sweep.metric} first"
    return "\n\n".join([told, *(_beside([first, *table]) for table in tables)])


def effect_bar(effect: float, width: int = BAR_WIDTH) -> str:
    """A bar of `width` characters for |effect| = 1, `#` for positive and `-` for negative effects."""
    if np.isnan(effect):
        return ""
    return ("#" if effect > 0 else "-") * min(width, round(abs(effect) * width))


def _signed(values: Sequence[float] | np.ndarray) -> list[str]:
    return [f"{value:+.3f}" for value in values]


def _column(heading: str, cells: Sequence[str], *, left: bool = False) -> list[str]:
    """Lines of one width: the heading, wrapped unless it stands left, and the cells."""
    lines = [heading] if left else textwrap.wrap(heading, HEADING_WIDTH)
    width = max(map(len, [*lines, *cells]))
    return [line.ljust(width) if left else line.rjust(width) for line in [*lines, *cells]]


def _beside(columns: Sequence[list[str]]) -> str:
    """Columns side by side, aligned at the bottom."""
    height = max(map(len, columns))
    filled = [[" " * len(column[-1])] * (height - len(column)) + column for column in columns]
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*filled))
