"""The report tells what was run, how sure it is and whether pairs can carry a conclusion; it escapes, and fails whole.

How it looks and behaves in a browser is tested in `browser`.
"""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from activation_patching import DatasetCheck, IOIDataset, check_dataset
from actpatch.core.graph import Graph
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.report.tokens import position_effects
from actpatch.results.baselines import Finding, baseline_findings
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import HeadResults
from test_suite.helpers.figures import as_read
from test_suite.helpers.models import bundled
from test_suite.helpers.pages import shown_text
from test_suite.helpers.results import (
    CLEAN_TOKENS,
    clear,
    made_up_edges,
    made_up_head_positions,
    made_up_heads,
    made_up_layers,
    made_up_positions,
    made_up_sweep,
    of_no_experiment,
    same_metrics,
)
from visualize import create_full_report, headline


def report_text(*results, **options) -> str:
    return create_full_report(*results, **options)[0].read_text(encoding="utf-8").replace(get_plotlyjs(), "plotly.js")


def linted(*findings: Finding) -> DatasetCheck:
    """What the linter says of a dataset, with other findings."""
    return dataclasses.replace(check_dataset(bundled(), IOIDataset(bundled(), 1)), findings=findings)


def no_two_alike(n_pairs: int = 5) -> dict[str, tuple[tuple[str, ...], ...]]:
    return {"clean_tokens": tuple((*CLEAN_TOKENS[:-1], f" {pair}") for pair in range(n_pairs))}


# --- the files ---


def test_report_carries_everything_and_figures_share_one_script(tmp_path):
    folder = tmp_path / "new" / "figures"
    written = create_full_report(
        head_results=made_up_heads(), layer_results=made_up_layers(), n_layers=4, n_heads=3, save_dir=str(folder)
    )
    names = [path.name for path in written]
    assert names[0] == "report.html"
    assert sorted(names[1:]) == [
        "component_comparison.html",
        "head_heatmap.html",
        "head_metric_scatter.html",
        "layer_heatmap.html",
        "layer_metric_scatter.html",
        "plotly.min.js",
        "top_heads_bar.html",
    ]
    assert set(written) == set(folder.iterdir())
    report = written[0].read_text(encoding="utf-8")
    assert report.count(get_plotlyjs()) == 1
    for path in written[:-1]:
        page = path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
        outside = re.findall(r"""(?:src|href)=["']([^"']*)|url\(([^)]*)|(https?://[^"'\s<]*)""", page)
        found = {name for match in outside for name in match if name and not name.startswith(("#", "data:"))}
        assert found == (set() if path.name == "report.html" else {"plotly.min.js", "report.html"})


def test_report_draws_what_the_results_allow(tmp_path):
    def names(*results, **more) -> set[str]:
        written = create_full_report(*results, **more, save_dir=tmp_path)
        return {Path(path).stem for path in written} - {"report", "plotly.min"}

    assert names(None, made_up_layers(("resid_pre",))) == {"layer_heatmap", "layer_metric_scatter"}
    assert names(of_no_experiment(made_up_heads()), None, 4, 3) == {"head_heatmap", "top_heads_bar"}
    for some in (made_up_heads()[:4], sorted(made_up_heads(), key=lambda head: head.effect)):
        assert names(some) == {"head_heatmap", "top_heads_bar", "head_metric_scatter"}
    assert names(head_position_results=made_up_head_positions()) == {"head_position_heatmap"}
    both = {"position_heatmap_resid_pre", "position_heatmap_mlp_out"}
    assert names(position_results=made_up_positions()) == both


def test_report_of_a_plain_list_says_what_it_does_not_know(tmp_path):
    page = report_text(of_no_experiment(made_up_heads()), None, 4, 3, save_dir=tmp_path)
    assert "which does not know what was run" in page and "Save" not in shown_text(page)


def test_a_report_of_another_plotly_is_replaced_with_its_script(tmp_path):
    (tmp_path / "plotly.min.js").write_text("old")
    create_full_report(made_up_heads(), save_dir=tmp_path)
    assert (tmp_path / "plotly.min.js").read_text(encoding="utf-8") == get_plotlyjs()


