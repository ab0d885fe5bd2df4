"""The templates of reports, which build on those of the pages of single figures. Knows no results."""

from __future__ import annotations

from pathlib import Path

from actpatch.core.templates import Templates
from actpatch.figures.rendering import FIGURES

REPORT = Templates(Path(__file__).parent / "templates", *FIGURES.folders)
"""What a report is made of."""
