"""Do results leave whole?  The long table against a plain loop, every file there and back, and what is printed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from activation_patching import summarize_results
from actpatch.core.sites import Patch, Site
from actpatch.results import files as result_files
from actpatch.results.answers import AnswerSet
from actpatch.results.baselines import warn_about_baselines
from actpatch.results.both import BothDirections
from actpatch.results.metric_values import MetricValues
from actpatch.results.positions import PositionResults
from actpatch.results.saved import load_results
from actpatch.results.shapes import HeadResults, LayerResults, SweepResults
from actpatch.results.sweep import Sweep
from head_patching import print_head_results
from test_suite.helpers.results import made_up_heads, made_up_layers, made_up_positions

PAIRS = 4
CLEAN = tuple(("<s>", f" clean{j}", ' "quoted", with comma', "\r\n", *[" long"] * j) for j in range(PAIRS))
CORRUPTED = tuple(("<s>", f" other{j}", ' "quoted", with comma', "é", *[" long"] * j) for j in range(PAIRS))
SET = AnswerSet(tuple(range(6)), (" a", " b", "c", ' "d', " e", " f"))
SITES = (
    Patch((Site("blocks.1.attn.hook_z", head=2),)),
    Patch((Site("hook_embed", position=-1),)),
    Patch((Site("blocks.0.hook_mlp_out", position=(0, 1, -2, 3)),)),
    Patch((Site("blocks.1.attn.hook_z", head=0, position=1), Site("blocks.1.attn.hook_z", head=1, position=1))),
    Patch((Site("blocks.0.attn.hook_q", head=3), Site("blocks.1.hook_attn_out", position=2))),
)


def values(name: str, seed: int, more_is_better: bool = True, **changes: Any) -> MetricValues:
    random = np.random.default_rng(seed)
    fields = {
        "patched": random.normal(size=(len(SITES), PAIRS)),
        "clean": random.normal(3, 0.3, PAIRS),
        "corrupted": random.normal(-3, 0.3, PAIRS),
    }
    return MetricValues(name, "nats" if seed else "", more_is_better, **{**fields, **changes})


def sweep_of(*measured: MetricValues, **changes: Any) -> Sweep:
    fields: dict[str, Any] = {
        "patches": SITES,
        "measured": measured or (values("logit difference", 0), idle_pair(), values("rank", 2, False)),
        "direction": "denoising",
        "model": "made-up",
        "n_layers": 2,
        "n_heads": 4,
        "n_key_value_heads": 4,
        "task": "IOI",
        "pair_indices": (7, 3, 0, 12),
        "clean_tokens": CLEAN,
        "corrupted_tokens": CORRUPTED,
        "groups": ("", "one", "other", "one"),
        "correct": (SET, AnswerSet((3,), (" he",)), SET, AnswerSet()),
        "versions": {"torch": "2.13.0"},
    }
    return Sweep(**{**fields, **changes})


def idle_pair() -> MetricValues:
    """A metric that one pair's corruption does not move."""
    return values("KL divergence", 1, False, clean=np.zeros(4), corrupted=np.array([2.0, 0.0, 1.0, 3.0]))


# --- several metrics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_what_a_sweep_says_is_of_the_selected_metric(direction: Any) -> None:
    sweep = sweep_of(direction=direction)
    assert sweep.metrics == ("logit difference", "KL divergence", "rank") and sweep.metric == "logit difference"
    for i, (asked, name) in enumerate([("logit_difference", "logit difference"), ("KL divergence", "KL divergence")]):
        shown, measured = sweep.by_metric(asked), sweep.measured[i]
        assert (shown.metric, shown.unit, shown.more_is_better) == (name, measured.unit, measured.more_is_better)
        for run in ("patched", "clean", "corrupted"):
            assert getattr(shown, run) is getattr(measured, run)
        base, source = (shown.corrupted, shown.clean) if direction == "denoising" else (shown.clean, shown.corrupted)
        usable = [True, i == 0, True, True]
        assert shown.usable.tolist() == usable
        mean = shown.patched[:, usable].mean(axis=1)
        expected = (mean - base[usable].mean()) / (source[usable].mean() - base[usable].mean())
        np.testing.assert_allclose(shown.effects, expected)
        assert np.isnan(shown.pair_effects).any(axis=0).tolist() == [not u for u in usable]
    assert sweep.by_metric("rank").by_metric("logit difference") == sweep


