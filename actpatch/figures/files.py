"""Figures as files: HTML that needs nothing else; PNG, SVG and PDF with the extra `images`. Knows no results."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from actpatch.core.heavy import go
from actpatch.figures.page import figure_page
from actpatch.results.files import write_file

HTML, IMAGES = ".html", (".png", ".svg", ".pdf")
PIXELS_PER_PIXEL = 2
"""Images are so much finer than the figure on a screen, for print."""


def save_figure(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure in the format that the path's suffix names.

    HTML is one file that opens without a network, on a phone too, in light and in dark. PNG, SVG and PDF need the extra
    `images`, and are as light or dark as the figure (`figures.colours.on_dark`).

    Raises:
        ValueError: for another suffix, or none.
        ImportError: for an image where kaleido is not installed.
        RuntimeError: for an image where kaleido finds no Chrome or Chromium.
        OSError: where the path cannot be written; a file that was there is left alone.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (HTML, *IMAGES):
        got = f"the suffix {suffix!r}" if suffix else "no suffix"
        raise ValueError(f"{path} has {got}, expected {HTML} or, with the extra `images`, {', '.join(IMAGES)}")
    if suffix == HTML:
        return write_file(path, figure_page("figure", figure).encode())
    return write_file(path, _image(figure, suffix.removeprefix(".")))


def _image(figure: go.Figure, kind: str) -> bytes:
    if find_spec("kaleido") is None:
        raise ImportError(
            f"writing {kind.upper()} needs the package kaleido, which is not installed: pip install 'kaleido>=1', with "
            "Chrome or Chromium beside it, or write .html"
        )
    import plotly.io

    try:
        return plotly.io.to_image(figure, format=kind, scale=PIXELS_PER_PIXEL)
    except RuntimeError as error:
        if "Chrome" not in str(error):
            raise
        raise RuntimeError(
            f"writing {kind.upper()} needs Chrome or Chromium, which kaleido did not find: install one "
            "(plotly_get_chrome does), name it in the environment variable BROWSER_PATH, or write .html"
        ) from error
