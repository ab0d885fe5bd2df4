"""Prints results: what was run, the largest effects, and how sure they are, as text of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from actpatch.core.estimate_words import estimated_from, named, named_shortly
from actpatch.core.text import plain
from actpatch.results.sweep import NOT_MATCHED, Sweep
from actpatch.statistics.resampling import FEWEST_PAIRS
from actpatch.statistics.site_tests import CORRECTIONS
from actpatch.statistics.sites import SiteStatistics

WIDTH = 80
HEADING_WIDTH = 14
"""Headings of columns of numbers are wrapped to so many letters."""
LABEL_WIDTH = 36
"""Labels of sets of hook points are wrapped to so many letters."""
BAR_WIDTH = 20


def results_text(sweep: Sweep, rows: Sequence[tuple[str, int]], *, kind: str, of: int, patched: str = "") -> str:
    """What was run, the effects of some patches, and how sure these are.

    Args:
        sweep: the sweep of these patches.
        rows: label and number of each patch, in the order of rows.
        kind: what a row is, `hook point` or `head`.
        of: how many rows there would be.
        patched: what of a row was patched, where its kind does not say.
    """
    statistics = _statistics_by_metric(sweep)
    heading = f"{kind} ({patched})" if patched else kind
    more = [f"({of - len(rows)} more with smaller effects)"] if of > len(rows) else []
    table = "\n".join([effects_table(heading, rows, sweep, statistics), *more])
    untold = _why_untold(statistics)
    first = textwrap.fill(f"Nothing is marked as significant or not: {untold}.", WIDTH) if untold else ""
    parts = [describe_experiment(sweep), first, table, describe_statistics(statistics, kind, said=untold)]
    return "\n\n".join(filter(None, parts))


def describe_experiment(sweep: Sweep) -> str:
    """What was run, and the baselines of every metric."""
    lines = [f"{sweep.task} on {sweep.model}", f"{sweep.direction}: {sweep.question}"]
    if sweep.estimate:
        lines.append(f"effects are {estimated_from(sweep.estimate)}: no patch was run")
    if sweep.path:
        lines.append(f"path: {sweep.path}")
    if sweep.noise:
        lines.append(f"corrupted: the clean prompt with {sweep.noise}")
    if sweep.window > 1:
        lines.append(f"windows of {sweep.window} adjacent layers, each named by the one in the middle")
    n_pairs = len(sweep.pair_indices)
    for name in sweep.metrics:
        shown = sweep.by_metric(name)
        finite = np.isfinite(shown.clean) & np.isfinite(shown.corrupted)
        clean, corrupted = (run[finite].mean() if finite.any() else np.nan for run in (shown.clean, shown.corrupted))
        lines.append(
            f"{name}: clean {plain(clean)}, corrupted {plain(corrupted)}"
            + (f" {shown.unit}" if shown.unit else "")
            + (f" ({shown.better})" if shown.better else "")
            + (", of one pair" if n_pairs == 1 else f", mean of {finite.sum()} pairs")
        )
        if not finite.all():
            lines.append(f"  {(~finite).sum()} more have a metric that is NaN or infinite")
        if excluded := int((~shown.usable & finite).sum()):
            lines.append(f"  {excluded} of them left out of the effects: clean and corrupted barely differ")
    lines += [f"note: {note}" for note in sweep.notes]
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines)


def effects_table(
    heading: str, rows: Sequence[tuple[str, int]], sweep: Sweep, statistics: Mapping[str, SiteStatistics | str]
) -> str:
    """The effects of some patches, with their intervals, and `n.s.` at those that are not significant.

    Of a single metric with what it came to, mean of the usable pairs, and a bar; of several a column each, in as many
    tables as fit the width.

    Args:
        heading: what a row is.
        rows: label and number of each patch, in the order of rows.
        sweep: the sweep of these patches.
        statistics: those of each metric, or why it has none.
    """
    labels = [textwrap.wrap(label, LABEL_WIDTH, break_long_words=False, subsequent_indent="  ") for label, _ in rows]
    patches = [patch for _, patch in rows]
    first = _column(heading, [line for label in labels for line in label], left=True)

    def beside_labels(column: list[str]) -> list[str]:
        """The column with each number at the last line of its label."""
        headings, cells = column[: -len(rows)], column[-len(rows) :]
        lines = [line for label, cell in zip(labels, cells) for line in (*[""] * (len(label) - 1), cell)]
        return [*headings, *(line.ljust(len(column[-1])) for line in lines)]

    if len(sweep.metrics) == 1:
        effects = sweep.effects[patches]
        values = [sweep.patched[i, sweep.usable].mean() if sweep.usable.any() else np.nan for i in patches]
        shown = ["" if sweep.unmatched[i] else cell for i, cell in zip(patches, _signed(values))]
        columns = [first, _column(named_shortly(sweep.estimate), effect_cells(sweep, patches))]
        columns += [
            _column(name, cells) for name, cells in _statistics_cells(statistics[sweep.metric], patches).items()
        ]
        columns.append(_column(named_shortly(sweep.estimate, sweep.metric), shown))
        room = WIDTH - sum(len(column[-1]) + 2 for column in columns)
        columns.append(["", *(effect_bar(effect, min(BAR_WIDTH, room)) for effect in effects)])
        return _beside([columns[0], *map(beside_labels, columns[1:])])
    columns = []
    for name in sweep.metrics:
        parts = [
            effect_cells(sweep.by_metric(name), patches),
            *_statistics_cells(statistics[name], patches).values(),
        ]
        heading = named_shortly(sweep.estimate, name)
        columns.append(_column(heading, ["  ".join(cells) for cells in zip(*(_column("", part) for part in parts))]))
    room = WIDTH - max(map(len, first))
    tables: list[list[list[str]]] = [[]]
    for column in columns:
        if tables[-1] and sum(2 + len(c[-1]) for c in [*tables[-1], column]) > room:
            tables.append([])
        tables[-1].append(beside_labels(column))
    message = f"{named(sweep.estimate)} on each metric; the largest on {sweep.metric} first"
    return "\n\n".join([message, *(_beside([first, *table]) for table in tables)])


def describe_statistics(statistics: Mapping[str, SiteStatistics | str], kind: str, *, said: str = "") -> str:
    """What a reader of intervals and marks has to know: level, correction, pairs, smallest detectable effect, notes.

    Args:
        statistics: those of each metric, or why it has none.
        kind: what a row is.
        said: a note that the reader has been told already.
    """
    known = {name: found for name, found in statistics.items() if isinstance(found, SiteStatistics)}
    general: list[str] = []
    if several := [found for found in known.values() if found.n_pairs > 1]:
        some = several[0]
        if any(found.n_pairs >= FEWEST_PAIRS for found in several):
            general.append(f"{some.level * 100:g}% intervals.")
    if tested := [found for found in several if found.tells_significance]:
        apart = ", each metric apart" if len(statistics) > 1 else ""
        some = tested[0]
        general.append(
            f"n.s.: p > {some.alpha:g} after {CORRECTIONS[some.correction]} correction over {some.n_corrected} "
            f"{kind}s{apart}."
        )
    reaches = {name: _reach(found, kind) for name, found in known.items() if found.n_pairs > 1}
    paragraphs = [" ".join([*general, *reaches.values()])]
    if len(statistics) > 1:
        paragraphs = [" ".join(general), *(f"{name}: {reach}" for name, reach in reaches.items())]
    notes: dict[str, list[str]] = {}
    for name, found in statistics.items():
        for note in (found,) if isinstance(found, str) else found.notes:
            if note != said:
                notes.setdefault(note, []).append(name)
    for note, names in notes.items():
        about = f" on {', '.join(names)}" if len(statistics) > 1 else ""
        paragraphs.append(f"Note{about}: {note}.")
    return "\n".join(textwrap.fill(text, WIDTH, subsequent_indent="  ") for text in paragraphs if text)


def _why_untold(statistics: Mapping[str, SiteStatistics | str]) -> str:
    """Why no row of a table is marked as significant or not; empty where rows are marked."""
    known = [found for found in statistics.values() if isinstance(found, SiteStatistics)]
    return "" if not known or any(found.tells_significance for found in known) else known[0].too_few


def effect_cells(sweep: Sweep, patches: Sequence[int]) -> list[str]:
    """The effects of these patches as text, or that they are not matched."""
    effects, unmatched = sweep.effects, sweep.unmatched
    return [NOT_MATCHED if unmatched[i] else plain(effects[i]) for i in patches]


def effect_bar(effect: float, width: int = BAR_WIDTH) -> str:
    """A bar of `width` characters for |effect| = 1, `#` for positive and `-` for negative effects."""
    if np.isnan(effect):
        return ""
    return ("#" if effect > 0 else "-") * min(width, round(abs(effect) * width))


def _statistics_by_metric(sweep: Sweep) -> dict[str, SiteStatistics | str]:
    """Metric -> its statistics, or why it has none: a table is printed all the same."""
    found: dict[str, SiteStatistics | str] = {}
    for name in sweep.metrics:
        try:
            found[name] = sweep.by_metric(name).statistics()
        except ValueError as error:
            found[name] = f"no intervals and no significance: {error}"
    return found


def _statistics_cells(found: SiteStatistics | str, rows: Sequence[int]) -> dict[str, list[str]]:
    """Heading -> cells of the columns that say how sure an effect is, as far as there are enough pairs."""
    columns: dict[str, list[str]] = {}
    if isinstance(found, SiteStatistics) and found.n_pairs >= FEWEST_PAIRS:
        ends = zip(*(_column("", _signed(end[list(rows)])) for end in (found.low, found.high)))
        cells = [
            "" if np.isnan(found.p[i]) else "none" if np.isnan(found.low[i]) else f"[{low}, {high}]"
            for i, (low, high) in zip(rows, ends)
        ]
        columns[f"{found.level * 100:g}% interval"] = [cell.ljust(max(map(len, cells))) for cell in cells]
    if isinstance(found, SiteStatistics) and found.tells_significance:
        columns[""] = ["" if found.significant[i] or np.isnan(found.p[i]) else "n.s." for i in rows]
    return columns


def _reach(found: SiteStatistics, kind: str) -> str:
    if np.isnan(found.detectable_effect):
        return f"{found.n_pairs} pairs."
    return (
        f"Smallest effect that {found.n_pairs} pairs find with power {found.power:g}: {found.detectable_effect:.3f} at "
        f"the median {kind}, {np.nanmax(found.detectable):.3f} at the most variable."
    )


def _signed(values: Sequence[float] | np.ndarray) -> list[str]:
    return [plain(value) for value in values]


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
