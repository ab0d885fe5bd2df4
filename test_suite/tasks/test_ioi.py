"""IOI prompts say word for word what each corruption promises."""

from __future__ import annotations

import random
import re

import pytest
import torch

from activation_patching import IOIDataset
from actpatch.tasks.encoding import encode_pairs, named_positions
from actpatch.tasks.ioi import IOI_CORRUPTIONS
from actpatch.tasks.tokens import single_token, token_strings
from actpatch.tasks.words import IOI_PREFIXES, IOI_SCENE_TEMPLATES, IOI_TEMPLATES, NAMES
from test_suite.helpers.models import bundled, smollm2
from test_suite.helpers.tasks import answers_of

CLEAN = re.compile(r"When (\w+) and (\w+) went to the store, (\w+) gave a drink to")

MODELS = [bundled, pytest.param(smollm2, marks=pytest.mark.slow)]


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
        io_comes_first = i % 2 == 0
        assert giver == (second if io_comes_first else first)
        assert dataset.get_group(i) == ("IO first" if io_comes_first else "subject first")


@pytest.mark.parametrize("n_templates", [1, 2, 3, 4])
def test_every_template_has_both_name_orders_and_so_have_any_few_pairs(n_templates):
    templates = IOI_SCENE_TEMPLATES[:n_templates]
    dataset = IOIDataset(bundled(), 4 * n_templates, templates=templates)
    groups = [dataset.get_group(i) for i in range(len(dataset))]
    for at in range(n_templates):
        assert sorted(groups[at::n_templates]) == ["IO first"] * 2 + ["subject first"] * 2
    for n_pairs in range(1, len(groups)):
        assert abs(2 * groups[:n_pairs].count("IO first") - n_pairs) <= 1


def test_the_first_pair_is_the_papers_own_where_its_words_are_among_those_to_choose_from():
    classic = "When Mary and John went to the store, John gave a drink to"
    corrupted = {
        "swap_names": "When John and Mary went to the store, Mary gave a drink to",
        "flip_subject": "When Mary and John went to the store, Mary gave a drink to",
        "swap_order": "When John and Mary went to the store, John gave a drink to",
    }
    for corruption, expected in corrupted.items():
        assert IOIDataset(bundled(), 3, corruption=corruption).get_clean_corrupt_pairs()[0] == (classic, expected)
    clean, unrelated = IOIDataset(bundled(), 1, corruption="unrelated_names").get_clean_corrupt_pairs()[0]
    assert clean == classic and "Mary" not in unrelated and "John" not in unrelated
    open_template = "Then, {A} and {B} went to the {PLACE}. {S2} gave a {OBJECT} to"
    first = IOIDataset(bundled(), 1, templates=[open_template]).get_clean_corrupt_pairs()[0][0]
    assert first == "Then, Mary and John went to the store. John gave a drink to"
    assert IOIDataset(bundled(), 1, seed=1).get_clean_corrupt_pairs()[0][0] != classic
    others = ["Anna", "Tom", "Paul", "Lisa", "Mary"]
    assert "John" not in IOIDataset(bundled(), 1, names=others).get_clean_corrupt_pairs()[0][0]


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


@pytest.mark.quick(2)
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
