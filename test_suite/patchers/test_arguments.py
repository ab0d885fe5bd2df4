"""Does each mistake get an answer that says what to do, and does what looks alike do the same?"""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from activation_patching import (
    ActivationPatcher,
    AgreementDataset,
    BothDirections,
    CapitalsDataset,
    GaussianNoise,
    GenderedPronounDataset,
    HeadPatchingResult,
    InductionDataset,
    IOIDataset,
    Mean,
    PatchingDataset,
    PromptPair,
    PromptPairs,
    Resample,
    load_results,
    summarize_results,
)
from actpatch import SweepResults
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.interventions.places import check_window
from actpatch.metrics.answers import Rank
from actpatch.metrics.own import DatasetMetric
from actpatch.results.metric_values import MetricValues
from actpatch.results.sweep import Sweep
from actpatch.tasks.encoding import encode_pairs
from head_patching import HeadPatcher, print_head_results
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import bundled

POINT = block_hook(0, "mlp_out")


@pytest.fixture(scope="module")
def model() -> Any:
    return bundled()


@pytest.fixture(scope="module")
def names(model: Any) -> IOIDataset:
    return IOIDataset(model, 4)


@pytest.fixture(scope="module")
def layers(model: Any) -> ActivationPatcher:
    return ActivationPatcher(model, show_progress=False)


@pytest.fixture(scope="module")
def heads(model: Any) -> HeadPatcher:
    return HeadPatcher(model, show_progress=False)


@pytest.fixture(scope="module")
def in_both(heads: HeadPatcher, names: IOIDataset) -> BothDirections:
    return heads.run_all_heads_experiment(names, layers=[0], direction="both", metrics=["logit_difference", "rank"])


