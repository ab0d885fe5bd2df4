"""A model whose heads are known by construction: patching finds those, where they act, and what they read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from actpatch.core.sites import Site, block_hook
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.induction import (
    FORGOTTEN,
    INDUCTION_HEAD,
    PREVIOUS_TOKEN_HEAD,
    SECOND_HALF_LOGIT,
    TOKENS,
    induction_model,
    induction_pairs,
)
from test_suite.helpers.models import needs_hooked, swept
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.sweeps import single as singles

DIRECTIONS = ("denoising", "noising")


def induction_effects(sites: Sequence[Site], direction: str) -> np.ndarray:
    metric = LogitDifference(Answers(correct=((9,),), incorrect=((17,),)))
    found = swept(engine_on(induction_model()), induction_pairs(), singles(sites), metric, direction)
    base, source = (found.corrupted, found.clean) if direction == "denoising" else (found.clean, found.corrupted)
    assert found.clean[0] == pytest.approx(SECOND_HALF_LOGIT)
    assert found.corrupted[0] == pytest.approx(0, rel=0, abs=EXACT)
    return ((found.patched - base) / (source - base))[:, 0]


@needs_hooked
def test_the_induction_model_solves_repeated_random_tokens() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        half = 1 + torch.randperm(TOKENS - 1, generator=generator)[:11]
        prompt = torch.cat([torch.zeros(1, dtype=torch.long), half, half])
        logits = induction_model()(prompt[None])[0]
        assert (logits[12:-1].argmax(dim=-1) == prompt[13:]).all()


@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_its_two_heads_are_found_and_no_others(direction: str) -> None:
    heads = list(itertools.product(range(3), range(4)))
    effects = induction_effects([Site(block_hook(layer, "z"), head=head) for layer, head in heads], direction)
    expected = [float(head in (PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD)) for head in heads]
    np.testing.assert_allclose(effects, expected, atol=EXACT, rtol=0)


@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_its_heads_act_at_their_positions_and_nowhere_else(direction: str) -> None:
    """The previous-token head where the token after the forgotten one stands, the induction head at the end."""
    last = len(induction_pairs().clean[0]) - 1
    acting = {(*PREVIOUS_TOKEN_HEAD, FORGOTTEN + 1), (*INDUCTION_HEAD, last)}
    cells = list(itertools.product(range(3), range(4), range(last + 1)))
    effects = induction_effects([Site(block_hook(layer, "z"), head, at) for layer, head, at in cells], direction)
    np.testing.assert_allclose(effects, [float(cell in acting) for cell in cells], atol=EXACT, rtol=0)


@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("short", "moved"),
    [("q", ()), ("k", (INDUCTION_HEAD,)), ("v", (PREVIOUS_TOKEN_HEAD,)), ("pattern", (INDUCTION_HEAD,))],
)
def test_its_heads_are_moved_by_what_they_read(short: str, moved: tuple[tuple[int, int], ...], direction: str) -> None:
    """The first head attends alike in both runs and copies another token; the second attends by other keys."""
    heads = list(itertools.product(range(3), range(4)))
    effects = induction_effects([Site(block_hook(layer, short), head=head) for layer, head in heads], direction)
    np.testing.assert_allclose(effects, [float(head in moved) for head in heads], atol=EXACT, rtol=0)


@needs_hooked
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_its_residual_stream_carries_the_answer_from_position_to_position(direction: str) -> None:
    """From the forgotten token, by the first head to the one after it, by the second head to the end."""
    last = len(induction_pairs().clean[0]) - 1
    path = {(0, FORGOTTEN), (1, FORGOTTEN + 1), (2, last)}
    cells = list(itertools.product(range(3), range(last + 1)))
    effects = induction_effects([Site(block_hook(layer, "resid_pre"), position=at) for layer, at in cells], direction)
    np.testing.assert_allclose(effects, [float(cell in path) for cell in cells], atol=EXACT, rtol=0)
