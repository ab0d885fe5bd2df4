"""Patches edges and paths between components: which of them feed which, and what of it the behaviour rests on.

A head matters, but *for whom* does it write? An *edge* goes from a writer (the embedding, a head, an MLP) to a reader
(queries, keys or values of a head, an MLP, the logits). Patching it gives this one reader the input

    what it reads in the run that is patched + (writer in the other run - writer in the run that is patched)

before its normalization, which is computed anew; everything behind the reader is then computed as usual. So an edge
tells the direct way from all the others that lead through other components. The effects of edges do not add up to that
of their writer: what is not linear does not. The graph is that of Syed et al. 2023 and Hanna et al. 2024; path patching
of heads is that of Wang et al. 2022, paths of several steps those of Goldowsky-Dill et al. 2023.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from actpatch.core.direction import Direction
from actpatch.core.edge_patches import ALL_POSITIONS, EdgePatches, edge_patches
from actpatch.core.graph import Graph
from actpatch.core.indices import check_indices
from actpatch.core.node_names import Names
from actpatch.core.path_patches import HeadPaths, Through, head_paths, path_patches
from actpatch.core.stores import Store
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.noise import GaussianNoise
from actpatch.interventions.places import Columns, Position, named_columns, places_at
from actpatch.interventions.settings import Options, Settings
from actpatch.interventions.sources import OTHER_RUN, Source
from actpatch.metrics.chosen import MetricChoice
from actpatch.models.graph import graph_of
from actpatch.patchers.experiment import encoded, run_experiment
from actpatch.results.both import BothDirections
from actpatch.results.edges import EdgeResults
from actpatch.results.paths import PathResults
from actpatch.results.shapes import HeadResults
from actpatch.runs.plan import Plan
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.encoding import EncodedPairs


class _OfEdges(Options, total=False):
    senders: Names | None
    receivers: Names | None
    positions: Columns | None


class _OfHeads(Options, total=False):
    layers: Sequence[int] | None
    position: Position


class PathPatcher:
    """Patches the edges and paths between the components of one model.

    Args:
        model: a TransformerLens `HookedTransformer` or `TransformerBridge`.
        batch_size: most patched prompts run at once; None adapts it to the free memory.
        show_progress: whether a progress bar is drawn on stderr.

    Raises:
        TypeError: for a model of another class.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None, show_progress: bool = True) -> None:
        self.model = model
        self.engine = PatchingEngine(model, batch_size=batch_size, show_progress=show_progress)

    def __repr__(self) -> str:
        return f"PathPatcher({self.engine!r})"

    @functools.cached_property
    def graph(self) -> Graph:
        """The model's writers, readers and edges (`graph_of`).

        Raises:
            ValueError: for a model in which outputs of heads do not add up, with the reason.
        """
        return graph_of(self.model)

    @overload
    def run_all_edges_experiment(
        self, dataset: PatchingDataset, *, direction: Literal["both"], **options: Unpack[_OfEdges]
    ) -> BothDirections[EdgeResults]: ...

    @overload
    def run_all_edges_experiment(
        self,
        dataset: PatchingDataset,
        *,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_OfEdges],
    ) -> EdgeResults: ...

    @overload
    def run_all_edges_experiment(
        self,
        dataset: PatchingDataset,
        *,
        plan: Literal[True],
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_OfEdges],
    ) -> Plan: ...

    def run_all_edges_experiment(
        self,
        dataset: PatchingDataset,
        *,
        senders: Names | None = None,
        receivers: Names | None = None,
        positions: Columns | None = None,
        pair_indices: Sequence[int] | None = None,
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        noise: GaussianNoise | None = None,
        metrics: MetricChoice = None,
        store: Store | str | Path | None = None,
        plan: bool = False,
    ) -> EdgeResults | BothDirections[EdgeResults] | Plan:
        """Patch each edge on each pair, exactly.

        Args:
            dataset: prompt pairs and metric.
            senders: which writers: ids (`a5.h3`, `m0`, `input`), labels (`L5H3`, `L0 MLP`), (layer, head), `heads`,
                `mlps`, or whole layers (`L5`); None for all. A name with no edge to any receiver is refused.
            receivers: which readers: `L9H9 q`, `L9H9` for its queries, keys and values, `q`, `L9 q`, `L9 MLP`, `mlps`,
                `heads`, `logits`, or whole layers; None for all. Under grouped-query attention keys and values are
                those of key-value heads (`L9KV1 k`). A name with no edge from any sender is refused.
            positions: patch each edge at each of these positions, one at a time, as
                `ActivationPatcher.run_position_experiment` takes them: `["S2", "END"]`; it is then the part of what is
                read *there* that changes. None for all positions at once, over which effects may cancel.
            pair_indices: which pairs of the dataset; None for all.
            direction: as in `ActivationPatcher.run_patching_experiment`.
            source: likewise; it stands for what the writer writes.
            noise: likewise.
            metrics: likewise.
            store: likewise.
            plan: likewise.

        Returns:
            A sequence of `EdgePatchingResult`, by receiver, sender and position. For the direction `both` a
            `BothDirections` of two such.

        Raises:
            ValueError: before any run of the model, for a model whose heads' outputs do not add up, and for whatever of
                the arguments or the dataset is wrong.
            RuntimeError: once the first pairs have been run, where the model computes otherwise than its graph says.
        """
        graph = self.graph
        edge_patches(graph, senders, receivers)  # wrong names are told before prompts are looked at
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

        def patches(pairs: EncodedPairs) -> EdgePatches:
            places = ALL_POSITIONS if positions is None else named_columns(positions, pairs)
            return edge_patches(graph, senders, receivers, places)

        return run_experiment(self.engine, EdgeResults, pairs, patches, settings)

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        receivers: Names,
        through: Through,
        *,
        direction: Literal["both"],
        **options: Unpack[_OfHeads],
    ) -> BothDirections[HeadResults]: ...

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        receivers: Names,
        through: Through,
        *,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_OfHeads],
    ) -> HeadResults: ...

    @overload
    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        receivers: Names,
        through: Through,
        *,
        plan: Literal[True],
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[_OfHeads],
    ) -> Plan: ...

    def run_all_heads_experiment(
        self,
        dataset: PatchingDataset,
        receivers: Names,
        through: Through,
        *,
        layers: Sequence[int] | None = None,
        pair_indices: Sequence[int] | None = None,
        position: Position = None,
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        noise: GaussianNoise | None = None,
        metrics: MetricChoice = None,
        store: Store | str | Path | None = None,
        plan: bool = False,
    ) -> HeadResults | BothDirections[HeadResults] | Plan:
        """Path patching as in Wang et al. 2022: each head sends to the same receivers, which read it together.

        All other heads are held at what they give in the run that is patched. The normalization before each receiver is
        computed anew; what follows the receivers is computed as usual.

        Args:
            dataset: prompt pairs and metric.
            receivers: as in `run_all_edges_experiment`; `logits` alone.
            through: what a head's change may go through on its way: `nothing` (MLPs are held too; with one receiver
                these are edges), or `mlps` (they are computed anew, as in the paper).
            layers: which senders' layers, negative ones from the end; None for all.
            pair_indices: which pairs of the dataset; None for all.
            position: at which position the senders' change is read and goes on; a name, or several that are taken
                together; None for all.
            direction: as in `ActivationPatcher.run_patching_experiment`. In the paper it is noising.
            source: likewise.
            noise: likewise.
            metrics: likewise.
            store: likewise.
            plan: likewise.

        Returns:
            `HeadResults` of the senders; heads behind all receivers have effect 0. `results.sweep.path` names receivers
            and what was held. For the direction `both` a `BothDirections` of two such.

        Raises:
            ValueError: before any run of the model, as `run_all_edges_experiment`, and for a word that `through` does
                not take.
            RuntimeError: as there.
        """
        graph = self.graph
        chosen = None if layers is None else check_indices(layers, graph.n_layers, "layers", "layer")
        head_paths(graph, receivers, through, layers=chosen)
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

        def patches(pairs: EncodedPairs) -> HeadPaths:
            return head_paths(graph, receivers, through, [places_at(position, pairs)], chosen)

        return run_experiment(self.engine, HeadResults, pairs, patches, settings)

    @overload
    def run_path_experiment(
        self,
        dataset: PatchingDataset,
        paths: Sequence[str] | str,
        *,
        direction: Literal["both"],
        **options: Unpack[Options],
    ) -> BothDirections[PathResults]: ...

    @overload
    def run_path_experiment(
        self,
        dataset: PatchingDataset,
        paths: Sequence[str] | str,
        *,
        direction: Direction | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[Options],
    ) -> PathResults: ...

    @overload
    def run_path_experiment(
        self,
        dataset: PatchingDataset,
        paths: Sequence[str] | str,
        *,
        plan: Literal[True],
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        **options: Unpack[Options],
    ) -> Plan: ...

    def run_path_experiment(
        self,
        dataset: PatchingDataset,
        paths: Sequence[str] | str,
        *,
        pair_indices: Sequence[int] | None = None,
        direction: Direction | Literal["both"] | None = None,
        source: Source = OTHER_RUN,
        noise: GaussianNoise | None = None,
        metrics: MetricChoice = None,
        store: Store | str | Path | None = None,
        plan: bool = False,
    ) -> PathResults | BothDirections[PathResults] | Plan:
        """Patch each of these paths on each pair: every component on it reads only what the path says has changed.

        Args:
            dataset: prompt pairs and metric.
            paths: `"L3H0 → L5H5 k → L8H6 v → L9H9 q → logits"`, with `->` for the arrow: a writer, then readers. What
                follows the last one is computed as usual. A path of one step is its edge.
            pair_indices: which pairs of the dataset; None for all.
            direction: as in `ActivationPatcher.run_patching_experiment`.
            source: likewise; it stands for what the first component writes.
            noise: likewise.
            metrics: likewise.
            store: likewise.
            plan: likewise.

        Returns:
            One `PathPatchingResult` per path, in their order. For the direction `both` a `BothDirections` of two such.

        Raises:
            ValueError: before any run of the model, as `run_all_edges_experiment`, and for paths that go backwards.
            RuntimeError: as there.
        """
        asked = path_patches(self.graph, paths)
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
        return run_experiment(self.engine, PathResults, pairs, lambda pairs: asked, settings)
