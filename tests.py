"""The suite's entry: `python -m pytest tests.py -v` runs every test of test_suite/.

While the library is imported here, its shape annotations become checks: a tensor of another shape than a signature
says is an error in any test that meets it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before anything reads them: nothing here needs the Hugging Face hub, and looking for it takes half a minute a time.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models are small: two threads on a busy machine were ten times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import importlib

import pytest
import torch

from test_suite.shape_checks import arrays_checked

HERE = Path(__file__).resolve().parent
LIBRARY = sorted(path.stem for path in HERE.glob("*.py") if path.name != "tests.py")
SUITE = [f"test_suite.{path.stem}" for path in sorted((HERE / "test_suite").glob("*.py")) if path.stem != "__init__"]

torch.set_num_threads(1)
pytest.register_assert_rewrite(*(name for name in SUITE if name not in sys.modules))


def _collect(suite: list[str]) -> None:
    """Take the tests and fixtures of each module over into this one, where pytest looks for them.

    Raises:
        ImportError: where two modules give different things one name, or mark all of a module's tests at once: one of
            the two would silently not be run, and a mark would spread to every module.
    """
    owner: dict[str, str] = {}
    for name in suite:
        module = importlib.import_module(name)
        if hasattr(module, "pytestmark"):
            raise ImportError(f"{name} sets pytestmark: mark its tests one by one")
        for key, value in vars(module).items():
            if not (key.startswith(("test_", "Test")) or type(value).__name__ == "FixtureFunctionDefinition"):
                continue
            if globals().setdefault(key, value) is not value:
                raise ImportError(f"{name} and {owner[key]} both define {key}: rename one of them")
            owner[key] = name


with arrays_checked(LIBRARY):
    _collect(SUITE)

if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
