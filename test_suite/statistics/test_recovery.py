"""Recovery of a known circuit: golden values by hand, and definitions written out as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actpatch.statistics.recovery import mib_auroc, mib_counts, recovery

TRUE = np.array([True, False, True, False])


def random_ranking(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(-6, 7, n).astype(float), random.random(n) < 0.3


def test_golden_values_with_a_tie():
    found = recovery(np.array([0.9, -0.8, 0.8, 0.1]), TRUE, ks=[1, 2, 3, 4])
    assert found.auroc == pytest.approx(3.5 / 4)  # .9 is above both, .8 above one and tied with the other
    assert found.auprc == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found.precision_at == pytest.approx({1: 1, 2: 1.5 / 2, 3: 2 / 3, 4: 0.5})
    signed = recovery(np.array([0.9, -0.8, 0.8, 0.1]), TRUE, absolute=False)
    assert signed.auroc == signed.auprc == 1 and signed.precision_at == {2: 1.0}


def test_perfect_reversed_and_uninformative_rankings():
    truth = np.arange(1000) < 10
    best = recovery(np.linspace(2, 1, 1000), truth)
    assert best.auroc == best.auprc == best.precision_at[10] == 1 and best.mib_auroc == pytest.approx(1)
    worst = recovery(np.linspace(1, 2, 1000), truth)
    assert worst.auroc == worst.precision_at[10] == 0
    assert worst.auprc == pytest.approx(np.mean([i / (990 + i) for i in range(1, 11)]))
    # The circuit of 500 edges holds 500 of 990 false ones and no true one, that of 1000 all: one trapezoid.
    assert worst.mib_auroc == pytest.approx((1 - 500 / 990) / 2)
    flat = recovery(np.ones(1000), truth)
    assert flat.auroc == 0.5 and flat.auprc == flat.precision_at[10] == flat.chance == 0.01


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("absolute", [True, False])
def test_definitions_written_out(seed, absolute):
    scores, truth = random_ranking(seed)
    found = recovery(scores, truth, absolute=absolute, ks=[3, 11])
    values = np.abs(scores) if absolute else scores
    wins = [(t > f) + (t == f) / 2 for t in values[truth] for f in values[~truth]]
    assert found.auroc == pytest.approx(np.mean(wins))
    average, recall = 0.0, 0.0
    for threshold in sorted(set(values), reverse=True):
        taken = values >= threshold
        gained = (taken & truth).sum() / truth.sum()
        average, recall = average + (gained - recall) * truth[taken].mean(), gained
    assert found.auprc == pytest.approx(average)
    random = np.random.default_rng(0)
    for k, precision in found.precision_at.items():
        drawn = [truth[np.lexsort((random.random(40), -values))[:k]].mean() for _ in range(4000)]
        assert precision == pytest.approx(np.mean(drawn), abs=0.015)


def test_the_benchmarks_area_by_hand():
    assert mib_counts(20) == [1, 1, 1, 1, 1, 1, 2, 4, 10, 20]
    assert mib_counts(1108) == [2, 3, 6, 12, 23, 56, 111, 222, 554, 1108]
    truth = np.zeros(20, dtype=bool)
    truth[[0, 3]] = True  # first and fourth of the ranking
    # (false, true) of circuits of 1, 2, 4, 10, 20: (0, 1), (1, 1), (2, 2), (8, 2), (18, 2)
    found = recovery(np.linspace(2, 1, 20), truth)
    assert found.mib_auroc == pytest.approx((1 * 0.5 + 1 * 0.75 + 6 * 1 + 10 * 1) / 18)
    assert found.auroc == pytest.approx((18 + 16) / 36)
    turned = recovery(np.linspace(1, 2, 20), truth)
    # (1, 0), (2, 0), (4, 0), (10, 0), (18, 2): what lies left of the first circuit counts for nothing
    assert turned.mib_auroc == pytest.approx(8 * 0.5 / 18)


def test_the_benchmark_divides_by_the_last_rate_and_starts_without_an_anchor():
    truth = np.array([True, True, False, False, False, False])
    members = np.array([[1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]], dtype=bool)
    # Rates (1/4, 1/2) and (2/4, 1), the first of each pair divided by 2/4: from 1/2 to 1 at a mean height of 3/4.
    assert mib_auroc(members, truth) == pytest.approx(0.375)
    assert math.isnan(mib_auroc(members & truth, truth))  # no false edge at all
    assert math.isnan(mib_auroc(members, np.zeros(6, dtype=bool)))


def test_edges_that_were_not_ranked():
    scores = np.array([0.9, np.nan, 0.5, np.nan, 0.2])
    truth = np.array([True, True, False, False, False])
    found = recovery(scores, truth, ks=[1, 4])
    assert found.n_unranked == 2 and "2 not ranked" in repr(found)
    assert found.auroc == pytest.approx((3 + 0.5) / 6)  # the second is below two false ones, and tied with a third
    assert found.precision_at == pytest.approx({1: 1.0, 4: 1.5 / 4})
    members = np.array([[1, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 0, 1]], dtype=bool)
    held = members | np.isnan(scores)
    assert mib_auroc(members, truth, ranked=~np.isnan(scores)) == mib_auroc(held, truth) == pytest.approx(2 / 3)


def test_truths_of_no_edge_or_all_have_no_auroc():
    scores = np.array([3.0, 2.0, 1.0])
    none, every = recovery(scores, np.zeros(3, dtype=bool)), recovery(scores, np.ones(3, dtype=bool))
    assert math.isnan(none.auroc) and math.isnan(none.auprc) and none.precision_at == {}
    assert math.isnan(every.auroc) and every.auprc == every.precision_at[3] == 1


def test_the_table_has_chance_beside_each_measure():
    found = recovery(np.array([0.9, 0.8, 0.7, 0.1]), TRUE)
    table = found.to_dataframe()
    assert table["measure"].tolist() == ["AUROC", "AUPRC", "precision at 2", "AUROC (MIB)"]
    assert table["value"].tolist()[:3] == [found.auroc, found.auprc, 0.5]
    assert table["chance"].tolist()[:3] == [0.5, 0.5, 0.5] and math.isnan(table["chance"][3])
    assert repr(found).startswith(
        "Recovery(2 true of 4 edges, AUROC 0.75, AUPRC 0.83, precision at 2 0.50, AUROC (MIB)"
    )


@pytest.mark.parametrize(
    ("scores", "truth", "ks", "message"),
    [
        (np.ones(3), TRUE, None, r"scores has shape \(3,\), truth \(4,\)"),
        (np.ones(0), np.zeros(0, dtype=bool), None, "expected one entry an edge"),
        (np.array([1.0, np.inf, 0.0, 0.0]), TRUE, None, "1 scores are infinite"),
        (np.ones(4), TRUE, [5], "k is 5, expected a whole number from 1 to the number of edges, 4"),
        (np.ones(4), TRUE, [0], "k is 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(scores, truth, ks, message):
    with pytest.raises(ValueError, match=message):
        recovery(scores, truth, ks=ks)
    with pytest.raises(ValueError, match=r"members has shape \(2, 3\), expected \(circuits, 4\)"):
        mib_auroc(np.ones((2, 3), dtype=bool), TRUE)
