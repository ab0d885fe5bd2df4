"""Which layers make a language model name the right person?  Patches layers, then positions, and draws what comes back.

The task is indirect object identification: "When Mary and John went to the store, John gave a drink to" is continued
with " Mary". Activations of that run are put into a run on a corrupted prompt, one component at a time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from activation_patching import ActivationPatcher, IOIDataset, summarize_results
from actpatch.core.direction import DIRECTIONS
from actpatch.results.shapes import LayerResults
from actpatch.results.text import WIDTH
from actpatch.tasks.ioi import IOI_CORRUPTIONS
from actpatch.tasks.words import IOI_SCENE_TEMPLATES
from model_loading import can_be_loaded, load_model
from visualize import create_full_report


def main(argv: list[str] | None = None) -> int:
    return guarded(run, arguments(__doc__).parse_args(argv))


def run(args: argparse.Namespace) -> None:
    out = writable(args.out)
    model = choose_model(args.model, args.device)
    dataset = IOIDataset(model, args.pairs, corruption=args.corruption, seed=args.seed)
    if not args.quiet:
        introduce(dataset)
    patcher = ActivationPatcher(model, show_progress=not args.quiet)
    layers = patch_layers(patcher, dataset, args)
    summarize_results(layers, top_k=args.top_k)

    # Positions are comparable only between prompts of the same words, so the map is drawn for a single scene.
    scene = IOI_SCENE_TEMPLATES[:1]
    alike = IOIDataset(model, args.pairs, corruption=args.corruption, seed=args.seed, templates=scene)
    positions = patcher.run_position_experiment(alike, "resid_pre", direction=args.direction)
    say(f"\nResidual stream before a layer, one position at a time, on {len(alike)} pairs of one scene:")
    for patch, effect in positions.top(args.top_k):
        print(f"{patch.label:<16}  {effect:+.3f}")

    list_figures(create_full_report(layer_results=layers, position_results=positions, save_dir=out))


def patch_layers(patcher: ActivationPatcher, dataset: IOIDataset, args: argparse.Namespace) -> LayerResults:
    """The attention and the MLP of every layer, each patched at all positions at once."""
    return patcher.run_patching_experiment(dataset, ["attn_out", "mlp_out"], direction=args.direction)


# --- shared with head_demo.py -----------------------------------------------------------------------------------------


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


def writable(folder: Path) -> Path:
    """The folder, created where needed. Tried before the model is run, so that no result is lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"cannot write to --out {folder} ({error.strerror}): give a folder that can be written") from None
    return folder


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


if __name__ == "__main__":
    sys.exit(main())
