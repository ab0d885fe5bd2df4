"""Batches and recordings become smaller when memory runs out, and stay as large as fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actpatch.core.sites import Site, block_hook
from actpatch.engine import memory
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
