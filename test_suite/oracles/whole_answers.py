"""Log-probabilities of whole answers by hand: one hooked run of the model per pair, answer and patch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.special
import torch
from torch import Tensor

from actpatch.core.sites import Patch, Site, head_axis, position_axis
from actpatch.metrics.base import AnswerSequences
from actpatch.tasks.encoding import EncodedPairs
from test_suite.oracles.one_prompt import index_of, recorded, run

Hooks = list[tuple[str, Callable[..., Tensor]]]
NAMES = (
    "sequence_log_probability",
    "sequence_log_probability_per_token",
    "sequence_log_probability_difference",
    "sequence_accuracy",
)


def by_hand(
    model: Any,
    prompts: Sequence[Tensor],
    answers: AnswerSequences,
    hooks_of: Callable[[int], Hooks] = lambda pair: [],
) -> np.ndarray:
    """The metrics, in the order of `NAMES`, of each pair's prompt, [metric, pair].

    Args:
        hooks_of: the hooks with which each pair is run.
    """
    found = []
    for pair, prompt in enumerate(prompts):
        right, wrong = (
            [_per_token(model, prompt, answer, hooks_of(pair)) for answer in side[pair]]
            for side in (answers.correct, answers.incorrect)
        )
        total = [scipy.special.logsumexp([logs.sum() for logs, _ in side]) for side in (right, wrong) if side]
        found.append(
            [
                total[0],
                max(logs.mean() for logs, _ in right),
                total[0] - total[1] if wrong else np.nan,
                float(any(likeliest.all() for _, likeliest in right)),
            ]
        )
    return np.array(found).T


def patched_by_hand(
    model: Any,
    pairs: EncodedPairs,
    answers: AnswerSequences,
    patch: Patch,
    direction: str,
    written: Callable[[int, str], Tensor] | None = None,
    noise: Sequence[Tensor] | None = None,
) -> np.ndarray:
    """The same of patched runs. What is written lies within the prompt: an answer's own positions are left alone.

    Args:
        written: for a pair and a hook point what is written there, of the prompt's length; None for the other run.
        noise: for each pair what is added to the embeddings of its corrupted run.
    """
    is_denoising = direction == "denoising"
    base, other = (pairs.corrupted, pairs.clean) if is_denoising else (pairs.clean, pairs.corrupted)

    def source(pair: int, name: str) -> Tensor:
        if noise is None or is_denoising:
            return recorded(model, other[pair], name)
        seen: list[Tensor] = []
        run(model, other[pair], [_added(noise[pair]), (name, lambda value, hook: seen.append(value.detach().clone()))])
        return seen[-1]

    def hooks_of(pair: int) -> Hooks:
        noised = [] if noise is None or not is_denoising else [_added(noise[pair])]
        sources = [(site, (written or source)(pair, site.hook_point)) for site in patch.sites]
        return [*noised, *(_writing(site, value, len(base[pair]), pair) for site, value in sources)]

    return by_hand(model, base, answers, hooks_of)


def noised_by_hand(model: Any, pairs: EncodedPairs, answers: AnswerSequences, noise: Sequence[Tensor]) -> np.ndarray:
    """The same of the clean prompts with noise on their embeddings."""
    return by_hand(model, pairs.clean, answers, lambda pair: [_added(noise[pair])])


def _per_token(model: Any, prompt: Tensor, answer: Sequence[int], hooks: Hooks) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each token of the answer, and whether it is the likeliest, given those before it."""
    logits = run(model, torch.cat([prompt, torch.tensor(answer[:-1], dtype=torch.long)]), hooks)
    logs = scipy.special.log_softmax(logits.double().cpu().numpy(), axis=-1)
    read = [logs[len(prompt) - 1 + i] for i in range(len(answer))]
    return (
        np.array([at[token] for at, token in zip(read, answer)]),
        np.array([at.argmax() == token for at, token in zip(read, answer)]),
    )


def _writing(site: Site, source: Tensor, length: int, pair: int) -> tuple[str, Callable[..., Tensor]]:
    def write(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        within = value.narrow(position_axis(site.hook_point), 0, length)
        if head_axis(site.hook_point) == 1:  # keys
            within = within.narrow(-1, 0, length)
        where = index_of(site, value.ndim, pair)
        within[where] = source[where]
        return value

    return site.hook_point, write


def _added(noise: Tensor) -> tuple[str, Callable[..., Tensor]]:
    def add(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, : len(noise)] += noise.to(value)
        return value

    return "hook_embed", add
