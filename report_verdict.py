"""Can these pairs carry a conclusion?  What a linter of datasets found, or else what the runs' own baselines show."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from metric_sets import metric_key
from patching_resampling import FEWEST_PAIRS
from patching_sweep import Sweep

RIGHT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "logit_difference": lambda values: values > 0,
    "probability_difference": lambda values: values > 0,
    "rank": lambda values: values == 1,
    "accuracy": lambda values: values == 1,
}
"""Metrics that tell whether a run gives the right answer, and how."""
MOST_RIGHT = 0.9
"""With a smaller share of usable pairs, or of pairs on which clean is right and above corrupted, care is due."""


class Finding(Protocol):
    """One thing that was noticed about a dataset."""

    @property
    def severity(self) -> str: ...
    @property
    def what(self) -> str: ...
    @property
    def remedy(self) -> str: ...


class Check(Protocol):
    """What a linter says of a dataset."""

    @property
    def verdict(self) -> str: ...
    @property
    def findings(self) -> Sequence[Finding]: ...


@dataclass(frozen=True)
class BaselineFinding:
    severity: str
    what: str
    remedy: str


@dataclass(frozen=True)
class BaselineCheck:
    """What the clean and the corrupted runs of a sweep show of its pairs."""

    findings: tuple[BaselineFinding, ...]

    @property
    def verdict(self) -> str:
        return "usable with care" if self.findings else "ready"


def baseline_check(sweep: Sweep) -> BaselineCheck:
    """Whether the pairs are usable, clean better than corrupted, and clean right where a metric tells."""
    n, shares = len(sweep.pair_indices), _shares(sweep)
    findings = []
    for name, what, remedy in (
        (
            "usable",
            f"Clean and corrupted {sweep.metric} barely differ",
            "Use a corruption that breaks the behaviour",
        ),
        (
            "better",
            "The clean run is no better than the corrupted one",
            "Check that answers are not exchanged, or use a corruption that breaks the behaviour",
        ),
        (
            "right",
            "The clean run gives a wrong answer",
            "Use a model that can do the task, or prompts on which it does",
        ),
    ):
        if (share := shares.get(name, 1.0)) < MOST_RIGHT:
            findings.append(BaselineFinding("care", f"{what} on {_of(1 - share, n)}", remedy))
    if n < FEWEST_PAIRS:
        few = f"{n} pair{'' if n == 1 else 's'}: too few to say how much pairs differ"
        findings.append(BaselineFinding("care", few, "Use 10 or more"))
    return BaselineCheck(tuple(findings))


def verdict_section(check: Check | None, sweeps: Mapping[str, Sweep]) -> str:
    """The verdict: of the check where there is one, else of each sweep whose pairs are other ones."""
    if check is not None:
        return _verdict("Verdict", check)
    parts = []
    groups = apart(sweeps)
    for names, sweep in groups.items():
        label = f"Verdict for {names}" if len(groups) > 1 else "Verdict"
        parts.append(_verdict(label, baseline_check(sweep), _counted(sweep)))
    parts.append('<p class="soft">From the baselines of these runs; the dataset itself was not checked.</p>')
    return "".join(parts)


def apart(sweeps: Mapping[str, Sweep]) -> dict[str, Sweep]:
    """The sweeps, those on the same runs together under all their names."""
    groups: list[tuple[list[str], Sweep]] = []
    for name, sweep in sweeps.items():
        for names, other in groups:
            if _runs(sweep) == _runs(other):
                names.append(name)
                break
        else:
            groups.append(([name], sweep))
    return {", ".join(names): sweep for names, sweep in groups}


def _runs(sweep: Sweep) -> tuple[object, ...]:
    """What two sweeps have in common that rest on the same clean and corrupted runs."""
    baselines = sweep.clean.tolist(), sweep.corrupted.tolist()
    return sweep.metric, sweep.noise, sweep.pair_indices, sweep.clean_tokens, sweep.corrupted_tokens, baselines


def _verdict(label: str, check: Check, counted: str = "") -> str:
    severities = {finding.severity for finding in check.findings}
    kind = next((severity for severity in ("fault", "care") if severity in severities), "ready")
    items = "".join(f"<li>{_sentence(finding)}</li>" for finding in check.findings)
    listed = f"<ul>{items}</ul>" if items else ""
    return f'<div class="verdict {kind}"><p>{label}: {html.escape(check.verdict)}</p>{counted}{listed}</div>'


def _sentence(finding: Finding) -> str:
    remedy = f" <em>{html.escape(finding.remedy)}.</em>" if finding.remedy else ""
    severity = html.escape(finding.severity)
    return f'<span class="severity {severity}">{severity}</span>: {html.escape(finding.what)}.{remedy}'


def _counted(sweep: Sweep) -> str:
    n, shares = len(sweep.pair_indices), _shares(sweep)
    told = [
        f"usable {_of(shares['usable'], n)}",
        f"clean better than corrupted on {_of(shares['better'], n)}",
    ]
    if "right" in shares:
        told.append(f"the clean run right on {_of(shares['right'], n)}, the corrupted on {_of(shares['fooled'], n)}")
    return f"<p>{html.escape('; '.join(told).capitalize())}.</p>"


def _shares(sweep: Sweep) -> dict[str, Any]:
    """Shares of the pairs: usable, clean better than corrupted, and right answers of both where a metric tells."""
    better = sweep.clean > sweep.corrupted if sweep.more_is_better else sweep.clean < sweep.corrupted
    shares = {"usable": sweep.usable.mean(), "better": better.mean()}
    for name in sweep.metrics:
        if (is_right := RIGHT.get(metric_key(name))) is not None:
            values = sweep.by_metric(name)
            return shares | {"right": is_right(values.clean).mean(), "fooled": is_right(values.corrupted).mean()}
    return shares


def _of(share: float, n: int) -> str:
    return f"{round(share * n):,} of {n:,} pairs"
