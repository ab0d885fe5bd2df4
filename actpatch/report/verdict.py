"""Can these pairs carry a conclusion?  What a linter of datasets found, or else what the runs' own baselines show."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from actpatch.metrics.registry import right_above
from actpatch.results.baselines import Finding, baseline_findings, verdict_of
from actpatch.results.check import DatasetCheck
from actpatch.results.sweep import Sweep


def verdict_section(check: DatasetCheck | None, sweeps: Mapping[str, Sweep]) -> str:
    """The verdict: of the check where there is one, else of each sweep whose pairs are other ones."""
    if check is not None:
        return _verdict("Verdict", check.findings, _counted(next(iter(sweeps.values()))))
    parts = []
    groups = apart(sweeps)
    for names, sweep in groups.items():
        label = f"Verdict for {names}" if len(groups) > 1 else "Verdict"
        parts.append(_verdict(label, baseline_findings(sweep), _counted(sweep)))
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


def _verdict(label: str, findings: Sequence[Finding], counted: str = "") -> str:
    severities = {finding.severity for finding in findings}
    kind = next((severity for severity in ("fault", "care") if severity in severities), "ready")
    items = "".join(f"<li>{_sentence(finding)}</li>" for finding in findings)
    listed = f"<ul>{items}</ul>" if items else ""
    return f'<div class="verdict {kind}"><p>{label}: {verdict_of(findings)}</p>{counted}{listed}</div>'


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
    for values in sweep.measured:
        if (above := right_above(values.name)) is not None:
            right, fooled = (values.clean > above).mean(), (values.corrupted > above).mean()
            return shares | {"right": right, "fooled": fooled}
    return shares


def _of(share: float, n: int) -> str:
    return f"{round(share * n):,} of {n:,} pairs"