def test_two_reports_of_the_same_results_are_the_same(tmp_path):
    pages = [
        create_full_report(made_up_heads(), made_up_layers(), save_dir=tmp_path / folder)[0].read_bytes()
        for folder in ("one", "two")
    ]
    assert pages[0] == pages[1]


def test_a_write_that_fails_leaves_every_file_as_it_was(tmp_path):
    create_full_report(made_up_heads(), save_dir=tmp_path)
    (tmp_path / "top_heads_bar.html").unlink()
    (tmp_path / "top_heads_bar.html").mkdir()
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    other = HeadResults(dataclasses.replace(made_up_heads().sweep, task="another"))
    with pytest.raises(OSError, match=r"top_heads_bar.html.*no plain file.*nothing was changed"):
        create_full_report(other, save_dir=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


# --- the errors ---


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "neither head_results nor .* nor edge_results nor top_results was given: pass at least one"),
        (
            {"head_results": made_up_heads(), "layer_results": made_up_layers(model="another")},
            r"different models, head_results of made-up \(4 layers × 3 heads\), layer_results of another",
        ),
        (
            {"head_results": made_up_heads(), "layer_results": made_up_layers(n_layers=5)},
            r"different models.* \(5 layer",
        ),
        ({"head_results": made_up_layers()}, "LayerResults, expected HeadResults"),
        ({"position_results": made_up_heads()}, "HeadResults, expected PositionResults"),
        ({"head_results": made_up_heads(**same_metrics())}, "no pair was usable"),
        ({"layer_results": made_up_layers(**same_metrics())}, "no pair was usable"),
        ({"position_results": made_up_positions(**same_metrics())}, "no pair was usable"),
        ({"head_results": []}, "empty"),
        ({"layer_results": made_up_layers(())}, "empty .*0 patches"),
        ({"head_position_results": made_up_heads()}, "HeadResults, expected HeadPositionResults: create_head_heatmap"),
        ({"head_results": made_up_heads(n_pairs=0)}, "empty .* 0 pairs"),
        ({"position_results": made_up_positions(n_pairs=0)}, "empty .* 0 pairs"),
    ],
)
def test_what_no_report_can_be_made_of_is_said_and_nothing_is_written(results, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        create_full_report(**results, save_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_drawn(tmp_path):
    taken = tmp_path / "figures"
    taken.write_text("a file")
    with pytest.raises(OSError, match=r"cannot write to save_dir .*figures"):
        create_full_report(made_up_heads(**same_metrics()), save_dir=taken)


# --- what it tells ---


def test_report_tells_what_was_run(tmp_path):
    drawn = {"dataset_seed": 7, "varies": "names and their order"}
    text = shown_text(report_text(made_up_heads(**drawn), made_up_layers(direction="noising"), save_dir=tmp_path))
    for setting in (
        "made-up, 4 layers × 3 heads",
        "IOI",
        "denoising (clean into corrupted",
        "noising (corrupted into clean",
        "logit difference (logits)",
        "5 pairs, 1999 resamples, seed 0",
        "5 pairs, drawn from seed 7 5 pairs Mean",
        "another prompt, which varies names and their order another prompt",
        "Patched z attn_out, mlp_out",
        "torch 2.13.0",
    ):
        assert setting in text


def test_largest_effects_have_no_intervals_where_there_are_too_few_pairs(tmp_path):
    texts = [shown_text(report_text(made_up_heads(n_pairs=n), save_dir=tmp_path)) for n in (5, 4, 1)]
    assert ["95 % interval" in text for text in texts] == [True, False, False]
    assert ["p, corrected" in text for text in texts] == [True, True, False]
    assert "one pair does not show how much pairs differ" in texts[-1]


def test_other_metrics_are_named_and_in_the_data(tmp_path):
    sweep = made_up_heads().sweep
    other = dataclasses.replace(sweep.measured[0], name="rank", unit="")
    page = report_text(HeadResults(dataclasses.replace(sweep, measured=(*sweep.measured, other))), save_dir=tmp_path)
    assert "Also measured rank" in shown_text(page)


def test_very_many_pairs_are_cut_and_the_report_says_so(tmp_path):
    heads = made_up_heads(2, 2, n_pairs=300)
    written = create_full_report(heads, save_dir=tmp_path)
    text = shown_text(written[0].read_text(encoding="utf-8").replace(get_plotlyjs(), ""))
    assert "298 more pairs" in text and ": 98 more of 298" in text and "The first 10 of 300 pairs" in text
    assert "8 more token by token" in text
    assert "heads.csv (" in text
    assert written[0].stat().st_size < len(get_plotlyjs()) + 1e6


def test_what_was_found_stands_first_then_the_map_and_the_bars_and_settings_are_folded(tmp_path):
    heads = clear(made_up_heads)
    page = report_text(heads, clear(made_up_layers), save_dir=tmp_path)
    text = shown_text(page)
    found = headline(heads, clear(made_up_layers))
    parts = (f" {found}.", " Verdict ", " Settings ", "Pair Clean prompt", "10 more pairs")
    order = [text.index(said) for said in parts]
    assert order == sorted(order)
    places = [page.index(f'id="{name}"') for name in ("head_heatmap", "top_heads_bar")]
    assert page.index('class="finding"') < min(places) and max(places) < page.index("Verdict")
    assert page.index("Verdict") < page.index('id="head_metric_scatter"')
    folded = re.findall(r"<details[^>]*><summary>(.*?)</summary>(.*?)</details>", page, re.DOTALL)
    assert [name for name, _ in folded][:3] == ["Settings", "8 more token by token", "10 more pairs"]
    assert "Intervals and tests" in folded[0][1] and folded[2][1].count("<tr>") == 11
    assert folded[1][1].count('<ol class="strip">') == 8 and page.count('<ol class="strip">') == 10


def test_groups_and_templates_stand_beside_the_prompts(tmp_path):
    groups, templates = ("IO first", "subject first") * 2 + ("",), ("When {IO}", "While {S1}") * 2 + ("",)

    def shown(**changes: tuple[str, ...]) -> str:
        return shown_text(report_text(made_up_heads(**changes), save_dir=tmp_path))

    assert "Pair Clean prompt" in shown() and "template" not in shown()
    assert "Pair Group Clean prompt" in shown(groups=groups) and "11 subject first <s>When" in shown(groups=groups)
    both = shown(groups=groups, templates=templates)
    assert "Pair Group Template Clean prompt" in both and "11 subject first While {S1} <s>When" in both
    same = shown(groups=templates, templates=templates)
    assert "Pair Template Clean prompt" in same and "11 While {S1} <s>When" in same
    one = shown(groups=groups, templates=("When {IO}",) * 5)
    assert "Pair Group Clean prompt" in one and "5 pairs; all of the template 'When {IO}'" in one
    assert one.count("all of the template") == 1


def test_long_prompts_are_cut_and_the_report_says_so(tmp_path):
    long = (tuple(f" t{i}" for i in range(1000)),) * 5
    page = report_text(made_up_heads(clean_tokens=long, corrupted_tokens=long), save_dir=tmp_path)
    assert page.count("… and 800 more tokens") == 5 and page.count("<li class=") == 5 * 200


# --- the verdict ---


def test_a_linters_verdict_takes_the_place_of_the_reports_own(tmp_path):
    check = linted(Finding("fault", "Answers <b> repeat", "Make others"))
    page = report_text(made_up_heads(), save_dir=tmp_path, check=check)
    text = shown_text(page)
    assert "Verdict: not usable Usable 5 of 5 pairs" in text and "fault : Answers <b> repeat. Make others." in text
    assert 'class="verdict fault"' in page and "the dataset itself was not checked" not in text
    assert "<b> repeat" not in page


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ready"),
        ({"clean": np.array([3.0, -3.0, 3.0, 3.0, 3.0])}, "usable with care"),
        ({"clean": np.full(5, -9.0)}, "not usable"),
        ({"clean": np.full(5, -9.0), "more_is_better": False, "name": "KL divergence"}, "ready"),
        ({"clean": np.full(5, 1.0), "more_is_better": False, "name": "rank", "corrupted": np.full(5, 7.0)}, "ready"),
    ],
)
def test_without_a_linter_the_baselines_decide(changes, verdict, tmp_path):
    corrupted = {"corrupted": np.full(5, -3.0)} if "clean" in changes else {}
    heads = made_up_heads(**{**corrupted, **changes}, **no_two_alike())
    text = shown_text(report_text(heads, save_dir=tmp_path))
    assert f"Verdict: {verdict}" in text and "the dataset itself was not checked" in text
    for finding in baseline_findings(heads.sweep):
        assert as_read(" ".join(finding.what.split())) in text


