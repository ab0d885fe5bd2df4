"""The code of docs/different-lengths.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "different-lengths.md"


@pytest.mark.filterwarnings("ignore:The ", "ignore:Only ")
def test_the_code_runs_and_tells_what_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 2
    namespace: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), namespace)
    assert "10 of 12 positions of the corrupted prompts have no partner" in capsys.readouterr().out
