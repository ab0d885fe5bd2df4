"""Are answers of several tokens measured as a hooked run per answer measures them, whatever is shared and batched?"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from activation_patching import GaussianNoise
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine import memory
from actpatch.engine.engine import Measured
from actpatch.engine.memory import pairs_that_fit
from actpatch.interventions.sources import Mean, Resample, Zero
from actpatch.metrics.answers import Accuracy, LogitDifference, LogProbability
from actpatch.metrics.base import AnswerSequences
from actpatch.metrics.registry import NAMED_METRICS
from actpatch.metrics.sequence import SequenceSet
from actpatch.tasks.encoding import EncodedPairs
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.metrics import SETS, named_metrics, pairs_of_three_lengths
from test_suite.helpers.models import HAS_HOOKED, fresh_model, model_parameters, small_model, token_pairs
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.thinned import thinned
from test_suite.oracles.one_prompt import recorded
from test_suite.oracles.sources import noise_by_hand
from test_suite.oracles.whole_answers import NAMES, by_hand, noised_by_hand, patched_by_hand

DIRECTIONS = ("denoising", "noising")
MODELS = model_parameters(
    "hooked:learned", "bridge:llama", slow=("hooked:grouped", "hooked:alibi", "bridge+:gpt2", "bridge:gemma2")
)
MODEL = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
ANSWERS = AnswerSequences(
    correct=(((3, 8, 5),), ((6, 7), (9,), (6, 11, 4)), ((12,),)),
    incorrect=(((4, 8), (3, 8, 9)), ((13,),), ((14, 15, 16, 17), (12, 2))),
)
"""Of one to four tokens, with answers that begin alike, on one side and on both."""
PATCHES = [
    Patch((Site(block_hook(1, "resid_pre")),)),
    Patch((Site(block_hook(1, "resid_pre"), position=-1),)),
    Patch((Site(block_hook(0, "attn_out")),)),
    Patch((Site(block_hook(2, "z"), head=1),)),
    Patch((Site(block_hook(2, "z"), position=(8, 11, 6)),)),
    Patch((Site(block_hook(1, "mlp_out")),)),
    Patch((Site(block_hook(2, "mlp_post"), neuron=5),)),
    Patch((Site(block_hook(1, "pattern"), head=2),)),
    Patch((Site(block_hook(0, "pattern"), position=-2),)),
    Patch((Site(block_hook(1, "q")), Site(block_hook(2, "v"), head=1))),
    Patch((Site(block_hook(2, "k"), position=4), Site(block_hook(0, "resid_post"), position=-3))),
    Patch((Site("hook_embed", position=5),)),
]


def whole_answer_metrics(answers: AnswerSequences = ANSWERS, names: tuple[str, ...] = NAMES) -> list[Any]:
    return [NAMED_METRICS[name](answers) for name in names]  # type: ignore[call-arg]


def in_every_pair(patch: Patch, pairs: EncodedPairs) -> Patch:
    """The patch with positions counted from the front of each pair's prompt."""
    return Patch(
        tuple(
            site
            if site.position is None or isinstance(site.position, tuple)
            else Site(site.hook_point, site.head, tuple(site.position % n for n in pairs.lengths.tolist()), site.neuron)
            for site in patch.sites
        )
    )


