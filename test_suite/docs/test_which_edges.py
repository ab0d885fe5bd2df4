"""The page on a language model's edges: its numbers are those of the script that it names, which runs on any model."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from activation_patching import IOIDataset
from docs import which_edges
from docs.examples import ROOT, examples
from path_patching import PathPatcher
from test_suite.helpers.models import HAS_HOOKED, smol_checkpoint, smollm2
from test_suite.helpers.printed import assert_same_text

PAGE = (ROOT / "docs" / "which-edges.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| .* \|$", re.M)


def printed(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        which_edges.main(list(arguments))
    return out.getvalue()


def test_the_script_goes_from_heads_to_paths_on_the_bundled_model():
    told = printed("tiny", "--pairs", "6")
    headings = re.findall(r"^## (.*)$", told, re.M)
    assert [heading.split(":")[0] for heading in headings] == [
        "Heads",
        "Edges into the logits",
        "Heads that feed their queries",
        "Edges among them, on the other pairs",
        "By which they were chosen, and on the others",
        "By position",
        "What one number for all positions hides",
        "Paths of several steps",
    ]
    model = which_edges.load_model("tiny", device="cpu")
    dataset = IOIDataset(model, 12, corruption="flip_subject", seed=which_edges.SEED)
    patcher = PathPatcher(model, show_progress=False)
    writes, again = (
        patcher.run_all_edges_experiment(dataset, senders="heads", receivers="logits", pair_indices=pairs)
        for pairs in (range(6), range(6, 12))
    )
    late = [edge for edge in writes.top(len(writes)) if edge.effect > 0][: which_edges.LATE]
    assert f"Write the answer: {', '.join(edge.sender for edge in late)}\n" in told
    for edge in late:
        assert f"| {edge.label} | {edge.effect:+.3f} | {again[edge.label].effect:+.3f} |" in told
        of_others = told.partition("## Edges among them")[2].partition("## By which")[0]
        assert f"| {edge.label} | {again[edge.label].effect:+.3f} | " in of_others
    (all_at_once, at_s2, at_end, left) = re.search(
        r"hides\n\n.*\n.*\n\| [^|]+ \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|", told
    ).groups()
    assert float(left) == pytest.approx(float(all_at_once) - float(at_s2) - float(at_end), abs=0.0021)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_HOOKED, reason="the page shows it of HookedTransformer, in single precision")
def test_the_page_shows_what_the_script_prints():
    told = printed(str(smol_checkpoint()))
    shown = ROW.findall(PAGE)
    now = {row.split(" | ")[0] + str(row.count("|")): [] for row in ROW.findall(told)}
    for row in ROW.findall(told):
        now[row.split(" | ")[0] + str(row.count("|"))].append(row)
    assert len(shown) > 40
    for row in shown:
        alike = now[row.split(" | ")[0] + str(row.count("|"))]
        assert any(_same(row, other) for other in alike), f"{row} shown, {alike} now"
    for sentence in re.findall(r"^\d+ of \d+ significant over \d+ pairs", told, re.M):
        assert sentence in PAGE


@pytest.mark.slow
def test_the_page_s_code_patches_the_edges_of_its_table():
    (example,) = examples(PAGE)
    model = smollm2()
    dataset = IOIDataset(model, 2, corruption="flip_subject", seed=which_edges.SEED)
    known = {"patcher": PathPatcher(model, show_progress=False), "dataset": dataset, "held_out": [0, 1]}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(example.code, known)
    assert out.getvalue() == example.printed
    table = PAGE.partition("## 4. ")[2].partition("## 5. ")[0]
    for label in re.findall(r"^\| (L\S+ → [^|]+?) \|", table, re.M):
        assert label in known["edges"], label


def _same(shown: str, now: str) -> bool:
    try:
        assert_same_text(shown, now)
    except AssertionError:
        return False
    return True
