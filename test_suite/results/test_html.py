"""What a notebook shows of results."""

from __future__ import annotations

import re

from activation_patching import load_results
from actpatch.results.shapes import LayerResults, SweepResults
from test_suite.helpers.figures import as_read
from test_suite.helpers.results import (
    clear,
    made_up_heads,
    made_up_layers,
    made_up_positions,
    made_up_sweep,
    same_metrics,
)


def test_notebook_table_shows_the_largest_effects_and_how_sure_they_are(tmp_path):
    results = clear(made_up_heads)
    sure = results.statistics()
    shown = results._repr_html_()
    rows = re.findall(r"<tr>(.*?)</tr>", shown)[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    assert [row[0] for row in cells] == [head.label for head in results.top(10)]
    for label, effect, interval, mark, patched in cells:
        i = results.labels.index(label)
        assert effect == as_read(f"{sure.effect[i]:+.3f}")
        assert interval == as_read(f"[{sure.low[i]:+.3f}, {sure.high[i]:+.3f}]")
        assert mark == ("" if sure.significant[i] else "n.s.")
        assert patched == as_read(f"{results[i].patched_metric:+.3f}")
    for told in ("IOI on made-up", "denoising: clean into corrupted", "12 pairs", "2 more with smaller effects"):
        assert told in shown
    assert f"clean {results.sweep.clean.mean():+.3f}, corrupted" in shown
    assert load_results(results.save(tmp_path / "r.json"))._repr_html_() == shown
    assert re.fullmatch(r"<details open><summary>IOI on made-up</summary>\n<table>.*</details>", shown, re.DOTALL)


def test_every_kind_of_results_shows_in_a_notebook_whatever_it_lacks():
    for results in (
        made_up_layers(),
        made_up_positions(n_pairs=1),
        SweepResults(made_up_heads().sweep),
        made_up_heads(**same_metrics()),
        made_up_heads(n_pairs=0),
    ):
        assert "<table>" in results._repr_html_()
    assert "0 hook points" in LayerResults(made_up_sweep([], 4, 3))._repr_html_()
    assert "use at least 5 pairs" in made_up_heads(n_pairs=1)._repr_html_()
    assert "No intervals" in made_up_heads(**same_metrics())._repr_html_()
