"""Figures of circuits show every number where it belongs, each edge once, and nothing surer than it is."""

from __future__ import annotations

import dataclasses
import html
import math

import numpy as np
import pytest

from actpatch import Circuit, SensitivityCard, Variation, find_circuit
from actpatch.core.graph import Graph
from actpatch.core.text import signed
from actpatch.figures.circuit_graph import FAINT
from actpatch.figures.colours import GREY
from test_suite.figures.test_edges import GPT2, PLACES, boxes_of, lines_of, trace
from test_suite.helpers.circuits import judged
from test_suite.helpers.results import GRAPH, N_PAIRS, clear, made_up_edges, made_up_heads
from visualize import (
    create_circuit_evaluation,
    create_circuit_graph,
    create_faithfulness_curve,
    create_sensitivity_card,
    figure_caption,
    on_dark,
    save_figure,
)

AT_POSITIONS = [
    *("input->a0.h1<k> @S1", "input->a0.h1<v> @S1", "a0.h1->a5.h5<k> @S1+1", "a0.h1->m0 @S1+1", "m0->a5.h5<v> @S1+1"),
    *("input->a5.h5<q> @S2", "a5.h5->a8.h6<v> @S2", "input->a8.h6<q> @END", "a8.h6->logits @END"),
]
"""Of GPT-2 small's graph; what is read at S1 is written at S1+1, and so on to the end."""


# --- the graph ---


@pytest.mark.slow
def test_the_graph_draws_each_edge_of_the_circuit_once():
    run = judged()
    figure = create_circuit_graph(run.circuit, run.effects)
    lines, boxes = lines_of(figure), boxes_of(figure)
    assert sorted(lines) == sorted(run.circuit.pruned().labels) and len(lines) == 4
    assert set(boxes) == set(run.circuit.pruned().nodes)
    largest = max(abs(run.effects[label].effect) for label in lines)
    for label, line in lines.items():
        sender, receiver = label.split(" → ")
        effect = run.effects[label].effect
        is_idle = label == "input → L1H2 q"
        assert line.line.color == (GREY if is_idle else "#2166ac")
        assert line.line.width == pytest.approx(1 + 5 * abs(effect) / largest, abs=0.01)
        assert line.line.dash == {"k": "dash", "v": "dot"}.get(receiver[-2:].strip(), "solid")
        assert f"effect {signed(effect)}" in line.hovertext
        box = boxes[receiver.rstrip("qkv").strip()]
        assert line.y[0] == pytest.approx(boxes[sender][3], abs=1e-3) and line.y[-1] == pytest.approx(box[1], abs=1e-3)
    caption = figure_caption(figure)
    assert "4 edges of 118" in caption and "1 edge on no way from input to logits left out" in caption
    assert run.circuit.found_by in caption and "too few to test" in caption
    assert create_circuit_graph(run.circuit, run.effects).to_json() == figure.to_json()


def test_edges_that_lead_nowhere_are_grey_where_they_are_asked_for():
    run = judged()
    figure = create_circuit_graph(run.circuit, run.effects, prune=False)
    lines = lines_of(figure)
    assert sorted(lines) == sorted(run.circuit.labels)
    dangling = set(run.circuit.labels) - set(run.circuit.pruned().labels)
    assert {label for label, line in lines.items() if "on no way" in line.hovertext} == dangling
    assert all(lines[label].line.color == GREY for label in dangling)
    assert "in grey" in figure_caption(figure)


def test_without_effects_all_lines_are_alike():
    figure = create_circuit_graph(judged().circuit)
    assert len({(line.line.width, line.line.color) for line in lines_of(figure).values()}) == 1
    assert "effect" not in "".join(line.hovertext for line in lines_of(figure).values())


def test_what_could_be_nothing_is_faint():
    results = clear(made_up_edges, every=7)
    statistics = results.statistics()
    circuit = Circuit.full(results.graph)
    figure = create_circuit_graph(circuit, results)
    lines = lines_of(figure)
    unsure = ~statistics.significant | ((statistics.low <= 0) & (statistics.high >= 0))
    assert 0 < unsure.sum() < len(unsure)
    assert {label for label, line in lines.items() if line.opacity == FAINT} == {
        label for label, is_unsure in zip(results.labels, unsure) if is_unsure and label in lines
    }
    n_faint = sum(line.opacity == FAINT for line in lines.values())
    assert f"faint: not significant, or the interval holds 0 ({n_faint} edges)" in figure_caption(figure)
    assert trace(figure, "could be 0").opacity == FAINT
    few = create_circuit_graph(circuit, made_up_edges(n_pairs=2))
    assert all(line.opacity is None for line in lines_of(few).values()) and "faint" not in figure_caption(few)


