"""Figures of edges show every number where it belongs; the graph draws the largest, and no label lies on another."""

from __future__ import annotations

import html
import itertools
import math

import numpy as np
import pytest

from actpatch import EdgeResults
from actpatch.core.graph import Graph
from actpatch.core.sites import Site
from actpatch.figures.cells import STARS
from actpatch.figures.layered import curve, pushed_apart
from test_suite.helpers.figures import subtitle
from test_suite.helpers.results import GRAPH, N_PAIRS, clear, made_up_edges, made_up_heads, same_metrics
from visualize import (
    create_comparison,
    create_edge_graph,
    create_edge_heatmap,
    create_effect_distribution,
    create_head_heatmap,
    create_metric_scatter,
    create_top_edges_bar,
    create_top_heads_bar,
    figure_caption,
    on_dark,
    save_figure,
)

GPT2 = Graph("gpt2", (12,) * 12, (12,) * 12, (True,) * 12)
PLACES = tuple((Site("", position=(3,) * N_PAIRS, position_name=name),) for name in ("S2", "END"))


@pytest.fixture(scope="module")
def gpt2() -> EdgeResults:
    """As many edges as GPT-2 small has, of three pairs: too few to test."""
    return made_up_edges(GPT2, n_pairs=3)


def trace(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def hatched(figure) -> set[tuple[int, int]]:
    """The cells that are hatched."""
    drawn = [one for one in figure.data if one.name == "not measured"]
    return {(round(y + 0.5), round(x + 0.5)) for one in drawn for x, y in zip(one.x[::6], one.y[::6])}


def blank(figure) -> set[tuple[int, int]]:
    """The cells that are left blank."""
    drawn = [one for one in figure.data if one.name == "none there"]
    return {
        (round(one.y[i] + 0.5), column)
        for one in drawn
        for i in range(0, len(one.x), 6)
        for column in range(round(one.x[i] + 0.5), round(one.x[i + 1] + 0.5))
    }


# --- the map ---


def test_senders_are_rows_and_receivers_columns_in_the_order_of_the_forward_pass():
    results = made_up_edges()
    figure = create_edge_heatmap(results)
    table = results.matrix()
    np.testing.assert_array_equal(figure.data[0].z, table.to_numpy())
    assert figure.layout.yaxis.ticktext == tuple(writer.label for writer in GRAPH.writers) == tuple(table.index)
    assert figure.layout.xaxis.ticktext == tuple(reader.label for reader in GRAPH.readers)
    assert figure.data[0].zmax == -figure.data[0].zmin == np.abs(results.sweep.effects).max()
    for item in results:
        row, column = table.index.get_loc(item.sender), table.columns.get_loc(item.receiver)
        assert item.label in figure.data[0].hovertext[row][column]
        assert f"effect {item.effect:+.3f}".replace("-", "−") in figure.data[0].hovertext[row][column]


def test_where_there_is_no_edge_is_blank_and_what_was_not_measured_hatched():
    results = made_up_edges()
    figure = create_edge_heatmap(results)
    there = {(w, r) for r, n in enumerate(GRAPH.n_writers_before.tolist()) for w in range(n)}
    every = set(itertools.product(range(len(GRAPH.writers)), range(len(GRAPH.readers))))
    assert blank(figure) == every - there and hatched(figure) == set()
    some = create_edge_heatmap([item for item in results if item.sender != "L0H1" or item.receiver == "logits"])
    row, last = GRAPH.writer("L0H1"), len(GRAPH.readers) - 1
    assert hatched(some) == {cell for cell in there if cell[0] == row and cell[1] != last}
    assert blank(some) == every - there


@pytest.mark.slow
def test_thousands_of_edges_are_drawn_by_layer_with_the_largest_of_each(gpt2):
    figure = create_edge_heatmap(gpt2)
    cells = figure.data[0]
    rows = ["input", *(f"L{layer} {kind}" for layer in range(12) for kind in ("heads", "MLP"))]
    columns = [*(f"L{layer} {kind}" for layer in range(12) for kind in ("q", "k", "v", "MLP")), "logits"]
    assert figure.layout.yaxis.ticktext == tuple(rows) and figure.layout.xaxis.ticktext == tuple(columns)
    largest: dict[tuple[str, str], tuple[float, str]] = {}
    for label, effect in zip(gpt2.labels, gpt2.sweep.effects.tolist()):
        sender, receiver = label.split(" → ")
        row = f"{sender.split('H')[0]} heads" if "H" in sender else sender
        layer, _, kind = receiver.partition(" ")
        column = f"{layer.split('H')[0]} {kind}" if kind else receiver
        if abs(effect) > abs(largest.get((row, column), (0.0, ""))[0]):
            largest[row, column] = effect, label
    expected = np.full((len(rows), len(columns)), np.nan)
    for (row, column), (effect, label) in largest.items():
        expected[rows.index(row), columns.index(column)] = effect
        assert f"<b>{label}</b>" in cells.hovertext[rows.index(row)][columns.index(column)]
    np.testing.assert_array_equal(cells.z, expected)
    assert "largest of 144 edges, L8 heads → L9 q" in cells.hovertext[rows.index("L8 heads")][columns.index("L9 q")]
    assert blank(figure) == {(int(row), int(column)) for row, column in zip(*np.nonzero(np.isnan(expected)))}
    assert "each cell: the largest of its edges, 32,491 in all" in figure_caption(figure)
    assert figure.layout.title.text == "Effects of edges, by layer"
    assert create_edge_heatmap(gpt2, title="Mine").layout.title.text == "Mine"
    assert max(len(figure.layout.xaxis.ticktext), len(figure.layout.yaxis.ticktext)) <= 64


def test_some_senders_and_receivers_are_shown_one_by_one(gpt2):
    figure = create_edge_heatmap(gpt2, "L8", ["L9H9", "L9 MLP"])
    np.testing.assert_array_equal(figure.data[0].z, gpt2.of("L8", ["L9H9", "L9 MLP"]).matrix().to_numpy())
    assert figure.layout.xaxis.ticktext == ("L9H9 q", "L9H9 k", "L9H9 v", "L9 MLP")
    assert figure.layout.yaxis.ticktext == (*(f"L8H{head}" for head in range(12)), "L8 MLP")
    assert "each cell" not in figure_caption(figure)
    np.testing.assert_array_equal(create_edge_heatmap(gpt2.of("L8", ["L9H9", "L9 MLP"])).data[0].z, figure.data[0].z)
    together = create_edge_heatmap(gpt2, "L8", "L9H9", by="layers")
    assert together.layout.yaxis.ticktext == ("L8 heads", "L8 MLP")
    many = create_edge_heatmap(gpt2, receivers="L11", by="nodes")
    assert many.layout.yaxis.ticktext == ("input", *(f"L{layer}" for layer in range(12)))
    assert len(many.data[0].z) == 1 + 13 * 11 + 12, "the MLP of a layer reads what its heads write"


def test_a_star_marks_what_is_significant_and_by_layer_where_anything_is():
    results = clear(made_up_edges, every=7)
    significant = results.statistics().significant
    assert 0 < significant.sum() < len(results)
    edges = results.edges

    def starred(figure):
        stars = trace(figure, STARS)
        return {(int(y + 0.5), int(x + 0.5)) for x, y in zip(stars.x, stars.y)}

    assert starred(create_edge_heatmap(results)) == set(
        zip(edges.writers[significant].tolist(), edges.readers[significant].tolist())
    )
    assert "Benjamini-Hochberg over 62 edges" in subtitle(create_edge_heatmap(results))
    by_layer = create_edge_heatmap(results, by="layers")
    texts = by_layer.data[0].hovertext
    told = {(i, j) for i, row in enumerate(texts) for j, t in enumerate(row) if t and "<br>0 of them sign" not in t}
    assert starred(by_layer) == told
    counted = [int(t.rpartition("<br>")[2].split(" ")[0]) for row in texts for t in row if t]
    assert sum(counted) == significant.sum()


def test_a_part_is_drawn_with_the_whole_experiments_statistics():
    results = clear(made_up_edges, every=7)
    statistics = results.statistics(alpha=0.01)
    figure = create_edge_heatmap(results, "heads", "logits", statistics=statistics)
    part, stars = results.of("heads", "logits"), [one for one in figure.data if one.name == STARS]
    senders = [item.sender for item, yes in zip(part, statistics.significant[numbers_in(results, part)]) if yes]
    assert 0 < len(senders) < len(part)
    assert [figure.layout.yaxis.ticktext[int(y + 0.5)] for y in stars[0].y] == senders
    assert "p ≤ 0.01" in subtitle(figure) and "over 62 edges" in subtitle(figure)


def test_of_edges_at_several_positions_one_is_chosen():
    results = made_up_edges(places=PLACES, n_pairs=N_PAIRS)
    figure = create_edge_heatmap(results, position="END")
    np.testing.assert_array_equal(figure.data[0].z, results.matrix("END").to_numpy())
    assert "position END" in figure_caption(figure)
    with pytest.raises(ValueError, match=r"at 2 positions \(S2, END\): choose one, for instance position='S2'"):
        create_edge_heatmap(results)


@pytest.mark.parametrize("draw", [create_edge_heatmap, create_top_edges_bar, create_edge_graph])
def test_hover_texts_tell_the_interval_of_their_own_edge(draw):
    results = clear(made_up_edges, every=7)
    statistics = results.statistics()
    part = results.of("heads", "logits")
    figure = draw(part, statistics=statistics.of_sites(numbers_in(results, part)))
    if draw is create_edge_heatmap:
        figure = draw(results, "heads", "logits", statistics=statistics)
    told = figure.to_plotly_json()["data"]
    texts = [text for one in told for text in np.ravel(np.array(one.get("hovertext", ""), dtype=object)).tolist()]
    for number in numbers_in(results, part):
        (text,) = {text for text in texts if text.startswith(f"<b>{results.labels[number]}</b><br>")}
        low, high = (f"{end[number]:+.3f}".replace("-", "−") for end in (statistics.low, statistics.high))
        assert f"95% interval {low} to {high}<br>" in text


def numbers_in(results, part):
    return [results.labels.index(label) for label in part.labels]


# --- bars ---


def test_bars_are_the_largest_edges_with_their_intervals_and_pairs():
    results = clear(made_up_edges, every=7)
    statistics = results.statistics()
    figure = create_top_edges_bar(results, top_k=5)
    bars, points = figure.data
    top = results.top(5)
    assert list(bars.x) == [item.effect for item in top]
    numbers = [results.labels.index(item.label) for item in top]
    np.testing.assert_allclose(bars.x + bars.error_x.array, statistics.high[numbers])
    np.testing.assert_allclose(bars.x - bars.error_x.arrayminus, statistics.low[numbers])
    np.testing.assert_array_equal(sorted(points.x), sorted(effect for item in top for effect in item.pair_effects))
    assert figure.layout.yaxis.ticktext == tuple(
        f"{item.label} *" if statistics.significant[number] else item.label for item, number in zip(top, numbers)
    )
    assert "57 more with smaller effects not drawn" in figure_caption(figure)


def test_bars_name_positions():
    figure = create_top_edges_bar(made_up_edges(places=PLACES, n_pairs=N_PAIRS), top_k=200)
    assert any("@S2" in label for label in figure.layout.yaxis.ticktext)
    assert len(figure.layout.yaxis.ticktext) == 124


# --- the graph ---


def lines_of(figure):
    """The edges that are drawn: their label and the trace."""
    return {
        one.hovertext[3 : one.hovertext.index("</b>")]: one for one in figure.data if one.hovertext and one.line.width
    }


def boxes_of(figure) -> dict[str, tuple[float, float, float, float]]:
    """Label of each node -> left, low, right and high end of its box."""
    labels = trace(figure, "components")
    box = next(one for one in figure.data if one.fill == "toself")
    ends = {
        text: (box.x[6 * i], box.y[6 * i], box.x[6 * i + 1], box.y[6 * i + 2]) for i, text in enumerate(labels.text)
    }
    assert all(
        left < x < right and low < y < high for (left, low, right, high), x, y in zip(ends.values(), labels.x, labels.y)
    )
    return ends


def test_the_graph_draws_the_largest_edges_between_their_components(gpt2):
    figure = create_edge_graph(gpt2)
    top, lines, boxes = gpt2.top(40), lines_of(figure), boxes_of(figure)
    assert set(lines) == {item.label for item in top}
    components = {item.sender for item in top} | {
        item.receiver.removesuffix(f" {kind}") for item in top for kind in "qkv"
    }
    assert set(boxes) == {name for name in components if name[-2:] not in (" q", " k", " v")}
    largest = max(abs(item.effect) for item in top)
    for item in top:
        line, sender, receiver = lines[item.label], boxes[item.sender], boxes[item.receiver.rstrip("qkv").strip()]
        assert (line.line.color == "#2166ac") == (item.effect > 0)
        assert line.line.width == pytest.approx(1 + 5 * abs(item.effect) / largest, abs=0.01)
        assert line.line.dash == {"k": "dash", "v": "dot"}.get(item.receiver[-2:].strip(), "solid")
        assert sender[0] < line.x[0] < sender[2] and line.y[0] == pytest.approx(sender[3], abs=1e-3)
        assert receiver[0] < line.x[-1] < receiver[2] and line.y[-1] == pytest.approx(receiver[1], abs=1e-3)
        assert line.y[0] < line.y[-1], "edges go upwards"
    assert "40 edges of largest |effect|, of 32,491" in figure_caption(figure)
    assert create_edge_graph(gpt2).to_json() == figure.to_json()


def test_layers_are_rows_and_no_label_lies_on_another(gpt2):
    figure = create_edge_graph(gpt2, top_k=200)
    boxes = boxes_of(figure)
    rows = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext))
    for label, (_, low, _, high) in boxes.items():
        if label not in ("input", "logits"):
            assert rows[math.floor((low + high) / 2)] == label[1:].split("H")[0].split(" ")[0]
    for one, other in itertools.combinations(boxes.values(), 2):
        assert one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]
    pixels = (figure.layout.width - 100) / np.ptp(figure.layout.xaxis.range)
    assert all(6.2 * len(label) < (box[2] - box[0]) * pixels for label, box in boxes.items())
    assert boxes["logits"][1] == max(low for _, low, _, _ in boxes.values())


