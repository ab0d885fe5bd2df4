"""The library as its users call it: every name, argument, printed table, saved file and error, on the bundled model."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants

import activation_patching
import head_patching
import model_loading
import visualize
from activation_patching import ActivationPatcher, IOIDataset, PatchingDataset, PatchingResult, summarize_results
from actpatch.core.components import PATCH_TYPES, SHORT_NAMES
from actpatch.core.sites import Patch, Site
from actpatch.models.load import TINY, can_be_loaded, load_model
from actpatch.results.saved import load_results
from actpatch.results.shapes import PositionResults
from actpatch.tasks.dataset import encode_pairs
from actpatch.tasks.ioi import IOI_CORRUPTIONS
from head_patching import HeadPatcher, HeadPatchingResult, print_head_results
from test_suite.helpers.hub import home_with_gpt2
from test_suite.helpers.models import CLASSES, HAS_HOOKED, bundled, needs_hooked, smollm2
from test_suite.helpers.refusals import refused

ROOT = Path(model_loading.__file__).resolve().parent
MARY = "When Mary and John went to the store, John gave a drink to"
FLIPPED = "When Mary and John went to the store, Mary gave a drink to"


class Prompts(PatchingDataset):
    """Any pairs with any answers."""

    def __init__(self, model: Any, pairs: list, answers: Any = (" cat", " dog")) -> None:
        self.model, self.pairs, self.answers = model, pairs, answers

    @property
    def name(self) -> str:
        return "prompts"

    def get_clean_corrupt_pairs(self):
        return self.pairs

    def get_target_tokens(self, pair_idx):
        return tuple(self.model.to_single_token(a) if isinstance(a, str) else a for a in self.answers)


ANIMALS = [("The cat sat on the mat", "The dog sat on the mat"), ("The cat sat on the rug", "The dog sat on the rug")]


def logit_difference(dataset: PatchingDataset, logits: torch.Tensor, pair: int) -> float:
    correct, incorrect = dataset.get_target_tokens(pair)
    return float(logits[0, -1, correct] - logits[0, -1, incorrect])


# --- the names and calls of the README --------------------------------------------------------------------------------


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


class MyTask(PatchingDataset):
    """The README's own task, without its metric."""

    def __init__(self, model):
        self.model = model

    @property
    def name(self) -> str:
        return "My Custom Task"

    def get_clean_corrupt_pairs(self):
        return [("The cat sat on the mat", "The dog sat on the mat")]

    def get_target_tokens(self, pair_idx):
        return (self.model.to_single_token(" cat"), self.model.to_single_token(" dog"))


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
        np.testing.assert_allclose(getattr(without, name), getattr(given, name), atol=1e-4)


def test_default_metric_is_the_logit_difference_at_the_last_position(tiny):
    logits = torch.randn(1, 5, tiny.cfg.d_vocab)
    correct, incorrect = MyTask(tiny).get_target_tokens(0)
    assert MyTask(tiny).compute_metric(logits, 0) == pytest.approx(
        float(logits[0, 4, correct] - logits[0, 4, incorrect])
    )


def test_modules_offer_what_their_readers_import():
    assert head_patching.HeadPatchingResult is activation_patching.HeadPatchingResult


# --- choosing what is run ---------------------------------------------------------------------------------------------


def test_chosen_pairs_give_the_columns_of_all_pairs(patcher, ioi):
    everything = patcher.run_patching_experiment(ioi, "attn_out").sweep
    chosen = patcher.run_patching_experiment(ioi, "attn_out", pair_indices=[3, -5])
    assert chosen.sweep.pair_indices == (3, 1)
    assert [result.pair_index for result in chosen["blocks.0.hook_attn_out"]] == [3, 1]
    np.testing.assert_allclose(chosen.sweep.patched, everything.patched[:, [3, 1]], atol=1e-5)
    np.testing.assert_allclose(chosen.sweep.clean, everything.clean[[3, 1]], atol=1e-5)
    assert chosen.sweep.clean_tokens == (everything.clean_tokens[3], everything.clean_tokens[1])


def test_chosen_layers_give_the_heads_of_those_layers(heads_patcher, head_results, ioi):
    chosen = heads_patcher.run_all_heads_experiment(ioi, layers=[-1, 1])
    last = head_results.sweep.n_layers - 1
    assert sorted({r.layer for r in chosen}) == [1, last]
    matrix = chosen.matrix()
    np.testing.assert_allclose(matrix[[1, last]], head_results.matrix()[[1, last]], atol=1e-5)
    assert np.isnan(np.delete(matrix, [1, last], axis=0)).all()


