"""Every example of docs/extending.md, added to a copy of the package as it stands there, and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?:^`(?P<file>[\w/.]+)`(?:, after `(?P<after>[^`]+)`)?:\n)?^```python\n(?P<code>.*?)^```$", re.M | re.S
)


def added_to(package: Path) -> str:
    """Put the guide's rows and files into a copy of the package. Returns the code that is run."""
    code = []
    for block in BLOCK.finditer(GUIDE):
        if block["file"] is None:
            code.append(block["code"])
            continue
        file = package.parent / block["file"]
        if block["after"] is None:
            assert not file.exists(), f"{file.name} is there already"
            file.write_text(block["code"], encoding="utf-8")
            continue
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        (at,) = (i for i, line in enumerate(lines) if line.strip().startswith(block["after"]))
        lines.insert(at + 1, block["code"])
        file.write_text("".join(lines), encoding="utf-8")
    return "".join(code)


def test_the_guide_has_an_example_of_each_kind_that_it_lists() -> None:
    listed = re.findall(r"^\| (a [\w ]+?) \|", GUIDE, re.M)
    headings = [heading.lower() for heading in re.findall(r"^## (.*)$", GUIDE, re.M)]
    assert len(listed) == 7 and sorted(listed) == sorted(headings)


@pytest.mark.slow
def test_every_example_works_as_it_stands(tmp_path: Path) -> None:
    package = shutil.copytree(ROOT / "actpatch", tmp_path / "actpatch", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "run.py").write_text(added_to(package), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "run.py"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert "ln2.hook_normalized" in done.stdout and "Traceback" not in done.stderr
