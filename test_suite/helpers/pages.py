"""Pages opened in a browser, and the scripts that look at them there."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path
from typing import Any

WIDTHS = (390, 1024, 1600)
PATIENCE = 600_000
"""Milliseconds until a page counts as hanging: nothing is measured by it, and a busy machine may be slow."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A report in the browser, with what the page asked for and complained about."""

    page: Any
    requests: list[str]
    complaints: list[str]
    nodes: int
    """Elements and texts that the page consists of once its last figure is drawn: what a browser has to lay out."""


def open_report(browser: Any, path: Path, **options: Any) -> Opened:
    requests: list[str] = []
    complaints: list[str] = []
    context = browser.new_context(offline=True, **options)
    context.set_default_timeout(PATIENCE)
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page = context.new_page()
    page.on("request", lambda request: requests.append(request.url[:200]))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    page.goto(path.as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('.drawn')].every(f => f.querySelector('.main-svg .nsewdrag'))"
    )
    nodes = page.evaluate("document.evaluate('count(//node())', document, null, 1, null).numberValue")
    return Opened(page, requests, complaints, int(nodes))


def resize(page: Any, width: int) -> None:
    """Another width of the window, with every figure drawn anew."""
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("""async () => {
        window.dispatchEvent(new Event("resize"));
        await new Promise((done) => setTimeout(done, 250));
        for (const figure of document.querySelectorAll(".js-plotly-plot")) await Plotly.Plots.resize(figure);
    }""")


OVERLAPS = """
() => {
  const near = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1.5;
  const found = [];
  for (const figure of document.querySelectorAll(".js-plotly-plot")) {
    const parts = [];
    const around = [".gtitle", ".gtitle-subtitle", ".xtick text", ".ytick text", "[class^=g-x] text",
      "[class^=g-y] text", ".legend", ".colorbar .cbaxis text", ".cbtitle text"];
    const inside = [".textpoint text", ".annotation-text"];
    for (const sort of [...around, ...inside, ".nsewdrag"]) {
      for (const part of figure.querySelectorAll(sort)) {
        const box = part.getBoundingClientRect();
        if (box.width && box.height) parts.push([`${sort} ${part.textContent.slice(0, 30)}`, box]);
      }
    }
    const whole = figure.querySelector(".main-svg").getBoundingClientRect();
    parts.forEach(([name, box], i) => {
      if (box.left < whole.left - 1 || box.right > whole.right + 1 || box.top < whole.top - 1
        || box.bottom > whole.bottom + 1) found.push(`${figure.id}: ${name} is cut off`);
      for (const [other, another] of parts.slice(i + 1))
        if (near(box, another) && !(other.startsWith(".nsewdrag") && inside.some((sort) => name.startsWith(sort))))
          found.push(`${figure.id}: ${name} is on ${other}`);
    });
  }
  for (const part of document.querySelectorAll("h1, h2, p, summary, button, td, th, li, figure")) {
    const box = part.getBoundingClientRect();
    if (!part.closest(".card") && box.right > innerWidth) found.push(`${part.textContent.slice(0, 40)} is cut off`);
  }
  return found;
}
"""

CONTRAST = """
  // Colours are read off a canvas, whatever way they are written.
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const paint = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = colour;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => rgba(colour).slice(0, 3)
    .map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (one, other) => {
    const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
"""
"""WCAG 2.2's contrast of two colours."""


def shown_text(page: str) -> str:
    """The page's words, without scripts, styles and tags."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", bare)))
