"""The raw metrics of one experiment, the effects derived from them, and both as a long table.

A `Sweep` holds every metric of each patched run, both baselines, the tokens, the direction and the settings. Effects
are derived, never stored, and by the same formula for every metric: it works out also where less is better. With
`base` the run that is patched and `source` the run that is copied from, the effect of one patch on one pair is

    effect = (patched - base) / (source - base)

For denoising (clean into corrupted) this is `(patched - corrupted) / (clean - corrupted)`. Over pairs it is the ratio
of the means, `(mean patched - mean base) / (mean source - mean base)`: the mean of the ratios is dominated by pairs
with a small denominator (Miller et al. 2024, "Transformer Circuit Faithfulness Metrics are not Robust").
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias, Unpack, get_args

import numpy as np
from jaxtyping import Bool, Float

from actpatch.core.alignment import Matches
from actpatch.core.direction import DIRECTIONS, Direction
from actpatch.core.estimate_words import estimated_by
from actpatch.core.estimates import Estimate
from actpatch.core.heavy import pd
from actpatch.core.sites import Patch
from actpatch.core.text import count, plain
from actpatch.metrics.names import metric_key
from actpatch.results.answers import NO_ANSWER, AnswerSet
from actpatch.results.effects import effects_over_pairs, largest
from actpatch.results.larger import LargerExperiment
from actpatch.results.long_table import long_table
from actpatch.results.metric_values import MIN_RELATIVE_CHANGE, MetricValues, mean, usable_pairs
from actpatch.results.patches import labels_of, of_pairs, taken, window_of, written_in
from actpatch.statistics.site_tests import StatisticsOptions
from actpatch.statistics.sites import SiteStatistics, site_statistics

SourceKind = Literal["other run", "ablation"]
"""Whether patches write the activation of the pair's other run, or what is of neither run."""

PER_PAIR = ("pair_indices", "clean_tokens", "corrupted_tokens", "templates", "groups", "correct", "incorrect")
"""Fields of a `Sweep` with an entry per pair."""

NOT_MATCHED = "not matched"
"""What stands in the place of the effect of a patch at positions without a partner in the other run."""

NO_PARTNER = "no position that was patched has a partner in the other run: match or name others"

Tokens: TypeAlias = tuple[str | None, ...]
"""Token strings by position; None where none stands there."""


