"""How does it look?  Results -> Plotly figures and an offline report; nothing here runs a model.

Every figure says which model, task, direction, metric and pairs it rests on. An effect is a share of the difference
between the clean and the corrupted metric, so it has no unit; metrics carry theirs. Maps have layer 0 at the top, as
in Wang et al. (2022), and a diverging, colour-blind-safe scale that is symmetric about 0: blue moves the metric
towards the run the activation came from, red away from it, white does nothing, grey was not measured.
"""

from __future__ import annotations

import html
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from figure_words import (
    context_line,
    effect_name,
    escaped,
    head_hover,
    head_kind,
    metric_name,
    metric_unit,
    patch_label,
    short_token,
    site_hovers,
    token_at,
)
from patching_results import (
    HeadPatchingResult,
    HeadResults,
    LayerResults,
    PositionResults,
    SweepResults,
    patch_key,
)
from patching_sites import block_hook
from patching_sweep import Sweep
from report_page import write_report
from report_verdict import Check

Heads: TypeAlias = HeadResults | Sequence[HeadPatchingResult]
"""What head figures draw: head results, or a plain list picked from them, which knows no model and no direction."""

BLUE, RED, ORANGE, INK = "#2166ac", "#b2182b", "#e08214", "#222222"
SMALLEST_COLOUR_RANGE = 0.05
"""Colours span at least ± this effect, so that a map on which nothing matters looks pale."""
MODEBAR_WITHOUT = ["sendChartToCloud", "zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale"]
"""Buttons left out: the first would upload the figure, the others hide titles on small screens."""


def create_head_heatmap(
    results: Heads, n_layers: int | None = None, n_heads: int | None = None, *, title: str | None = None
) -> go.Figure:
    """Layer × head map of effects; under grouped-query attention k and v have a column per key-value head.

    A plain list (`[r for r in results if r.layer > 3]`) needs `n_layers` and `n_heads`; heads it lacks stay grey.

    Raises:
        ValueError: where `results` are no head results, are empty or hold no usable pair; where the sizes contradict
            them, or are missing for a plain list; where a plain list mixes patch types or repeats a head.
    """
    heads, sweep = _checked_heads(results, "create_head_heatmap")
    kind = head_kind(heads)
    if isinstance(results, HeadResults):
        _check_size("n_layers", n_layers, results.sweep.n_layers, "layers")
        _check_size("n_heads", n_heads, results.heads_per_layer, f"{kind}s per layer")
        effects = results.matrix()
    else:
        effects = _matrix(heads, n_layers, n_heads)
    figure = _heatmap(effects, {(head.layer, head.head): head_hover(head, sweep) for head in heads})
    figure.update_xaxes(title=kind, dtick=_step(effects.shape[1], 16))
    return _finish(figure, title or f"Effect of each {kind}: {escaped(heads[0].patch_type)}", sweep)


def create_layer_heatmap(results: LayerResults, n_layers: int | None = None, *, title: str | None = None) -> go.Figure:
    """Layer × component map of effects. What lies in no one layer is named in the subtitle, not drawn.

    Raises:
        ValueError: where `results` are no layer results, are empty, hold no usable pair or no hook point of a layer,
            or have another number of layers.
    """
    sweep = _checked_layers(results, n_layers, "create_layer_heatmap")
    table = results.matrix()
    components = list(table.columns)
    hover = {
        (s.layer, components.index(s.component)): text
        for patch, (s, text) in zip(sweep.patches, site_hovers(sweep))
        if s.layer is not None and patch.name is None
    }
    figure = _heatmap(table.to_numpy(), hover)
    ticks = [escaped(name) for name in components]
    figure.update_xaxes(title="component", tickvals=list(range(len(ticks))), ticktext=ticks)
    drawn = [patch.name is None and patch.sites[0].layer is not None for patch in sweep.patches]
    outside = [patch_key(patch) for patch, is_drawn in zip(sweep.patches, drawn) if not is_drawn]
    note = f"in no one layer, not drawn: {', '.join(outside)}" if outside else ""
    return _finish(figure, title or "Effect of each layer's components", sweep, note)