def test_baselines_of_other_pairs_are_judged_apart(tmp_path):
    few = made_up_positions(4, n_pairs=4, clean=np.array([3.0, 3.0, 3.0, -9.0]), corrupted=np.full(4, -3.0))
    same = {"clean": np.full(5, 3.0), "corrupted": np.full(5, -3.0), **no_two_alike()}
    heads, layers = made_up_heads(**same), made_up_layers(**same)
    text = shown_text(report_text(heads, layers, position_results=few, save_dir=tmp_path))
    assert "Verdict for Heads, Layers: ready" in text
    assert "Verdict for Positions: usable with care" in text


# --- tokens ---


def test_position_effects_are_the_largest_over_layers_for_each_pair():
    positions = made_up_positions(n_layers=3)
    for component in ("resid_pre", "mlp_out"):
        found = position_effects(positions, component)
        for pair, effects in enumerate(found):
            assert set(effects) == set(range(len(CLEAN_TOKENS)))
            for at, largest in effects.items():
                column = {
                    patch.sites[0].layer: effect
                    for patch, effect in zip(positions.sweep.patches, positions.sweep.pair_effects[:, pair])
                    if (patch.sites[0].component, patch.sites[0].position) == (component, at)
                }
                assert max(column.values(), key=abs) == largest.effect == column[largest.layer]


