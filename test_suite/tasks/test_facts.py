"""Facts: the tokens of a subject in its prompt, and noise on them without a corrupted prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from activation_patching import ActivationPatcher, GaussianNoise, PromptPair, PromptPairs, check_dataset
from actpatch.tasks.batches import spans_of_all
from actpatch.tasks.encoding import encode_pairs
from test_suite.helpers.models import bundled, smollm2
from test_suite.helpers.refusals import refused

CAT = "The cat sat on the mat"


def facts(*rows: tuple[str, str], **reading: Any) -> PromptPairs:
    frame = pd.DataFrame([{"clean": prompt, "subject": subject, "attribute": "cat"} for prompt, subject in rows])
    names = {"corrupted": None, "correct": "attribute", "incorrect": None, "subject": "subject", "leading_space": True}
    return PromptPairs.from_dataframe(bundled(), frame, **{**names, **reading})


def subject_of(dataset: PromptPairs, i: int) -> str:
    """What stands at the subject's positions."""
    tokens = bundled().to_tokens(dataset.pairs[i].clean)[0]
    return bundled().tokenizer.decode(tokens[list(dataset.get_positions(i)["SUBJECT"])])


def test_a_subject_of_any_number_of_tokens_is_found() -> None:
    dataset = facts((CAT, "cat"), (CAT, "cat sat on the"), (CAT, "The"), (CAT, "mat"), (CAT, CAT))
    expected = [(2,), (2, 3, 4, 5), (1,), (6,), (1, 2, 3, 4, 5, 6)]
    assert [dataset.get_positions(i)["SUBJECT"] for i in range(5)] == expected
    assert [subject_of(dataset, i).strip() for i in range(5)] == [pair.subject for pair in dataset.pairs]


def test_a_prompt_may_leave_a_place_for_its_subject() -> None:
    """There it is found, though the same word stands before."""
    dataset = facts(("The cat and the {} sat on", "cat"), ("{} sat on the mat", "The cat"))
    assert [pair.clean for pair in dataset.pairs] == ["The cat and the cat sat on", "The cat sat on the mat"]
    assert [dataset.get_positions(i)["SUBJECT"] for i in (0, 1)] == [(5,), (1, 2)]


def test_a_word_comes_before_a_part_of_one() -> None:
    assert facts(("The cat sat at the mat", "at")).get_positions(0)["SUBJECT"] == (4,)
    assert facts((CAT, "at")).get_positions(0)["SUBJECT"] == (2,)
    with pytest.raises(ValueError, match=r"1 of 2 rows have a subject that is not found in the prompt\. row 1: 'dog'"):
        facts((CAT, "cat"), (CAT, "dog"))


def test_the_corrupted_run_is_that_of_noise_alone() -> None:
    dataset = facts((CAT, "cat"), ("The dog sat on the mat", "dog sat"))
    assert dataset.get_clean_corrupt_pairs() == [CAT, "The dog sat on the mat"]
    patcher = ActivationPatcher(bundled(), show_progress=False)
    alone = r"pair 0 is 'The cat .*, expected \(clean prompt, corrupted prompt\).*alone needs noise=GaussianNoise"
    with refused(alone):
        patcher.run_patching_experiment(dataset, "mlp_out", metrics="log_probability")
    noise = GaussianNoise("SUBJECT", samples=2, seed=3)
    sweep = patcher.run_patching_experiment(dataset, "mlp_out", metrics="log_probability", noise=noise).sweep
    by_hand = [_noised(dataset, i, noise) for i in (0, 1)]
    np.testing.assert_allclose(sweep.corrupted, by_hand, rtol=0, atol=1e-5)


