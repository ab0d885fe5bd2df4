"""Figures and strips of prompts of other lengths stand by the positions of the prompt that is patched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from activation_patching import summarize_results
from actpatch import create_full_report, headline
from actpatch.report.tokens import position_effects, strips_section
from test_suite.helpers.models import HAS_HOOKED, small_model
from test_suite.helpers.sweeps import patcher_on
from test_suite.tasks.test_alignment import LONG, SHORT, Ids
from visualize import create_position_heatmap

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"
NAMED = {"SUBJECT": (2, 3), "END": -1}

pytestmark = pytest.mark.filterwarnings("ignore:.*changes? nothing", "ignore:The ")


@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        ("denoising", ["0: w1", "1: w5", "2: w6", "<b>3: ∅→w30</b>", "<b>4: ∅→w31</b>", "5: w7", "6: w8"]),
        ("noising", ["0: w1", "1: w5", "2: w6", "<b>3: w20→∅</b>", "4: w7", "5: w8"]),
    ],
)
def test_a_map_over_all_positions_shows_both_tokens_and_where_there_is_none(
    direction: Any, expected: list[str]
) -> None:
    results = patcher_on(small_model(PLAIN)).run_position_experiment(
        Ids([(SHORT, LONG)], "ends"), "resid_pre", direction=direction
    )
    figure = create_position_heatmap(results)
    assert list(figure.layout.xaxis.ticktext) == expected
    assert np.asarray(figure.data[0].z).shape == (3, len(expected))
    strip = strips_section(results.sweep, results)
    assert strip.count("∅") >= (2 if direction == "denoising" else 1)


def test_a_span_colours_all_its_tokens_and_names_its_column(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = Ids([(SHORT, LONG), (LONG, SHORT)], "names", [NAMED, NAMED], [{"SUBJECT": 3, "END": -1}] * 2)
    patcher = patcher_on(small_model(PLAIN))
    results = patcher.run_position_experiment(dataset, "resid_pre", positions=["SUBJECT", "END"], direction="noising")
    assert list(create_position_heatmap(results).layout.xaxis.ticktext) == ["SUBJECT", "END"]
    first, second = position_effects(results, "resid_pre")
    assert set(first) == {2, 3, 5} and set(second) == {2, 3, 6} and first[2] == first[3] != first[5]
    layers = patcher.run_patching_experiment(dataset, "resid_pre", position="SUBJECT", direction="noising")
    summarize_results(layers)
    printed = " ".join(capsys.readouterr().out.split())
    assert "positions of the clean prompts have no partner in the other run and are left alone (mean over" in printed
    pages = create_full_report(position_results=results, layer_results=layers, save_dir=tmp_path)
    html = "".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html"))
    assert pages and "SUBJECT" in html and "have no partner in the other run" in html
    assert headline(results)
