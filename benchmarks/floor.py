"""How fast could a sweep be at best?  The matrix products that no exact method can do without, and their rate here.

Counted from shapes, two operations per weight and token, for models whose blocks are an attention followed by an MLP:

- both runs once, the source run only from the first token on that differs;
- each patch from its own layer on and from the first token on that it changes. In its own layer only what it changes:
  a head adds its own slice of the output projection, and a single position changes the keys and values of that
  position alone;
- in the last layer, what follows the keys and values only at the last token, which is the one the metric reads;
- of the unembedding, only the two vocabulary entries of the logit difference;
- of edges, what each sender changes once (a head's slice of the output projection); what the heads of a layer make of
  it once for their queries, once for their keys and once for their values, the other two as recorded; each MLP that
  reads it once; then of each edge what follows its receiver, as for a patch of what that gives. An edge into the logits
  costs its part of the unembedding;
- nothing for a patch that cannot change what is read: at a position before the first difference, where the tokens
  agree (in the embeddings), or at another than the last token after the last attention.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from actpatch.core.edge_patches import EdgePatches
from actpatch.core.graph import Reader
from actpatch.core.sites import Site
from benchmarks.rows import Task


def floor_flops(cfg: Any, task: Task) -> float:
    """Floating-point operations of the exact work of a sweep over single sites, or over edges at all positions."""
    work, total = _Work(cfg), 0.0
    pairs = task.pairs
    for clean, corrupted, first in zip(pairs.clean, pairs.corrupted, pairs.first_difference.tolist()):
        length = len(clean)
        same = (clean == corrupted).tolist()
        total += work.above(0, 0, length, length) + work.above(0, first, length, length - first)
        if isinstance(task.patches, EdgePatches):
            total += work.of_edges(task.patches, same, first, length)
            continue
        for site in (patch.sites[0] for patch in task.patches):
            at = site.position
            assert not isinstance(at, tuple)
            embedded = site.component == "resid_pre" and site.layer == 0
            if at is None or not (at < first or (embedded and same[at])):
                total += work.of_patch(site, first if at is None else at, length)
    return total


def matrix_product_rate(clock: Callable[[], float] = time.perf_counter) -> float:
    """Floating-point operations per second of a large float32 matrix product, as one batch of a sweep has it.

    Args:
        clock: seconds.
    """
    a, b = torch.randn(2048, 768), torch.randn(3072, 768)
    torch.nn.functional.linear(a, b)
    seconds = []
    for _ in range(5):
        began = clock()
        torch.nn.functional.linear(a, b)
        seconds.append(clock() - began)
    return 2 * 2048 * 768 * 3072 / statistics.median(seconds)


class _Work:
    """Operations of a model's parts, for one token each."""

    def __init__(self, cfg: Any) -> None:
        self.n_layers = cfg.n_layers
        self.head = 2 * cfg.d_head * cfg.d_model
        """One head's slice of the query or output projection."""
        self.keys_values = 2 * self.head * (getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)
        self.query = self.output = cfg.n_heads * self.head
        self.weighting = 2 * cfg.d_head
        """One head's sum over values (or a score), per query and key."""
        self.attention = 2 * cfg.n_heads * self.weighting
        self.mlp = 2 * (3 if getattr(cfg, "gated_mlp", False) else 2) * cfg.d_model * cfg.d_mlp
        self.unembedding = 2 * 2 * cfg.d_model

    def of_patch(self, site: Site, start: int, length: int) -> float:
        """A patch whose first changed token is `start`; of a site with a position, that is its only one."""
        layer, tokens = site.layer, length - start
        assert layer is not None
        is_last = layer == self.n_layers - 1
        changed = tokens if site.position is None else 1
        if is_last and site.component in ("attn_out", "mlp_out") and changed < tokens:
            return 0.0
        if site.component == "resid_pre":
            return self.above(layer, start, length, changed)
        written = 1 if is_last else changed
        own = {
            "z": written * (self.head + self.mlp),
            "pattern": written * (self.head + self.mlp) + self._seen(start, length, is_last) * self.weighting,
            "attn_out": written * self.mlp,
            "mlp_out": 0.0,
        }
        return own[site.component] + self.above(layer + 1, start, length, changed)

    def of_edges(self, edges: EdgePatches, same: Sequence[bool], start: int, length: int) -> float:
        """Edges at all positions, on a pair that differs from `start` on: where its tokens agree, embeddings do too."""
        graph, total = edges.graph, 0.0
        embedded, later = [at for at in range(length) if not same[at]], range(start, length)
        for writer in (graph.writers[number] for number in edges.used_writers):
            if writer.head is not None:
                total += self.head * (1 if writer.layer == self.n_layers - 1 else len(later))
        for number in edges.used_readers:
            reader, writers = graph.readers[number], edges.writers[edges.readers == number]
            n_heads = 0 if reader.head is None else len(graph.heads_of(reader))
            n_input = int((writers == 0).sum())
            for n_senders, changed in ((n_input, embedded), (len(writers) - n_input, later)):
                total += n_senders * self._of_edge(reader, n_heads, changed, start, length)
        return total

    def _of_edge(self, reader: Reader, n_heads: int, changed: Sequence[int], start: int, length: int) -> float:
        """An edge whose sender changes what is read at these positions, into a reader that moves so many heads."""
        is_last, is_read = reader.layer == self.n_layers - 1, length - 1 in changed
        if is_last and not is_read and reader.kind not in ("k", "v"):
            return 0.0
        if reader.kind == "logits":
            return float(self.unembedding)
        spreads = reader.kind in ("k", "v")  # to every later query
        moved = length - start if spreads else len(changed)
        written = 1 if is_last else moved
        total = written * (n_heads * self.head + self.mlp) + self.above(reader.layer + 1, start, length, moved)
        if not n_heads:
            return total
        # Queries that attend to changed keys or values, together.
        of_changed = len(changed) if is_last else sum(length - at for at in changed)
        summed = self._seen(start, length, is_last)
        if reader.kind == "q":
            summed = length if is_last else sum(at + 1 for at in changed)
        scores, summed = {"q": (summed, summed), "k": (of_changed, summed), "v": (0, of_changed)}[reader.kind]
        projected = 1 if is_last and reader.kind == "q" else len(changed)
        return total + projected * self.head + n_heads * (scores + summed) * self.weighting

    def above(self, layer: int, start: int, length: int, changed: int) -> float:
        """From this layer's attention on, where the residual stream is new at `changed` tokens from `start` on."""
        total = float(self.unembedding)
        for each in range(layer, self.n_layers):
            tokens, is_last = length - start, each == self.n_layers - 1
            queries, read = (int(changed == tokens), 1) if is_last else (changed, tokens)
            total += (
                changed * self.keys_values
                + queries * self.query
                + self._seen(start, length, is_last) * (self.attention)
            )
            total += read * (self.output + self.mlp)
            changed = tokens
        return total

    def _seen(self, start: int, length: int, is_last: bool) -> int:
        """Keys that the queries from `start` on attend to, together; in the last layer of the last query alone."""
        return length if is_last else sum(range(start + 1, length + 1))
