"""What the weights of some heads do on a task's tokens and on random ones; what cannot be said, with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from actpatch.core.alignment import Span, span_of
from actpatch.engine.engine import PatchingEngine
from actpatch.models.weights import HeadWeights, Weights
from actpatch.patchers import head_weights
from actpatch.patchers.card_effects import Head
from actpatch.patchers.card_looks import EMBEDDING, RandomLooks, TaskLooks, stream_read
from actpatch.patchers.head_attention import Roles
from actpatch.results.cards import Copying, QueryKeyScore
from actpatch.tasks.encoding import EncodedPairs

RANDOM_TOKENS = "random tokens"


@dataclass(frozen=True)
class WeightScores:
    """What a head's weights do."""

    copying: tuple[Copying, ...] = ()
    eigenvalue_score: float = np.nan
    query_key: tuple[QueryKeyScore, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Prompts:
    """What the scores are asked on."""

    pairs: EncodedPairs
    roles: Roles
    looks: TaskLooks
    random: RandomLooks | None


def weight_scores(
    engine: PatchingEngine,
    pairs: EncodedPairs,
    roles: Roles,
    queries: Mapping[Head, Sequence[str]],
    looks: TaskLooks,
    random: RandomLooks | None,
) -> dict[Head, WeightScores]:
    """The scores of each head. Its weights are compared with a run of the first clean prompt before."""
    asked = {name for layer, _ in queries for name in head_weights.hook_points_to_compare(layer, engine.n_layers)}
    run = engine.record(pairs.clean[0][None], sorted(asked & set(engine.runner.hook_points)))
    prompts = _Prompts(pairs, roles, looks, random)
    found = {}
    with engine.runner.as_found(()):
        weights = Weights(engine.runner)
        for (layer, index), asked_from in queries.items():
            try:
                head = weights.head(layer, index)
            except (AttributeError, NotImplementedError) as error:
                reason = f"its weights cannot be read ({str(error).split('. ')[0]})"
                found[layer, index] = WeightScores(absent={"weights": reason})
                continue
            faults = head_weights.faults(weights, head, layer, index, run.activations, run.logits, engine.n_layers)
            found[layer, index] = _scores(weights, head, layer, faults, asked_from, prompts)
    return found


def _scores(
    weights: Weights,
    head: HeadWeights,
    layer: int,
    faults: Mapping[str, str],
    queries: Sequence[str],
    prompts: _Prompts,
) -> WeightScores:
    copied: tuple[Copying, ...] = ()
    query_key: tuple[QueryKeyScore, ...] = ()
    eigenvalue_score = np.nan
    absent: dict[str, str] = {}
    if "ov" in faults:
        absent |= dict.fromkeys(("copying", "OV eigenvalues"), faults["ov"])
    else:
        if weights.answers_in_its_vocabulary:
            copied = tuple(_copying(weights, head, layer, prompts))
        else:
            absent["copying"] = "the model answers in another vocabulary than it reads"
        try:
            eigenvalue_score = head_weights.eigenvalue_score(weights, head, layer)
        except ValueError as error:
            absent["OV eigenvalues"] = str(error)
    if "qk" in faults:
        absent["query · key"] = faults["qk"]
    elif EMBEDDING not in prompts.looks.streams:
        absent["query · key"] = f"the model does not show its embeddings ({EMBEDDING})"
    else:
        query_key = tuple(_query_key(weights, head, layer, queries, prompts))
    return WeightScores(copied, eigenvalue_score, query_key, absent)


def _copying(weights: Weights, head: HeadWeights, layer: int, prompts: _Prompts) -> Iterator[Copying]:
    """By named position of the clean prompts, and over the random tokens."""
    streams = prompts.looks.streams[stream_read(layer)]
    asked: dict[str, tuple[Tensor, Tensor]] = {
        name: (_at(streams, at), _at(prompts.pairs.clean, at)) for name, at in prompts.roles.places.items()
    }
    if prompts.random is not None:
        asked[RANDOM_TOKENS] = prompts.random.streams[stream_read(layer)], prompts.random.tokens
    for name, (resid, tokens) in asked.items():
        yield Copying(name, *head_weights.copying(weights, head, layer, resid, tokens), n_tokens=len(tokens))


def _query_key(
    weights: Weights, head: HeadWeights, layer: int, queries: Sequence[str], prompts: _Prompts
) -> Iterator[QueryKeyScore]:
    """From each query that the head's attention is told from to each named position that it can see."""
    embeddings, roles = prompts.looks.streams[EMBEDDING], prompts.roles
    for query in queries:
        for key, at in (roles.keys if roles.places else {}).items():
            here = roles.queries(query)
            if all(span_of(there)[-1] <= query_at for there, query_at in zip(at, here)):
                each = [(query_at,) * len(span_of(there)) for there, query_at in zip(at, here)]
                given = _at(embeddings, each), _at(embeddings, at)
                scores = head_weights.query_key_scores(weights, head, layer, *given)
                yield QueryKeyScore(query, key, float(scores.mean()))


def _at(per_pair: Sequence[Tensor], positions: Sequence[Span]) -> Tensor:
    """What stands at one position of each pair, or at all of a span's, one after the other."""
    return torch.stack([values[at] for values, span in zip(per_pair, positions) for at in span_of(span)])
