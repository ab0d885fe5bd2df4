"""The suite's entry: `python -m pytest tests.py -v` runs every test of `test_suite/` (see `conftest.py`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).with_name("test_suite")), *sys.argv[1:]]))
