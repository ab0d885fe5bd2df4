"""The check of a dataset: what it measures is what plain runs give, and it says what is wrong with data made wrong."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from activation_patching import (
    ActivationPatcher,
    AgreementDataset,
    CapitalsDataset,
    DatasetCheck,
    DocstringDataset,
    GaussianNoise,
    GenderedPronounDataset,
    InductionDataset,
    IOIDataset,
    PatchingDataset,
    PromptPair,
    PromptPairs,
    Zero,
    check_dataset,
    summarize_results,
)
from actpatch.engine.engine import PatchingEngine
from actpatch.metrics.answers import LogProbability
from actpatch.tasks.encoding import encode_pairs
from docs import four_corruptions
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import bundled, model_parameters, small_model, smollm2, words
from test_suite.helpers.tasks import TASKS

ANIMALS = ("cat", "dog", "fox", "bear", "bird", "fish")
SCENE = "The {0} sat on the mat. The"


class OwnTask(PatchingDataset):
    """Pairs and answers as they are given, without any check."""

    def __init__(self, pairs: Sequence[Any], targets: Sequence[Any] = ((None, None),), positions: Any = None) -> None:
        self.pairs, self.targets, self.positions = pairs, targets, positions or {}

    @property
    def name(self) -> str:
        return "own task"

    def get_clean_corrupt_pairs(self) -> Any:
        return self.pairs

    def get_target_tokens(self, pair_idx: int) -> Any:
        return self.targets[pair_idx % len(self.targets)]

    def get_positions(self, pair_idx: int) -> Any:
        return self.positions


class Loss(OwnTask):
    """The less the better: cross entropy of the right answer."""

    metric_name, metric_unit, more_is_better = "loss", "nats", False

    def __init__(self, task: PatchingDataset) -> None:
        super().__init__(task.get_clean_corrupt_pairs())
        self.task = task

    def compute_metric(self, logits: torch.Tensor, pair_idx: int) -> float:
        right = self.task.get_target_tokens(pair_idx)[0]
        return -float(logits[0, -1].log_softmax(-1)[right])


def swapped(task: PatchingDataset) -> OwnTask:
    """The task with right and wrong answers exchanged."""
    targets = [task.get_target_tokens(i)[::-1] for i in range(len(task))]
    return OwnTask(task.get_clean_corrupt_pairs(), targets)


def animals(*pairs: tuple[int, int]) -> PromptPairs:
    """Pairs that name one animal and are corrupted to another, given by number."""
    return PromptPairs(
        bundled(),
        [
            PromptPair(*(SCENE.format(ANIMALS[i]) for i in pair), (f" {ANIMALS[pair[0]]}",), (f" {ANIMALS[pair[1]]}",))
            for pair in pairs
        ],
    )


def told(check: DatasetCheck, severity: str) -> str:
    return "\n".join(finding.what for finding in check.findings if finding.severity == severity)


def patched(task: PatchingDataset, **options: Any) -> Any:
    return ActivationPatcher(bundled(), show_progress=False).run_patching_experiment(task, "hook_embed", **options)


# --- what is measured -------------------------------------------------------------------------------------------------


def test_accuracy_and_metric_are_those_of_plain_runs():
    task = IOIDataset(bundled(), 6, corruption="unrelated_names", seed=3)
    check = check_dataset(bundled(), task)
    for i, prompts in enumerate(task.get_clean_corrupt_pairs()):
        right, wrong = task.get_target_tokens(i)
        found = check.pairs[i]
        says, prefers = (
            (found.says_right, found.corrupted_says_right),
            (
                found.prefers_right,
                found.corrupted_prefers_right,
            ),
        )
        for j, (prompt, value) in enumerate(zip(prompts, (found.clean, found.corrupted))):
            with torch.no_grad():
                logits = bundled()(bundled().to_tokens(prompt))[0, -1]
            assert value == pytest.approx(float(logits[right] - logits[wrong]), rel=0, abs=EXACT)
            assert says[j] is (int(logits.argmax()) == right)
            assert prefers[j] is bool(logits[right] > logits[wrong])
    assert check.clean_accuracy == np.mean([pair.says_right for pair in check.pairs])
    assert check.corrupted_metric == pytest.approx(np.mean([pair.corrupted for pair in check.pairs]))


@pytest.mark.parametrize("corruption", ["swap_names", "swap_order"])
def test_baselines_and_usable_pairs_are_those_of_the_sweep(corruption):
    task = IOIDataset(bundled(), 12, corruption=corruption)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        sweep = patched(task).sweep
    check = check_dataset(bundled(), task)
    assert check.usable == tuple(sweep.usable.tolist())
    np.testing.assert_allclose([pair.clean for pair in check.pairs], sweep.clean, atol=EXACT, rtol=0)
    np.testing.assert_allclose([pair.corrupted for pair in check.pairs], sweep.corrupted, atol=EXACT, rtol=0)
    assert all(check.usable) is (corruption == "swap_names")
    assert dataclasses.replace(sweep, min_relative_change=0.0).usable.all()  # the rule, not chance, leaves pairs out


def test_the_engine_measures_baselines_alone_as_in_a_sweep():
    task, noise = IOIDataset(bundled(), 3), GaussianNoise("S2", samples=2)
    engine, pairs = PatchingEngine(bundled(), show_progress=False), encode_pairs(bundled(), task)
    alone = engine.baselines(pairs, pairs.metrics(["logit_difference", "rank"]))
    sweep = patched(task, metrics=["logit_difference", "rank"]).sweep
    np.testing.assert_allclose(alone.clean, [values.clean for values in sweep.measured], atol=EXACT, rtol=0)
    np.testing.assert_allclose(alone.corrupted, [values.corrupted for values in sweep.measured], atol=EXACT, rtol=0)
    assert alone.patched.shape == (2, 0, 3)
    check = check_dataset(bundled(), task, noise=noise)
    assert check.noise == noise.label and not check.pairs[0].changes
    np.testing.assert_allclose(
        [pair.corrupted for pair in check.pairs], patched(task, noise=noise).sweep.corrupted, atol=EXACT, rtol=0
    )


def test_changed_tokens_are_told_with_position_and_name():
    task = IOIDataset(bundled(), 2)
    for i, pair in enumerate(check_dataset(bundled(), task).pairs):
        tokens = [bundled().to_str_tokens(prompt) for prompt in task.get_clean_corrupt_pairs()[i]]
        found = {change.names[0]: (change.position, change.clean, change.corrupted) for change in pair.changes}
        at = task.get_positions(i)
        assert found == {name: (at[name], *(run[at[name]] for run in tokens)) for name in ("IO", "S1", "S2")}
    unnamed = check_dataset(bundled(), animals((0, 1), (2, 3)))
    assert [change.place for change in unnamed.pairs[0].changes] == ["2"]
    assert "2 in 2 of 2 pairs" in str(unnamed) and "pair 0     2 ' cat' -> ' dog'" in str(unnamed)


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_bundled_tasks_are_ready(task):
    check = check_dataset(bundled(), task(bundled()))
    assert check.verdict == "ready", str(check)
    assert check.clean_preference == 1.0 and check.clean_accuracy >= 0.9


@pytest.mark.parametrize("corruption", ["flip_subject", "unrelated_names"])
def test_corruptions_that_break_ioi_are_ready(corruption):
    check = check_dataset(bundled(), IOIDataset(bundled(), 20, corruption=corruption))
    assert check.verdict == "ready", str(check)


def test_the_name_order_swap_does_not_change_the_answer():
    check = check_dataset(bundled(), IOIDataset(bundled(), corruption="swap_order"))
    assert check.verdict == "not usable"
    assert "The answer does not change: the model prefers the right answer in 10 of 10 corrupted runs too" in told(
        check, "fault"
    )
    assert "barely differ" in told(check, "care") and "swap_names" in str(check)


def test_a_model_that_fails_is_said_to_fail():
    wrong = check_dataset(bundled(), swapped(IOIDataset(bundled(), 6)))
    assert wrong.verdict == "not usable" and wrong.clean_preference == 0 and wrong.corrupted_preference == 1
    assert "The model prefers the wrong answer on 6 of 6 clean prompts" in told(wrong, "fault")
    random = small_model("bridge:gpt2")
    pairs = [PromptPair(words([9, i, 7]), words([9, i + 1, 7]), (f"w{i}",)) for i in range(20, 38)]
    guessing = check_dataset(random, PromptPairs(random, pairs))
    assert guessing.verdict == "not usable" and guessing.clean_accuracy < 0.2
    assert "not the likeliest next token" in told(guessing, "fault")


def test_some_wrong_answers_need_care():
    task = IOIDataset(bundled(), 5)
    targets = [task.get_target_tokens(i)[:: -1 if i == 3 else 1] for i in range(5)]
    check = check_dataset(bundled(), OwnTask(task.get_clean_corrupt_pairs(), targets))
    assert check.verdict == "usable with care" and check.sound_pairs == (0, 1, 2, 4)
    assert "prefers the wrong answer on 1 of 5 clean prompts (pair 3)" in told(check, "care")
    assert "has the better logit difference in 1 of 5 pairs (pair 3)" in told(check, "care")


def test_repeated_pairs_and_clean_prompts_are_told_apart():
    check = check_dataset(bundled(), animals((0, 1), (2, 3), (0, 1), (0, 2), (2, 3)))
    assert "2 of 5 pairs (pairs 2 and 4) repeat" in told(check, "care")
    assert "1 of 5 pairs have the clean prompt of an earlier one" in told(check, "note")
    only_clean = check_dataset(bundled(), animals((0, 1), (0, 2)))
    assert "repeat" not in str(only_clean) and "1 of 2 pairs have the clean prompt" in told(only_clean, "note")


def test_prompts_that_are_the_same_are_named():
    task = animals((0, 1), (2, 3))
    pairs = [*task.get_clean_corrupt_pairs(), (SCENE.format("bird"),) * 2]
    check = check_dataset(bundled(), OwnTask(pairs, [task.get_target_tokens(0)]))
    assert "the same in 1 of 3 pairs (pair 2)" in told(check, "care")


def test_every_faulty_pair_is_named_and_the_others_are_checked():
    good = IOIDataset(bundled(), 3)
    pairs = [*good.get_clean_corrupt_pairs(), ("The cat sat", "The cat"), ("The cat sat", "The zyx sat"), ("The cat",)]
    targets = [*(good.get_target_tokens(i) for i in range(3)), *[(5, 6)] * 3]
    targets[1] = (5, 5)
    check = check_dataset(bundled(), OwnTask(pairs, targets))
    fault = check.findings[0]
    assert fault.severity == "fault" and fault.pairs == (1, 3, 4, 5) and check.sound_pairs == (0, 2)
    for reason in ("are the same token 5", "the clean prompt has 4 tokens and the corrupted one 3", "zyx", "two texts"):
        assert reason in fault.what
    assert check.pairs[3].fault and check.pairs[3].clean is None and check.pairs[2].clean is not None
    patched(OwnTask(pairs, targets), pair_indices=check.sound_pairs)
    nothing = check_dataset(bundled(), OwnTask(pairs, targets), pair_indices=[3, -1])
    assert nothing.verdict == "not usable" and nothing.clean_metric is None and "2 of 2 pairs" in str(nothing)


# --- all kinds of datasets --------------------------------------------------------------------------------------------


def test_a_metric_of_ones_own_needs_no_answers_and_may_be_less_for_better(capsys):
    loss = Loss(IOIDataset(bundled(), 5))
    check = check_dataset(bundled(), loss)
    assert check.verdict == "ready" and check.clean_metric < check.corrupted_metric
    assert (check.metric, check.unit, check.more_is_better) == ("loss", "nats", False)
    assert "mean, nats, less is better" in str(check)
    assert check.clean_preference is None and check.clean_accuracy is None
    assert "How often the model is right cannot be said" in told(check, "note")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = patched(loss, metrics=["dataset", "kl_divergence"])
    assert results.metrics == ("loss", "KL divergence") and results.by_metric("loss") == results
    summarize_results(results)
    assert re.search(r"loss: clean .* nats \(less is better\)", " ".join(capsys.readouterr().out.split()))


def test_nothing_is_guessed_of_a_metric_of_ones_own():
    """What is declared holds, against every pair too; and where that fits none, the user is asked."""
    loss = Loss(IOIDataset(bundled(), 5))
    loss.more_is_better = True
    check = check_dataset(bundled(), loss)
    assert check.verdict == "not usable" and "does not make the mean loss clearly worse" in told(check, "fault")
    remedy = "Use a corruption that breaks the behaviour, or, if less of it is better, declare more_is_better=False"
    assert remedy in [finding.remedy for finding in check.findings]
    with pytest.warns(UserWarning, match="or, if less of it is better, declare more_is_better=False"):
        patched(loss)
    for changes, message in (
        ({"metric_name": " "}, "the dataset 'own task' has the metric_name ' ' and .* expected two texts"),
        ({"metric_unit": None}, "the metric_unit None, expected two texts"),
        ({"more_is_better": "no"}, "has more_is_better 'no', expected True, or False where its compute_metric"),
    ):
        wrong = Loss(IOIDataset(bundled(), 1))
        vars(wrong).update(changes)
        with pytest.raises(ValueError, match=message):
            patched(wrong)


def test_without_a_wrong_answer_the_right_one_is_measured_alone():
    ioi = IOIDataset(bundled(), 5)
    rights = [ioi.get_target_tokens(i)[0] for i in range(5)]
    lacking = OwnTask(ioi.get_clean_corrupt_pairs(), [(right, None) for right in rights])
    check = check_dataset(bundled(), lacking)
    assert check.verdict == "ready" and check.metric == LogProbability.name
    assert check.clean_accuracy == 1.0 and check.clean_preference is None
    assert "5 of 5 pairs have no wrong answer" in told(check, "note")
    assert check_dataset(bundled(), lacking, metric="rank").metric == "rank"


def test_lengths_that_differ_are_a_note():
    task = OwnTask([*animals((0, 1)).get_clean_corrupt_pairs(), ("The cat sat", "The dog sat")], [(5, 6)])
    check = check_dataset(bundled(), task)
    assert "tokens" in told(check, "note") and "A map over all positions needs one length" in str(check)


@pytest.mark.parametrize("task", [DocstringDataset, "swap_order", "faulty"])
def test_tables_fit_the_width_and_checks_can_be_stored(task):
    dataset = {
        "swap_order": lambda model: IOIDataset(model, 6, corruption="swap_order"),
        "faulty": lambda model: OwnTask([("The cat sat", "The cat")] * 8),
    }.get(task, task)(bundled())
    check = check_dataset(bundled(), dataset)
    text = str(check)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0].endswith(check.verdict) and dataset.name in text
    stored = json.loads(json.dumps(check.to_dict()))
    assert stored["verdict"] == check.verdict and len(stored["pairs"]) == len(dataset)
    assert [finding["what"] for finding in stored["findings"]] == [finding.what for finding in check.findings]
    table = check.to_dataframe()
    assert table["pair"].tolist() == list(range(len(dataset))) and tuple(table["usable"]) == check.usable
    assert hash(check) == hash(check_dataset(bundled(), dataset))


class Yielding(OwnTask):
    """Gives its pairs one after the other."""

    def get_clean_corrupt_pairs(self) -> Any:
        yield from self.pairs


def words_of(*tokens: int) -> str:
    return f" {words(tokens)}"


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge:gpt2", "bridge+:llama"))
@pytest.mark.parametrize("noise", [None, GaussianNoise(1, samples=2)])
def test_pairs_may_be_given_one_after_the_other(name: str, noise: Any) -> None:
    pairs = [(words_of(3, 4, 5), words_of(6, 4, 5)), (words_of(7, 4, 5), words_of(8, 4)), (words_of(9, 4), "")]
    model, targets = small_model(name), [(4, 6)]
    yielding, listed = Yielding(pairs, targets), OwnTask(pairs, targets)
    found, expected = (check_dataset(model, dataset, noise=noise) for dataset in (yielding, listed))
    assert found == expected and len(yielding) == 3
    faulty = () if noise else (1, 2)
    assert tuple(pair.pair for pair in found.pairs if pair.fault) == faulty
    chosen = check_dataset(model, yielding, pair_indices=[-3], noise=noise)
    assert [pair.pair for pair in chosen.pairs] == [0]
    with pytest.raises(ValueError, match="the dataset 'own task' has no pairs"):
        check_dataset(model, Yielding([]), noise=noise)
    with pytest.raises(ValueError, match=r"get_clean_corrupt_pairs .* returned None, expected a list"):
        check_dataset(model, OwnTask(None), noise=noise)


def test_what_is_no_dataset_is_refused_in_words():
    with pytest.raises(TypeError, match="expected a PatchingDataset: one of the tasks, or PromptPairs"):
        check_dataset(bundled(), [("a", "b")])
    with pytest.raises(ValueError, match="has no pairs"):
        check_dataset(bundled(), OwnTask([]))
    with pytest.raises(ValueError, match="names a pair twice"):
        check_dataset(bundled(), IOIDataset(bundled(), 2), pair_indices=[0, 0])
    with pytest.raises(ValueError, match="metric 'speed' is unknown"):
        check_dataset(bundled(), IOIDataset(bundled(), 2), metric="speed")


# --- the short form in a sweep ----------------------------------------------------------------------------------------


def bad_baselines() -> dict[str, tuple[PatchingDataset, str]]:
    ioi = IOIDataset(bundled(), 4)
    return {
        "answer kept": (IOIDataset(bundled(), 10, corruption="swap_order"), "barely differ.*Use a corruption"),
        "wrong": (
            swapped(ioi),
            "prefers the wrong answer on 4 of 4 clean prompts.*not make the mean logit difference clearly",
        ),
        "repeated": (animals((0, 1), (2, 3), (0, 1)), "1 of 3 pairs .pair 2. repeat"),
    }


@pytest.mark.parametrize("kind", ["answer kept", "wrong", "repeated"])
def test_a_sweep_warns_once_of_bad_baselines(kind):
    task, expected = bad_baselines()[kind]
    with pytest.warns(UserWarning, match=expected) as caught:
        patched(task)
    assert len(caught) == 1 and str(caught[0].message).endswith("check_dataset(model, dataset) tells more")
    assert str(caught[0].message).count("Use a corruption") <= 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"direction": "noising"},
        {"source": Zero()},
        {"noise": GaussianNoise("S2", samples=2)},
        {"metrics": ["kl_divergence", "log_probability"]},
    ],
)
def test_a_sweep_with_sound_baselines_does_not_warn(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        patched(IOIDataset(bundled(), 4), **options)


def test_a_sweep_of_a_metric_that_is_less_for_better_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        patched(Loss(IOIDataset(bundled(), 4)))


# --- a real language model --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("corruption", ["swap_names", "flip_subject", "unrelated_names", "swap_order"])
def test_smollm2_is_checked_for_ioi(corruption):
    check = check_dataset(smollm2(), IOIDataset(smollm2(), 20, corruption=corruption))
    if corruption == "swap_order":
        assert check.verdict == "not usable" and "The answer does not change" in told(check, "fault")
    else:
        assert check.verdict != "not usable", str(check)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, verdict",
    [
        (InductionDataset, "ready"),
        (CapitalsDataset, "ready"),
        (AgreementDataset, "usable with care"),
        (GenderedPronounDataset, "not usable"),
    ],
)
def test_smollm2_is_checked_for_other_tasks(task, verdict):
    check = check_dataset(smollm2(), task(smollm2(), 24))
    assert check.verdict == verdict, str(check)
    if verdict != "ready":
        assert "prefers the wrong answer" in check.findings[0].what


@pytest.mark.slow
def test_the_comparison_of_corruptions_can_be_made(tmp_path, capsys):
    """What docs/four-corruptions.md is made with, on the bundled model."""
    four_corruptions.main(["tiny", "--pairs", "6", "--figure", str(tmp_path / "maps.html")])
    printed = capsys.readouterr().out
    assert "The answer does not change" in printed and "| swap_names / flip_subject |" in printed
    assert (tmp_path / "maps.html").stat().st_size > 10**6
