"""The templates of single figures' pages. Knows no figure."""

from __future__ import annotations

from pathlib import Path

from actpatch.core.templates import Templates

FIGURES = Templates(Path(__file__).parent / "templates")
"""What the page of a single figure is made of."""
