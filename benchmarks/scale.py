"""How long, and how dear, would all edges of a Llama 3.1 8B on 1,000 pairs be with 8, 64 and 1,024 GPUs?

    python -m benchmarks.scale [--price 2.5] [--utilisation 0.25 0.4 0.55] [--seeds 5]

No GPU is measured. Measured here, on one core: seconds of stored units of edges by the operations that
`actpatch.runs.work` counts, what a unit costs besides, bytes and reading of parts, listing, and loading. The units are
those that the library cuts, of a model of Llama's sizes without weights. `fleet.py` simulates who runs them. What is
assumed is printed above the table; a run here, projected before it is run, says how far such a projection holds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls

from actpatch import IOIDataset, PathPatcher, Plan, Store, load_model
from actpatch.core.edge_patches import EdgePatches, edge_patches
from actpatch.core.estimates import Estimate
from actpatch.core.graph import Graph
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.memory import MEMORY_SHARE, MOST_RECORDED_BYTES
from actpatch.models.graph import graph_of
from actpatch.models.load import TINY
from actpatch.runs.asked import Asked, library_versions
from actpatch.runs.folder import RunFolder
from actpatch.runs.patches import patches_as_data
from actpatch.runs.plan import BYTES_HELD, duration
from actpatch.runs.spec import Spec
from actpatch.runs.units import Shard, Units, units_of
from actpatch.runs.work import work_of_patches, work_of_recording
from actpatch.runs.worker import run_units, work_on
from benchmarks.fleet import Fleet, simulate
from benchmarks.floor import matrix_product_rate
from benchmarks.rows import BUNDLED, SMOL, SWAP, checkpoint, random_ioi

N_PAIRS = 1000
GPUS = (8, 64, 1024)
GPU_MEMORY = 80e9
BUDGET = 5000
"""Edges that are run exactly after a screening."""
INTERRUPTED = 419 / (54 * 24 * 16384)
"""Unexpected interruptions per GPU and hour: 419 in 54 days on 16,384 GPUs (The Llama 3 Herd of Models, 2024,
arXiv:2407.21783, section 3.3.4)."""
NOT_OF_GPUS = 0.413
"""Share of these that were not a GPU's, and are taken to be of a whole node."""
READINGS = 3
"""How often a part is read before a run is finished: by its worker, then twice by whoever writes the manifest."""


@dataclass(frozen=True)
class Sized:
    """A run's units, by the operations of each."""

    units: Units
    work: Float[np.ndarray, " unit"]
    n_rows: int


@dataclass(frozen=True)
class Costs:
    """What units cost here, in seconds of one core and in bytes."""

    per_flop: float
    per_unit: float
    rows_per_second: float
    bytes_per_row: float
    bytes_per_part: float
    reading_per_row: float
    reading_per_part: float
    bytes_of_pair: float
    """In `spec.json`."""

    def seconds(self, run: Sized) -> float:
        """Of one worker that runs all of it, once the model is loaded."""
        return self.per_flop * float(run.work.sum()) + self.per_unit * len(run.units) + READINGS * self.reading(run)

    def reading(self, run: Sized) -> float:
        """Seconds of reading all parts once."""
        return self.reading_per_row * run.n_rows + self.reading_per_part * len(run.units)

    def disk(self, run: Sized) -> float:
        return self.bytes_per_row * run.n_rows + self.bytes_per_part * len(run.units)


@dataclass(frozen=True)
class Here:
    """What was measured on this machine."""

    costs: Costs
    share: float
    """Rate of counted operations, as a share of that of large products."""
    load_per_byte: float
    """Seconds."""


def llama_graph() -> Graph:
    """The graph of Llama 3.1 8B, by its sizes alone."""
    n_layers = 32
    return Graph("Llama-3.1-8B", (32,) * n_layers, (8,) * n_layers, (True,) * n_layers, is_parallel=False, d_model=4096)


