"""Sections of a report besides figures: settings, the largest effects with their intervals, pairs, and the data.

Knows results and what they are called; it knows neither figures nor the page that the sections stand in.
"""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from actpatch.core.edge_patches import EdgePatches
from actpatch.core.estimate_words import estimated_by, estimated_from, named, titled
from actpatch.core.text import count, signed, with_minus
from actpatch.figures.words import metric_name, pairs_used, patched_name
from actpatch.report.rendering import REPORT
from actpatch.results.files import csv_columns
from actpatch.results.shapes import OfHeads, SweepResults
from actpatch.results.sweep import NOT_MATCHED, Sweep
from actpatch.results.text import describe_statistics
from actpatch.statistics.sites import SiteStatistics

if TYPE_CHECKING:
    from markupsafe import Markup

TOP_ROWS = 12
PAIRS_AT_ONCE = 2
"""Pairs whose prompts are shown unfolded."""
MOST_PAIRS = 100
"""Rows of the table of pairs."""
TEXTS = ("Template", "Clean prompt", "Corrupted prompt")
"""Columns of it that hold long texts."""


def settings_section(shown: Mapping[str, SweepResults], statistics: Mapping[str, SiteStatistics | str]) -> Markup:
    """What was run, folded away; a column for each sweep, and one cell across all that have the same setting."""
    is_any_estimated = any(results.sweep.estimate for results in shown.values())
    rows: dict[str, Callable[[str, Sweep], str]] = {
        "Model": lambda _, sweep: f"{sweep.model}, {sweep.n_layers} layers × {_heads(sweep)}",
        "Task": lambda _, sweep: sweep.task,
        "Direction": lambda _, sweep: f"{sweep.direction} ({sweep.question})",
        "Effects": lambda _, sweep: (
            estimated_from(sweep.estimate) or ("exact: every patch was run" if is_any_estimated else "")
        ),
        "Patched": _patched,
        "Path": lambda _, sweep: sweep.path,
        "Corrupted by": _corruption,
        "Layers at once": lambda _, sweep: str(sweep.window),
        "Metric": lambda _, sweep: metric_name(sweep),
        "Also measured": lambda _, sweep: ", ".join(m for m in sweep.metrics if m != sweep.metric),
        "Pairs": _pairs,
        "Mean clean, corrupted": lambda _, sweep: f"{signed(sweep.clean.mean())}, {signed(sweep.corrupted.mean())}",
        "Intervals and tests": lambda name, _: _drawn(statistics[name]),
        "Run with": lambda _, sweep: ", ".join(filter(None, [sweep.dtype, *sweep.shortcuts])) or "not recorded",
        "Notes": lambda _, sweep: "; ".join(sweep.notes),
        "Versions": lambda _, sweep: (
            ", ".join(f"{library} {v}" for library, v in sweep.versions.items()) or "not recorded"
        ),
    }
    settings = {row: [value(name, results.sweep) for name, results in shown.items()] for row, value in rows.items()}
    settings = {row: values for row, values in settings.items() if any(values)}
    cells = [[row, *(values if len(set(values)) > 1 else values[:1])] for row, values in settings.items()]
    return REPORT.render("settings.html", table=table(["Setting", *shown], cells, "Settings"))


def effects_section(results: SweepResults, statistics: SiteStatistics | str, name: str) -> Markup:
    """The patches of largest |effect|, with intervals and corrected p-values as far as there are any."""
    sweep = results.sweep
    order = np.argsort(-np.nan_to_num(np.abs(sweep.effects), nan=-1.0), kind="stable")[:TOP_ROWS]
    heads = ["Patched", titled(sweep.estimate, "Effect")]
    columns = [_labels(results), [NOT_MATCHED if no else signed(e) for e, no in zip(sweep.effects, sweep.unmatched)]]
    if isinstance(statistics, SiteStatistics) and not np.isnan(statistics.low).all():
        heads.append(f"{statistics.level * 100:g} % interval")
        columns.append([_interval(low, high) for low, high in zip(statistics.low, statistics.high)])
    if isinstance(statistics, SiteStatistics) and statistics.n_pairs > 1:
        heads.append("p, corrected")
        mark = " n.s." if statistics.tells_significance else ""
        columns.append(
            [
                "" if np.isnan(p) else f"{with_minus(f'{p:.2g}')}{'' if p <= statistics.alpha else mark}"
                for p in statistics.p_corrected
            ]
        )
    heads.append(f"{metric_name(sweep)}, {patched_name(sweep.estimate)}")
    usable = sweep.usable
    columns.append(["" if no else signed(row[usable].mean()) for row, no in zip(sweep.patched, sweep.unmatched)])
    caption = f"{name}: the largest {len(order)} of {sweep.n_in_all:,} {named(sweep.estimate, 'effects')}"
    caption += f", {estimated_by(sweep.estimate)}" if sweep.estimate else ""
    rows = [[column[i] for column in columns] for i in order]
    return REPORT.render(
        "effects.html",
        table=table(heads, rows, caption, numbers=True),
        statistics=with_minus(describe_statistics({sweep.metric: statistics}, "site")),
    )


