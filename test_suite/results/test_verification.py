"""A verification's numbers are those of its sweeps, and its sentences say no more than they carry."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import actpatch
from actpatch.core.estimates import Estimate
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.results.stability import stability_of
from actpatch.statistics.unverified import most_above
from test_suite.helpers.results import made_up_heads, made_up_sweep, same_metrics
from test_suite.helpers.verifications import both_sweeps, verified, verified_edges, verified_heads, with_effects


@pytest.fixture(scope="module")
def edges() -> actpatch.Verification:
    return verified_edges()


def sweeps(seed: int = 0, **changes):
    return both_sweeps(made_up_heads(4, 6, **changes).sweep, seed=seed)


def test_effects_stand_where_their_sites_are():
    estimated, exact = sweeps()
    v = verified(estimated, exact, 5, 7, kind="head")
    np.testing.assert_array_equal(v.estimates, estimated.effects)
    assert v.labels == estimated.labels and v.numbers == (*v.top, *v.sample)
    known = np.zeros(24, dtype=bool)
    known[list(v.numbers)] = True
    np.testing.assert_allclose(v.exact_effects[known], exact.effects[known])
    assert np.isnan(v.exact_effects[~known]).all() and known.sum() == 12
    assert v.is_top.sum() == 5 and v.n_unverified == 12
    assert v.cutoff == np.sort(np.abs(estimated.effects))[-5]
    order = np.argsort(-np.abs(np.nan_to_num(v.exact_effects)))
    assert v.top_effects(3) == order[:3].tolist() and len(v.top_effects(20)) == 12


def test_missed_are_those_of_the_sample_that_the_top_should_have_held(edges):
    sizes = np.abs(edges.exact_effects)
    expected = [n for n in edges.sample if sizes[n] > np.abs(edges.estimates[list(edges.top)]).min()]
    assert sorted(edges.missed) == sorted(expected) and expected
    assert list(edges.missed) == sorted(edges.missed, key=lambda n: -sizes[n])


def test_bounds_count_the_sample_alone(edges):
    of_sample = np.abs(edges.exact_effects[list(edges.sample)])
    for effect in (0.0, 0.01, edges.cutoff, 1.0):
        found = int((of_sample > effect).sum())
        assert edges.most_above(effect) == most_above(1088, 60, found)
    assert replace(edges, level=0.8).most_above(1.0) < edges.most_above(1.0)
    curve = edges.bounds
    assert [edges.most_above(effect) for effect in curve.effects[:5]] == curve.most[:5].tolist()
    assert curve.largest == math.inf


def test_where_every_site_is_verified_agreement_is_scipys_and_nothing_can_be_missing():
    estimated, exact = sweeps()
    v = verified(estimated, exact, 5, 19)
    assert v.pearson.value == pytest.approx(stats.pearsonr(estimated.effects, exact.effects).statistic)
    assert v.spearman.value == pytest.approx(stats.spearmanr(estimated.effects, exact.effects).statistic)
    both = [set(np.argsort(-np.abs(sweep.effects))[:8]) for sweep in (estimated, exact)]
    assert v.recall(8) == (len(both[0] & both[1]) / 8,) * 3
    assert v.most_above(0.0) == 0 and v.bounds.largest == 0.0 and v.n_unverified == 0
    assert "all of them were run exactly" in v.summary() and "were not verified" not in v.summary()


def test_sizes_without_a_sign_are_compared_with_sizes():
    estimated, exact = sweeps()
    sizes = with_effects(estimated, np.abs(estimated.effects), Estimate("atp_star"))
    v = verified(sizes, exact, 5, 19)
    assert v.spearman.value == pytest.approx(stats.spearmanr(sizes.effects, np.abs(exact.effects)).statistic)
    signed = replace(sizes, estimate=Estimate("atp"))
    assert verified(signed, exact, 5, 19).spearman.value < v.spearman.value
    assert (v.exact_effects < 0).any() and "sizes of effects" in v.summary()


def test_the_table_has_a_row_per_site(edges):
    table = edges.to_dataframe()
    assert list(table["site"]) == edges.labels and set(table["method"]) == {"eap (gradient in the run that is patched)"}
    assert (table["verified"] == "top").sum() == 20 and (table["verified"] == "sample").sum() == 60
    assert table["verified"].isna().sum() == table["exact"].isna().sum() == 1028
    assert table.loc[list(edges.missed), "missed"].all() and table["missed"].sum() == len(edges.missed)
    row = table.iloc[edges.top[0]]
    assert row["estimate"] == edges.estimates[edges.top[0]] and row["exact"] == edges.exact_effects[edges.top[0]]
    assert row["sender"] == edges.estimated.patches.id(edges.top[0]).split("->")[0]
    assert (row["metric"], row["direction"]) == ("logit difference", "denoising")


def test_agreement_by_layer_and_kind_weighs_the_sample(edges):
    table = edges.by_layer_and_kind()
    readers = edges.estimated.patches.graph.readers
    of = [(readers[r].layer, readers[r].kind) for r in edges.estimated.patches.readers]
    assert table["n_sites"].sum() == 1108 and table["n_verified"].sum() == 80
    assert {(row.layer, row.kind) for row in table.itertuples()} == set(of)
    for row in table.itertuples():
        inside = [n for n in edges.numbers if of[n] == (row.layer, row.kind)]
        assert row.n_verified == len(inside)
        if not inside:
            assert math.isnan(row.error)
            continue
        weights = [1.0 if n in edges.top else 1088 / 60 for n in inside]
        errors = [abs(edges.estimates[n] - edges.exact_effects[n]) for n in inside]
        assert row.error == pytest.approx(np.average(errors, weights=weights))
        assert math.isnan(row.spearman) == (len(inside) < 5)


def test_of_components_the_kind_is_the_component():
    sites = [Site(block_hook(layer, component)) for component in ("attn_out", "mlp_out") for layer in range(3)]
    v = verified(*both_sweeps(made_up_sweep(sites, 3, 2)), 2, 3, kind="hook point")
    table = v.by_layer_and_kind()
    assert list(table["kind"]) == ["attn_out"] * 3 + ["mlp_out"] * 3 and list(table["layer"]) == [0, 1, 2] * 2


def test_sentences_give_the_numbers_and_what_they_leave_open(edges):
    text = edges.summary()
    assert "Effects of 1,108 edges were estimated by eap (gradient in the run that is patched)" in text
    assert "the 20 edges of largest |estimate| and 60 drawn at random from the others (seed 0) were run exactly" in text
    assert f"(Spearman) of {edges.spearman.value:.2f} [{edges.spearman.low:.2f}, {edges.spearman.high:.2f}]" in text
    recall = edges.recall(20)
    assert f"Recall at 20 is {recall.value:.2f} [{recall.low:.2f}, {recall.high:.2f}]" in text
    assert edges.labels[edges.missed[0]] in text
    most = edges.most_above(edges.cutoff)
    assert f"of the 1,028 edges that were not verified at most {most:,} have an |effect| above" in text
    assert "how large these may be, a sample does not say" in text
    assert "rare large errors" in text
    assert repr(edges).startswith("Verification(80 of 1,108 edges, denoising, logit difference: Spearman 0.")
    assert "array" not in repr(edges)


def test_without_a_sample_nothing_is_said_of_other_sites():
    v = verified_heads(n_top=10, n_sample=0)
    assert math.isnan(v.spearman.value) and v.missed == () and v.most_above(0.5) == 38
    assert "is not known: no sample of the others was run" in v.summary()
    assert "Nothing is known of how many of the 38 heads" in v.summary() and "no sample" in repr(v)


def test_without_a_top_nothing_counts_as_missed():
    v = verified_heads(n_top=0, n_sample=20)
    assert math.isnan(v.cutoff) and v.missed == () and not math.isnan(v.spearman.value)
    assert "28 heads were not verified" in v.summary() and "Recall" not in v.summary()
    with pytest.raises(ValueError, match="recall at 5 needs the 5 largest estimates verified"):
        v.recall(5)


def test_sites_that_write_nothing_are_none_of_those_compared():
    sites = [Site(block_hook(0, "z"), head, position=0 if head < 2 else 1) for head in range(12)]
    sweep = made_up_sweep(sites, 1, 12, matches=(((1, 1),),) * 5)
    v = verified(*both_sweeps(sweep), 3, 4, kind="head")
    assert np.isnan(v.estimates[:2]).all() and len(v.sites.estimates) == 10
    assert v.n_unverified == 10 - v.sites.verified.sum()


def test_another_metric_is_compared_by_its_own_effects():
    estimated, exact = sweeps()
    second = replace(estimated.measured[0], name="probability", patched=estimated.measured[0].patched[::-1])
    first, other = (replace(sweep, measured=(sweep.measured[0], second)) for sweep in (estimated, exact))
    v = verified(first, other, 5, 7)
    assert v.by_metric("probability").estimated.metric == v.by_metric("probability").exact.metric == "probability"
    np.testing.assert_array_equal(v.by_metric("probability").estimates, first.by_metric("probability").effects)


def test_a_notebook_shows_the_largest_and_the_sentences(edges):
    page = edges._repr_html_()
    assert "Verification of 80 of 1,108 edges" in page and "verified as" in page
    assert edges.labels[edges.top_effects(1)[0]] in page and "rank correlation" in page


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"top": (0, 1), "sample": (1, 2)}, "top and sample name 4 sites, 3 of them different"),
        ({"top": (0, 99), "sample": ()}, "expected different numbers from 0 to 23"),
        ({"top": (), "sample": ()}, "at least one"),
        ({"top": (1, 0), "sample": (2,)}, "exact has 3 patches, expected those that top and sample name"),
        ({"level": 95}, "level is 95, expected a share"),
    ],
)
def test_numbers_that_fit_no_sweep_are_refused(changes, told):
    estimated, exact = sweeps()
    run = replace(exact.of_patches((0, 1, 2)), whole=None, numbers=())
    fields = {"top": (0, 1), "sample": (2,), "seed": 0, **changes}
    with pytest.raises(ValueError, match=told):
        actpatch.Verification(estimated, run, **fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"direction": "noising"},
        {"model": "other"},
        {"source_of_values": "zero"},
        {"pair_indices": (5,) * 5},
        {"clean_tokens": (("other",),) * 5},
        {"corrupted_tokens": (("other",),) * 5},
        {"noise": "noise on the subject"},
    ],
)
def test_sweeps_of_other_runs_are_refused(changes):
    estimated, exact = sweeps()
    with pytest.raises(ValueError, match=f"estimated and exact differ in {next(iter(changes))}"):
        verified(estimated, replace(exact, **changes), 3, 4)


def test_without_a_usable_pair_there_is_nothing_to_compare():
    sweep = made_up_heads(4, 6, **same_metrics()).sweep
    with pytest.raises(ValueError, match="no pair is usable"):
        verified(replace(sweep, estimate=Estimate("atp")), sweep, 3, 4)


def test_what_is_estimated_stands_on_the_one_side_and_what_was_run_on_the_other():
    estimated, exact = sweeps()
    for first, second in ((exact, exact), (estimated, estimated), (exact, estimated)):
        with pytest.raises(ValueError, match="expected estimates as estimated, and effects of patches that were run"):
            verified(first, second, 3, 4)


@pytest.mark.parametrize("effect", [-0.1, float("nan"), True])
def test_a_size_below_nothing_is_refused(edges, effect):
    with pytest.raises(ValueError, match="expected a size from 0 on"):
        edges.most_above(effect)


def test_stability_of_a_sweep_is_that_of_its_usable_pairs():
    results = made_up_heads(2, 3, n_pairs=6)
    measured = results.sweep.measured[0]
    clean = measured.clean.copy()
    clean[1] = measured.corrupted[1]
    sweep = replace(results.sweep, measured=(replace(measured, clean=clean),))
    found = stability_of(sweep, top_k=2, n_resamples=40, seed=2)
    assert found.sites == tuple(sweep.labels) and found.n_pairs == 5 and found.top_k == 2
    np.testing.assert_allclose(found.score, sweep.effects)
    assert isinstance(found, actpatch.Stability)


@pytest.mark.parametrize("first", [((1, 1),), ((0, 0), (1, 1))])
def test_only_positions_with_a_partner_in_every_pair_have_a_stability(first):
    sites = [Site(block_hook(0, "z"), head, position=head % 2) for head in range(4)]
    sweep = replace(made_up_sweep(sites, 1, 4), matches=(first, *(((1, 1),),) * 4))
    found = stability_of(sweep, n_resamples=5)
    assert found.sites == tuple(Patch((site,)).label for site in sites[1::2])
    np.testing.assert_allclose(found.score, sweep.effects[1::2])


def test_where_no_position_has_a_partner_in_every_pair_there_is_no_stability():
    sites = [Site(block_hook(0, "z"), head, position=0) for head in range(4)]
    sweep = replace(made_up_sweep(sites, 1, 4), matches=(((0, 0),), *(((1, 1),),) * 4))
    with pytest.raises(ValueError, match="no position that was patched has a partner in every pair"):
        stability_of(sweep)
