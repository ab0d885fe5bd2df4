"""What a judgement of a circuit rests on: it and random ones, its parts, and what both lack without some of these.

Knows evaluations; it runs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from actpatch.core.heavy import go
from actpatch.core.text import count, described, escaped, plural, signed, with_minus
from actpatch.figures.colours import BLUE, GREY, INK, LINE, ORANGE, VIOLET
from actpatch.figures.frame import finish
from actpatch.figures.ranking import rows_axis, strip
from actpatch.results.circuit_evaluation import CircuitEvaluation

WIDTH = 700
LEAST_WIDTH = 330
"""Pixels below which labels take more than half of it."""
ABOVE, BETWEEN = 120, 110
"""Pixels around all panels, and between two of them."""
ROW, BAR, SQUARE = 46, 22, 320
"""Pixels of a row of the first panel, of a bar, and of the height of the scatter."""
LETTERS = 40
"""Of a part's name and of the names of those that are left out."""
WHISKER = {"type": "data", "symmetric": False, "color": INK, "thickness": 1.2, "width": 4}


def create_circuit_evaluation(
    evaluation: CircuitEvaluation, *, metric: str | None = None, top_k: int = 25, title: str | None = None
) -> go.Figure:
    """A panel for each thing that was judged.

    - *Alone*: faithfulness of the circuit, of the rest of the model without it, and of random circuits of its size, a
      point each.
    - *Without each part*: by how much faithfulness falls when the circuit loses one of its components or edges, the
      largest drop on top; bars within ±0.01 are grey.
    - *Without the same components*: faithfulness of the model against that of the circuit when both lose a set K (Wang
      et al. 2022); a complete circuit has all points on the diagonal.

    Bars with ends are intervals over pairs. Panels of what was not judged are left out.

    Args:
        evaluation: what `evaluate_circuit` returned.
        metric: one of its metrics; None for the selected one.
        top_k: parts that are drawn, those of largest |drop|.
        title: in place of the figure's own.

    Raises:
        ValueError: where `evaluation` is none, has not this metric, or its faithfulness is not defined; where `top_k`
            is below 1.
    """
    if not isinstance(evaluation, CircuitEvaluation):
        raise ValueError(
            f"create_circuit_evaluation was given {described(evaluation)}, expected what evaluate_circuit returns"
        )
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1")
    e = evaluation if metric is None else evaluation.by_metric(metric)
    if math.isnan(e.faithfulness.value[0]):
        raise ValueError(f"faithfulness is not defined by the {e.metric}: {'; '.join(e.flags)}")
    parts = _order_of_parts(e)[:top_k]
    panels: list[tuple[str, int, Callable[[go.Figure, int], None]]] = [
        ("Alone", ROW * (2 + bool(len(e.values.random))), lambda figure, row: _alone(figure, row, e))
    ]
    if parts:
        heading = f"Without each {'component' if e.kind_of_parts == 'node' else 'edge'}"
        panels.append((heading, max(BAR * len(parts), 70), lambda figure, row: _parts(figure, row, e, parts)))
    if e.knock_outs:
        panels.append(("Without the same components", SQUARE, lambda figure, row: _knock_outs(figure, row, e)))
    figure = _grid([name for name, *_ in panels], [high for _, high, _ in panels])
    for row, (*_, draw) in enumerate(panels, start=1):
        draw(figure, row)
    return finish(
        figure,
        title or "What the circuit does alone, and what it needs",
        _told(e, len(parts)),
        narrowest=LEAST_WIDTH,
        least_width=LEAST_WIDTH,
        around=(150, ABOVE),
    )


def _grid(names: Sequence[str], heights: Sequence[int]) -> go.Figure:
    """Empty panels below each other, with their titles at the left."""
    from plotly.subplots import make_subplots

    total = sum(heights) + BETWEEN * (len(heights) - 1)
    figure: go.Figure = make_subplots(
        rows=len(heights),
        cols=1,
        row_heights=list(heights),
        vertical_spacing=BETWEEN / total if len(heights) > 1 else 0,
        subplot_titles=[f"<b>{name}</b>" for name in names],
    )
    figure.update_annotations(font_size=13, x=0, xanchor="left")
    figure.update_layout(width=WIDTH, height=total + ABOVE, margin={"t": 26}, showlegend=True)
    return figure


