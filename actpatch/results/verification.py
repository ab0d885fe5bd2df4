"""Estimated effects of all sites beside exact ones of some: how well they agree, and how much may have been missed.

Those of largest |estimate| were run exactly, and a random sample of the others (`statistics.screening` says what can be
concluded from these two). A value: it runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from actpatch.core.edge_patches import EdgePatches
from actpatch.core.estimates import Estimate
from actpatch.core.heavy import pd
from actpatch.core.indices import is_integer
from actpatch.core.sites import Patch
from actpatch.core.text import count, described
from actpatch.results.differences import differing
from actpatch.results.effects import largest
from actpatch.results.patches import Column, common, table_columns, taken
from actpatch.results.sweep import Sweep
from actpatch.results.verification_text import verification_html, verification_line, verification_text
from actpatch.statistics.groups import placed
from actpatch.statistics.screening import (
    Agreement,
    VerifiedSites,
    pearson,
    rank_correlation,
    recall,
    spearman,
)
from actpatch.statistics.subsets import SubsetBounds, subset_bounds
from actpatch.statistics.unverified import BoundCurve, bound_curve, check_confidence, most_above

FEWEST_OF_A_KIND = 5
"""Of fewer verified sites of a layer and kind no rank correlation is given."""
MOST_MOVED = 0.05
"""Share of the gap between clean and corrupted runs by which these may differ, by rounding, from those of estimates."""


@dataclass(frozen=True, repr=False)
class Verification:
    """What exact runs say of a screen by estimates.

    Sites whose estimate is NaN (`Sweep.unmatched`) are none of those that are compared or counted.

    Raises:
        ValueError: where effects of the one sweep are not estimated, or those of the other are; where they are of other
            patches, pairs, models, metrics or directions than these numbers say; where a number is given twice or does
            not exist; where no pair is usable.
    """

    estimated: Sweep
    """Estimates of all sites."""
    exact: Sweep
    """Exact effects of the sites `top`, then of those of `sample`."""
    top: tuple[int, ...]
    """Numbers, among the estimated, of the sites that were verified because their estimates are the largest."""
    sample: tuple[int, ...]
    """Numbers of those that were drawn from all others, each set of so many being equally likely."""
    seed: int
    """Of the draw of the sample, and of resamples."""
    kind: str = "site"
    """What a site is: `edge`, `head`, `neuron`."""
    level: float = 0.95
    """With which confidence bounds and intervals hold."""

    def __post_init__(self) -> None:
        for name in ("top", "sample"):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
        check_confidence(self.level, "level")
        if self.estimated.estimate is None or self.exact.estimate is not None:
            raise ValueError("expected estimates as estimated, and effects of patches that were run as exact")
        numbers, n_sites = self.numbers, len(self.estimated.patches)
        if len(set(numbers)) < len(numbers) or any(not 0 <= n < n_sites for n in numbers):
            raise ValueError(
                f"top and sample name {len(numbers)} sites, {len(set(numbers))} of them different, expected different "
                f"numbers from 0 to {n_sites - 1}"
            )
        if not numbers or taken(self.estimated.patches, numbers) != self.exact.patches:
            raise ValueError(
                f"exact has {count(len(self.exact.patches), 'patch')}, expected those that top and sample name, at "
                "least one, in this order: run estimated.of_patches((*top, *sample)).patches"
            )
        if what := differing(self.estimated, self.exact):
            ours, theirs = getattr(self.estimated, what), getattr(self.exact, what)
            shown = "" if what.endswith("_tokens") else f": {ours!r} and {theirs!r}"
            raise ValueError(f"estimated and exact differ in {what}{shown}, expected the same: run both alike")
        if not self._known.any():
            raise ValueError("no estimate can be told as an effect: no pair is usable, or no site has a partner")

    def by_metric(self, name: str) -> Verification:
        """The same sites with another metric selected, which top was not chosen by."""
        return replace(self, estimated=self.estimated.by_metric(name), exact=self.exact.by_metric(name))

    @property
    def estimate(self) -> Estimate:
        """How effects were estimated."""
        assert self.estimated.estimate is not None
        return self.estimated.estimate

    @property
    def are_sizes(self) -> bool:
        """Whether estimates are sizes without a sign: they are then compared with |exact|."""
        return self.estimate.what.is_absolute

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the verified sites: of the top, then of the sample."""
        return (*self.top, *self.sample)

    @property
    def labels(self) -> list[str]:
        """What each site is called."""
        return self.estimated.labels

    @cached_property
    def estimates(self) -> Float[np.ndarray, " site"]:
        """Estimated effect of each site; NaN where nothing was written."""
        return self.estimated.effects

    @cached_property
    def exact_effects(self) -> Float[np.ndarray, " site"]:
        """Exact effect of each verified site; NaN elsewhere."""
        return placed(self.exact.effects, len(self.estimated.patches), self.numbers)

    @property
    def compared(self) -> Float[np.ndarray, " site"]:
        """What estimates are compared with: exact effects, or their sizes where estimates have no sign."""
        return np.abs(self.exact_effects) if self.are_sizes else self.exact_effects

    @cached_property
    def is_top(self) -> Bool[np.ndarray, " site"]:
        found = np.zeros(len(self.estimates), dtype=bool)
        found[list(self.top)] = True
        return found

    @property
    def is_of_edges(self) -> bool:
        """Whether sites are edges between components."""
        return isinstance(self.estimated.patches, EdgePatches)

    @property
    def n_unverified(self) -> int:
        """Sites that have an estimate alone."""
        return self.sites.n_rest - self.sites.n_sample

    @property
    def cutoff(self) -> float:
        """The smallest |estimate| of the top: what an estimate had to reach to be verified for certain. NaN without
        a top."""
        sizes = np.abs(self.estimates[list(self.top)])
        return float("nan") if np.isnan(sizes).all() else float(np.nanmin(sizes))

    @property
    def missed(self) -> tuple[int, ...]:
        """Numbers of the sites of the sample whose exact |effect| is above `cutoff`, largest first: they would have
        been among the top had their estimate been right."""
        above = [n for n in self.sample if abs(self.exact_effects[n]) > self.cutoff]
        return tuple(sorted(above, key=lambda n: -abs(self.exact_effects[n])))

    @cached_property
    def pearson(self) -> Agreement:
        """Pearson's correlation of estimated and exact effects over all sites, and its interval."""
        return pearson(self.sites, level=self.level, seed=self.seed)

    @cached_property
    def spearman(self) -> Agreement:
        """Spearman's rank correlation of estimated and exact effects over all sites, and its interval."""
        return spearman(self.sites, level=self.level, seed=self.seed)

    def recall(self, k: int) -> Agreement:
        """Share of the k largest |exact| of all sites that are among the k largest |estimate|, and its interval.

        Raises:
            ValueError: where k is no whole number from 1 on, or the k largest estimates are not all of the top.
        """
        return recall(self.sites, k, level=self.level)

    def most_above(self, effect: float) -> int:
        """How many unverified sites have a larger |effect| at most, with confidence `level`.

        Raises:
            ValueError: for an effect that is no number from 0 on.
        """
        if isinstance(effect, bool) or not effect >= 0:
            raise ValueError(f"effect is {effect!r}, expected a size from 0 on")
        found = int((np.abs(self._of_sample) > effect).sum())
        return most_above(self.sites.n_rest, self.sites.n_sample, found, self.level)

    @property
    def bounds(self) -> BoundCurve:
        """`most_above` at the |effect| of every site of the sample: at each size a statement of its own."""
        return bound_curve(self._of_sample, self.sites.n_rest, self.level)

    def subset_bounds(self, n_sets: int = 100, *, seed: int = 0) -> SubsetBounds:
        """Bounds on the effect of any unverified site, from random halves of them that are patched together and run.

        The diagnostic of AtP* (Kramár et al. 2024; `statistics.subsets` says what it rests on).

        Args:
            n_sets: how many sets are drawn and run.
            seed: of the draw.

        Raises:
            ValueError: for edges, which are not patched together; where no site is left, or the model is not at hand,
                or not as it was.
        """
        if self.is_of_edges:
            raise ValueError("edges are patched one at a time, so that random sets of them cannot be run: see `bounds`")
        if not is_integer(n_sets) or n_sets < 4:
            raise ValueError(f"n_sets is {n_sets!r}, expected at least 4")
        left = np.setdiff1d(np.flatnonzero(self._known), self.numbers).tolist()
        if not left:
            raise ValueError("every site was run: there is none whose effect is to be bounded")
        included = np.random.default_rng(seed).random((n_sets, len(left))) < 0.5
        included = included[included.any(axis=1)]
        patches = [
            Patch(tuple(site for at in np.flatnonzero(held) for site in self.estimated.patches[left[at]].sites), name)
            for held, name in zip(included, (f"set {number}" for number in range(len(included))))
        ]
        return subset_bounds(included, _ran_exactly(self.estimated, patches).effects, self.level)

    def top_effects(self, k: int = 10) -> list[int]:
        """Numbers of the k verified sites of largest exact |effect|, largest first."""
        return [n for n in largest(self.exact_effects, k) if not np.isnan(self.exact_effects[n])]

    def by_layer_and_kind(self) -> pd.DataFrame:
        """How well estimates agree in each layer, for each kind of site: a row for each.

        Columns: `layer` and `kind` (of an edge those of its receiver: `q`, `k`, `v`, `mlp`, `logits`; else the
        component), `n_sites`, `n_verified`; `error`, the mean |estimate - exact|, NaN where none was verified; and
        `spearman`, NaN for fewer than `FEWEST_OF_A_KIND`. In both, a site of the sample stands for as many sites as in
        the whole.
        """
        layers, kinds = _layers_and_kinds(self.estimated.patches)
        table = pd.DataFrame({"layer": layers, "kind": kinds, "known": self._known}).query("known")
        weights = placed(self.sites.weights, len(self.estimates), np.flatnonzero(self._known).tolist())
        rows = []
        for (layer, kind), group in table.groupby(["layer", "kind"], dropna=False, sort=False):
            numbers = group.index.to_numpy()
            chosen = numbers[weights[numbers] > 0]
            estimates, exact, of = self.estimates[chosen], self.compared[chosen], weights[chosen]
            agree = rank_correlation(estimates, exact, of) if len(chosen) >= FEWEST_OF_A_KIND else float("nan")
            error = float(np.average(np.abs(estimates - exact), weights=of)) if len(chosen) else float("nan")
            rows.append((layer, kind, len(numbers), len(chosen), error, agree))
        return pd.DataFrame(rows, columns=["layer", "kind", "n_sites", "n_verified", "error", "spearman"])

    def to_dataframe(self) -> pd.DataFrame:
        """A row per site.

        Columns: `site`, `layer`, `head`, `neuron`, `sender`, `position` (or its name), as in other tables; `estimate`
        and `method`; `verified` (`top`, `sample`, or None); `exact`, NaN where not verified; `missed`, whether it is
        one of `missed`; `metric` and `direction`.
        """
        columns = table_columns(self.estimated.patches)
        names = {"site": "site", "layer": "layer", "head": "head", "neuron": "neuron", "sender": "sender"}
        table = pd.DataFrame({name: columns[of].each() for name, of in {**names, "position": "place"}.items()})
        verified = np.full(len(table), None, dtype=object)
        verified[list(self.top)], verified[list(self.sample)] = "top", "sample"
        is_missed = np.isin(np.arange(len(table)), self.missed)
        return table.assign(
            estimate=self.estimates,
            method=self.estimate.described,
            verified=verified,
            exact=self.exact_effects,
            missed=is_missed,
            metric=self.estimated.metric,
            direction=self.estimated.direction,
        )

    def summary(self) -> str:
        """A few sentences: what was run, how well estimates agree, and what may have been missed."""
        return verification_text(self)

    def __repr__(self) -> str:
        return verification_line(self)

    def _repr_html_(self) -> str:
        return verification_html(self)

    @cached_property
    def sites(self) -> VerifiedSites:
        """Estimates and what they are compared with, of the sites that have an estimate, for statistics."""
        known = self._known
        return VerifiedSites(self.estimates[known], self.compared[known], self.is_top[known])

    @property
    def _known(self) -> Bool[np.ndarray, " site"]:
        return ~np.isnan(self.estimates)

    @property
    def _of_sample(self) -> Float[np.ndarray, " sample"]:
        """Exact effects of the sample."""
        return self.sites.exact[self.sites.is_sample]


