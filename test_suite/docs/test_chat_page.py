"""The page on chats needs a language model with a template for them: its code prints what it shows."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import pytest

from docs.examples import ROOT, examples
from test_suite.helpers.models import smol_checkpoint
from test_suite.helpers.printed import assert_same_text


@pytest.mark.slow
def test_code_of_the_page_on_chats_prints_what_stands_below_it() -> None:
    namespace: dict[str, Any] = {"__name__": "chat"}
    found = examples((ROOT / "docs" / "chat.md").read_text(encoding="utf-8"))
    assert found
    for example in found:
        code = example.code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(smol_checkpoint()))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "chat.md", "exec"), namespace)
        assert_same_text(example.printed or "", out.getvalue())