def _alone(figure: go.Figure, row: int, e: CircuitEvaluation) -> None:
    found = [e.faithfulness, e.completeness]
    values = [float(each.value[0]) for each in found]
    names = ["circuit", "the rest"]
    n_random = len(e.values.random)
    for at in (0.0, 1.0):
        look = {"color": LINE, "width": 1.2, "dash": "dash" if at else "dot"}
        figure.add_vline(at, line=look, layer="below", row=row, col=1, exclude_empty_subplots=False)
    if n_random:
        random = e.random_faithfulness.value
        figure.add_scatter(
            name=count(n_random, "random circuit"),
            x=random,
            y=2 + strip(n_random, 0.3),
            mode="markers",
            marker={"symbol": "circle-open", "color": GREY, "size": 7},
            hovertext=[
                f"random circuit of {count(int(size), 'edge')}<br>faithfulness {signed(float(value))}"
                for size, value in zip(e.random_sizes, random)
            ],
            row=row,
            col=1,
        )
        names.append("random circuits")
    ends = [(float(each.low[0]), float(each.high[0])) for each in found]
    figure.add_scatter(
        name="the circuit, and the rest without it",
        x=values,
        y=[0, 1],
        mode="markers",
        marker={"symbol": ["diamond", "square"], "color": [BLUE, ORANGE], "size": 11},
        error_x={**WHISKER, **_reach(values, [low for low, _ in ends], [high for _, high in ends])},
        hovertext=[
            f"<b>{name}</b><br>faithfulness {signed(value)}{_interval(low, high, e.level)}"
            for name, value, (low, high) in zip(("the circuit", "the model without it"), values, ends)
        ],
        showlegend=False,
        row=row,
        col=1,
    )
    every = [*values, *(e.random_faithfulness.value if n_random else [])]
    low, high = min(0.0, *every), max(1.0, *every)
    room = 0.08 * (high - low)
    figure.update_xaxes(title="faithfulness", range=[low - room, high + room], zeroline=False, row=row, col=1)
    figure.update_yaxes(**rows_axis(names), row=row, col=1)


def _order_of_parts(e: CircuitEvaluation) -> list[int]:
    """Numbers of the parts of largest |drop|, largest first."""
    sizes = np.nan_to_num(np.abs(e.minimality.value), nan=-1.0)
    return np.argsort(-sizes, kind="stable").tolist()


def _parts(figure: go.Figure, row: int, e: CircuitEvaluation, chosen: Sequence[int]) -> None:
    drops = e.minimality
    order = sorted(chosen, key=lambda i: -drops.value[i])
    idle = set(e.not_needed)
    values, low, high = (each[order].tolist() for each in (drops.value, drops.low, drops.high))
    figure.add_bar(
        name="drop of faithfulness",
        x=values,
        y=list(range(len(order))),
        orientation="h",
        width=0.72,
        marker={"color": [GREY if e.parts[i] in idle else BLUE for i in order]},
        error_x={**WHISKER, **_reach(values, low, high)},
        hovertext=[
            f"<b>without {escaped(e.parts[i])}</b><br>faithfulness falls by {signed(value)}"
            f"{_interval(a, b, e.level)}<br>p {_p(drops.p[i])}, corrected {_p(drops.p_corrected[i])}"
            for i, value, a, b in zip(order, values, low, high)
        ],
        showlegend=False,
        row=row,
        col=1,
    )
    figure.update_xaxes(title="drop of faithfulness", row=row, col=1)
    figure.update_yaxes(**rows_axis([escaped(_short(e.parts[i])) for i in order]), row=row, col=1)