def test_a_pair_is_usable_whose_corruption_moves_the_metric_by_a_tenth_of_the_larger_one() -> None:
    clean, corrupted = np.array([10, -10, 9.2, 0.0]), np.array([8.9, -9.1, 10, 1e-7])
    sweep = sweep_of(values("logit difference", 0, clean=clean, corrupted=corrupted))
    assert sweep.usable.tolist() == [True, False, False, False]
    assert dataclasses.replace(sweep, min_relative_change=0.05).usable.tolist() == [True, True, True, False]


def test_results_of_every_shape_show_another_metric() -> None:
    for results in (made_up_heads(), made_up_layers(), made_up_positions()):
        first = results.sweep.measured[0]
        other = dataclasses.replace(first, name="KL divergence", more_is_better=False, patched=first.patched[::-1])
        both = type(results)(dataclasses.replace(results.sweep, measured=(first, other)))
        shown = both.by_metric("kl_divergence")
        assert type(shown) is type(results) and both.metrics == shown.metrics == ("logit difference", "KL divergence")
        alone = type(results)(dataclasses.replace(results.sweep, measured=(other,)))
        assert shown.to_dataframe().equals(both.to_dataframe()) and shown != both
        if isinstance(shown, PositionResults):
            np.testing.assert_array_equal(shown.matrix("mlp_out"), alone.matrix("mlp_out"))
        else:
            assert list(shown) == list(alone) and list(shown.top(3)) == list(alone.top(3))
        assert both.by_metric("logit difference") == both
        assert "and 1 more metric" in repr(both) and "KL divergence" in repr(shown)


def test_each_metric_names_the_pairs_that_it_leaves_out() -> None:
    with pytest.warns(UserWarning) as caught:
        warn_about_baselines(sweep_of(values("logit difference", 0), idle_pair()))
    assert len(caught) == 1
    told = str(caught[0].message)
    assert told.startswith("1 of 4 pairs have a clean and a corrupted KL divergence that barely differ")
    assert "pair 3 (clean +0.000, corrupted +0.000)" in told


def test_a_warning_of_baselines_is_short_and_says_each_remedy_once() -> None:
    clean = np.array([1.0, 1.0, 2.0, 1.0])
    one_way = values("my metric", 0, clean=clean, corrupted=np.array([1.0, 3.0, 4.0, 2.0]))
    with pytest.warns(UserWarning) as caught:
        warn_about_baselines(sweep_of(one_way))
    told = str(caught[0].message)
    assert told.count("Use a corruption that breaks the behaviour") == 1 and len(told) < 450
    assert "declare more_is_better=False" in told and "pair 7 (clean +1.000, corrupted +1.000)" in told
    same = dataclasses.replace(one_way, corrupted=clean)
    with pytest.warns(UserWarning) as caught:
        warn_about_baselines(sweep_of(same))
    told = str(caught[0].message)
    assert told.count("Use a corruption that breaks the behaviour") == 1 and len(told) < 260
    assert told.startswith(
        "4 of 4 pairs have a clean and a corrupted my metric that barely differ, so no effect: pair 7 ("
    )
    assert "corrupted +1.000), 3, 0, 12. Use" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measured": ()}, "metric number 0 of 0 cannot be selected"),
        ({"selected": 3}, "metric number 3 of 3"),
        ({"pair_indices": (1, 2)}, r"patched has shape \(5, 4\), expected \(patches, pairs\) = \(5, 2\)"),
        ({"clean_tokens": CLEAN[1:]}, r"clean_tokens has 3 entries, expected one per pair \(4\)"),
        ({"direction": "sideways"}, "direction 'sideways' is unknown"),
    ],
)
def test_sweeps_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep_of(**changes)


