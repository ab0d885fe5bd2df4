"""The pictures that README.md starts with: the map of the bundled model's heads, and bars of the largest.

    python -m docs.report_picture

writes docs/pictures/head-map.png, head-bars.png, and -dark.png of either, as a browser shows the figures. Needs
`playwright` (the extra `test`) and Chromium. Everything is drawn from seed 0.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from playwright.sync_api import sync_playwright
from plotly import graph_objects as go

from actpatch import (
    HeadPatcher,
    HeadResults,
    IOIDataset,
    create_head_heatmap,
    create_top_heads_bar,
    load_model,
    save_figure,
)

FOLDER = Path(__file__).with_name("pictures")
WIDTH, HEIGHT = 500, 700
"""Pixels of the window; each is two by two in the files."""
TOP = 6
DRAWN = "[...document.querySelectorAll('.drawn')].every((figure) => figure.querySelector('.main-svg .nsewdrag'))"


def experiment() -> HeadResults:
    """What is shown: each head's output, put back into runs in which the giver is the other person."""
    model = load_model("tiny", device="cpu")
    dataset = IOIDataset(model, 20, corruption="flip_subject")
    return HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset)


def screenshots(figures: Mapping[str, go.Figure], width: int = WIDTH) -> None:
    """Writes docs/pictures/NAME.png and NAME-dark.png of each figure, as Chromium shows it in so wide a window."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for name, figure in figures.items():
            shown = save_figure(figure, Path(folder) / f"{name}.html")
            for suffix, dark in (("", False), ("-dark", True)):
                page = browser.new_page(
                    viewport={"width": width, "height": HEIGHT},
                    device_scale_factor=2,
                    color_scheme="dark" if dark else "light",
                )
                page.goto(shown.as_uri())
                page.wait_for_function(DRAWN)
                page.locator("figure").first.screenshot(path=FOLDER / f"{name}{suffix}.png")
                page.close()
        browser.close()


def main() -> None:
    heads = experiment()
    screenshots({"head-map": create_head_heatmap(heads), "head-bars": create_top_heads_bar(heads, top_k=TOP)})


if __name__ == "__main__":
    main()
