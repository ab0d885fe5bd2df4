"""What the check of a dataset found: its values, pair by pair, and the table that they print as."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from actpatch.core.heavy import pd
from actpatch.core.text import count, plain, shortened
from actpatch.results.answers import NO_ANSWER, AnswerSet
from actpatch.results.baselines import Finding, Verdict, verdict_of
from actpatch.results.text import WIDTH

MOST_SHOWN = 4
"""How many kinds of changes, and how many changes of the pair that is shown, a table lists."""
_SIDES = ("correct", "incorrect")


@dataclass(frozen=True)
class Change:
    """One token that the corruption changes, or several that stand for none in the other prompt."""

    position: int
    names: tuple[str, ...]
    """What the task calls the position."""
    clean: str
    corrupted: str

    @property
    def place(self) -> str:
        """Its name, where it has one, else its number."""
        return "/".join(self.names) or str(self.position)

    def __str__(self) -> str:
        place = " ".join([str(self.position), *self.names])
        return f"{place} {self.clean!r} -> {self.corrupted!r}"


@dataclass(frozen=True, repr=False)
class PairCheck:
    """What one pair came to. What could not be measured is None."""

    pair: int
    """Index in the dataset."""
    clean: float | None = None
    """Metric of the clean run."""
    corrupted: float | None = None
    usable: bool = False
    """Whether an effect can be computed for it (`Sweep.usable`)."""
    prefers_right: bool | None = None
    """Whether the clean run gives the right answer a higher probability than the wrong one; None without a wrong one.
    """
    corrupted_prefers_right: bool | None = None
    """Likewise the corrupted run; right is still what answers the clean prompt."""
    says_right: bool | None = None
    """Whether a right answer is the clean run's likeliest next token, or each of its tokens given those before it."""
    corrupted_says_right: bool | None = None
    n_tokens: int | None = None
    """Number of tokens of the clean prompt."""
    template: str = ""
    group: str = ""
    """What it has in common with pairs that may work alike (`PatchingDataset.get_group`)."""
    positions: tuple[str, ...] = ()
    """Names of its named positions."""
    named_tokens: tuple[str, ...] = ()
    """The token under each of these names in the clean prompt; of a name of several tokens all of them."""
    correct: AnswerSet = NO_ANSWER
    """The right answers to the clean prompt; none where they are not read."""
    incorrect: AnswerSet = NO_ANSWER
    changes: tuple[Change, ...] = ()
    n_corrupted_tokens: int | None = None
    unmatched: int = 0
    """How many positions of the clean prompt stand for none in the corrupted one (`PatchingDataset.align`)."""
    corrupted_unmatched: int = 0
    """How many of the corrupted prompt stand for none in the clean one."""
    fault: str = ""
    """Why a sweep would refuse the pair; empty where it would not."""

    def __repr__(self) -> str:
        if self.fault:
            return f"PairCheck(pair {self.pair}, refused: {shortened(self.fault)})"
        measured = {"clean": self.clean, "corrupted": self.corrupted}
        runs = [f"{name} {plain(value)}" for name, value in measured.items() if value is not None]
        state = "usable" if self.usable else "not usable"
        return f"PairCheck({', '.join([f'pair {self.pair}', *runs, state])})"


