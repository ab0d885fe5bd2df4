"""Prompts for the programs of `models.programs`, and the truth about each: which edges do what it does.

Prompts are token ids: BOS, tokens, END, and what follows. Every truth is stated for what is written in the place of an
edge, and says which of its edges have no effect alone. Nothing here runs a model.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from actpatch.core.direction import Direction
from actpatch.core.indices import is_integer
from actpatch.core.truth import OTHER_RUN, Truth
from actpatch.models.programs import (
    BOS,
    END,
    MARKED,
    NO,
    OTHER_MARKED,
    TOKENS,
    YES,
    ProgramName,
    check_program,
    program_graph,
)
from actpatch.tasks.dataset import PatchingDataset

Pair = tuple[list[int], list[int], int, int]
"""Clean prompt, corrupted prompt, right answer, wrong answer."""

ZERO = "zero"
N_COPIED = 4
"""Tokens that are copied or reversed."""


class ProgramDataset(PatchingDataset):
    """Prompt pairs for one of the programs whose circuits are known (`program_model`).

        induction       0 a b c d e f a b c          the token that followed the last one before
        copy            0 a b c d END a b            the token four places back
        reverse         0 a b c d END d c            the four tokens backwards
        lookup          0 3 a b c d END              the token at the position that token 3 says
        fraction        0 a 2 b 2 c END              YES by the share of the token 2
        or_gate         0 2 a 3 END                  YES if 2 or 3 is there
        backup_head     0 a 2 b END                  YES if 2 is there, said by a head or by its backup
        cancelling_mlp  0 a 2 b END                  YES if 2 is there; an MLP takes back what one of two heads says

    The corruption changes the token that decides. The metric is the logit difference of the two answers, or of YES and
    NO.

    Args:
        program: its name.
        n_pairs: number of pairs.
        seed: seed of the choice of tokens.

    Raises:
        ValueError: for an unknown program, and for numbers that are none.
    """

    def __init__(self, program: ProgramName, n_pairs: int = 8, *, seed: int = 0) -> None:
        check_program(program)
        for name, given, least in (("n_pairs", n_pairs, 1), ("seed", seed, 0)):
            if not is_integer(given) or given < least:
                raise ValueError(f"{name} is {given!r}, expected a whole number from {least} on")
        self.program = program
        self.seed = seed
        chooser = random.Random(seed)
        self.pairs = [_PAIRS[program](chooser) for _ in range(n_pairs)]

    @property
    def name(self) -> str:
        return f"program {self.program}"

    @property
    def varies(self) -> str:
        return "the token that decides"

    def get_clean_corrupt_pairs(self) -> list[tuple[list[int], list[int]]]:
        return [(clean, corrupted) for clean, corrupted, _, _ in self.pairs]

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        _, _, right, wrong = self.pairs[pair_idx]
        return right, wrong


def program_truths(program: ProgramName) -> tuple[Truth, ...]:
    """What is true of a program, for each ablation and direction for which it is stated.

    Raises:
        ValueError: for an unknown name.
    """
    check_program(program)
    return tuple(
        Truth(
            program,
            program_graph(program),
            edges,
            ablation,
            direction,
            hidden,
            source="by construction: weights are set by hand (models/programs.py)",
            note=note,
        )
        for edges, ablation, direction, hidden, note in _STATED[program]
    )


def _induction(chooser: random.Random) -> Pair:
    """Without the token before it, no key is that of what followed: attention is even, and the answers alike."""
    *tokens, unused = chooser.sample(TOKENS, 7)
    n_repeated = chooser.randint(2, 4)
    clean = [BOS, *tokens, *tokens[:n_repeated]]
    corrupted = clean.copy()
    corrupted[n_repeated] = unused
    return clean, corrupted, tokens[n_repeated], tokens[n_repeated + 1]


def _copied(chooser: random.Random, backwards: bool) -> Pair:
    *tokens, unused = chooser.sample(TOKENS, N_COPIED + 1)
    said = chooser.randrange(N_COPIED)
    order = range(N_COPIED)[::-1] if backwards else range(N_COPIED)
    clean = [BOS, *tokens, END, *(tokens[at] for at in order[:said])]
    corrupted = clean.copy()
    corrupted[1 + order[said]] = unused
    return clean, corrupted, tokens[order[said]], unused


def _copy(chooser: random.Random) -> Pair:
    return _copied(chooser, backwards=False)


def _reverse(chooser: random.Random) -> Pair:
    return _copied(chooser, backwards=True)


def _lookup(chooser: random.Random) -> Pair:
    pointer, other = chooser.sample(range(2, 6), 2)
    tokens = chooser.sample(TOKENS[4:], 4)  # none of them is a pointer
    clean, corrupted = ([BOS, at, *tokens, END] for at in (pointer, other))
    return clean, corrupted, tokens[pointer - 2], tokens[other - 2]


def _fraction(chooser: random.Random) -> Pair:
    n_marked = chooser.randint(2, 4)
    tokens = [MARKED] * n_marked + chooser.choices(TOKENS[1:], k=5 - n_marked)
    chooser.shuffle(tokens)
    lost = chooser.sample([at for at, token in enumerate(tokens) if token == MARKED], chooser.randint(1, n_marked))
    others = [chooser.choice(TOKENS[1:]) if at in lost else token for at, token in enumerate(tokens)]
    return [BOS, *tokens, END], [BOS, *others, END], YES, NO


def _or_gate(chooser: random.Random) -> Pair:
    return _there_or_not(chooser, [MARKED, OTHER_MARKED])


def _one_token(chooser: random.Random) -> Pair:
    return _there_or_not(chooser, [MARKED])


def _there_or_not(chooser: random.Random, marked: list[int]) -> Pair:
    fillers = chooser.choices(TOKENS[2:], k=3)
    places = chooser.sample(range(3), len(marked))
    tokens = fillers.copy()
    for place, token in zip(places, marked):
        tokens[place] = token
    return [BOS, *tokens, END], [BOS, *fillers, END], YES, NO


_PAIRS: dict[ProgramName, Callable[[random.Random], Pair]] = {
    "induction": _induction,
    "copy": _copy,
    "reverse": _reverse,
    "lookup": _lookup,
    "fraction": _fraction,
    "or_gate": _or_gate,
    "backup_head": _one_token,
    "cancelling_mlp": _one_token,
}

_Stated = tuple[tuple[str, ...], str, Direction | None, tuple[str, ...], str]
"""Edges, ablation, direction, hidden edges, note."""

_OR = ("input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0", "m0->logits")
_BACKUP = ("input->a0.h0<v>", "a0.h0->logits", "a0.h0->a1.h1<q>", "input->a1.h1<v>", "a1.h1->logits")
_CANCELLING = (
    "input->a0.h0<v>",
    "a0.h0->logits",
    "input->a0.h1<v>",
    "a0.h1->logits",
    "a0.h1->m0",
    "m0->logits",
)
_FRACTION = ("input->m0", "m0->a1.h0<v>", "a1.h0->logits")
_WHERE_TO_LOOK = "Where the heads look is the same in both runs, and matters only where zeros are written."

_STATED: dict[ProgramName, tuple[_Stated, ...]] = {
    "induction": (
        (("input->a0.h1<v>", "a0.h1->a1.h2<k>", "a1.h2->logits"), OTHER_RUN, None, (), _WHERE_TO_LOOK),
        (
            (
                *("input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>"),
                *("input->a1.h2<q>", "a0.h1->a1.h2<k>", "input->a1.h2<v>", "a1.h2->logits"),
            ),
            ZERO,
            "noising",
            (),
            "",
        ),
    ),
    "copy": (
        (("input->a0.h1<v>", "a0.h1->a1.h0<v>", "a1.h0->logits"), OTHER_RUN, None, (), _WHERE_TO_LOOK),
        (
            (
                *("input->a0.h1<q>", "input->a0.h1<k>", "input->a0.h1<v>"),
                *("input->a1.h0<q>", "input->a1.h0<k>", "a0.h1->a1.h0<v>", "a1.h0->logits"),
            ),
            ZERO,
            "noising",
            (),
            "",
        ),
    ),
    "reverse": (
        (("input->a1.h2<v>", "a1.h2->logits"), OTHER_RUN, None, (), _WHERE_TO_LOOK),
        (
            ("input->a1.h2<q>", "input->a1.h2<k>", "input->a1.h2<v>", "a1.h2->logits"),
            ZERO,
            "noising",
            (),
            "",
        ),
    ),
    "lookup": (
        (
            ("input->a0.h1<v>", "a0.h1->a1.h2<q>", "a1.h2->logits"),
            OTHER_RUN,
            None,
            (),
            "What the last head looks for is what its queries read; what stands there is the same in both runs.",
        ),
    ),
    "fraction": ((_FRACTION, OTHER_RUN, None, (), ""), (_FRACTION, ZERO, "noising", (), "")),
    "or_gate": (
        (_OR, OTHER_RUN, "denoising", (), "Either branch alone brings the whole answer back."),
        (
            _OR,
            OTHER_RUN,
            "noising",
            _OR[:-1],
            "While one branch still speaks, the other can fail without a trace: only what both share shows.",
        ),
    ),
    "backup_head": (
        (
            _BACKUP,
            OTHER_RUN,
            "denoising",
            ("a0.h0->a1.h1<q>", "a1.h1->logits"),
            "L0H0 → L1H1 q silences the backup, which is silent in the corrupted run anyway, and the backup says "
            "nothing in either run: its way to the logits shows only together with input → L1H1 v.",
        ),
        (
            _BACKUP,
            OTHER_RUN,
            "noising",
            ("input->a0.h0<v>", "input->a1.h1<v>", "a1.h1->logits"),
            "When L0H0 reads nothing, the backup steps in. L0H0 → L1H1 q alone makes both speak: its effect is -1.",
        ),
    ),
    "cancelling_mlp": (
        (
            _CANCELLING,
            OTHER_RUN,
            None,
            ("input->a0.h1<v>",),
            "What L0H1 says goes to the logits (effect 1) and through the MLP, which takes it back (-1): as a whole it "
            "does nothing.",
        ),
    ),
}