def test_heads_stand_by_their_number_and_are_pushed_apart():
    np.testing.assert_allclose(pushed_apart([3.0, 0.0, 1.0], 5), [3, 0, 1])
    np.testing.assert_allclose(pushed_apart([2.0, 2.0, 2.0], 5), [1, 2, 3])
    np.testing.assert_allclose(pushed_apart([0.0, 0.0, 5.0, 5.0], 5), [0, 1, 4, 5])
    random = np.random.default_rng(0)
    for _ in range(20):
        wanted = random.uniform(0, 9, 8)
        places = pushed_apart(wanted, 9)
        assert np.diff(np.sort(places)).min() > 1 - 1e-9 and places.min() >= 0 and places.max() <= 9 + 1e-9
        for other in (np.arange(8.0), np.arange(8) + 2.0, np.sort(places) * 0.9 + np.linspace(0, 0.9, 8)):
            if np.diff(other).min() >= 1 and other.max() <= 9:
                assert ((places - wanted) ** 2).sum() <= ((other - np.sort(wanted)) ** 2).sum() + 1e-9


def test_a_curve_keeps_clear_of_other_nodes():
    between = np.array([[0.0, 1.0, 0.36, 0.2]])
    straight = curve((0, 0), (0, 2), np.empty((0, 4)), (-2, 2))
    np.testing.assert_allclose(straight[:, 0], 0)
    around = curve((0, 0), (0, 2), between, (-2, 2))
    assert not ((abs(around[:, 0]) < 0.36) & (abs(around[:, 1] - 1) < 0.2)).any()
    assert around[:, 0].min() >= -2 and around[:, 0].max() <= 2
    np.testing.assert_allclose(around[[0, -1]], [[0, 0], [0, 2]])
    second = curve((0, 0), (0, 2), np.empty((0, 4)), (-2, 2), 1)
    assert abs(second - straight).max() > 0.1


