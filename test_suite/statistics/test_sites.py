"""Statistics of all sites: the same whatever the order, seed and portions, and as results select and print them."""

from __future__ import annotations

import re
import tracemalloc
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from activation_patching import ActivationPatcher, IOIDataset, summarize_results
from actpatch.results.shapes import HeadResults
from actpatch.statistics import resampling as patching_resampling
from actpatch.statistics.evidence import WEIGHTS
from actpatch.statistics.resampling import detectable_size, ratio_intervals
from actpatch.statistics.sites import SiteStatistics, site_statistics
from actpatch.statistics.skewness import skewness_weight
from head_patching import HeadPatcher, print_head_results
from test_suite.helpers.models import bundled
from test_suite.helpers.statistics import random_map

PER_SITE = ("effect", "low", "high", "p", "p_corrected", "significant", "too_skewed", "in_doubt", "detectable")


# --- values, seeds and order ------------------------------------------------------------------------------------------


def assert_same(found: SiteStatistics, expected: SiteStatistics, **tolerance: float) -> None:
    for name in PER_SITE:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), **{"rtol": 0, **tolerance})
    np.testing.assert_allclose(found.split_half, expected.split_half, **{"rtol": 0, **tolerance})


@pytest.mark.parametrize("n_pairs", [7, 30])
def test_a_seed_gives_the_same_numbers_and_another_seed_others(n_pairs):
    patched, base, source = random_map(2, n_pairs=n_pairs)
    first, again, other = (site_statistics(patched, base, source, seed=seed) for seed in (3, 3, 4))
    assert_same(first, again)
    assert np.mean(first.low != other.low) > 0.8 and first.split_half != other.split_half
    assert (first.p == other.p).all() == (n_pairs == 7)
    np.testing.assert_allclose(first.high - first.low, other.high - other.low, rtol=0.5)


@pytest.mark.parametrize("n_pairs", [7, 30])
def test_numbers_do_not_depend_on_the_order_of_sites(n_pairs):
    # As few sites as need no more sign flips than four of them do.
    patched, base, source = random_map(3, n_sites=24, n_pairs=n_pairs)
    order = np.random.default_rng(0).permutation(24)
    plain, shuffled = site_statistics(patched, base, source), site_statistics(patched[order], base, source)
    for name in PER_SITE:
        np.testing.assert_allclose(getattr(shuffled, name), getattr(plain, name)[order], rtol=1e-9)
    assert shuffled.split_half == pytest.approx(plain.split_half, abs=1e-12)
    laid_out = site_statistics(np.asfortranarray(patched), base, source)
    assert_same(laid_out, plain)
    few = site_statistics(patched[5:9], base, source)
    for name in ("effect", "low", "high"):
        np.testing.assert_allclose(getattr(few, name), getattr(plain, name)[5:9], rtol=1e-9)


def test_portions_of_sites_change_nothing(monkeypatch):
    patched, base, source = random_map(4, n_sites=50, n_pairs=30)
    whole = site_statistics(patched, base, source)
    monkeypatch.setattr(patching_resampling, "MOST_CELLS", 9000)
    changes, gaps = patched - base, source - base
    low, high = ratio_intervals(changes, gaps, seed=1)
    monkeypatch.undo()
    np.testing.assert_allclose([low, high], ratio_intervals(changes, gaps, seed=1), rtol=1e-9)
    assert_same(whole, site_statistics(patched, base, source))


def test_settings_change_what_they_are_about_and_nothing_else():
    patched, base, source = random_map(5)
    usual = site_statistics(patched, base, source)
    narrower, stricter, surer = (
        site_statistics(patched, base, source, **setting)
        for setting in ({"level": 0.5}, {"alpha": 0.01}, {"power": 0.95})
    )
    assert (narrower.high - narrower.low < 0.6 * (usual.high - usual.low)).all()
    assert 0 < stricter.significant.sum() < usual.significant.sum()
    weight = round(WEIGHTS * skewness_weight(patched - base)) / WEIGHTS
    sizes = [detectable_size(12, 0.05 / 16, power=power, weight=weight) for power in (0.8, 0.95)]
    np.testing.assert_allclose(surer.detectable / usual.detectable, sizes[1] / sizes[0])
    for found, changed in (
        (narrower, "low high in_doubt"),
        (stricter, "significant too_skewed detectable"),
        (surer, "detectable"),
    ):
        for name in set(PER_SITE) - set(changed.split()):
            np.testing.assert_array_equal(getattr(found, name), getattr(usual, name))


@pytest.mark.parametrize(("factor", "shift"), [(1, 100.0), (4.0, 0), (-2.0, 3.0)])
def test_units_and_origin_of_the_metric_do_not_matter(factor, shift):
    patched, base, source = random_map(5)
    moved = site_statistics(*(factor * values + shift for values in (patched, base, source)))
    assert_same(moved, site_statistics(patched, base, source), rtol=1e-6)


