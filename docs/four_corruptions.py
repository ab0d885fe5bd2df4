"""The same map of heads under IOI's four corruptions, in both directions: what does each show, and what does it hide?

Prints, as Markdown, what docs/four-corruptions.md is made of, and writes its figure:

    python -m docs.four_corruptions MODEL --figure docs/four_corruptions.png > numbers.md

MODEL is what `load_model` takes; the page is of SmolLM2-135M-Instruct, a directory with its checkpoint. Everything is
drawn from seed 0. A figure that ends in .png needs the extra `images`, one that ends in .html nothing.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from plotly.subplots import make_subplots
from scipy import stats

from activation_patching import (
    ActivationPatcher,
    AgreementDataset,
    BothDirections,
    CapitalsDataset,
    GenderedPronounDataset,
    HeadResults,
    InductionDataset,
    IOIDataset,
    check_dataset,
)
from head_patching import HeadPatcher
from model_loading import load_model
from visualize import save_figure

CORRUPTIONS = ("swap_names", "flip_subject", "unrelated_names", "swap_order")
TASKS = (IOIDataset, InductionDataset, GenderedPronounDataset, AgreementDataset, CapitalsDataset)
TOP = 10
THRESHOLD = 0.1
"""The least effect that counts as sufficient or necessary."""
READINGS = ("both", "sufficient", "necessary", "neither")
SEED = 0
COLOUR_RANGE = 0.3
"""Effects beyond this have the strongest colour."""
ATTENDED = {"S2": ("S1", "S1+1"), "S1+1": ("S1",), "END": ("IO", "S1", "S2")}
"""Query position -> key positions whose attention tells the kinds of heads of Wang et al. 2022 apart."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's directory, or a name that load_model knows")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of each dataset (default: 16)")
    parser.add_argument("--figure", type=Path, default=Path("four_corruptions.html"), help="where the figure goes")
    args = parser.parse_args(argv)
    model = load_model(args.model, device="cpu")

    datasets = {
        corruption: IOIDataset(model, args.pairs, corruption=corruption, seed=SEED) for corruption in CORRUPTIONS
    }
    print("## What the check says\n")
    for dataset in datasets.values():
        print(f"```\n{check_dataset(model, dataset)}\n```\n")

    found = head_maps(model, datasets)
    save_figure(figure(found), args.figure)
    maps = by_name(found)
    print("## The maps\n")
    print_maps(maps)
    for name, results in maps.items():
        print_top(name, results)
    print_readings(found)
    print_agreement(maps)
    print_attention(model, datasets["swap_names"], found)
    print_tasks(model, args.pairs)


def head_maps(model: Any, datasets: dict[str, IOIDataset]) -> dict[str, BothDirections[HeadResults]]:
    """Corruption -> the effect of every head's output z, in both directions."""
    patcher = HeadPatcher(model, show_progress=False)
    return {name: patcher.run_all_heads_experiment(data, direction="both") for name, data in datasets.items()}


def by_name(found: dict[str, BothDirections[HeadResults]]) -> dict[str, HeadResults]:
    """Every map by itself."""
    return {name: both.denoising for name, both in found.items()} | {
        f"{name}, noising": both.noising for name, both in found.items()
    }


def figure(found: dict[str, BothDirections[HeadResults]]) -> Any:
    """Every map in one scale: a column per corruption, a row per direction."""
    whole = make_subplots(
        2, len(found), shared_xaxes=True, shared_yaxes=True, column_titles=list(found),
        row_titles=["denoising", "noising"], horizontal_spacing=0.015, vertical_spacing=0.03,
    )  # fmt: skip
    for column, both in enumerate(found.values(), 1):
        for row, results in enumerate((both.denoising, both.noising), 1):
            whole.add_heatmap(z=results.matrix(), coloraxis="coloraxis", row=row, col=column)
        whole.update_xaxes(title_text="head", row=2, col=column)
    whole.update_xaxes(dtick=2)
    whole.update_yaxes(autorange="reversed")
    whole.update_yaxes(title_text="layer", col=1)
    whole.update_layout(
        coloraxis={"colorscale": "RdBu", "cmin": -COLOUR_RANGE, "cmax": COLOUR_RANGE, "colorbar": {"title": "effect"}},
        template="plotly_white",
        width=1000,
        height=860,
        margin={"l": 55, "r": 10, "t": 40, "b": 45},
    )
    return whole


def print_maps(maps: dict[str, HeadResults]) -> None:
    print("| map | clean | corrupted | usable pairs | significant heads | split halves agree | largest effect |")
    print("|---|---|---|---|---|---|---|")
    for name, results in maps.items():
        sweep, sure = results.sweep, results.statistics(seed=SEED)
        print(
            f"| {name} | {sweep.clean.mean():+.2f} | {sweep.corrupted.mean():+.2f} | "
            f"{sweep.usable.sum()} of {len(sweep.usable)} | {sure.significant.sum()} of {len(sure.sites)} | "
            f"{sure.split_half:.2f} | {np.abs(sure.effect).max():.2f} |"
        )


