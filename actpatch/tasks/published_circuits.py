"""Circuits as they were published: names alone, with their sources and the ablation that they are stated for.

What a paper names are heads, and a few MLPs. Which edges between them count is decided by whoever encodes them, and
encodings differ: what is given here as edges follows the rules that the benchmarks' code states, written out below as
which class of heads feeds what of which other one, and is counted anew. The models are for whoever can load them.

    ioi              GPT-2 small completes "When Mary and John went to the store, John gave a drink to"
    greater_than     GPT-2 small completes "The war lasted from the year 1732 to the year 17"
    docstring        attn-only-4l names the next argument in a Python docstring

Wang et al. 2022, "Interpretability in the Wild" (arXiv 2211.00593); Hanna et al. 2023, "How does GPT-2 compute
greater-than?" (arXiv 2305.00586); Heimersheim & Janiak 2023, "A circuit for Python docstrings in a 4-layer
attention-only transformer"; their edges by Conmy et al. 2023 (arXiv 2304.14997; its repository's `acdc/*/utils.py`) and
Miller et al. 2024 (arXiv 2407.08734; auto-circuit's `official_circuits`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

from actpatch.core.graph import Graph
from actpatch.core.truth import PublishedHeads, Truth

PublishedName = Literal["ioi", "greater_than", "docstring"]
"""Names of the published circuits."""

Heads = Mapping[str, tuple[tuple[int, int], ...]]

GPT2_SMALL = Graph("gpt2", (12,) * 12, (12,) * 12, (True,) * 12, d_model=768)
GPT2_NAMES = ("gpt2-small", "openai-community/gpt2")
ATTN_ONLY_4L = Graph("Attn_Only_4L512W_C4_Code", (8,) * 4, (8,) * 4, (False,) * 4, d_model=512)
ATTN_ONLY_NAMES = ("attn-only-4l", "attn-only-4l-c4-code", "NeelNanda/Attn_Only_4L512W_C4_Code")

_IOI_HEADS: Heads = {
    "name mover": ((9, 6), (9, 9), (10, 0)),
    "negative name mover": ((10, 7), (11, 10)),
    "S-inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)),
    "induction": ((5, 5), (5, 8), (5, 9), (6, 9)),
    "duplicate token": ((0, 1), (0, 10), (3, 0)),
    "previous token": ((2, 2), (4, 11)),
    "backup name mover": ((9, 0), (9, 7), (10, 1), (10, 2), (10, 6), (10, 10), (11, 2), (11, 9)),
}
_GREATER_THAN_HEADS: Heads = {
    "early, into the middle and early MLPs": ((0, 1),),
    "early, into the middle": ((0, 3), (0, 5)),
    "middle": ((5, 5), (6, 1), (6, 9), (7, 10), (8, 11), (9, 1)),
}
_EARLY_MLPS, _LATE_MLPS = (0, 1, 2, 3), (8, 9, 10, 11)
_DOCSTRING_HEADS: Heads = {
    "argument mover": ((3, 0), (3, 6)),
    "to the argument's place": ((2, 0),),
    "multi-function": ((1, 4),),
    "duplicate token": ((0, 5), (1, 2)),
    "position and parameter": ((0, 2), (0, 4)),
    "added for its performance": ((0, 1), (1, 0), (2, 3)),
}

_HEADS: dict[PublishedName, PublishedHeads] = {
    "ioi": PublishedHeads(
        name="ioi",
        model=GPT2_SMALL.model,
        n_layers=12,
        n_heads=12,
        classes=_IOI_HEADS,
        source="Wang et al. 2022 (arXiv 2211.00593), figure 2; the same 26 heads in the code of Conmy et al. 2023 and "
        "of Miller et al. 2024",
        ablation="the mean over prompts with three other names (ABC), position by position",
        encodings={
            "ACDC, edges and steps inside heads": 1041,
            "ACDC, edges": 963,
            "ACDC, edges without MLPs": 183,
            "auto-circuit": 739,
            "auto-circuit, MLP 0 alone": 242,
            "auto-circuit, token positions given": 771,
        },
        note="Backup name movers act where name movers are removed. The count of 771 comes of a token's position taken "
        "for a layer.",
        model_names=GPT2_NAMES,
    ),
    "greater_than": PublishedHeads(
        name="greater_than",
        model=GPT2_SMALL.model,
        n_layers=12,
        n_heads=12,
        classes=_GREATER_THAN_HEADS,
        source="Hanna et al. 2023 (arXiv 2305.00586); the same heads and MLPs in the code of Conmy et al. 2023 and of "
        "Miller et al. 2024",
        ablation="the other run (the year's last two digits are 01)",
        encodings={"auto-circuit": 235},
        mlps=(*_EARLY_MLPS, *_LATE_MLPS),
        model_names=GPT2_NAMES,
    ),
    "docstring": PublishedHeads(
        name="docstring",
        model=ATTN_ONLY_4L.model,
        n_layers=4,
        n_heads=8,
        classes=_DOCSTRING_HEADS,
        source="Heimersheim & Janiak 2023 (alignmentforum.org/posts/u6KXXmKFbXfWzoAXn), the heads left on in their "
        "final check; listed in the code of Miller et al. 2024, six of them in that of Conmy et al. 2023",
        ablation="the other run (other argument names)",
        encodings={"ACDC, edges and steps inside heads": 37, "ACDC, edges": 24, "auto-circuit": 24},
        note="Encoded as edges are the first four classes alone.",
        model_names=ATTN_ONLY_NAMES,
    ),
}


def published_heads(name: PublishedName) -> PublishedHeads:
    """The heads of a published circuit by class, and how many edges others have made of them.

    Raises:
        ValueError: for an unknown name.
    """
    _check(name)
    return _HEADS[name]


def published_truths(name: PublishedName) -> tuple[Truth, ...]:
    """A published circuit as edges, in one or two encodings; each says in its note what it follows.

    - `ioi`: first the edges between heads, the input and the logits alone, 182; then with MLPs, 963, as ACDC has them.
    - `greater_than`: 235, as ACDC and auto-circuit have them.
    - `docstring`: 24, as ACDC and auto-circuit have them.

    They are stated for the other run being written. No edge is said to be hidden, for nobody has shown which are.

    Raises:
        ValueError: for an unknown name.
    """
    _check(name)
    return _TRUTHS[name]()


def _check(name: object) -> None:
    if name not in get_args(PublishedName):
        raise ValueError(f"circuit {name!r} is unknown: expected one of {', '.join(get_args(PublishedName))}")


_IOI_FEEDS = (
    ("input", "previous token", "qkv"),
    ("input", "duplicate token", "qkv"),
    ("input", "S-inhibition", "q"),
    *(("input", movers, "kv") for movers in ("name mover", "negative name mover", "backup name mover")),
    ("previous token", "induction", "kv"),
    ("induction", "S-inhibition", "kv"),
    ("duplicate token", "S-inhibition", "kv"),
    *(("S-inhibition", movers, "q") for movers in ("name mover", "negative name mover", "backup name mover")),
    *((movers, "logits", "") for movers in ("name mover", "negative name mover", "backup name mover")),
)
"""Which class feeds which inputs of which other class."""


def _ioi() -> tuple[Truth, ...]:
    direct = [
        edge
        for sender, receiver, kinds in _IOI_FEEDS
        for edge in _edges(_writers(sender, _IOI_HEADS), _readers(receiver, kinds, _IOI_HEADS))
    ]
    heads, mlps = [_head(at) for at in _HEADS["ioi"].heads], [f"m{layer}" for layer in range(12)]
    with_mlps = [
        *direct,
        "input->logits",
        *_edges(["input", *mlps, *heads], mlps),
        *_edges(mlps, ["logits", *(f"{head}<{kind}>" for head in heads for kind in "qkv")]),
    ]
    source = (
        "classes and connections of Wang et al. 2022 (arXiv 2211.00593), figure 2, as Conmy et al. 2023 encode them"
    )
    note = (
        "Edges between heads, the input and the logits alone; the paper lets every class act through MLPs too. ACDC's "
        "183 without MLPs have the input's way to the logits besides."
    )
    all_of_it = "With all MLPs, of which each reads and is read by every head of the circuit; ACDC's 1,041 count 78 "
    return (
        _truth("ioi", GPT2_SMALL, direct, source, note, GPT2_NAMES),
        _truth("ioi with MLPs", GPT2_SMALL, with_mlps, source, all_of_it + "steps inside heads besides.", GPT2_NAMES),
    )


def _greater_than() -> tuple[Truth, ...]:
    first, early = ([_head(at) for at in heads] for heads in list(_GREATER_THAN_HEADS.values())[:2])
    middle = [_head(at) for at in _GREATER_THAN_HEADS["middle"]]
    early_mlps, late_mlps = ([f"m{layer}" for layer in layers] for layers in (_EARLY_MLPS, _LATE_MLPS))
    up_to_middle = [f"m{layer}" for layer in range(9)]
    all_inputs = [f"{head}<{kind}>" for head in middle for kind in "qkv"]
    edges = [
        *_edges(["input"], [*(f"{head}<{kind}>" for head in (*first, *early) for kind in "qkv"), *early_mlps]),
        *_edges(first, [*early_mlps, *all_inputs]),
        *_edges(early, all_inputs),
        *_edges(early_mlps, [*early_mlps, *all_inputs]),
        *_edges(middle, [*late_mlps, "logits"]),
        *_edges(late_mlps, [*late_mlps, "logits"]),
        # What the queries of the middle heads read, of which the paper leaves all as it is.
        *_edges(up_to_middle, [*up_to_middle, *(f"{head}<q>" for head in middle)]),
    ]
    source = "groups and connections of Hanna et al. 2023 (arXiv 2305.00586), as Conmy et al. 2023 encode them"
    note = (
        "MLPs below the middle heads feed their queries and each other, which stands for queries that are left alone."
    )
    return (_truth("greater_than", GPT2_SMALL, edges, source, note, GPT2_NAMES),)


def _docstring() -> tuple[Truth, ...]:
    movers = [_head(at) for at in _DOCSTRING_HEADS["argument mover"]]
    edges = [
        *_edges(["input"], ["a0.h5<v>", "a1.h4<v>", "a1.h2<q>", "a1.h2<k>", "a2.h0<q>", "a2.h0<k>"]),
        *_edges(["a0.h5"], ["a1.h4<v>", "a1.h2<q>", "a1.h2<k>", "a2.h0<q>", "a2.h0<k>"]),
        "a1.h4->a2.h0<v>",
        *_edges(["input", "a0.h5"], [f"{mover}<v>" for mover in movers]),
        *_edges(["a1.h4"], [f"{mover}<q>" for mover in movers]),
        *_edges(["a1.h2", "a2.h0"], [f"{mover}<k>" for mover in movers]),
        *_edges(movers, ["logits"]),
    ]
    source = (
        "one of the authors' own list of edges in the code of Conmy et al. 2023; the same in that of Miller et al. 2024"
    )
    note = "At all positions; auto-circuit has each at some. ACDC's 37 count 13 steps inside heads besides."
    return (_truth("docstring", ATTN_ONLY_4L, edges, source, note, ATTN_ONLY_NAMES),)


_TRUTHS: dict[PublishedName, Callable[[], tuple[Truth, ...]]] = {
    "ioi": _ioi,
    "greater_than": _greater_than,
    "docstring": _docstring,
}


def _truth(
    name: str, graph: Graph, edges: Iterable[str], source: str, note: str, model_names: tuple[str, ...]
) -> Truth:
    return Truth(name, graph, tuple(dict.fromkeys(edges)), source=source, note=note, model_names=model_names)


def _edges(senders: Iterable[str], receivers: Iterable[str]) -> list[str]:
    """All edges from one to the other that there are: later components read earlier ones, MLPs their layer's heads."""
    receivers = list(receivers)
    return [f"{sender}->{to}" for sender in senders for to in receivers if _place(sender) < _place(to)]


def _place(name: str) -> tuple[int, int]:
    """When a component writes, or reads what is there: the input first, of each layer heads before the MLP."""
    if name in ("input", "logits"):
        return (-1, 0) if name == "input" else (99, 0)
    layer = int(name[1:].partition(".")[0])
    return layer, int(name.startswith("m"))


def _writers(group: str, heads: Heads) -> list[str]:
    return [group] if group == "input" else [_head(at) for at in heads[group]]


def _readers(group: str, kinds: str, heads: Heads) -> list[str]:
    return [group] if group == "logits" else [f"{_head(at)}<{kind}>" for at in heads[group] for kind in kinds]


def _head(at: tuple[int, int]) -> str:
    return f"a{at[0]}.h{at[1]}"