@dataclass(frozen=True, repr=False)
class DatasetCheck:
    """What a check of a dataset found; printed, it is a table of at most 80 columns."""

    task: str
    model: str
    metric: str
    """Name of the metric that effects would be computed from; empty where no pair could be run."""
    unit: str
    more_is_better: bool
    varies: str
    """Which signal the corruption changes, as the dataset says it."""
    noise: str
    """The noise that makes the corrupted run; empty where the prompts differ."""
    pairs: tuple[PairCheck, ...]
    findings: tuple[Finding, ...]
    """The worst first."""

    def __repr__(self) -> str:
        found = ", ".join(f"{severity} × {n}" for severity, n in Counter(f.severity for f in self.findings).items())
        size = f"{count(len(self.pairs), 'pair')}, {sum(self.usable)} usable"
        return f"DatasetCheck({self.task} on {self.model}: {self.verdict}, {size}; found: {found or 'nothing'})"

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.findings)

    @property
    def usable(self) -> tuple[bool, ...]:
        """For each pair whether an effect can be computed for it."""
        return tuple(pair.usable for pair in self.pairs)

    @property
    def sound_pairs(self) -> tuple[int, ...]:
        """The pairs that no finding names but for a note: `pair_indices=check.sound_pairs` leaves out the others."""
        named = {pair for finding in self.findings if finding.severity != "note" for pair in finding.pairs}
        return tuple(pair.pair for pair in self.pairs if pair.pair not in named)

    @property
    def clean_metric(self) -> float | None:
        """Mean over the pairs that could be run."""
        return _mean([pair.clean for pair in self.pairs])

    @property
    def corrupted_metric(self) -> float | None:
        return _mean([pair.corrupted for pair in self.pairs])

    @property
    def clean_accuracy(self) -> float | None:
        """Share of the clean runs whose likeliest next token is a right answer; None where there are no answers."""
        return _mean([pair.says_right for pair in self.pairs])

    @property
    def corrupted_accuracy(self) -> float | None:
        """Share of the corrupted runs whose likeliest next token still answers the clean prompt."""
        return _mean([pair.corrupted_says_right for pair in self.pairs])

    @property
    def clean_preference(self) -> float | None:
        """Share of the clean runs that prefer the right answer to the wrong one; None where there are none."""
        return _mean([pair.prefers_right for pair in self.pairs])

    @property
    def corrupted_preference(self) -> float | None:
        return _mean([pair.corrupted_prefers_right for pair in self.pairs])

    def to_dataframe(self) -> pd.DataFrame:
        """A row per pair; `changes` and answers as text, answers also as `correct_ids` and `incorrect_ids`."""
        columns = [field.name for field in dataclasses.fields(PairCheck)]
        rows = [
            {
                **vars(pair),
                "positions": ", ".join(pair.positions),
                "named_tokens": ", ".join(map(repr, pair.named_tokens)),
                "changes": "; ".join(map(str, pair.changes)),
                **{side: getattr(pair, side).plain for side in _SIDES},
                **{f"{side}_ids": getattr(pair, side).ids for side in _SIDES},
            }
            for pair in self.pairs
        ]
        return pd.DataFrame(rows, columns=[*columns, *(f"{side}_ids" for side in _SIDES)])

    def to_dict(self) -> dict[str, Any]:
        """Verdict, findings and pairs as plain values that can be stored as JSON."""
        return {"verdict": self.verdict, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        return _table(self)


def _mean(values: Iterable[float | None]) -> float | None:
    """None where nothing was measured."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _table(check: DatasetCheck) -> str:
    parts = [textwrap.fill(f"{check.task} on {check.model}: {check.verdict}", WIDTH), _baselines_table(check)]
    facts = [
        f"{heading if i == 0 else '':<11}{line}"
        for heading, lines in _facts(check).items()
        for i, line in enumerate(lines)
    ]
    parts.append("\n".join(textwrap.fill(fact, WIDTH, subsequent_indent=" " * 11) for fact in facts))
    parts += [
        textwrap.fill(
            f"{finding.severity.upper():<7}" + ". ".join(filter(None, (finding.what, finding.remedy))),
            WIDTH,
            subsequent_indent=" " * 7,
        )
        for finding in check.findings
    ]
    return "\n\n".join(part for part in parts if part)


def _baselines_table(check: DatasetCheck) -> str:
    rows: list[tuple[str, ...]] = []
    if check.clean_metric is not None and check.corrupted_metric is not None:
        notes = ["mean", check.unit, "" if check.more_is_better else "less is better"]
        values = (plain(value) for value in (check.clean_metric, check.corrupted_metric))
        rows.append((check.metric, *values, ", ".join(filter(None, notes))))
    for what, clean, corrupted in (
        ("right over wrong answer", check.clean_preference, check.corrupted_preference),
        ("right answer likeliest", check.clean_accuracy, check.corrupted_accuracy),
    ):
        if clean is not None and corrupted is not None:
            rows.append((what, f"{clean:.0%}", f"{corrupted:.0%}", "of pairs"))
    if not rows:
        return ""
    width = max(len(row[0]) for row in rows)
    lines = [f"{'':{width}}  {'clean':>10}  {'corrupted':>10}"]
    lines += [f"{what:{width}}  {clean:>10}  {corrupted:>10}  {unit}" for what, clean, corrupted, unit in rows]
    return "\n".join(lines)


def _facts(check: DatasetCheck) -> dict[str, list[str]]:
    """Heading -> lines about the prompts."""
    run = [pair for pair in check.pairs if pair.n_tokens is not None]
    facts = {"pairs": [f"{len(check.pairs)}, {sum(check.usable)} of them with baselines that an effect can divide by"]}
    if not run:
        return facts
    lengths = Counter(pair.n_tokens or 0 for pair in run)
    facts["tokens"] = [_counts({f"{length}": n for length, n in sorted(lengths.items())}, len(run))]
    templates = {pair.template for pair in run if pair.template}
    facts["templates"] = [str(len(templates))] if templates else []
    groups = Counter(pair.group for pair in run if pair.group)
    if len(groups) > 1 or set(groups) - templates:
        shown = {textwrap.shorten(name, 50): n for name, n in groups.most_common(MOST_SHOWN)}
        facts["groups"] = [_counts(shown, len(run))]
        if len(groups) > MOST_SHOWN:
            facts["groups"].append(f"and {len(groups) - MOST_SHOWN} more")
    facts["named"] = [_counts(Counter(name for pair in run for name in pair.positions), len(run))]
    first = next((pair for pair in run if pair.changes), run[0])
    if first.positions:
        tokens = ", ".join(f"{name} {text!r}" for name, text in zip(first.positions, first.named_tokens))
        facts["named"].append(f"in pair {first.pair}: {tokens}")
    facts["varies"] = [check.varies or check.noise]
    changed = Counter(_places(pair.changes) for pair in run if pair.changes)
    facts["changed"] = [
        f"{textwrap.shorten(places, 50)} in {n} of {len(run)} pairs" for places, n in changed.most_common(MOST_SHOWN)
    ]
    more = len(first.changes) - MOST_SHOWN
    facts[f"pair {first.pair}"] = [
        *map(str, first.changes[:MOST_SHOWN]),
        f"and {more} more" if more > 0 else "",
        f"right answer {first.correct.told}" if first.correct.ids else "",
        f"wrong answer {first.incorrect.told}" if first.incorrect.ids else "",
    ]
    headings = {heading: [line for line in lines if line] for heading, lines in facts.items()}
    return {heading: lines for heading, lines in headings.items() if lines}


def _places(changes: Iterable[Change]) -> str:
    """Names in an order of their own: they may stand in another one in every pair."""
    return ", ".join(c.place for c in sorted(changes, key=lambda c: (c.names, 0 if c.names else c.position)))


def _counts(numbers: dict[str, int], of: int) -> str:
    """What all pairs have stands alone, what some have with their number."""
    return ", ".join(name if n == of else f"{name} ({n} pairs)" for name, n in numbers.items())
