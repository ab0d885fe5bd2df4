"""What the two demo scripts do: patch layers and positions, or heads, print and conclude, and write one report.

The heads' report has layers and positions too, and takes the other's place. The scripts themselves hold their first
lines alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from actpatch.core.components import PATCH_TYPE_ALIASES, PATCH_TYPES
from actpatch.core.direction import DIRECTIONS
from actpatch.core.text import number, plain
from actpatch.models.load import can_be_loaded, load_model
from actpatch.patchers.activation import ActivationPatcher, summarize_results
from actpatch.patchers.heads import HeadPatcher, print_head_results
from actpatch.report.full import create_full_report
from actpatch.results.files import writable_folder
from actpatch.results.headline import headline
from actpatch.results.shapes import HeadResults, LayerResults, PositionResults
from actpatch.results.text import WIDTH
from actpatch.tasks.ioi import IOI_CORRUPTIONS, IOIDataset

SHOWN_HEADS = 4
"""So many significant heads are looked into."""
MOVED = 0.25
"""So much less at one position and more at another, from one layer to the next, is told."""


def layer_demo(argv: list[str] | None, description: str | None) -> int:
    """Patch layers, then positions. Returns the script's exit code."""
    return guarded(_run_layers, arguments(description).parse_args(argv))


def head_demo(argv: list[str] | None, description: str | None) -> int:
    """Patch heads, then look into the largest. Returns the script's exit code."""
    parser = arguments(description)
    parser.add_argument(
        "--patch-type", choices=[*PATCH_TYPES, *PATCH_TYPE_ALIASES], default="output", help="default: output"
    )
    parser.set_defaults(top_k=15)
    return guarded(_run_heads, parser.parse_args(argv))


def _run_layers(args: argparse.Namespace) -> None:
    out = _out(args)
    model = choose_model(args.model, args.device)
    dataset = _dataset(model, args)
    patcher = ActivationPatcher(model, show_progress=not args.quiet)
    layers = patch_layers(patcher, dataset, args)
    summarize_results(layers, top_k=args.top_k)
    say(f"\n{headline(layers)}.")

    positions = patch_positions(patcher, dataset, args)
    print(f"\n{position_table(positions)}")
    if sentence := where_it_moves(positions):
        say(f"\n{sentence}")
    list_figures(create_full_report(layer_results=layers, position_results=positions, save_dir=out))


def _run_heads(args: argparse.Namespace) -> None:
    out = _out(args)
    model = choose_model(args.model, args.device)
    dataset = _dataset(model, args)
    patcher = HeadPatcher(model, show_progress=not args.quiet)
    heads = patcher.run_all_heads_experiment(dataset, patch_type=args.patch_type, direction=args.direction)
    print_head_results(heads, top_k=args.top_k)
    say(f"\n{headline(heads)}.")
    significant = patcher.find_important_heads(heads, threshold=None, alpha=0.05) if can_tell(heads) else []
    cards = None
    if heads.patch_type == "output" and significant:
        cards = patcher.describe_heads(dataset, significant[:SHOWN_HEADS])
        for card in cards:
            say(f"\n{card.label}: {card.summary}")

    # One report of both demos: it has the layers that the heads are part of, and the positions.
    layers = patch_layers(patcher.patcher, dataset, args)
    positions = patch_positions(patcher.patcher, dataset, args)
    given = {"head_results": heads, "layer_results": layers, "position_results": positions, "head_cards": cards}
    list_figures(create_full_report(**given, save_dir=out))


def patch_layers(patcher: ActivationPatcher, dataset: IOIDataset, args: argparse.Namespace) -> LayerResults:
    """The attention and the MLP of every layer, each patched at all positions at once."""
    return patcher.run_patching_experiment(dataset, ["attn_out", "mlp_out"], direction=args.direction)


def patch_positions(patcher: ActivationPatcher, dataset: IOIDataset, args: argparse.Namespace) -> PositionResults:
    """The residual stream before every layer, at each position that the task names.

    By name pairs are aligned in which another name stands first.
    """
    return patcher.run_position_experiment(
        dataset, "resid_pre", positions=[*dataset.roles, "END"], direction=args.direction
    )


