"""Judges the data of an experiment by its clean and corrupted runs: whether they carry a conclusion.

An effect divides by what the corruption does to the metric, and statistics take pairs for independent. Where the model
does not do the task, the corruption does not break it, or pairs repeat, the numbers of a sweep mean little, however
precise they look. These questions are asked of every sweep, of the runs that it has made anyway
(`warn_about_baselines`), and together with others before one (`patchers.check`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool

from actpatch.core.text import MOST_LISTED, chosen, count, plain, share_of_pairs, shortened
from actpatch.core.warn import warn_user
from actpatch.metrics.names import metric_key
from actpatch.metrics.registry import METRICS, right_above
from actpatch.results.metric_values import MIN_RELATIVE_CHANGE, MetricValues, usable_pairs
from actpatch.results.sweep import Sweep

Severity = Literal["fault", "care", "note"]
"""`fault`: results would say nothing; `care`: they say less than they seem to; `note`: good to know."""

Verdict = Literal["ready", "usable with care", "not usable"]

SEVERITIES: tuple[Severity, ...] = ("fault", "care", "note")

ACCURACIES = ("accuracy", "sequence accuracy")
"""Names of the metrics that tell whether the model would say a right answer."""
MOST = 0.5
"""What is wrong with at least this share of the pairs is a fault: wrong answers are then no rarer than by guessing."""
MANY = 0.1
"""What is wrong with at least this share needs care."""


@dataclass(frozen=True, repr=False)
class Finding:
    """Something that one should know of the data before reading results."""

    severity: Severity
    what: str
    """A sentence, without its full stop."""
    remedy: str = ""
    """What to do about it, likewise; empty where nothing needs to be done."""
    pairs: tuple[int, ...] = ()
    """Index in the dataset of each pair that it is true of; empty where it is not about single pairs."""

    def __repr__(self) -> str:
        about = f", {count(len(self.pairs), 'pair')}" if self.pairs else ""
        return f"Finding({self.severity}: {shortened(self.what)}{about})"


def baseline_findings(sweep: Sweep) -> list[Finding]:
    """All that a sweep's baselines and prompts say of its pairs."""
    return [finding for finding, _ in _found(sweep)]


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """The verdict that the worst finding gives."""
    severities = {finding.severity for finding in findings}
    return "not usable" if "fault" in severities else "usable with care" if "care" in severities else "ready"


def warn_about_baselines(sweep: Sweep) -> None:
    """One warning of all that a sweep's baselines and prompts say against its results; none where they say nothing.

    It is about what makes results worthless, and names the pairs that no effect can be computed for in any case.
    """
    if worthless := [finding for finding, makes_worthless in _found(sweep) if makes_worthless]:
        remedies = dict.fromkeys(finding.remedy for finding in worthless)
        said = [one for one in remedies if not any(other != one and other.startswith(one) for other in remedies)]
        sentences = [*(finding.what for finding in worthless), *said, "check_dataset(model, dataset) tells more"]
        warn_user(". ".join(sentences))


def not_finite(values: MetricValues, pairs: Sequence[int], dtype: str = "") -> Finding | None:
    """The pairs on which the metric of a run is no number: nothing else can be said of them."""
    broken = ~np.isfinite(np.stack([values.clean, values.corrupted]))
    if not broken.any():
        return None
    said = f" (in {dtype})" if dtype else ""
    return Finding(
        _severity(broken.any(axis=0)),
        f"The {values.name} is NaN or infinite on {broken.sum()} of {broken.size} prompts{said}",
        "Load the model in float32 or bfloat16"
        if dtype == "float16"
        else "Look at the logits of these prompts, or leave them out with pair_indices",
        chosen(broken.any(axis=0), pairs),
    )


def of_pairs(values: MetricValues, kept: Bool[np.ndarray, " pair"]) -> MetricValues:
    """The metric of these pairs alone."""
    return replace(values, patched=values.patched[:, kept], clean=values.clean[kept], corrupted=values.corrupted[kept])


def finite_pairs(values: MetricValues) -> Bool[np.ndarray, " pair"]:
    """Which pairs have a finite metric in both runs."""
    return np.isfinite(values.clean) & np.isfinite(values.corrupted)


