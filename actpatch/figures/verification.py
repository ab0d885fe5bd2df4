"""Estimated effects against exact ones: site by site, and how well they agree by layer and kind.

Knows verifications; it runs and computes nothing.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from actpatch.core.heavy import go
from actpatch.core.text import count, plural, signed, with_minus
from actpatch.figures.cells import MARGINS, NUMBERS, cells_figure, colour_limit, narrowest, room_for_numbers
from actpatch.figures.checks import check_top_k
from actpatch.figures.colours import BLUE, DIVERGING, INK, LINE, ORANGE
from actpatch.figures.frame import NARROW, finish, label_points
from actpatch.figures.places import Cell
from actpatch.figures.words import effect_name, escaped, told
from actpatch.results.verification import FEWEST_OF_A_KIND, Verification, check_verification
from actpatch.results.verification_text import agreement, listed

Measure = Literal["error", "spearman"]
PARTS = {"top": (BLUE, "circle", "largest estimates"), "sample": (ORANGE, "diamond", "random sample of the others")}
"""How a site came to be verified -> colour, shape and what they are called."""
AREA = (NARROW, 300)
"""Pixels of the plot where there is least room."""


def create_estimate_comparison(verification: Verification, *, top_k: int = 12, title: str | None = None) -> go.Figure:
    """Estimated effect against exact one, a point per verified site; on the diagonal the estimate was right.

    Sites of the top and of the sample differ in colour and shape. Beyond the dashed lines lie effects larger than the
    smallest estimate of the top; sites of the sample there were missed, have a ring around them, and are named.

    Args:
        verification: what verifying estimates returned.
        top_k: name at most so many misses, the largest first; fewer where labels would lie on each other.
        title: in place of the figure's own.

    Raises:
        ValueError: where `verification` is none, or `top_k` is below 1.
    """
    check_verification(verification, "create_estimate_comparison")
    check_top_k(top_k)
    v = verification
    numbers = [n for n in v.numbers if not np.isnan(v.estimates[n]) and not np.isnan(v.compared[n])]
    x, y, labels = v.estimates, v.compared, v.labels
    ends = _ends(np.concatenate([x[numbers], y[numbers]]))
    figure = go.Figure()
    figure.add_shape(type="line", x0=ends[0], y0=ends[0], x1=ends[1], y1=ends[1], line={"color": LINE, "width": 1})
    for at in _cutoffs(v):
        figure.add_hline(at, line={"color": LINE, "width": 1, "dash": "dash"})
    for part, (colour, symbol, called) in PARTS.items():
        chosen = [n for n in numbers if v.is_top[n] == (part == "top")]
        figure.add_scatter(
            name=f"{called} ({len(chosen):,})",
            x=x[chosen],
            y=y[chosen],
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 8, "opacity": 0.8},
            hovertext=[_text(labels[n], x[n], v.exact_effects[n]) for n in chosen],
        )
    _name_missed(figure, v, numbers, labels, top_k, ends)
    size = "size of the " if v.are_sizes else ""
    figure.update_xaxes(title="estimated effect", range=ends, zerolinecolor=LINE)
    figure.update_yaxes(title=f"{size}exact {effect_name(v.exact)}", range=ends, zerolinecolor=LINE)
    figure.update_layout(width=640, height=560, showlegend=True)
    return finish(figure, title or f"Estimated and exact effects of {plural(v.kind)}", _told(v), around=(90, 130))


def create_agreement_map(
    verification: Verification,
    by: Measure = "error",
    *,
    title: str | None = None,
    colour_range: float | None = None,
) -> go.Figure:
    """How well estimates agree with exact effects, by layer and kind of site: of edges the kind of the receiver.

    Args:
        verification: what verifying estimates returned.
        by: `"error"` for the mean |estimate - exact|, `"spearman"` for the rank correlation, which only layers and
            kinds of at least 5 verified sites have. In both a site of the sample stands for its share of the others.
        title: in place of the figure's own.
        colour_range: colours span ± this; None spans the largest error, or ±1.

    Raises:
        ValueError: where `verification` is none, no site belongs to a layer, or none of them has enough verified ones;
            for an unknown `by`.
    """
    check_verification(verification, "create_agreement_map")
    if by not in get_args(Measure):
        raise ValueError(f"by is {by!r}, expected 'error' or 'spearman'")
    table = verification.by_layer_and_kind().dropna(subset=["layer"])
    if table[by].isna().all():
        least = f" of at least {FEWEST_OF_A_KIND} verified sites" if by == "spearman" else ""
        raise ValueError(f"there is no layer and kind{least}: verify more sites{' or draw errors' if least else ''}")
    kinds = list(dict.fromkeys(table["kind"]))
    values = np.full((verification.estimated.n_layers, len(kinds)), np.nan)
    hover: dict[Cell, str] = {}
    for row in table.to_dict("records"):
        cell = int(row["layer"]), kinds.index(row["kind"])
        values[cell] = row[by]
        hover[cell] = _cell_text(row, verification.kind)
    widest = 1.0 if by == "spearman" else float(np.nanmax(values)) or None
    limit = colour_limit(values, widest if colour_range is None else colour_range)
    what = "rank correlation" if by == "spearman" else "mean |error|"
    figure = cells_figure(values, hover, set(), limit, what)
    if by == "error":
        _from_zero(figure, values)
    names = [escaped(kind) for kind in kinds]
    figure.update_xaxes(
        title="read by" if verification.is_of_edges else "component", tickvals=list(range(len(kinds))), ticktext=names
    )
    sizes = {"narrowest": narrowest(len(kinds)), "room_for_numbers": room_for_numbers(len(kinds))}
    parts = [f"each cell: {what} of its verified {plural(verification.kind)}", *_told(verification)]
    title = title or f"Where estimates agree with exact effects: {what}"
    return finish(figure, title, parts, **sizes, around=(MARGINS, 90))


def _from_zero(figure: go.Figure, errors: np.ndarray) -> None:
    """Colours and numbers for errors, which are never below 0 and may be far below 0.01."""
    cells = figure.data[0]
    half = [[2 * stop - 1, colour] for stop, colour in DIVERGING if stop >= 0.5]
    cells.update(zmin=0, colorscale=half, colorbar_tickvals=[at for at in cells.colorbar.tickvals if at >= 0])
    shown = errors[~np.isnan(errors)]
    figure.update_traces(text=[f"{error:.2g}" for error in shown], selector={"name": NUMBERS})


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    room = 0.08 * ((high - low) or 1.0)
    return low - room, high + room


def _cutoffs(v: Verification) -> list[float]:
    """Where the dashed lines are; none where all sites are of the top, or none is."""
    if np.isnan(v.cutoff) or not v.sites.n_rest:
        return []
    return [v.cutoff] if v.are_sizes else [v.cutoff, -v.cutoff]


def _text(label: str, estimate: float, exact: float) -> str:
    return f"<b>{escaped(label)}</b><br>estimate {signed(estimate)}<br>exact effect {signed(exact)}"


def _cell_text(row: dict[Any, Any], kind: str) -> str:
    known = not np.isnan(row["spearman"])
    return "<br>".join(
        [
            f"<b>L{int(row['layer'])} {escaped(row['kind'])}</b>",
            f"mean |error| {signed(row['error'])}",
            f"rank correlation {signed(row['spearman'], 2)}" if known else "no rank correlation",
            f"{row['n_verified']:,} of {count(row['n_sites'], kind)} verified",
        ]
    )


def _name_missed(
    figure: go.Figure, v: Verification, numbers: list[int], labels: list[str], top_k: int, ends: tuple[float, float]
) -> None:
    missed = [n for n in v.missed if not np.isnan(v.estimates[n])]
    if not missed:
        return
    order = [*missed, *(n for n in numbers if n not in set(missed))]
    named = [escaped(labels[n]) for n in missed[:top_k]]
    points = [(float(v.estimates[n]), float(v.compared[n])) for n in order]
    at = label_points(points, named, ends, ends, AREA)
    at = [*at, *[None] * (len(missed) - len(at))]
    figure.add_scatter(
        name=f"missed ({len(missed):,})",
        x=v.estimates[missed],
        y=v.compared[missed],
        mode="markers+text",
        marker={"symbol": "circle-open", "size": 14, "color": INK, "line": {"width": 1.2}},
        text=[name if where else "" for name, where in zip([*named, *[""] * len(missed)], at)],
        textposition=[where or "middle right" for where in at],
        textfont={"size": 11},
        hoverinfo="skip",
    )


def _told(v: Verification) -> list[str]:
    """What the numbers rest on: how effects were estimated, what was run, and how well they agree."""
    kinds = plural(v.kind)
    parts = [
        f"estimates: {v.estimate.described}",
        f"{len(v.numbers):,} of {len(v.estimates):,} {kinds} run exactly",
        f"over all {kinds}: Spearman {with_minus(agreement(v.spearman))}, Pearson {with_minus(agreement(v.pearson))}",
    ]
    if v.n_unverified and not np.isnan(v.cutoff) and v.sites.n_sample:
        most = v.most_above(v.cutoff)
        parts.append(
            f"at most {most:,} of {v.n_unverified:,} unverified above {v.cutoff:.2g} ({v.level:.0%} confidence)"
        )
    if v.missed:
        labels = v.labels
        parts.append(f"missed: {listed([labels[n] for n in v.missed])}")
    return [*parts, *told(v.estimated)]
