"""What changed between two experiments?  Two maps on one colour scale, and their difference."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from figure_cells import MOST_COLUMNS_WITH_NUMBERS, MUTED_ARE, NOT_MEASURED, cells, colour_limit, column_axis, row_axis
from figure_certainty import certainty
from figure_checks import check_effects, checked_sweep
from figure_frame import finish
from figure_places import Cell, EffectMap, head_map, layer_map, position_map
from figure_words import context, count, escaped, hovers, in_lines, labels_of
from patching_results import HeadResults, LayerResults, PositionResults
from patching_sweep import Sweep

MapResults: TypeAlias = HeadResults | LayerResults | PositionResults

PANEL_LINE = 38
"""Letters of a line above a panel."""


def create_comparison(
    results_a: MapResults,
    results_b: MapResults,
    *,
    names: tuple[str, str] = ("A", "B"),
    component: str | None = None,
    same_model: bool = True,
    title: str | None = None,
    colour_range: float | None = None,
) -> go.Figure:
    """Two maps cell by cell: the first, the second, and the second minus the first, all on one colour scale.

    What the experiments share stands in the subtitle, in what they differ above each map. Cells that are not
    significant are faded in the two maps; the difference is not tested.

    Args:
        results_a, results_b: head, layer or position results, both of one kind.
        names: what the two are called.
        component: of position results, which component; None for each one's first.
        same_model: False allows results of two models of one shape, for instance before and after fine-tuning; head
            3 of one is then compared with head 3 of the other.
        title: in place of the figure's own.
        colour_range: colours span ± this effect; None spans the largest of the two maps.

    Raises:
        ValueError: where the results are of different kinds, models or shapes, saying in what they differ; where one
            is empty or holds no usable pair; for `component` with results that are no map over positions.
    """
    first, second = (_map(results, component) for results in (results_a, results_b))
    _check_alike((results_a, first), (results_b, second), same_model)
    _check_names(names)
    sure = [certainty(results.sweep, results.kind, muted_are=MUTED_ARE) for results in (results_a, results_b)]
    texts = [
        drawn.texts(hovers(labels_of(results), results.sweep, one.told))
        for drawn, results, one in zip((first, second), (results_a, results_b), sure)
    ]
    change = second.effects - first.effects
    panels = [
        (first.effects, texts[0], first.muted(sure[0].muted)),
        (second.effects, texts[1], second.muted(sure[1].muted)),
        (change, _change_texts(texts, change, names), set()),
    ]
    limit = max(colour_limit(effects, colour_range) for effects, _, _ in panels if not np.isnan(effects).all())
    shared, apart = _told([results_a.sweep, results_b.sweep], [first, second])
    headings = [_heading(name, parts) for name, parts in zip(names, apart)]
    beside = change.shape[1] <= MOST_COLUMNS_WITH_NUMBERS
    figure, with_numbers = _panels(
        [first, second, first], [*headings, _heading(f"{names[1]} − {names[0]}", [])], beside
    )
    for number, (effects, hover, muted) in enumerate(panels):
        for trace in cells(effects, hover, muted, limit, with_numbers=with_numbers):
            figure.add_trace(trace, **_place(number, beside))
    figure.data[0].update(showscale=True, colorbar={"title": {"text": "effect", "side": "right"}, "thickness": 12})
    shared += [_agreement(first.effects, second.effects), *dict.fromkeys(one.note for one in sure)]
    subtitle = in_lines([*shared, "the difference is not tested"])
    return finish(figure, title or f"{escaped(names[0])} against {escaped(names[1])}", subtitle)


def _map(results: Any, component: str | None) -> EffectMap:
    sweep = checked_sweep(results, (HeadResults, LayerResults, PositionResults), "create_comparison")
    if component is not None and not isinstance(results, PositionResults):
        raise ValueError(
            f"component={component!r} was given with {type(results).__name__}: only position results take it"
        )
    check_effects(sweep.effects, sweep)
    if isinstance(results, HeadResults):
        return head_map(results)
    return layer_map(results) if isinstance(results, LayerResults) else position_map(results, component)


def _check_alike(first: tuple[Any, EffectMap], second: tuple[Any, EffectMap], same_model: bool) -> None:
    """Both maps have the same cells; else an error with everything in which they differ."""
    both = [_shape(*each) for each in (first, second)]
    if not same_model:
        both = [{part: told for part, told in shape.items() if part != "model"} for shape in both]
    if type(first[0]) is not type(second[0]):
        both = [{"kind": type(results).__name__} for results, _ in (first, second)]
    differ = [part for part in both[0] if both[0][part] != both[1][part]]
    if differ:
        told = [" with ".join(shape[part] for part in differ) for shape in both]
        ways = "draw each by itself, with the same colour_range"
        if differ == ["model"]:
            ways += ", or pass same_model=False for two models whose heads and layers correspond"
        raise ValueError(
            f"these results cannot be compared cell by cell: the first is {told[0]}, the second {told[1]}: {ways}"
        )


def _shape(results: Any, drawn: EffectMap) -> dict[str, str]:
    sweep = results.sweep
    n_columns = drawn.effects.shape[1]
    if isinstance(results, HeadResults):
        columns = count(n_columns, results.kind) + " per layer"
    elif isinstance(results, LayerResults) or results.names is not None:
        columns = f"columns {', '.join(drawn.axis['ticktext'])}"
    else:
        columns = count(n_columns, "position")
    return {"model": f"of {sweep.model}", "layers": count(sweep.n_layers, "layer"), "columns": columns}


def _check_names(names: tuple[str, str]) -> None:
    if isinstance(names, str) or len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"names is {names!r}, expected two different names, one for each of the results")


def _told(sweeps: list[Sweep], maps: list[EffectMap]) -> tuple[list[str], list[list[str]]]:
    """What both experiments share, and what each is where they differ."""
    patched = [f"patched: {drawn.patched}" if drawn.patched else "" for drawn in maps]
    parts = [{**context(sweep), "patched": told} for sweep, told in zip(sweeps, patched)]
    differ = [part for part in parts[0] if parts[0][part] != parts[1][part]]
    shared = [text for part, text in parts[0].items() if part not in differ]
    return shared, [[each[part] for part in differ] for each in parts]


def _heading(name: str, parts: list[str]) -> str:
    return "<br>".join([f"<b>{escaped(name)}</b>", *filter(None, [in_lines(parts, PANEL_LINE)])])


def _agreement(first: np.ndarray, second: np.ndarray) -> str:
    both = ~np.isnan(first) & ~np.isnan(second)
    if both.sum() < 3 or np.ptp(first[both]) == 0 or np.ptp(second[both]) == 0:
        return ""
    return f"correlation of the effects {np.corrcoef(first[both], second[both])[0, 1]:.2f}"


def _change_texts(texts: list[dict[Cell, str]], change: np.ndarray, names: tuple[str, str]) -> dict[Cell, str]:
    """Both texts, each under its name, and the difference of the effects."""
    first, second = texts
    return {
        cell: "<br>".join(
            [
                f"<b>difference {change[cell]:+.3f}</b>",
                f"{escaped(names[0])}: {first[cell]}",
                f"{escaped(names[1])}: {second[cell]}",
            ]
        )
        for cell in first.keys() & second.keys()
    }


def _panels(maps: list[EffectMap], headings: list[str], beside: bool) -> tuple[go.Figure, bool]:
    """Three empty panels, side by side or, where they have many columns, one below the other; and room for numbers."""
    n_rows, n_columns = maps[0].effects.shape
    room = max(drawn.room for drawn in maps)
    lines = max(heading.count("<br>") + 1 for heading in headings)
    per_column = min(46, 300 / n_columns) if beside else min(44, 900 / n_columns)
    wide, high = max(230, int(per_column * n_columns)), max(120, n_rows * 18)
    across, down = 56, room + 84 + 16 * lines
    area = (3 * wide + 2 * across, high) if beside else (wide, 3 * high + 2 * down)
    grid = {"rows": 1, "cols": 3, "horizontal_spacing": across / area[0]}
    if not beside:
        grid = {"rows": 3, "cols": 1, "vertical_spacing": down / area[1]}
    figure = make_subplots(**grid, subplot_titles=headings)
    figure.update_annotations(font_size=12)
    for number, drawn in enumerate(maps):
        place = _place(number, beside)
        figure.update_xaxes(**column_axis(n_columns), **place)
        figure.update_xaxes(**drawn.axis, **place)
        figure.update_yaxes(title="layer" if number == 0 or not beside else None, **row_axis(n_rows), **place)
    figure.update_layout(plot_bgcolor=NOT_MEASURED, margin={"t": 16 * lines + 6})
    figure.update_layout(width=area[0] + 190, height=area[1] + room + 130 + 16 * lines)
    return figure, beside and per_column >= 34


def _place(number: int, beside: bool) -> dict[str, int]:
    return {"row": 1, "col": number + 1} if beside else {"row": number + 1, "col": 1}
