"""The page of facts on a real language model says what its script finds."""

from __future__ import annotations

import re

import numpy as np
import pytest

from docs import causal_tracing
from docs.examples import ROOT
from test_suite.helpers.models import smollm2

PAGE = ROOT / "docs" / "causal-tracing.md"


def table() -> np.ndarray:
    """The map as the page has it: layer, then a column each."""
    rows = re.findall(r"^(\d+) +(-?\d\.\d+) +(-?\d\.\d+) +(-?\d\.\d+)$", PAGE.read_text(encoding="utf-8"), re.M)
    return np.array(rows, dtype=float)


def test_its_numbers_and_pictures_are_of_one_map() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = table()
    assert shown[:, 0].tolist() == [*range(30)] and shown.shape == (30, 1 + len(causal_tracing.COLUMNS))
    for name in re.findall(r"pictures/([\w-]+\.png)", text):
        assert (ROOT / "docs" / "pictures" / name).exists(), name
    for subject, *_ in causal_tracing.FACTS:
        assert subject.removeprefix("The ") in text


@pytest.mark.slow
def test_the_map_is_that_of_the_script() -> None:
    found = causal_tracing.traced(smollm2())
    np.testing.assert_allclose(found.matrix(), table()[:, 1:], atol=0.0051, rtol=0)
    assert found.sweep.clean.mean() == pytest.approx(0.51, abs=0.005)
    assert found.sweep.corrupted.mean() == pytest.approx(0.03, abs=0.005)
    assert found.sweep.by_metric("accuracy").clean.mean() == 7 / 8
