"""Results of every kind as exact ones and as estimates, and what of a figure or a page speaks of effects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from actpatch.core.estimates import Estimate
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.results.paths import PathResults
from actpatch.results.shapes import NeuronResults, SweepResults
from test_suite.helpers.results import (
    clear,
    made_up_edges,
    made_up_head_positions,
    made_up_heads,
    made_up_layers,
    made_up_positions,
    made_up_sweep,
)

ATP = Estimate("atp")
IG = Estimate("eap_ig", 3, "right")


def made_up_neurons(**changes: Any) -> NeuronResults:
    return NeuronResults(made_up_sweep([Site(block_hook(1, "mlp_post"), neuron=n) for n in range(6)], 4, 3, **changes))


def made_up_paths(**changes: Any) -> PathResults:
    sweep = made_up_heads(**changes).sweep
    named = tuple(Patch(patch.sites, name=f"{patch.label} → logits") for patch in sweep.patches)
    return PathResults(made_up_sweep([patch.sites[0] for patch in named], 4, 3, **{**changes, "patches": named}))


def made_up_sweeps(**changes: Any) -> SweepResults:
    return SweepResults(made_up_heads(**changes).sweep)


MAKERS = {
    "SweepResults": made_up_sweeps,
    "LayerResults": made_up_layers,
    "HeadResults": made_up_heads,
    "HeadPositionResults": made_up_head_positions,
    "NeuronResults": made_up_neurons,
    "PositionResults": made_up_positions,
    "EdgeResults": made_up_edges,
    "PathResults": made_up_paths,
}
"""Name of each shape of results -> what makes some."""


def results_of(kind: str, estimate: Estimate | None = ATP, **changes: Any) -> Any:
    """Results of 12 pairs of which every third patch has a clear effect."""
    return clear(MAKERS[kind], estimate=estimate, **changes)


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a figure, as it is drawn or shown by pointing at it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, part in value.items():
            is_unseen = name == "meta" or (name == "name" and value.get("showlegend") is False)
            if not is_unseen and name != "template":
                yield from texts_of(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from texts_of(part)


def speaks_of_effects(text: str) -> bool:
    """Whether it is about an effect, or the metric of a patched run."""
    return re.search(r"\b(effects?|patched)\b", text, re.IGNORECASE) is not None


def says_estimated(text: str) -> bool:
    return re.search(r"\bestimate[sd]?\b|\best\.", text, re.IGNORECASE) is not None
