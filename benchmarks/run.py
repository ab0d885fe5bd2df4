"""How fast is a sweep, and are its numbers the same?  One table, every row measured in this run.

    python benchmarks/run.py                 all rows that can be run here (about an hour on two cores)
    python benchmarks/run.py --rows 1 2      the first two rows
    python benchmarks/run.py --out FILE      also write the table as Markdown

For each row, the sweep is run by this library and by its peers in turn (A B A B ...), and the median of each is taken:
TransformerLens' own `transformer_lens.patching` on the same model and a plain loop of `run_with_hooks`, one patch per
forward pass. A peer that would take long is run on a share of the patches, and its time scaled up (marked ~). The
largest absolute difference between our metric and the plain loop's is over the patches that both ran.

The floor is the time that the exact work would take if nothing but its matrix products cost anything: their number of
floating-point operations, counted from shapes after every saving, at the rate that this machine reached on large
products in the same run.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformer_lens
from transformer_lens import patching as peer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ioi_task import IOIDataset
from model_loading import load_model
from patching_engine import PatchingEngine
from patching_metrics import Answers, LogitDifference
from patching_sites import Patch, Site, block_hook
from patching_tasks import EncodedPairs, dataset_metrics, encode_pairs

PEER_SWEEPS = {
    "z": "get_act_patch_attn_head_out_all_pos",
    "pattern": "get_act_patch_attn_head_pattern_all_pos",
    "resid_pre": "get_act_patch_resid_pre",
    "attn_out": "get_act_patch_attn_out",
    "mlp_out": "get_act_patch_mlp_out",
}
BY_POSITION = ("resid_pre", "attn_out", "mlp_out")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    component: str
    n_pairs: int
    corruption: str

    @property
    def label(self) -> str:
        what = f"{self.component} by position" if self.component in BY_POSITION else f"heads {self.component}"
        return f"{self.model} | {what} | {self.n_pairs} | {self.corruption}"


def rows(smol: bool) -> list[Row]:
    """Every combination that the table shows."""
    table = [Row("gpt2-small shape", "z", n, c) for c in ("flip_subject", "swap_names") for n in (5, 1, 32)]
    table += [Row("gpt2-small shape", name, 5, "flip_subject") for name in ("pattern", *BY_POSITION)]
    if smol:
        table += [Row("SmolLM2-135M", "z", n, c) for n in (1, 5) for c in ("flip_subject", "swap_names")]
        table += [Row("SmolLM2-135M", "resid_pre", 1, "flip_subject")]
    table += [Row("tiny", name, 5, "flip_subject") for name in ("z", "pattern", "resid_pre")]
    return table


@dataclass(frozen=True)
class Measured:
    """Seconds and differences of one row."""

    ours: float
    peer: float
    peer_share: float
    loop: float
    loop_share: float
    difference: float
    floor: float


class Contest:
    """A model and the sweeps that are run on it."""

    def __init__(self, model: Any, encoded: Callable[[Row], tuple[EncodedPairs, LogitDifference]]) -> None:
        self.model, self.encoded = model, encoded
        self.engine = PatchingEngine(model, show_progress=False)

    def measure(self, row: Row, repeats: int, budget: float, rate: float) -> Measured:
        pairs, metric = self.encoded(row)
        patches = self._patches(row, pairs)
        self.engine.sweep(pairs, patches[:2], [metric])
        seconds: dict[str, list[float]] = {"ours": [], "peer": [], "loop": []}
        shares = {"peer": self._share(row, pairs, metric, budget), "loop": 0.0}
        shares["loop"] = min(1.0, max(4 / len(patches), shares["peer"] / 4))
        some = patches[:: max(1, round(1 / shares["loop"]))]
        shares["loop"] = len(some) / len(patches)
        for _ in range(repeats):
            began = time.perf_counter()
            ours = self.engine.sweep(pairs, patches, [metric]).patched[0]
            seconds["ours"].append(time.perf_counter() - began)
            began = time.perf_counter()
            self._peer_sweep(row, pairs, metric, shares["peer"])
            seconds["peer"].append(time.perf_counter() - began)
        began = time.perf_counter()
        looped = self._loop(pairs, some, metric)
        seconds["loop"].append(time.perf_counter() - began)
        where = [patches.index(patch) for patch in some]
        difference = float(abs(torch.tensor(ours[where]) - looped).max())
        return Measured(
            ours=statistics.median(seconds["ours"]),
            peer=statistics.median(seconds["peer"]) / shares["peer"],
            peer_share=shares["peer"],
            loop=seconds["loop"][0] / shares["loop"],
            loop_share=shares["loop"],
            difference=difference,
            floor=exact_flops(self.model.cfg, patches, pairs) / rate,
        )

    def _patches(self, row: Row, pairs: EncodedPairs) -> list[Patch]:
        layers, name = range(self.model.cfg.n_layers), row.component
        if name in BY_POSITION:
            longest = int(pairs.lengths.max())
            return [Patch((Site(block_hook(layer, name), position=p),)) for layer in layers for p in range(longest)]
        heads = range(self.model.cfg.n_heads)
        return [Patch((Site(block_hook(layer, name), head=head),)) for layer in layers for head in heads]

    def _share(self, row: Row, pairs: EncodedPairs, metric: LogitDifference, budget: float) -> float:
        """How much of the peer's sweep fits into the time that one repetition may take."""
        with torch.no_grad():
            self.model(torch.stack(pairs.corrupted))
            began = time.perf_counter()
            self.model(torch.stack(pairs.corrupted))
        whole = (time.perf_counter() - began) * len(self._patches(row, pairs))
        layers = self.model.cfg.n_layers
        return 1.0 if whole <= budget else max(1, int(layers * budget / whole)) / layers

    def _peer_sweep(self, row: Row, pairs: EncodedPairs, metric: LogitDifference, share: float) -> None:
        """TransformerLens' own sweep; over the first layers where a share is asked for, each costs it the same."""
        sweep = getattr(peer, PEER_SWEEPS[row.component])
        clean, corrupted = torch.stack(pairs.clean), torch.stack(pairs.corrupted)
        everyone = torch.arange(len(pairs))

        def score(logits: torch.Tensor) -> torch.Tensor:
            return metric.measure(logits[:, -1:][..., metric.tokens], everyone).mean()

        layers = self.model.cfg.n_layers
        with torch.no_grad():
            _, cache = self.model.run_with_cache(clean)
            try:
                self.model.cfg.n_layers = round(layers * share)
                sweep(self.model, corrupted, cache, score)
            finally:
                self.model.cfg.n_layers = layers

    def _loop(self, pairs: EncodedPairs, patches: list[Patch], metric: LogitDifference) -> torch.Tensor:
        """One `run_with_hooks` per patch on all pairs."""
        clean, corrupted = torch.stack(pairs.clean), torch.stack(pairs.corrupted)
        names = {patch.sites[0].hook_point for patch in patches}
        everyone, found = torch.arange(len(pairs)), []
        with torch.no_grad():
            _, cache = self.model.run_with_cache(clean, names_filter=lambda name: name in names)
            for patch in patches:
                site = patch.sites[0]

                def write(value: torch.Tensor, hook: Any, site: Site = site) -> torch.Tensor:
                    index: list[Any] = [slice(None)] * value.ndim
                    if site.head is not None:
                        index[1 if site.component == "pattern" else 2] = site.head
                    if site.position is not None:
                        index[1] = site.position
                    value = value.clone()
                    value[tuple(index)] = cache[site.hook_point][tuple(index)]
                    return value

                logits = self.model.run_with_hooks(corrupted, fwd_hooks=[(site.hook_point, write)])
                found.append(metric.measure(logits[:, -1:][..., metric.tokens], everyone))
        return torch.stack(found).double()