def test_positions_have_columns_and_heads_are_joined_across_them():
    circuit = Circuit.of(GPT2, AT_POSITIONS)
    figure = create_circuit_graph(circuit)
    lines = lines_of(figure)
    assert sorted(lines) == sorted(circuit.labels) and circuit.pruned() == circuit
    names = list(figure.layout.xaxis.ticktext)
    assert names == list(circuit.positions)
    between = [-math.inf, *sorted(shape.x0 for shape in figure.layout.shapes), math.inf]
    for label, line in lines.items():
        column = names.index(label.partition(" @")[2])
        assert between[column] < min(line.x) and max(line.x) < between[column + 1]
    labels = trace(figure, "components")
    node = {(text, name): at for text, name, at in _nodes(labels, names, between)}
    joined = next(one for one in figure.data if one.line.dash == "dashdot" and one.x[0] is not None)
    starts = {(joined.x[i], joined.x[i + 20]) for i in range(0, len(joined.x), 22)}
    ends = {
        (head, read, written): (node[head, read] + 0.39, node[head, written] - 0.39)
        for head, read, written in (("L0H1", "S1", "S1+1"), ("L5H5", "S1+1", "S2"), ("L8H6", "S2", "END"))
    }
    assert {tuple(map(round_to_3, pair)) for pair in starts} == {tuple(map(round_to_3, one)) for one in ends.values()}
    assert "a component stands at each position where it reads or writes" in figure_caption(figure)


def round_to_3(value: float) -> float:
    return round(value, 3)


def _nodes(labels, names, between):
    for text, x in zip(labels.text, labels.x):
        yield text, names[max(i for i, edge in enumerate(between[:-1]) if edge < x)], x


def test_effects_at_positions_are_those_of_their_position():
    results = made_up_edges(places=PLACES, n_pairs=N_PAIRS)
    edges = ["input->a0.h1<v> @S2", "a0.h1->m1 @END", "m1->logits @END", "input->a0.h1<q> @END"]
    circuit = Circuit.of(GRAPH, edges)
    lines = lines_of(create_circuit_graph(circuit, results))
    assert len(lines) == 4
    for label, line in lines.items():
        assert f"effect {signed(results[label].effect)}" in line.hovertext
    everywhere = made_up_edges()
    figure = create_circuit_graph(circuit, everywhere)
    assert "at all positions together" in figure_caption(figure)
    for label, line in lines_of(figure).items():
        assert f"effect {signed(everywhere[label.partition(' @')[0]].effect)}" in line.hovertext
    some = create_circuit_graph(circuit, results.at("S2"))
    assert sum("not measured" in line.hovertext for line in lines_of(some).values()) == 3


def test_of_many_edges_the_largest_are_drawn_or_those_nearest_to_the_logits():
    results = made_up_edges()
    full = Circuit.full(results.graph)
    figure = create_circuit_graph(full, results, top_k=10)
    assert set(lines_of(figure)) == {item.label for item in results.top(10)}
    assert "10 edges of largest |effect|, of 62 in the circuit" in figure_caption(figure)
    n_last = int(GRAPH.n_writers_before[-1])
    assert all(label.endswith("→ logits") for label in lines_of(create_circuit_graph(full, top_k=n_last)))


def test_keys_and_values_are_joined_to_the_heads_that_share_them():
    circuit = Circuit.of(GRAPH, ["input->a2.kv0<v>", "a2.h0->logits", "a2.h3->logits", "input->a2.h3<q>"])
    figure = create_circuit_graph(circuit)
    joined = next(one for one in figure.data if one.line.dash == "dashdot" and one.x[0] is not None)
    assert joined.x.count(None) == 1, "L2KV0 is that of L2H0 alone, of these heads"
    assert "heads that share these keys and values" in figure_caption(figure)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: create_circuit_graph(made_up_edges()), "given a EdgeResults, expected a Circuit"),
        (lambda: create_circuit_graph(Circuit.empty(GRAPH)), "the circuit has no edge: give one with edges"),
        (
            lambda: create_circuit_graph(Circuit.of(GRAPH, ["m0->logits"])),
            "1 edge, none on a way from input to logits.*prune=False",
        ),
        (lambda: create_circuit_graph(Circuit.full(GRAPH), top_k=0), "top_k is 0"),
        (lambda: create_circuit_graph(Circuit.full(GRAPH), top_k=201), "top_k is 201, at most 200"),
        (lambda: create_circuit_graph(Circuit.full(GPT2), made_up_edges()), "the results are of Graph.made-up.*gpt2"),
        (lambda: create_circuit_graph(Circuit.full(GRAPH), made_up_heads()), "HeadResults, expected EdgeResults"),
        (
            lambda: create_circuit_graph(Circuit.full(GRAPH), made_up_edges(places=PLACES, n_pairs=N_PAIRS)),
            r"results are at 2 positions \(S2, END\), which the circuit does not tell apart",
        ),
        (
            lambda: create_circuit_graph(Circuit.full(GRAPH), statistics=clear(made_up_edges).statistics()),
            "statistics are given without the results",
        ),
    ],
)
def test_what_is_no_graph_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# --- faithfulness by size ---


