"""Is every metric right?  Each against SciPy and NumPy on plain model runs, and by theorem."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from jaxtyping import TypeCheckError

from activation_patching import ActivationPatcher, IOIDataset
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.metrics.answers import Accuracy, LogitDifference, Probability, Rank
from actpatch.metrics.base import Answers
from actpatch.metrics.chosen import MetricSet
from actpatch.metrics.distribution import KLDivergence
from actpatch.metrics.names import metric_key
from actpatch.results.metric_values import MetricValues
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.metrics import PATCHES, SETS, SINGLE, named_metrics, pairs_of_three_lengths
from test_suite.helpers.models import HAS_HOOKED, bundled, everything_metric, model_parameters, small_model
from test_suite.helpers.sweeps import engine_on
from test_suite.oracles.metrics import NAMED, hand_measured, plain_logits
from test_suite.oracles.plain import PlainPatching

DIRECTIONS = ("denoising", "noising")
SEVERAL = model_parameters("hooked:learned", "hooked:grouped", "bridge+:gpt2")
PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"


# --- against other ways of computing it --------------------------------------------------------------------------


@pytest.mark.quick(5)
@pytest.mark.parametrize("with_all_positions", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", SEVERAL)
def test_every_metric_of_every_run_agrees_with_scipy_on_plain_runs(
    name: str, direction: str, with_all_positions: bool
) -> None:
    """Also beside a metric that reads all positions, where the others read each prompt's last one."""
    model, pairs = small_model(name), pairs_of_three_lengths()
    metrics = named_metrics(SETS) + [everything_metric(3)] * with_all_positions
    found = engine_on(model).sweep(pairs, PATCHES, metrics, direction)
    clean, corrupted = (plain_logits(model, run) for run in (pairs.clean, pairs.corrupted))
    n = len(NAMED)
    np.testing.assert_allclose(found.clean[:n], hand_measured(clean, clean, SETS), atol=EXACT, rtol=0)
    np.testing.assert_allclose(found.corrupted[:n], hand_measured(corrupted, clean, SETS), atol=EXACT, rtol=0)
    plain = PlainPatching(model, pairs, [site.hook_point for patch in PATCHES for site in patch.sites], direction)
    for i, logits in enumerate(plain.logits(PATCHES)):
        patched = [run[-1].double().numpy() for run in logits]
        np.testing.assert_allclose(found.patched[:n, i], hand_measured(patched, clean, SETS), atol=EXACT, rtol=0)
    base = found.corrupted if direction == "denoising" else found.clean
    assert (abs(found.patched - base[:, None]).max(axis=(1, 2)) > 1e-3).sum() >= 5, "the patches move too little"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_metrics_by_name_agree_with_scipy_on_the_bundled_model(direction: Any) -> None:
    model = bundled()
    dataset = IOIDataset(model, 5)
    patcher = ActivationPatcher(model, show_progress=False)
    sweep = patcher.run_patching_experiment(dataset, "attn_out", direction=direction, metrics=NAMED).sweep
    assert [metric_key(name) for name in sweep.metrics] == list(NAMED)
    runs = zip(*dataset.get_clean_corrupt_pairs())
    clean, corrupted = (plain_logits(model, [model.to_tokens(p)[0] for p in prompts]) for prompts in runs)
    targets = [dataset.get_target_tokens(i) for i in range(5)]
    answers = Answers(tuple((io,) for io, _ in targets), tuple((s,) for _, s in targets))
    for logits, run in ((clean, "clean"), (corrupted, "corrupted")):
        found = [getattr(sweep.by_metric(name), run) for name in NAMED]
        np.testing.assert_allclose(found, hand_measured(logits, clean, answers), atol=EXACT, rtol=0)
    assert (sweep.by_metric("accuracy").clean == 1).all() and (sweep.by_metric("accuracy").corrupted == 0).all()


def test_rank_and_accuracy_of_ties_count_the_better_place() -> None:
    logits = torch.tensor([[[1.0, 4.0, 4.0, 2.0]], [[1.0, 4.0, 4.0, 2.0]]])
    answers = Answers(correct=((2,), (3, 0)), incorrect=((), ()))
    pairs = torch.tensor([0, 1])
    assert Rank(answers).measure(logits, pairs).tolist() == [1, 3]
    assert Accuracy(answers).measure(logits, pairs).tolist() == [1, 0]


def test_logits_that_are_no_numbers_give_no_numbers() -> None:
    """A model that overflows must not look as if its answer were the best."""
    logits = torch.randn(3, 1, 40)
    logits[:, :, 30] = math.nan
    values = MetricSet(tuple(named_metrics(SETS))).measure(
        logits, torch.randn(3, 1, 40), rows=torch.arange(3), pairs=torch.arange(3), lengths=torch.ones(3).long()
    )
    whole = [i for i, name in enumerate(NAMED) if name != "logit_difference"]
    assert values[whole].isnan().all()


