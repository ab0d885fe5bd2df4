"""The long table of a sweep: a row per patch, pair and metric."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from actpatch.core.alignment import Span, span_of
from actpatch.core.estimate_words import method_of
from actpatch.core.heavy import pd
from actpatch.results.patches import table_columns

if TYPE_CHECKING:
    from actpatch.results.sweep import Sweep, Tokens


def long_table(sweep: Sweep) -> pd.DataFrame:
    """The table; `Sweep.to_dataframe` says what its columns are."""
    n_patches, n_pairs, n_metrics = len(sweep.patches), len(sweep.pair_indices), len(sweep.measured)
    patch, pair, metric = (
        index.ravel() for index in np.indices((n_patches, n_pairs, n_metrics)).astype(np.int64, copy=False)
    )
    sweeps = [dataclasses.replace(sweep, selected=i) for i in range(n_metrics)]
    of_patch = table_columns(sweep.patches)
    spans = [_spans(at, sweep.base_tokens) for at in of_patch["position"].values]
    position = [at[0] if at is not None and len(at) == 1 else None for each in spans for at in each]
    clean_tokens, corrupted_tokens = ([both[side] for both in sweep.tokens_at] for side in (0, 1))
    cell = of_patch["position"].which[patch] * n_pairs + pair
    columns: dict[str, Any] = {
        **{name: _text(of_patch[name].values, of_patch[name].which[patch]) for name in ("site", "hook_point")},
        **{name: _integers(of_patch[name].values, of_patch[name].which[patch]) for name in ("layer", "head", "neuron")},
        "sender": _text(of_patch["sender"].values, of_patch["sender"].which[patch]),
        "position": _integers(position, cell),
        "position_name": _text(of_patch["position_name"].values, of_patch["position_name"].which[patch]),
        "token": _text(_texts_at(spans, clean_tokens), cell),
        "corrupted_token": _text(_texts_at(spans, corrupted_tokens), cell),
        "pair": np.array(sweep.pair_indices, dtype=np.int64)[pair],
        "template": _text(sweep.templates, pair),
        "group": _text(sweep.groups, pair),
        "correct": _text([answers.plain for answers in sweep.correct], pair),
        "incorrect": _text([answers.plain for answers in sweep.incorrect], pair),
        "metric": _text(sweep.metrics, metric),
        "unit": _text([values.unit for values in sweep.measured], metric),
        "direction": _text([sweep.direction], np.zeros_like(patch)),
        "source": _text([sweep.source_of_values], np.zeros_like(patch)),
        "noise": _text([sweep.noise], np.zeros_like(patch)),
        "path": _text([sweep.path], np.zeros_like(patch)),
        "window": _integers(of_patch["window"].values, of_patch["window"].which[patch]),
        "estimate": _text([method_of(sweep.estimate)], np.zeros_like(patch)),
        "clean": _stacked([s.clean for s in sweeps])[pair, metric],
        "corrupted": _stacked([s.corrupted for s in sweeps])[pair, metric],
        "patched": _stacked([s.patched for s in sweeps]).ravel(),
        "effect": _stacked([s.pair_effects for s in sweeps]).ravel(),
        "usable": _stacked([s.usable for s in sweeps])[pair, metric],
    }
    return pd.DataFrame(columns)


def _spans(at: int | tuple[Span, ...] | None, tokens: Sequence[Sequence[str]]) -> list[tuple[int, ...] | None]:
    """A site's positions in each pair, counted from the start; None where it has none."""
    per_pair = at if isinstance(at, tuple) else (at,) * len(tokens)
    return [
        None if span is None else tuple(p % len(prompt) for p in span_of(span))
        for span, prompt in zip(per_pair, tokens)
    ]


def _texts_at(spans: Sequence[Sequence[tuple[int, ...] | None]], tokens: Sequence[Tokens]) -> list[str | None]:
    return [None if at is None else _text_at(at, tokens[i]) for each in spans for i, at in enumerate(each)]


def _text_at(span: tuple[int, ...], tokens: Tokens) -> str | None:
    there = [token for token in (tokens[at] for at in span) if token is not None]
    return "".join(there) if there else None


def _text(values: Sequence[str | None], rows: Int[np.ndarray, " row"]) -> Any:
    return pd.array(values, dtype="string").take(rows)


def _integers(values: Iterable[int | None], rows: Int[np.ndarray, " row"]) -> Any:
    return pd.array(list(values), dtype="Int64").take(rows)


def _stacked(by_metric: Sequence[np.ndarray]) -> np.ndarray:
    """One array per metric as one array, with the metrics on its last axis."""
    return np.stack(by_metric, axis=-1)
