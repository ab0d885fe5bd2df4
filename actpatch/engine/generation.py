"""Greedy continuations of the clean, the corrupted and the patched run of one pair.

In the patched run what is written stands at the prompt's positions alone. The prompt is run once, and each new token
alone over the keys and values that the model kept of what came before: those of the patched prompt. That these are the
model's own numbers is checked: at the end the whole text is run again without a cache, the patch written at the
prompt's positions, and each new token has to be its likeliest, from the same logits. A model for which that does not
hold, that keeps no keys and values, or on which code runs that is not its own, takes such a run for every new token;
the model is causal, so keys and values of the prompt are in each of them those of the patched prompt. Of an attention
pattern the rows of the prompt's tokens are written, which attend to nothing behind them; those of new tokens are the
model's own.

Nothing here knows text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from actpatch.core.direction import Direction
from actpatch.core.sites import Patch, position_axis
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.exactness import too_far
from actpatch.engine.plan import Batch
from actpatch.engine.runs import Runs
from actpatch.engine.writes import check_fired, write_hooks, writes_of
from actpatch.models.runner import Hook, Read, is_out_of_memory
from actpatch.tasks.encoding import EncodedPairs


@dataclass(frozen=True)
class Said:
    """The new tokens of one run."""

    ids: tuple[int, ...]
    """The likeliest token each time; the last one ends a text, where the run stopped at such a token."""
    log_probabilities: tuple[float, ...]
    """Of each token after those before it, in nats."""


@dataclass(frozen=True)
class SaidByAll:
    """The new tokens of the three runs of a pair."""

    clean: Said
    corrupted: Said
    patched: Said
    notes: tuple[str, ...]
    """What a reader should know of how they were run; nothing of it where keys and values were kept."""


@dataclass(frozen=True)
class _Limits:
    """When a continuation ends, and where its progress is told."""

    max_new_tokens: int
    stops: Collection[int]
    progress: tqdm

    def has_ended(self, ids: Sequence[int]) -> bool:
        return len(ids) == self.max_new_tokens or bool(ids and ids[-1] in self.stops)


def generate(
    engine: PatchingEngine,
    pairs: EncodedPairs,
    patch: Patch,
    direction: Direction,
    *,
    max_new_tokens: int,
    stops: Collection[int],
) -> SaidByAll:
    """What the clean, the corrupted and the patched run say after their prompt.

    Args:
        pairs: one pair.
        patch: what is replaced in the patched run, at positions of the prompt.
        direction: which run is patched.
        max_new_tokens: most tokens of each continuation.
        stops: tokens after which a continuation ends.

    Raises:
        ValueError: before any run, for an unknown direction or hook point and for a head, neuron or position out of
            range.
        RuntimeError: where a hook that should have written the patch did not fire.
    """
    shortcuts = engine.shortcuts
    try:
        with (
            engine.running(pairs, {direction: [patch]}, reads_all=False, vocabulary=None) as runs,
            tqdm(
                total=3 * max_new_tokens,
                unit="token",
                desc="Generating",
                disable=None if engine.show_progress else True,
            ) as progress,
        ):
            runs.exactness = replace(runs.exactness.without_resuming(), prefix=runs.exactness.prefix)
            if runs.exactness.prefix and runs.runner.positions_depend_on_the_longest:
                _run_in_full(runs, "its position embeddings grow with the longest prompt")
            limits = _Limits(max_new_tokens, stops, progress)
            patched = _patched(runs, limits)  # first, since it may fail
            clean, corrupted = (_continued(runs, prompt[0], (), limits) for prompt in (pairs.clean, pairs.corrupted))
            return SaidByAll(clean, corrupted, patched, tuple(runs.notes))
    finally:
        engine.shortcuts = shortcuts  # of the last sweep, which this is none


def _patched(runs: Runs, limits: _Limits) -> Said:
    experiment = runs.experiment
    ((chunk,),) = runs.chunks()
    prompt = experiment.prompts[0][0]
    batch = Batch.of([0], [0], 0, len(prompt))
    writes = writes_of(batch, [patch.sites for patch in experiment.patches])
    hooks, fired = write_hooks(experiment, batch, chunk, writes)
    said = _continued(runs, prompt, [_on_prompt(hook, len(prompt)) for hook in hooks], limits)
    check_fired(writes, fired)
    return said


def _on_prompt(hook: Hook, length: int) -> Hook:
    """The hook, given and changing nothing but the positions of the prompt."""
    name, write = hook
    assert isinstance(name, str)
    axis = position_axis(name)

    def write_prompt(value: Tensor, hook: Any) -> Tensor | None:
        written = write(value.narrow(axis, 0, length), hook)
        if written is None:
            return None
        value = value.clone()
        value.narrow(axis, 0, length).copy_(written)
        return value

    return name, write_prompt


def _continued(runs: Runs, prompt: Int[Tensor, " pos"], hooks: Sequence[Hook], limits: _Limits) -> Said:
    """The continuation of one prompt, with these hooks on it."""
    prompt = prompt.to(runs.runner.device)
    if runs.exactness.prefix and limits.max_new_tokens > 1:
        said, reason = _over_kept_keys(runs, prompt, hooks, limits)
        if reason is None:
            return said
        _run_in_full(runs, reason)
    ids: list[int] = []
    log_probabilities: list[float] = []
    tokens = prompt
    while not limits.has_ended(ids):
        with runs.runner.hooks(hooks):
            logits = runs.runner.run(tokens[None], _read([len(tokens) - 1], runs))[0]
        token, log_probability = _likeliest(logits)
        ids += token
        log_probabilities += log_probability
        tokens = torch.cat([tokens, tokens.new_tensor(token)])
        limits.progress.update()
    limits.progress.update(limits.max_new_tokens - len(ids))
    return Said(tuple(ids), tuple(log_probabilities))


def _run_in_full(runs: Runs, reason: str) -> None:
    runs.exactness = replace(runs.exactness, prefix=False)
    runs.notes.append(f"every new token took a run of the whole text, which takes long ({reason})")


def _over_kept_keys(
    runs: Runs, prompt: Int[Tensor, " pos"], hooks: Sequence[Hook], limits: _Limits
) -> tuple[Said, str | None]:
    """The same, each new token alone over the keys and values of what came before; and why that is not the model's own
    run, None where it is."""
    ids: list[int] = []
    log_probabilities: list[float] = []
    rows: list[Tensor] = []
    try:
        read_on, new = runs.runner.reader(), prompt
        while not limits.has_ended(ids):
            with runs.runner.hooks([] if ids else hooks):
                rows.append(read_on(new[None], _read([len(new) - 1], runs))[0])
            token, log_probability = _likeliest(rows[-1])
            ids += token
            log_probabilities += log_probability
            new = prompt.new_tensor(token)
            limits.progress.update()
        whole = torch.cat([prompt, prompt.new_tensor(ids[:-1])])
        with runs.runner.hooks(hooks):
            expected = runs.runner.run(whole[None], _read(range(len(prompt) - 1, len(whole)), runs))[0]
    except Exception as failure:  # whatever an unknown architecture does when it is given its own keys and values
        if is_out_of_memory(failure):
            raise
        limits.progress.update(-len(ids))
        return Said((), ()), f"over kept keys and values it fails with {type(failure).__name__} {failure}".strip()
    reason = too_far("reading on over kept keys and values", torch.cat(rows), expected)
    if reason is None and _likeliest(expected)[0] != ids:
        reason = "over kept keys and values rounding makes another token the likeliest"
    limits.progress.update(limits.max_new_tokens - len(ids) if reason is None else -len(ids))
    return Said(tuple(ids), tuple(log_probabilities)), reason


def _likeliest(logits: Float[Tensor, "read d_vocab"]) -> tuple[list[int], list[float]]:
    """The likeliest token at each place, and its log-probability."""
    best = logits.argmax(dim=-1, keepdim=True)
    log_probabilities = logits.to(torch.float64).log_softmax(dim=-1).gather(-1, best)
    return best[:, 0].tolist(), log_probabilities[:, 0].tolist()


def _read(at: Sequence[int], runs: Runs) -> Read:
    return Read(torch.tensor([[*at]]), alone=runs.exactness.logits)
