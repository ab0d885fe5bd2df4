"""The shapes in which results are handed out: a mapping by hook point, a list by head or by neuron.

Each rests on one `Sweep`, which has every number; the shapes are ways to look at the selected metric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, SupportsIndex, TypeVar, Unpack, overload

import numpy as np
from jaxtyping import Float

from actpatch.core.alignment import span_of
from actpatch.core.components import SHORT_NAMES
from actpatch.core.heavy import pd
from actpatch.core.sites import Patch
from actpatch.core.text import escaped, plain
from actpatch.core.truth import PublishedHeads
from actpatch.results.effects import largest
from actpatch.results.files import write_csv, write_parquet, write_sweeps
from actpatch.results.html import results_html
from actpatch.results.items import HeadPatchingResult, NeuronPatchingResult, OverPairs, PatchingResult, head_label
from actpatch.results.metric_values import mean
from actpatch.results.stability import StabilityOptions, stability_of
from actpatch.results.sweep import Sweep
from actpatch.results.truth_comparison import TruthComparison, compared_heads
from actpatch.results.verification import Verification, verify
from actpatch.statistics.site_tests import StatisticsOptions
from actpatch.statistics.sites import SiteStatistics
from actpatch.statistics.stability import Stability

Results = TypeVar("Results", bound="SweepResults")
Row = TypeVar("Row", bound="OverPairs")
Rows = TypeVar("Rows", bound="RowResults[Any]")


MOST_WITH_EFFECTS = 3
"""Most patches whose effects the `repr` of results writes out."""
MOST_NAMED = 5
"""Most hook points that a message names."""

KINDS: dict[str, type[SweepResults]] = {}
"""Every shape by its name, which saved files give."""


class SweepResults:
    """What every shape of results has: the sweep it rests on, the metrics to choose from, a table, files.

    By itself it is the shape of sweeps that have no other: `SweepResults(patcher.sweep(...)).save(path)`.
    """

    sweep: Sweep

    def __init_subclass__(cls, *, saved: bool = True) -> None:
        super().__init_subclass__()
        if saved:
            known = KINDS.get(cls.__name__)
            if known is not None and _is_ours(known) and not _is_ours(cls):
                raise TypeError(f"{cls.__name__} is a shape of the library's own: give yours another name")
            KINDS[cls.__name__] = cls

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._named()}{self.sweep.described(self.kind)})"

    def _named(self) -> str:
        """The effects of a few patches that were taken out of an experiment, to go before what they are of."""
        if self.sweep.whole is None or len(self.labels) > MOST_WITH_EFFECTS:
            return ""
        each = zip(self.labels, self.sweep.effects)
        return f"{', '.join(f'{label} {plain(effect)}' for label, effect in each)}; "

    def _repr_html_(self) -> str:
        """What a notebook shows of results that are the last line of a cell (`results.html`)."""
        if not self.sweep.patches:
            return f"<p>{escaped(repr(self))}</p>"
        return results_html(self.sweep, self.labels, self.kind)

    @property
    def kind(self) -> str:
        """What each patch is, in a word."""
        return "patch"

    @property
    def patched(self) -> str:
        """What was patched, for the headings of tables, where labels do not say it; else empty."""
        return ""

    @property
    def labels(self) -> list[str]:
        """What each patch of `sweep` is called in tables and figures."""
        return self.sweep.labels

    def __eq__(self, other: object) -> bool:
        """Whether shape, settings and every number are the same; NaN is the same as NaN."""
        if not isinstance(other, SweepResults):
            return NotImplemented
        return type(self) is type(other) and self.sweep == other.sweep

    def __ne__(self, other: object) -> bool:
        return not self == other

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that were measured; what results show is of the selected one, at first the first."""
        return self.sweep.metrics

    def by_metric(self: Results, name: str) -> Results:
        """The same results with another metric selected: by its name, or as it was asked for (`kl_divergence`)."""
        return type(self)(self.sweep.by_metric(name))

    def by_group(self: Results) -> dict[str, Results]:
        """Group of pairs -> the results of these pairs alone (`PatchingDataset.get_group`).

        The group of the first pair stands first, pairs of no group under an empty name.
        """
        return {group: type(self)(sweep) for group, sweep in self.sweep.by_group().items()}

    @property
    def is_part(self) -> bool:
        """Whether patches of the experiment are lacking. Statistics are the whole experiment's all the same."""
        return self.sweep.is_part

    def top(self, k: int = 10) -> Any:
        """The k patches of largest |effect|, largest first, each with its effect."""
        return self.sweep.top(k)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form, a row per site, pair and metric (`Sweep.to_dataframe`)."""
        return self.sweep.to_dataframe()

    def statistics(self, **options: Unpack[StatisticsOptions]) -> SiteStatistics:
        """How sure the effects are (`Sweep.statistics`), one entry per patch of `sweep`.

        Where these are some of an experiment's patches, p-values are corrected over all of its patches.
        """
        return self.sweep.statistics(**options)

    def verify(self, *, top: int = 50, sample: int = 200, seed: int = 0) -> Verification:
        """Estimates beside exact effects: the sites of largest |estimate| are run, and a random sample of the rest.

        Args:
            top: how many of the largest are run; fewer where there are no more.
            sample: how many of the others are drawn, each set of so many being equally likely, and run.
            seed: of the draw.

        Raises:
            ValueError: for effects that are exact, for results that do not know their model any more (read from a
                file, or of some pairs alone), and for numbers that are none, or both 0.
        """
        return verify(self.sweep, self.kind, top, sample, seed)

    def stability(self, **options: Unpack[StabilityOptions]) -> Stability:
        """Whether other pairs would give the same signs and the same order (`results.stability.stability_of`)."""
        return stability_of(self.sweep, **options)

    def to_csv(self, path: str | Path) -> Path:
        """Write the long table as CSV (`results.files.write_csv`)."""
        return write_csv(self.to_dataframe(), path)

    def to_parquet(self, path: str | Path) -> Path:
        """Write the long table as Parquet, which needs pyarrow (`results.files.write_parquet`)."""
        return write_parquet(self.to_dataframe(), path)

    def save(self, path: str | Path) -> Path:
        """Write the results as JSON; `load_results` reads them back, equal to these."""
        return write_sweeps([self.sweep], type(self).__name__, path)


class LayerResults(SweepResults, dict[str, list[PatchingResult]]):
    """Hook point -> one `PatchingResult` per pair, with the whole sweep in `.sweep`.

    A window of layers stands under the hook point in its middle, a set of hook points under its name. A short name
    (`results["attn_out"]`) gives the results of all layers of it.
    """

    def __init__(self, sweep: Sweep) -> None:
        SweepResults.__init__(self, sweep)
        effects = sweep.pair_effects
        dict.__init__(
            self,
            {
                patch_key(patch): [
                    PatchingResult(
                        hook_point=patch_key(patch),
                        pair_index=pair,
                        clean_metric=float(sweep.clean[j]),
                        corrupted_metric=float(sweep.corrupted[j]),
                        patched_metric=float(sweep.patched[i, j]),
                        effect=float(effects[i, j]),
                        position=_position_of(patch, j),
                        estimate=sweep.estimate,
                    )
                    for j, pair in enumerate(sweep.pair_indices)
                ]
                for i, patch in enumerate(sweep.patches)
            },
        )

    @property
    def kind(self) -> str:
        return "hook point"

    @property
    def labels(self) -> list[str]:
        return [patch_key(patch) for patch in self.sweep.patches]

    def __missing__(self, name: str) -> Any:
        """The results of a component in all layers that it was patched in, with a sweep of them.

        Raises:
            KeyError: where none was, with what was.
        """
        components = [None if patch.name else patch.sites[0].component for patch in self.sweep.patches]
        numbers = [i for i, component in enumerate(components) if component == name]
        if name is None or not numbers:
            raise KeyError(f"{name!r} was not patched: {self._patched(components)}")
        return type(self)(self.sweep.of_patches(numbers))

    def _patched(self, components: Sequence[str | None]) -> str:
        short = [name for name in dict.fromkeys(components) if name in SHORT_NAMES]
        names = list(self)
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        listed = f"there are {', '.join(map(repr, names[:MOST_NAMED]))}{more}"
        return f"{listed}; all layers of {', '.join(map(repr, short))}" if short else listed

    @property
    def effects(self) -> dict[str, float]:
        """Hook point -> effect over the usable pairs."""
        return {patch_key(patch): float(e) for patch, e in zip(self.sweep.patches, self.sweep.effects)}

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The k hook points of largest |effect|, largest first."""
        return [(patch_key(patch), effect) for patch, effect in self.sweep.top(k)]

    def matrix(self) -> pd.DataFrame:
        """Effects as a layer × component table; NaN where a cell was not measured. Named sets have no cell."""
        cells = [
            (patch.sites[0].layer, patch.sites[0].component, effect)
            for patch, effect in zip(self.sweep.patches, self.sweep.effects)
            if patch.sites[0].layer is not None and patch.name is None
        ]
        if not cells:
            raise ValueError("none of these hook points lies in a layer, so there is no layer × component table")
        table = pd.DataFrame(cells, columns=["layer", "component", "effect"])
        order = list(dict.fromkeys(table["component"]))
        wide = table.pivot(index="layer", columns="component", values="effect")
        return wide.reindex(index=range(self.sweep.n_layers), columns=order)


