"""Two directions of one experiment stand side by side, and say what each pair of effects means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from activation_patching import BothDirections
from actpatch.core.sites import Site, block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from actpatch.results.metric_values import MetricValues
from actpatch.results.shapes import HeadResults
from actpatch.results.sweep import Sweep
from head_patching import HeadPatcher
from test_suite.helpers.induction import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD, induction_model, induction_pairs
from test_suite.helpers.models import HAS_HOOKED, needs_hooked, small_model, swept
from test_suite.helpers.prompts import Words
from test_suite.helpers.sweeps import patcher_on, single

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"


def test_both_directions_are_the_two_single_ones(mixed: Words) -> None:
    patcher = patcher_on(small_model(PLAIN))
    heads = HeadPatcher(small_model(PLAIN), show_progress=False)
    runs = [
        lambda way: patcher.run_patching_experiment(mixed, ["attn_out"], direction=way),
        lambda way: patcher.run_position_experiment(mixed, positions=["A", "B"], direction=way),
        lambda way: patcher.run_neurons_experiment(mixed, 1, [3, 4], direction=way),
        lambda way: heads.run_all_heads_experiment(mixed, direction=way),
    ]
    for run in runs:
        both = run("both")
        assert both == BothDirections(run("denoising"), run("noising"))
        reading = both.reading(0.2)
        assert reading["denoising"].tolist() == both.denoising.sweep.effects.tolist()
        assert reading["noising"].tolist() == both.noising.sweep.effects.tolist()


@needs_hooked
def test_the_heads_of_the_induction_model_are_sufficient_and_necessary() -> None:
    """Each of its two heads in series restores everything alone and takes everything away alone; no other does."""
    heads = single([Site(block_hook(layer, "z"), head=head) for layer in range(3) for head in range(4)])
    pairs, metric = induction_pairs(), LogitDifference(Answers(((9,),), ((17,),)))

    def results(direction: Any) -> HeadResults:
        found = swept(PatchingEngine(induction_model(), show_progress=False), pairs, heads, metric, direction)
        values = MetricValues(metric.name, metric.unit, True, found.patched, found.clean, found.corrupted)
        tokens = {"clean_tokens": pairs.clean_tokens, "corrupted_tokens": pairs.corrupted_tokens}
        sizes = {"n_layers": 3, "n_heads": 4, "n_key_value_heads": 4}
        settings = {"model": "by hand", "task": "", "pair_indices": (0,), **sizes, **tokens}
        return HeadResults(Sweep(tuple(heads), (values,), direction, **settings))

    reading = BothDirections(results("denoising"), results("noising")).reading(threshold=0.5)
    found = {(row.layer, row.head): row.reading for row in reading.itertuples()}
    both = {PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD}
    assert found == {cell: "both" if cell in both else "neither" for cell in found} and len(found) == 12


def in_two_ways(denoising: Sequence[float], noising: Sequence[float], n_pairs: int = 12) -> BothDirections:
    """Heads of these effects, given exactly by the pairs' mean and varied over pairs by a tenth of the gap."""
    heads = single([Site(block_hook(0, "z"), head=head) for head in range(len(denoising))])
    tokens = ((" a",),) * n_pairs
    sizes = {"n_layers": 1, "n_heads": len(denoising), "n_key_value_heads": len(denoising)}
    about = {"model": "made-up", "task": "", "clean_tokens": tokens, "corrupted_tokens": tokens, **sizes}
    scatter = np.random.default_rng(0).normal(0, 0.1, (len(denoising), n_pairs))
    scatter -= scatter.mean(axis=1, keepdims=True)

    def results(direction: Any, effects: Sequence[float]) -> HeadResults:
        share = np.array(effects)[:, None] + scatter
        patched = 4 * share if direction == "denoising" else 4 - 4 * share
        values = MetricValues("logit difference", "logits", True, patched, np.full(n_pairs, 4.0), np.zeros(n_pairs))
        return HeadResults(Sweep(tuple(heads), (values,), direction, pair_indices=tuple(range(n_pairs)), **about))

    return BothDirections(results("denoising", denoising), results("noising", noising))


def test_readings_name_the_four_cases() -> None:
    reading = in_two_ways([0.5, 0.5, -0.9, 0.0], [0.5, 0.0, 0.2, -0.9]).reading(0.1)
    assert reading["reading"].tolist() == ["both", "sufficient", "necessary", "neither"]
    np.testing.assert_allclose(
        reading[["denoising", "noising"]], [[0.5, 0.5], [0.5, 0], [-0.9, 0.2], [0, -0.9]], atol=1e-9
    )
    idle = in_two_ways([0.5], [0.5])
    values = replace(idle.noising.sweep.measured[0], corrupted=np.full(12, 4.0))
    unknown = BothDirections(idle.denoising, HeadResults(replace(idle.noising.sweep, measured=(values,))))
    assert unknown.reading()["reading"].tolist() == unknown.reading(alpha=0.05)["reading"].tolist() == [None]


def test_readings_may_ask_for_significance() -> None:
    """0.02 is far from certain with this scatter, 0.08 is certain, and 0.5 is both large and certain."""
    both = in_two_ways([0.02, 0.08, 0.5, -0.5], [0.5, 0.08, 0.02, -0.5])
    for threshold, alpha, expected in (
        (0.1, None, ["necessary", "neither", "sufficient", "neither"]),
        (0.01, None, ["both", "both", "both", "neither"]),
        (None, 0.05, ["necessary", "both", "sufficient", "neither"]),
        (0.1, 0.05, ["necessary", "neither", "sufficient", "neither"]),
        (0.01, 0.05, ["necessary", "both", "sufficient", "neither"]),
    ):
        assert both.reading(threshold, alpha=alpha)["reading"].tolist() == expected
    sure = both.reading(None, alpha=0.01)
    for direction, results in (("denoising", both.denoising), ("noising", both.noising)):
        assert sure[f"{direction}_p"].tolist() == results.statistics(alpha=0.01).p_corrected.tolist()
    with pytest.warns(UserWarning, match=r"nothing is significant at 0\.05: .*use at least"):
        few = in_two_ways([0.5], [0.5], n_pairs=4).reading(alpha=0.05)
    assert few["reading"].tolist() == ["neither"]
    with pytest.raises(ValueError, match="threshold and alpha are both None"):
        both.reading(None)
    with pytest.raises(ValueError, match="alpha is 5, expected a number between 0 and 1"):
        both.reading(alpha=5)