def exact_flops(cfg: Any, patches: list[Patch], pairs: EncodedPairs) -> float:
    """Floating-point operations of the matrix products that a sweep cannot do without.

    Per token and layer: the attention's four projections and the MLP's matrices, two operations per weight. A row
    starts in its own layer (heads and attn_out: with that layer's MLP alone) and at its first changed token; in the
    last layer, only keys and values are needed of other tokens than the last.
    """
    kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    keys_values = 2 * 2 * cfg.d_model * kv_heads * cfg.d_head
    attention = keys_values + 2 * 2 * cfg.d_model * cfg.n_heads * cfg.d_head
    mlp = 2 * (3 if cfg.gated_mlp else 2) * cfg.d_model * cfg.d_mlp
    last, total = cfg.n_layers - 1, 0.0
    lengths, first = pairs.lengths.tolist(), pairs.first_difference.tolist()
    for site in (patch.sites[0] for patch in patches):
        for length, differs in zip(lengths, first):
            start = differs if site.position is None else site.position
            if start < differs:
                continue
            tokens = length - start
            whole_layers = max(0, last - site.layer - 1)
            own = {"z": mlp, "attn_out": mlp, "mlp_out": 0.0}.get(site.component, attention + mlp)
            if site.layer == last:
                total += own if own <= mlp else tokens * keys_values + own - keys_values
            else:
                total += tokens * (own + whole_layers * (attention + mlp))
                total += tokens * keys_values + attention - keys_values + mlp
    return total


def product_rate() -> float:
    """Floating-point operations per second that large float32 matrix products reach here."""
    a, b = torch.randn(2048, 768), torch.randn(3072, 768)
    torch.nn.functional.linear(a, b)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        torch.nn.functional.linear(a, b)
        times.append(time.perf_counter() - began)
    return 2 * 2048 * 768 * 3072 / statistics.median(times)


