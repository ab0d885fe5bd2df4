"""The truth about a circuit: which edges of a model carry a behaviour, under which ablation that is stated.

What is true depends on what is written in the place of an edge: one that carries the same in every prompt matters
where zeros are written, and does not where another prompt's activations are. So a truth names its ablation, in the
words of a sweep's `source_of_values`. And an edge of the circuit may have no effect when it is patched alone: of two
that stand in for each other each can be missed. Such edges are in the truth, and it says that they are hidden.
Nothing here runs a model or compares anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool

from actpatch.core.direction import Direction, check_direction
from actpatch.core.edge_patches import edge_patches
from actpatch.core.graph import Graph
from actpatch.core.text import count, shortened

OTHER_RUN = "the other run"
"""The ablation that writes the pair's other run's activations; what others are called is what their source says."""


@dataclass(frozen=True, repr=False)
class Truth:
    """The edges of a circuit, and what they are true of. Its length is their number.

    Raises:
        ValueError: for no edges, one that the graph has not or that stands there twice, hidden ones that are none of
            them, and an unknown direction.
    """

    name: str
    """What the circuit is called."""
    graph: Graph
    """Of the model that it is a circuit of."""
    edges: tuple[str, ...]
    """Ids of its edges (`a0.h1->a1.h2<k>`)."""
    ablation: str = OTHER_RUN
    """What is written in the place of an edge: `the other run`, `zero`, or another source's label."""
    direction: Direction | None = None
    """The direction in which `hidden` is stated; None where it is the same in both."""
    hidden: tuple[str, ...] = ()
    """Those of its edges that have no effect when they are patched alone, so that no ranking of single edges can find
    them."""
    source: str = ""
    """Where it was published, or how it is known."""
    note: str = ""
    """What a reader should know of it."""
    model_names: tuple[str, ...] = ()
    """Other names under which the model is known."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(self.edges))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not self.edges:
            raise ValueError(f"the truth {self.name!r} has no edges: give ids such as 'a0.h1->a1.h2<k>'")
        if self.direction is not None:
            check_direction(self.direction)
        known = set(edge_patches(self.graph).ids)
        for edge in self.edges:
            if edge not in known:
                raise ValueError(f"{shortened(edge)} is no edge of {self.graph!r}: give ids such as 'a0.h1->a1.h2<k>'")
        if len(set(self.edges)) < len(self.edges):
            twice = next(edge for edge in self.edges if self.edges.count(edge) > 1)
            raise ValueError(f"{shortened(twice)} stands twice in the truth {self.name!r}: give each edge once")
        if others := [edge for edge in self.hidden if edge not in self.edges]:
            raise ValueError(f"the hidden edge {shortened(others[0])} is none of the truth's edges: name it there too")

    def __len__(self) -> int:
        return len(self.edges)

    def __repr__(self) -> str:
        hidden = f", {len(self.hidden)} of them hidden" if self.hidden else ""
        return f"Truth({self.name}: {count(len(self), 'edge')} of {len(self.graph):,}{hidden}, {self._stated_for})"

    @property
    def visible(self) -> tuple[str, ...]:
        """The edges that have an effect when they are patched alone."""
        return tuple(edge for edge in self.edges if edge not in self.hidden)

    def mask(self, graph: Graph | None = None, *, hidden: bool = True) -> Bool[np.ndarray, " edge"]:
        """Which of all edges of the graph are true, in the order of `edge_patches(graph)`.

        Args:
            graph: the graph whose edges are asked about, which has to be that of the truth; None for its own.
            hidden: whether the edges that have no effect alone count too.

        Raises:
            ValueError: for a graph of another model.
        """
        graph = self.graph if graph is None else graph
        self.check_graph(graph)
        true = set(self.edges if hidden else self.visible)
        return np.array([edge in true for edge in edge_patches(graph).ids])

    def check_graph(self, graph: Graph) -> None:
        """Raises ValueError for a graph that is not that of the truth: of another model, or of other edges."""
        if graph.model not in (self.graph.model, *self.model_names):
            raise ValueError(
                f"the truth {self.name!r} is of the model {self.graph.model}, and these edges are of {graph.model}: "
                "give results of that model"
            )
        if replace(graph, model="", d_model=None) != replace(self.graph, model="", d_model=None):
            raise ValueError(f"the truth {self.name!r} is of {self.graph!r}, and these edges are of {graph!r}")

    def check_stated_for(self, ablation: str, direction: Direction | None = None) -> None:
        """Raise where the truth is stated for something else than what was run.

        Args:
            ablation: what was written, in words (`Sweep.source_of_values`).
            direction: of the experiment; None to leave it out.

        Raises:
            ValueError: for another ablation, and for another direction where the truth's hidden edges depend on it.
        """
        if ablation != self.ablation:
            raise ValueError(
                f"the truth {self.name!r} is stated for {self.ablation} being written, and this wrote {ablation}: run "
                "it with that source, or take a truth that is stated for this one"
            )
        if None not in (direction, self.direction) and direction != self.direction:
            raise ValueError(
                f"the truth {self.name!r} is stated for {self.direction}, and this is {direction}: run that direction, "
                "or take a truth that is stated for this one"
            )

    @property
    def _stated_for(self) -> str:
        return f"{self.ablation} written" + (f", {self.direction}" if self.direction else "")


@dataclass(frozen=True, repr=False)
class PublishedHeads:
    """The heads of a published circuit, by what they do. Its length is their number.

    It has no edges: where a paper names heads, which edges between them count is decided by whoever encodes them.

    Raises:
        ValueError: for a head that the model has not, and for one of two classes.
    """

    name: str
    model: str
    """Name of the model."""
    n_layers: int
    n_heads: int
    """Heads of each layer."""
    classes: Mapping[str, tuple[tuple[int, int], ...]]
    """What heads do -> (layer, head) of each."""
    source: str
    """Where it was published."""
    ablation: str
    """What the authors wrote in the place of other heads."""
    encodings: Mapping[str, int]
    """Who encoded it as edges, and how -> number of the edges."""
    note: str = ""
    """What a reader should know of it."""
    mlps: tuple[int, ...] = ()
    """Layers of the MLPs that are in it, where it names some."""
    model_names: tuple[str, ...] = ()
    """Other names under which the model is known."""

    def __post_init__(self) -> None:
        heads = self.heads
        for layer, head in heads:
            if not (0 <= layer < self.n_layers and 0 <= head < self.n_heads):
                raise ValueError(
                    f"{self.name} names L{layer}H{head}, expected one of {self.n_layers} layers × {self.n_heads} heads"
                )
        if len(set(heads)) < len(heads):
            raise ValueError(f"{self.name} has a head in two classes: give each head once")
        if others := [layer for layer in self.mlps if not 0 <= layer < self.n_layers]:
            raise ValueError(f"{self.name} names the MLP of layer {others[0]}, expected one of {self.n_layers} layers")

    def __len__(self) -> int:
        return len(self.heads)

    def __repr__(self) -> str:
        mlps = f", {count(len(self.mlps), 'MLP')}" if self.mlps else ""
        classes = f"{len(self.classes)} classes"
        return f"PublishedHeads({self.name} in {self.model}: {count(len(self), 'head')}, {classes}{mlps})"

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of all of them, class by class."""
        return tuple(head for heads in self.classes.values() for head in heads)

    def mask(self) -> Bool[np.ndarray, "layer head"]:
        """Which heads are among them."""
        found = np.zeros((self.n_layers, self.n_heads), dtype=bool)
        found[tuple(np.array(self.heads).T)] = True
        return found

    def check_model(self, model: str, n_layers: int, n_heads: int) -> None:
        """Raises ValueError for a model of another name, or of other numbers of layers and heads."""
        if model not in (self.model, *self.model_names):
            raise ValueError(f"{self.name} is published of {self.model}, and this is of {model}: give that model's")
        if (n_layers, n_heads) != (self.n_layers, self.n_heads):
            raise ValueError(
                f"{self.name} is published of {self.n_layers} layers × {self.n_heads} heads, and these are of "
                f"{n_layers} × {n_heads}: give results of {self.model}"
            )