@dataclass(frozen=True, repr=False)
class Sweep:
    """One experiment: every patch applied to every pair, with all that is needed to read its numbers.

    Some of its patches alone, or all in another order, are a sweep too, which knows the one that they are of: its
    statistics stay those of the whole experiment (`of_patches`).
    """

    patches: Sequence[Patch]
    """What was replaced, one entry per row of `patched`: a tuple, or edges as arrays (`core.edge_patches`)."""
    measured: tuple[MetricValues, ...]
    """Every metric. What the sweep says of `patched`, `effects` and so on is of the selected one (`by_metric`)."""
    direction: Direction
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
    templates: tuple[str, ...] = ()
    """Template of each pair (`PatchingDataset.get_template`); an empty text, or none at all, where it has none."""
    matches: tuple[Matches, ...] = ()
    """Which positions of each pair's prompts stand for each other; empty where, in every pair, each one stands for that
    of its own number."""
    groups: tuple[str, ...] = ()
    """Group of each pair, which may work otherwise than those of another one (`PatchingDataset.get_group`)."""
    correct: tuple[AnswerSet, ...] = ()
    """The right answers of each pair to its clean prompt; empty ones where there are none, or nothing reads them."""
    incorrect: tuple[AnswerSet, ...] = ()
    """The wrong answers of each pair, likewise."""
    source_of_values: str = "the other run"
    """What was written, in words: the other run's activation, or what an ablation puts in its place
    (`interventions.sources`)."""
    source_kind: SourceKind = "other run"
    """Whether that is of the other run."""
    noise: str = ""
    """The noise on the clean prompt's embeddings that makes the corrupted run; empty where the prompts differ."""
    path: str = ""
    """Where what is replaced is seen, where that is not by all that comes after it: `to L9H9 q and L9H6 q, other heads
    frozen, MLPs recomputed` (path patching, Wang et al. 2022); empty where all of it does."""
    varies: str = ""
    """Which signal the dataset's corruption changes; empty where it does not say, or noise makes the corrupted run."""
    dataset_seed: int | None = None
    """The seed that the dataset's pairs were drawn from; None where it has none."""
    min_relative_change: float = MIN_RELATIVE_CHANGE
    """A pair is left out of effects where |clean - corrupted| is below this share of max(|clean|, |corrupted|)."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that computed it."""
    dtype: str = ""
    """The type that the model computes in, for instance `float32`."""
    shortcuts: tuple[str, ...] = ()
    """The shortcuts that it was run with, each of which was found to be exact (`engine.exactness`)."""
    estimate: Estimate | None = None
    """How `patched` is estimated from gradients; None where every patch was run."""
    notes: tuple[str, ...] = ()
    """What a reader should know of how it was run: shortcuts that do not hold for this model, what rounding does."""
    run_exactly: Callable[[Sequence[Patch]], Sweep] | None = field(default=None, compare=False)
    """What runs patches on the same pairs in the same way; None where the model is not at hand."""
    selected: int = 0
    """Which of `measured` is shown."""
    whole: Sweep | None = None
    """The whole experiment that these patches were taken out of (`of_patches`); None where it is this one."""
    numbers: tuple[int, ...] = ()
    """The place of each patch in `whole`; empty where there is none."""
    larger: LargerExperiment | None = None
    """What these patches were chosen out of, where that is not held; None where nothing else was patched."""

    def __post_init__(self) -> None:
        n_patches, n_pairs = len(self.patches), len(self.pair_indices)
        for values in self.measured:
            if values.patched.shape != (n_patches, n_pairs):
                raise ValueError(
                    f"patched has shape {values.patched.shape}, expected (patches, pairs) = {(n_patches, n_pairs)}"
                )
        for name, nothing in (("templates", ""), ("groups", ""), ("correct", NO_ANSWER), ("incorrect", NO_ANSWER)):
            if not getattr(self, name):
                object.__setattr__(self, name, (nothing,) * n_pairs)
        for name in (*PER_PAIR, *(["matches"] if self.matches else [])):
            if (given := len(getattr(self, name))) != n_pairs:
                raise ValueError(f"{name} has {given} entries, expected one per pair ({n_pairs})")
        if self.direction not in DIRECTIONS:
            raise ValueError(f"direction {self.direction!r} is unknown: expected one of {', '.join(DIRECTIONS)}")
        if self.source_kind not in get_args(SourceKind):
            raise ValueError(
                f"source_kind {self.source_kind!r} is unknown: expected one of {', '.join(get_args(SourceKind))}"
            )
        if self.whole is not None and (
            (self.whole.pair_indices, self.whole.estimate) != (self.pair_indices, self.estimate)
            or taken(self.whole.patches, self.numbers) != self.patches
        ):
            raise ValueError(
                "patches, pairs or estimate are not those of the whole experiment: change whole.entire instead"
            )
        if not 0 <= self.selected < len(self.measured):
            raise ValueError(f"metric number {self.selected} of {len(self.measured)} cannot be selected")

    def __repr__(self) -> str:
        return f"Sweep({self.described('patch')})"

    def described(self, kind: str) -> str:
        """In a line: how many patches, of which `kind` says what they are, on how many pairs, and the baselines."""
        of = f" (of {count(self.n_in_all, 'patch')})" if self.is_part else ""
        others = f" and {count(len(self.metrics) - 1, 'more metric')}" if len(self.metrics) > 1 else ""
        path = f" {self.path}" if self.path else ""
        size = f"{count(len(self.patches), kind)}{path}{of} × {count(len(self.pair_indices), 'pair')}"
        how = f"{self.direction}, {estimated_by(self.estimate)}" if self.estimate else self.direction
        runs = f"{self.metric} clean {plain(mean(self.clean), 2)}, corrupted {plain(mean(self.corrupted), 2)}"
        return f"{size}, {self.task}, {how}, {runs}{others}"

    @property
    def labels(self) -> list[str]:
        """How each patch is printed."""
        return labels_of(self.patches)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, in the order in which they were asked for."""
        return tuple(values.name for values in self.measured)

    def by_metric(self, name: str) -> Sweep:
        """The same sweep with another metric selected: by its name, or as it was asked for (`kl_divergence`)."""
        keys = [metric_key(metric) for metric in self.metrics]
        if metric_key(name) not in keys:
            nearest = difflib.get_close_matches(metric_key(name), keys, n=1)
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise ValueError(
                f"the metric {name!r} was not measured: {hint}These results have {', '.join(keys)}; ask for more with "
                "metrics=[...] in the run"
            )
        selected = keys.index(metric_key(name))
        if selected == self.selected:
            return self  # which knows its statistics already
        whole = None if self.whole is None else replace(self.whole, selected=selected)
        return replace(self, selected=selected, whole=whole)

    def of_patches(self, numbers: Sequence[int]) -> Sweep:
        """The sweep of the patches with these numbers, in this order.

        Its `statistics` are the whole experiment's: p-values stay corrected over all of its patches, so that choosing
        some makes none of them significant.
        """
        whole = self.entire
        chosen = tuple(self.numbers[i] for i in numbers) if self.numbers else tuple(numbers)
        if len(chosen) == len(whole.patches) and chosen == tuple(range(len(chosen))):
            return whole
        rows = np.array(chosen, dtype=np.int64)
        measured = tuple(replace(values, patched=values.patched[rows]) for values in whole.measured)
        patches = taken(whole.patches, chosen)
        return replace(whole, patches=patches, measured=measured, whole=whole, numbers=chosen)

    @property
    def entire(self) -> Sweep:
        """The whole experiment that these patches are of, with the same metric selected."""
        if self.whole is None:
            return self
        return self.whole if self.whole.selected == self.selected else replace(self.whole, selected=self.selected)

    @property
    def is_part(self) -> bool:
        """Whether patches of the experiment are lacking."""
        of_whole = self.whole is not None and len(set(self.numbers)) < len(self.whole.patches)
        return of_whole or self.larger is not None

    @property
    def n_in_all(self) -> int:
        """Patches of the whole experiment, also where these are some of them."""
        return len(self.entire.patches) if self.larger is None else self.larger.n_patches

    def top(self, k: int = 10) -> list[tuple[Patch, float]]:
        """The k patches of largest |effect|, largest first, each with its effect."""
        effects = self.effects
        return [(self.patches[i], float(effects[i])) for i in largest(effects, k)]

    def of_pairs(self, which: Sequence[int]) -> Sweep:
        """The sweep of these pairs alone, by their place in it."""
        kept = list(which)
        if self.whole is not None:
            return self.entire.of_pairs(kept).of_patches(self.numbers)
        measured = tuple(
            replace(values, patched=values.patched[:, kept], clean=values.clean[kept], corrupted=values.corrupted[kept])
            for values in self.measured
        )
        patches = of_pairs(self.patches, kept)
        per_pair: dict[str, Any] = {name: tuple(getattr(self, name)[i] for i in kept) for name in PER_PAIR}
        per_pair["matches"] = tuple(self.matches[i] for i in kept) if self.matches else ()
        larger = None if self.larger is None else replace(self.larger, statistics=None)
        return replace(self, patches=patches, measured=measured, run_exactly=None, larger=larger, **per_pair)

    def by_group(self) -> dict[str, Sweep]:
        """Group -> the sweep of its pairs alone, the group of the first pair first; an empty name for pairs of none."""
        places: dict[str, list[int]] = {}
        for i, group in enumerate(self.groups):
            places.setdefault(group, []).append(i)
        return {group: self.of_pairs(which) for group, which in places.items()}

    @property
    def metric(self) -> str:
        """Name of the selected metric."""
        return self.measured[self.selected].name

    @property
    def unit(self) -> str:
        return self.measured[self.selected].unit

    @property
    def more_is_better(self) -> bool:
        return self.measured[self.selected].more_is_better

    @property
    def better(self) -> str:
        """Which way the selected metric is better, in words; empty where that goes without saying."""
        if not self.more_is_better:
            return "less is better"
        from actpatch.metrics.registry import METRICS  # its classes need torch, which reading results should not

        return "" if metric_key(self.metric) in METRICS else "more is better"

    @property
    def patched(self) -> Float[np.ndarray, "patch pair"]:
        return self.measured[self.selected].patched

    @property
    def clean(self) -> Float[np.ndarray, " pair"]:
        return self.measured[self.selected].clean

    @property
    def corrupted(self) -> Float[np.ndarray, " pair"]:
        return self.measured[self.selected].corrupted

    @property
    def intervention(self) -> str:
        """What was written into which run, in words."""
        if self.source_kind == "other run":
            return DIRECTIONS[self.direction].partition(":")[0]
        return f"{self.source_of_values} into {'corrupted' if self.direction == 'denoising' else 'clean'}"

    @property
    def question(self) -> str:
        """What was written into which run, and what that asks where it is the other run's activation."""
        return DIRECTIONS[self.direction] if self.source_kind == "other run" else self.intervention

    @property
    def window(self) -> int:
        """Number of adjacent layers that were patched together around each site; 1 where layers were patched singly."""
        return window_of(self.patches)

    @property
    def base_tokens(self) -> tuple[tuple[str, ...], ...]:
        """Token strings of each prompt whose run is patched, which positions are counted in."""
        return self.corrupted_tokens if self.direction == "denoising" else self.clean_tokens

    @cached_property
    def tokens_at(self) -> tuple[tuple[Tokens, Tokens], ...]:
        """Of each pair the clean and the corrupted tokens, by the positions of the prompt that is patched: of the other
        prompt those that stand for them, None where there is none."""
        if not self.matches:
            return tuple(zip(self.clean_tokens, self.corrupted_tokens))
        found: list[tuple[Tokens, Tokens]] = []
        for clean, corrupted, matches in zip(self.clean_tokens, self.corrupted_tokens, self.matches):
            if self.direction == "denoising":
                partners = {there: here for here, there in matches}
                found.append((_taken(clean, partners, len(corrupted)), corrupted))
            else:
                found.append((clean, _taken(corrupted, dict(matches), len(clean))))
        return tuple(found)

    @cached_property
    def written(self) -> Bool[np.ndarray, "patch pair"]:
        """Whether a patch writes anything in a pair: not where none of its positions has a partner there."""
        matches = () if self.source_kind == "ablation" else self.matches
        side = int(self.direction == "denoising")
        return written_in(self.patches, matches, side, [len(tokens) for tokens in self.base_tokens])

    @property
    def unmatched(self) -> Bool[np.ndarray, " patch"]:
        """Patches that write nothing in any usable pair, so that their effect is not known: it is NaN."""
        written = self.written[:, self.usable] if self.usable.any() else self.written
        return np.logical_not(written.any(axis=1))

    @property
    def base(self) -> Float[np.ndarray, " pair"]:
        """Metric of the run that is patched."""
        return self.corrupted if self.direction == "denoising" else self.clean

    @property
    def source(self) -> Float[np.ndarray, " pair"]:
        """Metric of the other run, whose activations are copied unless an ablation writes something else."""
        return self.clean if self.direction == "denoising" else self.corrupted

    @property
    def usable(self) -> Bool[np.ndarray, " pair"]:
        """Pairs whose clean and corrupted metric differ enough to divide by the difference."""
        return usable_pairs(self.clean, self.corrupted, self.min_relative_change)

    @property
    def pair_effects(self) -> Float[np.ndarray, "patch pair"]:
        """Effect of each patch on each pair; NaN for pairs that are not usable, and where nothing is written."""
        denominator = np.where(self.usable & self.written, self.source - self.base, np.nan)
        return (self.patched - self.base) / denominator

    @property
    def effects(self) -> Float[np.ndarray, " patch"]:
        """Effect of each patch over the usable pairs, as a ratio of means; NaN where no pair is usable, where their
        gaps cancel, and for patches that write nothing in any (`unmatched`). Pairs in which a patch writes nothing are
        left out of its effect."""
        usable = self.usable
        if not usable.any():
            return np.full(len(self.patches), np.nan)
        of_pairs = (self.base[usable], self.source[usable], self.written[:, usable])
        return effects_over_pairs(self.patched[:, usable], *of_pairs)

    def statistics(self, **options: Unpack[StatisticsOptions]) -> SiteStatistics:
        """How sure the effects are, from the usable pairs: intervals, p-values corrected over all patches, and more.

        Of some of an experiment's patches (`of_patches`) they are those of the whole experiment, with the entries of
        these patches: corrected over all of its patches.

        Options (seed, level, alpha, correction, power, n_resamples) and errors are those of
        `statistics.sites.site_statistics`. Where the pairs are of several groups, effects are compared between them.
        Entries of a patch rest on the pairs in which it writes anything; of one that writes nothing (`unmatched`), and
        is none of the sites, they are NaN. Of patches that were chosen out of a larger experiment (`larger`) they are
        its own, and a ValueError says where it is not at hand.
        """
        if self.whole is not None:
            return self.entire.statistics(**options).of_sites(self.numbers)
        return self._computed_statistics(options) if options else self._usual_statistics

    @cached_property
    def _usual_statistics(self) -> SiteStatistics:
        """Those without options, computed once: of many edges they take long, and tables, figures and reports ask."""
        found = self._computed_statistics({})
        for value in vars(found).values():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
        return found

    def _computed_statistics(self, options: StatisticsOptions) -> SiteStatistics:
        if self.larger is not None:
            return self._statistics_of_larger(self.larger, options)
        usable, labels = self.usable, self.labels
        known = np.flatnonzero(~self.unmatched)
        measured = known.tolist()
        if labels and not measured:
            raise ValueError(NO_PARTNER)
        found = site_statistics(
            self.patched[np.ix_(known, usable)],
            self.base[usable],
            self.source[usable],
            sites=[labels[i] for i in measured],
            groups=[group for group, kept in zip(self.groups, usable) if kept],
            written=self.written[np.ix_(known, usable)],
            **options,
        )
        found = found.of_estimates(self.estimate)
        return found if len(measured) == len(labels) else found.among(labels, measured)

    def _statistics_of_larger(self, larger: LargerExperiment, options: StatisticsOptions) -> SiteStatistics:
        if larger.statistics is None:
            raise ValueError(
                f"these are {count(len(self.patches), 'patch')} chosen out of {larger.n_patches:,} by their effects: "
                "p-values over them alone would be too small. The stored run has those of all, "
                "open_run(folder).statistics()"
            )
        return larger.statistics(self.metric, **options)

    def to_dataframe(self) -> pd.DataFrame:
        """Long form, a row per patch, pair and metric.

        Columns: `site` (label of the patch); `hook_point`, `layer`, `head`, `neuron`, `sender`, `position` and
        `position_name`, each missing where the patch has none or several, and those of its middle for a window of
        layers; of an edge all but `sender` (its id in the graph) are those of what receives; `token` and
        `corrupted_token` at that position, of a name that stands for several tokens their text; `pair` (index in the
        dataset), its `template` and `group`; its `correct` and `incorrect` answers, of several the first ones, with `|`
        between them, and how many more; `metric`, `unit`, `direction`; `source` (what was written), `noise`, `path`,
        `window` and `estimate` (the method, where `patched` is estimated); the metric of the `clean`, the `corrupted`
        and the `patched` run, in `unit`; the `effect`, NaN where the pair is not `usable`, and where the position has
        no partner. Positions count from the start of the prompt that is patched; where prompts have other lengths, the
        other one's token is that which stands for it, missing where there is none.
        """
        return long_table(self)


def _taken(tokens: Tokens, partners: Mapping[int, int], length: int) -> Tokens:
    return tuple(tokens[partners[at]] if at in partners else None for at in range(length))
