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
