"""Cards of heads, a row each: what patching its parts does, where it attends, and its scores. Knows cards alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from actpatch.core.heavy import go
from actpatch.core.text import escaped, signed, with_minus
from actpatch.figures.cells import STARS
from actpatch.figures.certainty import STAR
from actpatch.figures.colours import BLUE, GREY, INK, ORANGE, VIOLET
from actpatch.figures.frame import finish
from actpatch.results.cards import PARTS, SCORES, HeadCard, HeadCards, RoleAttention
from actpatch.results.cards_text import DIRECTIONS

ROW = 190
"""Pixels of a head's panels, and of the room for labels below them."""
LABELS = 140
WIDTH = 1080
NARROWEST = 900
"""Pixels at which the labels of its three panels still stay apart."""
COLOURS = {"denoising": BLUE, "noising": ORANGE, "clean": BLUE, "corrupted": ORANGE}
WEIGHTS = ("copies", "suppresses", "OV eigenvalues")


def create_head_cards(cards: HeadCards, *, title: str | None = None) -> go.Figure:
    """A row per head, as small multiples on common scales.

    Left: the effect of patching its output, pattern, queries, keys and values, each alone, in both directions, with
    intervals; a star marks what is significant after correction. Middle: its attention from the position where its
    output has most effect to each role, on clean and on corrupted prompts. Right: its scores on random tokens that come
    twice, and what its weights do, of the random tokens.

    Raises:
        ValueError: where `cards` are none.
    """
    if not isinstance(cards, HeadCards) or not len(cards):
        given = "no cards" if isinstance(cards, HeadCards) else f"a {type(cards).__name__}"
        raise ValueError(
            f"create_head_cards was given {given}, expected HeadCards of at least one head: they come from "
            "HeadPatcher(model).describe_heads(dataset, heads)"
        )
    figure = _grid(cards)
    for row, card in enumerate(cards, start=1):
        for direction in DIRECTIONS:
            figure.add_trace(_effects(card, direction, first=row == 1), row=row, col=1)
        for run in ("clean", "corrupted"):
            figure.add_trace(_attention(card, run, first=row == 1), row=row, col=2)
        figure.add_trace(_scores(card), row=row, col=3)
        for direction in DIRECTIONS:
            figure.add_trace(_stars(card, direction), row=row, col=1)
    low, high = _range_of_effects(cards)
    figure.update_yaxes(range=[low, high], title="effect", col=1)
    figure.update_yaxes(range=[0, 1.05], title="attention", col=2)
    figure.update_yaxes(range=[-1.08, 1.08], col=3)
    figure.update_xaxes(tickfont={"size": 11}, tickangle=-90, showgrid=False)
    starred = f"{STAR} significant after correction over all parts of these heads"
    parts = [
        *(cards.model, cards.task, f"{cards.metric}{f' ({cards.unit})' if cards.unit else ''}"),
        *(f"{cards.n_usable} of {len(cards.pair_indices)} pairs", "effect 0 = run patched, 1 = other run", starred),
        f"random tokens: {cards.n_sequences} × {cards.sequence_length}, seed {cards.seed}",
        f"copies, suppresses: share among the {cards.top_k} largest logits",
    ]
    return finish(figure, title or "What these heads do", parts, narrowest=NARROWEST)


def _grid(cards: HeadCards) -> go.Figure:
    """Empty panels with their titles, and room for the labels of bars."""
    from plotly.subplots import make_subplots

    n = len(cards)
    high = n * ROW + (n - 1) * LABELS
    titles = [
        text
        for card in cards
        for text in (
            f"<b>{card.label}</b> effect of patching",
            f"<b>{card.label}</b> attention from {escaped(card.main_query or 'nowhere')}",
            f"<b>{card.label}</b> random tokens and weights",
        )
    ]
    figure = make_subplots(
        rows=n, cols=3, horizontal_spacing=0.07, vertical_spacing=LABELS / high if n > 1 else 0, subplot_titles=titles
    )
    figure.update_annotations(font_size=12)
    figure.update_layout(
        barmode="group", bargap=0.25, width=WIDTH, height=high + 250, margin={"t": 30}, showlegend=True
    )
    return figure


