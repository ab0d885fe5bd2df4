"""Prompts of other lengths in all that takes pairs: chats, what the model says, whole answers, heads, cards, groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from activation_patching import PatchingDataset
from actpatch import HeadPatcher, load_results
from actpatch.core.sites import Patch, Site
from actpatch.metrics.base import AnswerSequences
from actpatch.tasks.encoding import encode_pairs
from test_suite.helpers.chats import chat, chat_model
from test_suite.helpers.closeness import EXACT, SINGLE
from test_suite.helpers.models import HAS_HOOKED, N_CONTEXT, model_parameters, small_model
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import patcher_on, raw
from test_suite.oracles.aligned import hooks_of, partners_of, patched_run
from test_suite.oracles.one_prompt import run
from test_suite.oracles.whole_answers import NAMES, by_hand
from test_suite.tasks.test_alignment import LONG, SHORT, Ids

MODELS = model_parameters("hooked:learned", "bridge:gpt2")
PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
ANSWERS = AnswerSequences((((4, 9),), ((6,), (3, 5, 2))), (((4, 8),), ((7, 7),)))

pytestmark = pytest.mark.filterwarnings("ignore:.*changes? nothing", "ignore:The ", "ignore:Only ")


class Answered(Ids):
    """Pairs of two lengths with answers of several tokens, in a group each."""

    def get_target_tokens(self, pair_idx: int) -> Any:
        return [list(map(list, side[pair_idx])) for side in (ANSWERS.correct, ANSWERS.incorrect)]

    def get_group(self, pair_idx: int) -> str:
        return f"group {pair_idx}"


DATASET = Answered(
    [(SHORT, LONG), (LONG, SHORT)],
    "names",
    [{"SUBJECT": 3, "ALL": (1, 2, 3), "END": -1}, {"SUBJECT": (3, 4), "ALL": (1, 2, 3, 4), "END": -1}],
    [{"SUBJECT": (3, 4), "ALL": (1, 2, 3, 4), "END": -1}, {"SUBJECT": 3, "ALL": (1, 2, 3), "END": -1}],
)


@pytest.mark.quick(1)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", MODELS)
def test_whole_answers_by_name_agree_with_a_plain_loop(name: str, direction: Any) -> None:
    model, pairs = small_model(name), encode_pairs(small_model(name), DATASET)
    found = patcher_on(model).run_position_experiment(
        DATASET,
        "resid_pre",
        positions=["SUBJECT", ["SUBJECT[0]", "END"], ("ALL", 1)],
        direction=direction,
        metrics=[*NAMES],
    )
    assert found.names == ["SUBJECT", "SUBJECT[0] + END", "ALL + 1"]
    base, other = (pairs.corrupted, pairs.clean) if direction == "denoising" else (pairs.clean, pairs.corrupted)
    for i, patch in enumerate(found.sweep.patches):
        expected = by_hand(
            model,
            base,
            ANSWERS,
            lambda pair, patch=patch: hooks_of(
                model, base[pair], other[pair], patch, partners_of(pairs.matches[pair], direction), pair
            ),
        )
        measured = np.stack([values.patched[i] for values in found.sweep.measured])
        np.testing.assert_allclose(measured, expected, atol=EXACT, rtol=0, err_msg=patch.label)
    assert abs(raw(found) - found.sweep.base).max() > 1e-3


def test_the_longer_prompt_of_a_pair_has_room_for_the_answer() -> None:
    long = [*range(2, N_CONTEXT + 1)]
    dataset = Answered([(long[1:], long)] * 2, "ends")
    with refused(f"pair 1: its prompt of {N_CONTEXT - 1} tokens with an answer of 3 is longer than the {N_CONTEXT}"):
        patcher_on(small_model(PLAIN)).run_patching_experiment(dataset, "z", metrics="sequence_log_probability")


def test_a_map_over_all_positions_is_of_one_direction() -> None:
    patcher, dataset = patcher_on(small_model(PLAIN)), Answered([(SHORT, LONG)], "ends")
    options: dict[str, Any] = {"metrics": "sequence_log_probability"}
    with refused(r"a map over all positions in both directions needs .* \(pair 0: 6 and 7\): name positions, or run"):
        patcher.run_position_experiment(dataset, "resid_pre", direction="both", **options)
    for direction, width in (("denoising", 7), ("noising", 6)):
        found = patcher.run_position_experiment(dataset, "resid_pre", direction=direction, **options)
        assert found.matrix().shape == (3, width)


def test_groups_and_files_keep_their_positions(tmp_path: Any) -> None:
    results = patcher_on(small_model(PLAIN)).run_position_experiment(
        DATASET, "resid_pre", positions=["SUBJECT", "END"], metrics=[*NAMES]
    )
    second = results.by_group()["group 1"].sweep
    assert second.matches == results.sweep.matches[1:] and second.base_tokens == results.sweep.base_tokens[1:]
    assert [patch.sites[0].position for patch in second.patches[:2]] == [(3,), (5,)]
    alone = patcher_on(small_model(PLAIN)).run_position_experiment(
        DATASET, "resid_pre", positions=["SUBJECT", "END"], metrics=[*NAMES], pair_indices=[1]
    )
    assert second.patches == alone.sweep.patches
    np.testing.assert_allclose(second.patched, raw(alone), atol=EXACT, rtol=0)
    assert load_results(results.save(tmp_path / "results.json")) == results


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("name", MODELS)
def test_what_the_model_says_after_other_lengths_is_what_a_plain_loop_says(name: str, direction: Any) -> None:
    model = small_model(name)
    found = patcher_on(model).generate(
        SHORT, LONG, "blocks.1.hook_resid_pre", direction=direction, align="ends", max_new_tokens=3, stop_at_eos=False
    )
    clean, corrupted = torch.tensor(SHORT), torch.tensor(LONG)
    base, other = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    matches = encode_pairs(model, Ids([(SHORT, LONG)], "ends")).matches[0]
    hooks = hooks_of(model, base, other, Patch((Site("blocks.1.hook_resid_pre"),)), partners_of(matches, direction), 0)
    for said, prompt, written in (
        (found.clean, clean, []),
        (found.corrupted, corrupted, []),
        (found.patched, base, hooks),
    ):
        tokens = prompt
        for token in said.ids:
            assert int(run(model, tokens, written)[-1].argmax()) == token
            tokens = torch.cat([tokens, torch.tensor([token])])
    assert len(found.clean_tokens) == len(SHORT) and len(found.corrupted_tokens) == len(LONG)


@pytest.mark.parametrize("name", MODELS)
def test_roles_of_chats_of_other_lengths_stand_for_each_other_by_name(name: str) -> None:
    model = chat_model(name)
    clean, corrupted = chat("w3 w4", system="w8"), chat("w3 w4 w5", system="w9 w8")

    class Chats(PatchingDataset):
        name, align = "chats", "names"

        def get_clean_corrupt_pairs(self) -> Any:
            return [(clean, corrupted)]

        def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
            return 4, 6

    pairs = encode_pairs(model, Chats())
    assert pairs.positions == ({"SYSTEM": 2, "USER": 6, "END": 8},)
    assert pairs.corrupted_positions == ({"SYSTEM": 3, "USER": 8, "END": 10},)
    assert pairs.matches == (((2, 3), (6, 8), (8, 10)),)
    patch = Patch((Site("blocks.1.hook_resid_pre", position=(8,)),))
    expected = patched_run(model, pairs.corrupted[0], pairs.clean[0], patch, {8: 6}, 0)
    patcher = patcher_on(model)
    logits = patcher.run_patched(clean, corrupted, "blocks.1.hook_resid_pre", position="USER", align="names")
    torch.testing.assert_close(logits[0], expected, atol=SINGLE, rtol=0)
    said = patcher.generate(
        clean, corrupted, "blocks.1.hook_resid_pre", position="USER", align="names", max_new_tokens=1
    )
    assert said.patch.sites[0].position == (8,) and said.patched.ids == (int(expected[-1].argmax()),)


class Spans(Ids):
    """Pairs of one length whose names stand for several tokens."""

    def get_clean_corrupt_pairs(self) -> Any:
        return [([1, 5, 6, 20, 7, 8], [1, 5, 6, 30, 7, 8]), ([1, 5, 20, 21, 7, 8, 9], [1, 5, 30, 31, 7, 8, 9])]

    def get_positions(self, pair_idx: int) -> Any:
        return [{"NAME": 3, "END": -1}, {"NAME": (2, 3), "END": -1}][pair_idx]

    def __len__(self) -> int:
        return 2


def test_cards_take_names_of_several_tokens() -> None:
    model, dataset = small_model(PLAIN), Spans([])
    heads = HeadPatcher(model, show_progress=False)
    (card,) = heads.describe_heads(dataset, [(1, 2)], n_sequences=1, metric="kl_divergence")
    for direction in ("denoising", "noising"):
        swept = heads.run_all_heads_experiment(dataset, position="NAME", direction=direction, metrics="kl_divergence")
        found = next(place for place in card.places if place.position == "NAME")
        assert getattr(found, direction) == pytest.approx(swept.matrix()[1, 2], rel=0, abs=EXACT)
    pairs, weights = encode_pairs(model, dataset), []
    for prompt, span in zip(pairs.clean, ([3], [2, 3])):
        _, cache = model.run_with_cache(prompt[None])
        weights.append(float(cache["blocks.1.attn.hook_pattern"][0, 2, -1, span].sum()))
    looked = next(each for each in card.attention if (each.query, each.key) == ("END", "NAME"))
    assert looked.clean == pytest.approx(np.mean(weights), rel=0, abs=SINGLE)
    assert sum(each.clean for each in card.attention if each.query == "END") == pytest.approx(1)
    assert next(each for each in card.copying if each.tokens == "NAME").n_tokens == 3


def test_cards_and_patterns_of_other_lengths_are_refused() -> None:
    heads = HeadPatcher(small_model(PLAIN), show_progress=False)
    with refused(r"pair 0: its prompts do not go together token by token \(6 and 7 tokens\), and a card has what"):
        heads.describe_heads(DATASET, [(0, 0)])
    for options in ({}, {"pair_index": 1}):
        with refused(r"pair [01]: the prompts have [67] and [67] tokens, so their patterns cannot be laid side by"):
            heads.attention_patterns(DATASET, [(0, 0)], **options)


def test_patterns_name_the_tokens_of_a_span() -> None:
    dataset = type("Two", (Spans,), {"get_template": lambda self, pair: "one"})([])
    dataset.get_clean_corrupt_pairs = lambda: [
        ([1, 5, 20, 21, 7], [1, 5, 30, 31, 7]),
        ([1, 5, 22, 23, 7], [1, 5, 2, 3, 7]),
    ]
    dataset.get_positions = lambda pair: {"NAME": (2, 3)}
    patterns = HeadPatcher(small_model(PLAIN), show_progress=False).attention_patterns(dataset, [(0, 0)])
    assert patterns.averaged == (0, 1) and list(patterns.clean_tokens[2:4]) == ["[NAME]", "[NAME]"]
