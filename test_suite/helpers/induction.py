"""A model whose two heads are known by construction, and pairs that need them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformer_lens

from actpatch.tasks.encoding import EncodedPairs
from test_suite.helpers.models import encoded

TOKENS, CONTEXT = 24, 24
CERTAIN = 400.0
"""Attention score of the key that is meant, above all others: the softmax is one-hot in floating point."""
SECOND_HALF_LOGIT = 8.0
PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD = (0, 1), (1, 2)


@functools.cache
def induction_model() -> Any:
    """An attention-only transformer that solves repeated random tokens exactly, with two heads.

    The residual stream is made of one-hot subspaces: this token, this position, the token before, the prediction, and
    junk. Head L0H1 attends one position back (its queries read the position, its keys the position plus one) and
    copies that token into the subspace *the token before*. Head L1H2 asks with this token for keys whose *token
    before* it is, so that it attends to what followed this token when it last occurred, and copies that token into
    *the prediction*, which alone is unembedded. All other heads, the whole of layer 2 included, attend and move
    whatever their random weights say, but write only into junk, which nothing that matters reads.
    """
    this, position, before, prediction, junk = (
        slice(begin, end)
        for begin, end in itertools.pairwise(np.cumsum([0, TOKENS, CONTEXT, TOKENS, TOKENS, 8]).tolist())
    )
    config = transformer_lens.HookedTransformerConfig(
        n_layers=3,
        n_heads=4,
        d_model=junk.stop,
        d_head=max(TOKENS, CONTEXT),
        n_ctx=CONTEXT,
        d_vocab=TOKENS,
        attn_only=True,
        normalization_type=None,
        act_fn=None,
        device="cpu",
        dtype=torch.float64,
        seed=0,
    )
    model = transformer_lens.HookedTransformer(config)
    score = (CERTAIN * config.d_head**0.5) ** 0.5
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.W_E[:, this] = torch.eye(TOKENS)
        model.W_pos[:, position] = torch.eye(CONTEXT)
        model.W_U[prediction] = SECOND_HALF_LOGIT * torch.eye(TOKENS)
        for layer, head in itertools.product(range(3), range(4)):
            attn = model.blocks[layer].attn
            if (layer, head) == PREVIOUS_TOKEN_HEAD:
                attn.W_Q[head, position] = score * torch.eye(CONTEXT)
                attn.W_K[head, position] = score * torch.eye(CONTEXT).roll(1, dims=1)
                attn.W_V[head, this] = torch.eye(TOKENS)
                attn.W_O[head, :, before] = torch.eye(TOKENS)
            elif (layer, head) == INDUCTION_HEAD:
                attn.W_Q[head, this] = score * torch.eye(TOKENS)
                attn.W_K[head, before] = score * torch.eye(TOKENS)
                attn.W_V[head, this] = torch.eye(TOKENS)
                attn.W_O[head, :, prediction] = torch.eye(TOKENS)
            else:
                for weight in (attn.W_Q[head], attn.W_K[head], attn.W_V[head]):
                    weight.copy_(torch.randn(weight.shape, generator=generator))
                attn.W_O[head, :, junk] = torch.randn(config.d_head, 8, generator=generator)
    return model.eval()


REPEATED = (7, 3, 12, 5, 9, 17, 6, 14)
"""Follows the BOS token 0; then it starts again: `0 7 3 12 5 9 17 6 14 7 3 12 5`, which goes on with 9."""
FORGOTTEN = 4
"""Position of the token (5) that the corrupted prompt replaces, in its first occurrence, by one that stands nowhere."""


def induction_pairs() -> EncodedPairs:
    """The prompt ends in `5`; without the first `5` no key has it as its token before, and attention is even.

    Then every token of the prompt is predicted in proportion to how often it stands there: 9 (right) and 17 (the
    token after it) stand there once each, so the corrupted logit difference is 0 and the clean one is all there is.
    """
    clean = torch.tensor([0, *REPEATED, *REPEATED[:4]])
    corrupted = clean.clone()
    corrupted[FORGOTTEN] = 20
    return encoded([clean], [corrupted])


CIRCUIT = {
    "input->a0.h1<v>": FORGOTTEN,
    "a0.h1->a1.h2<k>": FORGOTTEN + 1,
    "a1.h2->logits": len(REPEATED) + 4,
}
"""Ids of the edges that carry the answer, and the position at which each one's reader reads it.

The previous-token head reads the forgotten token as a value, the induction head reads what that head writes as a key,
and the logits read the induction head. Each of them alone, with all that follows computed as usual, carries the whole
effect in both directions; every other edge carries none: what else differs is junk, or is the forgotten token in
another head's queries, keys and values, and as a value of the induction head it moves no answer's logit.
"""


def assert_the_circuit_is_found(effects: Mapping[str, float], within: float) -> None:
    """Normalized effects by id of the edge, for every edge of the model: 1 on the circuit, 0 elsewhere."""
    assert {*CIRCUIT} <= {*effects}
    wrong = {edge: effect for edge, effect in effects.items() if not abs(effect - (edge in CIRCUIT)) <= within}
    assert not wrong


def assert_the_circuit_acts_at_its_positions(effects: Mapping[tuple[str, int], float], within: float) -> None:
    """The same by id and position at which the reader reads: each edge of the circuit acts at one alone."""
    assert {*CIRCUIT.items()} <= {*effects}
    wrong = {at: effect for at, effect in effects.items() if not abs(effect - (at in CIRCUIT.items())) <= within}
    assert not wrong
