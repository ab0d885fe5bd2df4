"""The drawings of README.md and of the docs, as SVG in light and in dark.

    python -m docs.drawings

writes docs/pictures/NAME.svg and NAME-dark.svg. They are narrow, with large letters, to be read on a phone too. Knows
nothing of the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).with_name("pictures")
WIDTH = 600
MARGIN = 20
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"
CODE = "ui-monospace, Menlo, Consolas, 'Liberation Mono', monospace"

PROMPT = "When Mary and John went to the store, John gave a drink to"
CORRUPTIONS = (  # name, prompt with * before what is changed, what it changes, the right answer
    ("swap_names", "When *John and *Mary went to the store, *Mary gave a drink to", "who is the subject", "John"),
    ("flip_subject", "When Mary and John went to the store, *Mary gave a drink to", "who, and where it stood", "John"),
    ("unrelated_names", "When *Tom and *Anna went to the store, *Paul gave a drink to", "all names", "neither"),
    ("swap_order", "When *John and *Mary went to the store, John gave a drink to", "breaks nothing", "still Mary"),
)


@dataclass(frozen=True)
class Colours:
    """One of the two settings. Clean is blue and corrupted orange."""

    ink: str
    soft: str
    line: str
    paper: str
    cell: str
    clean: str
    corrupted: str


LIGHT = Colours("#222222", "#555555", "#999999", "#ffffff", "#e6e6e6", "#1a5a9e", "#a14a00")
DARK = Colours("#e4e4e4", "#b4b4b4", "#808080", "#262626", "#4a4a4a", "#8cc1f5", "#f5ae66")


@dataclass
class Drawing:
    """Parts of one picture, drawn in order on paper of its own. Places are in pixels from the upper left."""

    colours: Colours
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, colour: str = "", *, anchor: str = "start", **style: str) -> None:
        """Words on a line whose baseline is at y; one with * before it is marked in the colour of corrupted."""
        marked = f'<tspan fill="{self.colours.corrupted}" font-weight="700" text-decoration="underline">'
        spans = [
            f"{marked}{escape(word[1:])}</tspan>" if word.startswith("*") else escape(word) for word in words.split(" ")
        ]
        attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in style.items())
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{colour or self.colours.ink}" text-anchor="{anchor}"{attributes}>'
            f"{' '.join(spans)}</text>"
        )

    def box(self, x: float, y: float, width: float, height: float, line: str, fill: str = "none") -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" fill="{fill}" stroke="{line}" '
            f'stroke-width="2"/>'
        )

    def line(self, x: float, y: float, to_x: float, to_y: float, colour: str, width: float = 2) -> None:
        self.parts.append(
            f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{colour}" stroke-width="{width:g}"/>'
        )

    def arrow(self, x: float, y: float, to_x: float, to_y: float, colour: str) -> None:
        """Along or across the page."""
        length = abs(to_x - x) + abs(to_y - y)
        along, down = (to_x - x) / length, (to_y - y) / length
        self.line(x, y, to_x - 12 * along, to_y - 12 * down, colour, 4)
        corners = [(to_x, to_y)] + [
            (to_x - 16 * along + side * down, to_y - 16 * down + side * along) for side in (-9, 9)
        ]
        self.parts.append(f'<polygon points="{" ".join(f"{px:g},{py:g}" for px, py in corners)}" fill="{colour}"/>')

    def svg(self, height: int, description: str) -> str:
        paper = f'<rect width="{WIDTH}" height="{height}" rx="8" fill="{self.colours.paper}"/>'
        return "\n".join((
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'font-family="{FONT}" font-size="18" role="img">',
            f"<title>{escape(description)}</title>",
            paper,
            *self.parts,
            "</svg>\n",
        ))  # fmt: skip


def steps(colours: Colours) -> str:
    """Two prompts and one arrow: a clean run, a corrupted run, the patch, and what comes back."""
    drawing = Drawing(colours)
    first_cell, patched_cell, n_cells, cell = 214, 5, 11, 24
    x_of = [first_cell + 33 * i for i in range(n_cells)]
    for y, cells_at, title, second, answer, colour in (
        (10, 84, "1  Clean run", "John gave a drink to", "Mary", colours.clean),
        (200, 16, "2  Corrupted run", "*Mary gave a drink to", "John", colours.corrupted),
    ):
        drawing.box(10, y, WIDTH - 20, 124, colour)
        text_at = 30 if cells_at > 60 else 74
        drawing.text(MARGIN + 8, y + text_at, "When Mary and John went to the store,")
        drawing.text(MARGIN + 8, y + text_at + 28, second)
        drawing.text(WIDTH - MARGIN - 8, y + text_at + 28, f"→ {answer}", colour, anchor="end", font_weight="700")
        drawing.text(MARGIN + 8, y + cells_at + 18, title, colour, font_weight="700")
        for i, x in enumerate(x_of):
            filled = colours.clean if i == patched_cell else colours.cell
            drawing.box(x, y + cells_at, cell, cell, filled, filled)
    arrow_at = x_of[patched_cell] + cell / 2
    drawing.arrow(arrow_at, 120, arrow_at, 214, colours.clean)
    drawing.text(MARGIN + 8, 174, "3  Patched run: one activation", font_weight="700")

    left, right, y, effect = 214, 560, 390, 0.6
    at = left + effect * (right - left)
    drawing.text(MARGIN + 8, y + 6, "4  Measure", font_weight="700")
    drawing.line(left, y, right, y, colours.line, 4)
    drawing.line(left, y, at, y, colours.clean, 8)
    for x, name, value, colour in (
        (left, "corrupted", "0", colours.corrupted),
        (right, "clean", "1", colours.clean),
    ):
        drawing.line(x, y - 12, x, y + 12, colour, 4)
        drawing.text(x, y + 36, name, colour, anchor="middle")
        drawing.text(x, y - 22, value, colour, anchor="middle")
    drawing.parts.append(f'<circle cx="{at:g}" cy="{y}" r="9" fill="{colours.ink}"/>')
    drawing.text(at, y - 22, f"effect {effect:g}", anchor="middle", font_weight="700")
    drawing.text(at, y + 36, "patched", anchor="middle")
    return drawing.svg(
        444, "A clean run, a corrupted run, one activation put from one into the other, and what comes back"
    )


def corruptions(colours: Colours) -> str:
    """The clean prompt and the four corrupted ones."""
    drawing = Drawing(colours)
    rows = [("clean", PROMPT, "", "Mary"), *CORRUPTIONS]
    for i, (name, prompt, changes, answer) in enumerate(rows):
        y = 34 + 82 * i
        colour = colours.clean if i == 0 else colours.ink
        drawing.text(MARGIN, y, name, colour, font_family=CODE, font_weight="700")
        drawing.text(214, y, changes, colours.soft)
        drawing.text(WIDTH - MARGIN, y, f"→ {answer}", colour, anchor="end", font_weight="700")
        drawing.text(MARGIN, y + 30, prompt, font_size="17")
        if i < len(rows) - 1:
            drawing.line(MARGIN, y + 48, WIDTH - MARGIN, y + 48, colours.cell, 1)
    return drawing.svg(34 + 82 * 4 + 52, "The clean prompt and four corrupted ones, with the changed words in colour")


def directions(colours: Colours) -> str:
    """Denoising and noising: two arrows between the same two runs."""
    drawing = Drawing(colours)
    for y, name, question, ends, denoising in (
        (10, "Denoising", "does it suffice?", ("0: still corrupted", "1: clean again"), True),
        (160, "Noising", "is it necessary?", ("0: still clean", "1: as corrupted"), False),
    ):
        colour = colours.clean if denoising else colours.corrupted
        drawing.text(MARGIN, y + 26, name, colour, font_weight="700")
        drawing.text(WIDTH - MARGIN, y + 26, question, anchor="end", font_weight="700")
        for x, run, of_run in ((MARGIN, "clean run", colours.clean), (390, "corrupted run", colours.corrupted)):
            drawing.box(x, y + 42, 190, 54, of_run)
            drawing.text(x + 95, y + 75, run, of_run, anchor="middle")
        drawing.text(300, y + 60, "one activation", anchor="middle")
        start, end = (218, 382) if denoising else (382, 218)
        drawing.arrow(start, y + 80, end, y + 80, colour)
        drawing.text(MARGIN, y + 124, "effect", colours.soft)
        drawing.text(300, y + 124, ends[0], colours.soft, anchor="middle")
        drawing.text(WIDTH - MARGIN, y + 124, ends[1], colours.soft, anchor="end")
    return drawing.svg(
        304, "Denoising puts a clean activation into the corrupted run, noising a corrupted one into the clean run"
    )


def edges(colours: Colours) -> str:
    """An edge, path patching and a path: which boxes the change goes through, and what is held."""
    drawing = Drawing(colours)
    for y, name, what, stops in (
        (10, "Edge", "one receiver reads the change of one sender", ("L5H3", "L9H9 q")),
        (172, "Path patching", "several receivers read it together", ("L5H3", "L9H9 q, L9H6 q")),
        (334, "Path", "each reads only what the one before it changed", ("L3H0", "L5H5 v", "L9H9 q")),
    ):
        drawing.text(MARGIN, y + 24, name, font_weight="700")
        drawing.text(WIDTH - MARGIN, y + 24, what, colours.soft, anchor="end", font_size="17")
        boxes = [*stops, "logits"]
        width, gap = (118, 30) if len(boxes) == 4 else (150, 55)
        for i, box in enumerate(boxes):
            x = MARGIN + i * (width + gap)
            first, last = i == 0, i == len(boxes) - 1
            colour = colours.clean if first else colours.ink
            drawing.box(x, y + 40, width, 50, colours.line if last else colour)
            drawing.text(x + width / 2, y + 71, box, colour, anchor="middle", font_size="17")
            if not last:
                drawing.arrow(x + width + 3, y + 65, x + width + gap - 3, y + 65, colours.clean)
    for y, words in (
        (124, "on the way, all other heads and MLPs: held as they were"),
        (286, "on the way, other heads: held; MLPs: held, or computed anew"),
        (448, "on the way, all else: held as it was"),
    ):
        drawing.text(MARGIN, y, words, colours.corrupted, font_size="17")
    drawing.text(WIDTH / 2, 490, "behind the last receiver, all is computed anew", colours.soft, anchor="middle")
    return drawing.svg(
        510, "An edge, path patching of a head and a path of several steps: what goes on, and what is held"
    )


PICTURES: dict[str, Callable[[Colours], str]] = {
    "steps": steps,
    "corruptions": corruptions,
    "directions": directions,
    "edges": edges,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(LIGHT), encoding="utf-8")
        (FOLDER / f"{name}-dark.svg").write_text(draw(DARK), encoding="utf-8")


if __name__ == "__main__":
    main()
