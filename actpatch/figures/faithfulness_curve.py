"""Faithfulness against the size of circuits, beside that of random ones. Knows curves; it runs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float

from actpatch.core.heavy import go
from actpatch.core.text import count, described, escaped, signed, with_minus
from actpatch.figures.colours import BLUE, GREY, INK, LINE, ORANGE, RED, VIOLET
from actpatch.figures.frame import finish
from actpatch.results.faithfulness_curve import FaithfulnessCurve, Sizes
from actpatch.statistics.areas import Scale
from actpatch.statistics.faithfulness import Faithfulness

Ranking: TypeAlias = Literal["absolute", "signed"]
LOOKS = (
    (BLUE, "circle", "solid"),
    (ORANGE, "diamond", "dash"),
    (VIOLET, "square", "dot"),
    (RED, "triangle-up", "dashdot"),
    (INK, "x", "longdash"),
)
"""Colour, shape and dash of each curve."""
BAND = "rgba(118,118,118,0.22)"
"""Of what random circuits do, on light paper and on dark."""
REACH = 3.0
"""Beyond what curves and the random band need, how far intervals are drawn, in parts of that."""
LEVEL = 0.95
"""Of the band."""
MOST_TICKS = 9
"""Labels of sizes: more would lie on each other on a phone."""


def create_faithfulness_curve(
    curve: FaithfulnessCurve | Mapping[str, FaithfulnessCurve],
    *,
    ranking: Ranking = "absolute",
    scale: Scale = "log",
    sizes: Sizes = "nominal",
    title: str | None = None,
) -> go.Figure:
    """How much of what the model does circuits of growing size do: f(C) against the number of edges, as a share of all.

    At 1 a circuit does what the model does, at 0 what the run with every edge off does. Bars are intervals over pairs.
    The grey band holds 95 % of the circuits that random rankings give, of the first curve that has any. The legend has
    CPR, the area under the curve, and CMD, that between the curve and 1, on a linear scale of sizes as the benchmark
    has them (`statistics.areas`), whatever scale is drawn.

    Args:
        curve: what `faithfulness_curve` returned, or several by name.
        ranking: whether edges came in the order of |effect| (`absolute`) or of the effect (`signed`).
        scale: of sizes; on `log` circuits without any edge have no place, and are left out.
        sizes: `nominal`: edges that were asked for; `real`: those that pruning leaves.
        title: in place of the figure's own.

    Raises:
        ValueError: where `curve` is none, or there is none or more than 5; for a ranking that a curve has not, and for
            another scale or other sizes; where no circuit has a place or a faithfulness.
    """
    curves = _checked(curve, ranking, scale, sizes)
    figure = go.Figure()
    for at, dash in ((0.0, "dot"), (1.0, "dash")):
        figure.add_hline(at, line={"color": LINE, "width": 1.2, "dash": dash})
    found = {name: one.faithfulness(ranking) for name, one in curves.items()}
    places = {name: _places(one, ranking, sizes) for name, one in curves.items()}
    shown = {name: _shown(places[name], found[name].value, scale) for name in curves}
    if not any(len(each) for each in shown.values()):
        raise ValueError(
            "no circuit has a place in this figure: none of them has both edges and a faithfulness that is defined"
        )
    of_band = next((name for name, one in curves.items() if len(one.random_values) and len(shown[name])), None)
    bands = [] if of_band is None else _band(curves[of_band], places[of_band], shown[of_band])
    low, high = _ends([*(found[n].value[shown[n]] for n in curves), *(each for each in bands[1:])])
    if bands:
        figure.add_traces(_drawn_band(curves[of_band], *bands))  # type: ignore[index]
    for look, name in zip(LOOKS, curves):
        figure.add_trace(
            _line(curves[name], name, found[name], places[name], shown[name], look, (low, high), ranking, sizes)
        )
    figure.update_yaxes(title="faithfulness", range=[low, high], zeroline=False)
    figure.update_xaxes(**_sizes_axis([places[name][shown[name]] for name in curves], scale), title=_axis_name(sizes))
    figure.update_layout(width=760, height=430, showlegend=True)
    left_out = sum(len(one.sizes) - len(shown[name]) for name, one in curves.items())
    note = f"{count(left_out, 'circuit')} without edges or faithfulness not drawn" if left_out else ""
    if of_band is not None:
        random = f"{count(len(curves[of_band].random_values), 'random ranking')}, seed {curves[of_band].seed}"
        note = " · ".join(filter(None, [f"band: {random}{f', of {of_band}' if len(curves) > 1 else ''}", note]))
    parts = [*_told(curves, found, ranking), note]
    return finish(figure, title or "Faithfulness by size of the circuit", parts, around=(90, 110))


def _checked(given: Any, ranking: str, scale: str, sizes: str) -> dict[str, FaithfulnessCurve]:
    curves = dict(given) if isinstance(given, Mapping) else {"": given}
    for one in curves.values():
        if not isinstance(one, FaithfulnessCurve):
            raise ValueError(
                f"create_faithfulness_curve was given {described(one)}, expected what faithfulness_curve returns, or "
                "several by name"
            )
    if not 1 <= len(curves) <= len(LOOKS):
        raise ValueError(f"{count(len(curves), 'curve')} given, expected 1 to {len(LOOKS)}: more cannot be told apart")
    for name, value, kinds in (("scale", scale, Scale), ("sizes", sizes, Sizes)):
        if value not in get_args(kinds):
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, get_args(kinds)))}")
    for name, one in curves.items():
        if ranking not in one.rankings:
            of = f"the curve {name!r}" if name else "this curve"
            raise ValueError(f"ranking is {ranking!r}, {of} has {', '.join(map(repr, one.rankings))}: choose one of it")
    return curves


def _places(curve: FaithfulnessCurve, ranking: str, sizes: Sizes) -> Float[np.ndarray, " size"]:
    """Share of all edges of each circuit."""
    row = curve.rankings.index(ranking)
    return np.asarray((curve.nominal if sizes == "nominal" else curve.real)[row] / curve.n_edges, dtype=float)


def _shown(at: Float[np.ndarray, " size"], values: Float[np.ndarray, " size"], scale: Scale) -> np.ndarray:
    """Which circuits are drawn, by size."""
    chosen = np.flatnonzero(np.isfinite(values) & ((at > 0) | (scale == "linear")))
    return chosen[np.argsort(at[chosen], kind="stable")]


def _band(curve: FaithfulnessCurve, at: np.ndarray, shown: np.ndarray) -> list[np.ndarray]:
    """Places, lower and upper end of what random circuits do."""
    low, high = curve.random_band(LEVEL)
    return [at[shown], low[shown], high[shown]]


def _ends(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Of the axis: 0, 1 and all values are on it."""
    every = np.concatenate([each[np.isfinite(each)] for each in values])
    low, high = min(0.0, float(every.min())), max(1.0, float(every.max()))
    room = 0.08 * (high - low)
    return low - room, high + room


