"""Describes heads: what each does for a task, what of it carries that, where it looks, and what its weights do.

All parts of all heads are patched in one sweep, in both directions; each prompt is run once more for the patterns; then
some random tokens that come twice. Definitions stand in `head_attention` and `head_weights`, those of effects in
`results.sweep`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from actpatch.core.alignment import identity
from actpatch.core.estimate_words import estimated_by
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.settings import Settings
from actpatch.metrics.base import Metric
from actpatch.patchers.card_effects import Head, head_effects, key_value_head, sharing
from actpatch.patchers.card_looks import looks_on_random_tokens, looks_on_task
from actpatch.patchers.card_weights import weight_scores
from actpatch.patchers.head_attention import roles_of
from actpatch.patchers.head_weights import TOP_K
from actpatch.results.cards import HeadCard, HeadCards
from actpatch.statistics.site_tests import CORRECTIONS
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.encoding import EncodedPairs, encode_pairs
from actpatch.tasks.random_tokens import bos_token, repeated_tokens, too_short_to_repeat

LARGEST_ALPHA = 0.5


def describe(
    engine: PatchingEngine,
    dataset: PatchingDataset,
    heads: Sequence[Head],
    *,
    pair_indices: Sequence[int] | None,
    metric: str | Metric | None,
    n_sequences: int,
    sequence_length: int,
    seed: int,
    alpha: float,
) -> HeadCards:
    """Cards of these heads; what `HeadPatcher.describe_heads` says of its arguments."""
    if not isinstance(alpha, Real) or not 0 < alpha <= LARGEST_ALPHA:
        raise ValueError(f"alpha is {alpha!r}, expected a level of significance above 0, at most {LARGEST_ALPHA}")
    if engine.estimate is not None:
        raise ValueError(
            f"cards have exact effects, these would be {estimated_by(engine.estimate)}: use HeadPatcher(model)"
        )
    model = engine.runner.model
    settings = Settings(pair_indices=pair_indices, direction="both", metrics=metric)
    pairs = encode_pairs(model, dataset, pair_indices)
    _check_token_by_token(pairs)
    too_short = too_short_to_repeat(model)
    repeated = None if too_short else repeated_tokens(model, n_sequences, sequence_length, seed)
    roles = roles_of(pairs, bos_token(model))
    effects = head_effects(engine, pairs, heads, roles, settings, alpha)
    looks = looks_on_task(engine, pairs, roles, effects.queries)
    random = None if repeated is None else looks_on_random_tokens(engine, repeated, heads)
    by_weights = weight_scores(engine, pairs, roles, effects.queries, looks, random)
    sweep = effects.sweeps[0]
    usable = sweep.usable
    clean, corrupted = (
        float(run[usable].mean()) if usable.any() else math.nan for run in (sweep.clean, sweep.corrupted)
    )

    def card(head: Head) -> HeadCard:
        previous, duplicate, induction = (math.nan,) * 3 if random is None else random.scores[head]
        made = by_weights[head]
        return HeadCard(
            layer=head[0],
            head=head[1],
            effects=effects.parts[head],
            metric=sweep.metric,
            n_pairs=int(usable.sum()),
            alpha=alpha,
            key_value_head=key_value_head(engine, head),
            shares_with=sharing(engine, head),
            places=effects.places[head],
            attention=looks.attention[head],
            previous_token=previous,
            duplicate_token=duplicate,
            induction=induction,
            copying=made.copying,
            eigenvalue_score=made.eigenvalue_score,
            query_key=made.query_key,
            absent={**({"random tokens": too_short} if too_short else {}), **made.absent},
        )

    left_out = f"left out, because some pairs lack them: {', '.join(roles.left_out)}" if roles.left_out else ""
    return HeadCards(
        cards=tuple(map(card, heads)),
        model=engine.model_name,
        task=sweep.task,
        metric=sweep.metric,
        unit=sweep.unit,
        more_is_better=sweep.more_is_better,
        clean_metric=clean,
        corrupted_metric=corrupted,
        pair_indices=pairs.indices,
        n_usable=int(usable.sum()),
        varies=sweep.varies,
        level=effects.level,
        alpha=alpha,
        correction=CORRECTIONS["bh"],
        n_sequences=0 if repeated is None else len(repeated.tokens),
        sequence_length=0 if repeated is None else repeated.length,
        seed=seed,
        top_k=TOP_K,
        dtype=sweep.dtype,
        notes=tuple(note for note in (*sweep.notes, *effects.notes, left_out) if note),
        versions=sweep.versions,
    )


def _check_token_by_token(pairs: EncodedPairs) -> None:
    """Raises ValueError where the prompts of a pair do not go together token by token: patterns are patched whole."""
    if pairs.matches:
        other = next(i for i, matches in enumerate(pairs.matches) if matches != identity(len(pairs.clean[i])))
        raise ValueError(
            f"pair {pairs.indices[other]}: its prompts do not go together token by token "
            f"({len(pairs.clean[other])} and {len(pairs.corrupted[other])} tokens), and a card has what patching "
            "patterns does. Sweep q, k, v and z with run_all_heads_experiment, or choose others with pair_indices"
        )
