"""Stored runs in tests: experiments of every kind on the bundled model, a model that fails on demand, and when two
sweeps are the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actpatch import (
    ActivationPatcher,
    AttributionPatcher,
    BothDirections,
    Circuit,
    CircuitPatcher,
    GaussianNoise,
    HeadPatcher,
    IOIDataset,
    Mean,
    PathPatcher,
    Resample,
    Zero,
    load_model,
)
from actpatch.results.sweep import Sweep
from actpatch.tasks.encoding import encode_pairs
from actpatch.tasks.words import IOI_SCENE_TEMPLATES
from test_suite.tasks.test_alignment import Ids

METRICS = ["logit_difference", "kl_divergence", "rank"]
TEMPLATES = [*IOI_SCENE_TEMPLATES[:2], "{A} and {B} met, and {S2} gave a book to"]
OF_LENGTHS = [([1, 5, 6, *[20 + i] * (1 + i % 2), 7, 8], [1, 5, 6, 30 + i, 12 + i, 9, 7, 8]) for i in range(12)]
"""Tokens of prompts that go together by their ends: at one position of the corrupted ones nothing is written, at
another in some pairs alone."""
FRAGILE_PAIR = 4
Experiment = Callable[..., Any]


def ioi_of(model: Any, n_pairs: int = 9) -> IOIDataset:
    """Pairs of two lengths."""
    return IOIDataset(model, n_pairs, corruption="flip_subject", templates=TEMPLATES)


def experiments(model: Any) -> dict[str, Experiment]:
    """An experiment of each kind, which takes the options that are left."""
    quiet = {"show_progress": False}
    patcher, heads, paths = (kind(model, **quiet) for kind in (ActivationPatcher, HeadPatcher, PathPatcher))
    estimates, circuits, data = AttributionPatcher(model, **quiet), CircuitPatcher(model, **quiet), ioi_of(model)
    ways, ones = "L1H0 → L2H1 k → logits", ["L0H1 → L1 MLP → logits", "input → L3H1 v"]

    def layers(**options: Any) -> Any:
        how = {"position": "S2", "metrics": METRICS, "direction": "both", **options}
        return patcher.run_patching_experiment(data, ["attn_out", "mlp_out"], **how)

    def circuit(**options: Any) -> Any:
        half = np.arange(len(circuits.graph)) % 2 == 0
        both = {"half": Circuit(circuits.graph, half), "other": Circuit(circuits.graph, ~half)}
        return circuits.run_circuits_experiment(data, both, **options)

    return {
        "layers": layers,
        "places": lambda **o: patcher.run_position_experiment(data, "resid_pre", positions=["S2", ["IO", "END"]], **o),
        "matched": lambda **o: patcher.run_position_experiment(
            Ids(OF_LENGTHS, "ends"), "resid_mid", positions=[0, 2, 3, 4], **o
        ),
        "neurons": lambda **o: patcher.run_neurons_experiment(data, [1, 3], range(5), position="END", **o),
        "outside of blocks": lambda **o: patcher.run_patching_experiment(data, ["hook_embed", "attn_out"], **o),
        "heads": lambda **o: heads.run_all_heads_experiment(data, "pattern", **o),
        "mean": lambda **o: heads.run_all_heads_experiment(data, source=Mean(), **o),
        "resample": lambda **o: heads.run_all_heads_experiment(
            ioi_of(model, 18), source=Resample(samples=2), layers=[1, 2], **o
        ),
        "zero": lambda **o: heads.run_all_heads_experiment(data, source=Zero(), positions=["S2", -1], **o),
        "noise": lambda **o: patcher.run_patching_experiment(
            data, "mlp_out", noise=GaussianNoise("S1", samples=2), **o
        ),
        "whole answers": lambda **o: patcher.run_patching_experiment(
            data, "resid_mid", metrics=["sequence_log_probability_difference", "logit_difference"], **o
        ),
        "edges": lambda **o: paths.run_all_edges_experiment(data, receivers=["L2", "logits"], positions=["S2"], **o),
        "through": lambda **o: paths.run_all_heads_experiment(data, "L3H1 q", "mlps", direction="noising", **o),
        "paths": lambda **o: paths.run_path_experiment(data, [ways, *ones], **o),
        "circuits": circuit,
        "estimates": lambda **o: estimates.run_all_heads_experiment(data, method="atp", **o),
        "estimated edges": lambda **o: estimates.run_all_edges_experiment(data, method="eap_ig", **o),
    }


def sweeps_of(results: Any) -> list[Sweep]:
    """One sweep, or those of both directions."""
    if isinstance(results, BothDirections):
        return [results.denoising.sweep, results.noising.sweep]
    return [results.sweep]


def assert_same_results(found: Any, expected: Any, within: float) -> None:
    """The same shape, the same of everything that results say, and numbers as near as said."""
    assert type(found) is type(expected)
    for one, other in zip(sweeps_of(found), sweeps_of(expected), strict=True):
        for field in dataclasses.fields(Sweep):
            if field.name not in ("measured", "run_exactly"):
                assert getattr(one, field.name) == getattr(other, field.name), field.name
        for values, others in zip(one.measured, other.measured, strict=True):
            assert (values.name, values.unit, values.more_is_better) == (
                others.name,
                others.unit,
                others.more_is_better,
            )
            for run in ("clean", "corrupted", "patched"):
                np.testing.assert_allclose(getattr(values, run), getattr(others, run), rtol=within, atol=within)
        np.testing.assert_array_equal(one.usable, other.usable)


def fragile(what: Callable[[], None], told: Path) -> Any:
    """The bundled model, which does this, while `told` exists, where it is given the clean prompt of a pair."""
    model = load_model("tiny", dtype=torch.float64, device="cpu")
    prompt = model.W_E[encode_pairs(model, ioi_of(model)).clean[FRAGILE_PAIR]]

    def looked_at(value: Any, hook: Any) -> None:
        n = len(prompt)
        if told.exists() and value.shape[1] >= n and (value[:, :n] == prompt).all(-1).all(-1).any():
            what()

    model.add_hook("hook_embed", looked_at, is_permanent=True)
    return model
