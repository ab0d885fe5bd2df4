"""What an installation holds, and that it works from any folder, whatever files of one's own lie there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOORS = {
    "activation_patching.py",
    "attribution_patching.py",
    "circuit_discovery.py",
    "head_patching.py",
    "model_loading.py",
    "path_patching.py",
    "visualize.py",
}
HEAVY = ("pandas", "scipy", "plotly", "transformers", "transformer_lens", "jinja2")
USE = """
import actpatch

model = actpatch.load_model("tiny", device="cpu")
patcher = actpatch.ActivationPatcher(model, show_progress=False)
results = patcher.run_patching_experiment(actpatch.IOIDataset(model, 2, corruption="flip_subject"), "attn_out")
print(len(results), actpatch.__file__, *actpatch.create_full_report(layer_results=results, save_dir="out"))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, unpacked as pip unpacks it. Built from a copy: setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(
        ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
    )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder / "site")
    return folder / "site"


def run(code: str, installed: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installation_holds_the_package_and_the_doors_alone(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"actpatch", *DOORS}
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "actpatch").rglob("*") if path.is_file()}
    there = {str(path.relative_to(installed)) for path in (installed / "actpatch").rglob("*") if path.is_file()}
    assert there == {path for path in package if "__pycache__" not in path}


@pytest.mark.slow
def test_it_works_from_any_folder_beside_files_named_like_ours(installed: Path, tmp_path: Path) -> None:
    for name in ("prompt_files", "page_style", "visualize", "results", "figures", "metrics"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('a file of my own')")
    printed = run(USE, installed, tmp_path).split()
    assert printed[0] == "4" and printed[1].startswith(str(installed))
    assert (tmp_path / "out" / "report.html").exists()


def test_importing_a_door_waits_for_nothing_that_only_runs_and_figures_need(tmp_path: Path) -> None:
    statements = [
        *(f"import {door.removesuffix('.py')}" for door in sorted(DOORS)),
        "from actpatch import load_results",
    ]
    look = f"print(*[m for m in {HEAVY} if m in sys.modules])"
    loaded = run("import sys\n" + "".join(f"{each}\n{look}\n" for each in statements), ROOT, tmp_path)
    assert dict(zip(statements, loaded.split("\n"))) == dict.fromkeys(statements, "")
