"""How does a page look and behave?  Its style sheet and its script, in light and dark, on a phone and on paper."""

from __future__ import annotations

import json

from actpatch.figures.colours import DARK_PAPER

FIGURE_PADDING = 8
"""Pixels around each figure."""
CONFIG = {"responsive": True, "displaylogo": False}
"""How Plotly behaves."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f4f4; --card: #ffffff; --ink: #222222; --soft: #555555; --line: #d8d8d8; --link: #1a5fa8;
  --bad: #b2182b; --care: #9a5b00; --good: #1f6b3a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #1b1b1b; --card: DARK_PAPER; --ink: #e4e4e4; --soft: #b4b4b4; --line: #444444; --link: #7ab8f5;
    --bad: #ff8f8f; --care: #f0b860; --good: #7fd49b;
  }
}
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 16px; }
body { background: var(--page); color: var(--ink); overflow-wrap: break-word; }
h1 { font-size: 26px; line-height: 1.2; margin: 8px 0; }
h2 { font-size: 20px; margin: 36px 0 8px; padding-top: 8px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 20px 0 4px; }
p { max-width: 75ch; margin: 6px 0; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 8px 0; padding: 0; }
nav a { display: inline-block; padding: 4px 0; }
.soft, caption { color: var(--soft); }
.card + .soft { margin: -10px 0 24px; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.card { background: var(--card); border-radius: 6px; padding: 10px 14px; margin: 8px 0 20px; overflow-x: auto; }
.card { position: relative; width: fit-content; max-width: 100%; }
figure.card { padding: 8px; }
.figures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 20px; }
.figure { max-width: 100%; }
.drawn { width: 100%; }
.drawn.bare .textpoint { display: none; }
.scrolls::before { content: "Wider than the page: scroll sideways →"; position: sticky; left: 0; display: block; }
.scrolls::before { width: fit-content; font-size: 13px; font-weight: 600; padding: 2px 8px; color: var(--link); }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 6px; }
th, td { text-align: left; vertical-align: top; padding: 4px 18px 4px 0; border-bottom: 1px solid var(--line); }
tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
.prompts td { min-width: 200px; }
.verdict { border-left: 5px solid var(--good); padding: 2px 0 2px 14px; margin: 12px 0; }
.verdict.care { border-color: var(--care); }
.verdict.fault { border-color: var(--bad); }
.verdict > p:first-child { font-size: 17px; font-weight: 600; }
.severity { font-weight: 700; text-transform: uppercase; font-size: 12px; }
summary { cursor: pointer; padding: 6px 0; font-weight: 600; }
button { font: inherit; padding: 8px 16px; border: 1px solid var(--link); border-radius: 6px; cursor: pointer; }
button { background: var(--card); color: var(--link); margin: 0 10px 6px 0; }
ol.strip { list-style: none; display: flex; flex-wrap: wrap; gap: 3px; margin: 6px 0 14px; padding: 0; }
ol.strip > li { padding: 1px 6px; border-radius: 4px; border: 2px solid transparent; text-align: center; }
ol.strip > li { background: color-mix(in srgb, var(--tint, var(--card)) var(--share, 100%), var(--card)); }
ol.strip > li.differs { border-color: var(--ink); }
ol.strip span { display: block; font: 13px/1.45 ui-monospace, monospace; white-space: pre; }
ol.strip > li:not(.differs) .after { color: var(--soft); }
ol.strip .effect { font: 11px/1.3 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
.positive { --tint: #2166ac; }
.negative { --tint: #b2182b; }
.key { display: inline-block; padding: 0 6px; border-radius: 4px; border: 2px solid transparent; }
.key { background: color-mix(in srgb, var(--tint, var(--card)) 60%, var(--card)); }
.key.differs { border-color: var(--ink); }
@media (max-width: 600px) {
  body { padding: 10px; }
  .card { padding: 8px 10px; }
  figure.card { padding: 4px 0; }
  table { font-size: 13px; }
  th, td { padding-right: 12px; }
}
@media print {
  @page { margin: 14mm; }
  :root {
    color-scheme: only light;
    --page: #ffffff; --card: #ffffff; --ink: #000000; --soft: #444444; --line: #bbbbbb; --link: #000000;
    --bad: #8c0d1e; --care: #7a4700; --good: #14532b;
  }
  body { padding: 0; max-width: none !important; font-size: 12px; }
  nav, .on-screen, section:has(> p > button) { display: none; }
  .card { overflow: visible; padding: 0; }
  .figures { display: block; }
  .drawn { min-width: 0 !important; }
  .scrolls::before { display: none; }
  figure, .card, tr, ol.strip, .verdict { break-inside: avoid; }
  h1, h2, h3, caption { break-after: avoid; }
  ol.strip > li, .key { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
""".replace("DARK_PAPER", DARK_PAPER)