def create_position_heatmap(
    results: PositionResults, component: str | None = None, *, title: str | None = None
) -> go.Figure:
    """Layer × position map of one component's effects (the first, if not named), labelled with the prompt's tokens.

    A label reads `4: Mary→John` where the corrupted prompt has another token than the clean one. Where pairs have
    different tokens, the labels show the first pair's and the axis says so. Positions count the BOS token. Positions
    that go by name are labelled with it.

    Raises:
        ValueError: where `results` are no position results, are empty, hold no usable pair, or lack the component.
    """
    sweep = _checked_sweep(results, PositionResults, "create_position_heatmap")
    component = results.components[0] if component is None else component
    effects = results.matrix(component)
    _check_effects(effects, sweep)
    if results.names is not None:
        return _named_position_heatmap(results, results.names, component, effects, title)
    clean, corrupted = sweep.clean_tokens[0], sweep.corrupted_tokens[0]
    hover = {
        (s.layer, s.position): f"{text}<br>position {s.position}: {token_at(s.position, clean, corrupted, repr)}"
        for s, text in site_hovers(sweep)
        if s.component == component and isinstance(s.position, int)
    }
    figure = _heatmap(effects, hover)
    shown = _thin_out(len(clean), first=[p for p in range(len(clean)) if clean[p : p + 1] != corrupted[p : p + 1]])
    labels = [f"{p}: {token_at(p, clean, corrupted, short_token)}" for p in shown]
    same = len(set(sweep.clean_tokens)) == len(set(sweep.corrupted_tokens)) == 1
    axis = "position: token" if same else f"position: token in pair {sweep.pair_indices[0]} (other pairs differ)"
    figure.update_xaxes(title=axis, tickvals=shown, ticktext=labels, tickangle=-90)
    figure.layout.height += 6 * max(len(html.unescape(label)) for label in labels)
    return _finish(figure, title or f"Effect of {escaped(component)} at each position", sweep)


def _named_position_heatmap(
    results: PositionResults, names: list[str], component: str, effects: Any, title: str | None
) -> go.Figure:
    hover = {
        (s.layer, names.index(str(s.position_name))): f"{text}<br>position {escaped(str(s.position_name))}"
        for s, text in site_hovers(results.sweep)
        if s.component == component
    }
    figure = _heatmap(effects, hover)
    labels = [escaped(name) for name in names]
    figure.update_xaxes(title="position, by name", tickvals=list(range(len(names))), ticktext=labels)
    return _finish(figure, title or f"Effect of {escaped(component)} at each position", results.sweep)


def create_top_heads_bar(results: Heads, *, top_k: int = 15, title: str | None = None) -> go.Figure:
    """Heads of largest |effect| as bars, largest on top, with the effect on each usable pair as points.

    Raises:
        ValueError: where `results` are no head results, are empty or hold no usable pair, or `top_k` is below 1.
    """
    heads, sweep = _checked_heads(results, "create_top_heads_bar")
    _check_top_k(top_k)
    measured = [head for head in heads if not math.isnan(head.effect)]
    top = sorted(measured, key=lambda head: abs(head.effect), reverse=True)[:top_k]
    pairs = sweep.pair_indices if sweep else range(len(top[0].pair_effects))
    points = [
        (effect, head.label, f"<b>{head.label}</b>, pair {pair}<br>effect {effect:+.3f}")
        for head in top
        for pair, effect in zip(pairs, head.pair_effects)
        if not math.isnan(effect)
    ]
    figure = go.Figure()
    figure.add_bar(
        name="over all pairs",
        x=[head.effect for head in top],
        y=[head.label for head in top],
        orientation="h",
        marker={"color": [BLUE if head.effect > 0 else RED for head in top], "opacity": 0.75},
        hovertext=[head_hover(head, sweep) for head in top],
    )
    figure.add_scatter(
        name="one pair each",
        x=[x for x, _, _ in points],
        y=[y for _, y, _ in points],
        mode="markers",
        marker={"size": 6, "color": INK, "opacity": 0.6, "line": {"width": 1, "color": "white"}},
        hovertext=[text for _, _, text in points],
    )
    figure.update_xaxes(title=effect_name(sweep), zerolinecolor="#444444")
    figure.update_yaxes(title=head_kind(heads), type="category", range=[len(top) - 0.5, -0.5], dtick=1)
    figure.update_layout(width=760, height=_height(len(top), 24), showlegend=True)
    return _finish(figure, title or f"Largest effects, {head_kind(heads)}s: {escaped(heads[0].patch_type)}", sweep)