def test_the_curve_shows_faithfulness_and_its_areas():
    curve = judged().curve
    for ranking in ("absolute", "signed"):
        figure = create_faithfulness_curve(curve, ranking=ranking, scale="linear")
        line = next(one for one in figure.data if one.mode == "lines+markers")
        found, areas, row = curve.faithfulness(ranking), curve.areas(ranking), curve.rankings.index(ranking)
        np.testing.assert_allclose(line.x, curve.nominal[row] / curve.n_edges)
        np.testing.assert_allclose(line.y, found.value)
        assert line.name == f"CPR {areas.cpr:.2f}, CMD {areas.cmd:.2f}"
        for text, n in zip(line.hovertext, curve.real[row]):
            assert f"{n:,} once pruned" in text
    assert {shape.y0 for shape in figure.layout.shapes} == {0.0, 1.0}
    low, high = figure.layout.yaxis.range
    assert low < 0 and high > 1
    band = next(one for one in figure.data if one.fill == "toself")
    np.testing.assert_allclose(band.y, np.concatenate([curve.random_band()[1], curve.random_band()[0][::-1]]))
    assert "6 random rankings, seed 0" in figure_caption(figure) and "the ranking did not see" in figure_caption(figure)


def test_on_a_log_scale_circuits_without_edges_have_no_place():
    curve = judged().curve
    figure = create_faithfulness_curve(curve, sizes="real")
    line = next(one for one in figure.data if one.mode == "lines+markers")
    real = curve.real[curve.rankings.index("absolute")]
    assert 0 < (real == 0).sum() < len(real)
    np.testing.assert_allclose(line.x, real[real > 0] / curve.n_edges)
    assert f"{(real == 0).sum()} circuit" in figure_caption(figure) and figure.layout.xaxis.type == "log"
    areas = curve.areas("absolute", "real")
    assert line.name == f"CPR {areas.cpr:.2f}, CMD {areas.cmd:.2f}"


def test_curves_lie_over_one_another_by_name():
    run = judged()
    figure = create_faithfulness_curve({"top <b>": run.curve, "greedy": run.greedy})
    names = [one.name.partition(":")[0] for one in figure.data if one.mode == "lines+markers"]
    assert names == ["top &lt;b&gt;", "greedy"]
    caption = figure_caption(figure)
    assert caption.count("logit difference") == 1 and "greedy: greedy edges by |effect|" in caption
    assert sum(one.fill == "toself" for one in figure.data) == 1 and "of top <b>" in caption


def test_the_band_lies_between_its_two_ends():
    curve = judged().curve
    random = np.random.default_rng(0).uniform(0, 4, curve.random_values.shape)
    spread = dataclasses.replace(curve, random_values=random)
    low, high = spread.random_band()
    assert (low < high).all()
    band = next(one for one in create_faithfulness_curve(spread, scale="linear").data if one.fill == "toself")
    np.testing.assert_allclose(band.y, np.concatenate([high, low[::-1]]))


def test_flags_of_a_curve_are_in_its_caption():
    curve = judged().curve
    turned = dataclasses.replace(curve, more_is_better=False)
    assert "the model does worse than with every edge off" in figure_caption(create_faithfulness_curve(turned))
    none = dataclasses.replace(curve, full=curve.empty)
    with pytest.raises(ValueError, match="no circuit has a place in this figure"):
        create_faithfulness_curve(none)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: create_faithfulness_curve(judged().card), "given a SensitivityCard, expected what faithfulness_curve"),
        (lambda: create_faithfulness_curve({}), "0 curves given, expected 1 to 5"),
        (lambda: create_faithfulness_curve(judged().curve, scale="lin"), "scale is 'lin', expected one of"),
        (lambda: create_faithfulness_curve(judged().curve, sizes="pruned"), "sizes is 'pruned'"),
        (
            lambda: create_faithfulness_curve({"g": judged().greedy}, ranking="signed"),
            "ranking is 'signed', the curve 'g' has 'absolute'",
        ),
    ],
)
def test_what_is_no_curve_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# --- settings ---


