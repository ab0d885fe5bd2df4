"""Patches attention heads, one at a time, and reads out where they look.

What of a head is replaced is the patch type:

    output    z, the head's output before W_O: everything the head adds to the residual stream
    pattern   its attention pattern: where it attends, with what it reads there left alone
    q, k, v   its queries, keys or values

A head whose output matters while its pattern does not is moved by what it reads (Wang et al. 2022, sections 3.1 to
3.3). Under grouped-query attention several query heads share a key-value head, so k and v go by key-value head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Literal, Unpack, overload

import torch

from actpatch.core.components import PATCH_TYPES
from actpatch.core.direction import Direction
from actpatch.core.indices import check_indices
from actpatch.core.sites import Patch, block_hook
from actpatch.interventions.noise import GaussianNoise
from actpatch.interventions.places import Position, places_at
from actpatch.interventions.settings import Options, Settings
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.chosen import MetricChoice
from actpatch.patchers.activation import ActivationPatcher
from actpatch.patchers.experiment import encoded, run_experiment
from actpatch.results.attention import AttentionPatterns, chosen_heads
from actpatch.results.both import BothDirections, check_kind
from actpatch.results.items import HeadPatchingResult
from actpatch.results.shapes import HeadResults
from actpatch.results.text import results_text
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.encoding import EncodedPairs, encode_pairs


class _Options(Options, total=False):
    layers: Sequence[int] | None
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
        return f"HeadPatcher({self.patcher.engine!r})"

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        direction: Literal["both"],
        **options: Unpack[_Options],
    ) -> BothDirections[HeadResults]: ...

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_Options],
    ) -> HeadResults: ...

    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        layers: Sequence[int] | None = None,
        pair_indices: Sequence[int] | None = None,
        position: Position = None,
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        noise: GaussianNoise | None = None,
        metrics: MetricChoice = None,
    ) -> HeadResults | BothDirections[HeadResults]:
        """Patch each head on each pair.

        Args:
            dataset: prompt pairs and metric.
            patch_type: what of the head is replaced (module docstring).
            layers: which layers, negative ones from the end; None for all.
            pair_indices: which pairs of the dataset; None for all.
            position: token position to patch (the query's, for `pattern`), a name the task gives one, or several that
                are patched together; None for all positions at once.
            direction, source, noise, metrics: as in `ActivationPatcher.run_patching_experiment`.

        Returns:
            A list of `HeadPatchingResult`, one per head, in order of layer and head. For `k` and `v` under
            grouped-query attention it has one per key-value head (`results.counts_key_value_heads`). For the direction
            `both` a `BothDirections` of two such.

        Raises:
            ValueError: before any run of the model, for whatever of the arguments or the dataset is wrong.
        """
        engine = self.patcher.engine
        if patch_type not in tuple(PATCH_TYPES):
            raise ValueError(f"patch_type {patch_type!r} is unknown: expected one of {', '.join(PATCH_TYPES)}")
        component = PATCH_TYPES[patch_type]
        n_heads = engine.n_key_value_heads if component.per_key_value_head else engine.n_heads
        every = range(engine.n_layers)
        chosen = check_indices(every if layers is None else layers, len(every), "layers", "layer")
        settings = Settings(pair_indices=pair_indices, direction=direction, source=source, noise=noise, metrics=metrics)
        pairs = encoded(self.model, dataset, settings)

        def patches(pairs: EncodedPairs) -> list[Patch]:
            places, names = (
                places_at(position, pairs),
                [block_hook(layer, component.name) for layer in sorted({*chosen})],
            )
            return [
                Patch(tuple(replace(place, hook_point=name, head=head) for place in places))
                for name in names
                for head in range(n_heads)
            ]

        return run_experiment(engine, HeadResults, pairs, patches, settings)

    def find_important_heads(
        self, results: Sequence[HeadPatchingResult], threshold: float | None = 0.1, *, alpha: float | None = None
    ) -> list[HeadPatchingResult]:
        """The heads that stand out, largest |effect| first.

        Args:
            results: what `run_all_heads_experiment` returned; for `threshold` alone any list of its entries will do.
            threshold: heads of at least this |effect|; None for heads of any size.
            alpha: heads whose p-value, corrected over all heads of the experiment, is at most this besides
                (`results.statistics(alpha=alpha)`); None does not ask whether they are.

        Raises:
            ValueError: for a threshold below 0, where neither is given, for what is no list of heads, and for `alpha`
                with a plain list or a slice, which lack the heads that the correction counts.
        """
        if threshold is None and alpha is None:
            raise ValueError("threshold and alpha are both None, so nothing is selected: give at least one")
        if threshold is not None and (not isinstance(threshold, Real) or not threshold >= 0):
            raise ValueError(f"threshold is {threshold!r}, expected at least 0: it is compared with |effect|")
        check_kind(results, Sequence, "run_all_heads_experiment")
        if wrong := [entry for entry in results if not isinstance(entry, HeadPatchingResult)]:
            raise ValueError(f"results holds a {type(wrong[0]).__name__}, expected HeadPatchingResult")
        important = [r for r in results if abs(r.effect) >= (threshold or 0)]
        if alpha is not None:
            if not isinstance(results, HeadResults) or results.is_part:
                raise ValueError(
                    f"results is a {type(results).__name__}, expected what run_all_heads_experiment returns: alpha "
                    "needs every pair and head of the experiment. Use threshold alone, or give the whole results"
                )
            number = _numbers_of_heads(results)
            significant = results.statistics(alpha=alpha).significant_or_warned()
            important = [r for r in important if significant[number[r.layer, r.head]]]
        return sorted(important, key=lambda r: abs(r.effect), reverse=True)

    def attention_patterns(
        self,
        dataset: PatchingDataset,
        heads: Sequence[tuple[int, int] | HeadPatchingResult],
        *,
        pair_index: int = 0,
    ) -> AttentionPatterns:
        """Where heads look on both prompts of one pair; `visualize.create_attention_patterns` draws it.

        Args:
            dataset: prompt pairs.
            heads: (layer, head), negative ones from the end, or entries of results (`results.top(3)`). Under
                grouped-query attention they are query heads.
            pair_index: which pair of the dataset.

        Raises:
            ValueError: before any run of the model, for no heads, one out of range or given twice, a key-value head,
                and for whatever of the dataset is wrong.
        """
        engine = self.patcher.engine
        chosen = chosen_heads(heads, engine.n_layers, engine.n_heads)
        names = {layer: engine.hook_points(block_hook(layer, "pattern"))[0] for layer, _ in chosen}
        pairs = encode_pairs(self.model, dataset, [pair_index])
        if len(pairs.clean[0]) != len(pairs.corrupted[0]):
            raise ValueError(
                f"pair {pair_index}: the prompts have {len(pairs.clean[0])} and {len(pairs.corrupted[0])} tokens, so "
                "their patterns cannot be laid side by side: choose a pair whose prompts have as many"
            )
        both = torch.stack([pairs.clean[0], pairs.corrupted[0]])
        recorded = engine.record(both, list(names.values())).activations
        patterns = torch.stack([recorded[names[layer]][:, head] for layer, head in chosen], dim=1).float().cpu().numpy()
        return AttentionPatterns(
            heads=tuple(chosen),
            clean=patterns[0],
            corrupted=patterns[1],
            clean_tokens=pairs.clean_tokens[0],
            corrupted_tokens=pairs.corrupted_tokens[0],
            model=self.patcher.engine.model_name,
            task=pairs.task,
            pair_index=pairs.indices[0],
        )


def print_head_results(results: HeadResults, top_k: int = 15) -> None:
    """Print the experiment, its baselines and the heads of largest |effect|, a column per metric.

    Each effect stands with its interval, `n.s.` marks those that are not significant, and what follows the table says
    how both were found (`statistics.sites`).
    """
    check_kind(results, HeadResults, "run_all_heads_experiment")
    number = _numbers_of_heads(results)
    rows = [(result.label, number[result.layer, result.head]) for result in results.top(top_k)]
    kind = "key-value head" if results.counts_key_value_heads else "head"
    print(results_text(results.sweep, rows, kind=kind, of=len(results), patched=results.patch_type))


def _numbers_of_heads(results: HeadResults) -> dict[tuple[int | None, int | None], int]:
    """(layer, head) -> number of its patch. The list itself may have been sorted or shortened since."""
    return {(patch.sites[0].layer, patch.sites[0].head): i for i, patch in enumerate(results.sweep.patches)}
