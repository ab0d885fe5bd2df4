"""Prompts say word for word what their task promises, and the models do what the tasks ask for."""

from __future__ import annotations

import functools
import importlib.util
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from activation_patching import (
    ActivationPatcher,
    AgreementDataset,
    CapitalsDataset,
    DocstringDataset,
    GenderedPronounDataset,
    GreaterThanDataset,
    InductionDataset,
    IOIDataset,
    PatchingDataset,
)
from actpatch.models.load import TINY
from actpatch.tasks.dataset import (
    EncodedPairs,
    checked_targets,
    encode_pairs,
    named_positions,
    single_token,
    token_strings,
)
from actpatch.tasks.generated import GeneratedTask, TaskPair
from actpatch.tasks.ioi import IOI_CORRUPTIONS
from actpatch.tasks.words import (
    CAPITAL_TEMPLATES,
    CAPITALS,
    DISTRACTOR_NOUNS,
    FEMALE_NAMES,
    INDUCTION_WORDS,
    IOI_PREFIXES,
    IOI_SCENE_TEMPLATES,
    IOI_TEMPLATES,
    MALE_NAMES,
    NAMES,
    PRONOUN_TEMPLATES,
    SUBJECT_NOUNS,
)
from head_patching import HeadPatcher
from test_suite.helpers.models import bundled, needs_hooked, small_model, smollm2
from test_suite.helpers.tasks import BEHAVIOURS, TASKS, answers_of

CLEAN = re.compile(r"When (\w+) and (\w+) went to the store, (\w+) gave a drink to")
FRESH_PROMPTS = 252

MODELS = [bundled, pytest.param(smollm2, marks=pytest.mark.slow)]


# --- what the prompts say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corruption", IOI_CORRUPTIONS)
def test_corruption_changes_the_names_it_says_and_nothing_else(corruption):
    dataset = IOIDataset(bundled(), 20, corruption=corruption, templates=IOI_SCENE_TEMPLATES[:1])
    for i, (clean, corrupted) in enumerate(dataset.get_clean_corrupt_pairs()):
        first, second, giver = CLEAN.fullmatch(clean).groups()
        receiver = {first: second, second: first}[giver]
        assert dataset.get_target_tokens(i) == tuple(
            bundled().to_single_token(f" {name}") for name in (receiver, giver)
        )
        expected = {
            "swap_names": f"When {second} and {first} went to the store, {receiver} gave a drink to",
            "flip_subject": f"When {first} and {second} went to the store, {receiver} gave a drink to",
            "swap_order": f"When {second} and {first} went to the store, {giver} gave a drink to",
        }
        if corruption in expected:
            assert corrupted == expected[corruption]
        else:
            others = CLEAN.fullmatch(corrupted).groups()
            assert len({first, second, *others}) == 5 and set(others) <= set(NAMES)


def test_default_corruption_swaps_the_names_throughout():
    dataset = IOIDataset(bundled())
    same = IOIDataset(bundled(), 10, corruption="swap_names", seed=0)
    assert dataset.get_clean_corrupt_pairs() == same.get_clean_corrupt_pairs()
    assert dataset.name == "IOI (names swapped throughout)" and len(dataset) == 10
    assert "position stays" in dataset.varies


def test_documented_example_is_what_the_corruptions_make():
    """The lines of the class docstring, word for word."""
    documented = dict(re.findall(r"^ +(\w+): (When .* drink to)", IOIDataset.__doc__, re.MULTILINE))
    assert set(documented) == set(IOI_CORRUPTIONS)
    assert documented["swap_names"] == "When John and Mary went to the store, Mary gave a drink to"
    assert documented["flip_subject"] == "When Mary and John went to the store, Mary gave a drink to"
    assert documented["swap_order"] == "When John and Mary went to the store, John gave a drink to"
    names = ["Mary", "John", "Tom", "Anna", "Paul"]
    for seed in range(2000):
        dataset = IOIDataset(bundled(), 1, names=names, seed=seed)
        if dataset.get_clean_corrupt_pairs()[0][0] == "When Mary and John went to the store, John gave a drink to":
            break
    for corruption in ("swap_names", "flip_subject", "swap_order"):
        again = IOIDataset(bundled(), 1, names=names, seed=seed, corruption=corruption)
        assert again.get_clean_corrupt_pairs()[0][1] == documented[corruption]