def test_positions_by_name_are_found_in_each_pair():
    sites = [Site(block_hook(layer, "resid_pre"), position=(1, 3), position_name="S") for layer in range(2)]
    sweep = made_up_sweep([], 2, 3, n_pairs=2)
    changes = {
        "patches": tuple(Patch((site,)) for site in sites),
        "measured": (dataclasses.replace(sweep.measured[0], patched=np.array([[1.0, 2.0], [3.0, -2.0]])),),
    }
    first, second = position_effects(PositionResults(dataclasses.replace(sweep, **changes)), "resid_pre")
    assert (set(first), set(second)) == ({1}, {3})
    assert (first[1].layer, second[3].layer) == (1, 0)


def test_positions_that_were_patched_together_colour_none_of_them():
    together = [Site("blocks.0.hook_resid_pre", position=at, position_name=name) for at, name in ((1, "A"), (3, "B"))]
    sweep = made_up_sweep([Site("blocks.0.hook_resid_pre", position=2, position_name="C")] * 2, 2, 3)
    sweep = dataclasses.replace(sweep, patches=(sweep.patches[0], Patch(tuple(together))))
    results = PositionResults(sweep)
    assert results.names == ["C", "A + B"] and results.matrix()[0].tolist() == sweep.effects.tolist()
    assert all(set(effects) == {2} for effects in position_effects(results, "resid_pre"))


def test_pairs_that_are_not_usable_stay_uncoloured():
    clean = np.array([3.0, 3.0])
    found = position_effects(made_up_positions(n_pairs=2, clean=clean, corrupted=np.array([-3.0, 2.99])), "resid_pre")
    assert found[0] and not found[1]


# --- nothing is taken for markup ---