def test_the_card_has_a_row_for_each_setting():
    card = judged().card
    figure = create_sensitivity_card(card)
    rows = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext))
    bold = [label[3:-4] for label in rows.values() if label.startswith("<b>")]
    assert bold == list(card.axes)
    drawn = {}
    for name in ("base case", "other settings"):
        dots = trace(figure, name)
        drawn |= {row: (x, text) for row, x, text in zip(dots.y, dots.x, dots.hovertext)}
    order = [drawn[row] for row in sorted(drawn)]
    assert len(order) == len(card.variations)
    for (x, text), one in zip(order, card.variations):
        assert x == pytest.approx(one.faithfulness) and f"<b>{html.escape(one.name, quote=False)}</b>" in text
    assert trace(figure, "base case").x == (card.base.faithfulness,)
    assert card.base.faithfulness in [shape.x0 for shape in figure.layout.shapes if shape.line.dash == "dash"]
    overlap = trace(figure, "edges shared (Jaccard)")
    assert list(overlap.x) == [one.jaccard for one in card.variations]
    assert "the base case, others differ from it in one thing" in figure_caption(figure)


def test_without_overlaps_there_is_one_panel_and_intervals_without_end_are_not_drawn():
    circuit = judged().circuit
    rows = [
        Variation("ablation", "the other run", 0.9, 0.8, 1.0, is_base=True),
        Variation("ablation", "zero", 0.2, -math.inf, 0.4, note="zeros are in no run"),
        Variation("direction", "denoising", math.nan),
    ]
    figure = create_sensitivity_card(SensitivityCard(circuit, "logit difference", "", "t <i>", None, tuple(rows)))
    assert len(list(figure.select_xaxes())) == 1
    others = trace(figure, "other settings")
    assert np.isnan(others.error_x.arrayminus[0]) and others.error_x.array[0] == pytest.approx(0.2)
    low, high = figure.layout.xaxis.range
    assert math.isfinite(low) and low < 0 and high > 1
    assert "(not defined)" in figure.layout.yaxis.ticktext[-1]
    assert "ablation: zero: zeros are in no run" in figure_caption(figure) and "<i>" not in figure.to_json()


@pytest.mark.parametrize("card", [judged, None])
def test_what_is_no_card_is_said(card):
    with pytest.raises(ValueError, match="expected a SensitivityCard"):
        create_sensitivity_card(card)
    row = Variation("ablation", "zero", math.nan, is_base=True)
    empty = SensitivityCard(judged().circuit, "logit difference", "", "t", None, (row,))
    with pytest.raises(ValueError, match="no setting of this card has a faithfulness"):
        create_sensitivity_card(empty)


# --- what was judged ---


def test_the_evaluation_shows_what_was_judged():
    e = judged().evaluation
    figure = create_circuit_evaluation(e)
    alone = trace(figure, "the circuit, and the rest without it")
    assert list(alone.x) == [e.faithfulness.value[0], e.completeness.value[0]]
    random = trace(figure, "9 random circuits")
    np.testing.assert_array_equal(random.x, e.random_faithfulness.value)
    assert figure.layout.yaxis.ticktext == ("circuit", "the rest", "random circuits")
    bars = trace(figure, "drop of faithfulness")
    assert list(bars.x) == sorted(e.minimality.value, reverse=True)
    named = dict(zip(figure.layout.yaxis2.ticktext, bars.x))
    assert named == dict(zip(e.parts, e.minimality.value))
    grey = {part for part, colour in zip(figure.layout.yaxis2.ticktext, bars.marker.color) if colour == GREY}
    assert grey == set(e.not_needed) == {"input → L1H2 q"}
    points = [one for one in figure.data if one.name and " sets (" in one.name]
    x, y = (np.concatenate([getattr(one, axis) for one in points]) for axis in "xy")
    np.testing.assert_allclose(y - x, e.knocked_out.value, atol=1e-12)
    np.testing.assert_allclose(y, x, atol=1e-9)  # the circuit is all that does it