@pytest.fixture
def no_run(layers: ActivationPatcher, heads: HeadPatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs the model, or a part of it, fails."""
    for runner in (layers.engine.runner, heads.patcher.engine.runner):
        monkeypatch.setattr(runner, "record", None)
        monkeypatch.setattr(runner, "run", None)


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": IOIDataset}, r"dataset is the class IOIDataset, expected a PatchingDataset"),
        ({"dataset": [("a", "b")]}, r"dataset is a list, expected a PatchingDataset"),
        ({"dataset": IOIDataset, "noise": GaussianNoise(1)}, r"dataset is the class IOIDataset"),
        ({"hook_points": None}, r"hook_points is None, expected names"),
        ({"hook_points": [3]}, r"hook_points is 3, expected names"),
        ({"hook_points": [(3,)]}, r"hook_points holds 3, expected the name of a hook point"),
        ({"pair_indices": 2}, r"pair_indices is 2, expected a list of integers, or None for all"),
        ({"pair_indices": "01"}, r"pair_indices is '01', expected a list of integers"),
        ({"pair_indices": torch.tensor(1)}, r"pair_indices is tensor\(1\), expected a list of integers"),
        ({"pair_indices": []}, r"pair_indices is empty: give at least one pair index"),
        ({"pair_indices": np.array([True] * 4)}, r"pair index .*True.* is not an integer"),
        ({"noise": GaussianNoise("SUBJECT")}, r"4 of 4 pairs have no position named 'SUBJECT'"),
        ({"noise": GaussianNoise(99)}, r"99 is out of range"),
        ({"hook_points": "mpl_out"}, r"The nearest names are mlp_out"),
        ({"direction": ""}, r"direction '' is unknown"),
        ({"direction": ["noising"]}, r"direction \['noising'\] is unknown"),
        ({"position": [1, None]}, r"position None is not an integer, and no name of one"),
        ({"window": 3.0}, r"window is 3\.0, expected an odd number"),
        (
            {"metrics": DatasetMetric(lambda logits, pair: 0.0, (0, 1))},
            r"is for the pairs \(0, 1\), the",
        ),
        (
            {"metrics": [lambda logits: 0.0]},
            r"the metric 'metric' takes \(logits\), expected a function of \(logits, pair",
        ),
        ({"metrics": Rank}, r"the class Rank is no metric"),
    ],
)
def test_mistakes_are_told_before_any_run(
    layers: ActivationPatcher, names: IOIDataset, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layers.run_patching_experiment(**{"dataset": names, "hook_points": "mlp_out", **options})


@pytest.mark.usefixtures("no_run")
def test_mistakes_of_other_experiments_are_told_before_any_run(
    layers: ActivationPatcher, heads: HeadPatcher, names: IOIDataset
) -> None:
    with pytest.raises(ValueError, match=r"layers is 0, expected a list of integers, or None for all"):
        heads.run_all_heads_experiment(names, layers=0)
    with pytest.raises(ValueError, match=r"layers is empty: give at least one layer, or None for all"):
        heads.run_all_heads_experiment(names, layers=[])
    with pytest.raises(ValueError, match=r"patch_type \['q', 'k'\] is unknown: expected one of output"):
        heads.run_all_heads_experiment(names, ["q", "k"])
    with pytest.raises(ValueError, match=r"neurons is 5, expected a list of integers"):
        layers.run_neurons_experiment(names, 0, 5)
    with pytest.raises(ValueError, match=r"holds \('mlp_out', 'attn_out'\), expected the name of a hook point"):
        layers.run_position_experiment(names, [("mlp_out", "attn_out")])
    for patches, message in (
        ([Site(POINT)], r"patches holds Site\(.*expected Patch"),
        (Patch((Site(POINT),)), r"patches is Patch\(.*expected a list of Patch"),
        ("mlp_out", r"patches is 'mlp_out', expected a list of Patch"),
        ([Patch((Site("mlp_out"),))], r"the site 'mlp_out' stands for every layer: name one, for instance 'blocks\.0"),
        ([Patch((Site(block_hook(0, "z"), head="1"),))], r"head '1' is out of range: expected 0 to"),
        ([Patch((Site(block_hook(0, "mlp_post"), neuron=1.5),))], r"neuron 1\.5 is out of range: expected 0 to"),
    ):
        with pytest.raises(ValueError, match=message):
            layers.sweep(names, patches)
    with pytest.raises(ValueError, match="direction 'both' gives two sweeps"):
        layers.sweep(names, [Patch((Site(POINT),))], direction="both")


@pytest.mark.parametrize("sites", [(), [Site(POINT)], Site(POINT), (POINT,)], ids=["none", "list", "site", "name"])
def test_a_patch_is_a_tuple_of_sites(sites: Any) -> None:
    with pytest.raises(ValueError, match="expected a tuple of at least one Site"):
        Patch(sites)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": None}, r"position None is not an integer, and no name of one"),
        ({"positions": [1.5]}, r"position 1\.5 is not an integer"),
        ({"multiple": "3"}, r"noise multiple is '3', expected a number"),
        ({"multiple": None}, r"noise multiple is None"),
        ({"samples": 2.0}, r"noise samples is 2\.0, expected at least 1, an integer"),
        ({"seed": None}, r"seed is None, expected an integer"),
    ],
)
def test_senseless_noise_cannot_be_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianNoise(**{"positions": "S1", **options})


def test_a_head_or_neuron_of_another_library_is_pythons_number() -> None:
    plain = Site(block_hook(0, "z"), head=1, position=(2, 3))
    for number in (np.int64, torch.tensor):
        site = Site(block_hook(0, "z"), head=number(1), position=(number(2), 3))
        assert site == plain and type(site.head) is int and json.dumps(site.position)
        assert type(Site(block_hook(0, "mlp_post"), neuron=number(4)).neuron) is int


def test_batch_sizes_are_whole_numbers(model: Any) -> None:
    for given in (0, 2.5, "8", True):
        with pytest.raises(ValueError, match=rf"batch_size is {given!r}, expected at least 1"):
            ActivationPatcher(model, batch_size=given)


def test_numbers_and_lists_of_other_libraries_are_what_pythons_are(
    layers: ActivationPatcher, names: IOIDataset, tmp_path: Path
) -> None:
    options = {"pair_indices": [1, 2], "position": 3, "window": 3, "noise": GaussianNoise([2, 3], samples=2, seed=1)}
    expected = layers.run_patching_experiment(names, ["mlp_out"], **options)
    same = {
        "pair_indices": [np.array([1, 2]), pd.Series([1, 2], index=[5, 6]), torch.tensor([1, 2]), iter([1, 2])],
        "position": [np.int64(3), np.array(3), torch.tensor(3), pd.Series([3])],
        "window": [np.int64(3)],
        "noise": [GaussianNoise((at for at in (2, 3)), samples=np.int64(2), seed=np.int64(1))],
    }
    for name, others in same.items():
        for other in others:
            found = layers.run_patching_experiment(names, iter(["mlp_out"]), **{**options, name: other})
            np.testing.assert_array_equal(found.sweep.patched, expected.sweep.patched)
            load_results(found.save(tmp_path / "results.json"))
    twice = layers.run_patching_experiment(names, "mlp_out", **{**options, "position": [3, 3]})
    assert [patch.label for patch in twice.sweep.patches] == [patch.label for patch in expected.sweep.patches]
    assert Resample(np.int64(2)) == Resample(2) and GaussianNoise("S1") == GaussianNoise(["S1"])
    check_window(np.int64(5))


# --- what would be silently wrong ----------------------------------------------------------------------------------


def test_a_mean_over_one_prompt_is_said_to_be_none(model: Any) -> None:
    """A dataset that has one pair of each template: its mean is the pair's own corrupted run."""
    few, more = IOIDataset(model, 4), IOIDataset(model, 24, seed=1)
    pairs = encode_pairs(model, few)
    with pytest.warns(UserWarning, match=r"pair 0 \(template .*\) and 3 more have a single reference prompt, the"):
        Mean().references(pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Mean(more).references(pairs)


def test_a_metric_put_into_the_dataset_is_used(layers: ActivationPatcher, model: Any) -> None:
    dataset = IOIDataset(model, 2)
    dataset.compute_metric = lambda logits, pair: float(logits[0, -1, 5 + pair])  # type: ignore[method-assign]
    put_in = layers.run_patching_experiment(dataset, "mlp_out", pair_indices=[1])
    given = layers.run_patching_experiment(
        IOIDataset(model, 2),
        "mlp_out",
        pair_indices=[1],
        metrics=DatasetMetric(dataset.compute_metric, name="loss", unit="logits", more_is_better=False),
    )
    assert put_in.sweep.metric == "compute_metric"
    assert (given.sweep.metric, given.sweep.unit, given.sweep.more_is_better) == ("loss", "logits", False)
    np.testing.assert_array_equal(given.sweep.patched, put_in.sweep.patched)
    with torch.no_grad():
        logits = model(model.to_tokens(dataset.get_clean_corrupt_pairs()[1][0]))
    assert given.sweep.clean[0] == pytest.approx(float(logits[0, -1, 6]), rel=0, abs=EXACT)


def test_gaps_that_cancel_divide_nothing() -> None:
    """Accuracies that turn around both ways: no pair's gap is 0, their mean is."""
    values = MetricValues("accuracy", "", True, np.array([[1.0, 1.0]]), np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    tokens = (("a",), ("b",))
    sizes = {"n_layers": 1, "n_heads": 1, "n_key_value_heads": 1}
    settings = {"model": "", "task": "", "pair_indices": (0, 1), "clean_tokens": tokens, "corrupted_tokens": tokens}
    sweep = Sweep((Patch((Site(POINT),)),), (values,), "denoising", **settings, **sizes)
    assert sweep.usable.all() and sweep.pair_effects.tolist() == [[1.0, 0.0]]
    with np.errstate(all="raise"):
        assert np.isnan(sweep.effects).all()


# --- tasks and pairs of one's own ----------------------------------------------------------------------------------


FIVE = ["Mary", "John", "Tom", "Anna", "Paul"]
PAIR = PromptPair("The cat sat on the mat. The", "The dog sat on the mat. The", (" cat",), (" dog",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: IOIDataset(model, 2, templates=3), r"3 is no list, expected a list of sentences with"),
        (
            lambda model: IOIDataset(model, 2, templates=[]),
            r"templates is \[\], expected a list of sentences",
        ),
        (
            lambda model: IOIDataset(model, 2, templates=["{A} and {B {S2}"]),
            r"the template .* cannot be read",
        ),
        (
            lambda model: IOIDataset(model, 2, templates=["{A} and {B} {} {S2}"]),
            r"has the slots \['', 'A', 'B'",
        ),
        (lambda model: IOIDataset(model, 2, names=5), r"5 is no list, expected a list: give others with names="),
        (lambda model: AgreementDataset(model, 2, subjects=5), r"5 is no list, expected a list: give subjects="),
        (lambda model: InductionDataset(model, 2, n_words="5"), r"n_repeated is 12 of '5' words"),
        (lambda model: CapitalsDataset(model, 2, templates=[]), r"templates is \[\], expected a list of sentences"),
        (
            lambda model: GenderedPronounDataset(model, 2, male_names=["Mary", "John"], female_names=["Mary"]),
            r"\['Mary'\] are male and female names",
        ),
        (lambda model: PromptPairs(model, PAIR), r"pairs is a PromptPair, expected a list of PromptPair"),
        (lambda model: PromptPairs(model, iter([])), r"has no pairs: give at least one row"),
        (lambda model: PromptPair(None, "The cat", (" cat",)), r"the clean prompt is None, expected a text"),
        (
            lambda model: PromptPairs.from_dataframe(model, pd.DataFrame([{**vars(PAIR), "correct": " cat| bear"}])),
            r"Several answers are a list here: \[' cat', ' bear'\]",
        ),
    ],
)
def test_tasks_and_pairs_that_cannot_be_made_say_why(model: Any, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(model)


def test_a_model_is_asked_for_where_none_was_given() -> None:
    for given, told in (("gpt2", "a str"), (None, "a NoneType")):
        with pytest.raises(TypeError, match=f"model is {told}, expected a TransformerLens HookedTransformer"):
            IOIDataset(given, 2)


def test_pairs_and_words_may_come_from_anything_that_lists_them(model: Any) -> None:
    assert len(PromptPairs(model, (pair for pair in [PAIR, PAIR]))) == 2
    template = "Then {A} and {B} went to the {PLACE}, {S2} gave a {OBJECT} to"
    expected = IOIDataset(model, 6, names=sorted(FIVE), templates=[template]).get_clean_corrupt_pairs()
    for names in (iter(sorted(FIVE)), pd.Series(sorted(FIVE)), set(FIVE), frozenset(FIVE)):
        found = IOIDataset(model, 6, names=names, templates=iter([template]))
        assert found.get_clean_corrupt_pairs() == expected


# --- both directions, and other results ----------------------------------------------------------------------------


def test_one_of_both_directions_has_to_be_chosen(in_both: BothDirections, heads: HeadPatcher) -> None:
    for ask in (print_head_results, summarize_results, heads.find_important_heads):
        with pytest.raises(ValueError, match=r"both directions: give results\.denoising or results\.noising"):
            ask(in_both)
    with pytest.raises(ValueError, match=r"threshold is '0\.1', expected a number above 0"):
        in_both.reading("0.1")


def test_both_directions_have_every_metric_and_a_table(in_both: BothDirections) -> None:
    rank = in_both.by_metric("rank")
    assert rank.denoising == in_both.denoising.by_metric("rank") and rank.noising.sweep.metric == "rank"
    assert rank.reading()["noising"].tolist() == rank.noising.sweep.effects.tolist()
    table = in_both.to_dataframe()
    for direction, results in (("denoising", in_both.denoising), ("noising", in_both.noising)):
        part = table[table["direction"] == direction].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, results.to_dataframe())


def test_both_directions_are_read_back_as_they_were_saved(in_both: BothDirections, tmp_path: Path) -> None:
    loaded = load_results(in_both.save(tmp_path / "both.json"))
    assert isinstance(loaded, BothDirections) and loaded == in_both and loaded != BothDirections(*[in_both.noising] * 2)
    assert loaded.reading().equals(in_both.reading())
    selected = load_results(in_both.by_metric("rank").save(tmp_path / "both.json"))
    assert selected == in_both.by_metric("rank") != in_both
    table = in_both.to_dataframe()
    pd.testing.assert_frame_equal(pd.read_parquet(in_both.to_parquet(tmp_path / "both.parquet")), table)
    read = pd.read_csv(in_both.to_csv(tmp_path / "both.csv"))
    assert read["effect"].tolist() == pytest.approx(table["effect"].tolist(), nan_ok=True, abs=0)
    assert read["direction"].tolist() == table["direction"].tolist()


def test_important_heads_are_looked_for_among_heads_alone(
    in_both: BothDirections, heads: HeadPatcher, layers: ActivationPatcher, names: IOIDataset
) -> None:
    results = in_both.denoising
    for threshold in (float("nan"), "0.1", -1):
        with pytest.raises(ValueError, match=f"threshold is {threshold!r}, expected at least 0"):
            heads.find_important_heads(results, threshold)
    with pytest.raises(ValueError, match="LayerResults, expected what run_all_heads_experiment returns"):
        heads.find_important_heads(layers.run_patching_experiment(names, POINT, pair_indices=[0]))
    with pytest.raises(ValueError, match="results holds a float, expected HeadPatchingResult"):
        heads.find_important_heads([0.5])
    assert all(isinstance(found, HeadPatchingResult) for found in heads.find_important_heads(results[:2], 0))
    for k in (0, 2.5, "3"):
        with pytest.raises(ValueError, match=f"k is {k!r}, expected at least 1"):
            results.top(k)
    with pytest.raises(ValueError, match=r"level is '0\.9', expected a number between 0 and 1"):
        results.statistics(level="0.9")


def test_a_damaged_file_is_told_as_such(in_both: BothDirections, tmp_path: Path) -> None:
    path = in_both.noising.save(tmp_path / "results.json")
    stored = json.loads(path.read_text())
    stored["sweeps"][0]["patches"][0]["sites"] = [["not", "a", "site"]]
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="is damaged"):
        load_results(path)


def test_significant_heads_of_a_part_are_those_of_the_whole(model: Any, heads: HeadPatcher) -> None:
    results = heads.run_all_heads_experiment(IOIDataset(model, 12))
    chosen = heads.find_important_heads(results, threshold=None, alpha=0.05)
    assert 0 < len(chosen) < len(results)
    for part in (results[3:9], results.top(5), sorted(results, key=lambda head: head.effect)[4:], results[3:9][::-1]):
        found = heads.find_important_heads(part, threshold=None, alpha=0.05)
        assert found == [head for head in chosen if head in part]
    made = [dataclasses.replace(head) for head in results]
    with pytest.raises(ValueError, match=r"results are entries of no one experiment.*alpha needs every pair and head"):
        heads.find_important_heads(made, alpha=0.05)
    assert heads.find_important_heads(made) and heads.find_important_heads([], alpha=0.05) == []


def test_a_mean_over_a_dataset_without_pairs_is_not_that_over_the_experiment_s_own(
    layers: ActivationPatcher, names: IOIDataset
) -> None:
    class Empty(PatchingDataset):
        name = "nothing"

        def get_clean_corrupt_pairs(self) -> list:
            return []

        def get_target_tokens(self, pair_idx: int) -> tuple:
            return None, None

    with pytest.raises(ValueError, match="the dataset 'nothing' has no pairs"):
        layers.run_patching_experiment(names, "attn_out", source=Mean(Empty()))


def test_a_shape_of_one_s_own_does_not_take_a_name_of_the_library_s() -> None:
    with pytest.raises(TypeError, match="HeadResults is a shape of the library's own"):
        type("HeadResults", (SweepResults,), {"__module__": "elsewhere"})
