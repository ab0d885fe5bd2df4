"""Figures of a verification show its numbers, name the misses, and stand in the report's section."""

from __future__ import annotations

import html
from dataclasses import replace

import numpy as np
import pytest

from actpatch.core.estimates import Estimate
from actpatch.core.sites import Site
from actpatch.figures.cells import NUMBERS
from actpatch.report.verification import HEADING
from test_suite.helpers.figures import as_read, subtitle
from test_suite.helpers.results import made_up_heads, made_up_sweep
from test_suite.helpers.verifications import both_sweeps, verified, verified_edges, verified_heads
from visualize import create_agreement_map, create_estimate_comparison, create_full_report, figure_caption, on_dark


@pytest.fixture(scope="module")
def heads():
    return verified_heads()


@pytest.fixture(scope="module")
def edges():
    return verified_edges(n_top=40, n_sample=300)


def test_each_verified_site_is_a_point_of_its_estimate_and_its_exact_effect(heads):
    top, sample, missed = create_estimate_comparison(heads).data
    for points, numbers in ((top, heads.top), (sample, heads.sample), (missed, heads.missed)):
        np.testing.assert_array_equal(points.x, heads.estimates[list(numbers)])
        np.testing.assert_array_equal(points.y, heads.exact_effects[list(numbers)])
    assert (top.marker.color, top.marker.symbol) != (sample.marker.color, sample.marker.symbol)
    assert top.marker.color != sample.marker.color
    number = heads.sample[0]
    for part in (heads.labels[number], f"estimate {heads.estimates[number]:+.3f}"):
        assert as_read(part) in sample.hovertext[0]
    assert [trace.name for trace in (top, sample, missed)] == [
        "largest estimates (10)",
        "random sample of the others (20)",
        f"missed ({len(heads.missed)})",
    ]


def test_misses_are_named_at_their_points_and_in_the_caption(heads):
    figure = create_estimate_comparison(heads)
    names = [heads.labels[n] for n in heads.missed]
    assert list(figure.data[2].text) == names and len(names) > 1
    assert f"missed: {', '.join(names)}" in figure_caption(figure)
    assert [name for name in create_estimate_comparison(heads, top_k=1).data[2].text if name] == names[:1]


def test_the_diagonal_and_the_smallest_estimate_of_the_top_are_drawn(heads):
    figure = create_estimate_comparison(heads)
    diagonal, *lines = figure.layout.shapes
    assert (diagonal.x0, diagonal.x1) == (diagonal.y0, diagonal.y1) == figure.layout.xaxis.range
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    assert sorted(line.y0 for line in lines) == [-heads.cutoff, heads.cutoff]


def test_sizes_have_one_line_and_are_drawn_as_sizes(heads):
    sizes = replace(heads, estimated=replace(heads.estimated, estimate=Estimate("atp_star")))
    figure = create_estimate_comparison(sizes)
    assert min(figure.data[0].y) >= 0 and len(figure.layout.shapes) == 2
    assert figure.layout.yaxis.title.text.startswith("size of the exact effect")


def test_the_subtitle_says_what_the_numbers_rest_on(heads):
    shown = figure_caption(create_estimate_comparison(heads))
    assert "estimates: eap (gradient in the run that is patched)" in shown
    assert "30 of 48 heads run exactly" in shown
    assert f"Spearman {heads.spearman.value:.2f} [{heads.spearman.low:.2f}, {heads.spearman.high:.2f}]" in shown
    assert f"at most {heads.most_above(heads.cutoff)} of 18 unverified above" in shown
    assert "unverified" not in figure_caption(create_estimate_comparison(verified_heads(n_top=10, n_sample=38)))
    assert create_estimate_comparison(heads, title="Mine").layout.title.text == "Mine"


def test_cells_hold_the_mean_error_by_layer_and_kind(edges):
    figure, table = create_agreement_map(edges), edges.by_layer_and_kind()
    kinds = list(figure.layout.xaxis.ticktext)
    assert kinds == ["q", "k", "v", "mlp", "logits"] and figure.layout.xaxis.title.text == "read by"
    expected = np.full((6, 5), np.nan)
    for row in table.itertuples():
        expected[row.layer, kinds.index(row.kind)] = row.error
    cells = figure.data[0]
    np.testing.assert_array_equal(cells.z, expected)
    assert cells.zmin == 0 and cells.zmax == np.nanmax(expected) and cells.colorbar.title.text == "mean |error|"
    numbers = next(trace for trace in figure.data if trace.name == NUMBERS)
    assert [float(text) for text in numbers.text] == pytest.approx(expected[~np.isnan(expected)], rel=0.06)
    row = table.iloc[0]
    assert f"{row.n_verified} of {row.n_sites} edges verified" in cells.hovertext[0][0]
    assert create_agreement_map(edges, colour_range=0.5).data[0].zmax == 0.5


