"""What does a reader open?  One page that carries everything and needs no network, and a page for each figure.

`report.html` can be sent alone: plotly.js, figures and data are in it. The figures' own pages share the plotly.js that
is written beside them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from actpatch.figures.page import figure_page, figures_html, html_page
from actpatch.report.parts import HOW_TO_READ, data_section, effects_section, pairs_section, settings_section
from actpatch.report.tokens import strips_section
from actpatch.report.verdict import apart, verdict_section
from actpatch.results.check import DatasetCheck
from actpatch.results.files import write_files
from actpatch.results.shapes import PositionResults, SweepResults
from actpatch.statistics.sites import SiteStatistics

REPORT_FILE = "report.html"
PLOTLY_FILE = "plotly.min.js"
SIDE_BY_SIDE = 1530
"""Pixels of a map of twelve heads and bars beside each other."""


def write_report(
    folder: Path,
    figures: Mapping[str, go.Figure],
    shown: Mapping[str, SweepResults],
    sure: Mapping[str, SiteStatistics | str],
    check: DatasetCheck | None,
) -> list[Path]:
    """Write the report and the figures, all of them or, where that fails, none.

    Args:
        folder: where to; it exists.
        figures: by the name of their files.
        shown: the results they were drawn from, by what a reader calls them.
        sure: the statistics of each, or why it has none.
        check: what a linter says of the dataset.

    Returns:
        The written paths, the report's first.

    Raises:
        OSError: where a file cannot be written; all are then as they were.
    """
    pages = {REPORT_FILE: report_page(figures, shown, sure, check)}
    for name, figure in figures.items():
        back = f'<p class="on-screen"><a href="{REPORT_FILE}">The whole report</a></p>'
        pages[f"{name}.html"] = figure_page(name, figure, PLOTLY_FILE, above=back)
    pages[PLOTLY_FILE] = get_plotlyjs()
    return write_files({folder / name: text.encode() for name, text in pages.items()})


def report_page(
    figures: Mapping[str, go.Figure],
    shown: Mapping[str, SweepResults],
    sure: Mapping[str, SiteStatistics | str],
    check: DatasetCheck | None,
) -> str:
    """The report as one HTML page; what `write_report` says of its arguments."""
    sections = {"Figures": figures_html(figures)}
    title = "Activation patching report"
    if shown:
        sweeps = {name: results.sweep for name, results in shown.items()}
        positions = next((results for results in shown.values() if isinstance(results, PositionResults)), None)
        first = next(iter(sweeps.values()))
        strips = strips_section(first if positions is None else positions.sweep, positions)
        sections = {
            "Can these pairs carry a conclusion?": verdict_section(check, sweeps),
            "What was run": settings_section(shown, sure),
            **sections,
            "Largest effects": "".join(effects_section(shown[name], sure[name], name) for name in shown),
            "Prompts": strips + "".join(pairs_section(sweep, names) for names, sweep in apart(sweeps).items()),
            "How to read a score": HOW_TO_READ,
            "Data": data_section(shown),
        }
        title = f"Activation patching: {first.task} on {first.model}"
    else:
        unknown = "<p>Drawn from a plain list of heads, which does not know what was run.</p>"
        sections = {"What was run": unknown, **sections, "How to read a score": HOW_TO_READ}
    keys = {heading: f"part-{number}" for number, heading in enumerate(sections, start=1)}
    links = "".join(f'<li><a href="#{key}">{heading}</a></li>' for heading, key in keys.items())
    parts = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{heading}</h2>{sections[heading]}</section>'
        for heading, key in keys.items()
    )
    body = (
        f'<header><h1>{html.escape(title)}</h1><nav aria-label="Parts of the report"><ul>{links}</ul></nav></header>'
        f"<main>{parts}</main>"
    )
    return html_page(html.escape(title), body, widest=SIDE_BY_SIDE)