def test_negative_positions_count_from_the_end_of_each_prompt(patcher, ioi):
    lengths = encode_pairs(ioi.model, ioi).lengths.tolist()
    assert len(set(lengths)) > 1
    from_the_end = patcher.run_patching_experiment(ioi, "resid_pre", position=-2)
    for pair, length in enumerate(lengths):
        one = patcher.run_patching_experiment(ioi, "resid_pre", position=length - 2, pair_indices=[pair])
        np.testing.assert_allclose(from_the_end.sweep.patched[:, [pair]], one.sweep.patched, atol=1e-5)
    assert from_the_end["blocks.0.hook_resid_pre"][0].position == -2


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("position", [None, 4, -1])
def test_experiment_agrees_with_its_own_single_runs(patcher, ioi, direction, position):
    results = patcher.run_patching_experiment(
        ioi,
        ["blocks.0.hook_attn_out", "blocks.2.hook_resid_pre", "blocks.3.hook_attn_out"],
        position=position,
        direction=direction,
        pair_indices=[0, 1],
    )
    assert results.sweep.direction == direction
    for hook_point, pairs in results.items():
        for result in pairs:
            clean, corrupted = ioi.get_clean_corrupt_pairs()[result.pair_index]
            logits = patcher.run_patched(clean, corrupted, hook_point, position=position, direction=direction)
            patched = logit_difference(ioi, logits, result.pair_index)
            assert result.patched_metric == pytest.approx(patched, abs=1e-4)
            clean_metric, corrupted_metric = result.clean_metric, result.corrupted_metric
            base, source = (
                (corrupted_metric, clean_metric) if direction == "denoising" else (clean_metric, corrupted_metric)
            )
            assert result.effect == pytest.approx((patched - base) / (source - base), abs=1e-3)


def test_position_experiment_patches_each_position_alone(patcher, tiny):
    dataset = IOIDataset(tiny, 3, corruption="flip_subject", templates=["{A} and {B} met, and {S2} gave a book to"])
    results = patcher.run_position_experiment(dataset, ["resid_pre", "mlp_out"])
    n_positions = len(results.sweep.clean_tokens[0])
    assert results.components == ["resid_pre", "mlp_out"]
    for component in results.components:
        matrix = results.matrix(component)
        assert matrix.shape == (tiny.cfg.n_layers, n_positions)
        for position in (1, n_positions - 1):
            alone = patcher.run_patching_experiment(dataset, component, position=position)
            np.testing.assert_allclose(matrix[:, position], list(alone.effects.values()), atol=1e-4)
    with refused("component 'z' was not patched: expected one of resid_pre, mlp_out"):
        results.matrix("z")
    patch, effect = results.top(1)[0]
    matrix = results.matrix(patch.sites[0].component)
    assert abs(effect) == np.abs(np.concatenate([results.matrix(c).ravel() for c in results.components])).max()
    assert matrix[patch.sites[0].layer, patch.sites[0].position] == effect


def test_short_names_expand_over_all_layers_and_mix_with_full_ones(patcher, ioi, tiny):
    results = patcher.run_patching_experiment(ioi, ["mlp_out", "blocks.0.hook_mlp_out", "hook_embed"], pair_indices=[0])
    assert list(results) == [*(f"blocks.{i}.hook_mlp_out" for i in range(tiny.cfg.n_layers)), "hook_embed"]


def test_every_short_name_and_patch_type_runs(patcher, heads_patcher, ioi, tiny):
    results = patcher.run_patching_experiment(ioi, SHORT_NAMES, pair_indices=[0])
    assert len(results) == len(SHORT_NAMES) * tiny.cfg.n_layers and np.isfinite(list(results.effects.values())).all()
    for patch_type in PATCH_TYPES:
        results = heads_patcher.run_all_heads_experiment(ioi, patch_type, pair_indices=[0])
        assert results.patch_type == patch_type and len(results) == tiny.cfg.n_layers * tiny.cfg.n_heads
        tail = "hook_z" if patch_type == "output" else f"hook_{patch_type}"
        assert {patch.sites[0].hook_point.rpartition(".")[2] for patch in results.sweep.patches} == {tail}