def verify(sweep: Sweep, kind: str, top: int, sample: int, seed: int) -> Verification:
    """Run the patches of largest |estimate|, and a random sample of the others (`SweepResults.verify`).

    Args:
        sweep: estimates, with what runs them.
        kind: what each patch is, in a word.
        top: how many of the largest are run.
        sample: how many of the others.
        seed: of the draw.

    Raises:
        ValueError: for effects that are exact, for a sweep that cannot run its patches, and for numbers that are none.
    """
    for name, given in (("top", top), ("sample", sample)):
        if not is_integer(given) or given < 0:
            raise ValueError(f"{name} is {given!r}, expected a whole number from 0 on")
    if not top + sample:
        raise ValueError("top and sample are both 0: nothing is run, so nothing is verified; give at least one")
    _check_can_be_run(sweep)
    effects = sweep.effects
    known = np.flatnonzero(~np.isnan(effects))
    best = [number for number in largest(effects, top) if not np.isnan(effects[number])] if top else []
    others = np.setdiff1d(known, best)
    drawn = np.random.default_rng(seed).choice(others, min(sample, len(others)), replace=False)
    numbers = [*best, *drawn.tolist()]
    exact = _ran_exactly(sweep, taken(sweep.patches, numbers))
    return Verification(sweep, exact, tuple(best), tuple(drawn.tolist()), seed, kind)