def test_both_name_orders_come_equally_often_in_every_scene():
    n_templates = len(IOI_SCENE_TEMPLATES)
    dataset = IOIDataset(bundled(), 4 * n_templates)
    for i, (clean, _) in enumerate(dataset.get_clean_corrupt_pairs()):
        pattern = re.escape(IOI_SCENE_TEMPLATES[i % n_templates]).replace(r"\ ", " ")
        for slot in ("A", "B", "S2"):
            pattern = pattern.replace(rf"\{{{slot}\}}", r"(\w+)")
        first, second, giver = re.fullmatch(pattern, clean).groups()
        io_comes_first = (i // n_templates) % 2 == 0
        assert giver == (second if io_comes_first else first)


def test_pairs_are_distinct_and_of_equal_length():
    dataset = IOIDataset(bundled(), 200, templates=IOI_TEMPLATES)
    pairs = dataset.get_clean_corrupt_pairs()
    assert len(set(pairs)) == len({clean for clean, _ in pairs}) == 200
    encoded = encode_pairs(bundled(), dataset)
    assert all(len(a) == len(b) for a, b in zip(encoded.clean, encoded.corrupted))


def test_seed_decides_the_pairs():
    def pairs(seed: int) -> list:
        return IOIDataset(bundled(), 10, seed=seed).get_clean_corrupt_pairs()

    assert pairs(3) == pairs(3) != pairs(4)


def test_seed_leaves_the_global_random_state_alone():
    random.seed(1)
    torch.manual_seed(1)
    expected = random.random(), float(torch.rand(()))
    random.seed(1)
    torch.manual_seed(1)
    IOIDataset(bundled(), 5, seed=9)
    assert (random.random(), float(torch.rand(()))) == expected


@pytest.mark.parametrize("model", MODELS)
def test_names_are_single_tokens_and_prompts_read_as_written(model):
    dataset = IOIDataset(model(), 30)
    encoded = encode_pairs(model(), dataset)
    bos = 1 if encoded.clean[0][0] == model().tokenizer.bos_token_id else 0
    for i, (clean, corrupted) in enumerate(dataset.get_clean_corrupt_pairs()):
        assert "".join(encoded.clean_tokens[i][bos:]) == clean
        assert "".join(encoded.corrupted_tokens[i][bos:]) == corrupted
        answers = token_strings(model(), torch.tensor(dataset.get_target_tokens(i)))
        assert all(answer.strip() in NAMES and answer.startswith(" ") for answer in answers)
        assert all(answer in clean for answer in answers)


def test_chosen_names_and_templates_are_used():
    names = ["Mary", "John", "Tom", "Anna", "Paul"]
    dataset = IOIDataset(
        bundled(), 8, names=names, templates=["{A} and {B} met at the {PLACE}. {S2} gave a {OBJECT} to"]
    )
    for clean, _ in dataset.get_clean_corrupt_pairs():
        first, second, giver = re.match(r"(\w+) and (\w+) met at the \w+\. (\w+) gave a \w+ to$", clean).groups()
        assert {first, second} <= set(names) and giver in (first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruption": "shuffle"}, "corruption 'shuffle' is unknown: expected one of swap_names, flip_subject"),
        ({"n_pairs": 0}, "n_pairs is 0, expected at least 1"),
        ({"names": ["Mary", "John", "Tom", "Anna", "John Tom"]}, "' John Tom' is 2 tokens .* expected one"),
        ({"names": ["Mary", "John", "Tom", "Anna", "Zyzzyva"]}, "does not know 'Zyzzyva'"),
        ({"names": ["Mary", "John", "Tom", "Tom", "Tom"]}, "at least five names .* leaves 3"),
        ({"templates": []}, r"templates is \[\], expected a list of sentences"),
        ({"templates": "{A} and {B}: {S2}"}, "expected a list of sentences"),
        ({"templates": ["{A} gave {B} a book"]}, r"has the slots \['A', 'B'\], expected"),
        ({"templates": ["{A} and {B} met, {S2} gave {C}"]}, r"has the slots \['A', 'B', 'C', 'S2'\], expected"),
        (
            {"n_pairs": 100, "names": ["Mary", "John", "Tom", "Anna", "Paul"], "templates": IOI_SCENE_TEMPLATES[:1]},
            r"asked for 100 distinct pairs, found \d+ with 5 names and 1 templates: ask for fewer",
        ),
    ],
)
def test_impossible_datasets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IOIDataset(bundled(), **options)


@pytest.mark.slow
def test_names_of_several_tokens_are_left_out_or_refused():
    split = [name for name in NAMES if len(smollm2().to_tokens(f" {name}", prepend_bos=False)[0]) > 1]
    prompts = " ".join(clean for clean, _ in IOIDataset(smollm2(), 200).get_clean_corrupt_pairs())
    used = {name for name in NAMES if re.search(rf"\b{name}\b", prompts)}
    assert used == set(NAMES) - set(split)
    with pytest.raises(ValueError, match=r"' Nebuchadnezzar' is \d tokens for this model \(' N.*choose another word"):
        single_token(smollm2(), " Nebuchadnezzar")


@pytest.mark.parametrize("corruption", IOI_CORRUPTIONS)
def test_ioi_has_every_template_in_both_name_orders_and_with_any_prefix(corruption):
    options = {"corruption": corruption, "templates": IOI_TEMPLATES, "seed": 5}
    plain = IOIDataset(bundled(), 42, **options)
    assert len({plain.get_template(i) for i in range(42)}) == 42 and len(IOI_TEMPLATES) >= 15
    for prefix in IOI_PREFIXES:
        for written in (prefix, prefix.strip()):
            prefixed = IOIDataset(bundled(), 42, prefix=written, **options)
            expected = [tuple(prefix + prompt for prompt in pair) for pair in plain.get_clean_corrupt_pairs()]
            assert prefixed.get_clean_corrupt_pairs() == expected
    assert IOIDataset(bundled(), 1, prefix="({A}):").get_clean_corrupt_pairs()[0][0].startswith("({A}): When ")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("corruption", IOI_CORRUPTIONS)
