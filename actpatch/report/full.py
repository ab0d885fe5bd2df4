"""What is drawn and written of an experiment?  Every figure that its results allow, and the report that holds them.

Results in, files out; nothing here runs a model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from actpatch.core.heavy import go
from actpatch.figures.bars import create_component_comparison, create_top_heads_bar
from actpatch.figures.checks import Heads, checked_heads, checked_layers, checked_sweep
from actpatch.figures.maps import create_head_heatmap, create_layer_heatmap, create_position_heatmap
from actpatch.figures.scatter import create_metric_scatter
from actpatch.report.page import write_report
from actpatch.results.check import DatasetCheck
from actpatch.results.shapes import HeadResults, LayerResults, PositionResults, SweepResults
from actpatch.results.sweep import Sweep
from actpatch.statistics.sites import SiteStatistics


def create_full_report(
    head_results: Heads | None = None,
    layer_results: LayerResults | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    save_dir: str | Path = "./figures",
    *,
    position_results: PositionResults | None = None,
    check: DatasetCheck | None = None,
) -> list[Path]:
    """Write `report.html`, which carries everything and can be sent alone, and a page for each figure.

    The folder is created where needed. Nothing in it needs a network; the figures' own pages share one plotly.js.

    Args:
        head_results: heads, or a plain list picked from them.
        layer_results: hook points.
        n_layers: of the model, if it is to be checked; needed for a plain list of heads.
        n_heads: likewise.
        save_dir: folder to write to.
        position_results: positions, which also colour the tokens of the prompts.
        check: what a linter says of the dataset; None lets the report judge by the runs' baselines alone.

    Returns:
        The written paths, `report.html` first.

    Raises:
        ValueError: where no results are given, they are of different models, or one cannot be drawn (as the single
            figures say).
        OSError: where `save_dir` cannot be created or written to; nothing has been drawn then. Where a file cannot be
            written, all that stood there are as they were.
    """
    if head_results is None and layer_results is None and position_results is None:
        raise ValueError(
            "neither head_results nor layer_results nor position_results was given: pass at least one of them"
        )
    given = {"head_results": head_results, "layer_results": layer_results, "position_results": position_results}
    _check_one_model({name: results.sweep for name, results in given.items() if isinstance(results, SweepResults)})
    folder = _writable_folder(Path(save_dir))
    figures: dict[str, go.Figure] = {}
    shown: dict[str, SweepResults] = {}
    sure: dict[str, SiteStatistics | str] = {}
    if head_results is not None:
        checked_heads(head_results, "create_full_report")
        statistics = None
        if isinstance(head_results, HeadResults):
            shown["Heads"] = head_results
            statistics, sure["Heads"] = _statistics(head_results)
        figures["head_heatmap"] = create_head_heatmap(head_results, n_layers, n_heads, statistics=statistics)
        figures["top_heads_bar"] = create_top_heads_bar(head_results, statistics=statistics)
        if isinstance(head_results, HeadResults):
            figures["head_metric_scatter"] = create_metric_scatter(head_results)
    if layer_results is not None:
        checked_layers(layer_results, n_layers, "create_full_report")
        shown["Layers"] = layer_results
        statistics, sure["Layers"] = _statistics(layer_results)
        figures["layer_heatmap"] = create_layer_heatmap(layer_results, n_layers, statistics=statistics)
        if {"attn_out", "mlp_out"} <= set(layer_results.matrix().columns):
            figures["component_comparison"] = create_component_comparison(
                layer_results, n_layers, statistics=statistics
            )
        figures["layer_metric_scatter"] = create_metric_scatter(layer_results)
    if position_results is not None:
        checked_sweep(position_results, PositionResults, "create_full_report")
        shown["Positions"] = position_results
        statistics, sure["Positions"] = _statistics(position_results)
        for component in position_results.components:
            several = f"_{component}" if len(position_results.components) > 1 else ""
            figures[f"position_heatmap{several}"] = create_position_heatmap(
                position_results, component, statistics=statistics
            )
    return write_report(folder, figures, shown, sure, check)


def _statistics(results: SweepResults) -> tuple[SiteStatistics | None, SiteStatistics | str]:
    """The statistics as figures take them, computed once for all, and for the report also why there are none."""
    try:
        found = results.statistics()
    except ValueError as error:
        return None, f"no intervals and no significance: {error}"
    return found, found


def _check_one_model(sweeps: Mapping[str, Sweep]) -> None:
    models = {name: (s.model, s.n_layers, s.n_heads, s.n_key_value_heads) for name, s in sweeps.items()}
    if len(set(models.values())) > 1:
        told = ", ".join(
            f"{name} of {model} ({layers} layers × {heads} heads)" for name, (model, layers, heads, _) in models.items()
        )
        raise ValueError(f"the results are of different models, {told}: write a report for each model")


def _writable_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(
            f"cannot write to save_dir {str(folder)!r} ({error}): pass a folder that can be written"
        ) from error
