"""Which layers cause a behaviour?  Replace one activation of a run by that of another run, and measure what comes back.

Run a prompt on which the model behaves (clean) and one on which it does not (corrupted). Put a single activation of
the clean run into the corrupted one (*denoising*: does it suffice to restore the behaviour?), or one of the corrupted
run into the clean one (*noising*: is it necessary?). The effect of the patch is

    (patched metric - corrupted metric) / (clean metric - corrupted metric)

for denoising: 0 where nothing comes back, 1 where the clean metric does; below 0 and above 1 both happen and mean
something. See Heimersheim & Nanda 2024, "How to use and interpret activation patching"; Vig et al. 2020; Meng et al.
2022; Wang et al. 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ioi_task import IOIDataset
from language_tasks import AgreementDataset, CapitalsDataset, GenderedPronounDataset
from metric_sets import MetricChoice
from patching_engine import PatchingEngine
from patching_results import (
    HeadPatchingResult,
    HeadResults,
    LayerResults,
    PatchingResult,
    PositionResults,
    load_results,
)
from patching_sites import Patch, Site, check_index
from patching_sweep import Direction, MetricValues, Sweep
from patching_tasks import EncodedPairs, PatchingDataset, dataset_metrics, encode_pairs
from prompt_pairs import PromptPairs
from result_tables import describe_experiment, effects_table
from sequence_tasks import DocstringDataset, GreaterThanDataset, InductionDataset

__all__ = [
    "ActivationPatcher",
    "AgreementDataset",
    "CapitalsDataset",
    "Direction",
    "DocstringDataset",
    "GenderedPronounDataset",
    "GreaterThanDataset",
    "HeadPatchingResult",
    "HeadResults",
    "IOIDataset",
    "InductionDataset",
    "LayerResults",
    "PatchingDataset",
    "PatchingResult",
    "PositionResults",
    "PromptPairs",
    "load_results",
    "summarize_results",
]


class ActivationPatcher:
    """Patches activations of one model.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge`, for instance from `load_model`.
        batch_size: most patched prompts run at once; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.

    Raises:
        TypeError: for a model of another class.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None, show_progress: bool = True) -> None:
        self.model = model
        self.engine = PatchingEngine(model, batch_size=batch_size, show_progress=show_progress)

    def list_hook_points(self, containing: str = "", *, layer: int | None = None) -> list[str]:
        """Names of the model's hook points, those that contain a text and those of one layer if these are given."""
        names = [name for name in self.engine.runner.hook_points if containing in name]
        if layer is None:
            return names
        at = check_index(layer, self.engine.n_layers, "layer")
        return [name for name in names if Site(name).layer == at]

    def run_patching_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: str | Sequence[str],
        *,
        pair_indices: Sequence[int] | None = None,
        position: int | None = None,
        direction: Direction = "denoising",
        metrics: MetricChoice = None,
    ) -> LayerResults:
        """Patch each hook point on each pair.

        Args:
            dataset: prompt pairs and metric.
            hook_points: full names (`blocks.3.hook_attn_out`), or short names that expand over all layers:
                `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `z`, `q`, `k`, `v`, `pattern`.
            pair_indices: which pairs of the dataset; None for all.
            position: token position to patch, counting the BOS token, negative from each prompt's end; None for all
                positions at once. For patterns it is the query's position.
            direction: `denoising` (clean into corrupted) or `noising` (corrupted into clean).
            metrics: what to measure, all in the same runs: names (`metric_sets.METRICS`) and `Metric` objects, one or a
                list; None for the dataset's own. Results show the first; `results.by_metric(name)` shows another.

        Returns:
            A mapping hook point -> list of `PatchingResult`, one per pair.

        Raises:
            ValueError: before any run of the model, for whatever of the arguments or the dataset is wrong.
        """
        names = self.engine.hook_points(hook_points)
        patches = [Patch((Site(name, position=position),)) for name in names]
        return LayerResults(
            self.sweep(dataset, patches, pair_indices=pair_indices, direction=direction, metrics=metrics)
        )

    def run_position_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: str | Sequence[str] = "resid_pre",
        *,
        pair_indices: Sequence[int] | None = None,
        direction: Direction = "denoising",
        metrics: MetricChoice = None,
    ) -> PositionResults:
        """Patch each hook point at each position, one at a time: a layer × position map.

        Args and errors are those of `run_patching_experiment`; besides, all pairs need the same number of tokens,
        because the map has one column per position.
        """
        names = self.engine.hook_points(hook_points)
        if outside := [name for name in names if Site(name).layer is None]:
            raise ValueError(f"{outside[0]} lies in no layer, so it has no place in a layer × position map")
        pairs = encode_pairs(self.model, dataset, pair_indices)
        lengths = sorted(set(pairs.lengths.tolist()))
        if len(lengths) > 1:
            raise ValueError(
                f"the pairs have {' and '.join(map(str, lengths))} tokens, a map over positions needs one length: "
                "choose pairs of one length with pair_indices"
            )
        patches = [Patch((Site(name, position=at),)) for name in names for at in range(lengths[0])]
        return PositionResults(
            self.sweep(dataset, patches, pair_indices=pair_indices, direction=direction, metrics=metrics)
        )

    def sweep(
        self,
        dataset: PatchingDataset,
        patches: Sequence[Patch],
        *,
        pair_indices: Sequence[int] | None = None,
        direction: Direction = "denoising",
        metrics: MetricChoice = None,
    ) -> Sweep:
        """Run any patches: sets of sites that are replaced together, each on each pair.

        Returns:
            The raw numbers with all that is needed to read them.
        """
        pairs = encode_pairs(self.model, dataset, pair_indices)
        chosen = dataset_metrics(self.model, dataset, pairs.indices, metrics)
        baselines = self.engine.sweep(pairs, patches, chosen, direction)
        runs = zip(chosen, baselines.patched, baselines.clean, baselines.corrupted)
        sweep = Sweep(
            patches=tuple(patches),
            measured=tuple(MetricValues(m.name, m.unit, m.more_is_better, *values) for m, *values in runs),
            direction=direction,
            model=model_name(self.model),
            n_layers=self.engine.n_layers,
            n_heads=self.engine.n_heads,
            n_key_value_heads=self.engine.n_key_value_heads,
            task=dataset.name,
            pair_indices=pairs.indices,
            clean_tokens=pairs.clean_tokens,
            corrupted_tokens=pairs.corrupted_tokens,
            versions={name: version(name) for name in ("torch", "transformer_lens", "transformers")},
        )
        sweep.warn_about_unusable_pairs()
        return sweep

    def run_with_cache(
        self, prompt: str, hook_points: str | Sequence[str]
    ) -> tuple[Float[Tensor, "1 pos d_vocab"], dict[str, Tensor]]:
        """One run of a prompt: its logits, and its activations by hook point, each with a leading axis of 1."""
        names = self.engine.hook_points(hook_points)
        recorded = self.engine.record(_one_prompt(self.model, prompt).clean[0][None], names)
        return recorded.logits, {name: recorded.activations[name] for name in names}

    def run_patched(
        self,
        clean_prompt: str,
        corrupted_prompt: str,
        hook_point: str,
        *,
        head: int | None = None,
        position: int | None = None,
        direction: Direction = "denoising",
    ) -> Float[Tensor, "1 pos d_vocab"]:
        """Logits of a single patched run, at all positions.

        Args:
            clean_prompt: prompt of the clean run.
            corrupted_prompt: prompt of the corrupted run, of as many tokens.
            hook_point: full name of the hook point.
            head: head to patch; None for all.
            position: position to patch; None for all.
            direction: which run's activation goes into the other.
        """
        pairs = _one_prompt(self.model, clean_prompt, corrupted_prompt)
        names = self.engine.hook_points(hook_point)
        if len(names) > 1:
            raise ValueError(f"{hook_point!r} stands for all {len(names)} layers: name one, for instance {names[0]!r}")
        patch = Patch((Site(names[0], head=head, position=position),))
        return self.engine.patched_logits(pairs, patch, direction)[0][None]


def summarize_results(results: LayerResults, top_k: int = 10) -> None:
    """Print the experiment, its baselines and the hook points of largest |effect|, a column per metric."""
    if not isinstance(results, LayerResults):
        raise ValueError(
            f"results is a {type(results).__name__}, expected what run_patching_experiment returns; for heads use "
            "print_head_results"
        )
    number = {patch.sites[0].hook_point: i for i, patch in enumerate(results.sweep.patches)}
    rows = [(name, number[name]) for name, _ in results.top(top_k)]
    print(describe_experiment(results.sweep))
    print(f"\n{effects_table('hook point', rows, results.sweep)}")
    if len(results) > len(rows):
        print(f"({len(results) - len(rows)} more with smaller effects)")


def model_name(model: Any) -> str:
    """The name the model's configuration gives it."""
    return str(getattr(model.cfg, "model_name", None) or type(model).__name__)


class _Prompts(PatchingDataset):
    """One pair of prompts, for single runs."""

    def __init__(self, clean: str, corrupted: str) -> None:
        self.prompts = (clean, corrupted)

    @property
    def name(self) -> str:
        return "single run"

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return [self.prompts]

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        raise ValueError("a single run has no targets")


def _one_prompt(model: Any, clean: str, corrupted: str | None = None) -> EncodedPairs:
    return encode_pairs(model, _Prompts(clean, clean if corrupted is None else corrupted))