class RowResults(SweepResults, list[Row], Generic[Row], ABC, saved=False):
    """A list with one item per patch, each over all pairs, with the whole sweep in `.sweep`."""

    def __init__(self, sweep: Sweep) -> None:
        SweepResults.__init__(self, sweep)
        list.__init__(self, self._items(sweep))

    def _items(self, sweep: Sweep) -> Iterator[Row]:
        usable, effects, entire = sweep.usable, sweep.pair_effects, sweep.entire
        clean, corrupted = mean(sweep.clean[usable]), mean(sweep.corrupted[usable])
        for i, (patch, effect) in enumerate(zip(sweep.patches, sweep.effects)):
            item = self._item(
                patch,
                clean_metric=clean,
                corrupted_metric=corrupted,
                patched_metric=mean(sweep.patched[i, usable]),
                effect=float(effect),
                pair_effects=tuple(effects[i].tolist()),
                estimate=sweep.estimate,
            )
            yield item.taken_from(entire, sweep.numbers[i] if sweep.numbers else i)

    @abstractmethod
    def _item(self, patch: Patch, **over_pairs: Any) -> Row:
        """The item of one patch, from where it is and what it came to over the pairs."""

    @overload
    def __getitem__(self, index: SupportsIndex) -> Row: ...

    @overload
    def __getitem__(self: Rows, index: slice) -> Rows: ...

    def __getitem__(self, index: Any) -> Any:
        """An item; of a slice the results of these patches alone, with a sweep of them.

        Statistics of a slice are those of the whole experiment: p-values stay corrected over all of its patches. An
        empty slice is a plain list.
        """
        items = list.__getitem__(self, index)
        return self._of_items(items) if isinstance(index, slice) else items

    def top(self: Rows, k: int = 10) -> Rows:
        """The k items of largest |effect|, largest first, as results. Their statistics are those of a slice."""
        effects = np.array([result.effect for result in self])
        return self._of_items([list.__getitem__(self, i) for i in largest(effects, k)])

    def sorted_by(self: Rows, key: Callable[[Any], Any], *, reverse: bool = False) -> Rows:
        """The results in another order: `results.sorted_by(lambda item: item.effect)`. Statistics are the same.

        Args:
            key: of each item what they are sorted by, as for Python's `sorted`, which gives a plain list.
            reverse: whether what is largest comes first.
        """
        return self._of_items(sorted(self, key=key, reverse=reverse))

    def _of_items(self, items: list[Any]) -> Any:
        found = sweep_of_items(items)
        if found is None:
            return items
        part = type(self)(found)
        list.__setitem__(part, slice(None), items)  # the very same: an effect that is NaN is equal to itself alone
        return part


