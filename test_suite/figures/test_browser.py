"""Every kind of figure as a person sees it: light and dark, on phone and screen, of large models and long prompts.

Needs what `browser` needs.
"""

from __future__ import annotations

import pickle
import struct
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from actpatch.figures.colours import DARK_PAPER
from actpatch.figures.page import figure_html, html_page
from test_suite.helpers.pages import CONTRAST, OVERLAPS, WIDTHS, open_report
from test_suite.helpers.results import both_ways, clear, made_up_heads, made_up_layers, made_up_positions, patterns
from visualize import (
    create_attention_patterns,
    create_comparison,
    create_component_comparison,
    create_direction_quadrant,
    create_effect_distribution,
    create_head_heatmap,
    create_layer_heatmap,
    create_metric_scatter,
    create_position_heatmap,
    create_top_heads_bar,
    figure_caption,
    on_dark,
    save_figure,
)

SIZES = {"bundled": (4, 4, 12), "large": (30, 9, 100)}
"""Layers, heads and tokens of the bundled model's prompts, and of SmolLM2 on a long one."""


@cache
def every_kind(n_layers: int, n_heads: int, n_tokens: int) -> dict[str, go.Figure]:
    tokens = tuple(f" extraordinarily{i}" if i % 7 == 0 else f" word{i}" for i in range(n_tokens))
    others = tuple(" other" if i in (3, 4, n_tokens - 3) else token for i, token in enumerate(tokens))
    prompts = {"clean_tokens": (tokens,) * 12, "corrupted_tokens": (others,) * 12}
    size = {"n_layers": n_layers, "n_heads": n_heads}
    heads, both = clear(made_up_heads, **size), both_ways(**size)
    layers = clear(made_up_layers, n_layers=n_layers, components=("attn_out", "mlp_out", "resid_pre"))
    positions = [clear(made_up_positions, every, n_layers=n_layers, tokens=tokens, **prompts) for every in (3, 2)]
    return {
        "heads": create_head_heatmap(heads),
        "layers": create_layer_heatmap(layers),
        "positions": create_position_heatmap(positions[0]),
        "bars": create_top_heads_bar(heads),
        "components": create_component_comparison(layers),
        "distribution": create_effect_distribution(heads),
        "scatter": create_metric_scatter(heads),
        "quadrant": create_direction_quadrant(both),
        "comparison": create_comparison(both.denoising, both.noising, names=("denoising", "noising")),
        "positions_compared": create_comparison(*positions),
        "attention": create_attention_patterns(patterns(tokens)),
    }


@pytest.fixture(scope="module", params=SIZES)
def gallery(request, tmp_path_factory) -> Path:
    """A page with every kind of figure."""
    figures = every_kind(*SIZES[request.param])
    path = tmp_path_factory.mktemp("gallery") / "gallery.html"
    body = "<main>" + "".join(figure_html(name, figure) for name, figure in figures.items()) + "</main>"
    path.write_text(html_page("Gallery", body), encoding="utf-8")
    return path


