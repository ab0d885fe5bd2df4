"""Edges, paths and senders under every setting of an experiment, against a hooked run of one prompt for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from activation_patching import GaussianNoise
from actpatch.core.edge_patches import GraphPatches, edge_patches
from actpatch.core.path_patches import head_paths, path_patches
from actpatch.core.sites import Site
from actpatch.engine import memory, runs
from actpatch.engine.runs import Runs
from actpatch.interventions.sources import Mean, References, Resample, Zero
from actpatch.metrics.base import AnswerSequences
from actpatch.metrics.registry import NAMED_METRICS
from actpatch.models.graph import graph_of
from actpatch.tasks.encoding import EncodedPairs
from test_suite.engine.test_aligned import NAMES
from test_suite.engine.test_edges import EXACT, some
from test_suite.engine.test_left_as_found import assert_same_state, state_of
from test_suite.helpers.edges import edge_model
from test_suite.helpers.models import (
    HAS_HOOKED,
    everything_metric,
    fresh_model,
    last_position_metric,
    model_parameters,
    token_pairs,
)
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.thinned import thinned
from test_suite.oracles.aligned import partners_of
from test_suite.oracles.edges import activations
from test_suite.oracles.graph_patches import logits_of_patches, mean_activations
from test_suite.oracles.plain import source_and_base
from test_suite.oracles.sources import noise_by_hand

DIRECTIONS: tuple[Any, ...] = ("denoising", "noising")
PLAIN = "hooked:learned" if HAS_HOOKED else "bridge:gpt2"
MODELS = model_parameters(
    "hooked:learned", "hooked:grouped", "bridge:gpt2", slow=("hooked:parallel", "bridge:llama", "bridge+:neox")
)
KINDS = ("edges", "paths", "heads")
THINNED = thinned(MODELS, KINDS)
OF_PLAIN = model_parameters(PLAIN)


def pairs() -> EncodedPairs:
    """Of three lengths, with other first changes."""
    return token_pairs([9, 7, 10], [(2, 4), (3,), (1, 6)])


def patches_of(name: str, kind: str, n_edges: int = 12, places: Any = None) -> GraphPatches:
    """Some edges of every kind of receiver; paths of one to three steps; heads that send to several readers."""
    graph = graph_of(edge_model(name))
    if kind == "edges":
        edges = edge_patches(graph) if places is None else edge_patches(graph, places=places)
        return edges.taken(some(edges, n_edges))
    if kind == "paths":
        return path_patches(graph, ["L0H1 → L2H0 q", "input → L0H3 k → L1H2 v → L2 MLP", "m0 → L1H1 q → logits"])
    own = "KV0" if graph.is_grouped else "H0"
    receivers = ["L2H1 q", f"L2{own} k", f"L2{own} v", "L1 MLP"]
    return head_paths(graph, receivers, "mlps", *([] if places is None else [places]))


def by_hand(
    model: Any,
    patches: GraphPatches,
    pairs: EncodedPairs,
    metric: Any,
    direction: str,
    at: Sequence[Sequence[Sequence[int] | None]] | None = None,
) -> np.ndarray:
    """The metric of each patch on each pair. `at` says for each pair and place at which positions."""
    source, base = source_and_base(pairs, direction)
    found = np.empty((len(patches), len(pairs)))
    for pair in range(len(pairs)):
        where = (None,) if at is None else at[pair]
        logits = logits_of_patches(model, patches, base[pair], source[pair], at=where)
        found[:, pair] = [measured(metric, one, pair) for one in logits]
    return found


def measured(metric: Any, logits: Tensor, pair: int) -> float:
    seen = logits[None] if metric.reads_all_positions else logits[None, -1:]
    return float(metric.measure(seen if metric.tokens is None else seen[..., metric.tokens], torch.tensor([pair]))[0])


def assert_alike(found: np.ndarray, expected: np.ndarray, base: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=EXACT, rtol=0)
    assert np.abs(found - base).max() > 1e-4, "the patches move too little"


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "kind"), THINNED)
def test_both_directions_come_from_one_recording(name: str, kind: str) -> None:
    model, patches, metric = edge_model(name), patches_of(name, kind), last_position_metric(3)
    both = engine_on(model).sweeps(pairs(), dict.fromkeys(DIRECTIONS, patches), [metric])
    for direction, found in zip(DIRECTIONS, both):
        base = found.corrupted[0] if direction == "denoising" else found.clean[0]
        assert_alike(found.patched[0], by_hand(model, patches, pairs(), metric, direction), base)
        alone = engine_on(model).sweep(pairs(), patches, [metric], direction)
        np.testing.assert_allclose(found.patched, alone.patched, atol=EXACT, rtol=0)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "kind"), THINNED)
def test_metrics_that_read_all_positions(name: str, kind: str) -> None:
    model, patches, everything = edge_model(name), patches_of(name, kind), everything_metric(3)
    found = engine_on(model).sweep(pairs(), patches, [everything, last_position_metric(3)])
    assert_alike(found.patched[0], by_hand(model, patches, pairs(), everything, "denoising"), found.corrupted[0])
    last = by_hand(model, patches, pairs(), last_position_metric(3), "denoising")
    np.testing.assert_allclose(found.patched[1], last, atol=EXACT, rtol=0)


PLACES = (
    (Site("", position=(4, 3, 6), position_name="one"),),
    (Site("", position=-1),),
    (Site("", position=((2, 5), (3, 4), (6,)), position_name="span"), Site("", position=-2)),
    (Site("", position=0),),
)
"""A position that is another one in each pair, the last one, a span together with the last but one, and one before any
change."""
WHERE = [
    [[4], [8], [2, 5, 7], [0]],
    [[3], [6], [3, 4, 5], [0]],
    [[6], [9], [6, 8], [0]],
]


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "direction"), thinned(MODELS, DIRECTIONS))
def test_edges_at_positions(name: str, direction: Any) -> None:
    model, metric = edge_model(name), last_position_metric(3)
    patches = patches_of(name, "edges", 20, PLACES)
    found = engine_on(model).sweep(pairs(), patches, [metric], direction)
    base = found.corrupted[0] if direction == "denoising" else found.clean[0]
    assert_alike(found.patched[0], by_hand(model, patches, pairs(), metric, direction, WHERE), base)
    columns = patches.columns  # type: ignore[attr-defined]
    assert {*columns.tolist()} == {0, 1, 2, 3}
    assert (found.patched[0, columns == 3] == base).all(), "nothing has changed at the first token"


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "column"), thinned(MODELS, range(3)))
def test_heads_that_send_at_positions(name: str, column: int) -> None:
    model, metric = edge_model(name), everything_metric(3)
    patches = patches_of(name, "heads", places=[PLACES[column]])
    found = engine_on(model).sweep(pairs(), patches, [metric])
    where = [[of_pair[column]] for of_pair in WHERE]
    assert_alike(found.patched[0], by_hand(model, patches, pairs(), metric, "denoising", where), found.corrupted[0])


@pytest.mark.quick(1)
@pytest.mark.parametrize("source", [Zero(), Mean(), Mean(run="clean"), Resample(seed=3), Resample(samples=2)], ids=str)
@pytest.mark.parametrize(("name", "kind"), thinned(OF_PLAIN, KINDS))
def test_what_ablations_write(name: str, kind: str, source: Any) -> None:
    model, metric, patches = edge_model(name), last_position_metric(4), patches_of(name, kind)
    alike = token_pairs([8, 8, 8, 8], [(3,), (2, 5), (4,), (1,)])
    references = source.references(alike)
    found = engine_on(model).sweep(alike, patches, [metric], "noising", references=references)
    expected = ablated_by_hand(model, patches, alike, metric, references)
    assert_alike(found.patched[0], expected, found.clean[0])


def ablated_by_hand(
    model: Any, patches: GraphPatches, pairs: EncodedPairs, metric: Any, references: References
) -> np.ndarray:
    found = np.zeros((len(patches), len(pairs)))
    for number, group in enumerate(references.of_pair):
        pair = number // references.samples
        base = pairs.clean[pair]
        held = [activations(model, prompt) for prompt in references.groups[group]]
        written = mean_activations(held, activations(model, base))
        logits = logits_of_patches(model, patches, base, written)
        found[:, pair] += [measured(metric, one, pair) / references.samples for one in logits]
    return found


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "kind"), thinned(MODELS[::2], KINDS))
def test_noise(name: str, kind: str) -> None:
    model, metric, patches = edge_model(name), last_position_metric(2), patches_of(name, kind)
    clean = token_pairs([9, 7], [(), ()])
    noise = GaussianNoise([2, 4], samples=2, seed=5)
    expected = np.zeros((2, len(patches), 2))
    for added in noise_by_hand(model, noise, [[2, 4], [2, 4]], [9, 7]):
        for pair, prompt in enumerate(clean.clean):
            hooks = [("hook_embed", lambda value, hook, of_pair=added[pair]: value + of_pair)]
            noised = activations(model, prompt, hooks)
            for i, logits in enumerate(
                (
                    logits_of_patches(model, patches, prompt, prompt, hooks=hooks),
                    logits_of_patches(model, patches, prompt, noised),
                )
            ):
                expected[i, :, pair] += [measured(metric, one, pair) / noise.samples for one in logits]
    both = engine_on(model).sweeps(clean, dict.fromkeys(DIRECTIONS, patches), [metric], noise=noise)
    for direction, found, values in zip(DIRECTIONS, both, expected):
        base = found.corrupted[0] if direction == "denoising" else found.clean[0]
        assert_alike(found.patched[0], values, base)


ANSWERS = AnswerSequences(correct=(((3, 8, 5),), ((6, 7),), ((9,),)), incorrect=((), (), ()))


@pytest.mark.quick(1)
@pytest.mark.parametrize(("name", "direction"), thinned(MODELS, DIRECTIONS))
def test_whole_answers(name: str, direction: Any) -> None:
    """Edges are patched within the prompt; what is appended reads on from there."""
    model, metric = edge_model(name), NAMED_METRICS["sequence_log_probability"](ANSWERS)  # type: ignore[call-arg]
    patches = patches_of(name, "edges")
    found = engine_on(model).sweep(pairs(), patches, [metric], direction)
    source, base = source_and_base(pairs(), direction)
    expected = np.empty((len(patches), 3))
    for pair, (answer,) in enumerate(ANSWERS.correct):
        continued, other = (
            torch.cat([one[pair], torch.tensor(answer[:-1], dtype=torch.long)]) for one in (base, source)
        )
        n = len(base[pair])
        logits = logits_of_patches(model, patches, continued, other, at=[range(n)])
        for i, one in enumerate(logits):
            logs = one[n - 1 :].log_softmax(dim=-1)
            expected[i, pair] = sum(float(logs[at, token]) for at, token in enumerate(answer))
    assert_alike(found.patched[0], expected, found.corrupted[0] if direction == "denoising" else found.clean[0])


@pytest.mark.quick(2)
@pytest.mark.parametrize(("name", "kind"), thinned(MODELS[:1] if HAS_HOOKED else MODELS[2:3], KINDS))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_prompts_of_other_lengths(name: str, kind: str, direction: Any) -> None:
    """What a writer writes comes from the position that stands for the base's; where none does, nothing changes."""
    model, metric, patches = edge_model(name), last_position_metric(4), patches_of(name, kind, 8)
    found = engine_on(model).sweep(NAMES, patches, [metric], direction)
    source, base = source_and_base(NAMES, direction)
    expected = np.empty((len(patches), 4))
    for pair in range(4):
        partners = partners_of(NAMES.matches[pair], direction)
        held, other = activations(model, base[pair]), activations(model, source[pair])
        for name, value in held.items():
            for here, there in partners.items():
                value[here] = other[name][there]
        logits = logits_of_patches(model, patches, base[pair], held)
        expected[:, pair] = [measured(metric, one, pair) for one in logits]
    assert_alike(found.patched[0], expected, found.corrupted[0] if direction == "denoising" else found.clean[0])


