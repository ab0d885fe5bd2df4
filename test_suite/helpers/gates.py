"""Small models on which gradients go wrong in known ways, and what patches do there: weights by hand, numbers by hand.

Tokens are one-hot in the residual stream, which has a few more directions: *answer* is what the answer's logit reads,
*signal* and *other* are what layers say to each other. There are no norms, and attention is even unless said otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from actpatch.tasks.encoding import EncodedPairs
from test_suite.helpers.models import D_VOCAB, encoded, fresh_hooked

YES, NO = 38, 39
"""The answers: the logit of the first is what is in the stream's direction *answer*, that of the second is 0."""
ANSWER, SIGNAL, OTHER = range(D_VOCAB, D_VOCAB + 3)
D_MODEL = D_VOCAB + 3
END, FIRST, SECOND, ASKS_FIRST, ASKS_SECOND, DULL, BRIGHT = range(2, 9)
"""Tokens."""
CERTAIN = 40.0
"""An attention score: its key gets all but exp(-40)."""


@dataclass(frozen=True)
class Gate:
    """A model and pairs for it."""

    model: Any
    pairs: EncodedPairs

    @property
    def metric(self) -> LogitDifference:
        """The answer's logit at the last position."""
        n_pairs = len(self.pairs)
        return LogitDifference(Answers(((YES,),) * n_pairs, ((NO,),) * n_pairs))


def answer(logits: Tensor) -> Tensor:
    """The same of one prompt's logits, [pos, d_vocab]."""
    return logits[-1, YES] - logits[-1, NO]


def _model(**changes: Any) -> Any:
    """Zero weights but for tokens, which are one-hot, and for the answer's logit."""
    options = {"n_layers": 1, "n_heads": 1, "d_head": 4, "d_model": D_MODEL, "d_mlp": 3, "act_fn": "relu"}
    model = fresh_hooked("no_norm", with_bos=False, **{**options, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, :D_VOCAB] = torch.eye(D_VOCAB)
        model.W_U[ANSWER, YES] = 1.0
    return model


def _gate(model: Any, *pairs: tuple[Sequence[int], Sequence[int]]) -> Gate:
    """Of (clean, corrupted) tokens."""
    clean, corrupted = ([torch.tensor(prompt) for prompt in prompts] for prompts in zip(*pairs))
    return Gate(model, encoded(clean, corrupted))


def _reads(model: Any, layer: int, head: int, values: dict[int, float], into: int) -> None:
    """A head that adds up these values of the tokens that it attends to, and writes the sum into a direction."""
    for token, value in values.items():
        model.blocks[layer].attn.W_V[head, token, 0] = value
    model.blocks[layer].attn.W_O[head, 0, into] = 1.0


@functools.cache
def saturated_queries() -> Gate:
    """One head that attends to `FIRST` (+1) or to `SECOND` (-1), as the last token asks.

    All but exp(-40) of its attention goes to one of them: the gradient at its queries is nearly 0. With the clean
    run's queries in the corrupted one the answer goes from -1 to 1.
    """
    model = _attending({FIRST: (1.0, 0.0), SECOND: (0.0, 1.0)}, {ASKS_FIRST: (1.0, 0.0), ASKS_SECOND: (0.0, 1.0)})
    return _gate(model, ([FIRST, SECOND, ASKS_FIRST], [FIRST, SECOND, ASKS_SECOND]))


@functools.cache
def saturated_keys() -> Gate:
    """One head that attends to `FIRST` (+1), or to `BRIGHT` (-1) where that stands in place of `DULL` (-1).

    Scores are 0 for the dull one, 40 for the first and 80 for the bright one. With the clean run's keys in the
    corrupted one, whose second token is bright, the answer goes from -1 to 1.
    """
    model = _attending({FIRST: (1.0, 0.0), BRIGHT: (2.0, 0.0)}, {ASKS_FIRST: (1.0, 0.0)})
    return _gate(model, ([FIRST, DULL, ASKS_FIRST], [FIRST, BRIGHT, ASKS_FIRST]))


def _attending(keys: dict[int, tuple[float, float]], queries: dict[int, tuple[float, float]]) -> Any:
    model = _model()
    with torch.no_grad():
        attn = model.blocks[0].attn
        for weight, vectors in ((attn.W_K, keys), (attn.W_Q, queries)):
            for token, vector in vectors.items():
                weight[0, token, :2] = torch.tensor(vector, dtype=weight.dtype)
        attn.W_Q *= CERTAIN * attn.attn_scale
        _reads(model, 0, 0, {FIRST: 1.0, SECOND: -1.0, DULL: -1.0, BRIGHT: -1.0}, ANSWER)
    return model


@functools.cache
def cancelling_paths() -> Gate:
    """An MLP that writes a signal s, 1.5 in the clean run and 0.5 in the corrupted one, read with opposite slopes.

    The answer is s less a tent over it, max(0, 1 - |s - 1|), which the second layer's MLP makes. The tent is as high at
    1.5 as at 0.5, so that the first MLP's effect is that of its direct path, 1; but at 0.5 its slope is that of s, and
    the two cancel in the gradient. At 1.5 they add up, to 2.
    """
    model = _model(n_layers=2)
    with torch.no_grad():
        first, second = (block.mlp for block in model.blocks)
        first.W_in[FIRST, 0], first.W_in[SECOND, 0] = 1.5, 0.5
        first.W_out[0, SIGNAL] = first.W_out[0, ANSWER] = 1.0
        second.W_in[SIGNAL] = 1.0
        second.b_in.copy_(torch.tensor([0.0, -1.0, -2.0]))
        second.W_out[:, ANSWER] = torch.tensor([-1.0, 2.0, -1.0])
    return _gate(model, ([END, FIRST], [END, SECOND]))


@functools.cache
def or_gate() -> Gate:
    """Two heads that say 1 in the clean run and 0 in the corrupted one, and an MLP that says 1 if either does.

    It writes 1 - max(0, 1 - a - b). One head's 0 in the clean run changes nothing; one head's 1 in the corrupted run
    brings the whole answer back.
    """
    model = _model(n_heads=2)
    with torch.no_grad():
        _reads(model, 0, 0, {FIRST: 2.0}, SIGNAL)
        _reads(model, 0, 1, {FIRST: 2.0}, OTHER)
        mlp = model.blocks[0].mlp
        mlp.W_in[[SIGNAL, OTHER], 0] = -1.0
        mlp.b_in[0] = 1.0
        mlp.W_out[0, ANSWER], mlp.b_out[ANSWER] = -1.0, 1.0
    return _gate(model, ([FIRST, END], [SECOND, END]))


@functools.cache
def opposite_signs() -> Gate:
    """Two pairs and two heads: the first adds 2 to the answer in both, the second 1 in one and -1 in the other.

    Over the pairs the second head's mean effect is 0, its mean size 1; the answer itself goes up by 3 and by 1.
    """
    model = _model(n_heads=2)
    with torch.no_grad():
        _reads(model, 0, 0, {BRIGHT: 6.0}, ANSWER)
        _reads(model, 0, 1, {FIRST: 1.5, SECOND: -1.5}, ANSWER)
    there, not_there = (BRIGHT, FIRST, END), (DULL, SECOND, END)
    return _gate(model, (there, not_there), ((BRIGHT, SECOND, END), (DULL, FIRST, END)))


GATES: tuple[Callable[[], Gate], ...] = (saturated_queries, saturated_keys, cancelling_paths, or_gate, opposite_signs)