def create_component_comparison(
    results: LayerResults, n_layers: int | None = None, *, title: str | None = None
) -> go.Figure:
    """Attention (`attn_out`) against MLP (`mlp_out`), one bar each per layer.

    Raises:
        ValueError: as `create_layer_heatmap`, and where one of the two was not patched, naming it.
    """
    sweep = _checked_layers(results, n_layers, "create_component_comparison")
    found = list(dict.fromkeys(patch.sites[0].component for patch in sweep.patches))
    if missing := [name for name in ("attn_out", "mlp_out") if name not in found]:
        raise ValueError(
            f"{' and '.join(missing)} not patched: these results have {', '.join(found)}, the comparison expects "
            "attn_out and mlp_out. Patch both, with hook_points=['attn_out', 'mlp_out']"
        )
    table = results.matrix()
    hover = {site.hook_point: text for site, text in site_hovers(sweep)}
    figure = go.Figure()
    for component, name, colour in (("attn_out", "attention", BLUE), ("mlp_out", "MLP", ORANGE)):
        figure.add_bar(
            name=f"{name} ({component})",
            x=list(table.index),
            y=table[component].to_numpy(),
            marker_color=colour,
            hovertext=[hover.get(block_hook(layer, component), "") for layer in table.index],
        )
    figure.update_xaxes(title="layer", dtick=_step(sweep.n_layers, 16))
    figure.update_yaxes(title=effect_name(sweep), zerolinecolor="#444444")
    figure.update_layout(barmode="group", width=_width(sweep.n_layers, 36), height=420, showlegend=True)
    return _finish(figure, title or "Attention against MLP in each layer", sweep)


def create_metric_scatter(
    results: LayerResults | HeadResults, *, top_k: int = 8, title: str | None = None
) -> go.Figure:
    """Raw metrics, in their unit, behind the largest effects: a band per component, in it a line per pair.

    A line runs from the pair's corrupted to its clean metric, the dot is the patched one: where the dots of a band sit
    at the same place of their lines, the effect holds for every pair. Pairs that no effect can be computed for are
    drawn too; their short line is the reason.

    Raises:
        ValueError: where `results` are neither layer nor head results or are empty, or `top_k` is below 1.
    """
    sweep = _checked_sweep(results, (LayerResults, HeadResults), "create_metric_scatter")
    _check_top_k(top_k)
    top = np.argsort(-np.nan_to_num(np.abs(sweep.effects), nan=-1.0), kind="stable")[:top_k]
    are_heads = isinstance(results, HeadResults)
    names = (
        [head.label for head in HeadResults(sweep)] if are_heads else [patch_label(patch) for patch in sweep.patches]
    )
    n_pairs = len(sweep.pair_indices)
    offsets = (np.arange(n_pairs) + 0.5) / n_pairs * 0.7 - 0.35
    y = np.concatenate([band + offsets for band in range(len(top))])
    corrupted, clean = np.tile(sweep.corrupted, len(top)), np.tile(sweep.clean, len(top))
    gap = np.full(len(y), np.nan)
    figure = go.Figure()
    figure.add_scatter(
        x=np.column_stack([corrupted, clean, gap]).ravel(),
        y=np.column_stack([y, y, gap]).ravel(),
        mode="lines",
        line={"color": "#bbbbbb", "width": 1 if n_pairs <= 12 else 0.5},
        showlegend=False,
    )
    pairs = [f"<b>{escaped(names[i])}</b>, pair {pair}" for i in top for pair in sweep.pair_indices]
    for run, x, symbol, colour in (
        ("corrupted", corrupted, "circle-open", RED),
        ("clean", clean, "diamond-open", BLUE),
        ("patched", sweep.patched[top].ravel(), "circle", INK),
    ):
        figure.add_scatter(
            name=run,
            x=x,
            y=y,
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 7 if n_pairs <= 12 else 5},
            hovertext=[f"{pair}<br>{run} {value:+.3f}{metric_unit(sweep)}" for pair, value in zip(pairs, x)],
        )
    figure.update_xaxes(title=escaped(metric_name(sweep)), zerolinecolor="#cccccc")
    figure.update_yaxes(
        title=head_kind(list(results)) if isinstance(results, HeadResults) else "component",
        tickvals=list(range(len(top))),
        ticktext=[escaped(names[i]) for i in top],
        range=[len(top) - 0.5, -0.5],
        showgrid=False,
        zeroline=False,
    )
    for edge in range(1, len(top)):
        figure.add_hline(y=edge - 0.5, line={"color": "#dddddd", "width": 1})
    figure.update_layout(width=760, height=_height(len(top), min(max(30, 7 * n_pairs), 90)), showlegend=True)
    return _finish(figure, title or "Clean, corrupted and patched metric", sweep)