def test_results_are_equal_where_every_number_is() -> None:
    sweep = sweep_of()
    results, again = SweepResults(sweep), SweepResults(copy.deepcopy(sweep))
    assert (results == again, results != again) == (True, False)
    patched = sweep.patched.copy()
    patched[2, 1] = np.nextafter(patched[2, 1], 1)
    off = dataclasses.replace(sweep.measured[0], patched=patched)
    for other in (
        dataclasses.replace(sweep, measured=(off, *sweep.measured[1:])),
        dataclasses.replace(sweep, measured=sweep.measured[::-1]),
        dataclasses.replace(sweep, task="IOI (another)"),
        sweep.by_metric("rank"),
    ):
        assert (results == SweepResults(other), results != SweepResults(other)) == (False, True)
    for made in (made_up_heads, made_up_layers, made_up_positions):
        assert (made() == made(), made() != made(), made() == SweepResults(made().sweep)) == (True, False, False)


# --- the long table ----------------------------------------------------------------------------------------------


def rows_by_hand(sweep: Sweep) -> Iterator[dict[str, Any]]:
    for i, patch in enumerate(sweep.patches):
        for j, pair in enumerate(sweep.pair_indices):
            for name in sweep.metrics:
                shown = sweep.by_metric(name)
                layer, head, hook_point, position = {
                    0: (1, 2, "blocks.1.attn.hook_z", None),
                    1: (None, None, "hook_embed", len(CLEAN[j]) - 1),
                    2: (0, None, "blocks.0.hook_mlp_out", (0, 1, len(CLEAN[2]) - 2, 3)[j]),
                    3: (1, None, "blocks.1.attn.hook_z", 1),
                    4: (None, None, None, None),
                }[i]
                effect = (shown.patched[i, j] - shown.base[j]) / (shown.source[j] - shown.base[j])
                yield {
                    "site": patch.label,
                    "hook_point": hook_point,
                    "layer": layer,
                    "head": head,
                    "neuron": None,
                    "sender": None,
                    "position": position,
                    "position_name": None,
                    "token": None if position is None else CLEAN[j][position],
                    "corrupted_token": None if position is None else CORRUPTED[j][position],
                    "pair": pair,
                    "template": "",
                    "group": ("", "one", "other", "one")[j],
                    "correct": (several := ' a| b|c| "d and 2 more', " he", several, "")[j],
                    "incorrect": "",
                    "metric": name,
                    "unit": shown.unit,
                    "direction": sweep.direction,
                    "source": "the other run",
                    "noise": "",
                    "path": "",
                    "window": 1,
                    "estimate": "",
                    "clean": shown.clean[j],
                    "corrupted": shown.corrupted[j],
                    "patched": shown.patched[i, j],
                    "effect": effect if shown.usable[j] else np.nan,
                    "usable": shown.usable[j],
                }


@pytest.mark.filterwarnings("ignore:divide by zero|invalid value")
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_the_long_table_is_that_of_a_plain_loop(direction: Any) -> None:
    sweep = sweep_of(direction=direction)
    table = sweep.to_dataframe()
    by_hand = pd.DataFrame(list(rows_by_hand(sweep))).astype(table.dtypes.to_dict())
    pd.testing.assert_frame_equal(table, by_hand, check_exact=True)
    assert [str(table[name].dtype) for name in ("layer", "head", "position", "pair")] == [*["Int64"] * 3, "int64"]
    assert str(table["effect"].dtype) == "float64" and str(table["usable"].dtype) == "bool"
    assert len(table) == len(SITES) * PAIRS * 3


def test_the_table_of_nothing_has_the_same_columns() -> None:
    empty = values("rank", 0, patched=np.zeros((0, PAIRS)))
    table = sweep_of(empty, patches=()).to_dataframe()
    assert len(table) == 0 and table.dtypes.equals(sweep_of().to_dataframe().dtypes)


