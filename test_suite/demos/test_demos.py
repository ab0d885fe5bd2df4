"""The four demo scripts: what they print, what they write, and how they refuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from huggingface_hub import constants

import circuit_demo
import demo
import head_demo
import path_demo
from activation_patching import IOIDataset, LayerResults
from actpatch import Graph, PositionResults, Site, block_hook, demos, edge_patches
from actpatch.core.path_patches import path_patches
from head_patching import HeadPatcher
from path_patching import EdgeResults, PathPatcher
from test_suite.helpers.hub import home_with_gpt2
from test_suite.helpers.models import bundled
from test_suite.helpers.results import made_up_heads, made_up_sweep

ROOT = Path(demo.__file__).resolve().parent
TINY = ["--model", "tiny", "--device", "cpu"]


def run_script(name: str, *options: str, home: Path, cwd: Path) -> subprocess.CompletedProcess:
    """The script in a process of its own, out of reach of the hub, with the models downloaded to `home`."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(home),
        "PYTHONIOENCODING": "utf-8",
    }
    return subprocess.run(
        [sys.executable, ROOT / name, *options],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=1200,
    )


def listed_figures(printed: str) -> list[Path]:
    return [Path(line.strip()) for line in printed.partition("Figures:")[2].splitlines() if line.strip()]


SCRIPTS = {
    demo: "position_heatmap",
    head_demo: "head_heatmap",
    path_demo: "edge_graph",
    circuit_demo: "circuit_graph",
}
"""The demos, and a figure that each draws and those before it do not."""


def assert_the_defaults_are_shown(script: ModuleType, printed: str, folder: Path) -> None:
    """What a demo prints and writes without arguments where GPT-2 small cannot be had."""
    assert printed.startswith("Model: tiny (the bundled one: gpt2-small is not in the local cache, and")
    assert max(map(len, printed.partition("Figures:")[0].splitlines())) <= 80
    rows = {
        demo: r"blocks\.\d\.hook_\w+ +[+-]\d",
        head_demo: r"L\d+H\d+ +[+-]\d",
        path_demo: r"input → L1H0 v +[+-]\d",
        circuit_demo: r" +10\.0% +47 +0\.8\d +0\.0\d",
    }
    assert re.search(f"^{rows[script]}", printed, re.MULTILINE)
    assert "Task: IOI (second subject flipped), 20 pairs" in printed
    told = " ".join(printed.split())
    if script is demo:
        assert "attention of layer 1 alone restores" in told and "Layer 2 carries what decides from S2 to END" in told
    elif script is circuit_demo:
        assert "Edges: all 479, patched one by one, on 10 pairs." in told
        assert re.search(r"found to keep 0\.9: faithfulness 0\.9\d", told)
        assert re.search(
            r"0\.88 \[0\.8\d, 0\.9\d\] by logit difference \(faithfulness\) over 10 pairs that its search did", told
        )
        assert "Of 99 random circuits of its size (median 0.00) none is at least as faithful (p = 0.010)" in told
        assert "SensitivityCard of 54 edges" in told
    elif script is path_demo:
        assert (
            "L1H0 restores 0.60" in told
            and "Edges: all 479." in told
            and "of its 28 edges patched here, one by one" in told
        )
        assert "4 of 4 paths matter" in told and "Effects of edges need not add up" in told
    else:
        assert "heads matter (corrected p ≤ 0.05, 20 pairs): L1H0 restores 0.6" in told
        assert "L1H0: Patching its output restores 0.60 (denoising)" in told
        assert "It is moved by what it reads: its values alone carry" in told and "not by where it looks" in told
        assert "What these heads do" in (folder / "figures" / "report.html").read_text(encoding="utf-8")
    figures = listed_figures(printed)
    assert figures[0] == Path("figures/report.html")
    assert all((folder / figure).stat().st_size > 1000 for figure in figures)
    expected = {"layer_heatmap", "component_comparison", "layer_metric_scatter", SCRIPTS[script]}
    assert expected <= {figure.stem for figure in figures}


