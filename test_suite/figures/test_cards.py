"""The figure of head cards, and their section in the report, repeat the cards' numbers."""

from __future__ import annotations

import math

import pytest

from actpatch.figures.certainty import STAR
from test_suite.helpers.figures import subtitle
from test_suite.helpers.pages import OVERLAPS, WIDTHS, open_report
from test_suite.helpers.results import made_up_card, made_up_cards, made_up_heads
from visualize import create_full_report, create_head_cards, on_dark

EVIL = "<script>alert(1)</script> $x$"


def test_each_head_has_its_effects_attention_and_scores():
    cards = made_up_cards(made_up_card(), made_up_card(2, grouped=True, effects={"output": -0.3}))
    figure = create_head_cards(cards)
    assert len(figure.data) == 2 * 7
    denoising, noising, clean, corrupted, scores, *stars = figure.data[7:]
    assert list(denoising.x) == ["output", "pattern", "q", "k (KV0)", "v (KV0)"]
    assert list(noising.y) == [cards[1].effect(part, "noising").effect for part in ("output", "pattern", "q", "k", "v")]
    assert [list(of_direction.text) for of_direction in stars] == [[STAR, STAR, STAR, "", ""]] * 2
    assert [of_direction.offsetgroup for of_direction in stars] == [denoising.offsetgroup, noising.offsetgroup]
    for of_direction, bars in zip(stars, (denoising, noising)):
        assert list(of_direction.y) == [max(0, y + up) for y, up in zip(bars.y, bars.error_y.array)]
    assert list(denoising.error_y.array) == pytest.approx([0.1] * 5)
    assert (list(clean.x), list(clean.y), list(corrupted.y)) == (
        ["IO", "BOS", "rest"],
        [0.62, 0.30, 0.08],
        [0.08, 0.50, 0.42],
    )
    assert dict(zip(scores.x, scores.y)) == {
        **{"previous token": 0.01, "duplicate token": 0.02, "induction": 0.97},
        **{"copies": 0.7, "suppresses": 0.1, "OV eigenvalues": 0.83},
    }
    assert figure.layout.yaxis.range == figure.layout.yaxis4.range and figure.layout.yaxis.range[0] < -0.4
    titles = [each.text for each in figure.layout.annotations]
    assert "<b>L1H2</b> attention from END" in titles
    assert "12 of 13 pairs" in subtitle(figure) and "random tokens: 10 × 50, seed 0" in subtitle(figure)


def test_what_is_not_known_is_not_drawn():
    card = made_up_card(copying=(), eigenvalue_score=math.nan, induction=math.nan)
    scores = create_head_cards(made_up_cards(card)).data[4]
    assert [math.isnan(value) for value in scores.y] == [False, False, True, True, True, True]


def test_names_are_escaped_and_colours_have_a_dark_side():
    figure = create_head_cards(made_up_cards(task=EVIL, metric=EVIL))
    shown = figure.layout.title.subtitle.text
    assert "<script>" not in figure.to_json() and "$" not in shown and "&lt;script&gt;" in shown
    assert on_dark(figure).data[0].marker.color != figure.data[0].marker.color


@pytest.mark.parametrize("given", [made_up_heads(), made_up_cards()[:0]])
def test_what_are_no_cards_is_told(given):
    with pytest.raises(ValueError, match=r"create_head_cards was given .*describe_heads"):
        create_head_cards(given)


def test_the_report_has_a_section_of_cards(tmp_path):
    cards = made_up_cards(task=EVIL)
    report, *pages = create_full_report(made_up_heads(), head_cards=cards, save_dir=tmp_path)
    text = report.read_text(encoding="utf-8")
    assert "head_cards.html" in {page.name for page in pages}
    assert "What these heads do</h2>" in text and cards[0].summary.replace("'", "&#39;") in text
    assert "<summary>All numbers of L1H2</summary>" in text and EVIL not in text
    assert "Olsson et al. 2022" in text


def test_a_report_of_cards_alone_names_their_task(tmp_path):
    report, *_ = create_full_report(head_cards=made_up_cards(), save_dir=tmp_path)
    text = report.read_text(encoding="utf-8")
    assert "Activation patching: IOI on made-up" in text and "plain list" not in text


def test_cards_of_another_model_and_what_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="head_results are of the model made-up, head_cards of other"):
        create_full_report(made_up_heads(), head_cards=made_up_cards(model="other"), save_dir=tmp_path)
    with pytest.raises(ValueError, match="head_cards is a HeadResults, expected what"):
        create_full_report(head_cards=made_up_heads(), save_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_draws_the_cards_with_no_label_on_another(browser, tmp_path, width):
    cards = made_up_cards(made_up_card(), made_up_card(2, grouped=True), made_up_card(3))
    report, *_ = create_full_report(head_cards=cards, save_dir=tmp_path)
    opened = open_report(browser, report, viewport={"width": width, "height": 900})
    opened.page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert opened.complaints == [] and opened.page.evaluate(OVERLAPS) == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
