"""The graph of a transformer: which component writes into the residual stream before which other one reads it.

*Writers* are the embedding (of token and position), each attention head and each MLP. *Readers* are the queries, keys
and values of each head, each MLP, and the logits; under grouped-query attention keys and values are read once per
key-value head. An *edge* goes from every writer to every reader that comes after it. Each has an id, by which files of
other libraries know it (`a5.h3->a9.h9<q>`), and a label, as people write it (`L5H3 → L9H9 q`). The graph is that of
Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit Discovery", and of Hanna et al. 2024, "Have Faith
in Faithfulness". Nothing here runs a model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Int

from actpatch.core.node_names import Names, NodeNames
from actpatch.core.sites import Site
from actpatch.core.text import count

Kind = Literal["input", "head", "mlp", "q", "k", "v", "logits"]


@dataclass(frozen=True)
class Writer:
    """What adds to the residual stream: the embedding, a head, or an MLP."""

    kind: Kind
    layer: int = -1
    head: int | None = None

    @property
    def id(self) -> str:
        if self.kind == "input":
            return "input"
        return f"m{self.layer}" if self.head is None else f"a{self.layer}.h{self.head}"

    @property
    def label(self) -> str:
        if self.kind == "input":
            return "input"
        return f"L{self.layer} MLP" if self.head is None else f"L{self.layer}H{self.head}"


@dataclass(frozen=True)
class Reader:
    """What reads the residual stream: queries, keys or values of a head, an MLP, or the logits."""

    kind: Kind
    layer: int
    head: int | None = None
    is_key_value_head: bool = False
    """Whether `head` counts key-value heads, of which grouped-query attention has fewer than query heads."""

    @property
    def id(self) -> str:
        if self.kind == "logits":
            return "logits"
        heads = "kv" if self.is_key_value_head else "h"
        return f"m{self.layer}" if self.head is None else f"a{self.layer}.{heads}{self.head}<{self.kind}>"

    @property
    def label(self) -> str:
        if self.kind == "logits":
            return "logits"
        heads = "KV" if self.is_key_value_head else "H"
        return f"L{self.layer} MLP" if self.head is None else f"L{self.layer}{heads}{self.head} {self.kind}"

    @property
    def site(self) -> Site:
        """The place where it reads, before its normalization, in the names of TransformerLens."""
        if self.kind == "logits":
            return Site(f"blocks.{self.layer}.hook_resid_post")
        name = "mlp_in" if self.kind == "mlp" else f"{self.kind}_input"
        return Site(f"blocks.{self.layer}.hook_{name}", head=self.head)


@dataclass(frozen=True, repr=False)
class Graph:
    """Writers, readers and edges of one model. Its length is the number of its edges."""

    model: str
    """Name of the model."""
    heads: tuple[int, ...]
    """Number of query heads of each layer, 0 for a layer without attention."""
    key_value_heads: tuple[int, ...]
    """Number of heads of each layer that have keys and values of their own."""
    mlps: tuple[bool, ...]
    """Whether each layer has an MLP."""
    is_parallel: bool = False
    """Whether MLPs read what their own layer's attention reads, instead of what it has written to."""
    d_model: int | None = None
    """Width of the residual stream, which files of other libraries name; None where it is not known."""

    def __post_init__(self) -> None:
        for field in ("heads", "key_value_heads", "mlps"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if not self.heads:
            raise ValueError("the graph has no layers: give heads, key_value_heads and mlps one entry per layer")
        if not len(self.heads) == len(self.key_value_heads) == len(self.mlps):
            counts = f"{len(self.heads)}, {len(self.key_value_heads)} and {len(self.mlps)}"
            raise ValueError(f"heads, key_value_heads and mlps have {counts} entries: give one per layer each")
        for layer, (queries, keys) in enumerate(zip(self.heads, self.key_value_heads)):
            if min(queries, keys) < 0 or (queries == 0) != (keys == 0) or (keys and queries % keys):
                raise ValueError(f"layer {layer} has {queries} heads and {keys} key-value heads: expected whole groups")

    def __len__(self) -> int:
        return int(self.n_writers_before.sum())

    def __repr__(self) -> str:
        parts = ", ".join(f"{n:,} into {name}" for name, n in self.counts.items())
        return f"Graph({self.model}: {self.n_layers} layers, {len(self):,} edges: {parts})"

    @property
    def n_layers(self) -> int:
        return len(self.heads)

    @property
    def is_grouped(self) -> bool:
        """Whether several query heads share keys and values."""
        return self.heads != self.key_value_heads

    @cached_property
    def writers(self) -> tuple[Writer, ...]:
        """In the order of the forward pass, so that those before a reader are the first so many."""
        found = [Writer("input")]
        for layer, n_heads in enumerate(self.heads):
            found += [Writer("head", layer, head) for head in range(n_heads)]
            found += [Writer("mlp", layer)] * self.mlps[layer]
        return tuple(found)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """In the order of the forward pass: queries, keys and values of a layer, its MLP; the logits last."""
        found = []
        for layer, (n_heads, n_keys) in enumerate(zip(self.heads, self.key_value_heads)):
            grouped = n_heads != n_keys
            found += [Reader("q", layer, head) for head in range(n_heads)]
            found += [Reader("k", layer, head, grouped) for head in range(n_keys)]
            found += [Reader("v", layer, head, grouped) for head in range(n_keys)]
            found += [Reader("mlp", layer)] * self.mlps[layer]
        return (*found, Reader("logits", self.n_layers - 1))

    def heads_of(self, reader: Reader) -> list[int]:
        """The query heads whose outputs a reader of queries, keys or values moves: for keys and values its group."""
        if reader.head is None:
            raise ValueError(f"{reader.label} belongs to no head")
        size = 1 if reader.kind == "q" else self.heads[reader.layer] // self.key_value_heads[reader.layer]
        return list(range(reader.head * size, (reader.head + 1) * size))

    @cached_property
    def moved(self) -> tuple[tuple[int, ...], ...]:
        """Of each reader the numbers of the writers whose outputs it moves: one, those of all heads that share it, or,
        of the logits, none."""
        numbers = {writer: number for number, writer in enumerate(self.writers)}

        def of(reader: Reader) -> list[Writer]:
            if reader.kind in ("mlp", "logits"):
                return [Writer("mlp", reader.layer)] * (reader.kind == "mlp")
            return [Writer("head", reader.layer, head) for head in self.heads_of(reader)]

        return tuple(tuple(numbers[writer] for writer in of(reader)) for reader in self.readers)

    @cached_property
    def n_writers_before(self) -> Int[np.ndarray, " reader"]:
        """How many writers each reader reads, which is how many edges go into it."""
        before, n = {}, 1
        for layer, n_heads in enumerate(self.heads):
            before[layer] = n, n + (0 if self.is_parallel else n_heads)
            n += n_heads + self.mlps[layer]
        each = (n if r.kind == "logits" else before[r.layer][r.kind == "mlp"] for r in self.readers)
        return np.fromiter(each, dtype=np.int64, count=len(self.readers))

    @cached_property
    def first_edge(self) -> Int[np.ndarray, " reader"]:
        """Number of the first edge into each reader: edges are counted by reader, then writer."""
        return np.cumsum(self.n_writers_before) - self.n_writers_before

    @property
    def counts(self) -> dict[str, int]:
        """Number of edges into queries, keys and values, into MLPs, and into the logits.

        Of L layers with H heads each and an MLP behind them, keys and values not shared, the three are
        sum over l of 3H(1 + (H + 1)l), sum over l of 1 + (H + 1)l + H, and 1 + L(H + 1).
        """
        found = {"q, k and v": 0, "MLPs": 0, "the logits": 0}
        for reader, n in zip(self.readers, self.n_writers_before.tolist()):
            found[{"mlp": "MLPs", "logits": "the logits"}.get(reader.kind, "q, k and v")] += n
        return found

    def writer(self, name: str | tuple[int, int]) -> int:
        """Number of one writer, by its id, its label or (layer, head).

        Raises:
            ValueError: for a name that no writer or several have, with the nearest ones.
        """
        return self._writer_names.number(name)

    def reader(self, name: str) -> int:
        """Number of one reader, by its id or its label.

        Raises:
            ValueError: for a name that no reader or several have, with the nearest ones.
        """
        return self._reader_names.number(name, self._shared_by_heads)

    def writers_named(self, names: Names | None, argument: str = "senders") -> Int[np.ndarray, " chosen"]:
        """Numbers of the writers asked for, in order; None for all.

        Args:
            names: one name or several: ids, labels, (layer, head), `heads`, `mlps`, or a layer (`L9`).
            argument: what they were given as, for messages.

        Raises:
            ValueError: for no name and for one that the graph has not, with the nearest ones.
        """
        return self._writer_names.numbers(names, argument)

    def readers_named(self, names: Names | None, argument: str = "receivers") -> Int[np.ndarray, " chosen"]:
        """Numbers of the readers asked for, in order; None for all. Arguments and errors as of `writers_named`.

        `L9H9` stands for its q, k and v, `L9KV2` for the k and v of a key-value head, `q` for the queries of all
        heads, `L9 q` for those of a layer.
        """
        return self._reader_names.numbers(names, argument, self._shared_by_heads)

    def writers_by_name(self, names: Names) -> dict[str, list[int]]:
        """Numbers of the writers that each of these names stands for; names and errors as of `writers_named`."""
        return self._writer_names.by_name(names, "senders")

    def readers_by_name(self, names: Names) -> dict[str, list[int]]:
        """Numbers of the readers that each of these names stands for; names and errors as of `readers_named`."""
        return self._reader_names.by_name(names, "receivers", self._shared_by_heads)

    @cached_property
    def _shape(self) -> str:
        heads = [0, *self.heads]
        return f"the model has layers 0 to {self.n_layers - 1}, of up to {count(max(heads), 'head')}"

    @cached_property
    def _writer_names(self) -> NodeNames:
        def names(writer: Writer) -> list[str]:
            found = [writer.label, writer.id]
            if writer.kind == "head":
                found += [f"L{writer.layer}", "heads"]
            elif writer.kind == "mlp":
                found += [f"L{writer.layer}", "mlps", f"MLP{writer.layer}", f"MLP {writer.layer}"]
            return found

        return NodeNames("writer", [writer.label for writer in self.writers], map(names, self.writers), self._shape)

    @cached_property
    def _reader_names(self) -> NodeNames:
        def names(reader: Reader) -> list[str]:
            found = [reader.label, reader.id]
            if reader.kind == "mlp":
                found += [f"L{reader.layer}", "mlps", f"MLP{reader.layer}", f"MLP {reader.layer}"]
            elif reader.kind != "logits":
                found += [f"L{reader.layer}", "heads", reader.kind, f"L{reader.layer} {reader.kind}"]
                if reader.is_key_value_head or self.heads[reader.layer] == self.key_value_heads[reader.layer]:
                    of_head = (re.split("[ <]", name) for name in (reader.label, reader.id))
                    found += [name for name, _ in of_head]
            return found

        return NodeNames("reader", [reader.label for reader in self.readers], map(names, self.readers), self._shape)

    def key_value_head(self, layer: int, head: int) -> int:
        """Number of the key-value head that a query head of this layer reads with."""
        return head * self.key_value_heads[layer] // self.heads[layer]

    def _shared_by_heads(self, name: str) -> str | None:
        """What to give instead of the keys or values of one query head, where several share them."""
        asked = re.fullmatch(r"\s*[la](\d+)\.?h(\d+)\s*<?([kv]?)>?\s*", name, re.IGNORECASE)
        if asked is None:
            return None
        layer, head, kind = int(asked[1]), int(asked[2]), asked[3].lower()
        if layer >= self.n_layers or head >= self.heads[layer]:
            return None
        shared = f"L{layer}KV{self.key_value_head(layer, head)}"
        instead = f"{shared} {kind}" if kind else f"L{layer}H{head} q and {shared}"
        return f"heads share keys and values in this model, give {instead}"
