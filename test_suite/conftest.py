"""What every test finds: no hub, few threads, and the library with its shape annotations turned into checks.

The environment variable `TEST_THREADS`, or else `OMP_NUM_THREADS`, says how many threads; one if neither is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

# Before anything reads them: nothing here needs the Hugging Face hub, and looking for it takes half a minute a time.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The models are small: two threads on a busy machine were ten times slower than one.
THREADS = os.environ.setdefault("TEST_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = THREADS
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest

pytest.register_assert_rewrite("test_suite.helpers", "test_suite.oracles")

import torch

from test_suite.helpers.shape_checks import check_arrays_of

torch.set_num_threads(int(THREADS))
check_arrays_of("actpatch")

from actpatch import ActivationPatcher, HeadPatcher, HeadResults, IOIDataset, LayerResults
from actpatch.tasks.words import IOI_SCENE_TEMPLATES
from test_suite.helpers.models import CLASSES, HAS_HOOKED, bundled, token_pairs
from test_suite.helpers.prompts import Words


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests whose model is a `TransformerBridge`, by the parameter that names it, and as slow those of many
    parameters that are more than `quick(n)` says."""
    families: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        parameters = (
            item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        )
        if any(str(value).startswith(("bridge", "TransformerBridge")) for value in parameters):
            item.add_marker("bridge")
        if item.get_closest_marker("quick") and not item.get_closest_marker("slow"):
            families.setdefault((item.path.as_posix(), item.name.partition("[")[0]), []).append(item)
    for family in families.values():
        n_quick = family[0].get_closest_marker("quick").args[0]  # type: ignore[union-attr]
        chosen = {i * len(family) // n_quick for i in range(n_quick)}
        for i, item in enumerate(family):
            if i not in chosen:
                item.add_marker("slow")


@pytest.fixture(
    scope="module", params=[CLASSES[0], pytest.param(CLASSES[1], marks=pytest.mark.slow if HAS_HOOKED else ())]
)
def tiny(request) -> Any:
    """The bundled model, as each class; where there are two, as the second one among the slow tests."""
    return bundled(request.param)


@pytest.fixture(scope="module")
def patcher(tiny) -> ActivationPatcher:
    return ActivationPatcher(tiny, show_progress=False)


@pytest.fixture(scope="module")
def heads_patcher(tiny) -> HeadPatcher:
    return HeadPatcher(tiny, show_progress=False)


@pytest.fixture(scope="module")
def ioi(tiny) -> IOIDataset:
    """Six pairs, of two lengths."""
    templates = [*IOI_SCENE_TEMPLATES[:2], "{A} and {B} met, and {S2} gave a book to"]
    return IOIDataset(tiny, 6, corruption="flip_subject", templates=templates)


@pytest.fixture(scope="module")
def layer_results(patcher, ioi) -> LayerResults:
    return patcher.run_patching_experiment(ioi, ["attn_out", "mlp_out", "hook_embed"])


@pytest.fixture(scope="module")
def head_results(heads_patcher, ioi) -> HeadResults:
    return heads_patcher.run_all_heads_experiment(ioi)


@pytest.fixture
def mixed() -> Words:
    """Pairs of other lengths whose named positions stand elsewhere."""
    pairs = token_pairs([9, 7, 9], [(3, 6), (2, 4), (5, 6)])
    return Words(pairs, [{"A": 4, "B": 7, "END": -1}, {"A": 3, "B": 5, "END": -1}, {"A": 6, "B": 7, "END": -1}])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if path is None or sync_playwright is None:
        what = "chromium (apt-get install chromium)" if path is None else "playwright (pip install playwright)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"opening reports needs {what}")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--disable-gpu"])
        yield started
        started.close()
