"""What a model says: from what is asked to continuations of the three runs. Nothing here runs a model itself."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, TypeAlias

from actpatch.core.direction import Direction
from actpatch.core.indices import is_integer
from actpatch.core.sites import Patch, Site
from actpatch.core.text import described, shortened
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.generation import Said, generate
from actpatch.interventions.places import Position, places_at
from actpatch.results.generation import Continuation, Generation
from actpatch.tasks.answers import n_answers
from actpatch.tasks.encoding import EncodedPairs
from actpatch.tasks.tokens import text_of, token_strings
from actpatch.tasks.unmatched import nothing_written_sentence, unmatched_sentence

PatchChoice: TypeAlias = Patch | Site | str
"""A patch, a site, or the full name of a hook point."""


def generation(
    engine: PatchingEngine,
    pairs: EncodedPairs,
    patch: PatchChoice,
    *,
    head: int | None,
    position: Position,
    direction: Direction,
    max_new_tokens: int,
    stop_at_eos: bool,
) -> Generation:
    """The continuations of one pair's runs. Arguments and errors are those of `ActivationPatcher.generate`."""
    chosen = _chosen_patch(engine, pairs.in_direction(direction), patch, head, position)
    model = engine.runner.model
    _check_room(model, pairs, max_new_tokens)
    if not isinstance(stop_at_eos, bool):
        raise ValueError(f"stop_at_eos is {stop_at_eos!r}, expected True or False")
    stops = engine.runner.end_tokens if stop_at_eos else frozenset()
    said = generate(engine, pairs, chosen, direction, max_new_tokens=max_new_tokens, stops=stops)
    clean, corrupted, patched = (_continuation(model, one, stops) for one in (said.clean, said.corrupted, said.patched))
    seen = pairs.in_direction(direction)
    left_alone = nothing_written_sentence(seen, [chosen]) or unmatched_sentence(seen)
    return Generation(
        clean=clean,
        corrupted=corrupted,
        patched=patched,
        patch=chosen,
        direction=direction,
        model=engine.model_name,
        clean_tokens=pairs.clean_tokens[0],
        corrupted_tokens=pairs.corrupted_tokens[0],
        notes=(*[left_alone] * bool(left_alone), *said.notes),
    )


def one_hook_point(engine: PatchingEngine, hook_point: str) -> str:
    """The full name of a hook point. Raises ValueError for an unknown one, and one that stands for all layers."""
    names = engine.hook_points(hook_point)
    if len(names) > 1:
        raise ValueError(f"{hook_point!r} stands for all {len(names)} layers: name one, for instance {names[0]!r}")
    return names[0]


def _chosen_patch(
    engine: PatchingEngine, pairs: EncodedPairs, patch: PatchChoice, head: int | None, position: Position
) -> Patch:
    if isinstance(patch, (Patch, Site)):
        if head is not None or position is not None:
            raise ValueError(
                f"patch is {described(patch)}, which says head and position itself: leave out the arguments head and "
                "position"
            )
        return patch if isinstance(patch, Patch) else Patch((patch,))
    if not isinstance(patch, str):
        raise ValueError(
            f"patch is {shortened(patch)}, expected a Patch, a Site or the full name of a hook point, with head= and "
            "position= if wanted"
        )
    name = one_hook_point(engine, patch)
    return Patch(tuple(replace(place, hook_point=name, head=head) for place in places_at(position, pairs)))


def _check_room(model: Any, pairs: EncodedPairs, max_new_tokens: int) -> None:
    """Raises ValueError where the model cannot say so many tokens after these prompts."""
    if not is_integer(max_new_tokens) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}, expected at least 1")
    if n_answers(model) != model.cfg.d_vocab:
        raise ValueError(
            f"this model reads {model.cfg.d_vocab} tokens and writes {n_answers(model)} others, so it cannot read on "
            "what it says"
        )
    longest = max(len(prompt) for prompt in (*pairs.clean, *pairs.corrupted))
    room = model.cfg.n_ctx - longest + 1  # the last new token is not read
    if max_new_tokens > room:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}, and the model reads at most {model.cfg.n_ctx} tokens, of which the "
            f"prompt takes {longest}: expected at most {room}"
        )


def _continuation(model: Any, said: Said, stops: Collection[int]) -> Continuation:
    has_ended = said.ids[-1] in stops
    return Continuation(
        text=text_of(model, said.ids[:-1] if has_ended else said.ids),
        ids=said.ids,
        tokens=token_strings(model, said.ids),
        log_probabilities=said.log_probabilities,
        has_ended=has_ended,
    )
