"""Attention patterns of heads on the clean prompt, the corrupted one, and their difference.

Knows patterns; which pair they are of was chosen before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actpatch.core.estimate_words import estimated_from, named, named_shortly
from actpatch.core.heavy import go
from actpatch.core.text import signed
from actpatch.figures.cells import SMALLEST_COLOUR_RANGE
from actpatch.figures.checks import wrong_type
from actpatch.figures.colours import DIVERGING, LINE, SEQUENTIAL
from actpatch.figures.frame import colour_ticks, finish, room_for, thin_out
from actpatch.figures.words import token_at, token_labels
from actpatch.results.attention import AttentionPatterns

SIDE = 240
"""Pixels of a pattern's side; tick labels are 14 pixels apart at least."""
NARROWEST_SIDE, LEAST_SIDE = 190, 88
"""Pixels of its width at which tick labels still stay apart, and at which it can be read with fewer of them."""


def create_attention_patterns(patterns: AttentionPatterns, *, title: str | None = None) -> go.Figure:
    """A row per head: its pattern on the clean prompt, on the corrupted one, and clean minus corrupted.

    The title says which pair it is, or of which pairs the mean, and what patching the heads does on it, where that is
    known. Queries are rows, keys are columns, both labelled with the prompt's tokens; those that differ are bold; of a
    mean, a name in brackets is a position that pairs fill with different tokens. Patterns share one scale from 0 to 1,
    differences one that is symmetric about 0. What a query cannot see stays white.

    Raises:
        ValueError: where `patterns` are none.
    """
    if not isinstance(patterns, AttentionPatterns):
        raise ValueError(
            f"{wrong_type(patterns, AttentionPatterns, 'create_attention_patterns')}; patterns come from "
            "HeadPatcher(model).attention_patterns(dataset, heads)"
        )
    clean, corrupted = patterns.clean_tokens, patterns.corrupted_tokens
    differing = [at for at, (before, after) in enumerate(zip(clean, corrupted)) if before != after]
    shown = thin_out(len(clean), first=differing, room=SIDE // 14)
    panels = [
        ("clean", patterns.clean, (clean, clean)),
        ("corrupted", patterns.corrupted, (corrupted, corrupted)),
        ("clean − corrupted", patterns.difference, (clean, corrupted)),
    ]
    labels = [token_labels(*tokens, shown, differing) for _, _, tokens in panels]
    figure = _grid(patterns, [name for name, _, _ in panels], max(map(room_for, labels)))
    for row, label in enumerate(patterns.labels):
        for column, (name, values, tokens) in enumerate(panels):
            place = {"row": row + 1, "col": column + 1}
            axis = "coloraxis2" if column == 2 else "coloraxis"
            figure.add_trace(_panel(values[row], f"<b>{label}</b>, {name}", tokens, axis), **place)
            ticks = {"tickvals": shown, "ticktext": labels[column], "tickfont": {"size": 10}, "showgrid": False}
            frame = {"zeroline": False, "showline": True, "linecolor": LINE, "mirror": True}
            figure.update_xaxes(**ticks, **frame, range=[-0.5, len(clean) - 0.5], tickangle=-90, **place)
            figure.update_yaxes(**ticks, **frame, range=[len(clean) - 0.5, -0.5], **place)
    parts = [
        patterns.model,
        patterns.task,
        f"{patterns.pairs}{f': {patterns.why}' if patterns.why else ''}",
        f"effects {estimated_from(patterns.estimate)}" if patterns.estimate else "",
        "tokens that differ in bold" if differing else "same tokens in both",
        "rows: the token that looks",
        "columns: the token looked at",
        "0 to 1 in each row, which sums to 1",
        f"pairs {', '.join(map(str, patterns.averaged))}" if patterns.averaged else "",
    ]
    wide = figure.layout.width
    sizes = {"narrowest": wide - 3 * (SIDE - NARROWEST_SIDE), "least_width": wide - 3 * (SIDE - LEAST_SIDE)}
    around = wide - 3 * SIDE, figure.layout.height - len(patterns.heads) * SIDE
    return finish(figure, title or _title(patterns), parts, **sizes, around=around)


def _title(patterns: AttentionPatterns) -> str:
    """Which pair, and what patching the heads does on it, on average over these heads."""
    title = f"Attention patterns, {patterns.pairs}"
    if not patterns.effects:
        return title
    here, over_all = (signed(float(np.mean(effects)), 2) for effects in (patterns.effects, patterns.mean_effects))
    whose = "" if len(patterns.heads) == 1 else " of these heads"
    return f"{title}: {named(patterns.estimate)}{whose} {here} (over all pairs {over_all})"


def _grid(patterns: AttentionPatterns, names: list[str], room: int) -> go.Figure:
    """Empty panels with room for their labels, and the two colour scales."""
    from plotly.subplots import make_subplots

    n_heads, down = len(patterns.heads), room + 60
    across = room + 24
    wide, high = 3 * SIDE + 2 * across, n_heads * SIDE + (n_heads - 1) * down
    figure = make_subplots(
        rows=n_heads,
        cols=3,
        horizontal_spacing=across / wide,
        vertical_spacing=down / high if n_heads > 1 else 0,
        subplot_titles=[f"<b>{label}</b> {name}" for label in _headings(patterns) for name in names],
    )
    figure.update_annotations(font_size=12)
    figure.update_xaxes(title="key", row=n_heads)
    figure.update_yaxes(title="query", col=1)
    limit = max(float(np.abs(patterns.difference).max()), SMALLEST_COLOUR_RANGE)
    bar = {"len": 0.46, "x": 1.02, "thickness": 12}
    figure.update_layout(
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1},
        coloraxis2={"colorscale": DIVERGING, "cmin": -limit, "cmax": limit},
        coloraxis_colorbar={
            **bar,
            "title": {"text": "attention"},
            "tickvals": [0, 0.2, 0.4, 0.6, 0.8],
            "y": 1,
            "yanchor": "top",
        },
        coloraxis2_colorbar={
            **bar,
            "title": {"text": "difference"},
            "tickvals": colour_ticks(limit),
            "y": 0,
            "yanchor": "bottom",
        },
        width=wide + room + 190,
        height=high + room + 70,
        margin={"t": 22},
    )
    return figure


def _headings(patterns: AttentionPatterns) -> list[str]:
    """Each head, with its effect on the pair where there are several heads: of one the title has it."""
    if len(patterns.effects) < 2:
        return patterns.labels
    shown = (named_shortly(patterns.estimate, signed(effect, 2)) for effect in patterns.effects)
    return [f"{label} ({effect})" for label, effect in zip(patterns.labels, shown)]


def _panel(values: np.ndarray, head: str, tokens: tuple[Sequence[str], Sequence[str]], axis: str) -> go.Heatmap:
    """One pattern; what lies after the query, which it cannot see, has no cell."""
    labels = [f"{at}: {token_at(at, *tokens, repr)}" for at in range(len(values))]
    hover = [
        [f"{head}<br>from {query}<br>to {key}<br>{signed(values[i, j])}" for j, key in enumerate(labels[: i + 1])]
        + [""] * (len(labels) - i - 1)
        for i, query in enumerate(labels)
    ]
    seen = np.tril(np.ones_like(values, dtype=bool))
    return go.Heatmap(z=np.where(seen, values, np.nan), coloraxis=axis, hovertext=hover, hoverongaps=False)