class OfHeads(RowResults[Row], Generic[Row], saved=False):
    """What results of heads share: what of a head was patched, and which heads its rows count."""

    @property
    def patch_type(self) -> str:
        """`output`, `pattern`, `q`, `k` or `v`."""
        site = self.sweep.patches[0].sites[0]
        return site.kind.patch_type or site.component

    @property
    def patched(self) -> str:
        return f"{self.patch_type} along a path" if self.sweep.path else self.patch_type

    @property
    def counts_key_value_heads(self) -> bool:
        """True where rows are key-value heads: patch type k or v under grouped-query attention."""
        kinds = [patch.sites[0].kind for patch in self.sweep.patches[:1]]
        return self.sweep.n_key_value_heads != self.sweep.n_heads and any(kind.per_key_value_head for kind in kinds)

    @property
    def heads_per_layer(self) -> int:
        return self.sweep.n_key_value_heads if self.counts_key_value_heads else self.sweep.n_heads


class HeadResults(OfHeads[HeadPatchingResult]):
    """One `HeadPatchingResult` per head, in order of layer and head, with the whole sweep in `.sweep`."""

    def _item(self, patch: Patch, **over_pairs: Any) -> HeadPatchingResult:
        layer, head = head_of(patch)
        return HeadPatchingResult(
            layer=layer,
            head=head,
            patch_type=self.patch_type,
            is_key_value_head=self.counts_key_value_heads,
            pair_indices=self.sweep.pair_indices,
            **over_pairs,
        )

    @property
    def kind(self) -> str:
        return "key-value head" if self.counts_key_value_heads else "head"

    @property
    def labels(self) -> list[str]:
        return [head_label(*head_of(patch), self.counts_key_value_heads) for patch in self.sweep.patches]

    def matrix(self) -> Float[np.ndarray, "layer head"]:
        """Effects by layer and head; NaN where a head was not measured."""
        table = np.full((self.sweep.n_layers, self.heads_per_layer), np.nan)
        for result in self:
            table[result.layer, result.head] = result.effect
        return table

    def compare_with(
        self, truth: PublishedHeads, *, absolute: bool = True, ks: Sequence[int] | None = None
    ) -> TruthComparison:
        """How well these effects find the heads of a published circuit: AUROC, AUPRC and precision over all heads.

        Heads that were not patched rank below all others. What the authors wrote in the place of heads is told beside.

        Args:
            truth: the published heads.
            absolute: rank by |effect|.
            ks: precision is told at each of these; None for the number of published heads.

        Raises:
            ValueError: for heads that share keys and values, for other than published heads, and for another model's.
        """
        if self.counts_key_value_heads:
            raise ValueError("these are key-value heads, which several heads share: patch 'output' or 'q'")
        return compared_heads(self.matrix(), self.sweep, truth, absolute=absolute, ks=ks)