def _drawn_band(curve: FaithfulnessCurve, at: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Any]:
    band = go.Scatter(
        name=f"random circuits ({len(curve.random_values)} rankings, {LEVEL:.0%})",
        x=[*at, *at[::-1]],
        y=[*high, *low[::-1]],
        mode="lines",
        line={"width": 0, "color": GREY},
        fill="toself",
        fillcolor=BAND,
        hoverinfo="skip",
    )
    ends = go.Scatter(
        x=[*at, *at],
        y=[*low, *high],
        mode="markers",
        marker={"color": GREY, "size": 3},
        hovertext=[
            f"random circuits of {with_minus(f'{size:.3g}')} of all edges<br>"
            f"{LEVEL:.0%} of them from {signed(a)} to {signed(b)}"
            for size, a, b in zip(at.tolist() * 2, low.tolist() * 2, high.tolist() * 2)
        ],
        showlegend=False,
    )
    return [band, ends]


def _line(
    curve: FaithfulnessCurve,
    name: str,
    found: Faithfulness,
    at: np.ndarray,
    shown: np.ndarray,
    look: tuple[str, str, str],
    ends: tuple[float, float],
    ranking: str,
    sizes: Sizes,
) -> go.Scatter:
    """A curve with its intervals, which end at the figure's where they have no end."""
    colour, symbol, dash = look
    value, reach = found.value[shown], REACH * (ends[1] - ends[0])
    below, above = (
        np.where(np.isnan(end), np.nan, np.minimum(np.abs(end - value), reach))
        for end in (found.low[shown], found.high[shown])
    )
    areas = curve.areas(ranking, sizes)
    told = f"CPR {_area(areas.cpr)}, CMD {_area(areas.cmd)}"
    return go.Scatter(
        name=f"{escaped(name)}: {told}" if name else told,
        x=at[shown],
        y=value,
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"color": colour, "symbol": symbol, "size": 8},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "color": colour,
            "thickness": 1.2,
            "width": 4,
            "visible": bool(np.isfinite(above).any()),
        },
        hovertext=[_text(curve, name, found, curve.rankings.index(ranking), int(i)) for i in shown],
    )