def test_cells_may_hold_the_rank_correlation(edges):
    cells, table = create_agreement_map(edges, "spearman").data[0], edges.by_layer_and_kind()
    found = np.array(cells.z)
    np.testing.assert_array_equal(np.sort(found[~np.isnan(found)]), np.sort(table["spearman"].dropna()))
    assert (cells.zmin, cells.zmax) == (-1, 1) and cells.colorbar.title.text == "rank correlation"


def test_figures_have_a_dark_side_and_escape_names(heads):
    evil = replace(heads, kind="<b>x</b> $y$")
    for figure in (create_estimate_comparison(evil), create_agreement_map(evil)):
        assert "<b>x</b>" not in figure.layout.title.subtitle.text and "$" not in figure.layout.title.subtitle.text
        assert "<b>x</b> $y$" in subtitle(figure)
        assert on_dark(figure).to_json() != figure.to_json()


@pytest.mark.parametrize("draw", [create_estimate_comparison, create_agreement_map])
def test_what_is_no_verification_is_refused(draw):
    with pytest.raises(ValueError, match=f"{draw.__name__} was given a HeadResults, expected a Verification"):
        draw(made_up_heads())


def test_what_cannot_be_drawn_is_refused(heads):
    with pytest.raises(ValueError, match="by is 'pearson', expected 'error' or 'spearman'"):
        create_agreement_map(heads, "pearson")
    with pytest.raises(ValueError, match="top_k is 0"):
        create_estimate_comparison(heads, top_k=0)
    few = verified_heads(n_top=3, n_sample=2)
    with pytest.raises(ValueError, match="no layer and kind of at least 5 verified sites"):
        create_agreement_map(few, "spearman")


def test_the_report_has_a_section_on_the_estimates(tmp_path, heads):
    report, *pages = create_full_report(made_up_heads(6, 8), verification=heads, save_dir=tmp_path)
    text = report.read_text(encoding="utf-8")
    names = {page.name for page in pages}
    assert {"estimate_comparison.html", "agreement_map.html", "head_heatmap.html"} <= names
    section = text.partition(f"{HEADING}</h2>")[2].partition("<h2")[0]
    assert html.escape(as_read(heads.summary()), quote=False) in section.replace("&#39;", "'")
    assert "estimate_comparison" in section and "head_heatmap" not in section
    assert text.count('id="estimate_comparison"') == 1
    for number in heads.top_effects(3):
        assert f"{heads.exact_effects[number]:+.3f}".replace("-", "−") in section


def test_a_report_of_a_verification_alone_names_its_task(tmp_path, edges):
    report, *_ = create_full_report(verification=edges, save_dir=tmp_path)
    text = report.read_text(encoding="utf-8")
    assert "Activation patching: IOI on made-up" in text and HEADING in text and "plain list" not in text
    assert "Where effects are <b>estimated</b>, no patch was run" in text


def test_verifications_of_another_model_and_what_are_none_are_refused(tmp_path, heads):
    with pytest.raises(ValueError, match=r"the results are of different models, .*verification of made-up"):
        create_full_report(made_up_heads(model="other"), verification=heads, save_dir=tmp_path)
    with pytest.raises(ValueError, match="create_full_report was given a HeadResults, expected a Verification"):
        create_full_report(verification=made_up_heads(), save_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_sites_of_no_layer_have_no_map_in_the_report(tmp_path):
    sites = [Site("hook_embed", position=at) for at in range(5)]
    v = verified(*both_sweeps(made_up_sweep(sites, 2, 2)), 2, 2, kind="position")
    with pytest.raises(ValueError, match="there is no layer and kind: verify more sites"):
        create_agreement_map(v)
    names = {page.name for page in create_full_report(verification=v, save_dir=tmp_path)}
    assert "estimate_comparison.html" in names and "agreement_map.html" not in names
