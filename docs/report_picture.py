"""The picture in the README: the top of the report on the bundled model, in light and dark, as a browser shows it.

    python -m docs.report_picture

writes docs/report.png and docs/report-dark.png. Needs `playwright` (the extra `test`) and Chromium. Everything is drawn
from seed 0.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from activation_patching import ActivationPatcher, IOIDataset, check_dataset
from actpatch.tasks.words import IOI_SCENE_TEMPLATES
from head_patching import HeadPatcher
from model_loading import load_model
from visualize import create_full_report

WIDTH, HEIGHT = 1000, 1265
"""Pixels of the picture; each is two by two in the file."""
PICTURES = {"light": "report.png", "dark": "report-dark.png"}
DRAWN = "[...document.querySelectorAll('.drawn')].every((figure) => figure.querySelector('.main-svg .nsewdrag'))"


def main() -> None:
    model = load_model("tiny", device="cpu")
    dataset = IOIDataset(model, 20, corruption="flip_subject", templates=IOI_SCENE_TEMPLATES[:1])
    heads = HeadPatcher(model).run_all_heads_experiment(dataset)
    positions = ActivationPatcher(model).run_position_experiment(dataset, "resid_pre")
    with tempfile.TemporaryDirectory() as folder:
        report, *_ = create_full_report(
            heads, position_results=positions, check=check_dataset(model, dataset), save_dir=folder
        )
        take(report)


def take(report: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for scheme, name in PICTURES.items():
            page = browser.new_page(
                viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=2, color_scheme=scheme
            )
            page.goto(report.as_uri())
            page.wait_for_function(DRAWN)
            page.screenshot(path=Path(__file__).with_name(name))
        browser.close()


if __name__ == "__main__":
    main()
