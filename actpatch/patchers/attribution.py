"""Estimates every experiment from gradients: a screen for what is worth running.

    score = Σ (activation that a patch writes - activation that is there) · gradient of the metric there

One run with gradients estimates all patches of an experiment at once (attribution patching, Nanda 2023; for edges Syed
et al. 2023). The effect of an estimate is its score as a share of what the whole corruption does, on the scale of exact
effects and with their signs: what helps is positive in either direction. It is as good as the metric is linear on the
way: saturated attention, effects that cancel, and backup heads fool it (Kramár et al. 2024). So results say that they
are estimates, by which method, and `verify` runs what they pick.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Unpack, get_args

from actpatch.core.direction import Direction
from actpatch.core.estimates import Estimate, Grid, MethodName
from actpatch.core.indices import is_integer
from actpatch.core.node_names import Names
from actpatch.interventions.places import Columns, HookPoints, Position
from actpatch.interventions.settings import Options
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.patchers.activation import ActivationPatcher
from actpatch.patchers.heads import HeadPatcher
from actpatch.patchers.paths import PathPatcher
from actpatch.results.both import BothDirections
from actpatch.results.edges import EdgeResults
from actpatch.results.head_positions import HeadPositionResults
from actpatch.results.shapes import HeadResults, LayerResults, NeuronResults, PositionResults
from actpatch.results.verification import Verification
from actpatch.tasks.dataset import PatchingDataset

Patcher = TypeVar("Patcher", ActivationPatcher, HeadPatcher, PathPatcher)


ScreenKind = Literal["edges", "heads", "neurons"]


class _Asked(Options, total=False):
    """What every experiment takes besides its method, as the exact one does."""

    direction: Direction | Literal["both"] | None
    source: Source


class _AtPosition(_Asked, total=False):
    position: Position


class _InWindow(_AtPosition, total=False):
    window: int


class _InColumns(_Asked, total=False):
    positions: Columns | None
    window: int


class _OfHeads(_AtPosition, total=False):
    layers: Sequence[int] | None
    positions: Columns | None


class _OfEdges(_Asked, total=False):
    senders: Names | None
    receivers: Names | None
    positions: Columns | None


class AttributionPatcher:
    """Estimates patches on one model from gradients.

    Every experiment is that of an exact patcher, with its arguments, its shape of results and its errors, and takes
    besides:

    - `method`: of components `atp`, `atp_star`, `eap_ig`, `ig_activations`, `clean_corrupted`, `relp` or `gim`; of
      edges `eap`, `eap_ig`, `clean_corrupted`, `relp` or `gim` (`core.estimates.METHODS`);
    - `steps`: at how many points gradients are taken, of `eap_ig` and `ig_activations`; None for 5;
    - `grid`: where on each step: `left`, `midpoint` or `right`; None for `midpoint`.

    Results say that they are estimates, and how they were made (`results.sweep.estimate`). What a method does not
    estimate is refused before any run, with the reason.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge`.
        batch_size: most prompts differentiated at once; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.

    Raises:
        TypeError: for a model of another class.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None, show_progress: bool = True) -> None:
        self.model = model
        self._batch_size, self._show_progress = batch_size, show_progress
        self._shown = repr(ActivationPatcher(model, batch_size=batch_size).engine.model_name)

    def __repr__(self) -> str:
        return f"AttributionPatcher({self._shown})"

    def run_patching_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: HookPoints,
        *,
        method: MethodName = "atp",
        steps: int | None = None,
        grid: Grid | None = None,
        **options: Unpack[_InWindow],
    ) -> LayerResults | BothDirections[LayerResults]:
        """Estimate each hook point on each pair: `ActivationPatcher.run_patching_experiment`."""
        patcher = self._estimating(ActivationPatcher, method, steps, grid)
        return patcher.run_patching_experiment(dataset, hook_points, **options)  # type: ignore[arg-type]

    def run_position_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: str | Sequence[str] = "resid_pre",
        *,
        method: MethodName = "atp",
        steps: int | None = None,
        grid: Grid | None = None,
        **options: Unpack[_InColumns],
    ) -> PositionResults | BothDirections[PositionResults]:
        """Estimate each hook point at each position: `ActivationPatcher.run_position_experiment`."""
        patcher = self._estimating(ActivationPatcher, method, steps, grid)
        return patcher.run_position_experiment(dataset, hook_points, **options)  # type: ignore[arg-type]

    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        patch_type: str = "output",
        *,
        method: MethodName = "atp",
        steps: int | None = None,
        grid: Grid | None = None,
        **options: Unpack[_OfHeads],
    ) -> HeadResults | HeadPositionResults | BothDirections[HeadResults] | BothDirections[HeadPositionResults]:
        """Estimate each head on each pair: `HeadPatcher.run_all_heads_experiment`."""
        patcher = self._estimating(HeadPatcher, method, steps, grid)
        return patcher.run_all_heads_experiment(dataset, patch_type, **options)  # type: ignore[arg-type]

    def run_neurons_experiment(
        self,
        dataset: PatchingDataset,
        layer: int | Sequence[int] | None = None,
        neurons: Sequence[int] | None = None,
        *,
        method: MethodName = "atp",
        steps: int | None = None,
        grid: Grid | None = None,
        **options: Unpack[_AtPosition],
    ) -> NeuronResults | BothDirections[NeuronResults]:
        """Estimate each neuron of a layer, of several or of all on each pair:
        `ActivationPatcher.run_neurons_experiment`."""
        patcher = self._estimating(ActivationPatcher, method, steps, grid)
        return patcher.run_neurons_experiment(dataset, layer, neurons, **options)  # type: ignore[arg-type]

    def run_all_edges_experiment(
        self,
        dataset: PatchingDataset,
        *,
        method: MethodName = "eap",
        steps: int | None = None,
        grid: Grid | None = None,
        **options: Unpack[_OfEdges],
    ) -> EdgeResults | BothDirections[EdgeResults]:
        """Estimate each edge on each pair: `PathPatcher.run_all_edges_experiment`."""
        patcher = self._estimating(PathPatcher, method, steps, grid)
        return patcher.run_all_edges_experiment(dataset, **options)  # type: ignore[arg-type]

    def screen_and_verify(
        self,
        dataset: PatchingDataset,
        kind: ScreenKind,
        budget: int,
        *,
        method: MethodName | None = None,
        steps: int | None = None,
        grid: Grid | None = None,
        top: int | None = None,
        seed: int = 0,
        **options: Unpack[_Asked],
    ) -> Verification:
        """Estimate all edges, heads or neurons, and spend a given number of exact runs on what the estimates pick.

        Seven tenths of the runs go to the largest estimates, the rest to a random sample of the others, which is what
        tells how much may have been missed: without it nothing is known of the sites that no estimate picked. Where
        the budget is enough for all, all are run.

        Args:
            dataset: prompt pairs and metric.
            kind: `edges`, `heads` (their outputs) or `neurons` (of all layers).
            budget: how many sites are run exactly, each on every pair.
            method: None for integrated gradients (`eap_ig`), and for `atp` or `eap` where what is written is of neither
                run, or prompts have other lengths.
            steps: of methods with steps.
            grid: likewise.
            top: how many of the largest are run, the rest of the budget being the sample; None for seven tenths.
            seed: of the sample.

        The other arguments are those of the experiments.

        Raises:
            ValueError: before any run of the model, for a budget below `top` or below 2, an unknown kind, and as the
                experiments.
        """
        if kind not in get_args(ScreenKind):
            raise ValueError(f"kind is {kind!r}, expected one of {', '.join(map(repr, get_args(ScreenKind)))}")
        if not is_integer(budget) or budget < 2:
            raise ValueError(f"budget is {budget!r}, expected at least 2 exact runs: one of the top, one of the sample")
        if top is not None and (not is_integer(top) or not 0 <= top <= budget):
            raise ValueError(f"top is {top!r}, expected from 0 to the budget of {budget}")
        if options.get("direction") == "both":
            raise ValueError("direction 'both' gives two screens, expected 'denoising' or 'noising': run each")
        if method is None:
            gradient_there: MethodName = "eap" if kind == "edges" else "atp"
            is_ablation = getattr(options.get("source", OTHER_RUN), "is_ablation", False)
            is_aligned = getattr(dataset, "align", None) is not None
            method = gradient_there if is_ablation or is_aligned else "eap_ig"
        asked: Any = {"method": method, "steps": steps, "grid": grid, **options}
        run: Any = {
            "edges": self.run_all_edges_experiment,
            "heads": self.run_all_heads_experiment,
            "neurons": self.run_neurons_experiment,
        }[kind]
        scores: Any = run(dataset, **asked)
        chosen = max(1, round(0.7 * budget)) if top is None else top
        chosen = budget if len(scores.sweep.patches) <= budget else chosen
        return scores.verify(top=chosen, sample=budget - chosen, seed=seed)  # type: ignore[no-any-return]

    def _estimating(self, kind: type[Patcher], method: MethodName, steps: int | None, grid: Grid | None) -> Patcher:
        """An exact patcher whose engine estimates."""
        patcher = kind(self.model, batch_size=self._batch_size, show_progress=self._show_progress)
        patcher.engine.estimate = Estimate(method, steps, grid)
        return patcher
