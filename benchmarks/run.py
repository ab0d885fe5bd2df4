"""How fast is a sweep, and are its numbers the same?  One table, everything in it measured in this run.

    make bench                                          every row, into benchmarks/results.md
    python -m benchmarks.run --list                     the rows and their numbers
    python -m benchmarks.run --rows 1 2                 the first two
    python -m benchmarks.run --models tiny --out FILE   those of one model, into a file
    python -m benchmarks.run --sweeps edges             those over edges

What the columns mean is said in README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import logging
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model is local; must be set before anything looks for the hub

import torch
from jaxtyping import Float
from torch import Tensor

from actpatch.engine.engine import PatchingEngine
from benchmarks.floor import floor_flops, matrix_product_rate
from benchmarks.memory import peak_extra_memory
from benchmarks.peers import HAS_NNSIGHT, LOOP, NNSIGHT, TRANSFORMER_LENS, Peer, peers
from benchmarks.rows import OF_EDGES, SMOL, Row, Task, all_rows, checkpoint, loaded, task

Result = TypeVar("Result")

RESULTS = Path(__file__).with_name("results.md")
MEMORY_FROM_PAIRS = 32
"""Memory is measured for rows of at least so many pairs."""
MEMORY_OF_EDGES_FROM_PAIRS = 8
FEWEST_PATCHES = 4
HEADER = (
    "| row | model | class | sweep | pairs | corruption | ours, s | TransformerLens, s | × | plain loop, s | × "
    "| nnsight, s | × | largest difference | floor, s | ours / floor | memory, MiB |"
)


@dataclass(frozen=True)
class PeerTime:
    """A peer's median time for the whole sweep."""

    seconds: float
    is_whole: bool
    """False where a share of the patches was run and the time scaled up."""


@dataclass(frozen=True)
class Measured:
    """One row's figures; seconds are medians."""

    ours: float
    peers: dict[str, PeerTime]
    difference: float
    """Largest absolute difference between our metric and any peer's, over pairs and the patches both ran."""
    rate: float
    """Floating-point operations per second of large matrix products."""
    floor: float
    memory: int | None
    """Bytes."""


def measure(row: Row, model: Any, repeats: int, budget: float) -> Measured:
    """Run the row's sweep by this library and by every peer in turn, `repeats` times over; a long row once.

    Args:
        row: what is run.
        model: the row's model.
        repeats: repetitions of which medians are taken.
        budget: seconds that a peer's patches may take in one repetition.
    """
    todo = task(row, model)
    engine = PatchingEngine(model, show_progress=False)
    engine.sweep(todo.pairs, todo.patches[:2], [todo.metric])
    ours: list[float] = []
    rates: list[float] = []
    with torch.no_grad():
        contestants = {name: _Contestant(peer, todo, budget) for name, peer in peers(row, model, todo).items()}
        for _ in range(1 if row.is_long else repeats):
            rates.append(matrix_product_rate())
            seconds, swept = _timed(lambda: engine.sweep(todo.pairs, todo.patches, [todo.metric]))
            ours.append(seconds)
            for contestant in contestants.values():
                contestant.run()
    found, rate = torch.from_numpy(swept.patched[0]), statistics.median(rates)
    return Measured(
        ours=statistics.median(ours),
        peers={name: contestant.time for name, contestant in contestants.items()},
        difference=max(contestant.largest_difference(found) for contestant in contestants.values()),
        rate=rate,
        floor=floor_flops(model.cfg, todo) / rate,
        memory=peak_extra_memory(row) if row.n_pairs >= _memory_from(row) else None,
    )


def _memory_from(row: Row) -> int:
    return MEMORY_OF_EDGES_FROM_PAIRS if row.component in OF_EDGES else MEMORY_FROM_PAIRS


