"""Circuits of IOI by exact effects and by estimates: how much of the behaviour they keep, on pairs that no search saw.

Prints, as Markdown, the tables of docs/ioi-circuit.md:

    python -m docs.ioi_circuit MODEL > numbers.md

MODEL is what `load_model` takes; the page is of SmolLM2-135M-Instruct, a directory with its checkpoint. Pairs are drawn
from seed 0: edges are ranked by the first ones, circuits are judged on as many others.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from activation_patching import IOIDataset
from attribution_patching import AttributionPatcher, ensemble
from circuit_discovery import CircuitPatcher, evaluate_circuit, faithfulness_curve, find_circuit, sensitivity_card
from model_loading import load_model
from path_patching import PathPatcher
from visualize import create_faithfulness_curve, save_figure

SEED = 0
METHODS = ("eap", "eap_ig", "gim")
JUDGED = "eap_ig"
"""Ranks the edges of the circuit that is judged."""
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SHOWN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's directory, or a name that load_model knows")
    parser.add_argument("--pairs", type=int, default=6, help="pairs to rank by, and others to judge on (default: 6)")
    parser.add_argument("--by", nargs="+", default=["exact", *METHODS], help="rank edges by these (default: all)")
    parser.add_argument("--share", type=float, default=0.01, help="share of all edges in the judged circuit")
    parser.add_argument("--figure", type=Path, help="file for the curves, for instance curves.html (default: none)")
    args = parser.parse_args(argv)
    model = load_model(args.model, device="cpu")
    dataset = IOIDataset(model, 2 * args.pairs, corruption="flip_subject", seed=SEED)
    search = range(args.pairs)
    rankings, took = ranked(model, dataset, search, args.by)
    n_edges = len(next(iter(rankings.values())))
    tell(f"{args.pairs} pairs to rank {n_edges:,} edges by, as many others to judge on; noising")

    patcher = CircuitPatcher(model, show_progress=False)
    curves: dict[str, Any] = {}
    for name, results in rankings.items():
        n_random = 3 if not curves else 0
        curves[name] = faithfulness_curve(patcher, dataset, results, sizes=SIZES, n_random=n_random, seed=SEED)
    tell(f"\n## Faithfulness against size\n\n{of_curves(curves, took)}")
    if args.figure is not None:
        save_figure(create_faithfulness_curve(curves), args.figure)

    n = int(args.share * n_edges)
    circuit = find_circuit(rankings[JUDGED], n_edges=n)
    judged = evaluate_circuit(
        patcher, dataset, circuit, parts="node", n_random=19, n_knock_outs=8, n_greedy=0, n_inflated=10, seed=SEED
    )
    tell(f"\n## The {n:,} largest edges by {JUDGED}\n\n```text\n{circuit}\n\n{judged.summary()}\n```")
    card = sensitivity_card(patcher, dataset, rankings[JUDGED], n_edges=n, n_resamples=5, seed=SEED)
    tell(f"\n## Sensitivity card\n\n```text\n{card}\n```")


def ranked(model: Any, dataset: Any, search: range, by: list[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """Edges by each method's effects, noising, and how long each took in seconds."""
    estimates = AttributionPatcher(model, show_progress=False)
    options: dict[str, Any] = {"pair_indices": search, "direction": "noising"}
    found: dict[str, Any] = {}
    took: dict[str, float] = {}
    for name in by:
        began = time.perf_counter()
        if name == "exact":
            found[name] = PathPatcher(model, show_progress=False).run_all_edges_experiment(dataset, **options)
        else:
            found[name] = estimates.run_all_edges_experiment(dataset, method=name, **options)
        took[name] = time.perf_counter() - began
    if len(estimated := [found[name] for name in by if name != "exact"]) > 1:
        found["ensemble"] = ensemble(estimated)
    return found, took


def of_curves(curves: dict[str, Any], took: dict[str, float]) -> str:
    """A row for each ranking: faithfulness at some sizes, the benchmark's areas, and how long the ranking took."""
    sizes = [f"{100 * size:g} %" for size in SHOWN]
    lines = [
        f"| edges by | {' | '.join(sizes)} | CMD | CPR (signed) | CMD, log size | seconds |",
        "|---" * (len(SHOWN) + 5) + "|",
    ]
    for name, curve in curves.items():
        f = curve.faithfulness("absolute").value
        at = [int(np.flatnonzero(np.isclose(curve.sizes, size))[0]) for size in SHOWN]
        areas, signed = curve.areas("absolute"), curve.areas("signed")
        cells = [*(f"{f[i]:.2f}" for i in at), f"{areas.cmd:.3f}", f"{signed.cpr:.2f}", f"{areas.cmd_log:.2f}"]
        seconds = f"{took[name]:.0f}" if name in took else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds} |")
    random = next(iter(curves.values())).random_faithfulness.mean(axis=0)
    lines.append(f"| random | {' | '.join(f'{random[i]:.2f}' for i in at)} | | | | |")
    return "\n".join(lines)


def tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
