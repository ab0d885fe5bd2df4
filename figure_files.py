"""How does a figure become a file?  HTML that needs nothing else; PNG, SVG and PDF with the extra `images`."""

from __future__ import annotations

import html
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go
import plotly.io

from result_files import write_file

HTML, IMAGES = ".html", (".png", ".svg", ".pdf")
PIXELS_PER_PIXEL = 2
"""Images are so much finer than the figure on a screen, for print."""
CONFIG = {"responsive": True, "displaylogo": False}

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; background: #f4f4f4; }}
div.figure {{ max-width: {width}px; margin: 8px auto; overflow-x: auto; background: white; border-radius: 6px; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #1b1b1b; }} }}
</style>
</head>
<body>
<div class="figure"><div style="min-width: {narrowest}px">{figure}</div></div>
</body>
</html>
"""


def save_figure(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure in the format that the path's suffix names.

    HTML is one file that opens without a network, on a phone too. PNG, SVG and PDF need the extra `images`.

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
        return write_file(path, _page(figure).encode())
    return write_file(path, _image(figure, suffix.removeprefix(".")))


def narrowest(figure: go.Figure) -> int:
    """Pixels that a figure needs: maps scroll on a narrow screen, others shrink with it."""
    is_map = any(trace.type == "heatmap" for trace in figure.data)
    return int(0.75 * (figure.layout.width or 0)) if is_map else 0


def _page(figure: go.Figure) -> str:
    fluid = go.Figure(figure).update_layout(width=None)
    title = figure.layout.title.text or "Activation patching"
    return PAGE.format(
        title=html.escape(html.unescape(title)),
        width=figure.layout.width or 1150,
        narrowest=narrowest(figure),
        figure=fluid.to_html(full_html=False, include_plotlyjs=True, config=CONFIG),
    )


def _image(figure: go.Figure, kind: str) -> bytes:
    if find_spec("kaleido") is None:
        raise ImportError(
            f"writing {kind.upper()} needs the package kaleido, which is not installed: pip install 'kaleido>=1', with "
            "Chrome or Chromium beside it, or write .html"
        )
    try:
        return plotly.io.to_image(figure, format=kind, scale=PIXELS_PER_PIXEL)
    except RuntimeError as error:
        if "Chrome" not in str(error):
            raise
        raise RuntimeError(
            f"writing {kind.upper()} needs Chrome or Chromium, which kaleido did not find: install one "
            "(plotly_get_chrome does), name it in the environment variable BROWSER_PATH, or write .html"
        ) from error