# --- how it is run changes nothing ------------------------------------------------------------------------------------


@pytest.mark.quick(2)
@pytest.mark.parametrize(("kind", "batch_size"), thinned(KINDS, [1, 3, None]))
@pytest.mark.parametrize("pairs_at_once", [1, 3])
def test_batches_and_chunks_change_nothing(
    kind: str, batch_size: int | None, pairs_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, patches, metric = edge_model(PLAIN), patches_of(PLAIN, kind), last_position_metric(3)
    expected = engine_on(model).sweep(pairs(), patches, [metric])
    if pairs_at_once == 1:
        monkeypatch.setattr(memory, "MOST_RECORDED_BYTES", 1)
        monkeypatch.setitem(memory.TOKENS_PER_BATCH, "cpu", 24)
    found = engine_on(model, batch_size).sweep(pairs(), patches, [metric])
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_rows_are_run_together_than_is_asked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "FIRST_FEW", 3)  # all pairs are one chunk, which is checked once
    engine, patches = engine_on(edge_model(PLAIN), 2), patches_of(PLAIN, kind)
    run_block, in_block, rows = engine.runner.run_block, engine.runner.activation_in_block, []

    def noting(function: Any) -> Any:
        def noted(layer: int, resid: Tensor, *rest: Any) -> Tensor:
            rows.append(len(resid))
            return function(layer, resid, *rest)

        return noted

    engine.runner.run_block, engine.runner.activation_in_block = noting(run_block), noting(in_block)
    engine.sweep(pairs(), patches, [last_position_metric(3)])
    of_resuming = 3 * 3  # a block each, with at most three rows: the check that resuming is exact
    assert max(rows[of_resuming:]) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_work_is_halved_until_it_fits_into_memory(kind: str) -> None:
    """Blocks that are run for rows, and those that are run for what receivers make of what they read."""
    model, patches, metric = edge_model(PLAIN), patches_of(PLAIN, kind), last_position_metric(3)
    expected = engine_on(model).sweep(pairs(), patches, [metric])
    engine, refused = engine_on(model), []

    def of_few_rows(function: Any) -> Any:
        def run_few(layer: int, resid: Tensor, *rest: Any) -> Tensor:
            if len(resid) > 2:
                refused.append(len(resid))
                raise torch.OutOfMemoryError(f"cannot hold {len(resid)} rows")
            return function(layer, resid, *rest)

        return run_few

    engine.runner.run_block = of_few_rows(engine.runner.run_block)
    engine.runner.activation_in_block = of_few_rows(engine.runner.activation_in_block)
    found = engine.sweep(pairs(), patches, [metric])
    assert refused
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


