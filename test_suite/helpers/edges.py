"""Models, a pair and edges for what patches edges: small, of every kind whose components add up in the stream."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from actpatch.core.graph import Graph, Reader, Writer
from test_suite.helpers.models import fresh_hooked, head_count, small_model
from test_suite.oracles.edges import has_mlp, is_parallel

_MORE: dict[str, dict[str, Any]] = {
    "hooked:folded": {"normalization_type": "LNPre"},
    "hooked:folded_rms": {"normalization_type": "RMSPre", "act_fn": "silu", "gated_mlp": True},
    "hooked:attn_only_norm": {"attn_only": True, "act_fn": None},
}
"""In the last one, attention is uneven enough for paths through queries and keys to matter."""
HOOKED_EDGE_MODELS = (
    *(f"hooked:{name}" for name in ("learned", "rotary", "gated", "grouped", "ungrouped", "parallel", "attn_only")),
    *(f"hooked:{name}" for name in ("shortformer", "alibi", "qk_norm", "no_norm", "local", "soft_capped")),
    *(f"hooked:{name}" for name in ("scaled_by_layer", "parallel_grouped")),
    *_MORE,
)
BRIDGE_EDGE_MODELS = (
    *(f"{kind}:{name}" for name in ("gpt2", "llama", "neox", "opt", "bloom") for kind in ("bridge", "bridge+")),
    *(f"bridge:{name}" for name in ("qwen2", "phi", "mistral", "qwen3", "falcon", "falcon_alibi", "mpt", "gptj")),
)
"""Left out are those that normalize or scale what their heads write before it is added: Gemma, OLMo 2, Granite, and the
sandwich of `HookedTransformer`."""


@functools.cache
def edge_model(name: str) -> Any:
    """The small model of this name, biases of every kind not zero. It is shared."""
    if name in _MORE:
        return fresh_hooked(**_MORE[name])
    return small_model(name)


@functools.cache
def seen_graph(name: str) -> Graph:
    """The graph of a small model, read off its runs and shapes."""
    model = edge_model(name)
    layers = range(model.cfg.n_layers)
    return Graph(
        name,
        heads=tuple(model.cfg.n_heads for _ in layers),
        key_value_heads=tuple(head_count(model, f"blocks.{layer}.attn.hook_k") for layer in layers),
        mlps=tuple(has_mlp(model, layer) for layer in layers),
        is_parallel=has_mlp(model, 0) and is_parallel(model, 0),
    )


def prompts() -> tuple[Tensor, Tensor]:
    """Base and source, seven tokens each; they differ at positions 2 and 4."""
    base = torch.tensor([1, 5, 9, 12, 7, 20, 31])
    source = base.clone()
    source[2], source[4] = 17, 30
    return base, source


FIRST_CHANGED = 2


def is_before(graph: Graph, writer: Writer, reader: Reader) -> bool:
    """Whether what the writer writes is in what the reader reads."""
    if writer.kind == "input" or reader.kind == "logits":
        return True
    same_block = writer.kind == "head" and reader.kind == "mlp" and not graph.is_parallel
    return writer.layer < reader.layer or (same_block and writer.layer == reader.layer)


def writers_before(graph: Graph, reader: Reader) -> list[Writer]:
    """All that the reader reads."""
    return [writer for writer in graph.writers if is_before(graph, writer, reader)]


def every_edge(graph: Graph) -> list[tuple[Writer, Reader]]:
    """All edges, by reader, then writer."""
    return [(writer, reader) for reader in graph.readers for writer in writers_before(graph, reader)]


def some_edges(graph: Graph, kinds: Sequence[str] = ("q", "k", "v", "mlp", "logits")) -> list[tuple[Writer, Reader]]:
    """One edge of each pair of layers and kind of writer and reader, of heads that take turns."""
    edges = [edge for edge in every_edge(graph) if edge[1].kind in kinds]
    edges.sort(key=_kinds_and_layers)
    groups = [list(alike) for _, alike in itertools.groupby(edges, key=_kinds_and_layers)]
    return [group[(5 * i + 3) % len(group)] for i, group in enumerate(groups)]


def _kinds_and_layers(edge: tuple[Writer, Reader]) -> tuple[str, int, str, int]:
    writer, reader = edge
    return writer.kind, writer.layer, reader.kind, reader.layer


def edge_id(edge: tuple[Writer, Reader]) -> str:
    """`a5.h3->a9.h9<q>`"""
    writer, reader = edge
    return f"{writer.id}->{reader.id}"
