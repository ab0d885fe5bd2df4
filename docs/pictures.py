"""The drawings of README.md and of the docs, as SVG in light and in dark.

    python -m docs.pictures

writes docs/pictures/NAME.svg and NAME-dark.svg. They are narrow, with large letters, to be read on a phone too. Reads
the prompts from the task, and nothing else of the library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).with_name("pictures")
WIDTH = 600
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"


@dataclass(frozen=True)
class Colours:
    """What stands for what, in one of the two settings. Clean is blue and corrupted orange, as in the figures."""

    ink: str
    soft: str
    line: str
    box: str
    clean: str
    clean_area: str
    corrupted: str
    corrupted_area: str


LIGHT = Colours("#222222", "#555555", "#bbbbbb", "#ffffff", "#1a5a9e", "#dbe9f7", "#a14a00", "#fbe3cd")
DARK = Colours("#e4e4e4", "#b4b4b4", "#666666", "#262626", "#8cc1f5", "#1f3d5c", "#f5ae66", "#5a3510")


@dataclass
class Drawing:
    """Parts of one picture, drawn in order. Places are in pixels from the upper left."""

    height: int
    description: str
    colours: Colours
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, words: str, *, colour: str = "", size: int = 18, anchor: str = "start", bold: bool = False
    ) -> None:
        """Words on a line, whose baseline is at y."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{colour or self.colours.ink}" font-size="{size}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>"
        )

    def prompt(self, x: float, y: float, words: list[tuple[str, str, str]], *, length: float) -> None:
        """A prompt of so many pixels: (word, colour of its letters, colour behind it); colours may be empty."""
        spans = "".join(
            f'<tspan fill="{colour or self.colours.ink}"{_marked(colour)}>{escape(word)}</tspan> '
            for word, colour, _ in words
        )
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="18" textLength="{length:g}" lengthAdjust="spacingAndGlyphs">'
            f"{spans.rstrip()}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, *, fill: str = "", line: str = "") -> None:
        colours = self.colours
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill or colours.box}" '
            f'stroke="{line or colours.line}" stroke-width="1.5"/>'
        )

    def arrow(self, points: list[tuple[float, float]], *, colour: str, width: float = 3) -> None:
        """A line through points, with a head at the last."""
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        ux, uy = (x1 - x0) / length, (y1 - y0) / length
        back_x, back_y = x1 - 12 * ux, y1 - 12 * uy
        path = " ".join(f"{x:g},{y:g}" for x, y in [*points[:-1], (back_x, back_y)])
        head = f"{x1:g},{y1:g} {back_x - 7 * uy:g},{back_y + 7 * ux:g} {back_x + 7 * uy:g},{back_y - 7 * ux:g}"
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>')
        self.parts.append(f'<polygon points="{head}" fill="{colour}"/>')

    def svg(self) -> str:
        parts = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" font-family="{FONT}" role="img">\n<title>{escape(self.description)}</title>\n'
            f"{parts}\n</svg>\n"
        )


def _marked(colour: str) -> str:
    return ' font-weight="700" text-decoration="underline"' if colour else ""