def test_hook_points_are_listed_and_filtered(patcher, tiny):
    assert patcher.list_hook_points() == list(tiny.hook_dict)
    assert patcher.list_hook_points("hook_z") == [f"blocks.{i}.attn.hook_z" for i in range(tiny.cfg.n_layers)]
    last = patcher.list_hook_points(layer=-1)
    assert last and all(name.startswith(f"blocks.{tiny.cfg.n_layers - 1}.") for name in last)
    assert patcher.list_hook_points("hook_z", layer=1) == ["blocks.1.attn.hook_z"]
    assert patcher.list_hook_points("no such text") == []


def test_batches_of_any_size_give_the_same_numbers(tiny, ioi, head_results):
    for batch_size, pairs in ((1, [0, 5]), (7, [0, 1, 2, 3, 4, 5])):
        patcher = HeadPatcher(tiny, batch_size=batch_size, show_progress=False)
        found = patcher.run_all_heads_experiment(ioi, pair_indices=pairs)
        np.testing.assert_allclose(found.sweep.patched, head_results.sweep.patched[:, pairs], atol=1e-4)


def test_two_runs_give_the_same_numbers(heads_patcher, ioi, head_results):
    again = heads_patcher.run_all_heads_experiment(ioi)
    np.testing.assert_array_equal(again.sweep.patched, head_results.sweep.patched)


@pytest.mark.parametrize(("is_terminal", "switch", "shown"), [(True, True, 1), (True, False, 0), (False, True, 0)])
def test_one_bar_of_progress_is_shown_on_a_terminal_unless_it_is_switched_off(
    tiny, ioi, capsys, monkeypatch, is_terminal, switch, shown
):
    stderr = io.StringIO()
    stderr.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stderr", stderr)
    ActivationPatcher(tiny, show_progress=switch).run_patching_experiment(ioi, "attn_out", pair_indices=[0])
    finished = re.findall(r"Patching: 100%.*?\d+/\d+ \[\d\d:\d\d<\d\d:\d\d, +[\d.]+run/s\]\n", stderr.getvalue())
    assert len(finished) == shown and bool(stderr.getvalue()) == bool(shown)
    assert not capsys.readouterr().out


# --- single runs ------------------------------------------------------------------------------------------------------


