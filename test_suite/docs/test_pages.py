"""The code of docs/generate.md and docs/chat.md runs as it stands, and prints what they show of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from test_suite.helpers.models import smol_checkpoint

DOCS = Path(__file__).resolve().parents[2] / "docs"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page: str, capsys: Any, named: str = "", there: str = "") -> None:
    """Run the page's blocks of Python in order; a block without a language is what the one before printed.

    Args:
        named: a model that the page loads, in the place of which another one is loaded.
    """
    namespace: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in FENCE.finditer((DOCS / page).read_text(encoding="utf-8")):
        code = block[2]
        if block[1] != "python":
            assert printed == code, page
            continue
        exec(compile(code.replace(named, there) if named else code, page, "exec"), namespace)
        printed = capsys.readouterr().out


def test_generate(capsys: Any) -> None:
    run("generate.md", capsys)


@pytest.mark.slow
def test_chat(capsys: Any) -> None:
    run("chat.md", capsys, "HuggingFaceTB/SmolLM2-135M-Instruct", str(smol_checkpoint()))