def _effects(card: HeadCard, direction: str, *, first: bool) -> go.Bar:
    found = [card.effect(part, direction) for part in PARTS]  # type: ignore[arg-type]
    names = [_part_name(card, part) for part in PARTS]
    return go.Bar(
        name=direction,
        legendgroup=direction,
        offsetgroup=direction,
        showlegend=first,
        x=names,
        y=[each.effect for each in found],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [each.high - each.effect for each in found],
            "arrayminus": [each.effect - each.low for each in found],
            "color": INK,
            "thickness": 1,
            "width": 3,
            "visible": not all(math.isnan(each.low) for each in found),
        },
        marker={"color": COLOURS[direction]},
        hovertext=[
            f"<b>{card.label}</b> {name}, {direction}<br>effect {signed(each.effect)}"
            + ("" if math.isnan(each.low) else f"<br>interval {signed(each.low)} to {signed(each.high)}")
            + ("" if math.isnan(each.p_corrected) else f"<br>p, corrected {with_minus(f'{each.p_corrected:.2g}')}")
            for name, each in zip(names, found)
        ],
    )


def _stars(card: HeadCard, direction: str) -> go.Bar:
    """A star above the interval of each bar that is significant, on a bar of no colour that reaches so far."""
    found = [card.effect(part, direction) for part in PARTS]  # type: ignore[arg-type]
    return go.Bar(
        name=STARS,
        legendgroup=direction,
        offsetgroup=direction,
        showlegend=False,
        x=[_part_name(card, part) for part in PARTS],
        y=[max(0.0, *(end for end in (each.effect, each.high) if math.isfinite(end))) for each in found],
        marker={"color": "rgba(0, 0, 0, 0)", "line": {"width": 0}},
        text=[STAR if each.significant else "" for each in found],
        textposition="outside",
        textangle=0,
        cliponaxis=False,
        hoverinfo="skip",
    )


def _part_name(card: HeadCard, part: str) -> str:
    return part if part not in ("k", "v") or card.key_value_head is None else f"{part} (KV{card.key_value_head})"


def _attention(card: HeadCard, run: str, *, first: bool) -> go.Bar:
    seen: Sequence[RoleAttention] = [each for each in card.attention if each.query == card.main_query]
    weights = [getattr(each, run) for each in seen]
    return go.Bar(
        name=f"attention, {run}",
        legendgroup=f"attention, {run}",
        showlegend=first,
        x=[escaped(each.key) for each in seen],
        y=weights,
        marker={"color": COLOURS[run], "pattern": {"shape": "/", "fgopacity": 1, "size": 5}},
        hovertext=[
            f"<b>{card.label}</b> {escaped(each.query)} → {escaped(each.key)}<br>{run} {weight:.3f}"
            for each, weight in zip(seen, weights)
        ],
    )


def _scores(card: HeadCard) -> go.Bar:
    """Those that are known."""
    random = next((each for each in card.copying if each.tokens == "random tokens"), None)
    known = {name: getattr(card, field) for field, name in SCORES.items()}
    by_weights = (
        math.nan if random is None else random.copied,
        math.nan if random is None else random.suppressed,
        card.eigenvalue_score,
    )
    values = known | dict(zip(WEIGHTS, by_weights))
    return go.Bar(
        showlegend=False,
        x=list(values),
        y=list(values.values()),
        marker={"color": [GREY if name in WEIGHTS else VIOLET for name in values]},
        hovertext=[f"<b>{card.label}</b> {name}<br>{signed(value)}" for name, value in values.items()],
    )


def _range_of_effects(cards: HeadCards) -> tuple[float, float]:
    """One scale for all heads, with 0 on it and the intervals that are bounded."""
    ends = [end for card in cards for each in card.effects for end in (each.effect, each.low, each.high)]
    known = [end for end in ends if math.isfinite(end)]
    low, high = min([0.0, *known]), max([0.05, *known])
    room = 0.12 * (high - low)
    return low - room * (low < 0), high + room