def create_full_report(
    head_results: Heads | None = None,
    layer_results: LayerResults | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    save_dir: str | Path = "./figures",
    *,
    position_results: PositionResults | None = None,
    check: Check | None = None,
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
    if head_results is not None:
        figures["head_heatmap"] = create_head_heatmap(head_results, n_layers, n_heads)
        figures["top_heads_bar"] = create_top_heads_bar(head_results)
        if isinstance(head_results, HeadResults):
            figures["head_metric_scatter"] = create_metric_scatter(head_results)
            shown["Heads"] = head_results
    if layer_results is not None:
        figures["layer_heatmap"] = create_layer_heatmap(layer_results, n_layers)
        if {"attn_out", "mlp_out"} <= set(layer_results.matrix().columns):
            figures["component_comparison"] = create_component_comparison(layer_results, n_layers)
        figures["layer_metric_scatter"] = create_metric_scatter(layer_results)
        shown["Layers"] = layer_results
    if position_results is not None:
        _checked_sweep(position_results, PositionResults, "create_full_report")
        for component in position_results.components:
            several = f"_{component}" if len(position_results.components) > 1 else ""
            figures[f"position_heatmap{several}"] = create_position_heatmap(position_results, component)
        shown["Positions"] = position_results
    return write_report(folder, figures, shown, check)


# --- checks -----------------------------------------------------------------------------------------------------------


def _checked_sweep(results: Any, kinds: type | tuple[type, ...], caller: str) -> Sweep:
    if not isinstance(results, SweepResults) or not isinstance(results, kinds):
        raise ValueError(_wrong_type(results, kinds, caller))
    sweep = results.sweep
    if not sweep.patches or not sweep.pair_indices:
        size = f"{len(sweep.patches)} patches × {len(sweep.pair_indices)} pairs"
        raise ValueError(f"these results are empty ({size}): patch at least one component on one pair")
    return sweep


def _checked_layers(results: LayerResults, n_layers: int | None, caller: str) -> Sweep:
    sweep = _checked_sweep(results, LayerResults, caller)
    _check_size("n_layers", n_layers, sweep.n_layers, "layers")
    _check_effects(sweep.effects, sweep)
    return sweep


def _checked_heads(results: Heads, caller: str) -> tuple[list[HeadPatchingResult], Sweep | None]:
    sweep = _checked_sweep(results, HeadResults, caller) if isinstance(results, SweepResults) else None
    if not isinstance(results, Sequence) or not all(isinstance(head, HeadPatchingResult) for head in results):
        raise ValueError(_wrong_type(results, HeadResults, caller))
    heads = list(results)
    if not heads:
        raise ValueError("the list of head results is empty: give at least one head")
    if len(types := sorted({head.patch_type for head in heads})) > 1:
        raise ValueError(f"the list mixes the patch types {', '.join(types)}: draw one type at a time")
    if len(heads) > len({head.label for head in heads}):
        raise ValueError("the list holds a head more than once: give each head once")
    _check_effects(np.array([head.effect for head in heads]), sweep)
    return heads, sweep


def _wrong_type(results: Any, kinds: type | tuple[type, ...], caller: str) -> str:
    drawn_by = {
        "LayerResults": "create_layer_heatmap",
        "HeadResults": "create_head_heatmap",
        "PositionResults": "create_position_heatmap",
    }
    expected = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    got = type(results).__name__
    advice = f"{drawn_by[got]} draws these" if got in drawn_by else "pass what the patcher returned"
    return f"{caller} was given {got}, expected {expected}: {advice}"


def _check_one_model(sweeps: Mapping[str, Sweep]) -> None:
    models = {name: (s.model, s.n_layers, s.n_heads, s.n_key_value_heads) for name, s in sweeps.items()}
    if len(set(models.values())) > 1:
        told = ", ".join(
            f"{name} of {model} ({layers} layers × {heads} heads)" for name, (model, layers, heads, _) in models.items()
        )
        raise ValueError(f"the results are of different models, {told}: write a report for each model")


def _check_size(name: str, given: int | None, actual: int, what: str) -> None:
    if given not in (None, actual):
        raise ValueError(
            f"this result has {actual} {what}, {name}={given} was given: pass {name}={actual} or leave it out"
        )


def _check_top_k(top_k: int) -> None:
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1")


def _check_effects(effects: np.ndarray, sweep: Sweep | None) -> None:
    if np.isnan(effects).all():
        means = f" (on average {sweep.clean.mean():+.3f} and {sweep.corrupted.mean():+.3f})" if sweep else ""
        raise ValueError(
            f"every effect is NaN, no pair was usable: the clean and the corrupted metric{means} barely differ. "
            "Use a corruption that breaks the behaviour"
        )


def _writable_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(
            f"cannot write to save_dir {str(folder)!r} ({error}): pass a folder that can be written"
        ) from error


def _matrix(
    heads: list[HeadPatchingResult], n_layers: int | None, n_heads: int | None
) -> Float[np.ndarray, "layer head"]:
    if n_layers is None or n_heads is None:
        raise ValueError("a plain list of heads does not know the model's size: pass n_layers and n_heads with it")
    if outside := [h.label for h in heads if not (0 <= h.layer < n_layers and 0 <= h.head < n_heads)]:
        raise ValueError(
            f"{outside[0]} lies outside n_layers={n_layers}, n_heads={n_heads}: pass the model's own sizes"
        )
    effects = np.full((n_layers, n_heads), np.nan)
    for head in heads:
        effects[head.layer, head.head] = head.effect
    return effects


# --- drawing ----------------------------------------------------------------------------------------------------------


def _heatmap(effects: Float[np.ndarray, "row column"], hover: Mapping[tuple[Any, Any], str]) -> go.Figure:
    n_rows, n_columns = effects.shape
    limit = max(float(np.nanmax(np.abs(effects))), SMALLEST_COLOUR_RANGE)
    figure = go.Figure()
    figure.add_heatmap(
        z=effects,
        zmin=-limit,
        zmax=limit,
        colorscale="RdBu",
        colorbar={"title": "effect", "thickness": 12},
        hovertext=[[hover.get((row, column), "") for column in range(n_columns)] for row in range(n_rows)],
        hoverongaps=False,
        texttemplate="%{z:.2f}" if n_columns <= 16 else None,
        textfont={"size": 10},
        xgap=1,
        ygap=1,
    )
    figure.update_xaxes(showgrid=False, zeroline=False, range=[-0.5, n_columns - 0.5])
    figure.update_yaxes(title="layer", showgrid=False, zeroline=False, range=[n_rows - 0.5, -0.5], dtick=1)
    figure.update_layout(width=_width(n_columns, 44), height=_height(n_rows, 24 if n_rows <= 24 else 18))
    figure.update_layout(plot_bgcolor="#c8c8c8")
    return figure


def _finish(figure: go.Figure, title: str, sweep: Sweep | None, note: str = "") -> go.Figure:
    """What every figure shares. Dark on an opaque white, so that it reads on a light and on a dark page."""
    subtitle = context_line(sweep, note) if sweep else ""
    subtitle_height = 17 * len(subtitle.split("<br>")) if subtitle else 0
    figure.update_layout(
        template="plotly_white",
        paper_bgcolor="white",
        plot_bgcolor=figure.layout.plot_bgcolor or "white",
        font={"color": INK, "size": 12},
        title={"text": title, "font_size": 16, "x": 0, "y": 1, "yanchor": "top", "pad": {"l": 12, "t": 14}},
        title_subtitle={"text": subtitle, "font": {"size": 12, "color": "#555555"}},
        height=figure.layout.height + subtitle_height,
        margin={"l": 60, "r": 20, "t": 52 + subtitle_height, "b": 60},
        legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        modebar={"orientation": "v", "remove": MODEBAR_WITHOUT},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    figure.update_traces(hoverinfo="text")
    return figure


def _height(rows: int, per_row: int) -> int:
    return 130 + max(rows * per_row, 120)


def _width(columns: int, per_column: int) -> int:
    return min(max(480, 190 + columns * per_column), 1150)


def _step(n: int, room: int) -> int:
    """Distance between labels, so that at most `room` of `n` are written."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, n) if n <= step * room)


def _thin_out(n: int, first: Sequence[int], room: int = 45) -> list[int]:
    """About `room` of n positions, well apart; those in `first` go before others."""
    step = math.ceil(n / room)
    shown: list[int] = []
    for position in [*first, *range(n)]:
        if all(abs(position - other) >= step for other in shown):
            shown.append(position)
    return sorted(shown)