class NeuronResults(RowResults[NeuronPatchingResult]):
    """One `NeuronPatchingResult` per neuron, in order, with the whole sweep in `.sweep`."""

    def _item(self, patch: Patch, **over_pairs: Any) -> NeuronPatchingResult:
        layer, neuron = _neuron_of(patch)
        return NeuronPatchingResult(layer=layer, neuron=neuron, **over_pairs)

    @property
    def kind(self) -> str:
        return "neuron"


KINDS[SweepResults.__name__] = SweepResults


def patch_key(patch: Patch) -> str:
    """Under what a patch stands in layer results: its name, or its first site's hook point."""
    return patch.name or patch.sites[0].hook_point


def sweep_of_items(items: Sequence[Any]) -> Sweep | None:
    """The sweep of the patches that items of results are of, in their order; None where they are of no one sweep."""
    places = [place for item in items if (place := getattr(item, "place", None)) is not None]
    if not places or len(places) < len(items):
        return None
    entire = places[0][0]
    if any(sweep is not entire and sweep != entire for sweep, _ in places):
        return None
    return entire.of_patches([number for _, number in places])


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def _position_of(patch: Patch, pair: int) -> int | tuple[int, ...] | None:
    """Where the patch writes into a pair: one position, all several of them, or None for the whole prompt."""
    each = (site.position[pair] if isinstance(site.position, tuple) else site.position for site in patch.sites)
    found = tuple(dict.fromkeys(at for span in each for at in ((None,) if span is None else span_of(span))))
    return found[0] if len(found) == 1 else tuple(at for at in found if at is not None)


def _neuron_of(patch: Patch) -> tuple[int, int]:
    site = patch.sites[0]
    if site.layer is None or site.neuron is None:
        raise ValueError(f"{patch.label} is not a neuron: neuron results need a layer and a neuron")
    return site.layer, site.neuron


def head_of(patch: Patch) -> tuple[int, int]:
    site = patch.sites[0]
    if site.layer is None or site.head is None:
        raise ValueError(f"{patch.label} is not an attention head: head results need a layer and a head")
    return site.layer, site.head
