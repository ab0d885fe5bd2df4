"""How do figures become pages?  The report's HTML, which needs no network."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go

from figure_words import metric_name, pairs_used
from patching_sweep import Sweep

PLOTLY_FILE = "plotly.min.js"

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1150px; margin: 0 auto; padding: 16px; }
body { background: #f4f4f4; color: #222; }
a { color: #1a5fa8; }
.card { background: white; color: #222; color-scheme: only light; }
.card { border-radius: 6px; padding: 8px; margin: 8px 0 24px; overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 4px 14px 4px 0; border-bottom: 1px solid #ddd; }
th { white-space: nowrap; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } a { color: #7ab8f5; } }
"""

HOW_TO_READ = """
<h2>How to read a score</h2>
<p>A patch copies one activation from the source run into the base run. <b>Denoising</b> copies from the clean run into
the corrupted one and asks whether the component suffices to restore the behaviour; <b>noising</b> copies from the
corrupted run into the clean one and asks whether the component is necessary for it.</p>
<p><code>effect = (patched &minus; base) / (source &minus; base)</code>, over pairs as a ratio of means. <b>0</b>: the
patch changes nothing. <b>1</b>: it moves the metric all the way to the source run. <b>Below 0</b>: it moves the metric
the other way. <b>Above 1</b>: it overshoots. Effects of single components need not add up to 1.</p>
<p>Pairs whose clean and corrupted metric barely differ are left out. Grey cells were not measured. Each map has its own
colour scale, symmetric about 0: compare colours within a map only.</p>
"""


def index_page(figures: Mapping[str, go.Figure], sweeps: Mapping[str, Sweep]) -> str:
    drawn = [
        f'<p><a href="{name}.html">{figure.layout.title.text}</a></p>{figure_html(name, figure)}'
        for name, figure in figures.items()
    ]
    pairs = [_pair_table(name, sweep) for name, sweep in sweeps.items()]
    title = "Activation patching report"
    return html_page(
        title, "\n".join([f"<h1>{title}</h1>", _settings(sweeps), HOW_TO_READ, "<h2>Figures</h2>", *drawn, *pairs])
    )


def _settings(sweeps: Mapping[str, Sweep]) -> str:
    if not sweeps:
        return "<p>Drawn from a plain list of heads, which does not know its settings.</p>"
    rows: dict[str, Callable[[Sweep], str]] = {
        "Model": lambda sweep: sweep.model,
        "Task": lambda sweep: sweep.task,
        "Direction": lambda sweep: f"{sweep.direction} ({sweep.question})",
        "Corrupted by": lambda sweep: sweep.noise or "another prompt",
        "Layers at once": lambda sweep: str(sweep.window),
        "Metric": metric_name,
        "Pairs": lambda sweep: pairs_used(sweep.usable),
        "Mean clean, corrupted": lambda sweep: f"{sweep.clean.mean():+.3f}, {sweep.corrupted.mean():+.3f}",
        "Versions": lambda sweep: (
            ", ".join(f"{library} {v}" for library, v in sweep.versions.items()) or "not recorded"
        ),
    }
    columns = [[value(sweep) for value in rows.values()] for sweep in sweeps.values()]
    if all(column == columns[0] for column in columns):
        return _table([["", " and ".join(sweeps)], *zip(rows, columns[0])])
    return _table([["", *sweeps], *zip(rows, *columns)])


def _pair_table(name: str, sweep: Sweep) -> str:
    rows = [["Pair", "Clean prompt", "Corrupted prompt", "Clean metric", "Corrupted metric", "Usable"]]
    for j, pair in enumerate(sweep.pair_indices):
        prompts = ["".join(sweep.clean_tokens[j]), "".join(sweep.corrupted_tokens[j])]
        metrics = [f"{sweep.clean[j]:+.3f}", f"{sweep.corrupted[j]:+.3f}"]
        rows.append([str(pair), *prompts, *metrics, "yes" if sweep.usable[j] else "no"])
    return f"<details><summary>{name}: {pairs_used(sweep.usable)}</summary>{_table(rows)}</details>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row and column are heads; every cell is escaped."""
    cells = [
        [f"<{'td' if i and j else 'th'}>{html.escape(c)}" for j, c in enumerate(row)] for i, row in enumerate(rows)
    ]
    return f'<div class="card"><table>{"".join("<tr>" + "".join(row) for row in cells)}</table></div>'


def figure_html(name: str, figure: go.Figure) -> str:
    """The figure as a part of a page, as wide as designed or as the page, whichever is less."""
    fluid = go.Figure(figure).update_layout(width=None)
    config = {"responsive": True, "displaylogo": False}
    drawn = fluid.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=name)
    narrowest = int(0.75 * figure.layout.width) if figure.data[0].type == "heatmap" else 0
    return (
        f'<div class="card" style="max-width: {figure.layout.width}px">'
        f'<div style="min-width: {narrowest}px">{drawn}</div></div>'
    )


def html_page(title: str, body: str) -> str:
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
<script src="{PLOTLY_FILE}"></script>
</head>
<body>
{body}
</body>
</html>
"""
