"""The code of docs/files.md is run, in order, as its reader would."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import model_loading
from activation_patching import PromptPairs

PAGE = Path(model_loading.__file__).resolve().parent / "docs" / "files.md"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_block_runs_and_says_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "files"}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out
    assert len(blocks) == 4 and "right answer ' cat'" in printed
    assert "prompts of different token lengths" in printed and "{'SUBJECT': (1, 2)}" in printed


def test_every_call_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"from_\w+", PAGE.read_text(encoding="utf-8")))
    assert named == {name for name in vars(PromptPairs) if name.startswith("from_")}
