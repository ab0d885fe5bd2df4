"""Everything the README shows is run, in order, as its reader would, and prints what it shows; what it names exists."""

from __future__ import annotations

import ast
import re

import pytest

import actpatch
from docs import examples, report_picture
from docs.examples import HAS_HOOKED, ROOT
from test_suite.helpers.printed import assert_same_text

PATH = ROOT / "README.md"
README = PATH.read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_WORDS = 1500
ORDER = [
    "What it finds",
    "Install",
    "Ten lines",
    "How to read an effect",
    "Heads",
    "Check the data",
    "Your own prompts",
    "I want to …",
    "Limits",
]


def blocks(language: str) -> list[str]:
    return [found[2] for found in FENCE.finditer(README) if found[1] == language]


def anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_it_is_short_and_in_order():
    assert len(README.split()) <= MOST_WORDS
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == ORDER


def test_every_block_runs_and_prints_what_stands_below_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = 0
    for example, printed in examples.run(PATH):
        assert bool(printed) == (example.printed is not None), f"line {example.line}"
        if example.printed is not None:
            assert_same_text(example.printed, printed)
            shown += 1
    assert shown >= 3


def test_first_block_stands_alone_and_is_short(capsys):
    first = examples.examples(README)[0]
    exec(compile("\n" * first.line + examples.runnable(first.code), str(PATH), "exec"), {"__name__": "readme"})
    assert re.search(r"[+-]\d\.\d{2}", capsys.readouterr().out)
    assert len([row for row in first.code.splitlines() if row.strip()]) <= 10


def test_the_sentence_below_the_picture_is_what_the_picture_shows():
    layer, head, most, next_most = re.search(
        r"head (\d+) of layer (\d+), .*? restores (\d+) % of the difference, and no other head more than (\d+) %",
        README,
    ).group(2, 1, 3, 4)
    first, second = report_picture.experiment().top(2)
    assert (first.layer, first.head) == (int(layer), int(head))
    assert round(100 * first.effect) == int(most)
    assert round(100 * second.effect) == int(next_most)
    assert f"head {head} of layer {layer}, " in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert f"restores {most} % of" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_call_of_the_table_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures").mkdir()
    table = README.partition("## I want to …")[2].partition("## Limits")[0]
    rows = re.findall(r"^\| (?!I want)([^|-][^|]*) \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) > 10
    model = actpatch.load_model("tiny", device="cpu")
    dataset = actpatch.IOIDataset(model, 6, corruption="flip_subject")
    patcher = actpatch.ActivationPatcher(model, show_progress=False)
    results = actpatch.HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset)
    edges = actpatch.PathPatcher(model, show_progress=False).run_all_edges_experiment(dataset)
    circuit, others = actpatch.find_circuit(edges, n_edges=40), actpatch.IOIDataset(model, 2, seed=1)
    (clean, corrupted), *_ = dataset.get_clean_corrupt_pairs()
    named = {
        **{name: getattr(actpatch, name) for name in actpatch.__all__},
        **{"model": model, "dataset": dataset, "patcher": patcher, "clean": clean, "corrupted": corrupted},
        **{"prompt": clean, "hook_point": "blocks.0.hook_attn_out", "important": results.top(3), "results": results},
        **{"edges": edges, "circuit": circuit, "others": others},
        **{"results_a": results, "results_b": results, "fig": actpatch.create_head_heatmap(results)},
        "both": patcher.run_patching_experiment(dataset, "attn_out", direction="both"),
    }
    results.save("effects.json")
    for wanted, cell in rows:
        calls = re.findall(r"`([^`]+)`", cell)
        assert calls, wanted
        for call in calls:
            setting = re.fullmatch(r"(\w+)=(.+)", call)
            if setting:
                call = f'patcher.run_patching_experiment(dataset, "attn_out", {call})'
            if isinstance(ast.parse(call, mode="eval").body, ast.Call) or call in named:
                eval(call, dict(named))
            else:
                assert call in ("images",), call


def test_blocks_of_other_languages_are_commands_and_what_is_printed():
    assert {found[1] for found in FENCE.finditer(README)} == {"python", "bash", "text"}
    assert len(blocks("text")) == sum(example.printed is not None for example in examples.examples(README))


@pytest.mark.skipif(HAS_HOOKED, reason="this TransformerLens still has HookedTransformer")
def test_hooked_transformer_is_gone_where_the_readme_says_so():
    with pytest.raises(ImportError):
        exec("from transformer_lens import HookedTransformer")


def test_named_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"\bmake (\w+)", "".join(blocks("bash")) + "".join(re.findall(r"`(make \w+)`", README)))
    assert {"demo", "test", "docs"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_named_files_pictures_and_places_exist():
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", README):
        file, _, place = link.partition("#")
        text = (ROOT / file).read_text(encoding="utf-8") if file else README
        assert not place or place in map(anchor, re.findall(r"^#+ (.*)$", text, re.MULTILINE)), link
    pictures = re.findall(r'(?:src|srcset)="([^"]+)"', README)
    assert len(pictures) >= 6
    for picture in pictures:
        assert (ROOT / picture).exists(), picture
