"""How near estimates from gradients come to exact effects on IOI: heads and edges, every method.

Prints, as Markdown, the tables of docs/attribution.md:

    python -m docs.attribution MODEL > numbers.md

MODEL is what `load_model` takes; the page is of SmolLM2-135M-Instruct, a directory with its checkpoint. Pairs are drawn
from seed 0. All edges are run exactly, which takes minutes for each pair.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from activation_patching import IOIDataset
from attribution_patching import AttributionPatcher
from head_patching import HeadPatcher
from model_loading import load_model
from path_patching import PathPatcher

SEED = 0
K = 20
OF_HEADS = ("atp", "atp_star", "eap_ig", "ig_activations", "clean_corrupted", "relp", "gim")
OF_EDGES = ("eap", "eap_ig", "clean_corrupted", "relp", "gim")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's directory, or a name that load_model knows")
    parser.add_argument("--pairs", type=int, default=10, help="pairs of the heads (default: 10)")
    parser.add_argument("--edge-pairs", type=int, default=2, help="pairs of the edges (default: 2)")
    args = parser.parse_args(argv)
    model = load_model(args.model, device="cpu")
    estimates = AttributionPatcher(model, show_progress=False)
    dataset = IOIDataset(model, args.pairs, corruption="flip_subject", seed=SEED)
    for part, direction in (("output", "denoising"), ("output", "noising"), ("q", "denoising")):
        began = time.perf_counter()
        patcher = HeadPatcher(model, show_progress=False)
        exact = patcher.run_all_heads_experiment(dataset, part, direction=direction)
        what = f"Heads, {part}, {direction}, {len(dataset)} pairs"
        tell(f"\n## {what}\n\n{len(exact)} heads, run exactly in {time.perf_counter() - began:.0f} s\n")

        def estimate(method: Any, part: str = part, direction: Any = direction) -> Any:
            return estimates.run_all_heads_experiment(dataset, part, method=method, direction=direction)

        table(exact.sweep.effects, estimate, OF_HEADS)
    few = IOIDataset(model, args.edge_pairs, corruption="flip_subject", seed=SEED)
    began = time.perf_counter()
    edges = PathPatcher(model, show_progress=False).run_all_edges_experiment(few)
    took = time.perf_counter() - began
    tell(f"\n## Edges, denoising, {len(few)} pairs\n\n{len(edges):,} edges, run exactly in {took:.0f} s\n")
    table(edges.sweep.effects, lambda method: estimates.run_all_edges_experiment(few, method=method), OF_EDGES)


def table(exact: np.ndarray, estimated: Callable[[Any], Any], methods: tuple[str, ...]) -> None:
    """Print a row for each method: correlations with the exact effects, and the share of the largest that it finds."""
    tell("| method | Pearson | Spearman | recall at 20 | seconds |\n|---|---|---|---|---|")
    found = np.isfinite(exact)
    for method in methods:
        began = time.perf_counter()
        results = estimated(method)
        took = time.perf_counter() - began
        is_size = results.sweep.estimate.what.is_absolute
        truth = np.abs(exact) if is_size else exact
        scores = results.sweep.effects
        pearson = stats.pearsonr(scores[found], truth[found])[0]
        spearman = stats.spearmanr(scores[found], truth[found])[0]
        top = [set(np.argsort(-np.abs(values))[:K].tolist()) for values in (scores, exact)]
        sizes = " (of sizes)" if is_size else ""
        recall = len(top[0] & top[1]) / min(K, len(exact))
        tell(f"| `{method}`{sizes} | {pearson:.2f} | {spearman:.2f} | {recall:.2f} | {took:.1f} |")


def tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
