"""A metric of the user's may work on its logits in place: it changes no other number, and none of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch import DatasetMetric, GaussianNoise, Mean, Metric, check_dataset
from actpatch.metrics.answers import Accuracy, LogitDifference, LogProbability, Rank
from actpatch.metrics.base import Answers
from actpatch.metrics.distribution import KLDivergence
from test_suite.helpers.metrics import PATCHES, SETS, pairs_of_three_lengths
from test_suite.helpers.models import model_parameters, small_model
from test_suite.helpers.prompts import Words
from test_suite.helpers.sweeps import engine_on, patcher_on
from test_suite.helpers.thinned import thinned

MODELS = model_parameters("hooked:gated", "bridge:gpt2", "bridge+:llama")

pytestmark = pytest.mark.filterwarnings("ignore:The model prefers|The corrup|.* pairs .* (repeat|barely)")


def halved(logits: Tensor) -> Tensor:
    return logits.div_(2.0)


def through_numpy(logits: Tensor) -> Tensor:
    logits.numpy()[...] *= -3.0
    return logits


def overwritten(logits: Tensor) -> Tensor:
    logits[:, 0] = 7.0
    logits[..., 5] += logits[..., 6]
    return logits


SPOILS = [halved, through_numpy, overwritten]
Spoil = Callable[[Tensor], Tensor]


def reads_all(spoil: Spoil) -> DatasetMetric:
    """Reads early positions and late ones."""

    def compute(logits: Tensor, pair: int) -> float:
        shares = spoil(logits)[0].log_softmax(-1)
        return float(shares[-1, 5] + shares[1, 7] + 0.1 * shares[:, 9].sum() + pair)

    return DatasetMetric(compute, name="reads all")


@dataclass(frozen=True)
class OwnMetric:
    """A metric of the user's, which works on all that it is given."""

    spoil: Spoil
    reads_all_positions: bool
    reads_clean: bool
    narrow: bool = False
    unit: str = ""
    more_is_better: bool = True

    @property
    def name(self) -> str:
        return f"own {self.reads_all_positions} {self.reads_clean} {self.narrow}"

    @property
    def tokens(self) -> Tensor | None:
        return torch.tensor([9, 3, 5, 6, 7, 11, 2]) if self.narrow else None

    def measure(self, logits: Tensor, pairs: Tensor, clean: Tensor | None = None) -> Tensor:
        value = self.spoil(logits).log_softmax(-1)[:, -1, 5] + 0 * pairs
        pairs.zero_()
        return value if clean is None else value - self.spoil(clean).log_softmax(-1)[:, -1, 6]


class OwnAnswers(LogProbability):
    """A metric of the library's, changed by the user."""

    def _of(self, last: Tensor, pairs: Tensor) -> Tensor:
        return super()._of(last.mul_(-1.0), pairs)


class OwnAnswersCopied(LogProbability):
    def _of(self, last: Tensor, pairs: Tensor) -> Tensor:
        return super()._of(last * -1.0, pairs)


def copied(spoil: Spoil) -> Spoil:
    return lambda logits: spoil(logits.clone())


def own_metrics(spoil: Spoil, answers: type[LogProbability]) -> list[Metric]:
    return [
        reads_all(spoil),
        *(OwnMetric(spoil, everywhere, beside) for everywhere in (False, True) for beside in (False, True)),
        OwnMetric(spoil, False, True, narrow=True),
        answers(SETS, name="own answers"),
    ]


def library_metrics() -> list[Metric]:
    return [LogitDifference(SETS), KLDivergence(), LogProbability(SETS), Rank(SETS), Accuracy(SETS)]


def of_experiment(metric: Metric) -> Metric:
    if not isinstance(metric, DatasetMetric):
        return metric
    return DatasetMetric(metric.compute_metric, (0, 1, 2), metric.name)


@pytest.mark.parametrize(("name", "spoil", "direction"), thinned(MODELS, SPOILS, ["denoising", "noising"]))
def test_metrics_that_work_in_place_change_no_number(name: str, spoil: Spoil, direction: Any) -> None:
    model, pairs = small_model(name), pairs_of_three_lengths()
    library = library_metrics()
    ours, theirs = own_metrics(spoil, OwnAnswers), own_metrics(copied(spoil), OwnAnswersCopied)
    for first, last in ((ours, library), (library, ours)):
        careful = [theirs[ours.index(metric)] if metric in ours else metric for metric in (*first, *last)]
        found, expected = (
            engine_on(model).sweep(pairs, PATCHES, [of_experiment(metric) for metric in metrics], direction)
            for metrics in ([*first, *last], careful)
        )
        for run in ("patched", "clean", "corrupted"):
            np.testing.assert_array_equal(getattr(found, run), getattr(expected, run))
    alone = engine_on(model).sweep(pairs, PATCHES, library, direction)
    np.testing.assert_allclose(found.patched[: len(library)], alone.patched, atol=1e-5, rtol=0)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "spoil"), thinned(MODELS, SPOILS))