def test_table_of_statistics_has_a_row_per_site():
    patched, base, source = random_map(6)
    found = site_statistics(patched, base, source, sites=[f"site {i}" for i in range(16)])
    table = found.to_dataframe()
    assert list(table["site"]) == list(found.sites) and (table["n_pairs"] == 12).all()
    for name in PER_SITE:
        np.testing.assert_array_equal(table[name], getattr(found, name))
    np.testing.assert_allclose(table["effect"], (patched.mean(1) - base.mean()) / (source.mean() - base.mean()))
    assert len(repr(found)) < 200 and f"{found.significant.sum()} significant" in repr(found)


def test_few_pairs_have_no_made_up_numbers():
    patched, base, source = random_map(7)
    for n_pairs, said in (
        (1, "one pair does not show how much pairs differ"),
        (4, "no p can be below 0.12 with 4 pairs, so one site alone among"),
    ):
        found = site_statistics(patched[:, :n_pairs], base[:n_pairs], source[:n_pairs])
        assert np.isnan(found.low).all() and np.isnan(found.high).all() and np.isnan(found.detectable_effect)
        assert not found.significant.any() and found.notes[0].startswith(said)
        assert found.notes[0] == found.too_few and not found.tells_significance
        assert ("4 pairs are too few for intervals: use at least 5" in found.notes) == (n_pairs == 4)
    for n_pairs, rough in ((9, True), (10, False)):
        found = site_statistics(patched[:, :n_pairs], base[:n_pairs], source[:n_pairs])
        assert np.isfinite(found.low).all() and any("below 10 pairs" in note for note in found.notes) == rough
    idle = site_statistics(np.tile(base, (3, 1)), base, source)
    assert np.isnan(idle.detectable_effect) and any("no site changes anything" in note for note in idle.notes)
    alone = site_statistics(patched[:1], base, source)
    assert np.isnan(alone.split_half) and any("no split-half agreement" in note for note in alone.notes)


