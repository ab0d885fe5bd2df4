"""What the four demo scripts do: patch layers, heads or edges, or judge a circuit, conclude, and write one report.

Each report has what that of the script before has, and takes its place. The scripts themselves hold their first lines
alone.
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

from actpatch.circuits.curves import faithfulness_curve
from actpatch.circuits.evaluation import evaluate_circuit
from actpatch.circuits.patcher import CircuitPatcher
from actpatch.circuits.search import find_circuit
from actpatch.circuits.sensitivity import sensitivity_card
from actpatch.core.components import PATCH_TYPE_ALIASES, PATCH_TYPES
from actpatch.core.direction import DIRECTIONS
from actpatch.core.files import writable_folder
from actpatch.core.graph import Graph
from actpatch.core.text import count, number, plain
from actpatch.models.load import can_be_loaded, load_model
from actpatch.patchers.activation import ActivationPatcher, summarize_results
from actpatch.patchers.attribution import AttributionPatcher
from actpatch.patchers.heads import HeadPatcher, print_head_results
from actpatch.patchers.paths import PathPatcher
from actpatch.report.full import create_full_report
from actpatch.results.cards import HeadCards
from actpatch.results.edges import EdgeResults
from actpatch.results.faithfulness_curve import FaithfulnessCurve
from actpatch.results.headline import headline
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import HeadResults, LayerResults, SweepResults
from actpatch.results.text import WIDTH
from actpatch.tasks.ioi import IOI_CORRUPTIONS, IOIDataset

SHOWN_HEADS = 4
"""So many significant heads are looked into."""
MOST_EDGES = 1000
"""Of a graph with more edges, those among the largest heads are patched alone."""
MOST_ENDS = 8
"""So many heads are then senders and receivers."""
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


def path_demo(argv: list[str] | None, description: str | None) -> int:
    """Patch heads, then the edges into and out of them, then whole paths. Returns the script's exit code."""
    return guarded(_run_paths, arguments(description).parse_args(argv))


def circuit_demo(argv: list[str] | None, description: str | None) -> int:
    """Patch heads and edges, find a circuit on half of the pairs, and judge it on the others. Returns the script's exit
    code."""
    parser = arguments(description)
    parser.add_argument(
        "--share", type=float, default=0.9, help="of the behaviour that the circuit has to keep (default: 0.9)"
    )
    return guarded(_run_circuit, parser.parse_args(argv))


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
    cards = describe(patcher, dataset, heads)
    for card in cards or ():
        say(f"\n{card.label}: {card.summary}")
    list_figures(create_full_report(**of_all(patcher, dataset, heads, args), head_cards=cards, save_dir=out))


def _run_paths(args: argparse.Namespace) -> None:
    out = _out(args)
    model = choose_model(args.model, args.device)
    dataset = _dataset(model, args)
    of_heads = HeadPatcher(model, show_progress=not args.quiet)
    patcher = PathPatcher(model, show_progress=not args.quiet)
    graph = patcher.graph
    heads = of_heads.run_all_heads_experiment(dataset, direction=args.direction)
    say(f"Heads: {headline(heads)}.")

    senders, receivers = which_edges(graph, heads)
    edges = patcher.run_all_edges_experiment(dataset, senders=senders, receivers=receivers, direction=args.direction)
    which = f"{len(edges):,} of {len(graph):,}, among the largest heads" if senders else f"all {len(graph):,}"
    say(f"Edges: {which}.\n")
    summarize_results(edges, top_k=args.top_k)
    say(f"\n{headline(edges)}.")
    say(whole_and_parts(heads, edges))
    if asked := strongest_paths(edges):
        paths = patcher.run_path_experiment(dataset, asked, direction=args.direction)
        print()
        summarize_results(paths, top_k=args.top_k)
        say(f"\n{headline(paths)}.")

    given = of_all(of_heads, dataset, heads, args) | {"edge_results": edges}
    list_figures(create_full_report(**given, head_cards=describe(of_heads, dataset, heads), save_dir=out))


