"""Plans: what they count is what is run, and what they reckon is of the size of what it comes to."""

from __future__ import annotations

import numpy as np
import pytest

from actpatch import ActivationPatcher, Patch, Plan, Site, Store
from actpatch.runs import plan as plan_module
from actpatch.runs.plan import reckoned
from actpatch.statistics.site_tests import reach_of_pairs
from actpatch.statistics.sites import site_statistics
from test_suite.helpers.models import bundled
from test_suite.helpers.runs import experiments, ioi_of, sweeps_of

pytestmark = pytest.mark.filterwarnings("ignore:.* pairs", "ignore:.*single", "ignore:estimates", "ignore:(The|the) ")


@pytest.fixture(autouse=True)
def short_samples(request, monkeypatch):
    """What plans say of seconds is looked at where a test is slow."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(plan_module, "SECONDS", 0.05)


QUICK = ("places", "estimates")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in QUICK)) for kind in experiments(bundled())]
)
def test_every_experiment_says_what_it_would_take(kind, tmp_path):
    run = experiments(bundled())[kind]
    plan = run(plan=True, store=Store(tmp_path / "run", rows_per_unit=30))
    assert isinstance(plan, Plan) and not (tmp_path / "run").exists()
    results = run(store=Store(tmp_path / "run", rows_per_unit=30))
    sweeps = sweeps_of(results)
    assert (plan.n_patches, plan.n_pairs) == sweeps[0].patched.shape
    assert plan.directions == tuple(sweep.direction for sweep in sweeps)
    assert plan.units == len(list((tmp_path / "run/parts").iterdir()))
    assert plan.result_memory == sum(values.patched.nbytes for sweep in sweeps for values in sweep.measured)
    folder = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert folder / 1.5 < plan.disk < 1.5 * folder
    samples = {"resample": 2, "noise": 2}.get(kind, 1)
    if kind != "whole answers":
        assert plan.rows == samples * sum(sweep.patched.size for sweep in sweeps)
    assert len(str(plan).splitlines()) == 5 and 0 < plan.seconds < np.inf


def test_seconds_are_those_of_the_work_and_of_each_unit():
    """Of samples that lie on a line: 0.25 s for a unit and 2 s for each 1e9 operations, but for what both share."""
    short, long = (0.25 + 2e-9 * 1e3, 1e3), (0.25 + 2e-9 * 1e9, 1e9)
    assert reckoned(short, long, 50e9, 7) == pytest.approx(7 * 0.25 + 100, rel=1e-3)
    assert reckoned((0.0, 1e3), (2.0, 1e9), 50e9, 7) == pytest.approx(100)
    assert reckoned((1.0, 1e3), (1.0, 1e9), 1e9, 1) > 1.0  # all of it seems to be fixed: work is not free


def test_work_counts_the_layers_and_positions_that_are_left():
    patcher, data = ActivationPatcher(bundled(), show_progress=False), ioi_of(bundled())
    work = [
        patcher.plan(data, [Patch((Site(f"blocks.{layer}.hook_resid_pre", position=position),))]).work
        for layer, position in ((0, None), (2, None), (2, -1))
    ]
    assert work[0] > work[1] > work[2]


@pytest.mark.parametrize(("n_pairs", "n_sites"), [(1, 5), (4, 5), (6, 1), (9, 100), (30, 100)])
def test_what_pairs_can_show_is_what_statistics_say_of_them(n_pairs, n_sites):
    rng = np.random.default_rng(0)
    patched = rng.standard_normal((n_sites, n_pairs))
    found = site_statistics(patched, np.zeros(n_pairs), np.ones(n_pairs))
    smallest, too_few = reach_of_pairs(n_pairs, n_sites)
    assert smallest == found.smallest_p
    assert too_few == found.too_few or (found.p_corrected <= 0.05).any()


def test_a_long_run_says_first_what_it_takes(tmp_path, capsys):
    patcher, data = ActivationPatcher(bundled()), ioi_of(bundled(), 6)
    patcher.run_patching_experiment(data, "z", store=Store(tmp_path / "long", rows_per_unit=2))
    told = capsys.readouterr()
    assert "LayerResults: 4 patches × 6 pairs, denoising: 24 runs in 12 units" in told.err and not told.out
    patcher.run_patching_experiment(data, "z", store=Store(tmp_path / "short", rows_per_unit=30))
    assert "runs in" not in capsys.readouterr().err


def test_a_plan_is_begun_where_it_is_told(tmp_path):
    plan = ActivationPatcher(bundled(), show_progress=False).run_patching_experiment(ioi_of(bundled()), "z", plan=True)
    with pytest.raises(ValueError, match="the plan has no folder: give one"):
        plan.begin()
    assert plan.begin(tmp_path / "run") == tmp_path / "run"
    assert (tmp_path / "run/spec.json").exists()
