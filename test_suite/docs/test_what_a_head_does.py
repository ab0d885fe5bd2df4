"""The page on what a head does: its code runs as it stands and prints what the page shows."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

import model_loading
from activation_patching import InductionDataset
from head_patching import HeadPatcher
from test_suite.helpers.models import HAS_HOOKED, smollm2

ROOT = Path(model_loading.__file__).resolve().parent
PAGE = (ROOT / "docs" / "what-a-head-does.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<shown>.*?)^```\n)?", re.M | re.S)
REAL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def printed(code: str, namespace: dict) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "what-a-head-does.md", "exec"), namespace)
    return out.getvalue()


def test_the_bundled_model_s_blocks_print_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    blocks = [block for block in BLOCK.finditer(PAGE) if REAL not in block["code"]]
    assert len(blocks) >= 7
    for block in blocks:
        assert printed(block["code"], namespace) == (block["shown"] or "")
    assert (tmp_path / "figures" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.skipif(not HAS_HOOKED, reason="the page shows it of HookedTransformer, in single precision")
def test_the_language_model_s_block_prints_what_is_shown():
    (block,) = [block for block in BLOCK.finditer(PAGE) if REAL in block["code"]]
    code = re.sub(r"load_model\([^)]*\)", "smollm2()", block["code"])
    known = {"HeadPatcher": HeadPatcher, "InductionDataset": InductionDataset, "smollm2": smollm2}
    assert printed(code, {"__name__": "page", **known}) == block["shown"]


def test_the_page_is_short_and_its_picture_light():
    words = re.sub(r"^```.*?^```", "", PAGE, flags=re.M | re.S).split()
    assert 400 <= len(words) <= 800
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE):
        assert 0 < (ROOT / "docs" / picture).stat().st_size < 200_000