def test_edges_at_two_positions_do_not_lie_on_each_other():
    results = made_up_edges(places=PLACES, n_pairs=N_PAIRS)
    lines = lines_of(create_edge_graph(results, top_k=124))
    for label in {label.partition(" @")[0] for label in lines}:
        one, other = (np.array([lines[f"{label} @{at}"].x, lines[f"{label} @{at}"].y]) for at in ("S2", "END"))
        assert abs(one - other).max() > 0.1


def test_a_threshold_chooses_the_edges():
    results = clear(made_up_edges, every=7)
    figure = create_edge_graph(results, threshold=0.15)
    assert set(lines_of(figure)) == {item.label for item in results if abs(item.effect) >= 0.15}
    assert "of |effect| ≥ 0.15, of 62" in figure_caption(figure)


def test_stars_of_the_graph_lie_on_significant_edges():
    results = clear(made_up_edges, every=7)
    figure = create_edge_graph(results, top_k=20)
    top, lines, stars = results.top(20), lines_of(figure), trace(figure, "significant")
    expected = [item.label for item, yes in zip(top, top.statistics().significant) if yes]
    on = [
        {label for label, line in lines.items() if any(abs(x - a) + abs(y - b) < 2e-3 for a, b in zip(line.x, line.y))}
        for x, y in zip(stars.x, stars.y)
    ]
    assert 0 < len(expected) < 20 and len(on) == len(expected)
    assert all(label in labels for label, labels in zip(expected, on))


