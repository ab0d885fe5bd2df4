"""Metrics are chosen by name, by answers, or as objects of one's own."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from activation_patching import ActivationPatcher, IOIDataset, PatchingDataset, check_dataset, summarize_results
from actpatch.metrics.answers import Rank
from actpatch.metrics.base import Answers
from actpatch.metrics.names import metric_key
from actpatch.metrics.registry import NAMED_METRICS, right_above
from actpatch.tasks.encoding import encode_pairs
from head_patching import HeadPatcher
from test_suite.helpers.metrics import SETS
from test_suite.helpers.models import bundled
from test_suite.helpers.refusals import refused
from test_suite.oracles.metrics import NAMED, by_hand, plain_logits


class Animals(PatchingDataset):
    """Two pairs with whatever answers are given; with a metric of its own, if wanted."""

    name = "animals"

    def __init__(self, targets: Callable[[int], Any] = lambda pair: (5, 6)) -> None:
        self.targets = targets

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return [(f"The cat sat on the {place}", f"The dog sat on the {place}") for place in ("mat", "rug")]

    def get_target_tokens(self, pair_idx: int) -> Any:
        return self.targets(pair_idx)


class WithItsOwn(Animals):
    def compute_metric(self, logits: Tensor, pair_idx: int) -> float:
        return float(logits[0, 1:].mean() + logits[0, -1, 7 + pair_idx])


@pytest.fixture(name="bundled")
def bundled_model() -> Any:
    return bundled()


def test_none_and_dataset_are_the_datasets_own_metric(bundled: Any) -> None:
    for dataset, own in ((Animals(), "logit difference"), (WithItsOwn(), "compute_metric")):
        for asked in (None, "dataset", ["dataset"]):
            assert [metric.name for metric in encode_pairs(bundled, dataset, [0, 1]).metrics(asked)] == [own]
    both = encode_pairs(bundled, WithItsOwn(), [1]).metrics(["KL divergence", "dataset", "logit_difference"])
    assert [metric.name for metric in both] == ["KL divergence", "compute_metric", "logit difference"]


@pytest.mark.filterwarnings("ignore:.*barely differ")
def test_own_metric_beside_named_ones_is_what_it_is_alone(bundled: Any) -> None:
    patcher = HeadPatcher(bundled, show_progress=False)
    alone = patcher.run_all_heads_experiment(WithItsOwn())
    several = patcher.run_all_heads_experiment(WithItsOwn(), metrics=["kl_divergence", "dataset", Rank(TWO)])
    assert several.metrics == ("KL divergence", "compute_metric", "rank") and several.sweep.metric == "KL divergence"
    assert several.by_metric("compute_metric") == alone.__class__(several.sweep.by_metric("compute metric"))
    np.testing.assert_array_equal(several.by_metric("compute_metric").sweep.patched, alone.sweep.patched)
    logits = [plain_logits(bundled, [bundled.to_tokens(pair[0])[0]])[0] for pair in Animals().get_clean_corrupt_pairs()]
    ranks = [by_hand("rank", run, run, ids, ()) for run, ids in zip(logits, TWO.correct)]
    assert several.by_metric("rank").sweep.clean.tolist() == ranks


TWO = Answers(correct=((5,), (9, 11)), incorrect=((6,), (7,)))


def test_what_needs_no_answers_asks_for_none(bundled: Any) -> None:
    def none(pair: int) -> Any:
        raise AssertionError("asked")

    (metric,) = encode_pairs(bundled, Animals(none), [0, 1]).metrics("kl_divergence")
    assert metric.name == "KL divergence"


def test_several_acceptable_answers_may_come_from_the_dataset(bundled: Any) -> None:
    dataset = Animals(lambda pair: ((5, 9), 6) if pair else (5, (6, 7)))
    for metric in encode_pairs(bundled, dataset, [1, 0]).metrics(["logit_difference", "rank"]):
        assert metric.answers.correct == ((5, 9), (5,)) and metric.answers.incorrect == ((6,), (6, 7))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "logit_dif",
            r"metric 'logit_dif' is unknown: the nearest names are logit_difference;.*expected one of",
        ),
        (
            "zzz",
            "metric 'zzz' is unknown: expected one of logit_difference, .* dataset, or a Metric object",
        ),
        (["rank", "probabilty"], "metric 'probabilty' is unknown: the nearest names are probability"),
        ([], "metrics is empty: give at least one, or None"),
        (["rank", "Rank"], "two of the metrics are called 'rank': give each once"),
        (["dataset", "logit_difference"], "called 'logit difference'.*'dataset' is the logit difference where"),
        (Rank, r"the class Rank is no metric: metrics takes names \(logit_difference"),
        (
            len,
            r"the metric 'len' takes \(obj, /\), expected a function of \(logits, pair_idx\)",
        ),
        ([None], "a NoneType is no metric"),
        ({"rank"}, "a set is no metric: .*one or a list of them"),
        (Rank(SETS), "metric 'rank' has answers for 3 pairs, the experiment has 2: make it for these pairs"),
        (Rank(Answers(((5,), (10**6,)), ((), ()))), "metric 'rank' has the answer 1000000, outside the vocabulary of"),
    ],
)
def test_metrics_that_cannot_be_measured_are_refused(bundled: Any, asked: Any, message: str) -> None:
    patcher, heads = (kind(bundled, show_progress=False) for kind in (ActivationPatcher, HeadPatcher))
    with refused(message):
        patcher.run_patching_experiment(Animals(), "attn_out", metrics=asked)
    with refused(message):
        patcher.run_position_experiment(Animals(), metrics=asked)
    with refused(message):
        heads.run_all_heads_experiment(Animals(), metrics=asked)


def test_an_object_that_is_half_a_metric_is_told_what_it_lacks(bundled: Any) -> None:
    class Half:
        name, unit, tokens, reads_all_positions = "half", "", None, False

        def measure(self, logits: Tensor, pairs: Tensor) -> Tensor:
            return logits[:, -1, 0]

    with refused(r"a Half is no metric \(it has no more_is_better, reads_clean\)"):
        encode_pairs(bundled, Animals(), [0]).metrics(Half())  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, (), []])
def test_metrics_that_need_an_answer_name_the_pairs_that_have_none(bundled: Any, given: Any) -> None:
    without_wrong = Animals(lambda pair: (5, given if pair else 6))
    without_right = Animals(lambda pair: (given, 6))
    patcher = ActivationPatcher(bundled, show_progress=False)
    for name in ("logit_difference", "probability_difference", None):
        with refused(r"needs a wrong answer for every pair, 1 of 2 pairs have none \(pair 1\): .*measure probability"):
            patcher.run_patching_experiment(without_wrong, "attn_out", metrics=name)
    for name in NAMED[:-1]:
        with refused(r"needs a right answer for every pair, 2 of 2 pairs have none \(pair 0, 1\): .*kl_divergence"):
            patcher.run_patching_experiment(without_right, "attn_out", metrics=name)
    for name in ("probability", "log_probability", "rank", "accuracy", "kl_divergence"):
        encode_pairs(bundled, without_wrong, [0, 1]).metrics(name)
    encode_pairs(bundled, without_right, [0, 1]).metrics("kl_divergence")


def test_answers_are_checked() -> None:
    with refused("right answers for 1 pairs and wrong ones for 2"):
        Answers(((1,),), ((2,), (3,)))
    for correct, incorrect in (((1,), (1,)), ((1, 1), (2,)), ((-1,), (2,))):
        with refused(r"pair 7 has the right answers .* expected token ids of at least 0, each given once"):
            Answers((correct,), (incorrect,), pair_indices=(7,))


def test_a_metric_that_was_not_measured_is_refused_with_those_that_were(bundled: Any) -> None:
    results = ActivationPatcher(bundled, show_progress=False).run_patching_experiment(
        IOIDataset(bundled, 2), "attn_out", metrics=["kl_divergence", "rank"]
    )
    with refused("metric 'ranks' was not measured: did you mean 'rank'.*have kl_divergence, rank; ask for more with"):
        results.by_metric("ranks")
    with refused("metric 'accuracy' was not measured: These results have kl_divergence, rank"):
        results.by_metric("accuracy")


def test_each_metric_says_what_it_is_asked_for_by_and_above_what_a_run_is_right() -> None:
    for key, metric in NAMED_METRICS.items():
        assert key == metric.key == metric_key(metric.name)
    told = {metric.name: above for metric in NAMED_METRICS.values() if (above := right_above(metric.name)) is not None}
    assert told == {
        **{"logit difference": 0.0, "probability difference": 0.0, "accuracy": 0.5},
        **{"sequence log-probability difference": 0.0, "sequence accuracy": 0.5},
    }
    assert right_above("loss") is None and right_above("Accuracy") is None, "metrics of one's own"


def second_logit(logits: Tensor, pair_idx: int) -> float:
    return float(logits[0, 1:].mean() + logits[0, -1, 7 + pair_idx])


@pytest.mark.filterwarnings("ignore:.*check_dataset")
def test_a_function_is_a_metric_of_its_name(bundled: Any, capsys: pytest.CaptureFixture[str]) -> None:
    patcher = ActivationPatcher(bundled, show_progress=False)
    own = patcher.run_patching_experiment(WithItsOwn(), "attn_out", pair_indices=[1, 0])
    several = patcher.run_patching_experiment(
        WithItsOwn(), "attn_out", pair_indices=[1, 0], metrics=["rank", second_logit]
    )
    alone = patcher.run_patching_experiment(WithItsOwn(), "attn_out", pair_indices=[1, 0], metrics=second_logit)
    assert several.metrics == ("rank", "second_logit") and alone.metrics == ("second_logit",)
    for found in (several.by_metric("second_logit"), alone):
        np.testing.assert_array_equal(found.sweep.patched, own.sweep.patched)
        assert found.sweep.more_is_better and found.sweep.unit == ""
    summarize_results(alone)
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"second_logit: clean \S+, corrupted \S+ \(more is better\)", printed)
    assert "second_logit: clean" in alone._repr_html_() and "(more is better)" in alone._repr_html_()


class Scorer:
    def __call__(self, logits: Tensor, pair_idx: int) -> float:
        return 1.0

    def score(self, logits: Tensor, pair_idx: int, scale: float = 1.0) -> float:
        return scale


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda logits, pair: 1.0, "metric"),
        (functools.partial(second_logit), "second_logit"),
        (functools.partial(Scorer().score, scale=2.0), "score"),
        (Scorer().score, "score"),
        (Scorer(), "Scorer"),
        (lambda *args: 1.0, "metric"),
    ],
)
def test_what_a_function_is_called(bundled: Any, function: Any, name: str) -> None:
    assert [metric.name for metric in encode_pairs(bundled, Animals(), [0]).metrics(function)] == [name]


@pytest.mark.parametrize(
    ("function", "takes"),
    [
        (lambda logits: 1.0, r"\(logits\)"),
        (lambda logits, pair, answer: 1.0, r"\(logits, pair, answer\)"),
        (lambda logits, *, pair_idx: 1.0, r"\(logits, \*, pair_idx\)"),
    ],
)
def test_a_function_of_other_arguments_is_refused(bundled: Any, function: Any, takes: str) -> None:
    patcher = ActivationPatcher(bundled, show_progress=False)
    with refused(f"the metric 'metric' takes {takes}, expected a function of .logits, pair_idx. that returns one numb"):
        patcher.run_patching_experiment(Animals(), "attn_out", metrics=["rank", function])


def test_two_functions_without_a_name_need_one(bundled: Any) -> None:
    with refused("two of the metrics are called 'metric': give each once, and metrics of your own another name="):
        encode_pairs(bundled, Animals(), [0]).metrics([lambda logits, pair: 1.0, lambda logits, pair: 2.0])


def test_what_a_function_returns_is_told_by_its_name(bundled: Any) -> None:
    def nothing(logits: Tensor, pair_idx: int) -> Any:
        return None

    patcher = ActivationPatcher(bundled, show_progress=False)
    with pytest.raises(ValueError, match="nothing returned NoneType for pair 0, expected one number"):
        patcher.run_patching_experiment(Animals(), "attn_out", metrics=nothing)


def test_a_check_takes_a_function_too(bundled: Any) -> None:
    check = check_dataset(bundled, Animals(), metric=second_logit)
    assert check.metric == "second_logit" and check.pairs[0].clean is not None
