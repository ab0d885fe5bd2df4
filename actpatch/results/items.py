"""The entries of results: one hook point on one pair, one head, neuron or edge on all of them. Values alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from actpatch.core.estimate_words import named
from actpatch.core.estimates import Estimate
from actpatch.core.text import count, plain

if TYPE_CHECKING:
    from actpatch.results.sweep import Sweep

Item = TypeVar("Item", bound="OverPairs")


@dataclass(frozen=True, repr=False)
class PatchingResult:
    """One hook point patched on one pair."""

    hook_point: str
    pair_index: int
    clean_metric: float
    corrupted_metric: float
    patched_metric: float
    effect: float
    """Share of the behaviour that the patch moved (`results.sweep`); NaN where the baselines barely differ."""
    position: int | tuple[int, ...] | None = None
    """The position that was patched, or several that were patched together; None for all."""
    estimate: Estimate | None = None
    """How `patched_metric` is estimated from gradients; None where the patch was run."""

    def __repr__(self) -> str:
        at = "" if self.position is None else f" @{self.position}"
        effect = f"{named(self.estimate)} {plain(self.effect)}"
        return f"PatchingResult({self.hook_point}{at}, pair {self.pair_index}, {effect})"


class OverPairs(ABC):
    """What items of one patch on every pair share."""

    effect: float
    pair_effects: tuple[float, ...]
    estimate: Estimate | None = None
    place: ClassVar[tuple[Sweep, int] | None] = None
    """The sweep that it is of and its number there; None for one that was made otherwise. It is no field: tables and
    copies of an item's fields are without it."""

    def taken_from(self: Item, sweep: Sweep, number: int) -> Item:
        """This item, which says from now on where it is from."""
        object.__setattr__(self, "place", (sweep, number))
        return self

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is called in tables and figures."""

    def __repr__(self) -> str:
        """One line, without the effects on single pairs."""
        pairs = count(len(self.pair_effects), "pair")
        return f"{type(self).__name__}({self.label}, {named(self.estimate)} {plain(self.effect)} on {pairs})"


@dataclass(frozen=True, repr=False)
class HeadPatchingResult(OverPairs):
    """One attention head patched on every pair. Metrics are means over the usable pairs."""

    layer: int
    head: int
    patch_type: str
    """`output`, `pattern`, `q`, `k` or `v`."""
    clean_metric: float
    corrupted_metric: float
    patched_metric: float
    effect: float
    """Ratio of means over the usable pairs."""
    pair_effects: tuple[float, ...]
    """Effect on each pair, in the order of the sweep's `pair_indices`; NaN for pairs that are not usable, or
    in which nothing is written."""
    is_key_value_head: bool = False
    """True where `head` counts key-value heads, of which grouped-query attention has fewer than query heads."""
    pair_indices: tuple[int, ...] = ()
    """Index of each of these pairs in the dataset; empty where that is not known."""
    estimate: Estimate | None = None
    """How `patched_metric` is estimated from gradients; None where the patch was run."""

    @property
    def label(self) -> str:
        return head_label(self.layer, self.head, self.is_key_value_head)


@dataclass(frozen=True, repr=False)
class HeadPositionPatchingResult(OverPairs):
    """One attention head patched at one position on every pair. Metrics are means over the usable pairs."""

    layer: int
    head: int
    position: int | str
    """As it was asked for: the task's name of it, or its number; several that were patched together joined by ` + `."""
    patch_type: str
    """`output`, `pattern`, `q`, `k` or `v`."""
    clean_metric: float
    corrupted_metric: float
    patched_metric: float
    effect: float
    """Ratio of means over the usable pairs."""
    pair_effects: tuple[float, ...]
    """Effect on each pair, in the order of the sweep's `pair_indices`; NaN for pairs that are not usable, or
    in which nothing is written."""
    is_key_value_head: bool = False
    """True where `head` counts key-value heads, of which grouped-query attention has fewer than query heads."""
    estimate: Estimate | None = None
    """How `patched_metric` is estimated from gradients; None where the patch was run."""

    @property
    def label(self) -> str:
        return f"{head_label(self.layer, self.head, self.is_key_value_head)} @{self.position}"


@dataclass(frozen=True, repr=False)
class NeuronPatchingResult(OverPairs):
    """One neuron of an MLP patched on every pair. Metrics are means over the usable pairs."""

    layer: int
    neuron: int
    clean_metric: float
    corrupted_metric: float
    patched_metric: float
    effect: float
    """Ratio of means over the usable pairs."""
    pair_effects: tuple[float, ...]
    """Effect on each pair, in the order of the sweep's `pair_indices`; NaN for pairs that are not usable, or
    in which nothing is written."""
    estimate: Estimate | None = None
    """How `patched_metric` is estimated from gradients; None where the patch was run."""

    @property
    def label(self) -> str:
        return f"L{self.layer}N{self.neuron}"


@dataclass(frozen=True, repr=False)
class EdgePatchingResult(OverPairs):
    """One edge of the model's graph patched on every pair. Metrics are means over the usable pairs."""

    id: str
    """As in the graph: `a5.h3->a9.h9<q>`, whatever the position."""
    sender: str
    """Label of what writes: `L5H3`."""
    receiver: str
    """Label of what reads: `L9H9 q`."""
    position: int | str | None
    """As it was asked for: the task's name of it, or its number; several that were patched together joined by ` + `;
    None for all positions."""
    clean_metric: float
    corrupted_metric: float
    patched_metric: float
    effect: float
    """Ratio of means over the usable pairs."""
    pair_effects: tuple[float, ...]
    """Effect on each pair, in the order of `pair_indices`; NaN for pairs that are not usable, or
    in which nothing is written."""
    pair_indices: tuple[int, ...] = ()
    """Index of each of these pairs in the dataset; empty where that is not known."""
    estimate: Estimate | None = None
    """How `patched_metric` is estimated from gradients; None where the patch was run."""

    @property
    def label(self) -> str:
        return f"{self.sender} → {self.receiver}{'' if self.position is None else f' @{self.position}'}"


@dataclass(frozen=True, repr=False)
class PathPatchingResult(OverPairs):
    """One path between components patched on every pair. Metrics are means over the usable pairs."""

    path: str
    """`L3H0 → L5H5 k → L9H9 q → logits`."""
    clean_metric: float
    corrupted_metric: float
    patched_metric: float
    effect: float
    """Ratio of means over the usable pairs."""
    pair_effects: tuple[float, ...]
    """Effect on each pair, in the order of the sweep's `pair_indices`; NaN for pairs that are not usable, or
    in which nothing is written."""
    pair_indices: tuple[int, ...] = ()
    """Index of each of these pairs in the dataset; empty where that is not known."""
    estimate: Estimate | None = None
    """How `patched_metric` is estimated from gradients; None where the patch was run."""

    @property
    def label(self) -> str:
        return self.path


def head_label(layer: int, head: int, is_key_value_head: bool) -> str:
    return f"L{layer}{'KV' if is_key_value_head else 'H'}{head}"
