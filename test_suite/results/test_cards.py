"""Cards of heads as values: what they say, no more than their numbers carry; text, table, notebook view, files."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from activation_patching import load_results
from actpatch.results.cards import HeadCards
from test_suite.helpers.results import made_up_card, made_up_cards, made_up_heads

EVIL = "<script>alert(1)</script> $x$"


# --- sentences ---


def test_a_head_that_is_moved_by_where_it_looks():
    assert made_up_card().summary == (
        "Patching its output restores 0.60 (denoising) and takes away 0.60 (noising) of what the corruption changes in "
        "the logit difference. It is moved by where it looks: its pattern alone carries 0.90 of that effect, its "
        "queries alone 0.83; not by what it reads there (values alone 0.03). From END it attends most to IO (0.62 on "
        "clean, 0.08 on corrupted). On repeated random tokens it attends like an induction head (score 0.97). By "
        "themselves its weights copy 95% of the tokens at IO."
    )


SAID = {
    "moved by what it reads": (
        {"effects": {"v": 0.57, "pattern": 0.06, "q": 0}, "significant": ("output", "v")},
        "It is moved by what it reads: its values alone carry 0.95 of that effect; not by where it looks (pattern "
        "alone 0.10).",
        "moved by where",
    ),
    "values that carry, and a pattern between": (
        {"effects": {"v": 0.57, "pattern": 0.2, "q": 0}, "significant": ("output", "v")},
        "its values alone carry 0.95 of that effect; pattern alone 0.33.",
        "not by",
    ),
    "a pattern that carries, and values between": (
        {"effects": {"v": 0.2}},
        "; values alone 0.33.",
        "not by",
    ),
    "both": (
        {"effects": {"v": 0.4}, "significant": ("output", "pattern", "v")},
        "Its pattern alone carries 0.90 of that effect, and its values alone 0.67.",
        "moved by",
    ),
    "neither": (
        {"effects": {"pattern": 0.2, "v": 0.1}, "significant": ("output",)},
        "Neither its pattern (0.33) nor its values (0.17) alone carry most of that effect.",
        "moved by",
    ),
    "a pattern that is large but not significant": (
        {"significant": ("output",)},
        "Neither its pattern (0.90)",
        "moved by",
    ),
    "a head that works against the behaviour": (
        {"effects": {"output": -0.4, "pattern": -0.36, "q": 0, "v": 0}, "significant": ("output", "pattern")},
        "Patching its output works the other way by 0.40 (denoising) and works the other way by 0.40 (noising)",
        "restores",
    ),
    "an effect that is not significant": (
        {"significant": ()},
        "Nothing is claimed of its effect: it is not significant in either direction (12 pairs).",
        "alone",
    ),
    "too few pairs": (
        {"significant": (), "n_pairs": 3},
        "Nothing is claimed of its effect: 3 pairs cannot tell.",
        "alone",
    ),
    "no usable pair": (
        {"effects": dict.fromkeys(("output", "pattern", "q", "k", "v"), math.nan), "significant": (), "n_pairs": 0},
        "Nothing is claimed of its effect: clean and corrupted barely differ on every pair.",
        "alone",
    ),
    "shared keys and values": (
        {"grouped": True, "effects": {"v": 0.6}, "significant": ("output", "v")},
        "Its pattern alone carries 0.90 of that effect. Its keys and values are also those of L1H1, L1H2: nothing is "
        "said of them.",
        "moved by what",
    ),
    "a head that suppresses": (
        {"copying": tuple(dataclasses.replace(each, copied=0.1, suppressed=0.9) for each in made_up_card().copying)},
        "By themselves its weights suppress 90% of the tokens at IO.",
        "copy",
    ),
    "weights that do neither": (
        {"copying": tuple(dataclasses.replace(each, copied=0.4) for each in made_up_card().copying)},
        "From END",
        "weights",
    ),
    "scores that are small": ({"induction": 0.49}, "From END", "repeated random tokens"),
    "attention to nothing of the task's": (
        {"attention": tuple(dataclasses.replace(each, query="END", key="rest") for each in made_up_card().attention)},
        "From END it attends most to other tokens (0.62 on clean, 0.08 on corrupted).",
        "tokens at",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_a_card_claims_what_its_numbers_carry_and_no_more(case):
    changes, said, unsaid = SAID[case]
    summary = made_up_card(**changes).summary
    assert said in summary and unsaid not in summary


def test_a_part_has_to_carry_the_effect_in_every_direction_that_is_significant():
    card = made_up_card()
    weaker = tuple(
        dataclasses.replace(each, effect=0.2) if (each.part, each.direction) == ("pattern", "noising") else each
        for each in card.effects
    )
    summary = dataclasses.replace(card, effects=weaker).summary
    assert "Neither its pattern (0.90 (denoising) and 0.33 (noising))" in summary


def test_a_direction_that_is_not_significant_is_told_and_not_used():
    card = made_up_card()
    unsure = tuple(
        dataclasses.replace(each, significant=False, effect=0.1) if each.direction == "noising" else each
        for each in card.effects
    )
    summary = dataclasses.replace(card, effects=unsure).summary
    assert "restores 0.60 (denoising) of what" in summary and "in the other direction its effect is not" in summary
    assert "its pattern alone carries 0.90 of that effect" in summary


# --- text ---


def test_cards_print_in_80_columns_with_every_number_and_its_source():
    text = str(made_up_cards(made_up_card(), made_up_card(2, grouped=True, absent={"copying": "a reason " * 12})))
    assert max(map(len, text.splitlines())) <= 80
    for part in ("+0.60 [+0.50, +0.70]", "+0.01 [-0.09, +0.11] n.s.", "k (KV0)", "END → IO", "0.62", "0.08"):
        assert part in text
    for source in ("Olsson et al. 2022", "Wang et al. 2022", "Elhage et al. 2021", "Heimersheim & Nanda 2024"):
        assert source in " ".join(text.split())
    for told in ("1 more left out of the effects", "k and v go by key-value head", "no copying a reason a reason"):
        assert told in " ".join(text.split())
    assert "note: something that a reader should know" in text
    assert str(made_up_card()).startswith("L1H0\n  effect of")


def test_reprs_are_short():
    cards = made_up_cards(*(made_up_card(head) for head in range(9)))
    assert repr(cards) == "HeadCards(L1H0, L1H1, L1H2, L1H3, L1H4 …, IOI on made-up, 12 of 13 pairs)"
    assert repr(cards[3]) == "HeadCard(L1H3, output +0.600 denoising, 12 pairs)"


def test_too_few_pairs_are_told_in_the_legend():
    text = " ".join(str(made_up_cards(made_up_card(n_pairs=3, significant=()), n_usable=3)).split())
    assert "Fewer than 5 pairs: no intervals, and nothing is significant." in text


# --- a sequence, a table, a notebook's view, a file ---


def test_cards_are_found_by_number_and_by_label():
    cards = made_up_cards()
    assert cards["L1H2"] is cards[1] is list(cards)[-1] and len(cards) == 2
    part = cards[:1]
    assert isinstance(part, HeadCards) and part.labels == ["L1H0"] and part.task == cards.task
    with pytest.raises(KeyError, match="no card of 'L9H9': there are L1H0, L1H2"):
        cards["L9H9"]


def test_the_table_has_every_number():
    cards = made_up_cards()
    table = cards.to_dataframe()
    assert len(table) == 2 * (10 + 4 + 6 + 3 + 4 + 1 + 1)
    row = table.query(
        "label == 'L1H2' and measure == 'attention' and of == 'END' and key == 'IO' and run == 'corrupted'"
    )
    assert row["value"].tolist() == [0.08]
    row = table.query("measure == 'effect' and of == 'pattern' and run == 'noising'")
    assert row["value"].tolist() == [0.54, 0.54] and row["significant"].tolist() == [True, True]
    assert set(table["measure"]) == {
        *("effect", "effect at", "attention", "score", "copied", "suppressed", "eigenvalue score", "query-key score")
    }


def test_a_notebook_shows_a_column_per_head_escaped():
    html = made_up_cards(task=EVIL)._repr_html_()
    assert "<script>" not in html and "$" not in html
    assert html.count("<th ") == 3 and "attention END → IO, clean / corrupted" in html and "0.62 / 0.08" in html
    assert made_up_card().summary.replace("&", "&amp;") in html


def test_saved_cards_are_read_back_equal(tmp_path):
    odd = made_up_card(2, grouped=True, eigenvalue_score=math.nan, copying=(), absent={"copying": "a reason"})
    cards = made_up_cards(made_up_card(), odd, clean_metric=math.inf)
    read = load_results(cards.save(tmp_path / "cards.json"))
    assert isinstance(read, HeadCards) and read == cards and str(read) == str(cards)
    assert read != made_up_cards() and read != 3
    assert dataclasses.asdict(read[1])["absent"] == {"copying": "a reason"}
    assert math.isnan(read[1].eigenvalue_score) and read.clean_metric == math.inf
    assert cards.to_csv(tmp_path / "cards.csv").read_text(encoding="utf-8").count("\n") == len(cards.to_dataframe()) + 1


def test_a_damaged_file_of_cards_is_told(tmp_path):
    path = made_up_cards().save(tmp_path / "cards.json")
    stored = json.loads(path.read_text(encoding="utf-8"))
    del stored["cards"]["cards"][0]["effects"]
    path.write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is damaged \(KeyError: 'effects'\): describe the heads again"):
        load_results(path)


def test_other_results_are_still_read(tmp_path):
    results = made_up_heads()
    assert load_results(results.save(tmp_path / "heads.json")) == results
