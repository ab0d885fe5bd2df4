"""The picture in docs/what-a-head-does.md: the cards of two of the bundled model's induction heads.

    python -m docs.head_cards_picture

writes docs/head-cards.png. Needs `playwright` (the extra `test`) and Chromium. Everything is drawn from seed 0.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from activation_patching import InductionDataset
from head_patching import HeadPatcher
from model_loading import load_model
from visualize import create_head_cards, save_figure

DRAWN = "document.querySelector('.drawn .main-svg .nsewdrag')"
PICTURE = Path(__file__).with_name("head-cards.png")


def main() -> None:
    model = load_model("tiny", device="cpu")
    cards = HeadPatcher(model).describe_heads(InductionDataset(model, 12, n_words=8, n_repeated=5), ["L1H1", "L1H3"])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = save_figure(create_head_cards(cards), Path(folder) / "cards.html")
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"))
        page = browser.new_page(viewport={"width": 1140, "height": 700}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.wait_for_function(DRAWN)
        page.locator("figure").first.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