def check_is_the_same_model(before: Sweep, exact: Sweep) -> None:
    """Raise a ValueError where runs that nothing is written into give another metric than they did then."""
    gap = np.abs(before.clean - before.corrupted)
    how, anew = ("measured", "measure") if before.estimate is None else ("estimated", "estimate")
    for name in ("clean", "corrupted"):
        then, now = getattr(before, name), getattr(exact, name)
        with np.errstate(invalid="ignore"):  # both may be -inf
            moved = np.where(then == now, 0.0, np.abs(now - then))
        if np.nanmean(moved) > MOST_MOVED * np.nanmean(gap):
            raise ValueError(
                f"the model is not as it was when these effects were {how} (weights, or hooks on it): {name} runs "
                f"had a mean {before.metric} of {np.nanmean(then):.3g} and now have {np.nanmean(now):.3g}; {anew} "
                "them anew"
            )


def _check_can_be_run(sweep: Sweep) -> None:
    """Raise a ValueError for effects that are exact, and for estimates whose model is not at hand."""
    if sweep.estimate is None:
        raise ValueError("these effects were measured, not estimated: there is nothing to verify")
    if sweep.run_exactly is None:
        raise ValueError(
            "these estimates do not know their model (they were read from a file, or are of some pairs alone): verify "
            "what AttributionPatcher returned"
        )


def _ran_exactly(sweep: Sweep, patches: Sequence[Patch]) -> Sweep:
    """Patches on the pairs of a sweep of estimates, run by the model that these are of."""
    _check_can_be_run(sweep)
    assert sweep.run_exactly is not None
    exact = sweep.run_exactly(patches).by_metric(sweep.metric)
    check_is_the_same_model(sweep, exact)
    return exact


def _layers_and_kinds(patches: Sequence[Patch]) -> tuple[list[int | None], list[str]]:
    """Where each site is, and what it is; of an edge, its receiver."""
    if isinstance(patches, EdgePatches):
        readers = patches.graph.readers
        which: Int[np.ndarray, " patch"] = patches.readers
        return (
            Column([reader.layer for reader in readers], which).each(),
            Column([reader.kind for reader in readers], which).each(),
        )
    layers = [common(patch, lambda site: site.layer) for patch in patches]
    return layers, [common(patch, lambda site: site.component) or "several" for patch in patches]


def check_verification(given: object, argument: str) -> None:
    """Raise a ValueError for anything else."""
    if not isinstance(given, Verification):
        raise ValueError(f"{argument} was given {described(given)}, expected a Verification")
