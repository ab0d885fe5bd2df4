"""The comparison of two experiments: two maps on one colour scale, and their difference.

Knows maps of any results (`figures.places`); it knows nothing of what the columns of a map are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from actpatch.core.estimate_words import exact_or_estimated
from actpatch.core.heavy import go
from actpatch.core.text import count, signed, with_minus
from actpatch.figures.captions import in_lines
from actpatch.figures.cells import (
    MOST_COLUMNS_WITH_NUMBERS,
    NARROWEST_NUMBER,
    cells,
    colour_limit,
    column_axis,
    narrowest,
    row_axis,
    show_scale,
)
from actpatch.figures.certainty import Certainty, certainties, certainty_of, unknown
from actpatch.figures.checks import check_effects, checked_sweep
from actpatch.figures.colours import GRID
from actpatch.figures.frame import finish
from actpatch.figures.kinds import Kinds
from actpatch.figures.places import Cell, EffectMap, effect_map
from actpatch.figures.words import context, escaped, hovers, labels_of
from actpatch.results.differences import difference_statistics
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import HeadResults, LayerResults
from actpatch.results.sweep import Sweep
from actpatch.statistics.sites import SiteStatistics

MapResults: TypeAlias = HeadResults | LayerResults | PositionResults

PANEL_LINE = 29
"""Letters of a line above a panel."""
NARROWEST_PANEL, SPACE = 176, 286
"""Pixels of a panel that such a line fits, and of what is between and beside three of them."""


def create_comparison(
    results_a: MapResults,
    results_b: MapResults,
    *,
    names: tuple[str, str] = ("A", "B"),
    component: str | None = None,
    same_model: bool = True,
    title: str | None = None,
    colour_range: float | None = None,
    statistics: tuple[SiteStatistics, SiteStatistics] | None = None,
) -> go.Figure:
    """Two maps cell by cell: the first, the second, and the second minus the first, all on one colour scale.

    What the experiments share stands in the subtitle, in what they differ above each map. Cells that are significant
    have a star, in the difference too, where both have the same clean prompts: it is then tested pair by pair
    (`results.differences`); otherwise its heading says that it is not, and it has none.

    Args:
        results_a: head, layer or position results.
        results_b: results of the same kind.
        names: what the two are called.
        component: of position results, which component; None for each one's first.
        same_model: False allows results of two models of one shape, for instance before and after fine-tuning; head
            3 of one is then compared with head 3 of the other.
        title: in place of the figure's own.
        colour_range: colours span ± this effect; None spans the largest of the three maps.
        statistics: `results.statistics(...)` of both, for another level or correction than its defaults, which the
            difference then has too.

    Raises:
        ValueError: where the results are of different kinds, models or shapes, saying in what they differ; where one
            is empty or holds no usable pair; for `component` with results that are no map over positions; where
            `statistics` are those of other results, or differ in level, alpha or correction.
    """
    _check_names(names)
    return compared(
        (results_a, results_b),
        names,
        component=component,
        same_model=same_model,
        title=title,
        colour_range=colour_range,
        statistics=statistics,
    )


def compared(
    both: tuple[MapResults, MapResults],
    names: tuple[str, str],
    *,
    component: str | None = None,
    same_model: bool = True,
    title: str | None = None,
    colour_range: float | None = None,
    statistics: tuple[SiteStatistics, SiteStatistics] | None = None,
    change: Certainty | None = None,
) -> go.Figure:
    """Two maps and their difference; `create_comparison` says what its arguments are.

    Args:
        change: how sure the differences are, an entry per patch of the first results; None tests them pair by pair.
    """
    first, second = (_map(results, component) for results in both)
    _check_alike((both[0], first), (both[1], second), same_model)
    evidence = certainties((both[0].sweep, both[1].sweep), both[0].kind, statistics)
    texts = [
        drawn.texts(hovers(labels_of(results), results.sweep, one.lines))
        for drawn, results, one in zip((first, second), both, evidence)
    ]
    panels = [
        (drawn.effects, text, drawn.cells_of(one.significant))
        for drawn, text, one in zip((first, second), texts, evidence)
    ]
    matched = _matched(first, second)
    evidence.append(_change_evidence(*both, matched, evidence[0]) if change is None else _of_cells(change, matched))
    panels.append(_change(panels, matched, evidence[2], names))
    limit = max(colour_limit(effects, colour_range) for effects, _, _ in panels if not np.isnan(effects).all())
    shared, apart = _described([results.sweep for results in both], [first, second])
    headings = [_heading(name, parts) for name, parts in zip(names, apart)]
    beside = first.effects.shape[1] <= MOST_COLUMNS_WITH_NUMBERS
    difference = f"{names[1]} − {names[0]}"
    kinds = Kinds(both[0].sweep.estimate, both[1].sweep.estimate)
    headings.append(_heading(difference, [kinds.of_difference, _tested(evidence[2])]))
    figure, (across, high), with_numbers = _panels([first, second, first], headings, beside)
    for number, (effects, hover, starred) in enumerate(panels):
        for trace in cells(effects, hover, starred, limit, with_numbers=with_numbers):
            figure.add_trace(trace, **_place(number, beside))
    show_scale(figure, limit, kinds.of_scale)
    shared += [
        *kinds.told(names),
        *_notes([*names, difference], evidence),
        _agreement(first.effects, second.effects, kinds),
    ]
    title = title or f"{escaped(names[0])} against {escaped(names[1])}"
    around = figure.layout.width - across, figure.layout.height - high
    return finish(figure, title, shared, **_sizes(figure, first, beside), around=around)


def _of_cells(change: Certainty, matched: Mapping[Cell, tuple[int, int]]) -> Certainty:
    """An entry per cell of what is known of the first results' patches."""
    return replace(change, significant=change.significant[[number for number, _ in matched.values()]])


