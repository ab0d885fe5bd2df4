"""How long do circuits take, against plain forward passes?

    python -m benchmarks.circuits              # about five minutes; the table of benchmarks/README.md

GPT-2 small's shape, random weights, the prompts of the other benchmarks. In one process:

- the faithfulness of circuits of 10 sizes on 8 pairs, everything included that a sweep does, against ten plain forward
  passes of these pairs; medians of three, in turns;
- ACDC over all 32,491 edges of 1 pair, at two thresholds, against one plain forward pass for each edge, of which some
  are timed before it and as many after it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from actpatch.circuits.acdc import Search, acdc
from actpatch.core.circuit_patches import CircuitPatches
from actpatch.core.circuits import Circuit
from actpatch.engine.engine import PatchingEngine
from actpatch.models.graph import graph_of
from benchmarks.rows import EDGES, FLIP, GPT2, Row, Task, loaded, task

N_PAIRS, REPETITIONS, FORWARDS = 8, 3, 20
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SHARES = (0.03, 0.003)
"""Thresholds of ACDC, as shares of the metric's gap."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    row = Row(GPT2, "HookedTransformer", EDGES, N_PAIRS, FLIP)
    model = loaded(row)
    many, one = task(row, model), task(Row(GPT2, "HookedTransformer", EDGES, 1, FLIP), model)
    took = in_turns({"ten forward passes": lambda: forwards(model, many, 10), "circuits": lambda: sizes(model, many)})
    ratio = took["circuits"] / took["ten forward passes"]
    print("| circuits of 10 sizes, 8 pairs | s |\n|---|---|")
    for name, seconds in took.items():
        print(f"| {name} | {seconds:.2f} |")
    print(f"\ncircuits take {ratio:.2f} times ten plain forward passes of the pairs\n")
    print("| ACDC, 32,491 edges, 1 pair, threshold | edges left | s | edges per s | × one forward per edge |")
    print("|---|---|---|---|---|")
    for share in SHARES:
        print(searched(model, one, share), flush=True)


def in_turns(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median seconds of each of these, run in turns, after a first time that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(REPETITIONS + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}


def forwards(model: Any, todo: Task, n: int) -> None:
    """Plain forward passes of the pairs."""
    tokens = torch.stack(todo.pairs.clean)
    with torch.no_grad():
        for _ in range(n):
            model(tokens)


def sizes(model: Any, todo: Task) -> np.ndarray:
    """The metric of circuits of all sizes on all pairs: the edges of a random ranking."""
    graph = graph_of(model)
    ranking = np.random.default_rng(0).permutation(len(graph))
    kept = np.zeros((len(SIZES), 1, len(graph)), dtype=bool)
    for of_size, share in zip(kept[:, 0], SIZES):
        of_size[ranking[: round(share * len(graph))]] = True
    patches = CircuitPatches(graph, kept, tuple(map(str, SIZES)))
    return PatchingEngine(model, show_progress=False).sweep(todo.pairs, patches, [todo.metric], "noising").patched


def searched(model: Any, todo: Task, share: float) -> str:
    """A row of the table: ACDC at a threshold that is a share of the metric's gap."""
    graph, engine = graph_of(model), PatchingEngine(model, show_progress=False)
    runs = engine.baselines(todo.pairs, [todo.metric])
    threshold = share * abs(float(runs.clean.mean() - runs.corrupted.mean()))
    search = Search.of(graph, threshold, "reverse", 0, True)
    of_one = [seconds_of(lambda: forwards(model, todo, FORWARDS)) / FORWARDS]
    began = time.perf_counter()
    found = acdc(engine, todo.pairs, todo.metric, Circuit.full(graph), search)
    took = time.perf_counter() - began
    of_one.append(seconds_of(lambda: forwards(model, todo, FORWARDS)) / FORWARDS)
    rate = len(graph) / took
    times = rate * statistics.mean(of_one)
    return f"| {share:.1%} of the gap | {len(found):,} | {took:.0f} | {rate:.0f} | {times:.0f} |"


def seconds_of(way: Callable[[], Any]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
