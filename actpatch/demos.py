"""What the two demo scripts do: patch layers and positions, or heads, print what comes back, and write the report.

The heads' report has layers and positions too, so that it can take the other's place. The scripts themselves hold
their first lines alone.
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

from actpatch.core.components import PATCH_TYPE_ALIASES, PATCH_TYPES
from actpatch.core.direction import DIRECTIONS
from actpatch.models.load import can_be_loaded, load_model
from actpatch.patchers.activation import ActivationPatcher, summarize_results
from actpatch.patchers.heads import HeadPatcher, print_head_results
from actpatch.report.full import create_full_report
from actpatch.results.files import writable_folder
from actpatch.results.shapes import LayerResults, PositionResults
from actpatch.results.text import WIDTH
from actpatch.tasks.ioi import IOI_CORRUPTIONS, IOIDataset
from actpatch.tasks.words import IOI_SCENE_TEMPLATES

IMPORTANT = 0.1
"""Heads whose |effect| is at least this are listed."""


def layer_demo(argv: list[str] | None, description: str | None) -> int:
    """Patch layers, then positions. Returns the script's exit code."""
    return guarded(_run_layers, arguments(description).parse_args(argv))


def head_demo(argv: list[str] | None, description: str | None) -> int:
    """Patch heads. Returns the script's exit code."""
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

    positions = patch_positions(patcher, args)
    n_pairs = len(positions.sweep.pair_indices)
    say(f"\nResidual stream before a layer, one position at a time, on {n_pairs} pairs of one scene:")
    for patch, effect in positions.top(args.top_k):
        print(f"{patch.label:<16}  {effect:+.3f}")

    list_figures(create_full_report(layer_results=layers, position_results=positions, save_dir=out))


def _run_heads(args: argparse.Namespace) -> None:
    out = _out(args)
    model = choose_model(args.model, args.device)
    dataset = _dataset(model, args)
    patcher = HeadPatcher(model, show_progress=not args.quiet)
    heads = patcher.run_all_heads_experiment(dataset, patch_type=args.patch_type, direction=args.direction)
    print_head_results(heads, top_k=args.top_k)

    important = patcher.find_important_heads(heads, threshold=IMPORTANT)
    say(f"\n|effect| of at least {IMPORTANT}: {', '.join(head.label for head in important) or 'none'}")
    if heads.patch_type == "output" and not args.quiet:
        moved_by_what_they_read(patcher, dataset, args, [head.label for head in important])

    # The report compares the heads with the layers they are part of, and takes the place of one of layers alone.
    layers, positions = patch_layers(patcher.patcher, dataset, args), patch_positions(patcher.patcher, args)
    list_figures(create_full_report(head_results=heads, layer_results=layers, position_results=positions, save_dir=out))


def patch_layers(patcher: ActivationPatcher, dataset: IOIDataset, args: argparse.Namespace) -> LayerResults:
    """The attention and the MLP of every layer, each patched at all positions at once."""
    return patcher.run_patching_experiment(dataset, ["attn_out", "mlp_out"], direction=args.direction)


def patch_positions(patcher: ActivationPatcher, args: argparse.Namespace) -> PositionResults:
    """The residual stream before every layer, position by position.

    Positions are comparable only between prompts of the same words, so the map is of a single scene.
    """
    scene = IOI_SCENE_TEMPLATES[:1]
    alike = IOIDataset(patcher.model, args.pairs, corruption=args.corruption, seed=args.seed, templates=scene)
    return patcher.run_position_experiment(alike, "resid_pre", direction=args.direction)


def moved_by_what_they_read(
    patcher: HeadPatcher, dataset: IOIDataset, args: argparse.Namespace, important: list[str]
) -> None:
    """Where the output of a head matters and its pattern does not, what it reads has changed, not where it looks."""
    patterns = patcher.run_all_heads_experiment(dataset, patch_type="pattern", direction=args.direction)
    effects = {head.label: head.effect for head in patterns}
    for label in important:
        print(f"  {label}: {effects[label]:+.3f} when its attention pattern alone is patched")


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", help="name or directory (default: gpt2-small, or `tiny` where it cannot be had)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: cuda where there is one)")
    parser.add_argument("--pairs", type=int, default=10, help="number of prompt pairs (default: 10)")
    parser.add_argument("--corruption", choices=IOI_CORRUPTIONS, default="swap_names", help="default: swap_names")
    parser.add_argument("--direction", choices=DIRECTIONS, default="denoising", help="default: denoising")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of names (default: 0)")
    parser.add_argument("--top-k", type=at_least_one, default=10, help="rows of each table (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the figures (default: ./figures)")
    parser.add_argument("--quiet", action="store_true", help="tables and paths alone: no progress, no introduction")
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
