"""How is one batch run?  Carried up through the layers over the recorded runs, while its rows enter where they change.

`Resumption` runs the blocks singly from the recorded residual stream; `run_in_full` runs the model's own forward pass
with hooks, for models and hook points that cannot be resumed. Both write the same activations into the same rows.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.components import COMPONENTS, SHORT_NAMES, component_of, in_forward_order
from actpatch.core.direction import Direction
from actpatch.core.sites import Patch, Site, block_hook, head_axis, position_axis
from actpatch.engine.plan import Batch, Route, Stage
from actpatch.interventions.sources import PlacedNoise, References
from actpatch.models.runner import Hook, Recording, Runner, at_positions, outputs_at, reading, replaced_forward
from actpatch.tasks.dataset import EncodedPairs

Written = tuple[slice, int, Site]
"""Rows of a batch, their patch, and the site that is written there."""
Where = tuple[Tensor, Tensor | None, int, int]
"""Pairs of the rows, their positions or None for all, first position, length."""
WhereWritten = Callable[[Site], Where]


@dataclass(frozen=True)
class Experiment:
    """What is run: patches on pairs, in a direction, for a metric that reads the last position or all of them."""

    runner: Runner
    pairs: EncodedPairs
    """Each pair stands here once per sample, of the noise or of what is written."""
    patches: Sequence[Patch]
    positions: Sequence[Sequence[Int[Tensor, " pair"] | None]]
    """For each site of each patch its position in each pair; None for all positions."""
    direction: Direction
    reads_all: bool
    """Whether the metric reads all positions."""
    vocabulary: Int[Tensor, " token"] | None
    """Vocabulary entries that the metric reads; None for all. Recordings hold the logits of no others."""
    references: References | None = None
    """The prompts whose mean activations are written; None for the pair's other run."""
    noise: PlacedNoise | None = None
    """What makes the corrupted run out of the clean prompt's embeddings; None where the prompts differ."""

    @functools.cached_property
    def first_change(self) -> Int[Tensor, " pair"]:
        """First position of each pair at which what is written may differ from the run that is patched."""
        if self.noise is not None:
            return self.noise.first_change
        if self.references is not None:
            return self.references.first_change(self.prompts[0])
        return self.pairs.first_difference

    @property
    def prompts(self) -> tuple[Sequence[Int[Tensor, " _"]], Sequence[Int[Tensor, " _"]]]:
        """The prompts of the runs that are patched, and those of the other runs."""
        clean, corrupted = self.pairs.clean, self.pairs.corrupted
        return (corrupted, clean) if self.direction == "denoising" else (clean, corrupted)


@dataclass(frozen=True)
class Chunk:
    """Some pairs of an experiment, recorded."""

    pairs: Int[Tensor, " pair"]
    """Index of each pair within the experiment."""
    lengths: Int[Tensor, " pair"]
    first_change: Int[Tensor, " pair"]
    """First position at which what is written may differ from the run that is patched."""
    base: Recording
    """The run that is patched."""
    other: Recording
    """The other run of the pair."""
    source: dict[str, Tensor]
    """Hook point -> what is written there, one row per pair."""
    base_noise: Float[Tensor, "pair pos d_model"] | None = None
    """What is added to the embeddings of the run that is patched."""


