"""Names that stand for several tokens, and prompts of other lengths, in everything that takes a position."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from activation_patching import ActivationPatcher, GaussianNoise, Mean, OtherRun, Resample, Zero, load_results
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.tasks.encoding import encode_pairs
from head_patching import HeadPatcher
from test_suite.helpers.closeness import EXACT, allowed
from test_suite.helpers.models import HAS_HOOKED, last_position_metric, model_parameters, small_model
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import patcher_on, raw
from test_suite.helpers.thinned import thinned
from test_suite.oracles.aligned import partners_of, patched_run
from test_suite.oracles.plain import measured
from test_suite.tasks.test_alignment import Ids

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
DIRECTIONS: tuple[Any, ...] = ("denoising", "noising")
SEVERAL = model_parameters("hooked:learned", "hooked:grouped", "bridge:llama")

SAME = Ids(
    [([1, 5, 20, 21, 22, 8, 9], [1, 5, 30, 31, 32, 8, 9]), ([1, 23, 6, 7, 4], [1, 33, 6, 7, 4])],
    None,
    [{"SUBJECT": (2, 3, 4), "END": -1}, {"SUBJECT": 1, "END": -1}],
)
OTHER = Ids(
    [
        ([1, 5, 6, 20, 7, 8, 9, 4], [1, 5, 6, 30, 31, 32, 7, 8, 9, 4]),
        ([1, 3, 21, 22, 11, 12], [1, 3, 33, 11, 12]),
        ([1, 5, 6, 20, 7, 8, 9, 4], [1, 5, 6, 34, 7, 8, 9, 4]),
    ],
    "names",
    [{"SUBJECT": 3, "END": -1}, {"SUBJECT": (2, 3), "END": -1}, {"SUBJECT": 3, "VERB": 4, "END": -1}],
    [{"SUBJECT": (3, 4, 5), "END": -1}, {"SUBJECT": 2, "END": -1}, {"SUBJECT": 3, "END": -1}],
)
"""Subjects of one to three tokens."""


def by_hand(model: Any, dataset: Any, patches: Any, direction: Any) -> np.ndarray:
    """The logit difference of each patch on each pair, by a plain loop; positions are those of the run patched."""
    pairs = encode_pairs(model, dataset)
    base, other = (pairs.corrupted, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupted)
    matches = pairs.matches or tuple(tuple((at, at) for at in range(len(prompt))) for prompt in base)
    metric = last_position_metric(len(pairs))
    return np.array(
        [
            measured(
                metric,
                [
                    patched_run(model, base[i], other[i], patch, partners_of(matches[i], direction), i)
                    for i in range(len(pairs))
                ],
            )
            for patch in patches
        ]
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "dataset", "direction"),
    thinned(
        SEVERAL, [pytest.param(SAME, id="one length"), pytest.param(OTHER, id="other lengths")], DIRECTIONS, together=2
    ),
)
def test_maps_by_name_agree_with_a_plain_loop(name: str, dataset: Any, direction: Any) -> None:
    model = small_model(name)
    columns = ["SUBJECT", "END", "SUBJECT[-1]", (1, "END")]
    found = patcher_on(model).run_position_experiment(
        dataset, ["resid_pre", "attn_out", "mlp_post"], positions=columns, direction=direction
    )
    assert found.names == ["SUBJECT", "END", "SUBJECT[-1]", "1 + END"]
    bound = allowed(model, [torch.tensor(prompt) for pair in dataset.pairs for prompt in pair])
    np.testing.assert_allclose(raw(found), by_hand(model, dataset, found.sweep.patches, direction), atol=bound, rtol=0)
    assert abs(raw(found) - found.sweep.base).max() > 1e-3
    named = dataset.positions if direction == "noising" or dataset is SAME else dataset.others
    spans = found.sweep.patches[0].sites[0].position
    expected = [at[0] if isinstance(at, tuple) and len(at) == 1 else at for at in (has["SUBJECT"] for has in named)]
    assert list(spans) == expected


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "direction"), thinned(SEVERAL, DIRECTIONS))
def test_layers_heads_neurons_and_windows_agree_with_a_plain_loop(name: str, direction: Any) -> None:
    model, options = small_model(name), {"direction": direction, "position": ["SUBJECT", -1]}
    patcher, heads = patcher_on(model), HeadPatcher(model, show_progress=False)
    bound = allowed(model, [torch.tensor(prompt) for pair in OTHER.pairs for prompt in pair])
    for found in (
        patcher.run_patching_experiment(OTHER, ["attn_out", "mlp_out"], window=3, **options),
        patcher.run_patching_experiment(OTHER, [("z", "mlp_out"), "k", "v"], direction=direction),
        patcher.run_neurons_experiment(OTHER, 1, range(0, 40, 8), **options),
        heads.run_all_heads_experiment(OTHER, layers=[1], **options),
        heads.run_all_heads_experiment(OTHER, "k", layers=[0], **options),
    ):
        np.testing.assert_allclose(
            raw(found), by_hand(model, OTHER, found.sweep.patches, direction), atol=bound, rtol=0
        )
        assert abs(raw(found) - found.sweep.base).max() > 1e-3


def test_both_directions_count_positions_in_their_own_run() -> None:
    patcher = patcher_on(small_model(PLAIN))
    both = patcher.run_position_experiment(OTHER, "resid_pre", positions=["SUBJECT", "END"], direction="both")
    for direction, found in (("denoising", both.denoising), ("noising", both.noising)):
        alone = patcher.run_position_experiment(OTHER, "resid_pre", positions=["SUBJECT", "END"], direction=direction)
        assert found.sweep.patches == alone.sweep.patches and found.sweep.notes == alone.sweep.notes
        np.testing.assert_allclose(raw(found), raw(alone), atol=EXACT, rtol=0)
    assert both.denoising.sweep.patches[0].sites[0].position == ((3, 4, 5), 2, 3)
    assert both.noising.sweep.patches[0].sites[0].position == (3, (2, 3), 3)
    assert both.reading()["position"].tolist() == ["SUBJECT", "END"] * 3


def test_noise_on_a_span_is_noise_on_its_tokens() -> None:
    patcher = patcher_on(small_model(PLAIN))
    alone = patcher.run_patching_experiment(
        SAME, "resid_pre", pair_indices=[0], noise=GaussianNoise([2, 3, 4], samples=2), position=(2, 3, 4)
    )
    for where, at in (("SUBJECT", "SUBJECT"), ((2, "SUBJECT"), ["SUBJECT"]), ([(2, 3, 4)], (4, 3, 2))):
        found = patcher.run_patching_experiment(
            SAME, "resid_pre", pair_indices=[0], noise=GaussianNoise(where, samples=2), position=at
        )
        np.testing.assert_array_equal(raw(found), raw(alone))
    np.testing.assert_allclose(raw(alone)[0], alone.sweep.clean, atol=EXACT, rtol=0)
    noised = patcher.run_position_experiment(OTHER, positions=["SUBJECT"], noise=GaussianNoise("SUBJECT", samples=2))
    assert noised.sweep.matches == () and noised.sweep.patches[0].sites[0].position == (3, (2, 3), 3)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_ablations_write_at_every_position_of_the_prompt_that_is_patched(direction: Any) -> None:
    """What they write is of no other run, so nothing has to be matched: it is theirs for that length."""
    model = small_model(PLAIN)
    patcher = patcher_on(model)
    prompts = [pair[direction == "denoising"] for pair in OTHER.pairs]
    same = Ids([(prompt, prompt) for prompt in prompts], None)
    for name in ("attn_out", "pattern"):
        found = patcher.run_patching_experiment(OTHER, name, source=Zero(), direction=direction)
        expected = patcher.run_patching_experiment(same, name, source=Zero(), direction=direction)
        np.testing.assert_allclose(raw(found), raw(expected), atol=EXACT, rtol=0)
        assert found.sweep.notes == expected.sweep.notes
    with refused("pair 0 .10 tokens. and 1 more have no reference prompt of the same template and length"):
        patcher.run_patching_experiment(OTHER, "attn_out", source=Mean(run="clean"), direction="denoising")
    with refused("pair 1 .6 tokens. has no other pair of the same template and length"):
        patcher.run_patching_experiment(OTHER, "attn_out", source=Resample(), pair_indices=[0, 1])


def test_a_mean_is_over_prompts_as_long_as_the_one_that_is_patched() -> None:
    patcher = patcher_on(small_model(PLAIN))
    means = patcher.run_patching_experiment(
        OTHER, "mlp_out", source=Mean(run="clean"), pair_indices=[0, 2], direction="noising"
    )
    clean = [OTHER.pairs[i][0] for i in range(3)]
    same = patcher.run_patching_experiment(
        Ids(list(zip(clean, clean))), "mlp_out", source=Mean(run="clean"), pair_indices=[0, 2], direction="noising"
    )
    np.testing.assert_allclose(raw(means), raw(same), atol=EXACT, rtol=0)


@pytest.mark.filterwarnings("ignore:.*changes nothing")
def test_what_is_left_alone_is_told() -> None:
    patcher = patcher_on(small_model(PLAIN))
    ends = Ids(OTHER.pairs[:1], "ends")
    results = patcher.run_patching_experiment(ends, "resid_pre")
    note = "3 of 10 positions of the corrupted prompt have no partner in the other run and are left alone"
    assert note in results.sweep.notes
    with pytest.warns(UserWarning, match="L0 resid_pre @3 and 8 more patches change nothing: the position has a"):
        whole = patcher.run_position_experiment(ends, "resid_pre")
    assert whole.matrix().shape == (3, 10) and np.isnan(whole.matrix()[:, 3:6]).all()
    assert whole.matrix()[0, 6:].any()
    frame = whole.to_dataframe()
    assert frame["token"].isna().tolist() == [at in (3, 4, 5) for at in frame["position"]]
    assert frame["corrupted_token"][:10].tolist() == [f"w{token}" for token in OTHER.pairs[0][1]]


def test_results_carry_spans_and_what_is_matched(tmp_path: Any) -> None:
    patcher = patcher_on(small_model(PLAIN))
    results = patcher.run_position_experiment(OTHER, "resid_post", positions=["SUBJECT", "END"])
    path = results.save(tmp_path / "map.json")
    again = load_results(path)
    assert (
        again == results
        and again.sweep.matches == results.sweep.matches == encode_pairs(small_model(PLAIN), OTHER).matches
    )
    assert again.sweep.patches == results.sweep.patches and hash(again.sweep.patches) == hash(results.sweep.patches)
    frame = results.to_dataframe()
    subject = frame[(frame["position_name"] == "SUBJECT") & (frame["layer"] == 0)]
    assert subject["position"].isna().tolist() == [True, False, False]
    assert subject["corrupted_token"].tolist() == ["w30w31w32", "w33", "w34"]
    assert subject["token"].tolist() == ["w20", "w22", "w20"]
    assert {patch.label for patch, _ in results.top(6)} == {
        f"L{i} resid_post @{n}" for i in range(3) for n in ("SUBJECT", "END")
    }
    layers = patcher.run_patching_experiment(OTHER, "resid_post", position=["SUBJECT", -1])
    assert [one.position for one in layers["blocks.0.hook_resid_post"]] == [(3, 4, 5, -1), (2, -1), (3, -1)]
    part = results.sweep.of_pairs([2, 0])
    assert part.matches == (results.sweep.matches[2], results.sweep.matches[0])
    assert part.patches[0].sites[0].position == (3, (3, 4, 5))


@pytest.mark.parametrize(
    ("position", "message"),
    [
        ([], "position is empty"),
        ([()], "a position is empty"),
        ([(2, [3])], r"position \[3\] is not an integer"),
        ([(2, 40)], "of 10 tokens. 40 is out of range: expected -10 to 9"),
        (
            ["SUBJECTS"],
            "3 of 3 pairs have no position named 'SUBJECTS' in the corrupted prompt: pair 0 has SUBJECT, END",
        ),
        ("VERB", "3 of 3 pairs have no position named 'VERB' in the corrupted prompt.*the dataset's get_corrupted_pos"),
        ("SUBJECT[1]", r"pair 1: 'SUBJECT' has 1 token, but no \[1\]"),
    ],
)
def test_positions_that_cannot_be_are_refused(position: Any, message: str) -> None:
    with refused(message):
        patcher_on(small_model(PLAIN)).run_patching_experiment(OTHER, "resid_pre", position=position)


def test_patterns_of_other_lengths_are_refused() -> None:
    model = small_model(PLAIN)
    heads = HeadPatcher(model, show_progress=False)
    with refused(r"blocks.0.attn.hook_pattern has a column for every token.*pair 0: 8 and 10 tokens"):
        heads.run_all_heads_experiment(OTHER, "pattern")
    with refused("pair 0: the prompts have 8 and 10 tokens, so their patterns cannot be laid side by side"):
        heads.attention_patterns(OTHER, [(0, 0)])
    heads.run_all_heads_experiment(OTHER, "pattern", noise=GaussianNoise("SUBJECT", samples=1))


@pytest.mark.parametrize("position", [((3,), (2, 3), 4), ((3, 9), 2, 2), ((), 2, 2), ((3, 3), 2, 2), ((3, 4), 2)])
def test_spans_of_a_site_are_checked(position: Any) -> None:
    """Of the first, which is sound, two tokens have a partner."""
    patch = Patch((Site(block_hook(1, "resid_pre"), position=position),))
    patcher: ActivationPatcher = patcher_on(small_model(PLAIN))
    if position[0] == (3,):
        patcher.sweep(OTHER, [patch], direction="noising", source=OtherRun())
        return
    with refused("is out of range|is empty|names a position twice|2 positions were given for 3 pairs"):
        patcher.sweep(OTHER, [patch], direction="noising")
