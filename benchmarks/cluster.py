"""Are two Ray actors of one core each as fast as one process of two cores?

    python -m benchmarks.cluster [--pairs 200] [--repetitions 3] [--model tiny] [--layers 0 1 2 3] [--rows 8192]

All neurons of some layers of a model, stored, in turns. What is compared is the rate at which units come in once every
worker has stored one, by the clock: starting Ray and loading the model in each actor, once per run, is told apart. It
needs two cores that nothing else uses, and the extra `cluster`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from actpatch import ActivationPatcher, IOIDataset, Store, load_model, run_on_ray, work_on

CORES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--model", default="tiny", help="a name, or the directory of a checkpoint")
    parser.add_argument("--layers", type=int, nargs="+", help="left out: all")
    small = "of a unit: few, so that the last units, at which one actor may wait for the other, count for little"
    parser.add_argument("--rows", type=int, default=4 * 2048, help=small)
    asked = parser.parse_args()
    torch.set_num_threads(CORES)
    model = load_model(asked.model, device="cpu")
    dataset = IOIDataset(model, asked.pairs)
    store = Store("run", rows_per_unit=asked.rows)
    plan = ActivationPatcher(model, show_progress=False).run_neurons_experiment(
        dataset, layer=asked.layers, store=store, plan=True
    )
    ways: dict[str, tuple[int, Callable[[Path], Any]]] = {
        "one process": (1, partial(work_on, model=model, show_progress=False)),
        "two actors": (CORES, partial(run_on_ray, workers=CORES, device="cpu", show_progress=False)),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    first: dict[str, list[float]] = {way: [] for way in ways}
    whole: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(asked.repetitions):
        for way, (n_workers, work) in ways.items():
            with tempfile.TemporaryDirectory() as scratch:
                folder = plan.begin(Path(scratch) / "run")
                start = time.time()
                work(folder)
                whole[way].append(time.time() - start)
                stored = sorted(part.stat().st_mtime for part in folder.glob("parts/*.parquet"))
            rates[way].append((len(stored) - n_workers) / (stored[-1] - stored[n_workers - 1]))
            first[way].append(stored[0] - start)
    print(f"{plan.n_patches:,} neurons × {asked.pairs} pairs, {plan.units} units, medians of {asked.repetitions}")
    print(f"{'':<12} units/s  first unit, s  whole run, s")
    for way in ways:
        print(f"{way:<12} {_median(rates[way]):7.3f}  {_median(first[way]):13.1f}  {_median(whole[way]):12.1f}")
    print(f"rate of two actors: {_median(rates['two actors']) / _median(rates['one process']):.2f} times one process'")


def _median(values: list[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    main()
