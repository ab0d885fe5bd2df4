"""What heads look at, recorded: each prompt of a task once, and some sequences of random tokens that come twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actpatch.core.sites import block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.patchers.card_effects import Head
from actpatch.patchers.head_attention import Roles, attention_by_role, repetition_scores
from actpatch.results.cards import RoleAttention
from actpatch.tasks.encoding import EncodedPairs
from actpatch.tasks.random_tokens import RepeatedTokens

AT_ONCE = 16
"""Prompts whose activations are held together."""
EMBEDDING = "hook_embed"


def stream_read(layer: int) -> str:
    """Hook point of the stream by which it is asked what a head of this layer copies (`head_weights`)."""
    return block_hook(0, "resid_pre" if layer == 0 else "resid_post")


@dataclass(frozen=True)
class TaskLooks:
    """What was recorded on the task's prompts."""

    attention: Mapping[Head, tuple[RoleAttention, ...]]
    streams: Mapping[str, list[Tensor]]
    """Hook point -> its activations on each clean prompt: the streams that heads copy from, and the embeddings where
    the model shows them."""


@dataclass(frozen=True)
class RandomLooks:
    """What was recorded on random tokens that come twice."""

    scores: Mapping[Head, tuple[float, float, float]]
    """(previous-token, duplicate-token, induction) score."""
    streams: Mapping[str, Tensor]
    """Hook point -> its activations at all random tokens before they come again."""
    tokens: Tensor
    """The ids of these tokens."""


def looks_on_task(
    engine: PatchingEngine,
    pairs: EncodedPairs,
    roles: Roles,
    queries: Mapping[Head, Sequence[str]],
) -> TaskLooks:
    """Attention from the named queries of each head to all roles, mean over pairs; and streams of the clean prompts."""
    patterns = {layer: block_hook(layer, "pattern") for layer, _ in queries}
    kept = {stream_read(layer) for layer in patterns} | ({EMBEDDING} & set(engine.runner.hook_points))
    seen: dict[tuple[Head, str], list[np.ndarray]] = {}
    streams: dict[str, list[Tensor]] = {name: [] for name in kept}
    for run, prompts in (("clean", pairs.clean), ("corrupted", pairs.corrupted)):
        names = {*patterns.values(), *(kept if run == "clean" else ())}
        for activations in _recorded(engine, prompts, sorted(names)):
            for name in kept & names:
                streams[name].append(activations[name])
            for layer, index in queries:
                seen.setdefault(((layer, index), run), []).append(_array(activations[patterns[layer]][index]))
    attention = {}
    for head, asked in queries.items():
        rows = []
        for query in asked:
            clean, corrupted = (
                attention_by_role(seen[head, run], roles.queries(query), roles) for run in ("clean", "corrupted")
            )
            rows += [RoleAttention(query, key, weight, corrupted[key]) for key, weight in clean.items()]
        attention[head] = tuple(rows)
    return TaskLooks(attention, streams)


def looks_on_random_tokens(engine: PatchingEngine, repeated: RepeatedTokens, heads: Sequence[Head]) -> RandomLooks:
    """Scores of the heads, and the streams that they copy from."""
    patterns = {layer: block_hook(layer, "pattern") for layer, _ in heads}
    kept = {stream_read(layer) for layer in patterns}
    seen: dict[Head, list[np.ndarray]] = {head: [] for head in heads}
    streams: dict[str, list[Tensor]] = {name: [] for name in kept}
    first = slice(repeated.start, repeated.start + repeated.length)
    for activations in _recorded(engine, list(repeated.tokens), sorted({*patterns.values(), *kept})):
        for layer, index in heads:
            seen[layer, index].append(_array(activations[patterns[layer]][index]))
        for name in kept:
            streams[name].append(activations[name][first])
    scores = {head: repetition_scores(np.stack(each), repeated) for head, each in seen.items()}
    together = {name: torch.cat(each) for name, each in streams.items()}
    return RandomLooks(scores, together, repeated.tokens[:, first].flatten())


def _recorded(engine: PatchingEngine, prompts: Sequence[Tensor], names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Activations of each prompt at these hook points, in the prompts' order."""
    start = 0
    while start < len(prompts):
        stop = start + 1
        while stop < min(start + AT_ONCE, len(prompts)) and len(prompts[stop]) == len(prompts[start]):
            stop += 1
        found = engine.record(torch.stack(list(prompts[start:stop])), names).activations
        for row in range(stop - start):
            yield {name: found[name][row] for name in names}
        start = stop


def _array(values: Tensor) -> np.ndarray:
    return values.detach().to(device="cpu", dtype=torch.float64).numpy()
