"""Figures as files: HTML that needs nothing else; PNG, SVG and PDF with the extra `images`. Knows no results."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from actpatch.core.files import write_files
from actpatch.core.heavy import go
from actpatch.figures.captions import figure_caption, without_caption
from actpatch.figures.page import figure_page
from actpatch.figures.paper import length, sized

HTML, IMAGES = ".html", (".png", ".svg", ".pdf")
CAPTION = ".txt"
SCREEN, PRINT = 2.0, 600 / 96
"""Pixels of a PNG for each of the figure: twice as fine as a screen, and 600 to the inch on paper."""


def save_figure(
    figure: go.Figure,
    path: str | Path,
    *,
    width: str | float | None = None,
    height: str | float | None = None,
    caption: bool = True,
) -> Path:
    """Write a figure in the format that the path's suffix names.

    HTML is one file that opens without a network, on a phone too, in light and in dark. PNG, SVG and PDF need the extra
    `images`, and are as light or dark as the figure (`figures.colours.on_dark`).

    Args:
        figure: any Plotly figure.
        path: with the suffix `.html`, `.png`, `.svg` or `.pdf`.
        width: a text with a unit of mm, cm, in or px, as `"85mm"`, or a number of pixels; None is the figure's own. In
            a unit of paper text has 7 to 8 points, a title 10, and a PNG 600 pixels to the inch; in pixels, of which
            there are 96 to the inch, text is as large as on a screen, and a PNG has 2 × 2 of its own for each. Labels
            that would lie on each other are left out, and so are numbers that their cells have no room for.
        height: likewise; None follows from the width and the figure's own ratio, below title and subtitle, and is more
            where rows of names need it.
        caption: False leaves title and subtitle out of the picture with the room they take, and writes them as text
            (`figures.captions.figure_caption`) to a file of the same name with the suffix `.txt`.

    Returns:
        The path of the figure.

    Raises:
        ValueError: for another suffix, or none, and for a width or height that is none or too small for the figure.
        ImportError: for an image where kaleido is not installed.
        RuntimeError: for an image where kaleido finds no Chrome or Chromium.
        OSError: where the path cannot be written; a file that was there is left alone.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (HTML, *IMAGES):
        got = f"the suffix {suffix!r}" if suffix else "no suffix"
        raise ValueError(f"{path} has {got}, expected {HTML} or, with the extra `images`, {', '.join(IMAGES)}")
    asked = {name: length(name, given) for name, given in (("width", width), ("height", height)) if given is not None}
    if suffix == HTML:
        drawn = sized(figure, **asked) if asked else figure
        content = figure_page("figure", drawn, captioned=caption).encode()
    else:
        drawn = figure if caption else without_caption(figure)
        fineness = PRINT if any(side.is_paper for side in asked.values()) else SCREEN
        content = _image(sized(drawn, **asked) if asked else drawn, suffix.removeprefix("."), fineness)
    files = {Path(path): content}
    if not caption and (text := figure_caption(figure)):
        files[Path(path).with_suffix(CAPTION)] = f"{text}\n".encode()
    return write_files(files)[0]


def _image(figure: go.Figure, kind: str, fineness: float) -> bytes:
    if find_spec("kaleido") is None:
        raise ImportError(
            f"writing {kind.upper()} needs the package kaleido, which is not installed: pip install 'kaleido>=1', with "
            "Chrome or Chromium beside it, or write .html"
        )
    import plotly.io

    try:
        return plotly.io.to_image(figure, format=kind, scale=fineness if kind == "png" else 1)
    except RuntimeError as error:
        if "Chrome" not in str(error):
            raise
        raise RuntimeError(
            f"writing {kind.upper()} needs Chrome or Chromium, which kaleido did not find: install one "
            "(plotly_get_chrome does), name it in the environment variable BROWSER_PATH, or write .html"
        ) from error
