"""Batches and recordings become smaller when memory runs out, and stay as large as fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch.core.edge_patches import edge_patches
from actpatch.core.sites import Site, block_hook
from actpatch.engine import memory, paths
from actpatch.models.graph import graph_of
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import (
    HAS_HOOKED,
    last_position_metric,
    model_parameters,
    sampled_sites,
    small_model,
    swept,
    token_pairs,
)
from test_suite.helpers.sweeps import engine_on, site_sweep
from test_suite.helpers.sweeps import single as singles

PLAIN = "hooked:learned" if HAS_HOOKED else "bridge+:gpt2"


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge+:gpt2"))
@pytest.mark.parametrize("rows_that_fit", [12, 7])
def test_batches_are_halved_until_they_fit_into_memory(name: str, rows_that_fit: int) -> None:
    model, pairs = small_model(name), token_pairs([9, 7, 9], [(2, 4), (3,), (0,)])
    sites = sampled_sites(name, [None, 5])[::2]
    expected = site_sweep(model, pairs, sites)
    engine, refused = engine_on(model), []
    run_block = engine.runner.run_block

    def run_few_rows(layer: int, resid: Tensor, *rest: Any) -> Tensor:
        if len(resid) > rows_that_fit:
            refused.append(len(resid))
            raise torch.OutOfMemoryError(f"cannot hold {len(resid)} rows")
        return run_block(layer, resid, *rest)

    engine.runner.run_block = run_few_rows
    found = swept(engine, pairs, singles(sites), last_position_metric(3), "denoising")
    assert refused
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


def test_recordings_are_halved_until_they_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, sites = token_pairs([9, 7, 9, 8, 9], [(2, 4), (3,), (0,), (6,), (8,)]), sampled_sites(PLAIN, [None, 5])
    expected = site_sweep(small_model(PLAIN), pairs, sites)
    engine, asked = engine_on(small_model(PLAIN)), []
    record = engine.runner.record

    def record_few_prompts(tokens: Tensor, *rest: Any, **options: Any) -> Any:
        asked.append(len(tokens))
        if len(tokens) > 4:
            raise torch.OutOfMemoryError(f"cannot hold {len(tokens)} prompts")
        return record(tokens, *rest, **options)

    monkeypatch.setattr(engine.runner, "record", record_few_prompts)
    found = swept(engine, pairs, singles(sites), last_position_metric(5), "denoising")
    looks_at_axes = 1  # 8 tokens are as many as a head has dimensions: one prompt more, shorter by a token
    assert asked == [10, 4, looks_at_axes, 4, 2]
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", model_parameters("hooked:learned", "hooked:shortformer", "bridge+:gpt2"))
def test_prompts_of_which_two_do_not_fit_are_recorded_one_by_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What a pass of one prompt takes grows with the square of its length; shortcuts hold as they do together."""
    pairs, sites = token_pairs([9, 7, 9], [(2, 4), (3,), (0,)]), sampled_sites(name, [None, 5])
    metric, whole, alone = last_position_metric(3), engine_on(small_model(name)), engine_on(small_model(name))
    expected, asked = swept(whole, pairs, singles(sites), metric), []
    record = alone.runner.record

    def noting(tokens: Tensor, *rest: Any, **options: Any) -> Any:
        asked.append(len(tokens))
        return record(tokens, *rest, **options)

    monkeypatch.setattr(alone.runner, "record", noting)
    monkeypatch.setattr(memory, "_free_memory", lambda device: 60_000)
    found = swept(alone, pairs, singles(sites), metric)
    assert {*asked} == {1} and alone.shortcuts == whole.shortcuts
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)


def test_after_memory_ran_out_batches_stay_as_large_as_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of several batches may be refused; later recordings are run in halves, not in single rows."""
    monkeypatch.setattr("actpatch.engine.memory.MOST_RECORDED_BYTES", 1)
    monkeypatch.setitem(memory.TOKENS_PER_BATCH, "cpu", 64)
    pairs = token_pairs([9] * 6, [(1,)] * 6)
    sites = [Site(block_hook(0, "q"), head, position) for head in range(4) for position in range(1, 9)]
    engine, rows_of_last_pair = engine_on(small_model(PLAIN)), []
    run_block = engine.runner.run_block

    def run_few_rows(layer: int, resid: Tensor, *rest: Any) -> Tensor:
        if len(resid) > 6:
            rows_of_last_pair.clear()
            raise torch.OutOfMemoryError(f"cannot hold {len(resid)} rows")
        rows_of_last_pair.append(len(resid))
        return run_block(layer, resid, *rest)

    engine.runner.run_block = run_few_rows
    swept(engine, pairs, singles(sites), last_position_metric(6), "denoising")
    assert np.median(rows_of_last_pair) >= 3


@pytest.mark.parametrize("most_bytes", [1, 2**14])
def test_edges_are_run_in_parts_of_which_what_senders_change_fits_into_memory(
    monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    model, pairs = small_model(PLAIN), token_pairs([9, 7, 9], [(2, 4), (3,), (0,)])
    edges = edge_patches(graph_of(model), receivers=["L1", "logits"])
    expected = swept(engine_on(model), pairs, edges, last_position_metric(3), "denoising")
    held, sent_by = [], paths.sent_by

    def noting(*args: Any) -> Any:
        sent, of_edge = sent_by(*args)
        held.append(sent.differences.nbytes)
        return sent, of_edge

    monkeypatch.setattr(memory, "MOST_RECORDED_BYTES", most_bytes)
    monkeypatch.setattr(paths, "sent_by", noting)
    found = swept(engine_on(model), pairs, edges, last_position_metric(3), "denoising")
    one_sender = 9 * model.cfg.d_model * 8
    assert max(held) <= max(most_bytes, one_sender) and len(held) > 3
    np.testing.assert_allclose(found.patched, expected.patched, atol=EXACT, rtol=0)
    assert np.abs(found.patched - found.corrupted).max() > 1e-3


def test_what_senders_of_edges_change_counts_in_how_many_pairs_fit_into_memory() -> None:
    """Of so many pairs that recordings alone would take half of the memory, and changes many times that, few are
    recorded together."""
    model, pairs = small_model(PLAIN), token_pairs([9] * 4, [(2,)] * 4)
    graph, metric = graph_of(model), last_position_metric(4)
    few, every = edge_patches(graph, "L0H0", "logits"), edge_patches(graph)
    with (
        engine_on(model).running(pairs, {"denoising": few}, False, metric.tokens) as of_few,
        engine_on(model).running(pairs, {"denoising": every}, False, metric.tokens) as of_every,
        pytest.MonkeyPatch.context() as patched,
    ):
        recorded = [1, 1]
        patched.setattr(memory, "MOST_RECORDED_BYTES", 4 * 9 * model.cfg.d_model * 8 * (2 * graph.n_layers + 12))
        assert memory.pairs_that_fit(of_few.experiment, recorded) == 4
        assert memory.pairs_that_fit(of_every.experiment, recorded) == 1
