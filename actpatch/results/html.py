"""Shows results in a notebook, as a short HTML table: what was run, the baselines, and the largest effects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actpatch.core.estimate_words import estimated_from, named_shortly
from actpatch.core.templates import Templates
from actpatch.core.text import escaped, signed, with_minus
from actpatch.results.effects import largest
from actpatch.results.sweep import NOT_MATCHED, Sweep
from actpatch.statistics.resampling import FEWEST_PAIRS
from actpatch.statistics.site_tests import CORRECTIONS
from actpatch.statistics.sites import SiteStatistics

if TYPE_CHECKING:
    from markupsafe import Markup

ROWS = 10
"""Most effects that are shown."""

TABLES = Templates(Path(__file__).parent / "templates")
"""What a notebook's table is made of."""


def results_html(sweep: Sweep, labels: Sequence[str], kind: str) -> str:
    """The patches of largest |effect|, with the experiment and its baselines as the caption.

    Args:
        sweep: the sweep of these patches.
        labels: what each patch is called.
        kind: what a patch is, `hook point` or `head`.
    """
    effects = sweep.effects
    top = largest(effects, ROWS)
    statistics, note = _statistics(sweep)
    unmatched = sweep.unmatched
    cells = [NOT_MATCHED if unmatched[i] else signed(effects[i]) for i in top]
    columns = {kind: [labels[i] for i in top], named_shortly(sweep.estimate): cells}
    if statistics is not None and statistics.n_pairs >= FEWEST_PAIRS:
        intervals = [(statistics.low[i], statistics.high[i]) for i in top]
        columns[f"{statistics.level * 100:g}% interval"] = [
            "" if unmatched[i] else "none" if np.isnan(low) else f"[{signed(low)}, {signed(high)}]"
            for i, (low, high) in zip(top, intervals)
        ]
    if statistics is not None and statistics.tells_significance:
        columns[""] = ["" if statistics.significant[i] or unmatched[i] else "n.s." for i in top]
    if sweep.usable.any():
        heading = named_shortly(sweep.estimate, sweep.metric)
        columns[heading] = ["" if unmatched[i] else signed(sweep.patched[i, sweep.usable].mean()) for i in top]
    if len(effects) > ROWS:
        note = " ".join([f"{len(effects) - ROWS} more with smaller effects.", note])
    return TABLES.render(
        "table.html",
        caption=texts(_caption(sweep)),
        columns=texts(columns),
        rows=[texts(cells) for cells in zip(*columns.values())],
        note=texts([with_minus(note)])[0],
    )


def _caption(sweep: Sweep) -> list[str]:
    n_pairs = len(sweep.pair_indices)
    excluded = int((~sweep.usable).sum())
    unit = f" {sweep.unit}" if sweep.unit else ""
    lines = [
        f"{sweep.task} on {sweep.model}",
        f"{sweep.direction}: {sweep.question}",
        f"effects are {estimated_from(sweep.estimate)}: no patch was run" if sweep.estimate else "",
        f"path: {sweep.path}" if sweep.path else "",
        f"corrupted: the clean prompt with {sweep.noise}" if sweep.noise else "",
        f"{n_pairs} pair{'' if n_pairs == 1 else 's'}" + (f", {excluded} left out of the effects" if excluded else ""),
    ]
    if n_pairs:
        better = f" ({sweep.better})" if sweep.better else ""
        means = f"clean {signed(sweep.clean.mean())}, corrupted {signed(sweep.corrupted.mean())}{unit}{better}"
        lines.append(f"{sweep.metric}: {means}")
    return [line for line in lines if line]


def _statistics(sweep: Sweep) -> tuple[SiteStatistics | None, str]:
    """The statistics, and what a reader of intervals and marks has to know."""
    try:
        found = sweep.statistics()
    except ValueError as error:
        return None, f"No intervals and no significance: {error}."
    notes = [f"{note[:1].upper()}{note[1:]}." for note in found.notes]
    if found.n_pairs == 1:
        return None, " ".join(notes)
    if not found.tells_significance:
        return found, " ".join(notes)
    tested = f"p > {found.alpha:g} after {CORRECTIONS[found.correction]} correction over {found.n_corrected} patches"
    return found, " ".join([f"n.s.: {tested}.", *notes])


def texts(texts: Iterable[str]) -> list[Markup]:
    """Texts as they are shown: escaped, and without the `$` that starts TeX in notebooks."""
    from markupsafe import Markup

    return [Markup(escaped(text)) for text in texts]
