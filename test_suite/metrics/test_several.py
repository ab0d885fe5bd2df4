"""Several metrics are measured in one pass, and each is what it is alone."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from actpatch.engine.engine import Measured
from actpatch.metrics import chosen as metric_sets
from actpatch.metrics.answers import LogitDifference, Rank
from actpatch.metrics.base import Answers, Metric
from actpatch.metrics.chosen import MetricSet
from actpatch.metrics.distribution import KLDivergence
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.metrics import PATCHES, SETS, SINGLE, named_metrics, pairs_of_three_lengths
from test_suite.helpers.models import HAS_HOOKED, everything_metric, model_parameters, small_model
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.thinned import thinned

DIRECTIONS = ("denoising", "noising")
SEVERAL = model_parameters("hooked:grouped", "bridge+:gpt2", slow=["hooked:learned"])
PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"


@contextlib.contextmanager
def forward_passes(model: Any) -> Iterator[Counter[str]]:
    """How often each of the model's modules is run; the unembedding as a whole, which may be run in part."""
    names = {module: name for name, module in model.named_modules() if not name.startswith("unembed.")}
    ran: Counter[str] = Counter()

    def count(module: Any, args: Any) -> None:
        if module in names:
            ran[names[module]] += 1

    handle = register_module_forward_pre_hook(count)
    try:
        yield ran
    finally:
        handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "direction"), thinned(SEVERAL, DIRECTIONS))
def test_several_metrics_cost_the_runs_of_one_and_each_is_what_it_is_alone(name: str, direction: Any) -> None:
    model, pairs = small_model(name), pairs_of_three_lengths()
    metrics = named_metrics(SETS)
    with forward_passes(model) as together:
        found = engine_on(model).sweep(pairs, PATCHES, metrics, direction)
    for i, metric in enumerate(metrics):
        with forward_passes(model) as alone:
            expected = engine_on(model).sweep(pairs, PATCHES, [metric], direction)
        assert alone == together and alone["blocks.2"] >= 3, metric.name
        assert_same(found, expected, i, metric)


def test_metrics_beside_one_of_all_positions_cost_its_runs() -> None:
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    with forward_passes(model) as alone:
        expected = engine_on(model).sweep(pairs, PATCHES, [everything_metric(3)])
    with forward_passes(model) as together:
        found = engine_on(model).sweep(pairs, PATCHES, [KLDivergence(), everything_metric(3), Rank(SETS)])
    assert alone == together and alone["blocks.2"] >= 3
    np.testing.assert_array_equal(found.patched[1], expected.patched[0])


def assert_same(found: Measured, expected: Measured, i: int, metric: Metric) -> None:
    """To the last bit; but for rounding where a metric alone has less of the vocabulary multiplied out."""
    allowed = 0 if metric.tokens is None else EXACT
    for run in ("patched", "clean", "corrupted"):
        together, alone = getattr(found, run)[i], getattr(expected, run)[0]
        np.testing.assert_allclose(together, alone, atol=allowed, rtol=0, err_msg=metric.name)


def test_order_and_company_of_metrics_do_not_matter() -> None:
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    other = LogitDifference(Answers(((30,), (1,), (2,)), ((4, 39), (5,), (6,))), name="other answers")
    both = engine_on(model).sweep(pairs, PATCHES, [LogitDifference(SETS), other])
    back = engine_on(model).sweep(pairs, PATCHES, [other, LogitDifference(SETS)])
    np.testing.assert_array_equal(both.patched, back.patched[::-1])  # both read the same
    assert MetricSet((LogitDifference(SETS), other)).tokens.tolist() == sorted(
        {*SETS.tokens.tolist(), *other.tokens.tolist()}
    )


def test_only_what_is_read_is_unembedded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    engine = engine_on(model)
    asked: list[int | None] = []
    unembed = type(engine.runner).unembed

    def noting(self: Any, resid: Tensor, tokens: Tensor | None) -> Tensor:
        asked.append(None if tokens is None else len(tokens))
        return unembed(self, resid, tokens)

    monkeypatch.setattr(type(engine.runner), "unembed", noting)
    engine.sweep(pairs, PATCHES, [LogitDifference(SINGLE)])
    engine_reads = asked[1:]  # the first is the engine's check of itself
    assert engine_reads and set(engine_reads) == {6}
    asked.clear()
    engine.sweep(pairs, PATCHES, [LogitDifference(SINGLE), Rank(SINGLE)])
    assert set(asked[1:]) == {None}


def test_measuring_in_slices_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = small_model(PLAIN), pairs_of_three_lengths()
    whole = engine_on(model).sweep(pairs, PATCHES * 4, named_metrics(SETS))
    monkeypatch.setattr(metric_sets, "LARGEST_SLICE", 80)
    sliced = engine_on(model).sweep(pairs, PATCHES * 4, named_metrics(SETS))
    np.testing.assert_array_equal(whole.patched, sliced.patched)
