"""The names, arguments and printed tables that the README and its readers use, at the doors that they import."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

import activation_patching
import actpatch
import attribution_patching
import head_patching
import model_loading
import path_patching
import visualize
from activation_patching import ActivationPatcher, IOIDataset, PatchingResult, summarize_results
from actpatch.core.sites import Patch, Site
from actpatch.results.attention import AttentionPatterns
from actpatch.results.check import Change, DatasetCheck, PairCheck
from actpatch.results.items import OverPairs
from actpatch.results.metric_values import MetricValues
from actpatch.results.shapes import KINDS
from actpatch.results.sweep import Sweep
from actpatch.statistics.sites import SiteStatistics
from head_patching import HeadPatcher, HeadPatchingResult, print_head_results
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.prompts import MyTask


def test_layer_experiment_and_its_summary(tiny, capsys):
    dataset = IOIDataset(tiny)
    patcher = ActivationPatcher(tiny)
    hook_points = [f"blocks.{layer}.hook_attn_out" for layer in range(tiny.cfg.n_layers)]
    results = patcher.run_patching_experiment(dataset=dataset, hook_points=hook_points)
    assert list(results) == hook_points
    for hook_point, pairs in results.items():
        assert [result.pair_index for result in pairs] == list(range(len(dataset)))
        for result in pairs:
            assert isinstance(result, PatchingResult) and result.hook_point == hook_point and result.position is None
            moved, whole = (
                result.patched_metric - result.corrupted_metric,
                result.clean_metric - result.corrupted_metric,
            )
            assert result.effect == pytest.approx(moved / whole, nan_ok=True)
    capsys.readouterr()
    summarize_results(results, top_k=2)
    printed = capsys.readouterr().out
    largest = max(hook_points, key=lambda name: abs(results.effects[name]))
    first = next(line for line in printed.splitlines() if line.startswith("blocks."))
    assert first.startswith(largest) and f"{results.effects[largest]:+.3f}" in first
    assert printed.count("blocks.") == 2 and f"({tiny.cfg.n_layers - 2} more with smaller effects)" in printed
    for said in ("IOI (names swapped throughout)", "tiny", "denoising", "suffice", "mean of 10 pairs"):
        assert said in printed


@pytest.mark.parametrize("metrics", ["logit_difference", ["logit_difference", "rank"]], ids=["one", "two"])
def test_long_names_of_sets_are_wrapped(patcher, ioi, metrics, capsys):
    together = tuple(f"blocks.{layer}.hook_attn_out" for layer in range(3))
    results = patcher.run_patching_experiment(ioi, [together, "blocks.0.hook_mlp_out"], metrics=metrics)
    summarize_results(results)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    first = lines.index("blocks.0.hook_attn_out +")
    assert lines[first + 1] == "  blocks.1.hook_attn_out +"
    effect = results.effects[" + ".join(together)]
    assert lines[first + 2].split()[:2] == ["blocks.2.hook_attn_out", f"{effect:+.3f}"]


def test_head_experiment_its_important_heads_and_its_table(tiny, capsys):
    dataset = IOIDataset(tiny)
    patcher = HeadPatcher(tiny)
    results = patcher.run_all_heads_experiment(dataset=dataset, patch_type="output")
    n_layers, n_heads = tiny.cfg.n_layers, tiny.cfg.n_heads
    assert [(r.layer, r.head) for r in results] == [(i, j) for i in range(n_layers) for j in range(n_heads)]
    assert all(isinstance(r, HeadPatchingResult) and r.patch_type == "output" for r in results)
    important = patcher.find_important_heads(results, threshold=0.1)
    assert [r.label for r in important] == [r.label for r in results.top(len(results)) if abs(r.effect) >= 0.1]
    capsys.readouterr()
    print_head_results(results, top_k=15)
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if re.match(r"L\d+H\d+", line)]
    assert shown == [r.label for r in results.top(15)]
    assert f"({n_layers * n_heads - 15} more with smaller effects)" in lines


def test_snippet_of_the_pictures(head_results, layer_results, tiny, tmp_path):
    sizes = {"n_layers": tiny.cfg.n_layers, "n_heads": tiny.cfg.n_heads}
    figure = visualize.create_head_heatmap(head_results, **sizes)
    np.testing.assert_array_equal(figure.data[0].z, head_results.matrix())
    folder = str(tmp_path / "figures")
    written = visualize.create_full_report(
        head_results=head_results, layer_results=layer_results, **sizes, save_dir=folder
    )
    assert {path.name for path in written} >= {"report.html", "head_heatmap.html", "layer_heatmap.html"}


class MyTaskWithMetric(MyTask):
    def compute_metric(self, logits, pair_idx):
        correct, incorrect = self.get_target_tokens(pair_idx)
        return (logits[0, -1, correct] - logits[0, -1, incorrect]).item()


@pytest.mark.filterwarnings("ignore:.*barely differ")
def test_own_task_gives_the_same_numbers_with_and_without_its_own_metric(tiny, patcher):
    assert len(MyTask(tiny)) == 1
    without, given = (
        patcher.run_patching_experiment(dataset=task, hook_points=["attn_out", "resid_pre"]).sweep
        for task in (MyTask(tiny), MyTaskWithMetric(tiny))
    )
    assert (without.metric, without.unit, given.metric) == ("logit difference", "logits", "compute_metric")
    assert without.task == given.task == "My Custom Task"
    for name in ("patched", "clean", "corrupted"):
        np.testing.assert_allclose(getattr(without, name), getattr(given, name), atol=EXACT, rtol=0)


def test_default_metric_is_the_logit_difference_at_the_last_position(tiny):
    logits = torch.randn(1, 5, tiny.cfg.d_vocab)
    correct, incorrect = MyTask(tiny).get_target_tokens(0)
    assert MyTask(tiny).compute_metric(logits, 0) == pytest.approx(
        float(logits[0, 4, correct] - logits[0, 4, incorrect])
    )


def test_modules_offer_what_their_readers_import():
    assert head_patching.HeadPatchingResult is activation_patching.HeadPatchingResult


def test_module_docstrings_exist():
    for module in (activation_patching, attribution_patching, head_patching, model_loading, path_patching, visualize):
        assert module.__doc__ and module.__doc__.splitlines()[0].endswith((".", "?"))


def test_what_results_are_made_of_are_public_names():
    shapes = [shape for shape in KINDS.values() if shape.__module__.startswith("actpatch.")]
    items = [OverPairs.__subclasses__(), [PatchingResult, Patch, Site, Sweep, MetricValues, SiteStatistics]]
    for kind in (*shapes, *itertools.chain(*items), PairCheck, Change, DatasetCheck, AttentionPatterns):
        assert getattr(actpatch, kind.__name__) is kind and kind.__name__ in actpatch.__all__
    for name in ("Patch", "Site", "SweepResults"):
        assert getattr(activation_patching, name) is getattr(actpatch, name)
    for name in ("HeadPositionResults", "HeadPositionPatchingResult", "HeadResults", "AttentionPatterns"):
        assert getattr(head_patching, name) is getattr(actpatch, name)
    assert visualize.create_head_position_heatmap is actpatch.create_head_position_heatmap
    for name in ("PathPatcher", "EdgeResults", "EdgePatchingResult", "PathResults", "PathPatchingResult", "graph_of"):
        assert getattr(path_patching, name) is getattr(actpatch, name)
    for name in ("AttributionPatcher", "Estimate", "Verification", "Stability", "ensemble"):
        assert getattr(attribution_patching, name) is getattr(actpatch, name)