def print_top(name: str, results: HeadResults) -> None:
    table = results.statistics(seed=SEED).to_dataframe()
    base = results.sweep.base[results.sweep.usable].mean()
    table = table.assign(label=[h.label for h in results], change=[h.patched_metric - base for h in results])
    table = table.iloc[np.argsort(-table["effect"].abs().to_numpy())].head(TOP)
    print(f"\n### {name}\n\n| head | effect | 95 % interval | corrected p | change in logits |")
    print("|---" * 5 + "|")
    for row in table.itertuples():
        p = "<0.001" if row.p_corrected < 0.0005 else f"{row.p_corrected:.3f}"
        print(f"| {row.label} | {row.effect:+.3f} | {row.low:+.3f} to {row.high:+.3f} | {p} | {row.change:+.2f} |")


def print_readings(found: dict[str, BothDirections[HeadResults]]) -> None:
    """How many heads are sufficient, necessary, both or neither, and where the two directions part the most."""
    print(f"\n## Sufficient and necessary\n\n| corruption | {' | '.join(READINGS)} | the directions part most at |")
    print("|---" * (2 + len(READINGS)) + "|")
    for name, both in found.items():
        reading = both.reading(THRESHOLD)
        counts = (str((reading["reading"] == kind).sum()) for kind in READINGS)
        apart = reading.assign(apart=(reading["denoising"] - reading["noising"]).abs()).nlargest(3, "apart")
        told = (f"{row.site} ({row.denoising:+.2f} / {row.noising:+.2f})" for row in apart.itertuples())
        print(f"| {name} | {' | '.join(counts)} | {', '.join(told)} |")


def print_agreement(maps: dict[str, HeadResults]) -> None:
    """Correlation over all heads, and number of shared top heads, of two corruptions and of two directions."""
    effects = {name: np.array([head.effect for head in results]) for name, results in maps.items()}
    top = {name: {head.label for head in results.top(TOP)} for name, results in maps.items()}
    print(f"\n## Agreement\n\n| two maps | Spearman | Pearson | shared of the top {TOP} |\n|---|---|---|---|")
    of_two = itertools.combinations(CORRUPTIONS, 2)
    for one, other in (*of_two, *((name, f"{name}, noising") for name in CORRUPTIONS)):
        rank, linear = (f(effects[one], effects[other])[0] for f in (stats.spearmanr, stats.pearsonr))
        print(f"| {one} / {other} | {rank:+.2f} | {linear:+.2f} | {len(top[one] & top[other])} |")


def print_attention(model: Any, dataset: IOIDataset, found: dict[str, BothDirections[HeadResults]]) -> None:
    """Where the heads that stand out in any map attend in the clean prompts, beside their effects in each map."""
    patcher = ActivationPatcher(model, show_progress=False)
    totals: dict[tuple[str, str], np.ndarray] = {}
    for i, (clean, _) in enumerate(dataset.get_clean_corrupt_pairs()):
        at = dataset.get_positions(i)
        _, patterns = patcher.run_with_cache(clean, "pattern")
        attention = np.stack([pattern[0].numpy() for pattern in patterns.values()])  # layer, head, query, key
        for query, keys in ATTENDED.items():
            for key in keys:
                seen = attention[:, :, at[query], at[key]] / len(dataset)
                totals[query, key] = totals.get((query, key), 0) + seen
    working = [both for name, both in found.items() if name != "swap_order"]
    heads = {
        (head.layer, head.head): head.label
        for both in working
        for results in (both.denoising, both.noising)
        for head in results.top(TOP)
    }
    print(f"\n## Every head that is among the top {TOP} of a map of a working corruption: denoising / noising\n")
    print(f"| head | {' | '.join(found)} | {' | '.join(f'{q} to {k}' for q, k in totals)} |")
    print("|---" * (1 + len(found) + len(totals)) + "|")
    tables = [(both.denoising.matrix(), both.noising.matrix()) for both in found.values()]
    for cell, label in sorted(heads.items()):
        effects = (f"{denoising[cell]:+.2f} / {noising[cell]:+.2f}" for denoising, noising in tables)
        seen = (f"{total[cell]:.2f}" for total in totals.values())
        print(f"| {label} | {' | '.join(effects)} | {' | '.join(seen)} |")


def print_tasks(model: Any, n_pairs: int) -> None:
    print("\n## What SmolLM2-135M can do\n")
    print("| task | right over wrong | likeliest | clean | corrupted | usable pairs | verdict |")
    print("|---" * 7 + "|")
    checks = [check_dataset(model, task(model, n_pairs, seed=SEED)) for task in TASKS]
    for check in checks:
        print(
            f"| {check.task} | {check.clean_preference:.0%} | {check.clean_accuracy:.0%} | {check.clean_metric:+.2f} | "
            f"{check.corrupted_metric:+.2f} | {sum(check.usable)} of {len(check.usable)} | {check.verdict} |"
        )
    for check in checks:
        if check.verdict != "ready":
            print(f"\n```\n{check}\n```")


if __name__ == "__main__":
    main()
