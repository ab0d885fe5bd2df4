"""The report's section on a circuit: its figures, sentences that claim no more than the numbers, what is refused."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from actpatch import Circuit
from actpatch.core.graph import Graph
from actpatch.core.text import with_minus
from test_suite.helpers.circuits import judged
from test_suite.helpers.pages import shown_text
from test_suite.helpers.results import made_up_heads
from visualize import create_full_report

NAMES = ["circuit_graph.html", "circuit_evaluation.html", "faithfulness_curve.html", "sensitivity_card.html"]


def page_of(folder, **given) -> str:
    written = create_full_report(save_dir=folder, **given)
    return written[0].read_text(encoding="utf-8").replace(get_plotlyjs(), "plotly.js")


def told(page: str) -> str:
    return " ".join(shown_text(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)).split())


def test_all_that_is_known_of_a_circuit_stands_in_one_section(tmp_path):
    run = judged()
    given = {
        "circuit": run.circuit,
        "circuit_evaluation": run.evaluation,
        "faithfulness": {"top": run.curve, "greedy": run.greedy},
        "sensitivity": run.card,
    }
    page = page_of(tmp_path, edge_results=run.effects, **given)
    names = [path.name for path in tmp_path.iterdir()]
    assert set(NAMES) <= set(names) and "edge_graph.html" in names
    section = page.partition("Which edges do it alone?</h2>")[2].partition("</section>")[0]
    assert section.count('data-draws="') == 4 and page.count('id="circuit_graph"') == 1
    text = told(section)
    assert "The circuit: 4 edges of 118 in program-induction, between 2 heads and 0 MLPs." in text
    assert "1 more edge of it lies on no way from the input to the logits." in text
    assert with_minus(run.evaluation.summary()) in text
    assert f"CPR {run.curve.areas().cpr:.2f}, CMD {run.curve.areas().cmd:.2f}" in text
    enough = run.curve.faithfulness().value >= 0.9
    assert f"has {int(run.curve.real[1][enough].min())} edges once pruned, of 118" in text
    low = min(run.card.variations, key=lambda one: one.faithfulness)
    assert f"it goes from {low.faithfulness:.2f}".replace("-", "−") in text
    assert "The settings below were varied for another circuit of this model." in text
    assert "Faithfulness of a circuit is" in told(page)
    effects = page.partition('data-draws="circuit_graph"')[2].partition("</script>")[0]
    assert "effect +1.000" in effects, "widths are those of the effects that were given"


def test_each_part_can_stand_alone(tmp_path):
    run = judged()
    for number, (given, name) in enumerate(
        (
            ({"circuit": run.circuit}, NAMES[:1]),
            ({"circuit_evaluation": run.evaluation}, NAMES[:2]),
            ({"faithfulness": run.curve}, NAMES[2:3]),
            ({"sensitivity": run.card}, [NAMES[0], NAMES[3]]),
        )
    ):
        folder = tmp_path / str(number)
        page = page_of(folder, **given)
        assert {path.name for path in folder.iterdir()} == {"report.html", "plotly.min.js", *name}
        assert "program-induction</title>" in page and "Largest effects" not in page


def test_a_report_without_circuits_does_not_speak_of_them(tmp_path):
    assert "aithfulness" not in told(page_of(tmp_path, head_results=made_up_heads()))


def test_what_cannot_be_drawn_is_told(tmp_path):
    run = judged()
    same = dataclasses.replace(run.curve, full=run.curve.empty)
    nowhere = Circuit.of(run.circuit.graph, ["input->a2.h0<q>"])
    page = page_of(tmp_path, circuit=nowhere, faithfulness=same)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "plotly.min.js"}
    assert "there is nothing to draw" in told(page) and "faithfulness is not defined" in told(page)
    assert "None of them has a faithfulness of 0.9 or more" in told(page)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"circuit": "L9H9"}, "circuit is a str, expected what find_circuit returns"),
        ({"circuit_evaluation": 1}, "circuit_evaluation is a int, expected what evaluate_circuit returns"),
        ({"sensitivity": np.zeros(3)}, "sensitivity is a ndarray, expected what sensitivity_card returns"),
        ({"faithfulness": {"a": 0.5}}, r"faithfulness\['a'\] is a float, expected what faithfulness_curve returns"),
        ({}, "was given: pass at least one of them"),
    ],
)
def test_other_things_are_refused(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        create_full_report(save_dir=tmp_path, **given)


def test_other_models_and_other_circuits_are_refused(tmp_path):
    run = judged()
    other = Circuit.full(Graph("another", (2,), (2,), (True,)))
    with pytest.raises(ValueError, match="different models, circuit of another, sensitivity of program-induction"):
        create_full_report(circuit=other, sensitivity=run.card, save_dir=tmp_path)
    with pytest.raises(ValueError, match="head_results of made-up, circuit of another"):
        create_full_report(made_up_heads(), circuit=other, save_dir=tmp_path)
    with pytest.raises(ValueError, match="circuit has 118 edges and circuit_evaluation judges one of 5"):
        create_full_report(
            circuit=Circuit.full(run.circuit.graph), circuit_evaluation=run.evaluation, save_dir=tmp_path
        )
    assert not list(tmp_path.iterdir())
