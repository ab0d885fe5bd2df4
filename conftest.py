"""`python -m pytest tests.py` runs the suite, which lies in `test_suite/`: ids name the file that a test stands in.

Drawn examples are the same in every run; with `--hypothesis-profile=fuzz` they are others each time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Neither a deadline nor a health check: both are clocks.
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("fuzz", derandomize=False, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    entry = ROOT / "tests.py"
    config.args = [
        str(ROOT / "test_suite") if (config.invocation_params.dir / arg).resolve() == entry else arg
        for arg in config.args
    ]
