"""From heads to edges on IOI: which heads write the answer, which heads feed their queries, and through which edges.

Heads are chosen by some pairs; what is between the chosen ones is measured on as many others. Prints, as Markdown, what
docs/which-edges.md is made of:

    python -m docs.which_edges MODEL > numbers.md

MODEL is what `load_model` takes; the page is of SmolLM2-135M-Instruct, a directory with its checkpoint. Pairs are drawn
from seed 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from activation_patching import ActivationPatcher, HeadResults, IOIDataset
from head_patching import HeadPatcher
from model_loading import load_model
from path_patching import EdgeResults, Graph, PathPatcher, PathResults

SEED = 0
TOP = 10
"""Rows of each table."""
LATE, BEFORE, EARLIER = 4, 3, 1
"""So many heads are chosen: those that write the answer, those that feed their queries, and those of the largest effect
before the first of these."""
POSITIONS = ("S2", "END")
ATTENDED = ("IO", "S1", "S2")
"""Positions that attention from END is told to."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's directory, or a name that load_model knows")
    parser.add_argument("--pairs", type=int, default=10, help="pairs to choose by, and others to measure on (10)")
    args = parser.parse_args(argv)
    model = load_model(args.model, device="cpu")
    dataset = IOIDataset(model, 2 * args.pairs, corruption="flip_subject", seed=SEED)
    chosen_by, held_out = range(args.pairs), range(args.pairs, 2 * args.pairs)
    patcher = PathPatcher(model, show_progress=False)
    graph = patcher.graph
    tell(f"{args.pairs} pairs to choose by, as many others to measure on; {graph!r}")

    heads = HeadPatcher(model, show_progress=False).run_all_heads_experiment(dataset, pair_indices=chosen_by)
    tell(f"\n## Heads\n\n{of_heads(heads)}")

    to_logits = patcher.run_all_edges_experiment(dataset, senders="heads", receivers="logits", pair_indices=chosen_by)
    tell(f"\n## Edges into the logits\n\n{of_edges(to_logits)}")
    late = [edge.sender for edge in to_logits if edge.effect > 0]
    late = [edge.sender for edge in to_logits.top(len(to_logits)) if edge.sender in late][:LATE]
    tell(f"\nWrite the answer: {', '.join(late)}\n\n{attention(model, dataset, late, chosen_by)}")

    late_queries = [f"{label} q" for label in late]
    to_queries = patcher.run_all_heads_experiment(dataset, late_queries, "mlps", pair_indices=chosen_by)
    tell(f"\n## Heads that feed their queries: {to_queries.sweep.path}\n\n{of_heads(to_queries)}")
    before = [head.label for head in to_queries.top(BEFORE)]
    tell(f"\nFeed their queries: {', '.join(before)}\n\n{attention(model, dataset, before, chosen_by)}")
    earlier = largest_before(heads, before)
    tell(f"\nThe largest heads before these: {', '.join(earlier)}")

    senders = [*earlier, *before, *late]
    first = min(place(label)[0] for label in senders)
    ends: dict[str, Any] = {
        "senders": senders,
        "receivers": [name for label in senders if place(label)[0] > first for name in readers(graph, label)]
        + ["logits"],
        "pair_indices": held_out,
    }
    blind = patcher.run_all_edges_experiment(dataset, **ends)
    tell(f"\n## Edges among them, on the other pairs\n\n{summary(blind)}\n\n{of_edges(blind, 2 * TOP)}")
    tell(f"\n## By which they were chosen, and on the others\n\n{both_times(to_logits, blind, late)}")
    placed = patcher.run_all_edges_experiment(dataset, positions=POSITIONS, **ends)
    tell(f"\n## By position\n\n{summary(placed)}\n\n{of_edges(placed, 2 * TOP)}")
    tell(f"\n## What one number for all positions hides\n\n{apart(blind, placed)}")

    later = [label for label in late if place(label)[0] > place(before[0])[0]]
    way = [*earlier[:1], f"{before[0]} v"] if earlier else before[:1]
    chains = [" → ".join([*way, f"{label} q", "logits"]) for label in later]
    paths = patcher.run_path_experiment(dataset, chains, pair_indices=held_out)
    tell(f"\n## Paths of several steps\n\n{_table('path', chains, paths, TOP)}")


def tell(text: str) -> None:
    print(text, flush=True)


