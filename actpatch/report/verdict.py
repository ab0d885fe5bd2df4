"""The verdict on the pairs of a report: what a linter of datasets found, or else what the runs' own baselines show.

Knows clean and corrupted runs; it knows nothing of patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from actpatch.core.text import with_minus
from actpatch.metrics.registry import right_above
from actpatch.report.rendering import REPORT
from actpatch.results.baselines import Finding, baseline_findings, verdict_of
from actpatch.results.check import DatasetCheck
from actpatch.results.sweep import Sweep

if TYPE_CHECKING:
    from markupsafe import Markup


def verdict_section(check: DatasetCheck | None, sweeps: Mapping[str, Sweep]) -> Markup:
    """The verdict: of the check where there is one, else of each sweep whose pairs are other ones."""
    if check is not None:
        verdicts = [_verdict("Verdict", check.findings, next(iter(sweeps.values())))]
    else:
        groups = apart(sweeps)
        verdicts = [
            _verdict(f"Verdict for {names}" if len(groups) > 1 else "Verdict", baseline_findings(sweep), sweep)
            for names, sweep in groups.items()
        ]
    return REPORT.render("verdict.html", verdicts=verdicts, checked=check is not None)


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


def _verdict(label: str, findings: Sequence[Finding], sweep: Sweep) -> dict[str, Any]:
    severities = {finding.severity for finding in findings}
    return {
        "kind": next((severity for severity in ("fault", "care") if severity in severities), "ready"),
        "label": label,
        "text": verdict_of(findings),
        "counts": _counted(sweep),
        "findings": [replace(finding, what=with_minus(finding.what)) for finding in findings],
    }


def _counted(sweep: Sweep) -> str:
    n, shares = len(sweep.pair_indices), _shares(sweep)
    parts = [
        f"usable {_of(shares['usable'], n)}",
        f"clean better than corrupted on {_of(shares['better'], n)}",
    ]
    if "right" in shares:
        parts.append(f"the clean run right on {_of(shares['right'], n)}, the corrupted on {_of(shares['fooled'], n)}")
    return "; ".join(parts).capitalize()


def _shares(sweep: Sweep) -> dict[str, Any]:
    """Shares of the pairs: usable, clean better than corrupted, and right answers of both where a metric tells."""
    better = sweep.clean > sweep.corrupted if sweep.more_is_better else sweep.clean < sweep.corrupted
    shares = {"usable": sweep.usable.mean(), "better": better.mean()}
    for values in sweep.measured:
        if (above := right_above(values.name)) is not None:
            right, fooled = (values.clean > above).mean(), (values.corrupted > above).mean()
            return shares | {"right": right, "fooled": fooled}
    return shares


def _of(share: float, n: int) -> str:
    return f"{round(share * n):,} of {n:,} pairs"