def test_pairs_of_a_group_have_their_own_results() -> None:
    sweep = sweep_of(selected=2)
    by_group = SweepResults(sweep).by_group()
    assert list(by_group) == ["", "one", "other"]
    one = by_group["one"].sweep
    assert (one.pair_indices, one.clean_tokens, one.groups) == ((3, 12), CLEAN[1::2], ("one", "one"))
    assert one.metric == "rank" and one.patches[2].sites[0].position == (1, 3) and one.patches[:2] == SITES[:2]
    for name in sweep.metrics:
        whole, part = sweep.by_metric(name), one.by_metric(name)
        for run in ("clean", "corrupted"):
            np.testing.assert_array_equal(getattr(part, run), getattr(whole, run)[1::2])
        np.testing.assert_array_equal(part.patched, whole.patched[:, 1::2])
    table, rest = (results.to_dataframe() for results in (SweepResults(sweep), by_group["one"]))
    of_group = table[table["group"] == "one"].reset_index(drop=True)
    pd.testing.assert_frame_equal(*(each.drop(columns="site") for each in (rest, of_group)))  # it lists positions
    both = BothDirections(SweepResults(sweep), SweepResults(sweep_of(direction="noising"))).by_group()["other"]
    assert (both.denoising.sweep.pair_indices, both.noising.sweep.direction) == ((0,), "noising")


def test_sweeps_of_pairs_without_templates_and_groups_have_empty_ones() -> None:
    assert sweep_of(groups=()).groups == sweep_of().templates == ("",) * PAIRS
    with pytest.raises(ValueError, match="groups has 1 entries, expected one per pair"):
        sweep_of(groups=("one",))


# --- files -------------------------------------------------------------------------------------------------------


def not_finite() -> Sweep:
    patched = np.random.default_rng(0).normal(size=(len(SITES), PAIRS)) * 1e-300
    patched[0] = np.nan, np.inf, -np.inf, -0.0
    return sweep_of(values("log-probability", 1, patched=patched), values("rank", 2, False), selected=1)


def test_json_is_read_back_equal_in_every_number(tmp_path: Path) -> None:
    positions = Patch((Site("hook_embed", position=tuple(np.arange(PAIRS))),))  # NumPy's integers
    for sweep in (sweep_of(), not_finite(), sweep_of(patches=(*SITES[:-1], positions))):
        results = SweepResults(sweep)
        loaded = load_results(results.save(tmp_path / "results.json"))
        assert loaded == results and loaded.sweep.metric == results.sweep.metric
        for before, after in zip(sweep.measured, loaded.sweep.measured):
            assert before.patched.tobytes() == after.patched.tobytes() and after.patched.dtype == np.float64
    assert isinstance(loaded.sweep.patches[2].sites[0].position, tuple)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(SweepResults(not_finite()).save(tmp_path / "results.json").read_text(), parse_constant=refuse)


@pytest.mark.parametrize("results", [made_up_heads(), made_up_layers(), made_up_positions()])
def test_every_shape_is_read_back_as_itself(results: Any, tmp_path: Path) -> None:
    loaded = load_results(str(results.save(str(tmp_path / "results.json"))))
    assert type(loaded) is type(results) and loaded == results and repr(loaded) == repr(results)


@pytest.mark.filterwarnings("ignore:The .float_precision. argument is deprecated")
def test_csv_is_read_back_equal(tmp_path: Path) -> None:
    table = sweep_of().to_dataframe()
    path = SweepResults(sweep_of()).to_csv(tmp_path / "results.csv")
    read = pd.read_csv(path, float_precision="round_trip", dtype=table.dtypes.to_dict())
    for name in table:  # CSV does not tell a missing text from an empty one
        texts = table[name].dtype == "string"
        found, expected = (column.fillna("") if texts else column for column in (read[name], table[name]))
        pd.testing.assert_series_equal(found, expected, check_exact=True)


def test_parquet_is_read_back_equal(tmp_path: Path) -> None:
    for sweep in (sweep_of(), not_finite()):
        path = SweepResults(sweep).to_parquet(str(tmp_path / "results.parquet"))
        pd.testing.assert_frame_equal(pd.read_parquet(path), sweep.to_dataframe(), check_exact=True)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_files, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"Parquet needs the package pyarrow, .* pip install pyarrow, or write CSV"):
        SweepResults(sweep_of()).to_parquet(tmp_path / "results.parquet")
    assert not list(tmp_path.iterdir())


