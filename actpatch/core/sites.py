"""Sites and patches: names of places in a transformer where an activation can be replaced.

A *hook point* is TransformerLens' name for one activation tensor of the model (`blocks.3.attn.hook_z`). A `Site` is a
hook point narrowed to one head or MLP neuron and to one position, and a `Patch` is the set of sites that are replaced
together in one run. Both are values: they are described first and executed later, by the engine. Nothing here runs
a model.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, fields
from typing import Any

from actpatch.core.alignment import Span
from actpatch.core.components import SHORT_NAMES, Component, component_of
from actpatch.core.indices import as_integer

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


MOST_SHOWN = 4
"""Positions, one per pair, that a site's `repr` writes out; of more it says how many there are."""


@dataclass(frozen=True, repr=False)
class Site:
    """One place in the model: a hook point, narrowed to a head, a neuron and a position where these are given."""

    hook_point: str
    """Full hook-point name, for instance `blocks.3.hook_attn_out`."""
    head: int | None = None
    """Index on the hook point's head axis; None replaces all heads. Under grouped-query attention the axis of
    `hook_k` and `hook_v` counts key-value heads."""
    position: int | tuple[Span, ...] | None = None
    """Token position in the run that is patched, counting the BOS token; negative counts from each prompt's end; None
    replaces all positions. A tuple gives each pair its own: a position, or a tuple of several that are replaced
    together. For attention patterns and scores it is the query's position."""
    neuron: int | None = None
    """Index on the last axis of `mlp.hook_pre` or `mlp.hook_post`; None replaces all neurons."""
    position_name: str | None = None
    """What the task calls the position (`S2`), for labels, tables and maps."""
    sender: str | None = None
    """Id of a writer of the graph (`core.graph`): of what is read at the hook point only the part that this one writes
    is replaced, which is patching an edge. None replaces all of it."""

    def __post_init__(self) -> None:
        # NumPy's and PyTorch's integers become Python's: a tensor would index otherwise, and JSON takes neither.
        for field in ("head", "neuron", "position"):
            object.__setattr__(self, field, _plain(getattr(self, field)))

    def __repr__(self) -> str:
        """As it would be written, without what is not said; of many positions the first ones and their number."""
        given = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        said = [f"{name}={_shown(value)}" for name, value in given.items() if value is not None]
        return f"Site({', '.join([repr(self.hook_point), *said])})"

    @property
    def layer(self) -> int | None:
        """Index of the block that holds the hook point; None outside the blocks (`hook_embed`, `ln_final.*`)."""
        match = _BLOCK.fullmatch(self.hook_point)
        return int(match[1]) if match else None

    @property
    def kind(self) -> Component:
        """All that is known about what is replaced."""
        return kind_of(self.hook_point)

    @property
    def is_of_all_heads(self) -> bool:
        """Whether heads have this activation, and those of all of them are replaced together."""
        return self.head is None and self.kind.head_axis is not None

    @property
    def component(self) -> str:
        """Short name of the hook point (`attn_out`, `z`), or what follows `blocks.{layer}.` where it has none."""
        return self.kind.name

    @property
    def label(self) -> str:
        """How the site is printed: `L9H6`, `L3H1 v`, `L3N17`, `L3 attn_out`, with ` @4` or ` @S2` for a position, and
        for a part of it after its sender: `a5.h3 → L9H6 hook_q_input`.

        Of an activation that heads have, all of whose heads are replaced: `L3 z (all heads)`.
        """
        return self._label("")

    def _label(self, layers: str) -> str:
        name = self.hook_point if self.layer is None else f"L{self.layer}{layers}"
        if self.head is not None:
            name += f"H{self.head}"
            name += "" if self.component == "z" else f" {self.component}"
        elif self.neuron is not None:
            name += f"N{self.neuron}"
            name += "" if self.component == "mlp_post" else f" {self.component}"
        elif self.layer is not None:
            name += f" {self.component}"
            name += " (all heads)" if self.is_of_all_heads else ""
        name = name if self.sender is None else f"{self.sender} → {name}"
        where = self.position if self.position_name is None else self.position_name
        return name if where is None else f"{name} @{where}"


@dataclass(frozen=True, repr=False)
class Patch:
    """The sites whose activations are replaced together in one patched run."""

    sites: tuple[Site, ...]
    """The first one is the place that tables and maps give the patch."""
    name: str | None = None
    """What a set of sites is called that belongs to no single place; it is then left out of maps."""
    window: int = 1
    """Number of adjacent layers patched together around the first site's; fewer at the model's first and last ones."""

    def __post_init__(self) -> None:
        sites = self.sites if isinstance(self.sites, tuple) else (self.sites,)
        if not sites or sites is not self.sites or not all(isinstance(site, Site) for site in sites):
            raise ValueError(f"the sites of a patch are {self.sites!r}, expected a tuple of at least one Site: (site,)")

    def __repr__(self) -> str:
        return f"Patch({self.label})"

    @property
    def label(self) -> str:
        """How the patch is printed: its name, or its sites; `L4±1 mlp_out` for a window of three layers."""
        if self.name is not None:
            return self.name
        around = f"±{self.window // 2}" if self.window > 1 else ""
        what = list(dict.fromkeys(site._label(around) for site in self.centre))
        together = list(dict.fromkeys(label.partition(" @")[0] for label in what))
        if len(what) > 1 == len(together):  # one activation at several positions
            return f"{together[0]} @{' + '.join(label.partition(' @')[2] or 'all' for label in what)}"
        return " + ".join(site._label(around) for site in self.centre)

    @property
    def centre(self) -> tuple[Site, ...]:
        """The sites of the layer in the middle, for a window; all sites, for any other patch."""
        if self.window == 1:
            return self.sites
        return tuple(site for site in self.sites if site.hook_point == self.sites[0].hook_point)


def _shown(value: object) -> str:
    if isinstance(value, tuple) and len(value) > MOST_SHOWN:
        return f"({', '.join(map(str, value[:MOST_SHOWN]))}, … {len(value)} positions)"
    return repr(value)


def _plain(given: Any) -> Any:
    if not isinstance(given, tuple):
        return as_integer(given)
    return given if {*map(type, given)} <= {int} else tuple(map(_plain, given))


@functools.cache
def kind_of(hook_point: str) -> Component:
    """The component that a hook point is one of."""
    match = _BLOCK.fullmatch(hook_point)
    return component_of(match[2] if match else hook_point)


def head_axis(hook_point: str) -> int | None:
    """Axis of the heads in the hook point's tensor; None where it has none."""
    return kind_of(hook_point).head_axis


def position_axis(hook_point: str) -> int:
    """Axis of the token positions in the hook point's tensor: the query's, for patterns and scores."""
    return 2 if head_axis(hook_point) == 1 else 1


def block_hook(layer: int, short_name: str) -> str:
    """Full hook-point name of a short name: `block_hook(3, "z")` is `blocks.3.attn.hook_z`."""
    return f"blocks.{layer}.{SHORT_NAMES[short_name]}"
