"""Results of edges: numbers are compared with numpy by hand, and tables with those of the same patches one by one."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from actpatch import (
    BothDirections,
    EdgePatchingResult,
    EdgeResults,
    HeadResults,
    SweepResults,
    headline,
    load_results,
    print_head_results,
    summarize_results,
)
from actpatch.core.graph import Graph
from actpatch.core.sites import Site
from actpatch.results.differences import difference_statistics
from actpatch.results.metric_values import MetricValues
from actpatch.results.shapes import sweep_of_items
from actpatch.results.sweep import Sweep
from test_suite.helpers.results import GRAPH, N_PAIRS, clear, made_up_edges, made_up_heads

S2 = (Site("", position=(1, 2, 3, 1, 2), position_name="S2"),)
END = (Site("", position=-1, position_name="END"),)
BOTH = (
    Site("", position=(1, 2, (2, 3), 1, 2), position_name="S1"),
    Site("", position=3, position_name="verb"),
)
PLACES = (S2, END, BOTH, (Site("", position=2),))


def one_by_one(sweep: Sweep) -> Sweep:
    """The same sweep, of patches in the place of arrays."""
    return dataclasses.replace(sweep, patches=tuple(sweep.patches))


def several_metrics(**changes: Any) -> EdgeResults:
    """Two metrics, one pair of which is not usable on the first, and pairs of two groups."""
    sweep = made_up_edges(places=PLACES, **changes).sweep
    first = sweep.measured[0]
    still = dataclasses.replace(first, clean=np.where(np.arange(5) == 1, first.corrupted, first.clean))
    rank = dataclasses.replace(first, name="rank", unit="", more_is_better=False, patched=-first.patched)
    return EdgeResults(dataclasses.replace(sweep, measured=(still, rank), groups=("one", "one", "two", "one", "two")))


def test_every_edge_has_its_names_and_numbers_by_hand() -> None:
    results = several_metrics(direction="noising")
    sweep, n_places = results.sweep, len(PLACES)
    values = sweep.measured[0]
    kept = [0, 2, 3, 4]
    gap = values.corrupted - values.clean
    number = 0
    for reader, n_before in zip(GRAPH.readers, GRAPH.n_writers_before):
        for writer in GRAPH.writers[:n_before]:
            for at in ("S2", "END", "S1 + verb", 2):
                item = results[number]
                assert isinstance(item, EdgePatchingResult)
                assert item.id == f"{writer.id}->{reader.id}"
                assert (item.sender, item.receiver, item.position) == (writer.label, reader.label, at)
                assert item.label == f"{writer.label} → {reader.label} @{at}" == results.labels[number]
                assert item.label == sweep.patches[number].label
                patched = values.patched[number]
                assert item.clean_metric == values.clean[kept].mean()
                assert item.corrupted_metric == values.corrupted[kept].mean()
                assert item.patched_metric == patched[kept].mean()
                np.testing.assert_allclose(
                    item.effect, (patched - values.clean)[kept].mean() / gap[kept].mean(), rtol=1e-12
                )
                of_pairs = np.where(np.arange(5) == 1, np.nan, (patched - values.clean) / np.where(gap == 0, 1, gap))
                np.testing.assert_array_equal(item.pair_effects, of_pairs)
                assert item.pair_indices == (10, 11, 12, 13, 14)
                number += 1
    assert number == len(results) == len(GRAPH) * n_places == len(list(results))


def test_edges_of_all_positions_have_none() -> None:
    results = made_up_edges()
    assert results.positions == [] and results[0].position is None and results[0].label == "input → L0H0 q"
    assert results.kind == "edge" and made_up_edges(places=[S2]).kind == "edge"
    assert made_up_edges(places=PLACES).kind == "site"


def test_items_are_made_when_they_are_looked_at_and_are_equal_to_themselves() -> None:
    results = several_metrics()
    assert not isinstance(results, list) and results[3] is not results[3]
    assert results[3] == results[3] and results[-1] == list(results)[-1] and np.isnan(results[3].pair_effects[1])
    assert results.index(results[5]) == 5 and results[5] in results
    assert dataclasses.replace(results[5], effect=7.0) not in results and 5 not in results
    with pytest.raises(IndexError):
        results[len(results)]
    assert repr(results[1]) == f"EdgePatchingResult(input → L0H0 q @END, effect {results[1].effect:+.3f} on 5 pairs)"
    assert dataclasses.asdict(results[1])["sender"] == "input"


@pytest.mark.parametrize(
    "name", ["L0H1 → L2KV1 k", "L0H1 -> L2KV1 k", "a0.h1->a2.kv1<k>", "A0.H1->l2kv1 K", "a0.h1 → L2KV1 k"]
)
def test_an_edge_is_found_by_its_id_and_its_label(name: str) -> None:
    results, placed = made_up_edges(), made_up_edges(places=PLACES)
    assert results[name].id == "a0.h1->a2.kv1<k>" and name in results
    for at in ("S2", "S1 + verb", 2):
        found = placed[f"{name} @{at}"]
        assert (found.id, found.position) == ("a0.h1->a2.kv1<k>", at)
    assert placed.at("END")[name].position == "END"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("L2H0", "'L2H0' is no edge: expected an id or a label, for instance 'L0H0 → L2H0 q @S2'"),
        ("L0H9 → L2H0 q", "no writer is called 'L0H9'.*L0H"),
        ("L0H0 → L2H0", "no edge of these: no reader is called 'L2H0'.*heads share keys and values"),
        ("L2H0 → L2H0 q", "is no edge: the sender writes after the receiver reads"),
        ("L0H1 → L2H0 q @S2", "is not among these edges"),
        ("L0H0 → L2H0 q", "was patched at 2 positions: name one, of L0H0 → L2H0 q @S2, L0H0 → L2H0 q @END"),
        ("L0H0 → L2H0 q @S1", "position 'S1' was not patched: expected one of 'S2', 'END'"),
    ],
)
def test_a_name_that_stands_for_no_edge_says_why(name: str, message: str) -> None:
    results = made_up_edges(places=[S2, END], senders=["L0H0", "L2"], receivers=["L2", "logits"])
    assert name not in results
    with pytest.raises(KeyError, match=message):
        results[name]


def test_slices_top_and_orders_keep_their_sweep_and_the_statistics_of_all() -> None:
    results = clear(made_up_edges)
    effects, statistics = results.sweep.effects, results.statistics()
    ranked = np.argsort(-np.abs(effects), kind="stable").tolist()
    parts = {
        "top": (results.top(7), ranked[:7]),
        "slice": (results[5:40:5], list(range(5, 40, 5))),
        "slice of a slice": (results[5:40:5][1:3], [10, 15]),
        "order": (results.sorted_by(lambda item: item.effect), np.argsort(effects, kind="stable").tolist()),
        "reversed": (results.sorted_by(lambda item: item.receiver, reverse=True)[:3], [53, 54, 55]),
    }
    for what, (part, numbers) in parts.items():
        assert isinstance(part, EdgeResults) and part.sweep.whole == results.sweep, what
        assert [item.label for item in part] == [results.labels[i] for i in numbers] == part.labels, what
        assert list(part) == [results[i] for i in numbers], what
        assert sweep_of_items(list(part)) == part.sweep, what
        np.testing.assert_array_equal(part.statistics().p_corrected, statistics.p_corrected[numbers])
        assert part.statistics().n_corrected == len(GRAPH)
    assert results.top(2).is_part and not results.sorted_by(lambda item: item.id).is_part
    assert results[:] == results and results[3:3] == []
    assert "of 62" in repr(results.top(2)) and results.labels[ranked[0]] in repr(results.top(2))
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="expected at least 1"):
            results.top(wrong)


def test_edges_are_narrowed_by_the_names_of_the_graph() -> None:
    results = clear(made_up_edges)
    part = results.of(senders=["mlps", (0, 1)], receivers=["L2 q", "logits"])
    expected = [
        item
        for item in results
        if item.sender in ("L0 MLP", "L1 MLP", "L0H1") and re.fullmatch(r"L2H\d q|logits", item.receiver)
    ]
    assert list(part) == expected and len(part) == 3 * 5
    assert [item.label for item in part.of(senders=["input", "L1"][1:])] == [
        f"L1 MLP → {receiver}" for receiver in ("L2H0 q", "L2H1 q", "L2H2 q", "L2H3 q", "logits")
    ]
    assert results.of() == results and part.statistics().n_corrected == len(GRAPH)
    for asked, message in (
        ({"senders": "L0H7"}, "no writer is called 'L0H7' .in senders."),
        ({"receivers": "q9"}, "no reader is called 'q9' .in receivers."),
        ({"senders": "L2H0", "receivers": "L0H0"}, "none of these 62 edges goes from 'L2H0' to 'L0H0'"),
    ):
        with pytest.raises(ValueError, match=message):
            results.of(**asked)


def test_the_table_of_senders_and_receivers_has_nan_where_there_is_no_edge() -> None:
    results = made_up_edges()
    table = results.matrix()
    assert list(table.index) == [writer.label for writer in GRAPH.writers] and table.index.name == "sender"
    assert list(table.columns) == [reader.label for reader in GRAPH.readers] and table.columns.name == "receiver"
    for sender, row in table.iterrows():
        for receiver, effect in row.items():
            name = f"{sender} → {receiver}"
            assert effect == results[name].effect if name in results else np.isnan(effect)
    assert table.notna().to_numpy().sum() == len(GRAPH)
    part = results.top(4)[::-1].matrix()
    assert part.notna().to_numpy().sum() == 4
    assert list(part.columns) == [
        reader for reader in table.columns if reader in {item.receiver for item in results.top(4)}
    ]


def test_each_position_has_its_table() -> None:
    results = made_up_edges(places=PLACES)
    assert results.positions == ["S2", "END", "S1 + verb", 2]
    for column, at in enumerate(results.positions):
        there = results.at(at)
        assert {item.position for item in there} == {at} and len(there) == len(GRAPH)
        pd.testing.assert_frame_equal(results.matrix(at), there.matrix())
        effects = results.sweep.effects.reshape(-1, len(PLACES))[:, column]
        # Edges are in order of receivers, the table's rows are senders.
        cells = results.matrix(at).to_numpy().T
        np.testing.assert_array_equal(cells[~np.isnan(cells)], effects)
    assert there.positions == results.positions and there.statistics().n_corrected == len(results)
    with pytest.raises(ValueError, match=r"patched at 4 positions: choose .* 'S2', 'END', 'S1 \+ verb', 2"):
        results.matrix()
    for call in (results.matrix, results.at):
        with pytest.raises(ValueError, match="position 'S3' was not patched: expected one of 'S2'"):
            call("S3")
    with pytest.raises(ValueError, match="none of these edges was patched at position 'S2'"):
        results.at("END").at("S2")
    with pytest.raises(ValueError, match="position 'S2' was not patched: all were, together"):
        made_up_edges().at("S2")


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_long_table_is_that_of_the_same_patches_one_by_one(direction: str) -> None:
    results = several_metrics(direction=direction)
    expected = one_by_one(results.sweep).to_dataframe()
    table = results.to_dataframe()
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
    assert list(table["site"].unique()) == results.labels
    assert list(table["sender"].unique()) == [writer.id for writer in GRAPH.writers]
    row = table[(table["site"] == "L0H1 → L2KV1 v @S2") & (table["pair"] == 12)].iloc[0]
    where = (row["hook_point"], row["layer"], row["head"], row["position"], row["position_name"], row["token"])
    assert where == ("blocks.2.hook_v_input", 2, 1, 3, "S2", " and") and row["sender"] == "a0.h1"
    assert made_up_heads().to_dataframe()["sender"].isna().all()


def test_pairs_and_groups_take_their_positions_along() -> None:
    results = several_metrics()
    by_group = results.by_group()
    assert list(by_group) == ["one", "two"] and by_group["one"].by_metric("rank").sweep.metric == "rank"
    for part, kept in ((by_group["one"], [0, 1, 3]), (results.top(9).by_group()["two"], [2, 4])):
        assert isinstance(part, EdgeResults)
        assert part.edges.places[0][0].position == tuple(S2[0].position[i] for i in kept)  # type: ignore[index]
        assert part.edges.places[1] == END and len(part.sweep.pair_indices) == len(kept)
        entire, single = part.sweep.entire, one_by_one(results.sweep).of_pairs(kept)
        assert tuple(entire.patches) == single.patches
        np.testing.assert_array_equal(entire.patched, results.sweep.patched[:, kept])
    assert by_group["two"].edges.places[2][0].position == ((2, 3), 2)


def test_patches_of_the_experiment_are_taken_as_one_by_one() -> None:
    sweep = several_metrics().sweep
    numbers = [5, 3, 200, 5]
    part, single = sweep.of_patches(numbers), one_by_one(sweep).of_patches(numbers)
    assert tuple(part.patches) == single.patches and part.numbers == single.numbers
    assert tuple(part.of_patches([2, 0]).patches) == single.of_patches([2, 0]).patches
    assert sweep.of_patches(range(len(sweep.patches))) is sweep
    assert part.top(1)[0][0] == single.top(1)[0][0]
    with pytest.raises(ValueError, match="are not those of the whole experiment"):
        dataclasses.replace(part, patches=sweep.patches.taken([5, 3, 201, 5]))  # type: ignore[attr-defined]


def test_statistics_are_those_of_the_same_patches_one_by_one() -> None:
    results = clear(made_up_edges)
    statistics, expected = results.statistics(), one_by_one(results.sweep).statistics()
    assert statistics.sites == expected.sites == tuple(results.labels)
    for name in ("low", "high", "p", "p_corrected", "detectable"):
        np.testing.assert_array_equal(getattr(statistics, name), getattr(expected, name))
    other = clear(made_up_edges, every=2)
    matched = [(3, 3), (0, 0)]
    difference = difference_statistics(results.sweep, other.sweep, matched, like=statistics)
    assert difference.sites == (results.labels[3], results.labels[0])


@pytest.mark.parametrize(
    "results",
    [
        made_up_edges(),
        several_metrics(),
        several_metrics().by_metric("rank").top(3),
        several_metrics().at("S1 + verb"),
        made_up_edges(Graph("parallel", (2, 2), (2, 2), (True, False), is_parallel=True), senders="L0"),
    ],
    ids=["all", "positions", "top", "at", "parallel"],
)
def test_files_are_read_back_equal(results: EdgeResults, tmp_path: Path) -> None:
    loaded = load_results(results.save(tmp_path / "edges.json"))
    assert isinstance(loaded, EdgeResults) and loaded == results and loaded.graph == results.graph
    assert loaded.edges == results.edges and loaded.labels == results.labels
    for array in ("writers", "readers", "columns"):
        assert getattr(loaded.edges, array).dtype == np.int64
    if len(results.sweep.usable[results.sweep.usable]) > 1:
        np.testing.assert_array_equal(loaded.statistics().low, results.statistics().low)
    assert all(loaded[i] == item for i, item in enumerate(results))
    csv = pd.read_csv(results.to_csv(tmp_path / "edges.csv"))
    np.testing.assert_array_equal(csv["effect"], results.to_dataframe()["effect"])


def test_both_directions_are_read_back_and_read(tmp_path: Path) -> None:
    both = BothDirections(clear(made_up_edges), clear(made_up_edges, every=2, direction="noising"))
    assert load_results(both.save(tmp_path / "both.json")) == both
    single = BothDirections(*(SweepResults(one_by_one(one.sweep)) for one in (both.denoising, both.noising)))
    pd.testing.assert_frame_equal(both.reading(), single.reading())
    assert both.reading()["site"][0] == "input → L0H0 q" and both.reading()["reading"][0] == "both"


def test_a_file_of_edges_holds_arrays_and_is_small(tmp_path: Path) -> None:
    path = made_up_edges(n_pairs=1).save(tmp_path / "edges.json")
    stored = json.loads(path.read_text())["sweeps"][0]["patches"]
    assert stored["readers"] == np.repeat(np.arange(len(GRAPH.readers)), GRAPH.n_writers_before).tolist()
    assert stored["graph"]["heads"] == [2, 0, 4] and len(json.dumps(stored)) < 1500


@pytest.mark.parametrize(
    ("name", "value"), [("writers", [99] * 62), ("readers", [-1] * 62), ("columns", [0] * 61), ("columns", [1] * 62)]
)
def test_a_damaged_file_of_edges_is_named(name: str, value: list[int], tmp_path: Path) -> None:
    path = made_up_edges().save(tmp_path / "edges.json")
    stored = json.loads(path.read_text())
    stored["sweeps"][0]["patches"][name] = value
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=f"is damaged .*{name} of the edges"):
        load_results(path)


def test_a_file_of_the_format_before_edges_is_read(tmp_path: Path) -> None:
    results = made_up_heads()
    path = results.save(tmp_path / "heads.json")
    stored = json.loads(path.read_text())
    stored["format"] = 8
    del stored["sweeps"][0]["path"], stored["sweeps"][0]["estimate"]
    for patch in stored["sweeps"][0]["patches"]:
        for site in patch["sites"]:
            del site["sender"]
    path.write_text(json.dumps(stored))
    assert load_results(path) == results


def test_edges_are_printed_shown_and_summed_up(capsys: Any) -> None:
    results = clear(made_up_edges, every=20)
    summarize_results(results, 5)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if " → " in line]
    largest = results.top(5)
    assert [re.split(r"  +", row)[0] for row in rows[:5]] == largest.labels
    assert f"{largest[0].effect:+.3f}" in rows[0] and "[" in rows[0] and "(57 more with smaller effects)" in printed
    assert max(map(len, printed.splitlines())) <= 80
    shown = results._repr_html_()
    assert largest.labels[0] in shown and '<th style="text-align: left">edge</th>' in shown
    many = clear(made_up_edges, every=2)
    first = many.top(1)
    low, high = first.statistics().low[0], first.statistics().high[0]
    n_significant = int(many.statistics().significant.sum())
    told = headline(many)
    assert 31 <= n_significant < 40
    assert told.startswith(f"{n_significant} of 62 edges matter (corrected p ≤ 0.05, 12 pairs): ")
    assert told.endswith(f"{first.labels[0]} restores {first[0].effect:.2f} [{low:.2f}, {high:.2f}] of the difference")


def test_an_edge_into_the_logits_is_not_taken_for_the_whole_stream() -> None:
    results = made_up_edges(n_pairs=N_PAIRS)
    effects = np.random.default_rng(2).normal(0, 0.01, (len(results), N_PAIRS)) + 0.1
    effects[results.labels.index("L2H1 → logits")] += 0.6
    sweep = results.sweep
    told = headline(made_up_edges(n_pairs=N_PAIRS, patched=sweep.base + effects * (sweep.source - sweep.base)))
    assert told.startswith("62 of 62 edges matter") and "L2H1 → logits restores 0.7" in told


def test_only_edges_can_be_shown_as_edges() -> None:
    with pytest.raises(ValueError, match="patches of this sweep are a tuple, expected edges"):
        EdgeResults(made_up_heads().sweep)


def test_a_path_is_said_wherever_results_say_what_was_patched(tmp_path: Path, capsys: Any) -> None:
    path = "to L9H9 q and L9H6 q, other heads frozen, MLPs recomputed"
    results = clear(made_up_heads, path=path)
    assert f"12 heads {path} × 12 pairs" in repr(results) and path in results._repr_html_()
    print_head_results(results, 3)
    printed = capsys.readouterr().out
    assert f"path: {path}\n" in printed and "head (output along a path)" in printed
    loaded = load_results(results.save(tmp_path / "heads.json"))
    assert isinstance(loaded, HeadResults) and loaded.sweep.path == path and loaded == results
    assert set(results.to_dataframe()["path"]) == {path} and set(made_up_heads().to_dataframe()["path"]) == {""}
    assert "path" not in repr(made_up_heads()) and made_up_heads().patched == "output"
    assert results != clear(made_up_heads)


def test_a_hundred_thousand_edges_cost_no_object_each() -> None:
    graph = Graph("large", (16,) * 24, (16,) * 24, (True,) * 24)
    n_edges = len(graph)
    values = MetricValues("logit difference", "logits", True, np.zeros((n_edges, 2)), np.ones(2), np.zeros(2))
    values.patched[12345] = 0.5
    results = made_up_edges(graph, n_pairs=2, patched=values.patched, clean=values.clean, corrupted=values.corrupted)
    made: list[int] = []
    taken = type(results.edges).__getitem__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(results.edges), "__getitem__", lambda self, index: made.append(1) or taken(self, index))
        top = results.top(1)
        assert n_edges > 200_000 and top[0].effect == 0.5 and top.labels[0] == results.labels[12345]
        assert results.of(receivers="logits").matrix().shape == (24 * 17 + 1, 1)
        assert results.by_metric("logit_difference") == results
        assert dataclasses.replace(results.sweep).window == 1 and len(results[::2]) == (n_edges + 1) // 2
        results.sweep.of_pairs([1])
        results.labels  # noqa: B018
        results.to_dataframe()
    assert not made


def test_an_edge_that_writes_nothing_in_a_pair_has_no_effect_there():
    sweep = made_up_edges(places=PLACES).sweep
    first, *others = (tuple((at, at) for at in range(len(tokens))) for tokens in sweep.clean_tokens)
    results = EdgeResults(dataclasses.replace(sweep, matches=(first[:2], *others)))
    each = results.sweep.pair_effects
    assert np.isnan(each).any() and not np.isnan(each).all()
    for item, effects in zip(results, each):
        np.testing.assert_array_equal(item.pair_effects, effects)
