"""Puts the cards of heads into words and tables of 80 columns. A sentence claims no more than the numbers beside it.

What a sentence needs: an effect that is significant, a part of it that is at least `MOST` of the whole, a score that is
at least `NAMED_FROM`. These are conventions of this library, stated in the printed legend, and no tests.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

from actpatch.core.direction import Direction
from actpatch.core.text import count, number, plain
from actpatch.results.cards import PARTS, SCORES, HeadCard, HeadCards, PartEffect, RoleAttention
from actpatch.results.text import WIDTH
from actpatch.statistics.resampling import FEWEST_PAIRS

MOST = 0.5
"""A part carries the effect where patching it alone has at least this share of the output's effect."""
LITTLE = 0.2
"""It carries little of it up to this share."""
NAMED_FROM = 0.5
"""Scores from here on are named."""
DIRECTIONS: tuple[Direction, ...] = ("denoising", "noising")
RUNS = {"denoising": "restores", "noising": "takes away"}
"""Direction -> what a positive effect does to the behaviour."""
FIRST_COLUMN, CELL = 24, 26
"""Letters of a table's columns."""


def summary_of(card: HeadCard) -> str:
    """What a card's numbers say, in a few sentences; where they carry no claim about the task, that."""
    sentences = [_effect_sentence(card), _part_sentence(card), _attention_sentence(card)]
    return " ".join(sentence for sentence in [*sentences, _score_sentence(card), _copying_sentence(card)] if sentence)


def card_text(card: HeadCard) -> str:
    """One card as text."""
    return "\n".join([card.label, *_lines(card)])


def cards_text(cards: HeadCards) -> str:
    """All cards as text, between what they rest on and how their numbers are to be read."""
    parts = [_filled(describe_cards(cards)), *map(card_text, cards), _filled(legend(cards))]
    return "\n\n".join(parts)


def describe_cards(cards: HeadCards) -> list[str]:
    """What was asked of which model, a line each."""
    unit = f" {cards.unit}" if cards.unit else ""
    worse = "" if cards.more_is_better else " (less is better)"
    left_out = len(cards.pair_indices) - cards.n_usable
    lines = [
        f"{cards.task} on {cards.model}",
        f"{cards.metric}: clean {plain(cards.clean_metric)}, corrupted {plain(cards.corrupted_metric)}{unit}{worse}, "
        f"mean of {count(cards.n_usable, 'pair')}"
        + (f"; {left_out} more left out of the effects: clean and corrupted barely differ" if left_out else ""),
    ]
    if cards.varies:
        lines.append(f"the corruption varies {cards.varies}")
    return [*lines, *(f"note: {note}" for note in cards.notes)]


