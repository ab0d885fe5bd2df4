"""The page on estimates: the script behind its numbers runs on any model, and the page has a row for each method."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from docs import attribution
from docs.examples import ROOT

PAGE = (ROOT / "docs" / "attribution.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_script_compares_every_method_with_exact_effects() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        attribution.main(["tiny", "--pairs", "3", "--edge-pairs", "1"])
    told = out.getvalue()
    assert re.findall(r"^## (\w+), (?:output|q|denoising)", told, re.M) == ["Heads", "Heads", "Heads", "Edges"]
    rows = re.findall(r"^\| `(\w+)`[^|]*\| (-?[\d.]+) \| (-?[\d.]+) \| ([\d.]+) \|", told, re.M)
    assert [row[0] for row in rows] == [*attribution.OF_HEADS * 3, *attribution.OF_EDGES]
    assert all(-1 <= float(value) <= 1 for row in rows for value in row[1:])
    for method in {*attribution.OF_HEADS, *attribution.OF_EDGES}:
        assert len(re.findall(rf"^\| `{method}`", PAGE, re.M)) >= 2, method