def assert_same(found: Measured, expected: np.ndarray, of: int) -> None:
    np.testing.assert_allclose(found.patched[:, of], expected, atol=EXACT, rtol=0, err_msg=PATCHES[of].label)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_run_agrees_with_a_hooked_run_per_answer(name: str) -> None:
    model, pairs, metrics = small_model(name), pairs_of_three_lengths(), whole_answer_metrics()
    engine = engine_on(model)
    for direction, found in zip(DIRECTIONS, engine.sweeps(pairs, dict.fromkeys(DIRECTIONS, PATCHES[:-1]), metrics)):
        np.testing.assert_allclose(found.clean, by_hand(model, pairs.clean, ANSWERS), atol=EXACT, rtol=0)
        np.testing.assert_allclose(found.corrupted, by_hand(model, pairs.corrupted, ANSWERS), atol=EXACT, rtol=0)
        for i, patch in enumerate(PATCHES[:-1]):
            expected = patched_by_hand(model, pairs, ANSWERS, in_every_pair(patch, pairs), direction)
            assert_same(found, expected, i)
        base = found.corrupted if direction == "denoising" else found.clean
        assert (abs(found.patched - base[:, None]).max(axis=(1, 2)) > 1e-3)[:3].all(), "the patches move too little"
    every = {"resume", "prefix", "linear", "narrow", "logits", "padded", "together"}
    of_architecture = {"linear"} if name == "bridge:gemma2" else set()  # its heads' output is normalized
    assert set(engine.shortcuts) == every - of_architecture


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "direction"), thinned(MODELS[:2], DIRECTIONS))
def test_patches_outside_the_blocks_agree_in_full_runs(name: str, direction: Any) -> None:
    model, pairs = small_model(name), pairs_of_three_lengths()
    engine = engine_on(model)
    found = engine.sweep(pairs, PATCHES, whole_answer_metrics(), direction)
    assert "resume" not in engine.shortcuts
    for i in (0, 3, 7, len(PATCHES) - 1):
        assert_same(found, patched_by_hand(model, pairs, ANSWERS, in_every_pair(PATCHES[i], pairs), direction), i)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("direction", "source"),
    thinned(
        DIRECTIONS,
        [pytest.param(s, id=s.label) for s in (Zero(), Mean(), Resample(seed=1), Resample(samples=2))],
    ),
)
def test_ablations_write_into_the_prompts_alone(direction: Any, source: Any) -> None:
    """Also attention scores: what an answer's tokens may attend to stays theirs."""
    model = small_model(MODEL)
    pairs = token_pairs([9, 9, 9, 7, 7, 7], [(3,), (5, 7), (2,), (4,), (3,), (1, 2)])
    answers = AnswerSequences(
        (*ANSWERS.correct, *ANSWERS.correct[::-1]), (*ANSWERS.incorrect, *ANSWERS.incorrect[::-1])
    )
    scores = Patch((Site("blocks.1.attn.hook_attn_scores", head=1),))
    patches = [PATCHES[0], PATCHES[3], PATCHES[7], PATCHES[9], scores]
    references = source.references(pairs)
    found = engine_on(model).sweep(pairs, patches, whole_answer_metrics(answers), direction, references=references)
    for i, patch in enumerate(patches):
        expected = np.zeros((len(NAMES), len(pairs)))
        for sample in range(references.samples):

            def written(pair: int, name: str, sample: int = sample) -> torch.Tensor:
                group = references.groups[references.of_pair[pair * references.samples + sample]]
                each = [recorded(model, prompt, name) for prompt in group]
                nothing = torch.zeros_like(recorded(model, pairs.clean[pair], name))
                return torch.stack(each).mean(dim=0) if each else nothing

            expected += patched_by_hand(model, pairs, answers, patch, direction, written) / references.samples
        np.testing.assert_allclose(found.patched[:, i], expected, atol=EXACT, rtol=0, err_msg=patch.label)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_answer_meets_the_same_noise(direction: Any) -> None:
    model, pairs = small_model(MODEL), pairs_of_three_lengths()
    noise = GaussianNoise([3, -2], multiple=1.5, samples=2, seed=5)
    patches = [PATCHES[0], PATCHES[3], PATCHES[7]]
    found = engine_on(model).sweep(pairs, patches, whole_answer_metrics(), direction, noise=noise)
    clean_pairs = replace(pairs, corrupted=pairs.clean)
    expected, corrupted = np.zeros_like(found.patched), np.zeros_like(found.corrupted)
    where = [(3, n - 2) for n in pairs.lengths.tolist()]
    for added in noise_by_hand(model, noise, where, pairs.lengths.tolist()):
        corrupted += noised_by_hand(model, pairs, ANSWERS, added) / noise.samples
        for i, patch in enumerate(patches):
            run = patched_by_hand(model, clean_pairs, ANSWERS, patch, direction, noise=added)
            expected[:, i] += run / noise.samples
    np.testing.assert_allclose(found.clean, by_hand(model, pairs.clean, ANSWERS), atol=EXACT, rtol=0)
    np.testing.assert_allclose(found.corrupted, corrupted, atol=EXACT, rtol=0)
    np.testing.assert_allclose(found.patched, expected, atol=EXACT, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_change_nothing(batch_size: int) -> None:
    pairs, metrics = pairs_of_three_lengths(), whole_answer_metrics()
    whole = engine_on(small_model(MODEL)).sweep(pairs, PATCHES, metrics)
    parts = engine_on(small_model(MODEL), batch_size).sweep(pairs, PATCHES, metrics)
    np.testing.assert_allclose(parts.patched, whole.patched, atol=EXACT, rtol=0)


def test_code_on_the_model_leaves_every_prompt_alone_and_the_numbers_right() -> None:
    """Without any shortcut: one run of one prompt with one answer at a time."""
    model, pairs = fresh_model(MODEL), pairs_of_three_lengths()
    hook_point = model.hook_dict[block_hook(1, "mlp_out")]
    handle = hook_point.register_forward_hook(lambda module, given, output: output * (1 + output[:1].tanh()))
    try:
        with pytest.warns(UserWarning, match="every run is one of a whole prompt alone"):
            found = engine_on(model).sweep(pairs, PATCHES[:4], whole_answer_metrics(), "noising")
        for i, patch in enumerate(PATCHES[:4]):
            assert_same(found, patched_by_hand(model, pairs, ANSWERS, in_every_pair(patch, pairs), "noising"), i)
    finally:
        handle.remove()


def test_metrics_of_single_tokens_are_the_same_beside_them_to_the_last_bit() -> None:
    engine, pairs = engine_on(small_model(MODEL)), pairs_of_three_lengths()
    single, whole = named_metrics(SETS), whole_answer_metrics()
    mixed = [whole[0], *single[:3], *whole[1:], *single[3:]]
    found = engine.sweep(pairs, PATCHES[:4], mixed)
    for metrics in (single, whole):
        alone = engine.sweep(pairs, PATCHES[:4], metrics)
        at = [mixed.index(metric) for metric in metrics]
        for part in ("patched", "clean", "corrupted"):
            np.testing.assert_array_equal(getattr(found, part)[at], getattr(alone, part))


def test_answers_of_one_token_are_those_of_the_metrics_of_one_token() -> None:
    pairs = pairs_of_three_lengths()
    answers = AnswerSequences(
        *(tuple(tuple((t,) for t in ids) for ids in side) for side in (SETS.correct, SETS.incorrect))
    )
    whole = engine_on(small_model(MODEL)).sweep(pairs, PATCHES[:4], whole_answer_metrics(answers))
    single = engine_on(small_model(MODEL)).sweep(
        pairs, PATCHES[:4], [LogProbability(SETS), LogitDifference(SETS), Accuracy(SETS)]
    )
    np.testing.assert_allclose(whole.patched[[0, 2, 3]], single.patched, atol=EXACT, rtol=0)


def test_a_patch_between_equal_prompts_changes_nothing() -> None:
    pairs = token_pairs([9, 12, 7], [(3,), (), (2,)])
    for direction, found in zip(
        DIRECTIONS,
        engine_on(small_model(MODEL)).sweeps(pairs, dict.fromkeys(DIRECTIONS, PATCHES[:-1]), whole_answer_metrics()),
    ):
        base = found.corrupted if direction == "denoising" else found.clean
        assert (found.patched[:, :, 1] == base[:, None, 1]).all()


def test_the_whole_residual_stream_of_the_prompt_restores_what_the_answer_reads_of_it() -> None:
    """Before the first block it is the other prompt, answer and all."""
    stream = Patch((Site(block_hook(0, "resid_pre")),))
    found = engine_on(small_model(MODEL)).sweep(pairs_of_three_lengths(), [stream], whole_answer_metrics())
    np.testing.assert_allclose(found.patched[:, 0], found.clean, atol=EXACT, rtol=0)


def test_baselines_alone_are_those_of_a_sweep() -> None:
    engine, pairs = engine_on(small_model(MODEL)), pairs_of_three_lengths()
    alone, swept = (
        engine.baselines(pairs, whole_answer_metrics()),
        engine.sweep(pairs, PATCHES[:1], whole_answer_metrics()),
    )
    np.testing.assert_allclose(alone.clean, swept.clean, atol=EXACT, rtol=0)
    np.testing.assert_allclose(alone.corrupted, swept.corrupted, atol=EXACT, rtol=0)
    assert alone.patched.shape == (len(NAMES), 0, 3)


def test_answers_that_begin_alike_share_runs_and_those_that_are_not_read_have_none() -> None:
    right, difference = (SequenceSet(tuple(whole_answer_metrics(names=(name,)))) for name in (NAMES[0], NAMES[2]))
    assert right.continuations == (((3, 8),), ((6, 11),), ((),))
    assert difference.continuations == (((3, 8), (4,)), ((6, 11),), ((14, 15, 16), (12,)))
    assert (right.n_runs(3), SequenceSet(difference.metrics, samples=2).n_runs(3)) == (3, 10)


def test_memory_is_reckoned_with_the_answers_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of one length are fewer at once where they are read at several positions, and longer ones are too."""
    monkeypatch.setattr(memory, "_free_memory", lambda device: 2_000_000)

    def at_once(length: int, continuation: tuple[int, ...]) -> tuple[int, int]:
        pairs = token_pairs([length] * 40, [(3,)] * 40)
        continuations = [(continuation,)] * len(pairs)
        engine = engine_on(small_model(MODEL))
        options: Any = {"reads_all": False, "vocabulary": None, "continuations": continuations}
        with engine.running(pairs, {"denoising": PATCHES[:1]}, **options) as runs:
            return runs.max_tokens, pairs_that_fit(runs.experiment, [3, 1])

    short, long, continued = at_once(9, ()), at_once(14, ()), at_once(9, (2, 3, 4, 5, 6))
    for of_continued, of_long, of_short in zip(continued, long, short):
        assert 1 < of_continued < of_long < of_short


def test_half_precision_is_measured_in_single_precision_and_warns_of_nothing() -> None:
    model, pairs = fresh_model(MODEL).to(torch.bfloat16), pairs_of_three_lengths()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = engine_on(model).sweep(pairs, PATCHES[:2], whole_answer_metrics())
    np.testing.assert_allclose(found.clean[0], by_hand(model, pairs.clean, ANSWERS)[0], atol=0.5, rtol=0)


def test_references_that_are_the_prompt_itself_change_nothing() -> None:
    """The first change is then behind the prompt, where nothing is written."""
    pairs = token_pairs([9] * 3, [(3,), (5, 7), (2,)])
    pairs = replace(pairs, corrupted=(pairs.corrupted[0],) * 3)
    found = engine_on(small_model(MODEL)).sweep(
        pairs, PATCHES[:4], whole_answer_metrics(), references=Mean().references(pairs)
    )
    np.testing.assert_allclose(found.patched, np.broadcast_to(found.corrupted[:, None], (len(NAMES), 4, 3)), atol=EXACT)
    assert found.notes == (), "every shortcut holds"
