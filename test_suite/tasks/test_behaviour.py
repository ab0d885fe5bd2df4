"""What a model that solves the tasks does with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from activation_patching import (
    ActivationPatcher,
    AgreementDataset,
    CapitalsDataset,
    DocstringDataset,
    GenderedPronounDataset,
    GreaterThanDataset,
    InductionDataset,
    IOIDataset,
)
from actpatch.tasks.answers import checked_targets
from test_suite.helpers.closeness import EXACT, allowed
from test_suite.helpers.models import bundled, smollm2
from test_suite.helpers.tasks import TASKS

MODELS = [bundled, pytest.param(smollm2, marks=pytest.mark.slow)]


def last_logits(model: Any, prompts: Sequence[str]) -> list[torch.Tensor]:
    """Logits at the last position of plain runs of the model, of all prompts of one length together."""
    tokens = [model.to_tokens(prompt)[0] for prompt in prompts]
    found: dict[int, torch.Tensor] = {}
    for length in {len(prompt) for prompt in tokens}:
        alike = [i for i, prompt in enumerate(tokens) if len(prompt) == length]
        with torch.no_grad():
            found |= zip(alike, model(torch.stack([tokens[i] for i in alike]))[:, -1].clone())
    return [found[i] for i in range(len(prompts))]


def baselines(model: Any, corruption: str, n_pairs: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Logit differences IO - S of the clean and the corrupted prompts, by plain runs of the model."""
    dataset = IOIDataset(model, n_pairs, corruption=corruption)
    targets = [dataset.get_target_tokens(i) for i in range(n_pairs)]
    runs = []
    for prompts in zip(*dataset.get_clean_corrupt_pairs()):
        last = last_logits(model, prompts)
        runs.append(np.array([float(logits[io] - logits[s]) for logits, (io, s) in zip(last, targets)]))
    return runs[0], runs[1]


@pytest.mark.parametrize("model", MODELS)
def test_flipping_corruptions_turn_the_answer_around_in_every_pair(model):
    for corruption in ("swap_names", "flip_subject"):
        clean, corrupted = baselines(model(), corruption)
        assert (clean > 0).all()
        assert (corrupted < 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_order_swap_breaks_nothing(model):
    """The giver stays, so the right answer stays: such a pair cannot carry a conclusion."""
    clean, corrupted = baselines(model(), "swap_order")
    assert (clean > 0).all() and (corrupted > 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_unrelated_names_take_the_signal_away(model):
    """On the whole: of two names that it has seen once each, a language model may still find one likelier."""
    clean, corrupted = baselines(model(), "unrelated_names", 40)
    assert (clean > corrupted).mean() >= 0.9
    assert abs(corrupted.mean()) < 0.35 * clean.mean()


@pytest.mark.parametrize("model", MODELS)
def test_sweep_measures_the_baselines_of_plain_runs(model):
    sweep = (
        ActivationPatcher(model(), show_progress=False).run_patching_experiment(IOIDataset(model()), "attn_out").sweep
    )
    clean, corrupted = baselines(model(), "swap_names")
    pairs = IOIDataset(model(), 2).get_clean_corrupt_pairs()
    within = allowed(model(), [model().to_tokens(prompt)[0] for pair in pairs for prompt in pair])
    np.testing.assert_allclose(sweep.clean, clean, atol=within, rtol=0)
    np.testing.assert_allclose(sweep.corrupted, corrupted, atol=within, rtol=0)


def behaviour(dataset: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Share of clean prompts whose likeliest next token is right, and the log odds of right against wrong answers for
    clean and corrupted prompts, by plain runs of the model."""
    odds: list[list[float]] = []
    right = []
    runs = [last_logits(dataset.model, prompts) for prompts in zip(*dataset.get_clean_corrupt_pairs())]
    for i, last in enumerate(zip(*runs)):
        correct, incorrect = map(list, checked_targets(dataset.model, dataset, i))
        shares = [logits.double().softmax(-1) for logits in last]
        odds.append([float((share[correct].sum() / share[incorrect].sum()).log()) for share in shares])
        right.append(int(last[0].argmax()) in correct)
    clean, corrupted = np.array(odds).T
    return float(np.mean(right)), clean, corrupted


@pytest.mark.parametrize("task", TASKS)
def test_bundled_model_does_every_task_and_its_corruption_breaks_it(task):
    accuracy, clean, corrupted = behaviour(task(bundled(), 28))
    assert accuracy >= 0.95 and (clean > 0).all()
    assert (corrupted < clean).all() and corrupted.mean() < -3
    assert (corrupted < 0).mean() >= (0.75 if task is GreaterThanDataset else 1)  # after 1701 an early year is right


SMOL_BEHAVIOUR = {
    IOIDataset: (0.85, 0.95, 3.0),
    InductionDataset: (0.4, 0.9, 5.0),
    AgreementDataset: (0.0, 0.75, 1.4),
    CapitalsDataset: (0.6, 0.95, 7.0),
    DocstringDataset: (0.95, 0.95, 11.0),
}
"""At least this share of predictions that are right, this share of pairs in which the right answer is preferred to the
wrong one, and this mean logit difference; on corrupted prompts, at most its negative but for one."""


@pytest.mark.slow
@pytest.mark.parametrize("task", SMOL_BEHAVIOUR)
def test_smollm2_does_the_tasks_that_it_can(task):
    accuracy, clean, corrupted = behaviour(task(smollm2(), 42))
    predicted, preferred, difference = SMOL_BEHAVIOUR[task]
    assert accuracy >= predicted and (clean > 0).mean() >= preferred
    assert clean.mean() >= difference and corrupted.mean() <= 1 - difference
    assert (corrupted < clean).all()


@pytest.mark.slow
def test_smollm2_hardly_does_gendered_pronouns():
    """It prefers the right pronoun in little more than half of the prompts, and predicts another word in most."""
    accuracy, clean, corrupted = behaviour(GenderedPronounDataset(smollm2(), 56))
    assert accuracy <= 0.3 and (clean > 0).mean() <= 0.75
    assert 0 < (clean - corrupted).mean() < 2


def test_a_sweep_measures_several_answers_as_plain_runs_do():
    dataset = GreaterThanDataset(bundled(), 5)
    _, clean, corrupted = behaviour(dataset)
    results = ActivationPatcher(bundled(), show_progress=False).run_patching_experiment(dataset, "attn_out")
    np.testing.assert_allclose(results.sweep.clean, clean, atol=EXACT, rtol=0)
    np.testing.assert_allclose(results.sweep.corrupted, corrupted, atol=EXACT, rtol=0)
