"""Pairs of several lengths and some sites, and a sweep of them held against one prompt per run by hand."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from actpatch.core.sites import Site, block_hook
from actpatch.engine.engine import Measured
from actpatch.interventions.sources import References
from test_suite.helpers.closeness import allowed
from test_suite.helpers.models import last_position_metric, token_pairs
from test_suite.helpers.sweeps import engine_on
from test_suite.helpers.sweeps import single as singles
from test_suite.oracles import one_prompt

PAIRS = token_pairs([7, 11, 7, 9], [(3,), (4, 6), (2,), (5,)])
SITES = [
    Site(block_hook(1, "attn_out")),
    Site(block_hook(0, "mlp_out"), position=4),
    Site(block_hook(2, "z"), head=1),
    Site(block_hook(1, "v"), head=0, position=-2),
]


def assert_as_by_hand(
    model: Any, sites: Sequence[Site] = SITES, pairs: Any = PAIRS, *, zero: bool = False, bound: float | None = None
) -> tuple[Measured, str]:
    """Sweep, compare with one prompt per run, and return what was found and what was warned of."""
    engine, metric = engine_on(model), last_position_metric(len(pairs))
    references = References(((),), (0,) * len(pairs)) if zero else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = engine.sweep(pairs, singles(sites), [metric], references=references)
    expected = one_prompt.patched(model, pairs, sites, metric, zero=zero)
    bound = allowed(model, [*pairs.clean, *pairs.corrupted]) if bound is None else bound
    for values, by_hand in zip((found.patched[0], found.clean[0], found.corrupted[0]), expected):
        np.testing.assert_allclose(values, by_hand, atol=bound, rtol=0)
    assert np.ptp(expected[0]) > 100 * bound
    return found, "; ".join(str(warning.message) for warning in caught if warning.category is UserWarning)