def test_knock_outs_that_hurt_the_model_less_lie_above_the_diagonal():
    e = judged().evaluation
    half = dataclasses.replace(e.values, model_knocked=(e.values.model_knocked + e.values.full) / 2)
    lacking = dataclasses.replace(e, measured=(half, *e.measured[1:]))
    points = [one for one in create_circuit_evaluation(lacking).data if one.name and " sets (" in one.name]
    x, y = (np.concatenate([getattr(one, axis) for one in points]) for axis in "xy")
    assert (lacking.knocked_out.value > 0.1).any()
    np.testing.assert_allclose(y - x, lacking.knocked_out.value, atol=1e-12)


def test_another_metric_and_fewer_parts_can_be_drawn():
    e = judged().evaluation
    name = next(name for name in e.metrics if name != e.metric)
    figure = create_circuit_evaluation(e, metric=name, top_k=2)
    other = e.by_metric(name)
    assert trace(figure, "the circuit, and the rest without it").x[0] == other.faithfulness.value[0]
    bars = trace(figure, "drop of faithfulness")
    largest = sorted(np.abs(other.minimality.value))[-2:]
    np.testing.assert_allclose(sorted(np.abs(bars.x)), largest)
    assert f"2 of {len(e.parts)} edges, the largest drops" in figure_caption(figure) and name in figure_caption(figure)


def test_what_was_not_judged_has_no_panel():
    e = judged().evaluation
    values = e.values
    none = np.empty((0, len(e.pair_indices)))
    bare = dataclasses.replace(
        values,
        **dict.fromkeys(
            ("random", "without", "circuit_knocked", "model_knocked", "inflated", "inflated_without"), none
        ),
    )
    few = dataclasses.replace(
        e, measured=(bare,), parts=(), knock_outs=(), n_greedy=0, random_sizes=np.array([], dtype=int), notes=("Mine",)
    )
    figure = create_circuit_evaluation(few)
    assert len(list(figure.select_xaxes())) == 1 and figure.layout.yaxis.ticktext == ("circuit", "the rest")
    assert "Mine" in figure_caption(figure) and "random" not in figure_caption(figure)
    same = dataclasses.replace(few, measured=(dataclasses.replace(bare, full=values.empty),))
    with pytest.raises(ValueError, match="faithfulness is not defined by the logit difference"):
        create_circuit_evaluation(same)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: create_circuit_evaluation(judged().circuit), "given a Circuit, expected what evaluate_circuit"),
        (lambda: create_circuit_evaluation(judged().evaluation, top_k=0), "top_k is 0"),
        (lambda: create_circuit_evaluation(judged().evaluation, metric="rank"), "the metric 'rank' was not measured"),
    ],
)
def test_what_is_no_evaluation_is_said(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


# --- all of them ---

FIGURES = {
    "graph": lambda **options: create_circuit_graph(judged().circuit, judged().effects, **options),
    "graph at positions": lambda **options: create_circuit_graph(Circuit.of(GPT2, AT_POSITIONS), **options),
    "curve": lambda **options: create_faithfulness_curve({"a": judged().curve, "b": judged().greedy}, **options),
    "card": lambda **options: create_sensitivity_card(judged().card, **options),
    "evaluation": lambda **options: create_circuit_evaluation(judged().evaluation, **options),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_colour_has_a_look_on_dark(name):
    dark = on_dark(FIGURES[name]()).to_json()
    for colour in ('"white"', "#2166ac", "#b2182b", "#222222", "#767676", "#6a3d9a", "#d17606"):
        assert colour not in dark


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_files_that_need_no_network_and_fit_paper(name, tmp_path):
    figure = FIGURES[name](title="Mine")
    assert figure.layout.title.text == "Mine" and figure_caption(figure).startswith("Mine\n")
    save_figure(figure, tmp_path / "figure.html")
    save_figure(figure, tmp_path / "paper.html", width="174mm")
    with pytest.raises(ValueError, match="too small for this figure to be read"):
        save_figure(figure, tmp_path / "small.html", width="20mm")


def test_names_are_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    graph = Graph(evil, (2, 2), (2, 2), (True, True))
    results = clear(made_up_edges, graph=graph, model=evil)
    circuit = find_circuit(results, n_edges=20, method="greedy")
    e, card = judged().evaluation, judged().card
    for figure in (
        create_circuit_graph(circuit, results),
        create_circuit_graph(circuit),
        create_circuit_evaluation(dataclasses.replace(e, task=evil, parts=(evil, *e.parts[1:]))),
        create_faithfulness_curve({evil: dataclasses.replace(judged().curve, task=evil)}),
        create_sensitivity_card(dataclasses.replace(card, task=evil)),
    ):
        assert evil in figure_caption(figure) and evil not in figure.to_json()
        assert evil not in save_figure(figure, tmp_path / "figure.html").read_text(encoding="utf-8")
