"""The docs site, as `make docs` or `.ci/run` built it: it asks no other site for anything, and its search works."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import actpatch
from docs.examples import ROOT
from test_suite.helpers.pages import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.one_version]
WIDTHS = (390, 1024)
LOADED = {
    **{"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"},
    **{"embed": "src", "object": "data"},
}
"""Element -> attribute that names what is fetched without a click; of links that depends on what they are."""
CLICKED = {"canonical", "prev", "next", "license", "author"}
FETCHED = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)")


class Requests(HTMLParser):
    """Addresses elsewhere that a page fetches by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "link" and given.get("rel") not in CLICKED:
            self.look(given.get("href"))
        self.look(given.get(LOADED.get(tag, "")))
        self.look(given.get("srcset"))
        self.found += style_requests(given.get("style") or "")

    def look(self, address: str | None) -> None:
        if address and re.match(r"(?:\w+:)?//", address):
            self.found.append(address)


def style_requests(text: str) -> list[str]:
    return [one or other for one, other in FETCHED.findall(text)]


def page_requests(text: str) -> list[str]:
    parser = Requests()
    parser.feed(text)
    styles = re.findall(r"<style[^>]*>(.*?)</style>", text, re.S)
    return parser.found + [address for style in styles for address in style_requests(style)]


@pytest.fixture(scope="module")
def site() -> Path:
    built = Path(os.environ.get("DOCS_SITE", ROOT / "site"))
    if not (built / "index.html").exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no docs site in {built}: make docs builds one")
    return built


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://unpkg.com/x"></script>',
        '<link rel="stylesheet" href="https://fonts.googleapis.com/css">',
        '<link rel="preconnect" href="//fonts.gstatic.com">',
        '<img src="http://a.org/a.png">',
        '<img srcset="https://a.org/a.png 2x">',
        "<style>@import 'https://a.org/a.css';</style>",
        '<p style="background: url(https://a.org/a.png)">',
    ],
)
def test_requests_are_found(page):
    assert len(page_requests(page)) == 1
    assert (
        page_requests('<a href="https://a.org">a</a><script src="a.js"></script><link rel="icon" href="a.png">') == []
    )


def test_no_page_or_style_asks_another_site_for_anything(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        assert page_requests(page.read_text(encoding="utf-8")) == [], page
    for style in site.rglob("*.css"):
        assert style_requests(style.read_text(encoding="utf-8")) == [], style


def test_every_public_name_has_its_place(site):
    pages = [page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html")]
    for name in actpatch.__all__:
        assert sum(f'id="actpatch.{name}"' in page for page in pages) == 1, name
    assert any("Parameters:" in page and "Raises:" in page for page in pages)
    assert not [page for page in pages if "Args:" in page]


@pytest.fixture
def opened(site, browser):
    """Opens pages as files, with neither a network nor another site; says what they asked for and complained about."""
    contexts = []

    def open_page(name: str, **options: Any) -> tuple[Any, list[str]]:
        context = browser.new_context(offline=True, **options)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page, complaints = context.new_page(), []
        local = ("file:", "data:", "blob:", "about:")
        page.on("request", lambda asked: asked.url.startswith(local) or complaints.append(asked.url))
        page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto((site / name).as_uri())
        return page, complaints

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["index.html", "corruptions.html", "api/results.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_follow_the_setting_and_fit_every_width(opened, name, scheme):
    for width in WIDTHS:
        page, complaints = opened(name, color_scheme=scheme, viewport={"width": width, "height": 900})
        expected = "slate" if scheme == "dark" else "default"
        page.wait_for_function(f"document.body.dataset.mdColorScheme === '{expected}'")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        hidden, shown = ("light", "dark") if scheme == "dark" else ("dark", "light")
        for image in page.locator(f"img[src$='#only-{hidden}']").all():
            assert not image.is_visible()
        for image in page.locator(f"img[src$='#only-{shown}']").all():
            assert image.is_visible() and image.evaluate("image => image.naturalWidth > 0")
        assert complaints == []


@pytest.mark.parametrize(
    ("wanted", "found"), [("studentised", "statistics.html"), ("create_comparison", "api/figures.html")]
)
def test_search_finds_words_and_names_without_a_network(opened, wanted, found):
    page, complaints = opened("api/models.html", viewport={"width": 1280, "height": 900})
    page.locator("input[name=query]").click()
    page.wait_for_function("document.querySelector('.md-search-result__meta').textContent.includes('Type to start')")
    page.keyboard.type(wanted)
    results = page.locator(".md-search-result__link")
    results.first.wait_for()
    assert any(f"/{found}" in link.get_attribute("href") for link in results.all())
    assert complaints == []
