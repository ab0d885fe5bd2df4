"""How near two ways to the same number have to come: the one place that says it.

Small models are in double precision, where the order of additions matters in the last digits alone. In single precision
it matters more, and is the machine's: what it does to a model's logits is measured (`rounding`), and the bound is a
stated multiple of that (`allowed`). It knows nothing of patching.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

EXACT = 1e-10
"""In double precision, of numbers between one and a hundred: at least a hundred times what was seen."""
SINGLE = float(torch.finfo(torch.float32).eps)
"""One rounding in single precision, of numbers about one: for what the library keeps in it, attention patterns."""
ROUNDINGS = 2 * 2 * 3
"""A metric is a difference of two logits; it is compared between two ways, of which each is off; and each patched run
rests on three: the one that is copied, the one that is patched, and its own."""


def allowed(model: Any, prompts: Sequence[Tensor]) -> float:
    """How far two ways to a logit difference may be apart, at the scale of this model's logits on these prompts.

    It is found once for a model and prompts: a test that changes its model asks at one moment.
    """
    if next(model.parameters()).dtype == torch.float64 and not rounds_to_single(model):
        return EXACT
    found = _ALLOWED.setdefault(model, {})
    key = tuple(tuple(prompt.tolist()) for prompt in prompts)
    if key not in found:
        with torch.no_grad():
            largest = max(float(model(prompt[None]).abs().max()) for prompt in prompts)
        found[key] = ROUNDINGS * rounding(model, prompts) * largest
    return found[key]


_ALLOWED: weakref.WeakKeyDictionary[Any, dict[tuple[tuple[int, ...], ...], float]] = weakref.WeakKeyDictionary()


def folded(logits: Any) -> float:
    """How far apart logits of this scale may be where one model's norms are folded into its weights.

    TransformerLens folds them in single precision, whatever the precision of the model.
    """
    return ROUNDINGS * SINGLE * float(abs(logits).max())


def rounding(model: Any, prompts: Sequence[Tensor]) -> float:
    """The largest change of a logit, relative to the largest logit, where the shape of the batch alone changes.

    Each prompt is run alone; then within batches of several sizes, and cut off behind each third of it, which leaves
    the logits before the cut the same but for rounding. At least one rounding in single precision.
    """
    largest = changed = 0.0
    with torch.no_grad():
        for prompt in prompts:
            alone = model(prompt[None])
            largest = max(largest, float(alone.abs().max()))
            for rows in (2, 3, 5):
                changed = max(changed, float((model(prompt.repeat(rows, 1)) - alone).abs().max()))
            for end in {max(1, len(prompt) // 3), max(1, 2 * len(prompt) // 3)}:
                changed = max(changed, float((model(prompt[None, :end]) - alone[:, :end]).abs().max()))
    return max(changed / largest, SINGLE)


def rounds_to_single(model: Any) -> bool:
    """Whether a model of double precision computes parts of it in single, as norms and softmax of Transformers may."""
    if model not in _ROUNDING:
        with torch.no_grad(), _NotingSingle() as noted:
            model(torch.tensor([[1, 2, 3]]))
        _ROUNDING[model] = noted.seen
    return _ROUNDING[model]


_ROUNDING: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


class _NotingSingle(TorchDispatchMode):
    """Notes whether numbers of double precision are turned into ones of single precision."""

    seen = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float32:
            self.seen |= any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in args)
        return result
