"""Circuits of IOI by exact effects and by estimates: how much of the behaviour they keep, on pairs that no search saw.

Prints, as Markdown, the tables of docs/ioi-circuit.md, and writes its figure:

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
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SHOWN = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
FIGURE = Path(__file__).with_name("ioi-circuit.png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's directory, or a name that load_model knows")
    parser.add_argument("--pairs", type=int, default=6, help="pairs to rank by, and others to judge on (default: 6)")
    parser.add_argument("--share", type=float, default=0.01, help="share of all edges in the judged circuit")
    args = parser.parse_args(argv)
    model = load_model(args.model, device="cpu")
    dataset = IOIDataset(model, 2 * args.pairs, corruption="flip_subject", seed=SEED)
    search = range(args.pairs)
    rankings, took = ranked(model, dataset, search)
    n_edges = len(next(iter(rankings.values())))
    tell(f"{args.pairs} pairs to rank {n_edges:,} edges by, as many others to judge on; noising")

    patcher = CircuitPatcher(model, show_progress=False)
    curves: dict[str, Any] = {}
    for name, results in rankings.items():
        curves[name] = faithfulness_curve(
            patcher, dataset, results, sizes=SIZES, n_random=3 if name == "exact" else 0, seed=SEED
        )
    tell(f"\n## Faithfulness against size\n\n{of_curves(curves, took)}")
    save_figure(create_faithfulness_curve(curves), FIGURE)

    n = int(args.share * n_edges)
    for name in ("exact", "eap_ig"):
        circuit = find_circuit(rankings[name], n_edges=n)
        judged = evaluate_circuit(patcher, dataset, circuit, n_random=39, n_knock_outs=10, seed=SEED)
        tell(f"\n## The {n:,} largest edges by {name}\n\n```text\n{circuit}\n{judged.summary()}\n```")
    card = sensitivity_card(patcher, dataset, rankings["exact"], n_edges=n, n_resamples=5, seed=SEED)
    tell(f"\n## Sensitivity card, exact effects\n\n```text\n{card}\n```")


def ranked(model: Any, dataset: Any, search: range) -> tuple[dict[str, Any], dict[str, float]]:
    """Edges by each method's effects, noising, and how long each took in seconds."""
    estimates = AttributionPatcher(model, show_progress=False)
    options: dict[str, Any] = {"pair_indices": search, "direction": "noising"}
    found: dict[str, Any] = {}
    took: dict[str, float] = {}
    for name in ("exact", *METHODS):
        began = time.perf_counter()
        if name == "exact":
            found[name] = PathPatcher(model, show_progress=False).run_all_edges_experiment(dataset, **options)
        else:
            found[name] = estimates.run_all_edges_experiment(dataset, method=name, **options)
        took[name] = time.perf_counter() - began
    found["ensemble"] = ensemble([found[name] for name in METHODS])
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
    random = curves["exact"].random_faithfulness.mean(axis=0)
    lines.append(f"| random | {' | '.join(f'{random[i]:.2f}' for i in at)} | | | | |")
    return "\n".join(lines)


def tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
