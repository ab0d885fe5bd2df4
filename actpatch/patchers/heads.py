"""Patches attention heads, one at a time, and reads out where they look.

What of a head is replaced is the patch type:

    output    z (its other name), the head's output before W_O: everything the head adds to the residual stream
    pattern   its attention pattern: where it attends, with what it reads there left alone
    q, k, v   its queries, keys or values

A head whose output matters while its pattern does not is moved by what it reads (Wang et al. 2022, sections 3.1 to
3.3). Under grouped-query attention several query heads share a key-value head, so k and v go by key-value head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import numpy as np
import torch
from jaxtyping import Float

from actpatch.core.alignment import Span, span_of
from actpatch.core.components import patched_component
from actpatch.core.direction import Direction
from actpatch.core.indices import check_indices
from actpatch.core.sites import Patch, block_hook
from actpatch.core.stores import Store
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.noise import GaussianNoise
from actpatch.interventions.places import Columns, Position, named_columns, places_at
from actpatch.interventions.settings import Options, Settings
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.base import Metric
from actpatch.metrics.chosen import MetricChoice
from actpatch.patchers.activation import ActivationPatcher, summarize_results
from actpatch.patchers.cards import describe
from actpatch.patchers.experiment import encoded, run_experiment
from actpatch.patchers.important import important_heads
from actpatch.results.attention import (
    FIRST,
    NEAREST,
    OF_ONE_TEMPLATE,
    AttentionPatterns,
    alike,
    chosen_heads,
    common_tokens,
    effects_on,
    measured_heads,
    nearest_pair,
)
from actpatch.results.both import BothDirections, check_kind
from actpatch.results.cards import HeadCards
from actpatch.results.head_positions import HeadPositionResults
from actpatch.results.items import HeadPatchingResult, HeadPositionPatchingResult
from actpatch.results.shapes import HeadResults, OfHeads
from actpatch.runs.plan import Plan
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.encoding import EncodedPairs, encode_pairs


class _InLayers(Options, total=False):
    layers: Sequence[int] | None


class _Options(_InLayers, total=False):
    position: Position


class HeadPatcher:
    """Patches the attention heads of one model.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge`.
        batch_size: most patched prompts run at once; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None, show_progress: bool = True) -> None:
        self.model = model
        self.patcher = ActivationPatcher(model, batch_size=batch_size, show_progress=show_progress)

    def __repr__(self) -> str:
        return f"HeadPatcher({self.engine!r})"

    @property
    def engine(self) -> PatchingEngine:
        """What runs the model."""
        return self.patcher.engine

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        positions: None = None,
        direction: Literal["both"],
        **options: Unpack[_Options],
    ) -> BothDirections[HeadResults]: ...

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        positions: None = None,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_Options],
    ) -> HeadResults: ...

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        positions: Columns,
        direction: Literal["both"],
        **options: Unpack[_InLayers],
    ) -> BothDirections[HeadPositionResults]: ...

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        positions: Columns,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_InLayers],
    ) -> HeadPositionResults: ...

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        plan: Literal[True],
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_InLayers],
    ) -> Plan: ...

    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        layers: Sequence[int] | None = None,
        pair_indices: Sequence[int] | None = None,
        position: Position = None,
        positions: Columns | None = None,
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        noise: GaussianNoise | None = None,
        metrics: MetricChoice = None,
        store: Store | str | Path | None = None,
        plan: bool = False,
    ) -> HeadResults | HeadPositionResults | BothDirections[HeadResults] | BothDirections[HeadPositionResults] | Plan:
        """Patch each head on each pair, at all positions or one position at a time.

        Args:
            dataset: prompt pairs and metric.
            patch_type: what of the head is replaced (module docstring).
            layers: which layers, negative ones from the end; None for all.
            pair_indices: which pairs of the dataset; None for all.
            position: token position to patch (of `pattern` the query's: a row of it; of `q` the query's, of `k` and `v`
                the key's), a name the task gives one, or several that are patched together; None for all positions at
                once.
            positions: patch each head at each of these positions, one at a time, as
                `ActivationPatcher.run_position_experiment` takes them: `["S2", "END", -2, ["IO", "S1"]]`. All of them
                are one sweep. They are given in the place of `position`.
            direction: as in `ActivationPatcher.run_patching_experiment`.
            source: likewise.
            noise: likewise.
            metrics: likewise.
            store: likewise.
            plan: likewise.

        Returns:
            A list of `HeadPatchingResult`, one per head, in order of layer and head; with `positions` of
            `HeadPositionPatchingResult`, one per head and position. For `k` and `v` under grouped-query attention it
            has one per key-value head (`results.counts_key_value_heads`). For the direction `both` a `BothDirections`
            of two such.

        Raises:
            ValueError: before any run of the model, for whatever of the arguments or the dataset is wrong.
        """
        engine = self.engine
        component = patched_component(patch_type)
        n_heads = engine.n_key_value_heads if component.per_key_value_head else engine.n_heads
        every = range(engine.n_layers)
        chosen = check_indices(every if layers is None else layers, len(every), "layers", "layer")
        if position is not None and positions is not None:
            raise ValueError(
                "position and positions were both given: position patches every head at one place, positions at each "
                "of several in turn; give one of them"
            )
        settings = Settings(
            pair_indices=pair_indices,
            direction=direction,
            source=source,
            noise=noise,
            metrics=metrics,
            store=store,
            plan=plan,
        )
        pairs = encoded(self.model, dataset, settings)

        def patches(pairs: EncodedPairs) -> list[Patch]:
            columns = [places_at(position, pairs)] if positions is None else named_columns(positions, pairs)
            return [
                Patch(
                    tuple(replace(place, hook_point=block_hook(layer, component.name), head=head) for place in column)
                )
                for layer in sorted({*chosen})
                for head in range(n_heads)
                for column in columns
            ]

        if positions is None:
            return run_experiment(engine, HeadResults, pairs, patches, settings)
        return run_experiment(engine, HeadPositionResults, pairs, patches, settings)

    @overload
    def find_important_heads(
        self, results: Sequence[HeadPatchingResult], threshold: float | None = 0.1, *, alpha: float | None = None
    ) -> list[HeadPatchingResult]: ...

    @overload
    def find_important_heads(
        self,
        results: Sequence[HeadPositionPatchingResult],
        threshold: float | None = 0.1,
        *,
        alpha: float | None = None,
    ) -> list[HeadPositionPatchingResult]: ...

    def find_important_heads(
        self, results: Sequence[Any], threshold: float | None = 0.1, *, alpha: float | None = None
    ) -> list[Any]:
        """The heads that stand out, or the heads at single positions that do, largest |effect| first.

        Args:
            results: what `run_all_heads_experiment` returned, some of it, or a list of its entries.
            threshold: heads of at least this |effect|; None for heads of any size.
            alpha: heads whose p-value, corrected over all heads (and positions) of the experiment, is at most this
                besides (`results.statistics(alpha=alpha)`); None takes the others too, and warns which these are.

        Raises:
            ValueError: for a threshold below 0, where neither is given, for what is no list of heads, and for `alpha`
                with entries that are not of one experiment.
        """
        return important_heads(results, threshold, alpha)

    def attention_patterns(
        self,
        dataset: PatchingDataset,
        heads: Sequence[tuple[int, int] | str | HeadPatchingResult],
        *,
        pair_index: int | None = None,
    ) -> AttentionPatterns:
        """Where heads look on both prompts of a pair; `visualize.create_attention_patterns` draws it.

        Args:
            dataset: prompt pairs.
            heads: (layer, head), negative ones from the end, labels (`L1H0`), or entries of results (`results.top(3)`).
                Under grouped-query attention they are query heads.
            pair_index: which pair of the dataset. None is, for entries of results, the pair on which their mean effect
                is nearest to that over all pairs, which have to be of this dataset. For heads without effects it is the
                mean over the pairs of one template and length, of those of which there are most, or the first pair
                where no two have both in common. `AttentionPatterns.pairs` and `.why` say which.

        Raises:
            ValueError: before any run of the model, for no heads, one out of range or given twice, a key-value head,
                for heads that were measured on different pairs, and for whatever of the dataset is wrong.
        """
        engine = self.engine
        chosen = chosen_heads(heads, engine.n_layers, engine.n_heads)
        measured = measured_heads(heads)
        nearest = nearest_pair(measured) if measured and pair_index is None else None
        index = nearest if pair_index is None else pair_index
        pairs = encode_pairs(self.model, dataset, None if index is None else [index])
        drawn, why = [0], "" if nearest is None else NEAREST
        if index is None and len(pairs) > 1:
            lengths = zip(pairs.lengths.tolist(), pairs.other_lengths.tolist())
            drawn = alike(pairs.templates, [*lengths]) or [0]
            why = OF_ONE_TEMPLATE if len(drawn) > 1 else FIRST
        _check_side_by_side(pairs, drawn[0])
        clean, corrupted = self._patterns(pairs, drawn, chosen)
        indices = [pairs.indices[number] for number in drawn]
        names = _shared_names([pairs.positions[number] for number in drawn])
        in_corrupted = pairs.corrupted_positions or pairs.positions
        corrupted_names = _shared_names([in_corrupted[number] for number in drawn])
        effects = effects_on(measured, indices[0]) if len(drawn) == 1 else ()
        return AttentionPatterns(
            heads=tuple(chosen),
            clean=clean,
            corrupted=corrupted,
            clean_tokens=common_tokens([pairs.clean_tokens[number] for number in drawn], names),
            corrupted_tokens=common_tokens([pairs.corrupted_tokens[number] for number in drawn], corrupted_names),
            model=engine.model_name,
            task=pairs.task,
            pair_index=indices[0] if len(drawn) == 1 else None,
            averaged=tuple(indices) if len(drawn) > 1 else (),
            why=why,
            effects=effects,
            mean_effects=tuple(head.effect for head in measured) if effects else (),
            estimate=measured[0].estimate if effects else None,
        )

    def describe_heads(
        self,
        dataset: PatchingDataset,
        heads: Sequence[tuple[int, int] | str | HeadPatchingResult],
        *,
        pair_indices: Sequence[int] | None = None,
        metric: str | Metric | None = None,
        n_sequences: int = 10,
        sequence_length: int = 50,
        seed: int = 0,
        alpha: float = 0.05,
    ) -> HeadCards:
        """What each of these heads does: `print(patcher.describe_heads(dataset, important))`.

        A card has the effects of patching its output, its pattern and its queries, keys and values, each alone and in
        both directions; its output's effect at each named position; where it attends by role, on clean and corrupted
        prompts, from the last token and from the position where its output has most effect (`head_attention`); its
        scores on random tokens that come twice (likewise); what its weights copy and which tokens' queries meet which
        keys (`head_weights`); and a few sentences that claim no more than these numbers carry. What is not defined for
        a model is left out, and the card says why.

        Args:
            dataset: prompt pairs and metric.
            heads: (layer, head), negative ones from the end, labels (`L1H0`), or entries of results (`results.top(3)`).
                Under grouped-query attention they are query heads.
            pair_indices: which pairs of the dataset; None for all.
            metric: what effects are computed from, a name or a `Metric`; None for the dataset's own.
            n_sequences: sequences of random tokens, each with its own.
            sequence_length: random tokens in each before they come again; less where the model reads no more.
            seed: seed of the random tokens.
            alpha: an effect is significant where its p-value, corrected over all parts of all these heads, is at most
                this.

        Raises:
            ValueError: before any run of the model, for no heads, one out of range or given twice, a key-value head,
                and for whatever of the other arguments or the dataset is wrong.
        """
        engine = self.engine
        return describe(
            engine,
            dataset,
            chosen_heads(heads, engine.n_layers, engine.n_heads),
            pair_indices=pair_indices,
            metric=metric,
            n_sequences=n_sequences,
            sequence_length=sequence_length,
            seed=seed,
            alpha=alpha,
        )

    def _patterns(
        self, pairs: EncodedPairs, drawn: Sequence[int], heads: Sequence[tuple[int, int]]
    ) -> tuple[Float[np.ndarray, "head query key"], Float[np.ndarray, "head query key"]]:
        """The heads' patterns on the clean and the corrupted prompts, means over the pairs drawn."""
        names = {layer: self.engine.hook_points(block_hook(layer, "pattern"))[0] for layer, _ in heads}
        total = np.zeros((2, len(heads), *(len(pairs.clean[drawn[0]]),) * 2))
        for number in drawn:
            both = torch.stack([pairs.clean[number], pairs.corrupted[number]])
            recorded = self.engine.record(both, list(names.values())).activations
            patterns = torch.stack([recorded[names[layer]][:, head].cpu() for layer, head in heads], dim=1)
            total += patterns.double().cpu().numpy()
        clean, corrupted = total / len(drawn)
        return clean, corrupted


def print_head_results(results: HeadResults | HeadPositionResults, top_k: int = 15) -> None:
    """Print the experiment, its baselines and the heads of largest |effect|, a column per metric.

    Each effect stands with its interval, `n.s.` marks those that are not significant, and what follows the table says
    how both were found (`statistics.sites`).
    """
    check_kind(results, OfHeads, "run_all_heads_experiment")
    summarize_results(results, top_k)


def _shared_names(positions: Sequence[Mapping[str, Span]]) -> dict[int, str]:
    """Position -> its name, where it is the same one in all pairs."""
    shared = set.intersection(
        *({(at, name) for name, span in names.items() for at in span_of(span)} for names in positions)
    )
    return dict(sorted(shared, key=lambda item: item[::-1]))


def _check_side_by_side(pairs: EncodedPairs, number: int) -> None:
    """Raises ValueError where the prompts of a pair have other numbers of tokens."""
    n_clean, n_corrupted = len(pairs.clean[number]), len(pairs.corrupted[number])
    if n_clean != n_corrupted:
        raise ValueError(
            f"pair {pairs.indices[number]}: the prompts have {n_clean} and {n_corrupted} tokens, so their patterns "
            "cannot be laid side by side: choose a pair whose prompts have as many, or see each prompt's own with "
            "run_with_cache(prompt, 'pattern') of an ActivationPatcher"
        )