def gpt2_shaped() -> Contest:
    """GPT-2 small's shape with random weights, on IOI prompts as random tokens: 16 tokens, names at 2, 4 and 11."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=12, n_heads=12, d_model=768, d_head=64, d_mlp=3072, n_ctx=1024, d_vocab=50257,
            act_fn="gelu_new", normalization_type="LNPre", seed=0, initializer_range=0.06,
        )
    ).eval()  # fmt: skip
    return Contest(model, _random_ioi)


def _random_ioi(row: Row) -> tuple[EncodedPairs, LogitDifference]:
    chooser = torch.Generator().manual_seed(0)
    clean, corrupted, names = [], [], []
    for _ in range(row.n_pairs):
        prompt = torch.randint(1, 50000, (16,), generator=chooser)
        io, subject = torch.randperm(50000, generator=chooser)[:2].tolist()
        prompt[[2, 4, 11]] = torch.tensor([io, subject, subject])
        other = prompt.clone()
        other[[2, 4, 11]] = torch.tensor([io, subject, io] if row.corruption == "flip_subject" else [subject, io, io])
        clean.append(prompt), corrupted.append(other), names.append((io, subject))
    strings = tuple(tuple(map(str, prompt.tolist())) for prompt in clean)
    pairs = EncodedPairs(tuple(range(row.n_pairs)), tuple(clean), tuple(corrupted), strings, strings)
    correct, incorrect = (tuple((token,) for token in ids) for ids in zip(*names))
    return pairs, LogitDifference(Answers(correct, incorrect))


def trained(name_or_path: str, model_class: Any) -> Contest:
    """A trained model on IOI pairs of one length."""
    model = load_model(name_or_path, device="cpu", model_class=model_class)

    def encoded(row: Row) -> tuple[EncodedPairs, LogitDifference]:
        dataset = IOIDataset(model, n_pairs=8 * row.n_pairs, corruption=row.corruption)
        pairs = encode_pairs(model, dataset)
        length = int(pairs.lengths.mode().values)
        chosen = [i for i, n in enumerate(pairs.lengths.tolist()) if n == length][: row.n_pairs]
        (metric,) = dataset_metrics(model, dataset, chosen)
        assert isinstance(metric, LogitDifference)
        return encode_pairs(model, dataset, chosen), metric

    return Contest(model, encoded)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", help="numbers of the rows to run, from 1; all by default")
    parser.add_argument("--smol", metavar="DIR", help="a SmolLM2-135M checkpoint; without it its rows are left out")
    parser.add_argument("--repeats", type=int, default=3, help="interleaved repetitions of which the median is taken")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds a peer may take for one repetition")
    parser.add_argument("--bridge", action="store_true", help="use TransformerBridge (always so from 4.0 on)")
    parser.add_argument("--out", type=Path, help="file to write the table to, as Markdown")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    bridge = args.bridge or not hasattr(transformer_lens, "HookedTransformer")
    chosen = [row for row in rows(bool(args.smol)) if not (bridge and row.model.startswith("gpt2"))]
    chosen = [row for i, row in enumerate(chosen, 1) if not args.rows or i in args.rows]
    rate = product_rate()
    text = [
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"{rate / 1e9:.0f} GFLOP/s on large products; torch {torch.__version__}, "
        f"TransformerLens {'bridge' if bridge else 'HookedTransformer'}; {time.strftime('%Y-%m-%d')}",
        "",
        "| model | sweep | pairs | corruption | ours, s | TransformerLens, s | ratio | plain loop, s | ratio | "
        "largest difference | floor, s | ours / floor |",
        "|" + "---|" * 12,
    ]
    print("\n".join(text), flush=True)
    contests: dict[str, Contest] = {}
    for row in chosen:
        if row.model not in contests:
            model_class = "TransformerBridge" if bridge else "HookedTransformer"
            path = {"tiny": "tiny", "SmolLM2-135M": args.smol}.get(row.model)
            contests = {row.model: trained(path, model_class) if path else gpt2_shaped()}
        m = contests[row.model].measure(row, args.repeats, args.budget, rate)
        line = (
            f"| {row.label} | {m.ours:.2f} | {'~' * (m.peer_share < 1)}{m.peer:.1f} | {m.peer / m.ours:.1f} | "
            f"{'~' * (m.loop_share < 1)}{m.loop:.1f} | {m.loop / m.ours:.1f} | {m.difference:.1e} | {m.floor:.2f} | "
            f"{m.ours / m.floor:.2f} |"
        )
        print(line, flush=True)
        text.append(line)
    if args.out:
        args.out.write_text("\n".join(text) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