def test_ioi_names_stand_where_its_positions_say(model, corruption):
    prefix = IOI_PREFIXES[0] if corruption == "flip_subject" else ""
    dataset = IOIDataset(model(), 42, corruption=corruption, templates=IOI_TEMPLATES, prefix=prefix)
    pairs = encode_pairs(model(), dataset)
    io, s1, after, s2, end = (named_positions(pairs, name) for name in ("IO", "S1", "S1+1", "S2", "END"))
    for i, (tokens, corrupted) in enumerate(zip(pairs.clean_tokens, pairs.corrupted_tokens)):
        receiver, giver = (text.strip() for text in answers_of(dataset, i))
        words = [token.strip() for token in tokens]
        assert [at for at, word in enumerate(words) if word == giver] == [s1[i], s2[i]]
        assert [at for at, word in enumerate(words) if word == receiver] == [io[i]]
        assert after[i] == s1[i] + 1 and end[i] == len(tokens) - 1
        at_names = [corrupted[at].strip() for at in (io[i], s1[i], s2[i])]
        expected = {
            "swap_names": [giver, receiver, receiver],
            "flip_subject": [receiver, giver, receiver],
            "swap_order": [giver, receiver, giver],
        }
        if corruption in expected:
            assert at_names == expected[corruption]
        else:
            assert len({*at_names, receiver, giver}) == 5


# --- the other tasks: each check knows the sentences by itself --------------------------------------------------------


def read_induction(clean: str, corrupted: str, answers: tuple) -> dict[str, int]:
    """What the checks have in common: look at one pair, and say at which word each named position has to stand."""
    words, others = clean.split(" "), corrupted.split(" ")
    assert words[:12] == words[16:] and len(set(words[:16])) == 16 and set(words) <= set(INDUCTION_WORDS)
    assert [i for i, (a, b) in enumerate(zip(words, others)) if a != b] == [12] and others[12] not in words
    assert answers == (f" {words[12]}", f" {others[12]}")
    return {"PREVIOUS": 11, "PREVIOUS+1": 12, "END": 27}


def read_greater_than(clean: str, corrupted: str, answers: tuple) -> dict[str, int]:
    start = int(re.fullmatch(r"The \w+ lasted from the year 17(\d\d) to the year 17", clean)[1])
    assert 2 <= start <= 98 and corrupted == clean.replace(f"17{start:02d}", "1701")
    later, others = ({text} if isinstance(text, str) else text for text in answers)
    assert {int(year) for year in later} == set(range(start + 1, 100))
    assert {int(year) for year in others} == set(range(start + 1)) and all(len(year) == 2 for year in later | others)
    return {"EVENT": 1, "START": 7, "END": 11}  # the year is two tokens


def read_pronoun(clean: str, corrupted: str, answers: tuple) -> dict[str, int]:
    (name, rest), (other, other_rest) = clean.split(" ", 1), corrupted.split(" ", 1)
    assert rest == other_rest and f"{{NAME}} {rest}" in PRONOUN_TEMPLATES
    kinds = [MALE_NAMES, FEMALE_NAMES] if name in MALE_NAMES else [FEMALE_NAMES, MALE_NAMES]
    assert name in kinds[0] and other in kinds[1]
    assert answers == ((" he", " she") if kinds[0] is MALE_NAMES else (" she", " he"))
    return {"NAME": 0, "END": len(re.findall(r"\w+|,", clean)) - 1}


def read_agreement(clean: str, corrupted: str, answers: tuple) -> dict[str, int]:
    sentence = re.compile(r"The (\w+) (\w+) the (\w+)")
    subject, *rest = sentence.fullmatch(clean).groups()
    other, *same = sentence.fullmatch(corrupted).groups()
    assert rest == same and rest[1] in sum(DISTRACTOR_NOUNS, ())
    singular, plural = dict(SUBJECT_NOUNS), {many: one for one, many in SUBJECT_NOUNS}
    assert answers == ((" is", " are") if subject in singular else (" are", " is"))
    assert other == {**singular, **plural}[subject]
    return {"SUBJECT": 1, "DISTRACTOR": 4, "END": 4}


def read_capital(clean: str, corrupted: str, answers: tuple) -> dict[str, int]:
    (country,) = {word for word in re.findall(r"\w+", clean) if word in CAPITALS}
    (other,) = {word for word in re.findall(r"\w+", corrupted) if word in CAPITALS}
    assert clean.replace(country, "{COUNTRY}") == corrupted.replace(other, "{COUNTRY}") in CAPITAL_TEMPLATES
    assert answers == (f" {CAPITALS[country]}", f" {CAPITALS[other]}") and country != other
    pieces = re.findall(r"\w+|,", clean)
    return {"COUNTRY": pieces.index(country), "END": len(pieces) - 1}


def read_docstring(clean: str, corrupted: str, answers: tuple) -> dict[str, int]:
    code = re.compile(
        r"def \w+\(self, (\w+), (\w+), (\w+)\):\n"
        r'    """\w+ \w+\n\n    :param (\w+): \w+ \w+\n    :param (\w+): \w+ \w+\n    :param'
    )
    a, b, c, *documented = code.fullmatch(clean).groups()
    assert documented == [a, b] and len({a, b, c}) == 3
    other = code.fullmatch(corrupted)[3]
    assert corrupted == clean.replace(f", {c})", f", {other})") and other not in (a, b, c)
    assert answers == (f" {c}", f" {other}")
    return {"A_def": a, "B_def": b, "C_def": c, "A_doc": a, "B_doc": b, "END": "param"}


