"""Numbers in messages, and the one rule of minus signs: hyphens in text, true minus signs on pages and in figures."""

from __future__ import annotations

import re
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest

from activation_patching import summarize_results
from actpatch.core.text import number, plain, signed, with_minus
from actpatch.results.headline import headline
from head_patching import print_head_results
from test_suite.helpers.pages import shown_text
from test_suite.helpers.results import clear, made_up_card, made_up_cards, made_up_heads, made_up_layers
from visualize import create_full_report, create_head_heatmap

HYPHEN = re.compile(r"(?<![\w.)\]-])-(?=\.?\d)")
MINUS = re.compile("\N{MINUS SIGN}(?=\\d)")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "+0.123"), (-0.1236, "-0.124"), (-0.0004, "+0.000"), (0.0, "+0.000"), (np.nan, "nan"), (-np.inf, "-inf")],
)
def test_numbers_have_a_sign_but_where_they_round_to_nothing(value, text):
    assert plain(value) == text
    assert number(value, 3) == text.removeprefix("+")
    assert signed(value) == text.replace("-", "\N{MINUS SIGN}")


def test_only_signs_of_numbers_become_minus_signs():
    said = "L0-L3, blocks-2, 1e-05, [-0.5, -.25], x-1, -inf: see Benjamini-Hochberg, --out -a"
    for sign in ("[-0.5", "-.25", "e-05", "-inf"):
        said_after = with_minus(said)
        assert sign.replace("-", "\N{MINUS SIGN}") in said_after
    for word in ("L0-L3", "blocks-2", "x-1", "Benjamini-Hochberg", "--out", "-a"):
        assert word in said_after


def test_text_has_hyphens_and_pages_have_minus_signs(tmp_path):
    heads = clear(made_up_heads, groups=("IO first", "subject first") * 6)
    against = made_up_card(effects={"output": -0.6, "pattern": -0.55, "v": 0.02}, eigenvalue_score=-0.4)
    cards = made_up_cards(against, made_up_card(2))
    with redirect_stdout(StringIO()) as printed:
        summarize_results(made_up_layers())
        print_head_results(heads)
    texts = [
        printed.getvalue(),
        headline(made_up_heads(n_pairs=12)),
        str(cards),
        repr(heads),
        repr(cards),
        repr(heads[1]),
    ]
    assert not [text for text in texts if MINUS.search(text)]
    assert len(HYPHEN.findall("".join(texts))) > 20
    report = create_full_report(heads, made_up_layers(), head_cards=cards, save_dir=tmp_path)[0]
    pages = [shown_text(report.read_text(encoding="utf-8")), heads._repr_html_(), cards._repr_html_()]
    pages.append(" ".join(map(str, create_head_heatmap(heads).data[0].hovertext)))
    for page in pages:
        assert not HYPHEN.search(page), page[max(HYPHEN.search(page).start() - 60, 0) :][:120]
        assert MINUS.search(page)