@pytest.mark.parametrize(
    "script", [demo, *(pytest.param(one, marks=pytest.mark.slow) for one in (head_demo, path_demo, circuit_demo))]
)
def test_demos_without_arguments_fall_back_to_the_bundled_model_and_say_why(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.chdir(tmp_path)
    assert script.main([]) == 0
    printed = capsys.readouterr()
    assert_the_defaults_are_shown(script, printed.out, tmp_path)
    assert "Patching" not in printed.err, "no terminal"


@pytest.mark.slow
def test_demos_run_from_the_shell(tmp_path):
    for script in SCRIPTS:
        done = run_script(f"{script.__name__}.py", home=tmp_path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert_the_defaults_are_shown(script, done.stdout, tmp_path)
        assert "%|" not in done.stderr + done.stdout, "a bar in what is no terminal"
        assert "Traceback" not in done.stderr and "dtype" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80 and "\x1b" not in done.stdout


@pytest.mark.slow
def test_demo_takes_gpt2_small_where_it_can_be_had(tmp_path):
    done = run_script("demo.py", "--pairs", "2", "--corruption", "unrelated_names", home=home_with_gpt2(), cwd=tmp_path)
    assert "Model: gpt2-small (the default), 12 layers × 12 heads" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_what_they_print_is_what_the_library_measures(tmp_path, capsys):
    chosen = [*TINY, "--pairs", "4", "--corruption", "flip_subject", "--seed", "3", "--direction", "noising"]
    assert head_demo.main([*chosen, "--patch-type", "q", "--top-k", "5", "--out", str(tmp_path), "--quiet"]) == 0
    printed = capsys.readouterr()
    model = bundled()
    dataset = IOIDataset(model, 4, corruption="flip_subject", seed=3)
    heads = HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset, "q", direction="noising")
    rows = re.findall(r"^(L\d+H\d+) +([+-][\d.]+) ", printed.out, re.MULTILINE)
    assert rows == [(head.label, f"{head.effect:+.3f}") for head in heads.top(5)]
    assert "noising: corrupted into clean" in printed.out and "mean of 4 pairs" in printed.out
    assert "Patching" not in printed.err and "Task:" not in printed.out
    assert all(figure.parent == tmp_path and figure.exists() for figure in listed_figures(printed.out))


def test_layer_demo_shows_layers_and_positions(tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert demo.main([*TINY, "--pairs", "3", "--top-k", "2", "--out", str(out), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^blocks\.\d\.hook_(?:attn|mlp)_out ", printed, re.MULTILINE)) == 2
    assert len(re.findall(r"^before layer \d +(?:[+-]\d\.\d\d *){5}$", printed, re.MULTILINE)) == 4
    page = (out / "position_heatmap.html").read_text(encoding="utf-8")
    assert 'src="plotly.min.js"' in page and "S1+1" in page


def test_a_layer_that_carries_something_is_told_with_the_tables_own_numbers():
    roles = ("S2", "END")
    sites = [
        Site(block_hook(i, "resid_pre"), position=(p,) * 5, position_name=roles[p]) for i in range(3) for p in (0, 1)
    ]
    effects = np.array([[1.0, 0.0], [0.95, 0.1], [0.3, 0.8]]).ravel()
    sweep = made_up_sweep(sites, 3, 1)
    patched = sweep.base + effects[:, None] * (sweep.source - sweep.base)
    moved = PositionResults(made_up_sweep(sites, 3, 1, patched=patched))
    assert demos.where_it_moves(moved) == (
        "Layer 1 carries what decides from S2 to END: S2 0.95 before it and 0.30 after, END 0.10 before it and 0.80 "
        "after."
    )
    still = PositionResults(made_up_sweep(sites, 3, 1, patched=np.tile(patched[:1], (6, 1))))
    assert demos.where_it_moves(still) == ""


def test_the_edge_demo_narrows_a_large_graph_to_its_largest_heads():
    heads = made_up_heads(6, 6)
    large = Graph("made-up", heads=(6,) * 6, key_value_heads=(2,) * 6, mlps=(True,) * 6)
    small = Graph("made-up", heads=(4,) * 4, key_value_heads=(4,) * 4, mlps=(True,) * 4)
    assert len(small) < demos.MOST_EDGES < len(large)
    assert demos.which_edges(small, heads) == (None, None)
    senders, receivers = demos.which_edges(large, heads)
    labels = [head.label for head in heads.top(demos.MOST_ENDS)]
    assert senders == ["input", *labels] and receivers[0] == "logits"
    of_first = [f"{labels[0]} q", f"L{heads.top(1)[0].layer}KV{heads.top(1)[0].head // 3}"]
    assert receivers[1:3] == of_first and len(large.readers_named(receivers)) > demos.MOST_ENDS
    ungrouped = Graph("made-up", heads=(6,) * 6, key_value_heads=(6,) * 6, mlps=(True,) * 6)
    assert demos.which_edges(ungrouped, heads)[1] == ["logits", *labels]


def made_up_edges(known: dict[str, float]) -> EdgeResults:
    """Edges of two layers of two heads which share keys and values: those that are named have an effect."""
    edges = edge_patches(Graph("made-up", heads=(2, 2), key_value_heads=(1, 1), mlps=(True, True)))
    sweep = made_up_sweep(edges, 2, 2, 20)
    noise = np.random.default_rng(1).normal(size=(len(edges), 20)) * 0.01
    effects = np.array([known.get(edges.label(i), 0.0) for i in range(len(edges))])[:, None] + noise
    return EdgeResults(made_up_sweep(edges, 2, 2, 20, patched=sweep.base + effects * (sweep.source - sweep.base)))


def test_paths_are_followed_back_along_the_largest_significant_edges():
    known = {"L1H1 → logits": 0.5, "L0H0 → L1KV0 v": -0.3, "input → L1KV0 v": 0.1, "input → L0H0 q": 0.2}
    assert demos.strongest_paths(made_up_edges(known), 1) == ["input → L0H0 q → L1H1 v → logits"]
    known |= {"L0 MLP → logits": 0.4, "L0H1 → L0 MLP": 0.3}
    edges = made_up_edges(known)
    assert demos.strongest_paths(edges, 2) == ["input → L0H0 q → L1H1 v → logits", "L0H1 → L0 MLP → logits"]
    for path in demos.strongest_paths(edges):
        path_patches(edges.graph, path)
    assert demos.strongest_paths(made_up_edges({"L1H1 → logits": 0.5})) == [], "a lone edge is no path"
    assert demos.strongest_paths(EdgeResults(made_up_sweep(edges.edges, 2, 2, 3))) == [], "three pairs tell nothing"


def test_the_largest_head_is_set_beside_its_edges():
    model = bundled()
    dataset = IOIDataset(model, 3, corruption="flip_subject")
    heads = HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset)
    edges = PathPatcher(model, show_progress=False).run_all_edges_experiment(dataset, senders="heads")
    own = [edge for edge in edges if edge.sender == "L1H0"]
    most = max(own, key=lambda edge: abs(edge.effect))
    total = sum(edge.effect for edge in own)
    assert demos.whole_and_parts(heads, edges) == (
        f"L1H0: {heads.top(1)[0].effect:.2f} as a whole; of its {len(own)} edges patched here, one by one, "
        f"{most.effect:.2f} at most ({most.label}), {total:.2f} in sum. "
        "Effects of edges need not add up to that of the head."
    )


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "gpt2-smal"], "TransformerLens knows no model 'gpt2-smal'"),
        (["--model", "./nowhere"], "nowhere holds no Hugging Face checkpoint"),
        (["--model", "nobody/nothing"], "cannot be reached.*load_model"),
        (["--model", ""], r"\. holds no Hugging Face checkpoint"),
        ([*TINY, "--pairs", "0"], "n_pairs is 0, expected at least 1"),
        (["--model", "tiny", "--device", "gpu"], r"the device 'gpu' cannot be used \(.*\): try 'cpu'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(script, options, message, tmp_path, capsys):
    assert script.main([*options, "--out", str(tmp_path)]) == 2
    complaint = [line for line in capsys.readouterr().err.splitlines() if re.search(message, line)]
    assert len(complaint) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_that_cannot_be_written_is_found_out_before_the_model_runs(script, tmp_path, capsys, monkeypatch):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    monkeypatch.setattr(demos, "load_model", None)  # loading would fail
    for folder in (taken, taken / "below"):
        assert script.main(["--out", str(folder)]) == 2
        captured = capsys.readouterr()
        assert re.search(rf"cannot write to --out {folder} \(.+\): give a folder that can be written", captured.err)
        assert len(captured.err.splitlines()) == 1 and not captured.out


@pytest.mark.parametrize(
    "options",
    [
        ["--corruption", "shuffle"],
        ["--direction", "up"],
        ["--patch-type", "w"],
        ["--pairs", "ten"],
        ["--top-k", "0"],
        ["--colour"],
    ],
)
def test_unknown_options_end_with_exit_code_two(options, capsys):
    with pytest.raises(SystemExit) as ended:
        head_demo.main(options)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_refusals_reach_the_shell(tmp_path):
    done = run_script("demo.py", "--model", "gpt2-smal", home=tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith("demo.py: TransformerLens knows no model 'gpt2-smal'")
    assert "Traceback" not in done.stderr


def test_a_corruption_that_breaks_nothing_is_called_that(tmp_path, capsys):
    code = demo.main([*TINY, "--corruption", "swap_order", "--out", str(tmp_path), "--quiet"])
    printed = capsys.readouterr()
    assert "barely differ" in printed.err and code in (0, 2)
    assert "Use a corruption that breaks the behaviour" in printed.err


@pytest.mark.slow
def test_demos_patch_the_same_layers(tmp_path, monkeypatch):
    drawn: list[LayerResults] = []
    draw = demos.create_full_report
    monkeypatch.setattr(
        demos, "create_full_report", lambda **given: drawn.append(given["layer_results"]) or draw(**given)
    )
    for script in SCRIPTS:
        assert script.main([*TINY, "--pairs", "2", "--out", str(tmp_path), "--quiet"]) == 0
    for others in drawn[1:]:
        assert list(drawn[0]) == list(others) and drawn[0].effects == others.effects


@pytest.mark.slow
def test_each_demo_s_report_has_what_the_one_s_before_had(tmp_path):
    parts = ("each edge", "each head", "each layer", "resid_pre at each position")
    for script, has in ((demo, parts[2:]), (head_demo, parts[1:]), (path_demo, parts), (circuit_demo, parts)):
        assert script.main([*TINY, "--pairs", "2", "--out", str(tmp_path), "--quiet"]) == 0
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert [part for part in parts if f">Effect of {part}" in page] == list(has)


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt, 130), (BrokenPipeError, 1)])
def test_a_user_who_has_seen_enough_gets_no_traceback(raised, code, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdout", os.fdopen(os.dup(1), "w"))  # a file of its own, which may be closed

    def interrupted(args):
        raise raised

    assert demos.guarded(interrupted, demos.arguments("").parse_args([])) == code
    assert len(capfd.readouterr().err.split()) == (2 if raised is KeyboardInterrupt else 0)