READERS = dict(
    zip(
        BEHAVIOURS,
        (read_induction, read_greater_than, read_pronoun, read_agreement, read_capital, read_docstring),
    )
)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", BEHAVIOURS)
def test_prompts_answers_and_positions_are_what_the_task_promises(model, task):
    if task is GreaterThanDataset and model is smollm2:
        pytest.skip("its tokenizer writes every digit by itself")
    dataset = task(model(), 56)
    pairs = encode_pairs(model(), dataset)
    bos = int(pairs.clean[0][0] == model().tokenizer.bos_token_id)
    for i, (clean, corrupted) in enumerate(dataset.get_clean_corrupt_pairs()):
        expected = READERS[task](clean, corrupted, answers_of(dataset, i))
        if task is not DocstringDataset:
            assert pairs.positions[i] == {name: at + bos for name, at in expected.items()}
            continue
        at = pairs.positions[i]
        assert {name: pairs.clean_tokens[i][position].strip() for name, position in at.items()} == expected
        signature = next(j for j, token in enumerate(pairs.clean_tokens[i]) if "\n" in token)
        assert at["A_def"] < at["B_def"] < at["C_def"] < signature < at["A_doc"] < at["B_doc"] < at["END"]
        assert at["END"] == len(pairs.clean[i]) - 1


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_pairs_of_one_template_differ_in_the_words_of_their_slots_alone(model, task):
    if task is GreaterThanDataset and model is smollm2:
        pytest.skip("its tokenizer writes every digit by itself")
    options = {"templates": IOI_TEMPLATES} if task is IOIDataset else {}
    pairs = encode_pairs(model(), task(model(), 84, **options))
    for template in set(pairs.templates):
        alike = [tokens for tokens, key in zip(pairs.clean_tokens, pairs.templates) if key == template]
        assert len({len(tokens) for tokens in alike}) == 1
        varied = [len(set(column)) > 1 for column in zip(*alike)]
        assert sum(varied) <= template.count("{")
    assert len(set(pairs.templates)) < len(pairs) or task is IOIDataset


@pytest.mark.parametrize("task", TASKS)
def test_every_task_makes_distinct_pairs_from_its_seed_alone(task):
    dataset = task(bundled(), 100, seed=3)
    random.seed(1)
    pairs = dataset.get_clean_corrupt_pairs()
    assert len(dataset) == len(pairs) == len(set(pairs)) == 100
    assert all(clean != corrupted for clean, corrupted in pairs)
    assert task(bundled(), 100, seed=3).get_clean_corrupt_pairs() == pairs
    assert task(bundled(), 100, seed=4).get_clean_corrupt_pairs() != pairs
    encoded = encode_pairs(bundled(), dataset)
    assert all(len(clean) == len(corrupted) for clean, corrupted in zip(encoded.clean, encoded.corrupted))


def test_every_task_says_what_it_varies():
    said = {task: task(bundled(), 1).varies for task in TASKS}
    assert len(set(said.values())) == len(TASKS) and all(len(text) > 20 for text in said.values())
    names = {task(bundled(), 1).name for task in TASKS}
    assert len(names) == len(TASKS)
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    for task in BEHAVIOURS:
        (row,) = (line for line in readme.splitlines() if line.startswith(f"| `{task.__name__}` |"))
        assert row.endswith(f"| {said[task]} | {', '.join(task.roles)} |")


def test_genders_and_numbers_take_turns():
    pronouns = GenderedPronounDataset(bundled(), 56)
    said = [answers_of(pronouns, i)[0] for i in range(56)]
    assert said == ([" he"] * 14 + [" she"] * 14) * 2
    agreement = AgreementDataset(bundled(), 40)
    plurals = {plural for _, plural in SUBJECT_NOUNS + DISTRACTOR_NOUNS}
    combinations = [
        tuple(word in plurals for word in clean.split()) for clean, _ in agreement.get_clean_corrupt_pairs()
    ]
    assert {(kind[1], kind[4]): combinations.count(kind) for kind in combinations} == {
        (one, other): 10 for one in (False, True) for other in (False, True)
    }


def test_induction_lists_can_have_any_length():
    dataset = InductionDataset(bundled(), 5, n_words=4, n_repeated=1)
    for i, (clean, _) in enumerate(dataset.get_clean_corrupt_pairs()):
        words = clean.split()
        assert len(words) == 5 and words[0] == words[4] and answers_of(dataset, i)[0] == f" {words[1]}"


def test_clean_prompts_repeat_only_where_there_are_no_new_ones():
    three = {country: CAPITALS[country] for country in ("France", "Peru", "Japan")}
    options = {"capitals": three, "templates": CAPITAL_TEMPLATES[:1]}
    pairs = CapitalsDataset(bundled(), 6, **options).get_clean_corrupt_pairs()
    assert len(set(pairs)) == 6 and len({clean for clean, _ in pairs[:3]}) == 3
    with pytest.raises(ValueError, match="asked for 7 distinct pairs, found 6 with 3 countries and 1 templates: ask"):
        CapitalsDataset(bundled(), 7, **options)


class Numbers(GeneratedTask):
    """Numbers of two digits are one token of the bundled model, those of four are two."""

    name = "numbers"
    material = "numbers"
    clean_numbers = ("11", "22", "3333", "4444")
    corrupted_numbers = ("55", "6666")
    roles = ("N", "N+1")

    def draw(self, chooser: random.Random, turn: int) -> TaskPair:
        words = [{"N": chooser.choice(numbers)} for numbers in (self.clean_numbers, self.corrupted_numbers)]
        return TaskPair("the year {N} to", *words, (" he",), (" she",))