def test_no_name_or_token_reaches_the_pages_as_markup(tmp_path):
    evil = "</script><script>alert(1)</script>"
    clean = (evil, " ", "\n", "&amp;", "$x$")
    names = {"model": evil, "task": evil, "name": evil, "unit": evil, "versions": {evil: evil}, "noise": evil}
    tokens = {"clean_tokens": (clean,) * 5}
    written = create_full_report(
        made_up_heads(**names, **tokens),
        made_up_layers(**names, **tokens),
        position_results=made_up_positions(4, **names, **tokens),
        save_dir=tmp_path,
        check=linted(Finding("care", evil, evil)),
    )
    for path in written[:-1]:
        assert "alert(1)</script>" not in path.read_text(encoding="utf-8").lower()
    assert html.escape("".join(clean)) in written[0].read_text(encoding="utf-8")


# --- edges ---


def headings(text: str) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]*)</h2>", text)


def test_edges_beside_heads_have_a_section_of_their_own(tmp_path):
    heads = clear(made_up_heads)
    edges = clear(made_up_edges, graph=Graph("made-up", (3,) * 4, (3,) * 4, (False, True, True, False)), every=7)
    written = create_full_report(heads, edge_results=edges, save_dir=tmp_path)
    assert {"edge_heatmap.html", "top_edges_bar.html", "edge_graph.html"} <= {path.name for path in written}
    text = written[0].read_text(encoding="utf-8").replace(get_plotlyjs(), "plotly.js")
    assert headings(text)[0] == "What was found" and "Edges" in headings(text)
    parts = dict(zip(headings(text), re.split(r"<h2[^>]*>", text)[1:]))
    assert headline(heads) in shown_text(parts["What was found"]) and "edges" not in shown_text(parts["What was found"])
    own = shown_text(parts["Edges"])
    assert headline(edges) in own and f"Edges: the largest 12 of {len(edges)} effects" in own
    assert all(item.label in own for item in edges.top(12))
    assert all(f'id="{name}"' in parts["Edges"] for name in ("edge_heatmap", "top_edges_bar", "edge_graph"))
    assert "Edges: the largest" not in shown_text(parts["Largest effects"])
    assert f"{len(edges)} edges from 15 senders to 39 receivers" in shown_text(parts["What was run"])


def test_edges_alone_are_what_was_found(tmp_path):
    edges = clear(made_up_edges, every=7)
    text = report_text(edge_results=edges, save_dir=tmp_path)
    parts = dict(zip(headings(text), re.split(r"<h2[^>]*>", text)[1:]))
    assert "Edges" not in parts and headline(edges) in shown_text(parts["What was found"])
    assert 'id="edge_heatmap"' in parts["What was found"] and 'id="edge_graph"' in parts["More figures"]
    assert "Edges: the largest 12 of 62 effects" in shown_text(parts["Largest effects"])


def test_edges_beside_a_plain_list_of_heads_are_told_of(tmp_path):
    edges = clear(made_up_edges, every=7)
    heads = of_no_experiment(made_up_heads())
    text = report_text(heads, n_layers=4, n_heads=3, edge_results=edges, save_dir=tmp_path)
    parts = dict(zip(headings(text), re.split(r"<h2[^>]*>", text)[1:]))
    assert headline(edges) in shown_text(parts["What was found"]) and 'id="edge_heatmap"' in parts["What was found"]
    assert 'id="head_heatmap"' in parts["More figures"]


def test_edges_at_positions_have_a_map_each(tmp_path):
    places = tuple((Site("", position=(3,) * 5, position_name=name),) for name in ("S1 / S2", "END"))
    written = create_full_report(edge_results=made_up_edges(places=places), save_dir=tmp_path)
    assert [path.name for path in written[1:3]] == ["edge_heatmap_S1_S2.html", "edge_heatmap_END.html"]


def test_the_path_that_was_patched_is_among_the_settings(tmp_path):
    text = shown_text(report_text(made_up_heads(path="to L9H9 q, all other heads frozen"), save_dir=tmp_path))
    assert "Path to L9H9 q, all other heads frozen" in re.sub(r"\s+", " ", text)