def test_run_with_cache_gives_the_models_own_logits_and_activations(patcher, tiny):
    names = ["blocks.1.attn.hook_pattern", "blocks.2.hook_resid_pre", "blocks.0.hook_mlp_out"]
    logits, activations = patcher.run_with_cache(MARY, names)
    with torch.no_grad():
        expected, cache = tiny.run_with_cache(MARY)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert list(activations) == names
    for name in names:
        torch.testing.assert_close(activations[name], cache[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(
    ("hook_point", "head", "position"),
    [
        ("blocks.1.hook_attn_out", None, None),
        ("blocks.2.hook_mlp_out", None, -1),
        ("blocks.0.hook_resid_pre", None, 10),
        ("blocks.3.hook_resid_post", None, None),
        ("blocks.1.attn.hook_z", 2, None),
        ("blocks.1.attn.hook_q", 1, -1),
        ("blocks.2.attn.hook_k", 0, 3),
        ("blocks.2.attn.hook_v", None, None),
        ("blocks.2.attn.hook_pattern", 3, 12),
        ("hook_embed", None, None),
    ],
)
def test_run_patched_equals_a_plain_hooked_run(patcher, tiny, hook_point, head, position, direction):
    source, base = (MARY, FLIPPED) if direction == "denoising" else (FLIPPED, MARY)
    with torch.no_grad():
        _, cache = tiny.run_with_cache(source)

    def write(value, hook):
        where: list[Any] = [slice(None)] * value.ndim
        is_pattern = hook_point.endswith("pattern")
        if head is not None:
            where[1 if is_pattern else 2] = head
        if position is not None:
            where[2 if is_pattern else 1] = position
        value = value.clone()
        value[tuple(where)] = cache[hook_point][tuple(where)]
        return value

    with torch.no_grad():
        expected = tiny.run_with_hooks(base, fwd_hooks=[(hook_point, write)])
    patched = patcher.run_patched(MARY, FLIPPED, hook_point, head=head, position=position, direction=direction)
    torch.testing.assert_close(patched, expected, atol=1e-4, rtol=0)


def test_run_patched_takes_a_short_name_only_with_its_layer(patcher):
    with refused(r"'attn_out' stands for all 4 layers: name one, for instance 'blocks\.0\.hook_attn_out'"):
        patcher.run_patched(MARY, FLIPPED, "attn_out")


# --- results ----------------------------------------------------------------------------------------------------------


def test_layer_matrix_and_top_are_the_effects(layer_results, tiny):
    table = layer_results.matrix()
    assert list(table.columns) == ["attn_out", "mlp_out"] and list(table.index) == list(range(tiny.cfg.n_layers))
    for layer in table.index:
        for component in table.columns:
            assert table.loc[layer, component] == layer_results.effects[f"blocks.{layer}.hook_{component}"]
    ranked = sorted(layer_results.effects.items(), key=lambda item: -abs(item[1]))
    assert layer_results.top(3) == ranked[:3]
    assert len(layer_results.top(1000)) == len(layer_results)


def test_effects_are_ratios_of_means(layer_results, head_results):
    for results in (layer_results, head_results):
        table = results.to_dataframe()
        usable = table[table["effect"].notna()]
        means = usable.groupby("site", sort=False)[["clean", "corrupted", "patched"]].mean()
        expected = (means["patched"] - means["corrupted"]) / (means["clean"] - means["corrupted"])
        np.testing.assert_allclose(results.sweep.effects, expected, atol=1e-9)


def test_table_has_a_row_per_patch_and_pair(head_results, tiny):
    table = head_results.to_dataframe()
    assert len(table) == tiny.cfg.n_layers * tiny.cfg.n_heads * 6
    row = table[(table["layer"] == 2) & (table["head"] == 1) & (table["pair"] == 3)].iloc[0]
    result = next(r for r in head_results if (r.layer, r.head) == (2, 1))
    assert row["effect"] == pytest.approx(result.pair_effects[3], nan_ok=True)
    assert row["hook_point"] == "blocks.2.attn.hook_z" and row["direction"] == "denoising"
    moved = table["patched"] - table["corrupted"]
    np.testing.assert_allclose(
        table["effect"] * (table["clean"] - table["corrupted"]), moved.where(table["effect"].notna())
    )


def test_results_are_read_back_as_they_were_saved(patcher, layer_results, head_results, tiny, ioi, tmp_path):
    positions = patcher.run_position_experiment(ioi, "resid_pre", pair_indices=[0, 4], direction="noising")
    for results in (layer_results, head_results, positions):
        path = results.save(tmp_path / "results.json")
        loaded = load_results(str(path))
        assert type(loaded) is type(results) and repr(loaded) == repr(results)
        for name in ("patched", "clean", "corrupted"):
            np.testing.assert_array_equal(getattr(loaded.sweep, name), getattr(results.sweep, name))
        for name in ("patches", "pair_indices", "clean_tokens", "corrupted_tokens", "versions", "direction", "task"):
            assert getattr(loaded.sweep, name) == getattr(results.sweep, name)
        assert loaded.to_dataframe().equals(results.to_dataframe())
        if not isinstance(results, PositionResults):
            assert loaded.top(5) == results.top(5)


def test_results_keep_what_the_pairs_were_drawn_from(tiny, patcher, tmp_path):
    drawn = IOIDataset(tiny, 2, seed=np.int64(7), corruption="flip_subject")
    results = patcher.run_patching_experiment(drawn, "blocks.0.hook_mlp_out")
    loaded = load_results(results.save(tmp_path / "results.json")).sweep
    assert (loaded.dataset_seed, type(loaded.dataset_seed)) == (7, int)
    assert loaded.varies == drawn.varies != "" and "subject" in loaded.task
    noised = patcher.run_patching_experiment(
        drawn, "blocks.0.hook_mlp_out", noise=activation_patching.GaussianNoise("S2", samples=1)
    )
    assert (noised.sweep.dataset_seed, noised.sweep.varies) == (7, ""), "noise makes the corrupted run"
    own = Prompts(tiny, ANIMALS)
    assert patcher.run_patching_experiment(own, "resid_pre", position=2).sweep.dataset_seed is None
    own.seed = "today"
    with refused("the dataset 'prompts' has the seed 'today', expected the integer that its pairs were drawn from, or"):
        patcher.run_patching_experiment(own, "resid_pre", position=2)


def test_a_file_that_holds_no_results_is_named(tmp_path):
    path = tmp_path / "other.json"
    for text in ("not json", "[1]", "{}"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"other\.json holds no saved patching results"):
            load_results(path)
    path.write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has result format 99, this version reads format 4"):
        load_results(path)


def test_results_print_in_a_line(layer_results, head_results, patcher, ioi):
    positions = patcher.run_position_experiment(ioi, "resid_pre", pair_indices=[0, 4])
    for results, rows in ((layer_results, "hook points"), (head_results, "heads"), (positions, "sites")):
        text = repr(results)
        assert len(text) < 250 and "\n" not in text and rows in text and "pairs" in text


def test_saved_versions_are_those_installed(layer_results):
    assert layer_results.sweep.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert layer_results.sweep.versions["transformers"] == transformers.__version__


# --- loading models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copied_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "my-model"
    shutil.copytree(TINY, folder)
    return folder


def test_a_directory_is_loaded_like_the_bundled_model(tiny, copied_checkpoint):
    with torch.no_grad():
        expected = tiny(MARY)
        for path in (copied_checkpoint, str(copied_checkpoint)):
            model = load_model(path, device="cpu", model_class=type(tiny).__name__)
            torch.testing.assert_close(model(MARY), expected)
    assert model.cfg.model_name == "my-model" and not model.training


@needs_hooked
def test_both_classes_give_the_same_numbers():
    models = [bundled(name) for name in ("HookedTransformer", "TransformerBridge")]
    sweeps = [HeadPatcher(m, show_progress=False).run_all_heads_experiment(IOIDataset(m, 5)).sweep for m in models]
    np.testing.assert_allclose(sweeps[0].patched, sweeps[1].patched, atol=1e-4)
    assert sweeps[0].clean_tokens == sweeps[1].clean_tokens


def test_default_class_is_hooked_transformer_where_there_is_one():
    model = load_model("tiny", device="cpu")
    assert type(model).__name__ == ("HookedTransformer" if HAS_HOOKED else "TransformerBridge")
    assert not model.training and model.cfg.model_name == "tiny"


def test_model_that_cannot_be_loaded_is_refused_in_one_sentence(tmp_path):
    with refused("TransformerLens knows no model 'gpt2-smal'"):
        load_model("gpt2-smal")
    for path in (tmp_path, str(tmp_path), "./nowhere", "some/where/else"):
        with refused("holds no Hugging Face checkpoint: expected a directory with a config.json"):
            load_model(path)
    with refused("model_class 'Hooked' is unknown: expected HookedTransformer or TransformerBridge"):
        load_model("tiny", model_class="Hooked")  # type: ignore[arg-type]
    for device in ("gpu", "", 99):
        with refused(f"the device '{device}' cannot be used .*: try 'cpu'"):
            load_model("tiny", device=device)
    with refused("name_or_path is None, expected 'tiny', a name such as 'gpt2-small', or a path"):
        load_model(None)  # type: ignore[arg-type]
    if not HAS_HOOKED:
        with refused("has no HookedTransformer .* use TransformerBridge"):
            load_model("tiny", model_class="HookedTransformer")


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_checkpoint_without_its_tokenizer_is_refused(model_class, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, tmp_path)
    with refused("holds no tokenizer: expected its files beside the checkpoint"):
        load_model(tmp_path, device="cpu", model_class=model_class)


@contextlib.contextmanager
def silent_hub() -> Iterator[str]:
    """A hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def answering_hub(status: int) -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("offline", [True, False])
def test_unreachable_hub_is_found_out_within_five_seconds(monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with silent_hub() as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        begin = time.monotonic()
        with refused(r"'nobody/nothing' is not in the local cache .* load_model\('tiny'\) .* work", ConnectionError):
            load_model("nobody/nothing")
        assert time.monotonic() - begin < (0.5 if offline else 5.0)


def test_hub_that_refuses_the_connection_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with silent_hub() as address:
        pass  # the port is free again
    monkeypatch.setattr(constants, "ENDPOINT", address)
    assert not can_be_loaded("nobody/nothing")


@pytest.mark.parametrize("status", [200, 404])
def test_hub_that_answers_is_within_reach(monkeypatch, status):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with answering_hub(status) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert can_be_loaded("nobody/nothing")


@pytest.mark.slow
def test_gpt2_small_is_loaded_by_name_from_the_cache(tmp_path):
    classes = ["HookedTransformer", "TransformerBridge"][not HAS_HOOKED :]
    code = f"""
import json, torch
from model_loading import can_be_loaded, load_model
assert can_be_loaded("gpt2-small") and not can_be_loaded("gpt2-medium")
for model_class in {classes}:
    model = load_model("gpt2-small", device="cpu", model_class=model_class)
    with torch.no_grad():
        logits = model({MARY!r})[0, -1].log_softmax(-1).tolist()
    print(json.dumps([type(model).__name__, model.cfg.n_layers, model.cfg.n_heads, model.training, logits]))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home_with_gpt2()), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = next((home_with_gpt2() / "hub" / "models--gpt2" / "snapshots").iterdir())
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(MARY)["input_ids"]
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[0, *tokens]]))
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(classes)
    for model_class, line in zip(classes, lines):
        *found, logits = json.loads(line)
        assert found == [model_class, 12, 12, False]
        torch.testing.assert_close(torch.tensor(logits), plain.logits[0, -1].log_softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", CLASSES)
def test_snippets_give_sensible_numbers_on_a_real_language_model(model_class):
    model = smollm2(model_class)
    dataset = IOIDataset(model, 5)
    layers = ActivationPatcher(model, show_progress=False).run_patching_experiment(dataset, ["attn_out"])
    assert (layers.sweep.clean > 0).all() and (layers.sweep.corrupted < 0).all()
    heads = HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset, patch_type="output")
    assert all(head.effect > 0 for head in heads.top(3))
    keys = HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset, patch_type="k", layers=[10])
    assert keys.counts_key_value_heads and len(keys) == model.cfg.n_key_value_heads == 3
    assert keys[0].label == "L10KV0" and keys.matrix().shape == (30, 3)


