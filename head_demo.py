"""Which attention heads make a language model name the right person?  Patches every head, and draws what comes back.

The task is that of demo.py. What of a head is replaced is the patch type: its output z, its attention pattern (where
it attends), or its queries, keys or values.
"""

from __future__ import annotations

import argparse
import sys

from activation_patching import IOIDataset
from actpatch.core.components import PATCH_TYPES
from demo import arguments, choose_model, guarded, introduce, list_figures, patch_layers, say, writable
from head_patching import HeadPatcher, print_head_results
from visualize import create_full_report

IMPORTANT = 0.1
"""Heads whose |effect| is at least this are listed."""


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--patch-type", choices=PATCH_TYPES, default="output", help="default: output")
    parser.set_defaults(top_k=15)
    return guarded(run, parser.parse_args(argv))


def run(args: argparse.Namespace) -> None:
    out = writable(args.out)
    model = choose_model(args.model, args.device)
    dataset = IOIDataset(model, args.pairs, corruption=args.corruption, seed=args.seed)
    if not args.quiet:
        introduce(dataset)
    patcher = HeadPatcher(model, show_progress=not args.quiet)
    heads = patcher.run_all_heads_experiment(dataset, patch_type=args.patch_type, direction=args.direction)
    print_head_results(heads, top_k=args.top_k)

    important = patcher.find_important_heads(heads, threshold=IMPORTANT)
    say(f"\n|effect| of at least {IMPORTANT}: {', '.join(head.label for head in important) or 'none'}")
    if args.patch_type == "output" and not args.quiet:
        moved_by_what_they_read(patcher, dataset, args, [head.label for head in important])

    # The report compares the heads with the layers they are part of.
    layers = patch_layers(patcher.patcher, dataset, args)
    list_figures(create_full_report(head_results=heads, layer_results=layers, save_dir=out))


def moved_by_what_they_read(
    patcher: HeadPatcher, dataset: IOIDataset, args: argparse.Namespace, important: list[str]
) -> None:
    """Where the output of a head matters and its pattern does not, what it reads has changed, not where it looks."""
    patterns = patcher.run_all_heads_experiment(dataset, patch_type="pattern", direction=args.direction)
    effects = {head.label: head.effect for head in patterns}
    for label in important:
        print(f"  {label}: {effects[label]:+.3f} when its attention pattern alone is patched")


if __name__ == "__main__":
    sys.exit(main())
