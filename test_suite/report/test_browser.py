"""The report as a person sees it: opened from disk in a browser that reaches nothing else, read, pointed at and saved.

Needs Debian's `chromium` and the package `playwright`; without them these tests are skipped, but in CI they fail.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activation_patching import ActivationPatcher, IOIDataset
from actpatch.figures.style import PAPER_WIDTH
from actpatch.results.files import csv_content
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import Sweep
from actpatch.tasks.words import IOI_SCENE_TEMPLATES
from head_patching import HeadPatcher
from model_loading import load_model
from test_suite.helpers.figures import as_read
from test_suite.helpers.pages import CONTRAST, OVERLAPS, WIDTHS, Opened, open_report, resize
from test_suite.helpers.results import made_up_heads, made_up_layers, made_up_positions
from visualize import create_full_report

pytestmark = pytest.mark.slow

HARM = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 1'>\"'&amp;,\n"


@pytest.fixture(scope="module")
def experiment() -> dict[str, SweepResults]:
    """Heads, layers and positions of the bundled model, on pairs of one scene."""
    model = load_model("tiny", device="cpu")
    dataset = IOIDataset(model, 10, corruption="flip_subject", templates=IOI_SCENE_TEMPLATES[:1])
    patcher = ActivationPatcher(model, show_progress=False)
    return {
        "head_results": HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset),
        "layer_results": patcher.run_patching_experiment(dataset, ["attn_out", "mlp_out", "resid_pre"]),
        "position_results": patcher.run_position_experiment(dataset, "resid_pre"),
    }


@pytest.fixture(scope="module")
def report_alone(experiment, tmp_path_factory) -> Path:
    """The report in a folder of its own: whatever it takes from files beside it would be missing."""
    written = create_full_report(**experiment, save_dir=tmp_path_factory.mktemp("written"))
    return Path(shutil.copy(written[0], tmp_path_factory.mktemp("sent")))


@pytest.fixture(scope="module")
def opened(browser, report_alone) -> Iterator[Opened]:
    found = open_report(browser, report_alone)
    yield found
    found.page.context.close()


# --- it opens, alone ---


def test_report_opens_from_disk_alone_and_without_complaint(opened):
    assert [url for url in opened.requests if not url.startswith(("file:", "data:"))] == []
    assert len(opened.requests) == 1, "the report asks for another file"
    assert opened.complaints == []


def test_a_report_of_a_thousand_pairs_is_laid_out_like_one_of_200_and_saves_them_all(browser, tmp_path):
    small = open_report(browser, create_full_report(made_up_heads(12, 12, n_pairs=200), save_dir=tmp_path / "few")[0])
    small.page.context.close()
    heads = made_up_heads(12, 12, n_pairs=1000)
    report, *_ = create_full_report(heads, save_dir=tmp_path)
    assert report.stat().st_size < 9e6
    found = open_report(browser, report)
    assert found.nodes < 1.5 * small.nodes, "what is laid out grows with the number of pairs"
    with found.page.expect_download() as saving:
        found.page.get_by_role("button", name="Save heads.csv").click()
    assert saving.value.path().read_bytes() == csv_content(heads.to_dataframe())
    found.page.context.close()


# --- the figures hold the numbers ---


def drawn_map(page: Any, name: str) -> tuple[np.ndarray, list[str], list[str]]:
    """A map as its page holds and draws it: effects, the texts in its cells, its tick labels."""
    effects, texts, ticks = page.evaluate(
        """(name) => {
            const figure = document.getElementById(name);
            const texts = [...figure.querySelectorAll(".textpoint text")].map((t) => t.textContent);
            const ticks = [...figure.querySelectorAll(".xtick text")].map((t) => t.textContent);
            return [Array.from(figure.calcdata[0][0].z, (row) => Array.from(row)), texts, ticks];
        }""",
        name,
    )
    return np.array(effects, dtype=float), texts, ticks


def test_maps_draw_every_cell_with_its_effect(opened, experiment):
    heads, layers, positions = experiment.values()
    matrices = {
        "head_heatmap": heads.matrix(),
        "layer_heatmap": layers.matrix().to_numpy(),
        "position_heatmap": positions.matrix(),
    }
    resize(opened.page, 1600)
    for name, matrix in matrices.items():
        effects, texts, ticks = drawn_map(opened.page, name)
        np.testing.assert_array_equal(effects, matrix)
        assert len(ticks) == matrix.shape[1]
        written = sorted(float(text.replace("\N{MINUS SIGN}", "-")) for text in texts)
        np.testing.assert_allclose(written, sorted(matrix.ravel()), atol=0.0051)
        image = opened.page.locator(f"#{name} .heatmaplayer image").first.bounding_box()
        assert image["width"] > 100 and image["height"] > 50
    assert drawn_map(opened.page, "layer_heatmap")[2] == list(layers.matrix().columns)
    assert drawn_map(opened.page, "head_heatmap")[2] == [str(head) for head in range(heads.heads_per_layer)]
    labels = drawn_map(opened.page, "position_heatmap")[2]
    first = positions.sweep.clean_tokens[0]
    assert [label.split(": ")[1].split("→")[0] for label in labels] == [token.strip() for token in first]


def test_bars_and_dots_are_drawn_one_for_each(opened, experiment):
    heads = experiment["head_results"]
    top = heads.top(15)
    page = opened.page
    sure = heads.statistics()
    significant = dict(zip(sure.sites, sure.significant))
    starred = [f"{head.label} *" if significant[head.label] else head.label for head in top]
    assert page.locator("#top_heads_bar .barlayer .point path").count() == len(top)
    assert page.locator("#top_heads_bar .scatterlayer .point").count() == len(top) * len(heads.sweep.pair_indices)
    assert page.locator("#top_heads_bar .ytick text").all_text_contents() == starred
    bars = page.evaluate("Array.from(document.getElementById('top_heads_bar').data[0].x)")
    np.testing.assert_array_equal(bars, [head.effect for head in top])
    assert page.locator("#component_comparison .barlayer .point path").count() == 2 * heads.sweep.n_layers


def hovered(page: Any, name: str, x: float, y: float) -> str:
    """What is shown where the pointer is on a figure's point, given in the figure's own coordinates."""
    page.locator(f"#{name}").scroll_into_view_if_needed()
    at = page.evaluate(
        """([name, x, y]) => {
            const figure = document.getElementById(name), layout = figure._fullLayout;
            const box = figure.querySelector(".nsewdrag").getBoundingClientRect();
            return [box.left + layout.xaxis.d2p(x), box.top + layout.yaxis.d2p(y)];
        }""",
        [name, x, y],
    )
    page.mouse.move(0, 0)
    page.mouse.move(*at)
    page.mouse.move(at[0] + 1, at[1])
    shown = page.locator(f"#{name} .hoverlayer .hovertext")
    shown.first.wait_for()
    return " ".join(shown.all_text_contents())


def test_pointing_at_a_cell_shows_its_numbers(opened, experiment):
    heads, layers, positions = experiment.values()
    resize(opened.page, 1024)
    for head in (heads[0], heads[-1]):
        text = hovered(opened.page, "head_heatmap", head.head, head.layer)
        for told in (head.label, f"effect {head.effect:+.3f}", f"patched {head.patched_metric:+.3f} logits"):
            assert as_read(told) in text
    text = hovered(opened.page, "layer_heatmap", 1, 2)
    assert as_read(f"effect {layers.matrix()['mlp_out'][2]:+.3f}") in text
    at = len(positions.sweep.clean_tokens[0]) - 1
    text = hovered(opened.page, "position_heatmap", at, 0)
    assert as_read(f"effect {positions.matrix()[0, at]:+.3f}") in text and f"position {at}" in text
    best = heads.top(1)[0]
    assert as_read(f"effect {best.effect:+.3f}") in hovered(opened.page, "top_heads_bar", best.effect / 2, 0)


# --- the rest of the page holds them too ---


def test_saved_data_are_the_long_table(opened, experiment):
    for name, results in zip(("heads", "layers", "positions"), experiment.values()):
        with opened.page.expect_download() as saving:
            opened.page.get_by_role("button", name=f"Save {name}.csv").press("Enter")
        assert saving.value.suggested_filename == f"{name}.csv"
        assert saving.value.path().read_bytes() == csv_content(results.to_dataframe())
        assert_is_table(saving.value.path(), results.to_dataframe())


def assert_is_table(path: Path, table: pd.DataFrame) -> None:
    read = pd.read_csv(path, dtype=table.dtypes.to_dict(), keep_default_na=False, na_values=[""])
    # An empty text and a missing one look alike in a file.
    texts = table.select_dtypes("string").columns
    read[texts], table[texts] = read[texts].fillna(""), table[texts].fillna("")
    pd.testing.assert_frame_equal(read, table, check_exact=True)


def test_largest_effects_are_those_of_the_results_with_their_intervals(opened, experiment):
    for name, results in zip(("Heads", "Layers", "Positions"), experiment.values()):
        sure = results.statistics()
        table = opened.page.get_by_role("table", name=f"{name}: the largest")
        rows = [row.locator("th, td").all_text_contents() for row in table.locator("tbody tr").all()]
        order = np.argsort(-np.abs(sure.effect), kind="stable")[: len(rows)]
        assert len(rows) == min(12, len(sure.sites))
        for row, i in zip(rows, order):
            assert row[0] == sure.sites[i]
            assert row[1] == as_read(f"{sure.effect[i]:+.3f}")
            interval = "none" if np.isnan(sure.low[i]) else f"{sure.low[i]:+.3f} to {sure.high[i]:+.3f}"
            assert row[2] == as_read(interval)
            assert row[3].endswith("n.s.") != sure.significant[i]


def test_tokens_carry_the_effect_of_their_position(opened, experiment):
    positions = experiment["position_results"]
    sweep = positions.sweep
    strips = opened.page.locator("ol.strip")
    assert strips.count() == len(sweep.pair_indices)
    for pair in (0, 7):
        tokens = strips.nth(pair).locator("li")
        differs = [a != b for a, b in zip(sweep.clean_tokens[pair], sweep.corrupted_tokens[pair])]
        assert tokens.evaluate_all("all => all.map(li => li.classList.contains('differs'))") == differs
        assert tokens.locator(".before").all_text_contents() == [t.strip() for t in sweep.clean_tokens[pair]]
        assert tokens.locator(".after").all_text_contents() == [t.strip() for t in sweep.corrupted_tokens[pair]]
        table = sweep.pair_effects[:, pair].reshape(sweep.n_layers, -1)  # layers in order, in each all positions
        largest = table[np.abs(table).argmax(axis=0), np.arange(table.shape[1])]
        assert tokens.locator(".effect").all_text_contents() == [
            "0" if abs(effect) < 0.005 else as_read(f"{effect:+.2f}") for effect in largest
        ]
        shares = tokens.evaluate_all("all => all.map(li => parseFloat(li.style.getPropertyValue('--share')))")
        assert np.argmax(shares) == np.abs(largest).argmax()
        kinds = tokens.evaluate_all("all => all.map(li => li.classList.contains('positive'))")
        assert kinds == [effect > 0 for effect in largest]


# --- it looks right, everywhere ---


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_or_is_cut_off(browser, report_alone, width):
    page = open_report(browser, report_alone, viewport={"width": width, "height": 900}).page
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate(OVERLAPS) == []
    resize(page, 700)
    assert page.evaluate(OVERLAPS) == []
    page.context.close()


CONTRASTS = (
    """
