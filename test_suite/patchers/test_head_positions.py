"""Heads at single positions are patched where they say, and one sweep has them all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from activation_patching import BothDirections, GaussianNoise, Zero
from actpatch import HeadPositionPatchingResult, HeadPositionResults, print_head_results, summarize_results
from actpatch.tasks.encoding import encode_pairs
from head_patching import HeadPatcher
from test_suite.helpers.closeness import EXACT, allowed
from test_suite.helpers.models import head_count, model_parameters, small_model
from test_suite.helpers.prompts import Words
from test_suite.helpers.refusals import refused
from test_suite.helpers.thinned import thinned

MODELS = model_parameters("hooked:grouped", "bridge+:gpt2", slow=["hooked:learned", "bridge:llama"])
POSITIONS = ["A", -2, ["A", "B"], "END"]

pytestmark = pytest.mark.filterwarnings("ignore:.*(check_dataset|barely differ|nothing is significant)")


def heads_on(name: str) -> HeadPatcher:
    return HeadPatcher(small_model(name), show_progress=False)


def logits_of(model: Any, tokens: Tensor, hooks: list[Any]) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(tokens[None], fwd_hooks=hooks)[0]


def recorded_by_hand(model: Any, tokens: Tensor, hook_point: str) -> Tensor:
    found: list[Tensor] = []
    logits_of(model, tokens, [(hook_point, lambda value, hook: found.append(value.clone()))])
    return found[0]


def patched_by_hand(model: Any, base: Tensor, source: Tensor, hook_point: str, head: int, at: list[int]) -> Tensor:
    """Logits of one run in which one head's activation at these positions is that of another run."""

    def write(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for position in at:
            where = (0, head, position) if hook_point.endswith("pattern") else (0, position, head)
            value[where] = source[where]
        return value

    return logits_of(model, base, [(hook_point, write)])


def places(mixed: Words, pair: int, length: int) -> dict[int | str, list[int]]:
    """Where the positions lie in a pair, counted from the front."""
    named = {name: at % length for name, at in mixed.names[pair].items()}
    return {"A": [named["A"]], -2: [length - 2], "A + B": [named["A"], named["B"]], "END": [length - 1]}


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "patch_type"), thinned(MODELS, ["output", "q", "k", "v", "pattern"]))
def test_every_head_at_every_position_is_what_hooks_by_hand_give(name: str, patch_type: str, mixed: Words) -> None:
    model = small_model(name)
    pairs = encode_pairs(model, mixed, [0, 1])
    both = heads_on(name).run_all_heads_experiment(
        mixed, patch_type, positions=POSITIONS, direction="both", pair_indices=[0, 1]
    )
    hook_points = [
        f"blocks.{i}.attn.hook_{'z' if patch_type == 'output' else patch_type}" for i in range(model.cfg.n_layers)
    ]
    limit = allowed(model, pairs.clean)
    for results in (both.denoising, both.noising):
        assert results.positions == ["A", -2, "A + B", "END"]
        assert len(results) == len(hook_points) * head_count(model, hook_points[0]) * len(POSITIONS)
        runs = (pairs.corrupted, pairs.clean)
        for pair, (base, source) in enumerate(zip(*(runs if results is both.denoising else runs[::-1]))):
            recorded = [recorded_by_hand(model, source, hook_point) for hook_point in hook_points]
            at = places(mixed, pair, len(base))
            for number, item in enumerate(results):
                written, hook_point = recorded[item.layer], hook_points[item.layer]
                logits = patched_by_hand(model, base, written, hook_point, item.head, at[item.position])
                expected = float(logits[-1, 2 + pair] - logits[-1, 8 + pair])
                assert abs(results.sweep.patched[number, pair] - expected) <= limit, (item.label, pair)


@pytest.mark.parametrize("name", MODELS)
def test_a_position_of_many_is_that_position_alone(name: str, mixed: Words) -> None:
    patcher = heads_on(name)
    for patch_type in ("output", "k"):
        together = patcher.run_all_heads_experiment(mixed, patch_type, positions=POSITIONS, layers=[1, -1])
        for asked, position in zip(POSITIONS, together.positions, strict=True):
            alone = patcher.run_all_heads_experiment(mixed, patch_type, position=asked, layers=[1, -1])
            at = together.at(position)
            np.testing.assert_allclose(at.sweep.patched, alone.sweep.patched, atol=EXACT, rtol=0)
            np.testing.assert_allclose(together.matrix(position), alone.matrix(), atol=1e-9, rtol=0)
            assert [head.label for head in at] == [head.label for head in alone]


