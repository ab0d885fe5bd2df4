"""`python -m pytest tests.py` runs the suite, which lies in `test_suite/`: ids name the file that a test stands in."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    entry = ROOT / "tests.py"
    config.args = [
        str(ROOT / "test_suite") if (config.invocation_params.dir / arg).resolve() == entry else arg
        for arg in config.args
    ]
