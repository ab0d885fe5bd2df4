"""Programs: every sweep of single edges finds exactly what the truth says is visible, and nothing else."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from actpatch.interventions.sources import OtherRun, Zero
from actpatch.models.programs import ProgramName, program_model
from actpatch.patchers.paths import PathPatcher
from actpatch.tasks.programs import ProgramDataset, program_truths

SOURCES = {source.label: source for source in (OtherRun(), Zero())}
TRUTHS = [truth for name in get_args(ProgramName) for truth in program_truths(name)]


@pytest.mark.quick(2)
@pytest.mark.parametrize("truth", TRUTHS, ids=repr)
def test_exact_effects_are_those_of_the_truth(truth):
    patcher = PathPatcher(program_model(truth.name), show_progress=False)
    for direction in [truth.direction] if truth.direction else ["denoising", "noising"]:
        results = patcher.run_all_edges_experiment(
            ProgramDataset(truth.name), direction=direction, source=SOURCES[truth.ablation]
        )
        sizes, true = np.abs(results.sweep.effects), truth.mask(results.graph, hidden=False)
        assert sizes[true].min() > 0.25
        assert sizes[~true].max() < 1e-9
        found = results.compare_with(truth)
        assert found.is_exact and found.visible.auprc == 1 and len(found.missed) <= len(truth.hidden)
