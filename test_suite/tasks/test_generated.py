"""Prompts of the other tasks say word for word what their task promises: each check knows the sentences by itself."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from activation_patching import (
    AgreementDataset,
    CapitalsDataset,
    DocstringDataset,
    GenderedPronounDataset,
    GreaterThanDataset,
    InductionDataset,
    IOIDataset,
)
from actpatch.tasks.encoding import encode_pairs
from actpatch.tasks.generated import GeneratedTask, TaskPair
from actpatch.tasks.words import (
    CAPITAL_TEMPLATES,
    CAPITALS,
    DISTRACTOR_NOUNS,
    FEMALE_NAMES,
    INDUCTION_WORDS,
    IOI_PREFIXES,
    IOI_TEMPLATES,
    MALE_NAMES,
    NAMES,
    PRONOUN_TEMPLATES,
    SUBJECT_NOUNS,
)
from test_suite.helpers.models import bundled, small_model, smollm2
from test_suite.helpers.tasks import BEHAVIOURS, TASKS, answers_of

MODELS = [bundled, pytest.param(smollm2, marks=pytest.mark.slow)]


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
    page = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    for task in BEHAVIOURS:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{task.__name__}` |"))
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
