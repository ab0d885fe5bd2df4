"""Metrics by NumPy and SciPy, from the logits of plain runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special
import torch
from torch import Tensor

from actpatch.metrics.base import Answers
from actpatch.metrics.registry import NAMED_METRICS
from actpatch.metrics.sequence import SequenceMetric

NAMED = tuple(name for name, metric in NAMED_METRICS.items() if not issubclass(metric, SequenceMetric))
"""The metrics of single tokens; those of whole answers have an oracle of their own."""


def by_hand(name: str, last: np.ndarray, clean: np.ndarray, correct: Sequence[int], incorrect: Sequence[int]) -> float:
    """The metric of one run, from its own and the clean run's logits at the last position, in double precision."""
    right, wrong, p = list(correct), list(incorrect), scipy.special.softmax(last)
    ranked = np.argsort(-last)
    return {
        "logit_difference": lambda: scipy.special.logsumexp(last[right]) - scipy.special.logsumexp(last[wrong]),
        "probability": lambda: p[right].sum(),
        "log_probability": lambda: np.log(p[right].sum()),
        "probability_difference": lambda: p[right].sum() - p[wrong].sum(),
        "kl_divergence": lambda: scipy.special.rel_entr(scipy.special.softmax(clean), p).sum(),
        "rank": lambda: 1 + min(int(np.flatnonzero(ranked == token)[0]) for token in right),
        "accuracy": lambda: float(np.argmax(last) in right),
    }[name]()


def plain_logits(model: Any, prompts: Sequence[Tensor]) -> list[np.ndarray]:
    """Logits at the last position, each prompt run alone."""
    with torch.no_grad():
        return [model(prompt[None])[0, -1].double().numpy() for prompt in prompts]


def hand_measured(logits: Sequence[np.ndarray], clean: Sequence[np.ndarray], answers: Answers) -> np.ndarray:
    """[metric, pair], in the order of `NAMED`."""
    runs = list(zip(logits, clean, answers.correct, answers.incorrect))
    return np.array([[by_hand(name, *run) for run in runs] for name in NAMED])
