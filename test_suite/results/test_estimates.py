"""Results that are estimates say so wherever they are printed, shown, tabulated, summed up or saved."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_patching import load_results, summarize_results
from actpatch.core.estimates import METHODS, Estimate
from actpatch.results.both import BothDirections
from actpatch.results.differences import difference_statistics
from actpatch.results.shapes import KINDS, HeadResults, SweepResults
from head_patching import HeadPatcher
from test_suite.helpers.estimates import ATP, IG, MAKERS, results_of, says_estimated
from test_suite.helpers.pages import shown_text
from test_suite.helpers.results import N_PAIRS, both_ways, of_no_experiment
from test_suite.helpers.sweeps import engine_on
from visualize import headline

FROM = "estimated by atp (gradient in the run that is patched)"


def test_every_shape_of_the_library_is_tried() -> None:
    ours = {name for name, kind in KINDS.items() if kind.__module__.startswith("actpatch.")}
    assert ours == MAKERS.keys()


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_printed_and_shown_says_estimated(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = results_of(kind)
    for shown in (results.sweep, results, results.by_metric(results.metrics[0])):
        assert "denoising, estimated by atp, " in repr(shown)
    summarize_results(results)
    printed = capsys.readouterr().out
    unbroken = " ".join(printed.split())
    assert FROM in unbroken and "no patch was run" in unbroken
    assert "est. effect" in printed and re.search(r"est\. logit\s", printed)
    assert "about the estimate by atp, not about the exact effect" in unbroken
    page = " ".join(shown_text(results._repr_html_()).split())
    assert FROM in page and "est. effect" in page and "est. logit difference" in page
    assert "about the estimate by atp, not about the exact effect" in page


@pytest.mark.parametrize("kind", MAKERS)
def test_of_exact_effects_nothing_is_said_of_estimates(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = results_of(kind, None)
    summarize_results(results)
    said = [repr(results), capsys.readouterr().out, results._repr_html_(), headline(results)]
    assert not any(map(says_estimated, said))
    assert set(results.to_dataframe()["estimate"]) == {""}
    assert "estimate" not in results.statistics().to_dataframe()


@pytest.mark.parametrize("kind", MAKERS)
def test_several_metrics_are_all_named_estimated(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = results_of(kind).sweep
    other = replace(sweep.measured[0], name="log-probability")
    summarize_results(KINDS[kind](replace(sweep, measured=(*sweep.measured, other))))
    printed = capsys.readouterr().out
    assert "estimated effect on each metric" in printed and printed.count("est. ") == 2


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_a_sentence_claims_no_more_than_the_estimate(kind: str, direction: str) -> None:
    told = headline(results_of(kind, direction=direction))
    assert (
        told.startswith("Estimated by atp, ") and "would matter (corrected p of the estimate ≤ 0.05, 12 pairs)" in told
    )
    assert ("would restore" if direction == "denoising" else "would take away") in told
    assert not re.search(r"\b(restores|takes away|matters|works|acts)\b", told)
    exact = headline(results_of(kind, None, direction=direction))
    assert ("restores" if direction == "denoising" else "takes away") in exact and not says_estimated(exact)


def test_of_sizes_without_sign_no_sentence_says_that_they_matter_or_which_way() -> None:
    told = headline(results_of("HeadResults", Estimate("atp_star")))
    assert told.startswith("Estimated by atp_star, of 12 heads, L") and "most, either way, by 0." in told
    assert "restore" not in told and "corrected" not in told and "would matter" not in told


def test_sentences_of_exact_and_estimated_results_are_each_labelled() -> None:
    told = headline(results_of("HeadResults", None), results_of("LayerResults", ATP)).split("; ")
    assert "restores" in told[0] and not says_estimated(told[0])
    assert told[1].startswith("estimated by atp, ") and "would restore" in told[1]


def test_groups_in_a_sentence_are_estimated_too() -> None:
    sweep = results_of("HeadResults", groups=("a", "b") * (N_PAIRS // 2)).sweep
    (values,) = sweep.measured
    in_one_group = np.where(np.arange(N_PAIRS) % 2, 0.8, 0.0) * np.ones((len(sweep.patches), 1))
    patched = sweep.base + in_one_group * (sweep.source - sweep.base)
    told = headline(HeadResults(replace(sweep, measured=(replace(values, patched=patched),))))
    assert told.startswith("Estimated by atp, 12 of 12 heads would act otherwise in one group of pairs")
    assert "would restore 0" in told


@pytest.mark.parametrize("kind", MAKERS)
def test_tables_have_the_method_with_its_steps_and_grid(kind: str) -> None:
    for estimate, method in ((ATP, "atp"), (IG, "eap_ig (3 steps, right grid)")):
        results = results_of(kind, estimate)
        assert set(results.to_dataframe()["estimate"]) == {method}
        assert set(results.statistics().to_dataframe()["estimate"]) == {method}


def test_entries_of_results_say_so_by_themselves() -> None:
    for kind in MAKERS:
        results = results_of(kind)
        if kind == "LayerResults":
            results = next(iter(results.values()))
        entries = list(results)[:2] if hasattr(results, "__iter__") else []
        assert entries or kind in ("SweepResults", "PositionResults")
        for entry in (*entries, *(replace(one) for one in entries)):
            assert entry.estimate == ATP and "estimated effect" in repr(entry)


def test_copies_and_parts_stay_estimates(tmp_path: Path) -> None:
    results = results_of("HeadResults", IG, groups=("a", "b") * (N_PAIRS // 2))
    parts = [results.top(3), results[1:4], results[2:3].by_metric("logit difference"), *results.by_group().values()]
    parts += [results.sorted_by(lambda head: head.effect), load_results(results.top(2).save(tmp_path / "part.json"))]
    for part in parts:
        assert part.sweep.estimate == part.sweep.entire.estimate == IG
        assert all(head.estimate == IG for head in part)
    assert results.sweep.of_pairs([0, 3]).estimate == IG
    exact = HeadResults(replace(results.sweep, estimate=None))
    assert exact != results and exact.sweep != results.sweep and exact[0] != results[0]
    with pytest.raises(ValueError, match="estimate are not those of the whole experiment"):
        replace(results.top(2).sweep, estimate=None)


def test_a_sweep_has_the_estimate_of_the_engine_that_made_it(heads_patcher: HeadPatcher, ioi: Any) -> None:
    exact = heads_patcher.run_all_heads_experiment(ioi, pair_indices=[0, 1, 2])
    assert exact.sweep.estimate is None and not says_estimated(repr(exact))
    estimated = HeadResults(replace(exact.sweep, estimate=ATP))
    assert estimated != exact and "estimated by atp" in repr(estimated)
    np.testing.assert_array_equal(estimated.sweep.effects, exact.sweep.effects)
    assert engine_on(heads_patcher.model).estimate is None
    assert engine_on(heads_patcher.model, estimate=ATP).estimate == ATP
    engine = heads_patcher.patcher.engine
    engine.estimate = ATP
    try:
        found = heads_patcher.run_all_heads_experiment(ioi, pair_indices=[0, 1, 2])
        with pytest.raises(
            ValueError, match=r"cards have exact effects, these would be estimated by atp: use HeadPatcher"
        ):
            heads_patcher.describe_heads(ioi, [(0, 0)])
    finally:
        engine.estimate = None
    assert found.sweep.estimate == ATP
    drawn = heads_patcher.attention_patterns(ioi, estimated.top(2))
    assert drawn.estimate == ATP and drawn.effects
    with pytest.raises(
        ValueError, match=r"effects are exact and estimated by atp, which have no mean: give pair_index"
    ):
        heads_patcher.attention_patterns(ioi, [exact[0], estimated[1]])
    mixed = heads_patcher.attention_patterns(ioi, [exact[0], estimated[1]], pair_index=0)
    assert mixed.effects == () and mixed.estimate is None


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("estimate", [None, *(Estimate(method) for method in METHODS), IG])
def test_files_give_back_the_estimate(kind: str, estimate: Estimate | None, tmp_path: Path) -> None:
    results = results_of(kind, estimate)
    loaded = load_results(results.save(tmp_path / "results.json"))
    assert loaded == results and loaded.sweep.estimate == estimate


def test_files_from_before_estimates_are_exact(tmp_path: Path) -> None:
    results = results_of("HeadResults", None)
    path = results.save(tmp_path / "heads.json")
    stored = json.loads(path.read_text())
    assert stored["format"] == 10
    del stored["sweeps"][0]["estimate"]
    path.write_text(json.dumps({**stored, "format": 9}))
    assert load_results(path) == results


@pytest.mark.parametrize(
    ("changes", "file_format", "message"),
    [
        ({"estimate": {"method": "magic", "steps": None, "grid": None}}, 10, "method 'magic' is unknown"),
        ({"estimate": {"method": "eap_ig", "steps": 0, "grid": "left"}}, 10, "steps is 0"),
        ({"estimate": {"method": "eap_ig", "steps": 5, "grid": "up"}}, 10, "grid 'up' is unknown"),
        ({"estimate": {"method": "eap_ig", "steps": None, "grid": None}}, 10, "lacks the steps and the grid"),
        ({"estimate": {"method": "atp", "steps": 5, "grid": None}}, 10, "takes no steps"),
        ({"estimate": {"method": "atp"}}, 10, "lacks the steps and the grid"),
        ({"estimate": "atp"}, 10, "TypeError"),
        ({}, 10, "KeyError: 'estimate'"),
        ({"estimate": {"method": "atp", "steps": None, "grid": None}}, 9, "files of format 9 know no estimates"),
    ],
)
def test_files_that_lie_about_the_estimate_are_refused(
    changes: dict[str, Any], file_format: int, message: str, tmp_path: Path
) -> None:
    path = results_of("HeadResults").save(tmp_path / "heads.json")
    stored = json.loads(path.read_text())
    del stored["sweeps"][0]["estimate"]
    stored["sweeps"][0] |= changes
    path.write_text(json.dumps({**stored, "format": file_format}))
    with pytest.raises(ValueError, match=rf"heads\.json is damaged .*{message}"):
        load_results(path)


# --- what is concluded -------------------------------------------------------------------------------------------


def test_statistics_are_said_to_be_about_the_estimate() -> None:
    exact, estimated = (results_of("HeadResults", estimate).statistics() for estimate in (None, ATP))
    assert exact.estimate is None and estimated.estimate == ATP
    np.testing.assert_array_equal(exact.p_corrected, estimated.p_corrected)
    note = "intervals and p-values are about the estimate by atp, not about the exact effect"
    assert note in estimated.notes and note not in exact.notes
    assert repr(estimated).endswith(", estimated by atp)") and not says_estimated(repr(exact))
    assert results_of("HeadResults").top(2).statistics().estimate == ATP


def test_sizes_without_sign_are_not_tested(capsys: pytest.CaptureFixture[str]) -> None:
    results = results_of("HeadResults", Estimate("atp_star"))
    statistics = results.statistics()
    assert not statistics.significant.any() and not statistics.tells_significance
    assert "atp_star estimates sizes without sign, which are above 0 whether" in statistics.too_few
    summarize_results(results)
    printed = capsys.readouterr().out
    assert "Nothing is marked as significant or not: atp_star estimates sizes" in " ".join(printed.split())
    assert "n.s." not in printed
    with pytest.warns(UserWarning, match="nothing is significant at 0.05: atp_star estimates sizes"):
        assert not statistics.significant_or_warned().any()


def test_important_heads_are_those_of_the_estimate(heads_patcher: HeadPatcher, recwarn: Any) -> None:
    exact, estimated = (results_of("HeadResults", estimate) for estimate in (None, ATP))
    find = heads_patcher.find_important_heads
    chosen = find(exact, 0.1, alpha=0.05)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="about the estimate by atp, not about the exact effect"):
        found = find(estimated, 0.1, alpha=0.05)
    assert [head.label for head in found] == [head.label for head in chosen] and found
    assert all(head.estimate == ATP for head in found)
    with pytest.warns(UserWarning, match=r"are not significant .* about the estimate by atp"):
        find(estimated, 0.0)
    with pytest.raises(ValueError, match=r"effects that are exact and estimated by atp: choose from those of one kind"):
        find([*of_no_experiment(exact)[:2], *of_no_experiment(estimated)[2:]], 0.1)


def test_readings_of_both_directions_are_labelled_and_never_mixed(tmp_path: Path) -> None:
    exact, estimated = both_ways(), both_ways(estimate=ATP)
    assert "estimate" not in exact.reading() and set(estimated.reading()["estimate"]) == {"atp"}
    with pytest.warns(UserWarning, match="about the estimate by atp"):
        estimated.reading(alpha=0.05)
    loaded = load_results(estimated.save(tmp_path / "both.json"))
    assert loaded == estimated and loaded.noising.sweep.estimate == ATP
    with pytest.raises(ValueError, match="denoising is estimated by atp, noising exact"):
        BothDirections(estimated.denoising, exact.noising)


def test_differences_say_what_is_compared() -> None:
    exact, estimated, other = (results_of("HeadResults", estimate) for estimate in (None, ATP, IG))
    matched = [(i, i) for i in range(len(exact))]

    def notes(first: SweepResults, second: SweepResults) -> str:
        found = difference_statistics(first.sweep, second.sweep, matched, like=first.statistics())
        return "; ".join(found.notes)

    assert not says_estimated(notes(exact, exact))
    sizes = results_of("HeadResults", Estimate("atp_star"))
    assert "second estimated by atp_star: what is tested is how far" in notes(sizes, sizes)
    assert "about the estimate by atp" in notes(estimated, estimated)
    assert "the first effects are exact, the second estimated by atp: what is tested is how far" in notes(
        exact, estimated
    )
    assert "the first effects are estimated by atp, the second estimated by eap_ig (3 steps" in notes(estimated, other)