# --- bad input, refused before any run of the model -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("blocks.0.hook_atn_out", r"no hook point 'blocks\.0\.hook_atn_out'.*nearest.*blocks\.0\.hook_attn_out"),
        ("blocks.99.hook_attn_out", r"no hook point 'blocks\.99\.hook_attn_out'"),
        ("atn_out", r"no hook point 'atn_out'.*Short names.*attn_out.*list_hook_points"),
        (["attn_out", "hook_embd"], r"no hook point 'hook_embd'.*hook_embed"),
        ("hook_z", r"no hook point 'hook_z'.*nearest names are z\b"),
        ([], "hook_points is empty"),
    ],
)
def test_unknown_hook_points_are_refused_with_the_nearest_names(patcher, ioi, asked, message):
    for run in (patcher.run_patching_experiment, patcher.run_position_experiment):
        with refused(message):
            run(ioi, asked)
    with refused(message):
        patcher.run_with_cache(MARY, asked)


def test_prompts_of_different_lengths_are_refused_with_where_they_part(patcher, tiny):
    longer = Prompts(tiny, [*ANIMALS, ("The cat sat on the mat", "The cat sat on the small mat")])
    count = len(tiny.to_tokens("The cat sat on the mat")[0])
    with refused(
        f"pair 2: the clean prompt has {count} tokens and the corrupted one {count + 1}; they part at position"
    ):
        patcher.run_patching_experiment(longer, "attn_out")
    patcher.run_patching_experiment(longer, "attn_out", pair_indices=[0, 1])


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((" cat dog", " dog"), "pair 0: get_target_tokens found no single token for its answer"),
        ((10**6, 3), "pair 0: target token 1000000 is outside the vocabulary"),
        ((-1, 3), "pair 0: target token -1 is outside the vocabulary"),
        ((3, 3), "pair 0: correct and incorrect answer are the same token 3"),
        ((True, 3), r"pair 0: get_target_tokens returned \(True, 3\), expected .correct token id"),
        ((3,), r"pair 0: get_target_tokens returned \(3,\), expected \(correct token id, incorrect token id\)"),
        (("zyzzyva", 3), "pair 0: a target is the tokenizer's unknown token|found no single token"),
    ],
)
def test_targets_that_are_no_single_token_are_refused(patcher, tiny, answers, message):
    with refused(message):
        patcher.run_patching_experiment(Prompts(tiny, ANIMALS, answers), "attn_out")