def pairs_section(sweep: Sweep, name: str) -> Markup:
    """The first pairs' prompts, answers and baselines, and those of others folded away; not all, where there are very
    many."""
    n = len(sweep.pair_indices)
    sides = [side for side in (sweep.correct, sweep.incorrect) if any(answers.texts for answers in side)]
    named = ["Right answer", "Wrong answer"] if len(sides) == 2 or sides == [sweep.correct] else ["Wrong answer"]
    templates, groups = set(sweep.templates), sweep.groups if sweep.groups != sweep.templates else ()
    columns = {
        "Pair": [str(pair) for pair in sweep.pair_indices],
        **({"Group": groups} if any(groups) else {}),
        **({"Template": sweep.templates} if len(templates) > 1 else {}),
        "Clean prompt": ["".join(tokens) for tokens in sweep.clean_tokens],
        "Corrupted prompt": ["".join(tokens) for tokens in sweep.corrupted_tokens],
        **{heading: [str(answers) for answers in side] for heading, side in zip(named, sides)},
        "Clean metric": [signed(value) for value in sweep.clean],
        "Corrupted metric": [signed(value) for value in sweep.corrupted],
        "Usable": ["yes" if usable else "no" for usable in sweep.usable],
    }
    heads, rows = list(columns), list(zip(*columns.values()))[:MOST_PAIRS]
    caption = f"{name}: prompts, and {metric_name(sweep)} of both runs"
    said = [caption, pairs_used(sweep.usable)]
    if len(templates) == 1 and any(templates):
        said.append(f"all of the template {sweep.templates[0]!r}")
    first = table(heads, rows[:PAIRS_AT_ONCE], "; ".join(said), kind="prompts", texts=TEXTS)
    others = ""
    if n > PAIRS_AT_ONCE:
        of = f" of {n - PAIRS_AT_ONCE:,}" if n > MOST_PAIRS else ""
        caption = f"{caption}: {len(rows) - PAIRS_AT_ONCE} more{of}"
        others = table(heads, rows[PAIRS_AT_ONCE:], caption, kind="prompts", texts=TEXTS)
    return REPORT.render("pairs.html", first=first, others=others, n_others=n - PAIRS_AT_ONCE)


def data_section(shown: Mapping[str, SweepResults]) -> Markup:
    """A button per sweep that saves its long table, which the page carries packed: as CSV, what `to_csv` writes.

    The page's script puts its columns side by side. Packed text has no letter that HTML would read, whatever tokens
    there are.
    """
    files = []
    for name, results in shown.items():
        frame = results.to_dataframe()
        columns = csv_columns(frame)
        files.append(
            {
                "name": name.lower().replace(" ", "_"),
                "n_columns": frame.shape[1],
                "size": _size(len(columns)),
                "packed": base64.b64encode(gzip.compress(columns, mtime=0)).decode(),
            }
        )
    return REPORT.render("data.html", files=files)


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str,
    *,
    numbers: bool = False,
    kind: str = "",
    texts: Collection[str] = (),
) -> Markup:
    """A table that scrolls by itself where it is too wide.

    Args:
        heads: of each column.
        rows: their first cells are heads too. The last cell of a row that has fewer than there are columns spans these.
        caption: what the table shows.
        numbers: whether all but the first column hold numbers, which stand on the right.
        kind: a class for its style.
        texts: headings of the columns that hold long texts.
    """
    classes = ["number" if numbers and i else "text" if heading in texts else "" for i, heading in enumerate(heads)]
    return REPORT.render("table.html", heads=heads, rows=rows, caption=caption, kind=kind, classes=classes)


def _labels(results: SweepResults) -> list[str]:
    return results.labels if isinstance(results, OfHeads) else results.sweep.labels


def _heads(sweep: Sweep) -> str:
    if sweep.n_key_value_heads == sweep.n_heads:
        return f"{sweep.n_heads} heads"
    return f"{sweep.n_heads} heads, {sweep.n_key_value_heads} key-value heads"


def _patched(_: str, sweep: Sweep) -> str:
    if isinstance(edges := sweep.patches, EdgePatches):
        senders, receivers = count(len(edges.used_writers), "sender"), count(len(edges.used_readers), "receiver")
        return f"{count(len(edges), 'edge')} from {senders} to {receivers}"
    return ", ".join(dict.fromkeys(site.component for patch in sweep.patches for site in patch.sites))


def _corruption(_: str, sweep: Sweep) -> str:
    return sweep.noise or f"another prompt{f', which varies {sweep.varies}' if sweep.varies else ''}"


def _pairs(_: str, sweep: Sweep) -> str:
    seed = "" if sweep.dataset_seed is None else f", drawn from seed {sweep.dataset_seed}"
    return pairs_used(sweep.usable) + seed


def _drawn(statistics: SiteStatistics | str) -> str:
    if isinstance(statistics, str):
        return statistics
    return f"from {statistics.n_pairs} pairs, {statistics.n_resamples} resamples, seed {statistics.seed}"


def _interval(low: float, high: float) -> str:
    return "none" if np.isnan(low) else f"{signed(low)} to {signed(high)}"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{max(n_bytes / 1e3, 0.1):.0f} kB"