def wrong_answers(values: MetricValues, pairs: Sequence[int]) -> Finding | None:
    """The clean prompts that the model gets wrong, as far as this metric tells."""
    above = right_above(values.name)
    if above is None:
        return None
    wrong = ~(values.clean > above)
    if not wrong.any():
        return None
    message = "The model prefers the wrong answer"
    if values.name in ACCURACIES:
        message = f"The right answer is not the likeliest{' next token' if values.name == 'accuracy' else ''}"
    return Finding(
        _severity(wrong),
        f"{message} on {share_of_pairs(wrong, pairs, 'clean prompts')}",
        "Choose a model that does the task, or leave these pairs out with pair_indices",
        chosen(wrong, pairs),
    )


def unbroken(values: MetricValues, pairs: Sequence[int]) -> Finding | None:
    """Where the corruption does not make the metric worse, on average or in single pairs."""
    loss = values.clean - values.corrupted if values.more_is_better else values.corrupted - values.clean
    better = loss < -1e-6
    clean, corrupted = (np.array([run.mean()]) for run in (values.clean, values.corrupted))
    if loss.mean() > 0 and usable_pairs(clean, corrupted)[0]:
        if not better.any():
            return None
        severity = _severity(better)
        what = f"The corrupted run has the better {values.name} in {share_of_pairs(better, pairs)}"
    else:
        severity = "fault"
        what = (
            f"The corruption does not make the mean {values.name} clearly worse: clean {plain(clean[0])}, corrupted "
            f"{plain(corrupted[0])}"
        )
        if better.any():
            what += f"; the corrupted run has the better one in {share_of_pairs(better, pairs)}"
    remedy = "Use a corruption that breaks the behaviour"
    if severity == "fault" and metric_key(values.name) not in METRICS:
        way = "less" if values.more_is_better else "more"
        remedy += f", or, if {way} of it is better, declare more_is_better={not values.more_is_better}"
    return Finding(severity, what, remedy, chosen(better, pairs))


def unusable(
    values: MetricValues, pairs: Sequence[int], min_relative_change: float = MIN_RELATIVE_CHANGE
) -> Finding | None:
    """The pairs whose clean and corrupted metric differ too little to divide by the difference."""
    idle = ~usable_pairs(values.clean, values.corrupted, min_relative_change)
    if not idle.any():
        return None
    first, *others = np.flatnonzero(idle).tolist()
    listed = [f"pair {pairs[first]} (clean {plain(values.clean[first])}, corrupted {plain(values.corrupted[first])})"]
    listed += [str(pairs[j]) for j in others[: MOST_LISTED - 1]]
    more = f" and {idle.sum() - MOST_LISTED} more" if idle.sum() > MOST_LISTED else ""
    return Finding(
        _severity(idle),
        f"{idle.sum()} of {len(pairs)} pairs have a clean and a corrupted {values.name} that barely differ, so no "
        f"effect: {', '.join(listed)}{more}",
        "Use a corruption that breaks the behaviour",
        chosen(idle, pairs),
    )


def repeated(prompts: Sequence[Hashable], pairs: Sequence[int]) -> Finding | None:
    """The pairs whose prompts are those of an earlier one."""
    first: dict[Hashable, int] = {}
    again = np.array([first.setdefault(prompt, i) < i for i, prompt in enumerate(prompts)])
    if not again.any():
        return None
    return Finding(
        "care",
        f"{share_of_pairs(again, pairs)} repeat the prompts of an earlier one",
        "Leave them out with pair_indices: intervals and p-values take pairs for independent",
        chosen(again, pairs),
    )


def _found(sweep: Sweep) -> Iterator[tuple[Finding, bool]]:
    """Each finding, and whether a sweep warns of it."""
    for values in sweep.measured:
        if broken := not_finite(values, sweep.pair_indices, sweep.dtype):
            yield broken, True
    for whole in sweep.measured:
        kept = finite_pairs(whole)
        if not kept.any():
            continue
        values, pairs = of_pairs(whole, kept), chosen(kept, sweep.pair_indices)
        if wrong := wrong_answers(values, pairs):
            yield wrong, wrong.severity == "fault"
        idle = unusable(values, pairs, sweep.min_relative_change)
        if unchanged := unbroken(values, pairs):
            none_differs = idle is not None and len(idle.pairs) == len(pairs)  # which says as much
            yield unchanged, unchanged.severity != "note" and not none_differs
        if idle is not None:
            yield idle, True
    prompts = list(zip(sweep.clean_tokens, sweep.corrupted_tokens))
    # Under noise only the clean prompts count, and each run has noise of its own.
    if not sweep.noise and (again := repeated(prompts, pairs)):
        yield again, True


def _severity(wrong: Bool[np.ndarray, " pair"]) -> Severity:
    share = wrong.mean()
    if share >= MOST:
        return "fault"
    return "care" if share >= MANY else "note"