FIGURE_CONTRASTS = (
    """
async () => {"""
    + CONTRAST
    + """
  const found = [];
  for (const figure of document.querySelectorAll(".js-plotly-plot")) {
    const layout = figure._fullLayout;
    const pictures = [];
    for (const image of figure.querySelectorAll(".heatmaplayer image")) {
      const picture = new Image();
      picture.src = image.getAttribute("href") || image.getAttribute("xlink:href");
      await picture.decode();
      const drawn = Object.assign(document.createElement("canvas"), { width: picture.width, height: picture.height });
      const context = drawn.getContext("2d", { willReadFrequently: true });
      context.drawImage(picture, 0, 0);
      pictures.push([image.getBoundingClientRect(), picture, context]);
    }
    // What is behind a number: the paper, then the map that has a cell there.
    const under = (x, y) => {
      let colour = rgba(layout.plot_bgcolor).slice(0, 3);
      for (const [box, picture, context] of pictures) {
        if (x < box.left || x > box.right || y < box.top || y > box.bottom) continue;
        const at = [(x - box.left) / box.width * picture.width, (y - box.top) / box.height * picture.height];
        const [r, g, b, a] = context.getImageData(Math.floor(at[0]), Math.floor(at[1]), 1, 1).data;
        colour = colour.map((value, i) => value + ([r, g, b][i] - value) * a / 255);
      }
      return `rgb(${colour.map(Math.round).join(",")})`;
    };
    for (const text of figure.querySelectorAll(".main-svg text")) {
      const box = text.getBoundingClientRect();
      if (!text.textContent.trim() || !box.width) continue;
      const onMap = text.closest(".textpoint") && pictures.length;
      const behind = onMap ? under((box.left + box.right) / 2, (box.top + box.bottom) / 2) : layout.paper_bgcolor;
      const ink = getComputedStyle(text).fill;
      found.push([contrast(ink, behind), figure.id, text.textContent, ink, behind, Boolean(onMap)]);
    }
  }
  return found;
}
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_in_every_figure_has_contrast(browser, gallery, scheme):
    page = open_report(browser, gallery, viewport={"width": 1600, "height": 900}, color_scheme=scheme).page
    contrasts = page.evaluate(FIGURE_CONTRASTS)
    grounds = page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].map(f => f._fullLayout.paper_bgcolor)")
    page.context.close()
    assert set(grounds) == {{"light": "white", "dark": DARK_PAPER}[scheme]}
    assert len({figure for _, figure, *_ in contrasts}) == 11
    assert sum(on_map for *_, on_map in contrasts) > 30
    assert min(contrasts)[0] >= 4.5, min(contrasts)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_in_no_figure_anything_overlaps_or_is_cut_off(browser, gallery, width):
    opened = open_report(browser, gallery, viewport={"width": width, "height": 900})
    assert opened.complaints == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert opened.page.evaluate(OVERLAPS) == []
    scrolling = opened.page.evaluate(
        """[...document.querySelectorAll("figure")].map((figure) => [
            figure.querySelector(".drawn").id, figure.scrollWidth > figure.clientWidth + 1,
            getComputedStyle(figure, "::before").content.includes("scroll sideways")])"""
    )
    opened.page.context.close()
    assert all(scrolls == says_so for _, scrolls, says_so in scrolling)
    needs_more = {name for name, scrolls, _ in scrolling if scrolls}
    allowed = {390: {"comparison", "attention", "positions", "positions_compared"}, 1024: {"attention"}}
    assert needs_more <= allowed.get(width, set())


@pytest.mark.slow
def test_figures_change_with_the_setting_and_back(browser, tmp_path):
    opened = open_report(browser, save_figure(create_head_heatmap(clear(made_up_heads)), tmp_path / "heads.html"))
    page = opened.page

    def colours() -> list[Any]:
        return page.evaluate(
            """() => { const { data, layout } = document.getElementById("figure");
            return [layout.template.layout.paper_bgcolor, data[0].colorscale, data.at(-1).textfont.color]; }"""
        )

    light = colours()
    for scheme, is_light in (("dark", False), ("light", True)):
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(
            "(paper) => document.getElementById('figure')._fullLayout.paper_bgcolor === paper",
            arg={"dark": DARK_PAPER, "light": "white"}[scheme],
        )
        assert (colours() == light) == is_light
    assert opened.complaints == []
    page.context.close()


@pytest.mark.slow
def test_numbers_in_cells_are_left_out_where_they_do_not_fit(browser, tmp_path):
    path = save_figure(create_head_heatmap(clear(made_up_heads, n_heads=12)), tmp_path / "heads.html")
    page = open_report(browser, path, viewport={"width": 1024, "height": 900}).page
    numbers = page.locator(".textpoint").first
    assert numbers.is_visible()
    page.set_viewport_size({"width": 390, "height": 900})
    numbers.wait_for(state="hidden")
    page.wait_for_function("document.querySelector('.heatmaplayer image').getBoundingClientRect().right < 390")
    assert page.locator(".heatmaplayer image").first.bounding_box()["width"] / 12 > 14
    assert page.evaluate("document.querySelector('figure').scrollWidth <= document.querySelector('figure').clientWidth")
    page.context.close()


def modebar_as_it_was(figure: go.Figure) -> go.Figure:
    figure.layout.modebar = {"orientation": "h"}
    return figure


def heads_map() -> go.Figure:
    return create_head_heatmap(clear(made_up_heads))


def own_figure() -> go.Figure:
    return go.Figure(go.Scatter(x=[1, 2], y=[3, 4])).update_layout(title="Mine")


WAYS = {
    "saved": lambda path: save_figure(heads_map(), path),
    "saved, its buttons set anew": lambda path: save_figure(modebar_as_it_was(heads_map()), path, caption=False),
    "a figure of one's own, saved": lambda path: save_figure(own_figure(), path, width="120mm"),
    "to_html": lambda path: path.write_text(modebar_as_it_was(heads_map()).to_html()),
    "to_html, with settings": lambda path: path.write_text(
        modebar_as_it_was(heads_map()).to_html({"showSendToCloud": True, "scrollZoom": True}, True)
    ),
    "write_html": lambda path: modebar_as_it_was(heads_map()).write_html(path, config={"showSendToCloud": True}),
    "on dark": lambda path: path.write_text(modebar_as_it_was(on_dark(heads_map())).to_html()),
    "copied": lambda path: path.write_text(modebar_as_it_was(pickle.loads(pickle.dumps(heads_map()))).to_html()),
    "attention": lambda path: path.write_text(modebar_as_it_was(create_attention_patterns(patterns())).to_html()),
}
"""Ways in which a figure gets into a page."""


def buttons_of(browser: Any, path: Path) -> tuple[set[str], set[str]]:
    """What the buttons on a page are called, and the servers its figures know."""
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_function("document.querySelector('.js-plotly-plot .main-svg .nsewdrag')")
    buttons = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)")
    servers = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].map((figure) => figure._context.plotlyServerURL)"
    )
    page.close()
    return set(buttons), set(servers)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_no_button_uploads_a_figure(browser, tmp_path, way):
    path = tmp_path / "figure.html"
    WAYS[way](path)
    buttons, servers = buttons_of(browser, path)
    assert servers == {""} or "save" not in way
    all_there_are = {"Zoom", "Pan", "Box Select", "Lasso Select", "Zoom in", "Zoom out", "Autoscale", "Reset axes"}
    assert "Reset axes" in buttons
    assert {button for button in buttons if button not in all_there_are} <= {
        "Download PNG",
        "Download plot as a PNG",
    }


@pytest.mark.slow
def test_plotly_alone_offers_to_send_a_figure_away_as_the_test_above_would_see(browser, tmp_path):
    path = tmp_path / "figure.html"
    own_figure().write_html(path)
    buttons, servers = buttons_of(browser, path)
    assert any("Share" in button for button in buttons) and servers != {""}


@pytest.mark.slow
def test_the_picture_that_a_page_saves_has_title_and_subtitle_in_it(browser, tmp_path):
    page = open_report(browser, save_figure(heads_map(), tmp_path / "heads.html")).page
    figure = heads_map()
    title = page.locator("figcaption h1")
    assert title.is_visible() and title.text_content() == figure.layout.title.text
    assert page.locator("figcaption p").text_content() == figure_caption(figure).split("\n")[1]
    assert page.locator(".gtitle").count() == 0
    page.locator("#figure").hover()
    with page.expect_download() as saving:
        page.locator(".modebar-btn[data-title='Download PNG']").click()
    picture = saving.value.path().read_bytes()
    page.context.close()
    assert struct.unpack(">II", picture[16:24]) == (2 * figure.layout.width, 2 * figure.layout.height)


@pytest.mark.slow
def test_a_page_without_a_caption_tells_it_to_those_who_hear_the_page_alone(browser, tmp_path):
    page = open_report(browser, save_figure(heads_map(), tmp_path / "heads.html", caption=False)).page
    box = page.locator("figcaption").bounding_box()
    label = page.locator("figure").get_attribute("aria-label")
    top = page.locator(".nsewdrag").bounding_box()["y"] - page.locator("figure").bounding_box()["y"]
    page.context.close()
    assert max(box["width"], box["height"]) <= 1 and "made-up" in label
    assert top < 30
