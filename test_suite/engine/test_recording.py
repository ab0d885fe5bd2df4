"""What is recorded: once for both directions, and exactly what either alone records."""

from __future__ import annotations

import numpy as np
import pytest

from actpatch import ActivationPatcher, GaussianNoise, IOIDataset
from actpatch.engine.recording import Recorder
from test_suite.helpers.closeness import EXACT
from test_suite.helpers.models import bundled


@pytest.mark.parametrize("noise", [None, GaussianNoise("S2", samples=2)])
def test_both_directions_come_from_one_recording_and_are_what_each_is_alone(noise, monkeypatch) -> None:
    model = bundled()
    dataset = IOIDataset(model, 4, corruption="flip_subject")
    patcher = ActivationPatcher(model, show_progress=False)
    record, passes = Recorder._record_run, []

    def counted(recorder, prompts, *args):
        passes.append(len(prompts))
        return record(recorder, prompts, *args)

    monkeypatch.setattr(Recorder, "_record_run", counted)
    options = {"noise": noise, "metrics": ["logit_difference", "kl_divergence"]}
    one = {
        way: patcher.run_patching_experiment(dataset, "z", direction=way, **options) for way in ("denoising", "noising")
    }
    for_each_alone = passes.copy()
    both = patcher.run_patching_experiment(dataset, "z", direction="both", **options)
    assert passes[len(for_each_alone) :] == for_each_alone[: len(for_each_alone) // 2]
    for way, expected in one.items():
        found = getattr(both, way).sweep
        assert found.direction == way
        for metric, alone in zip(found.measured, expected.sweep.measured):
            np.testing.assert_array_equal(metric.clean, alone.clean)
            np.testing.assert_array_equal(metric.corrupted, alone.corrupted)
            np.testing.assert_allclose(metric.patched, alone.patched, atol=EXACT, rtol=0)