def readers(graph: Graph, label: str) -> list[str]:
    """Queries, keys and values of a head, by the names that the graph has for them."""
    if not graph.is_grouped:
        return [label]
    layer, head = place(label)
    return [f"{label} q", f"L{layer}KV{graph.key_value_head(layer, head)}"]


def largest_before(heads: HeadResults, before: Sequence[str]) -> list[str]:
    """The heads of largest effect in layers before the first of some heads, none of them."""
    found = [head.label for head in heads.top(len(heads)) if head.layer < place(before[0])[0]]
    return [label for label in found if label not in before][:EARLIER]


def place(label: str) -> tuple[int, int]:
    """Layer and head of `L20H0`."""
    layer, head = label.removeprefix("L").split("H")
    return int(layer), int(head)


def of_heads(results: HeadResults) -> str:
    return _table("head", [head.label for head in results], results, TOP)


def of_edges(results: EdgeResults, most: int = TOP) -> str:
    return _table("edge", [edge.label for edge in results], results, most)


def summary(results: EdgeResults) -> str:
    sure = results.statistics(seed=SEED)
    return f"{sure.significant.sum()} of {len(results)} significant over {sure.n_pairs} pairs"


def apart(blind: EdgeResults, placed: EdgeResults, most: int = TOP) -> str:
    """Edges whose effects at the single positions add up the least to that at all positions at once."""
    at = {name: {(edge.sender, edge.receiver): edge.effect for edge in placed.at(name)} for name in POSITIONS}
    rows = []
    for edge in blind:
        each = [at[name][edge.sender, edge.receiver] for name in POSITIONS]
        rows.append((edge.label, edge.effect, *each, edge.effect - sum(each)))
    rows.sort(key=lambda row: -abs(row[-1]))
    lines = [f"| edge | all positions | {' | '.join(POSITIONS)} | left over |", "|---" * (3 + len(POSITIONS)) + "|"]
    lines += [f"| {label} | {' | '.join(f'{effect:+.3f}' for effect in effects)} |" for label, *effects in rows[:most]]
    return "\n".join(lines)


def both_times(chosen_by: EdgeResults, held_out: EdgeResults, labels: Sequence[str]) -> str:
    """The edges from these heads into the logits, on the pairs by which they were chosen and on the others."""
    lines = ["| edge | pairs chosen by | other pairs |", "|---" * 3 + "|"]
    for label in (f"{label} → logits" for label in labels):
        lines.append(f"| {label} | {chosen_by[label].effect:+.3f} | {held_out[label].effect:+.3f} |")
    return "\n".join(lines)


def attention(model: Any, dataset: IOIDataset, labels: Sequence[str], pairs: Sequence[int]) -> str:
    """How much these heads attend from END, mean over the clean prompts of these pairs."""
    cells = [place(label) for label in labels]
    seen = np.zeros((len(labels), len(ATTENDED)))
    patcher = ActivationPatcher(model, show_progress=False)
    prompts = dataset.get_clean_corrupt_pairs()
    for i in pairs:
        at = dataset.get_positions(i)
        patterns = list(patcher.run_with_cache(prompts[i][0], "pattern")[1].values())
        for row, (layer, head) in enumerate(cells):
            looks = patterns[layer][0, head, at["END"]].numpy()
            seen[row] += [looks[at[key]] / len(pairs) for key in ATTENDED]
    lines = [f"| head | {' | '.join(f'END to {key}' for key in ATTENDED)} |", "|---" * (1 + len(ATTENDED)) + "|"]
    lines += [f"| {label} | {' | '.join(f'{value:.2f}' for value in row)} |" for label, row in zip(labels, seen)]
    return "\n".join(lines)


def _table(what: str, labels: Sequence[str], results: HeadResults | EdgeResults | PathResults, most: int) -> str:
    table = results.statistics(seed=SEED).to_dataframe().assign(label=labels)
    table = table.iloc[np.argsort(-table["effect"].abs().to_numpy(), kind="stable")].head(most)
    lines = [f"| {what} | effect | 95 % interval | corrected p |", "|---" * 4 + "|"]
    for row in table.itertuples():
        p = "<0.001" if row.p_corrected < 0.0005 else f"{row.p_corrected:.3f}"
        lines.append(f"| {row.label} | {row.effect:+.3f} | {row.low:+.3f} to {row.high:+.3f} | {p} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
