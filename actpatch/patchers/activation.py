"""Patches hook points, positions and neurons: put one activation of a run into another, and measure what comes back.

Run a prompt on which the model behaves (clean) and one on which it does not (corrupted). Put a single activation of
the clean run into the corrupted one (*denoising*: does it suffice to restore the behaviour?), or one of the corrupted
run into the clean one (*noising*: is it necessary?). The effect of the patch is

    (patched metric - corrupted metric) / (clean metric - corrupted metric)

for denoising: 0 where nothing comes back, 1 where the clean metric does; below 0 and above 1 both happen and mean
something. See Heimersheim & Nanda 2024, "How to use and interpret activation patching"; Vig et al. 2020; Meng et al.
2022; Wang et al. 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from jaxtyping import Float
from torch import Tensor

from actpatch.core.direction import Direction
from actpatch.core.indices import as_integer, check_index, check_indices
from actpatch.core.sites import Patch, Site, block_hook
from actpatch.core.stores import Store
from actpatch.core.text import shortened
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.noise import GaussianNoise
from actpatch.interventions.places import (
    Columns,
    HookPoints,
    Position,
    check_window,
    every_position,
    hook_point_patches,
    layer_window,
    named_columns,
    places_at,
)
from actpatch.interventions.settings import Options, Settings
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.chosen import MetricChoice
from actpatch.patchers.experiment import encoded, planned, run_experiment, run_sweeps
from actpatch.patchers.generation import PatchChoice, generation, one_hook_point
from actpatch.results.both import BothDirections, check_kind
from actpatch.results.effects import largest
from actpatch.results.generation import Generation
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import LayerResults, NeuronResults, SweepResults
from actpatch.results.sweep import Sweep
from actpatch.results.text import results_text
from actpatch.runs.plan import Plan
from actpatch.tasks.dataset import OnePairAlign, PatchingDataset, SinglePair
from actpatch.tasks.encoding import EncodedPairs, encode_pairs
from actpatch.tasks.tokens import Prompt


class _AtPosition(Options, total=False):
    position: Position


class _InWindow(Options, total=False):
    window: int


class _Columns(_InWindow, total=False):
    positions: Columns | None


class _AtPositionInWindow(_AtPosition, _InWindow, total=False):
    """Arguments of `run_patching_experiment`."""


class ActivationPatcher:
    """Patches activations of one model.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge`, for instance from `load_model`.
        batch_size: most patched prompts run at once; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr, where that is a terminal, and in notebooks.

    Raises:
        TypeError: for a model of another class.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None, show_progress: bool = True) -> None:
        self.model = model
        self.engine = PatchingEngine(model, batch_size=batch_size, show_progress=show_progress)

    def __repr__(self) -> str:
        return f"ActivationPatcher({self.engine!r})"

    def list_hook_points(self, containing: str = "", *, layer: int | None = None) -> list[str]:
        """Names of the model's hook points, those that contain a text and those of one layer if these are given."""
        names = [name for name in self.engine.runner.hook_points if containing in name]
        if layer is None:
            return names
        at = check_index(layer, self.engine.n_layers, "layer")
        return [name for name in names if Site(name).layer == at]

    @overload
    def run_patching_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: HookPoints,
        *,
        direction: Literal["both"],
        **options: Unpack[_AtPositionInWindow],
    ) -> BothDirections[LayerResults]: ...

    @overload
    def run_patching_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: HookPoints,
        *,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_AtPositionInWindow],
    ) -> LayerResults: ...

    @overload
    def run_patching_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: HookPoints,
        *,
        plan: Literal[True],
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_AtPositionInWindow],
    ) -> Plan: ...

    def run_patching_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: HookPoints,
        *,
        pair_indices: Sequence[int] | None = None,
        position: Position = None,
        window: int = 1,
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        noise: GaussianNoise | None = None,
        metrics: MetricChoice = None,
        store: Store | str | Path | None = None,
        plan: bool = False,
    ) -> LayerResults | BothDirections[LayerResults] | Plan:
        """Patch each hook point on each pair.

        Args:
            dataset: prompt pairs and metric.
            hook_points: full names (`blocks.3.hook_attn_out`), or short names that expand over all layers:
                `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `z`, `q`, `k`, `v`, `pattern`, `mlp_pre`,
                `mlp_post`. A tuple of names within the list is a set: all its hook points are patched together, and
                the result stands under the names joined by ` + `.
            pair_indices: which pairs of the dataset; None for all.
            position: token position to patch, counting the BOS token, negative from each prompt's end; or a name that
                the task gives one (`"S2"`) or several (`"SUBJECT"`, of which `"SUBJECT[-1]"` is the last); or a list of
                such, patched together; None for all positions at once. For patterns it is the query's position. Where
                prompts have other lengths, positions are those of the run that is patched, and their partners in the
                other run are copied (`PatchingDataset.align`).
            window: patch so many adjacent layers together, an odd number; each result belongs to the layer in the
                middle. At the first and last layers the window is cut off.
            direction: `denoising` (clean into corrupted), `noising` (corrupted into clean) or `both`. None stands for
                denoising, and for noising where `source` is an ablation: of the clean run.
            source: what is written: `OtherRun()`, or an ablation, `Zero()`, `Mean()` or `Resample()`. The effect keeps
                its formula, so that in noising it is by how much the ablation moves the clean metric, as a share of
                how much the corruption does (`interventions.sources`).
            noise: makes the corrupted run out of the clean prompt, whose partner in the pair is then not looked at.
            metrics: what to measure, all in the same runs: names (`METRICS`), `Metric` objects and functions of
                (logits, pair_idx), of which more is taken to be better; one or a list. None for the dataset's own.
                Results show the first; `results.by_metric(name)` shows another.
            store: a folder in which what is measured is stored while it runs: the same call goes on with it, whatever
                ended it (`Store`).
            plan: return what it would take instead, a `Plan`, having run no more than a second or two of it.

        Returns:
            A mapping hook point -> list of `PatchingResult`, one per pair; for `both` a `BothDirections` of two such.

        Raises:
            ValueError: before any run of the model, for whatever of the arguments or the dataset is wrong.
        """
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
            known, places = self.engine.runner.hook_points, places_at(position, pairs)
            return hook_point_patches(hook_points, known, places, window, self.engine.n_layers)

        return run_experiment(self.engine, LayerResults, pairs, patches, settings)

    @overload
    def run_position_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: str | Sequence[str] = "resid_pre",
        *,
        direction: Literal["both"],
        **options: Unpack[_Columns],
    ) -> BothDirections[PositionResults]: ...

    @overload
    def run_position_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: str | Sequence[str] = "resid_pre",
        *,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_Columns],
    ) -> PositionResults: ...

    @overload
    def run_position_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: str | Sequence[str] = "resid_pre",
        *,
        plan: Literal[True],
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_Columns],
    ) -> Plan: ...

    def run_position_experiment(
        self,
        dataset: PatchingDataset,
        hook_points: str | Sequence[str] = "resid_pre",
        *,
        positions: Columns | None = None,
        pair_indices: Sequence[int] | None = None,
        window: int = 1,
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        noise: GaussianNoise | None = None,
        metrics: MetricChoice = None,
        store: Store | str | Path | None = None,
        plan: bool = False,
    ) -> PositionResults | BothDirections[PositionResults] | Plan:
        """Patch each hook point at each position, one at a time: a layer × position map.

        Of an activation that heads have (`z`, `q`, ...) all heads are patched together, which labels and tables say;
        heads one at a time are `HeadPatcher.run_all_heads_experiment(positions=...)`.

        Args:
            positions: which positions, as numbers or by the names that the task gives them
                (`["IO", "S1", "S2", "END"]`): a column each, in which pairs are aligned by the name. Several in a list
                or a tuple within the list are one column, patched together (`[["IO", "S1"], "S2"]`), and so are all
                tokens of a name that stands for several. None for every position of the prompts that are patched,
                which then need the same number of tokens.

        The other arguments and the errors are those of `run_patching_experiment`.
        """
        names = self.engine.hook_points(hook_points)
        if outside := [name for name in names if Site(name).layer is None]:
            raise ValueError(f"{outside[0]} lies in no layer, so it has no place in a layer × position map")
        check_window(window)
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
            columns = every_position(pairs) if positions is None else named_columns(positions, pairs)
            return [
                layer_window([replace(site, hook_point=name) for site in column], window, self.engine.n_layers)
                for name in names
                for column in columns
            ]

        return run_experiment(self.engine, PositionResults, pairs, patches, settings)

    @overload
    def run_neurons_experiment(
        self,
        dataset: PatchingDataset,
        layer: int | Sequence[int] | None = None,
        neurons: Sequence[int] | None = None,
        *,
        direction: Literal["both"],
        **options: Unpack[_AtPosition],
    ) -> BothDirections[NeuronResults]: ...

    @overload
    def run_neurons_experiment(
        self,
        dataset: PatchingDataset,
        layer: int | Sequence[int] | None = None,
        neurons: Sequence[int] | None = None,
        *,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_AtPosition],
    ) -> NeuronResults: ...

    @overload
    def run_neurons_experiment(
        self,
        dataset: PatchingDataset,
        layer: int | Sequence[int] | None = None,
        neurons: Sequence[int] | None = None,
        *,
        plan: Literal[True],
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_AtPosition],
    ) -> Plan: ...

    def run_neurons_experiment(
        self,
        dataset: PatchingDataset,
        layer: int | Sequence[int] | None = None,
        neurons: Sequence[int] | None = None,
        *,
        pair_indices: Sequence[int] | None = None,
        position: Position = None,
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        noise: GaussianNoise | None = None,
        metrics: MetricChoice = None,
        store: Store | str | Path | None = None,
        plan: bool = False,
    ) -> NeuronResults | BothDirections[NeuronResults] | Plan:
        """Patch each neuron of a layer's MLP (`mlp.hook_post`) on each pair, or of several layers'.

        Args:
            layer: the layer, or several, negative from the end; None for all.
            neurons: which neurons of each, negative ones from the end; None for all.

        The other arguments and the errors are those of `run_patching_experiment`.

        Returns:
            A list of `NeuronPatchingResult`, one per neuron, in order of layer and neuron.
        """
        n_layers = self.engine.n_layers
        given = as_integer(layer)
        asked = range(n_layers) if layer is None else [given] if isinstance(given, int) else given
        chosen = []
        for at in sorted(set(check_indices(asked, n_layers, "layer", "layer"))):
            name = self.engine.hook_points(block_hook(at, "mlp_post"))[0]
            every = range(self.engine.n_neurons(at))
            of_layer = check_indices(every if neurons is None else neurons, len(every), "neurons", "neuron")
            chosen += [(name, neuron) for neuron in sorted(set(of_layer))]
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
            places = places_at(position, pairs)
            return [
                Patch(tuple(replace(place, hook_point=name, neuron=neuron) for place in places))
                for name, neuron in chosen
            ]

        return run_experiment(self.engine, NeuronResults, pairs, patches, settings)

    @overload
    def sweep(
        self,
        dataset: PatchingDataset,
        patches: Sequence[Patch],
        *,
        plan: Literal[True],
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[Options],
    ) -> Plan: ...

    @overload
    def sweep(
        self,
        dataset: PatchingDataset,
        patches: Sequence[Patch],
        *,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[Options],
    ) -> Sweep: ...

    def sweep(
        self,
        dataset: PatchingDataset,
        patches: Sequence[Patch],
        *,
        pair_indices: Sequence[int] | None = None,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        noise: GaussianNoise | None = None,
        metrics: MetricChoice = None,
        store: Store | str | Path | None = None,
        plan: bool = False,
    ) -> Sweep | Plan:
        """Run any patches: sets of sites that are replaced together, each on each pair.

        Arguments and errors are those of `run_patching_experiment`.

        Returns:
            The raw numbers with all that is needed to read them.
        """
        if isinstance(patches, (str, Patch)) or not isinstance(patches, Iterable):
            raise ValueError(f"patches is {patches!r}, expected a list of Patch: [Patch((site,))]")
        patches = list(patches)
        if wrong := [patch for patch in patches if not isinstance(patch, Patch)]:
            raise ValueError(f"patches holds {wrong[0]!r}, expected Patch: Patch((site,))")
        settings = Settings(
            pair_indices=pair_indices,
            direction=direction,
            source=source,
            noise=noise,
            metrics=metrics,
            store=store,
            plan=plan,
        )
        if len(settings.directions) > 1:
            raise ValueError("direction 'both' gives two sweeps, expected 'denoising' or 'noising': run each")
        pairs = encoded(self.model, dataset, settings)
        if plan:
            return planned(self.engine, pairs, lambda pairs: patches, settings)
        return run_sweeps(self.engine, pairs, lambda pairs: patches, settings)[0]

    def plan(
        self,
        dataset: PatchingDataset,
        patches: Sequence[Patch],
        *,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[Options],
    ) -> Plan:
        """What `sweep` would take for these patches; every experiment says it with `plan=True`."""
        return self.sweep(dataset, patches, plan=True, direction=direction, source=source, **options)

    def run_with_cache(
        self, prompt: Prompt, hook_points: str | Sequence[str]
    ) -> tuple[Float[Tensor, "1 pos d_vocab"], dict[str, Tensor]]:
        """One run of a prompt: its logits, and its activations by hook point, each with a leading axis of 1.

        Args:
            prompt: a text, or token ids, to which no BOS is added: a list, a tuple, an array or a tensor of integers.
            hook_points: full or short names, as for `run_patching_experiment`.

        Returns:
            Tensors that belong to the caller: a change of one in place changes neither another nor the model.

        Raises:
            ValueError: before any run of the model, for an unknown hook point and whatever is wrong with the prompt.
        """
        names = self.engine.hook_points(hook_points)
        recorded = self.engine.record(encode_pairs(self.model, SinglePair(prompt, prompt)).clean[0][None], names)
        return recorded.logits.clone(), {name: recorded.activations[name].clone() for name in names}

    def run_patched(
        self,
        clean_prompt: Prompt,
        corrupted_prompt: Prompt,
        hook_point: str,
        *,
        head: int | None = None,
        position: int | Sequence[int] | None = None,
        direction: Direction = "denoising",
        align: OnePairAlign = None,
    ) -> Float[Tensor, "1 pos d_vocab"]:
        """Logits of a single patched run, at all positions.

        Args:
            clean_prompt: prompt of the clean run: a text, or token ids, to which no BOS is added.
            corrupted_prompt: prompt of the corrupted run, of as many tokens unless `align` says which go together.
            hook_point: full name of the hook point.
            head: head to patch; None for all.
            position: position to patch, in the run that is patched, or several together; None for all.
            direction: which run's activation goes into the other.
            align: `"ends"`, for chats `"names"`, or a mapping clean position -> corrupted position
                (`PatchingDataset.align`); None for prompts of as many tokens.

        Raises:
            ValueError: before any run of the model, for whatever of the arguments is wrong.
        """
        if not isinstance(hook_point, str):
            raise ValueError(
                f"hook_point is {shortened(hook_point)}, expected one name: give several to run_patching_experiment, "
                "or several that are patched together to sweep"
            )
        pairs = encode_pairs(self.model, SinglePair(clean_prompt, corrupted_prompt, align))
        name, places = one_hook_point(self.engine, hook_point), places_at(position, pairs.in_direction(direction))
        patch = Patch(tuple(replace(place, hook_point=name, head=head) for place in places))
        return self.engine.patched_logits(pairs, patch, direction)[0][None]

    def generate(
        self,
        clean_prompt: Prompt,
        corrupted_prompt: Prompt,
        patch: PatchChoice,
        *,
        head: int | None = None,
        position: Position = None,
        direction: Direction = "denoising",
        align: OnePairAlign = None,
        max_new_tokens: int = 20,
        stop_at_eos: bool = True,
    ) -> Generation:
        """What the clean, the corrupted and the patched run say after their prompt, the likeliest token each time.

        The patch is written at positions of the prompt alone. What it changes there is what the new tokens see; they
        themselves are computed as the model computes them, over the keys and values that it kept, which is checked by a
        run of the whole text (`engine.generation`).

        Args:
            clean_prompt: prompt of the clean run: a text, messages of a chat, or token ids, to which no BOS is added.
            corrupted_prompt: prompt of the corrupted run, of as many tokens unless `align` says which go together.
            patch: what is replaced in the patched run: a `Patch`, a `Site`, or the full name of a hook point.
            head: head to patch, of a hook point that is given by its name; None for all.
            position: position of the prompt to patch, likewise; a name of one in a chat (`"USER"`), or several; None
                for all positions of the prompt. Positions are those of the run that is patched.
            direction: which run's activation goes into the other.
            align: `"ends"`, for chats `"names"`, or a mapping clean position -> corrupted position
                (`PatchingDataset.align`); None for prompts of as many tokens.
            max_new_tokens: most tokens of each continuation.
            stop_at_eos: whether a continuation ends at EOS, which is then its last token.

        Raises:
            ValueError: before any run of the model, for whatever of the arguments is wrong, more tokens than the model
                reads, and a model that reads other tokens than it writes.
        """
        return generation(
            self.engine,
            encode_pairs(self.model, SinglePair(clean_prompt, corrupted_prompt, align)),
            patch,
            head=head,
            position=position,
            direction=direction,
            max_new_tokens=max_new_tokens,
            stop_at_eos=stop_at_eos,
        )


def summarize_results(results: SweepResults, top_k: int = 10) -> None:
    """Print any experiment, its baselines and the effects of largest size, a column per metric.

    Each effect stands with its interval, `n.s.` marks those that are not significant, and what follows the table says
    how both were found (`statistics.sites`).
    """
    check_kind(results, SweepResults, "an experiment")
    sweep, labels = results.sweep, results.labels
    rows = [(labels[i], i) for i in largest(sweep.effects, top_k)]
    print(results_text(sweep, rows, kind=results.kind, of=len(labels), patched=results.patched))
