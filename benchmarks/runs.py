"""What does storing a run cost, and what does going on with it?

    python -m benchmarks.runs [--pairs 200] [--repetitions 3]

All neurons of the bundled model, in memory, stored in units, and gone on with after one unit of it was lost, in turns.
Processor seconds are compared, medians: those of a clock are other programs' too on a machine that is shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from actpatch import ActivationPatcher, IOIDataset, load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--repetitions", type=int, default=3)
    asked = parser.parse_args()
    model = load_model("tiny", device="cpu")
    patcher, dataset = ActivationPatcher(model, show_progress=False), IOIDataset(model, asked.pairs)

    def run(folder: Path | None = None) -> Any:
        return patcher.run_neurons_experiment(dataset, store=folder)

    planned = patcher.run_neurons_experiment(dataset, plan=True).seconds
    run_seconds: dict[str, list[float]] = {"in memory": [], "stored": [], "one unit again": [], "all there": []}
    units: list[float] = []
    for _ in range(asked.repetitions):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run"
            run_seconds["in memory"].append(_seconds(run))
            run_seconds["stored"].append(_seconds(partial(run, folder)))
            parts = sorted((folder / "parts").iterdir())
            units.append(json.loads((folder / "manifest.json").read_text())["seconds"] / len(parts))
            size = sum(part.stat().st_size for part in parts)
            parts[0].unlink()
            (folder / "manifest.json").unlink()
            run_seconds["one unit again"].append(_seconds(partial(run, folder)))
            run_seconds["all there"].append(_seconds(partial(run, folder)))
    of = {name: statistics.median(seconds) for name, seconds in run_seconds.items()}
    print(f"2,048 neurons × {asked.pairs} pairs, {len(parts)} units, {size / 2**20:.1f} MiB")
    print(f"{'planned':<16} {planned:8.2f} s")
    for name, seconds in of.items():
        print(f"{name:<16} {seconds:8.2f} s")
    print(f"storing costs {of['stored'] / of['in memory'] - 1:+.1%}; a unit takes {statistics.median(units):.2f} s")


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
