"""A report of estimates says so under its heading, in the settings, in every table and at every prompt."""

from __future__ import annotations

import re
from pathlib import Path

from plotly.offline import get_plotlyjs

from actpatch.core.graph import Graph
from test_suite.helpers.estimates import ATP, IG, results_of, says_estimated, speaks_of_effects
from test_suite.helpers.pages import shown_text
from visualize import create_full_report

KINDS = {
    "head_results": "HeadResults",
    "layer_results": "LayerResults",
    "position_results": "PositionResults",
    "head_position_results": "HeadPositionResults",
    "edge_results": "EdgeResults",
}

OF_ONE_MODEL = {
    "position_results": {"n_layers": 4},
    "edge_results": {"graph": Graph("made-up", (3,) * 4, (3,) * 4, (True,) * 4)},
}


def report_of(folder: Path, **estimates) -> str:
    given = {
        name: results_of(KINDS[name], estimate, **OF_ONE_MODEL.get(name, {})) for name, estimate in estimates.items()
    }
    written = create_full_report(save_dir=folder, **given)
    return written[0].read_text(encoding="utf-8").replace(get_plotlyjs(), "plotly.js")


def headings(page: str) -> list[str]:
    return [shown_text(cell).strip() for cell in re.findall(r"<th scope=\"col\".*?</th>", page, re.DOTALL)]


def test_all_parts_of_a_report_of_estimates_say_so(tmp_path: Path) -> None:
    page = report_of(tmp_path, **dict.fromkeys(KINDS, ATP))
    header = " ".join(shown_text(page.partition("<header>")[2].partition("</header>")[0]).split())
    names = "Heads, Layers, Positions, Heads at positions, Edges"
    from_where = "estimated by atp (gradient in the run that is patched)"
    assert f"{names}: effects are {from_where}; no patch was run." in header
    settings = page.partition("<summary>Settings")[2].partition("</details>")[0]
    assert re.search(r"Effects\s*</th>\s*<td[^>]*>\s*estimated by atp \(gradient", settings)
    about = [
        heading for heading in headings(page) if speaks_of_effects(heading) and heading not in ("Patched", "Effects")
    ]
    assert len(about) == 2 * len(KINDS) and all(map(says_estimated, about))
    captions = re.findall(r"<caption>(.*?)</caption>", page, re.DOTALL)
    assert sum("estimated effects, estimated by atp" in caption for caption in captions) == len(KINDS)
    assert "The number is the estimated effect of patching" in page and "(estimated by atp)" in page
    tokens = [title for title in re.findall(r"title=\"(position .*?)\"", page) if speaks_of_effects(title)]
    assert tokens and all(map(says_estimated, tokens))
    assert "Estimated by atp, 4 of 12 heads would matter" in page and "would restore" in page
    assert not re.search(r"\b(restores|takes away)\b", shown_text(page.partition("How to read a score</h2>")[0]))
    assert "Where effects are <b>estimated</b>, no patch was run" in page


def test_a_report_of_exact_effects_speaks_of_no_estimates(tmp_path: Path) -> None:
    page = report_of(tmp_path, **dict.fromkeys(KINDS))
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not says_estimated(shown_text(shown))


def test_exact_and_estimated_results_of_one_report_are_told_apart(tmp_path: Path) -> None:
    page = report_of(tmp_path, head_results=None, layer_results=IG)
    header = shown_text(page.partition("<header>")[2].partition("</header>")[0])
    assert "Layers: effects are estimated by eap_ig" in header and "Heads:" not in header
    settings = page.partition("<summary>Settings")[2].partition("</details>")[0]
    cells = re.search(r"Effects\s*</th>(.*?)</tr>", settings, re.DOTALL)
    assert cells and "exact: every patch was run" in cells[1] and "3 steps, right grid" in cells[1]
    assert (
        "restores" in page
        and "estimated by eap_ig (3 steps, right grid), attention of layer 3 alone would restore" in page
    )
