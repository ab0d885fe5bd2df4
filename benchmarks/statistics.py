"""How long statistics take and how much memory they need beside the numbers they are of: maps of four shapes.

    python -m benchmarks.statistics            # about three minutes on one core
    python -m benchmarks.statistics --quick    # without the largest map

Seconds are those of the CPU, which other work on the machine does not change; OMP_NUM_THREADS=1 makes them those of one
core. Each shape in a fresh process, from arrays alone: no model. The statistics of a map, those of one whose
pairs are of two groups, and the stability of its order.
Memory is the most that the resident memory rises beyond the process that holds the map.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from actpatch.core.heavy import pd, stats
from actpatch.statistics.sites import site_statistics
from actpatch.statistics.stability import stability
from benchmarks.memory import rise_of_memory

SHAPES = ((16, 5_000), (1_000, 100), (32_491, 8), (100_000, 200))
"""Heads of a small model on many pairs, of a large one, all edges of GPT-2 small, and neurons."""
WORK = ("statistics", "with two groups", "stability")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the largest map")
    quick = parser.parse_args(argv).quick
    print("| sites × pairs |" + "".join(f" {name}: CPU s | MB |" for name in WORK))
    print("|---|" + "---|---|" * len(WORK))
    for n_sites, n_pairs in SHAPES[: -1 if quick else None]:
        cells = []
        for name in WORK:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                seconds, rise = fresh.submit(measured, name, n_sites, n_pairs).result()
            cells += [f"{seconds:.1f}", f"{rise / 1e6:.0f}"]
        print(f"| {n_sites:,} × {n_pairs:,} | {' | '.join(cells)} |", flush=True)


def measured(name: str, n_sites: int, n_pairs: int) -> tuple[float, int]:
    """CPU seconds that the work takes on a random map, and by how many bytes memory rises."""
    rng = np.random.default_rng(0)
    patched = rng.standard_normal((n_sites, n_pairs)) + (rng.random((n_sites, 1)) < 0.05)
    base, source = np.zeros(n_pairs), 5 + rng.standard_normal(n_pairs)
    groups = ["one", "other"] * (n_pairs // 2)
    work: dict[str, Callable[[], object]] = {
        "statistics": lambda: site_statistics(patched, base, source),
        "with two groups": lambda: site_statistics(patched, base, source, groups=groups),
        "stability": lambda: stability(patched, source),
    }
    stats.rankdata(pd.Series([1.0]))  # loads both libraries
    began = time.process_time()
    rise = rise_of_memory(work[name])
    return time.process_time() - began, rise


if __name__ == "__main__":
    main()
