"""Each notebook runs from top to bottom, and what it was saved with is what a run gives now."""

from __future__ import annotations

import ast
import json
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
import pytest
from transformers.utils import logging

import model_loading
from test_suite.helpers.printed import assert_same_text

ROOT = Path(model_loading.__file__).resolve().parent
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
MOST_BYTES = 1_500_000
PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request) -> Path:
    return request.param


@pytest.fixture
def code_cells(notebook) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture
def settings_restored(monkeypatch):
    """What the first cell sets holds for the whole process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    renderer = plotly.io.renderers.default
    yield
    plotly.io.renderers.default = renderer
    logging.enable_progress_bar()


def run(code: str, namespace: dict[str, Any], name: str) -> tuple[str, Any]:
    """What a cell prints, and the value of its last line where that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    value = None
    with redirect_stdout(StringIO()) as printed:
        exec(compile(tree, name, "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    return printed.getvalue(), value


@pytest.mark.slow
def test_notebook_runs_and_was_saved_with_what_it_shows(notebook, code_cells, settings_restored, monkeypatch):
    monkeypatch.chdir(notebook.parent)
    namespace: dict[str, Any] = {"__name__": notebook.stem}
    for cell in code_cells:
        printed, value = run("".join(cell["source"]), namespace, notebook.name)
        saved = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
        assert_same_text(saved, printed)
        shown = [output["data"][PLOTLY] for output in cell["outputs"] if "data" in output]
        figures = [json.loads(value.to_json())] if isinstance(value, go.Figure) else []
        assert [figure["layout"]["title"] for figure in shown] == [figure["layout"]["title"] for figure in figures]


def test_notebook_is_saved_with_outputs_and_without_its_machine(notebook, code_cells):
    outputs = [output for cell in code_cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert sum(PLOTLY in output.get("data", {}) for output in outputs) >= 4
    assert [cell["execution_count"] for cell in code_cells] == list(range(1, len(code_cells) + 1))
    text = notebook.read_text(encoding="utf-8")
    assert len(text.encode()) < MOST_BYTES
    assert not re.search(r"\d{4}-\d{2}-\d{2}T\d{2}:", text), "execute it with ExecutePreprocessor.record_timing=False"
    assert not re.search(
        r"/(?:home|tmp|work|root|Users)/|[A-Z]:\\\\|HookedTransformer|TransformerBridge|plotly\.min", text
    )
