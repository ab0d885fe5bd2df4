"""How long do estimates take, and how much memory, against the plain way to compute them?

    python -m benchmarks.attribution              # about two minutes; the table of benchmarks/README.md

GPT-2 small's shape, random weights, the prompts of the other benchmarks, all 32,491 edges of 8 pairs. In one process,
medians of three, in turns:

- one forward and one backward pass of the prompts that are patched, and the matrix products of the scores alone;
- all edges by `eap` and by `eap_ig` (5 steps), everything included that `run_all_edges_experiment` does;
- the plain way: `HookedTransformer` with its switches for heads' results and for inputs split by head, both runs kept
  whole, gradients at every input. Its peak of memory and ours are each taken in a process of its own.

Then all 36,864 neurons screened and 500 of them run exactly.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actpatch.core.estimates import Estimate
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.engine.engine import PatchingEngine
from benchmarks.memory import peak_extra_memory
from benchmarks.rows import EDGES, FLIP, GPT2, Row, Task, loaded, task

N_PAIRS, REPETITIONS = 8, 3
ROW = Row(GPT2, "HookedTransformer", EDGES, N_PAIRS, FLIP)
TOP, SAMPLE = 400, 100


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    model = loaded(ROW)
    todo = task(ROW, model)
    ways: dict[str, Callable[[], Any]] = {
        "one forward and one backward pass": lambda: forward_and_backward(model, todo),
        "products of the scores": lambda: products(model, todo),
        "eap": lambda: estimated(model, todo, Estimate("eap")),
        "eap_ig, 5 steps": lambda: estimated(model, todo, Estimate("eap_ig", 5)),
        "plain, split inputs": lambda: plain(model, todo),
    }
    found = {name: way() for name, way in ways.items()}  # warm, and the numbers themselves
    difference = np.abs(found["eap"] - found["plain, split inputs"]).max()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPETITIONS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    took = {name: statistics.median(each) for name, each in seconds.items()}
    floor = took["one forward and one backward pass"] + took["products of the scores"]
    alone: dict[str, Callable[[Any, Task], object]] = {
        "eap": partial(estimated, estimate=Estimate("eap")),
        "plain, split inputs": plain,
    }
    memory = {name: peak_extra_memory(ROW, work) / 2**20 for name, work in alone.items()}
    print("| all 32,491 edges, 8 pairs | s | × forward and backward and products | memory, MiB |\n|---|---|---|---|")
    for name, each in took.items():
        held = f"{memory[name]:.0f}" if name in memory else ""
        print(f"| {name} | {each:.2f} | {each / floor:.2f} | {held} |")
    share = memory["eap"] / memory["plain, split inputs"]
    print(
        f"\neap_ig takes {took['eap_ig, 5 steps'] / took['eap']:.1f} times eap; memory is {share:.2f} of the plain way"
    )
    print(f"largest difference of scores {difference:.1g}, of {np.abs(found['eap']).max():.2g}")
    print(f"\n{neurons(model, todo)}")


def forward_and_backward(model: Any, todo: Task) -> None:
    """Of the prompts that are patched, with gradients of activations alone."""
    tokens = torch.stack(todo.pairs.corrupted)
    for weight in model.parameters():
        weight.requires_grad_(False)

    def begin(value: Tensor, hook: Any) -> Tensor:
        return value.detach().requires_grad_()

    with torch.enable_grad(), model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", begin)]):
        logits = model(tokens)[:, -1]
        (logits[:, 7] - logits[:, 9]).sum().backward()


def products(model: Any, todo: Task) -> Tensor:
    """The products of what writers change with the gradients of the readers behind them, of all layers."""
    cfg, length = model.cfg, len(todo.pairs.clean[0]) - 2
    width = length * cfg.d_model
    total = torch.zeros(())
    for layer in range(cfg.n_layers):
        writers = torch.randn(N_PAIRS, 1 + layer * (cfg.n_heads + 1) + cfg.n_heads, width)
        readers = torch.randn(N_PAIRS, width, 3 * cfg.n_heads + 1)
        total = total + torch.bmm(writers, readers).sum()
    return total


def estimated(model: Any, todo: Task, estimate: Estimate) -> np.ndarray:
    """Scores of all edges."""
    engine = PatchingEngine(model, show_progress=False, estimate=estimate)
    found = engine.sweep(todo.pairs, todo.patches, [todo.metric])
    return found.patched[0] - found.corrupted


def plain(model: Any, todo: Task) -> np.ndarray:
    """The same by split inputs: every head's result of both runs, and the gradient at every head's own input."""
    cfg, edges = model.cfg, todo.patches
    clean, corrupted = (torch.stack(run) for run in (todo.pairs.clean, todo.pairs.corrupted))
    for switch in ("attn_result", "split_qkv_input", "hook_mlp_in"):
        getattr(model, f"set_use_{switch}")(True)
    writes = ["blocks.0.hook_resid_pre"]
    reads = []
    for layer in range(cfg.n_layers):
        writes += [f"blocks.{layer}.attn.hook_result", f"blocks.{layer}.hook_mlp_out"]
        reads += [f"blocks.{layer}.hook_{kind}_input" for kind in "qkv"] + [f"blocks.{layer}.hook_mlp_in"]
    reads.append(f"blocks.{cfg.n_layers - 1}.hook_resid_post")
    try:
        of_clean: dict[str, Tensor] = {}
        with torch.no_grad(), model.hooks(fwd_hooks=[(name, _keeping(of_clean, name, False)) for name in writes]):
            model(clean)
        of_corrupted: dict[str, Tensor] = {}
        hooks = [(name, _keeping(of_corrupted, name, True)) for name in dict.fromkeys([*writes, *reads])]
        with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
            logits = model(corrupted)
            rows = torch.arange(len(clean))
            value = todo.metric.measure(logits[:, -1:, todo.metric.tokens], rows)
            slopes = dict(zip(reads, torch.autograd.grad(value.sum(), [of_corrupted[name] for name in reads])))
    finally:
        for switch in ("attn_result", "split_qkv_input", "hook_mlp_in"):
            getattr(model, f"set_use_{switch}")(False)
    changes = [(of_clean[name] - of_corrupted[name].detach()) for name in writes]
    stacked = torch.cat([change if change.ndim == 4 else change[:, :, None] for change in changes], dim=2)
    at_readers = torch.cat([slopes[name] if slopes[name].ndim == 4 else slopes[name][:, :, None] for name in reads], 2)
    table = torch.einsum("bpwd,bprd->wrb", stacked, at_readers).numpy()
    return table[edges.writers, edges.readers]  # type: ignore[attr-defined]


def _keeping(into: dict[str, Tensor], name: str, begins: bool) -> Callable[..., Tensor]:
    def keep(value: Tensor, hook: Any) -> Tensor:
        if begins and not value.requires_grad:
            value = value.detach().requires_grad_()
        into[name] = value
        return value

    return keep


def neurons(model: Any, todo: Task) -> str:
    """Seconds of screening all neurons and running 500 of them."""
    patches = [
        Patch((Site(block_hook(layer, "mlp_post"), neuron=neuron),))
        for layer in range(model.cfg.n_layers)
        for neuron in range(model.cfg.d_mlp)
    ]
    began = time.perf_counter()
    scores = estimated(model, replace(todo, patches=patches), Estimate("eap_ig", 5)).mean(axis=1)
    screened = time.perf_counter() - began
    order = np.argsort(-np.abs(scores))
    drawn = np.random.default_rng(0).choice(order[TOP:], SAMPLE, replace=False)
    began = time.perf_counter()
    chosen = [patches[number] for number in [*order[:TOP], *drawn]]
    PatchingEngine(model, show_progress=False).sweep(todo.pairs, chosen, [todo.metric])
    ran = time.perf_counter() - began
    return f"{len(patches):,} neurons, 8 pairs: screened by eap_ig in {screened:.1f} s, 500 run exactly in {ran:.1f} s"


if __name__ == "__main__":
    main()
