"""Whole answers after prompts of other lengths: each follows its own prompt's end, and nothing is written there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.sources import Zero
from actpatch.metrics.base import Answers, AnswerSequences
from actpatch.tasks.encoding import EncodedPairs
from test_suite.engine.test_aligned import DIRECTIONS, NAMES, PLAIN, aligned_pairs
from test_suite.engine.test_whole_answers import MODELS, whole_answer_metrics
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.metrics import named_metrics
from test_suite.helpers.models import D_VOCAB, fresh_model, small_model
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.thinned import thinned
from test_suite.oracles.aligned import hooks_of, partners_of
from test_suite.oracles.one_prompt import recorded
from test_suite.oracles.whole_answers import NAMES as METRICS
from test_suite.oracles.whole_answers import by_hand
from test_suite.oracles.whole_answers import patched_by_hand as written_by_hand

ANSWERS = AnswerSequences(
    correct=(((3, 8, 5),), ((6, 7), (9,), (6, 11, 4)), ((12,),), ((2, 3), (5, 4))),
    incorrect=(((4, 8), (3, 8, 9)), ((13,),), ((14, 15, 16, 17), (12, 2)), ((2, 9),)),
)
SINGLE = Answers(correct=((3,), (6,), (12,), (2,)), incorrect=((4,), (13,), (14,), (5,)))
PATCHES = [
    Patch((Site(block_hook(1, "resid_pre")),)),
    Patch((Site(block_hook(1, "resid_pre"), position=-1),)),
    Patch((Site(block_hook(0, "attn_out")),)),
    Patch((Site(block_hook(2, "z"), head=1),)),
    Patch((Site(block_hook(2, "z"), position=((1, 3), 2, (0, 3, 8), -1)),)),
    Patch((Site(block_hook(1, "mlp_out"), position=2),)),
    Patch((Site(block_hook(2, "mlp_post"), neuron=5),)),
    Patch((Site(block_hook(1, "q")), Site(block_hook(2, "v"), head=1))),
    Patch((Site(block_hook(2, "k"), position=3), Site(block_hook(0, "resid_post"), position=-2))),
]


def patched_by_hand(
    model: Any, pairs: EncodedPairs, answers: AnswerSequences, patch: Patch, direction: str
) -> np.ndarray:
    base, other = (pairs.corrupted, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupted)
    return by_hand(
        model,
        base,
        answers,
        lambda pair: hooks_of(model, base[pair], other[pair], patch, partners_of(pairs.matches[pair], direction), pair),
    )


def assert_agrees(model: Any, engine: PatchingEngine, direction: Any) -> None:
    found = engine.sweep(NAMES, PATCHES, whole_answer_metrics(ANSWERS), direction)
    np.testing.assert_allclose(found.clean, by_hand(model, NAMES.clean, ANSWERS), atol=EXACT, rtol=0)
    np.testing.assert_allclose(found.corrupted, by_hand(model, NAMES.corrupted, ANSWERS), atol=EXACT, rtol=0)
    for i, patch in enumerate(PATCHES):
        expected = patched_by_hand(model, NAMES, ANSWERS, patch, direction)
        np.testing.assert_allclose(found.patched[:, i], expected, atol=EXACT, rtol=0, err_msg=patch.label)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "direction"), thinned(MODELS, DIRECTIONS))
def test_every_run_agrees_with_a_plain_loop(name: str, direction: Any) -> None:
    engine = engine_on(small_model(name))
    assert_agrees(small_model(name), engine, direction)
    assert "resume" in engine.shortcuts and "padded" in engine.shortcuts


@pytest.mark.parametrize("direction", ["denoising", pytest.param("noising", marks=pytest.mark.slow)])
def test_batches_and_full_runs_of_a_prompt_alone_change_nothing(direction: Any) -> None:
    assert_agrees(small_model(PLAIN), engine_on(small_model(PLAIN), 2), direction)
    model = fresh_model(PLAIN)
    hook_point = model.hook_dict[block_hook(1, "mlp_out")]
    handle = hook_point.register_forward_hook(lambda module, given, output: output * (1 + output[:1].tanh()))
    try:
        with pytest.warns(UserWarning, match="every run is one of a whole prompt alone"):
            assert_agrees(model, engine_on(model), direction)
    finally:
        handle.remove()


def test_both_directions_and_metrics_of_single_tokens_come_beside_them() -> None:
    engine, single = engine_on(small_model(PLAIN)), named_metrics(SINGLE)
    metrics = [*whole_answer_metrics(ANSWERS), *single]
    both = engine.sweeps(NAMES, dict.fromkeys(DIRECTIONS, PATCHES), metrics)
    for direction, found in zip(DIRECTIONS, both):
        for part in (slice(len(METRICS)), slice(len(METRICS), None)):
            alone = engine.sweep(NAMES, PATCHES, metrics[part], direction)
            np.testing.assert_allclose(found.patched[part], alone.patched, atol=EXACT, rtol=0)
            np.testing.assert_allclose(found.clean[part], alone.clean, atol=EXACT, rtol=0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_ablation_writes_into_each_prompt_to_its_own_end(direction: Any) -> None:
    model = small_model(PLAIN)
    references = Zero().references(NAMES.in_direction(direction))
    patches = [PATCHES[0], PATCHES[3], Patch((Site(block_hook(1, "pattern"), head=2),))]
    metrics = whole_answer_metrics(ANSWERS)
    found = engine_on(model).sweep(NAMES, patches, metrics, direction, references=references)
    base = NAMES.corrupted if direction == "denoising" else NAMES.clean

    def zeros(pair: int, name: str) -> torch.Tensor:
        return torch.zeros_like(recorded(model, base[pair], name))

    for i, patch in enumerate(patches):
        expected = written_by_hand(model, NAMES, ANSWERS, patch, direction, zeros)
        np.testing.assert_allclose(found.patched[:, i], expected, atol=EXACT, rtol=0, err_msg=patch.label)


@settings(max_examples=15)
@given(pairs=aligned_pairs(), data=st.data())
def test_any_alignment_with_any_answers_agrees(pairs: EncodedPairs, data: st.DataObject) -> None:
    model = small_model(PLAIN)
    answer = st.lists(st.integers(0, D_VOCAB - 1), min_size=1, max_size=3).map(tuple)
    drawn = [data.draw(st.lists(answer, min_size=2, max_size=4, unique=True)) for _ in pairs.indices]
    answers = AnswerSequences(
        tuple(tuple(of_pair[: len(of_pair) // 2]) for of_pair in drawn),
        tuple(tuple(of_pair[len(of_pair) // 2 :]) for of_pair in drawn),
    )
    layer, component = data.draw(st.integers(0, 2)), data.draw(st.sampled_from(["resid_pre", "z", "mlp_out", "k"]))
    position = data.draw(st.sampled_from([None, 0, 1, -1]))
    direction = data.draw(st.sampled_from(DIRECTIONS))
    patch = Patch((Site(block_hook(layer, component), position=position),))
    found = engine_on(model).sweep(pairs, [patch], whole_answer_metrics(answers), direction)
    expected = patched_by_hand(model, pairs, answers, patch, direction)
    np.testing.assert_allclose(found.patched[:, 0], expected, atol=EXACT, rtol=0)