def test_prompts_of_unequal_lengths_are_drawn_again_and_counted():
    dataset = Numbers(bundled(), 2, seed=0)
    pairs = encode_pairs(bundled(), dataset)
    assert len(pairs) == 2 and len({len(prompt) for prompt in (*pairs.clean, *pairs.corrupted)}) == 1
    last = pairs.lengths[0] - 1
    assert pairs.positions[0] == {"N": last - 1, "N+1": last, "END": last}
    with pytest.raises(ValueError, match=r"asked for 3 .* found 2 with numbers; \d+ more have prompts of unequal"):
        Numbers(bundled(), 3, seed=0)


SHORTEST = {"n_words": 2, "n_repeated": 1}


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            InductionDataset,
            {"n_words": 12, "n_repeated": 12},
            "n_repeated is 12 of 12 words, expected at least 1 and fewer",
        ),
        (InductionDataset, {"n_repeated": 0}, "n_repeated is 0 of 16 words"),
        (
            InductionDataset,
            {"words": ["river", "stone", "river"]},
            r"at least 17 words .* leaves 2: give .*words=",
        ),
        (InductionDataset, {"words": ["river", "river stone"]}, "'river stone' is 2 tokens .* expected one"),
        (
            InductionDataset,
            {"n_words": 2, "n_repeated": 1, "words": ["a", "to", "gave"], "n_pairs": 7},
            "found 6 with 3",
        ),
        (GreaterThanDataset, {"events": ["war siege"]}, "' war siege' is 2 tokens"),
        (GreaterThanDataset, {"events": []}, r"needs at least one event .* leaves 0: give others with events="),
        (GreaterThanDataset, {"events": ["war"], "n_pairs": 98}, "asked for 98 .* found 97 with 1 events and 97 years"),
        (GenderedPronounDataset, {"male_names": []}, r"at least one male name .* leaves 0: .* male_names="),
        (GenderedPronounDataset, {"female_names": ["Zyzzyva"]}, "does not know 'Zyzzyva'"),
        (GenderedPronounDataset, {"templates": ["he went"]}, r"has the slots \[\], expected \{NAME\} alone"),
        (GenderedPronounDataset, {"templates": "{NAME}"}, "expected a list of sentences with {NAME}"),
        (AgreementDataset, {"subjects": ["keys"]}, r"subjects holds 'keys', expected \(singular, plural\)"),
        (AgreementDataset, {"distractors": []}, r"at least one of its distractors .* leaves 0: .*distractors="),
        (AgreementDataset, {"subjects": [("key", "the keys")]}, "' the keys' is 2 tokens"),
        (CapitalsDataset, {"capitals": {"France": "Paris"}}, r"at least two countries .* leaves 1: .*capitals="),
        (CapitalsDataset, {"capitals": {"France": "Paris", "Peru": "Paris"}}, "gives two countries the same capital"),
        (CapitalsDataset, {"capitals": {"France": "Paris", "Peru": "the city"}}, "' the city' is 2 tokens"),
        (CapitalsDataset, {"templates": ["{COUNTRY} and {NAME}"]}, r"has the slots \['COUNTRY', 'NAME'\]"),
        (DocstringDataset, {"arguments": ["size", "path", "name"]}, r"four argument names .* leaves 3: .*arguments="),
        (InductionDataset, {"words": "river"}, r"'river' is a text, expected a list: give others with words="),
        (CapitalsDataset, {"capitals": ["France"]}, r"capitals is \['France'\], expected a mapping {country: capital}"),
        (IOIDataset, {"prefix": IOI_PREFIXES}, r"prefix is \(.*\), expected one text: make a dataset for each prefix"),
        (IOIDataset, {"seed": None}, "seed is None, expected an integer: with a seed the same pairs come again"),
        (IOIDataset, {"n_pairs": 2.5}, "n_pairs is 2.5, expected at least 1, an integer"),
        *((task, {"n_pairs": 0}, "n_pairs is 0, expected at least 1") for task in BEHAVIOURS),
    ],
)
def test_impossible_behaviours_are_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        task(bundled(), **options)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (IOIDataset, "IOI needs at least five names of one token each, this model's tokenizer leaves 0: give others"),
        (InductionDataset, "need at least 17 words of one token each, this model's tokenizer leaves 0: give others"),
        (GreaterThanDataset, "writes ' 1732' as .*needs years of two tokens, ' 17' . '32': use a model with GPT-2's"),
        (GenderedPronounDataset, "at least one male name of one token each, this model's tokenizer leaves 0"),
        (AgreementDataset, "at least one of its subjects of one token each, this model's tokenizer leaves 0"),
        (CapitalsDataset, "at least two countries .* this model's tokenizer leaves 0"),
        (DocstringDataset, "at least four argument names of one token each, this model's tokenizer leaves 0"),
    ],
)
def test_a_tokenizer_that_knows_no_word_of_the_task_is_told_so(task, message):
    with pytest.raises(ValueError, match=message):
        task(small_model("bridge:gpt2"))


@pytest.mark.slow
def test_greater_than_refuses_a_tokenizer_that_writes_single_digits():
    with pytest.raises(ValueError, match=r"writes ' 1732' as ' ' \+ '1' \+ '7' \+ '3' \+ '2'"):
        GreaterThanDataset(smollm2())


@pytest.mark.slow
def test_names_that_are_several_tokens_where_a_prompt_begins_are_left_out_there_alone():
    at_start = ["{NAME} went home because"]
    dataset = GenderedPronounDataset(smollm2(), 300, templates=at_start)
    used = {clean.split()[0] for clean, _ in dataset.get_clean_corrupt_pairs()}
    whole = {name for name in NAMES if len(smollm2().to_tokens(name, prepend_bos=False)[0]) == 1}
    assert used == whole < set(NAMES)
    with pytest.raises(ValueError, match="'Michelle' is 2 tokens"):
        GenderedPronounDataset(smollm2(), templates=at_start, female_names=["Michelle"])
    inside = GenderedPronounDataset(
        smollm2(), 10, templates=["Then {NAME} went home because"], female_names=["Michelle"]
    )
    assert any("Then Michelle" in clean for clean, _ in inside.get_clean_corrupt_pairs())


