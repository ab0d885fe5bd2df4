"""A verification in words: a line, a few sentences that claim no more than it carries, and a notebook's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from actpatch.core.text import count, number, plain, plural, signed, with_minus
from actpatch.results.html import TABLES, texts
from actpatch.statistics.screening import Agreement

if TYPE_CHECKING:
    from actpatch.results.verification import Verification

RECALL_AT = 20
"""Recall is told at so many, or at the size of the top where that is smaller."""
MOST_NAMED = 5
"""Most misses that are named."""
ROWS = 10
"""Most sites of a notebook's table."""


def verification_line(v: Verification) -> str:
    """In a line: what was verified, and how well estimates agree."""
    found = f"{len(v.missed):,} of the sample missed" if v.sample else "no sample"
    return (
        f"Verification({_verified(v)}, {v.estimated.direction}, {v.estimated.metric}: "
        f"Spearman {agreement(v.spearman)}, {found})"
    )


def verification_text(v: Verification) -> str:
    """A few sentences."""
    return " ".join([_run(v), *_agreements(v), *_missed(v)])


def verification_html(v: Verification) -> str:
    """The sentences, and the verified sites of largest |exact|."""
    return TABLES.render(
        "table.html",
        caption=texts([f"Verification of {_verified(v)}", f"estimated by {v.estimate.described}"]),
        columns=texts([v.kind, "estimate", "exact effect", "verified as"]),
        rows=[texts(cells) for cells in verified_rows(v, ROWS)],
        note=texts([with_minus(verification_text(v))])[0],
    )


def verified_rows(v: Verification, k: int) -> list[list[str]]:
    """Of the k verified sites of largest exact |effect|: label, estimate, exact effect, and as what it was verified."""
    labels, missed = v.labels, set(v.missed)
    return [
        [
            labels[n],
            with_minus(plain(v.estimates[n])),
            signed(v.exact_effects[n]),
            "top" if v.is_top[n] else "sample, missed" if n in missed else "sample",
        ]
        for n in v.top_effects(k)
    ]


def agreement(found: Agreement, places: int = 2) -> str:
    """`0.83 [0.71, 0.90]`, a number alone where it is sure, and in words where there is no interval, or no value."""
    value, low, high = found
    if value == low == high:
        return number(value, places)
    if np.isnan(value):
        return "not known" if np.isnan(low) else f"not known [{number(low, places)}, {number(high, places)}]"
    if np.isnan(low):
        return f"{number(value, places)} (too few sites for an interval)"
    return f"{number(value, places)} [{number(low, places)}, {number(high, places)}]"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _verified(v: Verification) -> str:
    return f"{len(v.numbers):,} of {_many(len(v.estimates), v.kind)}"


def _many(n: int, kind: str) -> str:
    return f"{n:,} {kind if n == 1 else plural(kind)}"


def _run(v: Verification) -> str:
    sweep = v.estimated
    pairs = count(int(sweep.usable.sum()), "usable pair")
    top = f"the {_many(len(v.top), v.kind)} of largest |estimate|" if v.top else ""
    of = f"{len(v.sample):,} drawn at random from the others (seed {v.seed})" if v.sample else ""
    whole = "all of them" if v.sites.is_complete else " and ".join(filter(None, [top, of]))
    return (
        f"Effects of {_many(len(v.estimates), v.kind)} were estimated by {v.estimate.described}; {whole} were run "
        f"exactly ({sweep.direction}, {sweep.metric}, {pairs})."
    )


def _agreements(v: Verification) -> list[str]:
    signs = "sizes of effects" if v.are_sizes else "effects"
    if np.isnan(v.spearman.value):
        return [f"How well estimated and exact {signs} agree over all {plural(v.kind)} is not known: {_why_not(v)}."]
    stands = "" if v.sites.is_complete else ", each of the sample standing for its share of the others"
    said = [
        f"Over all {plural(v.kind)}{stands}, estimated and exact {signs} have a rank correlation (Spearman) of "
        f"{agreement(v.spearman)} and a linear one (Pearson) of {agreement(v.pearson)}."
    ]
    if not v.sites.is_complete:
        said.append(
            "Neither interval reckons with rare large errors that the sample lacks, which would lower the linear one."
        )
    k = min(RECALL_AT, len(v.sites.estimates) if v.sites.is_complete else int(v.sites.is_top.sum()))
    if k:
        said.append(f"Recall at {k} is {agreement(v.recall(k))}.")
    return said


def _why_not(v: Verification) -> str:
    if v.sites.n_sample or not v.sites.n_rest:
        return "all of the verified are alike"
    return "no sample of the others was run"


def _missed(v: Verification) -> list[str]:
    if v.sites.is_complete:
        return []
    left = _many(v.n_unverified, v.kind)
    if np.isnan(v.cutoff):
        return [f"{left} were not verified."]
    cutoff = f"{v.cutoff:.2g}"
    if not v.sites.n_sample:
        return [f"Nothing is known of how many of the {left} that were not verified exceed {cutoff} in size."]
    n = len(v.missed)
    labels = v.labels
    named = f": {listed([f'{labels[i]} ({plain(v.exact_effects[i])})' for i in v.missed])}" if n else ""
    said = f"Of the sample, {n:,} would have been in the top had the estimate been right{named}."
    most = v.most_above(v.cutoff)
    return [
        said,
        f"With {v.level:.0%} confidence, of the {left} that were not verified at most {most:,} have an |effect| above "
        f"{cutoff}, the smallest estimate of the top; how large these may be, a sample does not say.",
    ]
