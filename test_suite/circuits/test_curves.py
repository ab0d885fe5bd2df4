"""Faithfulness by size: golden areas, single evaluations, and which pairs are held out."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest

from actpatch import (
    BothDirections,
    Circuit,
    CircuitPatcher,
    FaithfulnessCurve,
    PathPatcher,
    Zero,
    ensemble,
    faithfulness_curve,
    find_circuit,
    from_mib_json,
    to_mib_json,
)
from actpatch.circuits.held_out import HeldOut, held_out_indices
from actpatch.circuits.measured import CircuitMetrics
from actpatch.core.circuit_names import pair_key
from actpatch.interventions.settings import Settings
from actpatch.models.graph import graph_of
from actpatch.models.programs import program_model
from actpatch.patchers.experiment import encoded
from actpatch.statistics.areas import MIB_SIZES
from actpatch.tasks.programs import ProgramDataset, program_truths
from test_suite.helpers.results import made_up_heads

N = 118
SIZES = tuple((n + 0.5) / N for n in (1, 2, 3, 10, 50))


@functools.cache
def induction() -> tuple[Any, Any, Any]:
    """Model, pairs, and the effects of all edges on them in both directions."""
    model, dataset = program_model("induction"), ProgramDataset("induction", 5)
    patcher = PathPatcher(model, show_progress=False)
    return model, dataset, patcher.run_all_edges_experiment(dataset, direction="both")


def curve(results: Any = None, dataset: Any = None, **options: Any) -> FaithfulnessCurve:
    model, _, effects = induction()
    options = {"n_random": 3, "show_progress": False, **options}
    dataset = ProgramDataset("induction", 6, seed=1) if dataset is None else dataset
    return faithfulness_curve(model, dataset, effects.noising if results is None else results, **options)


def true_edges() -> Circuit:
    return Circuit.of(induction()[2].noising.graph, program_truths("induction")[0].edges)


# --- golden values ---


def test_circuits_that_do_nothing_have_a_quarter_and_three_quarters() -> None:
    """What matters comes last: only the circuit of all edges does anything, and it is the whole model."""
    found = curve(-true_edges().edges.astype(float), rankings=["signed"])
    assert found.faithfulness("signed").value.tolist() == pytest.approx([0] * 9 + [1], abs=1e-12)
    assert np.array_equal(found.values[0, -1], found.full)
    areas = found.areas("signed")
    assert areas.cpr == pytest.approx(0.25) and areas.cmd == pytest.approx(0.749)
    assert found.nominal.tolist() == [[int(size * N) for size in MIB_SIZES]]
    assert found.real[0, -1] <= N and (found.real <= found.nominal).all()


def test_exact_effects_reach_all_at_the_size_of_the_truth() -> None:
    found = curve(sizes=SIZES, n_random=0)
    for ranking in ("signed", "absolute"):
        assert found.faithfulness(ranking).value.tolist() == pytest.approx([0, 0, 1, 1, 1])
        assert found.real[found.rankings.index(ranking)].tolist()[:3] == [0, 0, 3]
    assert found.ranked_by == "exact, noising" and found.n_edges == N
    both = curve(induction()[2], sizes=SIZES, n_random=0)
    assert "union of both" in both.ranked_by and np.array_equal(both.values[1, :3], found.values[1, :3])


@pytest.mark.parametrize("method", ["top", "greedy"])
def test_numbers_are_those_of_single_runs(method: Any) -> None:
    """Every circuit by itself, where zeros are written, so that pruning is not for nothing."""
    model, _, effects = induction()
    scores = np.random.default_rng(0).normal(size=N)
    found = curve(scores, method=method, sizes=SIZES, source=Zero(), metric="probability", pair_indices=[0, 2, 5])
    patcher = CircuitPatcher(model, show_progress=False)
    dataset = ProgramDataset("induction", 6, seed=1)
    every = Circuit.full(effects.noising.graph)
    for row, keys in enumerate((scores, np.abs(scores))):
        order = np.argsort(-keys).tolist()
        for column, n in enumerate((1, 2, 3, 10, 50)):
            if method == "top":
                circuit = Circuit.of(every.graph, order[:n]).pruned()
                assert found.real[row, column] == len(circuit)
                run = patcher.run_circuits_experiment(
                    dataset, circuit, pair_indices=[0, 2, 5], source=Zero(), metrics="probability"
                )
                np.testing.assert_allclose(found.values[row, column], run.sweep.patched[0], rtol=1e-9)
    ends = patcher.run_circuits_experiment(
        dataset, [Circuit.empty(every.graph), every], pair_indices=[0, 2, 5], source=Zero(), metrics="probability"
    ).sweep
    np.testing.assert_allclose(found.empty, ends.patched[0], rtol=1e-9)
    np.testing.assert_allclose(found.full, ends.patched[1], rtol=1e-9)
    assert (found.metric, found.source_of_values) == (ends.metric, "zero") and found.pair_indices == (0, 2, 5)


def test_curves_are_those_of_find_circuit() -> None:
    _, _, effects = induction()
    for method in ("top", "greedy"):
        found = curve(method=method, sizes=SIZES, n_random=0)  # type: ignore[arg-type]
        for row, signed in enumerate((True, False)):
            of_sizes = [
                find_circuit(effects.noising, n_edges=n, method=method, signed=signed).pruned()  # type: ignore[arg-type]
                for n in (3, 10, 50)
            ]
            assert found.real[row, 2:].tolist() == list(map(len, of_sizes))


def test_scores_may_come_from_anywhere(tmp_path: Any) -> None:
    graph, effects = induction()[2].noising.graph, induction()[2].noising
    expected = curve()
    given = curve(effects.sweep.effects)
    assert np.array_equal(given.values, expected.values) and np.array_equal(given.random_values, expected.random_values)
    assert (given.ranked_by, given.held_out) == ("given scores", None)
    to_mib_json(effects.edges, effects.sweep.effects, tmp_path / "scores.json")
    table = from_mib_json(tmp_path / "scores.json", graph)
    assert np.array_equal(curve(table["score"]).values, expected.values)
    ranks = curve(ensemble([effects, effects], by="ranks"), sizes=SIZES, n_random=0)
    assert ranks.notes[0] == "these scores have no sign, so that the signed ranking is the absolute one"
    assert np.array_equal(ranks.values[0], ranks.values[1])
    some = curve(effects[:20], sizes=[0.5, 1], n_random=0)
    assert some.notes[0] == "98 edges have no score, and are in no circuit" and some.real.max() <= 20


def test_random_rankings_are_of_the_seed() -> None:
    one, same, other = curve(seed=1), curve(seed=1, rankings=["absolute"], batch_size=7), curve(seed=2)
    np.testing.assert_allclose(one.random_values, same.random_values, rtol=1e-9)
    assert np.array_equal(one.random_real, same.random_real) and not np.array_equal(one.random_real, other.random_real)
    assert one.random_faithfulness.shape == (3, 10) and np.allclose(one.random_faithfulness[:, -1], 1)
    assert (one.random_real[:, -1] == N).all()
    low, high = one.random_band()
    assert np.array_equal(low, np.quantile(one.random_faithfulness, 0.025, axis=0)) and (low <= high).all()
    assert np.isnan(curve(n_random=0).random_band()).all()


def test_equal_circuits_are_run_once() -> None:
    model, dataset, effects = induction()
    metrics = CircuitMetrics(CircuitPatcher(model, show_progress=False), dataset, Settings(direction="noising"))
    graph, true = effects.noising.graph, true_edges()
    (values,) = metrics.of([true, Circuit.full(graph), true, Circuit.empty(graph)])
    assert len(metrics.sweep.patches) == 2
    assert np.array_equal(values[0], values[2]) and np.array_equal(values[1], metrics.full[0])
    assert np.array_equal(values[3], metrics.empty[0])
    first = metrics.sweep
    assert np.array_equal(metrics.of([true])[0], values[:1]) and metrics.sweep is first
    np.testing.assert_allclose(metrics.faithfulness([true, Circuit.empty(graph)]), [1, 0], atol=1e-12)


# --- which pairs ---


def test_pairs_that_the_ranking_saw_are_left_out() -> None:
    model, dataset, effects = induction()
    pairs = encoded(model, dataset, Settings())
    keys = [pair_key(*both) for both in zip(pairs.clean_tokens, pairs.corrupted_tokens)]
    assert held_out_indices(pairs, {keys[1], keys[3], "other"}) == HeldOut((0, 2, 4), True, 2)
    assert held_out_indices(pairs, {"other"}) == HeldOut((0, 1, 2, 3, 4), True, 0)
    assert held_out_indices(pairs, {keys[1]}, "all") == HeldOut((0, 1, 2, 3, 4), False, 0)
    assert held_out_indices(pairs, {"other"}, "all").held_out and held_out_indices(pairs, set()).held_out is None
    with pytest.raises(ValueError, match="split is 'half', expected one of 'held-out', 'all'"):
        held_out_indices(pairs, set(), "half")  # type: ignore[arg-type]

    longer = ProgramDataset("induction", 9)  # its first five pairs are those of the search
    assert longer.pairs[:5] == dataset.pairs
    assert curve(dataset=longer).pair_indices == (5, 6, 7, 8) and curve(dataset=longer).held_out
    assert curve(dataset=longer, pair_indices=[4, 6]).pair_indices == (6,)
    seen = curve(dataset=longer, split="all")
    assert seen.pair_indices == tuple(range(9)) and seen.held_out is False
    assert "the ranking saw some of these pairs: on others its circuits may keep less" in seen.flags
    with pytest.raises(ValueError, match="the search saw every one of 5 pairs, so none is held out: give a dataset of"):
        curve(dataset=dataset)
    assert find_circuit(effects, n_edges=3).seen == set(keys)


# --- the value ---


def made_up(**changes: Any) -> FaithfulnessCurve:
    """Two rankings of three sizes on five pairs."""
    gaps = np.array([2.0, 3.0, 4.0, 5.0, 6.0])
    shares = np.array([[0, 0.5, 1], [0.2, 0.8, 1.1]])
    fields = {
        "model": "m",
        "task": "IOI",
        "metric": "logit difference",
        "unit": "logits",
        "more_is_better": True,
        "direction": "noising",
        "source_of_values": "the other run",
        "ranked_by": "exact, noising",
        "method": "top",
        "rankings": ("signed", "absolute"),
        "n_edges": 100,
        "sizes": np.array([0.1, 0.5, 1]),
        "nominal": np.array([[10, 50, 100]] * 2),
        "real": np.array([[0, 40, 100], [5, 45, 90]]),
        "values": -1 + shares[..., None] * gaps,
        "full": gaps - 1,
        "empty": np.full(5, -1.0),
        "random_values": -1 + np.array([[0, 0.1, 1], [0, 0.3, 1]])[..., None] * gaps,
        "random_real": np.array([[0, 10, 100], [0, 20, 100]]),
        "pair_indices": tuple(range(5)),
        "held_out": True,
        "seed": 0,
    }
    return FaithfulnessCurve(**{**fields, **changes})


def test_areas_and_bands_by_hand() -> None:
    found = made_up()
    # .4 × (0 + .5) / 2 + .5 × (.5 + 1) / 2; real sizes 0, .4 and 1
    assert found.areas("signed").cpr == pytest.approx(0.475)
    assert found.areas("signed", "real").cpr == pytest.approx(0.1 + 0.45)
    # .4 × (.8 + .2) / 2 + .5 × (.2 + .1) / 2; sizes .05, .45 and .9
    assert found.areas().cmd == pytest.approx(0.275)
    assert found.areas(sizes="real").cmd == pytest.approx(0.2 + 0.45 * 0.15)
    np.testing.assert_allclose(found.random_faithfulness, [[0, 0.1, 1], [0, 0.3, 1]])
    low, high = found.random_band(0.5)
    np.testing.assert_allclose([low[1], high[1]], [0.15, 0.25])
    np.testing.assert_allclose(found.faithfulness("signed").value, [0, 0.5, 1])
    assert found.flags == ()
    assert repr(found) == (
        "FaithfulnessCurve(top, exact, noising; signed CPR 0.47, CMD 0.43; absolute CPR 0.68, CMD 0.28; 3 sizes of 100 "
        "edges × 5 pairs, held out, IOI)"
    )
    table = found.to_dataframe()
    assert table["faithfulness"].tolist() == pytest.approx([0, 0.5, 1, 0.2, 0.8, 1.1])
    assert table["real"].tolist() == [0, 40, 100, 5, 45, 90] and table["random_mean"][1] == pytest.approx(0.2)
    assert table["metric"].tolist()[:2] == pytest.approx([-1, 1])


def test_denominators_that_carry_nothing_are_flagged() -> None:
    found = made_up(full=np.full(5, -1.0))
    assert np.isnan(found.areas().cpr) and np.isnan(found.random_faithfulness).all()
    assert "m(M) and m(∅) have the same mean: faithfulness is not defined" in found.flags
    worse = made_up(more_is_better=False)
    assert any("the model does worse than with every edge off" in flag for flag in worse.flags)


def test_curves_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("nominal has shape (2, 3), expected (1, 3)")):
        made_up(rankings=("signed",))
    for refused, sentence in (
        (lambda: made_up().areas("largest"), "ranking is 'largest', expected one of 'signed', 'absolute'"),
        (lambda: made_up().areas(sizes="true"), "sizes is 'true', expected one of 'nominal', 'real'"),  # type: ignore[arg-type]
        (lambda: made_up().random_band(1.5), "level"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            refused()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"method": "acdc"}, "method is 'acdc', expected one of 'top', 'greedy'"),
        ({"rankings": "signed"}, "rankings is 'signed', expected some of"),
        ({"rankings": ["signed", "signed"]}, "expected some of"),
        ({"sizes": []}, "sizes is [], expected shares of all edges"),
        ({"sizes": "all"}, "sizes is 'all', expected shares of all edges"),
        ({"sizes": [0.1, 1.5]}, "size 1.5 is no share of all edges"),
        ({"n_random": -1}, "n_random is -1, expected a whole number from 0 on"),
        ({"metric": ["probability", "logit_difference"]}, "metric is a list of 2, expected one"),
        ({"results": np.zeros(5)}, "results is a ndarray of shape (5,), expected effects of edges"),
        ({"results": np.full(N, np.nan)}, "no edge has a score, all are NaN"),
        ({"results": "scores.json"}, "results is a str, expected effects of edges"),
        ({"results": BothDirections(made_up_heads(), made_up_heads())}, "results holds HeadResults, expected those of"),
    ],
)
def test_what_makes_no_curve_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        curve(**options)


def test_edges_of_another_model_are_refused() -> None:
    other = program_model("fraction")
    with pytest.raises(ValueError, match="results are of edges of Graph"):
        faithfulness_curve(other, ProgramDataset("fraction", 2), induction()[2].noising)
    assert graph_of(other) != induction()[2].noising.graph