def _run_circuit(args: argparse.Namespace) -> None:
    out = _out(args)
    model = choose_model(args.model, args.device)
    dataset = _dataset(model, args)
    of_heads = HeadPatcher(model, show_progress=not args.quiet)
    heads = of_heads.run_all_heads_experiment(dataset, direction=args.direction)
    say(f"Heads: {headline(heads)}.")

    search = range((len(dataset) + 1) // 2)
    edges, how = rank_edges(model, dataset, search, args)
    circuit = find_circuit(edges, share=args.share)
    say(f"Edges: all {len(edges):,}, {how}, on {count(len(search), 'pair')}.")
    say(f"Circuit: {circuit}.\n")

    patcher = CircuitPatcher(model, show_progress=not args.quiet)
    judged = evaluate_circuit(patcher, dataset, circuit, seed=args.seed)
    say(judged.summary())
    curve = faithfulness_curve(patcher, dataset, edges, seed=args.seed)
    print(f"\n{size_table(curve)}\n")
    card = sensitivity_card(patcher, dataset, edges, n_edges=len(circuit), seed=args.seed)
    print(card)

    given = of_all(of_heads, dataset, heads, args) | {"edge_results": edges}
    found: dict[str, Any] = {"circuit_evaluation": judged, "faithfulness": curve, "sensitivity": card}
    list_figures(create_full_report(**given, **found, head_cards=describe(of_heads, dataset, heads), save_dir=out))


def rank_edges(model: Any, dataset: IOIDataset, pairs: range, args: argparse.Namespace) -> tuple[EdgeResults, str]:
    """All edges by their effects on some pairs, and how these were come by: estimated, of a graph with many edges."""
    exact = PathPatcher(model, show_progress=not args.quiet)
    options: dict[str, Any] = {"pair_indices": pairs, "direction": args.direction}
    if len(exact.graph) <= MOST_EDGES:
        return exact.run_all_edges_experiment(dataset, **options), "patched one by one"  # type: ignore[return-value]
    estimated = AttributionPatcher(model, show_progress=not args.quiet)
    return estimated.run_all_edges_experiment(dataset, method="eap_ig", **options), "estimated by eap_ig"  # type: ignore[return-value]


def size_table(curve: FaithfulnessCurve) -> str:
    """Faithfulness by size, beside that of random rankings, and the benchmark's areas."""
    f, random = curve.faithfulness().value, curve.random_faithfulness.mean(axis=0)
    rows = [
        f"{size:>7.1%}  {int(edges):>7,}  {number(of_top):>12}  {number(by_chance):>7}"
        for size, edges, of_top, by_chance in zip(curve.sizes, curve.nominal[-1], f, random)
    ]
    areas, signed = curve.areas("absolute"), curve.areas("signed")
    head = f"{'size':>7}  {'edges':>7}  {'faithfulness':>12}  {'random':>7}"
    return "\n".join([head, *rows, f"CMD {number(areas.cmd)}, CPR of the signed ranking {number(signed.cpr)}"])


def which_edges(graph: Graph, heads: HeadResults) -> tuple[list[str] | None, list[str] | None]:
    """Senders and receivers to narrow to; None for all, of a graph that can be patched whole in seconds."""
    if len(graph) <= MOST_EDGES:
        return None, None
    largest = heads.top(MOST_ENDS)
    receivers = ["logits"]
    for head in largest:
        shared = f"L{head.layer}KV{graph.key_value_head(head.layer, head.head)}"
        receivers += [f"{head.label} q", shared] if graph.is_grouped else [head.label]
    return ["input", *(head.label for head in largest)], receivers


def whole_and_parts(heads: HeadResults, edges: EdgeResults) -> str:
    """What the largest head does as a whole, and what its edges do one at a time."""
    head = heads.top(1)[0]
    own = edges.of(senders=head.label)
    (most,) = own.top(1)
    return (
        f"{head.label}: {number(head.effect)} as a whole; of its {count(len(own), 'edge')} patched here, one by one, "
        f"{number(most.effect)} at most ({most.label}), {number(float(own.sweep.effects.sum()))} in sum. Effects of "
        "edges need not add up to that of the head."
    )


def strongest_paths(edges: EdgeResults, most: int = SHOWN_HEADS) -> list[str]:
    """From the largest significant edges into the logits back: into each sender the largest significant edge, and on.

    These are candidates: that each step has an effect does not say that the path as a whole has one.

    Args:
        edges: results of edges.
        most: so many edges into the logits are followed back.
    """
    if not can_tell(edges):
        return []
    graph, of = edges.graph, edges.edges
    significant = edges.statistics().significant
    ranked = [i for i in np.argsort(-np.abs(edges.sweep.effects), kind="stable") if significant[i]]
    into: dict[str, tuple[str, str]] = {}  # the label of a component -> how it is read on a path, and who is read
    last = []
    for i in ranked:
        sender, reader = graph.writers[of.writers[i]].label, graph.readers[of.readers[i]]
        if reader.kind == "logits":
            last.append(sender)
        elif reader.kind == "mlp":
            into.setdefault(reader.label, (reader.label, sender))
        else:
            for head in graph.heads_of(reader):
                label = f"L{reader.layer}H{head}"
                into.setdefault(label, (f"{label} {reader.kind}", sender))
    paths = []
    for sender in last[:most]:
        steps = ["logits"]
        while sender in into:
            read_as, sender = into[sender]
            steps.insert(0, read_as)
        if len(steps) > 1:
            paths.append(" → ".join([sender, *steps]))
    return paths


def describe(patcher: HeadPatcher, dataset: IOIDataset, heads: HeadResults) -> HeadCards | None:
    """Cards of the largest significant heads; None where there are none, or it is no output that was patched."""
    if heads.patch_type != "output" or not can_tell(heads):
        return None
    significant = patcher.find_important_heads(heads, threshold=None, alpha=0.05)
    return patcher.describe_heads(dataset, significant[:SHOWN_HEADS]) if significant else None


def of_all(patcher: HeadPatcher, dataset: IOIDataset, heads: HeadResults, args: argparse.Namespace) -> dict[str, Any]:
    """What every report of heads has: beside them the layers that they are part of, and the positions."""
    return {
        "head_results": heads,
        "layer_results": patch_layers(patcher.patcher, dataset, args),
        "position_results": patch_positions(patcher.patcher, dataset, args),
    }


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


def can_tell(results: SweepResults) -> bool:
    """Whether so many pairs can tell which sites are significant."""
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