def test_each_alone_is_what_its_copy_is(name: str, spoil: Spoil) -> None:
    model, pairs = small_model(name), pairs_of_three_lengths()
    both = zip(own_metrics(spoil, OwnAnswers), own_metrics(copied(spoil), OwnAnswersCopied))
    for ours, theirs in both:
        found, expected = (engine_on(model, 2).sweep(pairs, PATCHES, [of_experiment(one)]) for one in (ours, theirs))
        for run in ("patched", "clean", "corrupted"):
            np.testing.assert_array_equal(getattr(found, run), getattr(expected, run), err_msg=ours.name)


class OwnTask(Words):
    """Has a `compute_metric` of its own."""

    spoil: Spoil = staticmethod(halved)

    def compute_metric(self, logits: Tensor, pair_idx: int) -> float:
        return reads_all(self.spoil).compute_metric(logits, pair_idx)


ASKED = (None, ["dataset", "kl_divergence", "log_probability"], ["kl_divergence", "dataset"])


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "spoil"), thinned(MODELS, SPOILS))
def test_a_dataset_that_works_in_place_changes_no_number(name: str, spoil: Spoil) -> None:
    model, pairs = small_model(name), pairs_of_three_lengths()
    tasks = [OwnTask(pairs), OwnTask(pairs)]
    tasks[0].spoil, tasks[1].spoil = spoil, copied(spoil)
    turn = SPOILS.index(spoil)
    for i, options in enumerate(({}, {"noise": GaussianNoise(2, samples=2)}, {"source": Mean(Words(pairs))})):
        options = {"metrics": ASKED[(i + turn) % len(ASKED)], **options}
        found, expected = (
            patcher_on(model).run_patching_experiment(task, ["attn_out", "mlp_out"], position=3, **options)
            for task in tasks
        )
        for one, other in zip(found.sweep.measured, expected.sweep.measured):
            for run in ("patched", "clean", "corrupted"):
                np.testing.assert_array_equal(getattr(one, run), getattr(other, run))
    found, expected = (check_dataset(model, task) for task in tasks)
    assert found.to_dataframe().equals(expected.to_dataframe())


def test_a_metric_that_hands_out_one_tensor_again_and_again_is_measured_each_time() -> None:
    value = torch.zeros(1)

    def measure(self: OwnMetric, logits: Tensor, pairs: Tensor, clean: Tensor | None = None) -> Tensor:
        value[:] = logits[:, -1, 5]
        return value

    again = type("Again", (OwnMetric,), {"measure": measure})
    for name in ("bridge:gpt2", "bridge+:llama"):
        model, pairs = small_model(name), pairs_of_three_lengths()
        found = engine_on(model).sweep(pairs, PATCHES, [again(halved, True, False)])
        answers = Answers(((5,),) * 3, ((),) * 3)
        expected = engine_on(model).sweep(pairs, PATCHES, [FirstLogit(answers, name="logit")])
        np.testing.assert_allclose(found.patched, expected.patched, atol=1e-5, rtol=0)


class FirstLogit(LogProbability):
    def _of(self, last: Tensor, pairs: Tensor) -> Tensor:
        return last[:, 5]


@pytest.mark.parametrize("name", MODELS)
def test_the_librarys_own_metrics_get_no_copies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cloned = []
    clone = Tensor.clone

    def noting(self: Tensor, **options: Any) -> Tensor:
        cloned.append(self.shape)
        return clone(self, **options)

    from actpatch.metrics.chosen import MetricSet

    logits, three = torch.randn(3, 1, 40), torch.arange(3)
    monkeypatch.setattr(Tensor, "clone", noting)
    for metrics, copies in ((library_metrics(), 0), ([OwnAnswers(SETS, name="own answers")], 1)):
        cloned.clear()
        metric_set = MetricSet(tuple(metrics))
        metric_set.measure(logits, logits, rows=three, pairs=three, lengths=torch.ones(3, dtype=torch.long))
        assert len(cloned) == copies