# --- positions, templates and answers of any dataset ------------------------------------------------------------------


class Animals(PatchingDataset):
    """A task written as its user would: nothing but what must be given, and what the test is about."""

    def __init__(self, targets: Any = None, positions: Any = None) -> None:
        self.targets, self.positions = targets, positions

    @property
    def name(self) -> str:
        return "animals"

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return [("The cat sat on the mat", "The dog sat on the mat"), ("The cat sat on", "The dog sat on")] * 4

    def get_target_tokens(self, pair_idx: int) -> Any:
        if self.targets is not None:
            return self.targets
        return bundled().to_single_token(" cat"), bundled().to_single_token(" dog")


class NamedAnimals(Animals):
    def get_positions(self, pair_idx: int) -> Any:
        return self.positions[pair_idx] if isinstance(self.positions, list) else self.positions


def test_a_task_need_not_name_anything():
    dataset = Animals()
    assert (dataset.varies, dataset.get_positions(0), dataset.get_template(0)) == ("", {}, "")
    pairs = encode_pairs(bundled(), dataset, [1, 0])
    assert pairs.positions == ({}, {}) and pairs.templates == ("", "")


def test_positions_are_counted_from_the_front_and_kept_in_the_order_of_the_pairs():
    dataset = NamedAnimals(positions=[{"ANIMAL": 2, "END": -1}] * 8)
    pairs = encode_pairs(bundled(), dataset, [1, 0])
    assert named_positions(pairs, "ANIMAL") == (2, 2)
    assert named_positions(pairs, "END") == tuple(len(tokens) - 1 for tokens in pairs.clean) == (4, 6)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ({"SEAT": 6}, "pair 1, 5 tokens long: position 'SEAT' 6 is out of range: expected -5 to 4"),
        ({"SEAT": -6}, "pair 1, 5 tokens long: position 'SEAT' -6 is out of range"),
        ({"SEAT": 1.5}, "pair 0, 7 tokens long: position 'SEAT' 1.5 is not an integer"),
        ([("SEAT", 6)] * 8, r"pair 0: get_positions returned \('SEAT', 6\), expected a mapping name -> position"),
    ],
)
def test_positions_that_are_none_name_pair_and_position(positions, message):
    with pytest.raises(ValueError, match=message):
        encode_pairs(bundled(), NamedAnimals(positions=positions))


def test_templates_that_are_no_text_are_refused():
    class Unnamed(Animals):
        def get_template(self, pair_idx: int) -> Any:
            return None

    with pytest.raises(ValueError, match="pair 1: get_template returned None, expected a text, empty for no template"):
        encode_pairs(bundled(), Unnamed(), [1])


def test_pairs_that_lack_a_position_are_named_with_what_they_have():
    dataset = NamedAnimals(positions=[{"ANIMAL": 2, "END": 3}] + [{"END": 4}] * 2 + [{}] * 5)
    pairs = encode_pairs(bundled(), dataset, [7, 0, 1, 2, 3, 4, 5])
    with pytest.raises(
        ValueError, match="6 of 7 pairs have no position named 'ANIMAL': pair 7 has none; pair 1 has END; "
    ):
        named_positions(pairs, "ANIMAL")
    with pytest.raises(ValueError, match=r"pair 4 has none; and 1 more\. Choose another name"):
        named_positions(pairs, "ANIMAL")
    bare = EncodedPairs(pairs.indices, pairs.clean, pairs.corrupted, pairs.clean_tokens, pairs.corrupted_tokens)
    with pytest.raises(ValueError, match="7 of 7 pairs have no position named 'END': pair 7 has none"):
        named_positions(bare, "END")
    assert named_positions(encode_pairs(bundled(), dataset, [0]), "ANIMAL") == (2,)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((5, 6), ((5,), (6,))),
        (([5, 7, 5], 6), ((5, 7), (6,))),
        ((torch.tensor(5), torch.tensor([6, 7])), ((5,), (6, 7))),
        ((np.int64(5), range(6, 9)), ((5,), (6, 7, 8))),
        ((5, None), ((5,), ())),
        ((None, ()), ((), ())),
    ],
)
def test_each_side_may_have_one_answer_several_or_none(targets, expected):
    assert checked_targets(bundled(), Animals(targets), 0) == expected


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (([5, 7], [8, 7, 5]), r"pair 3: correct and incorrect answer are the same tokens 5 \('.*'\), 7 \('.*'\)"),
        ((5, [6, 10**6]), "pair 3: target token 1000000 is outside the vocabulary"),
        (([5, 1], 6), "pair 3: a target is the tokenizer's unknown token"),
        (("5", 6), "pair 3: get_target_tokens returned .* expected .correct token id, incorrect token id., or a list"),
        ((5.0, 6), r"pair 3: get_target_tokens returned \(5.0, 6\), expected"),
        (([[5]], 6), "pair 3: get_target_tokens returned"),
    ],
)
def test_answers_that_cannot_be_are_refused(targets, message):
    assert bundled().tokenizer.unk_token_id == 1
    with pytest.raises(ValueError, match=message):
        checked_targets(bundled(), Animals(targets), 3)


