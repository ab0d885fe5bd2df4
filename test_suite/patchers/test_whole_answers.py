"""Metrics of whole answers from a user's rows to results, files, figures and the check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import visualize
from activation_patching import ActivationPatcher, GaussianNoise, InductionDataset, PromptPairs, Zero, check_dataset
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.results.saved import load_results
from actpatch.tasks.encoding import encode_pairs
from head_patching import HeadPatcher
from test_suite.helpers.closeness import EXACT, allowed
from test_suite.helpers.models import bundled, smollm2
from test_suite.helpers.sweeps import patcher_on
from test_suite.oracles.whole_answers import NAMES, by_hand, patched_by_hand

DIFFERENCE = "sequence_log_probability_difference"


def repeated_words(n_pairs: int = 6, *, first_token: bool = False) -> PromptPairs:
    """Words that come again: two words follow, which the corruption changes. One wrong answer has one token."""
    rows = []
    for i, (clean, corrupted) in enumerate(
        InductionDataset(bundled(), n_pairs, n_words=8, n_repeated=5).get_clean_corrupt_pairs()
    ):
        right, other = clean.split(" ")[5:7], corrupted.split(" ")[5:7]
        rows.append(
            {
                "clean": clean,
                "corrupted": corrupted,
                "correct": f" {right[0]} {right[1]}",
                "incorrect": f" {other[0]}" if i == 1 else f" {other[0]} {other[1]}",
            }
        )
    return PromptPairs.from_dataframe(bundled(), pd.DataFrame(rows), first_token=first_token)


@pytest.mark.quick(1)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_sweep_measures_whole_answers(direction: Any) -> None:
    dataset, patcher = repeated_words(), patcher_on(bundled())
    options = {"direction": direction, "metrics": NAMES, "pair_indices": [4, 1, 2]}
    pairs = encode_pairs(bundled(), dataset, [4, 1, 2])
    heads = HeadPatcher(bundled(), show_progress=False)
    sweeps = [
        patcher.run_patching_experiment(
            dataset, ["attn_out", ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")], **options
        ),
        patcher.run_position_experiment(dataset, "blocks.1.hook_resid_pre", **options),
        patcher.run_neurons_experiment(dataset, 1, [0, 3], position=-1, **options),
        heads.run_all_heads_experiment(dataset, layers=[1], **options),
    ]
    for results in sweeps:
        sweep = results.sweep
        assert sweep.metrics == tuple(name.replace("_", " ").replace("log p", "log-p") for name in NAMES)
        for i in (0, len(sweep.patches) - 1):
            expected = patched_by_hand(
                bundled(), pairs, pairs.sequences, _at_positions(sweep.patches[i], pairs), direction
            )
            found = [sweep.by_metric(name).patched[i] for name in NAMES]
            np.testing.assert_allclose(found, expected, atol=EXACT, rtol=0)
        clean = by_hand(bundled(), pairs.clean, pairs.sequences)
        np.testing.assert_allclose([sweep.by_metric(n).clean for n in NAMES], clean, atol=EXACT, rtol=0)
        assert sweep.clean_tokens == pairs.clean_tokens, "the prompts', without answers"


def _at_positions(patch: Patch, pairs: Any) -> Patch:
    def at(site: Site) -> Any:
        if not isinstance(site.position, int):
            return site.position
        return tuple(site.position % n for n in pairs.lengths.tolist())

    return Patch(tuple(Site(s.hook_point, s.head, at(s), s.neuron) for s in patch.sites))


def test_results_are_saved_shown_and_compared_as_others_are(tmp_path: Path) -> None:
    patcher = patcher_on(bundled())
    results = patcher.run_patching_experiment(
        repeated_words(),
        "attn_out",
        direction="both",
        metrics=[DIFFERENCE, "sequence_log_probability", "kl_divergence"],
    )
    one = results.denoising
    one.save(tmp_path / "results")
    again = load_results(tmp_path / "results")
    np.testing.assert_array_equal(again.sweep.patched, one.sweep.patched)
    assert again.sweep.metrics == one.sweep.metrics and "sequence log-probability difference" in repr(again.sweep)
    assert visualize.create_layer_heatmap(one).data
    noised = patcher.run_patching_experiment(
        repeated_words(), "attn_out", metrics=DIFFERENCE, noise=GaussianNoise(3, samples=2)
    )
    zeroed = patcher.run_patching_experiment(repeated_words(), "attn_out", metrics=DIFFERENCE, source=Zero())
    for found in (noised, zeroed):
        assert np.isfinite(found.sweep.patched).all() and found.sweep.metrics == one.sweep.metrics[:1]


def test_the_check_measures_what_a_sweep_of_whole_answers_would() -> None:
    dataset = repeated_words()
    check = check_dataset(bundled(), dataset)
    pairs = encode_pairs(bundled(), dataset)
    clean, corrupted = (by_hand(bundled(), run, pairs.sequences) for run in (pairs.clean, pairs.corrupted))
    assert (check.metric, check.unit) == ("sequence log-probability difference", "nats")
    np.testing.assert_allclose([pair.clean for pair in check.pairs], clean[2], atol=EXACT, rtol=0)
    np.testing.assert_allclose([pair.corrupted for pair in check.pairs], corrupted[2], atol=EXACT, rtol=0)
    assert [pair.prefers_right for pair in check.pairs] == (clean[2] > 0).tolist()
    assert [pair.says_right for pair in check.pairs] == (clean[3] > 0.5).tolist()
    assert check.clean_accuracy == clean[3].mean()
    (told,) = (finding for finding in check.findings if "several tokens" in finding.what)
    assert told.what == "6 of 6 pairs have answers of several tokens, so the metric is the " + check.metric
    assert told.remedy.startswith(f"Give the sweep metrics={DIFFERENCE!r} too, or the dataset first_token=True")
    assert "right answer likeliest" in str(check) and check.verdict != "not usable"


def test_the_check_of_right_answers_alone_measures_their_log_probability() -> None:
    rows = pd.DataFrame([vars(pair) for pair in repeated_words().pairs])[["clean", "corrupted", "correct"]]
    dataset = PromptPairs.from_dataframe(bundled(), rows, incorrect=None)
    check = check_dataset(bundled(), dataset)
    assert check.metric == "sequence log-probability" and check.clean_preference is None
    assert check.clean_accuracy is not None


def test_the_check_of_a_metric_of_one_token_names_the_pairs_whose_answers_are_longer() -> None:
    check = check_dataset(bundled(), repeated_words(), metric="logit_difference")
    assert check.verdict == "not usable" and check.findings[0].what.startswith(
        "A sweep would refuse 6 of 6 pairs: pair 0: the"
    )
    whole = check_dataset(bundled(), repeated_words(), metric="kl_divergence")
    assert whole.metric == "KL divergence" and whole.clean_accuracy is not None


def test_first_tokens_alone_are_told_in_the_check_and_in_results() -> None:
    dataset = repeated_words(first_token=True)
    check = check_dataset(bundled(), dataset)
    assert check.metric == "logit difference"
    (told,) = (finding.what for finding in check.findings if "first token" in finding.what)
    assert told.startswith("Of the answers of 6 of 6 pairs only the first token is measured: ' ")
    sweep = patcher_on(bundled()).run_patching_experiment(dataset, "attn_out").sweep
    assert any(note.startswith("of the answers of 6 of 6 pairs only the first token") for note in sweep.notes)
    plain = patcher_on(bundled()).run_patching_experiment(dataset, "attn_out", metrics="kl_divergence").sweep
    assert not any("first token" in note for note in plain.notes)
    whole = patcher_on(bundled()).run_patching_experiment(dataset, "attn_out", metrics=["log_probability", NAMES[0]])
    a, b = (whole.sweep.by_metric(name).patched for name in ("log_probability", NAMES[0]))
    np.testing.assert_allclose(a, b, atol=EXACT, rtol=0)


def test_a_sweep_by_default_reads_one_token_and_says_so() -> None:
    with pytest.raises(ValueError, match=r"pair 0: the answer .* is 2 tokens .*metrics='sequence_log_probability'"):
        ActivationPatcher(bundled()).run_patching_experiment(repeated_words(), "attn_out")


CITIES = {
    "Argentina": "Buenos Aires",
    "Malaysia": "Kuala Lumpur",
    "Utah": "Salt Lake City",
    "Ethiopia": "Addis Ababa",
    "Nevada": "Las Vegas",
    "Bolivia": "La Paz",
    "Louisiana": "New Orleans",
    "Cambodia": "Phnom Penh",
}


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_cities_of_several_tokens_on_a_language_model(direction: Any) -> None:
    """Answers of two to six tokens, right and wrong ones of different lengths."""
    model, places = smollm2(), list(CITIES)
    rows = [
        {
            "clean": f"The capital of {place} is",
            "corrupted": f"The capital of {other} is",
            "correct": f" {CITIES[place]}",
            "incorrect": f" {CITIES[other]}",
        }
        for place, other in zip(places, [*places[1:], places[0]])
    ]
    dataset = PromptPairs.from_dataframe(model, pd.DataFrame(rows))
    assert set(encode_pairs(model, dataset).sequences.longest.tolist()) >= {3, 4, 6}
    check = check_dataset(model, dataset)
    assert check.clean_preference == 1 and check.corrupted_preference == 0 and check.clean_accuracy > 0.5
    some = [0, 1, 4]
    results = HeadPatcher(model, show_progress=False).run_all_heads_experiment(
        dataset, layers=[13, 29], metrics=NAMES, direction=direction, pair_indices=some
    )
    pairs, sweep = encode_pairs(model, dataset, some), results.sweep
    off = 6 * allowed(model, [*pairs.clean, *pairs.corrupted])  # a sum over at most six tokens
    for i in (0, 8, 17):
        expected = patched_by_hand(model, pairs, pairs.sequences, sweep.patches[i], direction)
        for name, values in zip(NAMES, expected):
            np.testing.assert_allclose(sweep.by_metric(name).patched[i], values, atol=off, rtol=0)
    stream = patcher_on(model).run_position_experiment(
        dataset, block_hook(2, "resid_pre"), metrics=DIFFERENCE, pair_indices=some, direction=direction
    )
    country = pairs.clean[0].tolist().index(int(model.to_single_token(" Argentina")))
    assert int(np.argmax(stream.sweep.effects)) == country, "early on, only the country's name matters"
