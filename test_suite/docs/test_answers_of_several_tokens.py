"""The code of docs/answers-of-several-tokens.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "answers-of-several-tokens.md"


@pytest.mark.filterwarnings("ignore")
def test_its_code_runs_and_its_loop_gives_the_number_of_the_sweep(capsys: Any) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    printed = capsys.readouterr().out
    assert len(blocks) == 2 and abs(names["by_hand"]) > 0.1
    assert "sequence log-probability difference" in printed and "3 of 3 pairs have answers of several tokens" in printed
