"""Estimates of patches of components: what is written, less what is there, times the gradient of the metric there.

    score = Σ (written - recorded) · gradient,  summed over what a patch writes

(Nanda 2023, "Attribution Patching"). The methods differ in where, and by which rules, the gradient is taken
(`core.estimates`). A patch of several sites has the sum of their scores: to first order they do not interact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actpatch.core.estimates import Estimate
from actpatch.core.sites import Site, head_axis, position_axis
from actpatch.engine.backward import Rules, gim, relp
from actpatch.engine.edges import INPUT
from actpatch.engine.experiment import Experiment
from actpatch.engine.gradients import Differentiator, Point, Run
from actpatch.models.runner import Runner

Scores = Float[Tensor, "metric patch pair"]

RULES: dict[str, Callable[[Runner], Rules]] = {"relp": relp, "gim": gim}
"""Backward rules of the methods that have some."""


def points_of(estimate: Estimate, differentiator: Differentiator) -> Iterator[Point]:
    """Where a method takes gradients; all count alike."""
    chunk = differentiator.chunk
    if estimate.method == "clean_corrupted":
        yield from (differentiator.at_base, differentiator.at_other)
    elif estimate.method == "eap_ig":
        is_denoising = differentiator.experiment.direction == "denoising"
        corrupted, clean = (chunk.base, chunk.other) if is_denoising else (chunk.other, chunk.base)
        begin, end = corrupted.activations[INPUT], clean.activations[INPUT]
        for share in estimate.shares():
            yield Point(chunk.base, None, {INPUT: begin + share * (end - begin)})
    else:
        yield differentiator.at_base


@dataclass(frozen=True)
class Places:
    """The sites of an experiment's patches at one hook point and at the same positions."""

    hook_point: str
    at: Int[Tensor, "pair _"] | None
    """Positions in each pair of the experiment that are written, -1 for none; None for all."""
    patches: Int[np.ndarray, " site"]
    """Which patch each site is of."""
    units: Int[np.ndarray, " site"]
    """The head or the neuron of each; -1 for all."""

    def sums(self, table: Float[Tensor, "metric pair pos unit"], mask: Bool[Tensor, "pair pos"]) -> Tensor:
        """Of each site what stands in a table where it writes: [metric, site, pair]."""
        kept = torch.einsum("mbpu,bp->mub", table, mask.to(table))
        every = torch.cat([kept, kept.sum(dim=1, keepdim=True)], dim=1)
        return every[:, torch.from_numpy(self.units).to(table.device)]


def places_of(experiment: Experiment) -> list[Places]:
    """The sites of all patches, by where they write."""
    found: dict[tuple[str, object], tuple[Tensor | None, list[int], list[int]]] = {}
    for number, (patch, positions) in enumerate(zip(experiment.patches, experiment.positions)):
        for site, at in zip(patch.sites, positions):
            _, patches, units = found.setdefault((site.hook_point, site.position), (at, [], []))
            unit = site.head if site.head is not None else site.neuron
            patches.append(number)
            units.append(-1 if unit is None else unit)
    return [Places(name, at, np.array(patches), np.array(units)) for (name, _), (at, patches, units) in found.items()]