def test_pairs_that_are_none_are_refused(patcher, tiny):
    with refused("the dataset 'prompts' has no pairs"):
        patcher.run_patching_experiment(Prompts(tiny, []), "attn_out")
    with refused("get_clean_corrupt_pairs of the dataset 'prompts' returned None, expected a list of pairs"):
        patcher.run_patching_experiment(Prompts(tiny, None), "attn_out")
    for pair in ("The cat", ("The cat",), ("The cat", ""), ("The cat", 3)):
        with refused("pair 0 is .* expected .clean prompt, corrupted prompt., two texts"):
            patcher.run_patching_experiment(Prompts(tiny, [pair]), "attn_out")
    with refused("does not know 'zyzzyva' in 'The zyzzyva sat"):
        patcher.run_patching_experiment(Prompts(tiny, [("The zyzzyva sat on", "The dog sat on")]), "attn_out")
    long = "the cat " * tiny.cfg.n_ctx
    with refused(f"has {2 * tiny.cfg.n_ctx + 1} tokens, the model reads at most {tiny.cfg.n_ctx}"):
        patcher.run_patching_experiment(Prompts(tiny, [(long.strip(), long.strip())]), "attn_out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair_indices": [6]}, "pair index 6 is out of range: expected -6 to 5"),
        ({"pair_indices": [-7]}, "pair index -7 is out of range"),
        ({"pair_indices": [1.5]}, "pair index 1.5 is not an integer"),
        ({"pair_indices": [True]}, "pair index True is not an integer"),
        ({"pair_indices": []}, "pair_indices is empty"),
        ({"pair_indices": [2, -4]}, "names a pair twice: give each pair once"),
        ({"position": 99}, r"position \(in pair 0, of \d+ tokens\) 99 is out of range"),
        ({"position": -99}, r"position \(in pair 0, of \d+ tokens\) -99 is out of range"),
        ({"position": 1.0}, "1.0 is not an integer"),
        ({"direction": "sideways"}, "direction 'sideways' is unknown: expected one of denoising, noising"),
    ],
)
def test_choices_out_of_range_are_refused(patcher, heads_patcher, ioi, options, message):
    with refused(message):
        patcher.run_patching_experiment(ioi, "attn_out", **options)
    with refused(message):
        heads_patcher.run_all_heads_experiment(ioi, **options)