@pytest.mark.slow
@pytest.mark.one_version
def test_a_large_map_takes_little_memory():
    patched, base, source = random_map(8, n_sites=1000, n_pairs=100)
    tracemalloc.start()
    site_statistics(patched, base, source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 2**20


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": 0}, r"level is 0, expected a number between 0 and 1"),
        ({"level": 95}, r"level is 95, expected a number between 0 and 1, for instance 0\.95"),
        ({"level": float("nan")}, r"level is nan, expected a number between 0 and 1"),
        ({"alpha": 1.0}, r"alpha is 1\.0, expected a number between 0 and 1"),
        ({"power": -0.8}, r"power is -0\.8, expected a number between 0 and 1"),
        ({"power": 0.04}, r"power is 0\.04, expected more than alpha \(0\.05\)"),
        ({"seed": -1}, "seed is -1, expected an integer of at least 0"),
        ({"seed": None}, "seed is None, expected an integer of at least 0"),
        ({"seed": 0.5}, r"seed is 0\.5, expected an integer of at least 0"),
        ({"correction": "holm"}, "correction 'holm' is unknown: expected one of bh, by"),
        ({"n_resamples": 30}, r"n_resamples is 30, expected an integer of at least 39 for a level of 0\.95"),
        ({"n_resamples": 1e3}, r"n_resamples is 1000\.0, expected an integer of at least 39"),
        ({"sites": ["one"]}, r"patched has shape \(16, 12\), expected \(sites, pairs\) = \(1, 12\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        site_statistics(*random_map(0), **settings)


def test_fewest_resamples_of_a_level_are_enough():
    for level, fewest in ((0.95, 39), (0.9, 19), (0.99, 199)):
        found = site_statistics(*random_map(0), level=level, n_resamples=fewest)
        assert np.isfinite(found.low).all() and (found.low < found.high).all()


def test_values_without_statistics_are_refused():
    patched, base, source = random_map(0)
    with pytest.raises(ValueError, match="no pair is usable: use a corruption that breaks the behaviour"):
        site_statistics(patched[:, :0], base[:0], source[:0])
    with pytest.raises(ValueError, match="there are no sites"):
        site_statistics(patched[:0], base, source)
    with pytest.raises(ValueError, match="their mean is 0"):
        site_statistics(patched, base, base)
    for broken in (np.nan, np.inf):
        with pytest.raises(ValueError, match="source is NaN or inf at 1 pair, first 2: leave those pairs out"):
            site_statistics(patched, base, np.where(np.arange(12) == 2, broken, source))
        holed = patched.copy()
        holed[4, 1] = holed[6, 0] = broken
        with pytest.raises(ValueError, match="2 sites of 16 hold NaN or inf, first L1H0: leave those sites, or the"):
            site_statistics(holed, base, source, sites=[f"L{i // 4}H{i % 4}" for i in range(16)])


# --- on a real sweep --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_ioi_heads() -> tuple[HeadPatcher, HeadResults]:
    model = bundled()
    patcher = HeadPatcher(model, show_progress=False)
    metrics = ["logit_difference", "probability", "accuracy"]
    return patcher, patcher.run_all_heads_experiment(IOIDataset(model, 20), metrics=metrics)


def test_largest_head_of_the_bundled_model_is_significant(tiny_ioi_heads):
    _, results = tiny_ioi_heads
    found = results.statistics()
    sweep = results.sweep
    largest = int(np.abs(sweep.effects).argmax())
    assert found.significant[largest] and found.low[largest] > 0 and found.sites[largest] == results.top(1)[0].label
    np.testing.assert_allclose(found.effect, sweep.effects)
    assert ((found.low <= found.effect) & (found.effect <= found.high)).all() and 0.5 < found.split_half <= 1
    changes = sweep.patched - sweep.base
    expected = stats.false_discovery_control(stats.ttest_1samp(changes, 0, axis=1).pvalue)
    clear = np.abs(np.log10(expected / 0.05)) > 0.5
    assert clear.any() and (found.significant == (expected <= 0.05))[clear].all()


def test_statistics_are_of_the_selected_metric_and_the_usable_pairs(tiny_ioi_heads):
    _, results = tiny_ioi_heads
    chosen = results.by_metric("probability")
    values = chosen.sweep
    settings: dict[str, Any] = {"level": 0.8, "alpha": 0.2, "correction": "by", "power": 0.6, "n_resamples": 99}
    told, expected = (
        chosen.statistics(seed=5, **settings),
        site_statistics(values.patched, values.base, values.source, seed=5, **settings),
    )
    assert_same(told, expected)
    assert {name: getattr(told, name) for name in settings} == settings and told.sites == tuple(
        r.label for r in results
    )
    assert (chosen.statistics().low != results.statistics().low).all()
    idle = values.measured[values.selected]
    idle = replace(idle, corrupted=np.where(np.arange(20) < 3, idle.clean, idle.corrupted))
    with_idle = HeadResults(replace(values, measured=(idle,), selected=0))
    found = with_idle.statistics(seed=5)
    assert found.n_pairs == 17
    kept = slice(3, None)
    assert_same(found, site_statistics(values.patched[:, kept], values.base[kept], values.source[kept], seed=5))


def test_important_heads_can_be_those_that_are_significant(tiny_ioi_heads):
    patcher, results = tiny_ioi_heads
    significant = {label for label, sure in zip(results.statistics().sites, results.statistics().significant) if sure}
    large = {r.label for r in results if abs(r.effect) >= 0.1}
    assert significant - large and large - significant
    for threshold, alpha, expected in ((0.1, None, large), (None, 0.05, significant), (0.1, 0.05, large & significant)):
        found = patcher.find_important_heads(results, threshold, alpha=alpha)
        assert {r.label for r in found} == expected
        assert [abs(r.effect) for r in found] == sorted((abs(r.effect) for r in found), reverse=True)
    assert patcher.find_important_heads(results) == patcher.find_important_heads(list(results), threshold=0.1)
    first = results.sweep.measured[0]
    opposite = HeadResults(
        replace(results.sweep, measured=(replace(first, patched=2 * results.sweep.base - first.patched),))
    )
    for found in (opposite.top(4), patcher.find_important_heads(opposite)[:4]):
        assert [(r.label, r.effect) for r in found] == [(r.label, pytest.approx(-r.effect)) for r in results.top(4)]
    turned = HeadResults(results.sweep)
    turned.reverse()
    assert patcher.find_important_heads(turned, alpha=0.05) == patcher.find_important_heads(results, alpha=0.05)


def test_heads_that_cannot_be_selected_are_refused(tiny_ioi_heads):
    patcher, results = tiny_ioi_heads
    with pytest.raises(ValueError, match="results are entries of no one experiment, expected those of run_all_heads"):
        patcher.find_important_heads([replace(head) for head in results], alpha=0.05)
    with pytest.raises(ValueError, match="threshold and alpha are both None, so nothing is selected"):
        patcher.find_important_heads(results, None)
    with pytest.raises(ValueError, match=r"alpha is 5, expected a number between 0 and 1"):
        patcher.find_important_heads(results, alpha=5)


def told_effect(found: SiteStatistics, i: int) -> str:
    """What a table says of a site, as a pattern; for a site that has an interval."""
    effect, low, high = (re.escape(f"{values[i]:+.3f}") for values in (found.effect, found.low, found.high))
    return rf"{effect} +\[ *{low}, +{high}\]"


def printed_heads(results: HeadResults, capsys: Any, **options: Any) -> str:
    capsys.readouterr()
    print_head_results(results, **options)
    return capsys.readouterr().out


def test_printed_heads_have_their_interval_and_a_mark_where_not_significant(tiny_ioi_heads, capsys):
    _, results = tiny_ioi_heads
    alone = HeadResults(replace(results.sweep, measured=results.sweep.measured[:1]))
    text = printed_heads(alone, capsys, top_k=16)
    found = alone.statistics()
    for i, label in enumerate(found.sites):
        (row,) = (line for line in text.splitlines() if line.startswith(f"{label} "))
        assert re.search(told_effect(found, i), row)
        assert ("n.s." in row) == (not found.significant[i])
    told = " ".join(text.split())
    assert "95% intervals. n.s.: p > 0.05 after Benjamini-Hochberg correction over 16 heads." in told
    assert f"Smallest effect that 20 pairs find with power 0.8: {found.detectable_effect:.3f} at the median" in told


def test_printed_intervals_of_several_metrics_are_those_of_each(tiny_ioi_heads, capsys):
    _, results = tiny_ioi_heads
    text = printed_heads(results, capsys, top_k=2)
    for metric in results.metrics:
        chosen = results.by_metric(metric)
        found = chosen.statistics()
        for label in (r.label for r in results.top(2)):
            i = found.sites.index(label)
            assert re.search(rf"^{label} .*{told_effect(found, i)}", text, re.MULTILINE)
        reach = f"{metric}: Smallest effect that 20 pairs find with power 0.8: {found.detectable_effect:.3f} at"
        assert reach in " ".join(text.split())
    assert "each metric apart" in text


def test_important_heads_that_are_not_significant_are_named():
    patcher, model = HeadPatcher(bundled(), show_progress=False), bundled()
    results = patcher.run_all_heads_experiment(IOIDataset(model, 10))
    found = results.statistics()
    with pytest.warns(UserWarning) as told:
        important = patcher.find_important_heads(results, threshold=0.05)
    lacking = [head.label for head in important if not found.significant[results.labels.index(head.label)]]
    (warning,) = [str(one.message) for one in told]
    assert lacking and warning == (
        f"{len(lacking)} of these {len(important)} heads are not significant (p > 0.05 after correction): "
        f"{', '.join(lacking)}; alpha=0.05 leaves them out"
    )
    with pytest.warns(UserWarning, match="not known which of these heads are significant: no p can be below 0.062"):
        patcher.find_important_heads(patcher.run_all_heads_experiment(IOIDataset(model, 5)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert patcher.find_important_heads(results, threshold=0.05, alpha=0.05)
        patcher.find_important_heads(results, threshold=9)


@pytest.mark.parametrize("n_pairs", [1, 3, 6, 12])
def test_printed_tables_say_what_they_lack_in_80_columns(n_pairs, capsys):
    model = bundled()
    patcher = ActivationPatcher(model, show_progress=False)
    dataset = IOIDataset(model, n_pairs)
    names = ["attn_out", "resid_mid", "blocks.1.attn.hook_attn_scores", "hook_embed"]
    for metrics in (None, ["logit_difference", "rank", "log_probability", "accuracy"]):
        results = patcher.run_patching_experiment(dataset, names, metrics=metrics)
        capsys.readouterr()
        summarize_results(results, top_k=20)
        text = capsys.readouterr().out
        told = " ".join(text.split())
        assert max(map(len, text.splitlines())) <= 80
        assert ("95% interval" in text) == (n_pairs >= 5)
        untold = told.count("Nothing is marked as significant or not: ")
        assert untold == ("n.s." not in text) and {1: untold, 3: untold, 12: not untold}.get(n_pairs, True)
        assert told.count("cannot be significant: use at least") == (n_pairs in (3, 6))
        assert ("so there are no intervals and no significance: use at least 5 pairs." in told) == (n_pairs == 1)
        assert ("3 pairs are too few for intervals: use at least 5." in told) == (n_pairs == 3)
        assert ("below 10 pairs intervals are rough" in told) == (n_pairs == 6)


def test_tables_are_printed_where_there_are_no_statistics(tiny_ioi_heads, capsys):
    _, results = tiny_ioi_heads
    first = results.sweep.measured[0]
    idle = replace(first, corrupted=first.clean)
    nothing = printed_heads(HeadResults(replace(results.sweep, measured=(idle,))), capsys, top_k=2)
    assert "Note: no intervals and no significance: no pair is usable: use a corruption that" in nothing
    holed = replace(first, patched=np.where(np.eye(16, 20) > 0, np.nan, first.patched))
    text = printed_heads(HeadResults(replace(results.sweep, measured=(holed, *results.sweep.measured[1:]))), capsys)
    assert "Note on logit difference: no intervals and no significance: 16 sites of 16" in " ".join(text.split())
    assert "probability: Smallest effect that 20 pairs find" in " ".join(text.split())