def test_tokens_that_are_ruled_out_in_both_runs_add_nothing_to_the_kl_divergence() -> None:
    torch.manual_seed(0)
    logits, clean = torch.randn(2, 1, 2, 10, dtype=torch.float64).unbind(0)
    logits, clean = (torch.cat([run[0][:, None], torch.full((2, 1, 3), -math.inf)], dim=2) for run in (logits, clean))
    found = KLDivergence().measure(logits, torch.arange(2), clean)
    for i in range(2):
        p, q = (scipy.special.softmax(run[i, 0, :10].double().numpy()) for run in (clean, logits))
        assert float(found[i]) == pytest.approx(scipy.special.rel_entr(p, q).sum(), rel=0, abs=EXACT)


def test_shapes_that_signatures_state_are_checked_while_the_suite_runs() -> None:
    logits = torch.zeros(2, 1, 5)
    with pytest.raises(TypeCheckError, match="pairs"):
        KLDivergence().measure(logits, torch.arange(3), logits)
    with pytest.raises(TypeCheckError, match="corrupted"):
        MetricValues("x", "", True, patched=np.zeros((4, 2)), clean=np.zeros(2), corrupted=np.zeros(3))


# --- sets of answers ---------------------------------------------------------------------------------------------


def test_logit_difference_of_single_answers_is_the_plain_difference_to_the_last_bit() -> None:
    """Also where other pairs have several answers."""
    torch.manual_seed(0)
    logits = 30 * torch.randn(2000, 1, 40)
    pairs = torch.arange(2000) % 3
    mixed = Answers(correct=((3,), (5, 9), (12, 4)), incorrect=((8,), (11,), (20, 21, 22)))
    for answers, single_pairs in ((SINGLE, (0, 1, 2)), (mixed, (0,))):
        metric = LogitDifference(answers)
        found = metric.measure(logits[..., metric.tokens], pairs)
        for pair in single_pairs:
            (correct,), (incorrect,) = answers.correct[pair], answers.incorrect[pair]
            here = logits[pairs == pair, -1]
            assert torch.equal(found[pairs == pair], here[:, correct] - here[:, incorrect])


def test_several_answers_are_worth_the_sum_of_their_probabilities() -> None:
    """exp of the logit difference is the ratio of the two probabilities, and the parts of a set add up to it."""
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    parts = [Probability(Answers(((a,), (b,), (c,)), ((),) * 3), name=f"part {i}") for i, (a, b, c) in PARTS.items()]
    whole = Answers(correct=tuple(zip(*PARTS.values())), incorrect=SINGLE.incorrect)
    metrics = [Probability(whole), LogitDifference(whole), Probability(Answers(whole.incorrect, ((),) * 3), "wrong")]
    found = engine_on(model).sweep(pairs, PATCHES, [*metrics, *parts])
    right, difference, wrong, *each = found.patched
    np.testing.assert_allclose(right, sum(each), rtol=EXACT)
    np.testing.assert_allclose(np.exp(difference), right / wrong, rtol=EXACT)


PARTS = {0: (3, 5, 12), 1: (7, 6, 4)}


# --- theorems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", SEVERAL)
def test_the_whole_stream_carries_every_metric_to_its_value_in_the_source_run(name: str, direction: Any) -> None:
    pairs = pairs_of_three_lengths()
    patches = [Patch((Site(block_hook(layer, "resid_pre")),)) for layer in range(3)]
    found = engine_on(small_model(name)).sweep(pairs, patches, named_metrics(SETS), direction)
    source = found.clean if direction == "denoising" else found.corrupted
    np.testing.assert_allclose(found.patched, np.repeat(source[:, None], 3, axis=1), atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", SEVERAL)
def test_the_clean_run_is_its_own_reference_in_both_directions(name: str) -> None:
    """Its KL divergence is exactly 0; the corrupted run's is that from clean, whichever is patched."""
    pairs = pairs_of_three_lengths()
    there, back = (engine_on(small_model(name)).sweep(pairs, PATCHES, [KLDivergence()], d) for d in DIRECTIONS)
    assert (there.clean == 0).all() and (back.clean == 0).all()
    assert (there.corrupted > 1e-3).all()
    np.testing.assert_allclose(there.corrupted, back.corrupted, atol=EXACT, rtol=0)
    assert (there.patched >= 0).all() and (back.patched >= 0).all()


def test_effects_have_the_same_sense_where_less_is_better() -> None:
    """Restoring is 1 and doing nothing is 0 for every metric."""
    model = bundled()
    patcher = ActivationPatcher(model, show_progress=False)
    sites = [Patch((Site("blocks.0.hook_resid_pre"),)), Patch((Site("blocks.0.hook_resid_pre", position=0),))]
    sweep = patcher.sweep(IOIDataset(model, 4), sites, metrics=NAMED)
    assert [sweep.by_metric(name).more_is_better for name in NAMED] == [
        name not in ("rank", "kl_divergence") for name in NAMED
    ]
    for name in NAMED:
        np.testing.assert_allclose(sweep.by_metric(name).effects, [1, 0], atol=EXACT, rtol=0)