def llama() -> Any:
    """A model of the sizes of Llama 3.1 8B in half precision, without weights: nothing can be run on it."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        vocab_size=128256,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config.save_pretrained(folder)
        return TransformerBridge.boot_transformers(
            folder,
            device="meta",
            dtype=torch.bfloat16,
            hf_model=model,
            tokenizer=AutoTokenizer.from_pretrained(TINY),  # is asked for, and not used
        )


def asked_of(model: Any, edges: EdgePatches, n_pairs: int, estimate: Estimate | None = None) -> tuple[Any, Asked]:
    """An engine, and these edges on pairs of 16 tokens that differ from the third on."""
    engine = PatchingEngine(model, show_progress=False, estimate=estimate)
    pairs, metric = random_ioi(n_pairs, SWAP)
    return engine, Asked(
        pairs=pairs,
        patches={"denoising": edges},
        metrics=(metric,),
        references=None,
        noise=None,
        estimate=estimate,
        model=engine.model_name,
        n_layers=engine.n_layers,
        n_heads=engine.n_heads,
        n_key_value_heads=engine.n_key_value_heads,
        dtype=engine.dtype,
        correct=(),
        incorrect=(),
        source_of_values="",
        source_kind="other run",
        versions=library_versions(),
    )


def sized(engine: PatchingEngine, asked: Asked, units: Units) -> Sized:
    """The operations of each unit, those of the recordings that it makes for itself included."""
    of_blocks = np.add.reduceat(work_of_patches(engine, asked), units.patches[:-1]) + work_of_recording(engine, asked)
    return Sized(units, np.outer(np.diff(units.pairs), of_blocks).ravel(), asked.n_patches * len(asked.pairs))


def measured(patcher: PathPatcher, dataset: Any, sizes: Sequence[int], n_units: int) -> Costs:
    """What units of all edges cost, from means over some of each of two sizes. These are evenly spread: edges into late
    layers cost less than is counted, so that single units lie on no line.

    Args:
        patcher: of a model here.
        dataset: few pairs.
        sizes: rows of a small and of a large unit.
        n_units: how many of each size are run.
    """
    of_sizes = []
    for size in sizes:
        of_units: list[tuple[float, ...]] = []
        with tempfile.TemporaryDirectory() as scratch:
            plan: Plan = patcher.run_all_edges_experiment(
                dataset, plan=True, store=Store(Path(scratch) / "run", rows_per_unit=size)
            )
            folder = RunFolder(plan.begin())
            spec = folder.read_spec()
            asked, work = spec.asked, sized(patcher.engine, spec.asked, spec.units).work
            middles = (np.arange(n_units) + 0.5) / n_units * len(spec.units)
            for number in np.unique(middles.astype(int)).tolist():
                unit = spec.units[number]
                seconds = _seconds(partial(run_units, folder, spec, asked, patcher.engine, [number]))
                reading = _seconds(partial(folder.read_part, spec, number))
                stored = folder.part(unit).stat().st_size
                of_units.append((unit.n_rows, work[number], seconds, reading, stored))
        of_sizes.append(np.mean(of_units, axis=0))
    rows, works, seconds_of, readings, stored_in = np.array(of_sizes).T
    (per_flop, per_unit), (reading_per_row, reading_per_part), (bytes_per_row, bytes_per_part) = (
        _line(x, y) for x, y in ((works, seconds_of), (rows, readings), (rows, stored_in))
    )
    return Costs(
        per_flop,
        per_unit,
        float(rows[-1] / seconds_of[-1]),
        bytes_per_row,
        bytes_per_part,
        reading_per_row,
        reading_per_part,
        len(json.dumps(spec.data["pairs"])) / len(asked.pairs),
    )


def projected_and_run(patcher: PathPatcher, costs: Costs, dataset: Any, size: int, **edges: Any) -> str:
    """A run that is projected from costs of other pairs, and then run by one worker, in units of so many rows."""
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "run", rows_per_unit=size)
        plan: Plan = patcher.run_all_edges_experiment(dataset, plan=True, store=store, **edges)
        folder = RunFolder(plan.begin())
        spec = folder.read_spec()
        run = sized(patcher.engine, spec.asked, spec.units)
        seconds = _seconds(lambda: work_on(folder.path, model=patcher.model, show_progress=False))
        stored = sum(path.stat().st_size for path in (folder.path / "parts").iterdir())
    reckoned, disk = costs.seconds(run), costs.disk(run)
    return (
        f"{run.n_rows:,} rows in {len(run.units)} units: projected {reckoned:.1f} s and {disk / 2**20:.2f} MiB, run in "
        f"{seconds:.1f} s and {stored / 2**20:.2f} MiB: {seconds / reckoned:.2f} and {stored / disk:.2f} times as much"
    )


def seconds_of_listing(units: Units) -> float:
    """How long it takes here to see which parts of a run are there, when all are."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        (folder.path / "parts").mkdir()
        for number in range(len(units)):
            folder.part(units[number]).touch()
        return _seconds(lambda: folder.done(Spec({"units": units.as_data()})))


