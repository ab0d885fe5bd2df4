"""The templates of reports, which build on those of the pages of single figures. Knows no results."""

from __future__ import annotations

from pathlib import Path

from actpatch.figures import rendering

REPORT = rendering.Templates(Path(__file__).parent / "templates", *rendering.FIGURES.folders)
"""What a report is made of."""
