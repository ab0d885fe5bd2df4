"""The heads of an experiment that stand out, by the size of their effect and by how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from actpatch.core.estimate_words import exact_or_estimated, of_estimates
from actpatch.core.text import count
from actpatch.core.warn import warn_user
from actpatch.results.both import check_kind
from actpatch.results.items import HeadPatchingResult, HeadPositionPatchingResult
from actpatch.results.shapes import sweep_of_items
from actpatch.results.sweep import Sweep
from actpatch.statistics.site_notes import MOST_NAMED


def important_heads(results: Sequence[Any], threshold: float | None, alpha: float | None) -> list[Any]:
    """What `HeadPatcher.find_important_heads` returns; it explains the arguments and errors."""
    if threshold is None and alpha is None:
        raise ValueError("threshold and alpha are both None, so nothing is selected: give at least one")
    if threshold is not None and (not isinstance(threshold, Real) or not threshold >= 0):
        raise ValueError(f"threshold is {threshold!r}, expected at least 0: it is compared with |effect|")
    check_kind(results, Sequence, "run_all_heads_experiment")
    kinds = (HeadPatchingResult, HeadPositionPatchingResult)
    if wrong := [entry for entry in results if not isinstance(entry, kinds)]:
        raise ValueError(f"results holds a {type(wrong[0]).__name__}, expected HeadPatchingResult")
    if len(kinds_of := dict.fromkeys(exact_or_estimated(entry.estimate) for entry in results)) > 1:
        raise ValueError(f"results holds effects that are {' and '.join(kinds_of)}: choose from those of one kind")
    important = [r for r in results if abs(r.effect) >= (threshold or 0)]
    sweep = sweep_of_items(results) if len(results) else None
    if alpha is None:
        _warn_of_insignificant(results, important, sweep)
    elif len(results):
        if sweep is None:
            raise ValueError(
                "results are entries of no one experiment, expected those of run_all_heads_experiment: alpha needs "
                "every pair and head of it. Use threshold alone, or give the results themselves"
            )
        significant = dict(zip(map(id, results), sweep.statistics(alpha=alpha).significant_or_warned()))
        important = [r for r in important if significant[id(r)]]
    return sorted(important, key=lambda r: abs(r.effect), reverse=True)


def _warn_of_insignificant(results: Sequence[Any], important: Sequence[Any], sweep: Sweep | None) -> None:
    """Says which of the heads are not significant at the usual level, as far as that is known."""
    try:
        statistics = sweep.statistics() if sweep is not None and important else None
    except ValueError:  # there is no significance to speak of, and baselines have been warned of
        return
    if statistics is None:
        return
    if not statistics.tells_significance:
        warn_user(f"it is not known which of these heads are significant: {statistics.too_few}")
        return
    significant = dict(zip(map(id, results), statistics.significant))
    lacking = [head.label for head in important if not significant[id(head)]]
    if lacking:
        more = f" and {len(lacking) - MOST_NAMED} more" if len(lacking) > MOST_NAMED else ""
        about = f"; {of_estimates(statistics.estimate)}" if statistics.estimate else ""
        warn_user(
            f"{len(lacking)} of these {count(len(important), 'head')} are not significant (p > {statistics.alpha:g} "
            f"after correction): {', '.join(lacking[:MOST_NAMED])}{more}; alpha={statistics.alpha:g} leaves "
            f"them out{about}"
        )
