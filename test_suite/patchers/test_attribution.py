"""Estimates as they are asked of `AttributionPatcher`: results, verification, and what is refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

import actpatch
import attribution_patching
from actpatch import (
    ActivationPatcher,
    AttributionPatcher,
    BothDirections,
    Estimate,
    GaussianNoise,
    HeadPatcher,
    IOIDataset,
    Mean,
    PathPatcher,
    Verification,
    Zero,
    ensemble,
    load_results,
)
from actpatch.core.estimates import METHODS
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import bundled, fresh_model, small_model
from test_suite.helpers.refusals import refused
from test_suite.patchers.test_paths import PLAIN, named
from test_suite.tasks.test_alignment import Ids

# Random models do no task, of which sweeps warn.
pytestmark = pytest.mark.filterwarnings("ignore:The model prefers|The corrup|.* pairs .* (repeat|barely)|runs take")


def patcher(**options: Any) -> AttributionPatcher:
    return AttributionPatcher(small_model(PLAIN), show_progress=False, **options)


@pytest.fixture(scope="module")
def ioi() -> IOIDataset:
    return IOIDataset(bundled(), 6, corruption="flip_subject")


def of_bundled() -> AttributionPatcher:
    return AttributionPatcher(bundled(), show_progress=False)


# --- experiments ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_experiment_has_the_shape_of_the_exact_one() -> None:
    model, ours = small_model(PLAIN), patcher()
    activations, heads = ActivationPatcher(model, show_progress=False), HeadPatcher(model, show_progress=False)
    edges = PathPatcher(model, show_progress=False)
    cases: list[tuple[Any, Any, tuple[Any, ...], dict[str, Any]]] = [
        (ours.run_patching_experiment, activations.run_patching_experiment, ("attn_out",), {"window": 3}),
        (ours.run_position_experiment, activations.run_position_experiment, ("z",), {"positions": ["A", "END"]}),
        (ours.run_all_heads_experiment, heads.run_all_heads_experiment, ("v",), {"position": "A"}),
        (ours.run_all_heads_experiment, heads.run_all_heads_experiment, (), {"positions": ["A", "END"]}),
        (ours.run_neurons_experiment, activations.run_neurons_experiment, (1, [0, 3, -1]), {}),
        (ours.run_neurons_experiment, activations.run_neurons_experiment, (), {"position": "END"}),
        (ours.run_all_edges_experiment, edges.run_all_edges_experiment, (), {"receivers": ["L2", "logits"]}),
    ]
    for estimated, exact, arguments, options in cases:
        for direction in ("denoising", "noising"):
            found = estimated(named(), *arguments, **options, direction=direction)
            expected = exact(named(), *arguments, **options, direction=direction)
            assert type(found) is type(expected)
            assert found.sweep.patches == expected.sweep.patches
            assert np.allclose(found.sweep.clean, expected.sweep.clean, rtol=0, atol=EXACT)
            assert found.sweep.estimate is not None and expected.sweep.estimate is None
            assert "estimated by" in repr(found)
            assert found != expected


def test_both_directions_and_several_metrics_come_from_one_recording() -> None:
    metrics = ["logit_difference", "log_probability", "sequence_log_probability"]
    both = patcher().run_all_heads_experiment(named(), metrics=metrics, direction="both")
    assert isinstance(both, BothDirections)
    for direction, results in (("denoising", both.denoising), ("noising", both.noising)):
        for metric in metrics:
            alone = patcher().run_all_heads_experiment(named(), metrics=metric, direction=direction)  # type: ignore[arg-type]
            assert np.allclose(results.by_metric(metric).sweep.patched, alone.sweep.patched, rtol=0, atol=EXACT)


@pytest.mark.slow
def test_windows_are_written_together(ioi: IOIDataset) -> None:
    """A joint path comes to the exact effect of each window."""
    expected = ActivationPatcher(bundled(), show_progress=False).run_patching_experiment(ioi, "attn_out", window=3)
    found: Any = of_bundled().run_patching_experiment(ioi, "attn_out", window=3, method="ig_activations", steps=20)
    assert np.abs(found.sweep.effects - expected.sweep.effects).max() < 0.01


@pytest.mark.slow
def test_effects_are_shares_with_helpful_positive(ioi: IOIDataset) -> None:
    """On a model that does the task, estimates have the order of exact effects in either direction."""
    exact = HeadPatcher(bundled(), show_progress=False)
    for direction in ("denoising", "noising"):
        expected = exact.run_all_heads_experiment(ioi, direction=direction).sweep.effects  # type: ignore[call-overload]
        for method in ("eap_ig", "ig_activations", "relp", "gim"):
            found: Any = of_bundled().run_all_heads_experiment(ioi, method=method, direction=direction)  # type: ignore[arg-type]
            assert stats.pearsonr(found.sweep.effects, expected)[0] > 0.7
            assert found.sweep.effects[np.argmax(expected)] > 0.2


def test_an_ablation_and_noise_can_be_estimated() -> None:
    for source in (Zero(), Mean()):
        found: Any = patcher().run_all_heads_experiment(named(), source=source)
        assert found.sweep.direction == "noising" and (found.sweep.effects != 0).any()
    noised: Any = patcher().run_all_edges_experiment(named(), noise=GaussianNoise("A", 1.0, samples=2))
    assert (noised.sweep.effects != 0).any()


@pytest.mark.slow
def test_a_last_layers_mlp_is_estimated_by_its_slope_alone(ioi: IOIDataset) -> None:
    """By `ig_activations` with many steps an estimate comes as near to the exact effect as is asked for."""
    expected = ActivationPatcher(bundled(), show_progress=False).run_patching_experiment(ioi, "mlp_out")
    errors = []
    for steps in (2, 20):
        found: Any = of_bundled().run_patching_experiment(ioi, "mlp_out", method="ig_activations", steps=steps)
        errors.append(np.abs(found.sweep.effects - expected.sweep.effects).max())
    assert errors[1] < 0.01 and errors[1] < errors[0]


# --- verification -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verifying_runs_what_it_says(ioi: IOIDataset) -> None:
    scores: Any = of_bundled().run_all_edges_experiment(ioi, method="eap_ig")
    found = scores.verify(top=12, sample=20, seed=3)
    assert isinstance(found, Verification)
    exact = PathPatcher(bundled(), show_progress=False).run_all_edges_experiment(ioi).sweep.effects
    order = np.argsort(-np.abs(scores.sweep.effects), kind="stable")
    assert list(found.top) == order[:12].tolist()
    assert len(found.sample) == 20 and not {*found.sample} & {*found.top}
    assert np.allclose(found.exact_effects[list(found.numbers)], exact[list(found.numbers)], rtol=0, atol=EXACT)
    assert np.isnan(np.delete(found.exact_effects, list(found.numbers))).all()
    assert scores.verify(top=12, sample=20, seed=3).sample == found.sample
    assert scores.verify(top=12, sample=20, seed=4).sample != found.sample
    everything = scores.verify(top=len(scores), sample=0)
    assert everything.spearman.value == pytest.approx(stats.spearmanr(scores.sweep.effects, exact)[0])


@pytest.mark.slow
def test_what_is_unverified_is_bounded_by_what_it_is(ioi: IOIDataset) -> None:
    """Where all effects are known, the bound from a sample is above the truth, seed by seed (95 %: 20 of 20 here)."""
    scores: Any = of_bundled().run_all_edges_experiment(ioi)
    exact = np.abs(PathPatcher(bundled(), show_progress=False).run_all_edges_experiment(ioi).sweep.effects)
    for seed in range(20):
        found = scores.verify(top=10, sample=60, seed=seed)
        unverified = np.setdiff1d(np.arange(len(exact)), found.numbers)
        for size in (0.01, 0.05):
            assert found.most_above(size) >= (exact[unverified] > size).sum()


def test_sets_of_unverified_heads_bound_each(ioi: IOIDataset) -> None:
    scores: Any = of_bundled().run_all_heads_experiment(ioi)
    found = scores.verify(top=4, sample=4)
    bounds = found.subset_bounds(40, seed=1)
    assert bounds.n_sets >= 39 and len(bounds.bound) == len(scores) - 8
    exact = HeadPatcher(bundled(), show_progress=False).run_all_heads_experiment(ioi).sweep.effects
    left = np.setdiff1d(np.arange(len(exact)), found.numbers)
    assert bounds.largest >= np.abs(exact[left]).max()
    with pytest.raises(ValueError, match="edges are patched one at a time"):
        of_bundled().run_all_edges_experiment(ioi).verify(top=2, sample=2).subset_bounds()  # type: ignore[union-attr]


@pytest.mark.quick(1)
@pytest.mark.parametrize("kind", ["edges", "heads", "neurons"])
def test_a_budget_is_what_is_run(kind: Any, ioi: IOIDataset) -> None:
    found = of_bundled().screen_and_verify(ioi, kind, 10)
    assert len(found.numbers) == 10 and len(found.top) == 7
    assert found.estimate.method == "eap_ig"
    assert len(of_bundled().screen_and_verify(ioi, "heads", 1000).numbers) == 16
    assert len(of_bundled().screen_and_verify(ioi, kind, 10, top=2).top) == 2
    ablated = of_bundled().screen_and_verify(ioi, kind, 4, source=Zero())
    assert ablated.estimated.estimate == Estimate("eap" if kind == "edges" else "atp")


def test_a_screen_chooses_a_method_by_how_prompts_are_encoded() -> None:
    same = [([1, 5, 6, 20 + i, 8], [1, 5, 6, 30 + i, 8]) for i in range(4)]
    longer = [(clean, [*corrupted[:-1], 7, 8]) for clean, corrupted in same]

    class OfItsOwn(Ids):
        def get_alignment(self, pair_idx: int) -> Any:
            return {0: 0, 4: 5}

    for dataset, method in (
        (Ids(same), "eap_ig"),
        (Ids(same, "ends"), "eap_ig"),
        (Ids(longer, "ends"), "atp"),
        (OfItsOwn(longer), "atp"),
    ):
        assert patcher().screen_and_verify(dataset, "heads", 4).estimate.method == method
    assert patcher().screen_and_verify(Ids(same), "neurons", 4, source=Mean()).estimate.method == "atp"


def test_results_can_be_copied_and_stored_without_their_model(ioi: IOIDataset, tmp_path: Any) -> None:
    scores: Any = of_bundled().run_all_heads_experiment(ioi, method="eap_ig", steps=3, grid="right")
    read: Any = load_results(scores.save(tmp_path / "scores.json"))
    assert read == scores and read.sweep.estimate == Estimate("eap_ig", 3, "right")
    for one in (
        read,
        pickle.loads(pickle.dumps(scores)),
        copy.deepcopy(scores),
        next(iter(scores.by_group().values())),
    ):
        with pytest.raises(ValueError, match="do not know their model"):
            one.verify()
    assert isinstance(scores.top(3).verify(top=1, sample=1), Verification)
    assert isinstance(scores.sorted_by(lambda item: -item.effect).verify(top=1, sample=1), Verification)


def test_methods_together(ioi: IOIDataset) -> None:
    each: Any = [of_bundled().run_all_heads_experiment(ioi, method=method) for method in ("eap_ig", "relp", "gim")]
    table = ensemble(each)
    shares = np.mean([one.sweep.effects / np.abs(one.sweep.effects).max() for one in each], axis=0)
    assert table["score"].tolist() == pytest.approx(sorted(shares, key=lambda share: -abs(share)))
    assert table.columns.tolist() == ["site", "score", "eap_ig", "relp", "gim"]
    ranked = ensemble(each, by="ranks")
    assert ranked["rank"].is_monotonic_increasing and ranked["site"][0] == table["site"][0]
    with pytest.raises(ValueError, match="differ in direction"):
        ensemble([each[0], of_bundled().run_all_heads_experiment(ioi, direction="noising")])  # type: ignore[list-item]
    for other in ({"corrupted_tokens": each[0].sweep.clean_tokens}, {"source_of_values": "zero"}):
        changed = type(each[1])(replace(each[1].sweep, **other))
        with pytest.raises(ValueError, match=f"differ in {next(iter(other))}"):
            ensemble([each[0], changed])
    with pytest.raises(ValueError, match="differ in patches"):
        ensemble([each[0], each[1][::-1]])
    with pytest.raises(ValueError, match="expected the results of two methods"):
        ensemble(each[:1])
    assert each[0].stability(top_k=3, seed=1).jaccard_with_all > 0.5


# --- what is refused, before any run ----------------------------------------------------------------------------------


def test_what_a_method_does_not_estimate_is_refused() -> None:
    ours = patcher()
    heads, edges = ours.run_all_heads_experiment, ours.run_all_edges_experiment
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("method 'app' is unknown: expected one of 'atp'", heads, {"method": "app"}),
        ("method 'eap' estimates no components: expected one of 'atp'", heads, {"method": "eap"}),
        ("method 'atp' estimates no edges: expected one of 'eap'", edges, {"method": "atp"}),
        ("steps is 0, expected a whole number from 1 on", heads, {"method": "eap_ig", "steps": 0}),
        ("steps is 2.5, expected a whole number", heads, {"method": "eap_ig", "steps": 2.5}),
        ("method 'atp' takes no steps and no grid: only 'eap_ig', 'ig_activations' do", heads, {"steps": 5}),
        ("grid 'middle' is unknown: expected one of 'left'", heads, {"method": "eap_ig", "grid": "middle"}),
        ("'eap_ig' takes gradients of both runs of a pair, so it estimates no Zero", heads, {"method": "eap_ig"}),
        ("'clean_corrupted' takes gradients of both runs", edges, {"method": "clean_corrupted"}),
        ("the metric 'rank' counts, so it has no gradient", heads, {"metrics": "rank"}),
        ("the metric 'accuracy' counts", edges, {"metrics": ["logit_difference", "accuracy"]}),
        ("the metric 'sequence accuracy' counts", heads, {"metrics": "sequence_accuracy"}),
        ("so its gradient at the clean run is 0", heads, {"metrics": "kl_divergence", "direction": "noising"}),
        ("so its gradient at the clean run is 0", edges, {"metrics": "kl_divergence", "direction": "both"}),
    ]
    for message, run, options in cases:
        source = {"source": Zero()} if "both runs" in message else {}
        with refused(message):
            run(named(), **options, **source)
    for method in ("eap_ig", "clean_corrupted"):  # gradients elsewhere: not 0
        found = heads(named(), method=method, metrics="kl_divergence", direction="noising")
        assert (found.sweep.effects != 0).any()  # type: ignore[union-attr]
    with refused("'atp_star' drops what one layer adds to the residual stream, and blocks.0.hook_resid_pre"):
        ours.run_patching_experiment(named(), "resid_pre", method="atp_star")
    with refused("'atp_star' estimates hook points one at a time, L0±1 attn_out writes several together"):
        ours.run_patching_experiment(named(), "attn_out", method="atp_star", window=3)
    with refused("'eap_ig' goes along the residual stream before the first block, so hook_embed"):
        ours.run_patching_experiment(named(), "hook_embed", method="eap_ig")


def test_what_cannot_be_verified_is_refused(ioi: IOIDataset) -> None:
    scores: Any = of_bundled().run_all_heads_experiment(ioi)
    with refused("top and sample are both 0"):
        scores.verify(top=0, sample=0)
    with refused("sample is -1, expected a whole number from 0 on"):
        scores.verify(sample=-1)
    exact = HeadPatcher(bundled(), show_progress=False).run_all_heads_experiment(ioi)
    with refused("these effects were measured, not estimated"):
        exact.verify()
    for message, kind, budget, options in (
        ("kind is 'layers', expected one of 'edges', 'heads', 'neurons'", "layers", 10, {}),
        ("budget is 1, expected at least 2 exact runs", "heads", 1, {}),
        ("top is 20, expected from 0 to the budget of 10", "heads", 10, {"top": 20}),
        ("direction 'both' gives two screens", "heads", 10, {"direction": "both"}),
    ):
        with refused(message):
            of_bundled().screen_and_verify(ioi, kind, budget, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a TransformerLens HookedTransformer"):
        AttributionPatcher("gpt2")


def test_a_sample_alone_can_be_verified(ioi: IOIDataset) -> None:
    scores: Any = of_bundled().run_all_heads_experiment(ioi)
    found = scores.verify(top=0, sample=5)
    assert found.top == () and len(found.sample) == 5
    screened = of_bundled().screen_and_verify(ioi, "heads", 5, top=0)
    assert screened.top == () and len(screened.sample) == 5


def test_a_model_that_changed_since_is_not_what_was_estimated() -> None:
    model = fresh_model(PLAIN)
    scores: Any = AttributionPatcher(model, show_progress=False).run_all_heads_experiment(named())
    assert isinstance(scores.verify(top=2, sample=2), Verification)
    changed = model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: 2 * value)])
    with changed, pytest.raises(ValueError, match="the model is not as it was when these effects were estimated"):
        scores.verify(top=2, sample=2)
    found = scores.verify(top=2, sample=2)
    changed = model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda value, hook: 2 * value)])
    with changed, pytest.raises(ValueError, match="the model is not as it was when these effects were estimated"):
        found.subset_bounds(5)
    found.subset_bounds(5)


def test_a_screen_refuses_what_experiments_refuse() -> None:
    for source in ("zero", None, Zero):
        with refused("source is .*, expected OtherRun"):
            patcher().screen_and_verify(named(), "heads", 5, source=source)  # type: ignore[arg-type]
    with refused("the dataset is a NoneType, expected a PatchingDataset"):
        patcher().screen_and_verify(None, "heads", 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_one_step_at_the_clean_end_says_nothing_of_a_divergence_from_it(direction: Any) -> None:
    asked: dict[str, Any] = {"method": "eap_ig", "steps": 1, "metrics": "kl_divergence", "direction": direction}
    with refused("'eap_ig' with one step, at its right end, estimates nothing"):
        patcher().run_all_heads_experiment(named(), grid="right", **asked)
    assert (patcher().run_all_heads_experiment(named(), grid="midpoint", **asked).sweep.effects != 0).any()  # type: ignore[union-attr]


def test_the_door_and_the_table_of_methods() -> None:
    assert attribution_patching.AttributionPatcher is actpatch.AttributionPatcher
    assert {*METHODS} == {"atp", "atp_star", "eap", "eap_ig", "ig_activations", "clean_corrupted", "relp", "gim"}
    assert repr(patcher()).startswith("AttributionPatcher(")
    for name in METHODS:
        assert name in Estimate(name).described