def _noised(dataset: PromptPairs, i: int, noise: GaussianNoise) -> float:
    """Mean log-probability of the answer over the samples, with the same draws on the subject's embeddings."""
    model, values = bundled(), []
    tokens = model.to_tokens(dataset.pairs[i].clean)
    at = list(dataset.get_positions(i)["SUBJECT"])
    scale = noise.multiple * model.W_E.std(correction=0).item()
    for sample in range(noise.samples):
        drawn = np.random.default_rng((noise.seed, i, sample)).standard_normal((len(at), model.cfg.d_model))

        def add(value: torch.Tensor, hook: Any, drawn: np.ndarray = drawn) -> torch.Tensor:
            value = value.clone()
            value[0, at] += scale * torch.from_numpy(drawn).float()
            return value

        with torch.no_grad():
            logits = model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", add)])
        values.append(float(logits[0, -1].log_softmax(-1)[model.to_single_token(" cat")]))
    return float(np.mean(values))


OTHERS = [("The cat", "The small dog"), ("The cat", "The fox")]
"""The subject of a clean prompt, and what the corrupted one has in its place."""


def aligned(align: Any, *, other: str | None = None, prompt: str = "{} sat on the mat", **cells: Any) -> PromptPairs:
    rows = [
        {"clean": prompt.format(one), "corrupted": prompt.format(another), "subject": one, "other": another, **cells}
        for one, another in OTHERS
    ]
    frame = pd.DataFrame([{**row, "correct": " cat", "incorrect": " dog"} for row in rows])
    return PromptPairs.from_dataframe(bundled(), frame, subject="subject", corrupted_subject=other, align=align)


@pytest.mark.parametrize("other", [None, "other"])
@pytest.mark.parametrize("align", ["names", "ends", [{-1: -1, 1: 1}, {-1: -1, 2: 2}]])
def test_the_corrupted_prompt_has_its_own_subject(align: Any, other: str | None) -> None:
    dataset = aligned(align, other=other)
    assert [dataset.get_positions(i)["SUBJECT"] for i in (0, 1)] == [(1, 2), (1, 2)]
    encoded = encode_pairs(bundled(), dataset)
    assert [of_pair["SUBJECT"] for of_pair in encoded.corrupted_positions] == [(1, 2, 3), (1, 2)]


def test_other_names_stay_where_their_partners_stand() -> None:
    for align, place in (("ends", {"PLACE": 7}), ([{6: -1}] * 2, {"PLACE": 7}), ([{1: 1}] * 2, {})):
        dataset = aligned(align, **{"position:PLACE": 6})
        assert encode_pairs(bundled(), dataset).corrupted_positions[0] == {"SUBJECT": (1, 2, 3), **place}
    both = aligned("names", **{"position:PLACE": 6, "corrupted_position:PLACE": -1})
    encoded = encode_pairs(bundled(), both, [0])
    assert encoded.corrupted_positions == ({"PLACE": 7, "SUBJECT": (1, 2, 3)},)
    assert encoded.matches == (((1, 2), (2, 3), (6, 7)),)


def test_a_subject_that_is_repeated_is_found_in_both() -> None:
    """Where it is the same, it may stand elsewhere; a column says which one it is where others are changed too."""
    row = {"clean": "The cat sat on the mat", "corrupted": "The mat sat on the small cat", "subject": "cat"}
    frame = pd.DataFrame([{**row, "other": "mat", "correct": " cat", "incorrect": " dog"}])
    for other, at in ((None, (7,)), ("other", (2,))):
        dataset = PromptPairs.from_dataframe(
            bundled(), frame, subject="subject", corrupted_subject=other, align="names"
        )
        assert dataset.get_corrupted_positions(0) == {"SUBJECT": at}
    slots = [PromptPair("{} sat", "The mat sat {} on", subject="The cat", corrupted_subject="The dog")]
    dataset = PromptPairs(bundled(), slots, align="names")
    assert dataset.get_clean_corrupt_pairs() == [("The cat sat", "The mat sat The dog on")]
    assert dataset.get_corrupted_positions(0) == {"SUBJECT": (4, 5)}