() => {"""
    + CONTRAST
    + """
  const behind = (part) => {
    const colour = getComputedStyle(part).backgroundColor;
    return rgba(colour)[3] || !part.parentElement ? colour : behind(part.parentElement);
  };
  return [...document.querySelectorAll("h1, h2, p, a, th, td, caption, summary, button, li span, .key")]
    .filter((part) => part.textContent.trim() && !part.closest(".unseen"))
    .map((part) => [contrast(getComputedStyle(part).color, behind(part)), part.outerHTML.slice(0, 120)]);
}
"""
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened, scheme):
    opened.page.emulate_media(color_scheme=scheme)
    contrasts = opened.page.evaluate(CONTRASTS)
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.page.emulate_media(color_scheme="light")
    assert len(contrasts) > 100
    assert min(contrasts)[0] >= 4.5, min(contrasts)
    assert background == {"light": "rgb(244, 244, 244)", "dark": "rgb(27, 27, 27)"}[scheme]


def test_on_paper_figures_are_whole_and_the_ground_is_white(opened):
    page = opened.page
    resize(page, 1600)
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    widths = page.locator(".js-plotly-plot .main-svg").evaluate_all("all => all.map(f => f.clientWidth)")
    breaks = page.locator("figure").evaluate_all("all => all.map(f => getComputedStyle(f).breakInside)")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    buttons = page.locator("button[data-file], .modebar").evaluate_all("all => all.map(b => b.clientWidth)")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    page.emulate_media(media="screen", color_scheme="light")
    assert 300 < min(widths) <= max(widths) <= PAPER_WIDTH
    assert set(buttons) == {0}
    assert set(breaks) == {"avoid"}
    assert ground == "rgb(255, 255, 255)"


def test_headings_tables_and_figures_are_named(opened):
    page = opened.page
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.locator("table").count() == page.locator("table:has(caption):has(thead th[scope=col])").count() > 3
    assert page.locator("tbody tr").count() == page.locator("tbody tr > th[scope=row]").count()
    figures = page.locator("figure").evaluate_all("all => all.map(f => f.getAttribute('aria-label'))")
    assert len(figures) == 7 and all("IOI" in label and "denoising" in label for label in figures)
    assert page.locator("html").get_attribute("lang") == "en"
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1


def test_details_open_by_keyboard(opened, experiment):
    page = opened.page
    folded = page.locator("details", has_text="8 more pairs").last
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    assert folded.get_attribute("open") is not None
    sweep = experiment["head_results"].sweep
    cells = folded.locator("tbody tr").first.locator("td").all_text_contents()
    third = sweep.groups[2], sweep.templates[2], "".join(sweep.clean_tokens[2]), "".join(sweep.corrupted_tokens[2])
    assert cells[: len(third)] == list(third)
    page.keyboard.press("Enter")
    assert folded.get_attribute("open") is None


# --- nothing in the results is taken for markup ---


def test_hostile_names_and_tokens_are_shown_as_text_and_do_nothing(browser, experiment, tmp_path):
    def harmed(sweep: Sweep) -> Sweep:
        tokens = {
            name: tuple((*prompt[:-1], HARM) for prompt in getattr(sweep, name))
            for name in ("clean_tokens", "corrupted_tokens")
        }
        measured = tuple(dataclasses.replace(values, unit=HARM) for values in sweep.measured)
        names = {"model": HARM, "task": HARM, "noise": HARM, "versions": {HARM: HARM}}
        names["groups"] = names["templates"] = tuple(f"{HARM} {i}" for i in range(len(sweep.pair_indices)))
        return dataclasses.replace(sweep, measured=measured, **tokens, **names)

    hostile = {name: type(results)(harmed(results.sweep)) for name, results in experiment.items()}
    report, *_ = create_full_report(**hostile, save_dir=tmp_path)
    found = open_report(browser, report)
    page = found.page
    assert page.evaluate("window.harmed") is None
    assert found.complaints == [] and len(found.requests) == 1
    assert page.locator("img").count() == 0
    for cell in range(3):  # group, clean prompt, corrupted prompt
        assert HARM.strip() in page.locator(".prompts td").nth(cell).text_content()
    with page.expect_download() as saving:
        page.get_by_role("button", name="Save positions.csv").click()
    assert_is_table(saving.value.path(), hostile["position_results"].to_dataframe())
    page.context.close()


@pytest.mark.parametrize("name", ["head_heatmap", "top_heads_bar", "layer_heatmap"])
def test_pages_of_single_figures_open_without_a_network(browser, tmp_path, name):
    create_full_report(made_up_heads(), made_up_layers(), position_results=made_up_positions(4), save_dir=tmp_path)
    found = open_report(browser, tmp_path / f"{name}.html")
    assert [Path(url).name for url in found.requests] == [f"{name}.html", "plotly.min.js"]
    assert found.complaints == []
    found.page.context.close()
