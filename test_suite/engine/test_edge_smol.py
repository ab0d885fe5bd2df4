"""Edges of SmolLM2-135M, whose heads share keys and values: some of each kind, against hooked runs of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from actpatch import IOIDataset, PathPatcher
from actpatch.tasks.encoding import encode_pairs
from test_suite.engine.test_edges import some
from test_suite.helpers.models import CLASSES, smollm2
from test_suite.oracles.edges import logits_of_edges
from test_suite.oracles.one_prompt import run

pytestmark = pytest.mark.slow

OF_LOGITS = 5e-4
"""How far two ways to a logit may be apart, relative to the largest one."""


@pytest.mark.parametrize("model_class", CLASSES)
def test_some_edges_are_those_of_hooked_runs(model_class: Any) -> None:
    model = smollm2(model_class)
    dataset = IOIDataset(model, 2, corruption="flip_subject")
    patcher = PathPatcher(model, show_progress=False)
    readers = ["L12H4 q", "L20KV1 k", "L25KV2 v", "L9 MLP", "logits"]
    results = patcher.run_all_edges_experiment(
        dataset, senders=["input", "L3 MLP", "L8H2", "L11H7"], receivers=readers, metrics="logit_difference"
    )
    edges, graph = results.edges, results.graph
    assert graph.is_grouped and (len(graph.writers), graph.heads[0], graph.key_value_heads[0]) == (301, 9, 3)
    pairs = encode_pairs(model, dataset, None)
    which = some(edges, 12)
    assert {graph.readers[edges.readers[i]].kind for i in which} == {"q", "k", "v", "mlp", "logits"}
    for pair in range(2):
        right, wrong = dataset.get_target_tokens(pair)
        chosen = [(graph.writers[edges.writers[i]], graph.readers[edges.readers[i]]) for i in which]
        logits = logits_of_edges(model, pairs.corrupted[pair], pairs.clean[pair], chosen)[:, -1].double()
        scale = float(run(model, pairs.corrupted[pair])[-1].abs().max())
        expected = (logits[:, right] - logits[:, wrong]).numpy()
        np.testing.assert_allclose(results.sweep.patched[which, pair], expected, atol=OF_LOGITS * scale, rtol=0)
    assert np.abs(results.sweep.effects).max() > 1e-3
