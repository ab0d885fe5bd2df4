"""Estimates of patches of components: what is written, less what is there, times the gradient of the metric there.

    score = Σ (written - recorded) · gradient,  summed over what a patch writes

(Nanda 2023, "Attribution Patching"). The methods differ in where, and by which rules, the gradient is taken
(`core.estimates`). A patch of several hook points has the sum of their scores in a run of its own, in which what is
written at each of them is held: no change of an earlier one goes through a later one, which is written itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from actpatch.core.estimates import Estimate
from actpatch.core.sites import Patch, Site, head_axis, position_axis
from actpatch.engine.backward import Rules, gim, relp
from actpatch.engine.edges import INPUT
from actpatch.engine.experiment import Experiment
from actpatch.engine.gradients import Differentiator, Point
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


def is_of_one_place(patch: Patch) -> bool:
    """Whether what a patch writes lies at one hook point, each part of it at positions of its own: the scores of its
    parts then add up."""
    parts = {(site.head, site.neuron) for site in patch.sites}
    return len({site.hook_point for site in patch.sites}) == 1 and (len(parts) == 1 or (None, None) not in parts)


def places_of(experiment: Experiment) -> list[Places]:
    """The sites of all patches of one place, by where they write; the positions of one part are written together."""
    found: dict[tuple[str, object], tuple[Tensor | None, list[int], list[int]]] = {}
    for number, (patch, positions) in enumerate(zip(experiment.patches, experiment.positions)):
        parts: dict[int, list[tuple[object, Tensor | None]]] = {}
        for site, at in zip(patch.sites, positions) if is_of_one_place(patch) else ():
            unit = site.head if site.head is not None else site.neuron
            parts.setdefault(-1 if unit is None else unit, []).append((site.position, at))
        for unit, written in parts.items():
            where = tuple(dict.fromkeys(position for position, _ in written))
            each = [at for _, at in written if at is not None]
            at = torch.cat(each, dim=1) if len(each) == len(written) else None
            key = patch.sites[0].hook_point, None if at is None else where
            _, patches, units = found.setdefault(key, (at, [], []))
            patches.append(number)
            units.append(unit)
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
        """The hook points of the patches of one place."""
        return sorted({place.hook_point for place in self.places})

    @cached_property
    def sets(self) -> list[int]:
        """Numbers of the other patches, which have a run each."""
        return [number for number, patch in enumerate(self.experiment.patches) if not is_of_one_place(patch)]

    def scores(self, rows: Int[Tensor, " row"]) -> Scores:
        """By how much each patch would move each metric of these pairs of the chunk."""
        of_sets = {number: self._of_set(number, rows) for number in self.sets}
        changes = {name: self.differences(name, rows) for name in self.names}
        tables: dict[str, Tensor] = {}
        for names in self._names_together:
            for point in self._points(names):
                with self.differentiator.running(point, rows, names, self.rules) as run:
                    slopes = [run.slopes(metric, names) for metric in range(len(run.values))]
                    for name in names:
                        more = products(name, changes[name], slopes)
                        tables[name] = tables[name] + more if name in tables else more
        n_points = self.estimate.n_points
        found = self.summed(tables, rows) / n_points if tables else self._nothing(next(iter(of_sets.values())))
        for number, score in of_sets.items():
            found[:, number] = score
        return found

    def _nothing(self, like: Float[Tensor, "metric row"]) -> Scores:
        return like.new_zeros(len(like), len(self.experiment.patches), like.shape[1])

    @property
    def _goes_along_activations(self) -> bool:
        return self.estimate.method == "ig_activations"

    @property
    def _names_together(self) -> list[list[str]]:
        """The hook points of `names`, by which of them have their gradients from the same runs."""
        if self._goes_along_activations:
            return [[name] for name in self.names]
        return [self.names] if self.names else []

    def _points(self, names: Sequence[str]) -> Iterator[Point]:
        """Where gradients are taken for patches of one place at these hook points."""
        if not self._goes_along_activations:
            return points_of(self.estimate, self.differentiator)
        partners = self.experiment.partners
        at = None if partners is None else torch.where(partners >= 0, torch.arange(partners.shape[1]), -1)
        return self._towards({name: self.differences(name) * self._at_positions(name, at) for name in names})

    def _towards(self, changes: dict[str, Float[Tensor, "pair ..."]]) -> Iterator[Point]:
        """Points on the way from what is there to what is written, at these hook points together."""
        there = {name: self.chunk.base.activations[name] for name in changes}
        for share in self.estimate.shares():
            writes = {name: (there[name] + share * change).to(there[name]) for name, change in changes.items()}
            yield replace(self.differentiator.at_base, writes=writes)

    def _of_set(self, number: int, rows: Int[Tensor, " row"]) -> Float[Tensor, "metric row"]:
        """The score of a patch that writes several things, each held where it is written."""
        patch, positions = self.experiment.patches[number], self.experiment.positions[number]
        masks: dict[str, Tensor] = {}
        for site, at in zip(patch.sites, positions):
            mask = self._mask(site, at)
            masks[site.hook_point] = masks.get(site.hook_point, mask) | mask
        names = list(masks)
        changes = {name: self.differences(name) * masks[name] for name in names}
        if self._goes_along_activations:
            points = self._towards(changes)
        else:
            points = (replace(point, cuts=masks) for point in points_of(self.estimate, self.differentiator))
        total: Tensor | None = None
        for point in points:
            with self.differentiator.running(point, rows, names, self.rules) as run:
                # What comes first may be of no account, where all that it moves is written itself.
                each = [run.slopes(metric, names, all_reached=False) for metric in range(len(run.values))]
            parts = [[changes[name][rows] * slopes[name].to(changes[name]) for name in names] for slopes in each]
            sums = [[part.flatten(1).sum(dim=1).to(parts[0][0].device) for part in of] for of in parts]
            score = torch.stack([torch.stack(of).sum(dim=0) for of in sums])
            total = score if total is None else total + score
        assert total is not None
        return total / self.estimate.n_points

    def _mask(self, site: Site, at: Int[Tensor, "pair _"] | None) -> Bool[Tensor, "pair ..."]:
        """Where a site writes, of the shape of what stands at its hook point."""
        like, name = self.chunk.base.activations[site.hook_point], site.hook_point
        mask = self._at_positions(name, at).expand_as(like)
        axis = head_axis(name) if site.head is not None else like.ndim - 1
        unit = site.head if site.head is not None else site.neuron
        if unit is not None and axis is not None:
            kept = torch.arange(like.shape[axis], device=like.device) == unit
            mask = mask & kept.view([-1 if other == axis else 1 for other in range(like.ndim)])
        return mask & self._own_keys(torch.arange(len(like))).to(like.device) if head_axis(name) == 1 else mask

    def _at_positions(self, name: str, at: Int[Tensor, "pair _"] | None) -> Bool[Tensor, "pair ..."]:
        """Whether is written at a position, along the axis of a hook point on which positions stand."""
        like = self.chunk.base.activations[name]
        mask = self.written(at, torch.arange(len(like)))
        shape = [len(like), *[1] * (like.ndim - 1)]
        shape[position_axis(name)] = mask.shape[1]
        return mask.view(shape).to(like.device)

    def _own_keys(self, rows: Int[Tensor, " row"]) -> Bool[Tensor, "row 1 1 key"]:
        """Which keys of these pairs stand in their prompts, and not behind them."""
        keys = torch.arange(self.chunk.base.tokens.shape[1]) < self.chunk.ends[rows, None]
        return keys[:, None, None, :]

    def summed(self, tables: dict[str, Tensor], rows: Int[Tensor, " row"]) -> Scores:
        """The scores of the patches, from those of the places that they write."""
        n_metrics = len(next(iter(tables.values())))
        like = next(iter(tables.values()))
        found = like.new_zeros(n_metrics, len(self.experiment.patches), len(rows))
        for place in self.places:
            of_sites = place.sums(tables[place.hook_point], self.written(place.at, rows))
            found.index_add_(1, torch.from_numpy(place.patches).to(like.device), of_sites.to(found))
        return found

    def written(self, at: Int[Tensor, "pair _"] | None, rows: Int[Tensor, " row"]) -> Bool[Tensor, "row pos"]:
        """At which positions of these pairs is written: nothing before a pair's first change and behind its prompt."""
        chunk = self.chunk
        every = torch.arange(chunk.base.tokens.shape[1])
        mask = (every >= chunk.first_change[rows, None]) & (every < chunk.ends[rows, None])
        if at is not None:
            mask &= (every[None, :, None] == at[chunk.pairs[rows]][:, None, :]).any(dim=2)
        return mask

    def differences(self, name: str, rows: Int[Tensor, " row"] | None = None) -> Float[Tensor, "row ..."]:
        """What is written at a hook point, less what is there, in single precision at least; None for all pairs."""
        rows = torch.arange(len(self.chunk.pairs)) if rows is None else rows
        written, there = self.chunk.source[name][rows], self.chunk.base.activations[name][rows]
        kind = torch.promote_types(there.dtype, torch.float32)
        written, there = written.to(kind), there.to(kind)
        difference = torch.where(written == there, 0, written - there)  # of scores that are masked both are -inf
        # What stands behind a prompt is not written, as key as little as as query.
        return difference * self._own_keys(rows).to(difference.device) if head_axis(name) == 1 else difference


def products(
    name: str, change: Float[Tensor, "row ..."], slopes: Sequence[dict[str, Float[Tensor, "row ..."]]]
) -> Float[Tensor, "metric row pos unit"]:
    """What changes at a hook point times each metric's gradient, summed over what is always written together."""
    return torch.stack([_summed(name, change * of_metric[name].to(change)) for of_metric in slopes])


def _summed(name: str, product: Float[Tensor, "row ..."]) -> Float[Tensor, "row pos unit"]:
    if head_axis(name) == 1:
        return product.sum(dim=-1).transpose(1, 2)
    if head_axis(name) == 2:
        return product.sum(dim=-1)
    return product if Site(name).kind.has_neurons else product.sum(dim=-1, keepdim=True)