WRITERS = ("save", "to_csv", "to_parquet")


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("target", ["missing/results", "file/results", "folder", "x" * 300])
def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, write: str, target: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write .*: nothing was changed; give a file name in a folder"):
        getattr(SweepResults(sweep_of()), write)(tmp_path / target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "mine" and not list((tmp_path / "folder").iterdir())


@contextlib.contextmanager
def full_disk(free: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    resource = pytest.importorskip("resource", reason="this system limits no file sizes")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", WRITERS)
def test_a_failure_half_way_leaves_the_good_file_and_nothing_else(tmp_path: Path, write: str) -> None:
    path = tmp_path / "results"
    getattr(SweepResults(sweep_of()), write)(path)
    good = path.read_bytes()
    with full_disk(100), pytest.raises(OSError, match=r"cannot write .*File too large"):
        getattr(SweepResults(not_finite()), write)(path)
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]
    getattr(SweepResults(not_finite()), write)(path)
    assert path.read_bytes() != good and list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_mode_and_a_link_its_target(tmp_path: Path) -> None:
    results, target, link = SweepResults(sweep_of()), tmp_path / "target.json", tmp_path / "link.json"
    results.save(target)
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    target.chmod(0o640)
    link.symlink_to(target)
    SweepResults(not_finite()).save(link)
    assert link.is_symlink() and load_results(target) == SweepResults(not_finite())
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="nothing is write-protected from this user")
def test_a_write_protected_file_is_left_alone(tmp_path: Path) -> None:
    path = SweepResults(sweep_of()).save(tmp_path / "results.json")
    path.chmod(0o440)
    with pytest.raises(OSError, match="it is write-protected"):
        SweepResults(not_finite()).save(path)
    assert load_results(path) == SweepResults(sweep_of())


def test_what_was_written_does_not_hang_on_its_label(tmp_path: Path) -> None:
    named = sweep_of(source_of_values="zero")
    ablated = sweep_of(source_kind="ablation", source_of_values="the other run")
    assert named.intervention == "clean into corrupted" and named.question.endswith("restore the behaviour?")
    assert ablated.intervention == ablated.question == "the other run into corrupted"
    assert load_results(SweepResults(ablated).save(tmp_path / "results.json")).sweep == ablated


def test_answers_that_many_pairs_have_are_stored_once(tmp_path: Path) -> None:
    sweep = sweep_of(incorrect=(AnswerSet((9,), (" x",)), *[SET] * 3))
    path = SweepResults(sweep).save(tmp_path / "results.json")
    (stored,) = json.loads(path.read_text())["sweeps"]
    assert [answers["ids"] for answers in stored["answers"]] == [[0, 1, 2, 3, 4, 5], [3], [], [9]]
    assert (stored["correct"], stored["incorrect"]) == ([0, 1, 0, 2], [3, 0, 0, 0])
    loaded = load_results(path).sweep
    assert loaded == sweep and loaded.correct[0] is loaded.incorrect[3]


