"""Which positions of two prompts stand for each other: found as documented, checked, refused where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from activation_patching import ActivationPatcher, PatchingDataset, PromptPair, PromptPairs, check_dataset
from actpatch.core.alignment import matched_ends, matched_names
from actpatch.tasks.encoding import encode_pairs, named_positions
from actpatch.tasks.unmatched import nothing_written_sentence, unmatched_sentence
from test_suite.helpers.models import HAS_HOOKED, bundled, small_model
from test_suite.helpers.refusals import refused

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"


class Ids(PatchingDataset):
    """Pairs of token ids, as a user would write them."""

    def __init__(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        align: Any = None,
        positions: Sequence[Mapping[str, Any]] = (),
        corrupted_positions: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.pairs, self.align, self.positions, self.others = pairs, align, positions, corrupted_positions

    @property
    def name(self) -> str:
        return "ids"

    def get_clean_corrupt_pairs(self) -> Any:
        return self.pairs

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        return 2 + pair_idx, 8 + pair_idx

    def get_positions(self, pair_idx: int) -> Any:
        return self.positions[pair_idx] if self.positions else {}

    def get_corrupted_positions(self, pair_idx: int) -> Any:
        return None if self.others is None else self.others[pair_idx]


SHORT, LONG = [1, 5, 6, 20, 7, 8], [1, 5, 6, 30, 31, 7, 8]
NAMED = {"SUBJECT": (3,), "VERB": 4, "END": -1}


@pytest.mark.parametrize(
    ("clean", "corrupted", "expected"),
    [
        ("abcd", "abcd", {0: 0, 1: 1, 2: 2, 3: 3}),
        ("axcd", "aycd", {0: 0, 1: 1, 2: 2, 3: 3}),
        ("axxd", "ayyd", {0: 0, 1: 1, 2: 2, 3: 3}),
        ("axcd", "ayzcd", {0: 0, 2: 3, 3: 4}),
        ("axyxd", "azd", {0: 0, 4: 2}),
        ("abc", "abcd", {0: 0, 1: 1, 2: 2}),
        ("abb", "abbb", {0: 0, 1: 1, 2: 2}),
        ("abbc", "abc", {0: 0, 1: 1, 3: 2}),
        ("xc", "abc", {1: 2}),
        ("ab", "xyz", {}),
    ],
)
def test_common_ends_stand_for_each_other(clean: str, corrupted: str, expected: dict[int, int]) -> None:
    assert dict(matched_ends([*map(ord, clean)], [*map(ord, corrupted)])) == expected
    assert {there: here for here, there in matched_ends([*map(ord, corrupted)], [*map(ord, clean)])} == expected


def test_names_stand_for_each_other_and_spans_by_their_last_tokens() -> None:
    assert matched_names({"A": (2, 3, 4), "END": 7}, {"A": (5, 6), "END": 8}) == ((3, 5), (4, 6), (7, 8))
    assert matched_names({"A": 2, "B": 2, "C": 9}, {"A": (1, 4), "B": 4}) == ((2, 4),)
    for clean, corrupted in (({"A": 2, "B": 2}, {"A": 3, "B": 4}), ({"A": 2, "B": 3}, {"A": 4, "B": 4})):
        with pytest.raises(ValueError, match="the names 'A' and 'B' match one position with two others"):
            matched_names(clean, corrupted)


def test_names_are_where_their_partners_stand_unless_the_task_says_it() -> None:
    named = {**NAMED, "BOTH": (2, 3, 4)}
    pairs = encode_pairs(small_model(PLAIN), Ids([(SHORT, LONG)], "ends", [named]))
    assert pairs.positions == ({"SUBJECT": 3, "VERB": 4, "END": 5, "BOTH": (2, 3, 4)},)
    assert pairs.corrupted_positions == ({"VERB": 5, "END": 6, "BOTH": (2, 5)},)
    assert pairs.matches == (((0, 0), (1, 1), (2, 2), (4, 5), (5, 6)),)
    corrupted = {"SUBJECT": (3, 4), "END": -1}
    pairs = encode_pairs(small_model(PLAIN), Ids([(SHORT, LONG)], "names", [NAMED], [corrupted]))
    assert pairs.matches == (((3, 4), (5, 6)),)
    assert named_positions(pairs.in_direction("noising"), "SUBJECT") == (3,)
    assert named_positions(pairs.in_direction("denoising"), "SUBJECT") == ((3, 4),)
    assert encode_pairs(small_model(PLAIN), Ids([(SHORT, LONG)], "names", [{"END": -1}])).matches == (((5, 6),),)


def test_pairs_of_one_length_are_as_without_alignment() -> None:
    same = (SHORT, [1, 5, 6, 21, 7, 8])
    pairs = encode_pairs(small_model(PLAIN), Ids([same, same], "ends", [NAMED] * 2))
    assert pairs.matches == () == pairs.corrupted_positions and pairs.partners is None
    mixed = encode_pairs(small_model(PLAIN), Ids([same, (SHORT, LONG)], "ends", [NAMED] * 2))
    assert mixed.matches[0] == tuple((at, at) for at in range(6))


def test_tokens_of_a_span_are_named_within_it() -> None:
    named = [{"SUBJECT": (3, 4), "X[0]": 1}, {"SUBJECT": [-2, -3, 1], "X[0]": 2}]
    pairs = encode_pairs(small_model(PLAIN), Ids([(SHORT, SHORT), (LONG, LONG)], None, named))
    assert named_positions(pairs, "SUBJECT") == ((3, 4), (1, 4, 5))
    assert named_positions(pairs, "SUBJECT[-1]") == (4, 5) and named_positions(pairs, "SUBJECT[0]") == (3, 1)
    assert named_positions(pairs, "X[0]") == (1, 2)  # what the task names itself
    with pytest.raises(ValueError, match=r"pair 0: 'SUBJECT' has 2 tokens, but no \[2\]"):
        named_positions(pairs, "SUBJECT[2]")
    with pytest.raises(ValueError, match="2 of 2 pairs have no position named 'OBJECT': pair 0 has SUBJECT, X"):
        named_positions(pairs, "OBJECT[0]")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"A": (3, 6)}, "pair 0, 6 tokens long: position 'A' 6 is out of range: expected -6 to 5"),
        ({"A": ()}, "pair 0, 6 tokens long: position 'A' is empty: give at least one position"),
        ({"A": (3, -3)}, r"pair 0, 6 tokens long: position 'A' \[3, 3\] names a position twice"),
        ({"A": (3, "4")}, "pair 0, 6 tokens long: position 'A' '4' is not an integer"),
        ({"A": "34"}, "pair 0, 6 tokens long: position 'A' '34' is not an integer"),
        ({"A": 2.0}, "pair 0, 6 tokens long: position 'A' 2.0 is not an integer"),
        ({"A": None}, "pair 0, 6 tokens long: position 'A' None is not an integer"),
    ],
)
def test_spans_are_checked_as_positions_are(named: Any, message: str) -> None:
    with refused(message):
        encode_pairs(small_model(PLAIN), Ids([(SHORT, SHORT)], None, [named]))


@pytest.mark.parametrize(
    ("align", "options", "message"),
    [
        (None, {}, r"^pair 0: the clean prompt has 6 tokens and the corrupted one 7; they part at position 3.*need the "
         r"same number of tokens: replace words by words of as many tokens, or say with align which"),
        ("middle", {}, "has align = 'middle', expected 'ends', 'names', a list of mappings"),
        ("names", {}, "pair 0: no position has a name in both prompts, so align 'names' matches nothing"),
        ("names", {"positions": [{"A": 2}], "corrupted_positions": [{"A": 7}]},
         "pair 0, the corrupted prompt 7 tokens long: position 'A' 7 is out of range"),
        ("names", {"positions": [{"A": 2, "B": 2}], "corrupted_positions": [{"A": 3, "B": 4}]},
         "pair 0: the names 'A' and 'B' match one position with two others"),
        ([{}], {}, "pair 0: the alignment is empty"),
        ([{6: 1}], {}, "pair 0, clean prompt of 6 tokens: aligned position 6 is out of range"),
        ([{1: 7}], {}, "pair 0, corrupted prompt of 7 tokens: aligned position 7 is out of range"),
        ([{1: 2, 3: 2}], {}, "pair 0: the alignment has position 2 of the corrupted prompt twice"),
        ([{5: 1, -1: 2}], {}, "pair 0: the alignment has position 5 of the clean prompt twice"),
        ([[1, 2]], {}, r"pair 0: the alignment is \[1, 2\], expected a mapping clean position -> corrupted position"),
    ],
)  # fmt: skip
def test_alignments_that_cannot_be_are_refused(align: Any, options: Any, message: str) -> None:
    with refused(message):
        encode_pairs(small_model(PLAIN), Ids([(SHORT, LONG)], align, **options))


def test_prompts_without_common_ends_are_refused() -> None:
    with refused("pair 0: the prompts begin and end with other tokens, so align 'ends' matches nothing"):
        encode_pairs(small_model(PLAIN), Ids([([2, 3], [4, 5, 6])], "ends"))


def test_positions_without_a_partner_are_counted() -> None:
    pairs = encode_pairs(small_model(PLAIN), Ids([(SHORT, LONG)] * 2 + [(LONG, LONG)], "ends"))
    assert unmatched_sentence(pairs.in_direction("denoising")) == (
        "1.33 of 7 positions of the corrupted prompts have no partner in the other run and are left alone (mean over "
        "pairs)"
    )
    assert unmatched_sentence(pairs.in_direction("noising")).startswith("0.667 of 6.33 positions of the clean prompts")
    assert unmatched_sentence(encode_pairs(small_model(PLAIN), Ids([(LONG, LONG)]))) == ""
    assert nothing_written_sentence(pairs, []) == ""


def test_the_check_counts_and_shows_what_has_no_partner() -> None:
    positions = [{"NAME": 3, "END": -1}] * 3
    check = check_dataset(small_model(PLAIN), Ids([(SHORT, LONG)] * 2 + [(SHORT, SHORT)], "ends", positions))
    assert [(pair.n_tokens, pair.n_corrupted_tokens) for pair in check.pairs] == [(6, 7), (6, 7), (6, 6)]
    assert [(pair.unmatched, pair.corrupted_unmatched) for pair in check.pairs] == [(1, 2), (1, 2), (0, 0)]
    (change,) = check.pairs[0].changes
    assert (change.position, change.names, change.clean, change.corrupted) == (3, ("NAME",), "w20", "w30w31")
    told = [finding.what for finding in check.findings if "no partner" in finding.what]
    assert len(told) == 2 and told[0].startswith("0.667 of 6 positions of the clean prompts have no partner")
    assert "1.33 of 6.67 positions of the" in str(check)


def test_own_prompts_are_aligned() -> None:
    pair = PromptPair("The cat sat on the", "The small dog sat on the", (" mat",), (" rug",), positions={"END": -1})
    model = bundled()
    with pytest.raises(ValueError, match=r"1 of 1 rows have prompts of different token lengths.* or give align="):
        PromptPairs(model, [pair])
    pairs = encode_pairs(model, PromptPairs(model, [pair], align="ends"))
    n_clean, n_corrupted = len(pairs.clean[0]), len(pairs.corrupted[0])
    assert n_corrupted == n_clean + 1 and pairs.corrupted_positions == ({"END": n_corrupted - 1},)
    own = PromptPair(
        "The cat sat on the", "The small dog sat on the", (" mat",), (" rug",),
        positions={"ANIMAL": 2, "END": -1}, corrupted_positions={"ANIMAL": (2, 3), "END": -1},
    )  # fmt: skip
    pairs = encode_pairs(model, PromptPairs(model, [own], align="names"))
    assert pairs.matches == (((2, 3), (n_clean - 1, n_corrupted - 1)),)
    assert encode_pairs(model, PromptPairs(model, [own], align=[{0: 0}])).matches == (((0, 0),),)


def test_a_single_run_is_aligned() -> None:
    patcher = ActivationPatcher(small_model(PLAIN), show_progress=False)
    for direction, length in (("denoising", 7), ("noising", 6)):
        found = [
            patcher.run_patched(SHORT, LONG, "blocks.1.hook_resid_pre", position=at, align=align, direction=direction)
            for at in ((5,), None)
            for align in ("ends", {0: 0, 1: 1, 2: 2, 4: 5, 5: 6})
        ]
        assert all(logits.shape[1] == length for logits in found)
        assert (found[0] == found[1]).all() and (found[2] == found[3]).all() and not (found[0] == found[2]).all()
