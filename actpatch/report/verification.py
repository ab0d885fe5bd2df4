"""The section of a report on a screen by estimates: what exact runs say of it, in words, figures and a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from actpatch.core.heavy import go
from actpatch.core.text import with_minus
from actpatch.figures.page import figures_html
from actpatch.figures.verification import create_agreement_map, create_estimate_comparison
from actpatch.report.parts import TOP_ROWS, table
from actpatch.report.rendering import REPORT
from actpatch.results.verification import Verification
from actpatch.results.verification_text import verified_rows

if TYPE_CHECKING:
    from markupsafe import Markup

HEADING = "How far can the estimates be trusted?"
NAMES = COMPARISON, MAP = "estimate_comparison", "agreement_map"
"""Names of the figures, and of their files."""


def verification_figures(verification: Verification) -> dict[str, go.Figure]:
    """The figures of it that there can be, by name."""
    figures = {COMPARISON: create_estimate_comparison(verification)}
    if len(verification.by_layer_and_kind().dropna(subset=["layer", "error"])):
        figures[MAP] = create_agreement_map(verification)
    return figures


def verification_section(verification: Verification, figures: Mapping[str, go.Figure]) -> Markup:
    """What was verified and what may have been missed, its figures, and the largest exact effects beside estimates."""
    v = verification
    rows = verified_rows(v, TOP_ROWS)
    heads = [v.kind.capitalize(), "Estimate", "Exact effect", "Verified as"]
    caption = f"The largest {len(rows)} of {len(v.numbers):,} exact effects"
    return REPORT.render(
        "verification.html",
        told=with_minus(v.summary()),
        figures=figures_html(figures),
        table=table(heads, rows, caption, numbers=True),
    )