def _knock_outs(figure: go.Figure, row: int, e: CircuitEvaluation) -> None:
    x, y = (_shares(e, values) for values in (e.values.circuit_knocked, e.values.model_knocked))
    n_random = len(x) - e.n_greedy
    finite = np.concatenate([x, y])
    low, high = min(0.0, float(finite.min())), max(1.0, float(finite.max()))
    room = 0.06 * (high - low)
    ends = [low - room, high + room]
    figure.add_shape(
        type="line", x0=ends[0], y0=ends[0], x1=ends[1], y1=ends[1], line={"color": LINE, "width": 1.2}, row=row, col=1
    )
    gaps = e.knocked_out
    for name, numbers, symbol, colour in (
        ("random sets", range(n_random), "circle", VIOLET),
        ("greedy sets", range(n_random, len(x)), "diamond-open", INK),
    ):
        if not len(numbers):
            continue
        figure.add_scatter(
            name=f"{name} ({len(numbers)})",
            x=x[numbers],
            y=y[numbers],
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 9, "opacity": 0.85},
            hovertext=[
                f"<b>without {escaped(_listed(e.knock_outs[i]))}</b><br>model {signed(float(y[i]))}, circuit "
                f"{signed(float(x[i]))}<br>difference {signed(float(gaps.value[i]))}"
                f"{_interval(float(gaps.low[i]), float(gaps.high[i]), e.level)}"
                for i in numbers
            ],
            row=row,
            col=1,
        )
    figure.update_xaxes(title="faithfulness of the circuit without K", range=ends, zeroline=False, row=row, col=1)
    figure.update_yaxes(title="of the model without K", range=ends, zeroline=False, row=row, col=1)


def _shares(e: CircuitEvaluation, values: Float[np.ndarray, "set pair"]) -> Float[np.ndarray, " set"]:
    """Faithfulness of these runs: ratios of means."""
    full, empty = e.values.full.mean(), e.values.empty.mean()
    return (values.mean(axis=1) - empty) / (full - empty)


def _reach(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> dict[str, Any]:
    """How far intervals reach; not drawn where none has an end."""
    below = [v - end if math.isfinite(end) else math.nan for v, end in zip(values, low)]
    above = [end - v if math.isfinite(end) else math.nan for v, end in zip(values, high)]
    return {"array": above, "arrayminus": below, "visible": not all(map(math.isnan, (*below, *above)))}


def _interval(low: float, high: float, level: float) -> str:
    return "" if math.isnan(low) else f"<br>{level * 100:g}% interval {signed(low)} to {signed(high)}"


def _p(p: float) -> str:
    return with_minus(f"{p:.2g}")


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def _listed(names: Sequence[str]) -> str:
    return _short(", ".join(names))


def _told(e: CircuitEvaluation, n_drawn: int) -> list[str]:
    held: dict[Any, str] = {
        True: " that the search did not see",
        False: ", some of which the search saw",
        None: ", of which it is not known whether the search saw them",
    }
    unit = f"{e.metric} ({e.values.unit})" if e.values.unit else e.metric
    kind = "component" if e.kind_of_parts == "node" else "edge"
    random = e.random
    return [
        f"circuit of {len(e.circuit):,} of {e.circuit.edges.size:,} edges",
        f"f = 1: as the whole model, 0: as with every edge off ({e.direction}, {e.source_of_values} written)",
        e.circuit.graph.model,
        e.task,
        unit,
        f"{count(len(e.pair_indices), 'pair')}{held[e.held_out]}",
        "" if math.isnan(e.faithfulness.low[0]) else f"bars: {e.level * 100:g}% intervals over pairs",
        f"against {count(len(random.random), 'random circuit')}: p {_p(random.p)}" if random is not None else "",
        f"{n_drawn} of {len(e.parts):,} {plural(kind)}, the largest drops" if n_drawn < len(e.parts) else "",
        f"random sets and circuits: seed {e.seed}" if e.knock_outs or random is not None else "",
        *e.flags,
        *e.notes,
    ]