def test_heads_and_layers_out_of_range_are_refused(patcher, heads_patcher, ioi, tiny):
    n_layers, n_heads = tiny.cfg.n_layers, tiny.cfg.n_heads
    with refused(f"layer {n_layers} is out of range: expected -{n_layers} to {n_layers - 1}"):
        heads_patcher.run_all_heads_experiment(ioi, layers=[n_layers])
    with refused(f"layer -{n_layers + 1} is out of range"):
        patcher.list_hook_points(layer=-n_layers - 1)
    with refused("layers is empty: give at least one layer"):
        heads_patcher.run_all_heads_experiment(ioi, layers=[])
    with refused(f"head {n_heads} is out of range: expected .*0 to {n_heads - 1}|head {n_heads} is out of range"):
        patcher.run_patched(MARY, FLIPPED, "blocks.0.attn.hook_z", head=n_heads)
    with refused("blocks.0.hook_attn_out has no head axis"):
        patcher.run_patched(MARY, FLIPPED, "blocks.0.hook_attn_out", head=0)
    with refused("position .* 99 is out of range"):
        patcher.run_patched(MARY, FLIPPED, "blocks.0.hook_attn_out", position=99)
    with refused("2 positions were given for 6 pairs"):
        patcher.sweep(ioi, [Patch((Site("blocks.0.hook_attn_out", position=(1, 2)),))])
    with refused("nothing to patch"):
        patcher.sweep(ioi, [])


def test_unknown_options_are_refused(tiny, heads_patcher, ioi, head_results, layer_results):
    with refused("patch_type 'outputs' is unknown: expected one of output, pattern, q, k, v"):
        heads_patcher.run_all_heads_experiment(ioi, patch_type="outputs")
    with refused("batch_size is 0"):
        ActivationPatcher(tiny, batch_size=0)
    with refused("threshold is -1"):
        heads_patcher.find_important_heads(head_results, threshold=-1)
    with refused("results is a HeadResults, expected what run_patching_experiment returns; for heads use print_head"):
        summarize_results(head_results)
    with refused("results is a LayerResults, expected what run_all_heads_experiment returns"):
        print_head_results(layer_results)
    for top, results in ((summarize_results, layer_results), (print_head_results, head_results)):
        with refused("is 0, expected at least 1"):
            top(results, top_k=0)
    with refused("L0 attn_out has no place in a layer × position map"):
        PositionResults(layer_results.sweep)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), "gpt2-small", None])
def test_what_is_no_model_is_refused(model):
    for kind in (ActivationPatcher, HeadPatcher):
        with refused("HookedTransformer|TransformerBridge", TypeError):
            kind(model)