PAPER_WIDTH = 660
"""Pixels between the margins of A4 and of US letter, with some to spare."""

SCRIPT = """
for (const button of document.querySelectorAll("button[data-file]")) {
  button.addEventListener("click", async () => {
    const packed = atob(document.getElementById(button.dataset.from).textContent);
    const bytes = new Blob([Uint8Array.from(packed, (letter) => letter.charCodeAt(0))]);
    const text = await new Response(bytes.stream().pipeThrough(new DecompressionStream("gzip"))).text();
    // The table's columns one below the other; a cell in quotes may hold ends of lines.
    const cells = text.match(/(?:"(?:[^"]|"")*"|[^"\\n]*)\\n/g);
    const columns = [...Array(Number(button.dataset.columns)).keys()];
    const nRows = cells.length / columns.length;
    const lineAt = (row) => columns.map((column) => cells[column * nRows + row].slice(0, -1)).join(",") + "\\n";
    const lines = Array.from({ length: nRows }, (_, row) => lineAt(row));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "text/csv" }));
    link.download = button.dataset.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}
const dark = matchMedia("(prefers-color-scheme: dark)");
const figures = [...document.querySelectorAll("script[data-draws]")].map((carrier) => ({
  place: document.getElementById(carrier.dataset.draws),
  ...JSON.parse(carrier.textContent),
}));
let onPaper = false;
// Browsers do not tell figures that paper is narrower than the window. What needs more is made smaller.
const paperWidth = (place) => {
  const width = Math.max(Math.min(PAPER_WIDTH, place.clientWidth), parseFloat(place.style.minWidth));
  place.style.zoom = Math.min(1, PAPER_WIDTH / width);
  return width;
};
let latest = 0;
const draw = async () => {
  const mine = ++latest;
  const isDark = dark.matches && !onPaper;
  for (const { place, figure, colours } of figures) {
    for (const [path, onLight, onDark] of colours) {
      const part = path.slice(0, -1).reduce((whole, key) => whole[key], figure);
      part[path.at(-1)] = isDark ? onDark : onLight;
    }
    place.style.zoom = "";
    Plotly.newPlot(place, figure.data, { ...figure.layout, width: onPaper ? paperWidth(place) : undefined }, CONFIG);
    if (onPaper) continue; // what is not drawn when the event ends is not printed
    await new Promise((goOn) => setTimeout(goOn)); // the page can be read meanwhile
    if (mine !== latest) return;
  }
};
draw();
dark.addEventListener("change", draw);
for (const [moment, isPaper] of [["beforeprint", true], ["afterprint", false]])
  window.addEventListener(moment, () => {
    onPaper = isPaper;
    draw();
  });
const fit = new ResizeObserver(() => {
  for (const card of document.querySelectorAll(".card"))
    card.classList.toggle("scrolls", card.scrollWidth > card.clientWidth + 1);
  for (const { place } of figures) place.classList.toggle("bare", place.clientWidth < place.dataset.numbers);
});
for (const card of document.querySelectorAll(".card")) fit.observe(card);
""".replace("PAPER_WIDTH", str(PAPER_WIDTH)).replace("CONFIG", json.dumps(CONFIG))