def test_shared_keys_and_values_are_nodes_that_say_whose_they_are():
    figure = create_edge_graph(made_up_edges(), top_k=62)
    labels = trace(figure, "components")
    text = dict(zip(labels.text, labels.hovertext))
    assert "keys and values of L2H2 to L2H3" in text["L2KV1"]
    assert "into q, MLPs, logits" in {one.name for one in figure.data}
    alone = create_edge_graph(made_up_edges(Graph("attention-only", (2, 2), (2, 2), (False, False))), top_k=40)
    assert not any("MLP" in (one.name or "") for one in alone.data)
    assert {"L1H1", "input", "logits"} <= set(boxes_of(alone))


# --- all of them ---

DRAW = (create_edge_heatmap, create_top_edges_bar, create_edge_graph)


@pytest.mark.parametrize("draw", DRAW)
def test_they_say_what_they_rest_on_and_escape_names(draw, tmp_path):
    evil = "<script>alert(1)</script>"
    figure = draw(clear(made_up_edges, model=evil, path="by way of nothing"))
    caption = figure_caption(figure)
    assert evil in caption and "by way of nothing" in caption and "12 pairs" in caption
    assert evil not in figure.to_json() and html.escape(evil) in figure.layout.title.subtitle.text
    assert evil not in save_figure(figure, tmp_path / "figure.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("draw", DRAW)
def test_every_colour_has_a_look_on_dark(draw):
    dark = on_dark(draw(clear(made_up_edges))).to_json()
    assert '"white"' not in dark and "#2166ac" not in dark and "#222222" not in dark


@pytest.mark.parametrize("draw", DRAW)
def test_lists_of_edges_are_drawn_as_results_are(draw):
    results = clear(made_up_edges)
    figure = draw([item for item in results if item.sender == "L0H1"])
    assert figure.data and "over 62 edges" in figure_caption(figure)


@pytest.mark.parametrize("draw", DRAW)
def test_figures_for_paper_fit_or_say_what_they_need(draw, tmp_path):
    figure = draw(made_up_edges())
    save_figure(figure, tmp_path / "figure.html", width="174mm")
    with pytest.raises(ValueError, match="too small for this figure to be read"):
        save_figure(figure, tmp_path / "figure.html", width="20mm")


@pytest.mark.parametrize("draw", DRAW)
def test_too_few_pairs_mark_nothing(draw):
    figure = draw(made_up_edges(n_pairs=2))
    assert "too few to test" in figure_caption(figure)
    assert not any(one.name == "significant" for one in figure.data)


def test_figures_of_any_results_draw_edges():
    results = clear(made_up_edges)
    for figure in (create_effect_distribution(results, top_k=9), create_metric_scatter(results, top_k=9)):
        assert set(figure.layout.yaxis.ticktext) == {item.label for item in results.top(9)}


def test_figures_of_heads_say_along_which_path():
    for draw in (create_head_heatmap, create_top_heads_bar):
        assert "to L9H9 q, all other heads frozen" in figure_caption(
            draw(made_up_heads(path="to L9H9 q, all other heads frozen"))
        )


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        *(
            (lambda draw=draw: draw(made_up_heads()), "HeadResults, expected EdgeResults: create_head_heat")
            for draw in DRAW
        ),
        *((lambda draw=draw: draw(made_up_edges(**same_metrics())), "no pair was usable") for draw in DRAW),
        *((lambda draw=draw: draw(made_up_edges(n_pairs=0)), r"empty \(62 patches × 0 pairs\)") for draw in DRAW),
        (lambda: create_head_heatmap(made_up_edges()), "EdgeResults, expected HeadResults: create_edge_heatmap draws"),
        (lambda: create_comparison(made_up_edges(), made_up_edges()), "create_edge_heatmap draws these"),
        (lambda: create_edge_heatmap(made_up_edges(), by="layer"), "by is 'layer', expected 'layers', 'nodes'"),
        (lambda: create_edge_heatmap(made_up_edges(), by="heads"), "by is 'heads'"),
        (lambda: create_edge_heatmap(made_up_edges(), "L9H9"), "L9H9"),
        (lambda: create_edge_heatmap(made_up_edges(), "L2", "L0"), "none of these 62 edges goes from"),
        (lambda: create_edge_heatmap(made_up_edges(), position="S2"), "position 'S2' was not patched"),
        (lambda: create_edge_heatmap(made_up_edges(), colour_range=-1), "colour_range is -1"),
        (lambda: create_top_edges_bar(made_up_edges(), top_k=0), "top_k is 0, expected at least 1"),
        (lambda: create_edge_graph(made_up_edges(), top_k=0), "top_k is 0, expected at least 1"),
        (lambda: create_edge_graph(made_up_edges(), threshold=0), "threshold is 0, expected"),
        (
            lambda: create_edge_graph(made_up_edges(), threshold=99),
            "no edge has an .effect. of 99 or more, the largest",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_more_than_can_be_seen_is_refused(gpt2):
    with pytest.raises(ValueError, match=r"157 senders and 445 receivers are too many .*senders='L5'"):
        create_edge_heatmap(gpt2, by="nodes")
    with pytest.raises(ValueError, match="top_k=201 leaves 201 edges, at most 200"):
        create_edge_graph(gpt2, top_k=201)
    with pytest.raises(ValueError, match=r"threshold=0\.001 leaves .* edges, at most 200"):
        create_edge_graph(gpt2, threshold=0.001)
    with pytest.raises(ValueError, match="statistics"):
        create_edge_heatmap(gpt2, statistics=clear(made_up_edges).statistics())