def _map(results: Any, component: str | None) -> EffectMap:
    sweep = checked_sweep(results, (HeadResults, LayerResults, PositionResults), "create_comparison")
    if component is not None and not isinstance(results, PositionResults):
        raise ValueError(
            f"component={component!r} was given with {type(results).__name__}: only position results take it"
        )
    check_effects(sweep.effects, sweep)
    return effect_map(results, component)


def _check_alike(first: tuple[Any, EffectMap], second: tuple[Any, EffectMap], same_model: bool) -> None:
    """Both maps have the same cells; else an error with everything in which they differ."""
    both = [_shape(*each) for each in (first, second)]
    if not same_model:
        both = [{part: described for part, described in shape.items() if part != "model"} for shape in both]
    if type(first[0]) is not type(second[0]):
        both = [{"kind": type(results).__name__} for results, _ in (first, second)]
    differ = [part for part in both[0] if both[0][part] != both[1][part]]
    if differ:
        one, other = (" with ".join(shape[part] for part in differ) for shape in both)
        ways = "draw each by itself, with the same colour_range"
        if differ == ["model"]:
            ways += ", or pass same_model=False for two models whose heads and layers correspond"
        raise ValueError(
            f"these results cannot be compared cell by cell: the first is {one}, the second {other}: {ways}"
        )


def _shape(results: Any, drawn: EffectMap) -> dict[str, str]:
    sweep = results.sweep
    return {"model": f"of {sweep.model}", "layers": count(sweep.n_layers, "layer"), "columns": drawn.columns}


def _check_names(names: tuple[str, str]) -> None:
    if isinstance(names, str) or len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"names is {names!r}, expected two different names, one for each of the results")


def _matched(first: EffectMap, second: EffectMap) -> dict[Cell, tuple[int, int]]:
    """Each cell that both maps have, with the number of its patch in either."""
    numbers = [{place: i for i, place in enumerate(drawn.places) if place is not None} for drawn in (first, second)]
    return {cell: (i, numbers[1][cell]) for cell, i in numbers[0].items() if cell in numbers[1]}


def _change_evidence(
    first: MapResults, second: MapResults, matched: Mapping[Cell, tuple[int, int]], like: Certainty
) -> Certainty:
    """How sure the differences are, an entry per cell that is matched."""
    if like.statistics is None:
        return unknown(len(matched), like.note)
    try:
        statistics = difference_statistics(first.sweep, second.sweep, list(matched.values()), like=like.statistics)
    except ValueError as error:
        return unknown(len(matched), f"not tested: {error}")
    found = certainty_of(statistics, first.kind)
    about = Kinds(first.sweep.estimate, second.sweep.estimate).of_difference
    return replace(found, note=f"{found.note}, about the {about}") if about and statistics.estimate is None else found