def test_several_answers_count_as_one_of_their_summed_probability():
    logits = torch.randn(1, 4, 20, generator=torch.Generator().manual_seed(0))
    shares = logits[0, -1].double().softmax(-1)
    odds = (shares[[3, 5]].sum() / shares[[4, 6, 7]].sum()).log()
    assert Animals(([3, 5], [4, 6, 7])).compute_metric(logits, 0) == pytest.approx(float(odds), abs=1e-5)
    with pytest.raises(ValueError, match=r"'logit difference' needs a wrong answer .* \(pair 2\): give"):
        Animals((3, None)).compute_metric(logits, 2)


# --- what a model that solves the task does with them -----------------------------------------------------------------


def last_logits(model: Any, prompts: Sequence[str]) -> list[torch.Tensor]:
    """Logits at the last position of plain runs of the model, of all prompts of one length together."""
    tokens = [model.to_tokens(prompt)[0] for prompt in prompts]
    found: dict[int, torch.Tensor] = {}
    for length in {len(prompt) for prompt in tokens}:
        alike = [i for i, prompt in enumerate(tokens) if len(prompt) == length]
        with torch.no_grad():
            found |= zip(alike, model(torch.stack([tokens[i] for i in alike]))[:, -1].clone())
    return [found[i] for i in range(len(prompts))]


def baselines(model: Any, corruption: str, n_pairs: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Logit differences IO - S of the clean and the corrupted prompts, by plain runs of the model."""
    dataset = IOIDataset(model, n_pairs, corruption=corruption)
    targets = [dataset.get_target_tokens(i) for i in range(n_pairs)]
    runs = []
    for prompts in zip(*dataset.get_clean_corrupt_pairs()):
        last = last_logits(model, prompts)
        runs.append(np.array([float(logits[io] - logits[s]) for logits, (io, s) in zip(last, targets)]))
    return runs[0], runs[1]


@pytest.mark.parametrize("model", MODELS)
def test_flipping_corruptions_turn_the_answer_around_in_every_pair(model):
    for corruption in ("swap_names", "flip_subject"):
        clean, corrupted = baselines(model(), corruption)
        assert (clean > 0).all()
        assert (corrupted < 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_order_swap_breaks_nothing(model):
    """The giver stays, so the right answer stays: such a pair cannot carry a conclusion."""
    clean, corrupted = baselines(model(), "swap_order")
    assert (clean > 0).all() and (corrupted > 0).all()


@pytest.mark.parametrize("model", MODELS)
def test_unrelated_names_take_the_signal_away(model):
    """On the whole: of two names that it has seen once each, a language model may still find one likelier."""
    clean, corrupted = baselines(model(), "unrelated_names", 40)
    assert (clean > corrupted).mean() >= 0.9
    assert abs(corrupted.mean()) < 0.35 * clean.mean()


@pytest.mark.parametrize("model", MODELS)
def test_sweep_measures_the_baselines_of_plain_runs(model):
    sweep = (
        ActivationPatcher(model(), show_progress=False).run_patching_experiment(IOIDataset(model()), "attn_out").sweep
    )
    clean, corrupted = baselines(model(), "swap_names")
    np.testing.assert_allclose(sweep.clean, clean, atol=1e-4)
    np.testing.assert_allclose(sweep.corrupted, corrupted, atol=1e-4)


def behaviour(dataset: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Share of clean prompts whose likeliest next token is right, and the log odds of right against wrong answers for
    clean and corrupted prompts, by plain runs of the model."""
    odds: list[list[float]] = []
    right = []
    runs = [last_logits(dataset.model, prompts) for prompts in zip(*dataset.get_clean_corrupt_pairs())]
    for i, last in enumerate(zip(*runs)):
        correct, incorrect = map(list, checked_targets(dataset.model, dataset, i))
        shares = [logits.double().softmax(-1) for logits in last]
        odds.append([float((share[correct].sum() / share[incorrect].sum()).log()) for share in shares])
        right.append(int(last[0].argmax()) in correct)
    clean, corrupted = np.array(odds).T
    return float(np.mean(right)), clean, corrupted


@pytest.mark.parametrize("task", TASKS)
def test_bundled_model_does_every_task_and_its_corruption_breaks_it(task):
    accuracy, clean, corrupted = behaviour(task(bundled(), 28))
    assert accuracy >= 0.95 and (clean > 0).all()
    assert (corrupted < clean).all() and corrupted.mean() < -3
    assert (corrupted < 0).mean() >= (0.75 if task is GreaterThanDataset else 1)  # after 1701 an early year is right


SMOL_BEHAVIOUR = {
    IOIDataset: (0.85, 0.95, 3.0),
    InductionDataset: (0.4, 0.9, 5.0),
    AgreementDataset: (0.0, 0.75, 1.4),
    CapitalsDataset: (0.6, 0.95, 7.0),
    DocstringDataset: (0.95, 0.95, 11.0),
}
"""At least this share of predictions that are right, this share of pairs in which the right answer is preferred to the
wrong one, and this mean logit difference; on corrupted prompts, at most its negative but for one."""


@pytest.mark.slow
@pytest.mark.parametrize("task", SMOL_BEHAVIOUR)
def test_smollm2_does_the_tasks_that_it_can(task):
    accuracy, clean, corrupted = behaviour(task(smollm2(), 42))
    predicted, preferred, difference = SMOL_BEHAVIOUR[task]
    assert accuracy >= predicted and (clean > 0).mean() >= preferred
    assert clean.mean() >= difference and corrupted.mean() <= 1 - difference
    assert (corrupted < clean).all()


@pytest.mark.slow
def test_smollm2_hardly_does_gendered_pronouns():
    """It prefers the right pronoun in little more than half of the prompts, and predicts another word in most."""
    accuracy, clean, corrupted = behaviour(GenderedPronounDataset(smollm2(), 56))
    assert accuracy <= 0.3 and (clean > 0).mean() <= 0.75
    assert 0 < (clean - corrupted).mean() < 2


def test_a_sweep_measures_several_answers_as_plain_runs_do():
    dataset = GreaterThanDataset(bundled(), 5)
    _, clean, corrupted = behaviour(dataset)
    results = ActivationPatcher(bundled(), show_progress=False).run_patching_experiment(dataset, "attn_out")
    np.testing.assert_allclose(results.sweep.clean, clean, atol=1e-4)
    np.testing.assert_allclose(results.sweep.corrupted, corrupted, atol=1e-4)


# --- the bundled model ------------------------------------------------------------------------------------------------


@functools.cache
def training_script() -> ModuleType:
    """tools/train_tiny.py, which knows what was held out. It is read, not run."""
    path = Path(__file__).resolve().parents[2] / "tools" / "train_tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_training", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@functools.cache
def checkpoint() -> tuple[Any, Any]:
    """The bundled model and its tokenizer, as Hugging Face loads them."""
    return transformers.AutoModelForCausalLM.from_pretrained(TINY), transformers.AutoTokenizer.from_pretrained(TINY)


def right_on_fresh_prompts(task: str) -> tuple[float, Any]:
    """Share of held-out prompts whose likeliest next token is right, and the logit differences by prompt."""
    script = training_script()
    cases = script.held_out_cases(getattr(script, task), FRESH_PROMPTS, random.Random(20))
    measured = script.measure(*checkpoint(), cases)
    return measured["top"], measured


def test_bundled_model_solves_ioi_on_fresh_prompts_in_both_name_orders():
    script = training_script()
    cases = script.held_out_cases(script.ioi, FRESH_PROMPTS, random.Random(20))
    model, tokenizer = checkpoint()
    first = [c for c in cases if c.prompt.index(c.right[0].strip()) < c.prompt.index(c.wrong[0].strip())]
    for order in (first, [case for case in cases if case not in first]):
        assert len(order) > FRESH_PROMPTS / 3
        assert script.measure(model, tokenizer, order)["top"] >= 0.99


def test_training_draws_nothing_that_is_held_out():
    script, shown = training_script(), random.Random(5)
    for task in script.MEASURED:
        trained = {task(shown, False).prompt for _ in range(300)}
        assert not trained & {case.prompt for case in script.held_out_cases(task, 300, random.Random(20))}
    unseen = "|".join(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(t)) for t in script.HELD_OUT_IOI_TEMPLATES)
    assert re.fullmatch(unseen, script.ioi(shown, True, script.HELD_OUT_IOI_TEMPLATES[0]).prompt)
    for prompt in (script.ioi(shown, False).prompt for _ in range(300)):
        pair = sorted({word for word in re.findall(r"\w+", prompt) if word in NAMES})
        assert len(pair) == 2 and not script.is_held_out(*pair, one_in=20)
        assert not re.fullmatch(unseen, prompt)


