"""The pages of a report: one that carries everything and needs no network, and one for each figure.

`report.html` can be sent alone: plotly.js, figures and data are in it. The figures' own pages share the plotly.js that
is written beside them. This module puts sections in order; it knows nothing of what stands in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actpatch.core.estimate_words import estimated_from
from actpatch.core.files import write_files
from actpatch.core.heavy import go
from actpatch.core.text import with_minus
from actpatch.figures.page import figure_page, figures_html, page_values
from actpatch.report import circuits as of_circuits
from actpatch.report.cards import cards_section
from actpatch.report.circuits import CircuitParts, circuit_section
from actpatch.report.parts import data_section, effects_section, pairs_section, settings_section
from actpatch.report.rendering import REPORT
from actpatch.report.tokens import strips_section
from actpatch.report.verdict import apart, verdict_section
from actpatch.report.verification import HEADING, NAMES, verification_section
from actpatch.results.cards import HeadCards
from actpatch.results.check import DatasetCheck
from actpatch.results.headline import headline
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import SweepResults
from actpatch.results.verification import Verification
from actpatch.statistics.sites import SiteStatistics

if TYPE_CHECKING:
    from markupsafe import Markup

REPORT_FILE = "report.html"
PLOTLY_FILE = "plotly.min.js"
TOLD = 2
"""So many kinds of results are told of in the sentence on what was found: heads, and the layers that they are of."""
LEADING = 2
"""Figures that stand beside what was found: the map and the bars."""
SIDE_BY_SIDE = 1530
"""Pixels of a map of twelve heads and bars beside each other."""


def write_report(
    folder: Path,
    figures: Mapping[str, go.Figure],
    shown: Mapping[str, SweepResults],
    statistics: Mapping[str, SiteStatistics | str],
    check: DatasetCheck | None,
    cards: HeadCards | None = None,
    own: Mapping[str, Sequence[str]] | None = None,
    verification: Verification | None = None,
    circuit: CircuitParts | None = None,
) -> list[Path]:
    """Write the report and the figures, all of them or, where that fails, none.

    Args:
        folder: where to; it exists.
        figures: by the name of their files.
        shown: the results they were drawn from, by what a reader calls them.
        statistics: of each, or why it has none.
        check: what a linter says of the dataset.
        cards: what single heads do.
        own: results that have a section of their own beside others -> the names of their figures.
        verification: what exact runs say of estimates, whose figures stand in its section.
        circuit: what there is to tell of a circuit, likewise.

    Returns:
        The written paths, the report's first.

    Raises:
        OSError: where a file cannot be written; all are then as they were.
    """
    from plotly.offline import get_plotlyjs

    report = report_page(figures, shown, statistics, check, cards, own, verification, circuit)
    pages: dict[str, str] = {REPORT_FILE: report}
    for name, figure in figures.items():
        pages[f"{name}.html"] = figure_page(name, figure, PLOTLY_FILE, report=REPORT_FILE)
    pages[PLOTLY_FILE] = get_plotlyjs()
    return write_files({folder / name: text.encode() for name, text in pages.items()})


def report_page(
    figures: Mapping[str, go.Figure],
    shown: Mapping[str, SweepResults],
    statistics: Mapping[str, SiteStatistics | str],
    check: DatasetCheck | None,
    cards: HeadCards | None = None,
    own: Mapping[str, Sequence[str]] | None = None,
    verification: Verification | None = None,
    circuit: CircuitParts | None = None,
) -> Markup:
    """The report as one HTML page; what `write_report` says of its arguments."""
    from markupsafe import Markup

    sections = {}
    of_estimates = {name: figure for name, figure in figures.items() if name in NAMES}
    of_circuit = {name: figure for name, figure in figures.items() if name in of_circuits.NAMES}
    figures = {name: one for name, one in figures.items() if name not in (*NAMES, *of_circuits.NAMES)}
    together = {name: results for name, results in shown.items() if name not in (own or {})}
    apart_figures = {kind: {name: figures[name] for name in names} for kind, names in (own or {}).items()}
    if not together:
        together, own_first = dict(shown), {name: one for each in apart_figures.values() for name, one in each.items()}
        figures, apart_figures = {**own_first, **figures}, {}
    others = {name: one for name, one in figures.items() if not any(name in each for each in apart_figures.values())}
    leading = dict(list(others.items())[:LEADING]) if shown else {}
    if others := {name: figure for name, figure in others.items() if name not in leading}:
        sections["More figures" if leading else "Figures"] = figures_html(others)
    for kind, drawn in apart_figures.items():
        told = with_minus(headline(shown[kind]))
        sections[kind] = Markup().join(
            [
                REPORT.render("finding.html", headline=told, figures=figures_html(drawn)),
                effects_section(shown[kind], statistics[kind], kind),
            ]
        )
    if verification is not None:
        sections[HEADING] = verification_section(verification, of_estimates)
    if circuit:
        sections[of_circuits.HEADING] = circuit_section(circuit, of_circuit)
    if cards is not None:
        sections["What these heads do"] = cards_section(cards)
    estimates = _estimates(shown)
    has_estimates = bool(estimates) or verification is not None
    how_to_read = REPORT.render("how_to_read.html", has_estimates=has_estimates, has_circuit=bool(circuit))
    title = "Activation patching report"
    if shown:
        sweeps = {name: results.sweep for name, results in shown.items()}
        positions = next((results for results in shown.values() if isinstance(results, PositionResults)), None)
        first = next(iter(sweeps.values()))
        strips = strips_section(first if positions is None else positions.sweep, positions)
        found = REPORT.render(
            "finding.html",
            headline=with_minus(headline(*list(together.values())[:TOLD])),
            figures=figures_html(leading),
        )
        sections = {
            "What was found": found,
            "Can these pairs carry a conclusion?": verdict_section(check, sweeps),
            "What was run": settings_section(shown, statistics),
            "Prompts": strips + Markup().join(pairs_section(sweep, names) for names, sweep in apart(sweeps).items()),
            **sections,
            "Largest effects": Markup().join(effects_section(shown[name], statistics[name], name) for name in together),
            "How to read a score": how_to_read,
            "Data": data_section(shown),
        }
        title = f"Activation patching: {first.task} on {first.model}"
    elif of := cards or (verification and verification.estimated) or circuit:
        sections["How to read a score"] = how_to_read
        title = f"Activation patching: {' on '.join(filter(None, [of.task, of.model]))}"
    else:
        unknown = REPORT.render("plain_list.html")
        sections = {"What was run": unknown, **sections, "How to read a score": how_to_read}
    page = page_values(widest=SIDE_BY_SIDE)
    return REPORT.render("report.html", title=title, estimates=estimates, sections=sections, page=page)


def _estimates(shown: Mapping[str, SweepResults]) -> list[str]:
    """A line for each method by which some of the results are estimated; none where all patches were run."""
    of_method: dict[str, list[str]] = {}
    for name, results in shown.items():
        if results.sweep.estimate is not None:
            of_method.setdefault(estimated_from(results.sweep.estimate), []).append(name)
    return [f"{', '.join(names)}: effects are {method}; no patch was run." for method, names in of_method.items()]