def _area(value: float) -> str:
    return "not defined" if math.isnan(value) else with_minus(f"{value:.2f}")


def _text(curve: FaithfulnessCurve, name: str, found: Faithfulness, row: int, size: int) -> str:
    share = with_minus(f"{curve.sizes[size]:.3g}")
    lines = [
        f"<b>{f'{escaped(name)}, ' if name else ''}{share} of all edges</b>",
        f"faithfulness {signed(float(found.value[size]))}",
    ]
    if not math.isnan(found.low[size]):
        lines.append(
            f"{found.level:.0%} interval {signed(float(found.low[size]))} to {signed(float(found.high[size]))}"
        )
    asked, left = int(curve.nominal[row, size]), int(curve.real[row, size])
    lines.append(f"{count(asked, 'edge')} asked for, {left:,} once pruned")
    return "<br>".join([*lines, count(len(curve.pair_indices), "pair")])


def _axis_name(sizes: Sizes) -> str:
    return "edges, share of all" if sizes == "nominal" else "edges once pruned, share of all"


def _sizes_axis(places: Sequence[np.ndarray], scale: Scale) -> dict[str, Any]:
    if scale == "linear":
        return {"range": [-0.02, 1.02], "zeroline": False}
    every = np.concatenate(list(places))
    low, high = math.log10(every.min()), math.log10(every.max())
    room = 0.05 * ((high - low) or 1.0)
    powers = range(math.floor(low) - 1, 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if low - room <= math.log10(tick) <= high + room]
    if len(ticks) > MOST_TICKS:
        ticks = [tick for tick in ticks if f"{tick:.0e}".startswith("1")]
    texts = [f"{100 * tick:g}%" for tick in ticks]
    return {"type": "log", "range": [low - room, high + room], "tickvals": ticks, "ticktext": texts}


def _told(curves: Mapping[str, FaithfulnessCurve], found: Mapping[str, Faithfulness], ranking: str) -> list[str]:
    """What all curves rest on, and by name where they do not rest on the same."""
    parts: list[str] = []
    of_each = [_of_curve(one, found[name], ranking) for name, one in curves.items()]
    for several in zip(*of_each):
        if len(set(several)) == 1:
            parts.append(several[0])
        else:
            parts += [f"{name}: {part}" for name, part in zip(curves, several) if part]
    return [part for part in parts if part]


def _of_curve(curve: FaithfulnessCurve, found: Faithfulness, ranking: str) -> list[str]:
    held = {
        True: " that the ranking did not see",
        False: ", some of which the ranking saw",
        None: ", of which it is not known whether the ranking saw them",
    }
    unit = f"{curve.metric} ({curve.unit})" if curve.unit else curve.metric
    has_intervals = bool(np.isfinite(found.low).any())
    return [
        f"f = 1: as the whole model, 0: as with every edge off ({curve.direction}, {curve.source_of_values} written)",
        curve.model,
        curve.task,
        f"{curve.method} edges by {'|effect|' if ranking == 'absolute' else 'signed effect'}, {curve.ranked_by}",
        unit,
        f"{count(len(curve.pair_indices), 'pair')}{held[curve.held_out]}",
        f"bars: {found.level:.0%} intervals over pairs" if has_intervals else "no intervals: too few pairs",
        *(["; ".join(curve.flags)] if curve.flags else [""]),
        *(["; ".join(curve.notes)] if curve.notes else [""]),
    ]