class Resumption:
    """One batch, carried up through the layers while its rows enter."""

    def __init__(
        self, experiment: Experiment, batch: Batch, chunk: Chunk, routes: Sequence[Route], *, narrow: bool
    ) -> None:
        self.experiment, self.runner, self.batch, self.chunk = experiment, experiment.runner, batch, chunk
        self.routes = [routes[patch] for patch in batch.patches]
        self.orders = [taken.order for taken in self.routes]
        device = self.runner.device
        self.pairs = torch.tensor(batch.pairs, device=device)
        self.read = (chunk.lengths[list(batch.pairs)] - 1 - batch.start).to(device)
        self.writes = _written(batch, [taken.hooked for taken in routes])
        self.narrow = narrow and self._can_narrow_last_layer()

    def run(self, call: Any) -> Float[Tensor, "row read token"]:
        hooks, fired = _write_hooks(self.experiment, self.batch, self.chunk, self.writes)
        last = self.runner.n_layers - 1
        resid: Tensor | None = None
        with self.runner.hooks(hooks), self._narrowed_z(last):  # what is written to z is narrowed too
            for layer in range(self.routes[0].layer, last + 1):
                resid = self._joined(resid, layer)
                resid = self._run_layer(resid, layer, call)
        resid = self._joined(resid, last + 1)
        _check_fired(self.writes, fired)
        resid = resid if self.experiment.reads_all else at_positions(resid, self.read)
        return self.runner.unembed(resid, self.experiment.vocabulary)

    def _narrowed_z(self, last: int) -> contextlib.AbstractContextManager[None]:
        """The last layer with its heads' outputs narrowed to what is read, if that can be done."""
        if not self.narrow:
            return contextlib.nullcontext()
        return outputs_at(self.runner.model.hook_dict[block_hook(last, "z")], self.read)

    def _entered(self, layer: int, stage: Stage) -> int:
        """How many rows have entered by then; rows are ordered by entry."""
        return bisect.bisect_right(self.orders, (layer, stage))

    def _joined(self, resid: Tensor | None, layer: int) -> Tensor:
        """The residual stream with the rows that enter before this layer, changed as their patches say."""
        begin = 0 if resid is None else len(resid)
        end = self._entered(layer, Stage.BLOCK)
        entering = self._recorded_resid(layer, begin, end)
        base, source = self.chunk.base.activations, self.chunk.source
        for rows, sites, written in self._on_entry(begin, end):
            if neurons := [site for site in sites if site.component == "mlp_post"]:
                entering[rows] += self._change_by_neurons(
                    neurons, slice(begin + rows.start, begin + rows.stop), written
                )
            for site in sites[len(neurons) :]:
                value = source[site.hook_point]
                if site.component == "mlp_out":
                    value = base[resid_name(layer, self.runner.n_layers)] + (value - base[site.hook_point])
                _put(entering[rows], value, replace(site, hook_point=block_hook(0, "resid_pre")), *written(site))
        return entering if resid is None else torch.cat([resid, entering])

    def _run_layer(self, resid: Tensor, layer: int, call: Any) -> Tensor:
        entered, total = len(resid), self._entered(layer, Stage.ATTENTION)
        if not total:
            return resid
        prefix = self.runner.prefix(self.chunk.base, layer, self.pairs[:entered], self.batch.start)
        block = self.runner.model.blocks[layer]
        with contextlib.ExitStack() as stack:
            narrowed = layer == self.runner.n_layers - 1 and self.narrow
            if total > entered:
                outputs = self._attention_outputs(layer, entered, total)
                if narrowed:
                    outputs = at_positions(outputs, self.read[entered:total])
                stack.enter_context(self._given_attention(block.attn, outputs, entered, total))
                resid = torch.cat([resid, self._recorded_resid(layer, entered, total)])
            if narrowed and getattr(block, "mlp", None) is not None:
                stack.enter_context(reading(block.mlp, self.read[:total]))
            return self.runner.run_block(layer, resid, prefix, call)

    def _given_attention(self, attn: Any, given: Tensor, entered: int, total: int) -> Any:
        """The attention with its outputs given for the rows after `entered`, run only for those before."""
        original = attn.forward

        def rows_before(value: Any) -> Any:
            return value[:entered] if isinstance(value, Tensor) and len(value) == total else value

        def forward(*args: Any, **kwargs: Any) -> Any:
            outputs = given
            if entered:
                run = original(*map(rows_before, args), **{name: rows_before(v) for name, v in kwargs.items()})
                outputs = torch.cat([run[0] if isinstance(run, tuple) else run, given])
            return self.runner.attention_output(outputs)

        return replaced_forward(attn, forward)

    def _attention_outputs(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        """Attention outputs of the rows that enter there, changed as their patches say."""
        base, source = self.chunk.base.activations, self.chunk.source
        name = block_hook(layer, "attn_out")
        outputs = self._slice(base[name], begin, end)
        for rows, sites, written in self._on_entry(begin, end):
            if heads := [site for site in sites if site.kind.head_axis is not None]:
                outputs[rows] += self._change_by_heads(heads, slice(begin + rows.start, begin + rows.stop), written)
            for site in sites[len(heads) :]:
                value = source[site.hook_point]
                if site.component == "resid_mid":
                    value = base[name] + (value - base[site.hook_point])
                _put(outputs[rows], value, replace(site, hook_point=name), *written(site))
        return outputs

    def _change_by_heads(self, sites: Sequence[Site], rows: slice, written: WhereWritten) -> Float[Tensor, "row pos d"]:
        """What these rows' attention output changes by when the sites, all of one hook point, are replaced."""
        name = sites[0].hook_point
        before = self._slice(self.chunk.base.activations[name], rows.start, rows.stop)
        after = before.clone()
        for site in sites:
            _put(after, self.chunk.source[name], site, *written(site))
        heads = sorted({site.head for site in sites if site.head is not None})
        every = any(site.head is None for site in sites)
        return added_by_heads(self.runner, sites[0], after - before, None if every else heads)

    def _change_by_neurons(
        self, sites: Sequence[Site], rows: slice, written: WhereWritten
    ) -> Float[Tensor, "row pos d_model"]:
        """What these rows' MLP output changes by when the sites, neurons of one layer, are replaced."""
        name, layer = sites[0].hook_point, sites[0].layer
        assert layer is not None
        base, source = self.chunk.base.activations[name], self.chunk.source[name]
        weight = mlp_output_weight(self.runner, layer)
        assert weight is not None, "checked before any change is added"
        chosen = sorted({site.neuron for site in sites if site.neuron is not None})
        if all(site.neuron is not None for site in sites):
            base, source, weight = base[..., chosen], source[..., chosen], weight[chosen]
        else:
            chosen = list(range(len(weight)))
        before = self._slice(base, rows.start, rows.stop)
        after = before.clone()
        for site in sites:
            column = None if site.neuron is None else chosen.index(site.neuron)
            _put(after, source, replace(site, neuron=column), *written(site))
        return (after - before) @ weight

    def _recorded_resid(self, layer: int, begin: int, end: int) -> Float[Tensor, "row pos d_model"]:
        return self._slice(self.chunk.base.activations[resid_name(layer, self.runner.n_layers)], begin, end)

    def _slice(self, recorded: Tensor, begin: int, end: int) -> Tensor:
        """A copy of what was recorded for these rows, at the positions that are computed."""
        return recorded[self.pairs[begin:end], self.batch.start : self.batch.length]

    def _on_entry(self, begin: int, end: int) -> Iterator[tuple[slice, Sequence[Site], WhereWritten]]:
        """For each patch that enters: its rows, counted from `begin`; its sites, upstream first; where those write."""
        for patch, rows in _runs_of_equal(self.batch.patches, begin, end):
            here = functools.partial(self._where, patch, rows)
            yield slice(rows.start - begin, rows.stop - begin), self.routes[rows.start].on_entry, here

    def _where(self, patch: int, rows: slice, site: Site) -> Where:
        index = self.experiment.patches[patch].sites.index(site)
        return _where(self.experiment, self.chunk, self.batch, patch, index, rows)

    def _can_narrow_last_layer(self) -> bool:
        """Whether in the last layer only the position that is read has to be computed beyond the values and keys."""
        if self.experiment.reads_all or self.batch.length - self.batch.start == 1:
            return False
        last = self.runner.n_layers - 1
        if block_hook(last, "z") not in self.runner.hook_points:
            return False
        z = in_forward_order(component_of(SHORT_NAMES["z"]))
        sites = [site for taken in self.routes for site in taken.hooked if site.layer == last]
        return all(site.kind in COMPONENTS and in_forward_order(site.kind) <= z for site in sites)


def run_in_full(experiment: Experiment, batch: Batch, chunk: Chunk) -> Float[Tensor, "row read token"]:
    """Logits of a batch by the model's own full forward passes."""
    rows = torch.tensor(batch.pairs)
    batch = replace(batch, start=0)
    writes = _written(batch, [patch.sites for patch in experiment.patches])
    hooks, fired = _write_hooks(experiment, batch, chunk, writes)
    read = None if experiment.reads_all else chunk.lengths[rows] - 1
    if chunk.base_noise is not None:
        hooks.insert(0, noise_hook(chunk.base_noise[rows, : batch.length]))
    with experiment.runner.hooks(hooks):
        logits = experiment.runner.run(chunk.base.tokens[rows, : batch.length], read, experiment.vocabulary)
    _check_fired(writes, fired)
    return logits


def noise_hook(noise: Float[Tensor, "row pos d_model"]) -> Hook:
    """A hook that adds the noise to the token embeddings."""
    return "hook_embed", lambda embedded, hook: embedded + noise.to(embedded)


def _written(batch: Batch, sites: Sequence[Sequence[Site]]) -> list[Written]:
    return [
        (rows, patch, site) for patch, rows in _runs_of_equal(batch.patches, 0, len(batch)) for site in sites[patch]
    ]


def _write_hooks(
    experiment: Experiment, batch: Batch, chunk: Chunk, writes: list[Written]
) -> tuple[list[Hook], set[str]]:
    """Hooks that write the source's activations into the rows, and the set of hook points that did."""
    fired: set[str] = set()
    by_hook: dict[str, list[Written]] = {}
    for write in writes:
        by_hook.setdefault(write[2].hook_point, []).append(write)

    def writer(name: str) -> Any:
        source = chunk.source[name]

        def write(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            for rows, patch, site in by_hook[name]:
                index = experiment.patches[patch].sites.index(site)
                _put(value[rows], source, site, *_where(experiment, chunk, batch, patch, index, rows))
            fired.add(name)
            return value

        return write

    hooks = []
    for name in by_hook:
        hooks += experiment.runner.writing_hooks(name, writer(name))
    return hooks, fired


def _check_fired(writes: list[Written], fired: set[str]) -> None:
    if silent := {site.hook_point for _, _, site in writes} - fired:
        raise RuntimeError(
            f"the hook {', '.join(sorted(silent))} did not fire, so its patch was not applied: this model computes "
            "without it"
        )


def _where(experiment: Experiment, chunk: Chunk, batch: Batch, patch: int, index: int, rows: slice) -> Where:
    pairs = torch.tensor(batch.pairs[rows])
    at = experiment.positions[patch][index]
    device = experiment.runner.device
    return (
        pairs.to(device),
        None if at is None else at[chunk.pairs[pairs]].to(device),
        batch.start,
        batch.length,
    )


def _put(target: Tensor, source: Tensor, site: Site, pairs: Tensor, at: Tensor | None, start: int, length: int) -> None:
    """Write the source's activation of each row's pair into the rows, which hold positions `start` to `length`."""
    axis, heads = position_axis(site.hook_point), head_axis(site.hook_point)
    source = source.to(target.device)
    if site.head is not None and heads is not None:
        target, source = target.select(heads, site.head), source.select(heads, site.head)
        axis -= heads < axis
    if site.neuron is not None:
        target, source = target.select(-1, site.neuron), source.select(-1, site.neuron)
    is_attention = head_axis(site.hook_point) == 1
    if is_attention:
        source, target = source[..., :length], target[..., :length]
    if at is None:
        target.copy_(source[pairs].narrow(axis, start, length - start))
        return
    rows = _computed(at, start)
    target.movedim(axis, 1)[rows, at[rows] - start] = source.movedim(axis, 1)[pairs[rows], at[rows]]


def _computed(at: Int[Tensor, " row"], start: int) -> Int[Tensor, " computed"]:
    """Rows whose position is computed. Before the start what is written is there already, so nothing has to be."""
    return (at >= start).nonzero().flatten()


def _runs_of_equal(values: Sequence[int], begin: int, end: int) -> Iterator[tuple[int, slice]]:
    """(value, where) of each stretch of equal values."""
    while begin < end:
        stop = begin
        while stop < end and values[stop] == values[begin]:
            stop += 1
        yield values[begin], slice(begin, stop)
        begin = stop


def resid_name(layer: int, n_layers: int) -> str:
    """Where the residual stream before a layer is recorded; `n_layers` stands for after the last one."""
    return block_hook(layer, "resid_pre") if layer < n_layers else block_hook(n_layers - 1, "resid_post")


def added_by_heads(
    runner: Runner, site: Site, change: Float[Tensor, "row pos head d"], heads: Sequence[int] | None
) -> Float[Tensor, "row pos d_model"]:
    """What a change of z or of the heads' results adds to the attention output; None for all heads."""
    if heads is not None:
        change = change[:, :, heads]
    if site.component != "z":
        return change.sum(dim=2)
    weight = runner.model.blocks[site.layer].attn.W_O
    return torch.einsum("bphd,hdm->bpm", change, weight if heads is None else weight[heads])


def mlp_output_weight(runner: Runner, layer: int) -> Float[Tensor, "neuron d_model"] | None:
    """What each neuron of a layer writes into the MLP's output; None where the model does not give it as one matrix."""
    weight = getattr(getattr(runner.model.blocks[layer], "mlp", None), "W_out", None)
    return weight if isinstance(weight, Tensor) and weight.ndim == 2 else None