@pytest.mark.quick(2)
@pytest.mark.parametrize("left_out", [("prefix",), ("linear",), ("narrow",), ("prefix", "linear", "narrow", "padded")])
@pytest.mark.parametrize(("name", "kind"), thinned(MODELS[1:3], KINDS))
def test_without_shortcuts_the_numbers_are_the_same(
    name: str, kind: str, left_out: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first_try = Runs._first_try
    patches, metric = patches_of(name, kind), last_position_metric(3)
    expected = engine_on(edge_model(name)).sweep(pairs(), patches, [metric])
    monkeypatch.setattr(Runs, "_first_try", lambda runs: replace(first_try(runs), **dict.fromkeys(left_out, False)))
    engine = engine_on(edge_model(name))
    found = engine.sweep(pairs(), patches, [metric])
    assert not {*left_out} & {*found.shortcuts}
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


# --- pairs at the edges of what there is ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_that_do_not_differ_change_exactly_nothing(kind: str) -> None:
    some_alike = token_pairs([7, 6, 7], [(), (2,), ()])
    found = engine_on(edge_model(PLAIN)).sweep(some_alike, patches_of(PLAIN, kind), [everything_metric(3)])
    assert (found.patched[0][:, [0, 2]] == found.corrupted[0, [0, 2]]).all()
    assert (found.patched[0][:, 1] != found.corrupted[0, 1]).any()
    none = engine_on(edge_model(PLAIN)).sweep(token_pairs([7], [()]), patches_of(PLAIN, kind), [everything_metric(1)])
    assert (none.patched[0] == none.corrupted[0]).all()


@pytest.mark.quick(1)
@pytest.mark.parametrize(("kind", "name", "direction"), thinned(KINDS, MODELS[:3], DIRECTIONS))
def test_a_change_of_the_first_token_of_the_last_one_and_of_prompts_of_one_token(
    kind: str, name: str, direction: Any
) -> None:
    model, patches, metric = edge_model(name), patches_of(name, kind), last_position_metric(4)
    extreme = token_pairs([7, 7, 1, 1], [(0,), (6,), (0,), ()])
    found = engine_on(model).sweep(extreme, patches, [metric], direction)
    base = found.corrupted[0] if direction == "denoising" else found.clean[0]
    assert_alike(found.patched[0], by_hand(model, patches, extreme, metric, direction), base)
    assert (found.patched[0, :, 3] == base[3]).all()
    one = engine_on(model).sweep(token_pairs([1], [(0,)]), patches, [last_position_metric(1)], direction)
    alone = by_hand(model, patches, token_pairs([1], [(0,)]), last_position_metric(1), direction)
    np.testing.assert_allclose(one.patched[0], alone, atol=EXACT, rtol=0)


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), thinned(model_parameters("hooked:grouped", "bridge:gpt2"), KINDS))
def test_a_model_in_training_mode_is_run_as_in_evaluation_and_left_as_found(name: str, kind: str) -> None:
    model, patches = fresh_model(name), patches_of(name, kind)
    expected = engine_on(model).sweep(pairs(), patches, [last_position_metric(3)])
    model.train()
    before = state_of(model)
    found = engine_on(model).sweep(pairs(), patches, [last_position_metric(3)])
    assert_same_state(before, state_of(model))
    assert (found.patched == expected.patched).all()


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_the_user_are_refused_before_any_run(kind: str) -> None:
    model, patches = fresh_model(PLAIN), patches_of(PLAIN, kind)
    model.add_hook("blocks.1.hook_attn_out", lambda value, hook: value * 0.5)
    before = state_of(model)
    engine = engine_on(model)
    recorded: list[int] = []
    engine.runner.record = lambda *rest, **options: recorded.append(1)  # type: ignore[method-assign]
    with pytest.raises(
        RuntimeError, match=r"single edges of this model cannot be patched: .* that is not its own runs"
    ):
        engine.sweep(pairs(), patches, [last_position_metric(3)])
    assert not recorded
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near_and_says_how_near(kind: str) -> None:
    patches, metric = patches_of(PLAIN, kind), last_position_metric(3)
    exact = engine_on(edge_model(PLAIN)).sweep(pairs(), patches, [metric])
    model = fresh_model(PLAIN).to(torch.bfloat16)
    model.cfg.dtype = torch.bfloat16
    found = engine_on(model).sweep(pairs(), patches, [metric])
    assert np.isfinite(found.patched).all()
    assert np.abs(found.patched - exact.patched).max() <= 0.1 * np.abs(exact.patched).max()
    alike = engine_on(model).sweep(token_pairs([7], [()]), patches, [last_position_metric(1)])
    assert any("rounding alone moves the logit difference" in note for note in alike.notes)
