"""Many texts become the tokens that each becomes alone, in a number of calls that does not grow with them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from activation_patching import IOIDataset, PromptPairs, check_dataset
from actpatch.tasks.batches import prompts_of_all, spans_of_all, tokens_of_all
from actpatch.tasks.tokens import encode_prompt, text_tokens
from test_suite.helpers.models import CLASSES, bundled, checkpoint, loaded, smollm2

CAT, DOG = "The cat sat on the mat", "The dog sat on the mat"
TEXTS = [CAT, DOG, " cat", "the", "", "The cat, the dog", "zyzzyva cat", "mat mat mat mat", "x", "The\nmat", "1", " 2"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each call of the bundled model's tokenizer: how many texts it was given."""
    kind, made = type(bundled().tokenizer), []
    original = kind.__call__

    def counted(self: Any, text: Any, *args: Any, **options: Any) -> Any:
        made.append(1 if isinstance(text, str) else len(text))
        return original(self, text, *args, **options)

    monkeypatch.setattr(kind, "__call__", counted)
    return made


def alike(model: Any, texts: list[str]) -> None:
    for options in ({}, {"prepend_bos": False}, {"prepend_bos": True}):
        found = tokens_of_all(model, texts, **options)
        assert list(found) == list(dict.fromkeys(texts))
        for text in texts:
            assert found[text] == tuple(text_tokens(model, text, **options).tolist()), (text, options)


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("prepend", [True, False])
def test_many_texts_become_what_each_becomes(model_class: str, prepend: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bundled(model_class)
    monkeypatch.setattr(model.cfg, "default_prepend_bos", prepend)
    bos = model.tokenizer.bos_token
    alike(model, [*TEXTS[:4], *TEXTS[5:], f"{bos}The cat", f"cat {bos}", bos])
    alike(model, TEXTS[:3])


@pytest.mark.slow
@pytest.mark.parametrize("model_class", CLASSES)
def test_many_texts_become_what_each_becomes_with_parts_of_words(model_class: str) -> None:
    alike(smollm2(model_class), [*TEXTS[:4], *TEXTS[5:], "<|im_start|>user", "Ñandú São Paulo 東京", "<|im_end|>"])


def test_what_a_model_itself_puts_before_texts_or_takes_away(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Found on a few of many texts; texts with special tokens in them are made into tokens as they are alone."""
    model = bundled("TransformerBridge")
    eos = model.tokenizer.eos_token
    monkeypatch.setattr(model.cfg, "tokenizer_prepends_bos", False)
    monkeypatch.setattr(model.cfg, "tokenizer_appends_eos", True, raising=False)
    many = [f"The cat{' dog' * n}" for n in range(40)]
    tokens_of_all(model, many)
    assert len(calls) < 20
    alike(model, [*many[:5], f"The cat {eos}", f"The cat {eos} {eos}", *many[5:9]])


def test_how_the_tokenizer_padded_and_cut_before_does_not_matter() -> None:
    many = [f"The cat{' dog' * n}" for n in range(12)]
    bundled().tokenizer(many, padding=True, truncation=True, max_length=3)
    alike(bundled(), many)


def test_prompts_that_cannot_be_read_say_why_as_alone() -> None:
    texts = [*TEXTS[:4], "The zyzzyva sat", "mat " * 2000, CAT.lower(), " dog", DOG.upper()]
    found = prompts_of_all(bundled(), texts)
    for text in texts:
        try:
            expected: Any = tuple(encode_prompt(bundled(), text).tolist())
        except ValueError as error:
            expected = str(error)
        told = found[text]
        assert (told() if callable(told) else told) == expected
    assert sum(map(callable, found.values())) >= 2


def test_a_file_of_many_rows_takes_few_calls(calls: list[int]) -> None:
    words = [" cat", " dog", " fox", " bird", " bear"]
    rows = [
        {"clean": f"The{a} sat{b * n}", "corrupted": f"The{b} sat{b * n}", "correct": a, "incorrect": b}
        for n in range(8)
        for a in words
        for b in words
        if a != b
    ]
    numbers = []
    for many in (rows[:40], rows * 5):
        calls.clear()
        assert len(PromptPairs.from_dataframe(bundled(), pd.DataFrame(many))) == len(many)
        numbers.append(len(calls))
    assert numbers[0] == numbers[1] < 30


def test_a_check_of_many_pairs_takes_few_calls(calls: list[int]) -> None:
    numbers = []
    for n_pairs in (10, 60):
        dataset = IOIDataset(bundled(), n_pairs, corruption="flip_subject")
        calls.clear()
        assert len(check_dataset(bundled(), dataset).pairs) == n_pairs
        numbers.append(len(calls))
    assert numbers[0] == numbers[1] < 60


def test_positions_of_a_task_follow_how_its_model_begins_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = IOIDataset(bundled(), 3)
    before = dataset.get_positions(1)
    monkeypatch.setattr(bundled().cfg, "default_prepend_bos", False)
    assert dataset.get_positions(1) == {name: at - 1 for name, at in before.items()}


def test_answers_that_rows_share_are_looked_at_once(calls: list[int]) -> None:
    """Whether they are one token, or are not."""
    known = [" cat", " dog", " fox", " bird", " bear", " mat"]
    frame = pd.DataFrame([{"clean": CAT, "corrupted": DOG, "correct": known[:4], "incorrect": known[4:]}] * 50)
    dataset = PromptPairs.from_dataframe(bundled(), frame)
    assert all(dataset.get_target_tokens(i)[0] is dataset.get_target_tokens(0)[0] for i in range(50))
    calls.clear()
    longer = frame.assign(correct=[[f"{a}{b}" for a in known for b in known]] * 50)
    with pytest.raises(ValueError, match="50 of 50 rows have answers that are not one token each"):
        PromptPairs.from_dataframe(bundled(), longer, single_token=True)
    assert len(calls) < 100


def test_spans_without_offsets_are_found_by_the_texts_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {CAT: tuple(bundled().to_tokens(CAT)[0].tolist())}
    wanted = [(CAT, 4, 7), (CAT, 4, 11), (CAT, 0, 3)]
    expected = spans_of_all(bundled(), wanted, ids)
    assert expected == [(2,), (2, 3), (1,)]
    monkeypatch.setattr(type(bundled().tokenizer), "is_fast", False)
    assert spans_of_all(bundled(), wanted, ids) == expected


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_tokenizer_that_prepends_nothing(architecture: str) -> None:
    """The model itself puts BOS before a text, or takes the tokenizer's away."""
    model = loaded(checkpoint(architecture), "TransformerBridge")
    alike(model, [f"w{i} w{i + 1} w3" for i in range(2, 14)])
