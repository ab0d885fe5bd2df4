"""Everything the README shows is run, in order, as its reader would; what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import model_loading
from activation_patching import IOIDataset
from model_loading import can_be_loaded
from test_suite.helpers.models import HAS_HOOKED

ROOT = Path(model_loading.__file__).resolve().parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LENS_IMPORT = re.compile(r"^from transformer_lens import HookedTransformer\b.*$", re.MULTILINE)
GPT2 = re.compile(
    r"""HookedTransformer\.from_pretrained\(["']gpt2-small["'][^)]*\)|load_model\(["']gpt2-small["'][^)]*\)"""
)


def blocks(language: str) -> list[tuple[int, str]]:
    """(number of lines before it, text) of each fenced block."""
    return [
        (README.count("\n", 0, found.start(2)), found[2]) for found in FENCE.finditer(README) if found[1] == language
    ]


def runnable(code: str) -> str:
    """The block itself, with the bundled model where it loads GPT-2 small and that cannot be had here.

    Where TransformerLens has no HookedTransformer, which the README says of 4.0 and later, its import goes too.
    """
    if not HAS_HOOKED:
        code = LENS_IMPORT.sub("", code)
    if GPT2.search(code) and not (HAS_HOOKED and can_be_loaded("gpt2-small")):
        code = GPT2.sub('__import__("model_loading").load_model("tiny", device="cpu")', code)
    return code


def test_every_python_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "readme"}
    shown = blocks("python")
    assert shown
    for line, code in shown:
        exec(compile("\n" * line + runnable(code), str(ROOT / "README.md"), "exec"), namespace)
    printed = capsys.readouterr().out
    assert printed.count("\n") > 10 and "effect" in printed
    if any("create_full_report" in code for _, code in shown):
        assert (tmp_path / "figures" / "report.html").exists()


def test_first_block_stands_alone_and_is_short(capsys):
    line, code = blocks("python")[0]
    exec(compile("\n" * line + runnable(code), str(ROOT / "README.md"), "exec"), {"__name__": "readme"})
    assert re.search(r"[+-]\d\.\d{2}", capsys.readouterr().out)
    assert len([row for row in code.splitlines() if row.strip()]) <= 12


def test_blocks_of_other_languages_are_commands_and_lists():
    assert {found[1] for found in FENCE.finditer(README)} <= {"python", "bash", ""}


@pytest.mark.skipif(HAS_HOOKED, reason="this TransformerLens still has HookedTransformer")
def test_hooked_transformer_is_gone_where_the_readme_says_so():
    with pytest.raises(ImportError):
        exec("from transformer_lens import HookedTransformer")


def test_named_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", "".join(code for _, code in blocks("bash"))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for script in re.findall(r"\bpython (\S+\.py)", README):
        assert (ROOT / script).exists(), script


def test_named_files_and_pictures_exist():
    for link in re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", README):
        assert (ROOT / link).exists(), link
    for name in re.findall(r"^ *([\w/]+\.py|[\w/]+/) ", "".join(code for _, code in blocks("")), re.MULTILINE):
        assert (ROOT / name).exists() or (ROOT / "actpatch" / name).exists(), name


def test_every_module_and_room_is_listed():
    listed = "".join(code for _, code in blocks(""))
    rooms = [path.parent for path in ROOT.glob("actpatch/*/__init__.py")]
    assert rooms
    for path in [*ROOT.glob("*.py"), *rooms]:
        assert path.name in listed, path.name


def test_examples_of_corruptions_are_what_the_dataset_makes():
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+?) \|", README, re.MULTILINE)
    told = {name: text.replace("**", "") for name, text in rows if text.startswith("When ")}
    documented = dict(re.findall(r"^ +(\w+): (When .* drink to)", IOIDataset.__doc__, re.MULTILINE))
    assert {name: text.removesuffix(".") for name, text in told.items()} == documented