def _tested(evidence: Certainty) -> str:
    statistics = evidence.statistics
    if statistics is None:
        return "tested between the groups" if evidence.could_be else "not tested"
    return f"tested pair by pair, {count(statistics.n_pairs, 'pair')}"


def _notes(names: Sequence[str], evidence: Sequence[Certainty]) -> list[str]:
    """What is said of how sure each map is, once for those of which it is the same."""
    of_note: dict[str, list[str]] = {}
    for name, one in zip(names, evidence):
        of_note.setdefault(one.note, []).append(name)
    if len(of_note) == 1:
        return list(of_note)
    return [f"{' and '.join(about)}: {note}" for note, about in of_note.items()]


def _sizes(figure: go.Figure, drawn: EffectMap, beside: bool) -> dict[str, int]:
    """What the figure needs: side by side as much as the headings, which do not shrink."""
    if beside:
        least = min(figure.layout.width, 3 * NARROWEST_PANEL + SPACE)
        numbers = 3 * NARROWEST_NUMBER * drawn.effects.shape[1] + SPACE
        return {"narrowest": least, "least_width": least, "room_for_numbers": numbers}
    n_labels = len(drawn.axis["ticktext"]) if drawn.room else 0
    return {"narrowest": narrowest(drawn.effects.shape[1], n_labels)}


def _described(sweeps: list[Sweep], maps: list[EffectMap]) -> tuple[list[str], list[list[str]]]:
    """What both experiments share, and what each is where they differ."""
    patched = [f"patched: {drawn.patched}" if drawn.patched else "" for drawn in maps]
    parts = [{**context(sweep), "patched": described} for sweep, described in zip(sweeps, patched)]
    if sweeps[0].estimate != sweeps[1].estimate:
        for part, sweep in zip(parts, sweeps):
            part["estimate"] = exact_or_estimated(sweep.estimate)
            part |= {"scale": context(replace(sweep, estimate=None))["scale"], "gradient": ""}
    differ = [part for part in parts[0] if parts[0][part] != parts[1][part]]
    shared = [text for part, text in parts[0].items() if part not in differ]
    return shared, [[each[part] for part in differ] for each in parts]


def _heading(name: str, parts: list[str]) -> str:
    return "<br>".join([f"<b>{escaped(name)}</b>", *filter(None, [in_lines(parts, PANEL_LINE)])])


def _agreement(first: np.ndarray, second: np.ndarray, kinds: Kinds) -> str:
    both = ~np.isnan(first) & ~np.isnan(second)
    if both.sum() < 3 or np.ptp(first[both]) == 0 or np.ptp(second[both]) == 0:
        return ""
    r = np.corrcoef(first[both], second[both])[0, 1]
    return f"correlation of {kinds.of_effects} {with_minus(f'{r:.2f}')}"


def _change(
    panels: Sequence[tuple[np.ndarray, dict[Cell, str], set[Cell]]],
    matched: Mapping[Cell, tuple[int, int]],
    evidence: Certainty,
    names: tuple[str, str],
) -> tuple[np.ndarray, dict[Cell, str], set[Cell]]:
    """The third panel: second minus first, what is told of each cell, and the cells that are significant."""
    (before, first, _), (after, second, _) = panels
    change = after - before
    texts = {
        cell: "<br>".join(
            [
                f"<b>difference {signed(change[cell])}</b>",
                *evidence.lines(i),
                f"{escaped(names[0])}: {first[cell]}",
                f"{escaped(names[1])}: {second[cell]}",
            ]
        )
        for i, cell in enumerate(matched)
    }
    return change, texts, {cell for cell, is_one in zip(matched, evidence.significant) if is_one}


def _panels(maps: list[EffectMap], headings: list[str], beside: bool) -> tuple[go.Figure, tuple[int, int], bool]:
    """Three empty panels, side by side or, where they have many columns, one below the other.

    With the pixels across and down that are panels, and whether their cells have room for numbers.
    """
    from plotly.subplots import make_subplots

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
    figure.update_layout(plot_bgcolor=GRID, margin={"t": 16 * lines + 6})
    figure.update_layout(width=area[0] + 190, height=area[1] + room + 90 + 16 * lines)
    return figure, (3 * wide, high) if beside else (wide, 3 * high), beside and per_column >= 34


def _place(number: int, beside: bool) -> dict[str, int]:
    return {"row": 1, "col": number + 1} if beside else {"row": number + 1, "col": 1}