def test_files_that_hold_no_results_are_named(tmp_path: Path) -> None:
    path = SweepResults(sweep_of()).save(tmp_path / "results.json")
    stored = json.loads(path.read_text())
    (sweep,) = stored["sweeps"]
    assert stored["format"] == 10
    for changes, message in (
        ({"format": 4}, "has result format 4, this version reads formats 8, 9 and 10: read it with the version that"),
        ({"format": 11}, "has result format 11, this version reads formats 8, 9 and 10"),
        (
            {"kind": "CircuitResults"},
            "holds 'CircuitResults', expected one of LayerResults, .*: read it with the version",
        ),
        ({"sweeps": [{}]}, "is damaged"),
        ({"sweeps": []}, "is damaged .*0 sweeps, expected one, or one of each direction"),
        ({"sweeps": [{**sweep, "direction": "up"}]}, "is damaged .*direction 'up' is unknown"),
        ({"sweeps": [{**sweep, "source_kind": "up"}]}, "is damaged .*source_kind 'up' is unknown: expected"),
        ({"sweeps": [{**sweep, "later": 1}]}, "is damaged .*later"),
        ({"sweeps": [{**sweep, "numbers": [99]}]}, "is damaged"),
        ({"sweeps": [{**sweep, "measured": [{**sweep["measured"][0], "clean": [1]}]}]}, "is damaged"),
    ):
        path.write_text(json.dumps({**stored, **changes}))
        with pytest.raises(ValueError, match=rf"results\.json {message}"):
            load_results(path)
    SweepResults(sweep_of()).to_parquet(path)
    with pytest.raises(ValueError, match=r"results\.json holds no saved patching results"):
        load_results(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_results(tmp_path / "nowhere.json")


# --- printing ----------------------------------------------------------------------------------------------------


NAMES = ("logit difference", "log-probability of either of the right answers", "KL divergence", "rank", "accuracy", "x")


def with_metrics(results: Any, names: tuple[str, ...]) -> Any:
    random = np.random.default_rng(3)
    shape = results.sweep.patched.shape
    measured = tuple(
        dataclasses.replace(results.sweep.measured[0], name=name, patched=random.normal(0, 40 * (i + 1), shape))
        for i, name in enumerate(names)
    )
    return type(results)(dataclasses.replace(results.sweep, measured=measured))


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[1:2], NAMES[:2], NAMES])
@pytest.mark.parametrize("kind", [made_up_layers, made_up_heads])
def test_tables_are_aligned_within_80_columns(kind: Any, names: tuple[str, ...], capsys: Any) -> None:
    results = with_metrics(kind(), names)
    show = summarize_results if isinstance(results, LayerResults) else print_head_results
    show(results, top_k=4)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    tables = [line for line in lines if line.startswith(("blocks.", "L0H", "L1H", "L2H", "L3H"))]
    assert len(tables) % 4 == 0
    n_columns = 0
    for i in range(0, len(tables), 4):
        ends = [[n.end() for n in re.finditer(r"[+-](\d+\.\d{3}|inf)\b", line)] for line in tables[i : i + 4]]
        assert all(at == ends[0] for at in ends), "the numbers of a column do not stand below each other"
        n_columns += len(ends[0])
    assert n_columns == (4 if len(names) == 1 else 3 * len(names)), "an effect and both ends of its interval each"


def test_a_column_per_metric_shows_its_effects_largest_of_the_selected_first(capsys: Any) -> None:
    results = with_metrics(made_up_layers(), NAMES[:3])
    for name in ("logit_difference", "kl_divergence"):
        chosen = results.by_metric(name)
        summarize_results(chosen, top_k=3)
        printed = capsys.readouterr().out
        assert f"the largest on {chosen.sweep.metric} first" in printed
        effects: dict[str, list[str]] = {}
        for line in printed.splitlines():
            if line.startswith("blocks."):
                hook_point, *cells = line.split()
                effects.setdefault(hook_point, []).extend(c for c in cells if re.fullmatch(r"[+-]\d+\.\d{3}", c))
        assert list(effects) == [hook_point for hook_point, _ in chosen.top(3)]
        for hook_point, found in effects.items():
            expected = [results.by_metric(metric).effects[hook_point] for metric in NAMES[:3]]
            assert found == [f"{effect:+.3f}" for effect in expected]


def test_the_baselines_of_every_metric_are_printed(capsys: Any) -> None:
    heads = made_up_heads()
    kl = dataclasses.replace(
        heads.sweep.measured[0], name="KL divergence", unit="nats", more_is_better=False, clean=np.zeros(5),
        corrupted=np.array([0.0, 1, 1, 1, 1]),
    )  # fmt: skip
    print_head_results(HeadResults(dataclasses.replace(heads.sweep, measured=(*heads.sweep.measured, kl))))
    printed = " ".join(capsys.readouterr().out.split())
    first = heads.sweep.measured[0]
    for said in (
        f"logit difference: clean {first.clean.mean():+.3f}, corrupted {first.corrupted.mean():+.3f} logits, mean of 5",
        "KL divergence: clean +0.000, corrupted +0.800 nats (less is better), mean of 5 pairs 1 of them left out",
    ):
        assert said in printed
