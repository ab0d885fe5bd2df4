"""The pages of the docs: their code runs and prints what they show, and they name everything that there is, once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import actpatch
from activation_patching import IOIDataset
from docs import drawings, examples
from docs.examples import ROOT
from test_suite.helpers.printed import assert_same_text

DOCS = ROOT / "docs"
PAGES = [path for path in examples.files() if path.parent == DOCS]
LONG = ("figures", "heads", "long-runs")
REPOSITORY = "https://github.com/designer-coderajay/activation-patching-framework/blob/main/"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in LONG), id=path.stem) for path in PAGES],
)
def test_code_runs_and_prints_what_stands_below_it(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example, printed in examples.run(path):
        if example.printed is not None:
            assert_same_text(example.printed, printed)
    if path.name == "figures.md":
        assert (tmp_path / "figures" / "report.html").exists() and (tmp_path / "quadrant.html").exists()


def test_what_is_printed_is_written_anew(tmp_path):
    file = tmp_path / "page.md"
    page = "```python\nprint(1 + 1, end=' \\n')\n```\n\n```text\n3\n```\n\n```python\nprint(5)\n```\n"
    file.write_text(page, encoding="utf-8")
    assert examples.write_anew(file)
    assert file.read_text(encoding="utf-8") == page.replace("3\n", "2\n")
    assert not examples.write_anew(file)


def test_every_public_name_stands_on_one_page_of_the_reference():
    told = [
        name
        for path in (DOCS / "api").glob("*.md")
        for name in re.findall(r"^::: actpatch\.(\w+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert sorted(told) == sorted(actpatch.__all__)


def test_every_module_and_room_is_listed():
    listed = re.search(r"^```\n(.*?)^```$", page("layout.md"), re.MULTILINE | re.DOTALL)[1]
    rooms = [path.parent for path in ROOT.glob("actpatch/*/__init__.py")]
    assert rooms
    for path in [*ROOT.glob("*.py"), *rooms]:
        assert path.name in listed, path.name
    for name in re.findall(r"^ *([\w/]+\.py|[\w/]+/) ", listed, re.MULTILINE):
        assert (ROOT / name).exists() or (ROOT / "actpatch" / name).exists(), name


def test_commands_that_the_pages_name_exist():
    for command in re.findall(r"`python -m (docs\.\w+|benchmarks\.\w+)", page("layout.md")):
        assert (ROOT / f"{command.replace('.', '/')}.py").exists(), command
    for script in re.findall(r"\bpython (\w+\.py)", "".join(path.read_text(encoding="utf-8") for path in PAGES)):
        assert (ROOT / script).exists(), script


def test_files_of_the_repository_that_pages_link_to_exist():
    links = [
        link
        for path in DOCS.rglob("*.md")
        for link in re.findall(rf"\]\({re.escape(REPOSITORY)}([^)#]+)", path.read_text(encoding="utf-8"))
    ]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_examples_of_corruptions_are_what_the_dataset_makes():
    documented = dict(re.findall(r"^ +(\w+): (When .* drink to)", IOIDataset.__doc__, re.MULTILINE))
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+?) \|", page("corruptions.md"), re.MULTILINE)
    assert {name: text.replace("**", "") for name, text in rows} == documented
    assert {name: prompt.replace("*", "") for name, prompt, *_ in drawings.CORRUPTIONS} == documented
    assert f'of "{drawings.PROMPT}"' in page("corruptions.md")


def test_words_that_are_marked_in_the_drawing_are_those_that_differ():
    for name, prompt, *_ in drawings.CORRUPTIONS:
        changed = [word.startswith("*") for word in prompt.split()]
        assert changed == [a != b.lstrip("*") for a, b in zip(drawings.PROMPT.split(), prompt.split())], name


@pytest.mark.parametrize("name", drawings.PICTURES)
def test_drawings_are_those_of_the_script(name):
    for suffix, colours in (("", drawings.LIGHT), ("-dark", drawings.DARK)):
        drawn = drawings.PICTURES[name](colours)
        assert (drawings.FOLDER / f"{name}{suffix}.svg").read_text(encoding="utf-8") == drawn


def test_the_glossary_has_each_word_once():
    words = re.findall(r"^- \*\*(.+?)\*\*: ", page("glossary.md"), re.MULTILINE)
    assert len(words) == len(set(words))
    needed = (
        "clean run, corrupted run, activation patching, denoising, noising, effect, head, hook point, residual stream, "
        "pattern, S1+1, END, studentised bootstrap, detectable effect, n.s., corrected p-value, window, reading, "
        "varies, named position, direct effect, indirect effect, edge, sender, receiver, path, path patching, frozen, "
        "circuit, dangling edge, ACDC, held-out, faithfulness, completeness, knock-out, minimality, truth"
    )
    assert set(needed.split(", ")) | {"z, output", "q, k, v", "CPR, CMD"} <= set(words)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in DOCS.rglob("*.md"):
        assert f": {path.relative_to(DOCS).as_posix()}\n" in navigation, path


def test_pins_of_the_docs_are_those_of_the_suite_where_both_have_one():
    def pins(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE))

    docs, suite = pins(DOCS / "requirements.txt"), pins(ROOT / "requirements.txt")
    assert docs["ruff"] == suite["ruff"]
    assert {name: docs[name] for name in docs.keys() & suite} == {name: suite[name] for name in docs.keys() & suite}
