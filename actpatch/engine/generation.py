"""Greedy continuations of the clean, the corrupted and the patched run of one pair.

Each new token is read from a run of the whole sequence, the prompt and what was said so far. In the patched run what is
written stands at the prompt's positions alone, and is written again in each of these runs: the model is causal, so keys
and values of the prompt are in each of them those of the patched prompt, as a run with a cache would keep them, and the
new tokens are computed as the model computes them. Of an attention pattern the rows of the prompt's tokens are written,
which attend to nothing behind them; those of new tokens are the model's own.

Nothing here knows text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from actpatch.core.direction import Direction
from actpatch.core.sites import Patch, position_axis
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.plan import Batch
from actpatch.engine.runs import Runs
from actpatch.engine.writes import check_fired, write_hooks, writes_of
from actpatch.models.runner import Hook, Read
from actpatch.tasks.encoding import EncodedPairs


@dataclass(frozen=True)
class Said:
    """The new tokens of one run."""

    ids: tuple[int, ...]
    """The likeliest token each time; the last one ends a text, where the run stopped at such a token."""
    log_probabilities: tuple[float, ...]
    """Of each token after those before it, in nats."""


def generate(
    engine: PatchingEngine,
    pairs: EncodedPairs,
    patch: Patch,
    direction: Direction,
    *,
    max_new_tokens: int,
    stops: Collection[int],
) -> tuple[Said, Said, Said]:
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
            runs.exactness = runs.exactness.without_resuming()
            limits = max_new_tokens, stops, progress
            patched = _patched(runs, *limits)  # first, since it may fail
            clean, corrupted = (_continued(runs, prompt[0], (), *limits) for prompt in (pairs.clean, pairs.corrupted))
            return clean, corrupted, patched
    finally:
        engine.shortcuts = shortcuts  # of the last sweep, which this is none


def _patched(runs: Runs, *limits: Any) -> Said:
    experiment = runs.experiment
    ((chunk,),) = runs.chunks()
    prompt = experiment.prompts[0][0]
    batch = Batch.of([0], [0], 0, len(prompt))
    writes = writes_of(batch, [patch.sites for patch in experiment.patches])
    hooks, fired = write_hooks(experiment, batch, chunk, writes)
    said = _continued(runs, prompt, [_on_prompt(hook, len(prompt)) for hook in hooks], *limits)
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


def _continued(
    runs: Runs,
    prompt: Int[Tensor, " pos"],
    hooks: Sequence[Hook],
    max_new_tokens: int,
    stops: Collection[int],
    progress: tqdm,
) -> Said:
    runner = runs.runner
    tokens = prompt.to(runner.device)
    ids: list[int] = []
    log_probabilities: list[float] = []
    while len(ids) < max_new_tokens and not (ids and ids[-1] in stops):
        with runner.hooks(hooks):
            logits = runner.run(tokens[None], _last(len(tokens), runs))[0, 0]
        token = int(logits.argmax())
        ids.append(token)
        log_probabilities.append(float(logits.to(torch.float64).log_softmax(dim=0)[token]))
        tokens = torch.cat([tokens, tokens.new_tensor([token])])
        progress.update()
    progress.update(max_new_tokens - len(ids))
    return Said(tuple(ids), tuple(log_probabilities))


def _last(length: int, runs: Runs) -> Read:
    return Read(torch.tensor([[length - 1]]), alone=runs.exactness.logits)
