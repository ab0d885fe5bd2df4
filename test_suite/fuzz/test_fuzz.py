"""A fixed sample of the random walk, the first seed of some models among the fast tests."""

from __future__ import annotations

from typing import Any

import pytest

from test_suite.fuzz.walk import check
from test_suite.helpers.models import needs_hooked

SEEDS = {
    "hooked:learned": (0, 1),
    "hooked:rotary": (0, 1),
    "hooked:gated": (0, 2),
    "hooked:grouped": (1, 3),
    "hooked:ungrouped": (0, 5),
    "hooked:parallel": (0, 1),
    "hooked:attn_only": (0, 1),
    "hooked:shortformer": (0, 1),
    "hooked:alibi": (0, 1),
    "hooked:sandwich": (0, 1),
    "hooked:qk_norm": (5, 6),
    "hooked:no_norm": (3, 4),
    "hooked:local": (0, 1),
    "hooked:soft_capped": (1, 6),
    "hooked:scaled_by_layer": (0, 1),
    "hooked:parallel_grouped": (3, 4),
    "bridge:gpt2": (0, 1),
    "bridge+:gpt2": (1, 3),
    "bridge:llama": (0, 1),
    "bridge+:llama": (1, 2),
    "bridge:qwen2": (0, 1),
    "bridge+:qwen2": (0, 3),
    "bridge:neox": (1, 2),
    "bridge+:neox": (1, 3),
    "bridge:gemma2": (0, 1),
    "bridge+:gemma2": (0, 1),
    "bridge:olmo2": (2, 3),
    "bridge+:olmo2": (0, 1),
    "bridge:opt": (0, 2),
    "bridge+:opt": (0, 1),
    "bridge:bloom": (0, 1),
    "bridge+:bloom": (0, 2),
    "bridge:phi": (1, 4),
    "bridge+:phi": (0, 1),
    "bridge:mistral": (1, 2),
    "bridge+:mistral": (0, 1),
    "bridge:qwen3": (0, 1),
    "bridge+:qwen3": (0, 3),
    "bridge:gemma3": (0, 1),
    "bridge+:gemma3": (0, 2),
    "bridge:falcon": (0, 2),
    "bridge+:falcon": (0, 3),
    "bridge:mpt": (1, 3),
    "bridge+:mpt": (0, 4),
    "bridge:gptj": (2, 3),
    "bridge+:gptj": (2, 3),
}
"""Under both majors of TransformerLens these are compared with plain runs, and a patch moves a metric."""

QUICK = (
    "hooked:learned",
    "hooked:grouped",
    "hooked:parallel",
    "hooked:shortformer",
    "hooked:alibi",
    "hooked:sandwich",
    "hooked:qk_norm",
    "hooked:local",
    "hooked:soft_capped",
    "bridge:gpt2",
    "bridge+:llama",
    "bridge+:neox",
    "bridge:gemma2",
    "bridge+:olmo2",
    "bridge:opt",
    "bridge:bloom",
)


def sample() -> list[Any]:
    """(model, seed) of each case as test parameters."""
    cases = []
    for name, seeds in SEEDS.items():
        for i, seed in enumerate(seeds):
            slow = [] if name in QUICK and i == 0 else [pytest.mark.slow]
            cases.append(pytest.param(name, seed, marks=[*slow, *[needs_hooked] * name.startswith("hooked")]))
    return cases


@pytest.mark.quick(2)
@pytest.mark.parametrize(("name", "seed"), sample())
def test_a_random_experiment_agrees_with_plain_runs(name: str, seed: int) -> None:
    outcome = check(seed, name)
    assert outcome.kind == "agrees", f"{outcome.said}: {outcome.case}\n{outcome.command}"
    assert outcome.moved
