"""Every kind of figure as a person sees it: light and dark, on phone and screen, of large models and long prompts.

Needs what `browser` needs.
"""

from __future__ import annotations

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
    save_figure,
)

SIZES = {"bundled": (4, 4, 12), "large": (30, 9, 100)}
"""Layers, heads and tokens of the bundled model's prompts, and of SmolLM2 on a long one."""


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
    // What is behind a number: the paper, then each map that has a cell there, the veil last.
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


@pytest.mark.slow
def test_no_button_uploads_a_figure_even_where_its_buttons_were_set_anew(browser, tmp_path):
    figure = create_head_heatmap(clear(made_up_heads)).update_layout(modebar={"remove": [], "orientation": "h"})
    page = open_report(browser, save_figure(figure, tmp_path / "heads.html")).page
    buttons = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)")
    server = page.evaluate("document.getElementById('figure')._context.plotlyServerURL")
    page.context.close()
    assert "Zoom" in buttons and server == ""
    assert not [title for title in buttons if any(word in title for word in ("Share", "Edit", "cloud", "Studio"))]
