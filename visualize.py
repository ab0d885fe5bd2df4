"""How does it look?  Results -> Plotly figures and an offline report; nothing here runs a model.

Every figure says which model, task, direction, metric and pairs it rests on. An effect is a share of the difference
between the clean and the corrupted metric, so it has no unit; metrics carry theirs. Maps have layer 0 at the top, as
in Wang et al. (2022), and a diverging, colour-blind-safe scale that is symmetric about 0: blue moves the metric
towards the run the activation came from, red away from it, white does nothing, grey was not measured. What is not
significant after correction is faded, and where there are too few pairs to tell, nothing is and the subtitle says so.

This module is the door to all figures; each kind has a module of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from figure_attention import create_attention_patterns
from figure_bars import create_component_comparison, create_effect_distribution, create_top_heads_bar
from figure_checks import Heads
from figure_comparison import create_comparison
from figure_files import save_figure
from figure_maps import create_head_heatmap, create_layer_heatmap, create_position_heatmap
from figure_report import PLOTLY_FILE, figure_html, html_page, index_page
from figure_scatter import create_direction_quadrant, create_metric_scatter
from patching_results import HeadResults, LayerResults
from patching_sweep import Sweep

__all__ = [
    "create_attention_patterns",
    "create_comparison",
    "create_component_comparison",
    "create_direction_quadrant",
    "create_effect_distribution",
    "create_full_report",
    "create_head_heatmap",
    "create_layer_heatmap",
    "create_metric_scatter",
    "create_position_heatmap",
    "create_top_heads_bar",
    "save_figure",
]


def create_full_report(
    head_results: Heads | None = None,
    layer_results: LayerResults | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    save_dir: str | Path = "./figures",
) -> list[Path]:
    """Write each figure the results allow as an HTML file, and an `index.html` that shows them all.

    The folder is created where needed. Its files share one copy of plotly.js and open without a network.

    Returns:
        The written paths, `index.html` first.

    Raises:
        ValueError: where neither result is given, or one cannot be drawn (as the single figures say).
        OSError: where `save_dir` cannot be created or written to; nothing has been drawn then.
    """
    if head_results is None and layer_results is None:
        raise ValueError("neither head_results nor layer_results was given: pass at least one of them")
    folder = _writable_folder(Path(save_dir))
    figures: dict[str, go.Figure] = {}
    sweeps: dict[str, Sweep] = {}
    if head_results is not None:
        figures["head_heatmap"] = create_head_heatmap(head_results, n_layers, n_heads)
        figures["top_heads_bar"] = create_top_heads_bar(head_results)
        if isinstance(head_results, HeadResults):
            figures["head_metric_scatter"] = create_metric_scatter(head_results)
            sweeps["Heads"] = head_results.sweep
    if layer_results is not None:
        figures["layer_heatmap"] = create_layer_heatmap(layer_results, n_layers)
        if {"attn_out", "mlp_out"} <= set(layer_results.matrix().columns):
            figures["component_comparison"] = create_component_comparison(layer_results, n_layers)
        figures["layer_metric_scatter"] = create_metric_scatter(layer_results)
        sweeps["Layers"] = layer_results.sweep
    pages = {"index.html": index_page(figures, sweeps)}
    for name, figure in figures.items():
        back = '<p><a href="index.html">All figures and settings</a></p>'
        pages[f"{name}.html"] = html_page(figure.layout.title.text, back + figure_html(name, figure))
    pages[PLOTLY_FILE] = get_plotlyjs()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


def _writable_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(
            f"cannot write to save_dir {str(folder)!r} ({error}): pass a folder that can be written"
        ) from error