def test_a_subject_that_the_corrupted_prompt_lacks_is_told() -> None:
    pair = PromptPair(CAT, "The rug", subject="cat")
    with pytest.raises(
        ValueError, match=r"neither 'cat' nor, in its place, another subject \(say corrupted_subject=\)"
    ):
        PromptPairs(bundled(), [pair], align="ends")
    with pytest.raises(ValueError, match=r"pair 0: 'fox' is not in 'The rug'"):
        PromptPairs(bundled(), [PromptPair(CAT, "The rug", subject="cat", corrupted_subject="fox")], align="ends")
    with pytest.raises(ValueError, match="corrupted_subject='other' needs a column of subjects and one of corrupted"):
        facts((CAT, "cat"), corrupted_subject="other")


def test_corrupted_positions_need_a_partner_and_an_alignment() -> None:
    row = {"clean": CAT, "corrupted": "The dog sat on the mat", "correct": " cat", "incorrect": " dog"}
    own = pd.DataFrame([{**row, "position:X": 2, "corrupted_position:X": 3}])
    with pytest.raises(ValueError, match="row 0: the corrupted prompt has positions of its own: say align='names'"):
        PromptPairs.from_dataframe(bundled(), own)
    assert PromptPairs.from_dataframe(bundled(), own, align="names").get_corrupted_positions(0) == {"X": 3}
    assert PromptPairs.from_dataframe(bundled(), own.assign(**{"corrupted_position:X": 2})).get_positions(0) == {"X": 2}
    for columns in ({"position:Y": 3}, {"corrupted_position:Y": 3}):
        with pytest.raises(
            ValueError, match="give every named position both, position:NAME and corrupted_position:NAME"
        ):
            PromptPairs.from_dataframe(bundled(), own.assign(**columns), align="names")
    lacking = pd.concat([own, own.assign(**{"corrupted_position:X": None})], ignore_index=True)
    dataset = PromptPairs.from_dataframe(bundled(), lacking, align="names")
    assert dataset.get_corrupted_positions(0) == {"X": 3} and dataset.get_corrupted_positions(1) is None


def test_the_check_shows_the_subject() -> None:
    checked = check_dataset(bundled(), facts((CAT, "cat sat")), noise=GaussianNoise("SUBJECT", samples=1))
    assert checked.pairs[0].named_tokens == (" cat sat",) and "in pair 0: SUBJECT ' cat sat'" in str(checked)


def test_pairs_may_be_given_their_subject_without_a_file() -> None:
    pair = PromptPair(
        "{} sat on the mat", "The dog sat on the mat", (" cat",), subject="The cat", positions={"END": -1}
    )
    dataset = PromptPairs(bundled(), [pair])
    assert dataset.get_clean_corrupt_pairs() == [(CAT, "The dog sat on the mat")]
    assert encode_pairs(bundled(), dataset).positions == ({"END": 6, "SUBJECT": (1, 2)},)


def test_known_facts(tmp_path: Path) -> None:
    row = {"known_id": 0, "subject": "The cat", "attribute": "mat", "template": "{} sat on the", "prediction": " mat"}
    path = tmp_path / "known.json"
    path.write_text(json.dumps([{**row, "prompt": "The cat sat on the"}]))
    dataset = PromptPairs.from_known_facts(bundled(), path)
    assert dataset.get_target_tokens(0) == (bundled().to_single_token(" mat"), ())
    assert (dataset.get_positions(0), dataset.get_group(0)) == ({"SUBJECT": (1, 2)}, "{} sat on the")


@pytest.mark.slow
def test_spans_of_a_tokenizer_of_parts_of_words() -> None:
    model, prompt = smollm2(), "Born in 1950, Burkina Faso's José Ñandú (São Paulo) is"
    ids = {prompt: tuple(model.to_tokens(prompt)[0].tolist())}
    for subject in ("Burkina Faso", "José Ñandú", "São Paulo", "Born", "1950", prompt):
        start = prompt.index(subject)
        (span,) = spans_of_all(model, [(prompt, start, start + len(subject))], ids)
        text = model.tokenizer.decode([ids[prompt][at] for at in span])
        assert subject in text and len(text.strip()) <= len(subject) + 1, (subject, text)
        assert span == tuple(range(span[0], span[-1] + 1))