def test_a_map_over_positions_needs_one_length_and_layers(patcher, ioi):
    with refused("a map over all positions needs one length"):
        patcher.run_position_experiment(ioi, "resid_pre")
    with refused("hook_embed lies in no layer"):
        patcher.run_position_experiment(ioi, "hook_embed", pair_indices=[0])


# --- what can only be found out by running ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (math.nan, "compute_metric returned nan for pair 1, expected a finite number"),
        (math.inf, "compute_metric returned inf for pair 1"),
        (None, "compute_metric returned NoneType for pair 1, expected one number"),
        ("high", "compute_metric returned str for pair 1"),
        (torch.zeros(2), "compute_metric returned Tensor for pair 1"),
    ],
)
def test_a_metric_that_is_no_number_is_refused_with_its_pair(patcher, tiny, returned, message):
    class Broken(MyTask):
        def get_clean_corrupt_pairs(self):
            return ANIMALS

        def compute_metric(self, logits, pair_idx):
            return returned if pair_idx == 1 else 1.0

    with pytest.raises(ValueError, match=message):
        patcher.run_patching_experiment(Broken(tiny), "attn_out")
    assert not any(hook.fwd_hooks for hook in tiny.hook_dict.values())


def test_pairs_that_barely_differ_are_named_left_out_and_counted(patcher, tiny, ioi, capsys):
    class WithOneIdle(Prompts):
        def get_target_tokens(self, pair_idx):
            return ioi.get_target_tokens(0)

    clean, corrupted = ioi.get_clean_corrupt_pairs()[0]
    dataset = WithOneIdle(tiny, [(clean, corrupted), (clean, clean)])
    with pytest.warns(UserWarning, match=r"1 of 2 pairs .* barely differ.*pair 1 \(clean .*Use a corruption that"):
        results = patcher.run_patching_experiment(dataset, "attn_out")
    usable = patcher.run_patching_experiment(dataset, "attn_out", pair_indices=[0])
    for hook_point, (first, second) in results.items():
        assert math.isnan(second.effect)
        assert results.effects[hook_point] == pytest.approx(first.effect)
        assert first.effect == pytest.approx(usable.effects[hook_point], abs=1e-6)  # batches of other sizes
    summarize_results(results)
    assert "1 of them left out of the effects" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="1 of 1 pairs"):
        nothing = patcher.run_patching_experiment(dataset, "attn_out", pair_indices=[1])
    assert all(math.isnan(effect) for effect in nothing.effects.values())
    summarize_results(nothing)
    printed = capsys.readouterr().out
    assert "nan" in printed.lower() and "logits, of one pair\n" in printed


@pytest.mark.parametrize("name", ["attn.hook_result", "hook_q_input", "hook_mlp_in"])
def test_hooks_that_are_switched_off_run_and_their_switch_is_put_back(patcher, tiny, ioi, name):
    switches = {"attn.hook_result": "use_attn_result", "hook_q_input": "use_split_qkv_input"}
    switch = switches.get(name, "use_hook_mlp_in")
    for was_on in (False, True):
        getattr(tiny, f"set_{switch}")(was_on)
        try:
            results = patcher.run_patching_experiment(ioi, f"blocks.1.{name}", pair_indices=[0])
            assert getattr(tiny.cfg, switch) is was_on
        finally:
            getattr(tiny, f"set_{switch}")(False)
    assert not math.isnan(results.effects[f"blocks.1.{name}"])


def test_all_results_of_heads_sum_to_their_layer(patcher, ioi, tiny):
    head_sum = [Patch(tuple(Site("blocks.1.attn.hook_z", head=head) for head in range(tiny.cfg.n_heads)))]
    together = patcher.sweep(ioi, head_sum).patched[0]
    whole = patcher.run_patching_experiment(ioi, "blocks.1.hook_attn_out").sweep.patched[0]
    np.testing.assert_allclose(together, whole, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*barely differ")
def test_every_corruption_can_be_run(patcher, tiny):
    for corruption in IOI_CORRUPTIONS:
        dataset = IOIDataset(tiny, 2, corruption=corruption)
        assert len(patcher.run_patching_experiment(dataset, "attn_out")) == tiny.cfg.n_layers


def test_module_docstrings_exist():
    for module in (activation_patching, head_patching, model_loading, visualize):
        assert module.__doc__ and module.__doc__.splitlines()[0].endswith((".", "?"))
