"""The graph of a transformer: which component writes into the residual stream before which other one reads it.

*Writers* are the embedding (of token and position), each attention head and each MLP. *Readers* are the queries, keys
and values of each head, each MLP, and the logits; under grouped-query attention keys and values are read once per
key-value head. An *edge* goes from every writer to every reader that comes after it. Each has an id, by which files of
other libraries know it (`a5.h3->a9.h9<q>`), and a label, as people write it (`L5H3 → L9H9 q`). The graph is that of
Syed et al. 2023, "Attribution Patching Outperforms Automated Circuit Discovery", and of Hanna et al. 2024, "Have Faith
in Faithfulness". Nothing here runs a model.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int

from actpatch.core.indices import as_integer
from actpatch.core.sites import Site
from actpatch.core.text import shortened

Kind = Literal["input", "head", "mlp", "q", "k", "v", "logits"]
Names: TypeAlias = "str | Sequence[str | tuple[int, int]]"
"""Writers or readers as they are asked for: ids, labels, (layer, head), and words for many (`heads`, `mlps`, `L9`)."""

MOST_NEAREST = 3


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

    def __post_init__(self) -> None:
        if not len(self.heads) == len(self.key_value_heads) == len(self.mlps):
            raise ValueError("heads, key_value_heads and mlps need one entry per layer each")
        for layer, (queries, keys) in enumerate(zip(self.heads, self.key_value_heads)):
            if (queries == 0) != (keys == 0) or (keys and queries % keys):
                raise ValueError(f"layer {layer} has {queries} heads over {keys} key-value heads: no whole groups")

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
    def n_writers_before(self) -> Int[np.ndarray, " reader"]:
        """How many writers each reader reads, which is how many edges go into it."""
        before, n = {}, 1
        for layer, n_heads in enumerate(self.heads):
            before[layer] = n, n + (0 if self.is_parallel else n_heads)
            n += n_heads + self.mlps[layer]
        each = (n if r.kind == "logits" else before[r.layer][r.kind == "mlp"] for r in self.readers)
        return np.fromiter(each, dtype=np.int64, count=len(self.readers))

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
        return self._one(name, self.writers_named([name], "writer"), "writer")

    def reader(self, name: str) -> int:
        """Number of one reader, by its id or its label.

        Raises:
            ValueError: for a name that no reader or several have, with the nearest ones.
        """
        return self._one(name, self.readers_named([name], "reader"), "reader")

    def writers_named(self, names: Names | None, argument: str = "senders") -> Int[np.ndarray, " chosen"]:
        """Numbers of the writers asked for, in order; None for all.

        Args:
            names: one name or several: ids, labels, (layer, head), `heads`, `mlps`, or a layer (`L9`).
            argument: what they were given as, for messages.

        Raises:
            ValueError: for no name and for one that the graph has not, with the nearest ones.
        """
        return self._named(names, self._writer_words, argument)

    def readers_named(self, names: Names | None, argument: str = "receivers") -> Int[np.ndarray, " chosen"]:
        """Numbers of the readers asked for, in order; None for all. Arguments and errors as of `writers_named`.

        `L9H9` stands for its q, k and v, `q` for the queries of all heads, `L9 q` for those of a layer.
        """
        return self._named(names, self._reader_words, argument)

    @cached_property
    def _writer_words(self) -> dict[str, list[int]]:
        words: dict[str, list[int]] = {}
        for number, writer in enumerate(self.writers):
            names = {writer.id, writer.label}
            if writer.layer >= 0:
                names |= {f"L{writer.layer}", "mlps" if writer.head is None else "heads"}
            if writer.kind == "mlp":
                names |= {f"MLP{writer.layer}", f"MLP {writer.layer}"}
            for name in names:
                words.setdefault(_key(name), []).append(number)
        return words

    @cached_property
    def _reader_words(self) -> dict[str, list[int]]:
        words: dict[str, list[int]] = {}
        for number, reader in enumerate(self.readers):
            names = {reader.id, reader.label}
            if reader.kind == "mlp":
                names |= {f"L{reader.layer}", "mlps", f"MLP{reader.layer}", f"MLP {reader.layer}"}
            elif reader.kind != "logits":
                names |= {f"L{reader.layer}", "heads", reader.kind, f"L{reader.layer} {reader.kind}"}
                if self.heads[reader.layer] == self.key_value_heads[reader.layer]:
                    names |= {f"L{reader.layer}H{reader.head}", f"a{reader.layer}.h{reader.head}"}
            for name in names:
                words.setdefault(_key(name), []).append(number)
        return words

    def _named(self, names: Names | None, words: dict[str, list[int]], argument: str) -> Int[np.ndarray, " chosen"]:
        if names is None:
            return np.unique(np.concatenate([np.array(numbers) for numbers in words.values()]))
        listed: list[str | tuple[int, int]] = (
            [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
        )
        if not listed:
            raise ValueError(f"{argument} is empty: give at least one name, for instance 'L5H3', or None for all")
        found: set[int] = set()
        for name in listed:
            key = _key(_as_text(name))
            if key not in words:
                raise ValueError(f"{argument} holds {shortened(name)}: {self._unknown(_as_text(name), words)}")
            found.update(words[key])
        return np.array(sorted(found))

    def _one(self, name: object, numbers: Int[np.ndarray, " chosen"], what: str) -> int:
        if len(numbers) != 1:
            nodes: Sequence[Writer | Reader] = self.writers if what == "writer" else self.readers
            several = ", ".join(nodes[i].label for i in numbers[:MOST_NEAREST])
            raise ValueError(f"{name!r} stands for {len(numbers)} {what}s ({several}, ...): name one of them")
        return int(numbers[0])

    def _unknown(self, name: str, words: dict[str, list[int]]) -> str:
        """Why no node has this name, and which are near."""
        of_head = re.fullmatch(r"[la](\d+)\.?h(\d+) ?<?([kv]?)>?", _key(name))
        if words is self._reader_words and of_head and self.is_grouped:
            layer, head = int(of_head[1]), int(of_head[2])
            if layer < self.n_layers and head < self.heads[layer]:
                group = head * self.key_value_heads[layer] // self.heads[layer]
                meant = [f"L{layer}KV{group} {kind}" for kind in of_head[3] or "kv"]
                meant = meant if of_head[3] else [f"L{layer}H{head} q", *meant]
                return f"heads share keys and values in this model: give {', '.join(meant)}"
        nearest = difflib.get_close_matches(_key(name), words, n=MOST_NEAREST, cutoff=0.5)
        nodes: Sequence[Writer | Reader] = self.writers if words is self._writer_words else self.readers
        labels = dict.fromkeys(nodes[words[key][0]].label if len(words[key]) == 1 else key for key in nearest)
        shape = f"the model has {self.n_layers} layers of up to {max(self.heads)} heads"
        return (
            f"no such name; {shape}; the nearest names are {', '.join(labels)}" if labels else f"no such name; {shape}"
        )


def _as_text(name: object) -> str:
    if isinstance(name, str):
        return name
    if isinstance(name, tuple) and len(name) == 2:
        layer, head = map(as_integer, name)
        if isinstance(layer, int) and isinstance(head, int):
            return f"L{layer}H{head}"
    return repr(name)


def _key(name: str) -> str:
    """A name without the differences that carry no meaning: case, and blanks at its ends or doubled."""
    return " ".join(name.lower().split())