def test_bundled_model_continues_repeated_words():
    assert right_on_fresh_prompts("induction")[0] >= 0.95


@pytest.mark.parametrize("task", ["greater_than", "pronoun", "agreement"])
def test_bundled_model_has_more_behaviours_that_a_corruption_breaks(task):
    right, measured = right_on_fresh_prompts(task)
    assert right >= 0.95
    for corrupted in measured["corrupted"].values():
        assert (corrupted < measured["clean"]).float().mean() >= 0.95


@pytest.mark.parametrize("corruption", ["swap_names", "flip_subject"])
def test_some_head_of_the_bundled_model_carries_a_quarter_of_ioi(corruption):
    dataset = IOIDataset(bundled(), 30, corruption=corruption)
    heads = HeadPatcher(bundled(), show_progress=False).run_all_heads_experiment(dataset)
    assert heads.top(1)[0].effect >= 0.25


def test_bundled_model_is_small():
    assert sum(path.stat().st_size for path in TINY.iterdir() if path.is_file()) <= 5 * 2**20


def test_bundled_model_knows_the_words_of_the_readmes_own_task():
    for prompt in ("The cat sat on the mat", "The dog sat on the mat"):
        tokens = bundled().to_tokens(prompt, prepend_bos=False)[0]
        assert len(tokens) == 6 and bundled().tokenizer.unk_token_id not in tokens[1:].tolist()


@needs_hooked
def test_bundled_checkpoint_gives_the_logits_of_hugging_face():
    prompt = "When Mary and John went to the store, John gave a drink to"
    tokens = bundled().to_tokens(prompt)
    with torch.no_grad():
        expected = checkpoint()[0](tokens).logits.log_softmax(-1)
        torch.testing.assert_close(bundled()(tokens).log_softmax(-1), expected, atol=1e-4, rtol=0)


def test_every_template_has_what_the_corruptions_fill():
    for template in IOI_TEMPLATES:
        assert all(template.count(slot) == 1 for slot in ("{A}", "{B}", "{S2}"))
        assert template.index("{A}") < template.index("{B}") < template.index("{S2}")
        assert not template.endswith(" ")
