"""Patches at positions without a partner in the other run are shown as not matched, never as an effect of 0."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from activation_patching import summarize_results
from actpatch import Zero, create_full_report, create_group_comparison, create_position_heatmap, load_results
from actpatch.results.differences import difference_statistics
from actpatch.tasks.encoding import encode_pairs
from actpatch.tasks.unmatched import sometimes_written_sentence
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import HAS_HOOKED, small_model
from test_suite.helpers.refusals import refused
from test_suite.helpers.sweeps import patcher_on
from test_suite.oracles.aligned import partners_of, patched_run
from test_suite.oracles.one_prompt import run
from test_suite.tasks.test_alignment import Ids

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
PAIRS = [([1, 5, 6, 20 + i, 7, 8], [1, 5, 6, 30 + i, 12 + i, 7, 8]) for i in range(6)]
UNMATCHED = (3, 4)
"""Positions of the corrupted prompts that stand for nothing in the clean ones."""

pytestmark = pytest.mark.filterwarnings("ignore:.*changes? nothing", "ignore:The ", "ignore:Only ", "ignore:.*barely")


@pytest.fixture(scope="module")
def results() -> Any:
    return patcher_on(small_model(PLAIN)).run_position_experiment(Ids(PAIRS, "ends"), "resid_pre")


def test_effects_are_those_by_hand_and_nan_where_nothing_stands_for_a_position(results: Any) -> None:
    model, dataset = small_model(PLAIN), Ids(PAIRS, "ends")
    pairs, sweep = encode_pairs(model, dataset), results.sweep
    kept = sweep.usable

    def metric(logits: Any, pair: int) -> float:
        right, wrong = dataset.get_target_tokens(pair)
        return float(logits[-1, right] - logits[-1, wrong])

    clean, corrupted = (
        np.array([metric(run(model, prompt), i) for i, prompt in enumerate(prompts)])
        for prompts in (pairs.clean, pairs.corrupted)
    )
    for number, patch in enumerate(sweep.patches):
        runs = [
            patched_run(model, pairs.corrupted[i], pairs.clean[i], patch, partners_of(pairs.matches[i], "denoising"), i)
            for i in range(len(PAIRS))
        ]
        change = np.array([metric(logits, i) for i, logits in enumerate(runs)]) - corrupted
        effect = change[kept].mean() / (clean - corrupted)[kept].mean()
        if patch.sites[0].position in UNMATCHED:
            assert (
                abs(effect) < EXACT and np.isnan(sweep.effects[number]) and np.isnan(sweep.pair_effects[number]).all()
            )
        else:
            assert sweep.effects[number] == pytest.approx(effect, rel=0, abs=EXACT)
    empty = np.isnan(np.asarray(results.matrix()))
    assert empty[:, [*UNMATCHED]].all() and empty.sum() == 6


def test_statistics_are_those_of_the_other_sites_alone(results: Any) -> None:
    sweep, known = results.sweep, results.statistics()
    matched = [i for i, patch in enumerate(sweep.patches) if patch.sites[0].position not in UNMATCHED]
    alone = dataclasses.replace(
        sweep,
        patches=tuple(sweep.patches[i] for i in matched),
        measured=tuple(dataclasses.replace(m, patched=m.patched[matched]) for m in sweep.measured),
    ).statistics()
    assert known.n_corrected == alone.n_corrected == 15 and known.sites == tuple(p.label for p in sweep.patches)
    for name in ("effect", "low", "high", "p", "p_corrected", "significant", "detectable"):
        np.testing.assert_array_equal(getattr(known, name)[matched], getattr(alone, name), err_msg=name)
    rest = np.setdiff1d(np.arange(len(sweep.patches)), matched)
    assert np.isnan(known.p_corrected[rest]).all() and not known.significant[rest].any()
    assert repr(known) == repr(alone).replace("15 sites", "21 sites")


def test_tables_files_figures_and_the_report_say_not_matched(
    results: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summarize_results(results, top_k=21)
    printed = [line for line in capsys.readouterr().out.splitlines() if "not matched" in line]
    assert len(printed) == 6 and not any("n.s." in line or "+0.000" in line for line in printed)
    chosen = patcher_on(small_model(PLAIN)).run_position_experiment(
        Ids(PAIRS, "ends"), "resid_pre", positions=[UNMATCHED[0], -1]
    )
    rows = [row for row in chosen._repr_html_().split("<tr>") if "not matched" in row]
    assert len(rows) == 3 and not any("n.s." in row or "+0.000" in row for row in rows)
    table = results.to_dataframe()
    at = table["position"].isin(UNMATCHED)
    assert table.loc[at, "effect"].isna().all() and table.loc[at, "token"].isna().all()
    assert table.loc[~at & table["usable"], "effect"].notna().all()
    assert load_results(results.save(tmp_path / "results.json")) == results
    np.testing.assert_array_equal(load_results(tmp_path / "results.json").sweep.effects, results.sweep.effects)
    figure = create_position_heatmap(results)
    assert np.isnan(np.asarray(figure.data[0].z, dtype=float)[:, [*UNMATCHED]]).all()
    assert figure.to_json().count("not matched: no partner in the other run") >= 6
    create_full_report(position_results=chosen, save_dir=tmp_path)
    page = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html"))
    assert page.count(">not matched<") == 3


def test_a_position_matched_in_some_pairs_is_counted_and_told() -> None:
    mapped = [{0: 0, 5: 6, **({3: 3} if i < 2 else {})} for i in range(len(PAIRS))]
    found = patcher_on(small_model(PLAIN)).run_position_experiment(
        Ids(PAIRS, mapped), "resid_pre", positions=[3, -1], metrics="kl_divergence"
    )
    note = next(note for note in found.sweep.notes if "has a partner in" in note)
    assert note.startswith("L0 resid_pre @3 has a partner in 2 of 6 pairs (and 2 more patches in some alone): its eff")
    assert not found.sweep.unmatched.any()
    np.testing.assert_array_equal(np.isnan(found.sweep.pair_effects[0]), [False] * 2 + [True] * 4)
    last = found.sweep.of_pairs([3, 4])
    assert last.unmatched.tolist() == [True, False] * 3 and np.isnan(last.effects[0]) and last.effects[1]
    pairs = encode_pairs(small_model(PLAIN), Ids(PAIRS[:1], "ends"))
    assert sometimes_written_sentence(pairs, found.sweep.patches[1:2]) == ""


def test_what_ablations_write_needs_no_partner() -> None:
    found = patcher_on(small_model(PLAIN)).run_position_experiment(
        Ids(PAIRS, "ends"), "resid_pre", positions=[*UNMATCHED], source=Zero(), metrics="kl_divergence"
    )
    assert not found.sweep.unmatched.any() and np.isfinite(found.sweep.effects).all()


def test_a_map_of_nothing_but_unmatched_positions_cannot_be_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    found = patcher_on(small_model(PLAIN)).run_position_experiment(
        Ids(PAIRS, "ends"), "resid_pre", positions=[*UNMATCHED]
    )
    message = "no position that was patched has a partner in the other run: match or name others"
    for refusing in (create_position_heatmap, lambda results: results.statistics()):
        with refused(message):
            refusing(found)
    summarize_results(found)
    assert capsys.readouterr().out.count("not matched") == 6


def test_of_a_position_matched_in_some_pairs_only_these_count() -> None:
    """Its effect, interval and p-value are those of a sweep of these pairs alone."""
    kept = [0, 1, 2, 3, 5, 6]
    pairs = [([1, 5, 6, 20 + i, 7, 8], [1, 5, 6, 30 - i, 12 + i, 7, 8]) for i in range(8)]
    mapped = [{0: 0, 5: 6, **({3: 3} if i in kept else {})} for i in range(len(pairs))]
    model, dataset = small_model(PLAIN), Ids(pairs, mapped)
    sweep = (
        patcher_on(model)
        .run_position_experiment(dataset, "resid_pre", positions=[3, -1], metrics="kl_divergence")
        .sweep
    )
    assert sweep.usable.all()
    encoded, partly = encode_pairs(model, dataset), [i for i, at in enumerate(sweep.labels) if "@3" in at]
    alone = sweep.of_pairs(kept)
    alone = dataclasses.replace(
        alone,
        patches=tuple(alone.patches[i] for i in partly),
        measured=tuple(dataclasses.replace(m, patched=m.patched[partly]) for m in alone.measured),
    )
    known, expected = sweep.statistics(), alone.statistics()
    for number, patch in enumerate(sweep.patches):
        n_pairs = len(kept) if number in partly else len(pairs)
        assert known.pairs_at[number] == sweep.written[number].sum() == n_pairs
        if number not in partly:
            continue
        change, gap = [], []
        for i in kept:
            clean, base = run(model, encoded.clean[i])[-1], run(model, encoded.corrupted[i])[-1]
            partners = partners_of(encoded.matches[i], "denoising")
            written = patched_run(model, encoded.corrupted[i], encoded.clean[i], patch, partners, i)[-1]
            share = clean.log_softmax(-1)
            away = [float((share.exp() * (share - one.log_softmax(-1))).sum()) for one in (written, base)]
            change.append(away[0] - away[1])
            gap.append(-away[1])
        assert sweep.effects[number] == pytest.approx(np.mean(change) / np.mean(gap), rel=0, abs=EXACT)
        for name in ("effect", "low", "high", "p"):
            of_pairs = getattr(expected, name)[partly.index(number)]
            assert getattr(known, name)[number] == pytest.approx(of_pairs, rel=1e-9, nan_ok=True), name
    frame = known.to_dataframe()
    assert frame["n_pairs"].tolist() == known.pairs_at.tolist()


def test_too_few_matched_pairs_have_no_interval_and_are_told() -> None:
    mapped = [{0: 0, 5: 6, **({3: 3} if i < 3 else {})} for i in range(len(PAIRS))]
    sweep = (
        patcher_on(small_model(PLAIN))
        .run_position_experiment(Ids(PAIRS, mapped), "resid_pre", positions=[3, -1], metrics="kl_divergence")
        .sweep
    )
    known = sweep.statistics()
    few = known.pairs_at == 3
    assert few.sum() == 3 and np.isnan(known.low[few]).all() and np.isfinite(known.effect[few]).all()
    assert (known.p[few] >= 0.25).all()  # three signs, of which a pattern and its opposite are one
    assert "no interval for 3 sites patched in fewer than 5 of 6 pairs" in known.notes


def test_differences_between_experiments_rest_on_the_pairs_in_which_both_are_patched(results: Any) -> None:
    """Half a gap more in every pair that is patched is half an effect more; nothing is known where none is."""
    mapped = [{0: 0, 5: 6, **({3: 3} if i < 5 else {})} for i in range(len(PAIRS))]
    partly = patcher_on(small_model(PLAIN)).run_position_experiment(
        Ids(PAIRS, mapped), "resid_pre", positions=[3, -1], metrics="kl_divergence"
    )
    for sweep in (partly.sweep, results.sweep):
        more = 0.5 * np.where(sweep.written, sweep.source - sweep.base, 0)
        other = dataclasses.replace(
            sweep, measured=tuple(dataclasses.replace(m, patched=m.patched + more) for m in sweep.measured)
        )
        matched = [(i, i) for i in range(len(sweep.patches))]
        found = difference_statistics(sweep, other, matched, like=sweep.statistics())
        expected = np.where(sweep.unmatched, np.nan, 0.5)
        np.testing.assert_allclose(found.effect, expected, atol=1e-12)
        assert found.pairs_at.tolist() == sweep.written[:, sweep.usable].sum(axis=1).tolist()


def test_groups_are_compared_at_the_positions_of_all_pairs_alone() -> None:
    class Grouped(Ids):
        def get_group(self, pair_idx: int) -> str:
            return "even" if pair_idx % 2 == 0 else "odd"

    pairs = [([1, 5, 6, 20 + i, 7, 8], [1, 5, 6, 30 - i, 12 + i, 7, 8]) for i in range(10)]
    mapped = [{0: 0, 5: 6, **({3: 3} if i < 7 else {})} for i in range(len(pairs))]
    found = patcher_on(small_model(PLAIN)).run_position_experiment(
        Grouped(pairs, mapped), "resid_pre", positions=[3, -1], metrics="kl_divergence"
    )
    differences = found.statistics().differences
    of_all = found.sweep.written.all(axis=1)
    assert differences is not None and of_all.sum() == 3
    np.testing.assert_array_equal(np.isnan(differences.p), ~of_all)
    assert "even" in create_group_comparison(found).to_json()
