"""How much memory does a run take that is larger than memory, to be stored and to be read?

    python -m benchmarks.large_runs                 # 10^6 patches on 100 pairs, and the curve: about half an hour
    python -m benchmarks.large_runs --pairs 1000 --without-statistics

Two tables. The first is of one experiment on 10, 100 and 1,000 pairs, stored by a worker in a process of its own: the
most resident memory that it ever had. The second is of a run of pairs of neurons, begun as any other. Its parts are
written as workers write them, from drawn numbers: to run a model 10^8 times is not what is asked here. Then it is read
by part, in a process of its own: seconds, and the most resident memory so far.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from actpatch import (
    ActivationPatcher,
    IOIDataset,
    Patch,
    Site,
    Store,
    create_full_report,
    load_model,
    open_run,
    work_on,
)
from actpatch.engine.measured import Measured
from actpatch.runs.folder import RunFolder
from actpatch.runs.parts import Part, part_content

CURVE = (10, 100, 1000)
ROWS = 2**19
TOP = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=10**6)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--without-statistics", action="store_true", help="effects and the largest of them alone")
    parser.add_argument("--without-curve", action="store_true", help="the second table alone")
    asked = parser.parse_args()
    if not asked.without_curve:
        print("| pairs | seconds | most memory |\n|---|---|---|")
        for n_pairs in CURVE:
            with tempfile.TemporaryDirectory() as scratch:
                apart(stored, Path(scratch) / "run", n_pairs)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        apart(drawn, folder, asked.patches, asked.pairs)
        apart(read, folder, Path(scratch) / "report", not asked.without_statistics)


def apart(work: Callable[..., Any], *given: Any) -> None:
    """Do this in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        fresh.submit(work, *given).result()


def stored(folder: Path, n_pairs: int) -> None:
    """All neurons of a layer on so many pairs, by a worker that hands out no results."""
    model = load_model("tiny", device="cpu")
    patcher, start = ActivationPatcher(model, show_progress=False), time.perf_counter()
    patcher.run_neurons_experiment(IOIDataset(model, n_pairs), 1, store=folder, plan=True).begin()
    work_on(folder, model=model, show_progress=False)
    print(f"| {n_pairs:,} | {time.perf_counter() - start:.1f} | {_most_memory()} |", flush=True)


def drawn(folder: Path, n_patches: int, n_pairs: int) -> None:
    """A folder of so many patches on so many pairs, of which a few do something."""
    model = load_model("tiny", device="cpu")
    two = itertools.islice(itertools.combinations(_neurons(model), 2), n_patches)
    patches = [Patch(sites, name=" + ".join(site.label for site in sites)) for sites in two]
    patcher = ActivationPatcher(model, show_progress=False)
    patcher.plan(IOIDataset(model, n_pairs), patches, store=Store(folder, rows_per_unit=ROWS)).begin()
    run, start, rng = RunFolder(folder), time.perf_counter(), np.random.default_rng(0)
    spec = run.read_spec()
    clean, corrupted = 4 + rng.standard_normal((1, n_pairs)), -4 + rng.standard_normal((1, n_pairs))
    does = 8.0 * (rng.random(n_patches) < 1e-4)
    for number in range(len(spec.units)):
        unit = spec.units[number]
        pairs, some = slice(unit.pairs.start, unit.pairs.stop), slice(unit.patches.start, unit.patches.stop)
        base = corrupted[:, pairs]
        patched = base[:, None] + does[None, some, None] + rng.standard_normal((1, len(unit.patches), len(unit.pairs)))
        part = Part(unit, (Measured(patched, clean[:, pairs], base),), {"versions": {}, "seconds": 0.0, "halved": []})
        run.write_part(unit, part_content(spec.id, spec.asked_to_read.part(unit.pairs, some), part))
    size = sum(path.stat().st_size for path in (folder / "parts").iterdir())
    print(
        f"\n{n_patches:,} patches × {n_pairs:,} pairs: {len(spec.units)} parts, {size / 2**30:.2f} GiB, written in ",
        end="",
    )
    print(f"{time.perf_counter() - start:.0f} s\n\n| read | seconds | most memory |\n|---|---|---|", flush=True)


def read(folder: Path, report: Path, with_statistics: bool) -> None:
    """Everything that can be read of it by part, one after the other."""
    run = open_run(folder)
    _said("effects()", run.effects)
    best = _said(f"top({TOP})", lambda: run.top(TOP))
    if with_statistics:
        _said("statistics()", run.statistics)
        _said("summary()", run.summary)
        _said("report", lambda: create_full_report(top_results=best, save_dir=report))


def _said(name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    found = work()
    print(f"| `{name}` | {time.perf_counter() - start:.0f} | {_most_memory()} |", flush=True)
    return found


def _neurons(model: Any) -> Iterator[Site]:
    for layer in range(model.cfg.n_layers):
        yield from (Site(f"blocks.{layer}.mlp.hook_post", neuron=neuron) for neuron in range(model.cfg.d_mlp))


def _most_memory() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB"


if __name__ == "__main__":
    main()
