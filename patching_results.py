"""What came out?  Result values: raw metrics, the effects derived from them, tables, and files.

Every result rests on one `Sweep`: the metric of each patched run, both baselines, the tokens, the direction and the
settings. Effects are derived, never stored. `LayerResults` (a mapping) and `HeadResults` (a list) are the two shapes
in which the patchers hand a sweep out.

The effect of one patch on one pair, `base` being the run that is patched and `source` the run that is copied from:

    effect = (patched - base) / (source - base)

For denoising (clean into corrupted) this is `(patched - corrupted) / (clean - corrupted)`. Over pairs it is the ratio
of the means, `(mean patched - mean base) / (mean source - mean base)`: the mean of the ratios is dominated by pairs
with a small denominator (Miller et al. 2024, "Transformer Circuit Faithfulness Metrics are not Robust").
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from patching_sites import KEY_VALUE_COMPONENTS, PATCH_TYPES, Patch, Site
from patching_statistics import Correction, SiteStatistics, site_statistics

Direction = Literal["denoising", "noising"]
"""`denoising` puts clean activations into the corrupted run, `noising` corrupted ones into the clean run."""

DIRECTIONS: dict[Direction, str] = {
    "denoising": "clean into corrupted: does the component suffice to restore the behaviour?",
    "noising": "corrupted into clean: is the component necessary for the behaviour?",
}

FILE_FORMAT = 1

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sweep:
    """One experiment: every patch applied to every pair, with all that is needed to read its numbers."""

    patches: tuple[Patch, ...]
    """What was replaced, one entry per row of `patched`."""
    patched: Float[np.ndarray, "patch pair"]
    """Metric of each patched run, in `unit`."""
    clean: Float[np.ndarray, " pair"]
    """Metric of each clean run, in `unit`."""
    corrupted: Float[np.ndarray, " pair"]
    """Metric of each corrupted run, in `unit`."""
    direction: Direction
    metric: str
    """Name of the metric, for instance `logit difference`."""
    unit: str
    """Unit of the metric, for instance `logits`; empty where it is not known."""
    model: str
    """Name of the model."""
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    task: str
    """Name of the dataset, with its corruption."""
    pair_indices: tuple[int, ...]
    """Index of each pair in its dataset."""
    clean_tokens: tuple[tuple[str, ...], ...]
    """Token strings of each clean prompt, BOS included."""
    corrupted_tokens: tuple[tuple[str, ...], ...]
    min_relative_change: float = 0.1
    """A pair is left out of effects where |clean - corrupted| is below this share of max(|clean|, |corrupted|)."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that computed it."""

    def __post_init__(self) -> None:
        expected = (len(self.patches), len(self.pair_indices))
        if self.patched.shape != expected:
            raise ValueError(f"patched has shape {self.patched.shape}, expected (patches, pairs) = {expected}")
        for name in ("clean", "corrupted", "clean_tokens", "corrupted_tokens"):
            if len(getattr(self, name)) != expected[1]:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries, expected one per pair ({expected[1]})"
                )
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction {self.direction!r} is unknown: expected one of {', '.join(DIRECTIONS)}")

    @property
    def base(self) -> Float[np.ndarray, " pair"]:
        """Metric of the run that is patched."""
        return self.corrupted if self.direction == "denoising" else self.clean

    @property
    def source(self) -> Float[np.ndarray, " pair"]:
        """Metric of the run whose activations are copied."""
        return self.clean if self.direction == "denoising" else self.corrupted

    @property
    def usable(self) -> Bool[np.ndarray, " pair"]:
        """Pairs whose clean and corrupted metric differ enough to divide by the difference."""
        difference = np.abs(self.clean - self.corrupted)
        scale = np.maximum(np.abs(self.clean), np.abs(self.corrupted))
        return (difference > 1e-6) & (difference >= self.min_relative_change * scale)

    @property
    def pair_effects(self) -> Float[np.ndarray, "patch pair"]:
        """Effect of each patch on each pair; NaN for pairs that are not usable."""
        denominator = np.where(self.usable, self.source - self.base, np.nan)
        return (self.patched - self.base) / denominator

    @property
    def effects(self) -> Float[np.ndarray, " patch"]:
        """Effect of each patch over the usable pairs, as a ratio of means; NaN where no pair is usable."""
        usable = self.usable
        if not usable.any():
            return np.full(len(self.patches), np.nan)
        base = self.base[usable].mean()
        return (self.patched[:, usable].mean(axis=1) - base) / (self.source[usable].mean() - base)

    def statistics(
        self,
        *,
        seed: int = 0,
        level: float = 0.95,
        alpha: float = 0.05,
        correction: Correction = "bh",
        power: float = 0.8,
        n_resamples: int = 1999,
    ) -> SiteStatistics:
        """How sure the effects are, from the usable pairs: intervals, p-values corrected over all patches, and more.

        Args and errors are those of `patching_statistics.site_statistics`.
        """
        usable = self.usable
        return site_statistics(
            self.patched[:, usable],
            self.base[usable],
            self.source[usable],
            sites=[patch.label for patch in self.patches],
            seed=seed,
            level=level,
            alpha=alpha,
            correction=correction,
            power=power,
            n_resamples=n_resamples,
        )

    def warn_about_unusable_pairs(self) -> None:
        """Name the pairs that no effect can be computed for, once."""
        if self.usable.all():
            return
        listed = [
            f"pair {index} (clean {clean:+.3f}, corrupted {corrupted:+.3f})"
            for index, clean, corrupted in zip(
                np.array(self.pair_indices)[~self.usable],
                self.clean[~self.usable],
                self.corrupted[~self.usable],
                strict=True,
            )
        ]
        more = "" if len(listed) <= 5 else f" and {len(listed) - 5} more"
        warnings.warn(
            f"{len(listed)} of {len(self.pair_indices)} pairs have a clean and a corrupted {self.metric} that barely "
            f"differ; their effect is NaN and the average leaves them out: {', '.join(listed[:5])}{more}. "
            "Use a corruption that breaks the behaviour",
            stacklevel=3,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Long form, a row per patch and pair: where, which pair, both baselines, the raw and the normalised value."""
        effects = self.pair_effects
        rows = [
            {
                **_site_columns(patch, tokens),
                "pair": pair,
                "clean": self.clean[j],
                "corrupted": self.corrupted[j],
                "patched": self.patched[i, j],
                "effect": effects[i, j],
                "metric": self.metric,
                "direction": self.direction,
            }
            for i, patch in enumerate(self.patches)
            for j, (pair, tokens) in enumerate(zip(self.pair_indices, self.clean_tokens, strict=True))
        ]
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class PatchingResult:
    """One hook point patched on one pair."""

    hook_point: str
    pair_index: int
    clean_metric: float
    corrupted_metric: float
    patched_metric: float
    effect: float
    """Share of the behaviour that the patch moved (module docstring); NaN where the baselines barely differ."""
    position: int | None = None
    """The position that was patched; None for all."""


@dataclass(frozen=True)
class HeadPatchingResult:
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
    """Effect on each pair, in the order of the sweep's `pair_indices`; NaN for pairs that are not usable."""
    is_key_value_head: bool = False
    """True where `head` counts key-value heads, of which grouped-query attention has fewer than query heads."""

    @property
    def label(self) -> str:
        return f"L{self.layer}{'KV' if self.is_key_value_head else 'H'}{self.head}"


class SweepResults:
    """What every shape of results has: the sweep it rests on, a table, a file."""

    sweep: Sweep
    _rows = "patches"

    def __repr__(self) -> str:
        sweep = self.sweep
        return (
            f"{type(self).__name__}({len(sweep.patches)} {self._rows} × {len(sweep.pair_indices)} pairs, "
            f"{sweep.task}, {sweep.direction}, {sweep.metric} clean {_mean(sweep.clean):+.2f}, "
            f"corrupted {_mean(sweep.corrupted):+.2f})"
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Long form, a row per patch and pair (`Sweep.to_dataframe`)."""
        return self.sweep.to_dataframe()

    def statistics(
        self,
        *,
        seed: int = 0,
        level: float = 0.95,
        alpha: float = 0.05,
        correction: Correction = "bh",
        power: float = 0.8,
        n_resamples: int = 1999,
    ) -> SiteStatistics:
        """How sure the effects are (`Sweep.statistics`), one entry per patch of `sweep`."""
        return self.sweep.statistics(
            seed=seed, level=level, alpha=alpha, correction=correction, power=power, n_resamples=n_resamples
        )

    def save(self, path: str | Path) -> Path:
        """Write the results as JSON; `load_results` reads them back."""
        fields = {f.name: getattr(self.sweep, f.name) for f in dataclasses.fields(self.sweep)}
        fields["patches"] = [[dataclasses.asdict(site) for site in patch.sites] for patch in self.sweep.patches]
        fields["versions"] = dict(self.sweep.versions)
        for name in ("patched", "clean", "corrupted"):
            fields[name] = fields[name].tolist()
        stored = {"format": FILE_FORMAT, "kind": type(self).__name__, "sweep": fields}
        target = Path(path)
        target.write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
        return target


class LayerResults(SweepResults, dict[str, list[PatchingResult]]):
    """Hook point -> one `PatchingResult` per pair, with the whole sweep in `.sweep`."""

    _rows = "hook points"

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        effects = sweep.pair_effects
        super().__init__(
            {
                patch.sites[0].hook_point: [
                    PatchingResult(
                        hook_point=patch.sites[0].hook_point,
                        pair_index=pair,
                        clean_metric=float(sweep.clean[j]),
                        corrupted_metric=float(sweep.corrupted[j]),
                        patched_metric=float(sweep.patched[i, j]),
                        effect=float(effects[i, j]),
                        position=_position_of(patch.sites[0], j),
                    )
                    for j, pair in enumerate(sweep.pair_indices)
                ]
                for i, patch in enumerate(sweep.patches)
            }
        )

    @property
    def effects(self) -> dict[str, float]:
        """Hook point -> effect over the usable pairs."""
        return {patch.sites[0].hook_point: float(e) for patch, e in zip(self.sweep.patches, self.sweep.effects)}

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The k hook points of largest |effect|, largest first."""
        return _largest(self.effects.items(), k)

    def matrix(self) -> pd.DataFrame:
        """Effects as a layer × component table; NaN where a cell was not measured."""
        cells = [
            (patch.sites[0].layer, patch.sites[0].component, effect)
            for patch, effect in zip(self.sweep.patches, self.sweep.effects)
            if patch.sites[0].layer is not None
        ]
        if not cells:
            raise ValueError("none of these hook points lies in a layer, so there is no layer × component table")
        table = pd.DataFrame(cells, columns=["layer", "component", "effect"])
        order = list(dict.fromkeys(table["component"]))
        wide = table.pivot(index="layer", columns="component", values="effect")
        return wide.reindex(index=range(self.sweep.n_layers), columns=order)


class HeadResults(SweepResults, list[HeadPatchingResult]):
    """One `HeadPatchingResult` per head, in order of layer and head, with the whole sweep in `.sweep`."""

    _rows = "heads"

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        usable = sweep.usable
        effects = sweep.pair_effects
        super().__init__(
            HeadPatchingResult(
                layer=_head_of(patch)[0],
                head=_head_of(patch)[1],
                patch_type=self.patch_type,
                clean_metric=_mean(sweep.clean[usable]),
                corrupted_metric=_mean(sweep.corrupted[usable]),
                patched_metric=_mean(sweep.patched[i, usable]),
                effect=float(effect),
                pair_effects=tuple(effects[i].tolist()),
                is_key_value_head=self.counts_key_value_heads,
            )
            for i, (patch, effect) in enumerate(zip(sweep.patches, sweep.effects))
        )

    @property
    def patch_type(self) -> str:
        """`output`, `pattern`, `q`, `k` or `v`."""
        component = self.sweep.patches[0].sites[0].component
        return next((name for name, short in PATCH_TYPES.items() if short == component), component)

    @property
    def counts_key_value_heads(self) -> bool:
        """True where rows are key-value heads: patch type k or v under grouped-query attention."""
        return self.patch_type in KEY_VALUE_COMPONENTS and self.sweep.n_key_value_heads != self.sweep.n_heads

    @property
    def heads_per_layer(self) -> int:
        return self.sweep.n_key_value_heads if self.counts_key_value_heads else self.sweep.n_heads

    def top(self, k: int = 10) -> list[HeadPatchingResult]:
        """The k heads of largest |effect|, largest first."""
        ranked = _largest(((result, result.effect) for result in self), k)
        return [result for result, _ in ranked]

    def matrix(self) -> Float[np.ndarray, "layer head"]:
        """Effects by layer and head; NaN where a head was not measured."""
        table = np.full((self.sweep.n_layers, self.heads_per_layer), np.nan)
        for result in self:
            table[result.layer, result.head] = result.effect
        return table


class PositionResults(SweepResults):
    """Every layer of one component patched at every position: a layer × position map.

    Positions are counted in the prompts themselves, so all pairs need the same number of tokens.
    """

    _rows = "sites"

    def __init__(self, sweep: Sweep) -> None:
        for site in (patch.sites[0] for patch in sweep.patches):
            if site.layer is None or not isinstance(site.position, int):
                raise ValueError(
                    f"{site.label} has no place in a layer × position map: it needs a layer and a position"
                )
        self.sweep = sweep

    @property
    def components(self) -> list[str]:
        """Short names of the components that were patched."""
        return list(dict.fromkeys(patch.sites[0].component for patch in self.sweep.patches))

    def top(self, k: int = 10) -> list[tuple[Patch, float]]:
        """The k patches of largest |effect|, largest first."""
        return _largest(zip(self.sweep.patches, self.sweep.effects.tolist()), k)

    def matrix(self, component: str | None = None) -> Float[np.ndarray, "layer pos"]:
        """Effects of a component (the first, if not named) by layer and position; NaN where not measured."""
        component = self.components[0] if component is None else component
        if component not in self.components:
            raise ValueError(f"component {component!r} was not patched: expected one of {', '.join(self.components)}")
        table = np.full((self.sweep.n_layers, len(self.sweep.clean_tokens[0])), np.nan)
        for patch, effect in zip(self.sweep.patches, self.sweep.effects):
            site = patch.sites[0]
            if site.component == component:
                table[site.layer, site.position] = effect
        return table


def load_results(path: str | Path) -> LayerResults | HeadResults | PositionResults:
    """The results that `.save(path)` wrote, equal to those that were saved.

    Raises:
        ValueError: where the file is no such result, or one of another format version.
    """
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        found = stored["format"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no saved patching results: expected a file written by .save()") from error
    if found != FILE_FORMAT:
        raise ValueError(f"{path} has result format {found}, this version reads format {FILE_FORMAT}: run it again")
    fields: dict[str, Any] = stored["sweep"]
    fields["patches"] = tuple(Patch(tuple(_load_site(s) for s in sites)) for sites in fields["patches"])
    for name in ("patched", "clean", "corrupted"):
        fields[name] = np.array(fields[name], dtype=np.float64)
    fields["patched"] = fields["patched"].reshape(len(fields["patches"]), len(fields["pair_indices"]))
    fields["pair_indices"] = tuple(fields["pair_indices"])
    for name in ("clean_tokens", "corrupted_tokens"):
        fields[name] = tuple(tuple(tokens) for tokens in fields[name])
    kinds = {kind.__name__: kind for kind in (LayerResults, HeadResults, PositionResults)}
    return kinds[stored["kind"]](Sweep(**fields))


def _load_site(stored: dict[str, Any]) -> Site:
    position = stored["position"]
    return Site(stored["hook_point"], stored["head"], tuple(position) if isinstance(position, list) else position)


def _site_columns(patch: Patch, tokens: tuple[str, ...]) -> dict[str, Any]:
    site = patch.sites[0]
    position = site.position if isinstance(site.position, int) else None
    return {
        "site": patch.label,
        "hook_point": site.hook_point,
        "layer": site.layer,
        "head": site.head,
        "position": position,
        "token": None if position is None else tokens[position],
    }


def _position_of(site: Site, pair: int) -> int | None:
    return site.position[pair] if isinstance(site.position, tuple) else site.position


def _head_of(patch: Patch) -> tuple[int, int]:
    site = patch.sites[0]
    if site.layer is None or site.head is None:
        raise ValueError(f"{patch.label} is not an attention head: head results need a layer and a head")
    return site.layer, site.head


def _mean(values: Float[np.ndarray, " pair"]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _largest(items: Iterable[tuple[Item, float]], k: int) -> list[tuple[Item, float]]:
    """The k items of largest |value|; NaN comes last."""
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    return sorted(items, key=lambda item: -np.inf if np.isnan(item[1]) else abs(item[1]), reverse=True)[:k]