def legend(cards: HeadCards) -> list[str]:
    """Where each number comes from and how it is to be read, a paragraph each."""
    tested = f"n.s.: p > {cards.alpha:g} after {cards.correction} correction over all parts of these heads, not over "
    tested += "the heads that they were chosen from."
    if cards.n_usable < FEWEST_PAIRS:
        tested = f"Fewer than {FEWEST_PAIRS} pairs: no intervals, and nothing is significant. " * (cards.n_usable > 0)
    grouped = any(card.key_value_head is not None for card in cards)
    paragraphs = [
        "effect: share of the way to the other run's metric when this part alone is patched at all positions "
        f"(Heimersheim & Nanda 2024); {cards.level:.0%} intervals over pairs. {tested}",
        "k and v go by key-value head: patching them changes every head that shares it." if grouped else "",
        "attention: weight from the first position to the second, mean over all pairs.",
        f"random tokens: mean attention on {cards.n_sequences} sequences of {cards.sequence_length} random tokens that "
        f"come twice, seed {cards.seed}: to the token before; to the previous occurrence of the same token; to the "
        "token after that (Olsson et al. 2022)."
        if cards.n_sequences
        else "",
        f"copies: share of tokens that are among the {cards.top_k} largest logits of what W_V W_O, the final norm and "
        "the unembedding make of the stream after block 0 (before it, for heads of layer 0); suppresses: with the sign "
        "of W_V W_O turned around (Wang et al. 2022).",
        "OV eigenvalues: sum of λ / sum of |λ| of W_E W_V W_O W_U, the norms' gains included and their sizes left out, "
        "W_U less its mean over the vocabulary (Elhage et al. 2021).",
        "query · key: raw score, before the softmax, of the tokens' normalized embeddings on clean prompts; positions, "
        "rotary turns and what earlier layers add are left out.",
        f"In words: a part carries an effect from {MOST:.0%} of that of the output on, and little up to {LITTLE:.0%}; "
        f"scores and shares of tokens are named from {NAMED_FROM:g} on. Moved by: from one of "
        "these prompts to the other; another corruption may change another part.",
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


def _effect_sentence(card: HeadCard) -> str:
    outputs = [card.effect("output", direction) for direction in DIRECTIONS]
    if all(math.isnan(found.effect) for found in outputs):
        return "Nothing is claimed of its effect: clean and corrupted barely differ on every pair."
    if sure := [found for found in outputs if found.significant]:
        moved = " and ".join(f"{_moves(found)} ({found.direction})" for found in sure)
        unsure = "" if len(sure) == 2 else "; in the other direction its effect is not significant"
        return f"Patching its output {moved} of what the corruption changes in the {card.metric}{unsure}."
    why = (
        f"{count(card.n_pairs, 'pair')} cannot tell"
        if card.n_pairs < FEWEST_PAIRS
        else f"it is not significant in either direction ({count(card.n_pairs, 'pair')})"
    )
    return f"Nothing is claimed of its effect: {why}."


def _moves(found: PartEffect) -> str:
    if found.effect > 0:
        return f"{RUNS[found.direction]} {found.effect:.2f}"
    return f"works the other way by {-found.effect:.2f}"


class _Shares:
    """What patching one part alone has of the output's effect, in each direction in which that is significant."""

    def __init__(self, card: HeadCard, part: str) -> None:
        outputs = [card.effect("output", direction) for direction in DIRECTIONS]
        self.outputs = [found for found in outputs if found.significant]
        self.parts = [card.effect(part, found.direction) for found in self.outputs]
        self.shares = [part.effect / output.effect for part, output in zip(self.parts, self.outputs)]

    @property
    def carries(self) -> bool:
        """Whether the part carries the effect in all of these directions."""
        return all(part.significant and share >= MOST for part, share in zip(self.parts, self.shares))

    @property
    def is_little(self) -> bool:
        """Whether it carries little of it in all of these directions."""
        return all(abs(share) <= LITTLE for share in self.shares)

    def __str__(self) -> str:
        if len(set(map(number, self.shares))) == 1:
            return number(self.shares[0])
        return " and ".join(f"{number(share)} ({part.direction})" for part, share in zip(self.parts, self.shares))


def _part_sentence(card: HeadCard) -> str:
    """What of the output's effect its parts carry, by themselves."""
    pattern, value, query, key = (_Shares(card, part) for part in ("pattern", "v", "q", "k"))
    if not pattern.outputs:
        return ""
    if card.shares_with:
        others = f"Its keys and values are also those of {', '.join(card.shares_with)}: nothing is said of them."
        if pattern.carries:
            return f"It is moved by where it looks: its pattern alone carries {pattern} of that effect. {others}"
        return f"Its pattern alone carries {pattern} of that effect. {others}"
    if pattern.carries and value.carries:
        return f"Its pattern alone carries {pattern} of that effect, and its values alone {value}."
    if pattern.carries:
        through = [f"its {name} alone {share}" for name, share in (("queries", query), ("keys", key)) if share.carries]
        rest = f"not by what it reads there (values alone {value})" if value.is_little else f"values alone {value}"
        ways = ", ".join([f"its pattern alone carries {pattern} of that effect", *through])
        return f"It is moved by where it looks: {ways}; {rest}."
    if value.carries:
        rest = f"not by where it looks (pattern alone {pattern})" if pattern.is_little else f"pattern alone {pattern}"
        return f"It is moved by what it reads: its values alone carry {value} of that effect; {rest}."
    return f"Neither its pattern ({pattern}) nor its values ({value}) alone carry most of that effect."


def _attention_sentence(card: HeadCard) -> str:
    if (top := _most_attended(card)) is None:
        return ""
    key = "other tokens" if top.key == "rest" else f"{top.key} itself" if top.key == top.query else top.key
    return f"From {top.query} it attends most to {key} ({top.clean:.2f} on clean, {top.corrupted:.2f} on corrupted)."


def _most_attended(card: HeadCard) -> RoleAttention | None:
    """The role that its main query attends to most, on either run."""
    seen = (each for each in card.attention if each.query == card.main_query)
    return max(seen, key=lambda each: max(each.clean, each.corrupted), default=None)


def _score_sentence(card: HeadCard) -> str:
    named = [(name, getattr(card, field)) for field, name in SCORES.items() if getattr(card, field) >= NAMED_FROM]
    if not named:
        return ""
    told = " and ".join(f"{'an' if name == 'induction' else 'a'} {name} head" for name, _ in named)
    return (
        f"On repeated random tokens it attends like {told} (score {', '.join(f'{score:.2f}' for _, score in named)})."
    )


def _copying_sentence(card: HeadCard) -> str:
    """Of the tokens at the role that it attends to most; of random ones, where that is no role of the task's."""
    by_tokens = {each.tokens: each for each in card.copying}
    top = _most_attended(card)
    found = by_tokens.get("" if top is None else top.key, by_tokens.get("random tokens"))
    if found is None:
        return ""
    tokens = found.tokens if found.tokens == "random tokens" else f"tokens at {found.tokens}"
    for share, does in ((found.copied, "copy"), (found.suppressed, "suppress")):
        if share >= NAMED_FROM:
            return f"By themselves its weights {does} {share:.0%} of the {tokens}."
    return ""


def _lines(card: HeadCard) -> list[str]:
    lines = [_row("effect of", *(f"{direction:<{CELL}}" for direction in DIRECTIONS))]
    for part in PARTS:
        name = part if part not in ("k", "v") or card.key_value_head is None else f"{part} (KV{card.key_value_head})"
        lines.append(_row(f"  {name}", *(f"{effect_text(card.effect(part, way)):<{CELL}}" for way in DIRECTIONS)))
    for place in card.places:
        cells = (f"{two_places(value):<{CELL}}" for value in (place.denoising, place.noising))
        lines.append(_row(f"  output at {place.position}", *cells))
    for i, each in enumerate(card.attention):
        if not i:
            lines.append(_row("attention", f"{'clean':>7}", f"{'corrupted':>11}"))
        weights = f"{each.clean:7.2f}", f"{each.corrupted:11.2f}"
        lines.append(_row(f"  {each.query} → {each.key}", *weights))
    if not math.isnan(card.induction):
        scores = ", ".join(f"{name} {getattr(card, field):.2f}" for field, name in SCORES.items())
        lines += _wrapped("random tokens", scores)
    if card.copying:
        for name in ("copied", "suppressed"):
            shares = ", ".join(f"{each.tokens} {getattr(each, name):.2f}" for each in card.copying)
            lines += _wrapped({"copied": "copies", "suppressed": "suppresses"}[name], shares)
    if not math.isnan(card.eigenvalue_score):
        lines += _wrapped("OV eigenvalues", f"{plain(card.eigenvalue_score, 2)}")
    if card.query_key:
        lines += _wrapped(
            "query · key", ", ".join(f"{each.query} → {each.key} {plain(each.score, 2)}" for each in card.query_key)
        )
    for what, why in card.absent.items():
        lines += _wrapped(f"no {what}", why)
    words = textwrap.wrap(card.summary, WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 4)
    return [*lines, "  in words", *words]


def effect_text(found: PartEffect) -> str:
    """An effect with its interval, or with `n.s.`"""
    if math.isnan(found.effect):
        return "none"
    interval = "" if math.isnan(found.low) else f" [{two_places(found.low)}, {two_places(found.high)}]"
    unsure = "" if found.significant or math.isnan(found.p_corrected) else " n.s."
    return f"{two_places(found.effect)}{interval}{unsure}"


def two_places(value: float) -> str:
    """With a sign, which 0 has none of."""
    text = plain(value, 2)
    return " 0.00" if text == "+0.00" else text


def _row(first: str, *cells: str) -> str:
    """A line of a table; a name that is too long for its column has a line of its own."""
    own, first = (f"  {first}\n", "") if len(first) > FIRST_COLUMN else ("", first)
    return f"{own}  {first:<{FIRST_COLUMN}}{' '.join(cells)}".rstrip()


def _wrapped(first: str, text: str) -> list[str]:
    indent = " " * (FIRST_COLUMN + 2)
    if len(first) >= FIRST_COLUMN:
        return [f"  {first}", *textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)]
    return textwrap.wrap(text, WIDTH, initial_indent=_row(first).ljust(FIRST_COLUMN + 2), subsequent_indent=indent)


def _filled(paragraphs: Iterable[str] | Sequence[str]) -> str:
    return "\n".join(textwrap.fill(text, WIDTH, subsequent_indent="  ") for text in paragraphs)