class _Contestant:
    """A peer, on as many patches as fit into its time: all, or some chosen at random.

    Of a peer that runs several patches in one call whole calls are chosen, first those that take the fewest.
    """

    def __init__(self, peer: Peer, todo: Task, budget: float) -> None:
        self.peer, self.n_patches, self.seconds = peer, len(todo.patches), list[float]()
        calls = peer.calls()
        random.Random(0).shuffle(calls)
        calls.sort(key=len)
        peer.record()
        peer.patched(todo.taken(calls[0]))
        seconds, _ = _timed(lambda: peer.patched(todo.taken(calls[0])))
        wanted, self.chosen = max(FEWEST_PATCHES, int(budget / seconds * len(calls[0]))), list[int]()
        for call in calls:
            if len(self.chosen) < wanted:
                self.chosen += call
        self.chosen.sort()
        self.patches = todo.taken(self.chosen)

    def run(self) -> None:
        recording, _ = _timed(self.peer.record)
        patching, self.values = _timed(lambda: self.peer.patched(self.patches))
        self.seconds.append(recording + patching * self.n_patches / len(self.patches))

    @property
    def time(self) -> PeerTime:
        return PeerTime(statistics.median(self.seconds), is_whole=len(self.patches) == self.n_patches)

    def largest_difference(self, ours: Float[Tensor, "patch pair"]) -> float:
        return float((ours[self.chosen] - self.values.double()).abs().max())


def _timed(run: Callable[[], Result]) -> tuple[float, Result]:
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def _line(number: int, row: Row, m: Measured) -> str:
    times = " | ".join(_peer_cells(name, m.peers.get(name), m.ours) for name in (TRANSFORMER_LENS, LOOP, NNSIGHT))
    memory = "" if m.memory is None else f"{m.memory / 2**20:.0f}"
    return (
        f"| {number} | {row} | {m.ours:.3g} | {times} | {m.difference:.0e} | {m.floor:.3g} | {m.ours / m.floor:.2f} "
        f"| {memory} |"
    )


def _peer_cells(name: str, time: PeerTime | None, ours: float) -> str:
    if time is None:
        return "not installed | –" if name == NNSIGHT and not HAS_NNSIGHT else "– | –"
    return f"{'' if time.is_whole else '~'}{time.seconds:.3g} | {time.seconds / ours:.1f}"


def _circumstances(command: str) -> str:
    """Where, with what and when the table was measured."""
    versions = ", ".join(
        f"{name} {_version(name)}" for name in ("torch", "transformer_lens", "transformers", "nnsight")
    )
    without = "" if checkpoint(SMOL) else f"\n{SMOL} is not installed, so its rows are left out.\n"
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, {versions}; {time.strftime('%Y-%m-%d')}; `{command}`\n{without}"
    )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the rows with their numbers and run nothing")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of the rows to run; all by default")
    parser.add_argument("--models", nargs="+", help="run rows whose model or class has one of these words in its name")
    parser.add_argument("--sweeps", nargs="+", help="run rows whose sweep has one of these words in its name")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repetitions of which medians are taken")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds a peer's patches may take per repetition")
    parser.add_argument("--out", type=Path, help="file for the table; results.md beside this file for all rows")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    numbered = dict(enumerate(all_rows(), 1))
    if unknown := set(args.rows or []) - set(numbered):
        parser.error(f"there is no row {min(unknown)}: expected 1 to {len(numbered)}, as --list shows them")
    words, sweeps = ([word.lower() for word in asked or []] for asked in (args.models, args.sweeps))
    chosen = {
        number: row
        for number, row in numbered.items()
        if (not args.rows or number in args.rows)
        and (not words or any(word in f"{row.model} {row.model_class}".lower() for word in words))
        and (not sweeps or any(word in row.sweep.lower() for word in sweeps))
    }
    if not chosen:
        parser.error("no row is left: see --list for their models and numbers")
    if args.list:
        print("\n".join(f"{number:2} | {row}" for number, row in chosen.items()))
        return 0
    out = args.out or (RESULTS if chosen == numbered else None)
    text = [_circumstances(" ".join(["python -m benchmarks.run", *sys.argv[1:]])), HEADER, "|" + "---|" * 17]
    print("\n".join(text), flush=True)
    began, rates, model, of = time.perf_counter(), [], None, None
    for number, row in chosen.items():
        if of != (row.model, row.model_class):
            model = None
            gc.collect()
            model, of = loaded(row), (row.model, row.model_class)
        measured = measure(row, model, args.repeats, args.budget)
        rates.append(measured.rate)
        text.append(_line(number, row, measured))
        print(text[-1], flush=True)
    minutes = (time.perf_counter() - began) / 60
    low, high = min(rates) / 1e9, max(rates) / 1e9
    text.append(f"\nLarge matrix products ran at {low:.0f} to {high:.0f} GFLOP/s. The run took {minutes:.0f} minutes.")
    print(text[-1])
    if out:
        out.write_text("\n".join(text) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