def test_all_positions_come_from_one_recording(mixed: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    patcher = heads_on("bridge+:gpt2")
    runner, recordings = type(patcher.patcher.engine.runner), []
    record = runner.record

    def note(self: Any, *args: Any, **options: Any) -> Any:
        recordings.append(len(args[0]))
        return record(self, *args, **options)

    monkeypatch.setattr(runner, "record", note)
    patcher.run_all_heads_experiment(mixed, position="A")
    alone = list(recordings)
    recordings.clear()
    patcher.run_all_heads_experiment(mixed, positions=["A", "B", "END", -3])
    assert recordings == alone


def test_zeros_noise_metrics_and_chosen_pairs_are_those_of_single_positions(mixed: Words) -> None:
    patcher = heads_on("bridge+:gpt2")
    for options in (
        {"source": Zero()},
        {"noise": GaussianNoise("A", samples=2)},
        {"metrics": ["rank", "kl_divergence"], "pair_indices": [2, 0]},
    ):
        together = patcher.run_all_heads_experiment(mixed, "v", positions=["B", "END"], **options)
        for position in ("B", "END"):
            alone = patcher.run_all_heads_experiment(mixed, "v", position=position, **options).sweep
            found = together.at(position).sweep
            assert found.metrics == alone.metrics and found.pair_indices == alone.pair_indices
            assert (found.source_of_values, found.noise) == (alone.source_of_values, alone.noise)
            for one, other in zip(found.measured, alone.measured, strict=True):
                np.testing.assert_allclose(one.patched, other.patched, atol=EXACT, rtol=0)


def test_results_say_layer_head_and_position(mixed: Words, capsys: pytest.CaptureFixture[str]) -> None:
    patcher = heads_on("bridge+:gpt2")
    results = patcher.run_all_heads_experiment(mixed, positions=POSITIONS)
    assert isinstance(results, HeadPositionResults) and results.positions == ["A", -2, "A + B", "END"]
    assert [(r.layer, r.head, r.position) for r in results[:5]] == [(0, 0, p) for p in results.positions] + [
        (0, 1, "A")
    ]
    assert [r.label for r in results[:3]] == ["L0H0 @A", "L0H0 @-2", "L0H0 @A + B"] == results.labels[:3]
    table = results.matrix()
    assert list(table.columns) == results.positions and table.index.names == ["layer", "head"]
    assert table.to_numpy().ravel().tolist() == results.sweep.effects.tolist()
    top = results.top(3)
    assert isinstance(top, HeadPositionResults) and isinstance(top[0], HeadPositionPatchingResult)
    assert abs(top[0].effect) == np.nanmax(np.abs(table.to_numpy()))
    important = patcher.find_important_heads(results, 0.01)
    assert [r.label for r in important] == [r.label for r in results.top(len(results)) if abs(r.effect) >= 0.01]
    frame = results.to_dataframe()
    assert set(frame["position_name"].dropna()) == {"A", "-2", "END"}
    for show in (print_head_results, summarize_results):
        capsys.readouterr()
        show(results, top_k=2)
        printed = capsys.readouterr().out
        assert all(f"{r.label} " in printed for r in results.top(2)) and "site (output)" in printed
        assert f"({len(results) - 2} more with smaller effects)" in printed
    assert top[0].label in results._repr_html_()


def test_both_directions_are_read_together_by_position(mixed: Words) -> None:
    both = heads_on("bridge+:gpt2").run_all_heads_experiment(mixed, positions=["A", "END"], direction="both")
    assert isinstance(both, BothDirections)
    assert both.reading()["position"].tolist()[:2] == ["A", "END"]


def test_key_value_heads_are_named_and_counted(mixed: Words) -> None:
    results = heads_on("bridge:llama").run_all_heads_experiment(mixed, "k", positions=["A", "END"])
    sweep = results.sweep
    assert sweep.n_key_value_heads < sweep.n_heads and results[0].label == "L0KV0 @A"
    assert results.matrix().shape == (sweep.n_layers * sweep.n_key_value_heads, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "A", "positions": ["B"]}, "position and positions were both given"),
        ({"positions": []}, "positions is empty"),
        ({"positions": ["A", []]}, "positions is empty"),
        ({"positions": ["A", "A"]}, "positions names 'A' twice: a map has one column for each"),
        ({"positions": [["A", "A"]]}, r"positions names 'A' twice: A \+ A are patched together"),
        ({"positions": ["S2"]}, "3 of 3 pairs have no position named 'S2'"),
        ({"positions": [1.5]}, "position 1.5 is not an integer"),
        ({"positions": [99]}, "99 is out of range"),
        ({"patch_type": "w", "positions": ["A"]}, r"patch_type 'w' is unknown: .*\(or z for output\)"),
    ],
)
def test_positions_that_cannot_be_patched_are_refused(mixed: Words, options: dict[str, Any], message: str) -> None:
    with refused(message):
        heads_on("bridge+:gpt2").run_all_heads_experiment(mixed, **options)


def test_a_position_of_results_that_was_not_patched_is_refused(mixed: Words) -> None:
    results = heads_on("bridge+:gpt2").run_all_heads_experiment(mixed, positions=["A", -1])
    with pytest.raises(ValueError, match=r"position 'END' was not patched: expected one of 'A', -1"):
        results.matrix("END")
    assert results.matrix(-1).shape == (3, 4)


def test_z_is_another_name_of_output(mixed: Words) -> None:
    patcher = heads_on("bridge+:gpt2")
    for options in ({}, {"positions": ["A"]}):
        one, other = (patcher.run_all_heads_experiment(mixed, name, **options) for name in ("z", "output"))
        assert one == other and one.patch_type == one[0].patch_type == "output"


def test_several_positions_are_one_column_of_a_map_of_layers_too(mixed: Words) -> None:
    patcher = heads_on("bridge+:gpt2").patcher
    results = patcher.run_position_experiment(mixed, ["z", "mlp_out"], positions=[["A", "END"], "B"])
    assert results.names == ["A + END", "B"]
    for component in ("z", "mlp_out"):
        together = patcher.run_patching_experiment(mixed, component, position=["A", "END"])
        np.testing.assert_allclose(results.matrix(component)[:, 0], list(together.effects.values()), atol=1e-9)


def test_all_heads_patched_together_are_called_so(mixed: Words, capsys: pytest.CaptureFixture[str]) -> None:
    results = heads_on("bridge+:gpt2").patcher.run_position_experiment(mixed, ["z", "mlp_out"], positions=["A"])
    assert results.labels[0] == "L0 z (all heads) @A" and "L0 mlp_out @A" in results.labels
    assert set(results.to_dataframe()["site"]) == set(results.labels)
    summarize_results(results, top_k=6)
    assert "L2 z (all heads) @A" in capsys.readouterr().out
    assert results.of_all_heads == ["z"]