def main() -> None:
    asked = _parser().parse_args()
    torch.set_num_threads(1)
    print("Measured here, on one core")
    here = _measured_here()
    print("\nProjected")
    model = llama()
    edges = edge_patches(graph_of(model))
    every = _cut(model, edges)
    engine, exactly = asked_of(model, edges.taken(np.linspace(0, len(edges) - 1, BUDGET).astype(int)), N_PAIRS)
    screened = [_cut(model, edges, Estimate("eap_ig")), sized(engine, exactly, units_of(engine, exactly, BUDGET))]
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    print(_told_of_run(every, edges, here.costs, weights))
    print(_told_of_assumptions(asked, here, weights))
    print(
        "\n| what | of the peak | GPUs | units | ideal, days | simulated, days | | shares, days | lost | efficiency "
        "| cost, $ |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )

    row, hour = partial(_row, asked, here, weights), 3600.0
    published = {
        "deaths": INTERRUPTED * (1 - NOT_OF_GPUS) / hour,
        "deaths_of_node": INTERRUPTED * NOT_OF_GPUS * Fleet(1).per_node / hour,
    }
    low, mid, high = asked.utilisation
    for gpus in GPUS:
        for utilisation in (low, mid, high):
            print(row("all edges", [every], gpus, utilisation, published), flush=True)
    for gpus in GPUS:
        spot = {"deaths_of_node": 1 / (asked.spot_hours * hour)}
        print(row("all edges, spot nodes", [every], gpus, mid, spot), flush=True)
    for gpus in GPUS:
        print(row(f"estimates, then {BUDGET:,} edges", screened, gpus, mid, published), flush=True)


def _row(
    asked: argparse.Namespace,
    here: Here,
    weights: int,
    what: str,
    runs: Sequence[Sized],
    gpus: int,
    utilisation: float,
    rates: dict[str, float],
) -> str:
    """A line of the table: these runs after one another."""
    load = max(weights * here.load_per_byte, gpus * weights / (asked.storage * 1e9))
    slow = {"slow_workers": asked.slow_workers, "slow_units": asked.slow_units}
    fleet = {"restart": asked.restart, **slow, **rates}
    rate = asked.peak * 1e12 * utilisation * here.share
    units = [run.work / rate + here.costs.per_unit for run in runs]
    (each, lost), (each_of_shares, _) = (
        _simulated(units, gpus, load, fleet, asked.seeds, has_shares) for has_shares in (False, True)
    )
    seconds, of_shares = statistics.median(each), statistics.median(each_of_shares)
    ideal = sum(float(run.work.sum()) for run in runs) / rate / gpus
    days = [f"{value / 86400:.3g}" for value in (ideal, seconds, min(each), max(each), of_shares)]
    return (
        f"| {what} | {utilisation:.0%} | {gpus:,} | {sum(map(len, units)):,} | {days[0]} | {days[1]} ({days[2]}–"
        f"{days[3]}) | {duration(seconds)} | {days[4]} | {lost:.2%} | {ideal / seconds:.0%} | "
        f"{gpus * seconds / 3600 * asked.price:,.0f} |"
    )


def _measured_here() -> Here:
    """Of SmolLM2 where it is there, whose 30 layers are nearly as many as Llama's, else of the bundled model."""
    for name in (BUNDLED, SMOL):
        if (directory := checkpoint(name)) is None:
            print(f"{name} is not installed, so that what follows rests on {BUNDLED}")
            continue
        loads = [_timed(partial(load_model, directory, device="cpu")) for _ in range(2)]
        model = loads[1][1]
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        patcher, large = PathPatcher(model, show_progress=False), name == SMOL
        dataset = IOIDataset(model, 100, seed=1)
        few = IOIDataset(model, 1 if large else 50)
        sizes = (60, 600) if large else (500, 8000)
        costs = measured(patcher, few, sizes, 8)
        rate = matrix_product_rate(time.process_time)
        share = 1 / costs.per_flop / rate
        print(
            f"{name}: {costs.rows_per_second:.0f} rows/s, {1e-9 / costs.per_flop:.1f} GFLOP/s of counted work, "
            f"{share:.0%} of the {1e-9 * rate:.1f} of large products; a unit {costs.per_unit:.2f} s besides; "
            f"{costs.bytes_per_row:.1f} bytes a row and {costs.bytes_per_part:.0f} a part; loaded in {loads[1][0]:.1f} "
            f"s, {1e9 * loads[1][0] / size:.1f} s per GB"
        )
        heads = [(layer, 0) for layer in range(model.cfg.n_layers)]
        chosen = {"senders": heads, "pair_indices": [0]} if large else {}
        print(f"{name}: {projected_and_run(patcher, costs, dataset, sizes[1], **chosen)}", flush=True)
        found = Here(costs, share, loads[1][0] / size)
    return found


def _cut(model: Any, edges: EdgePatches, estimate: Estimate | None = None) -> Sized:
    engine, asked = asked_of(model, edges, N_PAIRS, estimate)
    return sized(engine, asked, units_of(engine, asked))


def _simulated(
    units: Sequence[np.ndarray], gpus: int, load: float, fleet: dict[str, float], seeds: int, has_shares: bool
) -> tuple[list[float], float]:
    """(seconds by seed, share of the time in units that was lost) of runs after one another, the model loaded once."""
    seconds, finished, lost = [], 0.0, 0.0
    every = [of.tolist() for of in units]
    of_workers: list[Any] = [
        [Shard(number + 1, gpus).of_units(range(len(of))) for number in range(gpus)] if has_shares else None
        for of in every
    ]
    for seed in range(seeds):
        outcomes = [
            simulate(of, Fleet(gpus, load=0.0 if i else load, **fleet), seed=seed, shares=shares)  # type: ignore[arg-type]
            for i, (of, shares) in enumerate(zip(every, of_workers))
        ]
        seconds.append(sum(outcome.seconds for outcome in outcomes))
        finished += sum(outcome.finished for outcome in outcomes)
        lost += sum(outcome.lost for outcome in outcomes)
    return seconds, lost / (finished + lost)


def _told_of_run(run: Sized, edges: EdgePatches, costs: Costs, weights: int) -> str:
    units = run.units
    largest = max(units[number].n_rows for number in range(units.blocks_of_patches))
    spec = len(json.dumps(patches_as_data(edges))) + len(json.dumps(units.as_data())) + costs.bytes_of_pair * N_PAIRS
    held = weights + MOST_RECORDED_BYTES + MEMORY_SHARE * (GPU_MEMORY - weights)
    return (
        f"{len(edges):,} edges × {N_PAIRS:,} pairs of 16 tokens, {run.work.sum():.3g} FLOP; {len(units):,} units of up "
        f"to {largest:,} rows, {run.work.mean():.2g} FLOP each\n"
        f"disk {costs.disk(run) / 1e9:.1f} GB in {len(units):,} parts; spec.json {spec / 1e6:.1f} MB; which parts are "
        f"there is seen in {seconds_of_listing(units):.2f} s; all are read in {duration(costs.reading(run))}, twice by "
        "the worker that writes the manifest, after the times below\n"
        f"memory of a worker at most {held / 1e9:.0f} GB of a GPU's {GPU_MEMORY / 1e9:.0f}: {weights / 1e9:.1f} of "
        f"weights, recordings, a batch; {BYTES_HELD * largest / 1e6:.0f} MB of the machine's for results"
    )


def _told_of_assumptions(asked: argparse.Namespace, here: Here, weights: int) -> str:
    low, mid, high = asked.utilisation
    return f"""
Assumed; no GPU was measured:
- A GPU does {asked.peak:.0f} TFLOP/s at its peak (H100 SXM, bf16, dense: NVIDIA's data sheet, which has 1,979 with
  sparsity), {low:.0%}, {mid:.0%} or {high:.0%} of it in plain forward passes, and of that the share which counted work
  reached of large products here, {here.share:.0%}. Training of Llama 3 reached 38 to 43 % on 8,192 to 16,384 of
  these GPUs (arXiv:2407.21783, table 4): so much is taken for the middle, as rows are short but 32,768 tokens are run
  together; less for what moves memory between products, which is dearer on a GPU; more for a GPU by itself.
- What a unit costs besides, {here.costs.per_unit:.2f} s, is as here: Python, checks, the part's file. Loading takes
  as long for each byte as here, {weights * here.load_per_byte:.0f} s, or longer where workers share a storage of
  {asked.storage:.0f} GB/s.
- Interruptions: {INTERRUPTED:.2g} per GPU and hour, 419 in 54 days of 16,384 GPUs (arXiv:2407.21783, section 3.3.4);
  the {NOT_OF_GPUS:.1%} that were not a GPU's take a node of 8. A spot node is taken away each {asked.spot_hours:g} h.
  Each costs the unit in hand, {duration(asked.restart)} until a worker is there again, and loading.
- Stragglers: workers are slower by a lognormal factor of median 1 and sigma {asked.slow_workers:g}, for good, units by
  one of {asked.slow_units:g}. No unit is run twice to help, and parts are never waited for.
- A GPU-hour costs ${asked.price:g}; all are paid for until the last unit is finished. Ideal: operations alone. Shares:
  `--shard K/N` instead of the next unit to whoever is free. Median of {asked.seeds} seeds, and their range; lost,
  efficiency and cost without shares.
- Estimates: `eap_ig`, 5 steps, then {BUDGET:,} edges exactly, which are taken to lie evenly, with as many rows to a
  unit."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add: Callable[..., Any] = parser.add_argument
    add("--peak", type=float, default=989.0, help="TFLOP/s of a GPU: 989")
    add("--utilisation", type=float, nargs=3, default=(0.25, 0.4, 0.55), help="share of it: 0.25 0.4 0.55")
    add("--price", type=float, default=2.5, help="dollars of a GPU-hour: 2.5")
    add("--restart", type=float, default=600.0, help="seconds until a dead worker is there again: 600")
    add("--spot-hours", type=float, default=24.0, help="mean life of a spot node: 24")
    add("--storage", type=float, default=100.0, help="GB/s at which all workers together read weights: 100")
    add("--slow-workers", type=float, default=0.1, help="sigma of how slow workers are: 0.1")
    add("--slow-units", type=float, default=0.1, help="the same of units: 0.1")
    add("--seeds", type=int, default=5, help="simulations of each line: 5")
    return parser


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(slope, intercept), neither below 0, of the line with the least squares of relative errors."""
    (slope, intercept), _ = nnls(np.stack([x / x.max(), np.ones_like(x)], axis=1) / y[:, None], np.ones_like(y))
    return float(slope / x.max()), float(intercept)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _seconds(work: Callable[[], Any]) -> float:
    return _timed(work)[0]


if __name__ == "__main__":
    main()
