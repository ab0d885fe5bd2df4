"""Where estimates go wrong in known ways, and what mends them: models by hand, numbers by hand (`helpers.gates`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine
from actpatch.statistics.stability import stability
from test_suite.helpers.attribution import scores
from test_suite.helpers.gates import (
    Gate,
    answer,
    cancelling_paths,
    opposite_signs,
    or_gate,
    saturated_keys,
    saturated_queries,
)
from test_suite.helpers.models import needs_hooked

pytestmark = [needs_hooked, pytest.mark.filterwarnings("ignore")]


def exact(gate: Gate, patches: list[Patch], direction: Any = "denoising") -> np.ndarray:
    """By how much each patch moves the answer of each pair."""
    found = PatchingEngine(gate.model, show_progress=False).sweep(gate.pairs, patches, [gate.metric], direction)
    base = found.corrupted if direction == "denoising" else found.clean
    return found.patched[0] - base


def estimated(gate: Gate, patches: list[Patch], method: str, direction: Any = "denoising") -> np.ndarray:
    return scores(gate.model, gate.pairs, patches, method, direction, metric=gate.metric)


@pytest.mark.parametrize(("gate", "kind"), [(saturated_queries, "q"), (saturated_keys, "k")])
def test_saturated_attention_hides_its_effect_from_the_gradient(gate: Callable[[], Gate], kind: str) -> None:
    name = block_hook(0, kind)
    patches = [Patch((Site(name, head=0),))]
    model, clean, corrupted = gate().model, gate().pairs.clean[0][None], gate().pairs.corrupted[0][None]
    written = model.run_with_cache(clean)[1][name]
    patched = model.run_with_hooks(corrupted, fwd_hooks=[(name, lambda value, hook: written)])
    moved = answer(patched[0]) - answer(model(corrupted)[0])
    assert float(moved.detach()) == pytest.approx(2.0)
    assert abs(estimated(gate(), patches, "atp")[0, 0]) < 1e-10
    assert abs(estimated(gate(), patches, "gim")[0, 0]) < 1e-3
    assert estimated(gate(), patches, "atp_star")[0, 0] == pytest.approx(2.0)


def test_a_direct_and_an_indirect_path_cancel_in_the_gradient() -> None:
    gate, patches = cancelling_paths(), [Patch((Site(block_hook(0, "mlp_out")),))]
    assert exact(gate, patches)[0, 0] == pytest.approx(1.0)
    assert estimated(gate, patches, "atp")[0, 0] == pytest.approx(0.0, abs=1e-12)
    assert estimated(gate, patches, "atp_star")[0, 0] == pytest.approx(1.0)
    assert estimated(gate, patches, "clean_corrupted")[0, 0] == pytest.approx(1.0)  # 0 at one end, 2 at the other


@pytest.mark.parametrize("method", ["atp", "atp_star"])
def test_one_of_two_that_do_the_same_is_seen_in_one_direction(method: str) -> None:
    gate = or_gate()
    patches = [Patch((Site(block_hook(0, "z"), head=head),)) for head in (0, 1)]
    for direction, effect in (("noising", 0.0), ("denoising", 1.0)):
        assert np.abs(exact(gate, patches, direction))[:, 0] == pytest.approx([effect] * 2)
        assert np.abs(estimated(gate, patches, method, direction))[:, 0] == pytest.approx([effect] * 2)


def test_opposite_signs_cancel_in_the_mean_and_not_in_the_mean_size() -> None:
    gate = opposite_signs()
    patches = [Patch((Site(block_hook(0, "z"), head=head),)) for head in (0, 1)]
    found = estimated(gate, patches, "atp")
    assert found == pytest.approx(exact(gate, patches))
    assert found.mean(axis=1) == pytest.approx([2.0, 0.0])
    sizes = [stability(found, top_k=1, absolute=place, seed=0).size for place in ("outside", "inside")]  # type: ignore[arg-type]
    assert sizes[0][1] == pytest.approx(0.0) and sizes[1][1] == pytest.approx(1.0 / 1.0 * sizes[1][0] / 2)