def position_table(positions: PositionResults) -> str:
    names = positions.names or []
    rows = ["  ".join(f"{plain(effect, 2):>6}" for effect in row) for row in positions.matrix()]
    lines = [f"before layer {layer:<3}  {row}" for layer, row in enumerate(rows)]
    head = f"{'effect of the residual':<22}\n{'stream at':<16}  {'  '.join(f'{name:>6}' for name in names)}"
    return "\n".join([head, *lines])


def where_it_moves(positions: PositionResults) -> str:
    """What the table says of the layers that carry what decides from one of the positions to another; else nothing."""
    names, table = positions.names or [], positions.matrix()
    lines = []
    for layer, change in enumerate(np.diff(table, axis=0)):
        lost, won = int(change.argmin()), int(change.argmax())
        if min(-change[lost], change[won]) >= MOVED:
            told = [
                f"{names[at]} {number(table[layer, at])} before it and {number(table[layer + 1, at])} after"
                for at in (lost, won)
            ]
            lines.append(f"Layer {layer} carries what decides from {names[lost]} to {names[won]}: {', '.join(told)}.")
    return "\n".join(lines)


def can_tell(results: HeadResults) -> bool:
    """Whether so many pairs can tell which heads are significant."""
    try:
        return results.statistics().tells_significance
    except ValueError:
        return False


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", help="name or directory (default: gpt2-small, or `tiny` where it cannot be had)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: cuda where there is one)")
    parser.add_argument("--pairs", type=int, default=20, help="number of prompt pairs (default: 20)")
    parser.add_argument("--corruption", choices=IOI_CORRUPTIONS, default="flip_subject", help="default: flip_subject")
    parser.add_argument("--direction", choices=DIRECTIONS, default="denoising", help="default: denoising")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of names (default: 0)")
    parser.add_argument("--top-k", type=at_least_one, default=10, help="rows of each table (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures (default: ./figures)")
    parser.add_argument("--quiet", action="store_true", help="no progress, no introduction")
    return parser


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} was given, expected a whole number of at least 1")
    return int(text)


def guarded(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Exit code: 0, or 2 with one sentence where what was asked for cannot be done; 130 where the user ended it."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"Warning: {message}", file=sys.stderr)
            run(args)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads the output has seen enough; Python would complain once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
    return 0


def _out(args: argparse.Namespace) -> Path:
    """The folder for the figures. Tried before the model is run, so that no result is lost."""
    try:
        return writable_folder(args.out)
    except OSError as error:
        raise OSError(
            f"cannot write to --out {args.out} ({error.strerror}): give a folder that can be written"
        ) from None


def _dataset(model: Any, args: argparse.Namespace) -> IOIDataset:
    dataset = IOIDataset(model, args.pairs, corruption=args.corruption, seed=args.seed)
    if not args.quiet:
        introduce(dataset)
    return dataset


def choose_model(name: str | None, device: str | None) -> Any:
    reason = "the default" if name is None else "as asked for"
    if name is None and not can_be_loaded("gpt2-small"):
        name = "tiny"
        reason = "the bundled one: gpt2-small is not in the local cache, and the Hugging Face hub cannot be reached"
    name = "gpt2-small" if name is None else name
    model = load_model(name, device=device)
    say(f"Model: {name} ({reason}), {model.cfg.n_layers} layers × {model.cfg.n_heads} heads")
    return model


def say(text: str) -> None:
    """Print within the width of the tables."""
    print(*(textwrap.fill(line, WIDTH, subsequent_indent="    ") for line in text.split("\n")), sep="\n")


def introduce(dataset: IOIDataset) -> None:
    clean, corrupted = dataset.get_clean_corrupt_pairs()[0]
    answer, other = (dataset.model.to_string([token]) for token in dataset.get_target_tokens(0))
    say(f"Task: {dataset.name}, {len(dataset)} pairs; it varies {dataset.varies}")
    say(f"  clean:     {clean} ...{answer}, not{other}")
    say(f"  corrupted: {corrupted} ...\n")


def list_figures(paths: list[Path]) -> None:
    print("\nFigures:", *(path for path in paths if path.suffix == ".html"), sep="\n  ")