class ComponentEstimator:
    """Estimates of patches of hook points, heads, neurons and positions, on the pairs of a chunk.

    Args:
        differentiator: runs them.
        estimate: how they are estimated.
    """

    def __init__(self, differentiator: Differentiator, estimate: Estimate) -> None:
        self.differentiator, self.estimate = differentiator, estimate
        self.experiment, self.chunk = differentiator.experiment, differentiator.chunk
        rules = RULES.get(estimate.method)
        self.rules = None if rules is None else rules(differentiator.runner)

    @cached_property
    def places(self) -> list[Places]:
        return places_of(self.experiment)

    @cached_property
    def names(self) -> list[str]:
        """The hook points of the patches."""
        return sorted({place.hook_point for place in self.places})

    def scores(self, rows: Int[Tensor, " row"]) -> Scores:
        """By how much each patch would move each metric of these pairs of the chunk."""
        if self.estimate.method == "ig_activations":
            tables = {name: self._along_activations(name, rows) for name in self.names}
        else:
            tables = {}
            points = [*points_of(self.estimate, self.differentiator)]
            for point in points:
                with self.differentiator.running(point, rows, self.names, self.rules) as run:
                    _add(tables, self.products(run, rows), 1 / len(points))
        return self.summed(tables, rows)

    def products(self, run: Run, rows: Int[Tensor, " row"]) -> dict[str, Tensor]:
        """Hook point -> difference times gradient, summed over what is always written together."""
        return self._products([run.slopes(metric, self.names) for metric in range(len(run.values))], rows)

    def _products(self, slopes: Sequence[dict[str, Tensor]], rows: Int[Tensor, " row"]) -> dict[str, Tensor]:
        return {
            name: torch.stack([self._product(name, of_metric[name], rows) for of_metric in slopes])
            for name in slopes[0]
        }

    def summed(self, tables: dict[str, Tensor], rows: Int[Tensor, " row"]) -> Scores:
        """The scores of the patches, from those of the places that they write."""
        n_metrics = len(next(iter(tables.values())))
        like = next(iter(tables.values()))
        found = like.new_zeros(n_metrics, len(self.experiment.patches), len(rows))
        for place in self.places:
            of_sites = place.sums(tables[place.hook_point], self.written(place.at, rows))
            found.index_add_(1, torch.from_numpy(place.patches).to(like.device), of_sites)
        return found

    def written(self, at: Int[Tensor, "pair _"] | None, rows: Int[Tensor, " row"]) -> Bool[Tensor, "row pos"]:
        """At which positions of these pairs is written: nothing before a pair's first change and behind its prompt."""
        chunk = self.chunk
        every = torch.arange(chunk.base.tokens.shape[1])
        mask = (every >= chunk.first_change[rows, None]) & (every < chunk.ends[rows, None])
        if at is not None:
            mask &= (every[None, :, None] == at[chunk.pairs[rows]][:, None, :]).any(dim=2)
        return mask.to(self.differentiator.runner.device)

    def differences(self, name: str, rows: Int[Tensor, " row"]) -> Float[Tensor, "row ..."]:
        """What is written at a hook point, less what is there, in single precision at least."""
        written, there = self.chunk.source[name][rows], self.chunk.base.activations[name][rows]
        kind = torch.promote_types(there.dtype, torch.float32)
        written, there = written.to(kind), there.to(kind)
        difference = torch.where(written == there, 0, written - there)  # of scores that are masked both are -inf
        if head_axis(name) == 1:  # what stands behind a prompt is not written, as key as little as as query
            keys = torch.arange(difference.shape[-1]) < self.chunk.ends[rows, None]
            difference = difference * keys[:, None, None, :].to(difference)
        return difference

    def _product(
        self, name: str, slope: Float[Tensor, "row ..."], rows: Int[Tensor, " row"]
    ) -> Float[Tensor, "row pos unit"]:
        product = self.differences(name, rows)
        product = product * slope.to(product.dtype)
        if head_axis(name) == 1:
            return product.sum(dim=-1).transpose(1, 2)
        if head_axis(name) == 2:
            return product.sum(dim=-1)
        return product if Site(name).kind.has_neurons else product.sum(dim=-1, keepdim=True)

    def _along_activations(self, name: str, rows: Int[Tensor, " row"]) -> Float[Tensor, "metric row pos unit"]:
        """The mean gradient at a hook point while its activation goes from what is there to what is written."""
        base, chunk = self.chunk.base.activations[name], self.chunk
        partners = self.experiment.partners
        at = None if partners is None else torch.where(partners >= 0, torch.arange(partners.shape[1]), -1)
        every = torch.arange(len(chunk.pairs))
        mask = self.written(at, every)
        shape = [len(mask), *[1] * (base.ndim - 1)]
        shape[position_axis(name)] = mask.shape[1]
        whole = self.differences(name, every) * mask.view(shape)
        tables: dict[str, Tensor] = {}
        shares = self.estimate.shares()
        for share in shares:
            point = Point(chunk.base, chunk.base_noise, {name: (base + share * whole).to(base.dtype)})
            with self.differentiator.running(point, rows, [name]) as run:
                slopes = [run.slopes(metric, [name]) for metric in range(len(run.values))]
                _add(tables, self._products(slopes, rows), 1 / len(shares))
        return tables[name]


def _add(tables: dict[str, Tensor], more: dict[str, Tensor], times: float) -> None:
    for name, table in more.items():
        tables[name] = tables[name] + times * table if name in tables else times * table
